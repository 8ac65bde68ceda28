"einsum against NumPy: any equation, the best order, errors that name the letter."

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.tensor.contraction import (
    EinsumError,
    Term,
    einsum,
    einsum_path,
    greedy_order,
    optimal_order,
    planned,
    steps_of,
)
from gradbook.tensor.core import Tensor, gradients


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(np.random.default_rng(seed).uniform(-1, 1, shape))


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    "An equation with shapes: repeated letters, sums, empty terms, broadcasting, sizes 0 to 4."
    letters = "abcde"
    sizes = {c: draw(st.integers(1, 4)) for c in letters}
    if draw(st.integers(0, 9)) == 0:
        sizes["a"] = 0
    hidden = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    terms, shapes = [], []
    for _ in range(draw(st.integers(1, 4))):
        term = "".join(draw(st.lists(st.sampled_from(letters), max_size=4)))
        shape = tuple(sizes[c] for c in term)
        if draw(st.booleans()):
            place = draw(st.integers(0, len(term)))
            own = hidden[draw(st.integers(0, len(hidden))) :]
            own = tuple(1 if draw(st.integers(0, 3)) == 0 else n for n in own)
            term = term[:place] + "..." + term[place:]
            shape = (*shape[:place], *own, *shape[place:])
        terms.append(term)
        shapes.append(shape)
    equation = ",".join(terms)
    if draw(st.booleans()):
        used = sorted({c for c in equation if c.isalpha()})
        kept = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
        result = "".join(kept)
        place = draw(st.integers(0, len(result)))
        dots = "..." if "..." in equation else ""
        equation += "->" + result[:place] + dots + result[place:]
    return equation, shapes


@settings(max_examples=300, deadline=None)
@given(equations())
def test_any_equation_is_as_numpys(case: tuple[str, list[tuple[int, ...]]]) -> None:
    equation, shapes = case
    operands = [numbers(*shape, seed=k) for k, shape in enumerate(shapes)]
    expected = np.einsum(equation, *operands)
    found = einsum(equation, *operands).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(equations())
def test_gradients_are_as_pytorchs(case: tuple[str, list[tuple[int, ...]]]) -> None:
    torch = pytest.importorskip("torch")
    equation, shapes = case
    operands = [numbers(*shape, seed=k) for k, shape in enumerate(shapes)]
    xs = [Tensor(x, requires_grad=True) for x in operands]
    ys = [torch.tensor(x, requires_grad=True) for x in operands]
    out = einsum(equation, *xs)
    try:
        expected = torch.einsum(equation, *ys)
    except RuntimeError:
        return  # what PyTorch's einsum does not know
    weights = numbers(*out.shape, seed=9)
    found = gradients((out * out * weights).sum(), xs)
    wanted = torch.autograd.grad((expected * expected * torch.tensor(weights)).sum(), ys)
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-8, atol=1e-9)


def test_second_derivatives_are_as_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    shapes = [(2, 3, 4), (2, 3, 5), (5, 4)]
    operands = [numbers(*shape, seed=k) for k, shape in enumerate(shapes)]
    xs = [Tensor(x, requires_grad=True) for x in operands]
    ys = [torch.tensor(x, requires_grad=True) for x in operands]
    first = gradients((einsum("bij,bik,kj->bk", *xs) ** 2).sum(), xs, create_graph=True)
    wanted = torch.autograd.grad(
        (torch.einsum("bij,bik,kj->bk", *ys) ** 2).sum(), ys, create_graph=True
    )
    second = gradients(sum((g * g).sum() for g in first), xs)
    wanted = torch.autograd.grad(sum((g * g).sum() for g in wanted), ys)
    for a, b in zip(second, wanted):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-9)


def trees(items: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    "Every order of contractions, as steps of numbered tensors."

    def go(here: tuple[int, ...], next_one: int) -> Iterator[list[tuple[int, int]]]:
        if len(here) == 1:
            yield []
        for a in range(len(here)):
            for b in range(a + 1, len(here)):
                rest = tuple(x for k, x in enumerate(here) if k not in (a, b))
                for steps in go((*rest, next_one), next_one + 1):
                    yield [(here[a], here[b]), *steps]

    yield from go(tuple(items), len(items))


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Term], Term, dict[str, int]]:
    n = draw(st.integers(2, 5))
    letters = string.ascii_lowercase[:6]
    sizes = {c: draw(st.integers(1, 20)) for c in letters}
    terms = [tuple(draw(st.sets(st.sampled_from(letters), max_size=4))) for _ in range(n)]
    used = sorted(set().union(*terms))
    output = tuple(draw(st.sets(st.sampled_from(used), max_size=3))) if used else ()
    kept = [
        tuple(c for c in t if c in output or any(c in u for j, u in enumerate(terms) if j != k))
        for k, t in enumerate(terms)
    ]
    return kept, output, sizes


