"Recurrent layers against PyTorch, to second order, with bad input; passages; and embeddings."

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradbook.nn.rnn as rnn
from gradbook.models.names import (
    LETTERS,
    CharRNN,
    bits_of,
    invent,
    name_set,
    recommended_names,
    train_names,
)
from gradbook.nn.embedding import Embedding, IdError
from gradbook.nn.losses import cross_entropy
from gradbook.nn.rnn import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    RNNCell,
    SequenceError,
    detached,
    passages,
    unroll,
    unrolled,
)
from gradbook.tensor.core import Tensor, gradients, no_grad
from gradbook.tensor.transforms import grad, jvp, vmap

LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
CELLS = {"RNNCell": RNNCell, "LSTMCell": LSTMCell, "GRUCell": GRUCell}
RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"


def pair(name: str, dtype: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    "A layer or cell of ours and PyTorch's, with the same weights."
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    ours = {**LAYERS, **CELLS}[name](*sizes, key=1, dtype=dtype, **options)
    theirs = getattr(torch.nn, name)(*sizes, dtype=getattr(torch, dtype), **options)
    state = {k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    return ours, theirs


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    np.testing.assert_allclose(
        ours.numpy(), theirs.detach().numpy(), atol=tolerance, rtol=tolerance
    )


def several(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def compare_layers(
    name: str, dtype: str, lengths: list[int] | None, given: bool, **options: Any
) -> None:
    "Outputs, last states, and the gradients of everything."
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    ours, theirs = pair(name, dtype, 3, 5, **options)
    rng, first = np.random.default_rng(0), options.get("batch_first", False)
    directions = 1 + options.get("bidirectional", False)
    shape = (options.get("num_layers", 1) * directions, 4, 5)
    x = rng.normal(size=(4, 7, 3) if first else (7, 4, 3)).astype(dtype)
    arrays = [rng.normal(size=shape).astype(dtype) for _ in range(1 + (name == "LSTM"))]
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    states = [Tensor(a, requires_grad=True) for a in arrays]
    others = [torch.tensor(a, requires_grad=True) for a in arrays]
    begin = (tuple(states) if len(states) > 1 else states[0]) if given else None
    start = (tuple(others) if len(others) > 1 else others[0]) if given else None
    y, last = ours(mine, begin, lengths)
    if lengths is None:
        ty, tlast = theirs(other, start)
    else:
        utils = torch.nn.utils.rnn
        packed = utils.pack_padded_sequence(
            other, torch.tensor(lengths), batch_first=first, enforce_sorted=False
        )
        ty, tlast = theirs(packed, start)
        ty, _ = utils.pad_packed_sequence(ty, batch_first=first, total_length=7)
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    outs, touts = [y, *several(last)], [ty, *several(tlast)]
    weights = [rng.normal(size=o.shape).astype(dtype) for o in outs]
    sum((o * o * w).sum() for o, w in zip(outs, weights)).backward()
    sum((o * o * torch.tensor(w)).sum() for o, w in zip(touts, weights)).backward()
    for o, t in zip(outs, touts, strict=True):
        close(o, t, tolerance)
    named = dict(ours.named_parameters())
    for key, p in theirs.named_parameters():
        close(named[key].grad, p.grad, 10 * tolerance)
    close(mine.grad, other.grad, 10 * tolerance)
    for s, t in zip(states, others) if given else ():
        close(s.grad, t.grad, 10 * tolerance)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("lengths", [None, [7, 3, 5, 1], [2, 2, 6, 4]], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["from zero", "from a state"])
def test_a_layer_is_pytorchs(
    name: str, dtype: str, lengths: list[int] | None, given: bool
) -> None:
    compare_layers(name, dtype, lengths, given)
    compare_layers(name, dtype, lengths, given, bidirectional=True, batch_first=True)
    compare_layers(name, dtype, lengths, given, num_layers=2, bidirectional=True, bias=False)
    compare_layers(name, dtype, lengths, given, num_layers=3, batch_first=True)


def test_a_relu_network_is_pytorchs() -> None:
    compare_layers("RNN", "float64", [7, 3, 5, 1], True, nonlinearity="relu", num_layers=2)


@pytest.mark.parametrize("name", LAYERS)
def test_a_single_sequence_needs_no_batch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    ours, theirs = pair(name, "float64", 3, 4, num_layers=2, bidirectional=True)
    x = np.random.default_rng(0).normal(size=(6, 3))
    (y, last), (ty, tlast) = ours(x), theirs(torch.tensor(x))
    for o, t in zip([y, *several(last)], [ty, *several(tlast)], strict=True):
        close(o, t, 1e-10)
    again, _ = ours(x, last)
    close(again, theirs(torch.tensor(x), tlast)[0], 1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(0)
    for options in ({}, {"bias": False}):
        ours, theirs = pair(name, "float64", 3, 4, **options)
        x = rng.normal(size=(5, 3))
        arrays = tuple(rng.normal(size=(5, 4)) for _ in range(1 + (name == "LSTMCell")))
        tensors = tuple(map(torch.tensor, arrays))
        one = len(arrays) == 1
        mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        out = several(ours(mine, arrays[0] if one else arrays))
        tout = several(theirs(other, tensors[0] if one else tensors))
        sum((o * o).sum() for o in out).backward()
        sum((o * o).sum() for o in tout).backward()
        for o, t in zip(out, tout, strict=True):
            close(o, t, 1e-10)
        close(mine.grad, other.grad, 1e-10)
        for o, t in zip(several(ours(x[0])), several(theirs(torch.tensor(x[0]))), strict=True):
            close(o, t, 1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_between_layers_only(name: str) -> None:
    make, x = LAYERS[name], np.random.default_rng(0).normal(size=(5, 2, 3))
    one, two = make(3, 4, dropout=0.9, key=0), make(3, 4, 2, dropout=0.9, key=0)
    plain = make(3, 4, 2, key=0)
    np.testing.assert_array_equal(one(x)[0].numpy(), one.eval()(x)[0].numpy())
    assert abs(two(x)[0].numpy() - two(x)[0].numpy()).max() > 1e-3
    assert {k for k in two.state_dict() if "dropout" not in k} == set(plain.state_dict())


def test_weights_of_a_layer_with_dropout_can_be_loaded() -> None:
    "PyTorch keeps no key; ours is left as it is, everything else is loaded."
    layer, plain = GRU(3, 4, 2, dropout=0.5, key=0), GRU(3, 4, 2, key=1)
    with pytest.raises(ValueError, match=r"dropout\.key"):
        layer.load_state_dict(plain.state_dict())
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    np.testing.assert_array_equal(layer.eval()(x)[0].numpy(), plain(x)[0].numpy())


@pytest.mark.parametrize("filling", [np.nan, np.inf])
@pytest.mark.parametrize("name", LAYERS)
def test_the_filling_reaches_nothing(name: str, filling: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 2))
    found = []
    for value in (0.0, filling):
        layer = LAYERS[name](2, 3, 2, bidirectional=True, dtype="float64", key=0)
        x[2:, 1] = x[1:, 2] = value
        mine = Tensor(x.copy(), requires_grad=True)
        y, _ = layer(mine, lengths=[4, 2, 1])
        (y * y).sum().backward()
        found.append([y, mine.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_may_be_empty(name: str) -> None:
    layer, x = LAYERS[name](3, 4, bidirectional=True, key=0), np.zeros((5, 0, 3))
    for lengths in (None, np.zeros(0, int)):
        y, state = layer(x, lengths=lengths)
        assert y.shape == (5, 0, 8) and several(state)[0].shape == (2, 0, 4)
        y.sum().backward()
    assert not layer.weight_hh_l0.grad.numpy().any()
    assert GRUCell(3, 4)(np.zeros((0, 3))).shape == (0, 4)


# ---- derivatives


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    ours, theirs = pair(name, "float64", 2, 3, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(4, 2, 2)), rng.normal(size=(4, 2, 2))
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    (g,) = gradients((ours(mine)[0] ** 2).sum(), [mine], create_graph=True)
    (tg,) = torch.autograd.grad((theirs(other)[0] ** 2).sum(), [other], create_graph=True)
    (g * Tensor(v)).sum().backward()
    (tg * torch.tensor(v)).sum().backward()
    close(mine.grad, other.grad, 1e-9)
    named = dict(ours.named_parameters())
    for key, p in theirs.named_parameters():
        close(named[key].grad, p.grad, 1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_transforms_go_through(name: str) -> None:
    "A tangent is measured; gradients of single examples are those of one after the other."
    layer = LAYERS[name](2, 3, bidirectional=True, dtype="float64", key=0)
    rng = np.random.default_rng(0)
    x, v, h = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 5, 2)), 1e-6

    def f(x: Any) -> Any:
        return (layer(x)[0] ** 2).sum()

    _, moved = jvp(f, (x[0],), (v[0],))
    with no_grad():
        measured = (f(x[0] + h * v[0]) - f(x[0] - h * v[0])).item() / (2 * h)
    assert abs(moved.item() - measured) < 1e-7
    all_at_once = vmap(grad(f))(Tensor(x)).numpy()
    for one, found in zip(x, all_at_once):
        np.testing.assert_allclose(found, grad(f)(Tensor(one)).numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", rnn.STEPS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_the_fast_way_and_its_meaning_agree(kind: str, reverse: bool) -> None:
    rng, way = np.random.default_rng(0), rnn.BACKWARDS[kind]
    shapes = [(5, 3, 4 * way.blocks), (4 * way.blocks, 4), (4 * way.blocks,)]
    arrays = [rng.normal(size=s) for s in shapes + [(3, 4)] * way.states]
    how = {"kind": kind, "counts": (3, 3, 2, 1, 0), "reverse": reverse}
    found = []
    for function in (unroll, unrolled):
        xs = [Tensor(a, requires_grad=True) for a in arrays]
        outs = function(*xs, **how)
        sum((o * o).sum() for o in outs).backward()
        found.append([o.numpy() for o in outs] + [x.grad.numpy() for x in xs])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_half_and_whole_precision_meet() -> None:
    "Inputs of another dtype than the weights'; whole numbers count as floats."
    layer = GRU(2, 3, key=0)
    x = Tensor(np.ones((4, 2, 2)), requires_grad=True)
    y, _ = layer(x)
    y.sum().backward()
    assert x.grad.dtype == "float64" and layer.weight_hh_l0.grad.dtype == "float32"
    assert layer(np.ones((4, 2, 2), int))[0].dtype == "float32"


# ---- passages


def test_passages_follow_each_other() -> None:
    ids = np.arange(50, dtype="uint16")
    pieces = list(passages(ids, 4, 3))
    assert [x.shape for x, _ in pieces] == [(3, 4)] * 4
    rows = np.concatenate([x.numpy() for x, _ in pieces], axis=1)
    np.testing.assert_array_equal(rows, np.arange(48).reshape(3, 16))
    for x, y in pieces:
        np.testing.assert_array_equal(x.numpy() + 1, y.numpy())
    assert [x.shape[1] for x, _ in passages(ids, 7, 3)] == [7, 7, 2]


@pytest.mark.parametrize(("length", "rows"), [(0, 2), (4, 0), (4, -1), (4, 50)])
def test_passages_that_do_not_fit(length: int, rows: int) -> None:
    with pytest.raises(SequenceError, match=f"50 ids, {rows} rows, length {length}"):
        next(passages(np.arange(50), length, rows))


def test_passages_of_something_else() -> None:
    assert next(passages([1, 2, 3, 4, 5], 2, 2))[0].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(SequenceError, match=r"ids \(3,\), float64; a row of integers is needed"):
        next(passages([0.5, 1.5, 2.5], 1, 1))


@pytest.mark.parametrize("make", LAYERS.values())
def test_a_carried_state_makes_one_sequence_of_passages(make: Any) -> None:
    "Forward it is the same; the gradient is that of the last passage, and whole if there is one."
    ids = np.random.default_rng(0).integers(0, 5, 41)
    model = CharRNN(5, 8, make, key=0)

    def gradient(length: int) -> tuple[np.ndarray, list[np.ndarray]]:
        state, scores = None, []
        model.zero_grad()
        for x, y in passages(ids, length, 2):
            out, state = model.run(x, detached(state))
            cross_entropy(out.reshape(-1, 5), y.reshape(-1)).backward()
            scores.append(out.numpy())
        return np.concatenate(scores, axis=1), [p.grad.numpy() for p in model.parameters()]

    whole, full = gradient(20)
    x, y = next(passages(ids, 20, 2))
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    for a, p in zip(full, model.parameters(), strict=True):
        np.testing.assert_allclose(a, p.grad.numpy(), atol=1e-6)
    pieces, cut = gradient(5)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    assert any(abs(a / 4 - b).max() > 1e-4 for a, b in zip(cut, full))
    assert detached(None) is None


# ---- bad input


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        ((5, 2, 4), {}, r"GRU: input \(5, 2, 4\); \(T, B, F\) or \(T, F\) needed, with F = 3"),
        ((3,), {}, r"input \(3,\)"),
        ((1, 5, 2, 3), {}, r"input \(1, 5, 2, 3\)"),
        ((0, 2, 3), {}, "GRU: there is no step"),
        ((5, 2, 3), {"lengths": [5, 6]}, "length 6 of sequence 1; there are 5 steps"),
        ((5, 2, 3), {"lengths": [0, 5]}, "length 0 of sequence 0"),
        ((5, 2, 3), {"lengths": [5]}, r"\(1,\), int64; a whole number for each sequence, 2"),
        ((5, 2, 3), {"lengths": [5.0, 2.0]}, "float32; a whole number for each sequence, 2"),
        ((5, 2, 3), {"state": np.zeros((1, 3, 4))}, r"state h is \(1, 3, 4\); \(1, 2, 4\) needed"),
        ((5, 3), {"state": np.zeros((1, 1, 4))}, r"\(1, 1, 4\); \(1, 4\) needed"),
    ],
)
def test_a_layer_says_what_does_not_fit(x: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SequenceError, match=words):
        GRU(3, 4, key=0)(np.zeros(x), **options)


def test_an_lstm_needs_a_pair() -> None:
    layer, x = LSTM(3, 4, key=0), np.zeros((5, 2, 3))
    with pytest.raises(SequenceError, match=r"a pair, \(h, c\), each \(1, 2, 4\); not ndarray"):
        layer(x, np.zeros((1, 2, 4)))
    with pytest.raises(SequenceError, match=r"the state c is \(1, 4\)"):
        layer(x, (np.zeros((1, 2, 4)), np.zeros((1, 4))))
    with pytest.raises(SequenceError, match=r"LSTMCell: input \(2, 5\)"):
        LSTMCell(3, 4)(np.zeros((2, 5)))
    with pytest.raises(SequenceError, match=r"GRUCell: the state h is \(4,\); \(2, 4\) needed"):
        GRUCell(3, 4)(np.zeros((2, 3)), np.zeros(4))


def test_layers_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="nonlinearity 'gelu' is unknown; there are: tanh, relu"):
        RNN(3, 4, nonlinearity="gelu")
    for sizes in ((0, 4), (3, 0), (3, 4, 0), (3, 2.5)):
        with pytest.raises(ValueError, match="whole number above 0"):
            GRU(*sizes)
    with pytest.raises(ValueError, match="weight_hh_l0"):
        GRU(3, 4).load_state_dict(LSTM(3, 4).state_dict())


# ---- embeddings


def test_an_embedding_is_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    ids, g = rng.integers(0, 7, (4, 5)), rng.normal(size=(4, 5, 3)).astype("float32")
    ours, theirs = Embedding(7, 3, key=0), torch.nn.Embedding(7, 3)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(ours.weight.numpy().copy()))
    out, expected = ours(ids), theirs(torch.from_numpy(ids))
    np.testing.assert_array_equal(out.numpy(), expected.detach().numpy())
    (out * Tensor(g)).sum().backward()
    (expected * torch.from_numpy(g)).sum().backward()
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 7]], r"id 7 at \(0, 1\); there are 7 rows, 0 to 6"),
        ([-1], r"id -1 at \(0,\)"),
        (9, r"id 9 at \(\)"),
        ([0.0], "whole numbers, not float"),
        ([True], "whole numbers, not bool"),
    ],
)
def test_ids_without_a_row(ids: Any, words: str) -> None:
    with pytest.raises(IdError, match=words):
        Embedding(7, 3)(ids)


