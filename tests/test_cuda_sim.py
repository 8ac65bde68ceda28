"What the simulator of kernels sees, and that no kernel ends Python."

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradbook.course import core
from gradbook.course.core import EXERCISES, judge
from gradbook.cuda import sim
from gradbook.cuda.sim import NoCompiler, SimError, SimModule
from tools.notebook import lacking, load

pytestmark = pytest.mark.skipif(not sim.available(), reason="no C++ compiler")
BOTH = pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
EACH = pytest.mark.parametrize("order", sim.ORDERS)


def kernel(body: str, head: str = 'extern "C"', **how: Any) -> Any:
    "A kernel `k` whose text is a list of parameters, a colon, and a body in lines of its own."
    parameters, _, inside = body.partition(":")
    return SimModule(f"{head} __global__ void k({parameters}) {{\n{inside}\n}}", **how)


def run(body: str, x: Any = None, threads: int = 64, blocks: int = 1, **how: Any) -> Any:
    "Run it on one array of floats, 64 zeros by default; the report."
    function = kernel(body, **how).get_function("k")
    function((blocks,), (threads,), (np.zeros(64, "float32") if x is None else x,))
    return function.report


# stray accesses

TWO = """float* x: __shared__ float a[64], b[64];
int t = threadIdx.x;
a[t] = x[t], b[t] = 1;
float *p = a + t, *q = b + t;
{}
x[t] = a[t] + b[t];"""
STRAYS = {  # in shared memory, by an index and by a pointer
    "if (t == 0) a[t - 1] = 2;": r"thread 0 of block 0: index -1 of an array of type 'float \[64",
    "if (t == 63) b[t + 1] = 2;": r"thread 63 of block 0: index 64 of an array of type 'float \[64",
    "if (t == 0) p[-1] = 2;": r"thread 0 of block 0 writes element -1 of a; it has 64",
    "if (t == 63) x[t] = p[1];": r"thread 63 of block 0 reads element 64 of a; it has 64",
    "if (t == 0) q[-1] = 2;": r"thread 0 of block 0 writes element -1 of b; it has 64",
    "if (t == 63) q[1] = 2;": r"thread 63 of block 0 writes element 64 of b; it has 64",
}


@EACH
@pytest.mark.parametrize("line", STRAYS)
def test_each_shared_array_is_watched_on_its_own(line: str, order: str) -> None:
    with pytest.raises(SimError, match=STRAYS[line] + rf".*\(line 6: {re.escape(line)}\)"):
        run(TWO.format(line), order=order)


def test_rows_of_a_shared_array_have_their_bounds() -> None:
    with pytest.raises(SimError, match=r"index 8 of an array of type 'float \[8\]'"):
        run("float* x: __shared__ float s[8][8]; int t = threadIdx.x; s[0][t] = 1; x[t] = s[0][t];")


def test_a_local_array_has_its_bounds() -> None:
    body = "float* x: float a[4]; for (int i = 0; i < 4; i++) a[i] = x[i];\n"
    with pytest.raises(SimError, match=r"index 6 of an array of type 'float \[4\]' \(line 3: a\["):
        run(body + "a[(int)x[0] + 6] = 7;\nx[threadIdx.x] = a[(int)x[1]];")


def test_a_pointer_to_another_threads_local_array() -> None:
    body = """float* x: __shared__ float* p; volatile float own[2]; own[threadIdx.x & 1] = 1;
if (threadIdx.x == 0) p = (float*)own;
__syncthreads();
x[threadIdx.x] = p[0];"""
    with pytest.raises(SimError, match="thread 1 of block 0 reaches into a local array of thread"):
        run(body)