def price(
    terms: Sequence[Term], output: Term, sizes: Mapping[str, int], order: list[tuple[int, int]]
) -> int:
    "The multiply-adds of an order, counted anew."
    here = {k: set(t) for k, t in enumerate(terms)}
    total = 0
    for k, (i, j) in enumerate(order):
        both = here.pop(i) | here.pop(j)
        total += prod(sizes[c] for c in both)
        here[len(terms) + k] = both & set(output).union(*here.values())
    return total


@settings(max_examples=80, deadline=None)
@given(networks())
def test_no_order_is_cheaper(case: tuple[list[Term], Term, dict[str, int]]) -> None:
    terms, output, sizes = case
    best = min(price(terms, output, sizes, order) for order in trees(range(len(terms))))
    order = optimal_order(terms, output, sizes)
    assert price(terms, output, sizes, order) == best
    assert sum(s.cost for s in steps_of(terms, output, sizes, order)) == best
    assert price(terms, output, sizes, greedy_order(terms, output, sizes)) >= best


def test_the_order_matters_a_hundred_times() -> None:
    shapes = [(1000, 2), (2, 1000)] * 2 + [(1000, 2)]
    plan = einsum_path("ab,bc,cd,de,ef->af", *shapes)
    assert plan.cost == 12_008 and plan.in_order == 8_000_000
    text = repr(plan)
    assert "12,008" in text and "8,000,000" in text and "bd,df -> bf" in text
    assert repr(einsum_path("ab->a", (2, 3)))


def test_many_operands_take_the_greedy_way() -> None:
    letters = string.ascii_letters
    n = 30
    terms = [letters[k : k + 2] for k in range(n)]
    operands = [numbers(2, 2, seed=k) for k in range(n)]
    found = einsum(",".join(terms) + f"->{letters[0]}{letters[n]}", *operands).numpy()
    np.testing.assert_allclose(found, np.linalg.multi_dot(operands), rtol=1e-9)


@pytest.mark.parametrize("layout", ["bqhd,bkhd->bhqk", "qbdh,kbdh->bhqk", "hqdb,dkhb->qkbh"])
def test_every_layout_of_attention(layout: str) -> None:
    sizes = {"b": 2, "q": 3, "k": 4, "h": 5, "d": 6}
    left, right = layout.split("->")[0].split(",")
    q = numbers(*(sizes[c] for c in left))
    k = numbers(*(sizes[c] for c in right), seed=1)
    np.testing.assert_allclose(einsum(layout, q, k).numpy(), np.einsum(layout, q, k), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_the_dtype_stays(dtype: str) -> None:
    x = np.arange(6).reshape(2, 3).astype(dtype)
    for equation in ("ij,kj->ik", "ij,ij->ij", "ij,kj->"):
        assert einsum(equation, x, x).dtype == dtype
    assert einsum("ij->j", x).numpy().tolist() == [3, 5, 7]


def test_plans_are_kept() -> None:
    x = numbers(2, 3)
    einsum("ij,kj->ik", x, x)
    before = planned.cache_info().hits
    einsum("ij,kj->ik", x, x)
    assert planned.cache_info().hits == before + 1


@pytest.mark.parametrize(
    ("equation", "shapes", "words"),
    [
        ("ij,jk->ik", [(2, 3), (4, 5)], ["'j' is 3", "operand 0", "(2, 3)", "4 in operand 1"]),
        ("ii", [(2, 3)], ["'i' is 2", "3 in operand 0"]),
        ("ij,jk->ik", [(2, 3)], ["2 terms", "1 operands"]),
        ("ij->i", [(2, 3, 4)], ["'ij'", "3 axes"]),
        ("ijk->i", [(2, 3)], ["'ijk'", "2 axes"]),
        ("ij->z", [(2, 3)], ["'z'", "no operand"]),
        ("ij->ii", [(2, 3)], ["'i' is twice"]),
        ("i1->i", [(2, 3)], ["'1' is no letter"]),
        ("i.j->i", [(2, 3)], ["'.' is no letter"]),
        ("......", [(2, 3)], ["'.' is no letter"]),
        ("ij->i->j", [(2, 3)], ["is no letter"]),
        ("...i->i", [(2, 3)], ["'...'"]),
        ("...i,...i->...", [(2, 3), (4, 3)], ["axis -1 of '...'", "2", "4"]),
    ],
)
def test_errors_name_the_letter(
    equation: str, shapes: list[tuple[int, ...]], words: list[str]
) -> None:
    with pytest.raises(EinsumError) as caught:
        einsum(equation, *(numbers(*shape) for shape in shapes))
    assert all(word in str(caught.value) for word in (equation, *words)), caught.value
