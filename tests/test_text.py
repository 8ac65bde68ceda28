"Tokenizers: the ids of GPT-2's own, every byte comes back, and a clear refusal of the rest."

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
import tracemalloc
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradbook.data.datasets import shakespeare
from gradbook.data.formats import read_text
from gradbook.scalar.samples import DataFileError
from gradbook.tensor.core import Tensor
from gradbook.text import tokenizer as module
from gradbook.text.bpe import (
    apply_merges,
    apply_slowly,
    character_class,
    count_pairs,
    from_signs,
    in_signs,
    learn_merges,
    merge_pair,
    split,
)
from gradbook.text.tokenizer import (
    ENDOFTEXT,
    BPETokenizer,
    CharTokenizer,
    TokenizerError,
    check_match,
    decode_stream,
    fingerprint,
    gpt2,
    load_merges,
    load_tokenizer,
    save_tokenizer,
)

FULL = bool(os.environ.get("FULL"))
PACKED = ROOT / "gradbook" / "data" / "files" / "gpt2-vocab.bpe.xz"
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"

WORLD = """The quick brown fox jumps over the lazy dog. It's 3.14159 o'clock, they'll say; I'VE been
  Zoë's naïve café — “déjà vu”…  Ça va?  Straße, Ærøskøbing, Łódź, Iğdır, Þingvellir.\t\tTabs\n\n\n
Ελληνικά: Μῆνιν ἄειδε θεά. Русский: Все счастливые семьи похожи. Українська: їжак.
עברית: בְּרֵאשִׁית בָּרָא אֱלֹהִים  العربية: بِسْمِ ٱللَّٰهِ ٣٤٥  فارسی: می‌خواهم
हिन्दी: सभी मनुष्यों को १२३  বাংলা: আমার সোনার  தமிழ்: அனைவரும்  ไทย: มนุษย์ทั้งหลาย
中文：人人生而自由，在尊严和权利上一律平等。
日本語：すべての人間は、カタカナ。 한국어: 모든 인간은 태어날 때부터
ქართული: ყველა ადამიანი  አማርኛ: የሰው ልጅ  ᚠᛇᚻ᛫ᛒᛦᚦ 𐌰𐌽𐌰 𓀀𓁐 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ½ ² Ⅷ ① ༣ 〇 一二三
👋🏽 👩‍👩‍👧‍👦 🇩🇪🇯🇵 ❤️ 🏴󠁧󠁢󠁳󠁣󠁴󠁿
e\u0301 \u00a0nbsp\u2003em\u3000wide\u200bzero\u2028line\u2029par\
\x85next\x1cfs\x1fus\x00nul
\r\n  indent\r\n\tif x == 10:\n        return {'a': [1, 2_000]}  # comment
$$$ ??? ... ---- ______ ''''s 's 'S
"""


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """OpenAI's tiktoken with its "gpt2".

    It wants to fetch two files. Where the second of them is among our data, both are put where it
    looks first, and it is `get_encoding("gpt2")` with its own checks. Elsewhere the same encoding
    is built from the merges and tiktoken's own rule.
    """
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    merges = read_text(PACKED)
    known = Path(os.environ.get("GRADBOOK_DATA", SHARED)) / "gpt2-bpe" / "encoder.json"
    if known.is_file():
        folder = tmp_path_factory.mktemp("tiktoken")
        for name, content in (("vocab.bpe", merges.encode()), ("encoder.json", known.read_bytes())):
            (folder / hashlib.sha1((URL + name).encode()).hexdigest()).write_bytes(content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
            return tiktoken.get_encoding("gpt2")
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {from_signs(in_signs(bytes([b]))): k for k, b in enumerate(module.ALPHABETS["gpt2"])}
    for row in merges.splitlines()[1:]:
        ranks[b"".join(map(from_signs, row.split(" ")))] = len(ranks)
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={ENDOFTEXT: 50256}
    )


def some_text(rng: random.Random, kinds: list[list[str]]) -> str:
    "A row of stretches, each of characters of one kind."
    parts = (rng.choices(rng.choice(kinds), k=rng.choice((1, 1, 2, 3, 8, 40))) for _ in range(40))
    return "".join(map("".join, parts))


