"Convolutions and poolings against PyTorch, their bad input, and LeNet-5."

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gradbook.nn.conv as cv
import gradbook.nn.pool as pl
from gradbook.data.datasets import SOURCES, installed
from gradbook.models.lenet import LeNet5, LeNetSettings, recommended, train_lenet
from gradbook.nn.conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from gradbook.nn.losses import cross_entropy
from gradbook.nn.module import Sequential
from gradbook.optim.adam import AdamW
from gradbook.tensor.core import ShapeError, Tensor, gradients
from gradbook.tensor.transforms import grad, jvp, vmap

FAST = settings(max_examples=40, deadline=None)


@pytest.fixture(params=[1 << 19, 300, 1], ids=["whole", "blocks", "places"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    "Blocks of all sizes: everything at once, some places, one place at a time."
    monkeypatch.setattr(cv, "CACHE", request.param)
    monkeypatch.setattr(pl, "CACHE", request.param)
    return int(request.param)


def leaves(*arrays: Any) -> list[Tensor]:
    return [Tensor(a, requires_grad=True) for a in arrays]


def compare(ours: Any, theirs: Any, arrays: list[Any], tolerance: float = 1e-9) -> None:
    "Value, gradient and the gradient of a weighted sum of gradients."
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(1)
    xs, ts = leaves(*arrays), [torch.tensor(a, requires_grad=True) for a in arrays]
    y, ty = ours(*xs), theirs(*ts)
    assert y.shape == tuple(ty.shape)
    np.testing.assert_allclose(y.numpy(), ty.detach().numpy(), atol=tolerance, rtol=tolerance)
    g = rng.normal(size=y.shape).astype(y.dtype)
    first = gradients((y * y * g).sum(), xs, create_graph=True)
    tfirst = torch.autograd.grad((ty * ty * torch.tensor(g)).sum(), ts, create_graph=True)
    for a, b in zip(first, tfirst, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), atol=tolerance, rtol=tolerance)
    along = [rng.normal(size=a.shape).astype(y.dtype) for a in arrays]
    second = gradients(sum((a * v).sum() for a, v in zip(first, along)), xs)
    total = sum((a * torch.tensor(v)).sum() for a, v in zip(tfirst, along))
    tsecond = torch.autograd.grad(total, ts)
    for a, b in zip(second, tsecond, strict=True):
        np.testing.assert_allclose(
            a.numpy(), b.numpy(), atol=20 * tolerance, rtol=20 * tolerance
        )


@st.composite
def cases(draw: Any, axes: int) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    return {
        "n": draw(st.integers(1, 3)),
        "c": groups * draw(st.integers(1, 2)), "o": groups * draw(st.integers(1, 2)),
        "size": per_axis(1, 7), "window": per_axis(1, 3), "stride": per_axis(1, 3),
        "padding": per_axis(0, 2), "dilation": per_axis(1, 2), "groups": groups,
        "bias": draw(st.booleans()),
    }  # fmt: skip


def fits(case: dict[str, Any]) -> bool:
    rows = zip(case["size"], case["window"], case["padding"], case["dilation"])
    return all(n + 2 * p >= d * (k - 1) + 1 for n, k, p, d in rows)


@pytest.mark.parametrize("axes", [1, 2])
@FAST
@given(data=st.data())
def test_a_convolution_is_pytorchs(axes: int, data: st.DataObject) -> None:
    functional = pytest.importorskip("torch.nn.functional", reason="PyTorch is the reference")
    case = data.draw(cases(axes))
    assume(fits(case))
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(case["n"], case["c"], *case["size"])),
        rng.normal(size=(case["o"], case["c"] // case["groups"], *case["window"])),
    ]
    if case["bias"]:
        arrays.append(rng.normal(size=case["o"]))
    o = {k: case[k] for k in ("stride", "padding", "dilation", "groups")}
    name = f"conv{axes}d"
    compare(
        lambda *a: getattr(cv, name)(*a, **o), lambda *a: getattr(functional, name)(*a, **o), arrays
    )


@pytest.mark.parametrize("axes", [1, 2])
@FAST
@given(data=st.data())
def test_a_transposed_convolution_is_pytorchs(axes: int, data: st.DataObject) -> None:
    functional = pytest.importorskip("torch.nn.functional", reason="PyTorch is the reference")
    case = data.draw(cases(axes))
    extra = tuple(
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(case["stride"], case["dilation"])
    )
    rows = zip(*(case[k] for k in ("size", "window", "stride", "padding", "dilation")), extra)
    assume(all((n - 1) * s - 2 * p + d * (k - 1) + 1 + e > 0 for n, k, s, p, d, e in rows))
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(case["n"], case["c"], *case["size"])),
        rng.normal(size=(case["c"], case["o"] // case["groups"], *case["window"])),
    ]
    if case["bias"]:
        arrays.append(rng.normal(size=case["o"]))
    o = {k: case[k] for k in ("stride", "padding", "dilation", "groups")}
    name = f"conv_transpose{axes}d"
    compare(
        lambda *a: getattr(cv, name)(*a, output_padding=extra, **o),
        lambda *a: getattr(functional, name)(*a, output_padding=extra, **o),
        arrays,
    )


@pytest.mark.parametrize(
    "o",
    [
        {}, {"stride": 2, "padding": 1}, {"stride": (1, 2), "dilation": (2, 1), "groups": 2},
        {"stride": 3, "padding": (0, 2), "groups": 4},
    ],
)  # fmt: skip
def test_blocks_of_any_size_give_the_same(cache: int, o: dict[str, Any]) -> None:
    functional = pytest.importorskip("torch.nn.functional", reason="PyTorch is the reference")
    rng, groups = np.random.default_rng(0), o.get("groups", 1)
    arrays = [rng.normal(size=(3, 4, 9, 8)), rng.normal(size=(8, 4 // groups, 3, 3))]
    compare(lambda *a: cv.conv2d(*a, **o), lambda *a: functional.conv2d(*a, **o), arrays)
    x = np.round(rng.normal(size=(2, 3, 9, 8)), 1)
    for name in ("max_pool2d", "avg_pool2d"):
        compare(
            lambda a, name=name: getattr(pl, name)(a, 3, 2, 1),
            lambda a, name=name: getattr(functional, name)(a, 3, 2, 1),
            [x],
        )


@FAST
@given(data=st.data())
def test_pooling_is_pytorchs(data: st.DataObject) -> None:
    functional = pytest.importorskip("torch.nn.functional", reason="PyTorch is the reference")
    axes = data.draw(st.sampled_from([1, 2]))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    size, window, stride = draw(1, 9), draw(1, 3), draw(1, 4)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in window)
    ceil = data.draw(st.booleans())
    dilation = draw(1, 2)
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(2, 3, *size)) * 2) / 2  # many numbers are equal
    o = {"kernel_size": window, "stride": stride, "padding": padding, "ceil_mode": ceil}

    def same(name: str, options: dict[str, Any]) -> None:
        compare(
            lambda a: getattr(pl, name)(a, **options),
            lambda a: getattr(functional, name)(a, **options),
            [x],
        )

    if fits({"size": size, "window": window, "padding": padding, "dilation": dilation}):
        options = {**o, "dilation": dilation}
        assume(np.isfinite(getattr(pl, f"max_pool{axes}d")(x, **options).numpy()).all())
        same(f"max_pool{axes}d", options)  # without windows that see nothing but their padding
    if fits({"size": size, "window": window, "padding": padding, "dilation": (1,) * axes}):
        same(f"avg_pool{axes}d", {**o, "count_include_pad": data.draw(st.booleans())})
    wanted = draw(1, 5)
    for name in (f"adaptive_avg_pool{axes}d", f"adaptive_max_pool{axes}d"):
        same(name, {"output_size": wanted})


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_a_window_larger_than_the_image_may_stick_out(name: str) -> None:
    functional = pytest.importorskip("torch.nn.functional", reason="PyTorch is the reference")
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 5))
    cases: list[dict[str, Any]] = [
        {"kernel_size": 6, "stride": 3, "padding": 1}, {"kernel_size": (4, 6), "stride": 2}
    ]  # fmt: skip
    if name == "max_pool2d":
        cases.append({"kernel_size": 3, "stride": 2, "dilation": 2})
    for o in cases:
        theirs = lambda a, o=o: getattr(functional, name)(a, ceil_mode=True, **o)  # noqa: E731
        compare(lambda a, o=o: getattr(pl, name)(a, ceil_mode=True, **o), theirs, [x])
    with pytest.raises(ShapeError, match="does not fit"):
        getattr(pl, name)(x, 7, 1, ceil_mode=True)


