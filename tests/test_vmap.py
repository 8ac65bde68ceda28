"vmap gives what a loop gives: for every primitive and every choice of mapped inputs."

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest

import gradbook.nn.attention
import gradbook.nn.losses  # with those of chapter 11
import gradbook.nn.norm
import gradbook.nn.pool  # with those of chapter 17
import gradbook.nn.rnn
import gradbook.tensor.ops  # noqa: F401  (all primitives, all methods)
from gradbook.tensor import core, transforms
from gradbook.tensor.backend import using
from gradbook.tensor.core import ShapeError, Tensor, as_tensor, bind, checkpoint, custom_vjp, sum
from gradbook.tensor.elementwise import relu, sin, tanh, where
from gradbook.tensor.shape import stack
from gradbook.tensor.transforms import (
    TransformError,
    VmapFallbackWarning,
    grad,
    hessian,
    jacobian,
    jvp,
    linearize,
    value_and_grad,
    vjp,
    vmap,
)

SIZE = 3
CASES = [(name, k) for name, p in core.TABLE.items() for k in range(len(p.examples))]
SHAPE_DEPENDS = {"nonzero", "unique"}


@pytest.fixture(autouse=True)
def double():
    with using(dtype="float64"):
        yield


def drawn(example, rng):
    "The inputs of one example, as tensors, arrays and numbers."
    random = [type(x) is tuple for x in example.inputs]
    xs = [
        Tensor(rng.uniform(example.low, example.high, x)) if r else x
        for x, r in zip(example.inputs, random)
    ]
    if example.through is not None:
        made = example.through(*[x for x, r in zip(xs, random) if r])
        made = iter(made if isinstance(made, tuple) else (made,))
        xs = [next(made) if r else x for x, r in zip(xs, random)]
    return [x if type(x) in core.NUMBERS else as_tensor(x) for x in xs]


def flat(out):
    return [o.data for o in (out if isinstance(out, tuple) else (out,))]


def test_the_table_is_complete():
    assert len(core.TABLE) > 100 and all(p.examples for p in core.TABLE.values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name,number", CASES, ids=[f"{n}-{k}" for n, k in CASES])
def test_every_primitive(name, number):
    primitive = core.TABLE[name]
    example = primitive.examples[number]
    rng = np.random.default_rng(number + 10)
    sets = [drawn(example, rng) for _ in range(SIZE)]
    tensors = [k for k, x in enumerate(sets[0]) if isinstance(x, Tensor)]
    numbers = {k: x for k, x in enumerate(sets[0]) if not isinstance(x, Tensor)}

    def call(*xs):
        return bind(primitive, tuple(numbers.get(k, x) for k, x in enumerate(xs)), example.params)

    def loss(*xs):
        out = call(*xs)
        outs = [o for o in (out if isinstance(out, tuple) else (out,)) if o.dtype.kind == "f"]
        weighted = [sum(o * np.cos(np.arange(o.size)).reshape(o.shape)) for o in outs]
        return weighted[0] if len(weighted) == 1 else sum(stack(weighted))

    for mapped in product([True, False], repeat=len(tensors)):
        if not any(mapped):
            continue
        on = {k for k, m in zip(tensors, mapped) if m}
        rows = [[s[k] if k in on else sets[0][k] for k in range(len(s))] for s in sets]
        args = [
            Tensor(np.stack([s[k].data for s in sets])) if k in on else sets[0][k]
            for k in range(len(sets[0]))
        ]
        axes = tuple(0 if k in on else None for k in range(len(args)))
        batched = vmap(call, axes)
        if name in SHAPE_DEPENDS:
            with pytest.raises(TransformError, match="depends on the values"):
                batched(*args)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error" if name != "searchsorted" else "ignore")
            got = batched(*args)
        expected = [call(*row) for row in rows]
        for k, g in enumerate(flat(got)):
            e = np.stack([flat(x)[k] for x in expected])
            assert g.shape == e.shape and g.dtype == e.dtype
            np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12)
        floats = tuple(k for k in tensors if args[k].dtype.kind == "f")
        if not (primitive.vjps or primitive.vjp_all) or not floats:
            continue

        got = vmap(grad(loss, argnums=floats), axes)(*args)
        expected = [grad(loss, argnums=floats)(*row) for row in rows]
        for k, g in enumerate(got):
            assert not g.requires_grad
            rows = np.stack([e[k].data for e in expected])
            np.testing.assert_allclose(g.data, rows, rtol=1e-9, atol=1e-9)


