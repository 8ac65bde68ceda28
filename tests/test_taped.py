"Operation tapes: the same numbers by every engine, and an error wherever a tape would be wrong."

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.roads import native, taped
from gradbook.roads.operations import ARRAYS, CODES, FLOATS, GUARD, NAMES, RULES
from gradbook.roads.optimise import optimise
from gradbook.roads.problems import PROBLEMS, lax_wendroff, second_slopes, sparse_hessian
from gradbook.roads.taped import (
    Atomic,
    Function,
    Table,
    TapeError,
    if_eq,
    if_le,
    if_lt,
    maximum,
    minimum,
    record,
    straight_source,
)
from gradbook.scalar.dual import DomainError
from gradbook.scalar.tape import BranchChanged, RecordError
from gradbook.scalar.value import Value

ENGINES = ["python", "numpy"] + ["c"] * native.available()
needs_c = pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")


def apart(a: Any, b: Any) -> float:
    "The largest difference, relative to the largest number."
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)) if a.size else 0.0


# rules


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_the_slopes_that_its_value_has(name: str) -> None:
    code, n = CODES[name], len(RULES[name]) - 1
    x = [0.31, 0.72, 0.53, 0.94][:n]
    assert np.isclose(ARRAYS.value[code](*x), FLOATS.value[code](*x), rtol=1e-15)
    value = FLOATS.value[code]
    shares = FLOATS.back[code](*x, value(*x), 2.0)
    for k, share in enumerate(shares):
        if name == "power" and k == 1:
            assert share is None  # a fixed exponent has no slope
            continue
        up, down = ([a + d * (j == k) for j, a in enumerate(x)] for d in (1e-5, -1e-5))
        slope = (value(*up) - value(*down)) / 2e-5
        assert math.isclose(share or 0.0, 2 * slope, rel_tol=1e-8, abs_tol=1e-8), k
        moved = FLOATS.tangent[code](*x, value(*x), *np.eye(n)[k].tolist())
        assert math.isclose(moved, (share or 0.0) / 2, rel_tol=1e-14), k
    assert [s is None for s in ARRAYS.back[code](*x, value(*x), 2.0)] == [s is None for s in shares]


STEPS: list[Callable[..., Any]] = [
    lambda x, y: x + y,
    lambda x, y: x - 0.5 * y,
    lambda x, y: 1.5 - x * y,
    lambda x, y: x / (y * y + 1.0),
    lambda x, y: -x,
    lambda x, y: taped.sin(x) * y,
    lambda x, y: taped.exp(taped.cos(y)) + 0.0,
    lambda x, y: taped.tanh(x + 2.0),
    lambda x, y: (x * x + 1.0) ** 1.5,
    lambda x, y: taped.sqrt(x * x + 1.0) * 1.0,
    lambda x, y: taped.log(y * y + 2.0) * (2.0 * 3.0),
    lambda x, y: abs(x),
]
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 30)), max_size=25
)
POINTS = st.lists(st.floats(-3, 3), min_size=3, max_size=3)


def program(steps: Any) -> Callable[..., Any]:
    def f(x: Any) -> Any:
        rows = list(x)
        for step, i, j in steps:
            rows.append(step(rows[i % len(rows)], rows[j % len(rows)]))
        return rows[-1] * rows[-2]

    return f


@settings(max_examples=60, deadline=None)
@given(PROGRAMS, POINTS, POINTS)
def test_every_engine_is_the_function(steps: Any, x: Any, at: Any) -> None:
    "Recorded at one point, replayed at another: value and slopes are those of a fresh graph."
    f = program(steps)
    inputs = [Value(v) for v in at]
    y = f(inputs)
    y.backward()
    expected = [v.grad for v in inputs]
    tape = record(f, x)
    short, saved = optimise(tape)
    assert saved.left <= saved.recorded
    scale = max(1.0, *map(abs, expected))
    for function in (tape, short):
        for engine in ENGINES:
            function.engine = engine
            assert math.isclose(function(at), y.data, rel_tol=1e-13, abs_tol=1e-300)
            for slopes in (function.gradient(at), function.jacobian(at, "forward")[0]):
                assert np.abs(slopes - expected).max() <= 1e-12 * scale
            ys, gs = function.gradients([at] * 10)
            assert np.abs(gs - expected).max() <= 1e-12 * scale and np.ptp(ys) == 0


