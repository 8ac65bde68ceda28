"Random numbers: the published bits, the same for every shape, piece and way of asking; and laws."

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.tensor import random as module
from gradbook.tensor.backend import Device, DtypeError, float16, float32, float64, using
from gradbook.tensor.random import (
    Key,
    bell,
    bernoulli,
    bits,
    blocks,
    choice,
    fold_in,
    fractions,
    integers,
    key,
    normal,
    permutation,
    philox,
    split,
    uniform,
)

# --- an independent implementation, one bit of arithmetic at a time ------------------------------


def reference(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    "Philox4x32-10 as in the paper's definition: S-boxes of B' = lo, P' = hi ^ key, then a swap."
    right = [counter[0], counter[2]]
    left = [counter[1], counter[3]]
    for r in range(10):
        lanes = []
        for lane, multiplier in enumerate((0xD2511F53, 0xCD9E8D57)):
            product = divmod(right[lane] * multiplier, 2**32)
            lanes.append(product)
        k = [(key[lane] + r * (0x9E3779B9, 0xBB67AE85)[lane]) % 2**32 for lane in (0, 1)]
        right = [lanes[1][0] ^ left[0] ^ k[0], lanes[0][0] ^ left[1] ^ k[1]]
        left = [lanes[1][1], lanes[0][1]]
    return [right[0], left[0], right[1], left[1]]


def reference_words(k: Key, start: int, stop: int) -> list[int]:
    return [
        reference((i // 4 % 2**32, i // 4 >> 32, 0, 0), (k.low, k.high))[i % 4]
        for i in range(start, stop)
    ]


FULL = 2**32 - 1
KNOWN = [  # kat_vectors of the Random123 library: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize("texts", KNOWN, ids=["zeros", "ones", "pi"])
def test_the_published_words(texts: tuple[str, str, str]) -> None:
    counter, k, words = (tuple(int(w, 16) for w in text.split()) for text in texts)
    assert philox(counter, k) == words
    assert tuple(reference(counter, k)) == words  # type: ignore[arg-type]
    arrays = philox([np.full(3, c, np.uint64) for c in counter], k)
    assert [set(a.tolist()) for a in arrays] == [{w} for w in words]


WORD = st.integers(0, FULL)
KEYS = st.builds(Key, WORD, WORD)


@settings(deadline=None)
@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_agrees_with_an_independent_one(c: tuple[int, ...], k: tuple[int, int]) -> None:
    assert list(philox(c, k)) == reference(c, k)


@settings(deadline=None)
@given(KEYS, st.integers(0, 70))
def test_bits_agree_with_an_independent_one(k: Key, n: int) -> None:
    assert bits(k, n).tolist() == reference_words(k, 0, n)


def test_bits_of_long_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 4 * module.BLOCK["cpu"]
    k = key(11)
    for count in (n - 1, n, n + 1, 3 * n + 5):
        long = bits(k, count)
        assert long.shape == (count,)
        for place in (0, n - 3, n - 1, n, n + 2, count - 3):
            stop = min(place + 3, count)
            assert long[place:stop].tolist() == reference_words(k, place, stop)
    monkeypatch.setitem(module.BLOCK, "cpu", 7)  # any size of pieces gives the same words
    assert (bits(k, 1000) == long[:1000]).all()


def test_counters_beyond_32_bits() -> None:
    class Far:
        "Gives the block numbers of a stream's far end."

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def arange(self, start: int, stop: int, dtype: Any) -> Any:
            return np.arange(start, stop, dtype=dtype) + np.uint64(2**32 - 1)

    class There(Device):
        xp = Far()  # type: ignore[assignment]

    _, words = next(blocks((5, 6), 8, There()))
    assert words.tolist() == reference_words(Key(5, 6), 4 * (2**32 - 1), 4 * (2**32 + 1))


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_is_a_plain_value() -> None:
    k = key(2**40 + 3)
    assert k == Key(3, 256) and k != key(3) and hash(k) == hash(Key(3, 256))
    assert repr(k) == "Key(0x00000003, 0x00000100)" and eval(repr(k)) == k
    assert Key(*json.loads(json.dumps(k.state()))) == k
    assert pickle.loads(pickle.dumps(k)) == copy.deepcopy(k) == k
    assert key(np.int64(7)) == key(7)
    with pytest.raises(AttributeError):
        k.low = 1  # type: ignore[misc]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=f"key: {seed} is not between 0"):
        key(seed)
    with pytest.raises(ValueError, match="fold_in"):
        fold_in(key(0), seed)


def test_keys_of_other_things() -> None:
    for wrong in (1.5, "0", None):
        with pytest.raises(TypeError):
            key(wrong)  # type: ignore[arg-type]
    for words in ((-1, 0), (0, 2**32), (0.0, 0), (True, 0)):
        with pytest.raises(ValueError, match="no 32-bit word"):
            Key(*words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split: -1 keys"):
        split(key(0), -1)


@pytest.mark.parametrize("name", ["key", "split", "fold_in", "integers"])
def test_fractions_are_no_counts(name: str) -> None:
    f = getattr(module, name)
    with pytest.raises(TypeError, match=f"^{name}: 1.5 is no whole number"):
        f(1.5) if name == "key" else f(key(0), *[3, 1.5][name != "integers" :])


@settings(deadline=None)
@given(KEYS, st.integers(0, 20), st.integers(0, 20))
def test_split_gives_prefixes(k: Key, m: int, n: int) -> None:
    few, many = sorted((m, n))
    children = split(k, many)
    assert split(k, few) == children[:few]
    assert len({k, *children}) == many + 1


@settings(deadline=None)
@given(KEYS, st.integers(0, 300) | st.integers(0, 2**64 - 1))
def test_children_come_from_other_counters_than_draws(k: Key, number: int) -> None:
    pair = (number % 2**32, number >> 32)
    assert fold_in(k, number) == Key(*reference((*pair, 0, 2), k.state())[:2])
    if number <= 300:
        assert split(k, number + 1)[-1] == Key(*reference((*pair, 0, 1), k.state())[:2])


def test_many_keys_differ() -> None:
    k = key(0)
    keys = {*split(k, 5000), *(fold_in(k, i) for i in range(5000)), *map(key, range(5000))}
    assert len(keys) == 15_000


# --- every draw ---------------------------------------------------------------------------------

DRAWS: dict[str, Callable[..., Any]] = {
    "bits": bits,
    "uniform": uniform,
    "uniform64": lambda k, shape=(): uniform(k, shape, -1, 1, dtype="float64"),
    "uniform16": lambda k, shape=(): uniform(k, shape, dtype="float16"),
    "normal": normal,
    "normal64": lambda k, shape=(): normal(k, shape, dtype="float64"),
    "normal16": lambda k, shape=(): normal(k, shape, 1, 2, dtype="float16"),
    "integers": lambda k, shape=(): integers(k, shape, -5, 1000),
    "bernoulli": lambda k, shape=(): bernoulli(k, 0.3, shape),
    "choice": lambda k, shape=(): choice(k, 7, shape),
    "weighted": lambda k, shape=(): choice(k, 3, shape, p=[0.2, 0.3, 0.5]),
}


@pytest.mark.parametrize("name", DRAWS)
@settings(max_examples=25, deadline=None)
@given(k=KEYS, m=st.integers(0, 300), n=st.integers(0, 300))
def test_a_short_draw_begins_a_long_one(name: str, k: Key, m: int, n: int) -> None:
    few, many = sorted((m, n))
    long = DRAWS[name](k, many)
    assert (DRAWS[name](k, few) == long[:few]).all()


@pytest.mark.parametrize("name", DRAWS)
def test_shapes(name: str) -> None:
    draw, k = DRAWS[name], key(3)
    flat = draw(k, 24)
    for shape in ((2, 3, 4), (24,), [4, 6], (np.int64(24),)):
        x = draw(k, shape)
        assert isinstance(x, np.ndarray) and x.shape == tuple(shape) and x.dtype == flat.dtype
        assert (x.reshape(-1) == flat).all()
    assert draw(k).shape == draw(k, ()).shape == () and isinstance(draw(k), np.ndarray)
    assert draw(k, (3, 0)).shape == (3, 0)
    with pytest.raises(ValueError, match="negative"):
        draw(k, (2, -1))
    for wrong in (2.5, (2, None), "3"):
        with pytest.raises(TypeError, match="no tuple of whole numbers"):
            draw(k, wrong)
    for no_key in (0, (0, 0), np.random.default_rng(0), None):
        with pytest.raises(TypeError, match=r"the first argument is a Key, not .*; try key\(0\)"):
            draw(no_key, 3)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_have_their_own_memory_and_change_nothing(name: str) -> None:
    a, b = DRAWS[name](key(1), 1000), DRAWS[name](key(1), 1000)
    assert (a == b).all() and not np.shares_memory(a, b) and a.flags.writeable
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    DRAWS[name](key(2), 10)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_dtypes_and_defaults() -> None:
    k = key(0)
    with using(dtype="float32"):
        assert uniform(k, 3).dtype == normal(k, 3).dtype == float32
    with using(dtype="float64"):
        assert uniform(k, 3).dtype == normal(k, 3).dtype == float64
    assert bits(k, 3).dtype == np.uint32 and integers(k, 3).dtype == np.int64
    assert bernoulli(k, 0.5, 3).dtype == np.bool_ and permutation(k, 3).dtype == np.int64
    for draw in (uniform, normal):
        with pytest.raises(DtypeError, match="int64: only float16, float32 or float64"):
            draw(k, 3, dtype="int64")


# --- uniform ------------------------------------------------------------------------------------

EDGES = np.array([0, 1, 255, 256, FULL - 128, FULL - 1, FULL, FULL], dtype=np.uint32)


@pytest.mark.parametrize("dtype, bits_used", [(float16, 11), (float32, 24), (float64, 53)])
def test_fractions_are_below_one_and_evenly_spaced(dtype: Any, bits_used: int) -> None:
    u = fractions(EDGES, dtype)
    assert u.dtype == dtype and u.min() >= 0
    assert float(u.max()) == 1 - 2.0**-bits_used
    steps = u.astype("float64") * 2.0**bits_used
    assert (steps == np.floor(steps)).all()


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(-1e30, 1e30),
    width=st.floats(1e-30, 1e30),
    dtype=st.sampled_from([float32, float64]),
)
def test_uniform_is_half_open(low: float, width: float, dtype: Any) -> None:
    high = low + width
    if dtype.type(low) >= dtype.type(high):
        with pytest.raises(ValueError, match="need low < high"):
            uniform(key(0), 3, low, high, dtype=dtype)
        return
    u = uniform(key(0), 500, low, high, dtype=dtype)
    assert (u >= dtype.type(low)).all() and (u < dtype.type(high)).all()


def test_uniform_reaches_the_last_number_but_not_the_end() -> None:
    above = np.nextafter(np.float32(1), np.float32(2))
    assert set(uniform(key(1), 10_000, 1.0, above).tolist()) == {1.0}
    for limits in ((1, 1), (2, 1), (0, math.inf), (math.nan, 1), (-3e38, 3e38)):
        with pytest.raises(ValueError, match="uniform: from"):
            uniform(key(0), 3, *limits)
    assert uniform(key(0), 1000, -3, -2).mean() == pytest.approx(-2.5, abs=0.05)


# --- normal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [float32, float64])
def test_normal_numbers_are_finite_for_every_word(dtype: Any) -> None:
    pairs = np.array([[a, b] for a in EDGES for b in EDGES], dtype=np.uint32).reshape(-1)
    with np.errstate(all="raise"):
        x = bell(pairs, dtype, np)
    assert np.isfinite(x).all() and abs(x).max() < 9


def test_normal_follows_box_and_muller() -> None:
    k, x = key(5), normal(key(5), 8)
    w = bits(k, 8).astype(np.float64)
    u, v = (w[0::2] + 1) / 2**32, np.floor(w[1::2] / 256) / 2**24
    r, a = np.sqrt(-2 * np.log(u)), 2 * math.pi * v
    np.testing.assert_allclose(x[0::2], r * np.cos(a), atol=2e-6)
    np.testing.assert_allclose(x[1::2], r * np.sin(a), atol=2e-6)


def test_normal_moments_and_distribution() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for dtype in ("float32", "float64", "float16"):
        x = normal(key(8), 200_000, dtype=dtype).astype(np.float64)
        assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
        if dtype != "float16":  # which rounds too coarsely for this
            assert scipy.kstest(x, "norm").pvalue > 1e-3
    pairs = normal(key(9), (100_000, 2), dtype="float64")
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.01
    assert abs(np.corrcoef((pairs**2).T)[0, 1]) < 0.01
    y = normal(key(8), 100_000, 3.0, 0.5)
    assert abs(y.mean() - 3) < 0.01 and abs(y.std() - 0.5) < 0.01
    assert (normal(key(8), 5, 2.0, 0.0) == 2).all()
    for mean, std in ((0, -1), (math.nan, 1), (0, math.inf), (0, 1e38)):
        with pytest.raises(ValueError, match="normal: mean"):
            normal(key(0), 3, mean, std)


# --- whole numbers ------------------------------------------------------------------------------


@settings(deadline=None)
@given(KEYS, st.integers(-(2**63), 2**63 - 2), st.one_of(st.integers(1, 2**32), st.integers(1, 10)))
def test_integers_scale_64_bits_exactly(k: Key, low: int, width: int) -> None:
    high = min(low + width, 2**63)
    x = integers(k, 50, low, high).tolist()
    words = bits(k, 100).tolist()
    numbers = [(a << 32) | b for a, b in zip(words[0::2], words[1::2])]
    assert x == [low + (n * (high - low) >> 64) for n in numbers]


def test_integers_limits_and_counts() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for limits in ((0, 0), (3, 2), (0, 2**32 + 1), (0, 2**63 + 1), (-(2**63) - 1, 0)):
        with pytest.raises(ValueError, match="integers: from"):
            integers(key(0), 3, *limits)
    with pytest.raises(TypeError):
        integers(key(0), 3, 0, 2.5)  # type: ignore[arg-type]
    counts = np.bincount(integers(key(1), 200_000, 0, 37))
    assert len(counts) == 37 and scipy.chisquare(counts).pvalue > 1e-3


def test_bernoulli() -> None:
    k = key(3)
    assert not bernoulli(k, 0.0, 10_000).any() and bernoulli(k, 1.0, 10_000).all()
    assert abs(bernoulli(k, 0.1, 200_000).mean() - 0.1) < 0.005
    p = np.array([0.0, 0.25, 1.0])
    x = bernoulli(k, p, (50_000, 3))
    np.testing.assert_allclose(x.mean(axis=0), p, atol=0.01)
    assert bernoulli(k, p).shape == (3,) and bernoulli(k, [[0.5], [0.5]]).shape == (2, 1)
    for wrong in (-0.1, 1.1, math.nan, [0.5, 2]):
        with pytest.raises(ValueError, match="not between 0 and 1"):
            bernoulli(k, wrong)
    for shape in (3, (2, 3), (4, 1)):
        with pytest.raises(ValueError, match=r"shape"):
            bernoulli(k, [0.5, 0.5], shape)


# --- order and choice ---------------------------------------------------------------------------


@settings(deadline=None)
@given(KEYS, st.integers(0, 200))
def test_permutations_have_every_row_once(k: Key, n: int) -> None:
    assert sorted(permutation(k, n).tolist()) == list(range(n))


def test_permutation_of_rows_and_orders_equally_often() -> None:
    scipy = pytest.importorskip("scipy.stats")
    rows = np.arange(12).reshape(6, 2)
    assert (permutation(key(1), rows) == rows[permutation(key(1), 6)]).all()
    assert (rows == np.arange(12).reshape(6, 2)).all()
    assert sorted(permutation(key(1), [3, 1, 2]).tolist()) == [1, 2, 3]
    orders = [tuple(permutation(child, 3).tolist()) for child in split(key(0), 3000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6 and scipy.chisquare(counts).pvalue > 1e-3
    with pytest.raises(ValueError, match="dimension 0"):
        permutation(key(0), np.array(3.0))
    with pytest.raises(ValueError, match="negative"):
        permutation(key(0), -3)


def test_choice() -> None:
    k, rows = key(4), np.array([[1.0, 2], [3, 4], [5, 6]])
    assert choice(k, rows, (4, 2)).shape == (4, 2, 2)
    assert sorted(choice(k, 10, 10, replace=False).tolist()) == list(range(10))
    picks = choice(k, rows, 2, replace=False)
    assert len({tuple(row) for row in picks.tolist()}) == 2
    assert choice(k, 5).shape == () and 0 <= int(choice(k, 5)) < 5
    assert choice(k, 0, 0).shape == (0,)
    with pytest.raises(ValueError, match="4 from 3 rows, replace=False: there are too few"):
        choice(k, rows, 4, replace=False)
    with pytest.raises(ValueError, match="too few"):
        choice(k, [], 1)


def test_choice_with_probabilities() -> None:
    scipy = pytest.importorskip("scipy.stats")
    p = np.array([0.0, 0.5, 0.25, 0.25, 0.0])
    counts = np.bincount(choice(key(0), 5, 100_000, p=p), minlength=5)
    assert counts[0] == counts[4] == 0
    assert scipy.chisquare(counts[1:4], 100_000 * p[1:4]).pvalue > 1e-3
    # without repetition: the first pick follows p, the second p without the first
    pairs = [choice(child, 5, 2, replace=False, p=p).tolist() for child in split(key(1), 4000)]
    expected = {(a, b): p[a] * p[b] / (1 - p[a]) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    found = [sum(tuple(pair) == order for pair in pairs) for order in expected]
    assert sum(found) == 4000
    assert scipy.chisquare(found, 4000 * np.array(list(expected.values()))).pvalue > 1e-3
    with pytest.raises(ValueError, match="4 different rows, but fewer"):
        choice(key(0), 5, 4, replace=False, p=p)
    for wrong in ([0.5, 0.5], [0.5, 0.4, 0, 0, 0], [1.5, -0.5, 0, 0, 0], [math.nan, 1, 0, 0, 0]):
        with pytest.raises(ValueError, match="p needs 5 numbers >= 0 with sum 1"):
            choice(key(0), 5, 2, p=wrong)


# --- does it look random? -----------------------------------------------------------------------


def test_bytes_bits_and_neighbours_of_many_keys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    scores = []
    for child in split(key(0), 200):
        w = bits(child, 2**14)
        scores.append(scipy.chisquare(np.bincount(w.view(np.uint8), minlength=256)).pvalue)
    assert scipy.kstest(scores, "uniform").pvalue > 1e-3  # p-values of good numbers are uniform
    w = bits(key(1), 2**20)
    for j in range(32):
        assert abs(float(((w >> j) & 1).mean()) - 0.5) < 5 * 0.5 / 2**10
    u = w / 2**32 - 0.5
    for lag in (1, 2, 3, 4, 8, 1024):
        assert abs(12 * (u[:-lag] * u[lag:]).mean()) < 5 / 2**10


def test_streams_of_related_keys_share_nothing() -> None:
    related = [key(0), key(1), key(2**32), *split(key(0)), fold_in(key(0), 0), fold_in(key(0), 1)]
    streams = [bits(k, 2**15) for k in related]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            equal = 1 - np.unpackbits((a ^ b).view(np.uint8)).mean()
            assert abs(equal - 0.5) < 5 * 0.5 / 2**10
    assert len(set(np.concatenate(streams).tolist())) > 7 * 2**15 - 40


# --- the other library --------------------------------------------------------------------------


def gpu_is_there() -> bool:
    try:
        return bool(__import__("cupy").cuda.is_available())
    except ImportError:
        return False


@pytest.mark.skipif(not gpu_is_there(), reason="no CuPy with a GPU")
@pytest.mark.parametrize("name", DRAWS)
def test_a_gpu_draws_the_same(name: str) -> None:
    for n in (1, 1001, 5_000_000):
        here = DRAWS[name](key(6), n)
        with using(device="cuda"):
            there = DRAWS[name](key(6), n).get()
        if name.startswith("normal"):
            np.testing.assert_allclose(there, here, rtol=1e-3 if "16" in name else 1e-5, atol=1e-5)
        else:
            assert (here == there).all()


@pytest.mark.skipif(not gpu_is_there(), reason="no CuPy with a GPU")
def test_a_gpu_shuffles_the_same() -> None:
    here = permutation(key(6), 100_000), choice(key(6), 100, 20, replace=False, p=[0.01] * 100)
    with using(device="cuda"):
        there = permutation(key(6), 100_000), choice(key(6), 100, 20, replace=False, p=[0.01] * 100)
    assert all((a == b.get()).all() for a, b in zip(here, there))
    assert here[0].dtype == np.int64
