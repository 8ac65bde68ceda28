"Normalisation and dropout against PyTorch: values, gradients, statistics, state, and faults."

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

import gradbook.tensor.ops  # noqa: F401
from gradbook.nn import norm
from gradbook.nn.init import manual_seed
from gradbook.nn.linear import Linear
from gradbook.nn.module import Sequential, StateError
from gradbook.nn.norm import (
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    Dropout2d,
    GroupNorm,
    LayerNorm,
    RMSNorm,
    batch_norm,
    dropout,
    group_norm,
    layer_norm,
    rms_norm,
    standardise,
    standardised,
    totals,
)
from gradbook.tensor.check import gradient_table
from gradbook.tensor.core import GraphError, ShapeError, Tensor, checkpoint, gradients, no_grad
from gradbook.tensor.random import key
from gradbook.tensor.transforms import grad, hvp, jvp, vmap

torch = pytest.importorskip("torch", reason="PyTorch is the peer")

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
LAYERS = {  # how to make it here and there, and the shape of an input
    "batch": (lambda nn: nn.BatchNorm1d(5), (7, 5)),
    "batch without weights": (lambda nn: nn.BatchNorm1d(5, affine=False), (7, 5)),
    "batch without memory": (lambda nn: nn.BatchNorm1d(5, track_running_stats=False), (7, 5)),
    "batch, plain average": (lambda nn: nn.BatchNorm1d(5, momentum=None, eps=1e-3), (7, 5)),
    "batch of sequences": (lambda nn: nn.BatchNorm1d(5, momentum=0.3), (4, 5, 6)),
    "batch of images": (lambda nn: nn.BatchNorm2d(3), (4, 3, 5, 2)),
    "layer": (lambda nn: nn.LayerNorm(6), (3, 4, 6)),
    "layer of two axes": (lambda nn: nn.LayerNorm((4, 6), eps=1e-3), (3, 4, 6)),
    "layer without bias": (lambda nn: nn.LayerNorm(6, bias=False), (3, 6)),
    "layer without weights": (lambda nn: nn.LayerNorm([6], elementwise_affine=False), (3, 6)),
    "rms": (lambda nn: nn.RMSNorm(6), (3, 4, 6)),
    "rms of two axes": (lambda nn: nn.RMSNorm((4, 6), eps=1e-4), (3, 4, 6)),
    "rms without weights": (lambda nn: nn.RMSNorm(6, elementwise_affine=False), (3, 6)),
    "group": (lambda nn: nn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "group of vectors": (lambda nn: nn.GroupNorm(3, 12), (4, 12)),
    "group per channel": (lambda nn: nn.GroupNorm(6, 6, affine=False), (3, 6, 4)),
}


def both(name, dtype):
    "A layer here and in PyTorch with the same random weights, and an input."
    make, shape = LAYERS[name]
    rng = np.random.default_rng(len(name))
    ours, theirs = make(norm).to(dtype=dtype), make(torch.nn).to(getattr(torch, dtype))
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            value = rng.normal(1, 0.5, p.shape).astype(dtype)
            p.assign_(value)
            q.copy_(torch.tensor(value))
    return ours, theirs, rng.normal(3, 2, shape).astype(dtype), rng


def close(ours, theirs, tolerance):
    theirs = theirs.detach().numpy()
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYERS)
def test_values_gradients_and_statistics_over_several_steps(name, dtype):
    ours, theirs, x, rng = both(name, dtype)
    tolerance = TOLERANCE[dtype]
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        given = x + step + rng.normal(0, 0.1, x.shape).astype(dtype)
        a, b = Tensor(given, requires_grad=True), torch.tensor(given, requires_grad=True)
        g = rng.normal(size=x.shape).astype(dtype)
        y, z = ours(a), theirs(b)
        close(y, z, tolerance)
        ours.zero_grad(), theirs.zero_grad()
        y.backward(g)
        z.backward(torch.tensor(g))
        close(a.grad, b.grad, 10 * tolerance)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, 10 * tolerance)
        for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
            close(p, q, tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_state_goes_to_pytorch_and_back(name):
    ours, theirs, x, _ = both(name, "float32")
    ours(Tensor(x)), ours(Tensor(x + 1))
    state = {name: torch.tensor(t.numpy().copy()) for name, t in ours.state_dict().items()}
    theirs.load_state_dict(state)
    fresh = LAYERS[name][0](norm)
    fresh.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.eval(), theirs.eval(), fresh.eval()
    close(ours(Tensor(x)), theirs(torch.tensor(x)), 2e-5)
    assert (fresh(Tensor(x)).numpy() == ours(Tensor(x)).numpy()).all()


@pytest.mark.parametrize("name", LAYERS)
def test_second_order(name):
    ours, theirs, x, rng = both(name, "float64")
    g, h = rng.normal(size=x.shape), rng.normal(size=x.shape)
    a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    (da,) = gradients((ours(a) ** 3).sum(), [a], create_graph=True)
    (db,) = torch.autograd.grad((theirs(b) ** 3).sum(), [b], create_graph=True)
    (ours_too,) = gradients((da * g).sum(), [a])
    (theirs_too,) = torch.autograd.grad((db * torch.tensor(g)).sum(), [b])
    close(ours_too, theirs_too, 1e-8)
    forward = hvp(lambda x: (ours(x) ** 3).sum(), (Tensor(x),), (Tensor(g),))
    close(forward, theirs_too, 1e-8)
    along = jvp(ours, (Tensor(x),), (Tensor(h),))[1]
    (back,) = gradients(ours(a), [a], Tensor(g))
    assert math.isclose((along * g).sum().item(), (back * h).sum().item(), rel_tol=1e-9)


def test_the_primitives_are_in_the_table():
    names = "standardise", "standardise_back", "norm_channels", "norm_channels_back"
    table = gradient_table(*names)
    assert table.ok and len(table.rows) >= 8, table


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    "axis", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), (1, 3), (0, 2, 3)]
)
def test_the_primitive_is_the_composition(axis, centred):
    rng = np.random.default_rng(sum(axis))
    x = Tensor(rng.normal(2, 1, (3, 4, 5, 2)), requires_grad=True, dtype="float64")
    for k in range(3):
        a = standardise(x, axis=axis, eps=0.1, centred=centred)[k]
        b = standardised(x, axis, 0.1, centred)[k]
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-13)
        g = rng.normal(size=a.shape)
        (da,), (db,) = (gradients(y, [x], g) if y.requires_grad else (x * 0,) for y in (a, b))
        np.testing.assert_allclose(da.numpy(), db.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cache", [1, 1 << 16])
@pytest.mark.parametrize("turn", [(0, 1, 2, 3), (3, 0, 1, 2), (1, 0, 2, 3), (2, 3, 0, 1)])
def test_images_are_normalised_alike_in_any_layout(turn, cache, monkeypatch):
    "Channel by channel, however many fit the cache, and wherever they lie in memory."
    monkeypatch.setattr(norm, "CACHE", cache)
    rng = np.random.default_rng(1)
    shape = np.array((6, 5, 4, 3))
    lying = rng.normal(2, 3, shape[np.argsort(turn)]).transpose(turn)
    g, (w, b) = rng.normal(size=shape), rng.normal(size=(2, 5))
    x, weight, bias = (norm.wrap(a).requires_grad_() for a in (lying, w, b))
    out, m, v = norm.norm_channels(x, weight, bias, eps=1e-3)
    theirs = [torch.tensor(a, requires_grad=True) for a in (lying, w, b)]
    expected = torch.nn.functional.batch_norm(
        theirs[0], None, None, theirs[1], theirs[2], training=True, eps=1e-3
    )
    close(out, expected, 1e-10)
    np.testing.assert_allclose(m.numpy(), lying.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(v.numpy(), lying.var(axis=(0, 2, 3)), rtol=1e-12)
    ours = gradients(out, [x, weight, bias], g)
    for a, b_ in zip(ours, torch.autograd.grad(expected, theirs, torch.tensor(g))):
        close(a, b_, 1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_images_keep_their_dtype(dtype):
    layer = BatchNorm2d(3).to(dtype=dtype)
    x = Tensor(np.linspace(-400, 400, 96).reshape(2, 3, 4, 4), dtype=dtype, requires_grad=True)
    y = layer(x)
    y.backward(np.linspace(0, 1, 96).reshape(y.shape))
    assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == dtype
    assert np.isfinite(x.grad.numpy()).all() and abs(float(y.numpy().astype("f").std()) - 1) < 1e-2


@pytest.mark.parametrize("axis", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_sums_of_any_layout(axis):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    for y in (x, x.transpose(2, 0, 1), x[:, ::2], x[:0], x[:, :, :0], np.asfortranarray(x)):
        np.testing.assert_allclose(totals(y, axis), y.sum(axis=axis, keepdims=True), atol=1e-12)


def test_a_large_offset_costs_no_digits():
    "The variance is that of the differences: 10,000 times the spread is taken away first."
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    u = batch_norm(Tensor(x + np.float32(8192)), training=True).numpy()
    exact = x.astype("float64") + 8192
    exact = ((x + np.float32(8192)).astype("float64") - exact.mean(0)) / exact.std(0)
    assert np.abs(u - exact).max() < 2e-3


def test_half_precision_does_not_overflow():
    x = Tensor(np.linspace(-60000, 60000, 64), dtype="float16", requires_grad=True)
    y = layer_norm(x, 64)
    assert y.dtype == "float16" and abs(float(y.numpy().astype("f").std()) - 1) < 1e-2
    y.backward(np.linspace(0, 1, 64))
    assert x.grad.dtype == "float16" and np.isfinite(x.grad.numpy()).all()


def test_equal_values_and_whole_numbers():
    assert not layer_norm(Tensor(np.full((2, 8), 7.0)), 8).numpy().any()
    assert layer_norm(np.arange(8), 8).dtype == "float32"
    x = Tensor(np.full((4, 3), 2.0), requires_grad=True)
    batch_norm(x, training=True).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_a_gradient_has_no_part_along_1_and_along_u():
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(9, 4)), requires_grad=True, dtype="float64")
    u = batch_norm(x, training=True, eps=0.0)
    (g,) = gradients(u, [x], rng.normal(size=(9, 4)))
    assert np.abs(g.numpy().sum(axis=0)).max() < 1e-12
    assert np.abs((g * u).numpy().sum(axis=0)).max() < 1e-12


def test_statistics_are_not_recorded_and_change_in_one_place():
    x = Tensor(np.random.default_rng(0).normal(size=(5, 3)), requires_grad=True)
    layer = BatchNorm1d(3)
    mean_before, tensor = layer.running_mean.numpy().copy(), layer.running_mean
    y = layer(x)
    assert layer.running_mean is tensor and not tensor.requires_grad and tensor._primitive is None
    assert (tensor.numpy() != mean_before).any() and layer.num_batches_tracked.item() == 1
    y.sum().backward()
    with no_grad():
        layer(x)
    assert layer.num_batches_tracked.item() == 2
    layer.eval()(x)
    assert layer.num_batches_tracked.item() == 2


def test_a_record_keeps_the_statistics_it_was_made_with():
    layer, x = BatchNorm1d(3).eval(), Tensor(np.ones((4, 3)), requires_grad=True)
    y = layer(x)
    layer.train()(Tensor(np.random.default_rng(0).normal(3, 9, (5, 3))))
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 1 / math.sqrt(1 + 1e-5), rtol=1e-6)


def test_transforms():
    x = Tensor(np.random.default_rng(0).normal(size=(3, 4, 5)), dtype="float64")
    layer = LayerNorm(5).to(dtype="float64")
    np.testing.assert_allclose(vmap(layer)(x).numpy(), layer(x).numpy(), rtol=1e-12)
    f = lambda x: (layer(x) ** 3).sum()  # noqa: E731
    each = vmap(grad(f))(x).numpy()
    np.testing.assert_allclose(each, grad(f)(x).numpy(), rtol=1e-10, atol=1e-12)
    frozen = BatchNorm1d(5).to(dtype="float64").eval()
    without = BatchNorm1d(5, track_running_stats=False).to(dtype="float64")
    for norm_layer in (frozen, without):
        rows = np.stack([norm_layer(row).numpy() for row in x])
        np.testing.assert_allclose(vmap(norm_layer)(x).numpy(), rows, rtol=1e-10)
    with pytest.raises(GraphError, match="inside vmap"):
        vmap(BatchNorm1d(5).to(dtype="float64"))(x)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: BatchNorm1d(4)(np.ones((1, 4))), r"more than 1 value per channel .*\(1, 4\)"),
        (lambda: BatchNorm2d(4)(np.ones((1, 4, 1, 1))), "Expected more than 1 value per channel"),
        (lambda: BatchNorm1d(4)(np.ones((0, 4))), "Expected more than 1 value per channel"),
        (lambda: BatchNorm1d(4)(np.ones((8, 3))), r"\(8, 3\): 4 channels needed on axis 1"),
        (lambda: BatchNorm2d(3)(np.ones((8, 5, 5, 3))), "axis 3 has them"),
        (lambda: BatchNorm2d(4)(np.ones((8, 4))), "has 2 axes; 4 needed"),
        (lambda: BatchNorm1d(4)(np.ones((8, 4, 2, 2))), "has 4 axes; 2 or 3 needed"),
        (lambda: batch_norm(np.ones(4), training=True), "examples and channels"),
        (lambda: batch_norm(np.ones((4, 2)), weight=Tensor([1.0] * 3)), r"weight.*\(3,\)"),
        (lambda: LayerNorm(4)(np.ones((2, 5))), r"\(2, 5\).*\(4,\)"),
        (lambda: LayerNorm((3, 4))(np.ones(4)), r"\(4,\).*\(3, 4\)"),
        (lambda: LayerNorm(()), "empty"),
        (lambda: LayerNorm(0), "above 0"),
        (lambda: RMSNorm(4)(np.ones((2, 5))), r"\(2, 5\).*\(4,\)"),
        (lambda: layer_norm(np.ones((2, 4)), 4, weight=Tensor([1.0])), r"weight has shape \(1,\)"),
        (lambda: rms_norm(np.ones((2, 4)), 4, weight=Tensor([1.0])), r"weight has shape \(1,\)"),
        (lambda: GroupNorm(4, 6), "6 channels don't make 4"),
        (lambda: group_norm(np.ones((2, 6)), 4), "6 channels don't make 4"),
        (lambda: group_norm(np.ones(6), 2), "examples and channels"),
        (lambda: GroupNorm(2, 6)(np.ones((2, 4, 3))), "6 channels needed on axis 1"),
        (lambda: BatchNorm1d(2.5), "num_features is 2.5"),
    ],
)
def test_wrong_shapes_say_what_was_wrong(call, words):
    with pytest.raises(ShapeError, match=words):
        call()