def kinds_of_characters() -> list[list[str]]:
    "All characters, in blocks of 128; and the few that the rule has opinions on."
    blocks = [range(start, start + 128) for start in range(0, 0x32400, 128)]
    kinds = [[chr(c) for c in block if not 0xD800 <= c < 0xE000] for block in blocks]
    special = ["  ", "'s", "'ll", *" \n\t'aZ1²_.\x1c\xa0"]
    return [kind for kind in kinds if kind] + [special, [" "], list("ab"), list("ACGT")] * 150


# ---- the ids of GPT-2


def test_the_world_in_gpt2_ids(peer: Any) -> None:
    assert gpt2().encode(WORLD) == peer.encode(WORLD)
    assert gpt2().decode(gpt2().encode(WORLD)) == WORLD
    for line in WORLD.splitlines(keepends=True):
        assert gpt2().encode(line) == peer.encode(line)


def test_tokens_are_gpt2s(peer: Any) -> None:
    assert gpt2().n_vocab == peer.n_vocab == 50257
    assert gpt2().tokens == [peer.decode_single_token_bytes(i) for i in range(50257)]
    known = Path(os.environ.get("GRADBOOK_DATA", SHARED)) / "gpt2-bpe" / "encoder.json"
    if known.is_file():
        ids = json.loads(known.read_text(encoding="utf-8"))
        names = [in_signs(token) for token in gpt2().tokens]
        assert all(ids[name] == i for i, name in enumerate(names[:-1])) and ids[ENDOFTEXT] == 50256


def test_every_character_alone_and_in_company(peer: Any) -> None:
    "Each code point of Unicode, in rows that make its class visible."
    for start in range(0, 0x110000, 256):
        chars = [chr(c) for c in range(start, start + 256) if not 0xD800 <= c < 0xE000]
        text = "".join(f"a{c}b 1{c}2 .{c}{c} " for c in chars)
        if start < 0x34000 or start % 0x4000 == 0:
            assert gpt2().encode_ordinary(text) == peer.encode_ordinary(text), hex(start)


def test_random_text_in_gpt2_ids(peer: Any) -> None:
    rng, kinds = random.Random(20), kinds_of_characters()
    for _ in range(20_000 if FULL else 2_000):
        text = some_text(rng, kinds)
        assert gpt2().encode_ordinary(text) == peer.encode_ordinary(text), ascii(text)


def test_random_bytes_in_gpt2_ids(peer: Any) -> None:
    rng = random.Random(21)
    for n in (0, 1, 2, 3, 10, 100, 1000, 20_000):
        data = rng.randbytes(n)
        text = data.decode("utf-8", "replace")
        assert gpt2().encode_ordinary(text) == peer.encode_ordinary(text)
        assert gpt2().decode_bytes(gpt2().encode_bytes(data)) == data


