"Readers of idx, PNG, CSV and NPZ: right on good files, and a clear refusal of every other."

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import struct
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.data.formats import (
    LINE,
    Decoded,
    chunks,
    number_in,
    read_csv,
    read_idx,
    read_npz,
    read_png,
    read_text,
)
from gradbook.scalar.samples import DataFileError

FULL = bool(os.environ.get("FULL"))
RNG = np.random.default_rng(13)
RAW = np.random.default_rng(5).bytes(2**16)  # it does not get shorter


def written(tmp_path: Path, content: bytes, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refused(read: Callable[[Path], object], path: Path, words: str) -> None:
    with pytest.raises(DataFileError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)


def peak(act: Callable[[], object]) -> int:
    "The most memory that was allocated at a time, in bytes."
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------- unpacking


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_content_is_the_same_however_it_is_packed(tmp_path: Path, pack: Any) -> None:
    content = RNG.bytes(300_000)
    source = Decoded(written(tmp_path, pack(content)))
    assert bytes(source.take(100, "a") + source.take(299_900, "b")) == content
    source.end()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_several_packed_parts_in_a_row_are_one_content(tmp_path: Path, pack: Any) -> None:
    source = Decoded(written(tmp_path, pack(b"one ") + pack(b"two") + bytes(8)))
    assert source.take(7, "all") == b"one two"
    source.end()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
@pytest.mark.parametrize("rest", [0, 1, 2, 5])
@pytest.mark.parametrize("zeros", [0, 3, 140_000])
def test_parts_and_zeros_that_end_where_reading_stops(
    tmp_path: Path, pack: Any, rest: int, zeros: int
) -> None:
    around = len(pack(RAW)) - len(RAW)
    content = RAW[: 2**16 - rest - around]
    first = pack(content) + bytes(zeros)
    path = written(tmp_path, first + pack(b"two") + bytes(70_000))
    assert b"".join(chunks(path)) == content + b"two"
    refused(lambda p: list(chunks(p)), written(tmp_path, first + b"<html>"), "something else")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:-1], "too early"),
        (lambda b: b[: len(b) // 2], "too early"),
        (lambda b: b + b"x", "something else follows"),
        (lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:], "can't be read to its end"),
    ],
    ids=["one byte short", "half", "trailing", "flipped"],
)
def test_damaged_packing_is_refused(tmp_path: Path, pack: Any, damage: Any, words: str) -> None:
    packed = pack(RNG.bytes(200_000))
    refused(lambda p: read_text(p), written(tmp_path, damage(packed)), words)


def test_an_xz_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**30, "preset": 0}]
    with lzma.open(tmp_path / "big.xz", "wb", filters=filters) as file:
        file.write(b"small")
    refused(read_text, tmp_path / "big.xz", "(?i)memory")


def test_a_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(bytes(50_000_000)))
    assert peak(lambda: refused(lambda p: read_text(p, 10**6), path, "more than 1,000,000")) < 4e6


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    refused(read_idx, tmp_path / "nothing", "no such file")
    refused(read_idx, tmp_path, "can't be opened")


# ------------------------------------------------------------- idx


def as_idx(array: np.ndarray) -> bytes:
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    kind = array.dtype.str[1:]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, codes[kind], array.ndim, *array.shape)
    return head + array.astype(f">{kind}").tobytes()


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 1)])
def test_idx_of_every_kind(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = (RNG.normal(size=shape) * 50).astype(kind)
    back = read_idx(written(tmp_path, as_idx(array)))
    assert back.dtype == array.dtype and back.dtype.isnative and (back == array).all()
    back[...] = 0  # it is ours to change


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 of 4 bytes of the mark"),
        (b"\0\0\x08", "3 of 4"),
        (b"\x1f\x00\x08\x01", "no idx"),
        (b"\0\0\x07\x01\0\0\0\1x", "no idx"),
        (b"\0\0\x08\x00x", "no idx"),
        (b"\0\0\x08\xff" + bytes(1020), "no idx"),
        (struct.pack(">4B2I", 0, 0, 8, 2, 0, 5), "empty"),
        (struct.pack(">4B2I", 0, 0, 14, 2, 2**32 - 1, 2**32 - 1), "needs"),
        (struct.pack(">4B1I", 0, 0, 8, 1, 5) + b"1234", "4 of 5"),
        (struct.pack(">4B1I", 0, 0, 8, 1, 5) + b"123456", "1 bytes follow"),
    ],
)
def test_idx_that_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    refused(read_idx, written(tmp_path, content), words)