def test_a_refused_batch_changes_nothing():
    layer = BatchNorm1d(4)
    with pytest.raises(ShapeError):
        layer(np.ones((1, 4)))
    assert layer.num_batches_tracked.item() == 0 and not layer.running_mean.numpy().any()


def test_batch_norm_needs_statistics_to_be_used():
    with pytest.raises(ValueError, match="running_mean"):
        batch_norm(np.ones((2, 4)))


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_drops_that_share_and_keeps_the_mean(p):
    n = 200_000
    y = dropout(Tensor(np.ones(n, "float32")), p, key=key(int(100 * p))).numpy()
    sigma = math.sqrt(p * (1 - p) / n)
    assert abs((y == 0).mean() - p) < 5 * sigma
    assert abs(y.mean() - 1) < 5 * sigma / (1 - p)
    assert set(np.round(np.unique(y) * (1 - p), 3)) == {0.0, 1.0}
    kept = (y != 0).astype(float) - (1 - p)  # neighbours are independent
    for lag in (1, 2, 7, 64):
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 6 * p * (1 - p) / math.sqrt(n)


def test_masks_of_successive_calls_are_independent():
    layer, x, n = Dropout(0.5, key=3), Tensor(np.ones(100_000, "float32")), 100_000
    a, b = (layer(x).numpy() - 1 for _ in range(2))
    assert abs((a * b).mean()) < 6 / math.sqrt(n)


