"Chapter 02: dual numbers against measuring, reverse mode, and the known ways to go wrong."

from __future__ import annotations

import functools
import math
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gradbook.scalar import dual, value
from gradbook.scalar.dual import (
    DomainError,
    Dual,
    NoZero,
    diff,
    exp,
    gradient,
    jvp,
    log,
    newton,
    real,
    sigmoid,
    sin,
    sqrt,
    sweep,
    tanh,
)
from gradbook.scalar.numdiff import NumdiffError, gradcheck
from gradbook.scalar.value import Value

quick = settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
numbers = st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3)

# ------------------------------------------------------------- random expressions
# A tree of tuples, for any kind of number: ("x", i), ("c", 2.0), (name, tree, ...).

SMOOTH = ["expm1", "sin", "cos", "sigmoid", "tanh", "softplus"]
SMOOTH += ["tame log", "tame sqrt", "log1p of square"]
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
leaves = st.one_of(
    st.tuples(st.just("x"), st.integers(0, 1)),
    st.tuples(st.just("c"), numbers.map(lambda c: round(c, 2))),
)


def grown(trees: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = [*BINARY, "tame /", "tame **"]
    return st.one_of(
        st.tuples(st.sampled_from(SMOOTH), trees),
        st.tuples(st.just("**2"), trees),
        st.tuples(st.sampled_from(names), trees, trees),
    )


expressions = st.recursive(leaves, grown, max_leaves=8)


def compute(tree: Any, xs: list[Any], kind: Any) -> Any:
    "The tree with functions of module `kind`; constants are plain numbers, lifted where needed."
    name, *rest = tree
    if name == "x":
        return xs[rest[0]]
    if name == "c":
        return xs[0] * 0.0 + rest[0]
    a, *b = (compute(t, xs, kind) for t in rest)
    if name == "**2":
        return a**2
    if name in BINARY:
        return BINARY[name](a, b[0])
    if name == "tame /":
        return a / (b[0] * b[0] + 1)
    if name == "tame **":
        return (a * a + 0.5) ** (b[0] / (b[0] * b[0] + 1))
    if name == "tame log":
        return kind.log(a * a + 0.1)
    if name == "tame sqrt":
        return kind.sqrt(a * a + 0.1)
    if name == "log1p of square":
        return kind.log1p(a * a)
    return getattr(kind, name)(a)


@quick
@given(expressions, numbers, numbers)
def test_expressions_against_measuring(tree: Any, x: float, y: float) -> None:
    def f(xs: list[Any]) -> Any:
        return compute(tree, xs, dual)

    try:
        assume(abs(f([x, y])) < 1e6)
        slopes = gradient(f, [x, y])
        report = gradcheck(f, [x, y], slopes, tol=1e-5)
    except (DomainError, NumdiffError):
        assume(False)
    unsure = [r for r in report.rows if "tell" in r.problem or r.kink]
    assert report or unsure, report


@quick
@given(expressions, numbers, numbers)
def test_forward_agrees_with_reverse(tree: Any, x: float, y: float) -> None:
    a, b = Value(x), Value(y)
    try:
        out = compute(tree, [a, b], value)
    except value.DomainError as error:
        with pytest.raises(DomainError) as caught:
            gradient(lambda xs: compute(tree, xs, dual), [x, y])
        assert str(caught.value) == str(error)
        return
    out.backward()
    seeds = [(1.0, 0.0), (0.0, 1.0)]
    primal, moved = sweep(lambda *xs: compute(tree, list(xs), dual), [x, y], seeds)
    assert math.isclose(primal, out.data, rel_tol=1e-12, abs_tol=1e-300)
    for forward, back in zip(moved, (a.grad, b.grad), strict=True):
        assert math.isclose(forward, back, rel_tol=1e-8, abs_tol=1e-8)


@quick
@given(expressions, numbers, numbers)
def test_nesting_orders_commute(tree: Any, x: float, y: float) -> None:
    def f(a: Any, b: Any) -> Any:
        return compute(tree, [a, b], dual)

    try:
        xy = diff(lambda b: diff(lambda a: f(a, b))(x))(y)
        yx = diff(lambda a: diff(lambda b: f(a, b))(y))(x)
    except DomainError:
        assume(False)
    assume(abs(xy) < 1e8)
    assert math.isclose(xy, yx, rel_tol=1e-7, abs_tol=1e-7)


@quick
@given(expressions, numbers, numbers, numbers, numbers)
def test_tangents_are_linear_in_the_seed(tree: Any, x: float, y: float, s: float, t: float) -> None:
    def f(a: Any, b: Any) -> Any:
        return compute(tree, [a, b], dual)

    try:
        out, (dx, dy) = sweep(f, [x, y], [(1.0, 0.0), (0.0, 1.0)])
    except DomainError:
        assume(False)
    assume(max(abs(dx), abs(dy)) < 1e8)
    again, moved = jvp(f, [x, y], [s, t])
    assert again == out
    assert math.isclose(moved, s * dx + t * dy, rel_tol=1e-9, abs_tol=1e-7)


@quick
@given(expressions, expressions, numbers)
def test_product_and_chain_rule(first: Any, second: Any, x: float) -> None:
    def f(t: Any) -> Any:
        return compute(first, [t, 1.5], dual)

    def g(t: Any) -> Any:
        return compute(second, [t, 0.5], dual)

    try:
        product = diff(lambda t: f(t) * g(t))(x)
        expected = diff(f)(x) * g(x) + f(x) * diff(g)(x)
        chained = diff(lambda t: g(sin(f(t))))(x)
        links = diff(g)(sin(f(x))) * math.cos(f(x)) * diff(f)(x)
    except DomainError:
        assume(False)
    for a, b in ((product, expected), (chained, links)):
        assume(max(abs(a), abs(b)) < 1e8)
        assert math.isclose(a, b, rel_tol=1e-8, abs_tol=1e-6)


# ------------------------------------------------------------- each rule, with all derivatives

X = [-2.5, -0.7, -1e-3, 1e-3, 0.4, 1.0, 2.5]
ANY = ["exp", "expm1", "sin", "cos", "tan", "sigmoid", "tanh", "softplus"]
ANY += ["relu", "leaky_relu", "absolute"]
CASES = [(name, x) for name in ANY for x in X]
CASES += [(name, x) for name in ("log", "sqrt", "log1p") for x in X if x > 0]


@pytest.mark.parametrize(("name", "x"), CASES)
def test_rule_as_function_and_method_like_chapter_3(name: str, x: float) -> None:
    f = getattr(dual, name)
    node = getattr(value, name)(Value(x))
    assert f(x) == pytest.approx(node.data, rel=1e-15, abs=0)
    assert diff(f)(x) == pytest.approx(node._slopes[0], rel=1e-14, abs=0)
    if name != "absolute":
        assert diff(getattr(Dual, name))(x) == diff(f)(x)


@pytest.mark.parametrize(("name", "x"), [c for c in CASES if abs(c[1]) > 0.1])
def test_rule_twice_against_measured_slope_of_slope(name: str, x: float) -> None:
    f = getattr(dual, name)
    assert gradcheck(diff(f), x, diff(diff(f)))


@pytest.mark.parametrize("x", [-1000.0, -40.0, -1e-9, 0.0, 1e-9, 40.0, 1000.0])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus"])
def test_stable_functions_far_out(name: str, x: float) -> None:
    node = getattr(value, name)(Value(x))
    out, slope = jvp(getattr(dual, name), [x], [1.0])
    assert out == node.data
    assert slope == pytest.approx(node._slopes[0], rel=1e-13, abs=0)
    assert math.isfinite(diff(diff(getattr(dual, name)))(x))


PAIRS = [(2.0, 3.0), (0.5, -1.5), (3.0, 1.0), (1.5, 0.0), (2.0, 2.0)]
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda x, y: x / (y + 5),
    "**": operator.pow,
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_with_a_plain_number_on_either_side(name: str, pair: tuple[float, float]) -> None:
    f, (x, y) = OPERATORS[name], pair
    a, b = Value(x), Value(y)
    f(a, b).backward()
    both = gradient(lambda p: f(p[0], p[1]), [x, y])
    assert both == pytest.approx([a.grad, b.grad], rel=1e-14)
    assert diff(lambda t: f(t, y))(x) == both[0] and diff(lambda t: f(x, t))(y) == both[1]
    if y == int(y):
        assert diff(lambda t: f(t, int(y)))(x) == both[0]


@pytest.mark.parametrize("f", [dual.maximum, dual.minimum])
@pytest.mark.parametrize(("x", "y"), [(1.0, 2.0), (2.0, 1.0), (2.0, 2.0), (-1.0, -3.0)])
def test_maximum_and_minimum_like_chapter_3(f: Any, x: float, y: float) -> None:
    node = getattr(value, f.__name__)(Value(x), Value(y))
    assert gradient(lambda p: f(*p), [x, y]) == list(node._slopes)
    assert f(x, y) == node.data and isinstance(f(x, y), float)
    assert diff(lambda t: f(t, y).exp())(x) == node._slopes[0] * math.exp(node.data)


def test_builtin_max_sum_and_sorted() -> None:
    assert gradient(lambda p: max(p) * min(p), [2.0, 5.0, 3.0]) == [5.0, 2.0, 0.0]
    assert gradient(sum, [1.0, 2.0]) == [1.0, 1.0]
    assert gradient(lambda p: sorted(p)[0], [2.0, 1.0]) == [0.0, 1.0]


def test_power_of_zero_and_its_derivatives() -> None:
    cube = diff(diff(diff(lambda x: x**3)))
    assert cube(0.0) == 6.0 and diff(cube)(0.0) == 0.0
    assert diff(lambda x: x**0)(0.0) == 0.0 and diff(lambda x: x**1)(0.0) == 1.0
    assert diff(lambda n: 0.0**n)(2.0) == 0.0
    # d/dn d/dx x**n at n = 0 is 1/x: the 0 in front of the slope must keep moving
    assert diff(lambda n: diff(lambda x: x**n)(4.0))(0.0) == 0.25
    assert diff(lambda x: diff(lambda n: x**n)(0.0))(4.0) == 0.25


def test_comparisons_and_truth_look_at_plain_numbers() -> None:
    x = Dual(Dual(2.0, [5.0], 1), [7.0], 2)
    assert x == 2.0 and x != 3.0 and x == Dual(2.0)
    assert x < 3 and Dual(3.0) > x and x <= 2 and x >= 2 and not x > 2
    assert x and not Dual(0.0) and real(x) == 2.0
    with pytest.raises(TypeError):
        hash(x)


# ------------------------------------------------------------- perturbation confusion


def draft_diff(f: Callable[[Any], Any], x: Any) -> Any:
    "A derivative whose tangents all have the same level: what not to do."
    out = f(Dual(x, [1.0], 0))
    return out.tangents[0] if isinstance(out, Dual) else 0.0


PROGRAMS: list[tuple[str, Callable[[Any], Any], float, float]] = [
    ("x * d/dy (x + y)", lambda D: D(lambda x: x * D(lambda y: x + y, 1.0), 1.0), 1.0, 2.0),
    ("x * d/dy (x * y)", lambda D: D(lambda x: x * D(lambda y: x * y, 2.0), 3.0), 6.0, 5.0),
    ("x * d/dy x", lambda D: D(lambda x: x * D(lambda y: x, 1.0), 1.0), 0.0, 1.0),
    ("d/dy (x y) at x", lambda D: D(lambda x: D(lambda y: x * y, 4.0), 5.0), 1.0, 0.0),
]


def library_diff(f: Callable[[Any], Any], x: Any) -> Any:
    return diff(f)(x)


@pytest.mark.parametrize(("program", "right", "wrong"), [p[1:] for p in PROGRAMS])
def test_confusing_programs(program: Any, right: float, wrong: float) -> None:
    assert program(library_diff) == right
    assert program(draft_diff) == wrong != right


def test_three_levels_and_all_orders() -> None:
    def f(x: Any, y: Any, z: Any) -> Any:
        return exp(x * y) * sin(y * z) + x * z * z

    at = {"x": 0.3, "y": -0.8, "z": 1.2}

    def partials(order: str, **fixed: Any) -> Any:
        if not order:
            return f(**{**at, **fixed})
        return diff(lambda t: partials(order[1:], **fixed, **{order[0]: t}))(at[order[0]])

    values = [partials(o) for o in ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")]
    assert values == pytest.approx([values[0]] * 6, rel=1e-12)
    xy = lambda z: diff(lambda x: diff(lambda y: f(x, y, z))(-0.8))(0.3)  # noqa: E731
    assert gradcheck(xy, 1.2, values[0])


def test_inner_derivative_at_an_outer_variable() -> None:
    assert diff(lambda x: x * diff(lambda y: y**3)(x))(2.0) == 36.0  # x * 3x², so 9x²
    assert diff(lambda x: diff(lambda y: x * diff(lambda z: x * y * z)(x))(x))(2.0) == 4.0
    out, moved = jvp(lambda x: jvp(lambda y: x * y, [3.0], [x])[1], [5.0], [1.0])
    assert (out, moved) == (25.0, 10.0)  # the inner seed moves as well


def test_higher_order_function_is_refused() -> None:
    "The program of Manzyuk et al. (2019): a derivative whose value is a function."

    def shift(u: Any) -> Any:
        return lambda f: lambda x: f(x + u)

    with pytest.raises(TypeError, match="not a number"):
        diff(shift)(0.0)


def test_a_number_that_outlives_its_derivative() -> None:
    kept: list[Any] = []
    diff(lambda x: kept.append(x) or x * x)(3.0)
    assert real(diff(lambda y: y * kept[0])(2.0)) == 3.0  # an old number is a constant

    def leaks(x: Any) -> Any:
        diff(lambda y: kept.append(y) or y)(1.0)
        return x * kept[-1]

    with pytest.raises(ValueError, match="has ended"):
        diff(leaks)(2.0)


def test_levels_survive_exceptions() -> None:
    with pytest.raises(DomainError):
        diff(lambda x: x * diff(log)(x - x))(1.0)
    assert diff(lambda x: x * diff(lambda y: x + y)(1.0))(1.0) == 1.0


def test_generators_and_lazy_work() -> None:
    "Work done later, inside another derivative, keeps its own level."

    def lazily(x: Any) -> Iterator[Any]:
        yield x * diff(lambda y: x + y)(1.0)

    assert diff(lambda x: next(lazily(x)))(1.0) == 1.0


# ------------------------------------------------------------- errors


NO_SLOPE: list[tuple[Callable[[Any], Any], float, str]] = [
    (lambda x: 1 / x, 0.0, "1.0 / 0.0: division by zero"),
    (lambda x: x / 0, 2.0, "2.0 / 0.0: division by zero"),
    (lambda x: x**-1, 0.0, "pow(0.0, -1.0): not defined there"),
    (lambda x: x**0.5, 0.0, "pow(0.0, 0.5): the value is 0 but the slope is infinite"),
    (lambda x: x**0.5, -2.0, "pow(-2.0, 0.5): not defined there"),
    (lambda x: x**x, -2.0, "pow(-2.0, -2.0): no slope with respect to the exponent"),
    (lambda x: x**x, 0.0, "pow(0.0, 0.0): no slope with respect to the exponent"),
    (lambda x: (-2) ** x, 3.0, "pow(-2.0, 3.0): no slope with respect to the exponent"),
    (lambda x: x**999, 10.0, "pow(10.0, 999.0): the result is larger than any float"),
    (lambda x: x.sqrt(), 0.0, "sqrt(0.0): the value is 0 but the slope is infinite"),
    (lambda x: x.sqrt(), -1.0, "sqrt(-1.0): not defined there"),
    (lambda x: x.log(), 0.0, "log(0.0): not defined there"),
    (lambda x: x.log(), -1.0, "log(-1.0): not defined there"),
    (lambda x: x.log1p(), -1.0, "log1p(-1.0): not defined there"),
    (lambda x: x.exp(), 710.0, "exp(710.0): the result is larger than any float"),
    (lambda x: x.expm1(), 710.0, "expm1(710.0): the result is larger than any float"),
    (lambda x: x.sin(), math.inf, "sin(inf): not defined there"),
    (lambda x: x.cos(), math.inf, "cos(inf): not defined there"),
    (lambda x: x.tan(), -math.inf, "tan(-inf): not defined there"),
]


@pytest.mark.parametrize(("f", "x", "message"), NO_SLOPE, ids=[m for *_, m in NO_SLOPE])
def test_domain_errors_have_the_words_of_chapter_3(f: Any, x: float, message: str) -> None:
    with pytest.raises(DomainError) as forward:
        diff(f)(x)
    assert str(forward.value) == message
    assert isinstance(forward.value, (ValueError, ZeroDivisionError, OverflowError))
    with pytest.raises(value.DomainError) as back:
        f(Value(x))
    assert str(back.value) == message


def test_domain_error_of_a_second_derivative() -> None:
    assert diff(lambda x: x**1.5)(0.0) == 0.0
    with pytest.raises(DomainError, match="slope is infinite"):
        diff(diff(lambda x: x**1.5))(0.0)


def test_plain_numbers_give_plain_numbers_and_the_same_errors() -> None:
    assert exp(1.0) == math.e and isinstance(sqrt(4), float) and sqrt(0.0) == 0.0
    assert dual.power(2, 3) == 8.0 and dual.divide(1, 4) == 0.25 and dual.absolute(-2.0) == 2.0
    with pytest.raises(DomainError, match=r"log\(0.0\)"):
        log(0.0)
    with pytest.raises(DomainError, match="division by zero"):
        dual.divide(1.0, 0.0)


@pytest.mark.parametrize("answer", [None, "7", math.sin, [1.0, "2"], 2j])
def test_results_that_are_no_numbers(answer: Any) -> None:
    with pytest.raises(TypeError, match="not a number"):
        diff(lambda x: answer)(1.0)


def test_wrong_inputs() -> None:
    with pytest.raises(TypeError):
        diff(sin)("3")
    with pytest.raises(TypeError):
        diff(sin)(Value(3.0))  # would lose its history
    with pytest.raises(TypeError, match="must be real number, not Dual"):
        diff(math.sin)(1.0)
    with pytest.raises(TypeError):
        diff(lambda x: x + "1")(1.0)
    with pytest.raises(TypeError, match="unhashable"):
        diff(functools.cache(lambda x: x * x))(2.0)
    with pytest.raises(ValueError, match="2 primals, but 1 tangents"):
        jvp(operator.mul, [1.0, 2.0], [1.0])
    with pytest.raises(ValueError):
        Dual(1.0, [1.0, 0.0]) * Dual(1.0, [1.0])  # two directions meet one


# ------------------------------------------------------------- the interface


def test_shapes_of_results() -> None:
    assert jvp(lambda x: 7.0, [2.0], [1.0]) == (7.0, 0.0)
    assert jvp(lambda x: [x * x, 3.0, x], [2.0], [1.0]) == ([4.0, 3.0, 2.0], [4.0, 0.0, 1.0])
    assert diff(lambda x: (x, x * x))(3.0) == [1.0, 6.0]
    assert gradient(lambda xs: 4.0, [1.0, 2.0]) == [0.0, 0.0] and gradient(sum, []) == []
    xs = [1.0, 2.0]
    assert gradient(lambda p: p[0] * p[1], xs) == [2.0, 1.0] and xs == [1.0, 2.0]


def test_hessian_by_nesting_gradients() -> None:
    rng = random.Random(2)
    xs = [rng.uniform(-1, 1) for _ in range(4)]

    def f(p: Any) -> Any:
        return sigmoid(p[0] * p[1]) * tanh(p[2]) + exp(p[3] * p[0])

    hessian = [gradient(lambda p, i=i: gradient(f, p)[i], xs) for i in range(4)]
    for i, row in enumerate(hessian):
        assert gradcheck(lambda p, i=i: gradient(f, p)[i], xs, row)
        assert row == pytest.approx([hessian[j][i] for j in range(4)], rel=1e-12, abs=1e-15)


def test_one_sweep_calls_f_once() -> None:
    calls = []
    gradient(lambda p: calls.append(0) or sum(x * x for x in p), [1.0] * 50)
    assert len(calls) == 1


def test_long_chains_need_no_stack() -> None:
    def f(x: Any) -> Any:
        for _ in range(20_000):
            x = x + 1e-4
        return x

    assert diff(f)(0.0) == 1.0


# ------------------------------------------------------------- Newton's method


@quick
@given(st.floats(0, 0.97), st.floats(0.01, 2 * math.pi - 0.01))
def test_newton_solves_kepler_and_so_does_its_slope(e: float, M: float) -> None:
    def anomaly(m: Any) -> Any:
        return newton(lambda E: E - e * sin(E) - m, math.pi)

    E, slope = jvp(anomaly, [M], [1.0])
    assert abs(E - e * math.sin(E) - M) < 1e-13
    assert slope == pytest.approx(1 / (1 - e * math.cos(E)), rel=1e-9)


def test_newton_says_how_it_ended() -> None:
    with pytest.raises(NoZero, match="after 50 steps"):
        newton(lambda x: x * x + 1, 0.5)
    with pytest.raises(DomainError, match="division by zero"):
        newton(lambda x: x * x + 1, 0.0)
    with pytest.raises(NoZero):
        newton(lambda x: x * math.nan, 1.0)
    assert newton(lambda x: x**3 - 8, 3.0) == pytest.approx(2.0, rel=1e-15)
    assert isinstance(NoZero(), ArithmeticError)
