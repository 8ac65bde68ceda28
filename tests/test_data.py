"The data sets: found in a fixed order, checked wherever they come from, the same from every place."

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import json
import lzma
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradbook.data import datasets as module
from gradbook.data.datasets import (
    CIFAR10,
    DATASETS,
    FASHION,
    MNIST,
    SOURCES,
    ArrayDataset,
    File,
    ImageFolder,
    Source,
    Subset,
    breast_cancer,
    cache_folder,
    catalog,
    cifar10,
    csv_file,
    digits,
    fashion_mnist,
    get,
    load,
    locate,
    mnist,
    moons,
    names,
    npz_file,
    packaged,
    random_split,
    shakespeare,
    spiral,
)
from gradbook.data.download import DownloadError
from gradbook.scalar.samples import DataFileError, load_digits, two_moons
from gradbook.tensor.core import Tensor

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ["GRADBOOK_DATA"]).resolve() if os.environ.get("GRADBOOK_DATA") else None
FILES = resources.files("gradbook") / "data" / "files"
needs_data = pytest.mark.skipif(
    SHARED is None or not (SHARED / "mnist").is_dir(), reason="GRADBOOK_DATA has no full sets"
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    "No network, no data on this machine but the package's."
    monkeypatch.delenv("GRADBOOK_DATA", raising=False)
    monkeypatch.setenv("GRADBOOK_DOWNLOAD", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache" / "gradbook" / "data")
    monkeypatch.setattr(module, "TOLD", set())
    monkeypatch.setattr(module, "UNREACHABLE", set())
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, system=""))
    monkeypatch.setattr(module, "FASHION", SOURCES["fashion_mnist"])


TINY_TEXT = b"to be or not to be\n" * 100
TINY = Source(
    name="tiny",
    about="a small text",
    licence="none",
    shapes="100 lines",
    folders=("tiny", "small/raw"),
    files={"text": File(("tiny.txt.gz", "tiny.txt"), hashlib.sha256(TINY_TEXT).hexdigest(), 1900)},
)


def put(folder: Path, name: str = "tiny.txt", content: bytes = TINY_TEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


# ------------------------------------------------------------- where it is


def test_the_first_place_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dataclasses.replace(TINY, system=str(tmp_path / "system"))
    put(tmp_path / "system")
    assert locate(source, ["text"]).place == "system"
    put(module.cache_folder() / "tiny")
    assert locate(source, ["text"]).place == "cache"
    put(tmp_path / "data" / "small" / "raw", "tiny.txt.gz", gzip.compress(TINY_TEXT))
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path / "data"))
    found = locate(source, ["text"])
    assert (found.place, found.paths["text"].name) == ("GRADBOOK_DATA", "tiny.txt.gz")
    put(tmp_path / "given")
    assert locate(source, ["text"], tmp_path / "given").place == "folder"


def test_a_setting_does_what_the_variable_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "data" / "tiny")
    (tmp_path / "settings.ini").write_text("[gradbook]\n[data]\nfolder = data\n")
    monkeypatch.chdir(tmp_path)
    assert locate(TINY, ["text"]).place == "GRADBOOK_DATA"


def test_a_folder_that_was_named_must_have_it(tmp_path: Path) -> None:
    put(module.cache_folder() / "tiny")
    with pytest.raises(DataFileError, match=r"it has no tiny: looked for tiny\.txt\.gz"):
        locate(TINY, ["text"], tmp_path)
    with pytest.raises(DataFileError, match="it has no mnist"):
        mnist("train", tmp_path)


def test_what_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataFileError, match=r"tiny: it is not here \(downloads are switched off\)"):
        locate(TINY, ["text"])
    with pytest.raises(DataFileError, match="cifar10: it is not here"):
        cifar10()
    assert capsys.readouterr().err == ""


def test_the_part_in_the_package_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert len(mnist()) == 20_000
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mnist: the first 20,000 of 60,000 training images")
    assert "downloads are switched off" in lines[0]
    mnist(subset=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"?" + b[1:]])
