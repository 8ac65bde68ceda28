"grad, vjp, jvp, linearize, Jacobians: nesting, confusion, histories, trees, errors, peers."

from __future__ import annotations

import gc
import threading
import weakref
from collections import namedtuple
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

import gradbook.tensor.ops  # noqa: F401  (all primitives, all methods)
from gradbook.tensor import core, creation, elementwise, linalg
from gradbook.tensor.backend import DtypeError, using
from gradbook.tensor.core import ShapeError, Tensor, custom_vjp, exp, no_grad
from gradbook.tensor.elementwise import cos, sin, tanh
from gradbook.tensor.transforms import (
    Dual,
    TransformError,
    grad,
    hessian,
    hvp,
    jacfwd,
    jacobian,
    jacrev,
    jvp,
    linearize,
    running,
    value_and_grad,
    vjp,
    vmap,
)
from gradbook.tensor.tree import StructureError


@pytest.fixture(autouse=True)
def double():
    with using(dtype="float64"):
        yield
    assert not running.levels


def diff(f):
    return lambda x: jvp(f, (x,), (1.0,))[1]


def lin(f):
    return lambda x: linearize(f, x)[1](1.0)


def pull(f):
    return lambda x: vjp(f, x)[1](1.0)[0]


def columns(f):
    return lambda x: jacfwd(f)(x)


def each(f):
    return lambda x: vmap(grad(f))(x * Tensor([1.0, 1.0]))[0]


WAYS = [diff, grad, lin, pull, columns, each]
f = lambda x: exp(x * x) * x  # noqa: E731
F = [
    lambda x: np.exp(x * x) * (1 + 2 * x * x),
    lambda x: np.exp(x * x) * (6 * x + 4 * x**3),
    lambda x: np.exp(x * x) * (6 + 24 * x * x + 8 * x**4),
]


@pytest.mark.parametrize(
    "ways",
    [*product(WAYS, repeat=2), *product([diff, grad, lin, each], repeat=3)],
    ids=lambda ways: "-".join(w.__name__ for w in ways),
)
def test_nested_derivatives(ways):
    g = f
    for way in ways:
        g = way(g)
    out = g(Tensor(0.7))
    np.testing.assert_allclose(float(out), F[len(ways) - 1](0.7), rtol=1e-12)
    assert not out.requires_grad


@pytest.mark.parametrize("outer,inner", list(product(WAYS, repeat=2)))
def test_no_perturbation_confusion(outer, inner):
    "Siskind and Pearlmutter (2005, 2008), and variations."
    one = Tensor(1.0)
    assert float(outer(lambda x: x * inner(lambda y: x + y)(one))(one)) == 1.0
    assert float(outer(lambda x: x * inner(lambda y: x * y)(Tensor(2.0)))(Tensor(3.0))) == 6.0
    assert float(outer(lambda x: inner(lambda y: x * x)(one) * one + x)(one)) == 1.0
    assert float(outer(lambda x: x * inner(lambda y: x * y * y)(x))(Tensor(2.0))) == 24.0


@pytest.mark.parametrize("a,b,c", list(product([diff, grad], repeat=3)))
def test_no_confusion_three_deep(a, b, c):
    g = a(lambda x: x * b(lambda y: y * x * c(lambda z: x * y * z * z)(y))(x))
    # c: 2xyz at z = y -> 2 x y^2; b: d/dy (2 x^2 y^3) = 6 x^2 y^2 at y = x -> 6 x^4; a: d/dx 6 x^5
    np.testing.assert_allclose(float(g(Tensor(1.5))), 30 * 1.5**4, rtol=1e-13)


def test_the_amazing_bug():
    "Manzyuk et al. (2019): the derivative of a shift by its shift, applied twice."
    shift = lambda u: lambda g: lambda x: g(x + u)  # noqa: E731
    for D in (diff, grad):
        d_shift = lambda g, D=D: lambda x: D(lambda u: shift(u)(g)(x))(0.0)  # noqa: E731
        np.testing.assert_allclose(float(d_shift(d_shift(exp))(1.0)), np.e, rtol=1e-13)
        with pytest.raises(TransformError, match="f returned <function"):
            D(shift)(0.0)


