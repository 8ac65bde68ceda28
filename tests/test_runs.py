"Logs, runs side by side, TensorBoard, and the recipe that `gradbook train mlp` runs."

from __future__ import annotations

import json
import math
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook.data.datasets import ArrayDataset, installed, SOURCES
from gradbook.data.loader import DataLoader
from gradbook.nn.init import manual_seed
from gradbook.nn.linear import Linear
from gradbook.nn.losses import mse_loss
from gradbook.optim.adam import AdamW
from gradbook.train.callbacks import Callback
from gradbook.train.checkpoint import Checkpoint, CheckpointError, load_state, newest
from gradbook.train.log import (
    Run,
    RunLog,
    TensorBoard,
    compare_runs,
    find_runs,
    read_log,
    read_run,
    runs_table,
    sparkline,
    write_json,
)
from gradbook.train.loop import Trainer
from gradbook.train.recipes import MLPSettings, image_data, recommended, train_mlp

X = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
DATA = ArrayDataset(X, X[:, :1])


def line(folder: Path, *extra: Callback, epochs: int = 3, every: int | None = 1) -> Trainer:
    "Five steps an epoch."
    manual_seed(0)
    model = Linear(2, 1)
    keep = [*extra, RunLog(folder, every), Checkpoint(folder / "c", resume=True, every=2)]
    optimizer = AdamW(model.parameters(), lr=0.1)
    trainer = Trainer(model, mse_loss, optimizer, callbacks=keep, progress=False)
    trainer.fit(DataLoader(DATA, 4, shuffle=True), DataLoader(DATA, 20), epochs=epochs)
    return trainer


class Fall(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.steps == self.step:
            raise MemoryError("too much")


# ------------------------------------------------------------- the log


def test_a_log_is_one_object_a_line(tmp_path: Path) -> None:
    trainer = line(tmp_path)
    rows = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["event"] == "begin" and rows[0]["time"].endswith("+00:00")
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 16))
    assert rows[-1]["status"] == "finished" and rows[-1]["step"] == 15
    log = read_log(tmp_path / "log.jsonl")
    assert [{k: row[k] for k in trainer.history[0]} for row in log.epochs] == trainer.history
    assert log.status == "finished" and log.seconds >= 0


@pytest.mark.parametrize("steps", [[1], [7], [4, 10], [3, 3, 8, 14]])
def test_what_was_done_twice_counts_once(tmp_path: Path, steps: list[int]) -> None:
    for step in steps:
        with pytest.raises(MemoryError):
            line(tmp_path / "a", Fall(step))
    assert read_log(tmp_path / "a" / "log.jsonl").status == "failed"
    line(tmp_path / "a", Fall(0))
    line(tmp_path / "b")

    def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    a, b = (read_log(tmp_path / name / "log.jsonl") for name in "ab")
    assert plain(a.steps) == plain(b.steps) and plain(a.epochs) == plain(b.epochs)
    assert a.status == "finished" and len(a.steps) == 15


@pytest.mark.parametrize("cut", [1, 2, 15, 40])
def test_a_line_cut_off_by_a_kill(tmp_path: Path, cut: int) -> None:
    with pytest.raises(MemoryError):
        line(tmp_path, Fall(7))
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    steps = len(read_log(path).steps)
    assert steps in (6, 7)
    line(tmp_path, Fall(0))
    assert [row["step"] for row in read_log(path).steps] == list(range(1, 16))


def test_a_kill_leaves_any_beginning_of_a_line(tmp_path: Path) -> None:
    line(tmp_path)
    path = tmp_path / "log.jsonl"
    whole, log = path.read_text(), read_log(path)
    last = whole.splitlines()[-1]
    for left in range(len(last)):
        path.write_text(whole + last[:left])
        assert read_log(path) == log
        RunLog(tmp_path).write("end", {"step": 15, "status": "again"})
        assert read_log(path).status == "again"


@pytest.mark.parametrize(
    "text", ["", "hello", "[1]", '{"a": 1}', '{"event": 3}', '{"event": "x"}}']
)
def test_what_is_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"event": "begin", "step": 0}}\n{text}\n{{"event": "step", "step": 1}}\n')
    with pytest.raises(ValueError, match="line 2: this is no line of a log"):
        read_log(path)


