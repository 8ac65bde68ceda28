"Checkpoints: the file format, hostile files, faults of the disk, and runs that are killed."

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradbook.data.datasets import ArrayDataset
from gradbook.data.loader import DataLoader
from gradbook.nn.init import manual_seed
from gradbook.nn.linear import Linear
from gradbook.nn.losses import mse_loss
from gradbook.optim.adam import AdamW
from gradbook.tensor.core import Tensor
from gradbook.train import checkpoint
from gradbook.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    load_state,
    load_tensors,
    newest,
    pack,
    read_header,
    save_state,
    save_tensors,
    unpack,
)
from gradbook.train.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
FULL = bool(os.environ.get("FULL"))
long = pytest.mark.skipif(not FULL, reason="long: make test FULL=1")
KINDS = [*checkpoint.KIND_OF]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ------------------------------------------------------------- the format, and its peer

arrays = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
names = st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__" and n.isprintable())
tables = st.dictionaries(names, arrays, max_size=5)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(tables, st.dictionaries(names, st.text(max_size=9).filter(str.isprintable), max_size=1))
def test_files_are_byte_for_byte_those_of_the_peer(tmp_path: Path, table: Any, words: Any) -> None:
    peer = pytest.importorskip("safetensors.numpy", reason="the extra train is not installed")
    path = tmp_path / "ours"
    save_tensors(path, table, words)
    assert path.read_bytes() == peer.save(table, words or None)
    mine, theirs = load_tensors(path), peer.load_file(path)
    assert mine.keys() == theirs.keys() == table.keys()
    assert all(same(mine[n], table[n]) and same(theirs[n], table[n]) for n in table)
    assert read_header(path).metadata == words


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12)[::-2],
        np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        np.broadcast_to(np.float32(2.5), (2, 3)),
        np.array(7, "i2"),
        np.empty((0, 3), "f2"),
        np.arange(3, dtype=">f4"),
        np.array([True, False]),
    ],
    ids=["transposed", "reversed", "fortran", "broadcast", "0-d", "empty", "big-endian", "bool"],
)
def test_arrays_of_any_build(tmp_path: Path, array: np.ndarray) -> None:
    save_tensors(tmp_path / "a", {"x": array, "tensor": Tensor(array)})
    back = load_tensors(tmp_path / "a")
    for name in ("x", "tensor"):
        assert back[name].dtype == array.dtype.newbyteorder("=") and back[name].dtype.isnative
        assert back[name].shape == array.shape and (back[name] == array).all()
        back[name][...] = 0  # what is loaded can be written to
    peer = pytest.importorskip("safetensors.numpy", reason="the extra train is not installed")
    assert (peer.load_file(tmp_path / "a")["x"] == array).all()


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    peer = pytest.importorskip("safetensors.torch", reason="the extra train is not installed")
    x = torch.tensor([[1.0, -2.5, 3.0e38], [0.1, math.inf, 0.0]], dtype=torch.bfloat16)
    peer.save_file({"x": x, "one": x[0, 1].clone()}, tmp_path / "b")
    back = load_tensors(tmp_path / "b")
    assert back["x"].dtype == np.float32 and (back["x"] == x.float().numpy()).all()
    assert back["one"].shape == () and back["one"] == -2.5


def test_some_of_the_tensors(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {f"t{k}": np.full(3, k) for k in range(20)})
    assert list(load_tensors(tmp_path / "a", ["t7", "t3"])) == ["t7", "t3"]
    with pytest.raises(CheckpointError, match=r"there is no 't99'.*and 12 more"):
        load_tensors(tmp_path / "a", ["t99"])


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'z'.*complex128"):
        save_tensors(tmp_path / "a", {"z": np.array([1j])})
    with pytest.raises(CheckpointError, match="__metadata__"):
        save_tensors(tmp_path / "a", {"__metadata__": np.ones(1)})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------- files that lie


