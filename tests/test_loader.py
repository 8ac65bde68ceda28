"The loader: the same order on any number of workers, no way to hang, nothing left behind."

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.data.datasets import ArrayDataset, ImageFolder, Subset, mnist
from gradbook.data.loader import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    WorkerError,
    collate,
)
from gradbook.data.transforms import (
    ChannelsFirst,
    Compose,
    Cutout,
    Normalise,
    RandomCrop,
    RandomFlip,
    RandomRotate,
    RandomShift,
    Transform,
)
from gradbook.tensor import random
from gradbook.tensor.core import Tensor

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    "No test leaves a process, a file descriptor or a piece of shared memory."
    before = open_files()
    yield
    if multiprocessing.active_children() or len(open_files()) > len(before):
        gc.collect()
    assert multiprocessing.active_children() == []
    after = open_files()
    assert len(after) <= len(before), (before, after)


def open_files() -> list[str]:
    "What this process has open: files, pipes and mapped memory."
    links = Path("/proc/self/fd")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    mapped = [line for line in maps.read_text().splitlines() if " rw-s " in line]
    return [str(p) for p in links.iterdir()] + mapped


def numbers(n: int) -> ArrayDataset:
    return ArrayDataset(np.arange(n), np.arange(n, dtype="float32") ** 2)


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def seen(loader: DataLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


class Each:
    "A data set without batches, which does something at one example."

    def __init__(self, n: int, at: int = -1, act: Callable[[], object] = int) -> None:
        self.n, self.at, self.act = n, at, act

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        if i == self.at:
            self.act()
        return np.full((3, 2), i, "float32"), i


# ------------------------------------------------------------- order


def test_batches_are_tuples_of_tensors_and_cover_everything() -> None:
    loader = DataLoader(numbers(10), batch_size=4)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert all(isinstance(x, Tensor) for batch in batches for x in batch)
    assert [x.dtype.name for x in batches[0]] == ["int64", "float32"]
    assert flat(seen(DataLoader(numbers(10), 4))) == list(range(10))
    assert [len(b) for b in seen(DataLoader(numbers(10), 4, drop_last=True))] == [4, 4]
    assert len(DataLoader(numbers(10), 4, drop_last=True)) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation(n: int, size: int, drop: bool, seed: int) -> None:
    loader = DataLoader(numbers(n), size, shuffle=True, drop_last=drop, seed=seed)
    for _ in range(2):
        batches = seen(loader)
        assert len(batches) == len(loader) and all(len(b) == size for b in batches[:-1])
        got = flat(batches)
        assert len(set(got)) == len(got) == (n - n % size if drop else n)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    one, two = (DataLoader(numbers(50), 7, shuffle=True, seed=3) for _ in range(2))
    first = [seen(one) for _ in range(3)]
    np.random.default_rng(0).random()
    two.set_epoch(2)
    assert seen(two) == first[2] and first[0] != first[1]
    assert seen(DataLoader(numbers(50), 7, shuffle=True, seed=4)) != first[0]


def test_the_order_is_the_same_everywhere() -> None:
    "These numbers are part of the interface: a seed means the same on every machine."
    assert RandomSampler(range(8), seed=0).order(0).tolist() == [0, 1, 5, 3, 6, 2, 7, 4]
    assert RandomSampler(range(8), seed=1).order(5).tolist() == [6, 2, 5, 4, 7, 0, 3, 1]


def test_a_loop_that_is_left_early_still_ends_its_epoch() -> None:
    loader = DataLoader(numbers(100), 10, shuffle=True)
    first = [next(iter(loader))[0].tolist() for _ in range(3)]
    assert len({tuple(batch) for batch in first}) == 3
    loader.set_epoch(1)
    assert next(iter(loader))[0].tolist() == first[1]


def test_samplers() -> None:
    assert SequentialSampler(range(5)).order(3).tolist() == [0, 1, 2, 3, 4]
    weighted = WeightedRandomSampler([0, 1, 3, 0], 4000, seed=1)
    counts = np.bincount(weighted.order(0), minlength=4)
    assert counts[0] == counts[3] == 0 and 2800 < counts[2] < 3200
    assert (weighted.order(0) == weighted.order(0)).all()
    assert (weighted.order(0) != weighted.order(1)).any()
    once = WeightedRandomSampler([1.0, 1e6, 1.0], 3, replacement=False)
    assert sorted(once.order(0)) == [0, 1, 2]
    loader = DataLoader(numbers(4), 100, sampler=weighted)
    assert len(loader) == 40 and set(flat(seen(loader))) == {1, 2}


def test_samplers_of_other_people() -> None:
    assert seen(DataLoader(numbers(9), 2, sampler=[8, 0, 3])) == [[8, 0], [3]]
    loader = DataLoader(numbers(9), batch_sampler=[[1], [2, 3], [4, 5, 6]])
    assert seen(loader) == [[1], [2, 3], [4, 5, 6]] and len(loader) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"prefetch_factor": 0}, "prefetch_factor 0"),
        ({"shuffle": True, "sampler": [1]}, "want to say the order"),
        ({"shuffle": True, "batch_sampler": [[1]]}, "already says"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataLoader(numbers(4), **options)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1, np.nan], [[1, 2]]])