def test_a_log_is_json_even_where_numbers_are_not(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("epoch", {"step": 1, "val_loss": math.nan, "table": np.eye(2)})
    text = (tmp_path / "log.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert row["val_loss"] is None and row["table"] == [[1, 0], [0, 1]]


# ------------------------------------------------------------- TensorBoard


def scalars(path: Path) -> list[tuple[int, str, float]]:
    "The numbers in a file for TensorBoard: records with a length, a checksum, an event."
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra train is not installed")
    trainer = line(tmp_path, TensorBoard(tmp_path / "tb"))
    [path] = (tmp_path / "tb").iterdir()
    written = scalars(path)
    for row in trainer.history:
        for name in ("loss", "val_loss", "lr"):
            assert (row["step"], name, pytest.approx(row[name], rel=1e-6)) in written
    line(tmp_path, TensorBoard(tmp_path / "tb"), epochs=4)
    assert len(list((tmp_path / "tb").iterdir())) == 2


def test_tensorboard_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"tensorboardX: pip install 'gradbook\[train\]'"):
        TensorBoard(tmp_path)


# ------------------------------------------------------------- runs


def test_runs_are_found_and_other_things_passed_over(tmp_path: Path) -> None:
    line(tmp_path / "one")
    write_json(tmp_path / "one" / "run.json", {"model": "line", "seed": 1, "test_accuracy": 0.5})
    text = '{"model": "m", "history": [{"val_loss": 2.0}], "seconds": 3}'
    (tmp_path / "old.json").write_text(text)
    (tmp_path / "bench.json").write_text('{"rows": []}')
    (tmp_path / "broken.json").write_text('{"model"')
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "run.json", {"model": "line"})  # killed before the log
    half, old, one = find_runs(tmp_path)
    assert (half.name, half.status) == ("half", "unreadable")
    assert "log.jsonl" in half.about["trouble"] and half.about["trouble"] in runs_table([half])
    assert (old.name, old.seconds, old.series("val_loss")) == ("old", 3, [2.0])
    assert (one.name, one.status, len(one.history)) == ("one", "finished", 3)
    table = runs_table([old, one]).splitlines()
    assert table[0].split()[:3] == ["run", "status", "epochs"] and "50.00%" in table[2]
    with pytest.raises(ValueError, match="half is no run"):
        read_run(tmp_path / "half")
    assert find_runs(tmp_path / "nowhere") == []


def test_two_runs_side_by_side() -> None:
    a, b = (
        Run(
            name,
            {"model": "m", "seed": 0, "settings": {"lr": lr}, "steps": 5, "test_accuracy": right},
            [{"epoch": 1, "val_loss": loss, "accuracy": right}, {"epoch": 2, "val_loss": 9.0}],
            1.0,
            "finished",
        )
        for name, lr, loss, right in (("a", 0.1, 0.5, 0.7), ("b", 0.2, 0.4, 0.8))
    )
    text = compare_runs(a, b)
    rows = {line[:15].strip(): line.split()[-2:] for line in text.splitlines()}
    assert rows["lr"] == ["0.1", "0.2"] and rows["best val_loss"] == ["0.5000", "0.4000"]
    assert rows["test_accuracy"] == ["70.00%", "80.00%"] and "seed" not in rows
    assert "model" not in rows and "best epoch" not in rows


@given(st.lists(st.floats(), max_size=99), st.integers(2, 40))
def test_a_curve_of_any_numbers(values: list[float], width: int) -> None:
    text = sparkline(values, width)
    assert len(text) == min(len(values), width) and set(text) <= set("▁▂▃▄▅▆▇█ ")


# ------------------------------------------------------------- the recipe

SMALL = recommended(data="digits", epochs=2, hidden=(16,))


def test_the_images() -> None:
    train, held_back, test = image_data(MLPSettings())
    assert [len(part) for part in (train, held_back, test)] == [18_000, 2_000, 10_000]
    assert len(image_data(SMALL)[2]) == 360
    with pytest.raises(ValueError, match="no images 'moons'; there are: mnist"):
        image_data(MLPSettings(data="moons"))


def test_a_run_of_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train_mlp(SMALL, tmp_path / "run", about={"profile": "quick"})
    assert record["model"] == "MLP 64-16-10" and record["steps"] == 72
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept == json.loads(json.dumps(record)) and kept["profile"] == "quick"
    assert read_run(tmp_path / "run").about["test_accuracy"] == record["test_accuracy"]
    found = newest(tmp_path / "run" / "checkpoints")
    assert found and found[1]["settings"]["hidden"] == (16,)
    again = train_mlp(SMALL, tmp_path / "run", resume=True)
    assert again["test_loss"] == record["test_loss"]
    with pytest.raises(CheckpointError, match="holds a run already"):
        train_mlp(SMALL, tmp_path / "run")


def test_a_recipe_killed_in_the_middle(tmp_path: Path) -> None:
    whole = train_mlp(SMALL, tmp_path / "a")
    with pytest.raises(MemoryError):
        train_mlp(SMALL, tmp_path / "b", callbacks=[Fall(50)])
    later = train_mlp(SMALL, tmp_path / "b", resume=True, callbacks=[Fall(0)])
    last = "checkpoints/step-00000072.safetensors"
    a, b = (load_state(tmp_path / name / last) for name in "ab")
    assert repr(a) == repr(b) and later["test_loss"] == whole["test_loss"]
    assert later["train_loss"] == whole["train_loss"]


