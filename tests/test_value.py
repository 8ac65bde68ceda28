"""Properties of `Value` that a chapter can't show: random expressions, peers, faults, lifetimes."""

from __future__ import annotations

import copy
import gc
import importlib.util
import math
import operator
import pickle
import random
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradbook.scalar.numdiff import gradcheck
from gradbook.scalar.dual import DomainError
from gradbook.scalar.value import Value, dot, topological_order, total

numbers = st.floats(-2.0, 2.0).filter(lambda a: a == 0 or abs(a) > 1e-3)
UNARY = [
    operator.neg,
    *(
        getattr(Value, n)
        for n in ["exp", "expm1", "sin", "cos", "sigmoid", "tanh", "softplus", "relu"]
    ),
    Value.leaky_relu,
    abs,
    lambda x: (x * x + 1).log(),
    lambda x: (x * x).log1p(),
    lambda x: (x * x + 0.5).sqrt(),
    lambda x: (x.sigmoid() - 0.5).tan(),
    lambda x: x**3,
    lambda x: 2**x,
    lambda x: 1 - x,
]
BINARY = [
    operator.add,
    operator.sub,
    operator.mul,
    Value.maximum,
    Value.minimum,
    lambda x, y: x / (y * y + 1),
    lambda x, y: (x * x + 1) ** y,
    lambda x, y: dot([x, 2.0, y], [y, x, y], 0.5),
    lambda x, y: 1 / (total([x, y]).exp() + 1),
]


def leaf(i):
    return lambda xs: xs[i]


def expressions():
    "Functions of a list of three Values, built at random from the rules above."
    leaves = st.integers(0, 2).map(leaf)

    def grow(inner):
        one = st.tuples(st.sampled_from(UNARY), inner)
        two = st.tuples(st.sampled_from(BINARY), inner, inner)
        return st.one_of(
            one.map(lambda t: lambda xs: t[0](t[1](xs))),
            two.map(lambda t: lambda xs: t[0](t[1](xs), t[2](xs))),
        )

    return st.recursive(leaves, grow, max_leaves=6)


def slopes(f, point):
    "The value of `f` and its slopes by reverse mode."
    xs = [Value(a) for a in point]
    y = f(xs)
    y.backward()
    return y.data, [x.grad for x in xs]


def at_a_kink(node):
    "Whether a node was computed exactly at a kink, where chosen slopes need not compose."
    a = [source.data for source in node._prev]
    one = node._op in ("abs", "ReLU", "leaky") and a[0] == 0
    return one or (node._op in ("max", "min") and a[0] == a[1])


def tame(f, point):
    "Value and slopes, or give up on an example that is out of range."
    xs = [Value(a) for a in point]
    try:
        y = f(xs)
    except DomainError:
        assume(False)
    y.backward()
    assume(all(abs(n.data) < 1e4 and abs(n.grad) < 1e4 for n in topological_order(y)))
    return y.data, [x.grad for x in xs]


@settings(max_examples=60, deadline=None)
@given(expressions(), st.lists(numbers, min_size=3, max_size=3))
def test_random_expressions_agree_with_measuring(f, point):
    _, grads = tame(f, point)
    assume(not any(map(at_a_kink, topological_order(f([Value(a) for a in point])))))
    report = gradcheck(lambda n: f([Value(a) for a in n]), point, grads, tol=1e-6)
    wrong = [r for r in report.rows if r.problem == "wrong" and abs(r.yours - r.expected) > 1e-12]
    assert not wrong, report


@settings(max_examples=60, deadline=None)
@given(expressions(), expressions(), st.lists(numbers, min_size=3, max_size=3))
def test_product_rule(f, g, point):
    (a, da), (b, db) = tame(f, point), tame(g, point)
    _, dab = tame(lambda xs: f(xs) * g(xs), point)
    for u, v, w in zip(da, db, dab, strict=True):
        assert w == pytest.approx(u * b + a * v, rel=1e-9, abs=1e-9 * (abs(u * b) + abs(a * v) + 1))