def test_rows_differ_by_key_and_are_normal() -> None:
    weight = Embedding(500, 40, key=3).weight.numpy()
    assert abs(weight.mean()) < 0.05 and abs(weight.std() - 1) < 0.05
    assert (Embedding(500, 40, key=3).weight.numpy() == weight).all()
    assert (Embedding(500, 40, key=4).weight.numpy() != weight).any()
    assert Embedding(5, 2)(np.zeros((0, 3), int)).shape == (0, 3, 2)

# ---- names


def test_names_as_ids() -> None:
    x, lengths, y = name_set(["amy", "bo"]).arrays
    assert x.tolist() == [[0, 1, 13, 25], [0, 2, 15, 0]] and lengths.tolist() == [4, 3]
    assert y.tolist() == [[1, 13, 25, 0], [2, 15, 0, -100]]


def test_what_follows_the_end_does_not_count() -> None:
    model = CharRNN(len(LETTERS), 16, key=0)
    alone = [bits_of(model, name_set([w])) * (len(w) + 1) for w in ("amy", "josephine")]
    both = bits_of(model, name_set(["amy", "josephine"]))
    assert both == pytest.approx(sum(alone) / (4 + 10), rel=1e-5)


def test_invented_names_are_a_function_of_the_key() -> None:
    model = CharRNN(len(LETTERS), 16, key=0)
    first = invent(model, 20, key=1)
    assert first == invent(model, 20, key=1) != invent(model, 20, key=2)
    assert all(set(name) <= set(LETTERS[1:]) for name in first)
    assert max(map(len, invent(model, 50, key=1, longest=3))) <= 3
    assert len(set(invent(model, 20, key=1, temperature=1e-7))) == 1
    assert model.training


