"Kernels for training, and training on a card: pretended, checked by the compiler, or real."

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cupy import COPIES, LAUNCHES, PRODUCTS, fake_cupy
from fake_cupy import ndarray as CardArray

import gradbook as gb
from gradbook import bench, nn
from gradbook.cuda import agree, fused, kernels, nvrtc, race, sim, switch
from gradbook.cuda.kernels import from_bf16, simulating, to_bf16
from gradbook.data.datasets import ArrayDataset
from gradbook.data.loader import DataLoader
from gradbook.models.generate import tokens
from gradbook.models.gpt import (
    GPT,
    GPTConfig,
    decay_groups,
    load_run,
    recommended,
    token_loss,
    train_gpt,
)
from gradbook.models.lenet import LeNet5
from gradbook.nn import attention, conv, norm
from gradbook.nn.losses import (
    cross_entropy,
    hinge_loss,
    nll_loss,
    surprisal,
    surprisal_slope,
)
from gradbook.optim import clip
from gradbook.optim.adam import Adam, AdamW
from gradbook.tensor import random
from gradbook.tensor.backend import DeviceError, using
from gradbook.tensor.core import TABLE, Tensor, gradients
from gradbook.train.checkpoint import load_tensors, save_tensors
from gradbook.train.loop import Stepper
from gradbook.train.metrics import Accuracy, Running

needs_compiler = pytest.mark.skipif(not sim.available(), reason="no C++ compiler")
in_three_orders = pytest.mark.parametrize("order", sim.ORDERS)
ODD = (1, 31, 33, 127, 1000)