WILD = {
    "x[1000000000] = 1;": "far from any array|where nothing is",
    "x[-1000000000] = 1;": "far from any array|where nothing is",
    "*(float*)(size_t)16 = 1;": "far from any array|where nothing is",
    "x[0] = *(float*)(size_t)(threadIdx.x * 4);": "far from any array|where nothing is",
    "volatile float big[40000]; big[(int)x[0]] = 1; x[0] = big[5];": "local arrays need more than",
    "x[0] = 5 / (int)x[1];": "divides a whole number by zero",
    "__builtin_trap();": "no code",
}


@BOTH
@pytest.mark.parametrize("line", WILD)
def test_a_wild_address_ends_the_kernel_and_not_python(line: str, check: bool) -> None:
    for _ in range(2):
        with pytest.raises(SimError, match=WILD[line]):
            run(f"float* x: {line}", check=check)
    x = np.zeros(64, "float32")
    run("float* x: x[threadIdx.x] = threadIdx.x;", x, check=check)
    assert (x == np.arange(64)).all()


ENDS = {  # what would end Python
    "exit(3);": "calls exit; `return` ends a thread",
    "exit(0);": "calls exit",
    "_Exit(2);": "calls _Exit",
    "abort();": "calls abort",
    "quick_exit(1);": "calls quick_exit",
    "__trap();": "comes to a __trap",
    "assert(x[0] > 5);": r"assert\(x\[0\] > 5\) doesn't hold",
}


@BOTH
@pytest.mark.parametrize("line", ENDS)
def test_a_kernel_cannot_end_python(line: str, check: bool) -> None:
    body = f"float* x: if (threadIdx.x == 3) {line}"
    function = kernel(body, '#include <stdlib.h>\nextern "C"', check=check).get_function("k")
    said = rf"thread 3 of block 0:? {ENDS[line]}.*\(line 3: if \(threadIdx.x == 3\)"
    with pytest.raises(SimError, match=said):
        function((1,), (32,), (np.zeros(64, "float32"),))


@BOTH
@pytest.mark.parametrize("line", ["throw 1;", "assert(t < 3);"])
def test_nor_without_a_word_of_ours(line: str, check: bool) -> None:
    function = kernel(f"float* x: int t = threadIdx.x; {line}", check=check,
                      head='#include <assert.h>\nextern "C"').get_function("k")  # fmt: skip
    with pytest.raises(SimError, match=r"thread . of block 0"):
        function((1,), (32,), (np.zeros(64, "float32"),))


def test_an_assert_that_holds_says_nothing() -> None:
    x = np.zeros(64, "float32")
    run("float* x: assert(threadIdx.x < 64);\nx[threadIdx.x] = 1;", x)
    assert (x == 1).all()


FAR = {
    "x[threadIdx.x - 1] = 1;": r"element 4294967295 of argument 0\? An unsigned number",
    "for (unsigned k = 4; k >= 0; k--) x[k] = 1;": "element 4294967295 of argument 0",
    "if (threadIdx.x == 1) x[threadIdx.x * 1000000] = 1;": "element 1000000 of argument 0",
}


@pytest.mark.parametrize("line", FAR)
def test_a_far_address_is_named_as_an_element(line: str) -> None:
    with pytest.raises(SimError, match="writes far from any array;.* " + FAR[line]):
        run(f"float* x: {line}", threads=1 if "for" in line else 32)


def test_a_local_variable_that_nobody_has_set_is_not_zero() -> None:
    if not sim.rubbish():
        pytest.skip("this compiler can't fill them")
    x = np.zeros(64, "float32")
    run("float* x: float a[4], s; x[threadIdx.x] = a[threadIdx.x % 4] + s;", x)
    assert (np.abs(x) > 1e30).all()


def test_a_variable_outside_of_kernels_is_refused_in_words() -> None:
    module = kernel("float* x: atomicAdd(&counter, 1);", '__device__ int counter;\nextern "C"')
    with pytest.raises(SimError, match="a variable outside of all kernels; the simulator has"):
        module.get_function("k")((1,), (32,), (np.zeros(64, "float32"),))


# shuffles

