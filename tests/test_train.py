"The training loop: metrics, steps, the Trainer and its callbacks."

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import types
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook.data.datasets import ArrayDataset
from gradbook.data.loader import DataLoader
from gradbook.nn.activations import ReLU
from gradbook.nn.init import get_rng_state, manual_seed, next_key
from gradbook.nn.linear import Linear
from gradbook.nn.losses import CrossEntropyLoss, NLLLoss, cross_entropy, mse_loss, nll_loss
from gradbook.nn.module import Module, Sequential
from gradbook.optim.adam import AdamW
from gradbook.optim.optimizer import SGD, OptimizerError
from gradbook.optim.schedule import OneCycleLR, ReduceLROnPlateau, StepLR, WarmupCosine
from gradbook.tensor.core import ShapeError, Tensor
from gradbook.tensor.elementwise import sqrt
from gradbook.train import callbacks
from gradbook.train.callbacks import Callback, EarlyStopping, LiveCurve, Progress, curve_svg
from gradbook.train.checkpoint import Checkpoint
from gradbook.train.loop import Stepper, Task, Trainer, TrainingError, evaluating, find_lr
from gradbook.train.metrics import Accuracy, ConfusionMatrix, Mean, Running, TopK

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 6)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("int64") + (X[:, 2] > 0)
DATA = ArrayDataset(X, Y)


def network() -> Sequential:
    manual_seed(0)
    return Sequential(Linear(6, 16), ReLU(), Linear(16, 3))


def loader(size: int = 16, **options: Any) -> DataLoader:
    return DataLoader(DATA, size, shuffle=True, **options)


def trainer(lr: float = 0.01, **options: Any) -> Trainer:
    model = network()
    return Trainer(
        model, cross_entropy, AdamW(model.parameters(), lr=lr), **{"progress": False, **options}
    )


def weights(t: Task) -> list[Any]:
    return [p.tolist() for p in t.parameters]


# ------------------------------------------------------------- metrics

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(sizes, st.integers(0, 999))
def test_metrics_do_not_depend_on_the_batches(sizes: list[int], seed: int) -> None:
    rng, n = np.random.default_rng(seed), sum(sizes)
    scores, truth = rng.normal(size=(n, 5)).astype("f4"), rng.integers(0, 5, n)
    found = Running([Accuracy(), TopK(3), ConfusionMatrix(5)])
    for part in np.split(np.arange(n), np.cumsum(sizes)[:-1]):
        loss = float(cross_entropy(Tensor(scores[part]), Tensor(truth[part])))
        found.update(Tensor(scores[part]), Tensor(truth[part]), loss)
    values, guess = found.compute("x_"), scores.argmax(1)
    ranks = (scores > scores[np.arange(n), truth][:, None]).sum(1)
    assert values["x_accuracy"] == (guess == truth).sum() / n
    assert values["x_top3"] == (ranks < 3).sum() / n
    assert values["x_loss"] == pytest.approx(
        float(cross_entropy(Tensor(scores), Tensor(truth))), rel=1e-5
    )
    table = values["x_confusion"]
    assert table.sum() == n and np.trace(table) == (guess == truth).sum()
    assert table[truth[0]].sum() == (truth == truth[0]).sum()


def test_accuracy_of_two_classes_and_of_images() -> None:
    metric = Accuracy()
    metric.update(Tensor([-1.0, 2.0, 0.5]), Tensor([0, 1, 0]))
    assert metric.compute() == 2 / 3
    metric.reset()
    metric.update(Tensor(np.eye(3, dtype="f4")[None]), Tensor([[0, 1, 1]]))  # (1, 3 classes, 3)
    assert metric.compute() == 2 / 3


def test_wrong_shapes_and_nothing_at_all() -> None:
    scores = Tensor(np.ones((4, 3), "f4"))
    for metric in (Accuracy(), TopK(2), ConfusionMatrix(3)):
        with pytest.raises(ShapeError, match=rf"{metric.name}: output \(4, 3\), targets \(5,\)"):
            metric.update(scores, Tensor([0] * 5))
    with pytest.raises(ShapeError):
        TopK(4).update(scores, Tensor([0] * 4))
    assert math.isnan(Accuracy().compute()) and math.isnan(Mean().compute())