@settings(max_examples=60, deadline=None)
@given(expressions(), expressions(), numbers, numbers, st.lists(numbers, min_size=3, max_size=3))
def test_linearity(f, g, s, t, point):
    (_, da), (_, db) = tame(f, point), tame(g, point)
    _, dab = tame(lambda xs: s * f(xs) + t * g(xs), point)
    for u, v, w in zip(da, db, dab, strict=True):
        assert w == pytest.approx(s * u + t * v, rel=1e-9, abs=1e-9 * (abs(s * u) + abs(t * v) + 1))


@settings(max_examples=40, deadline=None)
@given(expressions(), st.lists(numbers, min_size=3, max_size=3))
def test_two_sweeps_add_up_at_the_leaves(f, point):
    _, once = tame(f, point)
    xs = [Value(a) for a in point]
    y = f(xs)
    y.backward()
    y.backward()
    if y not in xs:
        assert [x.grad for x in xs] == pytest.approx([2 * g for g in once], rel=1e-9, abs=1e-9)
    y.zero_grad()
    assert all(node.grad == 0 for node in topological_order(y))


@settings(max_examples=40, deadline=None)
@given(expressions(), st.lists(numbers, min_size=3, max_size=3))
def test_order_puts_users_first(f, point):
    tame(f, point)
    order = topological_order(f([Value(a) for a in point]))
    place = {node: k for k, node in enumerate(order)}
    assert len(place) == len(order)
    assert all(place[node] < place[source] for node in order for source in node._prev)


@given(st.lists(st.tuples(numbers, numbers), max_size=8), numbers)
def test_dot_is_the_sum_of_products(pairs, start):
    ws, xs, b = [Value(a) for a, _ in pairs], [Value(a) for _, a in pairs], Value(start)
    one = dot(ws, xs, b)
    many = sum((w * x for w, x in zip(ws, xs, strict=True)), b)
    assert one.data == many.data
    one.backward()
    assert [w.grad for w in ws] == [x.data for x in xs]
    assert [x.grad for x in xs] == [w.data for w in ws]
    assert b.grad == 1.0


def test_dot_edges():
    assert dot([], []).data == 0.0 and type(dot([1.0, 2], [3.0, 4])) is Value
    assert total([Value(1.0), 2.0, Value(3.0)]).data == 6.0 and total([]).data == 0.0
    x = Value(3.0)
    dot([x, x], [x, 1.0], x).backward()
    assert x.grad == 8.0
    with pytest.raises(ValueError, match="2 numbers can't be paired with 1"):
        dot([x, x], [x])


# domain errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "point", "message"),
    [
        (Value.log, (0.0,), "log(0.0): not defined"),
        (Value.log, (-1.5,), "log(-1.5): not defined"),
        (Value.log1p, (-1.0,), "log1p(-1.0): not defined"),
        (Value.sqrt, (-4.0,), "sqrt(-4.0): not defined"),
        (Value.sqrt, (0.0,), "sqrt(0.0): the value is 0 but the slope is infinite"),
        (Value.exp, (1000.0,), "exp(1000.0): the result is larger than any float"),
        (Value.expm1, (1000.0,), "expm1(1000.0): the result is larger"),
        (Value.sin, (math.inf,), "sin(inf): not defined"),
        (Value.cos, (math.inf,), "cos(inf): not defined"),
        (Value.tan, (-math.inf,), "tan(-inf): not defined"),
        (operator.truediv, (1.0, 0.0), "1.0 / 0.0: division by zero"),
        (lambda x: x / 0, (2.0,), "2.0 / 0.0: division by zero"),
        (lambda x: 3 / x, (0.0,), "3.0 / 0.0: division by zero"),
        (lambda x: x / -0.0, (2.0,), "2.0 / -0.0: division by zero"),
        (lambda x: x**-1, (0.0,), "pow(0.0, -1.0): not defined"),
        (lambda x: x**0.5, (-2.0,), "pow(-2.0, 0.5): not defined"),
        (lambda x: x**0.5, (0.0,), "pow(0.0, 0.5): the value is 0 but the slope is infinite"),
        (lambda x: x**400, (1e3,), "pow(1000.0, 400.0): the result is larger"),
        (operator.pow, (-2.0, 3.0), "pow(-2.0, 3.0): no slope with respect to the exponent"),
        (operator.pow, (0.0, 0.0), "pow(0.0, 0.0): no slope with respect to the exponent"),
        (operator.pow, (0.0, -1.0), "pow(0.0, -1.0): not defined"),
        (lambda x: (-2) ** x, (0.5,), "pow(-2.0, 0.5): not defined"),
    ],
)
def test_domain_errors_show_the_call(f, point, message):
    with pytest.raises(DomainError) as caught:
        f(*map(Value, point))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("kind", [ValueError, ArithmeticError, ZeroDivisionError, OverflowError])
