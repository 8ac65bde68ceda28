"""Chapters as text, and their stored outputs.

    python -m tools.notebook text  nbs/01_numdiff.ipynb > chapter.py   # py:percent, to edit
    python -m tools.notebook write chapter.py nbs/01_numdiff.ipynb     # back: keeps ids and outputs
    python -m tools.notebook run   nbs/*.ipynb                         # execute, store outputs
    python -m tools.notebook check nbs/*.ipynb                         # execute, compare outputs

A cell that begins with `#| timing` prints what a clock said, which no second run repeats, and one
with `#| rounding` the last digits of sums that another processor adds up in another order. `run`
keeps the stored output of both once they have one (`--timings` measures again) and `check` runs
them without comparing. A chapter with a cell that begins with `#| needs: g++` is only run where
that program is; elsewhere its stored outputs stand.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

Cell = dict[str, Any]
VOLATILE = re.compile(r"^#\|\s*(?:timing|rounding)\b", re.M)
NEEDS = re.compile(r"^#\|\s*needs:\s*(\S+)", re.M)
KEY = re.compile(r"course\.ch\d\d[a-z]?")  # the modules with the keys of exercises


class PageName(NamedTuple):
    "09b_shape has the id 09b, by which pages are sorted, and the slug shape."

    id: str  # empty for a page outside the chapters
    slug: str

    @property
    def number(self) -> str:
        "The id as it is shown: 9b."
        return self.id.lstrip("0")


def page_name(path: Path | str) -> PageName:
    "The id and slug in the name of a notebook, with or without its ending."
    stem = Path(path).stem
    found = re.fullmatch(r"(\d\d[a-z]?)_(.+)", stem)
    return PageName(found[1], found[2]) if found else PageName("", stem)


def source(cell: Cell) -> str:
    "The text of a cell, which a notebook stores as a list of lines."
    return "".join(cell["source"])


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def load(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def save(notebook: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def from_cells(cells: list[Cell]) -> dict[str, Any]:
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def cell_id(kind: str, text: str, taken: Counter[str]) -> str:
    "A name that follows from the cell's content, so that writing a chapter twice gives no diff."
    name = hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest()[:8]
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"


def write(text: str, old: dict[str, Any] | None) -> dict[str, Any]:
    "The notebook that `text` (py:percent) describes, with ids and outputs from `old`."
    import jupytext

    parsed = jupytext.reads(text, fmt="py:percent")
    cells: list[Cell] = []
    for c in parsed.cells:
        cell: Cell = {"cell_type": c.cell_type, "id": "", "metadata": {}, "source": lines(c.source)}
        if c.cell_type == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    inherit(cells, (old or {"cells": []})["cells"])
    taken: Counter[str] = Counter(c["id"] for c in cells if c["id"])
    for cell in cells:
        cell["id"] = cell["id"] or cell_id(cell["cell_type"], source(cell), taken)
    return from_cells([dict(sorted(c.items())) for c in cells])


def inherit(cells: list[Cell], old: list[Cell]) -> None:
    "Give unchanged cells their old id and outputs, and cells edited in place their old id."
    a, b = ([(c["cell_type"], source(c)) for c in side] for side in (old, cells))
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            for was, now in zip(old[i1:i2], cells[j1:j2], strict=True):
                now["id"] = was["id"]
                if now["cell_type"] == "code":
                    now["outputs"] = was["outputs"]
        elif tag == "replace" and i2 - i1 == j2 - j1:
            for was, now in zip(old[i1:i2], cells[j1:j2], strict=True):
                if was["cell_type"] == now["cell_type"]:
                    now["id"] = was["id"]


def text_of(notebook: dict[str, Any]) -> str:
    "The notebook as py:percent text, without outputs."
    import jupytext

    node = jupytext.reads(json.dumps(notebook), fmt="ipynb")
    body = str(jupytext.writes(node, fmt="py:percent"))
    return re.sub(r"\A# ---\n.*?# ---\n+", "", body, flags=re.S)


def lacking(notebook: dict[str, Any]) -> str:
    "The first program that a chapter needs and that isn't here, or nothing."
    code = [source(c) for c in notebook["cells"] if c["cell_type"] == "code"]
    needed = [program for s in code for program in NEEDS.findall(s)]
    other = sys.platform != "linux"  # what a Mac calls g++ is another compiler
    return next((p for p in needed if not shutil.which(p) or (p == "g++" and other)), "")


def clean(output: dict[str, Any]) -> dict[str, Any]:
    "One output as it is stored: no counts, no volatile metadata, text as a list of lines."
    out = dict(output)
    if "execution_count" in out:
        out["execution_count"] = None
    if "data" in out:
        data = {k: lines(v) if isinstance(v, str) else v for k, v in out["data"].items()}
        if "text/html" in data and str(data.get("text/plain", "")).find("object") >= 0:
            del data["text/plain"]  # `<IPython.core.display.HTML object>` says nothing
        out["data"] = data
        out["metadata"] = {}
    if isinstance(out.get("text"), str):
        out["text"] = lines(out["text"])
    return out


class TimingFailed(RuntimeError):
    "A cell that asserts what a clock says has failed: the book is wrong, or the machine busy."


def execute(notebook: dict[str, Any], path: Path) -> list[list[dict[str, Any]]]:
    "Run all code cells in order in one shell and return their outputs; the first error ends it."
    from execnb.shell import CaptureShell

    os.environ["IN_TEST"] = "1"
    here = Path.cwd()
    shell = CaptureShell(path.resolve(), mpl_format=None)
    results: list[list[dict[str, Any]]] = []
    os.chdir(path.parent)
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            outputs = shell.run(source(cell))
            if shell.exc:
                sys.stderr.write(shell.prettytb(fname=path) or "")
                timed = source(cell).startswith("#| timing")
                kind = TimingFailed if timed else RuntimeError
                raise kind(f"{path.name}: cell {cell['id']} failed: {shell.exc!r}")
            stored = [clean(json.loads(json.dumps(o))) for o in outputs]
            results.append([o for o in stored if o.get("data") != {}])  # a value that shows itself
    finally:
        os.chdir(here)
        shell.close()
    return results


def run(path: Path, store: bool, timings: bool = False) -> str:
    "Execute a chapter; store its outputs, or return where they differ (empty if nowhere)."
    notebook, same, start = load(path), True, time.perf_counter()
    if program := lacking(notebook):
        print(f"{path.name}: not run, there is no {program} here; its outputs stand", flush=True)
        return ""
    changes: list[str] = []
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    for cell, outputs in zip(code, execute(notebook, path), strict=True):
        keep = VOLATILE.search(source(cell)) and cell["outputs"] and not timings
        if keep or cell["outputs"] == outputs:
            continue
        same = False
        changes.append(report(path, cell, outputs))
        cell["outputs"] = outputs
    if store and not same:
        save(notebook, path)
    verdict = "no change" if same else "outputs changed"
    print(
        f"{path.name}: {verdict} ({time.perf_counter() - start:.1f} s)",
        flush=True,
    )
    return "" if store else "\n".join(changes)


def report(path: Path, cell: Cell, now: list[dict[str, Any]]) -> str:
    "Where a cell's stored output and its new one part ways."
    was, new = (
        json.dumps(o, indent=1, ensure_ascii=False).splitlines() for o in (cell["outputs"], now)
    )
    diff = list(difflib.unified_diff(was, new, "stored", "now", lineterm="", n=1))[:40]
    return "\n".join(
        [f"{path.name}: cell {cell['id']} gives another output:", *(d[:200] for d in diff)]
    )


def in_parallel(work: Callable[..., str], files: list[Path], jobs: int, *args: Any) -> list[str]:
    """`work(file, *args)` for every file, each in a process of its own, the largest files first.

    A chapter whose clock said something else than its text gets a second chance, alone.
    """
    files = sorted(files, key=lambda f: -f.stat().st_size)
    if jobs > 1:  # threads of several libraries on the same cores wait for each other
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    context = multiprocessing.get_context("spawn")
    results, again = [], []
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        running = [(file, pool.submit(work, file, *args)) for file in files]
        for file, result in running:
            try:
                results.append(result.result())
            except TimingFailed as failure:
                if jobs == 1:
                    raise
                print(f"{failure}; once more, alone", flush=True)
                again.append(file)
            except RuntimeError:
                pool.shutdown(cancel_futures=True)
                raise
    if again:
        results += in_parallel(work, again, 1, *args)
    return [r for r in results if r]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["text", "write", "run", "check"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="chapters that run at the same time")
    parser.add_argument("--timings", action="store_true", help="with `run`: these cells, too")
    args = parser.parse_args()
    if args.action == "text":
        print(text_of(load(args.files[0])), end="")
    elif args.action == "write":
        text, target = args.files
        save(
            write(text.read_text(encoding="utf-8"), load(target) if target.exists() else None),
            target,
        )
    else:
        try:
            stale = in_parallel(run, args.files, args.jobs, args.action == "run", args.timings)
        except RuntimeError as failure:  # the traceback of the cell is on the screen already
            raise SystemExit(str(failure)) from None
        if stale:
            print("\n".join(stale))
            raise SystemExit(
                "stored outputs are stale: run `make run`, look at the change, and commit it"
            )


if __name__ == "__main__":
    main()