def test_hessian_of_rosenbrock():
    f = lambda x: 100.0 * (x[1] - x[0] * x[0]) ** 2 + (1.0 - x[0]) ** 2  # noqa: E731
    x, v = Tensor([-1.2, 1.0]), Tensor([1.0, -1.0])
    H = np.array([[1330.0, 480.0], [480.0, 200.0]])
    for second in (
        hessian(f),
        jacfwd(grad(f)),
        jacrev(grad(f)),
        jacrev(jacfwd(f)),
        jacfwd(jacfwd(f)),
        jacobian(jacobian(f)),
    ):
        np.testing.assert_allclose(second(x).data, H, rtol=1e-13)
    np.testing.assert_allclose(hvp(f, (x,), (v,)).data, H @ v.data, rtol=1e-13)
    reverse = lambda x: (grad(f)(x) * v).sum()  # noqa: E731
    np.testing.assert_allclose(grad(reverse)(x).data, H @ v.data, rtol=1e-13)
    np.testing.assert_allclose(
        grad(lambda x: jvp(f, (x,), (v,))[1])(x).data, H @ v.data, rtol=1e-13
    )


def test_against_measured_slopes():
    rng = np.random.default_rng(0)
    w = Tensor(rng.normal(size=(4, 3)))
    f = lambda x: (tanh(x @ w) * cos(x[:3])).sum() * sin(x[0])  # noqa: E731
    x, h = rng.normal(size=4), 1e-5
    g = lambda x: grad(f)(Tensor(x)).data  # noqa: E731
    measured = np.stack([(g(x + h * e) - g(x - h * e)) / (2 * h) for e in np.eye(4)])
    np.testing.assert_allclose(hessian(f)(Tensor(x)).data, measured, atol=1e-8)


def test_shapes_of_jacobians():
    x = Tensor(np.arange(1.0, 7.0).reshape(2, 3))
    f = lambda x: {"a": x.T @ x, "b": (x.sum(), x[0])}  # noqa: E731
    for jac in (jacfwd, jacrev, jacobian):
        J = jac(f)(x)
        assert (
            J["a"].shape == (3, 3, 2, 3)
            and J["b"][0].shape == (2, 3)
            and J["b"][1].shape == (3, 2, 3)
        )
        expected = np.zeros((3, 3, 2, 3))
        for i, j, k in product(range(3), range(3), range(2)):
            expected[i, j, k, i] += x.data[k, j]
            expected[i, j, k, j] += x.data[k, i]
        np.testing.assert_allclose(J["a"].data, expected)
    pair = jacobian(lambda p, q: p["w"] * q, argnums=(0, 1))({"w": x[0]}, Tensor(2.0))
    assert pair[0]["w"].tolist() == (2 * np.eye(3)).tolist() and pair[1].tolist() == [1.0, 2.0, 3.0]
    H = hessian(lambda p: (p["w"] ** 2).sum() * p["b"])({"w": x[0], "b": Tensor(2.0)})
    assert H["w"]["w"].shape == (3, 3) and H["w"]["b"].shape == (3,) and H["b"]["b"].shape == ()
    assert H["w"]["b"].tolist() == H["b"]["w"].tolist() == [2.0, 4.0, 6.0]


def test_jacobian_runs_f_once_in_reverse_and_twice_forward():
    calls = []
    for n, m, expected in ((5, 2, 1), (2, 5, 2)):
        w = Tensor(np.ones((m, n)))
        calls.clear()
        jacobian(lambda x, w=w: calls.append(0) or w @ tanh(x))(Tensor(np.ones(n)))
        assert len(calls) == expected


Point = namedtuple("Point", "x y")


@dataclass
class Model:
    weight: Tensor
    bias: Tensor | None


