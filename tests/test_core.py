"""The tensor core beyond its chapter: peers, properties, lifetimes, threads, and faults."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradbook.tensor import core
from gradbook.tensor.backend import DtypeError, using
from gradbook.tensor.core import (
    AnomalyError,
    GraphError,
    Primitive,
    ShapeError,
    Tensor,
    add,
    as_tensor,
    astype,
    broadcast_to,
    checkpoint,
    custom_vjp,
    detect_anomaly,
    divide,
    enable_grad,
    exp,
    gradients,
    identity,
    log,
    matmul,
    multiply,
    no_grad,
    operation,
    overwritten,
    permute_dims,
    reduce_sum,
    reshape,
    sweep,
    unbroadcast,
    wrap,
    written,
)

ROOT = Path(__file__).resolve().parent.parent


def leaf(value: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.array(value, dtype), requires_grad=True)


def numeric(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    "Central differences, element by element."
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += h
        down[at] -= h
        out[at] = (f(up) - f(down)) / (2 * h)
    return out


# --- values, shapes, dtypes -------------------------------------------------------------------


def test_a_tensor_copies_what_it_is_given() -> None:
    array = np.ones(3, "float32")
    x = Tensor(array)
    twin = Tensor(x, requires_grad=True)
    array[0] = 5
    assert x.tolist() == twin.tolist() == [1, 1, 1]
    assert twin.requires_grad and not x.requires_grad
    assert Tensor(leaf([1.0]) * 2)._inputs == ()
    assert Tensor(Tensor([1, 2]), dtype="float32").dtype == np.float32


def test_a_gradient_given_by_hand_is_copied() -> None:
    x, g = leaf([1.0, 2.0]), np.ones(2)
    (x + 0.0).backward(g)
    g[0] = 100
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_results_keep_the_dtype_of_floats(dtype: str) -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0]], dtype)
    y = (exp(x / 8) * 2 - 1 / x + (x @ x)).sum()
    y.backward()
    assert y.dtype == x.grad.dtype == np.dtype(dtype)


def test_whole_numbers_become_the_default_dtype_when_divided() -> None:
    n = as_tensor([1, 2, 4])
    assert (n / 2).dtype == divide(n, n).dtype == exp(n).dtype == np.float32
    assert (n + 0.5).dtype == (0.5 * n).dtype == divide(1, 2).dtype == np.float32
    assert (n + 1).dtype == np.int64
    with using(dtype="float64"):
        assert (n / 2).dtype == np.float64


def test_numpys_float64_number_counts_as_a_number() -> None:
    x = leaf([1.0, 2.0], "float32")
    assert (x / np.sqrt(2.0)).dtype == (np.float64(2) * x).dtype == np.float32


def test_a_mixed_product_gives_each_input_its_own_dtype() -> None:
    a, b = leaf([1.0, 2.0], "float32"), leaf([3.0, 4.0], "float64")
    (a * b).sum().backward()
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)
    c = leaf([1.0], "float32")
    (c * as_tensor([2, 3])).sum().backward()
    assert c.grad.tolist() == [5.0]


def test_arrays_numbers_and_lists_meet_tensors_on_both_sides() -> None:
    x = leaf([1.0, 2.0])
    for out in (np.ones(2) - x, [1, 1] - x, 1 - x, np.float32(1) - x):
        assert type(out) is Tensor and out.tolist() == [0.0, -1.0]
    assert (np.eye(2) @ x).tolist() == [1.0, 2.0]
    assert (2 / x).tolist() == [2.0, 1.0] and (-x).tolist() == [-1.0, -2.0]


def test_words_for_wrong_shapes() -> None:
    cases = {
        lambda: add(np.ones((32, 78)), Tensor(np.ones((100, 784)))): (
            "add: (32, 78) and (100, 784) do not broadcast: 78 and 784 differ"
        ),
        lambda: Tensor(np.ones((2, 1, 4))) * Tensor(np.ones((3, 5, 4))): (
            "multiply: (2, 1, 4) and (3, 5, 4) do not broadcast: 2 and 3 differ"
        ),
        lambda: matmul(np.ones((32, 784)), np.ones((100, 784))): (
            "matmul: (32, 784) @ (100, 784): inner sizes 784 and 100 differ; did you mean y.mT?"
        ),
        lambda: matmul(np.ones((3, 2)), np.ones(3)): (
            "matmul: (3, 2) @ (3,): inner sizes 2 and 3 differ; did you mean x.mT?"
        ),
        lambda: matmul(np.ones((2, 3, 4)), np.ones((5, 4, 3))): (
            "matmul: (2, 3, 4) @ (5, 4, 3): the axes in front do not broadcast: 2 and 5 differ"
        ),
        lambda: matmul(2, np.ones(3)): "matmul: () @ (3,): one axis each at least; numbers take *",
        lambda: core.sum(np.ones((2, 3)), axis=2): "sum: axis 2 of a tensor with 2 axes",
        lambda: core.sum(np.ones((2, 3)), axis=(1, -1)): "sum: axis=(1, -1) names an axis twice",
        lambda: Tensor(np.ones((2, 3, 4))).T: (
            "T: exactly two axes needed, not (2, 3, 4); mT exchanges the last two"
        ),
        lambda: Tensor([1.0]).mT: "mT: a matrix needs two axes, this tensor has shape (1,)",
        lambda: Tensor([1.0, 2.0]).item(): "item: one element needed, shape (2,) has 2",
    }
    for call, words in cases.items():
        with pytest.raises(ShapeError) as caught:
            call()
        assert str(caught.value) == words
    with pytest.raises(ShapeError, match=r"reshape\(\(3,\), shape=\(2, 2\)\): "):
        reshape(Tensor([1, 2, 3]), shape=(2, 2))
    with pytest.raises(TypeError):
        Tensor([1.0]) + "word"
    with pytest.raises(TypeError, match="without axes"):
        len(Tensor(1.0))


@pytest.mark.parametrize("axis", [[0], 0.5, "0", (0, None)])
def test_an_axis_is_a_whole_number(axis: Any) -> None:
    with pytest.raises(TypeError, match=r"sum: axis=.*; a whole number, a tuple of them, or None"):
        Tensor([1.0]).sum(axis=axis)
    assert Tensor([1.0, 2.0]).sum(axis=np.int64(0)).item() == 3


def test_printing() -> None:
    assert repr(Tensor(1.5)) == "Tensor(1.5)"
    assert repr(Tensor([])) == "Tensor([])"
    assert repr(Tensor(np.zeros((0, 3), "float32"))) == "Tensor([], shape=(0, 3))"
    assert repr(Tensor([1, 2])) == "Tensor([1, 2])"
    assert repr(leaf([1.0])) == "Tensor([1.], dtype=float64, requires_grad=True)"
    assert len(repr(Tensor(np.zeros((2000, 2000), "float32")))) < 600
    assert repr(Tensor([True])) == "Tensor([ True])"


def test_the_way_out() -> None:
    x = Tensor([[1.0, 2.0]])
    assert x.tolist() == [[1.0, 2.0]] and x.ndim == 2 and x.size == 2 and len(x) == 1
    assert np.asarray(x).tolist() == x.numpy().tolist() and not np.asarray(x).flags.writeable
    assert np.array(x, dtype="float64").dtype == np.float64 and np.array(x).flags.writeable
    assert np.from_dlpack(x).tolist() == [[1.0, 2.0]] and x.__dlpack_device__() == (1, 0)
    assert float(x.sum()) == 3.0 and int(x.sum()) == 3 and bool(x.sum())
    x.requires_grad_()
    for refused in (np.asarray, np.from_dlpack):
        with pytest.raises(GraphError, match="detach"):
            refused(x)
    assert np.asarray(x.detach()).shape == (1, 2) and x.numpy().shape == (1, 2)


def test_copies_and_pickles_are_leaves() -> None:
    x = leaf([1.0, 2.0])
    x.grad = Tensor([9.0, 9.0])
    for y in (x, x * 1):
        for twin in (copy.copy(y), copy.deepcopy(y), pickle.loads(pickle.dumps(y))):
            assert twin.tolist() == [1.0, 2.0] and twin.requires_grad and twin.grad is None
            assert twin._inputs == () and twin._primitive is None
            assert not np.shares_memory(twin.data, y.data)
    shared = [x, x]
    twins = copy.deepcopy(shared)
    assert twins[0] is twins[1] is not x
    constant = pickle.loads(pickle.dumps(Tensor([1, 2])))
    assert constant.dtype == np.int64 and not constant.requires_grad


def test_to_changes_only_what_is_asked() -> None:
    x = leaf([1.0, 2.0], "float32")
    assert x.to("cpu") is x and x.to(dtype="float32") is x
    y = x.to(dtype="float64")
    y.sum().backward()
    assert y.dtype == np.float64 and x.grad.dtype == np.float32


# --- rules ------------------------------------------------------------------------------------


def sample(made: Primitive) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    rng = np.random.default_rng(0)
    for example in made.examples:
        yield (
            [
                rng.uniform(example.low, example.high, x) if type(x) is tuple else x
                for x in example.inputs
            ],
            dict(example.params),
        )


CORE = [TABLE for name, TABLE in core.TABLE.items() if TABLE.impl.__module__ == core.__name__]


@pytest.mark.parametrize("made", CORE, ids=lambda made: made.name)
def test_rules_agree_with_measurement_to_second_order(made: Primitive) -> None:
    op = operation(made)
    for inputs, params in sample(made):
        which = [k for k, x in enumerate(inputs) if isinstance(x, np.ndarray)]
        c = np.cos(np.arange(op(*inputs, **params).size)).reshape(op(*inputs, **params).shape)

        def first(*arrays: Any, inputs=inputs, params=params, which=which, c=c, **options: Any):
            full = list(inputs)
            for k, a in zip(which, arrays):
                full[k] = a
            out = op(*full, **params)
            leaves = [full[k] for k in which]
            return (out * out * c).sum(), leaves

        for n, k in enumerate(which):
            arrays = [inputs[j] for j in which]

            def value(a: np.ndarray, n=n, arrays=arrays) -> float:
                return float(first(*arrays[:n], a, *arrays[n + 1 :])[0])

            leaves = [leaf(a) for a in arrays]
            out, _ = first(*leaves)
            (g,) = gradients(out, [leaves[n]], create_graph=True)
            assert np.allclose(g.data, numeric(value, inputs[k]), rtol=1e-6, atol=1e-8)

            def slope(a: np.ndarray, n=n, arrays=arrays) -> float:
                leaves = [leaf(b) for b in [*arrays[:n], a, *arrays[n + 1 :]]]
                (g,) = gradients(first(*leaves)[0], [leaves[n]])
                return float((g * g).sum())

            (second,) = gradients((g * g).sum(), [leaves[n]])
            assert np.allclose(second.data, numeric(slope, inputs[k]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", CORE, ids=lambda made: made.name)
def test_forward_rules_agree_with_reverse_rules(made: Primitive) -> None:
    rng = np.random.default_rng(1)
    for inputs, params in sample(made):
        which = [k for k, x in enumerate(inputs) if isinstance(x, np.ndarray)]
        full = [leaf(x) if k in which else x for k, x in enumerate(inputs)]
        out = operation(made)(*full, **params)
        g = rng.normal(size=out.shape)
        for k in which:
            t = Tensor(rng.normal(size=full[k].shape))
            pushed = made.jvps[k](t, out, *full, **params)
            pulled = gradients(out, [full[k]], g, retain_graph=True)[0]
            left = float((broadcast_to(as_tensor(pushed), shape=out.shape) * g).sum())
            assert abs(left - float((pulled * t).sum())) < 1e-12 * (1 + abs(left)) * 100


@given(
    hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_unbroadcast_is_the_adjoint_of_broadcasting(shapes: Any, random: Any) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    x = Tensor(rng.normal(size=shapes.input_shapes[0]))
    g = Tensor(rng.normal(size=shapes.result_shape))
    back = unbroadcast(g, x)
    assert back.shape == x.shape and back.dtype == x.dtype
    stretched = np.broadcast_to(x.data, g.shape)
    assert np.isclose((stretched * g.data).sum(), (x.data * back.data).sum())


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
@settings(max_examples=40, deadline=None)
def test_gradients_have_the_shape_of_their_inputs(shapes: Any) -> None:
    a, b = (leaf(np.full(s, 1.5)) for s in shapes.input_shapes)
    for f in (add, core.subtract, multiply, divide):
        out = f(a, b)
        da, db = gradients(out, [a, b], np.ones(out.shape))
        assert (da.shape, db.shape) == (a.shape, b.shape)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "bias": lambda lib, a, b: (a * b[0] + b).sum(),
    "quotient": lambda lib, a, b: (lib.exp(a) / (lib.exp(b) + 1)).sum(),
    "logs": lambda lib, a, b: lib.log(a * a + 1).sum() - (2 / (b * b + 3)).sum(),
    "matrix": lambda lib, a, b: (lib.exp(a @ b.mT) * 0.1).sum(),
    "reuse": lambda lib, a, b: ((a + b) * (a + b) * (a - b)).sum() / (a * a).sum(),
    "vector": lambda lib, a, b: (a @ b[0]).sum() * (b[0] @ b[0]),
    "axes": lambda lib, a, b: (a.sum(axis=0) * b).sum() * b.sum(axis=1, keepdims=True).sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_agreement_with_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("gradbook.tensor.indexing", reason="b[0] is from chapter 9")
    program = PROGRAMS[name]
    rng = np.random.default_rng(3)
    arrays = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    ours = [leaf(a) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = program(core, *ours), program(torch, *theirs)
    assert np.isclose(y.item(), z.item(), rtol=1e-12)
    first = gradients(y, ours, create_graph=True)
    peers = torch.autograd.grad(z, theirs, create_graph=True)
    for g, h in zip(first, peers):
        assert np.allclose(g.numpy(), h.detach().numpy(), rtol=1e-10, atol=1e-12)
    second = gradients((first[0] * first[0]).sum() + (first[1] * first[1]).sum(), ours)
    peers = torch.autograd.grad(sum((h * h).sum() for h in peers), theirs)
    for g, h in zip(second, peers):
        assert np.allclose(g.numpy(), h.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)),
                                    ((5, 2, 3), (3,)), ((3,), (5, 3, 2)), ((4, 2, 3), (3, 5)),
                                    ((2, 3), (4, 3, 5)), ((4, 1, 2, 3), (6, 3, 5))])  # fmt: skip
def test_matmul_agrees_with_pytorch_for_all_ranks(shapes: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=s) for s in shapes]
    ours, theirs = [leaf(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = matmul(*ours), torch.matmul(*theirs)
    assert np.allclose(y.numpy(), z.detach().numpy())
    (y * y).sum().backward()
    (z * z).sum().backward()
    for x, t in zip(ours, theirs):
        assert np.allclose(x.grad.numpy(), t.grad.numpy())


# --- the sweep --------------------------------------------------------------------------------


def test_gradients_add_up_in_leaves_and_do_not_share_a_tensor() -> None:
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (a + b).sum().backward()
    assert a.grad is not b.grad and a.grad.tolist() == [1.0, 1.0]
    a.grad.assign_(a.grad * 10)
    assert b.grad.tolist() == [1.0, 1.0]
    (a * 2).sum().backward()
    assert a.grad.tolist() == [12.0, 12.0]
    before = a.grad
    (a * 2).sum().backward()
    assert before.tolist() == [12.0, 12.0] and a.grad.tolist() == [14.0, 14.0]


def test_many_uses_are_summed_in_place_without_touching_others() -> None:
    x, w = leaf([1.0, 1.0]), leaf([2.0, 2.0])
    u = x + w  # its cotangent goes to x and to w as one array
    y = u + x + x + x + x + w + w + w
    kept: list[Tensor] = []
    u.register_hook(kept.append)
    y.sum().backward()
    assert x.grad.tolist() == [5.0, 5.0] and w.grad.tolist() == [4.0, 4.0]
    assert kept[0].tolist() == [1.0, 1.0]


def test_sweeping_twice_needs_the_graph_kept() -> None:
    x = leaf(3.0)
    u = x * x
    y, z = u * 2, u + 1
    y.backward()
    for again in (y, z):
        with pytest.raises(GraphError, match="retain_graph=True"):
            again.backward()
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12.0 + 6 + 6


def test_create_graph_keeps_and_can_be_swept_again() -> None:
    x = leaf(2.0)
    y = x * x * x
    y.backward(create_graph=True)
    g = x.grad
    assert g.item() == 12.0 and g.requires_grad
    x.grad = None
    g.backward(retain_graph=True)
    assert x.grad.item() == 12.0
    assert gradients(y, [x])[0].item() == 12.0  # the first graph still stands
    assert not gradients(exp(x), [x])[0].requires_grad


def test_gradients_of_inner_tensors_and_of_strangers() -> None:
    x, stranger = leaf([1.0, 2.0]), leaf([1.0, 1.0, 1.0])
    u = x * x
    y = (u * u).sum()
    du, dx, ds = gradients(y, [u, x, stranger])
    assert du.tolist() == [2.0, 8.0] and dx.tolist() == [4.0, 32.0] and ds.tolist() == [0, 0, 0]
    assert x.grad is None and stranger.grad is None
    y = x.sum() * 1
    assert gradients(y, [y])[0].item() == 1.0


def test_stop_does_not_go_beyond_the_wanted() -> None:
    x = leaf(2.0)
    u = x * x
    y = u * x
    found = sweep(y, Tensor(1.0, dtype="float64"), [u, x], stop=True)
    assert found[u].item() == 2.0 and found[x].item() == 4.0  # not through u
    assert u._primitive.name == "multiply"  # its record was left alone
    x.grad = None
    u.backward()
    assert x.grad.item() == 4.0


def test_only_what_is_wanted_is_computed() -> None:
    calls: list[str] = []
    spy = operation(Primitive(lambda xp, x: x * 1))
    spy.primitive.name = "spy"
    spy.def_vjps(lambda g, out, x: calls.append("spy") or g)
    x, w = leaf(1.0), leaf(2.0)
    gradients(spy(x) * w, [w])
    assert not calls


def test_nothing_to_sweep_is_said() -> None:
    x = leaf([1.0, 2.0])
    with no_grad():
        y = x.sum()
    for f in (y, x.detach().sum(), Tensor(1.0)):
        with pytest.raises(GraphError, match="requires a gradient"):
            f.backward()
    with pytest.raises(ShapeError, match=r"the output has shape \(2,\)"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"gradient of shape \(3,\), output of shape \(2,\)"):
        (x * 2).backward([1.0, 1.0, 1.0])
    with pytest.raises(GraphError, match="result of multiply; use detach"):
        (x * 2).requires_grad_(False)
    with pytest.raises(DtypeError, match="int64 has no gradient"):
        Tensor([1], requires_grad=True)


def test_recording_switches_nest_and_decorate() -> None:
    x = leaf(1.0)
    with no_grad():
        assert not (x * 2).requires_grad
        with enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad

    @no_grad()
    def quiet(x: Tensor) -> Tensor:
        return x * 2

    assert not quiet(x).requires_grad and not quiet(x).requires_grad and (x * 2).requires_grad
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert core.state.recording


def test_recording_belongs_to_a_thread() -> None:
    x, results, errors = leaf(np.ones(50)), [], []
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        try:
            inside.wait(10)
            y = (exp(x * 0.5) * x).sum()
            results.append(gradients(y, [x])[0].data.sum())
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with no_grad():
        inside.set()
        assert done.wait(10) and not (x * 2).requires_grad
    thread.join()
    assert not errors and np.isclose(results[0], 50 * np.exp(0.5) * 1.5)


def test_threads_sweep_at_the_same_time() -> None:
    w, sums = leaf(np.arange(20.0) / 20), []

    def work(k: int) -> None:
        for _ in range(50):
            (g,) = gradients((exp(w * k) * w).sum(), [w])
        sums.append((k, g.data))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k, g in sums:
        assert np.allclose(g, np.exp(w.data * k) * (1 + k * w.data))
    assert len(sums) == 4


# --- several results --------------------------------------------------------------------------


def sum_and_product() -> Any:
    op = operation(Primitive(lambda xp, x, y: (x + y, x * y)))
    op.primitive.name = "sum_and_product"

    def rule(g: Any, out: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert len(out) == 2 and out[1].shape == g[1].shape
        return unbroadcast(g[0] + g[1] * y, x), unbroadcast(g[0] + g[1] * x, y)

    op.def_vjp_all(rule)
    return op


@pytest.mark.parametrize("use", ["both", "first", "second", "none twice"])
def test_an_operation_with_two_results(use: str) -> None:
    op = sum_and_product()

    def program(pair: Callable[..., Any], x: Tensor, y: Tensor) -> Tensor:
        s, p = pair(x, y)
        if use == "both":
            return (s * s * p + p).sum()
        return (s * s * s).sum() if use == "first" else (p * p * p).sum()

    x, y = leaf([1.0, 2.0]), leaf([[0.5], [-1.0]])
    expected = gradients(program(lambda x, y: (x + y, x * y), x, y), [x, y], create_graph=True)
    found = gradients(program(op, x, y), [x, y], create_graph=True)
    for f, e in zip(found, expected):
        assert np.allclose(f.data, e.data)
    again = gradients((found[0] * found[0]).sum(), [x, y])
    wanted = gradients((expected[0] * expected[0]).sum(), [x, y])
    for f, e in zip(again, wanted):
        assert np.allclose(f.data, e.data)


def test_two_results_are_freed_with_their_record() -> None:
    op, x = sum_and_product(), leaf(2.0)
    s, p = op(x, x)
    assert s.requires_grad and type(s.data) is np.ndarray
    s.backward()
    assert x.grad.item() == 2.0
    with pytest.raises(GraphError, match="retain_graph"):
        p.backward()
    with no_grad():
        s, p = op(x, x)
    assert not s.requires_grad and p.item() == 4.0


def test_a_result_that_is_no_float_has_no_gradient() -> None:
    op = operation(Primitive(lambda xp, x: (xp.sort(x), xp.argsort(x))))
    op.primitive.name = "sorted"
    op.def_vjp_all(lambda g, out, x: (g[0],))
    values, places = op(leaf([3.0, 1.0]))
    assert values.requires_grad and not places.requires_grad
    assert places.dtype.kind == "i" and values.tolist() == [1.0, 3.0]
    values.sum().backward()


# --- assignment -------------------------------------------------------------------------------


def test_a_reassigned_value_is_refused_only_where_it_is_read() -> None:
    for f, fails in [
        (lambda w: w * w, True),
        (lambda w: 1 / w, True),
        (lambda w: w + 1, False),
        (lambda w: w - 1, False),
        (lambda w: -w, False),
        (lambda w: reshape(w, shape=(1,)), False),
        (lambda w: 2 * w, True),  # the other input has no gradient, but the rule might read
    ]:
        w = leaf(3.0)
        y = f(w).sum()
        w.assign_(4.0)
        if fails:
            with pytest.raises(GraphError, match="was reassigned after"):
                y.backward()
        else:
            y.backward()
            assert abs(w.grad.item()) == 1.0


def test_assigning_elsewhere_or_before_harms_nothing() -> None:
    w, other = leaf(3.0), leaf(1.0)
    w.assign_(4.0)
    y = w * w
    other.assign_(2.0)
    y.backward()
    assert w.grad.item() == 8.0


def test_assignment_checks_and_keeps_shape_dtype_and_old_results() -> None:
    w = leaf([1.0, 2.0], "float32")
    view, value = w.detach(), np.array([5.0, 6.0])
    assert w.assign_(value) is w and w.dtype == np.float32
    value[0] = 100
    assert w.tolist() == [5.0, 6.0] and view.tolist() == [1.0, 2.0]
    with pytest.raises(ShapeError, match=r"a value of shape \(3,\) for a tensor of shape \(2,\)"):
        w.assign_([1, 2, 3])
    with pytest.raises(GraphError, match="result of multiply; only leaves"):
        (w * 2).assign_([1, 2])


def test_assignment_from_a_tensor_copies_and_stays_on_the_device() -> None:
    w, v = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    w.assign_(v)
    w.data *= 2
    assert v.tolist() == [3.0, 4.0] and w.device == v.device


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w,
        lambda w: w.mT,
        lambda w: reshape(w, shape=(4,))[1:],
        lambda w: w[0],
        lambda w: w.detach(),
        lambda w: broadcast_to(w, shape=(3, 2, 2)),
        lambda w: identity(w),
    ],
)
def test_backward_refuses_views_of_memory_that_was_overwritten(view: Callable[..., Any]) -> None:
    w, x = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf(2.0)
    y, z = view(w) * x, (w * 1.0) * x  # z reads a result, in memory of its own
    w.data *= 10
    assert overwritten(w) is w
    with pytest.raises(GraphError, match="multiply used it; call backward"):
        y.sum().backward()
    gradients(z.sum(), [x])
    fresh = (view(w) * x).sum()
    fresh.backward()
    assert x.grad is not None and x.grad.item() == view(w).sum().item()


def test_overwritten_is_for_leaves_and_holds_nothing_alive() -> None:
    w = leaf([1.0])
    with pytest.raises(GraphError, match="overwritten: this is a result of multiply"):
        overwritten(w * 2)
    before, ref = len(written), weakref.ref(overwritten(w))
    assert len(written) == before + 1
    del w
    assert ref() is None and len(written) == before


def test_the_gradient_of_a_transposed_factor_lies_in_memory_like_the_factor() -> None:
    w, x = leaf(np.arange(12.0).reshape(4, 3)), leaf(np.arange(6.0).reshape(2, 3))
    (x @ w.mT).sum().backward()
    assert w.grad is not None and w.grad.data.flags.c_contiguous
    assert w.grad.tolist() == [x.data.sum(0).tolist()] * 4


def test_a_checkpoint_notices_reassigned_weights() -> None:
    w, x = leaf(2.0), leaf(3.0)
    y = checkpoint(lambda x: w * x, x)
    w.assign_(5.0)
    with pytest.raises(GraphError, match=r"input 1 of checkpoint of <lambda>.*reassigned"):
        y.backward()


# --- hooks and custom rules -------------------------------------------------------------------


def test_hooks_on_leaves_and_inner_tensors() -> None:
    x = leaf([1.0, 2.0])
    u = x * x
    seen: list[Any] = []
    u.register_hook(lambda g: seen.append(("u", g.tolist())))
    remove = u.register_hook(lambda g: g * 2)
    x.register_hook(lambda g: seen.append(("x", g.tolist())))
    (u + u).sum().backward(retain_graph=True)  # u's cotangent is complete before its hooks run
    assert seen == [("u", [2.0, 2.0]), ("x", [8.0, 16.0])] and x.grad.tolist() == [8.0, 16.0]
    remove()
    remove()
    assert gradients(u.sum(), [x])[0].tolist() == [2.0, 4.0]
    with pytest.raises(GraphError, match="requires no gradient"):
        x.detach().register_hook(print)


def test_hooks_see_wanted_gradients_and_may_not_change_shapes() -> None:
    x = leaf([1.0, 2.0])
    u = x * 3
    u.register_hook(lambda g: g * 10)
    du, dx = gradients(u.sum(), [u, x])
    assert du.tolist() == [10.0, 10.0] and dx.tolist() == [30.0, 30.0]
    u = x * 3
    u.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match=r"hook: the gradient has shape \(2,\), not \(\)"):
        u.sum().backward()


def test_hooks_can_be_differentiated() -> None:
    x = leaf(2.0)
    u = x * x
    u.register_hook(lambda g: g * g)
    (d,) = gradients(u * x, [x], create_graph=True)  # u's cotangent x becomes x²: x²·2x + u
    assert d.item() == 2 * 8 + 4
    assert gradients(d, [x])[0].item() == 6 * 4 + 4


def test_custom_rules_take_options_and_several_inputs() -> None:
    @custom_vjp
    def weighted(x: Tensor, y: Tensor, *, by: float = 1.0) -> Any:
        "Not recorded inside."
        return x * y * by, x + y

    @weighted.def_vjp_all
    def _(g: Any, out: Any, x: Tensor, y: Tensor, by: float = 1.0) -> Any:
        return g[0] * y * by + g[1], None

    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    a, b = weighted(x, y, by=2.0)
    (a + b * 10).sum().backward()
    assert x.grad.tolist() == [16.0, 18.0] and y.grad is None
    assert weighted.__doc__ == "Not recorded inside."

    @custom_vjp
    def ruleless(x: Tensor) -> Tensor:
        return x * 1

    with pytest.raises(GraphError, match="ruleless has no rule"):
        ruleless(x).sum().backward()


def test_a_rule_that_gives_the_wrong_things_is_named() -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    product = custom_vjp(lambda x, y: x * y)
    product.def_vjp_all(lambda g, out, x, y: ((g * y).sum(), g * x))
    words = r"gives input 0, of shape \(2,\), a cotangent of shape \(\)"
    with pytest.raises(ShapeError, match=words):
        product(x, y).sum().backward()
    product.def_vjp_all(lambda g, out, x, y: (g * y,))
    with pytest.raises(GraphError, match="1 cotangents for 2 inputs"):
        product(x, y).sum().backward()
    product.def_vjp_all(lambda g, out, x, y: (g.data * y.data, None))  # arrays will do
    product(x, y).sum().backward()
    assert x.grad.tolist() == [3.0, 4.0] and y.grad is None


def test_a_name_belongs_to_one_primitive() -> None:
    def add(xp: Any, x: Any, y: Any) -> Any:
        return x

    with pytest.raises(ValueError, match=r"gradbook.tensor.core has a primitive 'add'"):
        core.primitive(add)
    assert core.TABLE["add"] is core.add.primitive


def test_running_a_cell_again_replaces_its_primitive() -> None:
    def twice(xp: Any, x: Any) -> Any:
        return x + x

    try:
        first, second = core.primitive(twice), core.primitive(twice)
        assert core.TABLE["twice"] is second.primitive is not first.primitive
        twice.__module__ = "__main__"  # a learner's own version, in a notebook
        assert core.primitive(twice).primitive is core.TABLE["twice"]
    finally:
        core.TABLE.pop("twice", None)


# --- checkpoint -------------------------------------------------------------------------------


def test_checkpoint_gives_the_same_gradients_to_second_order() -> None:
    w, b, x = leaf(np.eye(3) + 0.1), leaf([0.1, 0.2, 0.3]), leaf([[1.0, 2.0, 3.0]])

    def layer(x: Tensor) -> Tensor:
        return exp(x @ w * -0.3 + b) * x

    leaves = [w, b, x]
    results = []
    for wrapper in (lambda f, x: f(x), checkpoint):
        y = wrapper(layer, wrapper(layer, x * 1.5))
        first = gradients((y * y).sum(), leaves, create_graph=True)
        size = core.as_tensor(0.0)
        for g in first:
            size = size + (g * g).sum()
        results.append((y, *first, *gradients(size, leaves)))
    for a, c in zip(*results):
        assert np.allclose(a.data, c.data, rtol=1e-12)


def test_checkpoint_lets_direct_and_inner_uses_of_an_input_add_up() -> None:
    x = leaf(3.0)
    y = checkpoint(lambda a: a * x, x)  # x goes in by both doors
    assert gradients(y, [x], retain_graph=True)[0].item() == 6.0
    u = x * 2
    y = checkpoint(lambda a: a * u, x)  # a tensor from outside with a history
    y.backward()
    assert x.grad.item() == 12.0


def test_checkpoint_of_what_needs_nothing_or_returns_its_input() -> None:
    x, c = leaf(2.0), Tensor(3.0)
    assert not checkpoint(lambda a: a * 2, c).requires_grad
    y = checkpoint(lambda a: a, x)
    y.backward()
    assert x.grad.item() == 1.0
    with no_grad():
        assert not checkpoint(lambda a: a * 2, x).requires_grad
    with pytest.raises(TypeError, match="returns tuple, no tensor"):
        checkpoint(lambda a: (a, a), x)
    ints = Tensor([1, 2])
    z = checkpoint(lambda i, a: (a * i).sum(), ints, x)
    assert gradients(z, [x])[0].item() == 3.0


def test_checkpoints_nest() -> None:
    x, w = leaf(0.5), leaf(0.9)
    inner = lambda x: checkpoint(lambda a: exp(a * w), x)  # noqa: E731
    y = checkpoint(lambda x: inner(inner(x)) * w, x)
    plain = exp(exp(x * w) * w) * w
    for a, b in zip(gradients(y, [x, w]), gradients(plain, [x, w])):
        assert np.isclose(a.item(), b.item())


def peak(program: Callable[[], None]) -> int:
    gc.collect()
    tracemalloc.start()
    program()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def chain(x: Tensor, n: int) -> Tensor:
    for _ in range(n):
        x = exp(-x) * 0.5
    return x


def test_checkpoint_needs_less_memory() -> None:
    size = 50_000

    def run(parts: int) -> None:
        y = Tensor(np.full(size, 0.5, "float32"), requires_grad=True)
        for _ in range(parts):
            y = checkpoint(lambda x: chain(x, 64 // parts), y)
        (y if parts else chain(y, 64)).sum().backward()

    assert peak(lambda: run(8)) < peak(lambda: run(0)) / 3


# --- lifetimes --------------------------------------------------------------------------------


def test_memory_of_a_long_sweep_is_bounded() -> None:
    "100 layers of three arrays of 4 MB: what is stored, and at most three arrays more."
    n, size = 100, 1_000_000
    x = Tensor(np.full(size, 0.5, "float32"), requires_grad=True)
    gc.collect()
    tracemalloc.start()
    y = chain(x, n).sum()
    stored = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    y.backward()
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    array = 4 * size
    assert stored < (3 * n + 1) * array
    assert most - stored <= 3 * array, f"{(most - stored) / array:.2f} arrays more"
    assert now < 2 * array  # x.grad


def test_tensors_are_released_as_the_sweep_passes_them() -> None:
    x, alive, gone = leaf([1.0, 2.0]), [], []
    y = x
    for k in range(6):
        y = exp(y * 0.1)
        alive.append(weakref.ref(y))
        y.register_hook(lambda g, k=k: gone.append(sum(r() is None for r in alive)))
    y = y.sum()
    y.backward()
    assert gone == [0, 1, 2, 3, 4, 5]


def test_there_are_no_cycles() -> None:
    gc.collect()
    gc.disable()
    try:
        x = leaf([1.0, 2.0])
        y = (exp(x) * x + checkpoint(lambda a: a * x, x)).sum()
        u = x * 2
        u.register_hook(lambda g: g)
        s, p = sum_and_product()(x, u)
        z = y + (s * p).sum()
        watch = [weakref.ref(t) for t in (y, u, s, z)]
        z.backward(retain_graph=True)
        (g,) = gradients(z, [x], create_graph=True)
        watch.append(weakref.ref(g))
        del y, u, s, p, z, g
        assert all(w() is None for w in watch)
    finally:
        gc.enable()


def test_a_swept_graph_leaves_nothing_for_the_collector() -> None:
    x = leaf(np.ones(10))
    for _ in range(2):
        gc.collect()
        y = chain(x, 50).sum()
        y.backward()
        del y
        found = gc.collect()
    assert found == 0


LONG = """
    from gradbook.tensor.core import Tensor, gradients
    x = Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 0.0
    {rest}
    print("fine")
