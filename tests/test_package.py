"The front door: lazy, typed, and without surprises."

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradbook

ROOT = Path(__file__).resolve().parent.parent
LINALG = """
    cholesky cross det diagonal eigh eigvalsh inv matmul matrix_norm matrix_power matrix_rank
    matrix_transpose outer pinv qr slogdet solve svd svdvals tensordot trace vecdot vector_norm
"""
RANDOM = "bernoulli bits choice fold_in integers key normal permutation split uniform"
PACKAGES = ["gradbook", "gradbook.course"]
PARTS = "scalar tensor nn data optim train text models cuda roads"
PACKAGES += [f"gradbook.{name}" for name in PARTS.split()]


def fresh(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", code]
    place = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=place)
    return run.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_resolves_and_is_what_editors_are_told(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [n for b in branches for n in b.body if isinstance(n, ast.ImportFrom)]
    told = {(n.module, a.name) for n in imports for a in n.names}
    for origin, name in list(told):
        if name == "*":
            told |= {(origin, n) for n in importlib.import_module(str(origin)).__all__}
    told = {(origin, n) for origin, n in told if n in module.__all__}
    for origin, name in told:
        value = getattr(module, name)
        assert value is getattr(importlib.import_module(str(origin)), name)
    names = {name for _, name in told}
    own = {n for n in module.__all__ if n in vars(module) and n.isupper()} | {"lazy", "nearest"}
    assert names | own >= set(module.__all__) and names <= set(dir(module))


def test_the_array_functions_are_those_of_the_namespace():
    from gradbook.tensor import ops

    apart = {"EDITIONS", "array_namespace", "linalg"}
    assert set(gradbook.ARRAYS) == {n for n in ops.__all__ if not n.startswith("_")} - apart
    assert gradbook.exp is gradbook.tensor.exp is ops.exp


def test_importing_takes_little_over_numpy():
    "At most 150 ms of the processor's time, with the bytecode that the first import leaves behind."
    code = (
        "import numpy, time; start = time.process_time(); import gradbook; gradbook.Tensor;"
        " gradbook.grad; print(time.process_time() - start)"
    )
    times = [float(fresh(code)) for _ in range(6)]
    assert min(times) < 0.15, times


def test_every_public_function_says_what_it_does():
    "What `help(gb.add)` and the reference show is not empty."
    from gradbook.tensor import linalg, random

    places = {
        "gradbook": (gradbook, gradbook.__all__),
        "random": (random, RANDOM.split()),
        "linalg": (linalg, LINALG.split()),
    }
    silent = [
        f"{place}.{name}"
        for place, (module, names) in places.items()
        for name in names
        if callable(value := getattr(module, name)) and not inspect.getdoc(value)
    ]
    assert silent == []


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing_like_it'$"):
        module.nothing_like_it  # noqa: B018
    assert not hasattr(module, "_repr_html_")


def test_a_slip_is_answered_with_the_nearest_name():
    import gradbook.scalar

    with pytest.raises(AttributeError, match="did you mean 'Value'"):
        gradbook.scalar.Valeu  # noqa: B018


def test_importing_loads_nothing_heavy():
    ours = "[m for m in sys.modules if m.startswith(('gradbook', 'numpy'))]"
    code = f"import sys, gradbook; print(*{ours})"
    assert fresh(code).split() == ["gradbook"]


def test_part_one_works_where_numpy_is_missing():
    hidden = "import sys; sys.modules['numpy'] = None; from gradbook.scalar import *; "
    code = "x = Value(3.0); (x * x).backward(); MLP(2, [3, 1]); print(x.grad)"
    assert fresh(hidden + code).strip() == "6.0"


def test_version_and_type_marker():
    assert gradbook.__version__ == "0.5.0"
    assert (Path(gradbook.__file__).parent / "py.typed").exists()
