"""Chapter 4 against micrograd, and the digits file when it is damaged."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from gradbook.scalar.neural import (
    MLP,
    SGD,
    Layer,
    Neuron,
    Profile,
    accuracy,
    batches,
    fit,
    l2_penalty,
    max_margin,
    mean_squared_error,
    predict,
    scale_weights,
    softmax_cross_entropy,
    train_digits,
)
from gradbook.scalar.numdiff import gradcheck
from gradbook.scalar.samples import (
    DataFileError,
    digits_split,
    held_out,
    load_digits,
    spiral,
    two_moons,
)
from gradbook.scalar.value import Value

# --- micrograd ----------------------------------------------------------------------------------


def demo(value: type[Any], mlp: type[Any], steps: int) -> list[float]:
    "micrograd's own demonstration, the same lines for both libraries."
    random.seed(1337)
    model = mlp(2, [16, 16, 1])
    points, arcs = two_moons(24, seed=1337)
    losses = []
    for k in range(steps):
        scores = [model([value(x), value(y)]) for x, y in points]
        pairs = zip(arcs, scores, strict=True)
        hinge = [(1 + -(2 * arc - 1) * score).relu() for arc, score in pairs]
        penalty = 1e-4 * sum(p * p for p in model.parameters())
        loss = sum(hinge) * (1.0 / len(hinge)) + penalty
        model.zero_grad()
        loss.backward()
        for p in model.parameters():
            p.data -= (1.0 - 0.9 * k / 100) * p.grad
        losses.append(loss.data)
    return losses


def test_drop_in_for_micrograd() -> None:
    "The same seed, the same weights, the same losses over several steps."
    engine = pytest.importorskip("micrograd.engine", reason="micrograd is not installed")
    nn = pytest.importorskip("micrograd.nn")
    theirs, ours = demo(engine.Value, nn.MLP, 5), demo(Value, MLP, 5)
    assert theirs[0] != theirs[-1]
    assert ours == pytest.approx(theirs, rel=0, abs=1e-9)


def test_our_losses_equal_micrograds_lines() -> None:
    "`max_margin`, `l2_penalty` and `SGD` give what the demonstration spells out."
    points, arcs = two_moons(24, seed=1337)
    signs = [2 * arc - 1 for arc in arcs]
    random.seed(1337)
    model = MLP(2, [16, 16, 1])
    sgd, losses = SGD(model.parameters(), lr=1.0), []
    for k in range(5):
        loss = max_margin([model(p) for p in points], signs) + l2_penalty(model.parameters())
        sgd.zero_grad()
        loss.backward()
        sgd.lr = 1.0 - 0.9 * k / 100
        sgd.step()
        losses.append(loss.data)
    assert losses == pytest.approx(demo(Value, MLP, 5), rel=0, abs=1e-9)


def test_same_attributes_and_text_as_micrograd() -> None:
    nn = pytest.importorskip("micrograd.nn", reason="micrograd is not installed")
    for ours, theirs in (
        (Neuron(3), nn.Neuron(3)),
        (Neuron(3, nonlin=False), nn.Neuron(3, nonlin=False)),
        (Layer(2, 2), nn.Layer(2, 2)),
        (MLP(2, [3, 1]), nn.MLP(2, [3, 1])),
    ):
        assert str(ours) == str(theirs)
        assert vars(theirs).keys() <= vars(ours).keys()
        assert len(ours.parameters()) == len(theirs.parameters())


# --- networks -----------------------------------------------------------------------------------


def test_shapes_and_errors() -> None:
    assert isinstance(MLP(2, [3, 1])([1.0, 2.0]), Value)
    assert len(MLP(2, [3, 1, 2])([1.0, 2.0])) == 2, "a hidden layer of one neuron"
    assert repr(Neuron(2, activation="tanh")) == "TanhNeuron(2)"
    with pytest.raises(ValueError, match=r"sine.*relu"):
        Neuron(2, activation="sine")
    with pytest.raises(ValueError, match=r"2.*3"):
        Neuron(2)([1.0, 2.0, 3.0])
    with pytest.raises(ValueError):
        max_margin([Value(1.0)], [1, -1])
    with pytest.raises(ValueError, match=r"huge.*quick"):
        train_digits("huge")


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus"])
def test_gradients_of_a_whole_network(activation: str) -> None:
    "Every parameter of a small network against measured slopes."
    model = MLP(3, [4, 3], activation=activation, rng=random.Random(5))
    xs, labels = [[0.3, -0.2, 0.9], [-0.5, 0.8, 0.1]], [2, 0]
    parameters = model.parameters()

    def loss_at(numbers: list[float]) -> Value:
        for p, number in zip(parameters, numbers, strict=True):
            p.data = number
        scores = softmax_cross_entropy([model.outputs(x) for x in xs], labels)
        return scores + l2_penalty(parameters) + mean_squared_error(model.outputs(xs[0]), [1, 2, 3])

    start = [p.data for p in parameters]
    model.zero_grad()
    loss_at(start).backward()
    grad = [p.grad for p in parameters]
    assert gradcheck(lambda x: loss_at(list(x)).data, start, grad)


def test_cross_entropy_survives_large_scores() -> None:
    scores = [Value(1000.0), Value(-1000.0)]
    loss = softmax_cross_entropy([scores], [1])
    loss.backward()
    assert loss.data == 2000 and [s.grad for s in scores] == [1, -1]


def test_mean_cross_entropy_of_equal_scores_is_log_of_classes() -> None:
    rows = [[Value(7.0)] * 10, [Value(-3.0)] * 10]
    assert math.isclose(softmax_cross_entropy(rows, [0, 9]).data, math.log(10))


def test_scaled_weights_have_the_promised_variance() -> None:
    model = MLP(64, [200], rng=random.Random(0))
    scale_weights(model)
    weights = [w.data for neuron in model.layers[0].neurons for w in neuron.w]
    assert math.isclose(sum(w * w for w in weights) / len(weights), 2 / 64, rel_tol=0.03)


def test_batches_deal_out_everything_once() -> None:
    dealt = list(batches(range(23), 5, random.Random(1)))
    assert [len(b) for b in dealt] == [5, 5, 5, 5, 3]
    assert sorted(i for b in dealt for i in b) == list(range(23))
    assert dealt == list(batches(range(23), 5, random.Random(1)))


def test_training_repeats_exactly() -> None:
    xs, labels = spiral(30, seed=2)
    examples = list(zip(xs, labels, strict=True))

    def losses() -> list[float]:
        rng = random.Random(3)
        model = MLP(2, [6, 3], rng=rng)
        profile = Profile(hidden=6, epochs=3, batch=8)
        return [e.train_loss for e in fit(model, examples, examples, profile, rng)]

    assert losses() == losses()


def test_predict_and_accuracy() -> None:
    model = MLP(1, [1])
    for p, number in zip(model.parameters(), (1.0, -0.5), strict=True):
        p.data = number
    assert [predict(model, [x]) for x in (0.0, 0.5, 1.0)] == [0, 0, 1]
    assert accuracy(model, [[0.0], [1.0]], [0, 0]) == 0.5


# --- the digits ---------------------------------------------------------------------------------


def test_the_shipped_digits() -> None:
    images, labels = load_digits()
    assert len(images) == len(labels) == 1797
    assert {len(image) for image in images} == {64}
    assert min(map(min, images)) == 0.0 and max(map(max, images)) == 1.0
    counts = [labels.count(d) for d in range(10)]
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_split_is_a_partition() -> None:
    parts = digits_split()
    assert [len(p) for p in parts] == [1257, 180, 360]
    assert sorted(i for p in parts for i in p) == list(range(1797))
    assert digits_split() == parts
    for count in (0, 3, 4):
        with pytest.raises(ValueError, match=str(count)):
            held_out([1, 2, 3], count)


SHIPPED = resources.files("gradbook").joinpath("data", "files", "digits.csv.gz").read_bytes()


def rows(change: Callable[[list[str]], None]) -> bytes:
    "The shipped file with its rows changed."
    lines = gzip.decompress(SHIPPED).decode().splitlines()
    change(lines)
    return gzip.compress(("\n".join(lines) + "\n").encode())


def put(row: int, column: int, text: str) -> Callable[[list[str]], None]:
    "Replace one value; row and column count from 1, as in the messages."

    def change(lines: list[str]) -> None:
        values = lines[row - 1].split(",")
        values[column - 1] = text
        lines[row - 1] = ",".join(values)

    return change


def swap(lines: list[str]) -> None:
    lines[0], lines[1] = lines[1], lines[0]


DAMAGED = {
    "cut short": (SHIPPED[: len(SHIPPED) // 2], None, "can't be unpacked"),
    "not gzip": (b"0,1,2\n", None, "can't be unpacked"),
    "empty": (b"", None, "can't be unpacked|0 rows"),
    "a flipped byte": (
        SHIPPED[:20000] + bytes([SHIPPED[20000] ^ 255]) + SHIPPED[20001:],
        ...,
        "row|can't be unpacked|sha256",
    ),
    "not text": (gzip.compress(b"\xff\xfe\x00"), None, "can't be unpacked"),
    "a column less": (rows(lambda t: t.__setitem__(6, t[6][2:])), 7, "64 values"),
    "a column more": (rows(lambda t: t.__setitem__(6, t[6] + ",1")), 7, "66 values"),
    "a blank row": (rows(lambda t: t.insert(3, "")), 4, "1 values"),
    "pixel 17": (rows(put(1797, 64, "17")), 1797, "value 64 is 17, outside 0 to 16"),
    "label 10": (rows(put(5, 65, "10")), 5, "value 65 is 10, outside 0 to 9"),
    "negative": (rows(put(2, 3, "-1")), 2, "value 3 is '-1', not a whole number"),
    "a fraction": (rows(put(2, 3, "1.5")), 2, "value 3 is '1.5'"),
    "a word": (rows(put(900, 1, "ink")), 900, "value 1 is 'ink'"),
    "nothing": (rows(put(900, 1, "")), 900, "value 1 is ''"),
    "a row less": (rows(lambda t: t.pop()), None, "1796 rows instead of 1797"),
    "a plausible pixel": (rows(put(1, 3, "6")), None, "sha256"),
    "two rows exchanged": (rows(swap), None, "sha256"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_and_not_used(case: str, tmp_path: Path) -> None:
    content, row, reason = DAMAGED[case]
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=reason) as caught:
        load_digits(path)
    assert str(path) in str(caught.value)
    if row is not ...:
        assert caught.value.row == row
        assert row is None or f"row {row}:" in str(caught.value)


@pytest.mark.parametrize("name", ["absent.csv.gz", "."])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"no such file|can't be"):
        load_digits(tmp_path / name)


# --- the record of the full run -----------------------------------------------------------------


def test_the_cached_full_run_says_what_the_chapter_claims() -> None:
    path = Path(__file__).parent.parent / "nbs" / "results" / "digits_full.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    _, labels = load_digits()
    assert len({run["seed"] for run in record["full"]}) == 3
    for run in record["full"]:
        assert run["test_accuracy"] >= 0.95 and run["profile"] == "full"
        assert len(run["history"]) == run["settings"]["epochs"]
        assert sum(map(sum, run["confusion"])) == 360
        right = sum(run["confusion"][d][d] for d in range(10))
        assert math.isclose(right / 360, run["test_accuracy"], abs_tol=1e-6)
        assert right == 360 - len(run["mistakes"])
        assert all(labels[m["row"]] == m["label"] != m["prediction"] for m in run["mistakes"])


def test_the_cached_run_names_its_command() -> None:
    path = Path(__file__).parent.parent / "nbs" / "results" / "digits_full.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert "train_digits" in record["command"] and "train_digits" in record["command_last_fifth"]
    assert {run["profile"] for run in record["quick"]} == {"quick"}


def test_a_short_run_leaves_a_complete_record() -> None:
    train, val, test = digits_split()
    seen: list[Any] = []
    run = train_digits("quick", 1, seen.append, split=(train[:60], val[:20], test[:30]))
    record = json.loads(json.dumps(run.to_json()))
    for key in ("model", "data", "seed", "steps", "seconds", "train_loss", "val_loss"):
        assert key in record
    assert "network" not in record and len(seen) == len(record["history"])
    assert record["test_accuracy"] == pytest.approx(1 - len(record["mistakes"]) / 30)
