"""gradbook's tapes beside CppAD's and ADOL-C's: `python -m tests.taped_peers [--write FILE]`.

The programs of `gradbook.roads.cpp`, compiled with -O3, our sweeps with -O2; all run in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gradbook.bench import commit, machine
from gradbook.roads import cpp
from gradbook.roads.engines import case
from gradbook.roads.native import NativeError
from gradbook.roads.optimise import optimise
from gradbook.roads.taped import record

KEYS = ("det_minors:8", "ode:100", "lax_wendroff:2000", "toon:200")


def programs() -> dict[str, Path]:
    "The programs of the libraries that are here. Raises NativeError."
    found = {}
    for name in ("CppAD", "ADOL-C"):
        try:
            found[name] = cpp.built(cpp.LIBRARIES[name])
        except ImportError:
            continue
    return found


def row(key: str, g: Any, **facts: Any) -> dict[str, Any]:
    slopes = {"first_slope": float(g[0]), "sum_of_slopes": float(np.sum(g))}
    return {"case": case(key).problem.name, **facts, **slopes}


def theirs(program: Path, key: str, repeat: int) -> dict[str, Any]:
    "Forward is the sweep that keeps what reverse needs."
    found = cpp.measured(program, case(key), repeat, seconds=5.0, squares=False)
    both, reverse = median(found["gradient_s"]), median(found["reverse_s"])
    facts = {k: found[k] for k in ("recorded", "left", "record_s", "shorten_s")}
    return row(key, found["gradient"], **facts, forward_s=both - reverse, reverse_s=reverse)


def ours(key: str, repeat: int) -> dict[str, Any]:
    "The same measurements of gradbook's tapes, shortened and run in C."
    x = case(key).x
    start = time.perf_counter()
    f = record(case(key).problem, x.tolist())
    recorded = time.perf_counter()
    short, saved = optimise(f)
    shortened = time.perf_counter()
    forward, reverse = [], []
    g = np.zeros(0)
    for _ in range(repeat if saved.left > 100_000 else 10 * repeat):
        a = time.perf_counter()
        short.point(x)
        b = time.perf_counter()
        g = short.reverse()
        forward.append(b - a)
        reverse.append(time.perf_counter() - b)
    return row(
        key,
        g,
        recorded=saved.recorded,
        left=saved.left,
        record_s=recorded - start,
        shorten_s=shortened - recorded,
        forward_s=median(forward),
        reverse_s=median(reverse),
    )


def compare(repeat: int = 21, rounds: int = 5) -> dict[str, list[dict[str, Any]]]:
    "All engines that are here, in turn, by name: of each time, the best round's median."
    found: dict[str, list[Any]] = {"gradbook": [], **{name: [] for name in programs()}}
    for _ in range(rounds):
        found["gradbook"].append([ours(key, repeat) for key in KEYS])
        for name, program in programs().items():
            found[name].append([theirs(program, key, repeat) for key in KEYS])
    return {name: [best(rows) for rows in zip(*all_, strict=True)] for name, all_ in found.items()}


def best(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    "One case over all rounds."
    return {k: min(row[k] for row in rows) if k.endswith("_s") else v for k, v in rows[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    try:
        engines = compare()
    except NativeError as error:
        raise SystemExit(str(error)) from None
    facts = {
        "command": "python -m tests.taped_peers --write nbs/results/taped_peers.json",
        "commit": commit(),
        "machine": machine(),
        "threads": 1,
        "engines": engines,
    }
    for name, rows in engines.items():
        for one in rows:
            times = " ".join(f"{one[k] * 1e3:9.3f} ms" for k in ("forward_s", "reverse_s"))
            print(f"{name:9} {one['case']:14} {one['recorded']:9,} -> {one['left']:9,} {times}")
    if args.write:
        args.write.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