def test_real_text_in_gpt2_ids(peer: Any) -> None:
    assert gpt2().encode(shakespeare("all", subset=True)[:300_000]) == peer.encode(
        shakespeare("all", subset=True)[:300_000]
    )
    articles = SHARED / "text" / "wikitext-2" / "valid.txt"
    if articles.is_file():
        text = articles.read_text(encoding="utf-8")[: None if FULL else 200_000]
        assert gpt2().encode_ordinary(text) == peer.encode_ordinary(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
@example("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
@example("ᾀ" * 30 + "\n" * 40 + " " * 90)
def test_any_text_in_gpt2_ids(peer: Any, text: str) -> None:
    ids = gpt2().encode_ordinary(text)
    assert ids == peer.encode_ordinary(text) and gpt2().decode(ids, "strict") == text


def test_special_tokens_as_tiktoken_has_them(peer: Any) -> None:
    text = f"one{ENDOFTEXT}two {ENDOFTEXT}"
    for options in (
        {"allowed_special": "all"},
        {"allowed_special": {ENDOFTEXT}},
        {"disallowed_special": ()},
    ):
        assert gpt2().encode(text, **options) == peer.encode(text, **options)
    with pytest.raises(ValueError):
        peer.encode(text)
    with pytest.raises(TokenizerError, match="at position 3"):
        gpt2().encode(text)
    with pytest.raises(TokenizerError, match="'<no>' is no special token; there are:"):
        gpt2().encode(text, allowed_special={"<no>"})


def test_a_string_is_no_set_of_names() -> None:
    for use in (
        lambda: BPETokenizer.train("a text", 400, special="<end>"),
        lambda: BPETokenizer([], special="<end>"),
        lambda: gpt2().encode("a < b", disallowed_special=ENDOFTEXT),
        lambda: gpt2().encode("a < b", allowed_special=ENDOFTEXT),
    ):
        with pytest.raises(TokenizerError, match="a set or list of names, not the string"):
            use()
    with pytest.raises(TokenizerError, match="'<no>' is no special token; there are:"):
        gpt2().encode("text", disallowed_special={"<no>"})
    assert gpt2().encode("all", disallowed_special="all") == [439]


def test_the_rule_is_gpt2s_rule() -> None:
    regex = pytest.importorskip("regex", reason="regex is not installed")
    rule = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    pattern = regex.compile(rule)
    for line in WORLD.splitlines(keepends=True):
        assert split(line) == pattern.findall(line)
    rng, kinds = random.Random(22), kinds_of_characters()
    known = {c for kind in kinds for s in kind for c in s if unicodedata.category(s[0]) != "Cn"}
    for _ in range(500):
        text = "".join(c for c in some_text(rng, kinds) if c in known)
        assert split(text) == pattern.findall(text), ascii(text)


@pytest.mark.parametrize("kind", ["L", "N"])
def test_classes_do_not_depend_on_python(kind: str) -> None:
    "A Python that knows another Unicode gives the same letters and numbers."
    sizes = {"L": 141_028, "N": 1_911}
    inside = character_class(kind)
    ranges = [inside[k : k + 3] for k in range(0, len(inside), 3)]
    assert sum(ord(r[2]) - ord(r[0]) + 1 for r in ranges) == sizes[kind]
    digest = hashlib.sha256(inside.encode()).hexdigest()[:16]
    assert digest == {"L": "471b98d7cf963090", "N": "cd20eeaf34569465"}[kind], sys.version


# ---- any bytes


SMALL = BPETokenizer.train(shakespeare("all", subset=True)[:60_000], 600)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_come_back(data: bytes) -> None:
    for tokenizer in (gpt2(), SMALL):
        assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100))
def test_bytes_of_a_text_have_the_ids_of_the_text(text: str) -> None:
    assert gpt2().encode_bytes(text.encode()) == gpt2().encode_ordinary(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_a_stream_is_the_text_and_never_half_a_character(text: str) -> None:
    pieces = list(decode_stream(SMALL, SMALL.encode_ordinary(text)))
    assert "".join(pieces) == text and "" not in pieces
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_stream_of_half_a_character_ends_with_a_sign() -> None:
    ids = SMALL.encode("👋")
    assert list(decode_stream(SMALL, ids[:-1])) == ["\ufffd"]
    assert SMALL.decode(ids[:-1]) == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        SMALL.decode(ids[:-1], "strict")


# ---- learning merges


def naive_merges(words: dict[bytes, int], n: int) -> list[tuple[int, int]]:
    now: Any = {tuple(word): times for word, times in words.items()}
    merges: list[tuple[int, int]] = []
    while len(merges) < n and (counts := count_pairs(now)):
        best = max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]))
        if counts[best] < 2:
            break
        after: Counter[tuple[int, ...]] = Counter()
        for ids, times in now.items():
            after[tuple(merge_pair(ids, best, 256 + len(merges)))] += times
        now = after
        merges.append(best)
    return merges


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=12), st.integers(1, 9), max_size=20),
    st.integers(0, 40),
)
def test_fast_learning_is_slow_learning(words: dict[str, int], n: int) -> None:
    pieces = {word.encode(): times for word, times in words.items()}
    merges = learn_merges(pieces, n)
    assert merges == naive_merges(pieces, n)
    tokens = [bytes([b]) for b in range(256)]
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    assert len(set(tokens)) == len(tokens)  # no token comes about in two ways


@settings(max_examples=100, deadline=None)
@given(st.text("abcd ", max_size=400), st.integers(0, 60))
def test_fast_encoding_is_slow_encoding(text: str, n: int) -> None:
    merges = learn_merges({text[:200].encode(): 1}, n)
    ranks = {pair: 256 + k for k, pair in enumerate(merges)}
    ids = list(text.encode())
    assert apply_merges(ids, ranks) == apply_slowly(ids, ranks)
    assert ids == list(text.encode())  # untouched


