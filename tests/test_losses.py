"Losses: values and slopes against PyTorch, huge logits, options, wrong input."

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.nn import losses as L
from gradbook.nn.module import Sequential
from gradbook.tensor.backend import DtypeError
from gradbook.tensor.core import ShapeError, Tensor, detect_anomaly, gradients, no_grad
from gradbook.tensor.ops import log_softmax
from gradbook.tensor.transforms import grad, hessian, hvp, jacfwd, jvp, vmap

REDUCTIONS = ("mean", "sum", "none")
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
F = {
    "mse_loss": "mse_loss",
    "l1_loss": "l1_loss",
    "huber_loss": "huber_loss",
    "smooth_l1_loss": "smooth_l1_loss",
    "binary_cross_entropy_with_logits": "binary_cross_entropy_with_logits",
    "kl_div": "kl_div",
    "nll_loss": "nll_loss",
    "cross_entropy": "cross_entropy",
    "hinge_loss": "multi_margin_loss",
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same_as_torch(
    name: str, x: Any, t: Any, dtype: str = "float64", second: bool = True, **options: Any
) -> None:
    "Value, gradient (for float targets theirs too) and Hessian times a vector."
    torch = pytest.importorskip("torch", reason="the peer")
    tolerance = TOLERANCE[dtype]

    def cast(a: Any) -> Any:
        a = np.asarray(a)
        return a.astype(dtype) if a.dtype.kind == "f" else a

    x, t = cast(x), cast(t)
    options = {k: cast(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    moving = t.dtype.kind == "f"
    ours = [Tensor(x, requires_grad=True), Tensor(t, requires_grad=moving)]
    theirs = [torch.tensor(x, requires_grad=True), torch.tensor(t, requires_grad=moving)]
    got = getattr(L, name)(*ours, **options)
    peers = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    want = getattr(torch.nn.functional, F[name])(*theirs, **peers)
    assert got.shape == tuple(want.shape) and str(got.dtype) == dtype
    scale = max(1.0, float(want.detach().abs().max()) if want.numel() else 1.0)
    np.testing.assert_allclose(got.numpy(), want.detach().numpy(), tolerance, tolerance * scale)
    g = rng(5).normal(size=got.shape).astype(dtype)
    inputs = ours if moving else ours[:1]
    found = gradients(got, inputs, g, create_graph=second)
    peer_inputs = theirs[: len(inputs)]
    expected = torch.autograd.grad(want, peer_inputs, torch.tensor(g), create_graph=second)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), tolerance, tolerance)
    if second and expected[0].requires_grad and found[0].requires_grad:
        v = rng(6).normal(size=x.shape).astype(dtype)
        (a,) = gradients(found[0], ours[:1], v)
        (b,) = torch.autograd.grad(expected[0], theirs[:1], torch.tensor(v), allow_unused=True)
        b = np.zeros(x.shape) if b is None else b.numpy(force=True)
        np.testing.assert_allclose(a.numpy(), b, 10 * tolerance, 10 * tolerance)


# ---- distances


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (2, 3, 2)])
def test_distances_like_torch(shape: Any, reduction: str, dtype: str) -> None:
    x, t = 2 * rng().normal(size=shape), 2 * rng(1).normal(size=shape)
    same_as_torch("mse_loss", x, t, dtype, reduction=reduction)
    same_as_torch("l1_loss", x, t, dtype, reduction=reduction)
    for size in (0.3, 1.0, 2.5):
        same_as_torch("huber_loss", x, t, dtype, reduction=reduction, delta=size)
        same_as_torch("smooth_l1_loss", x, t, dtype, reduction=reduction, beta=size)
    same_as_torch("smooth_l1_loss", x, t, dtype, reduction=reduction, beta=0.0)


def test_seam_and_centre_of_huber() -> None:
    "At the seam both forms agree; at 0 the slope is 0."
    d = Tensor(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), requires_grad=True)
    (slope,) = gradients(L.huber_loss(d, np.zeros(5), "sum"), [d])
    assert slope.tolist() == [-1, -1, 0, 1, 1]
    (slope,) = gradients(L.l1_loss(d, np.zeros(5), "sum"), [d])
    assert slope.tolist() == [-1, -1, 0, 1, 1]