def file_of(header: Any, size: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def one(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are too few"),
        (b"\x01\x02", "2 bytes are too few"),
        (b"\xff" * 16, "16 bytes are too few"),
        (file_of(b"{" * 100_000), "header is broken"),
        (file_of(b'{"a":' * 90_000), "header is broken"),
        (file_of(b"[" * 90_000 + b"]" * 90_000), "header is broken"),
        (file_of(b" " + json.dumps(one()).encode()), "does not begin with"),
        (file_of(b"\xff\xfe{}"), "header is broken"),
        (file_of([]), "header is broken"),
        (file_of(b"NaN"), "header is broken"),
        (file_of({"w": 1}), "needs dtype, shape and data_offsets"),
        (file_of({"w": one()["w"] | {"more": 1}}), "and nothing else"),
        (file_of(one(dtype="F128")), "'F128'; known: U64"),
        (file_of(one(dtype=3)), "has dtype 3"),
        (file_of(one(shape=[2.0])), "has shape"),
        (file_of(one(shape=[True, 2])), "has shape"),
        (file_of(one(shape=[-2])), "has shape"),
        (file_of(one(shape=[2**63])), "has shape"),
        (file_of(one(shape=[2**62, 2**62, 0], data_offsets=[0, 0])), "8 for them"),
        (file_of(one(shape=[1] * 65)), "has shape"),
        (file_of(one(shape="2")), "has shape"),
        (file_of(one(shape=[3])), "takes 12 bytes; its offsets 0 and 8 leave 8"),
        (file_of(one(data_offsets=[8, 0])), "leave -8"),
        (file_of(one(data_offsets=[0])), "offsets"),
        (file_of(one(data_offsets=[8, 16]), 16), "a hole"),
        (file_of(one(), 9), "take 8 bytes, the file has 9"),
        (file_of(one(), 7), "take 8 bytes, the file has 7"),
        (file_of(one() | {"v": one()["w"]}), "overlaps"),
        (file_of(b'{"w":1,"w":2}'), "'w' occurs twice"),
        (file_of(one() | {"__metadata__": {"a": 1}}), "not a table of strings"),
        (file_of(one() | {"__metadata__": []}), "not a table of strings"),
        ((2**60).to_bytes(8, "little") + b"{}", "too few for a header of 1152921504606846976"),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    for read in (load_tensors, read_header):
        with pytest.raises(CheckpointError) as info:
            read(path)
        text = str(info.value)
        assert text.startswith(str(path)) and words in text and len(text) < 600


def test_a_large_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:  # a sparse file: nothing is on the disk
        file.write((1_000_000_000).to_bytes(8, "little"))
        file.truncate(1_000_000_100)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="at most 16000000"):
        load_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def mutated(good: bytes, header: int, rng: random.Random) -> bytes:
    "The file with one to four small changes, most of them in the header."
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(header if rng.random() < 0.8 else max(len(data), 1))
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randint(1, 30)]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3 if at < len(data):
                data[at : at + 1] = rng.choice(b'{}[]",:0123456789-eE. \\').to_bytes(1, "little")
            case 4:
                del data[at:]
            case 5:
                data[at:at] = data[at : at + rng.randint(1, 60)]
            case 6:
                data[:8] = rng.choice((len(data), 8, 2**31, 0)).to_bytes(8, "little")
    return bytes(data)


@pytest.mark.parametrize("times", [400, pytest.param(10_000, marks=long)])
@pytest.mark.parametrize("what", ["tensors", "state"])
def test_changed_files_give_tensors_or_our_error(tmp_path: Path, what: str, times: int) -> None:
    table = {"a": np.ones((128, 99), "f4"), "b": np.arange(100), "c": np.ones(7, "u1")}
    path, rng = tmp_path / "f.safetensors", random.Random(times)
    if what == "tensors":
        save_tensors(path, table, {"k": "v"})
    else:
        save_state(path, {"t": table, "numbers": [1, 2.5, (None, "x")]})
    read: Any = load_tensors if what == "tensors" else load_state
    good, accepted = path.read_bytes(), 0
    header = 8 + int.from_bytes(good[:8], "little")
    for k in range(times):
        data = mutated(good, header, rng)
        path.write_bytes(data)
        tracemalloc.start()
        try:
            read(path)
            accepted += data != good
        except CheckpointError as error:
            assert str(error).startswith(str(path)), (k, error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 4 * len(good), (k, peak / len(good))
    assert accepted < times / 4 if what == "tensors" else accepted == 0


def test_no_bit_of_a_state_can_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, {"w": np.arange(4, dtype="f4"), "lr": 0.1})
    good = path.read_bytes()
    for k in range(len(good)):
        path.write_bytes(good[:k] + bytes([good[k] ^ (1 << k % 8)]) + good[k + 1 :])
        with pytest.raises(CheckpointError):
            load_state(path)