def test_a_megabyte_is_learned_in_time() -> None:
    text = shakespeare("all", subset=True)
    start = time.perf_counter()
    tokenizer = BPETokenizer.train(text, 1257)
    assert time.perf_counter() - start < 20
    assert len(tokenizer.merges) == 1000 and len(text) > 1_000_000


def test_a_piece_without_cuts_takes_no_quadratic_time() -> None:
    ids = [97, 98] * 100_000
    ranks = {(97, 98): 256, (256, 256): 257, (257, 257): 258}
    start = time.perf_counter()
    assert len(apply_merges(ids, ranks)) == 25_000
    assert time.perf_counter() - start < 10


def test_documents_are_learned_one_by_one() -> None:
    "No pair across documents, and none with a special token."
    one = BPETokenizer.train(["ab" * 20, "ba" * 20], 260)
    joined = BPETokenizer.train(ENDOFTEXT.join(["ab" * 20, "ba" * 20]), 260)
    assert one.merges == joined.merges and one.special == {ENDOFTEXT: 259}


# ---- bad input


def test_characters_that_are_not_known() -> None:
    tokenizer = CharTokenizer.train("To be")
    with pytest.raises(TokenizerError, match=r"'ë' \(U\+00EB\) at position 2 is none of the 5"):
        tokenizer.encode("beë")
    with pytest.raises(TokenizerError, match="empty"):
        CharTokenizer.train("")
    with pytest.raises(TokenizerError, match="3 characters, 2 different"):
        CharTokenizer("aba")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([0, 600], "id 600 at position 1: a vocabulary of 600 has ids 0 to 599"),
        ([-1], "id -1 at position 0"),
        ([0.5], "whole numbers, not float64"),
        ([[1, 2]], r"one row of whole numbers, not int64 \(1, 2\)"),
        (5, "one row"),
        (["a"], "one row"),
        ([[1, 2], [3]], "one row"),
        ([True], "one row"),
    ],
)
def test_ids_that_are_none(ids: Any, words: str) -> None:
    with pytest.raises(TokenizerError, match=words):
        SMALL.decode(ids)


def test_ids_come_in_any_form() -> None:
    ids = SMALL.encode("my lord")
    for form in (ids, tuple(ids), np.array(ids, "uint16"), Tensor(ids), []):
        assert SMALL.decode(form) == ("my lord" if len(form) else "")


@pytest.mark.parametrize("text", [None, b"abc", 5, ["a", "b"]])
def test_only_a_string_is_a_text(text: Any) -> None:
    char = CharTokenizer("abc")
    for use in (SMALL.encode, SMALL.encode_ordinary, char.encode, CharTokenizer.train):
        with pytest.raises(TokenizerError, match="a text is a str, not"):
            use(text)


def test_half_a_character_is_found_behind_special_tokens() -> None:
    with pytest.raises(TokenizerError, match=r"U\+D800 at position 13"):
        SMALL.encode("<|endoftext|>\ud800", allowed_special="all")


def test_half_a_surrogate_pair_is_no_text() -> None:
    for use in (SMALL.encode, CharTokenizer.train, lambda t: BPETokenizer.train(t, 260)):
        with pytest.raises(TokenizerError, match=r"U\+D800 at position 2"):
            use("ab\ud800")


def test_vocabularies_that_cannot_be() -> None:
    with pytest.raises(TokenizerError, match="alone are 257"):
        BPETokenizer.train("abc", 256)
    with pytest.raises(TokenizerError, match="take fewer, or more text"):
        BPETokenizer.train("abc", 300)
    with pytest.raises(TokenizerError, match="merge 1 joins 258 and 97"):
        BPETokenizer([(97, 98), (258, 97)])
    with pytest.raises(TokenizerError, match="two merges give the same token, b'ab'"):
        BPETokenizer([(97, 98), (97, 98)])
    with pytest.raises(TokenizerError, match="two special tokens give the same token, '<a>'"):
        BPETokenizer([], special=["<a>", "<b>", "<a>"])
    with pytest.raises(TokenizerError, match="a special token is empty"):
        BPETokenizer([], special=[""])
    with pytest.raises(TokenizerError, match=r"n_vocab 300\.5: must be a whole number"):
        BPETokenizer.train("abc", 300.5)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="choose from bytes, gpt2"):
        BPETokenizer([], alphabet="latin")