def test_the_mean_of_small_dtypes() -> None:
    images = [
        np.full((1, 4, 4), 200, np.uint8), np.full((1, 4, 4), 100, np.int8),
        np.full((1, 4, 4), 60_000, np.float16), np.ones((1, 4, 4), bool),
    ]  # fmt: skip
    for x in images:
        means = (
            pl.avg_pool2d(x, 2), pl.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
            pl.adaptive_avg_pool2d(x, 2), pl.adaptive_avg_pool2d(x, 3),
        )  # fmt: skip
        for mean in means:
            assert mean.dtype == ("float16" if x.dtype == "float16" else "float32")
            np.testing.assert_allclose(mean.numpy(), float(x[0, 0, 0]), rtol=1e-3)
    assert pl.max_pool2d(np.eye(4, dtype=bool)[None], 2, padding=1).dtype == bool
    half = Tensor(np.ones((1, 2, 2), np.float16), requires_grad=True)
    pl.avg_pool2d(half, 2).sum().backward()
    assert half.grad.dtype == "float16" and (half.grad.numpy() == 0.25).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_an_infinite_slope_stays_where_it_belongs(stride: int) -> None:
    x = Tensor([[[1.0, 2.0, 3.0, 4.0], [4.0, 5.0, 1.0, 6.0]]], requires_grad=True)
    y = pl.max_pool2d(x, 2, stride)
    g = np.ones(y.shape)
    g[0, 0, 0] = np.inf
    (slope,) = gradients((y * g).sum(), [x])
    assert slope.tolist() == [[[0, 0, 0, 0], [0, np.inf, 0, 1]]]
    t = np.zeros((1, 2, 4))
    t[0, 0] = np.inf, np.nan, np.inf, np.nan  # none of them is a maximum
    _, along = jvp(lambda a: pl.max_pool2d(a, 2, stride), (x.detach(),), (Tensor(t),))
    assert not along.numpy().any()