def test_far_away() -> None:
    x = Tensor(np.array([1e4, -1e4], "float32"), requires_grad=True)
    for f in (L.mse_loss, L.l1_loss, L.huber_loss, L.smooth_l1_loss):
        value = f(x, np.zeros(2, "float32"), "sum")
        (slope,) = gradients(value, [x])
        assert np.isfinite(value.numpy()) and np.isfinite(slope.numpy()).all()
    assert float(L.huber_loss(x, np.zeros(2, "float32"))) == 9999.5


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "kl_div"])
def test_shapes_do_not_stretch(name: str) -> None:
    with pytest.raises(ShapeError, match=rf"{name}: outputs \(4, 1\), targets \(4,\).*all 4"):
        getattr(L, name)(np.ones((4, 1)), np.ones(4))
    with pytest.raises(ShapeError, match=r"\(2, 3\), targets \(3,\)"):
        getattr(L, name)(np.ones((2, 3)), np.ones(3))


def test_whole_numbers_are_numbers() -> None:
    assert float(L.mse_loss([1, 2], [1, 4])) == 2.0
    assert L.mse_loss(Tensor([1.0]), np.array([3])).dtype == np.float32


# ---- yes or no


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [(), ("weight",), ("pos_weight",), ("weight", "pos_weight")])
def test_binary_like_torch(weights: Any, reduction: str, dtype: str) -> None:
    z, y = 4 * rng().normal(size=(5, 3)), rng(1).uniform(size=(5, 3))
    options = {name: rng(k).uniform(0.5, 3, size=(3,)) for k, name in enumerate(weights)}
    name = "binary_cross_entropy_with_logits"
    same_as_torch(name, z, y, dtype, reduction=reduction, **options)
    same_as_torch(name, z, (y > 0.5).astype("float64"), dtype, reduction=reduction, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_at_the_ends(dtype: str) -> None:
    "Exact where PyTorch's formula loses everything, and right at +-1e4 and at 0."
    z = Tensor(np.array([1e4, 1e4, -1e4, -1e4, 0.0, 20.0, -20.0], dtype), requires_grad=True)
    y = np.array([1, 0, 1, 0, 1, 1, 0], dtype)
    value = L.binary_cross_entropy_with_logits(z, y, reduction="none")
    (slope,) = gradients(value.sum(), [z])
    tiny = math.log1p(math.exp(-20))
    want = [0, 1e4, 1e4, 0, math.log(2), tiny, tiny]
    np.testing.assert_allclose(value.numpy(), want, rtol=1e-6)
    s = 1 / (1 + math.exp(-20))
    np.testing.assert_allclose(slope.numpy(), [0, 1, -1, 0, -0.5, s - 1, 1 - s], atol=1e-6)
    with detect_anomaly():
        L.binary_cross_entropy_with_logits(z, y, pos_weight=3.0).backward()


def test_binary_targets() -> None:
    f = L.binary_cross_entropy_with_logits
    for bad in ([1, 2], [-0.5, 1.0], [math.inf, 0.0]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            f([0.0, 0.0], bad)
    assert np.isclose(float(f([0.0, 1.0], [True, False])), float(f([0.0, 1.0], [1, 0])))
    f([0.0], np.array([1.0 + 1e-7]))  # rounding is forgiven
    with pytest.raises(ShapeError, match="all 3"):
        f(np.ones((3, 1)), np.ones(3))


def test_large_arrays_in_pieces() -> None:
    z, y = rng().normal(size=(600, 500)) * 5, (rng(1).uniform(size=(600, 500)) < 0.5) * 1.0
    got = L.binary_surprisal(z, y).numpy()
    np.testing.assert_allclose(got, np.logaddexp(0, z) - z * y, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(L.binary_surprisal(z.T, y.T).numpy().T, got)


# ---- one of many

SHAPES = [((4,), ()), ((5, 4), (5,)), ((2, 4, 3), (2, 3)), ((2, 3, 2, 2), (2, 2, 2))]


def draw(shape: Any, targets: Any, ignored: bool = False) -> tuple[Any, Any]:
    x = 3 * rng().normal(size=shape)
    classes = shape[0] if len(shape) == 1 else shape[1]
    t = rng(1).integers(0, classes, size=targets)
    if ignored and t.ndim:
        t.reshape(-1)[::2] = -100
    return x, t


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("shapes", SHAPES)
def test_cross_entropy_like_torch(
    shapes: Any, ignored: bool, weighted: bool, smoothing: float, reduction: str, dtype: str
) -> None:
    x, t = draw(*shapes, ignored)
    classes = shapes[0][0] if x.ndim == 1 else shapes[0][1]
    options: dict[str, Any] = {"weight": rng(2).uniform(0.2, 3, classes)} if weighted else {}
    same_as_torch(
        "cross_entropy", x, t, dtype, reduction=reduction, label_smoothing=smoothing, **options
    )
    if not smoothing:
        same_as_torch("nll_loss", x, t, dtype, reduction=reduction, **options)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [s for s, _ in SHAPES])
def test_probabilities_like_torch(
    shape: Any, weighted: bool, smoothing: float, reduction: str, dtype: str
) -> None:
    x, q = 3 * rng().normal(size=shape), rng(1).uniform(size=shape)
    q /= q.sum(axis=0 if len(shape) == 1 else 1, keepdims=True)
    classes = shape[0] if len(shape) == 1 else shape[1]
    options: dict[str, Any] = {"weight": rng(2).uniform(0.2, 3, classes)} if weighted else {}
    same_as_torch(
        "cross_entropy", x, q, dtype, reduction=reduction, label_smoothing=smoothing, **options
    )


def test_an_ignored_class() -> None:
    "`ignore_index` may be a class, 0 for padding, say."
    x, t = draw((6, 3), (6,))
    for index in (0, 2):
        for smoothing in (0.0, 0.2):
            same_as_torch("cross_entropy", x, t, ignore_index=index, label_smoothing=smoothing)
        same_as_torch("nll_loss", x, t, ignore_index=index, reduction="none")


def test_small_dtypes() -> None:
    "Masks of pixels are uint8, and 255 is not labelled; PyTorch takes int64 alone."
    x, t = draw((2, 4, 3), (2, 3))
    small = t.astype("uint8")
    small[0, 1] = 255
    t[0, 1] = 255
    got = L.cross_entropy(x, small, ignore_index=255)
    assert float(got) == float(L.cross_entropy(x, t, ignore_index=255))
    with pytest.raises(L.TargetError, match=r"target 255 at \[0, 1\]"):
        L.cross_entropy(x, small)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape(data: Any) -> None:
    "Hypothesis chooses shapes, dtypes and options; every one agrees with the definition."
    classes = data.draw(st.integers(1, 6))
    outer = data.draw(st.lists(st.integers(0, 4), max_size=3))
    axis = 1 if outer else 0
    shape = (*outer[:axis], classes, *outer[axis:])
    r = rng(data.draw(st.integers(0, 2**32)))
    x = r.normal(size=shape) * 10.0 ** data.draw(st.integers(-3, 4))
    dtype = data.draw(st.sampled_from(["int8", "int32", "int64", "uint8"]))
    t = r.integers(0, classes, size=outer).astype(dtype)
    got = L.cross_entropy(Tensor(x), t, reduction="none").numpy()
    m = x.max(axis=axis, keepdims=True)
    logp = x - m - np.log(np.exp(x - m).sum(axis=axis, keepdims=True))
    want = -np.take_along_axis(logp, np.expand_dims(t.astype("int64"), axis), axis)
    np.testing.assert_allclose(got, want.squeeze(axis), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(
        L.cross_entropy(Tensor(x), t, reduction="none", weight=np.ones(classes)).numpy(), got
    )
    slope = grad(lambda z: L.cross_entropy(z, t, reduction="sum"))(x).numpy()
    np.testing.assert_allclose(slope.sum(axis=axis), 0, atol=1e-9)
    assert (np.abs(slope) <= 1 + 1e-12).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_huge_logits(smoothing: float, dtype: str) -> None:
    "Values and slopes at +-1e4 are finite and right."
    x = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], dtype)
    t = np.array([1, 1, 2])
    z = Tensor(x, requires_grad=True)
    with detect_anomaly():
        value = L.cross_entropy(z, t, reduction="none", label_smoothing=smoothing)
        (slope,) = gradients(value.sum(), [z])
    e = smoothing
    nll = np.array([2e4, math.log(2), math.log(3)])
    even = np.array([3e4 / 3, (2e4 + 3 * math.log(2)) / 3, math.log(3)])
    np.testing.assert_allclose(value.numpy(), (1 - e) * nll + e * even, rtol=1e-6)
    p = np.array([[1, 0, 0], [0, 0.5, 0.5], [1 / 3] * 3])
    np.testing.assert_allclose(slope.numpy(), p - (1 - e) * np.eye(3)[t] - e / 3, atol=1e-6)
    if not smoothing:
        same_as_torch("cross_entropy", x, t, dtype)
        same_as_torch("hinge_loss", x, t, dtype, second=False)


def test_impossible_classes() -> None:
    "A logit of -inf says never: it costs nothing unless it happens."
    z = Tensor(np.array([[-math.inf, 0.0, 0.0]]), requires_grad=True)
    value = L.cross_entropy(z, [1])
    (slope,) = gradients(value, [z])
    assert np.isclose(float(value), math.log(2))
    assert slope.tolist() == [[0, -0.5, 0.5]]
    assert float(L.cross_entropy(z, [0])) == math.inf


def test_all_ignored() -> None:
    "The mean of nothing is NaN, as in PyTorch, and its slope is 0; a sum is 0."
    torch = pytest.importorskip("torch", reason="the peer")
    x = rng().normal(size=(3, 4))
    for options in ({}, {"weight": np.ones(4)}, {"label_smoothing": 0.1}):
        z = Tensor(x, requires_grad=True)
        value = L.cross_entropy(z, [-100] * 3, **options)
        (slope,) = gradients(value, [z])
        assert np.isnan(float(value)) and not slope.numpy().any()
        assert float(L.cross_entropy(z, [-100] * 3, reduction="sum", **options)) == 0.0
    peer = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(peer, torch.full((3,), -100))
    loss.backward()
    assert torch.isnan(loss) and not peer.grad.any()
    assert np.isnan(float(L.cross_entropy(np.ones((0, 3)), np.zeros(0, "int64"))))


def test_what_is_ignored_may_be_nan() -> None:
    "Not even the value of an ignored row plays a part in the loss."
    z = Tensor(np.array([[math.nan, math.nan], [0.0, 0.0]]))
    assert np.isclose(float(L.cross_entropy(z, [-100, 1])), math.log(2))
    assert np.isclose(float(L.nll_loss(z, [-100, 1], weight=[1.0, 2.0])), 0.0)


def test_wrong_targets_are_named() -> None:
    x = np.zeros((3, 4))
    for f in (L.cross_entropy, L.nll_loss):
        with pytest.raises(L.TargetError, match=r"target 4 at \[2\].*4 classes: 0 to 3, or -100"):
            f(x, [0, 1, 4])
        with pytest.raises(L.TargetError, match=r"target -1 at \[0\]"):
            f(x, [-1, 1, 2])
        with pytest.raises(L.TargetError, match="target -100"):
            f(x, [-100, 1, 2], ignore_index=-1)
    with pytest.raises(L.TargetError, match=r"target 5 at \[1, 0\]"):
        L.cross_entropy(np.zeros((2, 3, 2)), [[0, 1], [5, 0]])
    with pytest.raises(L.TargetError, match=r"target 4, and"):
        L.cross_entropy(np.zeros(4), 4)
    with pytest.raises(L.TargetError, match=r"hinge_loss: target 4.*0 to 3$"):
        L.hinge_loss(x, [0, 1, 4])
    with pytest.raises(L.TargetError, match="target 9"):
        vmap(L.cross_entropy)(x, np.array([0, 1, 9]))
    with pytest.raises(L.TargetError, match="target -1"):
        vmap(vmap(L.nll_loss))(np.zeros((2, 3, 4)), np.array([[0, 1, 2], [0, -1, 2]]))


def test_wrong_shapes_and_dtypes_are_named() -> None:
    x = np.zeros((3, 4))
    with pytest.raises(ShapeError, match=r"logits \(3, 4\) need targets \(3,\), not \(4,\)$"):
        L.cross_entropy(x, [0, 1, 2, 3])
    with pytest.raises(ShapeError, match=r"targets\.reshape\(\(3,\)\)"):
        L.cross_entropy(x, [[0], [1], [2]])
    with pytest.raises(ShapeError, match=r"moveaxis\(logits, -1, 1\)"):
        L.cross_entropy(np.zeros((2, 5, 7)), np.zeros((2, 5), "int64"))
    with pytest.raises(ShapeError, match="float dtype, not int64"):
        L.cross_entropy(x, np.zeros((3, 4), "int64"))
    with pytest.raises(ShapeError, match="one number"):
        L.cross_entropy(1.0, 0)
    for bad in (np.zeros(3), np.zeros(3, bool)):
        with pytest.raises(DtypeError, match="whole numbers, not"):
            L.cross_entropy(x, bad)
    for f in (L.cross_entropy, L.nll_loss, L.hinge_loss):
        with pytest.raises(ShapeError, match=r"weight \(3,\) for 4 classes"):
            f(x, [0, 1, 2], weight=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        L.cross_entropy(x, np.full((3, 4), 2.0))
    with pytest.raises(ShapeError, match=r"\(C,\) or \(N, C\)"):
        L.hinge_loss(np.zeros((2, 3, 2)), np.zeros((2, 2), "int64"))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="reduction='average'"):
        L.mse_loss([1.0], [1.0], "average")
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5"):
        L.cross_entropy(np.zeros((1, 2)), [0], label_smoothing=1.5)
    with pytest.raises(ValueError, match="delta=0"):
        L.huber_loss([1.0], [1.0], delta=0)
    with pytest.raises(ValueError, match="beta=-1"):
        L.smooth_l1_loss([1.0], [1.0], beta=-1)
    with pytest.raises(ValueError, match="p=3"):
        L.hinge_loss(np.zeros((1, 2)), [0], p=3)
    with pytest.raises(ValueError, match="batchmean"):
        L.MSELoss("batchmean")


# ---- margins and divergences


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("p,margin", [(1, 1.0), (2, 1.0), (1, 0.3), (2, 2.5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_hinge_like_torch(
    weighted: bool, p: int, margin: float, reduction: str, dtype: str
) -> None:
    options: dict[str, Any] = {"p": p, "margin": margin, "reduction": reduction}
    if weighted:
        options["weight"] = rng(2).uniform(0.5, 2, 4)
    x, t = draw((6, 4), (6,))
    same_as_torch("hinge_loss", x, t, dtype, second=False, **options)
    same_as_torch("hinge_loss", x[0], t[0], dtype, second=False, **options)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_divergence_like_torch(reduction: str, log_target: bool, dtype: str) -> None:
    x, q = rng().normal(size=(3, 4)), rng(1).normal(size=(3, 4))
    x, q = (log_softmax(a, axis=1).numpy() for a in (x, q))
    q = q if log_target else np.exp(q)
    same_as_torch("kl_div", x, q, dtype, reduction=reduction, log_target=log_target)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_divergence_of_certainty() -> None:
    "0 log 0 is 0, in value and slope; a negative target is not passed over."
    x = Tensor(np.log([0.5, 0.5]), requires_grad=True)
    q = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    value = L.kl_div(x, q, "sum")
    assert np.isclose(float(value), math.log(2))
    for slope in gradients(value, [x, q]):
        assert np.isfinite(slope.numpy()).all()
    assert float(L.kl_div(Tensor(np.array([-math.inf, 0.0])), q.detach(), "sum")) == 0.0
    assert np.isnan(float(L.kl_div(x, np.array([-0.5, 1.5]), "sum")))


# ---- slopes of slopes, batches, modes


def test_second_order_of_cross_entropy() -> None:
    "The Hessian of one example is diag(p) - p p', in every combination of modes."
    z, t = rng().normal(size=5), np.array(2)
    p = np.exp(z) / np.exp(z).sum()
    want = np.diag(p) - np.outer(p, p)
    f = lambda x: L.cross_entropy(x, t)  # noqa: E731
    for got in (hessian(f)(z), jacfwd(jacfwd(f))(z)):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-12)
    v = rng(1).normal(size=5)
    np.testing.assert_allclose(hvp(f, (z,), (v,)).numpy(), want @ v, atol=1e-12)
    _, moved = jvp(f, (z,), (v,))
    assert np.isclose(float(moved), (p - np.eye(5)[2]) @ v)


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"weight": np.arange(1.0, 5.0)}, {"ignore_index": 1}]
)
def test_every_example_at_once(options: Any) -> None:
    x, t = draw((6, 4), (6,))
    f = lambda z, t: L.cross_entropy(z, t, reduction="sum", **options)  # noqa: E731
    values, slopes = vmap(f)(x, t), vmap(grad(f))(x, t)
    for k in range(6):
        assert np.isclose(float(values[k]), float(f(x[k], t[k])))
        np.testing.assert_allclose(slopes.numpy()[k], grad(f)(x[k], t[k]).numpy(), atol=1e-12)
    both = vmap(vmap(f))(np.stack([x, 2 * x]), np.stack([t, t]))
    np.testing.assert_allclose(both.numpy()[0], values.numpy(), rtol=1e-12)