def test_dropout_at_the_ends():
    x = Tensor(np.ones(1000, "float32"), requires_grad=True)
    assert Dropout(0.0)(x) is x
    y = Dropout(1.0, key=0)(x)
    assert not y.numpy().any()
    y.sum().backward()
    assert not x.grad.numpy().any()
    for p in (1e-9, 1 - 1e-9):
        assert np.isfinite(dropout(x, p, key=key(0)).numpy()).all()
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Dropout(p)
        with pytest.raises(ValueError, match="between 0 and 1"):
            dropout(x, p, key=key(0))


def test_the_gradient_sees_the_same_mask():
    x = Tensor(np.random.default_rng(0).normal(size=1000), requires_grad=True, dtype="float64")
    y = Dropout(0.3, key=1)(x)
    y.backward(np.ones(1000))
    np.testing.assert_allclose(x.grad.numpy() * x.numpy(), y.numpy(), rtol=1e-12)


def test_eval_is_the_identity_and_draws_nothing():
    layer, x = Dropout(0.5, key=0), Tensor([1.0, 2.0])
    assert layer.eval()(x) is x and layer.calls.item() == 0


def test_masks_resume_where_they_were():
    def masks(model, n):
        return [model(Tensor(np.ones((4, 6), "float32"))).numpy() for _ in range(n)]

    manual_seed(5)
    model = Sequential(Linear(6, 6), Dropout(0.5), Linear(6, 6), Dropout(0.2))
    masks(model, 3)
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    expected = masks(model, 4)
    manual_seed(77)
    other = Sequential(Linear(6, 6), Dropout(0.5), Linear(6, 6), Dropout(0.2))
    other.load_state_dict(state)
    assert all((a == b).all() for a, b in zip(expected, masks(other, 4), strict=True))
    manual_seed(5)
    same = Sequential(Linear(6, 6), Dropout(0.5), Linear(6, 6), Dropout(0.2))
    masks(same, 3)
    assert all((a == b).all() for a, b in zip(expected, masks(same, 4), strict=True))