NOBODY = {  # with the number of threads
    "x[t] = __shfl_sync(0xffff, 1.0f, 20);": (16, "line 2: lane 0 .* lane 20, which is not there"),
    "if (t < 16) x[t] = __shfl_sync(0xffff, 1.0f, 20);":
        (32, "line 2: lane 0 of warp 0 asks lane 20, which is not in the mask"),
    "float v = 1; for (int k = 16; k; k /= 2) v += __shfl_xor_sync(0xffffffff, v, k);":
        (48, "lane 0 of warp 1 asks lane 16, which is not there"),
    "if (t < 16) x[t] = __shfl_xor_sync(0xffff, 1.0f, 16);": (32, "lane 16, which is not in the"),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("line", NOBODY)
def test_a_shuffle_from_nobody_is_an_error(line: str, check: bool) -> None:
    threads, said = NOBODY[line]
    with pytest.raises(SimError, match=said):
        run(f"float* x: int t = threadIdx.x; {line}", threads=threads, check=check)


def test_part_of_a_warp_can_meet_and_shuffle() -> None:
    x = np.zeros(64, "float32")
    run("float* x: int t = threadIdx.x; __syncwarp();"
        " x[t] = __shfl_xor_sync(0xffffffff, t, 1) + __shfl_down_sync(0xffffu, t, 1, 4);",
        x, threads=16)  # fmt: skip
    t = np.arange(16)
    assert (x[:16] == (t ^ 1) + np.where(t % 4 < 3, t + 1, t)).all()


def test_words_that_other_texts_use() -> None:
    x = np.zeros(8, "float32")
    text = r"""
struct Pair { float a; __device__ float twice() { return 2 * a; } };
__device__ __noinline__ float third(float v) { return v / 3; }
extern "C" void __global__ __launch_bounds__(32) k(float* x) {
    dim3 size(3);
    Pair p{4}; int4 q = make_int4(1, 2, 3, 4); int2 r = make_int2(5, 6);
    float3 s = make_float3(1, 2, 3); uint32_t bits = 40;
    __threadfence_block();
    unsigned old = 7; atomicInc((unsigned*)x + 7, 3u);
    x[0] = max(1.0f, 2.0) + max(1, 2u) + min(3u, 5);
    x[1] = p.twice() + third(9), x[2] = q.w + r.y + s.z + size.x;
    x[3] = __clz(1) + __ffs(bits) + __clz(0), x[4] = FLT_MAX > 1e38f, x[5] = __sinf(0) + __cosf(0);
    x[6] = __powf(2, 3) + (old ^ 7);
}"""
    SimModule(text).get_function("k")((1,), (1,), (x,))
    assert x[:7].tolist() == [7, 11, 16, 31 + 4 + 32, 1, 1, 8] and x.view("uint32")[7] == 1


# loops without end: the limit


@pytest.mark.parametrize("line", ["while (true);", "while (true) x[0] += 1;"])
def test_without_a_limit_of_its_own_a_loop_ends_after_some_seconds(line: str) -> None:
    start = time.process_time()
    with pytest.raises(SimError, match="ever end"):
        run(f"float* x: {line}", threads=1)
    assert time.process_time() - start < 8


def test_handlers_and_timers_are_given_back() -> None:
    signals = signal.SIGINT, signal.SIGVTALRM, signal.SIGSEGV
    before = [signal.getsignal(s) for s in signals]
    enabled = faulthandler.is_enabled()
    with pytest.raises(SimError):
        run("float* x: while (true);", seconds=0.1)
    run("float* x: x[0] = 1;", threads=1, seconds=0.1)
    start = time.process_time()
    while time.process_time() < start + 0.3:  # a timer that was forgotten would end Python here
        pass
    assert before == [signal.getsignal(s) for s in signals]
    assert enabled == faulthandler.is_enabled()


# loops without end

ENDLESS = [
    "while (true);",
    "while (true) x[0] = expf(x[0]);",
    "for (int k = 32; k; k /= 1) if (k == 5) x[0] = 1;",
    "while (x[0] == 0.0f) x[1] += 1;",
    "while (true) __syncthreads();",
    "while (true) __syncwarp();",
    "float v = 1; while (true) v = __shfl_xor_sync(0xffffffffu, v, 1);",
    "while (atomicAdd(x, 0.0f) == 0.0f);",
]


@BOTH
@pytest.mark.parametrize("line", ENDLESS)
def test_every_loop_ends(line: str, check: bool) -> None:
    with pytest.raises(SimError, match="ever end"):
        run(f"float* x: {line}", threads=32, check=check, seconds=0.15)


def test_a_thread_of_python_can_run_kernels() -> None:
    said: list[str] = []

    def work() -> None:
        for line in ("while (true);", "x[1000000000] = 1;"):
            try:
                run(f"float* x: {line}", seconds=0.1, check=False)
            except SimError as error:
                said.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(s[:9] for s in said) == ["k: still ", "k: still ", "k: thread", "k: thread"]


def test_the_stop_button_stops_a_kernel() -> None:
    function = kernel("float* x: while (true);").get_function("k")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises((KeyboardInterrupt, SimError), match=r"^$|interrupted"):
        function((1,), (1,), (np.zeros(1, "float32"),))
        time.sleep(5)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("line", ["while (true);", "for (int k = 32; k; k /= 1) part[0] += 1;"])
def test_a_learners_endless_loop_comes_back_as_an_answer(line: str) -> None:
    exercise = EXERCISES.get("27.3") or core.find("27.3")
    text = 'extern "C" __global__ void total(const float* x, float* y) {\n'
    text += f"__shared__ float part[64]; part[threadIdx.x] = x[threadIdx.x];\n{line}\ny[0] = 1;\n}}"

    def total() -> str:
        return text

    start = time.process_time()
    result = judge(exercise, total)
    assert result.status in ("failed", "error", "timeout") and "ever end" in result.text
    assert time.process_time() - start < 6


def test_a_learners_slip_comes_back_once_and_with_its_line() -> None:
    exercise = EXERCISES.get("27.1") or core.find("27.1")
    result = judge(exercise, lambda: 'extern "C" __global__ void square(float* x) {\n  x[0] = 1\n}')
    assert result.status == "error" and result.text.count("(line 2: x[0] = 1)") == 1


# races

RACES = {  # with the numbers of blocks and threads
    "x[blockIdx.x] = x[blockIdx.x] + x[blockIdx.x + 1];": (8, 1),
    "x[threadIdx.x + 1] = x[0]; __syncwarp(); if (threadIdx.x == 32) x[0] = 5;": (1, 64),
    "int t = threadIdx.x; x[t] = t; if (t < 16) { __syncwarp(0xffffu); x[64 + t] = x[t + 16]; }":
        (1, 32),
    # every atomic addition counts, not only the last one
    "atomicAdd(x, 1); if (threadIdx.x == 5) x[1] = x[0];": (1, 64),
    "atomicAdd(x, 1); __syncwarp(); if (threadIdx.x == 5) x[1] = x[0];": (1, 64),
    "if (threadIdx.x < 40) atomicAdd(x, 1); else if (threadIdx.x == 40) x[0] = 1;": (1, 64),
    "atomicAdd(x, 1); if (blockIdx.x == 1) x[1] = x[0];": (3, 1),
    # every reader, not only the last few
    "float v = x[0]; __syncwarp(); if (threadIdx.x == 77) x[0] = v + 1;": (1, 128),
    "float v = x[0]; if (threadIdx.x == 3 && v < 5) x[0] = v + 1;": (1, 24),
}  # fmt: skip


@EACH
@pytest.mark.parametrize("line", RACES)
def test_races_are_found_in_each_order(line: str, order: str) -> None:
    blocks, threads = RACES[line]
    with pytest.raises(SimError, match="race: "):
        run(f"float* x: {line}", np.zeros(256, "float32"), threads, blocks, order=order)


ORDERED = [
    "atomicAdd(x, 1); __syncthreads(); if (threadIdx.x == 5) x[1] = x[0];",
    "atomicAdd(x + threadIdx.x / 32, 1); __syncwarp(); if (threadIdx.x % 32 == 5)"
    " x[8 + threadIdx.x / 32] = x[threadIdx.x / 32];",
    "float v = x[0]; __syncthreads(); if (threadIdx.x == 3) x[0] = v + 1; __syncthreads();"
    " x[1 + threadIdx.x] = x[0];",
    "__shared__ char f[128]; f[threadIdx.x] = 1; x[threadIdx.x] = f[threadIdx.x];",
    "__shared__ short f[128]; int t = threadIdx.x; f[t] = 1; __syncwarp(); x[t] = f[t ^ 1];",
    "unsigned char* f = (unsigned char*)x; f[threadIdx.x] = 1;",
    "if (threadIdx.x == 0) x[0] = 1; __syncthreads(); atomicAdd(x, 1.0f); atomicMax(x, 2.0f);",
]


@EACH
@pytest.mark.parametrize("line", ORDERED)
def test_what_is_in_order_is_no_race(line: str, order: str) -> None:
    run(f"float* x: {line}", np.zeros(256, "float32"), 128, order=order)


def test_atomics_need_a_beginning_and_give_the_old_value() -> None:
    with pytest.raises(SimError, match="adds to element 0 of s, where nobody has written"):
        run("float* x: __shared__ float s; atomicAdd(&s, 1); x[threadIdx.x] = 0;")
    x = np.zeros(64, "float32")
    run("float* x: __shared__ int s; if (threadIdx.x == 0) s = 0; __syncthreads();"
        " x[atomicAdd(&s, 1)] = 1; __syncthreads(); atomicCAS(&s, 64, 7); atomicSub(&s, 0);"
        " __syncthreads(); if (threadIdx.x == 0 && s != 7) x[0] = 9;",
        x, order="shuffled")  # fmt: skip
    assert (x == 1).all()


@pytest.mark.parametrize("broken", ["", "sim_wait(0);", "sim_wait(0); __syncwarp();"])
def test_a_copy_arrives_for_who_waits_and_for_others_after_a_barrier(broken: str) -> None:
    body = """float* x: __shared__ __attribute__((aligned(16))) float s[128]; int t = threadIdx.x;
if (t < 32) { sim_copy(s + 4 * t, x + 4 * t, 16); sim_commit(); }
%s
x[t] = s[(t + 64) %% 128];"""
    with pytest.raises(SimError, match=r"nobody has written|race"):
        run(body % broken, np.ones(128, "float32"), 128)
    x = np.arange(128, dtype="float32")
    run(body % "sim_wait(0); __syncthreads();", x, 128, order="shuffled")
    assert (x == np.roll(np.arange(128), -64)).all()


# what a card refuses


def test_static_shared_memory_has_a_limit() -> None:
    body = "float* x: __shared__ float s[{}]; s[threadIdx.x] = 1; x[threadIdx.x] = s[threadIdx.x];"
    run(body.format(12288))
    with pytest.raises(SimError, match=r"k: 49,156 bytes of shared memory; a card gives 49,152"):
        run(body.format(12289))


def test_more_dynamic_shared_memory_has_to_be_asked_for() -> None:
    body = "float* x: extern __shared__ float s[]; s[threadIdx.x] = 1; x[0] = s[threadIdx.x];"
    function = kernel(body).get_function("k")
    with pytest.raises(ValueError, match=r"50,000 bytes .* set max_dynamic_shared_size_bytes"):
        function((1,), (1,), (np.zeros(1, "float32"),), shared_mem=50_000)
    function.max_dynamic_shared_size_bytes = 50_000
    function((1,), (1,), (np.zeros(1, "float32"),), shared_mem=50_000)


TWO_NAMES = [
    '{k}{{ extern __shared__ float a[]; extern __shared__ float b[]; a[0] = b[0] = *x; }}',
    '{k}{{ extern __shared__ float a[]; extern volatile __shared__ int b[ ]; a[0] = b[0]; }}',
    'extern __shared__ float a[];\n{k}{{ extern __shared__ float b[]; a[0] = b[0] = *x; }}',
    '__device__ void f() {{ extern __shared__ float a[]; a[0] = 1; }}\n'
    '{k}{{ extern __shared__ float b[]; b[0] = *x; f(); }}',
]


@pytest.mark.parametrize("text", TWO_NAMES)
def test_two_names_for_dynamic_shared_memory_are_refused(text: str) -> None:
    with pytest.raises(SimError, match="__shared__ a, b: on a card they all begin at the same"):
        SimModule(text.format(k='extern "C" __global__ void k(float* x) '))


def test_each_kernel_may_name_its_dynamic_shared_memory() -> None:
    one = 'extern "C" __global__ void {0}(float* x) {{ extern volatile __shared__ {1} {0}s[ ];'
    one += " {0}s[threadIdx.x] = 5; x[threadIdx.x] = {0}s[threadIdx.x]; }}\n"
    module = SimModule(one.format("a", "float") + one.format("b", "int") + "// __shared__ c[]\n")
    for name in "ab":
        x = np.zeros(8, "float32")
        module.get_function(name)((1,), (8,), (x,), 32)
        assert (x == 5).all()


def test_a_kernel_without_extern_c_is_not_found() -> None:
    for head, found in (("", False), ("static int z; extern \"C\"", True),
                        ('/* extern "C" */', False), ('extern "C"\n', True),
                        ("#define Z 1 // x\n", False), ('}\nextern "C" {\n', None)):  # fmt: skip
        if found is None:
            assert not sim.without_c('extern "C" {\n__global__ void k(int n) {}\n}')
        elif found:
            kernel("float* x: x[0] = 1;", head).get_function("k")
        else:
            with pytest.raises(SimError, match='k has no `extern "C"` before its `__global__`'):
                kernel("float* x: x[0] = 1;", head).get_function("k")


@pytest.mark.parametrize(
    "grid, block, shared",
    [((0,), (8,), 0), ((1, 65_536), (8,), 0), ((1, 1, 65_536), (8,), 0), ((1,), (1, 1, 65), 0),
     ((1,), (1025,), 0), ((1,), (33, 32), 0), ((1,), (8,), -1), ((1,), (8,), 300_000)],
)  # fmt: skip
def test_launches_that_a_card_refuses(grid: Any, block: Any, shared: int) -> None:
    function = kernel("float* x: x[0] = 1;").get_function("k")
    with pytest.raises(ValueError, match=r"k: \(\d+, \d+, 1\) blocks of|k: \(1, 1, 65536\)"):
        function(grid, block, (np.zeros(1, "float32"),), shared)


# where it can't work


def test_elsewhere_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sim.readiness().startswith("simulator ready (")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not sim.available()
    assert sim.readiness().startswith("no simulator: the simulator of kernels needs Linux and g++")
    with pytest.raises(NoCompiler, match=r"this is darwin. It works in a container or, on Windows"):
        SimModule("int x;")
    chapter = load(Path(__file__).resolve().parent.parent / "nbs" / "27_cuda.ipynb")
    assert lacking(chapter) == "g++"  # so its stored outputs stand
    exercise = EXERCISES.get("27.3") or core.find("27.3")
    with pytest.raises(NoCompiler, match="container"):  # not a wrong answer, nor the book's fault
        judge(exercise, exercise.solution)