def test_trees_in_and_out():
    p = {"l": [Model(Tensor([1.0, 2.0]), None)], "p": Point(Tensor(3.0), Tensor(4.0))}
    loss = lambda p: (p["l"][0].weight ** 2).sum() * p["p"].x  # noqa: E731
    g = grad(loss)(p)
    assert g["l"][0].weight.tolist() == [6.0, 12.0] and g["l"][0].bias is None
    assert float(g["p"].x) == 5.0 and float(g["p"].y) == 0.0 and type(g["p"]) is Point
    out, moved = jvp(lambda p: Point(loss(p), p["p"].y), (p,), (p,))
    assert float(out.x) == 15.0 and float(moved.x) == 45.0 and float(moved.y) == 4.0
    out, back = vjp(lambda p: Point(loss(p), p["p"].y), p)
    (q,) = back(Point(1.0, 10.0))
    assert q["l"][0].weight.tolist() == [6.0, 12.0] and float(q["p"].y) == 10.0
    out, push = linearize(lambda p: Point(loss(p), p["p"].y), p)
    assert float(push(p).x) == 45.0


def test_argnums_and_aux():
    f = lambda x, y: (x * y * y, {"sum": x + y, "text": "kept"})  # noqa: E731
    (gx, gy), aux = grad(f, argnums=(0, -1), has_aux=True)(2.0, 3.0)
    assert (float(gx), float(gy)) == (9.0, 12.0)
    assert float(aux["sum"]) == 5.0 and aux["text"] == "kept" and not aux["sum"].requires_grad
    (value, aux), g = value_and_grad(f, argnums=1, has_aux=True)(2.0, 3.0)
    assert (float(value), float(g)) == (18.0, 12.0) and not value.requires_grad
    _, moved, aux = jvp(f, (2.0, 3.0), (1.0, 0.0), has_aux=True)
    assert float(moved) == 9.0 and type(aux["sum"]) is Tensor
    _, back, aux = vjp(f, Tensor(2.0), Tensor(3.0), has_aux=True)
    assert [float(g) for g in back(1.0)] == [9.0, 12.0]


def test_keyword_arguments_and_names():
    def named(x, *, power):
        "What it does."
        return x**power

    assert float(grad(named)(2.0, power=3)) == 12.0
    assert grad(named).__name__ == "named" and grad(named).__doc__ == "What it does."


def test_no_history_unless_somebody_asks():
    w = Tensor([1.0, 2.0], requires_grad=True)
    x = Tensor([3.0, 4.0])
    value, g = value_and_grad(lambda x: (x * x).sum())(x)
    assert not value.requires_grad and not g.requires_grad
    value, g = value_and_grad(lambda x: (x * x * w).sum())(x)
    assert value.requires_grad and g.requires_grad
    (g * g).sum().backward()  # d/dw sum (2 x w)^2 = 8 x^2 w
    assert w.grad.tolist() == [72.0, 256.0]
    value, g = value_and_grad(lambda w: (w * w).sum())(w)
    assert value.requires_grad and g.requires_grad
    with no_grad():
        value, g = value_and_grad(lambda x: (x * x * w).sum())(x)
        assert g.tolist() == [6.0, 16.0] and not value.requires_grad and not g.requires_grad


def test_aux_keeps_the_way_to_a_leaf():
    w = Tensor(2.0, requires_grad=True)

    def f(x):
        h = x * x
        return h.sum(), h * w

    g, aux = grad(f, has_aux=True)(Tensor([1.0, 3.0]))
    aux.sum().backward()
    assert g.tolist() == [2.0, 6.0] and float(w.grad) == 10.0


def test_the_graph_is_let_go():
    kept = []

    def f(x):
        h = x * x
        kept.append(weakref.ref(h))
        return h.sum()

    g = grad(f)(Tensor([1.0, 2.0]))
    gc.collect()
    assert kept[0]() is None and g.tolist() == [2.0, 4.0]


def test_a_plain_gradient_does_not_touch_grad():
    w = Tensor(2.0, requires_grad=True)
    grad(lambda x: x * w)(Tensor(3.0))
    assert w.grad is None