def test_a_broken_file_is_never_passed_over(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lzma.decompress((FILES / "mnist-t10k-labels-idx1-ubyte.xz").read_bytes())
    for place in (tmp_path / "data", module.cache_folder()):
        images = (FILES / "mnist-t10k-images-idx3-ubyte.xz").read_bytes()
        put(place / "mnist", "t10k-images-idx3-ubyte.xz", images)
        labels = put(place / "mnist", "t10k-labels-idx1-ubyte", content)
        monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
        if place.name == "data":
            monkeypatch.setenv("GRADBOOK_DATA", str(place))
        assert len(mnist("test")) == 10_000
        labels.write_bytes(damage(content))
        with pytest.raises(DataFileError, match="t10k-labels-idx1-ubyte"):
            mnist("test")


def test_names_of_other_libraries_are_known(tmp_path: Path) -> None:
    for kind, dots in (("images", "idx3"), ("labels", "idx1")):
        packed = (FILES / f"mnist-t10k-{kind}-{dots}-ubyte.xz").read_bytes()
        put(tmp_path / "MNIST" / "raw", f"t10k-{kind}.{dots}-ubyte", lzma.decompress(packed))
    assert (mnist("test", tmp_path).arrays[0] == mnist("test", subset=True).arrays[0]).all()


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "cache" / "gradbook" / "data"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder().parts[-4:] == ("Library", "Caches", "gradbook", "data")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_folder() == tmp_path / "gradbook" / "data"


# ------------------------------------------------------------- fetching


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    "A server on loopback: address and content of what it has."
    content: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = content.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    asked: list[str] = []
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRADBOOK_DOWNLOAD", "on")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        content["address"] = f"http://127.0.0.1:{server.server_port}".encode()
        content["asked"] = asked  # type: ignore[assignment]
        yield content
        server.shutdown()


def tiny_at(public: dict[str, bytes], *paths: str) -> Source:
    urls = tuple(public["address"].decode() + path for path in paths)
    file = dataclasses.replace(TINY.files["text"], urls=urls)
    return dataclasses.replace(TINY, files={"text": file})


def test_it_is_fetched_once_into_the_cache(public: Any, capsys: Any) -> None:
    public["/good"] = gzip.compress(TINY_TEXT)
    source = tiny_at(public, "/missing", "/good")
    for _ in range(2):
        found = locate(source, ["text"])
        assert found.place == "cache" and found.whole
        assert found.paths["text"] == module.cache_folder() / "tiny" / "tiny.txt.gz"
    assert public["asked"] == ["/missing", "/good"]
    assert "tiny.txt.gz: 0.0 of 0.0 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [None, b"<html>log in first</html>", gzip.compress(b"other")],
    ids=["nothing", "a page", "another file"],  # gzip's bytes hold the time
)
def test_what_can_not_be_fetched_is_not_tried_twice(public: Any, content: bytes | None) -> None:
    if content:
        public["/bad"] = content
    for _ in range(2):
        with pytest.raises(DataFileError, match=r"tiny: it is not here"):
            locate(tiny_at(public, "/bad"), ["text"])
    assert public["asked"] == ["/bad"]
    assert not (module.cache_folder() / "tiny" / "tiny.txt.gz").exists()


def test_no_network_means_the_part_in_the_package(
    public: Any, capsys: Any, monkeypatch: Any
) -> None:
    files = {
        k: dataclasses.replace(f, urls=("http://127.0.0.1:9/x",)) for k, f in MNIST.files.items()
    }
    monkeypatch.setattr(module, "MNIST", dataclasses.replace(MNIST, files=files))
    assert len(module.mnist("test")) == 10_000
    assert "refused" in capsys.readouterr().err


def test_a_cache_that_can_not_be_written(public: Any, capsys: Any, monkeypatch: Any) -> None:
    put(module.cache_folder().parent, "data", b"in the way")
    source = dataclasses.replace(
        tiny_at(public, "/good"), subset={"text": module.SHAKESPEARE.subset["text"]}
    )
    assert locate(source, ["text"]).place == "package"
    assert "can't be written" in capsys.readouterr().err


def test_the_switch(public: Any, monkeypatch: Any) -> None:
    public["/good"] = gzip.compress(TINY_TEXT)
    source = tiny_at(public, "/good")
    with pytest.raises(DataFileError, match="switched off"):
        locate(source, ["text"], download=False)
    monkeypatch.setenv("GRADBOOK_DOWNLOAD", "off")
    with pytest.raises(DataFileError, match="switched off"):
        locate(source, ["text"])
    assert public["asked"] == []
    assert locate(source, ["text"], download=True).place == "cache"


