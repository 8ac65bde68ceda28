"Every primitive of the library against measured slopes, in both modes, to second order."

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest

import gradbook.nn
import gradbook.tensor
from gradbook.tensor.check import ORDERS, Trial, check_primitive, gradient_table
from gradbook.tensor.core import FLOATS, TABLE, Primitive, bind, multiply, wrap

for package in (gradbook.tensor, gradbook.nn):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

NAMES = sorted(TABLE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_primitive_has_right_rules(name: str) -> None:
    "Examples are there, rules are there, and all four derivatives agree with measured slopes."
    rows = check_primitive(TABLE[name])
    for row in rows:
        assert not row.trouble, f"{name}({row.inputs}): {row.trouble}"
        for order, error in zip(ORDERS, row.errors):
            assert error < 1e-6, f"{name}({row.inputs}): {order} is off by {error:.1e}"
    made = TABLE[name]
    if made.vjps or made.vjp_all:
        assert any(row.errors for row in rows), f"{name} has rules, but no example uses them"


RULELESS = {"unique": "a set has no order to follow a nudge by; backward() says so"}


@pytest.mark.parametrize("name", NAMES)
def test_whoever_returns_floats_has_rules(name: str) -> None:
    "Examples without random floats are not differentiated, and would hide that rules are missing."
    made = TABLE[name]
    if made.vjps or made.vjp_all or name in RULELESS:
        assert (made.jvps or made.jvp_all or name in RULELESS) and made.examples
        return
    for example in made.examples:
        trial = Trial(made, example)
        outs = trial.outputs(trial.inputs([wrap(a) for a in trial.arrays]))
        assert all(o.dtype not in FLOATS for o in outs), f"{name} returns floats and has no rule"


@pytest.mark.parametrize("name", [name for name in NAMES if TABLE[name].elementwise])
def test_an_elementwise_primitive_is_one(name: str) -> None:
    "What claims to be elementwise can be batched by broadcasting."
    made = TABLE[name]
    rng = np.random.default_rng(0)
    for example in made.examples:
        if example.through:
            continue
        inputs = [
            rng.uniform(example.low, example.high, x) if isinstance(x, tuple) else x
            for x in example.inputs
        ]
        out = bind(made, tuple(inputs), example.params)
        batch = [np.stack([x, x]) if np.ndim(x) == out.ndim else x for x in inputs]
        both = bind(made, tuple(batch), example.params)
        if any(np.ndim(x) == out.ndim for x in inputs):
            np.testing.assert_array_equal(both.numpy()[1], out.numpy())


def test_wrong_rules_are_found() -> None:
    "A wrong sign, a wrong second derivative, and no rule at all."

    def sine(slope: object) -> Primitive:
        made = Primitive(lambda xp, x: xp.sin(x))
        made.name = "sine"
        if slope is not None:
            made.def_slopes(slope)
        made.example((3,), low=0.2, high=1.0)
        return made

    sign, cos = (lambda out, x: -TABLE_COS(x)), (lambda out, x: TABLE_COS(x))
    (wrong,), (right,) = check_primitive(sine(sign)), check_primitive(sine(cos))
    assert right.ok and not wrong.ok and wrong.errors[0] > 1
    (second,) = check_primitive(sine(lambda out, x: TABLE_COS(x).detach()))
    assert [e < 1e-6 for e in second.errors] == [True, True, False, False]
    (none,) = check_primitive(sine(None))
    assert "no rule" in none.trouble
    without = Primitive(lambda xp, x: x)
    without.name = "without"
    assert check_primitive(without)[0].trouble == "has no example"


def TABLE_COS(x: object) -> object:
    return bind(TABLE["cos"], (x,), {})


def test_only_one_mode_wrong() -> None:
    "A right VJP does not excuse a wrong JVP."
    made = Primitive(lambda xp, x: x * 2.0)
    made.name = "double"
    made.def_vjps(lambda g, out, x: multiply(g, 2.0))
    made.def_jvps(lambda t, out, x: multiply(t, 3.0))
    made.example((3,))
    (row,) = check_primitive(made)
    assert row.errors[0] < 1e-6 < row.errors[1]


def test_the_table_is_a_table() -> None:
    "It says how many it checked, in text and in HTML."
    table = gradient_table("sin", "equal")
    assert table.ok and "2 primitives" in repr(table)
    assert "<td>sin</td>" in table._repr_html_() and "no slope" in table._repr_html_()
    assert FLOATS