def test_a_note_of_running_metrics_does_not_change() -> None:
    class Kept(Accuracy):
        def reset(self) -> None:
            super().reset()
            self.shapes: list[Any] = []

        def update(self, output: Tensor, target: Tensor) -> None:
            super().update(output, target)
            self.shapes.append(output.shape)

    running, scores = Running([ConfusionMatrix(3), Kept()]), Tensor(np.eye(3, dtype="f4"))
    running.update(scores, Tensor([0, 1, 1]), 0.5)
    note = running.state_dict()
    then = repr(note)
    for _ in range(2):  # neither what comes after taking it, nor after going back to it
        running.update(scores, Tensor([2, 2, 2]), 0.1)
        assert repr(note) == then
        running.load_state_dict(note)
        assert repr(running.state_dict()) == then


# ------------------------------------------------------------- task and step


class Modes(Module):
    "Remembers in which mode it ran."

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(self.training)
        return x


def test_evaluation_mode_and_back() -> None:
    model = Sequential(Linear(6, 3), Modes(), Modes())
    model.train()
    model[2].eval()
    task = Task(model, cross_entropy)
    task.evaluate(loader())
    assert model[1].seen == {False}
    assert [m.training for m in model] == [True, True, False]
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert [m.training for m in model] == [True, True, False]


def test_validation_leaves_no_trace() -> None:
    a, b = trainer(), trainer()
    a.fit(loader(), epochs=2)
    b.fit(loader(), loader(7), epochs=2)
    assert weights(a) == weights(b)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_an_evaluation_counts_each_example_once(size: int) -> None:
    task = Task(network(), cross_entropy)
    found = task.evaluate(DataLoader(DATA, size), [Accuracy()])
    out = task.model(Tensor(X))
    assert found["accuracy"] == (out.numpy().argmax(1) == Y).mean()
    assert found["loss"] == pytest.approx(float(cross_entropy(out, Tensor(Y))), rel=1e-5)
    np.testing.assert_allclose(task.predict(DataLoader(DATA, size)), out.numpy(), rtol=1e-4)


@given(sizes)
def test_accumulation_is_one_large_batch(sizes: list[int]) -> None:
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    found = []
    for pieces in ([np.arange(sum(sizes))], parts):
        model = network()
        stepper = Stepper(model, cross_entropy, SGD(model.parameters(), lr=0.5))
        loss = stepper.update([(Tensor(X[i]), Tensor(Y[i])) for i in pieces])
        found.append((loss, *(p.numpy() for p in model.parameters())))
    for large, small in zip(*found):
        np.testing.assert_allclose(small, large, rtol=2e-5, atol=1e-6)


def test_accumulation_in_the_trainer_with_a_short_last_group() -> None:
    one, many = trainer(), trainer(accumulate=4)
    one.fit(loader(32), epochs=3)
    many.fit(loader(8), epochs=3)
    assert one.steps == many.steps == 12 and many.steps_per_epoch() == 4
    np.testing.assert_allclose(
        many.parameters[0].numpy(), one.parameters[0].numpy(), rtol=1e-4, atol=1e-5
    )
    assert many.history[-1]["loss"] == pytest.approx(one.history[-1]["loss"], rel=1e-4)


def test_clipping_sees_the_whole_gradient() -> None:
    model = network()
    stepper = Stepper(model, cross_entropy, SGD(model.parameters(), lr=1.0), clip_norm=1e-3)
    before = np.concatenate([p.numpy().ravel() for p in model.parameters()])
    stepper.update([(Tensor(X[:50]), Tensor(Y[:50])), (Tensor(X[50:]), Tensor(Y[50:]))])
    after = np.concatenate([p.numpy().ravel() for p in model.parameters()])
    assert np.linalg.norm(after - before) == pytest.approx(1e-3, rel=1e-2)


def test_nan_stops_before_the_damage() -> None:
    t = trainer()
    t.fit(loader(), epochs=1)
    before = weights(t)
    bad = X.copy()
    bad[37] = np.nan
    with pytest.raises(TrainingError) as info:
        t.fit(DataLoader(ArrayDataset(bad, Y), 10), epochs=1)
    text = str(info.value)
    assert "step 11: the loss is nan" in text and "gb.detect_anomaly()" in text
    assert "0.01" in text and weights(t) != before and t.status == "failed"
    assert all(math.isfinite(v) for p in t.parameters for v in p.numpy().ravel())
    assert t.stop_reason.startswith("TrainingError")


