"""Values and gradients of every operation that PyTorch has, too, against PyTorch.

To add operations of another module, add lines to CASES: a name, our function, PyTorch's, and how
many tensors they take (or `shapes`, a list of tuples of shapes). `low` and `high` bound the random
inputs. Every case runs in float32 and float64 on contiguous, transposed and strided inputs; for
elementwise functions the shapes are broadcast, empty and 0-d ones, for reductions SHAPES.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gradbook.tensor import core, elementwise, reduce
from gradbook.tensor.core import Tensor, gradients

torch = pytest.importorskip("torch")
F = torch.nn.functional

Shapes = Sequence[tuple[tuple[int, ...], ...]]
ONE: Shapes = [((3, 4),), ((),), ((0, 3),), ((2, 1, 5),)]
TWO: Shapes = [((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1), (1, 3)), ((), (3,)), ((0, 3), (1, 3))]
SHAPES: Shapes = [((3, 4),), ((2, 3, 4),), ((5, 1),)]
EMPTY: Shapes = [((0, 3),), ((2, 0, 3),)]


@dataclass(frozen=True)
class Case:
    "One operation in both libraries."

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: Shapes
    low: float = -2.0
    high: float = 2.0
    slopes: bool = True
    bits32: float = 1.0  # float32 tolerance, in units of the usual one


def words(text: str) -> list[str]:
    return text.split()


def elementwise_cases() -> list[Case]:
    "Functions of one or two tensors, element by element."
    found = []
    for name in words(
        "sin cos tan sinh cosh tanh asinh atan exp expm1 abs square sign ceil floor trunc round"
        " sigmoid relu erf positive negative"
    ):
        ours = getattr(elementwise, name)
        tight = {"tan": (-1.0, 1.0)}.get(name, (-2.0, 2.0))
        found.append(Case(name, ours, getattr(torch, name), ONE, *tight))
    for name in words("log log2 log10 log1p sqrt reciprocal"):
        found.append(Case(name, getattr(elementwise, name), getattr(torch, name), ONE, 0.3, 3.0))
    for name in words("asin acos atanh"):
        found.append(Case(name, getattr(elementwise, name), getattr(torch, name), ONE, -0.8, 0.8))
    found.append(Case("acosh", elementwise.acosh, torch.acosh, ONE, 1.3, 3.0))
    for name in words("silu softplus gelu"):
        found.append(Case(name, getattr(elementwise, name), getattr(F, name), ONE))
    found.append(Case("log_sigmoid", elementwise.log_sigmoid, F.logsigmoid, ONE))
    found.append(Case("gelu tanh", lambda x: elementwise.gelu(x, approximate="tanh"),
                      lambda x: F.gelu(x, approximate="tanh"), ONE))  # fmt: skip
    pairs = {
        "add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide",
        "maximum": "maximum", "minimum": "minimum", "logaddexp": "logaddexp", "hypot": "hypot",
        "atan2": "atan2", "copysign": "copysign", "remainder": "remainder",
        "floor_divide": "floor_divide",
    }  # fmt: skip
    for name, torchs in pairs.items():
        low, high = (0.5, 2.0) if name in ("divide", "remainder", "floor_divide") else (-2.0, 2.0)
        slopes = name != "floor_divide"  # PyTorch has no rule
        found.append(
            Case(name, getattr(elementwise, name), getattr(torch, torchs), TWO, low, high, slopes)
        )
    found.append(Case("pow", elementwise.pow, torch.pow, TWO, 0.3, 2.0))
    for power in (0, 1, 2, 3, 4, -1, 0.5, -2.5):
        low = 0.3 if power in (0.5, -2.5, -1) else -2.0
        f = lambda x, power=power: x**power  # noqa: E731
        found.append(Case(f"pow {power}", f, f, ONE, low))
    found.append(Case("2 ** x", lambda x: 2**x, lambda x: 2**x, ONE))
    found.append(Case("clip", lambda x: elementwise.clip(x, -1.0, 0.5),
                      lambda x: torch.clamp(x, -1.0, 0.5), ONE))  # fmt: skip
    found.append(Case("clip low", lambda x: elementwise.clip(x, min=-0.5),
                      lambda x: torch.clamp(x, min=-0.5), ONE))  # fmt: skip
    found.append(Case("where", lambda x, y: elementwise.where(x > y, x * x, y),
                      lambda x, y: torch.where(x > y, x * x, y), TWO))  # fmt: skip
    for name in words("equal not_equal less less_equal greater greater_equal"):
        theirs = getattr(torch, {"equal": "eq"}.get(name, name))
        found.append(Case(name, getattr(elementwise, name), theirs, TWO, slopes=False))
    for name in words("isnan isinf isfinite signbit logical_not"):
        found.append(
            Case(name, getattr(elementwise, name), getattr(torch, name), ONE, slopes=False)
        )
    return found


def reduction_cases() -> list[Case]:
    "Reductions along no axis in particular, the first, the last and several."
    found = []
    names = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}
    for axis in (None, 0, -1, (0, 1)):
        kw = {} if axis is None else {"dim": axis}
        more = {"sum": core.sum, **{n: getattr(reduce, n) for n in ("mean", "max", "min")}}
        for name, ours in more.items():
            theirs = names[name]
            shapes = [*SHAPES, *EMPTY] if name == "sum" else SHAPES
            found.append(Case(f"{name} {axis}", lambda x, f=ours, a=axis: f(x, axis=a),
                              lambda x, f=theirs, kw=kw: f(x, **kw), shapes))  # fmt: skip
        for name in ("var", "std"):
            ours, other = getattr(reduce, name), getattr(torch, name)
            for correction in (0, 1):
                found.append(Case(
                    f"{name} {axis} {correction}",
                    lambda x, f=ours, a=axis, c=correction: f(
                        x, axis=a, correction=c, keepdims=True
                    ),
                    lambda x, f=other, a=axis, c=correction: f(
                        x, dim=a, correction=c, keepdim=True
                    ).reshape([1 if a is None or k in np.atleast_1d(a) % x.ndim else n
                               for k, n in enumerate(x.shape)]),
                    [((3, 4),), ((2, 3, 4),)],
                ))  # fmt: skip
        found.append(Case(
            f"logsumexp {axis}", lambda x, a=axis: reduce.logsumexp(x, axis=a),
            lambda x, a=axis: torch.logsumexp(x, dim=tuple(range(x.ndim)) if a is None else a),
            SHAPES,
        ))  # fmt: skip
    for axis in (0, -1):
        kw = {"dim": axis}
        for name, theirs in {"softmax": torch.softmax, "log_softmax": torch.log_softmax,
                             "cumulative_sum": torch.cumsum, "cumulative_prod": torch.cumprod,
                             "diff": torch.diff, "prod": torch.prod}.items():  # fmt: skip
            ours = getattr(reduce, name)
            found.append(Case(f"{name} {axis}",
                              lambda x, f=ours, a=axis: f(x, axis=a),
                              lambda x, f=theirs, kw=kw: f(x, **kw), SHAPES))  # fmt: skip
        for name in ("argmax", "argmin", "all", "any", "count_nonzero"):
            ours, other = getattr(reduce, name), getattr(torch, name)
            found.append(Case(f"{name} {axis}",
                              lambda x, f=ours, a=axis: f(x, axis=a),
                              lambda x, f=other, kw=kw: f(x, **kw),
                              SHAPES, slopes=False))  # fmt: skip
    found.append(Case("prod", reduce.prod, torch.prod, SHAPES))
    return found


CASES = {case.name: case for case in elementwise_cases() + reduction_cases()}


def layouts(array: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    "The same numbers, differently in memory."
    wide = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    return {
        "contiguous": array,
        "transposed": array.T.copy().T,
        "strided": wide,
    }


TOLERANCE = {"float32": (1e-6, 1e-5), "float64": (1e-12, 1e-10)}


def agree(mine: Any, theirs: Any, tolerance: float) -> None:
    "Equal relative to the size of the numbers, with NaN where they have NaN."
    a, b = np.asarray(mine), theirs.detach().numpy()
    assert a.shape == b.shape
    assert a.dtype == b.dtype or b.dtype == np.int64
    scale = max(1.0, float(np.abs(b).max())) if b.size and b.dtype.kind == "f" else 1.0
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pytorch(name: str, dtype: str) -> None:
    "Values and gradients, on every shape and every layout."
    case = CASES[name]
    for shapes in case.shapes:
        rng = np.random.default_rng(zlib.crc32(f"{name}{shapes}".encode()))
        arrays = [np.asarray(rng.uniform(case.low, case.high, s), dtype=dtype) for s in shapes]
        theirs = [torch.tensor(a, requires_grad=case.slopes) for a in arrays]
        expected = case.theirs(*theirs)
        weights = np.asarray(rng.normal(size=expected.shape), dtype=dtype)
        if case.slopes:
            slopes = torch.autograd.grad(expected, theirs, torch.tensor(weights))
        for layout in ("contiguous", "transposed", "strided"):
            given = [Tensor(0.0) for _ in arrays]
            for tensor, a in zip(given, arrays):
                tensor.data = layouts(a)[layout]
                tensor.requires_grad_(case.slopes)
            out = case.ours(*given)
            value, slope = (t * case.bits32 for t in TOLERANCE[dtype])
            agree(out.numpy(), expected, value)
            if case.slopes:
                for mine, other in zip(gradients(out, given, Tensor(weights, dtype=dtype)), slopes):
                    agree(mine.numpy(), other, slope)


KINKS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[list[float]]]] = {
    "relu": (elementwise.relu, torch.relu, [[0.0, -0.0, 1.0]]),
    "abs": (elementwise.abs, torch.abs, [[0.0, -0.0, -1.0]]),
    "sqrt": (elementwise.sqrt, torch.sqrt, [[0.0, 4.0]]),
    "maximum": (elementwise.maximum, torch.maximum, [[1.0, 2.0], [1.0, 1.0]]),
    "minimum": (elementwise.minimum, torch.minimum, [[1.0, 2.0], [1.0, 1.0]]),
    "clip": (
        lambda x: elementwise.clip(x, -1.0, 1.0),
        lambda x: x.clamp(-1.0, 1.0),
        [[-1.0, 1.0, 2.0, -3.0]],
    ),
    "pow": (elementwise.pow, torch.pow, [[0.0, 0.0, 0.0, 2.0], [0.0, 2.0, 1.0, 0.0]]),
    "amax": (lambda x: reduce.max(x), torch.amax, [[3.0, 3.0, 1.0, 3.0]]),
    "amin": (lambda x: reduce.min(x), torch.amin, [[1.0, 3.0, 1.0]]),
    "std": (
        lambda x: reduce.std(x, correction=1),
        lambda x: x.std(correction=1),
        [[2.0, 2.0, 2.0]],
    ),
    "prod": (reduce.prod, torch.prod, [[2.0, 0.0, 3.0]]),
    "prod of two zeros": (reduce.prod, torch.prod, [[0.0, 0.0, 3.0]]),
    "cumprod": (
        lambda x: reduce.cumulative_prod(x),
        lambda x: torch.cumprod(x, 0),
        [[2.0, 0.0, 3.0, 0.0, 5.0]],
    ),
    "softmax of -inf": (
        reduce.softmax,
        lambda x: torch.softmax(x, -1),
        [[0.0, -math.inf, 1.0]],
    ),
    "softmax of all -inf": (
        reduce.softmax,
        lambda x: torch.softmax(x, -1),
        [[-math.inf, -math.inf]],
    ),
    "log_softmax of -inf": (
        reduce.log_softmax,
        lambda x: torch.log_softmax(x, -1),
        [[0.0, -math.inf, 1.0]],
    ),
    "logsumexp of -inf": (
        reduce.logsumexp,
        lambda x: torch.logsumexp(x, -1),
        [[0.0, -math.inf, 1.0]],
    ),
    "sigmoid far out": (elementwise.sigmoid, torch.sigmoid, [[-1e4, -50.0, 50.0, 1e4]]),
    "softplus far out": (
        elementwise.softplus,
        lambda x: F.softplus(x, threshold=1e9),
        [[-700.0, -50.0, 50.0, 700.0]],
    ),
    "logaddexp far out": (
        elementwise.logaddexp,
        torch.logaddexp,
        [[1e4, -1e4, 1e4], [1e4, -1e4, -1e4]],
    ),
    "silu far out": (elementwise.silu, F.silu, [[-700.0, -30.0, 30.0, 1e4]]),
    "gelu far out": (elementwise.gelu, F.gelu, [[-30.0, -5.0, 5.0, 1e4]]),
}


@pytest.mark.parametrize("name", KINKS)
@pytest.mark.filterwarnings("ignore")
def test_the_same_conventions(name: str) -> None:
    "Where a slope doesn't exist, or numbers are extreme, we say what PyTorch says."
    ours, theirs, inputs = KINKS[name]
    mine = [Tensor(x, requires_grad=True, dtype="float64") for x in inputs]
    other = [torch.tensor(x, requires_grad=True, dtype=torch.float64) for x in inputs]
    out, expected = ours(*mine), theirs(*other)
    agree(out.numpy(), expected, 1e-12)
    weights = np.arange(1.0, 1 + out.size).reshape(out.shape)
    slopes = torch.autograd.grad(expected, other, torch.tensor(weights))
    for a, b in zip(gradients(out, mine, Tensor(weights, dtype="float64")), slopes):
        agree(a.numpy(), b, 1e-10)