def test_weights_that_make_no_sense(weights: Any) -> None:
    with pytest.raises(ValueError, match="WeightedRandomSampler"):
        WeightedRandomSampler(weights, 3)
    with pytest.raises(ValueError, match="no 3 to draw"):
        WeightedRandomSampler([1, 0, 1], 3, replacement=False)


def test_the_batches_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.utils.data.DataLoader(Each(23), batch_size=5)
    for a, b in zip(theirs, DataLoader(Each(23), batch_size=5), strict=True):
        assert all((x.numpy() == y.numpy()).all() for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------- examples


def test_collate() -> None:
    out = collate([(np.ones(2), 1, 2.5, "a"), (np.zeros(2), 0, 1.5, "b")])
    assert out[0].shape == (2, 2) and out[1].dtype == "int64" and out[2].dtype == "float32"
    assert out[3] == ["a", "b"]
    assert collate([Tensor([1.0, 2.0])] * 3).shape == (3, 2)
    with pytest.raises(ValueError, match=r"shapes .*: give a collate_fn"):
        collate([np.ones(2), np.ones(3)])
    with pytest.raises(ValueError, match="fields"):
        collate([(1, 2), (1,)])


def test_collate_lists_and_dictionaries() -> None:
    x, y = collate([[np.ones(2), 1], [np.zeros(2), 0]])
    assert x.shape == (2, 2) and y.tolist() == [1, 0]
    out = collate([{"x": np.ones(2), "pair": (1, "a")}, {"pair": (2, "b"), "x": np.zeros(2)}])
    assert out["x"].tolist() == [[1, 1], [0, 0]] and out["pair"][1] == ["a", "b"]
    with pytest.raises(ValueError, match="fields: give a collate_fn"):
        collate([[1, 2], [1]])
    for other in ({"y": 1}, {"x": 1, "y": 2}, {}):
        with pytest.raises(ValueError, match=r"keys \['x'\]"):
            collate([{"x": 1}, other])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_dictionaries(workers: int) -> None:
    loader = DataLoader([{"x": np.full(3, k), "y": {"z": k}} for k in range(7)], 2,
                        num_workers=workers)  # fmt: skip
    batches = list(loader)
    assert all(isinstance(batch["x"], Tensor) for batch in batches)
    assert [batch["y"]["z"].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    assert batches[3]["x"].tolist() == [[6, 6, 6]]


def test_one_by_one_and_many_at_a_time_agree() -> None:
    fast, slow = numbers(20), numbers(20)
    slow.batches = False  # type: ignore[misc]
    for a, b in zip(DataLoader(fast, 6, shuffle=True), DataLoader(slow, 6, shuffle=True)):
        assert all((x.data == y.data).all() and x.dtype == y.dtype for x, y in zip(a, b))


def test_subsets_and_own_collate() -> None:
    assert seen(DataLoader(Subset(numbers(10), [7, 3, 5]), 2)) == [[7, 3], [5]]
    assert list(DataLoader(Each(4), 2, collate_fn=len)) == [2, 2]


def test_data_sets_whose_examples_are_no_tuples() -> None:
    class Squares:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, i: int) -> float:
            return float(i * i)

    assert [batch.tolist() for batch in DataLoader(Squares(), 3)] == [[0, 1, 4], [9, 16]]


# ------------------------------------------------------------- position


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_it_goes_on_in_the_middle_of_an_epoch(stop: int, workers: int) -> None:
    options = {"batch_size": 3, "shuffle": True, "num_workers": workers}
    whole = DataLoader(numbers(20), **options)
    expected = [seen(whole) for _ in range(3)]
    running = DataLoader(numbers(20), **options)
    list(running)
    state = running.state_dict()
    for number, _ in enumerate(running, start=1):
        if number > stop:
            break
        state = running.state_dict()
    assert (state["epoch"], state["batch"]) == (1, stop)
    later = DataLoader(numbers(20), **options)
    later.load_state_dict(state)
    later.set_epoch(1)  # what a training loop does at the head of each epoch
    assert seen(later) == expected[1][stop:]
    assert seen(later) == expected[2]


def test_a_state_is_made_of_plain_numbers() -> None:
    state = DataLoader(numbers(20), 3, seed=5).state_dict()
    order = state.pop("order")
    assert state == {"epoch": 0, "batch": 0, "seed": 5, "examples": 20, "batches": 7}
    assert type(order) is int


@pytest.mark.parametrize("name", ["seed", "examples", "batches"])
def test_the_state_of_another_loader_is_refused(name: str) -> None:
    loader = DataLoader(numbers(20), 3)
    state = {**loader.state_dict(), "epoch": 4, name: 99}
    with pytest.raises(ValueError, match=f"{name} was 99"):
        loader.load_state_dict(state)
    del state[name]
    with pytest.raises(ValueError, match=f"no {name}"):
        loader.load_state_dict(state)
    assert loader.state_dict()["epoch"] == 0


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"batch_size": 4, "shuffle": True}, {"batch_size": 4}),
        ({"batch_size": 34}, {"batch_size": 40}),
        ({"batch_size": 40, "shuffle": True}, {"batch_size": 34, "shuffle": True}),
        (
            {"sampler": WeightedRandomSampler(np.ones(100), 100, seed=1)},
            {"sampler": WeightedRandomSampler(np.ones(100), 100, seed=2)},
        ),
        ({"batch_sampler": [[1, 2], [3]]}, {"batch_sampler": [[1], [2, 3]]}),
        ({"sampler": [1, 2]}, {"sampler": [2, 1]}),
        ({"sampler": [1, 2]}, {"sampler": {1, 2}}),
    ],
)
def test_a_position_in_another_order_is_refused(epoch: int, theirs: Any, ours: Any) -> None:
    running = DataLoader(numbers(100), **theirs)
    running.set_epoch(epoch)
    next(iter(running))
    state = running.state_dict()
    other = DataLoader(numbers(100), **ours)
    with pytest.raises(ValueError, match=f"order of epoch {epoch} was another one"):
        other.load_state_dict(state)
    assert (other.epoch, other.batch) == (0, 0)
    DataLoader(numbers(100), **theirs).load_state_dict(state)