def test_bad_use_says_what_was_wrong() -> None:
    model = network()
    with pytest.raises(ShapeError, match=r"\(8, 3\).*made \(8, 3\) of \(8, 6\), targets: \(7,\)"):
        Task(model, cross_entropy).compute((Tensor(X[:8]), Tensor(Y[:7])))
    with pytest.raises(ShapeError, match=r"the loss has shape \(8, 3\)"):
        Task(model, lambda output, target: output).compute((Tensor(X[:8]), Tensor(Y[:8])))
    with pytest.raises(TrainingError, match="holds 4 tensors, none of them a parameter"):
        Trainer(network(), cross_entropy, SGD(model.parameters(), lr=0.1))
    for options in ({"schedule": "steps"}, {"accumulate": 0}):
        with pytest.raises(ValueError, match="step or epoch"):
            trainer(**options)
    with pytest.raises(TrainingError, match="no batch"):
        trainer().fit([])
    with pytest.raises(TrainingError, match="no batch"):
        trainer().evaluate([])


# ------------------------------------------------------------- the trainer, and its peer


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_run_is_that_of_pytorch(decay: float) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    t = trainer(metrics=[Accuracy()])
    t.optimizer = AdamW(t.model.parameters(), lr=0.02, weight_decay=decay)
    peer = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        for p, q in zip(peer.parameters(), t.parameters):
            p.copy_(torch.tensor(q.numpy()))
    optimizer = torch.optim.AdamW(peer.parameters(), lr=0.02, weight_decay=decay)
    history = t.fit(DataLoader(DATA, 16), epochs=5)
    for row in history:
        total = right = 0.0
        for k in range(0, 100, 16):
            x, y = torch.tensor(X[k : k + 16]), torch.tensor(Y[k : k + 16])
            out = peer(x)
            loss = torch.nn.functional.cross_entropy(out, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(y)
            right += int((out.argmax(1) == y).sum())
        assert row["loss"] == pytest.approx(total / 100, rel=1e-4)
        assert row["accuracy"] == right / 100


def test_fit_again_goes_on() -> None:
    a, b = trainer(metrics=[Accuracy()]), trainer(metrics=[Accuracy()])
    a.fit(loader(), loader(9), epochs=4)
    data, val = loader(), loader(9)
    for _ in range(4):
        b.fit(data, val)
    assert a.history == b.history and weights(a) == weights(b)
    assert [row["epoch"] for row in a.history] == [1, 2, 3, 4] and a.status == "finished"


class At(Callback):
    "Do something at a step."

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.steps == self.step:
            self.action(trainer)


@pytest.mark.parametrize("step", [1, 5, 7, 10])
def test_an_interrupted_run_goes_on_in_the_middle(step: int) -> None:
    whole = trainer(metrics=[Accuracy()], scheduler=None, accumulate=2)
    whole.fit(loader(), loader(9), epochs=3)
    t = trainer(metrics=[Accuracy()], accumulate=2, callbacks=[At(step, Trainer.interrupt)])
    data, val = loader(), loader(9)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step}"):
        t.fit(data, val, epochs=3)
    assert t.status == "interrupted" and t.steps == step
    t.fit(data, val, epochs=3 - t.epoch)
    assert t.history == whole.history and weights(t) == weights(whole)


@pytest.mark.parametrize("step", [1, 6, 7, 9])
def test_a_state_is_all_there_is(step: int) -> None:
    "Another process, here another trainer, goes on from `state_dict`."

    def make(*extra: Callback) -> Trainer:
        t = trainer(metrics=[Accuracy(), TopK(2)], callbacks=[EarlyStopping(), *extra])
        t.scheduler = WarmupCosine(t.optimizer, 3, 21)
        return t

    whole, cut = make(), make(At(step, Trainer.interrupt))
    whole.fit(loader(), loader(9), epochs=3)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(loader(), loader(9), epochs=3)
    state = cut.state_dict()
    manual_seed(99)
    later = make(At(0, print))
    manual_seed(99)

    class Load(Callback):
        outermost = True

        def on_fit_begin(self, trainer: Trainer) -> None:
            trainer.load_state_dict(state)

    later.callbacks.append(Load())
    later.fit(loader(), loader(9), epochs=3)
    assert later.history == whole.history and weights(later) == weights(whole)
    assert get_rng_state()[0] == 0