def test_a_promise_of_much_takes_no_memory(tmp_path: Path) -> None:
    path = written(tmp_path, struct.pack(">4B1I", 0, 0, 8, 1, 10**9) + bytes(1000))
    assert peak(lambda: refused(read_idx, path, "1,000 of 1,000,000,000")) < 500_000


# ------------------------------------------------------------- PNG


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def header(width: int, height: int, depth: int = 8, colour: int = 0, *rest: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, *(rest or (0, 0, 0))))


def filtered(image: np.ndarray, kinds: list[int]) -> bytes:
    "The rows of an image `(h, w, c)`, filtered, straight from the specification."
    h, w, c = image.shape
    rows, x = [], image.astype(int).reshape(h, w * c)

    def at(i: int, j: int) -> int:
        return int(x[i, j]) if i >= 0 and j >= 0 else 0

    for i, kind in enumerate(kinds):
        row = [kind]
        for j in range(w * c):
            a, b, d = at(i, j - c), at(i - 1, j), at(i - 1, j - c)
            p = a + b - d
            nearest = min((a, b, d), key=lambda v: abs(p - v))
            row.append((at(i, j) - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
        rows.append(bytes(row))
    return b"".join(rows)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_all_filters_in_any_mixture(data: Any) -> None:
    h, w = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    colour, c = data.draw(st.sampled_from([(0, 1), (2, 3), (4, 2), (6, 4)]))
    numbers = data.draw(st.lists(st.integers(0, 255), min_size=h * w * c, max_size=h * w * c))
    image = np.array(numbers, "uint8").reshape(h, w, c)
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=h, max_size=h))
    packed = zlib.compress(filtered(image, kinds))
    cut = data.draw(st.integers(0, len(packed)))
    content = png(
        header(w, h, 8, colour), chunk(b"IDAT", packed[:cut]), chunk(b"IDAT", packed[cut:])
    )
    with tempfile.TemporaryDirectory() as folder:
        back = read_png(written(Path(folder), content))
    assert (back == (image[:, :, 0] if c == 1 else image)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("smooth", [True, False])
def test_what_pillow_writes(tmp_path: Path, mode: str, smooth: bool) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    noise = RNG.integers(0, 256, (37, 53, 4))
    ramp = np.add.outer(np.arange(37), np.arange(53))[:, :, None] * [1, 2, 3, 1] % 256
    rgba = image_module.fromarray((ramp if smooth else noise).astype("uint8"), "RGBA")
    image = rgba.convert("RGB").convert(mode) if mode != "RGBA" else rgba
    image.save(tmp_path / "a.png")
    expected = np.asarray(image.convert("RGB") if mode == "P" else image)
    if mode == "P" and image_module.open(tmp_path / "a.png").mode != "P":
        pytest.skip("this Pillow packs few colours into fewer bits")
    assert (read_png(tmp_path / "a.png") == expected).all()


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    packed = zlib.compress(b"\0\0\1\2")
    content = png(
        header(3, 1, 8, 3),
        chunk(b"PLTE", bytes(range(9))),
        chunk(b"tRNS", b"\x07"),
        chunk(b"IDAT", packed),
    )
    expected = [[[0, 1, 2, 7], [3, 4, 5, 255], [6, 7, 8, 255]]]
    assert read_png(written(tmp_path, content)).tolist() == expected


TWO = chunk(b"IDAT", zlib.compress(b"\0\1\2" * 2))  # 2 x 2, grey


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GIF89a", "does not begin like a PNG|of the mark"),
        (png(header(2, 2), TWO)[:-12], "a chunk's head"),
        (png(header(2, 2), TWO) + b"more", "follow where it should end"),
        (png(TWO), "IHDR has to come first"),
        (png(header(2, 2), header(2, 2), TWO), "IHDR has to come first, and once"),
        (png(chunk(b"IHDR", b"short"), TWO), "5 bytes instead of 13"),
        (png(header(0, 2), TWO), "empty|do not fill"),
        (png(header(2, 0), TWO), "empty"),
        (png(header(2, 2, 16), TWO), "16 bits"),
        (png(header(2, 2, 1), TWO), "1 bits"),
        (png(header(2, 2, 8, 0, 0, 0, 1), TWO), "interlaced"),
        (png(header(2, 2, 8, 5), TWO), "no PNG"),
        (png(header(2, 2, 8, 0, 1, 0, 0), TWO), "no PNG"),
        (png(header(2, 2)), "do not fill"),
        (png(header(3, 2), TWO), "do not fill"),
        (png(header(1, 1), TWO), "do not fill"),
        (png(header(2, 2), TWO, chunk(b"tEXt", b"hi"), TWO), "interrupted"),
        (png(header(2, 2), chunk(b"NEED", b""), TWO), "unknown and needed"),
        (png(header(2, 2), chunk(b"IDAT", b"no zlib")), "can't be unpacked"),
        (png(header(1, 1), chunk(b"IDAT", zlib.compress(b"\x09\0"))), "filter 9"),
        (png(header(2, 2, 8, 3), TWO), "palette of 0 bytes"),
        (png(header(2, 2, 8, 3), chunk(b"PLTE", b"abcd"), TWO), "palette of 4 bytes"),
        (png(header(2, 2, 8, 3), chunk(b"PLTE", b"abc"), TWO), "colour 2 of a palette of 1"),
        (png(header(2, 2, 8, 3), TWO, chunk(b"PLTE", b"abc")), "too late"),
        (png(header(2, 2), TWO[:-1] + b"?"), "checksum"),
        (png(header(2, 2), chunk(b"tRNS", b"\0\1"), TWO), "transparent"),
        (png(header(60000, 60000), TWO), "needs 3,600,060,000"),
        (png(header(20000, 20000), TWO), "do not fill"),
    ],
)
def test_png_that_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path, content)
    assert peak(lambda: refused(read_png, path, words)) < 1_000_000


