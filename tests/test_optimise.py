"Shorter tapes: the same bits with fewer operations; statements; problems that others pose."

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.course import ch30b
from gradbook.roads import native, taped
from gradbook.roads.operations import CODES
from gradbook.roads.optimise import optimise
from gradbook.roads.problems import Maths, det_minors, lax_wendroff, ode, toon
from gradbook.roads.statements import (
    Cells,
    Term,
    back,
    record_statements,
    statement_gradient,
)
from gradbook.roads.taped import Atomic, Table, if_lt, record
from gradbook.scalar.tape import BranchChanged


def left(f: Any, x: Any, **options: Any) -> int:
    short, saved = optimise(record(f, x), **options)
    assert saved.left == len(short.tape.codes)
    parts = (saved.folded, saved.repeated, saved.dead, saved.paired, saved.left)
    assert sum(parts) == saved.recorded and min(parts) >= 0
    return saved.left


@pytest.mark.parametrize(
    ("f", "operations"),
    [
        (lambda x: x[0], 0),
        (lambda x: 3.0, 0),
        (lambda x: x[0] * 1.0 + 0.0, 0),
        (lambda x: 0.5 * -(x[0] * -1.0), 1),
        (lambda x: 0.0 + 1.0 * x[0] / 1.0 - 0.0, 0),
        (lambda x: -1.0 * x[0], 1),
        (lambda x: x[0] + -x[1], 1),
        (lambda x: -x[0] + x[1], 1),
        (lambda x: x[0] - -x[1], 1),
        (lambda x: x[0] * x[1] + x[1] * x[0], 2),
        (lambda x: [x[0] * x[1], x[1] * x[0]], 1),
        (lambda x: [x[0] - x[1], x[1] - x[0]], 2),
        (lambda x: x[0] * x[1] + x[0], 1),
        (lambda x: x[0] * (x[0] * 2.0).exp(), 3),
        (lambda x: taped.sin(x[0]) * taped.sin(x[0]), 2),
    ],
)
def test_what_is_left_of_small_tapes(f: Any, operations: int) -> None:
    assert left(f, [1.5, 2.5]) == operations


def test_zeros_have_signs() -> None:
    f = record(lambda x: (x[0] * 0.0) / (x[0] * -0.0 + x[1]), [1.0, 2.0])
    short, _ = optimise(f)
    assert short([3.0, 4.0]) == 0.0
    kept = record(lambda x: [x[0] * 0.0, x[0] * -0.0], [1.0])
    assert np.signbit(optimise(kept)[0]([2.0])).tolist() == [False, True]


def test_guards_and_places_survive() -> None:
    def f(x: Any) -> Any:
        unused = x[0] * x[0]
        unused = unused + 1
        if x[1] * 2 > x[0]:
            return x[0] * 3.0
        return x[1]

    short, saved = optimise(record(f, [1.0, 2.0]))
    assert saved.dead == 2
    with pytest.raises(BranchChanged, match=r"x\[1\] \* 2 > x\[0\]"):
        short([5.0, 1.0])


def test_calls_tables_and_dynamic_parameters_survive() -> None:
    twice = Atomic("twice", lambda x: np.array([2 * x[0], x[1]]), lambda x, y, g: [2 * g[0], g[1]])

    def f(x: Any, p: Any) -> Any:
        a, b = twice([x[0] * 1.0, x[1] + 0.0])
        table = Table([a, x[0] * p[0], x[1]])
        return [table[x[2]] + table[x[2]], if_lt(b, p[0] * p[0], a, b), a * a]

    long = record(f, [1.0, 2.0, 0.0], [3.0])
    short, saved = optimise(long)
    assert saved.left < saved.recorded and short.tape.lasting == 1
    for place in (0.0, 1.0, 2.0):
        at = [1.5, 2.5, place]
        for p in ([1.0], [2.0]):
            long.new_dynamic(p)
            short.new_dynamic(p)
            assert short(at).tolist() == long(at).tolist()
            assert short.jacobian(at).tolist() == long.jacobian(at).tolist()


@pytest.mark.parametrize("problem", [det_minors(5), ode(4, 5), lax_wendroff(10), toon(3)])
def test_the_same_bits(problem: Any) -> None:
    long = record(problem, problem.x)
    for pairs in (True, False):
        short, _ = optimise(long, pairs)
        for x in (problem.x, problem.x * 1.01):
            assert np.array_equal(short(x), long(x))
        assert optimise(short, pairs)[1].left <= len(short.tape.codes)