def test_a_state_made_by_somebody_else(tmp_path: Path) -> None:
    "The checksum is right, and the tree is nonsense."
    trees = ("[1]", '{"tensor":"x"}', '{"a":1,"b":2}', '{"dict":[[[],1]]}', "nonsense", "{}")
    trees += ('{"dict":[1]}', "[" * 100_000, '{"float":[]}', '{"dict":[["k",{"what":1}]]}')
    for tree in trees:
        words = {"gradbook": "state 1", "tree": tree, "sha256": checkpoint.digest(tree, {})}
        save_tensors(tmp_path / "s", {}, words)
        with pytest.raises(CheckpointError):
            load_state(tmp_path / "s")
    save_tensors(tmp_path / "s", {"x": np.ones(1)})
    with pytest.raises(CheckpointError, match="not the state of a run"):
        load_state(tmp_path / "s")


# ------------------------------------------------------------- states

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), arrays
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(-5, 5)), inner, max_size=3),
    ),
    max_leaves=10,
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and same(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


@quick
@given(st.dictionaries(st.text(max_size=4), states, max_size=4))
def test_a_state_comes_back_exactly(tmp_path: Path, state: dict[str, Any]) -> None:
    save_state(tmp_path / "s", state)
    assert equal(load_state(tmp_path / "s"), state)


def test_names_of_tensors_in_a_state_do_not_collide() -> None:
    tensors: dict[str, Any] = {}
    tree = pack({"a": {"b": np.ones(1)}, "a.b": np.zeros(1), "s": np.float32(3)}, tensors)
    back = unpack(json.loads(json.dumps(tree)), tensors)
    assert back["a"]["b"] == 1 and back["a.b"] == 0 and type(back["s"]) is np.float32
    assert sorted(tensors) == ["a.b", "a.b+", "s"]


def test_a_state_with_something_else_in_it_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"\.a\.1 is a set"):
        pack({"a": [1, {2}]}, {})


# ------------------------------------------------------------- faults of the disk


@pytest.fixture
def old(tmp_path: Path) -> Path:
    "A good file that must survive."
    save_tensors(tmp_path / "w.safetensors", {"w": np.ones(3)})
    return tmp_path / "w.safetensors"


def intact(path: Path) -> bool:
    return load_tensors(path)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace", "sync_folder"])
def test_a_full_disk_at_any_moment(
    old: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place, name = {
        "write": (checkpoint, "raw"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "sync_folder": (checkpoint, "sync_folder"),
    }[moment]
    monkeypatch.setattr(place, name, full)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: can't be written: No space left"):
        save_tensors(old, {"w": np.zeros(3)})
    monkeypatch.undo()
    assert [p.name for p in old.parent.iterdir()] == [old.name]
    assert intact(old) or moment == "sync_folder"  # then the new file is in its place, whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    "A real file system of 64 kB."
    place = tmp_path / "disk"
    place.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting takes root")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "w.safetensors"
    save_tensors(path, {"w": np.ones(3)})
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_tensors(path, {"w": np.zeros(20_000)})
    assert intact(path) and len(list(small_disk.iterdir())) == 1


def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    path = small_disk / "w.safetensors"
    save_tensors(path, {"w": np.ones(3)})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        save_tensors(path, {"w": np.zeros(3)})
    assert intact(path)


def test_a_folder_that_is_read_only(old: Path) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    old.parent.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save_tensors(old, {"w": np.zeros(3)})
    finally:
        old.parent.chmod(0o700)
    assert intact(old)


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_limit_on_the_size_of_files(old: Path) -> None:
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from gradbook.train.checkpoint import save_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "save_tensors(sys.argv[1], {'w': np.zeros(9999)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(old)], capture_output=True, text=True, env=environment()
    )
    assert "CheckpointError" in done.stderr and "File too large" in done.stderr
    assert intact(old) and len(list(old.parent.iterdir())) == 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save_tensors(tmp_path / "no" / "w", {})
    for read in (load_tensors, read_header, load_state):
        with pytest.raises(CheckpointError, match=r"can't be read: .*No such file"):
            read(tmp_path / "no")


# ------------------------------------------------------------- the callback


def line(folder: Path, epochs: int = 4, lr: float = 0.1, **options: Any) -> Trainer:
    manual_seed(0)
    model = Linear(2, 1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2)).astype("f4")
    batches = DataLoader(ArrayDataset(x, x[:, :1]), batch_size=4)
    keep = Checkpoint(folder, **options)
    optimizer = AdamW(model.parameters(), lr=lr)
    trainer = Trainer(model, mse_loss, optimizer, callbacks=[keep], progress=False)
    trainer.fit(batches, batches, epochs=epochs)
    return trainer