def test_chunks_that_may_be_skipped_are_skipped(tmp_path: Path) -> None:
    content = png(header(2, 2), chunk(b"tEXt", b"made by hand"), TWO, chunk(b"tIME", b"1234567"))
    assert read_png(written(tmp_path, content)).tolist() == [[1, 2], [1, 2]]


# ------------------------------------------------------------- CSV


def csv(tmp_path: Path, text: str | bytes, **options: Any) -> Any:
    content = text if isinstance(text, bytes) else text.encode()
    return read_csv(written(tmp_path, content, "table.csv"), **options)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_line_ends_and_byte_order_mark(tmp_path: Path, ends: str, last: bool) -> None:
    text = "\ufeff" + ends.join(["a,b", "1,2.5", "", "-3, 4e1 "]) + (ends if last else "")
    table = csv(tmp_path, text)
    assert table.names == ("a", "b") and table.numbers.tolist() == [[1, 2.5], [-3, 40]]


def test_csv_with_words_quotes_and_another_separator(tmp_path: Path) -> None:
    text = 'size;kind\n1;"b;c"\n2;a\n3;"b;c"\n'
    table = csv(tmp_path, text, words=[-1], separator=";")
    assert table.words == {"kind": ("a", "b;c")}
    assert table.numbers.tolist() == [[1, 1], [2, 0], [3, 1]]


def test_csv_header_is_recognised_or_told(tmp_path: Path) -> None:
    assert csv(tmp_path, "1,2\n3,4\n").names == ("0", "1")
    assert csv(tmp_path, "1,2\n3,4\n", header=True).names == ("1", "2")
    with pytest.raises(DataFileError, match="row 1: column '0': 'a'"):
        csv(tmp_path, "a,b\n3,4\n", header=False)