def test_get_fetches_checks_and_reports(public: Any, monkeypatch: Any) -> None:
    public["/good"] = gzip.compress(TINY_TEXT)
    monkeypatch.setitem(SOURCES, "tiny", tiny_at(public, "/good"))
    monkeypatch.setitem(DATASETS, "tiny", None)
    seen: list[tuple[int, int | None]] = []
    entry = get("tiny", report=lambda *at: seen.append(at))
    assert (entry.state, entry.size) == ("cache", 1900) and seen[-1][0] == seen[-1][1]
    Path(entry.where, "tiny.txt.gz").write_bytes(gzip.compress(b"x" * 1900))
    with pytest.raises(DataFileError, match=r"sha256 .*; remove it, and it can be fetched again"):
        get("tiny")
    Path(entry.where, "tiny.txt.gz").unlink()
    assert get("tiny").state == "cache"


def test_get_says_what_is_wrong(public: Any, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match="no data set 'minst'; did you mean mnist"):
        get("minst")
    assert get("digits").state == "package" and get("moons").state == "computed"
    monkeypatch.setenv("GRADBOOK_DOWNLOAD", "off")
    with pytest.raises(DownloadError, match="switched off"):
        get("cifar10")


def cifar_file(first: int) -> bytes:
    rows = np.zeros((20, 3073), "uint8")
    rows[:, 0] = np.arange(20) % 10
    rows[:, 1:] = np.arange(20)[:, None] + first
    return rows.tobytes()


def small_cifar(address: str = "", md5: str = "") -> Source:
    files = {}
    for k, name in enumerate(CIFAR10.files):
        content = cifar_file(k)
        sha256 = hashlib.sha256(content).hexdigest()
        files[name] = File((f"{name}.bin", f"{name}.png"), sha256, len(content))
    return dataclasses.replace(CIFAR10, files=files, archive=address + "/cifar.tar.gz", md5=md5)


def test_a_set_that_comes_as_an_archive(public: Any, tmp_path: Path, monkeypatch: Any) -> None:
    base = tmp_path / "made" / "cifar-10-batches-bin"
    for k, name in enumerate(CIFAR10.files):
        put(base, f"{name}.bin", cifar_file(k))
    shutil.make_archive(str(tmp_path / "cifar"), "gztar", tmp_path / "made")
    public["/cifar.tar.gz"] = (tmp_path / "cifar.tar.gz").read_bytes()
    md5 = hashlib.md5(public["/cifar.tar.gz"]).hexdigest()
    monkeypatch.setattr(module, "CIFAR10", small_cifar(public["address"].decode(), md5))
    train, test = module.cifar10("train"), module.cifar10("test")
    assert (len(train), len(test), train.arrays[0].shape) == (100, 20, (100, 32, 32, 3))
    assert train.arrays[0][21, 0, 0, 0] == 2 and test.arrays[0][0, 5, 5, 2] == 5
    assert public["asked"] == ["/cifar.tar.gz"]
    assert not list(module.cache_folder().glob("*.tar.gz*"))


def test_the_archive_is_checked_and_has_patience(public: Any, monkeypatch: Any) -> None:
    seen: list[dict[str, Any]] = []

    def half(url: str, path: Path, *sha256: str, **options: Any) -> None:
        seen.append(options)
        raise DownloadError("it broke")

    monkeypatch.setattr(module, "download", half)
    assert len(CIFAR10.md5) == 32
    for source in (CIFAR10, dataclasses.replace(tiny_at(public, "/x"), name="tiny2")):
        monkeypatch.setattr(module, "UNREACHABLE", set())
        with pytest.raises(DataFileError, match="it broke"):
            locate(source, list(source.files)[:1])
    assert seen[0]["md5"] == CIFAR10.md5 and "tries" not in seen[0] and seen[1]["tries"] == 1


def test_an_archive_is_not_unpacked_over_something_else(public: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "CIFAR10", small_cifar(public["address"].decode()))
    put(module.cache_folder() / "cifar10", "notes.txt")
    with pytest.raises(DataFileError, match=r"cifar10: it is not complete; remove it"):
        module.cifar10()
    assert public["asked"] == []