def test_sums_of_three_cotangents_keep_their_tangents():
    "Two of them plain, the third with a tangent, or one per example."
    w = Tensor([2.0, 2.0])
    g = lambda c: grad(lambda w: ((w * 3.0) + w * w + w * c + w * w * w).sum())(w)  # noqa: E731
    assert jvp(g, (1.0,), (1.0,))[1].tolist() == [1.0, 1.0]
    assert grad(lambda c: g(c).sum())(1.0).tolist() == 2.0
    assert vmap(g)(Tensor([1.0, 2.0])).tolist() == [[20.0, 20.0], [21.0, 21.0]]


def test_no_grad_inside():
    def f(x):
        with no_grad():
            c = x * x
        return c * x

    assert float(grad(f)(3.0)) == 9.0
    assert float(grad(lambda x: x.detach() * x)(3.0)) == 3.0
    assert float(diff(lambda x: x.detach() * x)(3.0)) == 3.0


def test_control_flow_sees_the_primal():
    def g(x):
        return x * x if x > 2 else -x

    assert [float(way(g)(Tensor(a))) for way in (grad, diff) for a in (1.0, 3.0)] == [-1.0, 6.0] * 2
    h = lambda x: x * int(x)  # noqa: E731
    assert float(diff(h)(Tensor(3.5))) == 3.0


def test_linearize_runs_f_once():
    calls = []

    def f(x):
        calls.append(0)
        return {"s": sin(x) * x, "k": x.sum()}

    x = Tensor([0.5, 1.0])
    _, push = linearize(f, x)
    for v in ([1.0, 0.0], [0.3, -0.4]):
        expected = jvp(f, (x,), (Tensor(v),))[1]
        calls.clear()
        got = push(Tensor(v))
        assert not calls
        for k in "sk":
            np.testing.assert_allclose(got[k].data, expected[k].data, rtol=1e-13)
            assert not got[k].requires_grad
    np.testing.assert_allclose(
        vmap(push)(Tensor(np.eye(2)))["s"].data, jacfwd(f)(x)["s"].data.T, rtol=1e-13
    )


def test_linearize_of_something_linear():
    w = Tensor([[1.0, 2.0], [3.0, 4.0]])
    _, push = linearize(lambda x: w @ x, Tensor([1.0, 1.0]))
    assert push(Tensor([1.0, -1.0])).tolist() == [-1.0, -1.0]
    _, push = linearize(lambda x: Tensor([5.0]), Tensor([1.0]))
    assert push(Tensor([1.0])).tolist() == [0.0]


def test_a_custom_vjp_has_a_jvp():
    @custom_vjp
    def strange(x, y):
        return x * y, x + y

    strange.def_vjp_all(lambda g, out, x, y: (g[0] * y * 10.0 + g[1], g[0] * x))
    _, moved = jvp(strange, (2.0, 3.0), (1.0, 0.0))
    assert [float(m) for m in moved] == [30.0, 1.0]
    _, moved = jvp(strange, (2.0, 3.0), (0.0, 1.0))
    assert [float(m) for m in moved] == [2.0, 0.0]
    # 10 x * 2 x + x^2 = 21 x^2 by this rule, which from there on is differentiated as it stands
    assert float(diff(diff(lambda x: strange(x * x, x)[0]))(1.0)) == 42.0
    assert float(grad(lambda y: jvp(lambda x: strange(x, y)[0], (2.0,), (1.0,))[1])(3.0)) == 10.0


def test_no_rule_at_all():
    @custom_vjp
    def ruleless(x):
        return x * x

    with pytest.raises(core.GraphError, match="jvp: ruleless has no rule"):
        diff(ruleless)(1.0)


def test_vjp_many_times_and_linear():
    x = Tensor([1.0, 2.0])
    _, back = vjp(lambda x: (x * x, x.sum()), x)
    a, b = back((Tensor([1.0, 0.0]), 0.0))[0], back((Tensor([0.0, 1.0]), 2.0))[0]
    both = back((Tensor([1.0, 1.0]), 2.0))[0]
    assert (a.data + b.data).tolist() == both.tolist() == [4.0, 6.0]
    # differentiable in the cotangent
    g = grad(lambda c: (back((c, 1.0))[0] ** 2).sum())(Tensor([1.0, 1.0]))
    assert g.tolist() == [2 * 3.0 * 2.0, 2 * 5.0 * 4.0]