def test_a_sampler_that_mixes_anew_is_not_compared() -> None:
    class Anew:
        def __len__(self) -> int:
            return 20

        def __iter__(self) -> Iterator[int]:
            return iter(np.random.permutation(20).tolist())

    state = DataLoader(numbers(20), 3, sampler=Anew()).state_dict()
    DataLoader(numbers(20), 3, sampler=Anew()).load_state_dict(state)


@pytest.mark.parametrize("batch", [-1, 8, 1.5, "2"])
def test_a_position_that_does_not_exist_is_refused(batch: Any) -> None:
    loader = DataLoader(numbers(20), 3)
    with pytest.raises(ValueError, match="position"):
        loader.load_state_dict({**loader.state_dict(), "batch": batch})


def test_two_loops_over_one_loader() -> None:
    loader = DataLoader(numbers(6), 2, shuffle=True)
    pairs = [(a[0].tolist(), b[0].tolist()) for a, b in zip(loader, loader)]
    alone = DataLoader(numbers(6), 2, shuffle=True)
    assert [list(column) for column in zip(*pairs)] == [seen(alone), seen(alone)]


# ------------------------------------------------------------- workers


@pytest.mark.parametrize("dataset", [numbers(101), Each(101)], ids=["arrays", "examples"])
def test_workers_change_nothing(dataset: Any) -> None:
    def epochs(workers: int, ahead: int = 2) -> list[Any]:
        noise = lambda batch, key: (*batch, random.normal(key, (3, 2)))  # noqa: E731
        loader = DataLoader(
            *(dataset, 8, True), num_workers=workers, prefetch_factor=ahead, transform=noise
        )
        return [[x.data.tobytes() for x in batch] for _ in range(2) for batch in loader]

    alone = epochs(0)
    assert all(epochs(workers) == alone for workers in (1, 2, 5))
    assert epochs(2, 1) == epochs(3, 20) == alone