def test_domain_errors_are_caught_as_pythons_own(kind):
    with pytest.raises(kind):
        1 / Value(0.0)


@pytest.mark.parametrize("f", [Value.sigmoid, Value.tanh, Value.softplus])
@pytest.mark.parametrize("a", [-1e308, -1000.0, -40.0, 40.0, 1000.0, 1e308])
def test_far_out_nothing_overflows(f, a):
    y, (slope,) = slopes(lambda xs: f(xs[0]), [a])
    assert math.isfinite(y) and 0 <= slope <= 1


def test_tails_keep_their_digits():
    for a in (-30.0, -10.0, 10.0, 30.0):
        _, (s,) = slopes(lambda xs: xs[0].sigmoid(), [a])
        _, (t,) = slopes(lambda xs: xs[0].tanh(), [a])
        assert s == pytest.approx(1 / (2 + 2 * math.cosh(a)), rel=1e-14)
        assert t == pytest.approx(1 / math.cosh(a) ** 2, rel=1e-14)


def test_powers_at_zero():
    assert slopes(lambda xs: xs[0] ** 2, [0.0]) == (0.0, [0.0])
    assert slopes(lambda xs: xs[0] ** 1, [0.0]) == (0.0, [1.0])
    assert slopes(lambda xs: xs[0] ** 0, [0.0]) == (1.0, [0.0])
    assert slopes(lambda xs: xs[0] ** xs[1], [0.0, 2.0]) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("f", "point", "chosen"),
    [
        (abs, (0.0,), [0.0]),
        (Value.relu, (0.0,), [0.0]),
        (Value.leaky_relu, (0.0,), [0.01]),
        (Value.maximum, (5.0, 5.0), [1.0, 0.0]),
        (Value.minimum, (5.0, 5.0), [1.0, 0.0]),
    ],
)
def test_slopes_chosen_at_kinks(f, point, chosen):
    assert slopes(lambda xs: f(*xs), point)[1] == chosen


# size and lifetime --------------------------------------------------------------------------


def test_chain_of_100_000_is_swept_copied_and_freed():
    x = y = Value(1.0)
    for _ in range(100_000):
        y = y * 1.0
    y.backward()
    assert x.grad == 1.0 and sys.getrecursionlimit() < 100_000
    assert copy.deepcopy(y).data == 1.0
    del y  # must not overflow the C stack either


def test_graph_has_no_cycles():
    x = Value(0.5)
    gc.collect()
    gc.disable()
    try:
        y = total([(x * k).sin() for k in range(100)])
        y.backward()
        del y
        assert gc.collect() == 0, "a graph should be freed as soon as it is let go"
    finally:
        gc.enable()


def test_copies_are_leaves():
    y = Value(2.0) * 3
    for other in (copy.copy(y), copy.deepcopy(y), pickle.loads(pickle.dumps(y))):
        assert (type(other), other.data, other._prev) == (Value, 6.0, ())
        (other * 2).backward()
        assert other.grad == 2.0 and y.grad == 0.0


def test_slopes_belong_to_the_forward_run():
    x, w = Value(3.0), Value(2.0)
    y = x * w
    w.data = 100.0
    y.backward()
    assert x.grad == 2.0