def test_integers_come_out_of_a_jvp_without_a_slope():
    out, moved = jvp(lambda x: (x > 1, x), (Tensor([1.0, 2.0]),), (Tensor([1.0, 1.0]),))
    assert (
        out[0].tolist() == [False, True]
        and not moved[0].data.any()
        and moved[1].tolist() == [1.0, 1.0]
    )


def test_mixed_dtypes():
    a, b = Tensor(np.float32(2.0)), Tensor(np.array([3.0, 4.0]))
    out, moved = jvp(lambda a: a * b + a, (a,), (1.0,))
    assert out.dtype == moved.dtype == np.float64 and moved.tolist() == [4.0, 5.0]
    assert grad(lambda a: (a * b).sum())(a).dtype == np.float32


@pytest.mark.parametrize(
    "call,kind,says",
    [
        (
            lambda: grad(tanh)(Tensor([1.0, 2.0])),
            ShapeError,
            "shape (2,); reduce it, with sum() say",
        ),
        (lambda: grad(tanh)(Tensor([1.0])), ShapeError, "jacobian"),
        (lambda: grad(lambda x: (x, x))(1.0), TransformError, "a tuple of length 2"),
        (lambda: grad(float)(Tensor(2.0)), TransformError, "f returned 2.0, of type float"),
        (lambda: grad(lambda x: None)(1.0), TransformError, "not None"),
        (lambda: grad(lambda x: x > 0)(1.0), DtypeError, "bool"),
        (lambda: grad(lambda x: x)(2), DtypeError, "argument 0 is int64"),
        (
            lambda: grad(lambda x, p: x, argnums=1)(1.0, {"w": [1.0, 2]}),
            DtypeError,
            "argument 1['w'][1] is int64",
        ),
        (lambda: grad(lambda x: x, argnums=2)(1.0), TransformError, "argnums=2, but f got 1"),
        (lambda: grad(lambda x: x)("one"), TransformError, "argument 0 is 'one', of type str"),
        (lambda: grad(lambda x: x, has_aux=True)(1.0), TransformError, "(result, aux)"),
        (lambda: jvp(tanh, Tensor(1.0), (1.0,)), TransformError, "primals must be a tuple"),
        (lambda: jvp(tanh, (1.0,), 1.0), TransformError, "tangents must be a tuple"),
        (lambda: jvp(tanh, (1.0,), (1.0, 2.0)), StructureError, "a tuple of length 1 expected"),
        (lambda: jvp(tanh, (Tensor([1.0]),), (1.0,)), ShapeError, "tangent [0] has shape ()"),
        (
            lambda: jvp(lambda p: p["a"], ({"a": 1.0},), ({"b": 1.0},)),
            StructureError,
            "'a' expected",
        ),
        (lambda: jvp(tanh, (1,), (1,)), DtypeError, "argument 0 is int64"),
        (lambda: jvp(lambda x: [x, 2], (1.0,), (1.0,)), TransformError, "at [1], of type int"),
        (lambda: vjp(tanh, Tensor([1.0]))[1](1.0), ShapeError, "cotangent"),
        (lambda: vjp(lambda x: (x, x), 1.0)[1](1.0), StructureError, "tuple of length 2 expected"),
        (lambda: linearize(tanh, 1.0)[1](1.0, 2.0), StructureError, "tuple of length 1"),
        (lambda: jacobian(lambda x: x.numpy())(Tensor([1.0])), TransformError, "not a tensor"),
        (lambda: jvp(lambda x: x.assign_(1.0), (1.0,), (1.0,)), core.GraphError, "argument of jvp"),
        *(
            (lambda f=f: jvp(f, (1.0,), (1.0,)), TransformError, "of a list, stack([x, y])")
            for f in (
                lambda x: Tensor(np.asarray(x)),
                lambda x: creation.asarray([x, 2 * x]).sum(),
            )
        ),
        (lambda: grad(lambda x: creation.asarray([x, x]))(1.0), core.GraphError, "stack([x, y])"),
    ],
)
def test_errors(call, kind, says):
    with pytest.raises(kind) as error:
        call()
    assert says in str(error.value)