def test_a_first_row_of_numbers_and_words_is_not_guessed_at(tmp_path: Path) -> None:
    text = "5.1,setosa\n4.9,setosa\n"
    for content in (text, "1,n/a\n2,3\n", "1,\n2,3\n"):
        with pytest.raises(DataFileError, match=r"row 1: .*say header=True or header=False"):
            csv(tmp_path, content)
    assert len(csv(tmp_path, text, words=[-1], header=False).numbers) == 2
    assert csv(tmp_path, text, words=[-1], header=True).names == ("5.1", "setosa")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("a,b\n", "no rows"),
        ("1,2\n3\n", "row 2: 1 cells instead of 2"),
        ("1,2\n3,4,5\n", "row 2: 3 cells"),
        ("1,2\n3,\n", "row 2: column '1': ''"),
        ("nan,2\n1,3\n", "row 1: numbers and words"),
        ("1,2\nnan,3\n", "'nan' is no finite"),
        ("1,2\n1e999,3\n", "'1e999' is no finite"),
        ("1,2\n1_0,3\n", "'1_0'"),
        ("a,a\n1,2\n", "same name"),
        ('1,2\n"3,4\n', "unexpected end"),
        ('1,2\n"3"x,4\n', "expected after"),
        (b"1,2\n\xff,4\n", "row 2: this is no text"),
        ("1,2\n\0,4\n", "row 2"),
        ("1" * (LINE + 2**17) + "\n", "a line of more than|field larger"),
        ("1,2\n" + "9" * 200_000 + ",3\n", "field larger"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataFileError, match=words):
        csv(tmp_path, text)


def test_csv_with_an_unknown_column(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no column 'c'; there are: a, b"):
        csv(tmp_path, "a,b\n1,2\n", words=["c"])


@pytest.mark.parametrize("cell", ["1" * 20_000 + "x", "." + "1" * 20_000 + "x", "1" * 401])
def test_a_long_cell_takes_no_time(tmp_path: Path, cell: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(DataFileError, match="is no finite number"):
        csv(tmp_path, f"1,2\n{cell},3\n")
    assert time.perf_counter() - begin < 1
    assert number_in("1" * 300) == float("1" * 300)


def test_columns_of_words_do_not_decide_about_the_header(tmp_path: Path) -> None:
    rows = "5.1,3.5,setosa\n4.9,3.0,setosa\n"
    for place in (-1, 2):
        assert csv(tmp_path, rows, words=[place]).names == ("0", "1", "2")
        assert csv(tmp_path, "a,b,c\n" + rows, words=[place]).names == ("a", "b", "c")
    with pytest.raises(DataFileError, match="row 1: all columns hold words: say header=True"):
        csv(tmp_path, "anna,f\nbert,m\n", words=[0, 1])
    assert len(csv(tmp_path, "anna,f\nbert,m\n", words=[0, 1], header=False).numbers) == 2


def test_csv_takes_no_more_memory_than_was_allowed(tmp_path: Path) -> None:
    text = "a,b\n" + "".join(f"1,{k:x}\n" for k in range(2**16 + 1))
    with pytest.raises(DataFileError, match="row 65538: column 'b': more than 65,536 words"):
        csv(tmp_path, text, words=["b"])
    assert len(csv(tmp_path, text[: text.rindex("1,")], words=["b"]).words["b"]) == 2**16
    with pytest.raises(DataFileError, match="its numbers take more than 1,000 bytes"):
        csv(tmp_path, "1,2,3,4\n" * 40, limit=1000)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_survive_being_written(numbers: list[float]) -> None:
    assert [number_in(repr(x)) for x in numbers] == numbers


def test_csv_equals_numpys_reader(tmp_path: Path) -> None:
    numbers = RNG.normal(size=(200, 7)) * 10.0 ** RNG.integers(-9, 9, (200, 7))
    np.savetxt(tmp_path / "table.csv", numbers, delimiter=",", fmt="%.17g")
    assert (read_csv(tmp_path / "table.csv").numbers == numbers).all()


# ------------------------------------------------------------- NPZ


class Ran:
    def __reduce__(self) -> Any:
        return os.makedirs, ("ran-code",)


def npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_numpy(tmp_path: Path, save: Any) -> None:
    arrays = {"x": RNG.normal(size=(3, 4)), "y": np.arange(3), "f": np.asfortranarray(np.eye(3))}
    save(tmp_path / "a.npz", **arrays)
    back = read_npz(tmp_path / "a.npz")
    assert all((back[k] == v).all() and back[k].dtype == v.dtype for k, v in arrays.items())


def test_npz_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = npz(x=npy(np.array([Ran()], dtype=object)), y=pickle.dumps(Ran()))
    refused(read_npz, written(tmp_path, content), "only numbers")
    assert not (tmp_path / "ran-code").exists()


def test_npz_that_lies_about_its_size(tmp_path: Path) -> None:
    good = npy(np.zeros(10))
    lie = good.replace(b"(10,), }         ", b"(1000000000,), } ")
    assert len(lie) == len(good) and lie != good
    path = written(tmp_path, npz(x=lie))
    assert peak(lambda: refused(read_npz, path, "disagree")) < 1_000_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no sound"),
        (b"PK\3\4 and nothing", "no sound"),
        (npz(), "no arrays"),
        (npz(x=b"no npy"), "no sound"),
        (npz(x=npy(np.array(["a"]))), "only numbers"),
        (npz(x=npy(np.zeros(3))[:-1]), "disagree"),
        (npz(x=npy(np.zeros(3)) + b"x"), "disagree"),
    ],
)
def test_npz_that_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    refused(read_npz, written(tmp_path, content), words)


