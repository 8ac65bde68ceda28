"Compiled tapes: what is trusted, what happens without a compiler, and how long it takes."

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gradbook.roads import native, taped
from gradbook.roads.problems import lax_wendroff
from gradbook.roads.taped import record

needs_c = pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are POSIX's")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "An empty cache, and nothing remembered, before and after."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remembered = (native.sweeps, native.available, native.builder, native.private_folder)
    for function in remembered:
        function.cache_clear()
    yield tmp_path / "gradbook" / "native"
    for function in remembered:
        function.cache_clear()


SOURCE = "int answer(void) { return %d; }\n"


def answer(number: int = 42) -> int:
    return int(native.library(SOURCE % number, native.FLAGS).answer())


@needs_c
@posix
def test_libraries_are_built_once_and_kept_privately(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42 and answer(7) == 7
    assert len(list(fresh.glob("*.so"))) == 2 and not [p for p in fresh.iterdir() if p.is_dir()]
    assert fresh.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native, "build", None)  # not called again
    assert answer() == 42


@needs_c
@posix
@pytest.mark.parametrize("harm", ["cut", "other", "no stamp", "writable", "link"])
def test_a_library_that_is_not_what_was_built_is_built_again(fresh: Path, harm: str) -> None:
    native.library(SOURCE % 1, native.FLAGS)
    (made,) = fresh.glob("*.so")
    stranger = fresh / "stranger"
    if harm == "cut":
        content = made.read_bytes()[:100]
        made.unlink()
        made.write_bytes(content)
    elif harm == "other":
        made.unlink()
        made.write_bytes(b"\x7fELF not ours")
    elif harm == "no stamp":
        made.with_suffix(".sha256").unlink()
    elif harm == "writable":
        made.chmod(0o666)
    else:
        made.rename(stranger)
        made.symlink_to(stranger)
    assert not native.intact(made)
    native.library(SOURCE % 1, native.FLAGS)
    assert native.intact(made)


@needs_c
@posix
@pytest.mark.parametrize("harm", ["writable", "link", "file"])
def test_a_folder_that_others_can_write_to_is_not_used(fresh: Path, harm: str) -> None:
    fresh.parent.mkdir(parents=True)
    if harm == "writable":
        fresh.mkdir()
        fresh.chmod(0o777)
        (fresh / "planted.so").write_bytes(b"")
    elif harm == "link":
        (fresh.parent / "elsewhere").mkdir()
        fresh.symlink_to(fresh.parent / "elsewhere")
    else:
        fresh.write_text("in the way")
    with pytest.warns(RuntimeWarning, match="this run only"):
        assert answer() == 42
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert answer(7) == 7
    assert not list(fresh.glob("*.sha256")) if fresh.is_dir() else fresh.is_file()


@posix
def test_a_folder_of_someone_else_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.trusted(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert not native.trusted(tmp_path)


@needs_c
def test_a_source_that_does_not_compile(fresh: Path) -> None:
    with pytest.raises(native.NativeError, match=r"failed \(1\) and said:\n.*error"):
        native.library("this is no C\n", native.FLAGS)
    assert not list(fresh.glob("*.so")) and not [p for p in fresh.iterdir() if p.is_dir()]


@posix
@pytest.mark.parametrize("kind", ["missing", "failing", "silent"])
def test_without_a_compiler_it_is_said_once_and_numpy_takes_over(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if kind != "missing":
        for name in ("cc", "gcc", "clang"):
            script = folder / name
            script.write_text(
                f"#!/bin/sh\n[ $1 = --version ] && exit 0\nexit {kind == 'failing'}\n"
            )
            script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder) + (":/bin" if kind != "missing" else ""))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native.shutil, "which", own_which(folder))
    with pytest.warns(RuntimeWarning, match="tapes run in NumPy, since") as said:
        f = record(lambda x: taped.exp(x[0]) * x[1], [1.0, 2.0])
        g = record(lambda x: x[0] * x[1], [1.0, 2.0])
    assert len(said) == 1 and f.engine == g.engine == "numpy"
    assert np.allclose(f.gradient([0.0, 3.0]), [3.0, 1.0])
    assert np.allclose(f.gradients([[0.0, 3.0]] * 3)[1], [[3.0, 1.0]] * 3)
    assert np.allclose(f.hessian([0.0, 3.0]), [[3.0, 1.0], [1.0, 0.0]])
    with pytest.raises(native.NativeError):
        f.engine = "c"
    for _ in range(3):
        f.value_and_gradient([0.0, 3.0])
    with pytest.raises(native.NativeError):
        f.straighten()


def own_which(folder: Path):  # type: ignore[no-untyped-def]
    return lambda name: str(folder / name) if (folder / name).exists() else None


@needs_c
def test_first_and_later_use_take_little_time(fresh: Path) -> None:
    start = time.perf_counter()
    native.sweeps()
    first = time.perf_counter() - start
    later = []
    for _ in range(3):
        native.sweeps.cache_clear()
        native.builder.cache_clear()
        start = time.perf_counter()
        native.sweeps()
        later.append(time.perf_counter() - start)
    assert first < 30 and min(later) < 0.2  # 1.4 s and 4 ms on a quiet machine


@needs_c
def test_straight_line_code_of_two_thousand_operations(fresh: Path) -> None:
    problem = lax_wendroff(3, points=96)
    f = record(problem, problem.x)
    assert 1900 < len(f.tape.codes) <= taped.LONGEST
    start = time.perf_counter()
    f.straighten()
    assert time.perf_counter() - start < 15  # half a second on a quiet machine
    slopes = f.gradient(problem.x)
    assert np.abs(slopes - problem.gradient(problem.x)).max() < 1e-13


def test_importing_compiles_nothing() -> None:
    code = "import gradbook.roads.taped as t, sys; assert t.native.sweeps.cache_info().misses == 0"
    subprocess.run([sys.executable, "-c", code], check=True)