f = lambda x: tanh(x * x).sum() * sin(x[0])  # noqa: E731


def stacked(g, xs):
    return np.stack([g(xs[i]).data for i in range(len(xs))])


XS = np.linspace(-1.0, 1.5, 12).reshape(4, 3)


@pytest.mark.parametrize(
    "make",
    [
        grad,
        hessian,
        lambda f: lambda x: jvp(f, (x,), (x,))[1],
        lambda f: lambda x: linearize(grad(f), x)[1](x),
        lambda f: lambda x: vjp(f, x)[1](2.0)[0],
        lambda f: lambda x: jacobian(lambda y: sin(y) * f(y))(x),
        lambda f: grad(lambda x: (hessian(f)(x) * hessian(f)(x)).sum()),
        lambda f: lambda x: value_and_grad(f)(x)[0],
    ],
)
def test_derivatives_of_each_example(make):
    g, xs = make(f), Tensor(XS)
    got = vmap(g)(xs)
    np.testing.assert_allclose(got.data, stacked(g, xs), rtol=1e-11, atol=1e-12)
    assert not got.requires_grad


def test_derivative_of_a_batch():
    w, xs = Tensor([0.3, -0.4, 0.5]), Tensor(XS)
    batched = lambda w: (vmap(lambda x: sin(x @ w))(xs) ** 2).sum()  # noqa: E731
    plain = lambda w: (sin(xs @ w) ** 2).sum()  # noqa: E731
    np.testing.assert_allclose(grad(batched)(w).data, grad(plain)(w).data, rtol=1e-12)
    np.testing.assert_allclose(hessian(batched)(w).data, hessian(plain)(w).data, rtol=1e-12)
    v = Tensor([1.0, 2.0, -1.0])
    a, b = (jvp(h, (w,), (v,))[1] for h in (batched, plain))
    np.testing.assert_allclose(a.data, b.data, rtol=1e-12)


def test_gradient_of_per_sample_gradients_reaches_a_leaf_on_the_side():
    w = Tensor([0.3, -0.4, 0.5], requires_grad=True)
    out = vmap(grad(lambda x: sin(x @ w) * (x @ x)))(Tensor(XS))
    (out * out).sum().backward()
    got, w.grad = w.grad, None
    rows = [grad(lambda x: sin(x @ w) * (x @ x))(Tensor(x)) for x in XS]
    total = rows[0] @ rows[0]
    for r in rows[1:]:
        total = total + r @ r
    total.backward()
    np.testing.assert_allclose(got.data, w.grad.data, rtol=1e-12)


def test_nested_and_axes():
    a, b = Tensor(np.arange(6.0).reshape(2, 3)), Tensor(np.arange(12.0).reshape(3, 4) / 7)
    got = vmap(vmap(lambda x, y: x @ y, (None, 1)), (0, None))(a, b)
    np.testing.assert_allclose(got.data, a.data @ b.data)
    got = vmap(lambda x, y: x @ y, in_axes=(None, -1), out_axes=-1)(a, b)
    np.testing.assert_allclose(got.data, a.data @ b.data)
    assert vmap(lambda x: x, in_axes=1, out_axes=1)(a).tolist() == a.tolist()
    tree = {"p": a, "q": (b, None)}
    out = vmap(
        lambda t, k: {"s": t["p"].sum() + k, "q": t["q"]},
        ({"p": 0, "q": None}, None),
        out_axes={"s": 0, "q": None},
    )(tree, 1.0)
    assert out["s"].tolist() == [4.0, 13.0] and out["q"][0].shape == (3, 4)
    assert out["q"][1] is None


def test_results_that_do_not_depend_are_repeated():
    out = vmap(lambda x: (x, Tensor([1.0, 2.0])))(Tensor([1.0, 2.0, 3.0]))
    assert out[1].shape == (3, 2)
    assert vmap(lambda x: x * 2)(Tensor(np.zeros((0, 3)))).shape == (0, 3)


