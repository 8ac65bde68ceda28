"What several test files share: where things are, and the site in a browser."

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
if SHARED.is_dir():
    os.environ.setdefault("GRADBOOK_DATA", str(SHARED))
os.environ.setdefault("GRADBOOK_DOWNLOAD", "off")  # tests reach no other machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # several tests run at the same time


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def site_url() -> Iterator[str]:
    "The rendered site, served on loopback."
    if not (ROOT / "_site" / "index.html").exists():
        pytest.skip("the site is not built: make book")
    handler = functools.partial(Quiet, directory=str(ROOT / "_site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    "Headless Chromium."
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with api.sync_playwright() as p:
        running = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield running
        running.close()


@pytest.fixture(scope="session")
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