def test_a_copy_goes_its_own_way():
    layer = Dropout(0.5, key=0)
    other = copy.deepcopy(layer)
    x = Tensor(np.ones(64, "float32"))
    first = layer(x).numpy()
    assert other.calls.item() == 0 and (other(x).numpy() == first).all()


def test_a_cast_model_keeps_its_stream():
    layer = Dropout(0.5, key=0).to(dtype="float64")
    assert layer.key.dtype == "uint32" and layer.calls.dtype == "int64"
    x = np.ones(64)
    assert layer(Tensor(x, dtype="float64")).dtype == "float64"
    assert layer.calls.item() == 1


def test_whole_channels_are_dropped():
    y = Dropout2d(0.5, key=0)(Tensor(np.ones((8, 16, 3, 3), "float32"))).numpy()
    channels = y.reshape(8 * 16, 9)
    assert (channels == channels[:, :1]).all() and set(np.unique(y)) == {0.0, 2.0}


def test_names_and_print():
    manual_seed(0)
    for layer, text in (
        (BatchNorm1d(4), "BatchNorm1d(4)"),
        (LayerNorm((2, 3)), "LayerNorm(2, 3)"),
        (RMSNorm(5), "RMSNorm(5)"),
        (GroupNorm(2, 4), "GroupNorm(2, 4)"),
        (Dropout(0.1), "Dropout(p=0.1)"),
    ):
        assert repr(layer).startswith(text)
    with pytest.raises(StateError, match="running_mean"):
        BatchNorm1d(4).load_state_dict({"weight": np.ones(4), "bias": np.ones(4)})


