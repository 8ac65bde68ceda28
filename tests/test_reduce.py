"Reductions: axes, empty arrays, dtypes, errors, and numbers at the edge."

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradbook.tensor import reduce as rd
from gradbook.tensor.core import ShapeError, Tensor, gradients

AXES: list[Any] = [None, 0, 1, -1, (0, 2), (-1, 0), ()]
NUMPYS = {
    "max": np.max, "min": np.min, "mean": np.mean, "var": np.var, "std": np.std, "prod": np.prod,
    "all": np.all, "any": np.any, "count_nonzero": np.count_nonzero,
}  # fmt: skip


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", NUMPYS)
def test_axes_like_numpy(name: str, axis: Any, keepdims: bool) -> None:
    if axis == () and name == "count_nonzero":
        pytest.skip("NumPy reads () as all")
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    got = getattr(rd, name)(x, axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(got.numpy(), NUMPYS[name](x, axis=axis, keepdims=keepdims), 1e-12)


def test_axes_that_are_not_there() -> None:
    for f in (rd.max, rd.softmax, rd.cumulative_sum, rd.argmax, rd.prod):
        with pytest.raises(ShapeError, match="axis 2"):
            f(np.ones((2, 3)), axis=2)
    with pytest.raises(ShapeError, match="twice"):
        rd.mean(np.ones((2, 3)), axis=(0, -2))


def test_nothing() -> None:
    "Empty arrays: neutral elements, NaN, or an error that says why."
    x = Tensor(np.zeros((2, 0)))
    assert rd.prod(x, axis=1).numpy().tolist() == [1, 1] and rd.all(x).item() is True
    assert rd.any(x).item() is False and rd.count_nonzero(x).item() == 0
    assert np.isnan(rd.mean(x, axis=1).numpy()).all() and np.isnan(rd.var(x).item())
    assert rd.logsumexp(x, axis=1).numpy().tolist() == [-math.inf] * 2
    assert rd.softmax(x).shape == rd.log_softmax(x).shape == (2, 0)
    assert rd.cumulative_sum(x, axis=1, include_initial=True).shape == (2, 1)
    assert rd.max(np.zeros((0, 3)), axis=1).shape == (0,)
    for f in (rd.max, rd.min, rd.argmax, rd.argmin):
        with pytest.raises(ShapeError, match="no elements"):
            f(x, axis=1)


def test_one_number() -> None:
    for f in (rd.max, rd.min, rd.mean, rd.prod, rd.logsumexp):
        x = Tensor(3.0, requires_grad=True)
        f(x).backward()
        assert f(x).item() == 3 and x.grad is not None and x.grad.item() == 1


def test_dtypes() -> None:
    small = Tensor(np.array([100, 100], dtype="int8"))
    assert rd.prod(small).item() == 10_000 and rd.cumulative_sum(small).dtype == np.int64
    assert rd.mean(small).dtype == np.float32 and rd.var(Tensor([1, 2])).dtype == np.float32
    assert rd.prod(small, dtype="float64").dtype == np.float64
    assert rd.softmax(Tensor([1, 2])).dtype == np.float32
    half = Tensor(np.full(70_000, 2.0), dtype="float16")
    assert rd.mean(half).item() == 2 and rd.mean(half).dtype == np.float16
    assert rd.argmax(small).dtype == np.int64


def test_variance_without_freedom() -> None:
    with np.errstate(all="ignore"):
        assert np.isnan(rd.var(Tensor([5.0]), correction=1).item())
    assert rd.var(Tensor([5.0])).item() == 0


def test_argmax_forms() -> None:
    x = np.array([[1.0, 9.0, 9.0], [7.0, 0.0, 8.0]])
    assert rd.argmax(x).item() == 1 and rd.argmin(x, axis=1).numpy().tolist() == [0, 1]
    assert rd.argmax(x, keepdims=True).shape == (1, 1)
    assert rd.argmax(x, axis=0, keepdims=True).numpy().tolist() == [[1, 0, 0]]


def test_running_totals() -> None:
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(rd.cumulative_sum(x, axis=0).numpy(), x.cumsum(0))
    got = rd.cumulative_prod(x, axis=-1, include_initial=True).numpy()
    np.testing.assert_array_equal(got, np.concatenate([np.ones((2, 1)), x.cumprod(1)], 1))
    with pytest.raises(ShapeError, match="which axis"):
        rd.cumulative_sum(x)


def test_differences() -> None:
    x = np.array([[1.0, 4.0, 9.0, 16.0]])
    for n in (0, 1, 2, 3, 4, 6):
        np.testing.assert_array_equal(rd.diff(x, n=n).numpy(), np.diff(x, n=n))
    kw = {"prepend": np.zeros((1, 1)), "append": np.ones((1, 2))}
    np.testing.assert_array_equal(rd.diff(x, **kw).numpy(), np.diff(x, **kw))
    np.testing.assert_array_equal(rd.diff(x, axis=0).numpy(), np.diff(x, axis=0))
    with pytest.raises(ShapeError, match="go together"):
        rd.diff(x, prepend=np.zeros((2, 1)))


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (20, 30, 500), (200_000,), (2, 200_000)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_large_softmax_in_pieces(name: str, shape: tuple[int, ...]) -> None:
    "Every axis and layout gives what the formula gives; gradients add up to 0."
    x = np.random.default_rng(1).normal(size=shape)
    for axis in range(len(shape)):
        e = np.exp(x - x.max(axis, keepdims=True))
        want = e / e.sum(axis, keepdims=True)
        for order in (lambda a: a, np.asfortranarray):
            t = Tensor(0.0)
            t.data = order(x)
            t.requires_grad_()
            out = getattr(rd, name)(t, axis=axis)
            got = np.exp(out.numpy()) if name == "log_softmax" else out.numpy()
            np.testing.assert_allclose(got, want, rtol=1e-10)
            g = np.random.default_rng(2).normal(size=shape)
            (slope,) = gradients(out, [t], Tensor(g))
            np.testing.assert_allclose(slope.numpy().sum(axis), 0, atol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_masked_rows() -> None:
    "-inf is a forbidden place; a row of them has no answer."
    x = Tensor([[0.0, -math.inf], [-math.inf, -math.inf]], requires_grad=True)
    p = rd.softmax(x)
    assert p.numpy()[0].tolist() == [1, 0] and np.isnan(p.numpy()[1]).all()
    assert rd.logsumexp(x, axis=1).numpy().tolist() == [0, -math.inf]
    (g,) = gradients(p, [x], Tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert g.numpy()[0].tolist() == [0, 0]


def test_logsumexp_is_exact_far_out() -> None:
    "Slopes keep all digits at 10,000, where the result in float32 has three after the point."
    x = Tensor([1e4, 1e4], requires_grad=True)
    (g,) = gradients(rd.logsumexp(x), [x])
    assert g.numpy().tolist() == [0.5, 0.5]
    assert rd.logsumexp(Tensor([math.inf, 0.0])).item() == math.inf


def test_products_with_zeros_to_second_order() -> None:
    "The second derivative of abc with respect to a and b is c, zeros or not."
    x = Tensor([0.0, 0.0, 3.0], requires_grad=True, dtype="float64")
    (g,) = gradients(rd.prod(x), [x], create_graph=True)
    (h,) = gradients(g, [x], Tensor([1.0, 0.0, 0.0], dtype="float64"))
    assert g.numpy().tolist() == [0, 0, 0] and h.numpy().tolist() == [0, 3, 0]