def test_no_more_operations_than_cppad_leaves() -> None:
    "Its counts after `optimize()`, of the same programs; see tests/taped_peers.py."
    assert left(det_minors(7), det_minors(7).x) < 2_500  # 17,919 for n = 8
    assert left(ode(), ode().x) < 12_942
    assert left(lax_wendroff(200), lax_wendroff().x) < 98_400  # 984,113 for 2,000 steps


# statements


def test_statements_and_operations_agree() -> None:
    for problem in (lax_wendroff(5), toon(4), ode(3, 4)):
        tape = record_statements(problem, problem.x)
        slopes = record(problem, problem.x).gradient(problem.x)
        assert np.abs(statement_gradient(tape) - slopes).max() < 1e-12 * np.abs(slopes).max()
        weights = np.arange(1.0, len(tape.outputs) + 1)
        f = record(problem, problem.x)
        f.point(problem.x)
        expected = f.reverse(weights)
        found = statement_gradient(tape, weights)
        assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


def test_statements_in_python_and_in_c() -> None:
    problem = lax_wendroff(3)
    tape = record_statements(problem, problem.x)
    adjoints = np.zeros(tape.inputs + len(tape))
    np.add.at(adjoints, tape.outputs, 1.0)
    back(tape, adjoints)
    assert np.array_equal(adjoints[: tape.inputs], statement_gradient(tape)) or (
        not native.available()
    )


FUNCTIONS = ["exp", "log", "sin", "cos", "sqrt"]


STEPS: list[Any] = [
    lambda u, v, m: u * 0.5 + v + 1.0,
    lambda u, v, m: 2.0 - u + (v - 0.5) - v,
    lambda u, v, m: 0.5 * u * v,
    lambda u, v, m: (1.0 / v + u / 2.0) / (v * v + 1.0),
    lambda u, v, m: m.exp(u * -0.1),
    lambda u, v, m: m.log(u * u + 1.5),
    lambda u, v, m: -u + 4.0,
]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.booleans()), max_size=12),
    st.floats(0.5, 2.0),
    st.floats(0.5, 2.0),
)
def test_every_operation_of_a_term(steps: Any, a: float, b: float) -> None:
    def f(x: Any, m: Any = Maths) -> Any:
        cells = m.array([x[0], x[1]])
        for step, close in steps:
            new = step(cells[0], cells[1], m)
            if close:
                cells[0] = new
            else:
                cells = m.array([new, cells[1]])
        return m.array([cells[0] * 1.0])

    expected = record(f_of(f), [a, b]).gradient([a, b])
    found = statement_gradient(record_statements(f, [a, b]))
    assert np.abs(found - expected).max() <= 1e-11 * max(1.0, np.abs(expected).max())


def f_of(f: Any) -> Any:
    return lambda x: f(x, Maths)


def test_terms_know_functions() -> None:
    x = Term(record_statements(lambda x, m: m.array(x), [0.5]), 0.5, {0: 1.0})
    for name in FUNCTIONS:
        y = getattr(x, name)()
        assert math.isclose(y.value, getattr(math, name)(0.5))
        h = 1e-6
        slope = (getattr(math, name)(0.5 + h) - getattr(math, name)(0.5 - h)) / (2 * h)
        assert math.isclose(y.slopes[0], slope, rel_tol=1e-8)
    assert isinstance(Cells([x]), list)


@pytest.mark.parametrize("problem", [lax_wendroff(50), toon(50)])
def test_a_statement_takes_fewer_bytes_than_its_operations(problem: Any) -> None:
    f, s = record(problem, problem.x), record_statements(problem, problem.x)
    count = 50 * (99 + 98)
    assert len(s) == count
    assert s.nbytes / count < 36  # 4, and 12 for each of 2 or 3 operands
    tape_bytes, run_bytes = f.tape.nbytes / count, (f.tape.nbytes + 16 * f.tape.rows) / count
    assert tape_bytes > (31 if problem.name == "Lax-Wendroff" else 44)
    assert s.nbytes / count + 8 < run_bytes * (0.5 if problem.name == "Lax-Wendroff" else 0.35)
    assert CODES["add"] == 0


def test_the_dead_of_the_exercise_are_those_that_optimise_leaves_out() -> None:
    for f, x in ch30b.Dead.cases():
        saved = optimise(record(f, x), pairs=False)[1]
        if not saved.folded and not saved.repeated:
            assert ch30b.Dead.solution(record(f, x).tape) == saved.dead