"""


@pytest.mark.parametrize(
    "rest",
    [
        "del y",
        "y.backward(); assert x.grad.item() == 1; del y",
        "y.backward(retain_graph=True); del y",
        "g, = gradients(y, [x], create_graph=True); del y; del g",
        "y = y * x; y.backward(create_graph=True); g = x.grad; x.grad = None; del y; del g",
        "import copy, pickle; pickle.dumps(y); copy.deepcopy(y); repr(y)",
    ],
)
def test_a_chain_of_100_000_operations(rest: str) -> None:
    "Neither swept nor freed by recursion; in a process of its own, which a crash would end."
    program = textwrap.dedent(LONG.format(rest=rest))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "fine\n", done.stderr[-500:]


def test_a_long_chain_is_freed_in_a_thread_with_a_small_stack() -> None:
    program = textwrap.dedent("""
        import threading
        from gradbook.tensor.core import Tensor
        def work():
            y = Tensor(1.0, requires_grad=True)
            for _ in range(100_000):
                y = y + 0.0
            del y
            print("fine")
        threading.stack_size(256 * 1024)
        thread = threading.Thread(target=work)
        thread.start(); thread.join()
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "fine\n", done.stderr[-500:]


# --- anomalies --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def test_an_anomaly_names_the_operation_and_the_line() -> None:
    x = leaf([1.0, -1.0])
    with pytest.raises(AnomalyError) as caught, detect_anomaly():
        y = log(x * 2)  # here
    words = str(caught.value)
    assert words.startswith("log gave NaN (1 of 2 elements) at line ")
    assert 'test_core.py, "y = log(x * 2)  # here"' in words
    assert words.endswith("inputs: float64[2] from -2 to 2")
    y = log(x)  # nobody looks any more
    assert np.isnan(y.data[1]) and core.watchers == 0