def test_workers_that_begin_anew(tmp_path: Path) -> None:
    "As on macOS and Windows. (In a script, since new processes read the program again.)"
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from gradbook.data.datasets import ArrayDataset\n"
        "from gradbook.data.loader import DataLoader\n"
        "if __name__ == '__main__':\n"
        "    few = ArrayDataset(np.arange(50.0))\n"
        "    def run(**o): return [b[0].tolist() for b in DataLoader(few, 8, True, **o)]\n"
        "    assert run(num_workers=2, multiprocessing_context='spawn') == run()\n"
        "    try:\n"
        "        run(num_workers=2, multiprocessing_context='spawn', transform=lambda b, k: b)\n"
        "    except TypeError as error:\n"
        "        print(error)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "not for other processes" in done.stdout


def test_batches_of_growing_size_and_odd_things() -> None:
    def odd(examples: list[Any]) -> Any:
        n = int(examples[0][1])
        return np.zeros((n, 50)), "words", np.array(["text"]), np.empty((0, 3)), np.float64(n)

    def run(workers: int) -> list[Any]:
        loader = DataLoader(Each(60), 5, collate_fn=odd, num_workers=workers)
        return [
            (a.shape, b, c.tolist(), d.shape, float(e))
            for _ in range(2)
            for a, b, c, d, e in loader
        ]

    assert run(2) == run(0)


def failing() -> None:
    raise OSError("pixel 7 is missing")


@pytest.mark.parametrize("at", [0, 42])
def test_an_error_in_a_worker_comes_with_its_traceback(at: int) -> None:
    loader = DataLoader(Each(100, at, failing), 10, num_workers=2)
    with pytest.raises(
        WorkerError, match=f"(?s)batch {at // 10}, .*in failing.*pixel 7 is missing"
    ):
        list(loader)


def crash() -> None:
    faulthandler.disable()  # pytest's, which would print a page
    os.kill(os.getpid(), signal.SIGSEGV)


@posix
@pytest.mark.parametrize("at", [0, 42, 99])
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (crash, "SIGSEGV"),
        (sys.exit, "SystemExit"),
    ],
    ids=["exit", "kill", "crash", "sys.exit"],
)
def test_a_worker_that_dies_is_missed_at_once(at: int, act: Any, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match=f"(?s)batch {at // 10}.*{words}"):
        list(DataLoader(Each(100, at, act), 10, num_workers=3))
    assert time.monotonic() - start < 5


def leave_a_child() -> None:
    if not os.fork():
        time.sleep(8)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@posix
def test_a_dead_worker_is_missed_though_its_child_holds_the_pipe() -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(DataLoader(Each(100, 42, leave_a_child), 10, num_workers=2))
    assert time.monotonic() - start < 6


def test_batches_before_the_failure_still_come() -> None:
    got = []
    with pytest.raises(WorkerError):
        for _, labels in DataLoader(Each(100, 55, failing), 10, num_workers=3):
            got += labels.tolist()
    assert got == list(range(50))


