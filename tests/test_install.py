"The wheel in an environment of its own, and in a browser's Python: complete and usable."

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_wheel_and_sdist_are_complete(dist: Path) -> None:
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "gradbook").rglob("*.py")}
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "gradbook/data/files").iterdir()}
    assert package | files | {"gradbook/py.typed"} <= inside
    with tarfile.open(sdist) as archive:
        assert files <= {name.partition("/")[2] for name in archive.getnames()}
    assert wheel.stat().st_size < 10e6, "the whole wheel stays below 10 MB"


def test_the_wheel_works_from_any_folder(dist: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "uv", "venv", "-q", "-p", sys.executable, str(tmp_path / "env")],
        check=True,
    )
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "-q",
            "-p",
            str(python),
            str(next(dist.glob("*.whl"))),
        ],
        check=True,
    )
    program = (
        "import gradbook; assert 'site-packages' in gradbook.__file__; "
        "from gradbook.scalar import MLP, Value; from gradbook.scalar.samples import load_digits; "
        "x = Value(3.0); y = x * x; y.backward(); assert x.grad == 6.0; "
        "images, labels = load_digits(); print(len(images), gradbook.__version__)"
    )
    out = subprocess.run(
        [str(python), "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert out.stdout.split()[0] == "1797"
    shown = subprocess.run(
        [str(tmp_path / "env/bin/gradbook"), "info"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "gradbook" in shown.stdout
    trains_without_a_network(tmp_path)


def trains_without_a_network(tmp_path: Path) -> None:
    "With nothing but the plain install: the digits that came with it, after a vain try to fetch."
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    keep = {k: v for k, v in os.environ.items() if k[:3] in ("PAT", "SYS", "LAN")}
    done = subprocess.run(
        "env/bin/gradbook train mlp --data mnist --epochs 1 --hidden 32 --json".split(),
        cwd=tmp_path,
        env={**keep, **nowhere, "HOME": str(tmp_path), "GRADBOOK_DOWNLOAD": "on"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout)["test_accuracy"] > 0.8
    assert (tmp_path / "runs").is_dir()


PYODIDE = "pyodide@314.0.7"
SCRIPT = """
import fs from "node:fs";
import { loadPyodide } from "./package/pyodide.mjs";
const python = await loadPyodide({ indexURL: "./package/" });
python.unpackArchive(new Uint8Array(fs.readFileSync(process.argv[2])), "wheel");
console.log(python.runPython(fs.readFileSync(process.argv[3], "utf8")));
"""
PROGRAM = """
import json, sys
from gradbook.scalar import MLP, Value
from gradbook.scalar.draw import draw

w, x, b = Value(-3.0), Value(2.0), Value(10.0)
y = (w * x + b) * x
y.backward()

from gradbook.course import check
from gradbook.scalar.value import result
import math

def stub(x):
    ...

def atan(x):
    return result("atan", math.atan(x.data), (x,), (1 / (1 + x.data**2),))

found = [check("03.1", f).status for f in (stub, atan)]
json.dumps({
    "slopes": [w.grad, x.grad, b.grad], "check": found, "svg": "<svg" in draw(y).html(),
    "numpy": "numpy" in sys.modules, "platform": sys.platform,
})
"""


def test_part_one_runs_in_a_browsers_python(dist: Path, tmp_path: Path) -> None:
    "Pyodide's core has no NumPy: chapter 3's example, a picture and a check must do without it."
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm on this machine (Debian: apt install nodejs npm)")
    packed = subprocess.run(["npm", "pack", PYODIDE], cwd=tmp_path, capture_output=True, text=True)
    if packed.returncode:
        pytest.skip(f"npm can't fetch {PYODIDE}: {packed.stderr[-200:]}")
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "run.mjs").write_text(SCRIPT)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["node", "run.mjs", str(next(dist.glob("*.whl"))), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1500:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {
        "slopes": [4.0, -2.0, 2.0],
        "check": ["not started", "passed"],
        "svg": True,
        "numpy": False,
        "platform": "emscripten",
    }
