"Rows of ids, windows, corpora in files, embeddings and word vectors."

from __future__ import annotations

import json
import math
import random as chance
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.data.datasets import shakespeare
from gradbook.data.loader import DataLoader
from gradbook.scalar.samples import DataFileError
from gradbook.tensor import random
from gradbook.tensor.core import Tensor
from gradbook.text.corpus import (
    Corpus,
    CorpusError,
    Windows,
    bits_per_byte,
    load_corpus,
    open_corpus,
    open_texts,
    open_tokenizer,
    pack,
    random_batch,
    save_corpus,
)
from gradbook.text.tokenizer import BPETokenizer, CharTokenizer, gpt2, save_tokenizer
from gradbook.text.word2vec import (
    Noise,
    SkipGram,
    Vectors,
    WordError,
    Words,
    skipgrams,
    speeches_of,
    subsample,
    train_vectors,
)
from gradbook.train.checkpoint import save_tensors

TEXT = "the king and the queen. the sword and the crown. " * 40


# ---- rows and windows


@given(st.lists(st.text(max_size=12), max_size=8))
@settings(max_examples=60, deadline=None)
def test_packed_documents_are_documents_and_ends(documents: list[str]) -> None:
    row = pack(documents, gpt2())
    assert row.dtype == "uint16" and (row == 50256).sum() == len(documents)
    parts = gpt2().decode(row).split("<|endoftext|>")[:-1]
    assert parts == documents or any("<|" in d for d in documents)


def test_ids_take_two_bytes_or_four() -> None:
    wide = CharTokenizer(
        "".join(map(chr, range(0xE000, 0xF900))) * 0
        + "".join(chr(c) for c in range(0x10000, 0x10000 + 2**16 + 1))
    )
    assert wide.n_vocab == 2**16 + 1
    assert pack(chr(0x20000), wide).dtype == "uint32"
    assert pack("ab", CharTokenizer("ab")).dtype == "uint16"


def test_characters_need_to_be_told_what_ends_a_document() -> None:
    with pytest.raises(CorpusError, match="say what ends a document"):
        pack(["a", "b"], CharTokenizer("ab"))
    assert pack(["a", "b"], CharTokenizer("ab\n"), end="\n").tolist() == [0, 2, 1, 2]


def test_random_windows_are_windows_and_depend_on_the_key() -> None:
    ids = np.arange(1000, dtype="uint16")
    x, y = random_batch(ids, 8, 500, random.key(3))
    assert x.shape == y.shape == (500, 8) and str(x.dtype) == "int64"
    assert (y.data == x.data + 1).all() and (np.diff(x.data, axis=1) == 1).all()
    assert (random_batch(ids, 8, 500, random.key(3))[0].data == x.data).all()
    assert (random_batch(ids, 8, 500, random.key(4))[0].data != x.data).any()


def test_every_place_comes_up() -> None:
    x, y = random_batch(np.arange(10), 7, 400, random.key(0))
    assert set(x.data[:, 0].tolist()) == {0, 1, 2} and y.data.max() == 9


@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_windows_in_order(n: int, length: int, stride: int) -> None:
    ids = np.arange(n)
    if n <= length:
        with pytest.raises(CorpusError, match=f"windows of {length} tokens"):
            Windows(ids, length, stride)
        return
    windows = Windows(ids, length, stride)
    starts = range(0, n - length, stride)
    assert len(windows) == len(starts)
    x, y = windows[np.arange(len(windows))]
    for k, start in enumerate(starts):
        assert x[k].tolist() == list(range(start, start + length))
        assert (y[k] == x[k] + 1).all() and (windows[k][0] == x[k]).all()
    assert (windows[-1][0] == x[-1]).all()
    assert (windows[1:][0] == x[1:]).all() and windows[:2][1].shape == (min(2, len(x)), length)
    for i in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[i]


def test_the_loader_takes_windows() -> None:
    loader = DataLoader(Windows(np.arange(101), 10), batch_size=4, shuffle=True, seed=1)
    seen = np.concatenate([x.data for x, _ in loader])
    assert sorted(seen.reshape(-1).tolist()) == list(range(100))


# ---- corpora


def test_bits_per_byte_is_what_it_says() -> None:
    assert bits_per_byte(math.log(2), 300, 100) == pytest.approx(3)
    corpus = Corpus.of(TEXT, TEXT[:500], BPETokenizer.train(TEXT, 270))
    assert corpus.bits_per_byte(1.0) == pytest.approx(len(corpus.val) / 500 / math.log(2))