@pytest.mark.filterwarnings("error::gradbook.tensor.transforms.VmapFallbackWarning")
@pytest.mark.parametrize("name", ["binary_cross_entropy_with_logits", "mse_loss", "hinge_loss"])
def test_other_losses_at_once(name: str) -> None:
    f = getattr(L, name)
    x, t = draw((6, 4), (6,))
    t = t if name == "hinge_loss" else np.eye(4)[t]
    got = vmap(grad(f))(x, t).numpy()
    want = np.stack([grad(f)(a, b).numpy() for a, b in zip(x, t)])
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_large_batches_go_in_pieces() -> None:
    "The pieces give what one piece gives, and ask for less memory than the logits."
    import tracemalloc

    x, t = rng().normal(size=(300, 1000)), rng(1).integers(0, 1000, 300)
    whole = L.surprisal_rows(np, x, t, 1)
    np.testing.assert_array_equal(L.surprisal(x, t, axis=1).numpy(), whole)
    z = Tensor(x, requires_grad=True)
    targets = Tensor(t)
    tracemalloc.start()
    loss = L.cross_entropy(z, targets)
    forward = tracemalloc.get_traced_memory()[1]
    gradients(loss, [z])
    both = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert forward < 0.6 * x.nbytes and both < 1.3 * x.nbytes