def test_a_temperature_of_zero_is_the_likeliest() -> None:
    model = CharRNN(len(LETTERS), 16, key=0)
    first = invent(model, 2, temperature=0, key=1)
    assert first == invent(model, 2, temperature=1e-7, key=2) and invent(model, 0) == []
    with pytest.raises(ValueError, match="temperature -1, a model of 27 characters; 0 or more"):
        invent(model, 2, temperature=-1)
    with pytest.raises(ValueError, match="a model of 65 characters; 0 or more, and 27"):
        invent(CharRNN(65, 3), 2)


@pytest.mark.parametrize("names", [["zoé"], ["Amy"], []])
def test_names_that_can_not_be(names: list[str]) -> None:
    words = {"zoé": "'é' at 2 of 'zoé'; there are", "Amy": "'A' at 0 of 'Amy'"}
    with pytest.raises(ValueError, match=words[names[0]] if names else "there is no name"):
        name_set(names)
    with pytest.raises(ValueError, match="no profile 'fast'; there are: quick, full"):
        recommended_names("fast")


def test_a_quick_training_beats_counting_pairs(tmp_path: Path) -> None:
    "Pairs of letters cost 3.53 bits, triples 3.2."
    record = train_names(recommended_names(epochs=1, hidden=96), tmp_path)
    assert record["bits"] < 3.2 and record["new"] > 0.5
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["bits"] < 3.2


def test_the_stored_names_are_as_the_page_says() -> None:
    kept = json.loads((RESULTS / "names.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in kept["runs"]] == [0, 1, 2] and kept["commit"]
    assert max(run["bits"] for run in kept["runs"]) < 2.85


@pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")
def test_the_stored_figure_comes_again(tmp_path: Path) -> None:
    record = train_names(recommended_names("full"), tmp_path)
    assert record["bits"] < 2.85