def test_a_divisor_of_ones_own() -> None:
    x = np.ones((1, 1, 4, 4))
    assert (pl.avg_pool2d(x, 2, divisor_override=2).numpy() == 2).all()
    with pytest.raises(ValueError, match="divisor_override=0"):
        pl.avg_pool2d(x, 2, divisor_override=0)
    assert pl.adaptive_avg_pool2d(np.ones((2, 3, 4, 6)), (None, 3)).shape == (2, 3, 4, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_layers_are_pytorchs(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    modes = ("zeros", "reflect", "replicate", "circular")
    rng = np.random.default_rng(0)
    pairs = [
        *((Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, padding_mode=m, dtype=dtype),
           torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, padding_mode=m))
          for m in modes),
        (Conv2d(4, 6, (3, 4), padding="same", dtype=dtype),
         torch.nn.Conv2d(4, 6, (3, 4), padding="same")),
        (ConvTranspose2d(4, 2, 3, 2, 1, 1, 2, dtype=dtype),
         torch.nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, 2)),
        (ConvTranspose2d(4, 2, 3, bias=False, dilation=2, dtype=dtype),
         torch.nn.ConvTranspose2d(4, 2, 3, bias=False, dilation=2)),
        (Conv1d(4, 6, 3, dilation=2, bias=False, dtype=dtype),
         torch.nn.Conv1d(4, 6, 3, dilation=2, bias=False)),
        (ConvTranspose1d(4, 6, 4, 2, 1, dtype=dtype), torch.nn.ConvTranspose1d(4, 6, 4, 2, 1)),
    ]  # fmt: skip
    for ours, theirs in pairs:
        theirs = theirs.to(getattr(torch, dtype))
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: tuple(v.shape) for k, v in theirs.state_dict().items()
        }
        ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
        size = (7, 6) if ours.axes == 2 else (9,)
        x = rng.normal(size=(2, 4, *size)).astype(dtype)
        assert ours(x).dtype == dtype
        np.testing.assert_allclose(
            ours(x).numpy(), theirs(torch.tensor(x)).detach().numpy(), atol=1e-5
        )