def test_no_history_without_need() -> None:
    x, t = draw((6, 4), (6,))
    z = Tensor(x, requires_grad=True)
    with no_grad():
        assert not L.cross_entropy(z, t).requires_grad
    assert not L.cross_entropy(Tensor(x), t).requires_grad


# ---- modules


def test_modules_like_torch() -> None:
    "Names, arguments and results of PyTorch's modules."
    torch = pytest.importorskip("torch", reason="the peer")
    x, t = draw((6, 4), (6,))
    y = rng(3).uniform(size=(6, 4))
    w = rng(2).uniform(0.5, 2, 4)
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("MSELoss", x, y, {}),
        ("L1Loss", x, y, {"reduction": "sum"}),
        ("HuberLoss", x, y, {"delta": 0.5}),
        ("SmoothL1Loss", x, y, {"beta": 0.5, "reduction": "none"}),
        ("BCEWithLogitsLoss", x, y, {"pos_weight": w}),
        ("CrossEntropyLoss", x, t, {"weight": w, "label_smoothing": 0.1, "ignore_index": 2}),
        ("NLLLoss", x, t, {"weight": w}),
        ("MultiMarginLoss", x, t, {"p": 2, "margin": 0.5, "weight": w}),
        ("KLDivLoss", x, y, {"reduction": "batchmean", "log_target": True}),
    ]
    for name, a, b, options in cases:
        ours = getattr(L, name)(**options)
        peers = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        theirs = getattr(torch.nn, name)(**peers)
        got, want = ours(Tensor(a), b), theirs(torch.tensor(a), torch.tensor(b))
        np.testing.assert_allclose(got.numpy(), want.numpy(), 1e-6)  # weights are kept as given
        assert name in repr(ours) and not list(ours.parameters())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        again = copy.deepcopy(ours)
        np.testing.assert_array_equal(again(Tensor(a), b).numpy(), got.numpy())


def test_a_loss_in_a_network() -> None:
    "Weights of classes move along; the loss prints its options."
    loss = L.CrossEntropyLoss(weight=[1.0, 2.0], label_smoothing=0.1)
    net = Sequential(loss)
    net.to(dtype="float64")
    assert loss.weight is not None and loss.weight.dtype == np.float64
    assert "label_smoothing=0.1" in repr(net) and "weight (2,) buffer" in repr(net)
    with pytest.raises(TypeError):
        L.MSELoss(delta=1.0)  # type: ignore[call-arg]
