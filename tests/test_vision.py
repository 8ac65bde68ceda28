"Residual networks against PyTorch, heat maps, label errors, bad input, and the long results."

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradbook.data.datasets import SOURCES, ArrayDataset, installed, mnist
from gradbook.data.loader import DataLoader
from gradbook.data.transforms import ChannelsFirst, Compose, Cutout, Normalise, RandomCrop
from gradbook.models.lenet import LeNet5
from gradbook.models.vision import (
    OF_DATA,
    BasicBlock,
    ResNet,
    VisionSettings,
    augmentation,
    enlarged,
    grad_cam,
    out_of_fold,
    probabilities,
    recommended,
    resnet,
    saliency,
    suspects,
    train_resnet,
)
from gradbook.nn.init import manual_seed
from gradbook.nn.losses import cross_entropy
from gradbook.nn.module import Module
from gradbook.nn.norm import BatchNorm2d
from gradbook.optim.adam import AdamW
from gradbook.tensor import random
from gradbook.tensor.core import ShapeError, Tensor
from gradbook.train.loop import evaluating
from hypothesis import given, settings
from hypothesis import strategies as st

RESULTS = Path(__file__).parents[1] / "nbs" / "results"


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def lively(model: Module, seed: int = 0) -> Module:
    "No scale is 0 any more, so that all parts have a say."
    for k, (_, p) in enumerate(model.named_parameters()):
        if p.ndim == 1:
            p.assign_(p.numpy() + 0.5 * numbers(*p.shape, seed=seed + k))
    return model


# ------------------------------------------------------------------ against PyTorch