def some(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def near(x: Any, y: Any, limit: float = 1e-5) -> bool:
    y = np.asarray(y)
    return x.shape == y.shape and bool(np.abs(x - y).max() <= limit * max(1, np.abs(y).max()))


@needs_compiler
@in_three_orders
def test_norm(order: str) -> None:
    how: dict[str, Any] = {"axis": (1,), "eps": 0.1}
    with simulating(order=order):
        for n in ODD:
            x, g = some(5, n), some(5, n, seed=1)
            gm, gv = some(5, 1, seed=2), some(5, 1, seed=3)
            for centred in (True, False):
                wanted = norm.standardise.primitive.impl(np, x, **how, centred=centred)
                found = fused.standardise(x, 0.1, centred)
                assert all(map(near, found, wanted))
                u, _, v = wanted
                wanted = norm.standardise_back.primitive.impl(
                    np, g, gm, gv, u, v, **how, centred=centred
                )
                back = fused.standardise_back(g, gm, gv, u, v, 0.1, centred)
                assert near(back, wanted)
            half = [from_bf16(to_bf16(x)) for x in (x, g)]
            u, _, v = fused.standardise(to_bf16(x), 0.1)
            assert near(from_bf16(u), norm.standardise.primitive.impl(np, half[0], **how)[0], 1e-2)


@needs_compiler
@in_three_orders
def test_layer_norm_with_weights(order: str) -> None:
    for n in ODD:
        x, w, b, g = some(9, n), some(n, seed=1), some(n), some(9, n, seed=2)
        exact = [Tensor(a.astype(float), True) for a in (x, w, b)]
        y = norm.layer_norm(exact[0], n, *exact[1:])
        wanted = gradients(y, exact, Tensor(g.astype(float)))
        with simulating(order=order):
            found, mean, rstd = fused.layer_norm(x, w, b)
            back = fused.layer_norm_back(g, x, w, mean, rstd)
        assert near(found, y.numpy()), n
        assert all(near(a, c.numpy()) for a, c in zip(back, wanted)), n


@needs_compiler
@in_three_orders
def test_losses(order: str) -> None:
    for n in ODD:
        x, targets = 3 * some(7, n), np.random.default_rng(n).integers(0, n, 7)
        g = some(7, seed=1)
        with simulating(order=order):
            wanted = surprisal.primitive.impl(np, x, targets, axis=1)
            assert near(fused.surprisal(x, targets), wanted)
            wanted = surprisal_slope.primitive.impl(np, g, x, targets, axis=1)
            assert near(fused.surprisal_slope(g, x, targets), wanted)
            leaf = Tensor(x, requires_grad=True)
            loss = cross_entropy(leaf, targets)
            loss.backward()
            logits, half = x.copy(), to_bf16(x)
            assert near(fused.cross_entropy_(logits, targets).mean(), loss.item())
            assert near(logits, leaf.grad.numpy())  # type: ignore[union-attr]
            fused.cross_entropy_(half, targets)
            assert near(from_bf16(half), leaf.grad.numpy(), 1e-2)  # type: ignore[union-attr]


@needs_compiler
@in_three_orders
@pytest.mark.parametrize("n", [*ODD, 4097])
def test_flat_kernels(order: str, n: int) -> None:
    x, g = 3 * some(n), some(n, seed=1)
    p, m, v = x.copy(), np.zeros_like(x), np.zeros_like(x)
    parameter = Tensor(x, requires_grad=True)
    optimiser = AdamW([parameter], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    with simulating(order=order):
        for name in ("gelu", "gelu_tanh"):
            assert near(fused.flat(name, x), TABLE[name].impl(np, x))
            assert near(fused.flat(f"{name}_slope", g, x), TABLE[f"{name}_slope"].impl(np, g, x))
            half = from_bf16(fused.flat(name, to_bf16(x)))
            assert near(half, TABLE[name].impl(np, from_bf16(to_bf16(x))), 1e-2)
        for step in (1, 2, 3):
            parameter.grad = Tensor(g * step)
            optimiser.step()
            fused.adamw_(p, g * np.float32(step), m, v, step, 0.1, (0.8, 0.9), 1e-3, 0.3)
    assert near(p, parameter.numpy())


@needs_compiler
def test_embedding_is_exact_and_repeatable() -> None:
    for n, dim in ((1, 1), (31, 33), (127, 31), (1000, 33)):
        ids = np.random.default_rng(0).integers(0, 20, n)
        g = some(n, dim)
        wanted = np.zeros((20, dim), "float32")
        np.add.at(wanted, ids, g)
        found = []
        for order in sim.ORDERS:
            with simulating(order=order):
                found.append(fused.embedding_back(ids, g, 20))
        assert near(found[0], wanted)
        assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@needs_compiler
@in_three_orders
def test_dropout_has_the_bits_of_chapter_7(order: str) -> None:
    for n in (*ODD, 1001):
        key = random.key(n)
        with simulating(order=order):
            assert (fused.random_words(key, n, some(1)) == random.bits(key, n)).all()
            for p in (0.1, 0.5, 0.999999, 1.0):
                x = some(n)
                found = fused.dropout(x, p, key)
                assert (found == norm.dropout(x, p, key=key).numpy()).all()
                assert (found == x * fused.dropout_mask(key, p, x.shape, x)).all()
                half = fused.dropout(to_bf16(x), p, key)
                assert ((half & 0x7FFF == 0) == (found == 0)).all()


CONVOLUTIONS = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 3, 31, 33), (5, 3, 3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 1),
    ((1, 8, 3, 67), (70, 8, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 2, 11, 10), (4, 2, 5, 5), (3, 2), ((2, 2), (0, 3)), (2, 1), 1),
    ((2, 6, 13, 11), (4, 3, 3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2),
    ((1, 3, 5, 33), (6, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
]


@needs_compiler
@in_three_orders
@pytest.mark.parametrize("low", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=range(len(CONVOLUTIONS)))
def test_convolution(case: Any, low: bool, order: str) -> None:
    shape, window, stride, padding, dilation, groups = case
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    cast, back = (to_bf16, from_bf16) if low else (np.asarray, np.asarray)
    limit = 1e-2 if low else 1e-5
    x, w, b = cast(some(*shape)), cast(some(*window, seed=1)), cast(some(window[0], seed=2))
    y = conv.convolve.primitive.impl(np, *map(back, (x, w, b)), **how)
    g = cast(some(*y.shape, seed=3))
    with simulating(order=order):
        assert near(back(fused.convolve(x, w, b, **how)), y, limit)
        without = y - back(b)[:, None, None]
        assert near(back(fused.convolve(x, w, None, **how)), without, 2 * limit)
        found = fused.convolve_transposed(g, w, size=shape[2:], **how)
        wanted = conv.convolve_transposed.primitive.impl(
            np, back(g), back(w), size=shape[2:], **how
        )
        assert near(back(found), wanted, limit)
        found = fused.convolve_weight(x, g, window=window[2:], **how)
        wanted = conv.convolve_weight.primitive.impl(
            np, back(x).astype(float), back(g).astype(float), window=window[2:], **how
        )
        assert near(back(found), wanted, limit)


ATTENTIONS = [(1, 1, 1, 0), (31, 33, 31, 2), (33, 33, 33, 0), (127, 127, 64, 0),
              (33, 31, 127, None), (5, 40, 16, 35), (40, 5, 8, -35)]  # fmt: skip


DROPS = pytest.mark.parametrize("drop", [None, (0.3, random.key(5))], ids=["", "dropout"])


@needs_compiler
@in_three_orders
@DROPS
@pytest.mark.parametrize("t, s, d, shift", ATTENTIONS)
def test_attention(t: int, s: int, d: int, shift: int | None, drop: Any, order: str) -> None:
    q, k, v, g = some(2, t, d), some(2, s, d, seed=1), some(2, s, d, seed=2), some(2, t, d, seed=3)
    how: dict[str, Any] = {"scale": 0.3, "shift": shift, "drop": drop}
    g_lse = some(2, t, 1, seed=4)
    wanted = attention.attend.primitive.impl(np, q, k, v, **how)
    with simulating(order=order):
        found = fused.attend(q, k, v, **how)
        assert all(map(near, found, wanted))
        back = fused.attend_back(g, g_lse, *wanted, q, k, v, **how)
    exact = [x.astype(float) for x in (g, g_lse, *wanted, q, k, v)]
    slopes = attention.attend_back.primitive.impl(np, *exact, **how)
    assert all(map(near, back, slopes))


@needs_compiler
@in_three_orders
def test_bits_of_weights_far_behind(order: str) -> None:
    source = kernels.Source(fused.STAYING + r"""
extern "C" __global__ void bits(unsigned* out, int rows, int s, KEYED) {
    long long at = 9LL * (1LL << 32) + (threadIdx.x / 4) * s;
    out[threadIdx.x] = thirty_two(at, k0, k1, share);
}
""", **fused.ROUNDS)  # fmt: skip
    drop, out = (0.3, random.key(7)), np.zeros(32, np.uint32)
    for s in (8, 13):
        with simulating(order=order):
            source("bits", (1,), 32, out, 8, s, *fused.keyed(drop))
        for row in range(8):
            at = np.uint64(9 << 32) + np.arange(32, dtype=np.uint64) + np.uint64(row * s)
            n = at // np.uint64(8)
            counter = (n & np.uint64(0xFFFFFFFF), n >> np.uint64(32), 0 * n, 0 * n)
            words = np.stack(random.philox(counter, drop[1].state())).astype(np.uint32)
            halves = words.T.copy().view(np.uint16)[np.arange(32), at % np.uint64(8)]
            stays = halves < fused.share_kept(0.3)[0]
            assert out[4 * row] == (stays.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum()


LOW_ATTENTIONS = [(1, 1, 16, 0), (31, 33, 32, 2), (33, 127, 64, 94), (127, 127, 32, None),
                  (65, 129, 16, 64), (129, 5, 16, -35), (33, 65, 128, 32)]  # fmt: skip


@needs_compiler
@in_three_orders
@DROPS
@pytest.mark.parametrize("t, s, d, shift", LOW_ATTENTIONS)
def test_attention_on_tensor_cores(
    t: int, s: int, d: int, shift: int | None, drop: Any, order: str
) -> None:
    halves = [to_bf16(some(2, n, d, seed=k)) for k, n in enumerate((t, s, s, t))]
    q, k, v, g = map(from_bf16, halves)
    how: dict[str, Any] = {"scale": 0.2, "shift": shift, "drop": drop}
    g_lse = some(2, t, 1, seed=4)
    wanted = attention.attend.primitive.impl(np, q, k, v, **how)
    slopes = attention.attend_back.primitive.impl(np, g, g_lse, *wanted, q, k, v, **how)
    with simulating(order=order):
        out, lse = fused.attend(*halves[:3], **how)
        back = fused.attend_back(halves[3], g_lse, out, lse, *halves[:3], **how)
    assert near(from_bf16(out), wanted[0], 1e-2) and near(lse, wanted[1], 1e-2)
    assert all(near(from_bf16(a), b, 1e-2) for a, b in zip(back, slopes))


@needs_compiler
def test_sizes_without_whole_tiles_take_the_other_kernels() -> None:
    q, k, v, g = (to_bf16(some(1, 33, 20, seed=n)) for n in range(4))
    out, lse = fused.attend(q, k, v, 0.2, 0)
    back = fused.attend_back(g, 0 * lse, out, lse, q, k, v, 0.2, 0)
    full = attention.attend.primitive.impl(np, *map(from_bf16, (q, k, v)), scale=0.2, shift=0)
    down = (from_bf16(g), 0 * lse, *full, *map(from_bf16, (q, k, v)))
    slopes = attention.attend_back.primitive.impl(np, *down, scale=0.2, shift=0)
    assert all(near(from_bf16(a), b, 1e-2) for a, b in zip(back, slopes))


def every_kernel() -> None:
    "Launch each kernel of chapter 27b once, on small arrays of odd sizes."
    x, g, one = some(3, 33), some(3, 33, seed=1), some(3, 1)
    u, _, v = fused.standardise(x, 0.1)
    fused.standardise_back(g, one, one, u, v, 0.1)
    _, mean, rstd = fused.layer_norm(x, x[0], x[1])
    fused.layer_norm_back(g, x, x[0].copy(), mean, rstd)
    targets = np.array([0, 32, 7])
    fused.surprisal(x, targets)
    fused.surprisal_slope(one[:, 0].copy(), x, targets)
    fused.cross_entropy_(x.copy(), targets)
    for name in ("gelu", "gelu_tanh"):
        fused.flat(name, x)
        fused.flat(f"{name}_slope", g, x)
    fused.adamw_(*(some(67, seed=k) ** 2 for k in range(4)), 1)
    fused.embedding_back(np.arange(33) % 5, some(33, 7), 5)
    fused.random_words(random.key(0), 67, x)
    fused.dropout_mask(random.key(0), 0.5, (67,), x)
    fused.dropout(x, 0.5, random.key(0))
    how: dict[str, Any] = {"stride": (1, 2), "padding": ((1, 1), (1, 0)), "dilation": (1, 1)}
    for cast in (np.asarray, to_bf16):
        a, w = cast(some(2, 4, 5, 67)), cast(some(6, 2, 3, 3))
        y = fused.convolve(a, w, None, **how, groups=2)
        fused.convolve_transposed(y, w, size=(5, 67), **how, groups=2)
        fused.convolve_weight(a, y, window=(3, 3), **how, groups=2)
        q, k, z = (cast(some(1, n, 16, seed=n)) for n in (33, 67, 67))
        for drop in (None, (0.5, random.key(0))):
            out, lse = fused.attend(q, k, z, 0.2, 34, drop)
            fused.attend_back(q, 0 * lse, out, lse, q, k, z, 0.2, 34, drop)


@needs_compiler
@in_three_orders
def test_no_kernel_has_a_race(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, plain = set(), kernels.Source.__call__

    def noting(self: Any, name: str, *args: Any, **how: Any) -> None:
        launched.add((id(self), name))
        plain(self, name, *args, **how)

    monkeypatch.setattr(kernels.Source, "__call__", noting)
    with simulating(check=True, order=order):
        every_kernel()
    sources = [x for x in vars(fused).values() if isinstance(x, kernels.Source)]
    assert launched == {(id(source), name) for source in sources for name in source.names}


# what needs a card, on a pretended one


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_primitive_agrees_on_a_pretended_card(dtype: str) -> None:
    import gradbook.nn.pool
    import gradbook.tensor.linalg  # noqa: F401

    with fake_cupy():
        table = agree.agreement_table(dtype, "cuda")
    assert len({row.name for row in table}) > 100
    limit = agree.LIMITS[dtype]
    assert not [row for row in table if row.trouble or not row.error <= limit]


def small_gpt(device: str) -> tuple[Any, Any, Any]:
    gb.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            self.embedding, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
            self.attention = nn.MultiHeadAttention(32, 2, causal=True)
            self.up, self.act, self.down = nn.Linear(32, 64), nn.GELU("tanh"), nn.Linear(64, 50)
            self.conv, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.1, key=3)

        def forward(self, ids: Any, image: Any) -> Any:
            x = self.embedding(ids)
            x = x + self.drop(self.attention(self.norm(x))) + self.conv(image).mean()
            return self.down(self.act(self.up(x)))

    rng = np.random.default_rng(0)
    ids = gb.Tensor(rng.integers(0, 50, (2, 40)), device=device)
    image = gb.Tensor(rng.normal(size=(2, 3, 8, 8)).astype("float32"), device=device)
    return Model().to(device), ids, image


def trained(device: str, optimiser: Any, steps: int = 4) -> tuple[list[float], Any, dict[str, int]]:
    model, ids, image = small_gpt(device)
    opt, losses = optimiser(model.parameters(), lr=1e-2), []
    for step in range(steps):
        if step == 1:
            COPIES.clear()
        loss = cross_entropy(model(ids, image).reshape((80, 50)), ids.reshape((80,)))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss)
    copies = dict(COPIES)
    return [x.item() for x in losses], opt, copies


@needs_compiler
def test_a_training_step_never_leaves_the_card() -> None:
    here, _, _ = trained("cpu", AdamW)
    with fake_cupy():
        there, _, copies = trained("cuda", AdamW)
        assert copies == {}  # no copy either way, no number waited for
        assert LAUNCHES["adamw"] == 4 and LAUNCHES["attend"] == 4 and LAUNCHES["add_rows"] == 4
        LAUNCHES.clear()
        with switch.own_kernels(False):
            others, _, copies = trained("cuda", AdamW)
        assert not LAUNCHES and "to host" not in copies and "waits" not in copies
    assert np.allclose(there, here, rtol=1e-4) and np.allclose(others, here, rtol=1e-4)


@needs_compiler
def test_the_flat_optimiser_survives_a_checkpoint() -> None:
    with fake_cupy():
        losses, _, _ = trained("cuda", AdamW, 3)
        model, ids, image = small_gpt("cuda")
        opt = AdamW(model.parameters(), lr=1e-2)
        again = []
        for step in range(3):
            if step == 2:  # as if loaded: other arrays, the same numbers
                opt.load_state_dict(opt.state_dict())
                model.load_state_dict(model.state_dict())
            loss = cross_entropy(model(ids, image).reshape((80, 50)), ids.reshape((80,)))
            opt.zero_grad()
            loss.backward()
            opt.step()
            again.append(loss.item())
    assert again == losses


def test_on_numpy_arrays_nothing_changes() -> None:
    x = some(5, 33)
    before = len(LAUNCHES)
    with switch.own_kernels():
        assert gb.nn.norm.standardise.primitive.impl(np, x, axis=(1,), eps=0.1)
    assert len(LAUNCHES) == before


@needs_compiler
@pytest.mark.parametrize("own", [True, False])
def test_on_a_card_the_loss_of_a_wrong_class_is_nan(own: bool) -> None:
    x = some(3, 10)
    with fake_cupy(), switch.own_kernels(own):
        for wrong in ([1, -1, 3], [-1, 1, 3], [1, 3, 10], [12, 3, 1]):
            for loss in (cross_entropy, nll_loss, hinge_loss):
                leaf = Tensor(x, device="cuda", requires_grad=True)
                targets = Tensor(np.array(wrong), device="cuda")
                each = loss(leaf, targets, reduction="none").numpy()
                assert (np.isnan(each) == [not 0 <= k < 10 for k in wrong]).all(), (loss, wrong)
                assert np.isnan(loss(leaf, targets).item())
        ignored = cross_entropy(leaf, Tensor(np.array([1, -100, 3]), device="cuda")).item()
    assert abs(ignored - cross_entropy(x[[0, 2]], np.array([1, 3])).item()) < 1e-6


@needs_compiler
@in_three_orders
def test_kernels_never_read_the_place_of_a_wrong_class(order: str) -> None:
    x, targets = some(3, 33), np.array([-1, 5, 33])
    with simulating(check=True, order=order):
        losses = fused.surprisal(x, targets)
        slope = fused.surprisal_slope(np.ones(3, "float32"), x, targets)
        again = fused.cross_entropy_(x, targets, 1.0)
    for found in (losses, again, slope.mean(1), x.mean(1)):
        assert (np.isnan(found) == [True, False, True]).all()
    assert near(slope[1], x[1]) and losses[1] == again[1]


@needs_compiler
def test_an_embedding_gets_nothing_for_rows_that_it_has_not() -> None:
    ids, g = np.array([4, -1, 0, 5]), some(4, 3)
    with simulating(check=True):
        found = fused.embedding_back(ids, g, 5)
    assert (found[4] == g[0]).all() and (found[0] == g[2]).all() and not found[1:4].any()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    x, low, targets = some(3, 33), to_bf16(some(3, 33)), np.array([0, 1, 2])
    for call in (
        lambda: fused.layer_norm(low, x[0].copy(), x[0].copy()),
        lambda: fused.layer_norm_back(x, low, x[0].copy(), x[:, 0].copy(), x[:, 0].copy()),
        lambda: fused.flat("gelu_slope", low, x),
        lambda: fused.flat("gelu_slope", x[:1], x),
        lambda: fused.surprisal(x, targets.astype("int32")),
        lambda: fused.surprisal_slope(x[:, 0].copy(), x, targets[:2]),
        lambda: fused.cross_entropy_(x, targets[:2]),
    ):
        with simulating(check=False), pytest.raises(kernels.KernelError):
            call()


@needs_compiler
def test_parts_of_the_flat_buffers_begin_at_even_addresses() -> None:
    with fake_cupy():
        shapes = (3, 5), (70,), (2, 64), (1,)
        given = [Tensor(Tensor(some(*s), device="cuda").data, requires_grad=True) for s in shapes]
        opt, wanted = AdamW(given, lr=0.1), [p.numpy() for p in given]
        peers = [Tensor(p, requires_grad=True) for p in wanted]
        peer = AdamW(peers, lr=0.1)
        for _ in range(2):
            for p, q in zip(given, peers):
                p.grad, q.grad = Tensor(p.data), Tensor(q.data)
            opt.step()
            peer.step()
        first = given[0].data.data.ptr
        assert all((p.data.data.ptr - first) % 256 == 0 for p in given)
        assert all(near(p.numpy(), q.numpy()) for p, q in zip(given, peers, strict=True))


class Huge:
    "Looks like a card's array of float32 with 2**31 elements."

    dtype, shape, size = np.dtype("float32"), (2**16, 2**15), 2**31
    ndim, flags = 2, type("", (), {"c_contiguous": True})


@needs_compiler
def test_the_switch_steps_aside_where_kernels_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not switch.fits(Huge()) and not switch.filled(Huge())
    assert switch.REPLACED["softmax"](Huge(), axis=1) is NotImplemented
    with fake_cupy() as cupy:
        def refuse(*args: Any, **how: Any) -> Any:
            raise kernels.KernelError("an array has 2**31 elements or more")

        x = cupy.asarray(some(5, 33))
        for shape, own in (((1, 8192), 0), ((200, 8192), 1), ((3, 33), 1)):
            LAUNCHES.clear()
            TABLE["reduce_sum"].impl(cupy, cupy.asarray(some(*shape)), axis=(1,))
            assert LAUNCHES["row_sum"] == own, shape
        monkeypatch.setattr(kernels, "softmax", refuse)
        y = TABLE["softmax"].impl(cupy, x, axis=1)
        assert near(y._a, TABLE["softmax"].impl(np, x._a, axis=1))


def test_the_loader_brings_batches_to_the_card_in_advance() -> None:
    x, y = some(10, 3), np.arange(10)
    with fake_cupy() as cupy:
        loader = DataLoader(ArrayDataset(x, y), batch_size=4, shuffle=True, device="cuda")
        batches = []
        for k, (a, b) in enumerate(loader):
            assert a.device.kind == "cuda" and loader.batch == k + 1
            batches.append((a.numpy(), b.numpy()))
        stream = cupy.cuda.get_current_stream()
    plain = [(a.numpy(), b.numpy()) for a, b in DataLoader(ArrayDataset(x, y), 4, shuffle=True)]
    for (a, b), (c, d) in zip(batches, plain, strict=True):
        assert (a == c).all() and (b == d).all()
    assert [what for what, _ in stream.order].count("wait") == 3  # each batch is waited for, once


def test_the_loader_goes_on_in_mid_epoch_on_a_card() -> None:
    data = ArrayDataset(np.arange(20))
    with fake_cupy():
        loader = DataLoader(data, batch_size=4, shuffle=True, device="cuda")
        for k, _batch in enumerate(loader):
            if k == 1:
                break
        state = loader.state_dict()
        other = DataLoader(data, batch_size=4, shuffle=True, device="cuda")
        other.load_state_dict(state)
        rest = [b.numpy().tolist() for (b,) in other]
    whole = [b.numpy().tolist() for (b,) in DataLoader(data, batch_size=4, shuffle=True)]
    assert rest == whole[2:]


SIZES = GPTConfig(50, 16, 2, 2, 32, dropout=0.2)


def gpt_steps(device: str, own: bool = True, steps: int = 3) -> tuple[list[float], Any, Any]:
    "Losses of a small GPT with dropout and clipping, the model, and what was copied in a step."
    model = GPT(SIZES, key=0).to(device)
    opt = AdamW(decay_groups(model, 0.1), lr=1e-2)
    ids = np.random.default_rng(0).integers(0, 50, (3, 17))
    x, y = Tensor(ids[:, :-1].copy(), device=device), Tensor(ids[:, 1:].copy(), device=device)
    losses = []
    with switch.own_kernels(own):
        for step in range(steps):
            if step == 1:
                COPIES.clear()
                LAUNCHES.clear()
            opt.zero_grad()
            loss = token_loss(model(x), y)
            loss.backward()
            clip.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            losses.append(loss)
    copies = dict(COPIES)
    return [loss.item() for loss in losses], model, copies


@needs_compiler
@pytest.mark.parametrize("own", [True, False])
def test_a_gpt_learns_on_the_card_as_here(own: bool) -> None:
    here, model, _ = gpt_steps("cpu")
    with fake_cupy():
        there, other, copies = gpt_steps("cuda", own)
        launched = dict(LAUNCHES)
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            assert q.device.kind == "cuda" and near(q.numpy(), p.numpy(), 1e-4), name
    assert np.allclose(there, here, rtol=1e-5)  # dropout included: its bits are the same
    # CuPy's product of rows on more axes with a matrix is a batched one, and knows no TF32
    assert PRODUCTS[2, 2] and all(x == y for x, y in PRODUCTS)
    if own:
        assert copies == {"waits": 2}  # two steps, and each waits for the norm that it clips
        assert launched["adamw"] == 4 and launched["add_rows"] == 2  # two groups, two steps
        wanted = {"standardise_back", "gelu_tanh_slope", "surprisal_slope", "dropout_mask"}
        assert wanted <= launched.keys()
        assert launched["attend"] == launched["attend_back_kv"] == 4  # two layers, two steps
        assert "softmax_online" not in launched  # nobody writes the weights down
    else:
        assert not launched and "to host" not in copies


@needs_compiler
@pytest.mark.parametrize("groups, launches", [(3, 1), (1, 0)])
@pytest.mark.parametrize("t", [33, 40])
def test_attention_drops_the_same_weights_on_the_card(t: int, groups: int, launches: int) -> None:
    def slopes(device: str) -> list[Any]:
        layer = nn.MultiHeadAttention(
            48, 3, n_kv_heads=groups, causal=True, dropout=0.4, key=1
        ).to(device)
        x = Tensor(some(2, t, 48), device=device, requires_grad=True)
        out = layer(x)
        return [out, *gradients(out, [x], Tensor(some(*out.shape, seed=1), device=device))]

    here = slopes("cpu")
    with fake_cupy():
        there = [y.numpy() for y in slopes("cuda")]
        assert LAUNCHES["attend"] == LAUNCHES["attend_back_q"] == launches
        assert not LAUNCHES["dropout_mask"]
    assert all(near(a, b.numpy(), 1e-5) for a, b in zip(there, here))


@needs_compiler
def test_no_matrix_of_weights_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, plain = [], CardArray.__init__

    def noting(self: Any, a: Any) -> None:
        plain(self, a)
        sizes.append(self._a.size)

    monkeypatch.setattr(CardArray, "__init__", noting)
    with fake_cupy():
        layer = nn.MultiHeadAttention(16, 2, causal=True, dropout=0.2, key=1).to("cuda")
        x = Tensor(some(1, 201, 16), device="cuda", requires_grad=True)
        layer(x).sum().backward()
        assert max(sizes) == 201 * 3 * 16 < 201**2  # queries, keys and values, side by side
        with switch.own_kernels(False):
            layer(x).sum().backward()
        assert max(sizes) >= 2 * 201**2


@needs_compiler
def test_dropout_makes_the_same_bits_on_the_card() -> None:
    x = some(33, 31)
    with fake_cupy():
        masks = [nn.Dropout(0.3, key=7).to("cuda")(Tensor(x, device="cuda")) for _ in range(2)]
        there = [mask.numpy() for mask in masks]
        assert LAUNCHES["dropout_mask"] == 2
    assert (there[0] == nn.Dropout(0.3, key=7)(x).numpy()).all() and (there[0] == there[1]).all()


@needs_compiler
def test_what_has_another_rule_or_place_is_left_alone() -> None:
    class Slower(AdamW):
        def rule(self, group: Any, step: int) -> Any:
            return super().rule({**group, "lr": group["lr"] / 2}, step)

    with fake_cupy():
        for kind, launches in ((AdamW, 1), (Adam, 0), (Slower, 0)):
            LAUNCHES.clear()
            p = Tensor(some(5), True).to("cuda")
            p = Tensor(p.data, requires_grad=True)
            p.grad = Tensor(p.data)
            kind([p], lr=0.1).step()
            assert LAUNCHES["adamw"] == launches, kind
            q = Tensor(some(5), requires_grad=True)
            q.grad = Tensor(some(5))
            kind([q], lr=0.1).step()
            assert near(p.numpy(), q.numpy()), kind


@needs_compiler
@pytest.mark.parametrize("cache", [True, False])
def test_a_gpt_writes_on_the_card_as_here(cache: bool) -> None:
    model = GPT(SIZES, key=0)
    here = list(tokens(model, [1, 2, 3], 20, key=0, cache=cache))
    with fake_cupy():
        model.to("cuda")
        COPIES.clear()
        there = list(tokens(model, [1, 2, 3], 20, key=0, cache=cache))
        copies = dict(COPIES)
    assert there == here
    assert copies == {"to device": 20, "to host": 20}  # ids there, logits back


@needs_compiler
def test_checkpoints_of_a_card_can_be_read_here(tmp_path: Path) -> None:
    with fake_cupy():
        _, model, _ = gpt_steps("cuda")
        save_tensors(tmp_path / "model.safetensors", model.state_dict())
        numbers = {name: t.numpy() for name, t in model.state_dict().items()}
        other = GPT(SIZES, key=1).to("cuda")
        other.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
        assert all(t.device.kind == "cuda" for t in other.parameters())
        for name, t in other.state_dict().items():
            assert (t.numpy() == numbers[name]).all(), name
    here = GPT(SIZES, key=1)
    here.load_state_dict(load_tensors(tmp_path / "model.safetensors"))
    for name, t in here.state_dict().items():
        assert (t.numpy() == numbers[name]).all(), name


@needs_compiler
def test_train_gpt_with_the_preset_for_a_card(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 12)
    small = {"layers": 1, "heads": 2, "width": 16, "context": 8, "batch_size": 2, "warmup": 1}
    settings = recommended("gpu", steps=4, evaluate=2, data=str(text), **small)
    assert settings.dropout == 0.2
    here = train_gpt(settings, tmp_path / "here")
    with fake_cupy(), using(device="cuda"):
        there = train_gpt(settings, tmp_path / "there")
        model, _ = load_run(tmp_path / "there")
        assert LAUNCHES["adamw"] == 8 and model.token.weight.device.kind == "cuda"
        table = model.token.weight.numpy()
    for name in ("train_loss", "val_loss"):
        assert abs(here[name] - there[name]) < 1e-5
    model, _ = load_run(tmp_path / "there")  # on the processor now
    assert (model.token.weight.numpy() == table).all()


def test_the_preset_for_a_card_is_nanogpts() -> None:
    s = recommended("gpu")
    assert (s.layers, s.heads, s.width, s.context, s.batch_size) == (6, 6, 384, 256, 64)
    assert (s.dropout, s.lr, s.min_lr, s.steps, s.warmup) == (0.2, 1e-3, 1e-4, 5000, 100)
    assert (s.beta2, s.weight_decay, s.clip, s.bias) == (0.99, 0.1, 1.0, False)
    config = GPTConfig(65, s.context, s.layers, s.heads, s.width, bias=s.bias, dropout=s.dropout)
    assert GPT(config, key=0).n_parameters() == 10_745_088


@needs_compiler
def test_a_step_of_the_trainer_waits_for_two_numbers() -> None:
    with fake_cupy():
        model = GPT(SIZES, key=0).to("cuda")
        stepper = Stepper(model, token_loss, AdamW(model.parameters(), lr=1e-3), clip_norm=1.0)
        ids = np.random.default_rng(0).integers(0, 50, (8, 17))
        loader = DataLoader(ArrayDataset(ids[:, :-1], ids[:, 1:]), 2, device="cuda")
        for number, batch in enumerate(loader):
            if number == 1:
                COPIES.clear()
            stepper.update([batch])
        copies = dict(COPIES)
    assert copies["waits"] == 2 * 3 and "to host" not in copies  # the loss, and the norm
    assert copies["to device"] <= 2 * 3  # batches to come, from pinned memory


@needs_compiler
@pytest.mark.parametrize("weights", [None, np.arange(1.0, 11, dtype=np.float32)])
def test_labels_stay_on_the_card(weights: Any) -> None:
    x, y = some(10, 1, 28, 28), np.arange(10)
    y[3] = -100

    def run(device: str) -> tuple[list[float], float, dict[str, int]]:
        model = LeNet5(key=0).to(device)
        given = None if weights is None else Tensor(weights, device=device)
        loss = partial(cross_entropy, weight=given)
        stepper = Stepper(model, loss, AdamW(model.parameters(), lr=1e-3))
        batches = [(Tensor(x[k::2], device=device), Tensor(y[k::2], device=device)) for k in (0, 1)]
        losses, running = [stepper.update(batches)], Running([Accuracy()])
        COPIES.clear()
        losses += [stepper.update(batches[:1], running), stepper.update(batches)]
        copies = dict(COPIES)
        return losses, running.compute("")["accuracy"], copies

    here, right, _ = run("cpu")
    with fake_cupy():
        there, found, copies = run("cuda")
    assert np.allclose(there, here, rtol=1e-4) and found == right
    assert copies == {"waits": 3 + 4}  # for each batch the count and the loss; once for the hits


@needs_compiler
@pytest.mark.parametrize("own", [True, False])
def test_lenet_learns_on_the_card_as_here(own: bool) -> None:
    x, y = some(4, 1, 28, 28), np.arange(4)

    def steps(device: str) -> list[float]:
        model = LeNet5(key=0).to(device)
        opt = AdamW(model.parameters(), lr=1e-2)
        images, labels, losses = Tensor(x, device=device), Tensor(y, device=device), []
        for _ in range(2):
            opt.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return losses

    here = steps("cpu")
    with fake_cupy(), switch.own_kernels(own):
        there = steps("cuda")
        assert (LAUNCHES["convolve_weight"] == 4) == own
    assert np.allclose(there, here, rtol=1e-4)


SMALL: dict[str, dict[str, Any]] = {
    "memory_cases": {"rows": 8, "n": 64}, "adamw_cases": {"n": 1003},
    "loss_cases": {"rows": 4, "n": 48}, "product_cases": {"n": 16},
    "attention_cases": {"heads": 2, "t": 17, "d": 16},
    "convolution_cases": {"images": 1, "channels": 4, "side": 5, "groups": 2},
    "lenet_cases": {"batch": 2},
    "gpt_cases": {"layers": 1, "heads": 2, "width": 32, "context": 8, "batch_size": 2},
}  # fmt: skip


@pytest.fixture
def small_race(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    "A pretended card, small vocabularies, and as little as there is to measure."
    monkeypatch.setattr(race, "VOCABULARIES", {"gpu": 48, "gpt2": 64})
    with fake_cupy() as cupy:
        yield cupy


def values(x: Any) -> Any:
    "What an engine gave, as NumPy's float32."
    x = x[0] if isinstance(x, tuple | list) else x
    x = x.data if isinstance(x, Tensor) else x
    if isinstance(x, CardArray):
        return from_bf16(x._a) if x._a.dtype == np.uint16 else x._a
    return None if x is None else x.detach().float().numpy()


@needs_compiler
def test_racers_agree(small_race: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(torch, "compile", lambda model: model)
    seen = set()
    for cases in race.RACES:
        for case in cases(small_race, torch, **SMALL[cases.__name__]):
            for name in case.engines:  # what will be checked on a card, on the pretended one
                far = race.checked(small_race, case, name)
                assert (far is None) == (not name.startswith("gradbook")), (case.name, name)
            found = {name: values(engine()) for name, engine in case.engines.items()}
            seen |= found.keys()
            own = found.pop("gradbook", None)
            chance = "dropout" in case.name and "dropout 0," not in case.name
            for name, other in found.items():
                if own is None or other is None or case.name == "dropout":
                    continue
                apart = np.abs(own.mean() - other) if other.ndim == 0 else np.abs(
                    own.reshape(other.shape) - other
                )  # fmt: skip
                limit = 0.1 if chance and "torch" in name else 3e-2 if "bf16" in case.name else 1e-4
                assert apart.max() < limit, (case.name, name)
    assert seen == {"gradbook", "gradbook, cupy", "cupy", "cublas", "torch", "torch, compiled"}
    assert LAUNCHES["attend_back_kv_tensor"] and LAUNCHES["convolve"] and LAUNCHES["adamw"]


@needs_compiler
def test_a_kernel_that_does_too_little_is_not_fast(
    small_race: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, broken = kernels.Source.__call__, []

    def early(self: Any, name: str, blocks: Any, *args: Any, **how: Any) -> None:
        fewer = 0 if name in ("layer_norm_back", "gelu_tanh", "adamw") else blocks[0] - 1
        broken.append(name)  # the last block never starts; where others would do its work, none
        if fewer:
            plain(self, name, (fewer, *blocks[1:]), *args, **how)

    small = {"images": 1, "channels": 4, "side": 9}
    sizes = {**SMALL, "adamw_cases": {"n": 4096}, "convolution_cases": small}
    names = ("memory_cases", "adamw_cases", "loss_cases", "convolution_cases")
    for cases in (getattr(race, name) for name in names):
        for case in cases(small_race, None, **sizes[cases.__name__]):
            broken.clear()
            failed: dict[str, str] = {}
            with monkeypatch.context() as patch:
                patch.setattr(kernels.Source, "__call__", early)
                rows = list(race.run_case(small_race, case, 2, failed))
            if broken:
                assert "WrongResult" in failed[f"{case.name}: gradbook"], case.name
                assert "gradbook" not in {row["engine"] for row in rows}
                assert all(row["ratio"] is None for row in rows)


def test_how_far_results_are_apart(small_race: Any) -> None:
    x = small_race.asarray(np.ones((3, 5), "float32"))
    y = x.copy()
    assert race.apart(small_race, x, y) == 0
    y[2, 4] = 3.0
    assert race.apart(small_race, x, y) == pytest.approx(2 / 3)
    y[2, 4] = np.nan
    case = race.Case("one", {"gradbook": lambda: y}, wanted=lambda: x)
    with pytest.raises(race.WrongResult, match="nan from what is wanted"):
        race.checked(small_race, case, "gradbook")
    with pytest.raises(race.WrongResult, match="shape"):
        race.checked(small_race, case._replace(wanted=lambda: x[:2]), "gradbook")


@needs_compiler
def test_the_whole_bench_on_a_pretended_card(
    small_race: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cuda.matmul.allow_tf32
    whole = race.cuda_race
    monkeypatch.setattr(race, "cuda_race", lambda repeat, say: whole(repeat, SMALL, say))
    report = bench.cuda_bench(1)
    assert report.facts["failed"] == {} and report.facts["gpu"] == "a pretended card"
    names = {row.case for row in report.rows}
    assert "LeNet-5, batch 2, float32" in names
    assert "GPT, preset gpu, 2 x 8 tokens, dropout 0.2, TF32" in names
    assert all(row.median_s == 1e-3 for row in report.rows)
    rates = {(r["case"], r["engine"]): r for r in report.facts["rates"]}
    gpt = rates["GPT, preset gpt2, 2 x 8 tokens, dropout 0, TF32", "torch, compiled"]
    assert gpt["tokens_per_s"] == 16_000
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert sys.modules["cupy._core._routines_linalg"].kinds == {"float32": 1}


def test_a_race_that_fails_does_not_stop_the_others(
    small_race: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise MemoryError("no room")

    def one(xp: Any, torch: Any) -> Iterator[race.Case]:
        yield race.Case("one", {"gradbook": lambda: None, "torch": broken})
        raise ValueError("no second")

    def two(xp: Any, torch: Any) -> Iterator[race.Case]:
        yield race.Case("two", {"gradbook": lambda: None}, bytes=1e3)

    monkeypatch.setattr(race, "RACES", (one, two))
    found = race.cuda_race(2)
    assert [(r["case"], r["engine"]) for r in found["rows"]] == [
        ("one", "gradbook"), ("two", "gradbook")
    ]  # fmt: skip
    assert found["failed"] == {"one: torch": "MemoryError: no room", "one": "ValueError: no second"}
    assert found["rows"][1]["bytes_per_s"] == 1e6


def test_a_fault_of_the_card_leaves_the_rows_so_far(
    small_race: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, lines = [], []

    def sticky(*args: Any) -> None:
        if broken:
            raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access")

    def fault() -> Any:
        broken.append(1)
        sticky()

    def one(xp: Any, torch: Any) -> Iterator[race.Case]:
        yield race.Case("one", {"gradbook": lambda: None, "torch": fault, "late": lambda: None})

    def two(xp: Any, torch: Any) -> Iterator[race.Case]:
        raise AssertionError("after the fault")
        yield

    runtime = small_race.cuda.runtime
    for place in (runtime, small_race.get_default_memory_pool(), small_race.cuda.Event):
        for name in ("deviceSynchronize", "free_all_blocks", "record"):
            if hasattr(place, name):
                monkeypatch.setattr(place, name, sticky)
    monkeypatch.setattr(race, "RACES", (one, two))
    found = race.cuda_race(2, say=lines.append)
    assert [(r["case"], r["engine"]) for r in found["rows"]] == [("one", "gradbook")]
    assert [json.loads(line) for line in lines[1:]] == found["rows"]
    assert "illegal" in found["failed"]["one: torch"] and "CardLost" in found["failed"]["one"]
    assert "two" not in found["failed"] and found["gpu"] == "a pretended card"


def test_the_bench_without_a_card_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="needs CuPy"):
        race.cuda_race()


def test_without_a_card_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    for call in (
        lambda: gb.Tensor([1.0], device="cuda"),
        lambda: nn.Linear(2, 3).to("cuda"),
        lambda: DataLoader(ArrayDataset(np.arange(4)), device="cuda"),
    ):
        with pytest.raises(DeviceError, match=r"pip install 'gradbook\[cuda\]'"):
            call()


# the compiler for real cards


def test_every_kernel_compiles_without_spills() -> None:
    try:
        nvrtc.nvrtc()
        nvrtc.located("nvidia-cuda-nvdisasm", "nvdisasm")
    except nvrtc.NoNVRTC as missing:
        pytest.skip(str(missing))
    rows = nvrtc.check_all(nvrtc.ARCHITECTURES if os.environ.get("FULL") else ("sm_90",))
    assert not [row for row in rows if row.spills or row.stack]
    low = [row for row in rows if "convolve" in row.kernel and "bf16" in row.options]
    assert low and all(row.mma for row in rows if "tensor" in row.kernel or row in low)
    listed = {name for source, _ in nvrtc.CHECKED for name in source.names}
    assert {row.kernel for row in rows} == listed


def test_all_sources_are_compiled() -> None:
    known = {id(source) for source, _ in nvrtc.CHECKED}
    for module in (kernels, fused):
        for name, value in vars(module).items():
            if isinstance(value, kernels.Source):
                assert id(value) in known, name


# a real card


def card() -> bool:
    try:
        return bool(__import__("cupy").cuda.is_available())
    except ImportError:
        return False


gpu = pytest.mark.skipif(not card(), reason="no CuPy with a GPU")


@gpu
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_primitive_agrees_on_the_card(dtype: str, own: bool) -> None:
    with switch.own_kernels(own):
        table = agree.agreement_table(dtype, "cuda")
    assert not [row for row in table if row.trouble or not row.error <= agree.LIMITS[dtype]]


@gpu
@pytest.mark.parametrize("rung", kernels.MATMUL_RUNGS)
def test_matmul_on_the_card(rung: str) -> None:
    import cupy

    for m, k, n in ((1, 1, 1), (31, 33, 127), (1000, 127, 33), (512, 256, 1024)):
        a, b = some(m, k), some(k, n, seed=1)
        if rung == "tensor":
            a, b = to_bf16(a), to_bf16(b)
            wanted = from_bf16(a) @ from_bf16(b)
            found = from_bf16(cupy.asnumpy(kernels.matmul(cupy.asarray(a), cupy.asarray(b))))
        else:
            wanted = a @ b
            found = cupy.asnumpy(kernels.matmul(cupy.asarray(a), cupy.asarray(b), rung))
        assert near(found, wanted, 1e-2 if rung == "tensor" else 1e-5)


@gpu
@DROPS
@pytest.mark.parametrize("t, s, d, shift", [*ATTENTIONS, (1000, 1000, 64, 0)])
def test_attention_on_the_card(t: int, s: int, d: int, shift: int | None, drop: Any) -> None:
    import cupy

    q, k, v, g = some(2, t, d), some(2, s, d, seed=1), some(2, s, d, seed=2), some(2, t, d, seed=3)
    how: dict[str, Any] = {"scale": 0.3, "shift": shift, "drop": drop}
    g_lse = some(2, t, 1, seed=4)
    wanted = attention.attend.primitive.impl(np, q, k, v, **how)
    found = fused.attend(*map(cupy.asarray, (q, k, v)), **how)
    assert all(near(cupy.asnumpy(a), b, 2e-5) for a, b in zip(found, wanted))
    down = (g, g_lse, *wanted, q, k, v)
    slopes = attention.attend_back.primitive.impl(np, *down, **how)
    back = fused.attend_back(*map(cupy.asarray, down), **how)
    assert all(near(cupy.asnumpy(a), b, 5e-5) for a, b in zip(back, slopes))
    if d % 16 == 0:
        halves = [to_bf16(x) for x in (q, k, v)]
        wanted = attention.attend.primitive.impl(np, *map(from_bf16, halves), **how)
        out, _ = fused.attend(*map(cupy.asarray, halves), **how)
        assert near(from_bf16(cupy.asnumpy(out)), wanted[0], 1e-2)


@gpu
def test_dropout_on_the_card_has_the_same_bits() -> None:
    import cupy

    x, key = some(1001), random.key(7)
    found = fused.dropout(cupy.asarray(x), 0.3, key)
    assert (cupy.asnumpy(found) == norm.dropout(x, 0.3, key=key).numpy()).all()


@gpu
def test_training_on_the_card_is_training() -> None:
    here, _, _ = trained("cpu", AdamW)
    there, _, _ = trained("cuda", AdamW)
    assert np.allclose(there, here, rtol=1e-3)


@gpu
@DROPS
@pytest.mark.parametrize("t, s, d, shift", [*LOW_ATTENTIONS, (1000, 1000, 64, 0)])
def test_attention_back_on_the_cards_tensor_cores(
    t: int, s: int, d: int, shift: int | None, drop: Any
) -> None:
    import cupy

    halves = [to_bf16(some(2, n, d, seed=k)) for k, n in enumerate((t, s, s, t))]
    q, k, v, g = map(from_bf16, halves)
    how: dict[str, Any] = {"scale": 0.2, "shift": shift, "drop": drop}
    wanted = attention.attend.primitive.impl(np, q, k, v, **how)
    slopes = attention.attend_back.primitive.impl(np, g, 0 * wanted[1], *wanted, q, k, v, **how)
    *qkv, slope = map(cupy.asarray, halves)
    out, lse = fused.attend(*qkv, **how)
    back = fused.attend_back(slope, 0 * lse, out, lse, *qkv, **how)
    assert all(near(from_bf16(cupy.asnumpy(a)), b, 1e-2) for a, b in zip(back, slopes))


@gpu
@pytest.mark.parametrize("low", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=range(len(CONVOLUTIONS)))
def test_convolution_on_the_card(case: Any, low: bool) -> None:
    import cupy

    shape, window, stride, padding, dilation, groups = case
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    cast, back = (to_bf16, from_bf16) if low else (np.asarray, np.asarray)
    x, w = cast(some(*shape)), cast(some(*window, seed=1))
    y = conv.convolve.primitive.impl(np, back(x), back(w), **how)
    g = cast(some(*y.shape, seed=2))
    a, b, c = map(cupy.asarray, (x, w, g))
    found = [
        fused.convolve(a, b, None, **how),
        fused.convolve_transposed(c, b, size=shape[2:], **how),
        fused.convolve_weight(a, c, window=window[2:], **how),
    ]
    wanted = [
        y,
        conv.convolve_transposed.primitive.impl(np, back(g), back(w), size=shape[2:], **how),
        conv.convolve_weight.primitive.impl(np, back(x), back(g), window=window[2:], **how),
    ]
    for a, b in zip(found, wanted):
        assert near(back(cupy.asnumpy(a)), b, 2e-2 if low else 2e-5)


@gpu
@pytest.mark.parametrize("own", [True, False])
def test_a_gpt_on_the_card_is_a_gpt(own: bool) -> None:
    here, _, _ = gpt_steps("cpu")
    there, _, _ = gpt_steps("cuda", own)
    assert np.allclose(there, here, rtol=1e-3)


@gpu
def test_the_bench_on_the_card() -> None:
    found = race.cuda_race(2, SMALL)
    assert found["failed"] == {} and found["rows"]


def test_attention_with_more_heads_than_a_grid_is_high_stays_with_the_array_library() -> None:
    few, many = (np.ones((heads, 1, 1), np.float32) for heads in (65_535, 65_536))
    assert switch.one_lead(few, few, few) and not switch.one_lead(many, many, many)
