"Binomial checkpointing: no step is repeated that need not be, and the gradient is the same."

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.roads import taped
from gradbook.roads.checkpointing import evolve, fewest_steps, schedule
from gradbook.roads.problems import lax_wendroff
from gradbook.roads.taped import record


@functools.cache
def least(n: int, s: int) -> int:
    "By trying every place for the first checkpoint."
    if n == 1 or s == 1:
        return n * (n - 1) // 2
    return min(m + least(n - m, s - 1) + least(m, s) for m in range(1, n))


@pytest.mark.parametrize("checkpoints", range(1, 10))
def test_no_schedule_repeats_fewer_steps(checkpoints: int) -> None:
    for n in range(1, 61):
        repeated = replayed(n, checkpoints)
        assert repeated == least(n, checkpoints) == fewest_steps(n, checkpoints)


def replayed(n: int, checkpoints: int) -> int:
    "Follow a schedule, check every action, and count the repeated steps."
    at, stored, backs, repeated = 0, set(), [], 0
    for kind, k, to in schedule(n, checkpoints):
        if kind == "store":
            assert at == k
            stored.add(k)
            assert len(stored) <= checkpoints
        elif kind == "restore":
            stored = {j for j in stored if j <= k}
            assert k in stored
            at = k
        elif kind == "advance":
            assert at == k < to < n
            at, repeated = to, repeated + to - k
        else:
            assert at == k
            backs.append(k)
    assert backs == list(reversed(range(n)))
    return repeated


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 200))
def test_long_schedules(n: int, checkpoints: int) -> None:
    if checkpoints == 1:
        n = min(n, 100)
    assert replayed(n, checkpoints) == fewest_steps(n, checkpoints)


@pytest.mark.parametrize("checkpoints", [1, 3, 10, 100])
def test_the_gradient_does_not_depend_on_the_dial(checkpoints: int) -> None:
    one = lax_wendroff(1)
    step = record(one, one.x)
    found = evolve(step, one.x, 40, np.ones(100), checkpoints=checkpoints)
    whole = lax_wendroff(40)
    f = record(whole, whole.x)
    y, slopes = f.value_and_gradient(whole.x)
    assert np.array_equal(found.state, y)
    assert np.abs(found.slopes - slopes).max() < 1e-14
    assert found.repeated == fewest_steps(40, checkpoints) and found.stored <= checkpoints


def test_parameters_take_part_in_every_step() -> None:
    def move(v: Any) -> Any:
        return [v[0] * taped.exp(-v[1])]

    found = evolve(record(move, [1.0, 0.1]), [2.0], 7, [1.0], [0.1], checkpoints=2)
    assert np.isclose(found.state[0], 2 * np.exp(-0.7))
    assert np.isclose(found.slopes[0], np.exp(-0.7))
    assert np.isclose(found.parameter_slopes[0], -7 * 2 * np.exp(-0.7))


def test_wrong_dials_and_steps() -> None:
    step = record(lambda v: [v[0]], [1.0])
    for n, checkpoints in ((0, 1), (3, 0), (-1, 2)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            evolve(step, [1.0], n, [1.0], checkpoints=checkpoints)
    with pytest.raises(ValueError, match="2 numbers and 0 parameters has 1 inputs"):
        evolve(step, [1.0, 2.0], 3, [1.0])
