"The comparison: every engine right about each program it takes, and one that fails loses nothing."

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradbook import bench
from gradbook.bench import MissingExtra
from gradbook.roads import compare, cpp, native, peers
from gradbook.roads.engines import ENGINES, Case, Unable, case, operations, plain
from gradbook.roads.problems import Maths

NUMBERS = (
    "det_minors:3 det_lu:4 mat_mul:3 ode:2 polynomial:20 speelpenning:20 sparse_jacobian:8"
    " sparse_hessian:8 lax_wendroff:1 toon:1 robertson:5"
).split()
OTHERS = ("mlp:8", "waves:3", "many_ode:3", "many_det:10")
SLOW = {  # these compile for seconds what others do at once
    "tinygrad": ("det_minors:2", "polynomial:5", "mlp:4"),
    "JAX": ("det_minors:3", "polynomial:5", "mlp:4", "waves:3"),
    "Dr.Jit": ("det_minors:3", "polynomial:20", "ode:2", "toon:1", "many_ode:3", "many_det:10"),
}
REFUSED = {  # what a library has no means for
    ("micrograd", name): "has no" for name in ("sparse_jacobian", "sparse_hessian", "toon")
}
STUMBLES = {("micrograd", "det_lu"), ("CasADi", "det_lu")}  # abs(), and a graph that can't branch


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "plain Python"])
def test_gradients_are_those_of_mathematics(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "C" in name.split() and not native.available():
        pytest.skip("no C compiler on this machine")
    monkeypatch.setattr(sys, "setrecursionlimit", lambda limit: None)
    taken = 0
    for key in SLOW.get(name, (*NUMBERS, *OTHERS)):
        this = case(key)
        try:
            ready = ENGINES[name].prepared(this)
            slopes = np.asarray(ready.gradient(this.x)) if ready.gradient else None
        except MissingExtra as error:
            pytest.skip(str(error))
        except Unable as error:
            if "clang" in str(error):
                pytest.skip(str(error))
            assert this.kind not in ENGINES[name].kinds or (name, key.split(":")[0]) in REFUSED
            continue
        except (TypeError, RuntimeError):
            assert (name, key.split(":")[0]) in STUMBLES
            continue
        assert slopes is not None and slopes.dtype in (np.float64, np.float32)
        close = 1e-5 if slopes.dtype != np.float64 else 1e-12 if this.kind != "arrays" else 1e-11
        assert this.error(slopes) < close, key
        value = np.sum(np.asarray(ready.value(this.x), float)) if "taped" not in name else 0.0
        exact = np.sum(np.asarray(plain(this).value(this.x), float))
        assert value == pytest.approx(exact, rel=1e-12) or "gradbook" in name
        taken += 1
    assert taken >= 2


@pytest.mark.parametrize("name", list(cpp.LIBRARIES))
def test_programs_in_cpp(name: str) -> None:
    library = cpp.LIBRARIES[name]
    try:
        program = cpp.built(library)
    except ImportError as error:
        assert "not" in str(error)
        pytest.skip(f"{name}: {error}")
    except native.NativeError as error:
        pytest.skip(f"{name}: {error}")
    for key in NUMBERS:
        found = cpp.measured(program, case(key), repeat=2, seconds=0.001)
        assert len(found["value_s"]) >= 2 and found["first_s"] > 0
        if library.derives:
            assert case(key).error(found["gradient"]) < 1e-12, key
            assert found["recorded"] >= found["left"] > 0 and found["kept"] > 0


def test_no_slope_can_be_lost_and_none_is_constant() -> None:
    "Without the slope of any one input a case is wrong, and its slopes depend on the point."
    assert len({case(key).name for key in compare.KEYS}) == len(compare.KEYS)
    for key in compare.KEYS:
        this = case(key)
        if this.kind == "points":
            continue
        slopes = this.slopes(this.x)
        assert this.error(slopes) == 0.0
        for k in {*range(min(len(this.x), 64)), len(this.x) - 1}:
            less = slopes.copy()
            less[k] = 0.0
            assert this.kind == "arrays" or this.error(less) == 1.0, (key, k)
        assert not np.allclose(this.slopes(1.01 * this.x), slopes, rtol=1e-6), key


def test_the_sum_of_squares_in_cpp_and_without() -> None:
    this = case("lax_wendroff:1")
    try:
        program = cpp.built(cpp.LIBRARIES["CppAD"])
    except (ImportError, native.NativeError) as error:
        pytest.skip(str(error))
    sums = cpp.measured(program, this, repeat=2, seconds=0.001, squares=False)["gradient"]
    assert np.allclose(sums, this.problem.gradient(this.x), rtol=1e-12)


def test_operations_are_counted() -> None:
    assert operations(case("polynomial:20")) == 40
    assert operations(case("speelpenning:20")) == 19
    assert operations(case("det_minors:8")) == 207_840
    assert operations(case("many_det:7")) == 7 * (operations(case("det_minors:4")) or 0)
    assert operations(case("mlp:8")) is None
    for key in ("ode:10", "lax_wendroff:2", "robertson:2", "toon:2"):
        this = case(key)
        assert operations(this) == len(record(this).tape.codes)


def record(this: Case) -> Any:
    from gradbook.roads.taped import record

    return record(lambda x: this.total(x, Maths), this.x.tolist())


def enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    'Let workers know an engine "odd" whose adapter is `text`.'
    (tmp_path / "odd_engine.py").write_text(
        "import os, time, ctypes\nfrom gradbook.roads.engines import *\n"
        f"@engine('odd', '', 'numbers', 'odd')\ndef odd(case):\n    {text}\n",
        encoding="utf-8",
    )
    paths = [str(tmp_path), str(Path(compare.__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    monkeypatch.setattr(compare, "WORKER", "import odd_engine\n" + compare.WORKER)
    monkeypatch.setitem(ENGINES, "odd", compare.Engine("odd", "", ("numbers",), False, (), plain))


KEYS = ("polynomial:4", "det_minors:3", "mat_mul:2")


@pytest.mark.parametrize(
    "text, why",
    [
        ("os.abort() if 'det' in case.key else None; return plain(case)", "ended with -6"),
        ("time.sleep(60 if 'det' in case.key else 0); return plain(case)", "no answer within"),
        ("raise ValueError('no good')", "ValueError: no good"),
        ("return Ready(lambda x: 0, lambda x: [0.0])", "slopes of shape (1,), not"),
        ("raise Unable('has no loops')", "has no loops"),
    ],
)
def test_an_engine_that_fails_loses_nothing(
    text: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    enter(monkeypatch, tmp_path, text)
    answers = compare.race(KEYS, ("odd", "gradbook Value"), repeat=2, limit=2.5)
    assert set(answers) == {(k, name) for k in KEYS for name in ("odd", "gradbook Value")}
    assert why in answers["det_minors:3", "odd"]["why"]
    assert all("error" in answers[k, "gradbook Value"] for k in KEYS)
    if "det" in text:
        assert all("value_s" in answers[k, "odd"] for k in ("polynomial:4", "mat_mul:2"))
    assert {"case": case("det_minors:3").name, "engine": "odd"}.items() <= {
        k: v for o in compare.left_out(answers) for k, v in o.items() if "det" in o["case"]
    }.items()


def test_what_would_take_too_long_is_not_tried() -> None:
    sizes = {"ode:1": 10, "ode:10": 100, "ode:100": 1000, "toon:1": 5}
    done: dict[str, Any] = {"ode:1": {"first_s": 0.1}, "toon:1": {"why": "x", "lost": True}}
    assert compare.too_long("ode:10", done, sizes, 5.0) == {}
    done["ode:10"] = compare.too_long("ode:10", done, sizes, 0.5)
    assert done["ode:10"] == {"why": "not tried: it would take about 1 s", "guess": 1.0}
    assert compare.too_long("ode:100", done, sizes, 5.0)["guess"] == 10.0
    lost = {"ode:1": {"why": "no answer", "lost": True}}
    assert "no answer" in compare.too_long("ode:100", lost, sizes, 99.0)["why"]
    assert compare.too_long("ode:1", {}, sizes, 0.0) == {}


def test_absent_libraries_give_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise MissingExtra(f"needs {name}: pip install 'gradbook[compare]'")

    monkeypatch.setattr(peers, "peer", missing)
    for name, engine in ENGINES.items():
        if engine.package not in ("", "gradbook"):
            said = compare.answer(name, "polynomial:3", 2)["why"]
            assert "pip install" in said or "clang" in said
    monkeypatch.setenv("ADEPT_DIR", "/nowhere")
    monkeypatch.setattr(cpp, "version", missing)
    for name in ("Adept", "ADOL-C"):
        if name == "ADOL-C" and Path("/usr/include/adolc/adolc.h").exists():
            continue
        found = compare.by_program(name, ("polynomial:3",), 2, 5.0)
        assert "not " in found["polynomial:3"]["why"]


def test_no_compiler_and_one_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("PATH", str(tmp_path))
    native.builder.cache_clear()
    try:
        found = compare.by_program("C++ doubles", ("polynomial:3",), 2, 5.0)
        assert "failed (3) and said:\n    broken" in found["polynomial:3"]["why"]
        broken.unlink()
        native.builder.cache_clear()
        found = compare.by_program("C++ doubles", ("polynomial:3",), 2, 5.0)
        assert "no C compiler" in found["polynomial:3"]["why"]
    finally:
        native.builder.cache_clear()


def test_a_program_that_crashes_or_hangs(tmp_path: Path) -> None:
    if not shutil.which("sh"):
        pytest.skip("no shell here")
    for text, why in (("exit 7", "ended with 7"), ("exec sleep 60", "no answer within")):
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        with pytest.raises(native.NativeError, match=why):
            cpp.measured(program, case("polynomial:3"), 2, limit=0.5)
    with pytest.raises(native.NativeError, match="can't be run"):
        cpp.measured(tmp_path / "nothing", case("polynomial:3"), 2)


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("plain Python", "gradbook Value", "gradbook tape", "gradbook dual")
    report = compare.comparison(2, ("polynomial:20", "mlp:4"), names)
    record = json.loads(json.dumps(report.as_json()))
    assert record["name"] == "compare" and record["threads"] == 1 and record["versions"]["numpy"]
    assert {r["engine"] for r in record["rows"]} == set(names[1:])
    for row in record["rows"]:
        assert row["low_s"] <= row["median_s"] <= row["high_s"]
        assert row["error"] < 1e-12 and row["operations"] == 40 and row["dtype"] == "float64"
        assert row["over_function"] > 0 and row["over_plain"] > 0 and row["threads"] == 1
        assert row["ratio"] is None, "our fastest engine did not run"
        assert (row["record_s"] is None) == (row["engine"] != "gradbook tape")
    assert {o["engine"] for o in record["left_out"]} == set(names[1:])
    assert all("numbers only" in o["why"] for o in record["left_out"])
    text = str(report)
    assert "polynomial, 20 · 40 operations · plain Python" in text and "resident set" in text
    assert "forward mode: a tangent for each input" in text
    assert "compare" in bench.BENCHMARKS
    monkeypatch.setattr(compare, "comparison", lambda repeat, say: report)
    assert bench.BENCHMARKS["compare"].run(2) is report


def test_what_cannot_be_run_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "race", lambda *args, **more: pytest.fail("it started"))
    with pytest.raises(ValueError, match="repeat=1; a spread needs at least 2"):
        compare.comparison(1)
    with pytest.raises(ValueError, match=r"no engine 'Pytorch'; there are .*PyTorch"):
        compare.comparison(2, engines=("PyTorch", "Pytorch"))
    with pytest.raises(ValueError, match=r"no case 'waves2'; there are .*waves"):
        compare.comparison(2, ("waves2",))


def test_only_results_become_rows() -> None:
    found = {"gradient_s": [1.0, 2.0, 3.0], "value_s": [0.5, 0.5], "record_s": 4.0,
             "first_s": 5.0, "peak": 100, "kept": 0, "error": 0.0, "dtype": "float32",
             "operations": 4096}  # fmt: skip
    answers = {
        ("ode:2", "gradbook taped C"): found,
        ("ode:2", "CppAD"): found | {"gradient_s": [4.0, 4.0], "peak": 1 << 20, "shorten_s": 1.0},
        ("ode:2", "plain Python"): {"value_s": [0.25, 0.25]},
        ("ode:2", "JAX"): {"why": "tired"},
    }
    ours, cppad = compare.rows_of(answers)
    assert (ours.ratio, cppad.ratio) == (1.0, 0.5) and cppad.record_s == 5.0
    assert ours.bytes_per_operation is None and cppad.bytes_per_operation == 256
    assert ours.peak_bytes == 100
    assert ours.over_function == 4.0 and ours.over_plain == 8.0 and ours.plain_s == 0.25
    assert math.isclose(ours.low_s, 1.5) and math.isclose(ours.high_s, 2.5)