def test_first_weights_are_within_the_bounds() -> None:
    for layer in (Conv2d(8, 50, 5, key=0), ConvTranspose2d(50, 8, 5, key=0)):
        numbers = layer.weight.numpy()
        bound = 1 / np.sqrt(200)
        assert np.abs(numbers).max() <= bound < 1.01 * np.abs(numbers).max()
        assert abs(numbers.mean()) < 0.01 * bound + 0.001
        assert layer.bias is not None and np.abs(layer.bias.numpy()).max() <= bound
    one, other = Conv2d(1, 2, 3, key=5), Conv2d(1, 2, 3, key=5)
    assert (one.weight.numpy() == other.weight.numpy()).all()
    assert repr(Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2)).startswith(
        "Conv2d(4, 6, 3 x 3, stride=2, padding=(1, 0), groups=2)"
    )


@pytest.mark.parametrize("op", ["conv", "transposed", "max", "mean", "adaptive"])
def test_an_empty_batch(op: str) -> None:
    x, w = leaves(np.zeros((0, 4, 6, 6)), np.ones((4, 2, 3, 3)))
    y = {
        "conv": lambda: cv.conv2d(x, w, groups=2),
        "transposed": lambda: cv.conv_transpose2d(x, w),
        "max": lambda: pl.max_pool2d(x, 2) * w.sum(),
        "mean": lambda: pl.avg_pool2d(x, 2, padding=1) * w.sum(),
        "adaptive": lambda: pl.adaptive_max_pool2d(x, 4) * w.sum(),
    }[op]()
    assert y.shape[0] == 0 and y.size == 0
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.numpy().any()
    assert LeNet5()(np.zeros((0, 1, 28, 28), "float32")).shape == (0, 10)


def test_arrays_in_any_order_in_memory() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 4, 8, 6)), rng.normal(size=(5, 4, 3, 3))
    expected = cv.conv2d(x, w, padding=1).numpy()
    pooled = pl.max_pool2d(x, 3, 2).numpy()
    for other in (
        np.asfortranarray(x), x.transpose(1, 2, 3, 0).copy().transpose(3, 0, 1, 2),
        np.repeat(x, 2, axis=3)[..., ::2], x[:, :, ::-1].copy()[:, :, ::-1],
    ):  # fmt: skip
        assert np.allclose(cv.conv2d(other, w, padding=1).numpy(), expected)
        assert np.allclose(cv.conv2d(other, np.asfortranarray(w), padding=1).numpy(), expected)
        assert np.allclose(pl.max_pool2d(other, 3, 2).numpy(), pooled)
    before = x.copy()
    for f in (lambda a: cv.conv2d(a, w), lambda a: pl.max_pool2d(a, 2), LeNet5):
        f(x) if f is not LeNet5 else None
    assert (x == before).all()