def test_what_does_not_move_may_become_an_array():
    f = lambda x: x * np.asarray(x.detach()) + x * np.asarray(elementwise.sign(x).detach())  # noqa: E731
    out, moved = jvp(f, (3.0,), (1.0,))
    assert (out.item(), moved.item()) == (12.0, 4.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_anomaly_in_a_tangent_names_the_operation():
    with pytest.raises(core.AnomalyError) as caught, core.detect_anomaly():
        jvp(lambda x: elementwise.sqrt(x), (0.0,), (1.0,))  # here
    assert "the tangent of sqrt: divide gave infinity" in str(caught.value)
    assert "test_transforms.py" in str(caught.value) and "# here" in str(caught.value)


def test_what_escapes_is_refused():
    kept = []
    jvp(lambda x: kept.append(x) or x, (1.0,), (1.0,))
    assert type(kept[0]) is Dual
    for call in (lambda: kept[0] * 2, lambda: diff(lambda y: kept[0])(1.0)):
        with pytest.raises(TransformError, match="has ended"):
            call()


def test_a_failure_leaves_nothing_running():
    for transform in (diff, lambda f: vmap(f)):
        with pytest.raises(ZeroDivisionError):
            transform(lambda x: 1 / 0)(Tensor([1.0]) if transform is not diff else 1.0)
    assert not running.levels


def test_threads_have_their_own_levels():
    out = {}

    def work(k):
        out[k] = [float(diff(diff(f))(Tensor(np.float64(0.1 * k)))) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        np.testing.assert_allclose(out[k], F[1](0.1 * k), rtol=1e-12)


def test_newton_beats_descent():
    f = lambda x: 100.0 * (x[1] - x[0] * x[0]) ** 2 + (1.0 - x[0]) ** 2  # noqa: E731
    x = Tensor([-1.2, 1.0])
    for _ in range(7):
        x = x - linalg.solve(hessian(f)(x), grad(f)(x))
    np.testing.assert_allclose(x.data, [1.0, 1.0], atol=1e-9)


def test_agrees_with_torch_func():
    torch = pytest.importorskip("torch")
    tf = torch.func
    rng = np.random.default_rng(3)
    W, xs, ys = rng.normal(size=(4, 3)), rng.normal(size=(6, 4)), rng.normal(size=(6, 3))

    def ours(p, x, y):
        return ((tanh(x @ p["w"] + p["b"]) - y) ** 2).sum()

    def theirs(p, x, y):
        return ((torch.tanh(x @ p["w"] + p["b"]) - y) ** 2).sum()

    p = {"w": Tensor(W), "b": Tensor(np.ones(3))}
    q = {"w": torch.tensor(W), "b": torch.ones(3, dtype=torch.float64)}
    X, Y, TX, TY = Tensor(xs), Tensor(ys), torch.tensor(xs), torch.tensor(ys)
    pairs = [
        (
            vmap(grad(ours), (None, 0, 0))(p, X, Y),
            tf.vmap(tf.grad(theirs), (None, 0, 0))(q, TX, TY),
        ),
        (hessian(ours)(p, X[0], Y[0])["w"], tf.hessian(theirs)(q, TX[0], TY[0])["w"]),
        (
            jacrev(lambda x: tanh(x @ p["w"]))(X[0]),
            tf.jacrev(lambda x: torch.tanh(x @ q["w"]))(TX[0]),
        ),
        (
            jvp(lambda x: ours(p, x, Y[0]), (X[0],), (X[1],)),
            tf.jvp(lambda x: theirs(q, x, TY[0]), (TX[0],), (TX[1],)),
        ),
        (vjp(tanh, Y)[1](Y), tf.vjp(torch.tanh, TY)[1](TY)),
    ]
    for a, b in pairs:
        if isinstance(a, dict):
            rows = [(a[k], b[k]) for k in a]
        else:
            rows = list(zip(a, b)) if isinstance(a, tuple) else [(a, b)]
        for mine, other in rows:
            np.testing.assert_allclose(mine.data, other.numpy(), rtol=1e-10, atol=1e-12)