def test_an_anomaly_in_a_gradient_names_the_forward_line() -> None:
    x = leaf([0.0, 1.0])
    with pytest.raises(AnomalyError) as caught, detect_anomaly():
        y = x * 1e300
        z = y * y  # the values fit: 0 and infinity
    assert "multiply gave infinity (1 of 2 elements)" in str(caught.value)
    x = leaf([1e-200])
    with pytest.raises(AnomalyError) as caught, detect_anomaly():
        u = 1 / x  # 1e200 is fine, its slope -1e400 is not
        z = u * 2
        z.sum().backward()
    words = str(caught.value)
    assert words.startswith("the gradient of divide with respect to input 1 has infinity (1 of 1")
    assert "divide was called at line" in words and "u = 1 / x" in words
    z = (1 / x).sum()
    with pytest.raises(AnomalyError, match=r"a line before detect_anomaly\(\)"), detect_anomaly():
        z.backward()
    assert core.watchers == 0 and core.state.anomalies is None


def test_public_functions_are_the_library_too() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(AnomalyError) as caught, detect_anomaly():
        (x @ np.array([1e308, 1e308])) + 1  # the product is the first
    assert "matrix_multiply gave infinity" in str(caught.value)
    assert "the product is the first" in str(caught.value)


def test_a_folder_with_a_similar_name_is_not_the_library() -> None:
    path = core.HERE.rstrip(os.sep) + "_notes" + os.sep + "mine.py"
    with pytest.raises(AnomalyError, match=r"at line 1 of mine\.py"), detect_anomaly():
        exec(compile("log(x)", path, "exec"), {"log": log, "x": Tensor([-1.0])})