def test_an_error_without_workers_is_the_error_itself() -> None:
    with pytest.raises(OSError, match="pixel 7"):
        list(DataLoader(Each(100, 42, failing), 10))


def test_leaving_early_ends_the_workers() -> None:
    loader = DataLoader(Each(10_000), 10, num_workers=3)
    for number, _ in enumerate(loader):
        if number == 5:
            break
    gc.collect()
    assert multiprocessing.active_children() == []


@posix
def test_a_worker_that_is_stuck_is_ended() -> None:
    "A worker that sleeps for an hour, deaf to a polite request, is gone within seconds."

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)

    start = time.monotonic()
    batches = iter(DataLoader(Each(100, 35, deaf), 10, num_workers=2))
    next(batches), next(batches)
    time.sleep(0.2)
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 6


def script(body: str, tmp_path: Path) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job with & ignores it
        "import numpy as np\n"
        "from gradbook.data.loader import DataLoader\n"
        "class Slow:\n"
        "    def __len__(self): return 1000\n"
        "    def __getitem__(self, i): time.sleep(0.01); return np.float32(i)\n" + body
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, path], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


LOOP = (
    "for k, b in enumerate(DataLoader(Slow(), 4, num_workers=2)):\n"
    "    if k == 3: print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
)


def gone(pid: int) -> bool:
    "Whether a process has ended (one that waits for a parent to notice counts)."
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_program_is_stopped_its_workers_end(number: Any, tmp_path: Path) -> None:
    running = script(LOOP, tmp_path)
    assert running.stdout is not None
    workers = [int(word) for word in running.stdout.readline().split()]
    assert len(workers) == 2 and not any(map(gone, workers))
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # Ctrl-C in a terminal reaches all of them
    else:
        os.kill(running.pid, number)
    _, errors = running.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, workers))
    if number == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1 and "leaked" not in errors


def test_nothing_is_said_at_exit_with_a_loop_half_way(tmp_path: Path) -> None:
    body = "it = iter(DataLoader(Slow(), 4, num_workers=2)); next(it); next(it); next(it)\n"
    running = script(body, tmp_path)
    out, errors = running.communicate(timeout=20)
    assert (running.returncode, out, errors) == (0, "", "")


def test_images_of_a_folder_by_workers(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(2)
    for k in range(12):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        image = image_module.fromarray(rng.integers(0, 256, (5, 4, 3)).astype("uint8"))
        image.save(tmp_path / "ab"[k % 2] / f"{k:02}.png")
    dataset = ImageFolder(tmp_path)
    runs = [[x.data.tobytes() for x, y in DataLoader(dataset, 5, num_workers=n)] for n in (0, 2)]
    assert runs[0] == runs[1]
    (tmp_path / "b" / "03.png").write_bytes(b"broken")
    with pytest.raises(WorkerError, match=r"03\.png: it (ends|does not begin)"):
        list(DataLoader(dataset, 5, num_workers=2))


def test_half_a_million_images_a_second() -> None:
    loader = DataLoader(mnist("train", subset=True), batch_size=128, shuffle=True)
    rates = []
    for _ in range(20):
        start = time.perf_counter()
        count = sum(len(labels.data) for _, labels in loader)
        rates.append(count / (time.perf_counter() - start))
    assert sorted(rates)[10] > 500_000


# ------------------------------------------------------------- transforms

KEY = random.key(11)
IMAGES = np.random.default_rng(3).integers(0, 256, (20, 9, 12)).astype("uint8")
COLOUR = np.random.default_rng(4).integers(0, 256, (20, 9, 12, 3)).astype("uint8")


@pytest.mark.parametrize("x", [IMAGES, COLOUR, IMAGES.astype("float32")])
@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop((7, 8)),
        RandomCrop(6, 2),
        RandomShift(3),
        RandomFlip(),
        RandomRotate(40),
        Cutout(4),
    ],
)
def test_every_transform(transform: Transform, x: np.ndarray) -> None:
    before = x.copy()
    out = transform(x, KEY)
    assert (x == before).all() and out.dtype == x.dtype and len(out) == len(x)
    assert (out == transform(x, KEY)).all()
    assert (out != transform(x, random.key(12))).any()
    images, labels = transform((x, np.arange(20)), KEY)
    assert (images == out).all() and labels.tolist() == list(range(20))
    if x.ndim == 4:  # all channels have the same fate
        alone = transform(np.ascontiguousarray(x[..., 1]), KEY)
        assert (out[..., 1] == alone).all()


