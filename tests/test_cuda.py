"Kernels without a graphics card: what the simulator sees, and that each kernel is right."

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cupy import COPIES, LAUNCHES, fake_cupy

import gradbook as gb
from gradbook import nn
from gradbook.cuda import agree, fused, kernels, nvrtc, race, sim, switch
from gradbook.cuda.kernels import KernelError, from_bf16, simulating, to_bf16
from gradbook.cuda.sim import NoCompiler, SimError, SimModule
from gradbook.data.datasets import ArrayDataset
from gradbook.data.loader import DataLoader
from gradbook.nn import attention, conv, norm
from gradbook.nn.losses import cross_entropy, surprisal, surprisal_slope
from gradbook.optim.adam import AdamW
from gradbook.tensor import random
from gradbook.tensor.backend import DeviceError
from gradbook.tensor.core import TABLE, Tensor, gradients

needs_compiler = pytest.mark.skipif(not sim.available(), reason="no C++ compiler")
ODD = (1, 31, 33, 127, 1000)
COPY = r"""
extern "C" __global__ void copy(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
"""


def run(
    body: str, *args: Any, threads: int = 64, blocks: int = 1, shared: int = 0, **how: Any
) -> Any:
    "Run a kernel whose text is a list of parameters and a body; returns its report."
    parameters, _, inside = body.partition(":")
    code = f'extern "C" __global__ void k({parameters}) {{\n{inside}\n}}'
    function = SimModule(code, **how).get_function("k")
    function((blocks,), (threads,), args, shared)
    return function.report


def floats(n: int) -> np.ndarray[Any, Any]:
    return np.arange(n, dtype="float32")


@needs_compiler
@pytest.mark.parametrize("order", sim.ORDERS)
def test_every_thread_runs_once(order: str) -> None:
    y = np.zeros(100, "int32")
    run("int* y: atomicAdd(y + threadIdx.x + 10 * blockIdx.x, 1);", y, threads=10, blocks=10,
        order=order)  # fmt: skip
    assert (y == 1).all()


@needs_compiler
def test_indices_in_three_dimensions() -> None:
    code = r"""
extern "C" __global__ void k(int* y) {
    int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    y[24 * b + t] = 100 * b + t;
}"""
    y = np.zeros((6, 24), "int32")
    SimModule(code).get_function("k")((1, 2, 3), (4, 3, 2), (y,))
    assert (y == 100 * np.arange(6)[:, None] + np.arange(24)).all()