def test_a_loader_without_a_place_cannot_go_on_in_the_middle() -> None:
    batches = [(Tensor(X[:9]), Tensor(Y[:9]))] * 3
    t = trainer(callbacks=[At(2, Trainer.interrupt)])
    with pytest.raises(KeyboardInterrupt):
        t.fit(batches)
    with pytest.raises(TrainingError, match=r"epoch 1 was begun.*running\.reset\(\)"):
        t.fit(batches)
    t.running.reset()
    t.fit(batches)
    assert t.epoch == 1 and t.steps == 5


def test_schedules_by_step_by_epoch_and_on_a_plateau() -> None:
    t = trainer(lr=1.0)
    t.scheduler = StepLR(t.optimizer, 7, gamma=0.1)
    t.fit(loader(), epochs=2)  # 7 steps each
    assert [row["lr"] for row in t.history] == pytest.approx([0.1, 0.01])
    t = trainer(lr=1.0, schedule="epoch")
    t.scheduler = StepLR(t.optimizer, 2, gamma=0.1)
    t.fit(loader(), epochs=5)
    assert [row["lr"] for row in t.history] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    t = trainer(lr=1e-9, schedule="epoch")
    t.scheduler = ReduceLROnPlateau(t.optimizer, patience=1, factor=0.5)
    t.fit(loader(), loader(), epochs=4)
    assert t.lr == 0.5e-9


class Order(Callback):
    def __init__(self, name: str, log: list[str], outermost: bool = False) -> None:
        self.name, self.log, self.outermost = name, log, outermost

    def __getattribute__(self, key: str) -> Any:
        if key.startswith("on_"):
            return lambda _: self.log.append(f"{self.name} {key[3:]}")
        return super().__getattribute__(key)


def test_moments_nest_like_parentheses() -> None:
    log: list[str] = []
    t = trainer(callbacks=[Order("out", log, True), Order("a", log), Order("b", log)])
    t.fit(loader(50))
    names = [line.split()[0] for line in log if "fit_begin" in line]
    assert names == ["out", "b", "a"]
    assert [line.split()[0] for line in log if "epoch_end" in line] == ["a", "b", "out"]
    moments = [line.split()[1] for line in log if line.startswith("a ")]
    assert moments == ["fit_begin", "epoch_begin", "step_end", "step_end", "epoch_end", "fit_end"]


def test_the_end_is_announced_whatever_happens() -> None:
    log: list[str] = []

    def fail(_: Any) -> None:
        raise KeyError("oops")

    t = trainer(callbacks=[Order("a", log), At(2, fail)])
    with pytest.raises(KeyError):
        t.fit(loader())
    assert log[-1] == "a fit_end" and t.status == "failed" and "oops" in t.stop_reason


def test_another_kind_of_batch_and_another_device_name() -> None:
    class Two(Module):
        def __init__(self) -> None:
            self.a, self.b = Linear(6, 3), Linear(2, 3)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.a(x) + self.b(z)

    model = Two()
    t = Trainer(model, cross_entropy, SGD(model.parameters(), lr=0.1), progress=False)
    history = t.fit(DataLoader(ArrayDataset(X, X[:, :2], Y), 16), epochs=3)
    assert history[-1]["loss"] < history[0]["loss"]


# ------------------------------------------------------------- early stopping


def stopping(marks: list[float], **options: Any) -> Trainer:
    "A run whose validation losses are given, and whose weight is the number of the epoch."
    model = Linear(1, 1)
    stop = EarlyStopping(**options)

    class Marked(Trainer):
        def evaluate(self, *_: Any) -> dict[str, Any]:
            model.weight.assign_(np.full((1, 1), self.epoch + 1.0))
            return {options.get("monitor", "val_loss"): marks[self.epoch]}

    t = Marked(model, mse_loss, SGD(model.parameters(), lr=1e-9), callbacks=[stop], progress=False)
    t.fit([(Tensor([[0.0]]), Tensor([[0.0]]))], (), epochs=len(marks))
    return t


@pytest.mark.parametrize(
    ("marks", "options", "end", "best"),
    [
        ([3, 2, 1], {"patience": 1}, 3, 3),
        ([3, 2, 2.5, 2.4, 2.3, 1], {"patience": 3}, 5, 2),
        ([2, 2, 2, 1], {"patience": 2}, 3, 1),
        ([3, 2.95, 2.9, 2.85], {"patience": 2, "min_delta": 0.2}, 3, 1),
        ([math.nan, 2, math.nan, math.nan], {"patience": 2}, 4, 2),
        ([math.nan, math.nan, math.nan], {"patience": 2}, 2, 2),
        ([0.5, 0.6, 0.55, 0.4], {"patience": 2, "monitor": "val_accuracy"}, 4, 2),
    ],
)
def test_early_stopping(marks: list[float], options: Any, end: int, best: int) -> None:
    t = stopping(marks, **options)
    assert t.epoch == end and t.model.weight.item() == best  # type: ignore[attr-defined]
    assert bool(t.stop_reason) == (end < len(marks) or end - best >= options["patience"])


