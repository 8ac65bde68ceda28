"Kernels without a graphics card: what the simulator sees, and that each kernel is right."

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradbook.cuda import kernels, sim
from gradbook.cuda.kernels import KernelError, from_bf16, simulating, to_bf16
from gradbook.cuda.sim import NoCompiler, SimError, SimModule

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
        "element .* of s",
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
    with pytest.raises(TypeError, match="a floating-point number each time; the array has int32"):
        copy((1,), (64,), (x.astype("int32"), y, np.int32(64)))
    with pytest.raises(TypeError, match="argument 2 is a whole number, not 'a'"):
        copy((1,), (64,), (x, y, "a"))
    with pytest.raises(TypeError, match="points to 8 bytes each; float32 has 4"):
        run("const long long* x: if (x[0]) return;", x)


@needs_compiler
def test_kernels_in_comments_are_no_kernels() -> None:
    module = SimModule(COPY + "// __global__ void old(int n)\n/* __global__ void older(int n) */\n")
    assert module.names == ["copy"]
    with pytest.raises(KeyError, match="they begin with `__global__ void name"):
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
    with pytest.raises(TypeError, match=r"has 4 bytes, the number given 8; give np.int32\(64\)"):
        copy((1,), (64,), (x, y, 64))
    with pytest.raises(TypeError, match=r"argument 2 is a whole number, not np.float32\(64"):
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
    with pytest.raises(TypeError, match=r"the arguments are a tuple; of one array, \(x,\)"):
        copy((1,), (64,), x)
    with pytest.raises(ValueError, match="whole numbers, not"):
        copy((33 / 16,), (64,), (x, x.copy(), np.int32(64)))
    with pytest.raises(KeyError, match="there are: copy"):
        SimModule(COPY).get_function("move")


@needs_compiler
def test_a_text_that_is_no_cpp_says_so() -> None:
    with pytest.raises(SimError, match=r"(?s)\(line 2: .*nonsense.*a word of CUDA that the sim"):
        run("float* x: x[threadIdx.x] = nonsense;", floats(64))
    with pytest.raises(SimError, match=r"expected .* \(line 2: x\[0\] = 1\)$"):
        run("float* x: x[0] = 1", floats(64))
    with pytest.raises(SimError, match="a kernel is an ordinary function, no template"):
        SimModule("template <class T> __global__ void k(T* x) { x[0] = 1; }")
    with pytest.raises(SimError, match="undefined reference"):
        run("float* x: extern float elsewhere(float); x[1] = elsewhere(1);", floats(64))


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


PRODUCTS = [(n, n, n) for n in ODD[:-1]] + [(31, 1000, 33), (1000, 1, 127), (33, 127, 1000)]
PRODUCTS += [(64, 64, 72), (1, 1000, 33), (127, 31, 8)]  # some with rows at multiples of 16 bytes


@needs_compiler
@pytest.mark.parametrize("order", sim.ORDERS)
@pytest.mark.parametrize("rung", kernels.MATMUL_RUNGS)
def test_matmul(rung: str, order: str) -> None:
    for m, k, n in PRODUCTS:
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
@pytest.mark.parametrize("order", sim.ORDERS)
@pytest.mark.parametrize("rung", kernels.MATMUL_RUNGS)
def test_matmul_has_no_races(rung: str, order: str) -> None:
    for m, k, n in ((1, 1, 1), (33, 31, 40), (31, 64, 72)):
        a, b = some(m, k), some(k, n, seed=1)
        a, b = (to_bf16(a), to_bf16(b)) if rung == "tensor" else (a, b)
        with simulating(check=True, order=order):
            kernels.matmul(a, b, rung)


@needs_compiler
@pytest.mark.parametrize("order", sim.ORDERS)
@pytest.mark.parametrize("rung", kernels.SOFTMAX_RUNGS)
def test_softmax_has_no_races(rung: str, order: str) -> None:
    for n in (1, 33, 1000):
        for x in (some(3, n), to_bf16(some(3, n))):
            with simulating(check=True, order=order):
                kernels.softmax(x, rung)


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
@pytest.mark.parametrize("order", sim.ORDERS)
def test_simple_kernels(order: str) -> None:
    for n in (*ODD, 4096):
        x, y = some(n), some(n, seed=1)
        with simulating(check=n < 2000, order=order):
            assert np.allclose(kernels.axpy(0.3, x, y), y + np.float32(0.3) * x, atol=1e-6)
            assert np.allclose(kernels.row_sum(x[None]), x.sum(), rtol=1e-5, atol=1e-5)
            half = to_bf16(x)
            wanted = from_bf16(half).sum()
            assert np.allclose(kernels.row_sum(half[None]), wanted, rtol=1e-5, atol=1e-5)


def test_kernels_refuse_what_they_cannot_do() -> None:
    with pytest.raises(KernelError, match="float64"):
        kernels.softmax(np.ones((2, 3)))
    with pytest.raises(KernelError, match="no rung 'fast'"):
        kernels.softmax(some(2, 3), "fast")
    with pytest.raises(KernelError, match=r"\(2, 3\) float32 @ \(2, 3\) float32"):
        kernels.matmul(some(2, 3), some(2, 3))
    for x, y in ((some(3), some(4)), (some(4), some(3)), (some(4), to_bf16(some(4))),
                 (some(1, 4), some(4)), (np.ones(4), np.ones(4))):  # fmt: skip
        with pytest.raises(KernelError, match=r"axpy: .*; two arrays of float32 and of one shape"):
            kernels.axpy(1.0, x, y)
    for threads in (0, 16, 48, 100, 1056):
        with pytest.raises(KernelError, match=f"row_sum: {threads} threads; whole warps"):
            kernels.SIMPLE("row_sum", (1,), threads, some(1, 8), some(1), 8)


@needs_compiler
def test_sums_of_a_block_are_right_or_refused() -> None:
    code = kernels.PRELUDE + r"""
extern "C" __global__ void sums(float* y) {
    __shared__ float room[32];
    float sum = block_sum(1.0f, room), top = block_max(threadIdx.x, room);
    y[threadIdx.x] = sum + top;
}"""
    sums = SimModule(code).get_function("sums")
    for threads in (32, 64, 96, 128, 992, 1024):
        y = np.zeros(threads, "float32")
        sums((1,), (threads,), (y,))
        assert (y == 2 * threads - 1).all()
    for threads in (1, 16, 48, 100):
        with pytest.raises(SimError, match=r"asks lane .*, which is not there"):
            sums((1,), (threads,), (np.zeros(threads, "float32"),))


@needs_compiler
def test_turns_of_shared_memory_are_counted() -> None:
    one = np.ones((128, 128), "float32")
    warps = 128**3 // 32  # multiply-adds of a warp
    for rung, least in (("tiled", 2), ("blocked", 0.5), ("vectorised", 0.25)):
        with simulating(check=True, profile=True):
            kernels.matmul(one, one, rung)
        report = (kernels.VECTORISED if rung == "vectorised" else kernels.MATMUL).last
        assert report is not None and least < report.turns / warps < 1.1 * least


def test_bf16_rounds_to_even() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = np.concatenate([some(1000), np.float32([np.inf, -np.inf, 0, -0.0, 1e-40, 3.4e38, np.nan])])
    wanted = x.astype(ml_dtypes.bfloat16).astype("float32")
    assert np.array_equal(from_bf16(to_bf16(x)), wanted, equal_nan=True)
