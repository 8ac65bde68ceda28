"The tape: the same numbers as a graph, at every point on the same path, and an error on any other."

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.scalar import tape as module
from gradbook.scalar.neural import MLP, l2_penalty, max_margin
from gradbook.scalar.samples import two_moons
from gradbook.scalar.tape import (
    CODES,
    COMPARISONS,
    NAMES,
    RULES,
    SOURCES,
    BranchChanged,
    RecordError,
    Replay,
    Tape,
    Traced,
    record,
)
from gradbook.scalar.value import (
    DomainError,
    Node,
    Value,
    dot,
    leaky_relu,
    maximum,
    power,
    relu,
    total,
)

# --- random programs ----------------------------------------------------------------------------

UNARY: dict[str, Callable[[Any], Any]] = {
    **{
        name: getattr(Value, name)
        for name in ("exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tan")
    },
    "sigmoid": Value.sigmoid,
    "tanh": Value.tanh,
    "softplus": Value.softplus,
    "ReLU": Value.relu,
    "leaky": lambda x: leaky_relu(x, 0.3),
    "neg": lambda x: -x,
    "abs": abs,
    "cube": lambda x: x**3,
    "root": lambda x: x**0.5,
    "to x": lambda x: 1.5**x,
    "from 2": lambda x: 2 - x,
    "1 over": lambda x: 1 / x,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "**": lambda x, y: x**y,
    "max": Value.maximum,
    "min": Value.minimum,
    "built-in max": max,
    "built-in min": min,
    "dot": lambda x, y: dot([x, 2.0, y], [y, x, -0.5], 0.25),
    "dot start": lambda x, y: dot([3.0, x], [0.5, x], y),
    "total": lambda x, y: total([x, y, x]),
    "if <": lambda x, y: x * y if x < y else x - y,
    "if <=": lambda x, y: y if x <= 0.5 else x + y,
    "if >": lambda x, y: x if 1 > y else -y,  # noqa: SIM300
    "if >=": lambda x, y: x.sin() if x >= y else y.cos(),
}

Program = list[tuple[str, int]]
STEPS = st.lists(
    st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 12)),
    min_size=1,
    max_size=12,
)
NUMBERS = st.one_of(
    st.floats(-3, 3), st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e-8, 30.0, -700.0])
)
POINTS = st.tuples(NUMBERS, NUMBERS)


def run(program: Program, x: Any, y: Any) -> Any:
    "Each step works on the latest number and on an earlier one; the last one is the result."
    found = [x, y]
    for name, j in program:
        a, b = found[-1], found[j % len(found)]
        found.append(UNARY[name](a) if name in UNARY else BINARY[name](a, b))
    return found[-1]


class Watched(Value):
    "A `Value` that keeps the outcome of every comparison."

    __slots__ = ()
    outcomes: ClassVar[list[bool]] = []

    def note(self, outcome: bool) -> bool:
        self.outcomes.append(outcome)
        return outcome

    def __rsub__(self, other: float) -> Any:
        return Watched(other) - self

    def __rtruediv__(self, other: float) -> Any:
        return Watched(other) / self

    def __rpow__(self, other: float) -> Any:
        return Watched(other) ** self

    def __lt__(self, other: Any) -> bool:
        return self.note(super().__lt__(other))

    def __le__(self, other: Any) -> bool:
        return self.note(super().__le__(other))

    def __gt__(self, other: Any) -> bool:
        return self.note(super().__gt__(other))

    def __ge__(self, other: Any) -> bool:
        return self.note(super().__ge__(other))


def by_value(f: Callable[..., Any], point: tuple[float, ...]) -> Any:
    "Value and slopes, and the path taken; or the DomainError."
    Watched.outcomes.clear()
    inputs = [Watched(a) for a in point]
    try:
        out = f(*inputs)
    except DomainError as error:
        return error, None, list(Watched.outcomes)
    if not isinstance(out, Node):
        return out, [0.0] * len(point), list(Watched.outcomes)
    out.backward()  # type: ignore[attr-defined]
    return out.data, [x.grad for x in inputs], list(Watched.outcomes)


def alike(a: Any, b: Any) -> bool:
    "Equal to the last bit, where nan equals nan."
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b or (a != a and b != b)


@settings(deadline=None, max_examples=250)
@given(STEPS, POINTS, st.lists(POINTS, min_size=1, max_size=4))
def test_the_tape_is_the_graph_and_guards_fire_when_python_branches(
    program: Program, here: tuple[float, float], others: list[tuple[float, float]]
) -> None:
    def f(x: Any, y: Any) -> Any:
        return run(program, x, y)

    value, slopes, path = by_value(f, here)
    if isinstance(value, DomainError):
        with pytest.raises(DomainError) as caught:
            record(f, *here)
        assert str(caught.value) == str(value)
        return
    tape = record(f, *here)
    fast = tape.compile()
    assert alike([tape.values[tape.result], *tape.reverse()[:2]], [value, *slopes])
    for point in (here, *others):
        value, slopes, now = by_value(f, point)
        changed = now != path[: len(now)]
        if isinstance(value, DomainError) and not changed:
            # a choice may leave rows that nobody needs; with them their errors are off the tape
            unneeded = any(name.startswith(("if", "built-in")) for name, _ in program)
            for replay in (tape.forward, fast):
                if not unneeded:
                    with pytest.raises(DomainError) as caught:
                        replay(*point)
                    assert str(caught.value).startswith(str(value))
            continue
        if changed:
            for replay in (tape.forward, fast):
                with pytest.raises(BranchChanged):
                    replay(*point)
            continue
        assert alike([tape.forward(*point), *tape.gradient(*point)], [value, *slopes])
        fast_value, fast_slopes = fast(*point)
        assert alike([fast_value, *fast_slopes], [value, *slopes])