def test_one_image_and_a_batch_of_it() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 8, 6)), rng.normal(size=(5, 4, 3, 3))
    assert np.allclose(cv.conv2d(x, w).numpy(), cv.conv2d(x[None], w).numpy()[0])
    assert pl.max_pool2d(x, 2).shape == (4, 4, 3)
    assert pl.adaptive_avg_pool1d(x[0], 3).shape == (8, 3)
    up = cv.conv_transpose2d(x, w.swapaxes(0, 1))
    assert up.shape == (5, 10, 8)


def test_dtypes() -> None:
    x, w = np.ones((1, 2, 4, 4), "float32"), np.ones((3, 2, 2, 2), "float64")
    xs, ws = leaves(x, w)
    y = cv.conv2d(xs, ws)
    assert y.dtype == "float64"
    y.sum().backward()
    assert xs.grad.dtype == "float32" and ws.grad.dtype == "float64"
    whole_numbers = np.arange(16).reshape(1, 1, 4, 4)
    assert pl.max_pool2d(whole_numbers, 2).tolist() == [[[[5, 7], [13, 15]]]]
    assert pl.max_pool2d(-whole_numbers - 9, 3, 2, 1).numpy().max() == -9
    assert pl.avg_pool2d(whole_numbers, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert np.isnan(pl.max_pool2d(np.array([[[[np.nan, 1.0], [2.0, 3.0]]]]), 2).item())


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)])
def test_vmap_of_values_and_gradients(axes: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(0)
    every = [rng.normal(size=s) for s in ((3, 2, 4, 6, 5), (3, 6, 2, 3, 2), (3, 6))]
    given_ = [a if at == 0 else a[0] for a, at in zip(every, axes)]

    def f(x: Any, w: Any, b: Any) -> Any:
        y = pl.max_pool2d(cv.conv2d(x, w, b, stride=(2, 1), padding=1, groups=2), 2, 1)
        return cv.conv_transpose2d(y, w, padding=1, groups=2)

    slope = grad(lambda *a: (f(*a) ** 2).sum(), argnums=(0, 1, 2))
    values, slopes = vmap(f, in_axes=axes)(*given_), vmap(slope, in_axes=axes)(*given_)
    for k in range(3):
        one = [a[k] if at == 0 else a for a, at in zip(given_, axes)]
        assert np.allclose(values.numpy()[k], f(*map(Tensor, one)).numpy())
        for a, b in zip(slopes, slope(*map(Tensor, one)), strict=True):
            assert np.allclose(a.numpy()[k], b.numpy())


def test_forward_mode_agrees_with_reverse() -> None:
    rng = np.random.default_rng(0)
    x, w, t = (rng.normal(size=s) for s in ((2, 3, 7, 7), (4, 3, 3, 3), (2, 3, 7, 7)))

    def f(x: Any) -> Any:
        return (pl.avg_pool2d(pl.max_pool2d(cv.conv2d(x, w, padding=1), 3, 2), 2) ** 2).sum()

    _, along = jvp(f, (Tensor(x),), (Tensor(t),))
    assert np.isclose(along.item(), float((grad(f)(Tensor(x)).numpy() * t).sum()))


IMAGE, WEIGHT = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cv.conv2d(np.ones((2, 8, 8, 3)), WEIGHT), r"has 8 channels.*needs 3.*moveaxis"),
        (lambda: cv.conv2d(IMAGE[0].transpose(1, 2, 0), WEIGHT),
         r"input \(8, 8, 3\) has 8 channels.*needs 3.*moveaxis\(x, -1, 0\)"),
        (lambda: cv.conv2d(IMAGE, np.ones((4, 2, 3, 3)), groups=2), "with groups=2 needs 4"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, groups=2.0), "conv2d: groups is 2.0; a whole number"),
        (lambda: cv.conv_transpose2d(IMAGE, WEIGHT, groups="a"), "groups is 'a'; a whole number"),
        (lambda: cv.conv2d(IMAGE[:, :, :0], WEIGHT, padding=2), r"\(2, 3, 0, 8\) has no places"),
        (lambda: cv.conv_transpose2d(IMAGE[:, :, :, :0], WEIGHT), "has no places"),
        (lambda: pl.max_pool2d(IMAGE[0, :, :0], 2, padding=1), r"\(3, 0, 8\) has no places"),
        (lambda: pl.adaptive_avg_pool2d(IMAGE[:, :, :0], 2), "has no places"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, groups=3), "groups=3 does not divide 4 output"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, groups=0), "groups is 0; a whole number above 0"),
        (lambda: cv.conv2d(IMAGE, WEIGHT[0]), r"weight \(3, 3, 3\); \(out, in/groups, H, W\)"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, np.ones(3)), r"bias \(3,\) for 4 output channels"),
        (lambda: cv.conv2d(IMAGE[0, 0], WEIGHT), r"input \(8, 8\); \(N, C, H, W\) or \(C, H, W\)"),
        (lambda: cv.conv2d(IMAGE[:, :, :2], WEIGHT), "window of 3 x 3 does not fit into 2 x 8"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, dilation=5), "11 x 11 with its dilation does not fit"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, stride=0), "stride=0; expected .*, 1 or more, or 2"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, stride=1.5), "stride=1.5; expected a whole number"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, padding=(1, 2, 3)), r"padding=\(1, 2, 3\)"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, padding=-1), "padding=-1; .* 0 or more"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, padding="full"), "'full'; 'same', 'valid' or numbers"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, 0, 2, "same"), "bias"),
        (lambda: cv.conv2d(IMAGE, WEIGHT, None, 2, "same"), "needs stride 1"),
        (lambda: cv.conv_transpose2d(IMAGE, WEIGHT), r"has 3 channels.*needs 4"),
        (lambda: cv.conv_transpose2d(IMAGE, WEIGHT.swapaxes(0, 1), output_padding=1), "smaller"),
        (lambda: cv.conv_transpose2d(IMAGE, WEIGHT.swapaxes(0, 1), padding=9), "leaves"),
        (lambda: Conv2d(3, 4, 3, groups=2), "groups=2 does not divide 3 input channels"),
        (lambda: Conv2d(0, 4, 3), "in_channels is 0"),
        (lambda: Conv2d(3, 4, 0), "kernel_size=0"),
        (lambda: Conv2d(3, 4, 3, padding_mode="mirror"), "no padding_mode 'mirror'; zeros, refl"),
        (lambda: ConvTranspose2d(3, 4, 3, padding="same"), "needs numbers"),
        (lambda: pl.MaxPool2d(0), "MaxPool2d: kernel_size=0"),
        (lambda: pl.MaxPool2d("a"), "MaxPool2d: kernel_size='a'"),
        (lambda: pl.MaxPool1d((2, 2)), r"MaxPool1d: kernel_size=\(2, 2\)"),
        (lambda: pl.AvgPool2d(2, padding=2), "more than half"),
        (lambda: pl.AdaptiveAvgPool2d(-1), "AdaptiveAvgPool2d: output_size"),
        (lambda: pl.AdaptiveMaxPool1d((1, 2)), "AdaptiveMaxPool1d: output_size"),
        (lambda: pl.avg_pool2d(IMAGE, 2, divisor_override="a"), "divisor_override='a'; expected"),
        (lambda: pl.max_pool2d(IMAGE, 2, padding=2), "more than half"),
        (lambda: pl.max_pool2d(IMAGE, 9), "window of 9 x 9 does not fit into 8 x 8"),
        (lambda: pl.adaptive_avg_pool2d(IMAGE, 0), "output_size"),
        (lambda: pl.adaptive_avg_pool2d(IMAGE, (1, 2, 3)), "output_size"),
        (lambda: LeNet5()(np.ones((2, 1, 32, 32))), r"\(N, 1, 28, 28\) needed"),
        (lambda: LeNet5()(np.ones((2, 28, 28))), "adds the axis of channels"),
        (lambda: train_lenet(LeNetSettings(data="cifar10"), "x"), "reads mnist, fashion_mnist"),
    ],
)
def test_bad_input_says_the_numbers(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_option_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="'size'"):
        pl.MaxPool2d(2, size=3)  # type: ignore[call-arg]
    assert issubclass(ShapeError, ValueError)
    assert str(pl.MaxPool2d(3, 2, ceil_mode=True)).startswith("MaxPool2d(3, stride=2, ceil_mode=T")