def test_a_row_is_worth_the_same_as_text_and_as_documents() -> None:
    char, lines = CharTokenizer.train(TEXT + "\n"), ["the king", "the crown"] * 9
    listed = Corpus.of(lines, lines[:2], char, end="\n")
    joined = Corpus.of("the king\nthe crown\n" * 9, "the king\nthe crown\n", char)
    assert (listed.train == joined.train).all() and listed.train_bytes == joined.train_bytes
    assert listed.bits_per_byte(2.0) == joined.bits_per_byte(2.0)
    special = Corpus.of(lines, lines, gpt2())
    assert special.train_bytes == sum(map(len, lines))  # <|endoftext|> is no byte of the text


def test_documents_may_come_from_a_generator() -> None:
    lines = ["the king", "the crown"]
    corpus = Corpus.of((s for s in lines), (s for s in lines), gpt2())
    assert corpus.train_bytes == corpus.val_bytes == 17 and len(corpus.train) == 6


@pytest.mark.parametrize("kind", ["char", "bpe:265", "gpt2"])
def test_a_corpus_comes_back_from_its_file(tmp_path: Path, kind: str) -> None:
    corpus = Corpus.of(TEXT, TEXT[:100], open_tokenizer(kind, TEXT))
    path = tmp_path / "corpus.safetensors"
    save_corpus(corpus, path)
    again = load_corpus(path)
    assert (again.train == corpus.train).all() and (again.val == corpus.val).all()
    assert isinstance(again.train, np.memmap) and again.train.dtype == corpus.train.dtype
    assert again.tokenizer.decode(again.val) == TEXT[:100] and again.val_bytes == 100
    x, _ = random_batch(again.train, 5, 2, random.key(0))
    assert x.shape == (2, 5)


