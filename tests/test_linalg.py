"Linear algebra against PyTorch: values, gradients, gradients of gradients, batches, empty ones."

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.tensor import linalg, ops
from gradbook.tensor.backend import DtypeError
from gradbook.tensor.core import TABLE, GraphError, ShapeError, Tensor, gradients

EYE3 = np.eye(3)


def plain(x: Any) -> Any:
    return x


def well(x: Any) -> Any:
    "Far from singular; works for tensors of both libraries."
    return x + 3 * constant_like(x, np.eye(x.shape[-1]))


def definite(x: Any) -> Any:
    return x @ x.mT + constant_like(x, np.eye(x.shape[-1]))


def apart(x: Any) -> Any:
    "Symmetric, with eigenvalues well apart."
    return (x + x.mT) / 2 + constant_like(x, np.diag(4.0 * np.arange(x.shape[-1])))


def stretched(x: Any) -> Any:
    n = x.shape[-1]
    return x + constant_like(x, 4 * np.eye(*x.shape[-2:]) * np.arange(1, n + 1))


def constant_like(x: Any, array: np.ndarray[Any, Any]) -> Any:
    if isinstance(x, Tensor):
        return Tensor(array, dtype=x.dtype)
    import torch

    return torch.tensor(array, dtype=x.dtype)


def squares(x: Any) -> Any:
    "What doesn't change when columns are mirrored: the square of each element."
    return x * x


def parts(f: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    "Results of a decomposition, in a form that no choice of signs can change."

    def g(x: Any) -> list[Any]:
        out = f(x)
        return [squares(o) for o in out]

    return g


CASES: dict[str, tuple[Any, Any, Any, tuple[int, ...]]] = {
    "inv": (ops.linalg.inv, "linalg.inv", well, (3, 3)),
    "det": (ops.linalg.det, "linalg.det", plain, (3, 3)),
    "slogdet": (
        lambda x: ops.linalg.slogdet(x)[1],
        lambda t, x: t.linalg.slogdet(x)[1],
        well,
        (3, 3),
    ),
    "cholesky": (ops.linalg.cholesky, "linalg.cholesky", definite, (3, 3)),
    "cholesky upper": (
        lambda x: ops.linalg.cholesky(x, upper=True),
        lambda t, x: t.linalg.cholesky(x, upper=True),
        definite,
        (3, 3),
    ),
    "qr": (parts(ops.linalg.qr), lambda t, x: parts(t.linalg.qr)(x), well, (3, 3)),
    "qr tall": (parts(ops.linalg.qr), lambda t, x: parts(t.linalg.qr)(x), plain, (4, 2)),
    "eigh": (parts(ops.linalg.eigh), lambda t, x: parts(t.linalg.eigh)(x), apart, (3, 3)),
    "eigvalsh": (ops.linalg.eigvalsh, "linalg.eigvalsh", apart, (3, 3)),
    "svd": (parts(ops.linalg.svd), lambda t, x: parts(t.linalg.svd)(x), stretched, (3, 3)),
    "svd tall": (
        parts(lambda x: ops.linalg.svd(x, full_matrices=False)),
        lambda t, x: parts(lambda x: t.linalg.svd(x, full_matrices=False))(x),
        stretched,
        (4, 2),
    ),
    "svd wide": (
        parts(lambda x: ops.linalg.svd(x, full_matrices=False)),
        lambda t, x: parts(lambda x: t.linalg.svd(x, full_matrices=False))(x),
        stretched,
        (2, 4),
    ),
    "svdvals": (ops.linalg.svdvals, "linalg.svdvals", stretched, (3, 2)),
    "pinv": (ops.linalg.pinv, "linalg.pinv", well, (3, 3)),
    "pinv tall": (ops.linalg.pinv, "linalg.pinv", stretched, (4, 2)),
    "pinv wide": (ops.linalg.pinv, "linalg.pinv", stretched, (2, 4)),
    "trace": (ops.linalg.trace, lambda t, x: x.diagonal(0, -2, -1).sum(-1), plain, (3, 4)),
    "diagonal": (
        lambda x: ops.linalg.diagonal(x, offset=1),
        lambda t, x: x.diagonal(1, -2, -1),
        plain,
        (3, 4),
    ),
    "matrix_power": (
        lambda x: ops.linalg.matrix_power(x, 5),
        lambda t, x: t.linalg.matrix_power(x, 5),
        plain,
        (3, 3),
    ),
    "matrix_power inverse": (
        lambda x: ops.linalg.matrix_power(x, -2),
        lambda t, x: t.linalg.matrix_power(x, -2),
        well,
        (3, 3),
    ),
    **{
        f"matrix_norm {ord}": (
            lambda x, ord=ord: ops.linalg.matrix_norm(x, ord=ord),
            lambda t, x, ord=ord: t.linalg.matrix_norm(x, ord=ord),
            stretched,
            (3, 2),
        )
        for ord in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf)
    },
    **{
        f"vector_norm {ord}": (
            lambda x, ord=ord: ops.linalg.vector_norm(x, axis=-1, ord=ord),
            lambda t, x, ord=ord: t.linalg.vector_norm(x, dim=-1, ord=ord),
            plain,
            (2, 4),
        )
        for ord in (1, 2, 3, 0.5, -1, math.inf, -math.inf)
    },
}