@settings(max_examples=15, deadline=None)
@given(PROGRAMS, POINTS)
def test_hessians_are_symmetric_and_slopes_of_slopes(steps: Any, x: Any) -> None:
    f = record(program(steps), x)
    h = f.hessian(x)
    scale = max(1.0, np.abs(h).max())
    assert np.abs(h - h.T).max() <= 1e-10 * scale
    for k in range(3):
        e = np.eye(3)[k] * 1e-5
        slope = (f.gradient(x + e) - f.gradient(x - e)) / 2e-5
        if np.abs(np.array(x)).min() > 1e-4 and scale < 1e3:  # abs has a kink at 0
            assert np.abs(h[k] - slope).max() <= 1e-3 * scale


# problems


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_agree_with_mathematics(name: str) -> None:
    sizes = {"lax_wendroff": {"steps": 60}, "det_minors": {"n": 6}}
    problem = PROBLEMS[name](**sizes.get(name, {}))
    x, expected = problem.x, problem.jacobian(problem.x)
    for f in (record(problem, x), optimise(record(problem, x))[0]):
        near = 1e-9 if name == "toon" else 1e-12  # its formula loses digits where q is flat
        assert apart(f.jacobian(x, "forward"), expected) < near
        assert apart(f.jacobian(x, "reverse"), f.jacobian(x, "forward")) < 1e-12
        assert apart(f.gradient(x), problem.gradient(x)) < 1e-12


def test_hessian_of_a_sum() -> None:
    problem = sparse_hessian()
    assert apart(record(problem, problem.x).hessian(problem.x), second_slopes(problem.x)) < 1e-12


# decisions


def test_another_branch_is_noticed_with_its_line() -> None:
    def f(x: Any) -> Any:
        return x[0] ** 2 if x[0] > 1 else -x[0]

    tape = record(f, [3.0])
    for engine in ENGINES:
        tape.engine = engine
        assert tape([2.0]) == 4.0
        with pytest.raises(BranchChanged, match="if x\\[0\\] > 1") as caught:
            tape([0.5])
        assert caught.value.place.line == f.__code__.co_firstlineno + 1
        with pytest.raises(BranchChanged):
            tape.gradients([[2.0], [3.0], [0.5]])


@pytest.mark.parametrize("test", ["<", "<=", ">", ">=", "==", "!="])
def test_every_comparison_is_a_guard(test: str) -> None:
    f = eval(f"lambda x: x[0] if x[0] {test} x[1] else x[1]")
    for point in ([1.0, 2.0], [2.0, 1.0], [1.0, 1.0]):
        tape = record(f, point)
        for other in ([1.0, 2.0], [2.0, 1.0], [1.0, 1.0]):
            same = eval(f"point[0] {test} point[1]") == eval(f"other[0] {test} other[1]")
            if same:
                assert tape(other) == f(other)
            else:
                with pytest.raises(BranchChanged):
                    tape(other)