def test_npz_over_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path, npz(x=npy(np.zeros(100_000))))
    refused(lambda p: read_npz(p, 10_000), path, "more than 10,000")


# ------------------------------------------------------------- mutations

EXTREMES = [0, 1, 0x7F, 0x80, 0xFF]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    "The content after a few accidents: bytes changed, cut, doubled, moved, numbers made extreme."
    out = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        n, at = len(out), int(rng.integers(0, max(len(out), 1)))
        if rng.random() < 0.5:
            at = min(at, int(rng.integers(0, 64)))  # heads are where it hurts
        stop = at + int(rng.integers(1, 40))
        match int(rng.integers(0, 7)):
            case 0 | 1:
                out[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 2:
                out[at : at + 4] = bytes(int(rng.choice(EXTREMES)) for _ in range(4))
            case 3:
                del out[at:stop]
            case 4:
                out[at:at] = out[at:stop]
            case 5:
                del out[max(at, n // 4) :]
            case 6:
                out[at:at] = rng.bytes(stop - at)
    return bytes(out)


def with_checksums(content: bytes) -> bytes:
    "A PNG with the checksums mended, so that the damage gets further in."
    out, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        out += chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + length])
        at += 12 + length
    return out


def fuzzed_files() -> dict[str, tuple[Callable[[Path], object], bytes, Any]]:
    smooth = (np.add.outer(np.arange(300), np.arange(400)) // 3 % 256).astype("uint8")
    noise = RNG.integers(0, 256, (60, 40, 3)).astype("uint8")
    rows = filtered(noise, [i % 5 for i in range(60)])
    picture = png(header(40, 60, 8, 2), chunk(b"IDAT", zlib.compress(rows)))
    palette = png(
        header(40, 180, 8, 3),
        chunk(b"PLTE", bytes(range(256)) * 3),
        chunk(b"IDAT", zlib.compress(filtered(noise.reshape(180, 40, 1), [0] * 180))),
    )
    table = "a,b,kind\n" + "".join(
        f"{x:.3f},{y},{'no' if y else 'yes'}\n"
        for x, y in zip(RNG.normal(size=9000), RNG.integers(0, 2, 9000))
    )
    keep = lambda b: b  # noqa: E731
    words = lambda p: read_csv(p, words=[-1])  # noqa: E731
    return {
        "idx": (read_idx, as_idx(smooth), keep),
        "idx.gz": (read_idx, gzip.compress(as_idx(smooth)), keep),
        "idx.xz": (read_idx, lzma.compress(as_idx(smooth)), keep),
        "idx in gz": (read_idx, as_idx(smooth), gzip.compress),
        "png": (read_png, picture, keep),
        "png, checksums right": (read_png, picture, with_checksums),
        "palette": (read_png, palette, with_checksums),
        "csv": (words, table.encode(), keep),
        "csv in gz": (words, table.encode(), gzip.compress),
        "npz": (read_npz, npz(x=npy(smooth), y=npy(np.arange(9.0))), keep),
    }


@pytest.mark.parametrize("name", fuzzed_files())
def test_mutated_files(name: str, tmp_path: Path) -> None:
    "No accident makes a reader crash, or take more than four times the memory of the good file."
    read, good, finish = fuzzed_files()[name]
    path = written(tmp_path, finish(good))
    most = 4 * peak(lambda: read(path))
    rng, refusals = np.random.default_rng(len(name)), 0
    count = 1500 if FULL else 40  # FULL: 15,000 in all
    for _ in range(count):
        path.write_bytes(finish(mutated(good, rng)))

        def attempt() -> None:
            nonlocal refusals
            try:
                read(path)
            except DataFileError as error:
                refusals += 1
                assert str(path) in str(error)

        assert peak(attempt) <= most
    assert refusals > count / 4
