"""gradbook's tapes beside CppAD's and ADOL-C's: `python -m tests.taped_peers [--write FILE]`.

The programs of `tests/peers/taped.cpp` are compiled here, and all engines run in turn.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np

from gradbook.bench import commit, machine
from gradbook.roads.optimise import optimise
from gradbook.roads.problems import det_minors, lax_wendroff, ode, toon
from gradbook.roads.taped import record

SOURCE = Path(__file__).with_name("peers") / "taped.cpp"
PROBLEMS = (det_minors(8), ode(10, 100), lax_wendroff(2000), toon(200))


def cppad_flags() -> list[str] | None:
    "How to compile with CppAD: the package cmeel-cppad, or the system's headers."
    try:
        found = [f.locate() for f in files("cmeel-cppad") or () if f.name.startswith("libcppad")]
    except PackageNotFoundError:
        found = []
    for library in map(Path, map(str, found)):
        base = library.parent
        flags = [f"-I{base.parent / 'include'}", f"-L{base}", f"-Wl,-rpath,{base}"]
        return ["-DCPPAD", *flags, "-lcppad_lib"]
    return ["-DCPPAD", "-lcppad_lib"] if Path("/usr/include/cppad").is_dir() else None


def adolc_flags() -> list[str] | None:
    return ["-DADOLC", "-ladolc"] if Path("/usr/include/adolc/adolc.h").exists() else None


def compiled(flags: list[str], folder: str) -> Path:
    made = Path(folder, flags[0].strip("-").lower())
    command = ["c++", "-O2", "-DNDEBUG", "-std=c++17", str(SOURCE), "-o", str(made), *flags]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


def ours(repeat: int) -> list[dict[str, Any]]:
    "The same measurements of gradbook's tapes, shortened and run in C."
    rows = []
    for problem in PROBLEMS:
        start = time.perf_counter()
        f = record(problem, problem.x)
        recorded = time.perf_counter()
        short, saved = optimise(f)
        shortened = time.perf_counter()
        forward, reverse = [], []
        g = np.zeros(0)
        for _ in range(repeat if saved.left > 100_000 else 10 * repeat):
            a = time.perf_counter()
            short.point(problem.x)
            b = time.perf_counter()
            g = short.reverse()
            forward.append(b - a)
            reverse.append(time.perf_counter() - b)
        rows.append(
            {
                "case": problem.name,
                "recorded": saved.recorded,
                "left": saved.left,
                "record_s": recorded - start,
                "shorten_s": shortened - recorded,
                "forward_s": float(np.median(forward)),
                "reverse_s": float(np.median(reverse)),
                "first_slope": float(g[0]),
                "sum_of_slopes": float(g.sum()),
            }
        )
    return rows


def compare(repeat: int = 21, rounds: int = 5) -> dict[str, Any]:
    "All engines that are here, in turn, by name: of each time, the best round's median."
    found: dict[str, Any] = {"gradbook": []}
    with tempfile.TemporaryDirectory() as folder:
        programs = {}
        for name, flags in (("CppAD", cppad_flags()), ("ADOL-C", adolc_flags())):
            if flags and shutil.which("c++"):
                programs[name] = [str(compiled(flags, folder)), str(repeat)]
                found[name] = []
        for _ in range(rounds):
            found["gradbook"].append(ours(repeat))
            for name, run in programs.items():
                done = subprocess.run(run, check=True, capture_output=True, text=True, cwd=folder)
                found[name].append([json.loads(line) for line in done.stdout.splitlines()])
    return {name: [best(rows) for rows in zip(*all_, strict=True)] for name, all_ in found.items()}


def best(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    "One case over all rounds."
    return {k: min(row[k] for row in rows) if k.endswith("_s") else v for k, v in rows[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    engines = compare()
    facts = {
        "command": "python -m tests.taped_peers --write nbs/results/taped_peers.json",
        "commit": commit(),
        "machine": machine(),
        "threads": 1,
        "engines": engines,
    }
    for name, rows in engines.items():
        for row in rows:
            times = " ".join(f"{row[k] * 1e3:9.3f} ms" for k in ("forward_s", "reverse_s"))
            print(f"{name:9} {row['case']:14} {row['recorded']:9,} -> {row['left']:9,} {times}")
    if args.write:
        args.write.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