def sample(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).uniform(0.1, 1, shape)
    signs = np.random.default_rng(seed + 1).choice([-1.0, 1.0], shape)
    return np.asarray(values * signs)


def as_list(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


def theirs_of(case: Any, torch: Any) -> Callable[[Any], Any]:
    if isinstance(case, str):
        _, name = case.split(".")
        return lambda x: getattr(torch.linalg, name)(x)
    return lambda x: case(torch, x)


def orders(f: Any, x: Any, grad: Any, weights: Any) -> list[np.ndarray[Any, Any]]:
    "The values of `f`, a gradient of them, and a gradient of that."
    outs = as_list(f(x))
    total = sum((o * w).sum() for o, w in zip(outs, weights))
    (first,) = grad(total, x)
    found = [*outs, first]
    second = (first * first).sum()
    if second.requires_grad:
        found.append(grad(second, x)[0])
    return [np.asarray(o.detach() + 0) for o in found]  # PyTorch may have a lazy zero


@pytest.mark.parametrize("batch", [(), (2,), (2, 1), (0,)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_pytorch(name: str, batch: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs, through, shape = CASES[name]
    if batch == (0,) and name == "matrix_norm -2":
        pytest.skip("PyTorch refuses")
    array = sample((*batch, *shape))
    weights = [
        sample(np.asarray(o.detach()).shape, 7) for o in as_list(ours(through(Tensor(array))))
    ]

    def grad(y: Tensor, x: Tensor) -> Any:
        return gradients(y, [x], create_graph=True)

    def torch_grad(y: Any, x: Any) -> Any:
        return torch.autograd.grad(y, [x], create_graph=True)

    mine = orders(lambda x: ours(through(x)), Tensor(array, requires_grad=True), grad, weights)
    f = theirs_of(theirs, torch)
    expected = orders(
        lambda x: f(through(x)),
        torch.tensor(array, requires_grad=True),
        torch_grad,
        [torch.tensor(w) for w in weights],
    )
    for a, b in zip(mine, expected):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    assert len(mine) >= len(expected) or not np.any(expected[-1])


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_and_agrees(name: str) -> None:
    ours, _, through, shape = CASES[name]
    array = sample((2, *shape))
    for dtype, tolerance in (("float32", 2e-3), ("float64", 0.0)):
        x = Tensor(array.astype(dtype), requires_grad=True)
        outs = as_list(ours(through(x)))
        (slope,) = gradients(sum(o.sum() for o in outs), [x])
        assert all(o.dtype == x.dtype for o in outs) and slope.dtype == x.dtype
        exact = Tensor(array, requires_grad=True)
        (wanted,) = gradients(sum(o.sum() for o in as_list(ours(through(exact)))), [exact])
        np.testing.assert_allclose(
            slope.numpy(), wanted.numpy(), rtol=tolerance, atol=10 * tolerance
        )


PAIRS: dict[str, tuple[Any, Any, tuple[int, ...], tuple[int, ...]]] = {
    "solve": (
        lambda a, b: ops.linalg.solve(well(a), b),
        lambda t, a, b: t.linalg.solve(well(a), b),
        (3, 3),
        (3, 2),
    ),
    "solve batch": (
        lambda a, b: ops.linalg.solve(well(a), b),
        lambda t, a, b: t.linalg.solve(well(a), b),
        (2, 1, 3, 3),
        (4, 3, 2),
    ),
    "solve vector": (
        lambda a, b: ops.linalg.solve(well(a), b),
        lambda t, a, b: t.linalg.solve(well(a), b),
        (3, 3),
        (3,),
    ),
    "solve empty": (
        lambda a, b: ops.linalg.solve(well(a), b),
        lambda t, a, b: t.linalg.solve(well(a), b),
        (0, 3, 3),
        (0, 3, 2),
    ),
    "cross": (ops.linalg.cross, lambda t, a, b: t.linalg.cross(a, b), (2, 3), (2, 3)),
    "cross broadcast": (
        lambda a, b: ops.linalg.cross(a, b, axis=-2),
        lambda t, a, b: t.linalg.cross(a.expand(4, 3, 2), b, dim=-2),
        (3, 1),
        (4, 3, 2),
    ),
    "outer": (ops.linalg.outer, lambda t, a, b: t.outer(a, b), (3,), (2,)),
    "vecdot": (ops.linalg.vecdot, lambda t, a, b: t.linalg.vecdot(a, b), (2, 3), (2, 3)),
    "vecdot axis": (
        lambda a, b: ops.linalg.vecdot(a, b, axis=-2),
        lambda t, a, b: t.linalg.vecdot(a, b, dim=-2),
        (3, 2),
        (4, 3, 2),
    ),
    "tensordot": (ops.tensordot, lambda t, a, b: t.tensordot(a, b, 2), (2, 3, 4), (3, 4, 2)),
    "tensordot axes": (
        lambda a, b: ops.tensordot(a, b, axes=((0, -1), (1, 0))),
        lambda t, a, b: t.tensordot(a, b, ((0, 2), (1, 0))),
        (2, 3, 4),
        (4, 2, 5),
    ),
    "tensordot outer": (
        lambda a, b: ops.tensordot(a, b, axes=0),
        lambda t, a, b: t.tensordot(a, b, 0),
        (2, 3),
        (2,),
    ),
    "matmul": (ops.matmul, lambda t, a, b: a @ b, (2, 1, 3, 4), (5, 4, 2)),
    "matmul empty": (ops.matmul, lambda t, a, b: a @ b, (3, 0), (0, 2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_operands_as_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs, left, right = PAIRS[name]
    arrays = sample(left), sample(right, 3)
    xs = [Tensor(a, requires_grad=True) for a in arrays]
    ys = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, expected = ours(*xs), theirs(torch, *ys)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-9)
    first = gradients((out * out).sum(), xs, create_graph=True)
    wanted = torch.autograd.grad((expected * expected).sum(), ys, create_graph=True)
    second = gradients(sum((g * g).sum() for g in first), xs)
    wanted2 = torch.autograd.grad(sum((g * g).sum() for g in wanted), ys)
    for a, b in zip((*first, *second), (*wanted, *wanted2)):
        np.testing.assert_allclose(
            np.asarray(a.detach()), b.detach().numpy(), rtol=1e-8, atol=1e-10
        )


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(), (2,), (0,), (2, 3)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_the_factors_make_the_matrix(batch: tuple[int, ...], m: int, n: int, seed: int) -> None:
    a = sample((*batch, m, n), seed)
    k = min(m, n)
    q, r = ops.linalg.qr(a)
    np.testing.assert_allclose((q @ r).numpy(), a, atol=1e-12)
    np.testing.assert_allclose(np.tril(r.numpy(), -1), 0)
    u, s, vh = ops.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(((u * linalg.row(s)) @ vh).numpy(), a, atol=1e-12)
    full = ops.linalg.svd(a)
    assert full.U.shape == (*batch, m, m) and full.Vh.shape == (*batch, n, n)
    np.testing.assert_allclose(ops.linalg.svdvals(a).numpy(), s.numpy(), atol=1e-12)
    for basis in (q, u, vh.mT):
        unit = np.broadcast_to(np.eye(k), (*batch, k, k))
        np.testing.assert_allclose((basis.mT @ basis).numpy(), unit, atol=1e-12)
    symmetric = a @ np.swapaxes(a, -1, -2)
    w, v = ops.linalg.eigh(symmetric)
    np.testing.assert_allclose(((v * linalg.row(w)) @ v.mT).numpy(), symmetric, atol=1e-12)
    factor = ops.linalg.cholesky(symmetric + np.eye(m))
    np.testing.assert_allclose((factor @ factor.mT).numpy(), symmetric + np.eye(m), atol=1e-12)
    p = ops.linalg.pinv(a).numpy()
    np.testing.assert_allclose(a @ p @ a, a, atol=1e-9)


def rebuilt(x: Tensor, kind: str) -> Tensor:
    "The matrix itself, by way of a decomposition."
    if kind == "eigh":
        w, v = ops.linalg.eigh(x)
        return (v * linalg.row(w)) @ v.mT
    u, s, vh = ops.linalg.svd(x, full_matrices=False)
    return (u * linalg.row(s)) @ vh


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_equal_values_give_a_true_gradient_or_none(kind: str) -> None:
    "0/0 is 0 where the vectors of equal values don't matter; else the result is not finite."
    x = Tensor(EYE3, requires_grad=True)
    (slope,) = gradients((rebuilt(x, kind) * rebuilt(x, kind)).sum(), [x])
    np.testing.assert_allclose(slope.numpy(), 2 * EYE3, atol=1e-12)
    weights = sample((3, 3))
    for m in (weights, weights + weights.T):
        with np.errstate(invalid="ignore"):
            (slope,) = gradients((rebuilt(x, kind) * m).sum(), [x])
        assert not np.isfinite(slope.numpy()).all()
    y = Tensor(np.diag([1.0, 2.0, 4.0]), requires_grad=True)
    (slope,) = gradients((rebuilt(y, kind) * weights).sum(), [y])
    wanted = (weights + weights.T) / 2 if kind == "eigh" else weights
    np.testing.assert_allclose(slope.numpy(), wanted, atol=1e-12)


def test_a_singular_value_of_zero_harms_nothing_that_ignores_it() -> None:
    a = np.outer([1.0, 2.0, 3.0, 4.0], [2.0, -1.0])
    x = Tensor(a, requires_grad=True)
    (slope,) = gradients(ops.linalg.svdvals(x)[..., :1].sum(), [x])
    u, _, vh = np.linalg.svd(a)
    np.testing.assert_allclose(slope.numpy(), np.outer(u[:, 0], vh[0]), atol=1e-12)


def test_the_determinant_of_a_singular_matrix_has_a_gradient() -> None:
    for rank, wanted in ((2, True), (1, False), (0, False)):
        x = Tensor(np.diag([2.0, 3.0, 5.0][:rank] + [0.0] * (3 - rank)), requires_grad=True)
        (slope,) = gradients(ops.linalg.det(x), [x])
        assert np.isfinite(slope.numpy()).all() and bool(slope.numpy().any()) is wanted
    np.testing.assert_allclose(linalg._cofactors(np.diag([2.0, 3.0, 0.0])).numpy()[2, 2], 6.0)


def test_the_second_derivative_of_a_singular_determinant_says_what_is_missing() -> None:
    x = Tensor([[1.0, 2.0], [2.0, 4.0]], requires_grad=True)
    (slope,) = gradients(linalg.det(x), [x], create_graph=True)
    with pytest.raises(linalg.LinAlgError, match=r"^det: the matrix is singular.*write the det"):
        gradients((slope * [[1.0, 2.0], [3.0, 4.0]]).sum(), [x])


def test_the_sign_of_a_determinant_survives() -> None:
    x = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert ops.linalg.slogdet(x).sign.item() == -1 and ops.linalg.det(x).item() == -1
    singular = ops.linalg.slogdet(np.zeros((2, 2)))
    assert singular.sign.item() == 0 and singular.logabsdet.item() == -math.inf


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: ops.linalg.inv(np.ones((2, 3))), ShapeError, ["inv", "2 by 3"]),
        (lambda: ops.linalg.inv(np.ones(3)), ShapeError, ["inv", "two axes", "(3,)"]),
        (lambda: ops.linalg.inv(np.ones((2, 2))), linalg.LinAlgError, ["inv", "singular"]),
        (
            lambda: ops.linalg.inv(np.stack([EYE3, EYE3, 0 * EYE3])),
            np.linalg.LinAlgError,
            ["inv", "matrix [2]", "(3,)", "singular"],
        ),
        (
            lambda: ops.linalg.solve(np.stack([[EYE3, 0 * EYE3]]), np.ones((1, 2, 3, 1))),
            np.linalg.LinAlgError,
            ["solve", "matrix [0, 1]", "(1, 2)"],
        ),
        (
            lambda: ops.linalg.cholesky(np.stack([EYE3, -EYE3])),
            linalg.LinAlgError,
            ["cholesky", "[1]", "positive definite"],
        ),
        (
            lambda: ops.linalg.svd(np.full((2, 2), np.nan)),
            linalg.LinAlgError,
            ["svd", "not finite"],
        ),
        (lambda: ops.linalg.solve(EYE3, np.ones((2, 2))), ShapeError, ["solve", "(2, 2)"]),
        (lambda: ops.linalg.cross([1.0, 2.0], [1.0, 2.0]), ShapeError, ["cross", "size 3"]),
        (lambda: ops.linalg.outer(EYE3, [1.0]), ShapeError, ["outer", "(3, 3)"]),
        (lambda: ops.linalg.vecdot([1.0], [1.0, 2.0]), ShapeError, ["vecdot", "1 and 2"]),
        (lambda: ops.linalg.vecdot(EYE3, EYE3, axis=-3), ShapeError, ["vecdot", "-2 to -1"]),
        (lambda: ops.tensordot(EYE3, EYE3[:2], axes=1), ShapeError, ["tensordot", "[3]", "[2]"]),
        (lambda: ops.linalg.qr(EYE3, mode="full"), ValueError, ["qr", "full", "reduced"]),
        (
            lambda: ops.linalg.matrix_norm(EYE3, ord="max"),
            ValueError,
            ["matrix_norm", "max", "fro"],
        ),
        (lambda: ops.linalg.inv(EYE3.astype("float16")), DtypeError, ["inv", "float16"]),
        (lambda: ops.linalg.diagonal(EYE3, offset=3), ShapeError, ["diagonal", "3 by 3"]),
    ],
)
def test_errors_name_what_was_wrong(call: Any, kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_has_no_derivative_says_so() -> None:
    x = Tensor(np.ones((2, 3)) + np.eye(2, 3), requires_grad=True)
    for f in (ops.linalg.qr, ops.linalg.svd):
        with pytest.raises(GraphError, match="no derivative for 2 by 3"):
            gradients(f(x)[0].sum(), [x])


def test_rank_and_pseudo_inverse_of_deficient_matrices() -> None:
    a = np.outer([1.0, 2.0, 3.0], [1.0, 1.0])
    assert ops.linalg.matrix_rank(a).item() == 1
    assert ops.linalg.matrix_rank(np.stack([np.eye(2), np.zeros((2, 2))])).numpy().tolist() == [
        2,
        0,
    ]
    assert ops.linalg.matrix_rank(np.diag([1.0, 0.01]), rtol=0.1).item() == 1
    np.testing.assert_allclose(ops.linalg.pinv(a).numpy(), np.linalg.pinv(a), atol=1e-12)
    x = Tensor(a, requires_grad=True)
    (slope,) = gradients((ops.linalg.pinv(x) * sample((2, 3))).sum(), [x])
    assert np.isfinite(slope.numpy()).all()


def test_norms_at_zero_have_slope_zero_twice() -> None:
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    (first,) = gradients(ops.linalg.vector_norm(x, axis=1).sum(), [x], create_graph=True)
    assert not first.numpy().any()
    (second,) = gradients((first * first).sum(), [x])
    assert not second.numpy().any()
    for ord in (1, 3, math.inf):
        (slope,) = gradients(ops.linalg.vector_norm(x, ord=ord), [x])
        assert np.isfinite(slope.numpy()).all()


def test_norm_zero_counts() -> None:
    assert ops.linalg.vector_norm([0.0, 3.0, -1.0], ord=0).item() == 2


def test_counts_and_zeroth_powers_have_gradients_of_zero() -> None:
    x = Tensor([[1.0, 0.0], [math.nan, math.inf]], requires_grad=True)
    for out in (linalg.vector_norm(x, ord=0), linalg.matrix_power(x, 0).sum()):
        assert gradients(out, [x])[0].tolist() == [[0, 0], [0, 0]]
    assert linalg.vector_norm(x, ord=0).item() == 3
    assert linalg.matrix_power(x, 0).tolist() == [[1, 0], [0, 1]]


def test_norms_keep_their_axes() -> None:
    x = sample((2, 3, 4))
    assert ops.linalg.vector_norm(x, axis=1, keepdims=True).shape == (2, 1, 4)
    assert ops.linalg.vector_norm(x, keepdims=True).shape == (1, 1, 1)
    for ord in ("fro", "nuc", 1, 2, math.inf):
        kept = ops.linalg.matrix_norm(x, ord=ord, keepdims=True)
        assert kept.shape == (2, 1, 1)
        wanted = np.linalg.norm(x, ord=ord, axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(kept.numpy(), wanted)


def test_whole_numbers_become_the_default_float() -> None:
    assert ops.linalg.inv([[2, 0], [0, 4]]).dtype == np.float32
    assert ops.linalg.matrix_power(np.array([[1, 1], [1, 0]]), 10).numpy()[0, 1] == 55
    assert ops.linalg.matrix_power(EYE3 * 2, 0).numpy().tolist() == EYE3.tolist()


def test_every_primitive_of_the_page_has_examples() -> None:
    page = ("gradbook.tensor.linalg", "gradbook.tensor.contraction")
    mine = [p for p in TABLE.values() if p.impl.__module__ in page]
    assert len(mine) >= 18 and all(p.examples for p in mine)


def test_the_namespace_is_found_and_complete() -> None:
    x = Tensor([1.0])
    xp = x.__array_namespace__(api_version="2024.12")  # type: ignore[attr-defined]
    assert xp is ops and xp.__array_api_version__ == "2024.12"
    with pytest.raises(ValueError, match=r"1999\.12"):
        x.__array_namespace__(api_version="1999.12")  # type: ignore[attr-defined]
    strict = pytest.importorskip("array_api_strict")
    other = {"real", "imag", "conj", "complex64", "complex128", "Device", "ModuleType", "isin"}
    names = {n for n in dir(strict) if not n.startswith("_") and "flags" not in n.lower()}
    assert not {n for n in names - other if not hasattr(ops, n)}
    extension = [n for n in strict.linalg.__all__ if not n.startswith("_")]
    assert not [n for n in extension if not hasattr(ops.linalg, n)]