def test_constants_inside_keep_their_values():
    def g(w, x):
        return grad(lambda w: (w * x).sum() * (2.0 if float(w.sum()) > 0 else 1.0))(w)

    out = vmap(g, (None, 0))(Tensor([1.0, 1.0]), Tensor(np.ones((3, 2))))
    assert out.tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize(
    "call,kind,says",
    [
        (lambda: vmap(lambda x: x if x > 0 else -x)(Tensor(XS[:, 0])), TransformError, "where"),
        (lambda: vmap(lambda x: float(x))(Tensor(XS[:, 0])), TransformError, "where"),
        (lambda: vmap(lambda x: x.numpy())(Tensor(XS)), TransformError, "no single value"),
        (lambda: vmap(lambda x: np.asarray(x))(Tensor(XS)), TransformError, "no single value"),
        (lambda: vmap(lambda x: Tensor(x))(Tensor(XS)), TransformError, "no single value"),
        (
            lambda: vmap(lambda x, y: x)(Tensor(XS), {"a": Tensor(XS[:3])}),
            ShapeError,
            "4 examples in argument 0, axis 0, but 3 in argument 1['a'], axis 0",
        ),
        (
            lambda: vmap(lambda x: x, in_axes=2)(Tensor(XS)),
            ShapeError,
            "in_axes of argument 0: axis 2",
        ),
        (
            lambda: vmap(lambda x: x, in_axes="0")(Tensor(XS)),
            TransformError,
            "whole number or None",
        ),
        (
            lambda: vmap(lambda x: x, in_axes=None)(Tensor(XS)),
            TransformError,
            "nothing to map over",
        ),
        (
            lambda: vmap(lambda x: x, in_axes=(0, 0))(Tensor(XS)),
            ValueError,
            "in_axes: a tuple of length 2",
        ),
        (lambda: vmap(lambda x: x, out_axes=None)(Tensor(XS)), TransformError, "differs between"),
        (lambda: vmap(lambda x: x, out_axes=3)(Tensor(XS)), ShapeError, "out_axes"),
        (lambda: vmap(lambda x: x)("text"), TransformError, "argument 0 is 'text'"),
        (lambda: vmap(lambda x: "text")(Tensor(XS)), TransformError, "f returned 'text'"),
        (lambda: vmap(lambda x: x.assign_(x))(Tensor(XS)), core.GraphError, "argument of vmap"),
    ],
)
def test_errors(call, kind, says):
    with pytest.raises(kind) as error:
        call()
    assert says in str(error.value)


def test_a_tensor_that_escapes_is_refused():
    kept = []
    vmap(lambda x: kept.append(x) or x)(Tensor(XS))
    with pytest.raises(TransformError, match="has ended"):
        kept[0] + 1