def test_tables_cover_each_other() -> None:
    assert {*SOURCES, "dot"} == set(RULES)
    assert len(NAMES) == len(CODES) == 2 + len(COMPARISONS) + len(RULES) <= 256


# --- guards -------------------------------------------------------------------------------------


def bend(x: Any) -> Any:
    if x < 0:
        return -x
    return x * x


def test_the_message_names_line_condition_and_numbers() -> None:
    line = bend.__code__.co_firstlineno + 1
    for replay in (record(bend, 3.0).forward, record(bend, 3.0).compile()):
        with pytest.raises(BranchChanged) as caught:
            replay(-2.0)
        error = caught.value
        assert (error.place.line, error.name, error.outcome) == (line, "<", False)
        assert (error.place.x, error.place.y, error.x, error.y) == (3.0, 0.0, -2.0, 0.0)
        text = str(error)
        assert f"line {line} of test_tape.py: if x < 0:" in text
        assert "3.0 < 0.0 is False" in text and "-2.0 < 0.0 is True" in text


def test_a_guard_comes_before_what_it_guards() -> None:
    tape = record(lambda x: x.log() if x > 0 else x, 2.0)
    with pytest.raises(BranchChanged):
        tape.forward(-1.0)
    with pytest.raises(BranchChanged):
        tape.compile()(-1.0)


def test_kinks_need_no_guard() -> None:
    tape = record(lambda x: abs(x) + relu(x) + maximum(x, 2.0) + leaky_relu(x, 0.1), 3.0)
    assert not tape.places
    assert tape.gradient(-1.0) == [-1.0 + 0.0 + 0.0 + 0.1]


def test_a_decision_that_touches_nothing_in_the_result() -> None:
    tape = record(lambda x, y: x if y * y > 2 else -x, 1.0, 2.0)
    assert tape.gradient(5.0, -3.0) == [1.0, 0.0]
    with pytest.raises(BranchChanged):
        tape.forward(5.0, 0.0)


def test_not_a_number_takes_the_false_branch() -> None:
    tape = record(bend, 3.0)
    assert math.isnan(tape.forward(math.nan)) and math.isnan(tape.compile()(math.nan)[0])
    with pytest.raises(BranchChanged):
        record(bend, -3.0).compile()(math.nan)


def test_replay_keeps_a_tape_for_each_path() -> None:
    replay = Replay(bend)
    for x in (1.0, -1.0, 2.0, -2.0, 3.0):
        value, slopes, _ = by_value(bend, (x,))
        assert replay(x) == (value, slopes)
    assert len(replay.tapes) == 2


# --- domain errors ------------------------------------------------------------------------------

BAD = {
    "log(-1.0)": (lambda x: x.log(), -1.0),
    "log(0.0)": (lambda x: x.log(), 0.0),
    "2.0 / 0.0": (lambda x: 2 / x, 0.0),
    "exp(1000.0)": (lambda x: x.exp(), 1000.0),
    "expm1(1000.0)": (lambda x: x.expm1(), 1000.0),
    "log1p(-1.0)": (lambda x: x.log1p(), -1.0),
    "sqrt(0.0)": (lambda x: x.sqrt(), 0.0),
    "sqrt(-2.0)": (lambda x: x.sqrt(), -2.0),
    "pow(0.0, 0.5)": (lambda x: x**0.5, 0.0),
    "pow(0.0, -2.0)": (lambda x: power(x, -2), 0.0),
    "pow(-8.0, 1.5)": (lambda x: x**1.5, -8.0),
    "pow(-2.0, -2.0)": (lambda x: x**x, -2.0),
    "pow(0.0, 0.0)": (lambda x: x**x, 0.0),
}


@pytest.mark.parametrize("call", BAD)
def test_domain_errors_on_replay_name_operation_and_value(call: str) -> None:
    f, bad = BAD[call]
    tape = record(f, 1.25)
    with pytest.raises(DomainError):
        f(Value(bad))
    for replay in (tape.forward, tape.compile()):
        with pytest.raises(DomainError) as caught:
            replay(bad)
        assert call.split("(")[0] in str(caught.value) and str(bad) in str(caught.value)
        assert f"row v{tape.result}" in str(caught.value)


# --- recording ----------------------------------------------------------------------------------


def test_a_constant_result_and_an_input_as_result() -> None:
    assert record(lambda x: 7, 1.0).gradient(2.0) == [0.0]
    assert record(lambda x: 7, 1.0).compile()(2.0) == (7.0, [0.0])
    assert record(lambda x: x, 1.0).compile()(2.0) == (2.0, [1.0])
    assert record(lambda: 6.0).compile()() == (6.0, [])