def test_the_last_and_the_best_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter([0.5, 0.3, 0.4, math.nan, 0.6])
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: {"val_loss": next(marks)})
    line(tmp_path, epochs=5, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == [
        f"step-{n:08}.safetensors" for n in (6, 12, 15)
    ]
    state = load_state(checkpoints(tmp_path)[-1])["trainer"]
    assert state["callback 0 Checkpoint"] == {"best": 0.3, "best_step": 6}


def test_between_epochs_too(tmp_path: Path) -> None:
    line(tmp_path, epochs=2, every=2, keep=9)
    assert [int(p.stem[5:]) for p in checkpoints(tmp_path)] == [2, 3, 4, 6]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    line(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="holds a run already, at step 12"):
        line(tmp_path)
    with pytest.raises(CheckpointError, match=r"other settings: lr 0\.1 \(now 0\.2\)"):
        line(tmp_path, lr=0.2, resume=True)
    with pytest.raises(CheckpointError, match=r"colour 'red' \(now None\)"):
        line(tmp_path / "other", settings={"colour": "red"})
        line(tmp_path / "other", resume=True)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_finished_run_is_as_it_was_when_resumed(tmp_path: Path) -> None:
    a = line(tmp_path)
    b = line(tmp_path, resume=True)
    assert b.history == a.history and b.steps == 12
    assert all((p.numpy() == q.numpy()).all() for p, q in zip(a.parameters, b.parameters))
    assert line(tmp_path, epochs=6, resume=True).epoch == 6


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    a = line(tmp_path)
    last = checkpoints(tmp_path)[-1]
    good = last.read_bytes()
    last.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.warns(UserWarning, match=f"{last.name}.*damaged; going back to the one before"):
        b = line(tmp_path, resume=True)
    assert b.history == a.history and last.read_bytes() == good
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(UserWarning):
        assert newest(tmp_path) is None
    for resume in (True, False):
        found = pytest.raises(CheckpointError, match="no checkpoint here is whole: step-")
        with pytest.warns(UserWarning), found:
            line(tmp_path, resume=resume)
    assert all(path.read_bytes() == b"" for path in checkpoints(tmp_path))


def test_a_failed_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.raw, []

    def full(array: Any) -> Any:
        calls.append(1)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(array)

    monkeypatch.setattr(checkpoint, "raw", full)
    with pytest.raises(CheckpointError, match="No space left"):
        line(tmp_path, every=1)
    monkeypatch.undo()
    found = newest(tmp_path)
    assert found and found[1]["trainer"]["steps"] >= 1
    assert line(tmp_path, every=1, resume=True).history == line(tmp_path / "b", every=1).history


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000003.safetensors.77.part").write_bytes(b"half")
    line(tmp_path)
    assert not list(tmp_path.glob(".*"))


# ------------------------------------------------------------- killed

JOB = '''
import os, random, signal, sys
from pathlib import Path
import numpy as np
from gradbook.data.datasets import ArrayDataset
from gradbook.data.loader import DataLoader
from gradbook.nn.activations import ReLU
from gradbook.nn.init import manual_seed, next_key
from gradbook.nn.linear import Linear
from gradbook.nn.losses import cross_entropy
from gradbook.nn.module import Module, Sequential
from gradbook.optim.adam import AdamW
from gradbook.optim.schedule import WarmupCosine
from gradbook.tensor import random as draw
from gradbook.tensor.core import Tensor
from gradbook.train import checkpoint
from gradbook.train.callbacks import Callback, EarlyStopping
from gradbook.train.checkpoint import Checkpoint
from gradbook.train.log import RunLog
from gradbook.train.loop import Trainer
from gradbook.train.metrics import Accuracy

folder, moment, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0

def deadly(function):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

if moment == "raw":       # in the middle of writing tensors
    checkpoint.raw = deadly(checkpoint.raw)
if moment == "fsync":     # written, not yet on the disk
    os.fsync = deadly(os.fsync)
if moment == "replace":   # on the disk, not yet renamed
    Path.replace = deadly(Path.replace)
if moment == "unlink":    # renamed; old ones are being removed
    Path.unlink = deadly(Path.unlink)
if moment == "step":      # in the middle of an optimiser's step
    AdamW.update = deadly(AdamW.update)

class Noise(Module):
    "Hides numbers at random; how often it was called is part of the model."
    def __init__(self):
        self.calls = Tensor(np.zeros((), "int64"))
        self.key = draw.key(5)
    def forward(self, x):
        if not self.training:
            return x
        self.calls.assign_(self.calls.data + 1)
        keep = draw.bernoulli(draw.fold_in(self.key, int(self.calls)), 0.8, x.shape)
        return x * Tensor(keep / 0.8, dtype="float32")

class Draws(Callback):
    "Somebody who uses the default stream of random numbers during a run."
    def on_step_end(self, trainer):
        group = trainer.optimizer.param_groups[0]
        group["weight_decay"] = next_key().low / 2**33

rng = np.random.default_rng(0)
x = rng.normal(size=(90, 6)).astype("float32")
y = (x[:, 0] * x[:, 1] > 0).astype("int64") + (x[:, 2] > 0)
manual_seed(3)
model = Sequential(Linear(6, 16), Noise(), ReLU(), Linear(16, 3))
optimizer = AdamW(model.parameters(), lr=0.02)
keep = Checkpoint(folder, resume=True, every=2)
trainer = Trainer(
    model, cross_entropy, optimizer, metrics=[Accuracy()], accumulate=2, clip_norm=0.5,
    scheduler=WarmupCosine(optimizer, 4, 48), progress=False,
    callbacks=[EarlyStopping(patience=4), Draws(), RunLog(folder, every=1), keep],
)
train, held_back = ArrayDataset(x[:70], y[:70]), ArrayDataset(x[70:], y[70:])
trainer.fit(DataLoader(train, 8, shuffle=True, seed=1), DataLoader(held_back, 8, shuffle=True), 8)
checkpoint.save_tensors(Path(folder) / "final", model.state_dict())
'''
MOMENTS = {"raw": 400, "fsync": 60, "replace": 30, "unlink": 50, "step": 150, "time": 0}


def environment() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT)}