def test_early_stopping_names_what_there_is() -> None:
    with pytest.raises(KeyError, match="no 'val_acc' in epoch, step, lr, loss"):
        trainer(callbacks=[EarlyStopping("val_acc")]).fit(loader())


def test_an_interrupted_run_keeps_its_newest_weights() -> None:
    stop = EarlyStopping()
    t = trainer(callbacks=[stop, At(10, Trainer.interrupt)])
    with pytest.raises(KeyboardInterrupt):
        t.fit(loader(), loader(), epochs=3)
    assert stop.weights and weights(t)[0] != stop.weights["0.weight"].tolist()


# ------------------------------------------------------------- progress and pictures


def test_lines_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(metrics=[Accuracy()], progress=True).fit(loader(), loader(), epochs=2)
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 2 and "it/s" not in out
    assert out.startswith("epoch 1/2  loss ") and "val_accuracy" in out.splitlines()[-1]
    lines: list[str] = []
    t = trainer(callbacks=[Progress(lines.append), EarlyStopping("loss", 1, min_delta=9.0)])
    t.fit(loader(), epochs=5)
    assert lines[-1] == "stopped after epoch 2: loss has not improved since epoch 1"
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm", reason="the extra train is not installed")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    trainer(progress=True).fit(loader(), epochs=1)
    out, err = capsys.readouterr()
    assert "epoch 1/1" in err and "0/7" in err and out.startswith("epoch 1/1  loss")


def test_without_tqdm_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    assert callbacks.bar_here() is None


class Display(types.SimpleNamespace):
    shown: list[str]

    def update(self, picture: Any) -> None:
        self.shown.append(picture)


def test_in_jupyter_a_curve_grows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handle = Display(shown=[])

    def display(picture: Any, display_id: bool) -> Display:
        handle.shown.append(picture)
        return handle

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, __path__=[])
    )
    monkeypatch.setitem(
        sys.modules, "IPython.display", types.SimpleNamespace(display=display, SVG=str)
    )
    path = tmp_path / "curve.svg"
    t = trainer(callbacks=[LiveCurve(path=path)])
    t.fit(loader(), loader(), epochs=3)
    assert len(handle.shown) == 3 and handle.shown[-1] == path.read_text(encoding="utf-8")
    assert "epoch 3" in handle.shown[-1]


def points(svg: str) -> Iterator[tuple[float, float]]:
    for line in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"):
        for pair in line.attrib["points"].split():
            x, y = pair.split(",")
            yield float(x), float(y)


@given(
    st.dictionaries(
        st.text(max_size=9).filter(str.isprintable), st.lists(st.floats(), max_size=9)
    )
)
def test_a_picture_of_anything(series: Any) -> None:
    for x, y in points(curve_svg(series, 'a "title" & <more>')):
        assert 55.9 <= x <= 496.1 and 27.9 <= y <= 208.1


# ------------------------------------------------------------- the learning rate


def test_find_lr_undoes_everything() -> None:
    t = trainer(lr=0.1, metrics=[Accuracy()])
    t.scheduler = WarmupCosine(t.optimizer, 2, 30)
    data = loader()
    t.fit(data, epochs=1)
    next_key()
    before, random = repr(t.state_dict()), get_rng_state()
    curve = find_lr(t, data, low=1e-4, high=100, steps=40)
    assert repr(t.state_dict()) == before and get_rng_state() == random
    assert len(curve.lrs) == len(curve.losses)
    assert curve.lrs[0] == pytest.approx(1e-4) and 1e-4 < curve.suggestion < 10
    fresh = find_lr(trainer(), loader(), low=1e-5, high=10, steps=100)
    assert 1e-3 < fresh.suggestion < 0.5
    again = find_lr(t, data, low=1e-4, high=100, steps=40)
    assert again == curve
    for bad in ({"low": 0.0}, {"low": 2.0, "high": 1.0}, {"steps": 1}):
        with pytest.raises(ValueError, match="find_lr"):
            find_lr(t, data, **bad)