def test_pooling_layers_are_the_functions() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 8))
    for layer, expected in (
        (pl.MaxPool2d(3, 2, 1), pl.max_pool2d(x, 3, 2, 1)),
        (pl.MaxPool2d(2, 2, 0, 3, ceil_mode=True), pl.max_pool2d(x, 2, 2, 0, 3, True)),
        (pl.AvgPool2d(3, 2, 1, True, False, 5), pl.avg_pool2d(x, 3, 2, 1, True, False, 5)),
        (pl.AvgPool2d(2, count_include_pad=False), pl.avg_pool2d(x, 2)),
        (pl.AdaptiveAvgPool2d((2, None)), pl.adaptive_avg_pool2d(x, (2, None))),
        (pl.AdaptiveMaxPool2d(3), pl.adaptive_max_pool2d(x, 3)),
    ):
        assert (layer(x).numpy() == expected.numpy()).all()
    for one in (pl.MaxPool1d(3), pl.AvgPool1d(3), pl.AdaptiveAvgPool1d(3), pl.AdaptiveMaxPool1d(2)):
        assert Sequential(one)(x[:, 0]).ndim == 3


# ---------------------------------------------------------------------- LeNet-5


def test_lenet_trains_like_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    nn = torch.nn
    ours = LeNet5(key=0)
    layers = {
        "conv1": nn.Conv2d(1, 6, 5, padding=2), "conv2": nn.Conv2d(6, 16, 5),
        "linear1": nn.Linear(400, 120), "linear2": nn.Linear(120, 84), "linear3": nn.Linear(84, 10),
    }  # fmt: skip
    model = nn.ModuleDict(layers)
    model.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})

    def theirs(x: Any) -> Any:
        pool = nn.functional.max_pool2d
        x = pool(layers["conv2"](pool(layers["conv1"](x), 2).relu()), 2).relu().flatten(1)
        return layers["linear3"](layers["linear2"](layers["linear1"](x).relu()).relu())

    rng = np.random.default_rng(0)
    x, y = rng.random((32, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 32)
    one = AdamW(ours.parameters(), lr=1e-3)
    two = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        loss = cross_entropy(ours(Tensor(x)), Tensor(y))
        other = nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
        assert abs(loss.item() - other.item()) < 1e-4
        for model_step, value in ((one, loss), (two, other)):
            model_step.zero_grad()
            value.backward()
            model_step.step()


def test_the_recipe_keeps_and_resumes(tmp_path: Path) -> None:
    quick = recommended(epochs=1, batch_size=500)
    record = train_lenet(quick, tmp_path / "run", about={"profile": "quick"})
    assert record["model"] == "LeNet-5" and record["steps"] == 36
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["settings"]["shift"] == 1 and kept["profile"] == "quick"
    again = train_lenet(quick, tmp_path / "run", resume=True)
    assert again["test_loss"] == record["test_loss"]


@pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_of_mnist_99_percent(tmp_path: Path, seed: int) -> None:
    source = SOURCES["mnist"]
    found = installed(source, list(source.files))
    if found is None or not found.whole:
        pytest.skip("MNIST is not on this machine: gradbook data get mnist")
    record = train_lenet(recommended("full", seed=seed), tmp_path)
    assert record["test_accuracy"] >= 0.99
    assert record["seconds"] <= 180 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))