# as a Python number -------------------------------------------------------------------------


def test_equality_is_identity_and_order_is_by_data():
    a, b = Value(2.0), Value(2.0)
    assert a != b and len({a, b, a}) == 2
    assert a <= b <= 2 and a >= b and not a < b and 1 < a < 3 and a < 3
    assert max(Value(1.0), a) is a and sorted([a, Value(1.0)])[1] is a


@pytest.mark.parametrize("bad", ["3", None, [1.0], 1j, {}])
def test_only_numbers_become_values(bad):
    with pytest.raises(TypeError):
        Value(bad)
    for f in (operator.add, operator.sub, operator.mul, operator.truediv, operator.lt):
        with pytest.raises(TypeError):
            f(Value(2.0), bad)
    with pytest.raises(TypeError):
        Value(2.0) ** bad


def test_numpy_numbers_are_numbers():
    np = pytest.importorskip("numpy", reason="NumPy is not installed")
    x = Value(np.float32(3))
    y = np.float64(2) * x - np.int64(1) + x / np.float64(3)
    assert type(x.data) is float and type(y) is Value and y.data == 6.0
    y.backward()
    assert x.grad == pytest.approx(2 + 1 / 3)


# micrograd ----------------------------------------------------------------------------------

needs_micrograd = pytest.mark.skipif(
    importlib.util.find_spec("micrograd") is None,
    reason="micrograd is not installed: pip install 'gradbook[compare]'",
)


def readme(value):
    "The example in micrograd's README, which prints 24.7041, 138.8338 and 645.5773."
    a, b = value(-4.0), value(2.0)
    c, d = a + b, a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + (b + a).relu()
    d += 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    g = f / 2.0
    g += 10.0 / f
    g.backward()
    return g, a, b


def test_micrograds_readme():
    g, a, b = readme(Value)
    assert [f"{n:.4f}" for n in (g.data, a.grad, b.grad)] == ["24.7041", "138.8338", "645.5773"]


@needs_micrograd
def test_same_names_as_micrograd():
    from micrograd.engine import Value as Theirs

    ours, theirs = readme(Value), readme(Theirs)
    for p, q in zip(ours, theirs, strict=True):
        assert p.data == pytest.approx(q.data, rel=1e-14)
        assert p.grad == pytest.approx(q.grad, rel=1e-14)
    assert repr(Value(2.0)).startswith("Value(data=2.0, grad=0")
    for x in (Value(2.0), Theirs(2.0)):
        assert [y._op for y in (x, x + 1, x * 2, x**2, x.relu())] == ["", "+", "*", "**2", "ReLU"]
        assert set((x * x)._prev) == {x}
    assert {name for name in vars(Theirs) if name != "__dict__"} - set(dir(Value)) <= {
        "__module__",
        "__weakref__",
    }


@needs_micrograd
def test_micrograds_networks_train_on_our_values(monkeypatch):
    "micrograd's own MLP, running on its Value and on ours: the same losses and weights."
    from micrograd import engine, nn

    def train(value):
        monkeypatch.setattr(nn, "Value", value)
        rng = random.Random(2)
        monkeypatch.setattr(nn, "random", rng)
        model, losses = nn.MLP(2, [4, 4, 1]), []
        points = [(rng.uniform(-1, 1), rng.uniform(-1, 1)) for _ in range(12)]
        for _ in range(8):
            scores = [model([value(a), value(b)]) for a, b in points]
            signs = [1 if a * b > 0 else -1 for a, b in points]
            hinge = [(1 + -s * y).relu() for s, y in zip(signs, scores, strict=True)]
            loss = sum(hinge) * (1 / 12) + 1e-4 * sum(p * p for p in model.parameters())
            model.zero_grad()
            loss.backward()
            for p in model.parameters():
                p.data -= 0.1 * p.grad
            losses.append(loss.data)
        return losses, [p.data for p in model.parameters()]

    for ours, theirs in zip(train(Value), train(engine.Value), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-9)