def test_a_vocabulary_that_does_not_match_a_model() -> None:
    check_match(SMALL, 600, fingerprint(SMALL))
    with pytest.raises(TokenizerError, match=r"600 tokens\) does not go with a model of 65"):
        check_match(SMALL, 65)
    other = BPETokenizer.train("another text " * 9 + "the other text " * 9, 265)
    with pytest.raises(TokenizerError, match="fingerprint"):
        check_match(other, 265, fingerprint(SMALL))


# ---- files


@pytest.mark.parametrize("which", ["char", "bpe", "gpt2"])
def test_a_tokenizer_comes_back_from_its_file(tmp_path: Path, which: str) -> None:
    made = {"char": CharTokenizer.train(WORLD), "bpe": SMALL, "gpt2": gpt2()}[which]
    path = tmp_path / "tokenizer.json"
    save_tokenizer(made, path)
    again = load_tokenizer(path)
    assert type(again) is type(made) and again.encode(WORLD) == made.encode(WORLD)
    assert fingerprint(again) == fingerprint(made)
    assert list(tmp_path.iterdir()) == [path]


def broken_files() -> Iterator[tuple[str, str]]:
    head = '{"format": "gradbook tokenizer 1", '
    yield "", "no tokenizer"
    yield "[1, 2]", '"format"'
    yield '{"format": "other"}', '"format"'
    yield head + '"kind": "word"}', "there are char and bpe"
    yield head + '"kind": "char", "chars": 5}', '"chars" is not text'
    yield head + '"kind": "char", "chars": "aa"}', "different ones"
    yield head + '"kind": "char", "chars": "ab", "n_vocab": 3}', '"n_vocab" 3, and 2 tokens'
    bpe = '"kind": "bpe", "alphabet": "bytes", "special": [], "merges": '
    yield head + bpe + '["a b", "ab  c"]}', "merge 1 is"
    yield head + bpe + '["a bc"]}', "merge 0 is 'a bc'"
    yield head + bpe + '["a b"], "n_vocab": 999}', "999, and 257"
    yield "[" * 100_000, "no tokenizer"


@pytest.mark.parametrize(("content", "words"), list(broken_files()))
def test_files_that_are_broken(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataFileError, match=words) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


def test_any_cut_and_any_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path, rng = tmp_path / "tokenizer.json", random.Random(3)
    save_tokenizer(BPETokenizer.train("to be or not to be " * 30, 265), path)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged if rng.random() < 0.5 else whole[: rng.randrange(len(whole) - 2)])
        try:
            tokenizer = load_tokenizer(path)
        except DataFileError:
            continue
        assert tokenizer.n_vocab == 265


def test_a_file_of_merges_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    path.write_text("#version: 0.2\nĠ t\nĠt h\n", encoding="utf-8")
    assert load_merges(path).encode(" th") == [257]
    for rows, words in (("Ġ t\nx", "1 is 'x'"), ("Ġ t\n\nt h", "merge 1"), ("a Ω", "merge 0")):
        path.write_text(rows, encoding="utf-8")
        with pytest.raises(DataFileError, match=words):
            load_merges(path)
    with pytest.raises(DataFileError, match="sha256"):
        load_merges(path, sha256="0" * 64)
    with pytest.raises(DataFileError):
        load_merges(tmp_path / "none")


@pytest.mark.parametrize("head", ["", "#version: 0.2\r\n", "\ufeff#version: 0.2\r\n", "\ufeff"])
def test_a_file_of_merges_may_come_from_windows(tmp_path: Path, head: str) -> None:
    path = tmp_path / "merges.txt"
    path.write_bytes((head + "Ġ t\r\nĠt h\r\n").encode())
    assert load_merges(path).merges == [(220, 83), (256, 71)]


def test_an_empty_file_of_merges(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    for content in ("", "\n"):
        path.write_text(content)
        with pytest.raises(DataFileError, match="it is empty"):
            load_merges(path)


def test_a_huge_file_is_refused_with_little_memory(tmp_path: Path) -> None:
    import lzma

    path = tmp_path / "tokenizer.json.xz"
    path.write_bytes(lzma.compress(b" " * (module.LARGEST + 1), preset=0))
    tracemalloc.start()
    with pytest.raises(DataFileError):
        load_tokenizer(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * module.LARGEST
    tracemalloc.stop()