def test_the_first_files_of_cifar_are_of_use_alone(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(module, "CIFAR10", small_cifar())
    for k in (0, 1, 3):
        put(tmp_path, f"data_batch_{k + 1}.bin", cifar_file(k))
    assert len(module.cifar10("train", tmp_path)) == 40  # a gap ends it
    monkeypatch.setenv("GRADBOOK_DATA", str(tmp_path))
    put(tmp_path / "cifar10", "data_batch_1.bin", cifar_file(0))
    assert len(module.cifar10("train")) == 20
    assert capsys.readouterr().err == "cifar10: 1 of 5 files, from GRADBOOK_DATA\n"


# ------------------------------------------------------------- the sets


@pytest.mark.parametrize(
    ("make", "shape", "classes"),
    [
        (lambda: mnist("train", subset=True), (20_000, 28, 28), 10),
        (lambda: mnist("test", subset=True), (10_000, 28, 28), 10),
        (lambda: fashion_mnist("train", subset=True), (5_000, 28, 28), 10),
        (lambda: fashion_mnist("test", subset=True), (2_000, 28, 28), 10),
        (digits, (1797, 8, 8), 10),
        (lambda: digits("train"), (1257, 8, 8), 10),
        (breast_cancer, (569, 30), 2),
        (moons, (100, 2), 2),
        (spiral, (150, 2), 3),
    ],
)
def test_shapes(make: Any, shape: tuple[int, ...], classes: int) -> None:
    dataset = make()
    x, y = dataset.arrays
    assert x.shape == shape and y.shape == shape[:1] and y.dtype == "int64"
    assert x.dtype == ("uint8" if x.ndim == 3 else "float32")
    assert set(y.tolist()) == set(range(classes))
    assert not dataset.classes or len(dataset.classes) == classes


def test_values() -> None:
    x, y = mnist("train", subset=True).arrays
    assert y[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3] and (x.min(), x.max()) == (0, 255)
    scaled = mnist("test", subset=True, dtype="float32").arrays[0]
    assert scaled.dtype == "float32" and scaled.max() == 1
    assert np.abs(scaled * 255 - mnist("test", subset=True).arrays[0]).max() < 1e-4
    rows, labels = load_digits()
    small = digits(dtype="float32")
    assert (small.arrays[0].reshape(-1, 64) == np.array(rows, "float32")).all()
    assert small.arrays[1].tolist() == labels
    points, arcs = two_moons(50, seed=4)
    assert np.abs(moons(50, seed=4).arrays[0] - points).max() < 1e-6
    assert moons(50, seed=4).arrays[1].tolist() == arcs


@needs_data
@pytest.mark.parametrize(("make", "source"), [(mnist, MNIST), (fashion_mnist, FASHION)])
def test_the_part_is_the_beginning_of_the_whole(
    make: Any, source: Source, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GRADBOOK_DATA", str(SHARED))
    for split, count in (("train", 60_000), ("test", 10_000)):
        whole, part = make(split), make(split, subset=True)
        assert len(whole) == count
        for a, b in zip(whole.arrays, part.arrays):
            assert (a[: len(b)] == b).all() and a.dtype == b.dtype


@needs_data
def test_cifar_from_sheets(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("GRADBOOK_DATA", str(SHARED))
    test = cifar10("test")
    assert test.arrays[0].shape == (10_000, 32, 32, 3)
    assert [test.classes[k] for k in test.arrays[1][:4]] == ["cat", "ship", "ship", "plane"]
    assert np.bincount(test.arrays[1]).tolist() == [1000] * 10
    assert test.arrays[0][0, 0, 0].tolist() == [158, 112, 49]


@pytest.mark.parametrize(
    "content", ["", "[1, 2", "[" * 100_000, '{"a": 1}', "[300]", "[[1], 2]", "null"]
)
def test_labels_of_sheets_that_are_none(content: str, tmp_path: Path) -> None:
    put(tmp_path, "test_lables.json", content.encode())
    put(tmp_path, "test_batch.png", b"never read" * 10)
    with pytest.raises(DataFileError, match=r"test_(lables\.json|batch\.png)"):
        cifar10("test", tmp_path)
    put(tmp_path, "test_lables.json", json.dumps([0] * 10_000).encode())
    with pytest.raises(DataFileError, match=r"test_batch\.png: it does not begin like a PNG"):
        cifar10("test", tmp_path)


@needs_data
def test_texts_in_full(monkeypatch: Any) -> None:
    monkeypatch.setenv("GRADBOOK_DATA", str(SHARED))
    text = shakespeare("all")
    assert len(text) == 1_115_394 and len(set(text)) == 65
    assert len(shakespeare("train")) == 1_003_854  # nanoGPT's split
    assert names()[:3] == ["emma", "olivia", "ava"] and len(names()) == 32_033


def test_texts() -> None:
    text = shakespeare("all", subset=True)
    assert shakespeare("train", subset=True) + shakespeare("val", subset=True) == text
    assert len(text) == 1_123_784 and text.startswith("First Citizen:\n")
    parts = [names(split, subset=True) for split in ("train", "val", "test")]
    assert sorted(name for part in parts for name in part) == sorted(names(subset=True))
    assert [len(part) for part in parts] == [23_928, 2_991, 2_991]
    assert names("val", subset=True) == parts[1]


@pytest.mark.parametrize("make", [mnist, fashion_mnist, cifar10, digits, shakespeare, names])
def test_splits_that_do_not_exist(make: Any) -> None:
    with pytest.raises(ValueError, match=r"no split 'tset'; .*there are: "):
        make("tset")


def test_only_what_may_be_shipped_is_shipped() -> None:
    with pytest.raises(DataFileError, match="no part of it comes with the package"):
        packaged(CIFAR10, ["test_batch"])
    sizes = [p.stat().st_size for p in Path(str(FILES)).iterdir()]
    assert sum(sizes) < 8.5e6
    for source in SOURCES.values():
        for file in source.subset.values():
            content = lzma.decompress((FILES / file.names[0]).read_bytes())
            assert hashlib.sha256(content).hexdigest() == file.sha256
            assert len(content) == file.size


def test_the_catalogue() -> None:
    entries = catalog()
    assert [e.name for e in entries] == list(DATASETS)
    assert {e.state for e in entries} == {"package (part)", "not here", "package", "computed"}
    assert json.loads(json.dumps([e.as_dict() for e in entries]))[0]["size"] == 54_950_048
    assert load("moons", 10).arrays[0].shape == (10, 2)
    assert len(load("mnist", "test", subset=True)) == 10_000
    for entry, content in (("digits", "digits.csv.gz"), ("breast_cancer", "breast_cancer.csv.gz")):
        size = len(gzip.decompress((FILES / content).read_bytes()))
        assert next(e for e in entries if e.name == entry).size == size


@needs_data
def test_the_catalogue_knows_where_things_are(monkeypatch: Any) -> None:
    monkeypatch.setenv("GRADBOOK_DATA", str(SHARED))
    states = {e.name: (e.state, e.where) for e in catalog()}
    assert states["mnist"] == ("GRADBOOK_DATA", str(SHARED / "mnist"))
    assert states["cifar10"][0] == "GRADBOOK_DATA (part)"
    assert get("names").state == "GRADBOOK_DATA"


# ------------------------------------------------------------- own data


def test_array_dataset() -> None:
    x, y = np.arange(12).reshape(6, 2), Tensor([0.0, 1, 2, 3, 4, 5])
    dataset = ArrayDataset(x, y, classes=("a", "b"))
    image, label = dataset[2]
    assert image.tolist() == [4, 5] and label == 2 and len(dataset) == 6
    assert dataset[np.array([5, 0])][0].tolist() == [[10, 11], [0, 1]]
    assert dataset[-1][1] == 5 and dataset[1:3][1].tolist() == [1, 2]
    assert repr(dataset) == "ArrayDataset(6 examples: int64 (2,), float32)"
    with pytest.raises(IndexError):
        dataset[6]
    for arrays in ([], [1], [x, np.zeros(5)], [np.zeros(3), 1.0]):
        with pytest.raises(ValueError, match="do not go together"):
            ArrayDataset(*arrays)


def test_random_split() -> None:
    parts = random_split(ArrayDataset(np.arange(10)), (6, 3, 1), seed=2)
    assert [len(p) for p in parts] == [6, 3, 1] and all(isinstance(p, Subset) for p in parts)
    assert sorted(int(p[i][0]) for p in parts for i in range(len(p))) == list(range(10))
    again = random_split(ArrayDataset(np.arange(10)), (6, 3, 1), seed=2)
    assert all((a.indices == b.indices).all() for a, b in zip(parts, again))
    for lengths in ((6, 3), (11, -1), ()):
        with pytest.raises(ValueError, match="do not add up to 10"):
            random_split(ArrayDataset(np.arange(10)), lengths)


def test_csv_file(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", b"x,kind,y\n1,b,2.5\n2,a,3\n3,b,4\n")
    by_words = csv_file(path, target="kind", words=["kind"])
    assert by_words.classes == ("a", "b") and by_words.arrays[1].tolist() == [1, 0, 1]
    assert by_words.arrays[0].tolist() == [[1, 2.5], [2, 3], [3, 4]]
    by_number = csv_file(path, words=["kind"])
    assert by_number.arrays[1].dtype == "float32"
    counts = put(tmp_path, "b.csv", b"1,0\n2,1\n")
    assert csv_file(counts).arrays[1].dtype == "int64"
    assert csv_file(counts, labels=False).arrays[1].dtype == "float32"
    with pytest.raises(DataFileError, match="column 'kind': 'b' is no finite number"):
        csv_file(path)
    with pytest.raises(ValueError, match="there is no column 'z'"):
        csv_file(path, target="z", words=["kind"])
    for column in (b"300000 360000", b"1 2", b"0 2", b"0 1 1 3"):  # prices, or a class is missing
        rows = b"".join(b"7," + cell + b"\n" for cell in column.split())
        path = put(tmp_path, "d.csv", rows)
        assert csv_file(path).arrays[1].dtype == "float32"
        assert csv_file(path, labels=True).arrays[1].dtype == "int64"
    with pytest.raises(DataFileError, match=r"1\.5 is no label"):
        csv_file(put(tmp_path, "c.csv", b"1,1.5\n2,1\n"), labels=True)


@pytest.mark.parametrize("text", [b"a,y\n1e300,0\n2,1\n", b"a,y\n1,1e300\n2,1\n"])
def test_numbers_that_float32_does_not_have_are_refused(tmp_path: Path, text: bytes) -> None:
    path = put(tmp_path, "e.csv", text)
    for labels in (None, True, False):
        with pytest.raises(DataFileError, match=r"1e\+300 is too large for float32"):
            csv_file(path, labels=labels)
    with pytest.raises(DataFileError, match=r"1e\+19 is no label"):
        csv_file(put(tmp_path, "f.csv", b"1,1e19\n2,1\n"), labels=True)


def test_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.arange(3), z=np.zeros(4))
    assert len(npz_file(tmp_path / "a.npz", ["y", "x"]).arrays) == 2
    with pytest.raises(DataFileError, match="do not go together"):
        npz_file(tmp_path / "a.npz")
    with pytest.raises(DataFileError, match="no w; it has x, y, z"):
        npz_file(tmp_path / "a.npz", ["w"])


def test_image_folder(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no such folder"):
        ImageFolder(tmp_path / "nothing")
    with pytest.raises(DataFileError, match="no folder with images"):
        ImageFolder(tmp_path)
    put(tmp_path / "cat", ".DS_Store", b"")
    put(tmp_path / "cat", "a.png", b"no png")
    put(tmp_path / "ant", "b.PNG", b"no png")
    folder = ImageFolder(tmp_path)
    assert folder.classes == ("ant", "cat") and len(folder) == 2
    with pytest.raises(DataFileError, match=r"b\.PNG"):
        folder[0]
    put(tmp_path / "cat", "c.jpg", b"")
    with pytest.raises(DataFileError, match=r"c\.jpg: only \.png can be read"):
        ImageFolder(tmp_path)


def test_from_a_zipped_package(tmp_path: Path) -> None:
    "The package's own files are found even where the package is a zip."
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        for path in sorted((ROOT / "gradbook").rglob("*")):
            if path.suffix in {".py", ".gz"} or "t10k" in path.name:
                archive.write(path, path.relative_to(ROOT))
    code = "from gradbook.data.datasets import mnist, digits; "
    code += "print(len(mnist('test', subset=True)), len(digits()))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "lib.zip")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == ["10000", "1797"], done.stderr