def test_plain_values_are_constants_but_may_not_compute() -> None:
    assert record(lambda x: x + Value(3.0), 1.0).forward(2.0) == 5.0
    with pytest.raises(RecordError, match="outside"):
        record(lambda x: dot([Value(1.0)], [x]), 1.0)


def test_leaving_the_recording_is_refused_where_it_can_be_seen() -> None:
    for f in (math.sin, float, lambda x: Value(x)):
        with pytest.raises(TypeError):
            record(f, 1.0)


def test_a_recording_inside_a_recording() -> None:
    def outer(x: Any) -> Any:
        inner = record(bend, 2.0)
        assert len(inner.places) == 1
        return bend(x) + inner.gradient(3.0)[0]

    tape = record(outer, -1.0)
    assert len(tape.places) == 1 and tape.forward(-4.0) == 10.0


def test_a_failed_recording_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        record(lambda x: 1 / 0, 1.0)
    assert module.COMPARED == [] and (Traced(1.0) < 2.0)


def test_wrong_number_of_inputs() -> None:
    tape = record(lambda x, y: x * y, 1.0, 2.0)
    for replay in (tape.forward, tape.compile()):
        with pytest.raises(ValueError, match=r"2 inputs.*3"):
            replay(1.0, 2.0, 3.0)


def test_signed_zeros_and_odd_constants() -> None:
    constants = [0.0, -0.0, math.inf, -math.inf, 1e-320, -2.5]
    for c in constants:
        tape = record(lambda x, c=c: (x + c) * 1.0, 1.0)
        assert alike(tape.forward(-0.0), -0.0 + c) and alike(tape.compile()(-0.0)[0], -0.0 + c)
        assert math.copysign(1, tape.forward(-0.0)) == math.copysign(1, -0.0 + c)


def test_dot_keeps_its_constants_when_the_list_changes_later() -> None:
    def f(x: Any) -> Any:
        ys = [2.0, 3.0]
        y = dot([x, x], ys)
        ys[0] = 99.0
        return y

    assert record(f, 1.0).forward(2.0) == 10.0


def test_the_listing() -> None:
    tape = record(lambda x, y: dot([x, y], [2.0, x]) / y if x < 5 else x, 3.0, 2.0)
    lines = str(tape).splitlines()
    assert lines[0].split() == ["v0", "=", "input", "3"]
    assert "v0 < 5 is True, line" in str(tape)
    assert "dot(0, v0, 2, v1, v0)" in str(tape) and lines[-1] == f"result v{tape.result}"


# --- size and speed -----------------------------------------------------------------------------


def long(x: Any) -> Any:
    y = x
    for _ in range(50_000):
        y = y * 1.00001 + x
    return y


def test_a_hundred_thousand_operations_without_recursion() -> None:
    tape = record(long, 0.5)
    assert len(tape) > 100_000
    value, slopes, _ = by_value(long, (0.5,))
    assert tape.values[tape.result] == value and tape.reverse()[0] == slopes[0]
    assert tape.nbytes < 40 * len(tape)


def test_a_compiled_tape_of_twenty_thousand_rows_and_a_dot_of_ten_thousand() -> None:
    def f(*xs: Any) -> Any:
        y = dot(xs, xs)
        for _ in range(10_000):
            y = y * 1.0001 + 1
        return y

    numbers = [k / 10_000 for k in range(10_000)]
    tape = record(f, *numbers)
    assert tape.compile()(*numbers) == (tape.values[tape.result], tape.reverse()[:10_000])


def test_bytes() -> None:
    tape = record(lambda x, y: (x * y).sin(), 1.0, 2.0)
    assert tape.nbytes == 4 * (1 + 4 + 8) + 4 + 3 * (4 + 8)


def moons() -> tuple[Callable[..., Any], list[float]]:
    points, arcs = two_moons(30)
    signs = [2 * arc - 1 for arc in arcs]
    start = [p.data for p in MLP(2, [16, 16, 1], rng=random.Random(1)).parameters()]

    def loss(*parameters: Any) -> Any:
        model, numbers = MLP(2, [16, 16, 1]), iter(parameters)
        for layer in model.layers:
            for neuron in layer.neurons:
                neuron.w, neuron.b = [next(numbers) for _ in neuron.w], next(numbers)
        return max_margin([model(p) for p in points], signs) + l2_penalty(parameters)  # type: ignore

    return loss, start


def test_replay_is_at_least_twice_as_fast_as_recording_again() -> None:
    loss, start = moons()
    tape: Tape = record(loss, *start)
    replay = tape.compile()

    def rebuild() -> list[float]:
        inputs = [Value(a) for a in start]
        loss(*inputs).backward()
        return [x.grad for x in inputs]

    assert replay(*start)[1] == rebuild()
    ratios = []
    for _ in range(9):
        times = []
        for work in (rebuild, lambda: replay(*start)):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        ratios.append(times[0] / times[1])
    assert sorted(ratios)[4] >= 2, ratios
