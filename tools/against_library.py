"""Run each chapter against the library instead of its own cells, with no later chapter in sight.

For chapter k, an empty folder gets the modules of chapters 1..k (and of the appendices, which
serve all of them) and nothing else. The chapter's exported cells are left out; every name they
define is taken from those modules. What passes here shows that the book is the library, and that
a chapter needs only what came before it.

    python -m tools.against_library [--jobs N] [chapter.ipynb ...]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.notebook import in_parallel, lacking, load, page_name, source

ROOT = Path(__file__).resolve().parent.parent
EXPORT = re.compile(r"^#\|\s*exports?(?:[ \t]+([\w.]+))?\s*$", re.M)
DEFAULT = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.M)


def modules_of(path: Path) -> list[str]:
    "The modules a notebook exports to, in order of appearance."
    code = [source(c) for c in load(path)["cells"] if c["cell_type"] == "code"]
    own = [m[1] for s in code if (m := DEFAULT.search(s))]
    return list(dict.fromkeys(own + [m[1] for s in code if (m := EXPORT.search(s)) and m[1]]))


def partial_library(chapter: Path, folder: Path) -> None:
    "Copy the modules of the chapters up to `chapter`, and of the appendices, into `folder`."
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        if page_name(chapter).id < page_name(path).id < "90":
            continue
        for module in modules_of(path):
            file = Path("gradbook") / (module.replace(".", "/") + ".py")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, folder / file)
    for package in {p.parent for p in (folder / "gradbook").rglob("*.py")}:
        (package / "__init__.py").touch()
    for files in ("data", "course/files"):
        shutil.copytree(ROOT / "gradbook" / files, folder / "gradbook" / files, dirs_exist_ok=True)


def program(chapter: Path) -> str:
    "The chapter as a script, its exported cells replaced by the names they would have defined."
    parts: list[str] = []
    for cell in load(chapter)["cells"]:
        text = source(cell)
        if cell["cell_type"] != "code" or DEFAULT.search(text):
            continue
        if m := EXPORT.search(text):
            module = f"gradbook.{m[1] or modules_of(chapter)[0]}".removesuffix(".__init__")
            parts.append(
                f"import {module} as _m\n"
                "globals().update({k: v for k, v in vars(_m).items() if k[:2] != '__'})"
            )
        else:
            parts.append(text)
    return "\n\n".join(parts)


def run(chapter: Path) -> str:
    "Run one chapter this way; an error's text, or nothing."
    if missing := lacking(load(chapter)):
        print(f"{chapter.name}: not run, there is no {missing} here", flush=True)
        return ""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        partial_library(chapter, folder)
        script = folder / f"{chapter.stem}.py"
        script.write_text(program(chapter), encoding="utf-8")
        runner = (
            "import sys; root, folder = sys.argv[1:3]; "
            "sys.path[:] = [folder, *(p for p in sys.path if p not in ('', root))]; "
            "import gradbook, runpy; assert gradbook.__file__.startswith(folder); "
            "runpy.run_path(sys.argv[3], run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", runner, str(ROOT), str(folder), str(script)],
            cwd=ROOT / "nbs", env={**os.environ, "IN_TEST": "1"}, capture_output=True, text=True,
        )  # fmt: skip
    verdict = "passes" if done.returncode == 0 else "FAILS"
    seconds = time.perf_counter() - start
    print(
        f"{chapter.name}: {verdict} against the library alone ({seconds:.1f} s)",
        flush=True,
    )
    return "" if done.returncode == 0 else f"{chapter.name}:\n{done.stderr[-3000:]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    chapters = args.chapters or sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    failures = in_parallel(run, [c.resolve() for c in chapters], args.jobs)
    if failures:
        print("\n".join(failures))
        raise SystemExit(f"{len(failures)} chapters fail against the library")


if __name__ == "__main__":
    main()
