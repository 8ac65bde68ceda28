"Docstrings of Part II: everybody has one, and it owns up to the ShapeError that a call may raise."

from __future__ import annotations

import inspect
import itertools
import re
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("numpy")

import gradbook.tensor as gt
from gradbook.tensor import core, linalg, random
from gradbook.tensor.creation import arange, ones
from tools.api import NOTES, own

Function = Callable[..., Any]


def parameters(f: Function) -> list[inspect.Parameter]:
    return list(inspect.signature(f).parameters.values())


def public() -> dict[str, Function]:
    "The functions of the namespaces; of `linalg` those whose first argument is by place only."
    found = {n: getattr(gt, n) for n in gt.__all__}
    inside = {
        n: getattr(linalg, n)
        for n in linalg.__all__
        if not hasattr(getattr(linalg, n), "primitive")
    }
    inside = {n: f for n, f in inside.items() if isinstance(f, types.FunctionType)}
    found |= {
        f"linalg.{n}": f
        for n, f in inside.items()
        if parameters(f)[0].kind.name == "POSITIONAL_ONLY"
    }
    drawn = {n: getattr(random, n) for n in random.__all__}
    found |= {
        f"random.{n}": f
        for n, f in drawn.items()
        if n == "key" or (isinstance(f, types.FunctionType) and "Key" in str(parameters(f)[0]))
    }
    return {n: f for n, f in found.items() if isinstance(f, types.FunctionType)}


FUNCTIONS = public()


def takes_tensors(name: str) -> bool:
    places = [p.annotation for p in parameters(FUNCTIONS[name])]
    return bool(places) and places[0] != "float" and not name.startswith("random.")


ARGUMENTS = (ones(3), ones((2, 3)), arange(4), ones((4, 2)), (7, 5))


def said(f: Function) -> str:
    "The docstring, and what the page of the module says of all its functions."
    return f"{inspect.getdoc(f)} {NOTES.get(f.__module__.removeprefix('gradbook.'), '')}"


def complaints(f: Function) -> set[type]:
    "What calls with one or two tensors that may not fit raise."
    found: set[type] = set()
    named = {p.name for p in parameters(f)}
    options = [{}, {"axis": 7}] if "axis" in named else [{}]
    calls = [*((x,) for x in ARGUMENTS), *itertools.product(ARGUMENTS, repeat=2)]
    for call, option in itertools.product(calls, options):
        try:
            f(*call, **option)
        except Exception as error:
            found.add(type(error))
    return found


def test_there_are_functions_to_look_at() -> None:
    assert len(FUNCTIONS) > 180
    assert {"sin", "linalg.svd", "random.uniform", "vmap"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_a_docstring(name: str) -> None:
    assert (inspect.getdoc(FUNCTIONS[name]) or "").strip().endswith(".")


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if takes_tensors(n)])
def test_a_shape_error_is_announced(name: str) -> None:
    f = FUNCTIONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raised = core.ShapeError in complaints(f)
    assert not raised or re.search("ShapeError|Raises as|errors as in", said(f)), said(f)


def test_operations_belong_to_the_module_that_makes_them() -> None:
    "Else the reference would leave them out."
    from gradbook.tensor import elementwise

    assert own(elementwise, "sin") and own(elementwise, "maximum") and own(core, "exp")
    assert not own(elementwise, "exp")
    assert "broadcast" in str(elementwise.hypot.__doc__)


def test_notes_belong_to_modules() -> None:
    modules = {f"tensor.{n}" for n in gt.__all__ if isinstance(getattr(gt, n), types.ModuleType)}
    assert set(NOTES) <= modules
