"The data files in the package: the content is what NOTICE.md says it is."

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import struct
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "gradbook" / "data" / "files"
NAMES = sorted(p.name for p in FOLDER.iterdir() if p.name != "NOTICE.md")


def decoded(name: str) -> bytes:
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}[Path(name).suffix]
    return unpack((FOLDER / name).read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_its_notice_with_the_checksum(name: str) -> None:
    notice = (FOLDER / "NOTICE.md").read_text(encoding="utf-8")
    stated = re.search(rf"{re.escape(name)}.*?`([0-9a-f]{{64}})`", notice, re.S)
    assert stated and stated[1] == hashlib.sha256(decoded(name)).hexdigest()


@pytest.mark.parametrize(
    ("part", "count", "first"),
    [("train20k", 20_000, [5, 0, 4, 1, 9, 2, 1, 3]), ("t10k", 10_000, [7, 2, 1, 0, 4, 1, 4, 9])],
)
def test_mnist(part: str, count: int, first: list[int]) -> None:
    images = decoded(f"mnist-{part}-images-idx3-ubyte.xz")
    labels = decoded(f"mnist-{part}-labels-idx1-ubyte.xz")
    assert struct.unpack(">4i", images[:16]) == (2051, count, 28, 28)
    assert struct.unpack(">2i", labels[:8]) == (2049, count)
    assert len(images) == 16 + count * 28 * 28 and len(labels) == 8 + count
    assert list(labels[8:16]) == first and set(labels[8:]) == set(range(10))


def test_breast_cancer() -> None:
    text = decoded("breast_cancer.csv.gz").decode()
    head, *rows = [line.split(",") for line in text.splitlines()]
    assert head == ["569", "30", "malignant", "benign"]
    assert len(rows) == 569 and {len(row) for row in rows} == {31}
    labels = [row[-1] for row in rows]
    assert (labels.count("0"), labels.count("1")) == (212, 357) and labels[:3] == ["0", "0", "0"]
    assert all(float(x) >= 0 for row in rows for x in row)