def as_in_torch(torch: Any, model: ResNet, window: int) -> Any:
    "The same network of PyTorch's layers, with the same weights."
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, own: BasicBlock) -> None:
            super().__init__()
            o, i = own.conv1.weight.shape[:2]
            stride = own.conv1.stride
            self.conv1 = nn.Conv2d(i, o, 3, stride, padding=1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
            self.conv2 = nn.Conv2d(o, o, 3, padding=1, bias=False)
            fit = nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)
            same = stride == (1, 1) and i == o
            self.shortcut = nn.Identity() if same else nn.Sequential(*fit)

        def forward(self, x: Any) -> Any:
            y = self.norm1(self.conv1(x)).relu()
            return (self.norm2(self.conv2(y)) + self.shortcut(x)).relu()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = model.conv.weight.shape[0]
            self.conv = nn.Conv2d(model.channels, width, window, padding=window // 2, bias=False)
            self.norm = nn.BatchNorm2d(width)
            self.blocks = nn.Sequential(*(Block(b) for b in model.blocks))
            self.linear = nn.Linear(*reversed(model.linear.weight.shape))

        def features(self, x: Any) -> Any:
            x = nn.functional.max_pool2d(self.norm(self.conv(x)), model.pool)
            return self.blocks(x.relu())

        def forward(self, x: Any) -> Any:
            return self.linear(self.features(x).mean(dim=(2, 3)))

    net = Net()
    net.load_state_dict({k: torch.tensor(v.numpy()) for k, v in model.state_dict().items()})
    return net


@pytest.mark.parametrize(("inputs", "channels", "stride"), [(4, 4, 1), (4, 6, 1), (4, 8, 2)])
def test_a_block_is_pytorchs(inputs: int, channels: int, stride: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    block = lively(BasicBlock(inputs, channels, stride, key=0))
    model = ResNet((inputs,), channels=1, key=0)
    model.blocks[0] = block
    theirs = as_in_torch(torch, model, 5).blocks[0]
    x, g = numbers(5, inputs, 6, 8), numbers(5, channels, 6 // stride, 8 // stride, seed=1)
    for mode in (True, False):
        block.train(mode)
        theirs.train(mode)
        ours, given = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        block.zero_grad()
        theirs.zero_grad()
        out, expected = block(ours), theirs(given)
        assert np.allclose(out.numpy(), expected.detach().numpy(), atol=1e-5)
        out.backward(Tensor(g))
        expected.backward(torch.tensor(g))
        assert np.allclose(ours.grad.numpy(), given.grad.numpy(), atol=1e-5)
        by_name = dict(theirs.named_parameters())
        for name, p in block.named_parameters():
            assert np.allclose(p.grad.numpy(), by_name[name].grad.numpy(), rtol=1e-4, atol=2e-5)


def test_the_network_and_its_heat_maps_are_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    model = lively(resnet(8, 4, channels=3, key=0))
    net = as_in_torch(torch, model, 5)
    x = numbers(6, 3, 16, 20)
    assert np.allclose(model(x).numpy(), net(torch.tensor(x)).detach().numpy(), atol=1e-4)
    net.eval()
    classes = np.array([3, 1, 4, 1, 5, 9])
    given, seen = torch.tensor(x, requires_grad=True), []
    slopes: list[Any] = []
    layer = net.blocks[1]
    layer.register_forward_hook(lambda m, i, out: seen.append(out))
    layer.register_full_backward_hook(lambda m, i, out: slopes.append(out[0]))
    net(given)[torch.arange(6), torch.tensor(classes)].sum().backward()
    weights = slopes[0].mean(dim=(2, 3), keepdim=True)
    expected = (weights * seen[0]).sum(dim=1).relu().detach().numpy()
    assert np.allclose(grad_cam(model, model.blocks[1], x, classes), expected, atol=1e-5)
    assert np.allclose(saliency(model, x, classes), given.grad.abs().amax(dim=1), atol=1e-5)
    assert model.training and not model.blocks[1]._hooks


# ----------------------------------------------------------------------- networks


def test_a_block_begins_as_its_shortcut() -> None:
    x = np.abs(numbers(3, 4, 5, 5))
    assert (BasicBlock(4, 4, key=0)(x).numpy() == x).all()
    deep, shallow = resnet(20, 4, channels=1, key=0), resnet(8, 4, channels=1, key=0)
    for model in (deep, shallow):  # as deep as one likes, it begins like the shallow one
        model.load_state_dict(
            {k: v for k, v in shallow.state_dict().items() if not k.startswith("blocks")},
            strict=False,
        )
    stages = [block for k, block in enumerate(deep.blocks) if k % 3 == 0]
    for a, b in zip(stages, shallow.blocks):
        a.load_state_dict(b.state_dict())
    images = numbers(6, 1, 16, 16)
    assert np.allclose(deep(images).numpy(), shallow(images).numpy(), atol=1e-6)


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_depth_is_the_number_of_layers_that_learn(depth: int) -> None:
    model = resnet(depth, 4, key=0)
    shortcuts = [b.shortcut for b in model.blocks]
    kernels = [p for _, p in model.named_parameters() if p.ndim > 1]
    assert len(kernels) == depth + sum(len(list(w.parameters())) > 0 for w in shortcuts)


def test_the_same_seed_is_the_same_network_and_any_size_will_do() -> None:
    one, two, other = (resnet(8, 4, channels=1, key=k) for k in (0, 0, 1))
    x = numbers(2, 1, 28, 28)
    assert (one(x).numpy() == two(x).numpy()).all() and (one(x).numpy() != other(x).numpy()).any()
    for size in ((2, 2), (9, 31), (48, 40)):
        assert one(numbers(2, 1, *size)).shape == (2, 10)
    one.eval()
    assert one(np.zeros((0, 1, 28, 28), "float32")).shape == (0, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resnet(8, 4)(numbers(2, 32, 32)), r"\(2, 32, 32\) has 3 axes.*x\[None\]"),
        (lambda: resnet(8, 4)(numbers(2, 1, 28, 28)), r"has 1 channel; \(N, 3, H, W\) needed$"),
        (lambda: resnet(8, 4)(numbers(2, 28, 28, 3)), r"28 channels.*moveaxis\(x, -1, 1\)"),
        (lambda: resnet(8, 4)(numbers(2, 3, 1, 28)), "images of 1 x 28; 2 at least"),
        (lambda: resnet(8, 4)(numbers(32, 32, 3)), r"channels last: moveaxis\(x, -1, 0\)\[None\]"),
        (lambda: resnet(8, 4)(numbers(2, 32, 32)), r"batch of one image$"),
        (lambda: resnet(8, 4, 1)(numbers(2, 28, 28)), r"x\[:, None\] adds the axis of channels"),
        (lambda: resnet(8.0), "depth is 8.0; a whole number"),  # type: ignore[arg-type]
        (lambda: ResNet(()), "stages is 0"),
        (lambda: ResNet((8, 16), blocks=0), "blocks is 0"),
        (lambda: ResNet((8, 16), pool=0), "pool is 0"),
        (lambda: recommended("huge"), "no profile 'huge'; there are: quick, full"),
        (lambda: saliency(resnet(8, 4), np.zeros((2, 3, 8, 8), "uint8")), "saliency: .* of bytes"),
        (
            lambda: probabilities(resnet(8, 4), np.zeros((2, 3, 8, 8), "uint8")),
            "probabilities: images of bytes",
        ),
        (
            lambda: probabilities(resnet(8, 4), numbers(2, 3, 8, 8), batch_size=0),
            "batch_size is 0",
        ),
        (lambda: saliency(resnet(8, 4), np.full((2, 3, 8, 8), np.nan)), "with nan or inf"),
        (lambda: enlarged(np.ones((4, 4)), (8, 8)), r"maps \(4, 4\); \(N, h, w\) needed"),
        (lambda: resnet(18), "depth 18; 6n.*14, 20 are near"),
        (lambda: resnet(2), "8 are near"),
        (lambda: recommended(data="cifar100"), "'cifar100'; there are: fashion_mnist, cifar10"),
        (lambda: train_resnet(VisionSettings(data="digits"), "x"), "no recipe for images 'digits'"),
        (lambda: saliency(resnet(8, 4), numbers(3, 32, 32)), r"\(3, 32, 32\).*batch of one"),
        (lambda: saliency(resnet(8, 4), numbers(2, 3, 8, 8), 10), "no class 10; .* 0 to 9"),
        (lambda: saliency(resnet(8, 4), numbers(2, 3, 8, 8), -1), "no class -1"),
        (lambda: saliency(resnet(8, 4), numbers(2, 3, 8, 8), [1]), r"classes int64 \(1,\) for 2"),
        (lambda: saliency(resnet(8, 4), numbers(2, 3, 8, 8), 0.5), "classes float64"),
        (
            lambda: grad_cam(resnet(8, 4), "blocks", numbers(2, 3, 8, 8)),  # type: ignore[arg-type]
            "layer 'blocks'; a part of the model is needed",
        ),
        (
            lambda: grad_cam(resnet(8, 4), BatchNorm2d(4), numbers(2, 3, 8, 8)),
            "this BatchNorm2d was called 0 times",
        ),
        (lambda: suspects(np.ones((3, 2)), [0, 1]), r"\(3, 2\) and int64 labels \(2,\)"),
        (lambda: suspects(np.ones((2, 2)), [0, 2]), "labels 0 to 2; 2 classes"),
        (lambda: suspects(np.ones((2, 2)), [0.0, 1.0]), "float64 labels"),
        (lambda: suspects([[0.5, 0.5], [np.nan, np.nan]], [1, 0]), "row 1 has nan"),
        (lambda: suspects([[9.0, -3.0]], [1]), "row 0 has 9.0"),
        (
            lambda: out_of_fold(lambda part: None, ArrayDataset(np.ones(3))),  # type: ignore[arg-type, return-value]
            "fit gave None, no Module",
        ),
        (lambda: out_of_fold(lambda part: LeNet5(), ArrayDataset(np.ones(3)), 4), "4 folds of 3"),
        (lambda: out_of_fold(lambda part: LeNet5(), ArrayDataset(np.ones(3)), 1), "1 folds of 3"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_heat_map_needs_maps() -> None:
    model = resnet(8, 4, key=0)
    with pytest.raises(ShapeError, match=r"the layer makes \(2, 10\)"):
        grad_cam(model, model.linear, numbers(2, 3, 8, 8))
    assert not model.linear._hooks


# ---------------------------------------------------------------------- heat maps


def test_a_frozen_model_can_be_asked_and_is_left_as_it_was() -> None:
    model = lively(resnet(8, 4, channels=1, key=0))
    model.train()
    x = numbers(3, 1, 16, 16)
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    free = saliency(model, x, 2), grad_cam(model, model.blocks, x, 2)
    model.requires_grad_(False)
    frozen = saliency(model, x, 2), grad_cam(model, model.blocks, x, 2)
    for a, b in zip(free, frozen):
        assert np.allclose(a, b, atol=1e-7)
    assert all((before[k] == v.numpy()).all() for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_slopes_of_maps_are_what_one_measures() -> None:
    "Each map is moved as a whole, between the layer and the rest of the network."
    model = lively(resnet(8, 4, channels=1, key=0)).to(dtype="float64")
    model.eval()
    x, layer = numbers(1, 1, 16, 16).astype("float64"), model.blocks[0]
    moved, passed = np.zeros(4), list[Any]()

    def move(module: Module, inputs: Any, out: Tensor) -> Tensor:
        passed.append(out.numpy())
        return out + Tensor(moved.reshape(1, 4, 1, 1))

    def score(k: int, step: float) -> float:
        moved[:] = 0
        moved[k] = step
        with evaluating(model):
            return float(model(x).numpy()[0, 3])

    remove = layer.register_forward_hook(move)
    slopes = [(score(k, 1e-6) - score(k, -1e-6)) / 2e-6 for k in range(4)]
    remove()
    maps = passed[0]
    weights = np.array(slopes) / maps[0, 0].size
    expected = np.maximum(np.einsum("k,kij->ij", weights, maps[0]), 0)
    assert np.allclose(grad_cam(model, layer, x, 3)[0], expected, atol=1e-6)


def test_heat_maps_of_other_networks() -> None:
    model, x = LeNet5(key=0), numbers(2, 1, 28, 28)
    assert grad_cam(model, model.conv2, x).shape == (2, 10, 10)
    assert saliency(model, x).shape == (2, 28, 28)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_enlarged_maps_stay_between_their_numbers(h: int, w: int, high: int, wide: int) -> None:
    maps = np.random.default_rng(h * w).random((2, h, w))
    large = enlarged(maps, (high, wide))
    assert large.shape == (2, high, wide)
    assert large.min() >= maps.min() - 1e-6 and large.max() <= maps.max() + 1e-6
    assert np.allclose(enlarged(maps, (h, w)), maps, atol=1e-6)


# ------------------------------------------------------------------- augmentation


@given(st.integers(0, 2**31), st.integers(0, 4), st.integers(0, 9), st.booleans())
@settings(deadline=None, max_examples=30)
def test_augmentation_keeps_shape_dtype_and_pixels(
    seed: int, crop: int, cutout: int, flip: bool
) -> None:
    chosen = VisionSettings(crop=crop, cutout=cutout, flip=flip)
    x = np.random.default_rng(0).integers(1, 256, (6, 12, 10, 3)).astype("uint8")
    change = Compose(*augmentation(chosen))
    out = change(x, random.key(seed))
    assert out.shape == x.shape and out.dtype == x.dtype
    assert (out == change(x, random.key(seed))).all()
    for before, after in zip(x, out):
        known = {tuple(p) for p in before.reshape(-1, 3)} | {(0, 0, 0)}
        assert {tuple(p) for p in after.reshape(-1, 3)} <= known
    if not (crop or cutout or flip):
        assert (out == x).all()


def test_what_is_cut_and_covered_has_the_size_asked_for() -> None:
    x = np.full((50, 12, 12), 9, "uint8")
    holes = (Cutout(4)(x, random.key(0)) == 0).sum(axis=(1, 2))
    assert holes.max() == 16 and holes.min() >= 4  # a corner of it may be outside
    moved = (RandomCrop(12, 2)(x, random.key(0)) == 0).sum(axis=(1, 2))
    assert moved.max() <= 144 - 100 and moved.min() == 0


@pytest.mark.parametrize("data", list(OF_DATA))
def test_every_recipe_has_its_settings(data: str) -> None:
    for profile in ("quick", "full"):
        own = recommended(profile, data, seed=3, lr=0.01)
        assert (own.data, own.seed, own.lr) == (data, 3, 0.01)
    assert not recommended(data="mnist").flip  # a mirrored 3 is no digit


# ------------------------------------------------------------------- label errors


def reader(part: ArrayDataset) -> Module:
    manual_seed(0)
    model = LeNet5()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    for x, y in DataLoader(part, 50, shuffle=True):
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_planted_label_errors_are_found() -> None:
    digits, labels = (a[:6000] for a in mnist("train", subset=True).arrays)
    rng = np.random.default_rng(1)
    planted = rng.choice(6000, 60, replace=False)
    spoilt = labels.copy()
    spoilt[planted] = (labels[planted] + rng.integers(1, 10, 60)) % 10
    images = Compose(Normalise.of(digits), ChannelsFirst())(digits)
    p = out_of_fold(reader, ArrayDataset(images, spoilt))
    assert p.shape == (6000, 10) and np.allclose(p.sum(axis=1), 1, atol=1e-5)
    found = suspects(p, spoilt)
    own = [s.label_probability for s in found]
    assert own == sorted(own) and all(s.guess != s.label == spoilt[s.example] for s in found)
    hits = {s.example for s in found} & set(planted.tolist())
    assert len(hits) >= 52
    assert len({s.example for s in found[:120]} & set(planted.tolist())) >= 40


def test_nobody_judges_what_he_has_seen() -> None:
    class Sees(Module):
        def __init__(self, part: ArrayDataset) -> None:
            self.seen = set(part.arrays[0][:, 0].tolist())

        def forward(self, x: Any) -> Tensor:
            return Tensor([[9.0 * (float(v) in self.seen), 0.0] for v in x.numpy()[:, 0]])

    data = ArrayDataset(np.arange(20.0)[:, None], np.zeros(20, int))
    for folds in (2, 3, 20):
        assert (out_of_fold(Sees, data, folds) == 0.5).all()
    assert (probabilities(Sees(data), data.arrays[0], batch_size=7)[:, 0] > 0.99).all()


def test_networks_of_two_folds_must_know_the_same_classes() -> None:
    counts = iter((2, 3))
    data = ArrayDataset(numbers(6, 1, 8, 8), np.zeros(6, int))
    with pytest.raises(ValueError, match="unlike numbers of classes"):
        out_of_fold(lambda part: resnet(8, 2, channels=1, classes=next(counts)), data)


def test_no_images_have_no_probabilities() -> None:
    assert probabilities(resnet(8, 2), numbers(0, 3, 8, 8)).shape == (0, 10)


# ------------------------------------------------------------------------ recipes


def test_the_recipe_learns_keeps_and_resumes(tmp_path: Path) -> None:
    quick = recommended(epochs=1, width=8, batch_size=50)
    record = train_resnet(quick, tmp_path / "run", about={"profile": "quick"})
    assert record["model"] == "ResNet-8" and record["steps"] == 90
    assert record["images"] == {"train": 4500, "held_back": 500, "test": 2000}
    assert record["test_accuracy"] > 0.5
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["settings"]["flip"] is True and kept["profile"] == "quick"
    again = train_resnet(quick, tmp_path / "run", resume=True)
    assert again["test_loss"] == record["test_loss"]


def whole(name: str) -> bool:
    found = installed(SOURCES[name], list(SOURCES[name].files))
    return found is not None and found.whole


@pytest.mark.parametrize(("name", "least"), [("fashion", 0.92), ("cifar", 0.70)])
def test_the_kept_results_are_complete(name: str, least: float) -> None:
    kept = json.loads((RESULTS / f"vision_{name}.json").read_text(encoding="utf-8"))
    assert kept["command"] and kept["machine"]
    for run in kept["runs"]:
        given = run["settings"]
        assert run["test_accuracy"] >= least and run["images"]["test"] == 10_000
        assert recommended("full", given["data"], seed=given["seed"]) == VisionSettings(**given)
        assert len(run["history"]) == given["epochs"]


@pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")
@pytest.mark.parametrize(("data", "least"), [("fashion_mnist", 0.92), ("cifar10", 0.70)])
def test_the_full_profile_reaches_its_figure(tmp_path: Path, data: str, least: float) -> None:
    source = SOURCES[data]
    found = installed(source, list(source.files))
    if found is None or (not found.whole and not source.partial):
        pytest.skip(f"{data} is not on this machine: gradbook data get {data}")
    assert train_resnet(recommended("full", data), tmp_path)["test_accuracy"] >= least
