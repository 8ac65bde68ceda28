"""Write `gradbook/` from the notebooks: `python -m tools.export`, or `--check` for sync only.

The work is nbdev's. Its own command, though, only ever appends to a module that is not the
notebook's `default_exp` (`#| exports course.ch01`), so a second run would write everything twice;
here every module begins afresh.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import tempfile
from pathlib import Path

from tools import learner
from tools.notebook import load, source

ROOT = Path(__file__).resolve().parent.parent
OTHER = re.compile(r"^#\|\s*exports?\s+([\w.]+)\s*$", re.M)


def side_modules() -> dict[str, Path]:
    "Modules that are no notebook's `default_exp`, and the first notebook that exports there."
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        for cell in load(path)["cells"]:
            if cell["cell_type"] == "code" and (m := OTHER.search(source(cell))):
                found.setdefault(m[1], path)
    return found


def export() -> None:
    from nbdev.doclinks import _build_modidx
    from nbdev.export import ExportModuleProc
    from nbdev.maker import ModuleMaker
    from nbdev.process import NBProcessor

    library, made = ROOT / "gradbook", set()
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        cells = ExportModuleProc()
        NBProcessor(path, [cells]).process()
        for module, exported in cells.modules.items():
            if not any(c.cell_type == "code" for c in exported):
                continue  # a page that exports nothing but its title
            name = cells.default_exp if module == "#" else module
            maker = ModuleMaker(dest=library, name=name, nb_path=path, is_new=name not in made)
            maker.make(exported, cells.in_all[module], lib_path=library)
            made.add(name)
    _build_modidx()
    learner.write()


def differences(before: Path, after: Path) -> list[str]:
    "Files written here that differ between two copies of the package."
    kinds = ("*.py", "course/files/*")
    names = {p.relative_to(d) for d in (before, after) for kind in kinds for p in d.rglob(kind)}

    def same(name: Path) -> bool:
        one, other = before / name, after / name
        return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)

    return sorted(str(n) for n in names if not same(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the export changes anything")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "gradbook"
        shutil.copytree(ROOT / "gradbook", before)
        export()
        stale = differences(before, ROOT / "gradbook")
    if args.check and stale:
        raise SystemExit("gradbook/ was not in sync with nbs/ (now it is): " + ", ".join(stale))
    print(f"gradbook/ in sync with nbs/{': ' + ', '.join(stale) if stale else ''}")


if __name__ == "__main__":
    main()