def test_strict_refuses_branches_and_names_the_line() -> None:
    with pytest.raises(RecordError, match=r"line \d+ of test_taped.py.*if_lt"):
        record(lambda x: x[0] if x[0] < 1 else x[1], [1.0, 2.0], strict=True)
    with pytest.raises(RecordError, match="Python decides here"):
        record(lambda x: x[0] if x[0] else x[1], [1.0, 2.0], strict=True)
    record(lambda x: if_lt(x[0], 1, x[0], x[1]), [1.0, 2.0], strict=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_conditions_on_the_tape(engine: str) -> None:
    def f(x: Any) -> Any:
        safe = if_lt(0.0, x[0], taped.log(x[0]), -1.0)
        return [safe, if_le(x[0], x[1], x[0] ** 2, x[1]), if_eq(x[0], 1.0, x[1], 0.0)]

    tape = record(lambda x: [*f(x), maximum(x[0], x[1]), minimum(x[0], x[1])], [1.0, 2.0])
    tape.engine = engine
    assert tape([2.0, 1.0]).tolist() == [math.log(2.0), 1.0, 0.0, 2.0, 1.0]
    expected = [[0, 0], [-2, 0], [0, 0], [0, 1], [1, 0]]
    for mode in ("forward", "reverse"):
        assert tape.jacobian([-1.0, 2.0], mode).tolist() == expected  # log(-1) leaves no trace
    assert tape.gradients([[-1.0, 2.0]] * 3)[1].tolist() == [[-1.0, 1.0]] * 3
    assert np.isfinite(tape.hessian([-1.0, 2.0])).all()
    assert tape.hessian([-1.0, 2.0])[0, 0] == 2.0


@pytest.mark.parametrize("engine", ENGINES)
def test_tables(engine: str) -> None:
    def f(x: Any) -> Any:
        table = Table([x[0], x[1] * 2, 5.0])
        first = table[x[2]]
        table[x[2] + 1.0] = first * x[0]
        return [first, table[1], table[2], table[0.0]]

    tape = record(f, [1.0, 2.0, 0.0])
    tape.engine = engine
    for place in (0.0, 1.0, 1.7):
        at = [3.0, 4.0, place]
        assert tape(at).tolist() == f(at)
        assert apart(tape.jacobian(at, "forward"), tape.jacobian(at, "reverse")) == 0
        assert tape.gradients([at] * 9)[1].tolist() == [tape.gradient(at).tolist()] * 9
        assert np.isfinite(tape.hessian(at)).all()
    for wrong in (-1.0, 3.0, math.nan):
        with pytest.raises(IndexError, match="of a table of 3"):
            tape([1.0, 2.0, wrong])

    def write(x: Any) -> Any:
        table = Table([x[0], 2.0])
        table[x[1]] = 7.0
        return table[0]

    written, _ = optimise(record(write, [1.0, 0.0]))
    written.engine = engine
    assert [written([1.0, 0.0]), written([1.0, 1.0])] == [7.0, 1.0]
    with pytest.raises(IndexError, match="index 5 of a table of 2"):
        written([1.0, 5.0])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_larger_of_a_number_and_none_is_none(engine: str) -> None:
    tape = record(lambda x: [maximum(x[0], x[1]), minimum(x[0], x[1])], [1.0, 2.0])
    tape.engine = engine
    for at in ([1.0, math.nan], [math.nan, 1.0], [math.nan, math.nan]):
        assert np.isnan(tape(at)).all()
    assert tape([2.0, 2.0]).tolist() == [2.0, 2.0]
    assert tape.jacobian([2.0, 2.0], "reverse").tolist() == [[1, 0], [1, 0]]


again = Atomic(
    "outer again",
    lambda xg: np.array([xg[1] * xg[2], xg[0] * xg[2] + xg[3]]),
    lambda x, y, g: np.array([g[1] * x[2], g[0] * x[2], g[0] * x[1] + g[1] * x[0], g[1]]),
)
outer = Atomic(
    "outer",
    lambda x: np.array([x[0] * x[1], x[1]]),
    lambda x, y, g: np.array([g[0] * x[1], g[0] * x[0] + g[1]]),
    again,
)


def with_calls(x: Any, p: Any) -> Any:
    a, b = outer([x[0] * p[0], x[1]])
    c, d = outer([taped.sin(a), b])
    return [c * d, a * x[0]]


@pytest.mark.parametrize("engine", ENGINES)
def test_calls(engine: str) -> None:
    tape = record(with_calls, [1.0, 2.0], [0.5])
    tape.engine = engine
    tape.new_dynamic([0.7])
    at = [0.3, -0.8]
    a = 0.7 * 0.3 * -0.8
    assert np.allclose(tape(at), [math.sin(a) * 0.64, a * 0.3], rtol=1e-14)
    jacobian = tape.jacobian(at, "reverse")
    assert apart(tape.jacobian(at, "forward"), jacobian) < 1e-15
    assert apart(tape.gradients([at] * 11)[1][7], jacobian.sum(0)) < 1e-15
    h = tape.hessian(at, [1.0, 2.0])
    assert apart(h, h.T) < 1e-14
    step = np.array([1e-6, 0.0])

    def slopes(x: Any) -> Any:
        tape.point(x)
        return tape.reverse([1.0, 2.0])

    assert np.allclose(h[0], (slopes(at + step) - slopes(at - step)) / 2e-6, atol=1e-8)
    once = Atomic("once", outer.value, outer.back)
    with pytest.raises(RecordError, match="once has no `again`"):
        record(lambda x: once(x)[0] ** 2, [1.0, 2.0]).hessian([1.0, 2.0])


def test_a_call_that_changes_its_mind_is_caught() -> None:
    sizes = iter([2, 1])
    moody = Atomic("moody", lambda x: x[: next(sizes)], lambda x, y, g: g)
    tape = record(lambda x: moody(x)[0], [1.0, 2.0])
    with pytest.raises(TapeError, match="moody: it gave 2"):
        tape([1.0, 2.0])


# parameters


@pytest.mark.parametrize("engine", ENGINES)
def test_dynamic_parameters_are_neither_constants_nor_inputs(engine: str) -> None:
    seen = []

    def f(x: Any, p: Any) -> Any:
        seen.append(1)
        scale = taped.exp(p[0]) * p[1]  # depends on no input
        return [x[0] * scale, x[1] ** p[1]]

    tape = record(f, [1.0, 2.0], [0.0, 2.0])
    tape.engine = engine
    assert tape.tape.lasting == 2 and len(seen) == 1
    for p in ([0.0, 2.0], [1.0, 3.0]):
        tape.new_dynamic(p)
        assert apart(tape([2.0, -3.0]), [2.0 * math.exp(p[0]) * p[1], (-3.0) ** p[1]]) < 1e-15
        assert tape.jacobian([2.0, -3.0])[1].tolist() == [0.0, p[1] * (-3.0) ** (p[1] - 1)]
        assert tape.gradients([[2.0, -3.0]] * 9)[0][8].tolist() == tape([2.0, -3.0]).tolist()
    short, _ = optimise(tape)
    assert short.tape.lasting >= 1 and apart(short([2.0, -3.0]), tape([2.0, -3.0])) == 0
    with pytest.raises(ValueError, match="2 dynamic parameters and was given 1"):
        tape.new_dynamic([1.0])


# what can't be recorded


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: math.sin(x[0]), r"line \d+ of test_taped.py: float\(x\)"),
        (lambda x: np.array([x[0], x[1]], float).sum(), r"float\(x\)"),
        (lambda x: [1, 2, 3][x[0]], r"line \d+ of test_taped.py: index\(x\)"),
        (lambda x: np.cbrt(x[0]), r"line \d+ of test_taped.py: np.cbrt can't be recorded"),
        (lambda x: np.add.reduce(x[0]), "can't be recorded"),
        (lambda x: x[0] + "1,5", r"line \d+ of test_taped.py: '1,5' is no number"),
        (lambda x: [x[0], None], r"line \d+ of test_taped.py: None is no number"),
        (lambda x: [x[0], [x[0]]], r"line \d+ of test_taped.py: .* is no number"),
        (lambda x: int(x[0]), "a list that x indexes to Table"),
    ],
)
def test_what_would_drop_the_record_is_refused(f: Any, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        record(f, [1.0, 2.0])


def test_numpy_functions_and_arrays_of_objects_are_recorded() -> None:
    def f(x: Any) -> Any:
        v = np.array(x)  # objects
        return np.sum(np.sin(v) * np.float64(2.0)) + np.exp(x[0]) + np.arange(2.0) @ v

    tape = record(f, [1.0, 2.0])
    assert apart(tape([0.5, 0.7]), f(np.array([0.5, 0.7]))) < 1e-15
    product = record(lambda x: x[0] * np.arange(3.0), [2.0])
    assert product([4.0]).tolist() == [0.0, 4.0, 8.0]
    assert record(lambda x: np.array(x).reshape(2, 2) @ np.array(x).reshape(2, 2), [1.0] * 4)(
        [1.0, 2.0, 3.0, 4.0]
    ).tolist() == [[7.0, 10.0], [15.0, 22.0]]


def test_numpy_numbers_compare_as_python_numbers_do() -> None:
    two = np.float64(2.0)
    for test in (
        lambda x: two < x,
        lambda x: two <= x,
        lambda x: two > x,
        lambda x: two >= x,
        lambda x: two == x,
        lambda x: two != x,
        lambda x: x != two,
    ):
        f = record(lambda x, test=test: x[0] * (2.0 if test(x[0]) else 3.0), [1.0])
        assert f([1.0]) == (2.0 if test(1.0) else 3.0)
        other = next(at for at in (2.0, 3.0) if test(at) != test(1.0))
        with pytest.raises(BranchChanged, match="of test_taped"):
            f([other])
    found: list[Any] = []
    record(lambda x: found.append(np.arange(3.0) < x[0]) or x[0], [1.0])
    assert found[0].tolist() == [True, False, False]


def test_text_is_no_number() -> None:
    for f in (lambda x: x[0] + "3", lambda x: "3", lambda x: x[0] * b"3", lambda x: [x[0], "3"]):
        with pytest.raises(RecordError, match="'3' is no number"):
            record(f, [1.0])
    for other in ("a", None):
        with pytest.raises(TypeError, match="not supported"):
            record(lambda x, other=other: x[0] < other, [1.0])
        assert record(lambda x, other=other: x[0] * (x[0] != other), [3.0])([2.0]) == 2.0


def test_arrays_of_recorded_numbers_have_inverse_functions_and_powers() -> None:
    v = record(lambda x: np.arcsin(np.array(x)) + np.arctan(np.array(x)), [0.1, 0.2])
    assert apart(v([0.3, 0.4]), np.arcsin([0.3, 0.4]) + np.arctan([0.3, 0.4])) < 1e-15
    assert record(lambda x: x[0] ** np.array([1.0, 2.0, 3.0]), [2.0])([3.0]).tolist() == [3, 9, 27]


def test_no_inputs_and_no_outputs_are_empty_arrays() -> None:
    nothing = record(lambda x: [], [1.0, 2.0])
    assert nothing.jacobian([1.0, 2.0]).shape == (0, 2)
    assert nothing.jacobian([1.0, 2.0], "forward").shape == (0, 2)
    assert nothing.many([[1.0, 2.0]] * 3).shape == (3, 0)
    fixed = record(lambda x: [1.0, 2.0, 3.0], [])
    assert fixed.jacobian([]).shape == fixed.jacobian([], "reverse").shape == (3, 0)
    assert fixed.hessian([]).shape == (0, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_does_not_move_adds_nothing_whatever_its_slope(engine: str) -> None:
    f = record(lambda x: [taped.sqrt(x[0]), x[1]], [1.0, 1.0])
    f.engine = engine
    both = [f.jacobian([0.0, 1.0], mode).tolist() for mode in ("forward", "reverse")]
    assert both[0] == both[1] == [[math.inf, 0.0], [0.0, 1.0]]
    g = record(lambda x, p: x[0] ** (p[0] / 2), [-2.0], [4.0])
    g.engine = engine
    assert g.jacobian([-2.0], "reverse").tolist() == [[-4.0]]
    assert g.forward(1, [1.0]).tolist() == [-4.0] and g.hessian([-2.0]).tolist() == [[2.0]]


def test_recordings_do_not_mix_and_end() -> None:
    kept: list[Any] = []
    record(lambda x: kept.append(x[0]) or x[0] * 2, [1.0])
    with pytest.raises(RecordError, match="over"):
        kept[0] * 2.0
    with pytest.raises(RecordError, match="another recording"):
        record(lambda x: x[0] * kept[0], [1.0])
    with pytest.raises(RecordError, match="another recording"):
        record(lambda x: kept[0], [1.0])


def test_wrong_calls_say_what_is_needed() -> None:
    tape = record(lambda x: x[0] * x[1], [1.0, 2.0])
    with pytest.raises(RuntimeError, match="forward"):
        tape.reverse()
    with pytest.raises(ValueError, match="2 inputs and was given 3"):
        tape([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="weights of shape"):
        tape.point([1.0, 2.0])
        tape.reverse([1.0, 2.0])
    with pytest.raises(ValueError, match="order 2"):
        tape.forward(2, [1.0, 2.0])
    with pytest.raises(ValueError, match="engine 'fortran'"):
        tape.engine = "fortran"
    with pytest.raises(ValueError, match="mode 'sideways'"):
        tape.jacobian([1.0, 2.0], "sideways")
    with pytest.raises(ValueError, match=r"\(N, 2\) is needed"):
        tape.many([1.0, 2.0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_value_that_does_not_exist_is_an_error(engine: str) -> None:
    tape = record(lambda x: taped.log(x[0]) * 2, [1.0])
    tape.engine = engine
    with pytest.raises(DomainError, match=r"log\(-1\) is not a number"):
        tape([-1.0])
    assert np.isnan(tape.many([[-1.0], [1.0]])).tolist() == [True, False]
    assert tape([0.0]) == -math.inf
    assert math.isnan(tape([math.nan]))  # as it was given
    root = record(lambda x: taped.sqrt(x[0]) * x[0], [1.0])
    root.engine = engine
    assert root.gradient([4.0]) == [3.0]


# straight-line code and C


@needs_c
def test_straight_line_code_is_the_same_to_the_last_bit() -> None:
    problem = PROBLEMS["ode"](n=5, steps=6)
    f, g = record(problem, problem.x), record(problem, problem.x)
    g.straighten()
    for x in (problem.x, problem.x * 1.1):
        (y, slopes), (z, others) = f.value_and_gradient(x), g.value_and_gradient(x)
        assert y.tolist() == z.tolist() and slopes.tolist() == others.tolist()
    branch = record(lambda x, p: x[0] * p[0] if x[0] > 0 else -x[0], [1.0], [3.0])
    branch.straighten()
    branch.new_dynamic([5.0])
    assert branch.gradient([2.0]) == [5.0]
    with pytest.raises(BranchChanged):
        branch.gradient([-2.0])
    with pytest.raises(ValueError, match="1 inputs"):
        branch.gradient([1.0, 2.0])


@needs_c
def test_a_hot_tape_is_straightened_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taped, "HOT", 5)
    f = record(lambda x: taped.sin(x[0]) * x[1], [1.0, 2.0])
    found = {tuple(f.gradient([0.5, 0.25])) for _ in range(10)}
    end = time.monotonic() + 60
    while f.straight is None and time.monotonic() < end:
        time.sleep(0.05)
    assert f.straight is not None
    found.add(tuple(f.gradient([0.5, 0.25])))
    assert len(found) == 1
    large = record(lambda x: sum(x[0] * k for k in range(3000)), [1.0])
    for _ in range(10):
        large.gradient([1.0])
    assert large.straight is None


@needs_c
def test_the_last_point_is_the_point_after_straight_line_code() -> None:
    f = record(lambda x: x[0] ** 3 * x[1], [1.0, 2.0])
    f.gradient([2.0, 1.0])
    f.straighten()
    f.gradient([5.0, 1.0])
    assert f.reverse().tolist() == [75.0, 125.0]
    f.gradient([2.0, 1.0])
    assert f.forward(1, [1.0, 0.0]).tolist() == [12.0]
    f.engine = "python"
    f.straight = lambda x: pytest.fail("this is C")  # type: ignore[assignment]
    assert f.gradient([5.0, 1.0]).tolist() == [75.0, 125.0]


@needs_c
def test_a_compiler_that_fails_later_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise native.NativeError("gone")

    monkeypatch.setattr(taped, "Straight", fail)
    f = record(lambda x: x[0] * x[0], [1.0])
    f.warm_up()
    assert f.straight is None and f.gradient([3.0]).tolist() == [6.0]


def test_straight_source_reads_well_and_refuses_tables() -> None:
    source = straight_source(record(lambda x: (x[0] * x[1]).sin() - 2.0, [1.0, 2.0]).tape)
    assert "const double v3 = x[0] * x[1];" in source and "g[0] = a3 * (x[1]);" in source
    with pytest.raises(TapeError, match="tables"):
        straight_source(record(lambda x: Table(x)[x[0]], [0.0, 1.0]).tape)


@needs_c
def test_threads_and_lanes_give_what_one_gives() -> None:
    problem = PROBLEMS["ode"](n=4, steps=3)
    f = record(problem, problem.x)
    xs = problem.x + np.random.default_rng(0).random((101, 4))
    one = f.gradients(xs, threads=1)
    two = f.gradients(xs, threads=2)
    alone = np.array([f.gradient(x) for x in xs])
    assert np.array_equal(one[1], two[1]) and np.array_equal(one[0], two[0])
    assert apart(one[1], alone) < 1e-15
    assert f.many(np.empty((0, 4))).shape == (0, 4)


# saved tapes


def everything(x: Any, p: Any) -> Any:
    table = Table([x[0], x[1], p[0]])
    a, b = outer([table[x[2]], x[1]])
    if a > 0:
        a = a * 2
    return [[if_lt(x[0], x[1], a, b), taped.exp(a)]]


def test_a_saved_tape_is_the_same_function(tmp_path: Path) -> None:
    path, at = tmp_path / "f.tape", [1.5, 2.5, 1.0]
    f = record(everything, [1.0, 2.0, 0.0], [0.5])
    f.new_dynamic([0.7])
    f.save(path)
    g = Function.load(path, [outer])
    assert g(at).tolist() == f(at).tolist() and g(at).shape == (1, 2)
    assert g.gradient(at).tolist() == f.gradient(at).tolist() and g.dynamic.tolist() == [0.7]
    with pytest.raises(BranchChanged, match="of test_taped"):
        g([-1.0, 2.0, 0.0])
    with pytest.raises(TapeError, match="calls 'outer'"):
        Function.load(path)
    with pytest.raises(TapeError, match="no saved tape"):
        Function.load(tmp_path / "nowhere")


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_corrupt_tape_is_refused_or_harmless(data: Any) -> None:
    "Whatever is changed in the arrays: an error by name, or a tape whose sweeps stay inside."
    f = record(everything, [1.0, 2.0, 0.0], [0.5])
    arrays = saved(f)
    name = data.draw(st.sampled_from(sorted(arrays)))
    numbers = arrays[name].copy()
    if data.draw(st.booleans()) and len(numbers):
        k = data.draw(st.integers(0, len(numbers) - 1))
        low, high = (-(2**31), 2**31 - 1) if numbers.dtype == np.int32 else (0, 255)
        numbers[k] = data.draw(st.integers(-3, 40) if low else st.integers(low, high))
    else:
        numbers = numbers[: data.draw(st.integers(0, len(numbers)))]
    try:
        tape, dynamic = taped.tape_of({**arrays, name: numbers}, {"outer": outer})
    except (TapeError, KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return
    g = Function(tape, dynamic)
    try:
        g.gradient([1.0] * g.inputs)
        g.gradients([[1.0] * g.inputs] * 3)
        g.forward(1, np.eye(g.inputs))
    except (BranchChanged, IndexError, DomainError, TapeError, ValueError, RuntimeError):
        pass


def saved(f: Function) -> dict[str, Any]:
    "The arrays as they are in a file."
    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taped, "save_tensors", lambda path, arrays, facts: kept.update(arrays))
        taped.save_tape(f.tape, "", f.dynamic)
    return kept


def test_hostile_facts_are_refused(tmp_path: Path) -> None:
    arrays = saved(record(everything, [1.0, 2.0, 0.0], [0.5]))
    good = json.loads(arrays["facts"].tobytes())
    for change in (
        {"inputs": -1},
        {"inputs": 2**40},
        {"inputs": 1.5},
        {"lasting": 10**6},
        {"lasting": 9},
        {"shape": [-1, -2]},
        {"shape": [3]},
        {"names": NAMES[:2]},
        {"names": ["__import__('os')"]},
        {"calls": ["other"]},
        {"places": {"x": [1, 2]}},
        {"places": 7},
    ):
        text = np.frombuffer(json.dumps({**good, **change}).encode(), np.uint8)
        path = tmp_path / "bad.tape"
        taped.save_tensors(path, {**arrays, "facts": text})
        with pytest.raises(TapeError):
            Function.load(path, [outer])
    for content in (b"", b"\x00" * 100, b"PK\x03\x04" + b"x" * 50):
        path.write_bytes(content)
        with pytest.raises(TapeError, match="no saved tape"):
            Function.load(path)


@pytest.mark.parametrize("ends", [[0, 2**31 - 1, -(2**31) + 1, -5, 6], [0, -(2**31), 2, 3, 6]])
def test_ends_of_tables_that_wrap_around_are_refused(ends: list[int], tmp_path: Path) -> None:
    f = record(lambda x: Table([x[0], x[1], 2.0, 3.0, 4.0, x[0]])[x[1]], [1.0, 2.0])
    path = tmp_path / "bad.tape"
    taped.save_tensors(path, {**saved(f), "firsts": np.array(ends, np.int32)})
    with pytest.raises(TapeError, match="this is no tape: tables"):
        Function.load(path)


def test_a_saved_tape_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    arrays = saved(record(lambda x: 2.0 * x[0], [1.0]))
    facts = {**json.loads(arrays["facts"].tobytes()), "inputs": 2_000_000_000}
    arrays |= {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "args": np.array([0, 1], np.int32),
        "outputs": np.array([0], np.int32),
    }
    path = tmp_path / "bad.tape"
    taped.save_tensors(path, arrays)
    with pytest.raises(TapeError, match="number of inputs"):
        taped.load_tape(path)


# sizes and speed


def test_an_operation_takes_little_memory() -> None:
    problem = lax_wendroff(20)
    f = record(problem, problem.x)
    operations = len(f.tape.codes)
    assert f.tape.nbytes <= 10 * operations
    assert f.tape.nbytes + 16 * f.tape.rows <= 32 * operations  # with values and adjoints


def test_recording_is_fast() -> None:
    problem = lax_wendroff(100)

    def speed() -> float:
        start = time.process_time()
        f = record(problem, problem.x)
        return len(f.tape.codes) / (time.process_time() - start)

    assert max(speed() for _ in range(5)) > 250_000  # half of what a quiet machine must do


def test_guards_are_no_values() -> None:
    assert len(RULES) == GUARD and len(NAMES) < 256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(lambda x: x[0] if x[0] < 2 else 0.0, [1.0])([1.5])