def run(job: Path, folder: Path, moment: str = "none", calls: int = 0, after: float = 0.0) -> int:
    "Run the job, or kill it: at a call of something, or after some time in training."
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(job), str(folder), moment, str(calls)]
    process = subprocess.Popen(command, env=environment())
    if moment == "time":
        log, size = folder / "log.jsonl", -1
        size = log.stat().st_size if log.exists() else 0
        while process.poll() is None and not (log.exists() and log.stat().st_size > size):
            time.sleep(0.002)  # until training has begun
        time.sleep(after)
        process.kill()
    return process.wait()


def loadable(folder: Path) -> bool:
    "Whether there is no checkpoint yet, or the newest one is whole."
    found = checkpoints(folder)
    return not found or bool(load_state(found[-1]))


def fingerprint(folder: Path) -> str:
    files = (folder / "final", checkpoints(folder)[-1])
    return " ".join(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The program, and beside it a run that nobody disturbed."
    path = tmp_path_factory.mktemp("killed") / "job.py"
    path.write_text(JOB, encoding="utf-8")
    assert run(path, path.parent / "peaceful") == 0
    return path


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("chain", [0, *(pytest.param(k, marks=long) for k in range(1, 5))])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(job: Path, chain: int) -> None:
    rng, killed, fresh = random.Random(chain), 0, (job.parent / f"r{chain}-{k}" for k in count())
    folder = next(fresh)
    while killed < (5 if chain else 4):
        moment = rng.choice(list(MOMENTS))
        calls = rng.randint(1, max(MOMENTS[moment] // 4, 1))
        status = run(job, folder, moment, calls, rng.random() * 0.1)
        assert status in (0, -signal.SIGKILL) and loadable(folder)
        killed += status == -signal.SIGKILL
        if status == 0:  # it got through: take a new one
            assert fingerprint(folder) == fingerprint(job.parent / "peaceful")
            folder = next(fresh)
    assert run(job, folder) == 0
    assert fingerprint(folder) == fingerprint(job.parent / "peaceful")
    assert not list(folder.glob(".*.part"))


def test_the_first_checkpoint_is_being_written(job: Path) -> None:
    "Killed before there is anything to go on from: the run begins anew."
    folder = job.parent / "early"
    assert run(job, folder, "raw", 3) == -signal.SIGKILL and checkpoints(folder) == []
    assert run(job, folder) == 0
    assert fingerprint(folder) == fingerprint(job.parent / "peaceful")
