"Elementwise functions: dtypes, errors, extreme inputs, operators, and pieces that fit the cache."

from __future__ import annotations

import math

import numpy as np
import pytest

from gradbook.tensor import elementwise as ew
from gradbook.tensor.backend import DtypeError
from gradbook.tensor.core import Tensor, detect_anomaly, gradients

NAMES = """
abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift
bitwise_or bitwise_right_shift bitwise_xor ceil clip copysign cos cosh divide equal exp expm1
floor floor_divide greater greater_equal hypot isfinite isinf isnan less less_equal log log1p
log2 log10 logaddexp logical_and logical_not logical_or logical_xor maximum minimum multiply
negative nextafter not_equal positive pow reciprocal remainder round sign signbit sin sinh
square sqrt subtract tan tanh trunc where erf sigmoid log_sigmoid softplus relu gelu silu
"""
FLOATING = """
acos acosh asin asinh atan atanh cos cosh expm1 log1p log2 log10 reciprocal sin sinh sqrt tan
tanh erf sigmoid log_sigmoid softplus gelu silu
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_it_is_there_and_documented(name: str) -> None:
    assert name in ew.__all__ and callable(getattr(ew, name))


@pytest.mark.parametrize("name", FLOATING.split())
@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "bool"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_of_real_numbers_make_floats(name: str, dtype: str) -> None:
    "Whole numbers of every size become the default dtype, not the nearest one NumPy has."
    out = getattr(ew, name)(Tensor(np.array([0, 1], dtype=dtype)))
    assert out.dtype == np.float32
    for kind in ("float16", "float32", "float64"):
        assert getattr(ew, name)(Tensor(np.ones(2), dtype=kind)).dtype == kind


@pytest.mark.parametrize("name", ["atan2", "hypot", "logaddexp", "copysign"])
def test_pairs_of_whole_numbers_make_floats(name: str) -> None:
    x = Tensor(np.array([1, 2], dtype="int8"))
    assert getattr(ew, name)(x, x).dtype == np.float32
    assert getattr(ew, name)(x, 2).dtype == np.float32


@pytest.mark.parametrize(
    "name", ["abs", "sign", "positive", "square", "ceil", "floor", "round", "trunc"]
)
def test_whole_numbers_stay_whole(name: str) -> None:
    for dtype in ("int8", "int64", "uint8"):
        assert getattr(ew, name)(Tensor(np.array([1, 2], dtype=dtype))).dtype == dtype


def test_bits_of_floats_are_no_good() -> None:
    with pytest.raises(DtypeError, match="bitwise_and"):
        ew.bitwise_and(Tensor([1.0]), Tensor([2.0]))
    assert (Tensor([True, False]) ^ True).numpy().tolist() == [False, True]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid", "softplus", "tanh", "relu", "erf"])
def test_far_out_all_is_finite(name: str, dtype: str) -> None:
    "At plus and minus 10,000 there is no overflow, no NaN, no warning; slopes too."
    x = Tensor(np.array([-1e4, -100.0, 0.0, 100.0, 1e4]), requires_grad=True, dtype=dtype)
    if name == "erf" and dtype == "float16":
        x = Tensor(np.array([-100.0, 0.0, 100.0]), requires_grad=True, dtype=dtype)
    y = getattr(ew, name)(x)
    (g,) = gradients(y, [x], Tensor(np.ones(y.shape), dtype=dtype))
    assert np.isfinite(y.numpy()).all()
    if name != "erf":  # its slope squares x, which overflows to the right answer
        assert np.isfinite(g.numpy()).all()


def test_sigmoid_is_exact_on_both_sides() -> None:
    "Small results keep their digits, which 1 - tanh would not."
    for x in (-100.0, -50.0, -20.0, -1.0, 0.0, 1.0, 20.0):
        want = math.exp(x) / (1 + math.exp(x))
        assert math.isclose(ew.sigmoid(Tensor(x, dtype="float64")).item(), want, rel_tol=1e-15)
        if x >= -80:
            assert math.isclose(ew.sigmoid(Tensor(x)).item(), want, rel_tol=3e-7)


def test_erf_everywhere() -> None:
    "A dense comparison with math.erf, beyond 6 and at tiny arguments; NaN and infinities."
    x = np.concatenate([np.linspace(-7, 7, 50_001), 10.0 ** -np.arange(1, 300)])
    want = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(ew.erf(x).numpy(), want, rtol=1.5e-15, atol=0)
    f = x[np.abs(x) > 1e-30].astype(np.float32)
    want = np.array([math.erf(v) for v in f])
    np.testing.assert_allclose(ew.erf(f).numpy(), want, rtol=4e-7, atol=0)
    for dtype in ("float32", "float64"):
        far = ew.erf(np.array([np.inf, -np.inf, np.nan, 1e10], dtype=dtype)).numpy()
        np.testing.assert_array_equal(far, [1, -1, np.nan, 1])


def test_gelu_options() -> None:
    with pytest.raises(ValueError, match="approximate='erf'"):
        ew.gelu(Tensor([1.0]), approximate="erf")


def test_powers() -> None:
    "The corners of x**y, and a clear refusal."
    x = Tensor([0.0, -2.0, 3.0], requires_grad=True)
    (g,) = gradients((x**0).sum(), [x])
    assert g.numpy().tolist() == [0, 0, 0]
    y = Tensor([0.0, 2.0], requires_grad=True)
    (g,) = gradients(ew.pow(0.0, y).sum(), [y])
    assert g.numpy().tolist() == [0, 0]
    with pytest.raises(DtypeError, match="use floats"):
        Tensor([2, 3]) ** -1
    assert (Tensor([2, 3]) ** 2).dtype == np.int64


def test_clip_bounds() -> None:
    "One bound, none, crossed ones; whole numbers keep their dtype."
    x = Tensor([1, 5, 9])
    assert ew.clip(x, 2).numpy().tolist() == [2, 5, 9] and ew.clip(x, max=6).dtype == np.int64
    assert ew.clip(x).numpy().tolist() == [1, 5, 9]
    assert ew.clip(Tensor([math.nan]), 0.0, 1.0).numpy()[0] != 0
    low = Tensor(3.0, requires_grad=True)
    high = Tensor(1.0, requires_grad=True)
    ew.clip(Tensor([0.0, 2.0, 5.0]), low, high).sum().backward()
    assert low.grad is not None and high.grad is not None
    assert (low.grad.item(), high.grad.item()) == (0, 3)


def test_equality_with_strangers() -> None:
    "No crash, no array: Python's own answer."
    x = Tensor([1.0, 2.0])
    assert (x == None) is False and (x != None) is True  # noqa: E711
    assert (x == "text") is False and x in [None, x]
    with pytest.raises(TypeError):
        x < "text"  # noqa: B015
    assert len({x, Tensor([1.0, 2.0])}) == 2
    assert (x == np.array([1.0, 0.0])).numpy().tolist() == [True, False]


@pytest.mark.parametrize(
    ("f", "want"),
    [
        (lambda x: 7 // x, [3, 2]),
        (lambda x: 7 % x, [1, 1]),
        (lambda x: 2**x, [4, 8]),
        (lambda x: 1 << x, [4, 8]),
        (lambda x: 64 >> x, [16, 8]),
        (lambda x: 6 & x, [2, 2]),
        (lambda x: 4 | x, [6, 7]),
        (lambda x: 1 ^ x, [3, 2]),
        (lambda x: ~x, [-3, -4]),
        (lambda x: +x, [2, 3]),
        (lambda x: abs(-x), [2, 3]),
        (lambda x: x < 3, [True, False]),
        (lambda x: x >= 3, [False, True]),
        (lambda x: np.array([7, 7]) // x, [3, 2]),
    ],
)
def test_operators(f: object, want: list[object]) -> None:
    assert f(Tensor([2, 3])).numpy().tolist() == want  # type: ignore[operator]


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "silu", "gelu", "erf", "clip"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_arrays_give_what_small_ones_give(name: str, dtype: str) -> None:
    "In pieces, along any layout, the results are the same."
    f = (lambda x: ew.clip(x, -0.5, 0.5)) if name == "clip" else getattr(ew, name)
    x = np.linspace(-5, 5, 420_000).astype(dtype).reshape(600, 700)
    parts = [np.asarray(f(Tensor(row)).numpy()) for row in x]
    for view, want in (
        (x, np.stack(parts)), (x.T, np.stack(parts).T), (x[:, ::2], np.stack(parts)[:, ::2]),
        (x.reshape(-1), np.concatenate(parts)), (x[None], np.stack(parts)[None]),
    ):  # fmt: skip
        t = Tensor(0.0)
        t.data = view
        np.testing.assert_allclose(f(t).numpy(), want, rtol=1e-6 if dtype == "float32" else 1e-14)


def test_a_stretched_cotangent() -> None:
    "The cotangent of a sum is one number in disguise; large arrays must not mind."
    x = Tensor(np.linspace(-2, 2, 200_000), requires_grad=True)
    (g,) = gradients(ew.tanh(x).sum(), [x])
    np.testing.assert_allclose(g.numpy(), 1 - np.tanh(x.numpy()) ** 2, atol=1e-15)


def test_where_under_anomaly_detection() -> None:
    "The condition has no slope, and nobody asks it for one."
    x = Tensor([1.0, -1.0], requires_grad=True)
    with detect_anomaly():
        ew.where(x > 0, x, 0.0).sum().backward()
    assert x.grad is not None and x.grad.numpy().tolist() == [1, 0]