@needs_compiler
def test_shuffles_votes_and_partial_masks() -> None:
    y = np.zeros((6, 32), "int32")
    run(
        """int* y:
        int l = threadIdx.x;
        y[l] = __shfl_xor_sync(0xffffffffu, l, 1);
        y[32 + l] = __shfl_down_sync(0xffffffffu, l, 4, 8);
        y[64 + l] = __shfl_up_sync(0xffffffffu, l, 3);
        y[96 + l] = __shfl_sync(0xffffffffu, l, 5, 16);
        y[128 + l] = (int)__ballot_sync(0xffffffffu, l % 2);
        if (l < 16) y[160 + l] = __all_sync(0xffffu, l < 16);""",
        y, threads=32, order="shuffled",
    )  # fmt: skip
    lane = np.arange(32)
    assert (y[0] == (lane ^ 1)).all()
    assert (y[1] == np.where(lane % 8 < 4, lane + 4, lane)).all()
    assert (y[2] == np.where(lane < 3, lane, lane - 3)).all()
    assert (y[3] == lane // 16 * 16 + 5).all()
    assert (y[4].astype("uint32") == 0xAAAAAAAA).all()
    assert (y[5, :16] == 1).all()


FAULTS = {
    "float* x: __syncthreads(); x[0] = x[threadIdx.x + 1];":
        "reads element 64 of argument 0; it has 64|race",
    "float* x: x[(int)threadIdx.x - 1] = 0;": "writes element -1 of argument 0",
    "float* x: x[threadIdx.x / 2] = threadIdx.x;": "race: .* element .* of argument 0",
    "float* x: __shared__ float s[64]; if (x[0] > 5) s[0] = 1; x[threadIdx.x] = s[5];":
        "nobody has written",
    "float* x: __shared__ float s[64]; s[threadIdx.x] = 1; x[threadIdx.x] = s[63 - threadIdx.x];":
        "byte .* of s",
    "float* x: if (threadIdx.x < 8) __syncthreads();\nx[threadIdx.x] = 1;\n__syncthreads();":
        "wait for each other",
    "float* x: if (threadIdx.x > 8) __syncwarp(); x[threadIdx.x] = 1;": "has ended",
    "float* x: if (threadIdx.x > 8) __syncwarp(0xffu); x[threadIdx.x] = 1;": "own mask",
    "float* x: *(float4*)(x + 1) = make_float4(1, 2, 3, 4);": "multiple",
    "float* x: for (int i = 0; i < 1000000000; i++) ((volatile float*)x)[threadIdx.x] = i;":
        "ever end",
    "float* x: extern __shared__ float d[]; d[threadIdx.x] = 1; x[threadIdx.x] = d[threadIdx.x];":
        "dynamic shared memory; the launch gave 32",
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("body", FAULTS)
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_faults_are_named(body: str, order: str) -> None:
    with pytest.raises(SimError, match=FAULTS[body]):
        run(body, floats(64), shared=32, order=order, budget=100_000)


@needs_compiler
def test_the_next_launch_after_a_fault_is_fine() -> None:
    module = SimModule(COPY, profile=True)
    copy = module.get_function("copy")
    with pytest.raises(SimError, match=r"element 32 of argument 0.*line 4"):
        copy((1,), (64,), (floats(32), floats(64), np.int32(64)))
    y = np.zeros(64, "float32")
    copy((1,), (64,), (floats(64), y, np.int32(64)))
    assert (y == floats(64)).all() and copy.report is not None and copy.report.sectors == 16


@needs_compiler
def test_blocks_have_no_order() -> None:
    body = "float* x: int t = threadIdx.x; if (blockIdx.x) x[t] = 1; else x[64 + t] = x[t];"
    with pytest.raises(SimError, match="race: block"):
        run(body, np.zeros(128, "float32"), blocks=2)


MISSED_IN_ONE_ORDER = {  # by a detector with too short a memory
    "float* x: x[blockIdx.x] = x[blockIdx.x] + x[blockIdx.x + 1];": (8, 1),
    "float* x: x[threadIdx.x + 1] = x[0]; __syncwarp(); if (threadIdx.x == 32) x[0] = 5;": (1, 64),
    "float* x: int t = threadIdx.x; x[t] = t;"
    " if (t < 16) { __syncwarp(0xffffu); x[64 + t] = x[t + 16]; }": (1, 32),
}


@needs_compiler
@pytest.mark.parametrize("body", MISSED_IN_ONE_ORDER)
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_races_are_found_in_each_order(body: str, order: str) -> None:
    blocks, threads = MISSED_IN_ONE_ORDER[body]
    with pytest.raises(SimError, match="race"):
        run(body, np.zeros(128, "float32"), blocks=blocks, threads=threads, order=order)


@needs_compiler
def test_half_a_warp_can_meet() -> None:
    run("float* x: int t = threadIdx.x; x[t] = t; if (t < 16) {"
        " __syncwarp(0xffffu); x[64 + t] = x[15 - t]; }", np.zeros(128, "float32"), threads=32,
        order="shuffled")  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("check", [True, False])
def test_meetings_without_end_are_stopped(check: bool) -> None:
    with pytest.raises(SimError, match="ever end"):
        run("float* x: for (;;) __syncthreads();", floats(1), budget=1000, check=check)


@needs_compiler
def test_launches_that_a_card_refuses() -> None:
    copy = SimModule(COPY).get_function("copy")
    args = (floats(64), floats(64), np.int32(64))
    for grid, block in (
        ((0,), (8,)), ((-1,), (8,)), ((1, 70_000), (8,)), ((1,), (1, 1, 128)), ((1,), (2000,)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"copy: \(-?\d+, \d+, 1\) blocks of \("):
            copy(grid, block, args)
    for wrong in (1, (), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="one to three numbers"):
            copy(wrong, (8,), args)


@needs_compiler
def test_arrays_and_numbers_of_another_kind_are_refused() -> None:
    x, y = floats(64), floats(64)
    copy = SimModule(COPY).get_function("copy")
    with pytest.raises(TypeError, match="of kind 'f'; int32 is 'i'"):
        copy((1,), (64,), (x.astype("int32"), y, np.int32(64)))
    with pytest.raises(TypeError, match="argument 2 is a number"):
        copy((1,), (64,), (x, y, "a"))
    with pytest.raises(TypeError, match="points to 8 bytes each; float32 has 4"):
        run("const long long* x: if (x[0]) return;", x)


@needs_compiler
def test_kernels_in_comments_are_no_kernels() -> None:
    module = SimModule(COPY + "// __global__ void old(int n)\n/* __global__ void older(int n) */\n")
    assert module.names == ["copy"]
    with pytest.raises(KeyError, match="the text has no"):
        SimModule("int x;").get_function("k")


@needs_compiler
def test_barriers_atomics_and_warps_make_order() -> None:
    run("float* x: __shared__ float s[64]; s[threadIdx.x] = threadIdx.x; __syncthreads();"
        " x[threadIdx.x] = s[63 - threadIdx.x]; __syncthreads(); s[threadIdx.x] = 0;",
        floats(64), order="shuffled")  # fmt: skip
    run("float* x: __shared__ float s[64]; s[threadIdx.x] = 1; __syncwarp();"
        " x[threadIdx.x] = s[threadIdx.x ^ 31];", floats(64), order="shuffled")  # fmt: skip
    total = np.zeros(1, "float32")
    run("float* x: atomicAdd(x, 1.0f);", total, blocks=3, order="reverse")
    assert total[0] == 192


@needs_compiler
def test_arguments_are_checked() -> None:
    copy = SimModule(COPY).get_function("copy")
    x, y = floats(64), floats(64)
    with pytest.raises(TypeError, match=r"argument 2 has 4 bytes, 64 has 8; give np.int32\(64\)"):
        copy((1,), (64,), (x, y, 64))
    with pytest.raises(TypeError, match="of kind 'i'"):
        copy((1,), (64,), (x, y, np.float32(64)))
    with pytest.raises(TypeError, match="2 arguments given, 3 expected"):
        copy((1,), (64,), (x, y))
    with pytest.raises(TypeError, match="points to 4 bytes each; float64 has 8"):
        copy((1,), (64,), (x.astype("float64"), y, np.int32(64)))
    with pytest.raises(ValueError, match="don't follow each other"):
        copy((1,), (64,), (floats(128)[::2], y, np.int32(64)))
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        copy((1,), (64,), (x, y, np.int32(64)))
    with pytest.raises(ValueError, match="threads"):
        copy((1,), (2048,), (x, x.copy(), np.int32(64)))
    with pytest.raises(KeyError, match="there are: copy"):
        SimModule(COPY).get_function("move")


@needs_compiler
def test_a_text_that_is_no_cpp_says_so() -> None:
    with pytest.raises(SimError, match="kernel:2"):
        run("float* x: x[threadIdx.x] = nonsense;", floats(64))


@needs_compiler
def test_compiled_kernels_are_kept_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = sim.cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first = SimModule(COPY).path
    stamp = first.stat().st_mtime_ns
    assert SimModule(COPY).path == first and first.stat().st_mtime_ns == stamp
    assert SimModule(COPY + "// other\n").path != first
    folder.chmod(0o777)
    assert sim.cache_folder() != folder  # somebody else could put a library there


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not sim.available()
    with pytest.raises(NoCompiler, match="no-such-compiler is not there"):
        sim.compiler()


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def some(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@needs_compiler
@pytest.mark.parametrize("order", sim.ORDERS)
@pytest.mark.parametrize("rung", kernels.SOFTMAX_RUNGS)
def test_softmax(rung: str, order: str) -> None:
    with simulating(order=order):
        for n in ODD:
            x = 3 * some(5, n)
            assert np.abs(kernels.softmax(x, rung) - softmax(x)).max() < 1e-6
            y = from_bf16(kernels.softmax(to_bf16(x), rung))
            assert np.abs(y - softmax(from_bf16(to_bf16(x)))).max() < 1e-2


@needs_compiler
@pytest.mark.parametrize("rung", kernels.MATMUL_RUNGS)
def test_matmul(rung: str) -> None:
    shapes = [(1, 1, 1), (31, 33, 127), (127, 31, 33), (1, 1000, 33), (64, 64, 72)]
    for (m, k, n), order in zip(shapes, ("forward", "reverse", "shuffled", "reverse", "forward")):
        a, b = some(m, k), some(k, n, seed=1)
        with simulating(order=order):
            if rung == "tensor":
                a, b = to_bf16(a), to_bf16(b)
                c, wanted = from_bf16(kernels.matmul(a, b)), from_bf16(a) @ from_bf16(b)
            else:
                c, wanted = kernels.matmul(a, b, rung), a @ b
        limit = 1e-2 if rung == "tensor" else 1e-5
        assert np.abs(c - wanted).max() <= limit * max(1, np.abs(wanted).max()), (m, k, n)


@needs_compiler
@pytest.mark.parametrize("rung", kernels.MATMUL_RUNGS)
def test_matmul_has_no_races(rung: str) -> None:
    a, b = some(33, 31), some(31, 40, seed=1)
    a, b = (to_bf16(a), to_bf16(b)) if rung == "tensor" else (a, b)
    with simulating(check=True, order="shuffled"):
        kernels.matmul(a, b, rung)


@needs_compiler
def test_a_forgotten_wait_for_a_copy_is_seen() -> None:
    source = kernels.TENSOR_MATMUL
    text = source.code.removeprefix(kernels.PRELUDE)
    hasty = kernels.Source(text.replace("copy_wait<STAGES - 2>();", ""), **source.defaults)
    a, b, c = to_bf16(some(64, 64)), to_bf16(some(64, 64, seed=1)), np.zeros((64, 64), "uint16")
    how: dict[str, Any] = {"shared": 3 * 2 * (128 * 40 + 32 * 136), "EVEN": 1}
    with simulating(check=True), pytest.raises(SimError, match="nobody has written"):
        hasty("matmul_tensor", (1, 1), 256, a, b, c, 64, 64, 64, **how)
    with simulating(check=False):
        hasty("matmul_tensor", (1, 1), 256, a, b, c, 64, 64, 64, **how)
    assert np.isnan(from_bf16(c)).all()


@needs_compiler
def test_simple_kernels() -> None:
    for n in (*ODD, 4096):
        x, y = some(n), some(n, seed=1)
        with simulating(check=n < 2000):
            assert np.allclose(kernels.axpy(0.3, x, y), y + np.float32(0.3) * x, atol=1e-6)
            assert np.allclose(kernels.row_sum(x[None]), x.sum(), rtol=1e-5, atol=1e-5)


def test_kernels_refuse_what_they_cannot_do() -> None:
    with pytest.raises(KernelError, match="float64"):
        kernels.softmax(np.ones((2, 3)))
    with pytest.raises(KernelError, match="no rung 'fast'"):
        kernels.softmax(some(2, 3), "fast")
    with pytest.raises(KernelError, match=r"\(2, 3\) float32 @ \(2, 3\) float32"):
        kernels.matmul(some(2, 3), some(2, 3))


def test_bf16_rounds_to_even() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = np.concatenate([some(1000), np.float32([np.inf, -np.inf, 0, -0.0, 1e-40, 3.4e38, np.nan])])
    wanted = x.astype(ml_dtypes.bfloat16).astype("float32")
    assert np.array_equal(from_bf16(to_bf16(x)), wanted, equal_nan=True)


SHAPES = [(5, n) for n in ODD]


def near(x: Any, y: Any, limit: float = 1e-5) -> bool:
    y = np.asarray(y)
    return x.shape == y.shape and bool(np.abs(x - y).max() <= limit * max(1, np.abs(y).max()))


@needs_compiler
@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_norm(order: str) -> None:
    how: dict[str, Any] = {"axis": (1,), "eps": 0.1}
    with simulating(order=order):
        for shape in SHAPES:
            x, g = some(*shape), some(*shape, seed=1)
            gm, gv = some(shape[0], 1, seed=2), some(shape[0], 1, seed=3)
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
def test_layer_norm_with_weights() -> None:
    for n in ODD:
        x, w, b = Tensor(some(9, n), True), Tensor(some(n, seed=1), True), Tensor(some(n), True)
        g = some(9, n, seed=2)
        y = norm.layer_norm(x, n, w, b)
        wanted = gradients(y, [x, w, b], Tensor(g))
        with simulating(check=n < 100):
            found, mean, rstd = fused.layer_norm(x.data, w.data, b.data)
            back = fused.layer_norm_back(g, x.data, w.data, mean, rstd)
        assert near(found, y.numpy()), n
        assert all(near(a, c.numpy(), 1e-4 if n == 1 else 2e-5) for a, c in zip(back, wanted)), n


@needs_compiler
def test_losses() -> None:
    for n in ODD:
        x, targets = 3 * some(7, n), np.random.default_rng(n).integers(0, n, 7)
        g = some(7, seed=1)
        with simulating(order="shuffled", check=n < 200):
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
def test_flat_kernels() -> None:
    for n in (*ODD, 4097):
        x, g = 3 * some(n), some(n, seed=1)
        for name in ("gelu", "gelu_tanh"):
            assert near(fused.flat(name, x), TABLE[name].impl(np, x))
            assert near(fused.flat(f"{name}_slope", g, x), TABLE[f"{name}_slope"].impl(np, g, x))
            half = from_bf16(fused.flat(name, to_bf16(x)))
            assert near(half, TABLE[name].impl(np, from_bf16(to_bf16(x))), 1e-2)
        p, m, v = x.copy(), np.zeros_like(x), np.zeros_like(x)
        parameter = Tensor(x, requires_grad=True)
        optimiser = AdamW([parameter], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
        for step in (1, 2, 3):
            parameter.grad = Tensor(g * step)
            optimiser.step()
            fused.adamw_(p, g * np.float32(step), m, v, step, 0.1, (0.8, 0.9), 1e-3, 0.3)
        assert near(p, parameter.numpy())


@needs_compiler
def test_embedding_is_exact_and_repeatable() -> None:
    for tokens, dim in ((1, 1), (31, 33), (127, 31), (1000, 33)):
        ids = np.random.default_rng(0).integers(0, 20, tokens)
        g = some(tokens, dim)
        wanted = np.zeros((20, dim), "float32")
        np.add.at(wanted, ids, g)
        found = []
        for order in sim.ORDERS:
            with simulating(order=order):
                found.append(fused.embedding_back(ids, g, 20))
        assert near(found[0], wanted)
        assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@needs_compiler
def test_dropout_has_the_bits_of_chapter_7() -> None:
    for n in (*ODD, 1001):
        key = random.key(n)
        assert (fused.random_words(key, n, some(1)) == random.bits(key, n)).all()
        for p in (0.0, 0.1, 0.5, 0.999999, 1.0):
            x = some(n)
            wanted = x if not p else norm.dropout(x, p, key=key).numpy()
            found = fused.dropout(x, p, key)
            if p:
                assert (found == wanted).all()
                assert (found == x * fused.dropout_mask(key, p, x.shape, x)).all()


CONVOLUTIONS = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((2, 3, 31, 33), (5, 3, 3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2)),
    ((1, 8, 9, 127), (70, 8, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((3, 2, 11, 10), (4, 2, 5, 5), (3, 2), ((2, 2), (0, 3)), (2, 1)),
]


@needs_compiler
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case: Any) -> None:
    shape, window, stride, padding, dilation = case
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    x, w, b = some(*shape), some(*window, seed=1), some(window[0], seed=2)
    y = conv.convolve.primitive.impl(np, x, w, b, groups=1, **how)
    g = some(*y.shape, seed=3)
    with simulating(order="shuffled"):
        assert near(fused.convolve(x, w, b, **how), y)
        assert near(fused.convolve(x, w, None, **how), y - b[:, None, None], 2e-5)
        back = fused.convolve_transposed(g, w, size=shape[2:], **how)
        wanted = conv.convolve_transposed.primitive.impl(
            np, g, w, size=shape[2:], groups=1, **how
        )
        assert near(back, wanted)
        back = fused.convolve_weight(x, g, window=window[2:], **how)
        wanted = conv.convolve_weight.primitive.impl(np, x, g, window=window[2:], groups=1, **how)
        assert near(back, wanted, 2e-5)


ATTENTIONS = [(1, 1, 1, 0), (31, 33, 31, 2), (33, 33, 33, 0), (127, 127, 64, 0),
              (33, 31, 127, None), (5, 40, 16, 35), (40, 5, 8, -35)]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("t, s, d, shift", ATTENTIONS)
def test_attention(t: int, s: int, d: int, shift: int | None) -> None:
    q, k, v, g = some(2, t, d), some(2, s, d, seed=1), some(2, s, d, seed=2), some(2, t, d, seed=3)
    g_lse, how = some(2, t, 1, seed=4), {"scale": 0.3, "shift": shift}
    wanted = attention.attend.primitive.impl(np, q, k, v, **how)
    with simulating(order="reverse"):
        found = fused.attend(q, k, v, **how)
        assert all(map(near, found, wanted))
        back = fused.attend_back(g, g_lse, *wanted, q, k, v, **how)
    slopes = attention.attend_back.primitive.impl(np, g, g_lse, *wanted, q, k, v, **how)
    assert all(near(a, b, 2e-5) for a, b in zip(back, slopes))


@needs_compiler
@pytest.mark.parametrize("t, s, d, shift", [(1, 1, 16, 0), (33, 127, 64, 94), (127, 127, 32, None)])
def test_attention_on_tensor_cores(t: int, s: int, d: int, shift: int | None) -> None:
    halves = [to_bf16(some(2, n, d, seed=k)) for k, n in enumerate((t, s, s))]
    q, k, v = map(from_bf16, halves)
    wanted = attention.attend.primitive.impl(np, q, k, v, scale=0.2, shift=shift)
    with simulating(order="shuffled"):
        out, lse = fused.attend(*halves, 0.2, shift)
    assert near(from_bf16(out), wanted[0], 1e-2) and near(lse, wanted[1], 1e-2)


@needs_compiler
@pytest.mark.parametrize(
    "call",
    [
        lambda: fused.attend(some(1, 33, 8), some(1, 33, 8), some(1, 33, 8), 0.1, 0),
        lambda: fused.attend(*(to_bf16(some(1, 65, 16)) for _ in "qkv"), 0.1, 0),
        lambda: fused.attend_back(*(some(1, 33, k) for k in (8, 1, 8, 1, 8, 8, 8)), 0.1, 0),
        lambda: fused.convolve(some(1, 2, 5, 9), some(3, 2, 3, 3), None, stride=(1, 1),
                               padding=((1, 1), (1, 1)), dilation=(1, 1)),
        lambda: fused.dropout(some(33), 0.5, random.key(0)),
        lambda: fused.embedding_back(np.arange(33) % 5, some(33, 7), 5),
    ],
)  # fmt: skip
def test_no_kernel_has_a_race(call: Any) -> None:
    with simulating(check=True, order="shuffled"):
        call()


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


@needs_compiler
def test_the_bench_runs_on_a_pretended_card() -> None:
    with fake_cupy() as cupy:
        cases = [
            *race.memory_cases(cupy, None, rows=8, n=64), *race.loss_cases(cupy, None, 4, 48),
            *race.product_cases(cupy, None, 16), *race.attention_cases(cupy, None, 2, 40, 16),
            *race.training_cases(cupy, None, 2),
        ]  # fmt: skip
        rows = [row for case in cases for row in race.run_case(cupy, case, 2)]
    assert {row["engine"] for row in rows} == {"gradbook", "cupy", "cublas", "gradbook, cupy"}
    assert all(row["ratio"] == 1.0 and row["median_s"] == 1e-3 for row in rows)
    assert LAUNCHES["matmul_tensor"] and LAUNCHES["adamw"] and LAUNCHES["convolve_weight"]


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
    assert all(row.mma for row in rows if "tensor" in row.kernel)
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
@pytest.mark.parametrize("t, s, d, shift", [*ATTENTIONS, (1000, 1000, 64, 0)])
def test_attention_on_the_card(t: int, s: int, d: int, shift: int | None) -> None:
    import cupy

    q, k, v, g = some(2, t, d), some(2, s, d, seed=1), some(2, s, d, seed=2), some(2, t, d, seed=3)
    g_lse, how = some(2, t, 1, seed=4), {"scale": 0.3, "shift": shift}
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