def test_fallback_says_so_once():
    @custom_vjp
    def peculiar(x):
        return x * x

    peculiar.def_vjp_all(lambda g, out, x: (5.0 * g * x,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = vmap(lambda x: peculiar(peculiar(x)))(Tensor([1.0, 2.0]))
        slope = vmap(grad(peculiar))(Tensor([1.0, 2.0]))
        transforms.warned.discard("peculiar")
        vmap(peculiar)(Tensor([1.0, 2.0]))
    assert out.tolist() == [1.0, 16.0] and slope.tolist() == [5.0, 10.0]
    assert [w.category for w in caught] == [VmapFallbackWarning] * 2
    assert "peculiar" in str(caught[0].message)
    assert [w.filename for w in caught] == [__file__] * 2, "it points to the user's line"


def test_a_rule_of_your_own():
    @custom_vjp
    def doubled(x):
        return x * 2.0

    doubled.primitive.batch = lambda p, values, mapped, params: bind(p, values, params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vmap(doubled)(Tensor(XS)).tolist() == (2 * XS).tolist()


def test_checkpoint_under_vmap_and_grad():
    layer = lambda x: sin(x) * x  # noqa: E731
    g = lambda x: checkpoint(layer, x).sum()  # noqa: E731
    xs = Tensor(XS)
    np.testing.assert_allclose(vmap(grad(g))(xs).data, stacked(grad(lambda x: layer(x).sum()), xs))
    scale = lambda c: checkpoint(lambda x: (x * c).sum(), Tensor([1.0, 2.0]))  # noqa: E731
    assert float(jvp(scale, (1.0,), (1.0,))[1]) == 3.0


def test_unused_results_of_an_operation():
    from gradbook.tensor.linalg import eigh

    ms = Tensor(np.stack([np.diag([1.0, 2.0]), np.array([[2.0, 1.0], [1.0, 3.0]])]))
    got = vmap(grad(lambda m: eigh(m)[0][1]))(ms)
    np.testing.assert_allclose(got.data, stacked(grad(lambda m: eigh(m)[0][1]), ms), atol=1e-12)


def test_matrix_products_are_folded(monkeypatch):
    "A shared factor gives one large product, whichever side it is on."
    rng, calls, matmul = np.random.default_rng(0), [], np.matmul
    w, xs = Tensor(rng.normal(size=(5, 4))), Tensor(rng.normal(size=(7, 3, 5)))
    ys = Tensor(rng.normal(size=(7, 4, 3)))
    monkeypatch.setattr(np, "matmul", lambda x, y: calls.append((x.ndim, y.ndim)) or matmul(x, y))
    left, right = vmap(lambda x: x @ w)(xs), vmap(lambda y: w @ y)(ys)
    assert calls == [(2, 2), (2, 2)]
    np.testing.assert_allclose(left.data, matmul(xs.data, w.data), rtol=1e-12)
    np.testing.assert_allclose(right.data, matmul(w.data, ys.data), rtol=1e-12)


def test_relu_network_against_the_loop_in_single_precision():
    rng = np.random.default_rng(1)
    with using(dtype="float32"):
        w = {
            "a": Tensor(rng.normal(size=(6, 5)).astype("f4")),
            "b": Tensor(rng.normal(size=5).astype("f4")),
        }
        xs, ys = Tensor(rng.normal(size=(9, 6)).astype("f4")), Tensor(rng.integers(0, 5, 9))
        loss = lambda w, x, y: relu(x @ w["a"] + w["b"])[y] + where(x[0] > 0, x[1], 0.0)  # noqa: E731
        got = vmap(grad(loss), (None, 0, 0))(w, xs, ys)
        rows = [grad(loss)(w, xs[i], ys[i]) for i in range(9)]
    for name in w:
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(
            got[name].data, np.stack([r[name].data for r in rows]), rtol=1e-6
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name,number", CASES, ids=[f"{n}-{k}" for n, k in CASES])
def test_forward_agrees_with_reverse(name, number):
    "<g, J t> = <J' g, t>, and the same again for the gradient of each example."
    primitive = core.TABLE[name]
    if not (primitive.vjps or primitive.vjp_all):
        return
    example = primitive.examples[number]
    rng = np.random.default_rng(number)
    xs = drawn(example, rng)
    places = [k for k, x in enumerate(xs) if isinstance(x, Tensor) and x.dtype.kind == "f"]
    if name == "pow" and not np.isfinite(flat(grad_at(primitive, example, xs, places))[-1]).all():
        places = places[:1]  # a negative base: no slope with respect to the exponent

    def f(*values):
        given = list(xs)
        for k, v in zip(places, values):
            given[k] = v
        out = bind(primitive, tuple(given), example.params)
        outs = out if isinstance(out, tuple) else (out,)
        return tuple(o for o in outs if o.dtype.kind == "f")

    primals = tuple(xs[k] for k in places)
    tangents = tuple(Tensor(rng.normal(size=x.shape)) for x in primals)
    outs, moved = jvp(f, primals, tangents)
    gs = tuple(Tensor(rng.normal(size=o.shape)) for o in outs)
    back = vjp(f, *primals)[1](gs)
    left = np.sum([(g.data * m.data).sum() for g, m in zip(gs, moved)])
    right = np.sum([(b.data * t.data).sum() for b, t in zip(back, tangents)])
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-10)
    _, push = linearize(f, *primals)
    for a, b in zip(push(*tangents), moved):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-9, atol=1e-10)


def grad_at(primitive, example, xs, places):
    def total(*values):
        given = list(xs)
        for k, v in zip(places, values):
            given[k] = v
        return sum(bind(primitive, tuple(given), example.params))

    return grad(total, argnums=tuple(range(len(places))))(*(xs[k] for k in places))