def test_a_damaged_corpus_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.safetensors"
    corpus = Corpus.of(TEXT, TEXT[:100], CharTokenizer.train(TEXT))
    save_corpus(corpus, path)
    whole = path.read_bytes()
    rng = chance.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(900)] = rng.randrange(256)
        path.write_bytes(damaged if rng.random() < 0.7 else whole[: rng.randrange(len(whole))])
        try:
            again = load_corpus(path)
        except DataFileError as error:
            assert str(path) in str(error)
        else:
            again.tokenizer.decode(again.train)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"train": np.arange(5.0)})
    with pytest.raises(DataFileError, match="it is no corpus"):
        load_corpus(path)
    with pytest.raises(DataFileError):
        load_corpus(tmp_path / "none")
    corpus = Corpus.of(TEXT, TEXT[:100], CharTokenizer.train(TEXT))
    save_corpus(corpus, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\xff\x00")
    with pytest.raises(DataFileError, match=r"val has id 255, and the tokenizer has 0 to"):
        load_corpus(path)


def test_texts_and_tokenizers_by_name(tmp_path: Path) -> None:
    corpus = open_corpus("shakespeare", "char", subset=True)
    assert corpus.tokenizer.n_vocab == 66
    assert corpus.train_bytes + corpus.val_bytes == 1_123_784
    assert corpus.tokenizer.decode(corpus.val) == shakespeare("val", subset=True)
    (tmp_path / "my.txt").write_text(TEXT)
    train, val = open_texts(str(tmp_path / "my.txt"))
    assert train + val == TEXT and len(val) == len(TEXT) // 10
    tokenizer = open_tokenizer("bpe:270", TEXT)
    save_tokenizer(tokenizer, tmp_path / "my.json")
    assert open_tokenizer(str(tmp_path / "my.json"), "").n_vocab == 270
    with pytest.raises(CorpusError, match="did you mean names"):
        open_corpus("name")
    with pytest.raises(CorpusError, match=r"there are: char, bpe:N, gpt2, and .json"):
        open_tokenizer("word", TEXT)
    with pytest.raises(CorpusError, match="the text for val has 0 tokens"):
        Corpus.of("abc", "", CharTokenizer("abc"))
    with pytest.raises(DataFileError):
        open_corpus(str(tmp_path / "none.txt"))


# ---- word vectors


def test_a_speech_begins_after_an_empty_line_and_verse_may_end_in_a_colon() -> None:
    text = "A:\nHe said:\nnothing.\n\nB:\nAy:\nno.\n"
    assert speeches_of(text) == ["He said:\nnothing.\n\n", "Ay:\nno.\n"]
    plays = shakespeare("all", subset=True)
    speeches = speeches_of(plays)
    assert len(speeches) == plays.count("\n\n") + 1 == 7_110
    assert "Rebell'd against the belly, thus accused it:\n" in "".join(speeches)


def test_words_are_counted() -> None:
    words = Words(["The end. The END!", "don't end"], least=1)
    assert words.names == ["end", "the", "don't"] and words.counts.tolist() == [3, 2, 1]
    assert words.encode(["the other end", "The"]).tolist() == [1, 0, -1, 1, -1]
    with pytest.raises(WordError, match=r"'ende' is none of the 3 words; there are end"):
        words["ende"]
    with pytest.raises(WordError, match="too few"):
        Words(["a b c"], least=2)


def test_pairs_are_near_and_within_a_document() -> None:
    ids = np.array([0, 1, 2, 3, -1, 4, 5, -1, 6, -1])
    pairs = set(map(tuple, skipgrams(np.tile(ids, 200), 2, random.key(0)).tolist()))
    near = {(a, b) for a in range(4) for b in range(4) if 0 < abs(a - b) <= 2}
    assert pairs == near | {(4, 5), (5, 4)}
    assert skipgrams(np.array([-1, 3, -1]), 2, random.key(0)).shape == (0, 2)


def test_nearer_pairs_come_more_often() -> None:
    ids = np.arange(20_000)
    pairs = skipgrams(ids, 4, random.key(1))
    counts = np.bincount(abs(pairs[:, 0] - pairs[:, 1]), minlength=5)[1:] / 40_000
    np.testing.assert_allclose(counts, [1, 0.75, 0.5, 0.25], atol=0.02)


def test_frequent_words_are_dropped_as_often_as_the_paper_says() -> None:
    ids = np.append(np.repeat([0, 1], [90_000, 10_000]), -1)
    kept = subsample(ids, np.array([90_000, 10_000]), 0.1, random.key(0))
    assert (kept == 0).sum() / 90_000 == pytest.approx((0.1 / 0.9) ** 0.5, abs=0.01)
    assert (kept == 1).sum() == 10_000 and (kept == -1).sum() == 1


def test_noise_has_the_power_of_three_quarters() -> None:
    drawn = np.bincount(Noise(np.array([1, 16, 81])).draw(100_000, random.key(0)), minlength=3)
    np.testing.assert_allclose(drawn / 100_000, np.array([1, 8, 27]) / 36, atol=0.01)


def test_the_loss_is_the_papers() -> None:
    model = SkipGram(6, 4, key=0)
    model.other.weight = Tensor(np.random.default_rng(0).normal(size=(6, 4)), requires_grad=True)
    u, v = model.centre.weight.numpy(), model.other.weight.numpy()
    a, b, noise = np.array([0, 3]), np.array([1, 3]), np.array([2, 5, 5])

    def minus_log_sigmoid(x: Any) -> Any:
        return np.logaddexp(0, -x)

    expected = minus_log_sigmoid((u[a] * v[b]).sum(1)).sum()
    expected += minus_log_sigmoid(-u[a] @ v[noise].T).sum() * 5 / 3
    assert model(a, b, noise).item() == pytest.approx(expected, rel=1e-5)


def test_words_in_the_same_company_become_alike() -> None:
    "In a language where twins stand in for each other, each finds its twin."
    rng = np.random.default_rng(0)
    worlds = [
        ["red", "crimson", "rose", "blood"],
        ["sea", "ocean", "wave", "salt"],
        ["gold", "silver", "coin", "mine"],
    ]
    documents = [" ".join(rng.choice(worlds[rng.integers(3)], 8)) for _ in range(900)]
    vectors = train_vectors(documents, dim=8, epochs=8, least=2, threshold=1.0, batch_size=64)
    for world in worlds:
        for word in world:
            assert {name for name, _ in vectors.nearest(word, 3)} == set(world) - {word}
    again = train_vectors(documents, dim=8, epochs=8, least=2, threshold=1.0, batch_size=64)
    assert (again.table == vectors.table).all()


def test_neighbours_are_sorted_and_never_the_word_itself() -> None:
    words = Words(["a a a b b c d"] * 2, least=2)
    vectors = Vectors(words, np.array([[1, 0], [2, 0.1], [0, 1], [-1, 0]]))
    assert [name for name, _ in vectors.nearest("a", 3)] == ["b", "c", "d"]
    assert [vectors.rank("a", other) for other in "bcd"] == [1, 2, 3]
    with pytest.raises(WordError, match="3 vectors for 4 words"):
        Vectors(words, np.ones((3, 2)))


def test_results_on_the_page_are_whole() -> None:
    path = Path(__file__).parent.parent / "nbs" / "results" / "word2vec.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["seeds"] == [0, 1, 2] and len(found["ranks"]) == 3
    assert max(np.median(ranks) for ranks in found["ranks"]) < found["words"] / 20
