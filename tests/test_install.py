"The wheel in an environment of its own: complete, typed, usable from any folder."

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Wheel and sdist, built from the files git knows."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--installer", "uv", "-o", str(out), str(source)],
        capture_output=True,
        text=True,
    )
    if done.returncode and "Failed to fetch" in done.stderr + done.stdout:
        pytest.skip(
            "the package registry cannot be reached, and the build needs setuptools from it"
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_wheel_and_sdist_are_complete(dist: Path) -> None:
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "gradbook").rglob("*.py")}
    assert package <= inside
    assert {
        "gradbook/py.typed",
        "gradbook/data/files/digits.csv.gz",
        "gradbook/data/files/NOTICE.md",
    } <= inside
    with tarfile.open(sdist) as archive:
        assert any(n.endswith("gradbook/data/files/digits.csv.gz") for n in archive.getnames())
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