def test_the_images_in_the_package_are_enough_for_96_percent(tmp_path: Path) -> None:
    record = train_mlp(recommended(), tmp_path)
    assert record["test_accuracy"] >= 0.96
    assert record["seconds"] <= 15 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.mark.skipif(not os.environ.get("FULL"), reason="long: make test FULL=1")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_of_mnist_98_percent(tmp_path: Path, seed: int) -> None:
    source = SOURCES["mnist"]
    found = installed(source, list(source.files))
    if found is None or not found.whole:
        pytest.skip("MNIST is not on this machine: gradbook data get mnist")
    record = train_mlp(recommended("full", seed=seed), tmp_path)
    assert record["test_accuracy"] >= 0.98
    assert record["seconds"] <= 60 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))


# ------------------------------------------------------------- after a fall


NOTHING = "\0" * 300


@pytest.mark.parametrize("spoilt", [NOTHING, '{"event": "st', NOTHING + "\n" + NOTHING, "}{\n\x0c"])
def test_what_a_power_cut_leaves(tmp_path: Path, spoilt: str) -> None:
    with pytest.raises(MemoryError):
        line(tmp_path, Fall(7))
    path = tmp_path / "log.jsonl"
    rows = path.read_text().splitlines()[:-1]  # nobody wrote how it ended
    path.write_text("\n".join(rows) + "\n" + spoilt)
    log = read_log(path)
    assert log.status == "no end" and [row["step"] for row in log.steps] == list(range(1, 7))
    line(tmp_path, Fall(0))
    again = read_log(path)
    assert [row["step"] for row in again.steps] == list(range(1, 16))
    assert again.status == "finished"


def test_what_is_spoilt_and_not_by_a_fall(tmp_path: Path) -> None:
    line(tmp_path)
    path = tmp_path / "log.jsonl"
    rows = path.read_text().splitlines()
    for text in (NOTHING, NOTHING + "\n" + NOTHING):  # no log at all
        path.write_text(text)
        with pytest.raises(ValueError, match="line 1: this is no line"):
            read_log(path)
    rows[3] = rows[3].replace('"step"', '"st')
    path.write_text("\n".join(rows))
    with pytest.raises(ValueError, match="line 4: this is no line"):
        read_log(path)
    path.write_text("")
    assert read_log(path).status == "no end"


def test_a_damaged_run_is_listed(tmp_path: Path) -> None:
    line(tmp_path / "one")
    write_json(tmp_path / "one" / "run.json", {"model": "line"})
    path = tmp_path / "one" / "log.jsonl"
    path.write_text("[1]\n" + path.read_text())
    [one] = find_runs(tmp_path)
    assert (one.name, one.status, one.history) == ("one", "unreadable", [])
    assert one.about == {"trouble": f"{path}, line 1: this is no line of a log: '[1]'"}
    assert runs_table([one]).splitlines()[1].endswith("'[1]'")


def test_a_killed_run_says_for_how_long_it_has_been_quiet(tmp_path: Path) -> None:
    line(tmp_path / "one")
    write_json(tmp_path / "one" / "run.json", {"model": "line"})
    path = tmp_path / "one" / "log.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    for seconds, words in ((5, "s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 d")):
        then = time.time() - seconds
        os.utime(path, (then, then))
        assert f"no end, quiet for {words if seconds > 60 else ''}" in runs_table(
            [read_run(tmp_path / "one")]
        )
    os.utime(path, (time.time() + 60,) * 2)  # a clock that is wrong
    assert read_run(tmp_path / "one").how == "no end, quiet for 0 s"


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file.log.jsonl: can't be written: "):
        RunLog(tmp_path / "file").write("step", {})
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"log.jsonl: can't be written: "):
        RunLog(tmp_path).write("step", {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"log.jsonl: can't be written: No space left"):
        RunLog(tmp_path).write("step", {"step": 1})


def test_four_runs_side_by_side() -> None:
    runs = [
        Run(f"r{k}", {"model": "m", "seed": k, "steps": 5}, [{"val_loss": 1.0 / k}], k, "finished")
        for k in (1, 2, 4, 8)
    ]
    text = [line.split() for line in compare_runs(*runs).splitlines()]
    assert text[:2] == [["r1", "r2", "r4", "r8"], ["seed", "1", "2", "4", "8"]]
    assert ["best", "val_loss", "1.0000", "0.5000", "0.2500", "0.1250"] in text
    assert text[-1] == ["seconds", "1.0", "2.0", "4.0", "8.0"]
