"Downloads from a server with every bad habit, and archives that would like to get out."

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradbook.data import download as module
from gradbook.data.download import DownloadError, download, inside, show, unpack
from gradbook.scalar.samples import DataFileError

ROOT = Path(__file__).resolve().parent.parent
CONTENT = np.random.default_rng(5).bytes(400_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    asked: list[dict[str, Any]]
    moods: list[str]
    content = CONTENT

    def handle_error(self, request: Any, client_address: Any) -> None:
        "Clients that hang up are part of the tests."


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        moods, content = self.server.moods, self.server.content
        self.server.asked.append(
            {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
        )
        mood = moods.pop(0) if len(moods) > 1 else moods[0]
        ranged = self.headers.get("Range") if mood != "ignores ranges" else None
        start = int(ranged[6:-1]) if ranged else 0
        if mood == "corrupts":
            content = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        if mood.isdecimal():
            self.send_response(int(mood))
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        if mood == "to a file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if ranged else 200)
        body = content[start:]
        if mood == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif mood != "cut":
            self.send_header("Content-Length", str(len(body)))
        if ranged:
            first = 0 if mood == "wrong range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"v1"')
        self.end_headers()
        if mood == "chunked":
            for at in range(0, len(body), 50_000):
                piece = body[at : at + 50_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif mood in ("drops", "stalls", "cut"):
            self.wfile.write(body[:150_000])
            self.wfile.flush()
            if mood == "stalls":
                time.sleep(1.5)
            self.close_connection = True
        elif mood == "drips":
            with contextlib.suppress(OSError):
                for at in range(0, len(body), 20_000):
                    self.wfile.write(body[at : at + 20_000])
                    time.sleep(0.05)
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked, running.moods = [], ["good"]
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def get(*moods: str, sha256: str | None = SHA, **options: Any) -> Path:
        server.moods = list(moods)
        url = f"http://127.0.0.1:{server.server_port}/file"
        options = {"wait": 0.01, "timeout": 0.4, **options}
        return download(url, tmp_path / "sub" / "file", sha256, **options)

    return get


def ranges(server: Server) -> list[str | None]:
    return [request.get("range") for request in server.asked]


@pytest.mark.parametrize("sha256", [SHA, None])
@pytest.mark.parametrize("mood", ["good", "chunked"])
def test_a_good_server(get: Any, tmp_path: Path, mood: str, sha256: str | None) -> None:
    assert get(mood, sha256=sha256).read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["file"]


@pytest.mark.parametrize("mood", ["drops", "stalls"])
def test_it_goes_on_where_the_line_broke(get: Any, server: Server, mood: str) -> None:
    assert get(mood, mood, "good").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", "bytes=300000-"]
    assert [request.get("if-range") for request in server.asked] == [None, '"v1"', '"v1"']


@pytest.mark.parametrize("mood", ["408", "429", "500", "503"])
def test_it_asks_again_when_told_to(get: Any, server: Server, mood: str) -> None:
    assert get(mood, "good").read_bytes() == CONTENT and len(server.asked) == 2


@pytest.mark.parametrize("mood", ["400", "403", "404", "410"])
def test_it_does_not_insist(get: Any, server: Server, tmp_path: Path, mood: str) -> None:
    with pytest.raises(DownloadError, match=f"/file: the server answers {mood}"):
        get(mood)
    assert len(server.asked) == 1 and not (tmp_path / "sub" / "file").exists()


def test_it_gives_up_in_the_end(get: Any, server: Server) -> None:
    with pytest.raises(DownloadError, match=r"answers 503 .* after 3 tries"):
        get("503", tries=3)
    assert len(server.asked) == 3


def test_pauses_double(get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(DownloadError):
        get("503", wait=1.0, tries=4)
    assert [p for p in pauses if p >= 1] == [1, 2, 4]


def test_a_corrupted_file_gets_no_name(get: Any, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"sha256 \w+\.\.\. instead of"):
        get("corrupts", tries=2)
    assert list((tmp_path / "sub").iterdir()) == [] and ranges(server) == [None, None]
    assert get("corrupts", "good").read_bytes() == CONTENT


def test_the_checksum_is_that_of_the_content(get: Any, server: Server) -> None:
    server.content = gzip.compress(CONTENT)
    assert gzip.decompress(get("good").read_bytes()) == CONTENT


def test_servers_without_ranges(get: Any, server: Server) -> None:
    assert get("drops", "ignores ranges").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-"]


def test_a_server_that_sends_another_range(get: Any, server: Server) -> None:
    assert get("drops", "wrong range", "good").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file(get: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.part").write_bytes(bytes(500_000))
    assert get("good").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=500000-", None]


def test_a_part_from_another_file_is_found_out(get: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.part").write_bytes(bytes(1000))
    assert get("good").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-", None]


def test_a_later_call_goes_on(get: Any, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="150,000 bytes are kept"):
        get("drops", tries=1)
    assert not (tmp_path / "sub" / "file").exists()
    assert get("good").read_bytes() == CONTENT and ranges(server)[1] == "bytes=150000-"


def test_without_a_checksum_a_later_call_begins_again(
    get: Any, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError):
        get("drops", tries=1, sha256=None)
    assert list((tmp_path / "sub").iterdir()) == []


MD5 = hashlib.md5(CONTENT).hexdigest()


def test_the_md5_of_what_is_sent(get: Any, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="150,000 bytes are kept"):
        get("drops", tries=1, sha256=None, md5=MD5)
    assert get("good", sha256=None, md5=MD5).read_bytes() == CONTENT
    assert ranges(server)[1] == "bytes=150000-"
    assert get("404", sha256=None, md5=MD5).read_bytes() == CONTENT  # it is here already
    with pytest.raises(DownloadError, match=r"MD5 \w+\.\.\. instead of 0000"):
        get("good", tries=1, sha256=None, md5="0" * 32)


def test_cut_short_by_a_server_that_does_not_tell_the_length(get: Any, server: Server) -> None:
    assert get("cut", "good", sha256=None, md5=MD5).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_to_a_folder(get: Any, tmp_path: Path) -> None:
    (tmp_path / "sub" / "file").mkdir(parents=True)
    for sha256 in (SHA, None):
        with pytest.raises(DownloadError, match="file: it is a folder; name a file in it"):
            get("good", sha256=sha256)
    assert not list((tmp_path / "sub").glob("*.part"))


def test_too_long(get: Any) -> None:
    with pytest.raises(DownloadError, match="longer than 100,000 bytes"):
        get("good", limit=100_000)


def test_an_interrupt_keeps_what_has_come(get: Any, tmp_path: Path) -> None:
    def stop(have: int, total: int | None) -> None:
        assert total == len(CONTENT) and not (tmp_path / "sub" / "file").exists()
        if have > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("good", report=stop)
    assert (tmp_path / "sub" / "file.part").stat().st_size > 100_000
    assert get("good").read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "nothing"])
def test_only_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="only http and https"):
        download(url, tmp_path / "x")


def test_a_redirection_to_a_file_is_not_followed(get: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError):
        get("to a file")
    assert not (tmp_path / "sub" / "file").exists()


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", tries=2, wait=0.01)


def test_through_a_proxy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    download("http://data.example/set.gz", tmp_path / "x", SHA, tries=1)
    assert server.asked[0]["path"] == "http://data.example/set.gz"


def test_where_nothing_can_be_written(get: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("in the way")
    with pytest.raises(DownloadError, match="can't be written"):
        get("good")


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_programs_at_a_time_fetch_once(server: Server, tmp_path: Path) -> None:
    server.moods = ["drips"]
    url = f"http://127.0.0.1:{server.server_port}/file"
    code = f"download({url!r}, {str(tmp_path / 'x')!r}, {SHA!r})"
    code = f"from gradbook.data.download import download; {code}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [p.wait(30) for p in running] == [0, 0, 0]
    assert (tmp_path / "x").read_bytes() == CONTENT and len(server.asked) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_killed_at_any_moment(server: Server, tmp_path: Path) -> None:
    server.moods = ["drips"]
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "x"
    code = (
        f"from gradbook.data.download import download; download({url!r}, {str(target)!r}, {SHA!r})"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while not (part := tmp_path / "x.part").exists() or part.stat().st_size < 60_000:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not target.exists()
    server.moods = ["good"]
    assert download(url, target, SHA).read_bytes() == CONTENT
    assert server.asked[-1]["range"].startswith("bytes=")


def test_progress_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    report = show("file")
    report(500_000, 1_000_000)
    report(1_000_000, 1_000_000)
    assert capsys.readouterr().err == "file: 1.0 of 1.0 MB\n"


# ------------------------------------------------------------- archives

Members = list[tuple[str, bytes, Any]]
FILE, LINK, HARD, DEVICE, PIPE = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)


def tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content) if kind == FILE else 0
            info.linkname = content.decode() if kind in (LINK, HARD) else ""
            archive.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, members: dict[str, bytes], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def everything(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_good_tar(tmp_path: Path, mode: str) -> None:
    members = [("d", b"", tarfile.DIRTYPE), ("d/a.txt", b"one", FILE), ("./b.txt", b"two", FILE)]
    folder = unpack(tar(tmp_path / "a", members, mode), tmp_path / "out")
    assert everything(folder) == {"d", "d/a.txt", "b.txt"}
    assert (folder / "d" / "a.txt").read_bytes() == b"one"


def test_a_good_zip(tmp_path: Path) -> None:
    folder = unpack(zip_of(tmp_path / "a", {"d/a.txt": b"one", "b.txt": b"two"}), tmp_path / "out")
    assert everything(folder) == {"d", "d/a.txt", "b.txt"}


OUTSIDE = ["../x", "a/../../x", "/x", "C:/x", "..\\x", "\\x", "a/..", "", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="outside the folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", OUTSIDE[:6])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_can_not_write_outside(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "in" / "a"
    path.parent.mkdir()
    if kind == "tar":
        tar(path, [("fine", b"1", FILE), (name, b"evil", FILE)])
    else:
        zip_of(path, {"fine": b"1", name: b"evil"})
    with pytest.raises(DataFileError, match="outside the folder"):
        unpack(path, tmp_path / "in" / "out")
    assert everything(tmp_path) == {"in", "in/a"}


@pytest.mark.parametrize(
    "members",
    [
        [("way", b"..", LINK), ("way/x", b"evil", FILE)],
        [("passwd", b"/etc/passwd", LINK)],
        [("passwd", b"/etc/passwd", HARD)],
        [("null", b"", DEVICE)],
        [("pipe", b"", PIPE)],
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, members: Members) -> None:
    with pytest.raises(DataFileError, match="no plain file"):
        unpack(tar(tmp_path / "a", members), tmp_path / "out")
    assert everything(tmp_path) == {"a"}


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a", {"way": b"/etc"}, mode=0o120777)
    with pytest.raises(DataFileError, match="no plain file"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_bombs_and_doubled_names(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "tar":
        tar(path, [("big", bytes(10**6), FILE)] * 2, "w:gz")
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("big", bytes(10**6))
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("big", bytes(10**6))
    with pytest.raises(DataFileError, match="more than are allowed"):
        unpack(path, tmp_path / "out", limit=500_000)
    with pytest.raises(DataFileError, match="exists"):
        unpack(path, tmp_path / "out")
    assert everything(tmp_path) == {"a"}


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("parts", [1, 40])
def test_long_headers_are_not_read(tmp_path: Path, kind: bytes, parts: int) -> None:
    "30 MB in all, once at a time and once in small ones, each before a member."
    size = 30 * 2**20 // parts // 512 * 512
    record = b"%d comment=" % size
    data = record + b"a" * (size - len(record) - 1) + b"\n"
    blocks = [header(kind, size) + data + header(FILE, 0, f"a{k}") for k in range(parts)]
    (tmp_path / "a").write_bytes(gzip.compress(b"".join(blocks) + bytes(1024), 1))
    del blocks, data
    tracemalloc.start()
    try:
        with pytest.raises(DataFileError, match=r"more is in the headers|name too long"):
            unpack(tmp_path / "a", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert everything(tmp_path) == {"a"}


def test_a_folder_of_any_size_makes_no_room_for_headers(tmp_path: Path) -> None:
    record = b"24 size=100000000000000\n"
    claim = header(b"x", len(record)) + record.ljust(512, b"\0") + header(tarfile.DIRTYPE, 0, "d")
    long = header(b"x", 4 * 2**20) + bytes(4 * 2**20) + header(FILE, 0, "f")
    (tmp_path / "a").write_bytes(claim + long + bytes(1024))
    with pytest.raises(DataFileError, match="more is in the headers"):
        unpack(tmp_path / "a", tmp_path / "out")


def test_long_names_and_many_members_are_fine(tmp_path: Path) -> None:
    name = "/".join(["n" * 90] * 5)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a", "w", format=form) as archive:
            for k in range(1200):
                info = tarfile.TarInfo(f"{name}{k}")
                info.size, info.mtime = 3, 1.5
                archive.addfile(info, io.BytesIO(b"abc"))
        folder = unpack(tmp_path / "a", tmp_path / f"out{form}")
        assert len(list((folder / name).parent.iterdir())) == 1200


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_too_many_members(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMBERS", 2)
    names = {"a": b"", "b": b"", "c": b""}
    if kind == "tar":
        path = tar(tmp_path / "x", [(name, b"", FILE) for name in names])
    else:
        path = zip_of(tmp_path / "x", names)
    with pytest.raises(DataFileError, match="it has more than 2 members"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_damaged_archives(tmp_path: Path, mode: str) -> None:
    content = np.random.default_rng(1).bytes(50_000)
    whole = tar(tmp_path / "a", [("a", content, FILE), ("b", content, FILE)], mode).read_bytes()
    (tmp_path / "a").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataFileError):
        unpack(tmp_path / "a", tmp_path / "out")
    assert everything(tmp_path) == {"a"}


def test_a_damaged_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a", {"x": CONTENT})
    damaged = bytearray(path.read_bytes())
    damaged[200_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataFileError, match="can't be unpacked"):
        unpack(path, tmp_path / "out")
    assert everything(tmp_path) == {"a"}


def test_no_folder_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        unpack(tar(tmp_path / "a", [("x", b"1", FILE)]), tmp_path / "out")


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataFileError, match="can't be unpacked"):
        unpack(tmp_path / "a", tmp_path / "out")