def test_checkpoint_of_a_norm():
    layer = LayerNorm(6)
    x = Tensor(np.random.default_rng(0).normal(size=(3, 6)), requires_grad=True)
    (a,) = gradients((layer(x) ** 3).sum(), [x])
    (b,) = gradients((checkpoint(layer, x) ** 3).sum(), [x])
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)


def test_checkpoint_repeats_the_mask_and_moves_statistics_once():
    x = Tensor(np.random.default_rng(0).normal(size=(8, 6)), requires_grad=True)

    def block():
        return Sequential(BatchNorm1d(6), Dropout(0.5, key=0), Linear(6, 6, key=1))

    plain, saving = block(), block()
    a = (plain(x) ** 3).sum()
    b = (checkpoint(saving, x) ** 3).sum()
    assert a.item() == b.item()
    for one, other in zip(
        gradients(a, [x, *plain.parameters()]), gradients(b, [x, *saving.parameters()]), strict=True
    ):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
    for name, tensor in plain.state_dict().items():
        assert (tensor.numpy() == saving.state_dict()[name].numpy()).all(), name
    nested = block()
    c = (checkpoint(lambda x: checkpoint(nested, x) * 1.0, x) ** 3).sum()
    np.testing.assert_allclose(
        gradients(c, [x])[0].numpy(), gradients((block()(x) ** 3).sum(), [x])[0].numpy(), rtol=1e-5
    )
    assert nested[0].num_batches_tracked.item() == 1


@pytest.mark.parametrize("axis", [(1,), (0, 1)])
def test_vmap_of_the_primitives(axis):
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(3, 4, 5)), dtype="float64")
    f = lambda x: standardise(x, axis=axis, eps=0.1)  # noqa: E731
    for k, all_at_once in enumerate(vmap(f)(x)):
        np.testing.assert_allclose(all_at_once.numpy(), np.stack([f(row)[k].numpy() for row in x]))
    loss = lambda x: (f(x)[0] ** 3 + f(x)[1] * f(x)[2]).sum()  # noqa: E731
    rows = np.stack([grad(loss)(row).numpy() for row in x])
    np.testing.assert_allclose(vmap(grad(loss))(x).numpy(), rows, rtol=1e-9, atol=1e-12)