def test_find_lr_leaves_modes_and_loader_alone() -> None:
    t, data = trainer(), loader()
    t.model.train()
    t.model[1].eval()  # type: ignore[index]
    find_lr(t, data, steps=5)
    assert [m.training for m in t.model.modules()] == [True, True, False, True]
    assert t.train_loader is None
    t.fit(data, epochs=1)
    t.model.eval()
    with pytest.raises(TrainingError):
        find_lr(t, DataLoader(ArrayDataset(X * np.nan, Y), 16))
    assert not any(m.training for m in t.model.modules()) and t.train_loader is data


def test_find_lr_survives_an_explosion() -> None:
    t = trainer(lr=0.1)
    with np.errstate(all="ignore"):
        curve = find_lr(t, loader(), low=1.0, high=1e38, steps=30)
    assert all(map(math.isfinite, curve.losses)) and t.steps == 0
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        find_lr(t, DataLoader(ArrayDataset(X * np.nan, Y), 16))


# ------------------------------------------------------------- Ctrl-C

JOB = """
import sys
import numpy as np
from gradbook.data.datasets import ArrayDataset
from gradbook.data.loader import DataLoader
from gradbook.nn.linear import Linear
from gradbook.nn.losses import mse_loss
from gradbook.optim.optimizer import SGD
from gradbook.train.checkpoint import Checkpoint
from gradbook.train.loop import Trainer

x = np.ones((64, 2), "float32")
model = Linear(2, 1)
optimizer = SGD(model.parameters(), lr=1e-3)
trainer = Trainer(model, mse_loss, optimizer, callbacks=[Checkpoint(sys.argv[1])])
trainer.fit(DataLoader(ArrayDataset(x, x[:, :1]), 4), epochs=100_000)
print("this should not be printed")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_with_a_checkpoint(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    assert running.stdout and "epoch 1/" in running.stdout.readline()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == -signal.SIGINT and "should not" not in out
    assert "KeyboardInterrupt: training ended after step" in err
    from gradbook.train.checkpoint import newest

    found = newest(tmp_path)
    assert found
    step = int(err.strip().split()[-1])
    assert found[1]["trainer"]["steps"] == step and found[0].stem == f"step-{step:08}"


def test_a_trainer_in_a_thread() -> None:
    "Signals belong to the main thread; elsewhere a run works, without a gentle Ctrl-C."
    t = trainer()
    thread = threading.Thread(target=t.fit, args=(loader(),))
    thread.start()
    thread.join()
    assert t.epoch == 1


# ------------------------------------------------------------- what counts, and what is refused


def step_of(loss: Any, targets: np.ndarray, parts: int, **options: Any) -> Any:
    "The loss and the weights after one step with the batch in so many parts."
    model = network()
    stepper = Stepper(model, loss, SGD(model.parameters(), lr=0.5), **options)
    pieces = np.split(np.arange(96), parts)
    loss = stepper.update([(Tensor(X[i]), Tensor(targets[i])) for i in pieces])
    return loss, *(p.numpy() for p in model.parameters())


SOME = np.where(np.arange(100) % 5 < 2, Y, -100)
SOME[:24] = -100  # the first of four parts, all of it
CLASSES = np.array([1, 9, 0.5], "float32")


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (cross_entropy, SOME),
        (CrossEntropyLoss(), SOME),
        (CrossEntropyLoss(weight=CLASSES, ignore_index=2), np.sort(Y)),
        (partial(cross_entropy, weight=CLASSES), np.sort(Y)),
        (partial(cross_entropy, weight=CLASSES, label_smoothing=0.1), SOME),
        (lambda x, y: nll_loss(x, y), Y),
        (NLLLoss(ignore_index=1), np.sort(Y)),
    ],
)
def test_accumulation_where_not_every_target_counts_the_same(loss: Any, targets: Any) -> None:
    with np.errstate(all="raise"):
        for large, small in zip(step_of(loss, targets, 1), step_of(loss, targets, 4)):
            np.testing.assert_allclose(small, large, rtol=2e-5, atol=1e-6)
    task, data = Task(network(), loss), ArrayDataset(X, targets)
    marks = [task.evaluate(DataLoader(data, size))["loss"] for size in (7, 100)]
    assert marks[0] == pytest.approx(marks[1], rel=1e-5)


def test_a_step_in_which_nothing_counts() -> None:
    none = np.full(100, -100)
    with pytest.raises(TrainingError, match="step 1: no target counts: all are ignored"):
        step_of(cross_entropy, none, 4)
    with pytest.raises(TrainingError, match="no batch, or none that counts"):
        Task(network(), cross_entropy).evaluate(DataLoader(ArrayDataset(X, none), 10))


def test_a_loss_that_is_a_sum_is_not_accumulated() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    for loss in (CrossEntropyLoss(reduction="sum"), partial(cross_entropy, reduction="sum")):
        with pytest.raises(ValueError, match="accumulate 2: the loss must be a mean, and is a sum"):
            Trainer(model, loss, optimizer, accumulate=2)
        Trainer(model, loss, optimizer)


class Root(Module):
    "From its third batch on, the loss is fine and the gradient is not."

    def __init__(self) -> None:
        self.line, self.count = Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        out, self.count = self.line(x), self.count + 1
        return out + sqrt((out - out.detach()) ** 2) if self.count == 3 else out


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_a_gradient_that_is_nan_though_the_loss_is_not(
    tmp_path: Path, clip_norm: float | None
) -> None:
    model, keep = Root(), Checkpoint(tmp_path, every=1)
    t = Trainer(
        model, cross_entropy, AdamW(model.parameters()), callbacks=[keep], progress=False,
        clip_norm=clip_norm,
    )  # fmt: skip
    with pytest.raises(TrainingError) as info, np.errstate(all="ignore"):
        t.fit(loader())
    finite = all(np.isfinite(p.numpy()).all() for p in model.parameters())
    text = str(info.value)
    if clip_norm:
        assert "step 3: the norm of the gradient is nan; the weights are as they were" in text
        assert finite and t.steps == 2
    else:
        assert "step 4: the loss is nan, and line.weight has such numbers already" in text
        assert not finite and t.steps == 3


def test_a_plateau_needs_epochs() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    plateau = ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau takes a metric.*schedule='epoch'"):
        Trainer(model, cross_entropy, optimizer, scheduler=plateau)
    Trainer(model, cross_entropy, optimizer, scheduler=plateau, schedule="epoch")


def test_a_cycle_as_long_as_the_run() -> None:
    t = trainer()
    t.scheduler = OneCycleLR(t.optimizer, 0.1, total_steps=3 * 7)
    t.fit(loader(), epochs=3)
    assert t.steps == 21 and t.lr == pytest.approx(0.1 / 25 / 1e4)
    with pytest.raises(OptimizerError, match="step 22 of 21: it is over"):
        t.fit(loader(), epochs=1)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (Tensor(X), "this batch is a Tensor; a tuple of tensors is needed, the target last"),
        ({"x": Tensor(X), "y": Tensor(Y)}, "this batch is a dict"),
        ((Tensor(X),), r"this batch is \(Tensor\); .* override `compute` and `weight`"),
        ((X, Y), r"this batch is \(ndarray, ndarray\)"),
        ((), r"this batch is \(\)"),
    ],
)
def test_batches_of_the_wrong_kind(batch: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        trainer().fit([batch])
    with pytest.raises(TrainingError, match=words):
        trainer().evaluate([batch])


def test_batches_of_any_kind() -> None:
    class Named(Trainer):
        def compute(self, batch: Any) -> Any:
            return super().compute((batch["x"], batch["y"]))

        def weight(self, batch: Any) -> float:
            return len(batch["y"])

    model = network()
    t = Named(model, cross_entropy, SGD(model.parameters(), lr=0.1), progress=False, accumulate=2)
    batches = [{"x": Tensor(X[i]), "y": Tensor(Y[i])} for i in np.split(np.arange(100), 4)]
    t.fit(batches, batches)
    assert t.steps == 2 and t.history[0]["val_loss"] > 0
    one = (Tensor(X[0]), Tensor(Y[0]))  # one example, without an axis for the batch
    assert Task(model, cross_entropy).weight(one) == 1


@pytest.mark.parametrize("batches", [0, 5])
def test_find_lr_with_a_loader_that_ends(batches: int) -> None:
    t = trainer()
    before = weights(t)
    few = ((Tensor(X), Tensor(Y)) for _ in range(batches))
    with pytest.raises(TrainingError, match=f"gave {batches} batches, and then none"):
        find_lr(t, few)
    assert weights(t) == before and t.lr == 0.01