def test_crops_are_windows_and_shifts_keep_what_stays() -> None:
    for image, cut in zip(IMAGES, RandomCrop((7, 8))(IMAGES, KEY)):
        windows = [image[a : a + 7, b : b + 8] for a in range(3) for b in range(5)]
        assert any((cut == window).all() for window in windows)
    places = set()
    for image, moved in zip(IMAGES, RandomShift(2)(IMAGES, KEY)):
        wide = np.pad(image, 2)
        hits = [
            (a, b)
            for a in range(5)
            for b in range(5)
            if (moved == wide[a : a + 9, b : b + 12]).all()
        ]
        assert len(hits) == 1
        places |= set(hits)
    assert len(places) > 10
    with pytest.raises(ValueError, match=r"no \(10, 10\) in images of \(9, 12\)"):
        RandomCrop(10)(IMAGES, KEY)


def test_flips_and_holes() -> None:
    flipped = RandomFlip(0.5)(IMAGES, KEY)
    kinds = [(a == b[:, ::-1]).all() for a, b in zip(flipped, IMAGES)]
    assert 3 < sum(kinds) < 17
    assert all(k or (a == b).all() for k, a, b in zip(kinds, flipped, IMAGES))
    ones = np.ones((500, 9, 12), "uint8")
    holes = 1 - Cutout(4)(ones, KEY)
    sizes = holes.sum((1, 2))
    assert sizes.max() == 16 and sizes.min() >= 4 and len(set(sizes)) > 3
    assert holes.any(0).all()  # the hole can be anywhere


def test_rotation_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = IMAGES.astype("float32")
    turn = np.asarray(random.uniform(KEY, (20, 1, 1), -1, 1, dtype="float32")).ravel()
    angle = turn * np.float32(np.radians(40))
    grids = []
    for a in angle:  # the map from an image's own pixels to where they come from, on [-1, 1]
        rows, columns = np.meshgrid(np.arange(9) - 4.0, np.arange(12) - 5.5, indexing="ij")
        down, right = np.cos(a) * rows + np.sin(a) * columns, np.cos(a) * columns - np.sin(a) * rows
        grids.append(np.stack([right / 5.5, down / 4], -1))
    theirs = torch.nn.functional.grid_sample(
        torch.tensor(x[:, None]), torch.tensor(np.array(grids, "float32")), align_corners=True
    )
    assert np.abs(RandomRotate(40)(x, KEY) - theirs[:, 0].numpy()).max() < 0.02


def test_normalise() -> None:
    for x in (IMAGES, COLOUR):
        out = Normalise.of(x)(x)
        axes = tuple(range(3))
        assert out.dtype == "float32" and abs(out.mean(axes)).max() < 1e-5
        assert abs(out.std(axes) - 1).max() < 1e-4
    by_hand = (COLOUR / 255 - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3]
    assert np.abs(Normalise([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])(COLOUR) - by_hand).max() < 1e-5
    floats = Normalise(0.5, 0.25)(IMAGES / np.float32(255))
    assert np.abs(floats - (IMAGES / 255 - 0.5) / 0.25).max() < 1e-5
    with pytest.raises(ValueError, match="must be positive"):
        Normalise(0, 0)


def test_channels_first_and_composition() -> None:
    assert ChannelsFirst()(IMAGES).shape == (20, 1, 9, 12)
    assert (ChannelsFirst()(COLOUR)[:, 2] == COLOUR[..., 2]).all()
    both = Compose(RandomShift(2), RandomShift(2))(IMAGES, KEY)
    one, two = random.split(KEY)
    assert (both == RandomShift(2)(RandomShift(2)(IMAGES, one), two)).all()
    assert (both == Compose([RandomShift(2), RandomShift(2)])(IMAGES, KEY)).all()