def test_what_went_in_is_nobodys_fault() -> None:
    x = leaf([1.0, 2.0])
    with detect_anomaly():
        mask = Tensor([0.0, -np.inf])
        y = exp(x + mask) + 1 / (x + np.inf)
        y.sum().backward()
        assert x.grad.tolist() == [np.exp(1.0), 0.0]
        with pytest.raises(AnomalyError, match="subtract gave NaN"):
            (x + mask) - mask


def test_anomalies_in_a_script() -> None:
    program = textwrap.dedent("""
        import warnings; warnings.simplefilter("ignore")
        from gradbook.tensor.core import Tensor, detect_anomaly, log
        with detect_anomaly():
            log(Tensor([-1.0]))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "AnomalyError: log gave NaN (1 of 1" in done.stderr


def test_anomalies_belong_to_a_thread_and_do_not_change_results() -> None:
    x, other = leaf([1.0, 2.0]), []
    with detect_anomaly():
        thread = threading.Thread(target=lambda: other.append(log(Tensor([-1.0]))))
        thread.start()
        thread.join()
        y = (exp(x) * x + checkpoint(lambda a: a * x, x)).sum()
        s, p = sum_and_product()(x, x)
        (g,) = gradients(y + (s * p).sum(), [x], create_graph=True)
        (h,) = gradients(g.sum(), [x])
    assert np.isnan(other[0].data[0])
    y = (exp(x) * x + x * x + (x + x) * x * x).sum()
    (g2,) = gradients(y, [x], create_graph=True)
    assert np.allclose(g.data, g2.data) and np.allclose(h.data, gradients(g2.sum(), [x])[0].data)


# --- smaller things ---------------------------------------------------------------------------


def test_linear_operations_have_their_adjoints() -> None:
    x = leaf(np.arange(24.0).reshape(2, 3, 4))
    y = permute_dims(x, axes=(2, 0, 1))
    assert gradients(y, [x], y.data)[0].tolist() == x.tolist()
    y = reduce_sum(x, axis=())
    assert gradients(y, [x], np.ones(y.shape))[0].shape == x.shape
    y = astype(x, dtype=np.dtype("float32"))
    assert gradients(y, [x], np.ones(y.shape))[0].dtype == np.float64
    empty = leaf(np.zeros((0, 3)))
    (empty.sum(axis=1) * 2).sum().backward()
    assert empty.grad.shape == (0, 3)


def test_a_kind_of_tensor_takes_over_by_level() -> None:
    class Counting(Tensor):
        __slots__ = ()
        level = 1

        def process(self, primitive: Primitive, inputs: tuple[Any, ...], params: Any) -> Any:
            return wrap(np.array(primitive.name))

    x = object.__new__(Counting)
    x.data, x._needs, x._primitive, x._inputs, x._number = np.ones(2), False, None, (), 0
    assert str(add(Tensor([1.0, 1.0]), x).data) == "add" and str(exp(x).data) == "exp"
    with pytest.raises(NotImplementedError, match="Tensor can't compute add"):
        Tensor([1.0]).process(add.primitive, (), {})


def test_the_graphics_card_gives_the_same() -> None:
    cupy = pytest.importorskip("cupy")
    try:
        cupy.zeros(1)
    except Exception as error:
        pytest.skip(f"no usable GPU: {error}")

    def program(x: Tensor, w: Tensor) -> Tensor:
        return (exp(x @ w) * x).sum()

    rng = np.random.default_rng(5)
    here = [leaf(rng.normal(size=(3, 3))) for _ in range(2)]
    there = [Tensor(x, requires_grad=True, device="cuda") for x in here]
    results = []
    for x, w in (here, there):
        y = program(x, w) + checkpoint(lambda a, w=w: (a * w).sum(), x)
        first = gradients(y, [x, w], create_graph=True)
        results.append((y, *first, *gradients((first[0] * first[1]).sum(), [x, w])))
    for a, b in zip(*results):
        assert b.device.kind == "cuda" and np.allclose(a.numpy(), b.numpy(), rtol=1e-10)
    x = there[0].to("cpu")
    x.sum().backward()
    assert there[0].grad.device.kind == "cuda"
    assert pickle.loads(pickle.dumps(x)).device.kind == "cpu"
    assert "device=cuda:0" in repr(there[0])


def test_bad_operands_are_blamed_on_the_operation() -> None:
    x = Tensor([1.0, 2.0])
    with pytest.raises(DtypeError, match=r"^add: str of dtype"):
        x + "a"
    with pytest.raises(DtypeError, match=r"^multiply: NoneType"):
        None * x
    with pytest.raises(ValueError, match=r"^subtract: no rectangle of numbers"):
        x - [[1, 2], [3]]
    with pytest.raises(OverflowError, match=r"^add\(\(1,\), 200\): Python integer 200"):
        Tensor([1], dtype="int8") + 200
