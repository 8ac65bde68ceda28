"""Values and gradients of every operation that PyTorch has, too, against PyTorch.

A new operation needs a line in CASES, or a test fails: its name (and perhaps more words), our
function, PyTorch's, and a list of tuples of shapes. `low` and `high` bound the random inputs. Every
case runs in float32 and float64 on contiguous, transposed and strided inputs; among the shapes are
broadcast, empty and 0-d ones.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gradbook.tensor import core, elementwise, ops, reduce
from gradbook.tensor.core import Tensor, gradients

torch = pytest.importorskip("torch")
F = torch.nn.functional

Shapes = Sequence[tuple[tuple[int, ...], ...]]
LINALG = """
    cholesky cross det diagonal eigh eigvalsh inv matmul matrix_norm matrix_power matrix_rank
    matrix_transpose outer pinv qr slogdet solve svd svdvals tensordot trace vecdot vector_norm
""".split()
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


# --- shapes, indices, sets, linear algebra ----------------------------------------------------

SOME: Shapes = [((3, 4),), ((0, 3),), ((2, 1, 5),)]
SQUARE: Shapes = [((3, 3),), ((2, 1, 3, 3),), ((0, 3, 3),), ((1, 1),), ((0, 0),)]


def well(x: Any) -> Any:
    "Far from singular, with eigenvalues and singular values well apart."
    n = x.shape[-1]
    plus = 4 * np.eye(n) * np.arange(1, n + 1)
    return x + (
        Tensor(plus, dtype=x.dtype) if isinstance(x, Tensor) else torch.tensor(plus, dtype=x.dtype)
    )


def symmetric(x: Any) -> Any:
    return well(x) + well(x).mT


def squares(f: Callable[[Any], Any], through: Callable[[Any], Any]) -> Callable[[Any], Any]:
    "Of factors whose columns may be mirrored: the squares, which don't change."
    return lambda x: tuple(y * y for y in f(through(x)))


def edge_cases() -> list[Case]:
    "Reductions of nothing and of one number, where both libraries have an answer."
    found = []
    for name, theirs in {"sum": torch.sum, "mean": torch.mean, "prod": torch.prod}.items():
        ours = getattr(ops, name)
        found.append(Case(f"{name} edge", ours, theirs, ONE))
        found.append(Case(f"{name} edge kept", lambda x, f=ours: f(x, axis=0, keepdims=True),
                          lambda x, f=theirs: f(x, dim=0, keepdim=True), SOME))  # fmt: skip
    for name in ("var", "std"):
        for k in (0, 1):
            ours, theirs = getattr(ops, name), getattr(torch, name)
            found.append(Case(
                f"{name} edge {k}", lambda x, f=ours, k=k: f(x, correction=k),
                lambda x, f=theirs, k=k: f(x, dim=None, correction=k), ONE,
            ))  # fmt: skip
    pairs = {"max": torch.amax, "min": torch.amin, "softmax": torch.softmax,
             "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp,
             "cumulative_sum": torch.cumsum, "cumulative_prod": torch.cumprod,
             "diff": torch.diff}  # fmt: skip
    for name, theirs in pairs.items():
        ours = getattr(ops, name)
        found.append(Case(f"{name} edge", lambda x, f=ours: f(x, axis=-1),
                          lambda x, f=theirs: f(x, dim=-1), SOME))  # fmt: skip
    for name in ("all", "any", "count_nonzero", "argmax", "argmin"):
        ours, theirs = getattr(ops, name), getattr(torch, name)
        found.append(Case(f"{name} edge", lambda x, f=ours: f(x, axis=-1),
                          lambda x, f=theirs: f(x, dim=-1), SOME, slopes=False))  # fmt: skip
    return found


def shape_cases() -> list[Case]:
    "What moves numbers, and computes nothing."
    return [
        Case("reshape", lambda x: ops.reshape(x, (x.size, 1)),
             lambda x: x.reshape(x.numel(), 1), ONE),
        Case("flatten", ops.flatten, torch.flatten, ONE),
        Case("expand_dims", lambda x: ops.expand_dims(x, axis=-1),
             lambda x: x.unsqueeze(-1), ONE),
        Case("squeeze", lambda x: ops.squeeze(x, axis=1), lambda x: x.squeeze(1),
             [((3, 1),), ((0, 1),), ((2, 1, 5),)]),
        Case("permute_dims", lambda x: ops.permute_dims(x, tuple(range(x.ndim))[::-1]),
             lambda x: x.permute(tuple(range(x.ndim))[::-1]), ONE),
        Case("matrix_transpose", ops.matrix_transpose, lambda x: x.mT, SOME),
        Case("moveaxis", lambda x: ops.moveaxis(x, 0, -1), lambda x: x.moveaxis(0, -1), SOME),
        Case("swapaxes", lambda x: ops.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1), SOME),
        Case("broadcast_to", lambda x: ops.broadcast_to(x, (2, *x.shape)),
             lambda x: x.expand(2, *x.shape), ONE),
        Case("broadcast_arrays", ops.broadcast_arrays, torch.broadcast_tensors, TWO),
        Case("flip", ops.flip, lambda x: x.flip(tuple(range(x.ndim))), ONE),
        Case("flip last", lambda x: ops.flip(x, axis=-1), lambda x: x.flip(-1), SOME),
        Case("roll", lambda x: ops.roll(x, 2), lambda x: x.roll(2), ONE),
        Case("roll first", lambda x: ops.roll(x, -5, axis=0), lambda x: x.roll(-5, 0), SOME),
        Case("tile", lambda x: ops.tile(x, (2, 3)), lambda x: x.tile(2, 3), ONE),
        Case("repeat", lambda x: ops.repeat(x, 2), lambda x: x.repeat_interleave(2), ONE),
        Case("repeat first", lambda x: ops.repeat(x, 3, axis=0),
             lambda x: x.repeat_interleave(3, 0), SOME),
        Case("concat", lambda x, y: ops.concat([x, y]), lambda x, y: torch.cat([x, y]),
             [((3, 4), (2, 4)), ((0, 3), (2, 3)), ((1,), (2,))]),
        Case("concat flat", lambda x, y: ops.concat([x, y], axis=None),
             lambda x, y: torch.cat([x.ravel(), y.ravel()]),
             [((3, 4), (2,)), ((), (2, 3)), ((0, 3), ())]),
        Case("stack", lambda x, y: ops.stack([x, y], axis=-1),
             lambda x, y: torch.stack([x, y], -1), [(s, s) for (s,) in ONE]),
        Case("unstack", lambda x: ops.unstack(x, axis=-1), lambda x: x.unbind(-1), SOME),
        Case("split", lambda x: ops.split(x, (1, x.shape[-1] - 1), axis=-1),
             lambda x: x.split((1, x.shape[-1] - 1), -1), SOME),
        Case("chunk", lambda x: ops.chunk(x, 2, axis=-1), lambda x: x.chunk(2, -1), SOME),
        Case("meshgrid", ops.meshgrid, lambda x, y: torch.meshgrid(x, y, indexing="xy"),
             [((3,), (2,)), ((0,), (2,)), ((1,), (1,))]),
        Case("tril", ops.tril, torch.tril, SOME),
        Case("triu", lambda x: ops.triu(x, k=1), lambda x: x.triu(1), SOME),
        Case("pad", lambda x: ops.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 2)]),
             lambda x: F.pad(x, (1, 2)), SOME),
        Case("getitem", lambda x: (x[..., -1], x[None], x[::2], x[x > 0]),
             lambda x: (x[..., -1], x[None], x[::2], x[x > 0]), SOME),
        Case("getitem of a number", lambda x: (x[...], x[()], x[None], x[x > 0]),
             lambda x: (x[...], x[()], x[None], x[x > 0]), ONE),
        Case("getitem list", lambda x: x[..., [2, 0, 2]], lambda x: x[..., [2, 0, 2]], SOME),
        Case("take", lambda x: ops.take(x, [1, 0, 1], axis=-1),
             lambda x: x.index_select(-1, torch.tensor([1, 0, 1])), SOME),
        Case("take_along_axis", lambda x: ops.take_along_axis(x, ops.argsort(x, axis=0), axis=0),
             lambda x: torch.take_along_dim(x, torch.argsort(x, dim=0), 0), SOME),
        Case("put_along_axis",
             lambda x, v: ops.put_along_axis(x, np.zeros(v.shape, int), v, axis=-1),
             lambda x, v: x.scatter(-1, torch.zeros(v.shape, dtype=torch.int64), v),
             [((3, 4), (3, 1)), ((0, 3), (0, 1)), ((2, 1, 5), (2, 1, 1))]),
        Case("at set", lambda x, v: x.at[[2, 0]].set(v),
             lambda x, v: x.index_copy(0, torch.tensor([2, 0]), v.expand(2, *x.shape[1:])),
             [((3, 4), (2, 4)), ((3, 4), (4,)), ((3, 0), (2, 0)), ((3,), ())]),
        Case("at add", lambda x, v: x.at[[0, 0, 1]].add(v),
             lambda x, v: x.index_add(0, torch.tensor([0, 0, 1]), v.expand(3, *x.shape[1:])),
             [((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 0), (3, 0)), ((2,), ())]),
        Case("sort", ops.sort, lambda x: torch.sort(x).values, SOME),
        Case("sort down", lambda x: ops.sort(x, axis=0, descending=True),
             lambda x: torch.sort(x, 0, descending=True).values, SOME),
        Case("topk", lambda x: ops.topk(x, 2).values, lambda x: torch.topk(x, 2).values, SOME),
        Case("argsort", ops.argsort, torch.argsort, SOME, slopes=False),
        Case("nonzero", lambda x: ops.nonzero(x > 0),
             lambda x: torch.nonzero(x > 0, as_tuple=True), SOME, slopes=False),
        Case("searchsorted", lambda x, y: ops.searchsorted(ops.sort(x), y),
             lambda x, y: torch.searchsorted(torch.sort(x).values, y),
             [((5,), (3, 4)), ((0,), (2,)), ((3,), (0, 2)), ((3,), ())], slopes=False),
        Case("unique_values", ops.unique_values, torch.unique, ONE, slopes=False),
        Case("unique_inverse", ops.unique_inverse,
             lambda x: torch.unique(x, return_inverse=True), ONE, slopes=False),
        Case("unique_counts", ops.unique_counts,
             lambda x: torch.unique(x, return_counts=True), ONE, slopes=False),
    ]  # fmt: skip


def linalg_cases() -> list[Case]:
    "Matrices, stacks of them, and none."
    la, th = ops.linalg, torch.linalg
    found = [
        Case("matmul", ops.matmul, torch.matmul,
             [((3, 4), (4, 2)), ((5, 1, 3, 4), (2, 4, 3)), ((0, 4), (4, 2)), ((3, 0), (0, 2)),
              ((4,), (4,)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3)), ((2, 3, 4), (4, 5))], bits32=3),
        Case("vecdot", ops.vecdot, th.vecdot,
             [((3, 4), (3, 4)), ((3, 4), (4,)), ((0, 3), (0, 3)), ((3, 0), (3, 0))]),
        Case("tensordot", lambda x, y: ops.tensordot(x, y, axes=1),
             lambda x, y: torch.tensordot(x, y, 1),
             [((3, 4), (4, 2)), ((0, 4), (4, 2)), ((3, 0), (0, 2)), ((4,), (4,))], bits32=3),
        Case("einsum", lambda x, y: ops.einsum("...ij,jk->...ki", x, y),
             lambda x, y: torch.einsum("...ij,jk->...ki", x, y),
             [((3, 4), (4, 2)), ((0, 4), (4, 2)), ((2, 3, 4), (4, 2))], bits32=3),
        Case("outer", la.outer, torch.outer, [((3,), (2,)), ((0,), (2,)), ((1,), (1,))]),
        Case("cross", la.cross, th.cross, [((2, 3), (2, 3)), ((3,), (3,)), ((0, 3), (0, 3))]),
        Case("solve", lambda a, b: la.solve(well(a), b), lambda a, b: th.solve(well(a), b),
             [((3, 3), (3, 2)), ((3, 3), (3,)), ((0, 3, 3), (0, 3, 2)),
              ((2, 1, 3, 3), (4, 3, 2)), ((0, 0), (0, 2))], bits32=30),
        Case("slogdet", lambda x: la.slogdet(well(x))[1], lambda x: th.slogdet(well(x))[1],
             SQUARE, bits32=10),
        Case("trace", la.trace, lambda x: x.diagonal(0, -2, -1).sum(-1), SQUARE),
        Case("diagonal", lambda x: la.diagonal(x, offset=-1), lambda x: x.diagonal(-1, -2, -1),
             SQUARE[:3]),
        Case("matrix_power", lambda x: la.matrix_power(x, 3), lambda x: th.matrix_power(x, 3),
             SQUARE, bits32=10),
        Case("matrix_rank", lambda x: la.matrix_rank(well(x)), lambda x: th.matrix_rank(well(x)),
             SQUARE[:4], slopes=False),
        Case("cholesky", lambda x: la.cholesky(symmetric(x)),
             lambda x: th.cholesky(symmetric(x)), SQUARE, bits32=10),
        Case("qr", squares(la.qr, well), squares(th.qr, well), SQUARE, bits32=100),
        Case("eigh", squares(la.eigh, symmetric), squares(th.eigh, symmetric),
             SQUARE, bits32=100),
        Case("svd", squares(lambda x: la.svd(x, full_matrices=False), well),
             squares(lambda x: th.svd(x, full_matrices=False), well), SQUARE, bits32=100),
        Case("eigvalsh", lambda x: la.eigvalsh(symmetric(x)),
             lambda x: th.eigvalsh(symmetric(x)), SQUARE, bits32=30),
    ]  # fmt: skip
    for name in ("inv", "det", "pinv", "svdvals"):
        ours, theirs = getattr(la, name), getattr(th, name)
        found.append(Case(name, lambda x, f=ours: f(well(x)), lambda x, f=theirs: f(well(x)),
                          SQUARE, bits32=100))  # fmt: skip
    for ord in ("fro", "nuc", 1, -1, 2, -2, math.inf):
        found.append(Case(
            f"matrix_norm {ord}", lambda x, o=ord: la.matrix_norm(well(x), ord=o),
            lambda x, o=ord: th.matrix_norm(well(x), ord=o), SQUARE[:4], bits32=30,
        ))  # fmt: skip
    for ord in (1, 2, 3):
        found.append(Case(f"vector_norm {ord}", lambda x, o=ord: la.vector_norm(x, ord=o),
                          lambda x, o=ord: th.vector_norm(x, ord=o), ONE))  # fmt: skip
    return found


CASES = {
    case.name: case
    for cases in (elementwise_cases, reduction_cases, edge_cases, shape_cases, linalg_cases)
    for case in cases()
}
NO_CASE = {
    **dict.fromkeys(
        words("arange asarray empty empty_like eye from_dlpack full full_like linspace ones"
              " ones_like zeros zeros_like"), "makes tensors: test_shape.py"),
    **dict.fromkeys(
        words("astype can_cast finfo iinfo isdtype result_type"), "dtypes: test_shape.py"),
    **dict.fromkeys(
        words("bitwise_and bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift"
              " bitwise_xor logical_and logical_or logical_xor nextafter"),
        "no floats come out, or no slope: test_array_api.py"),
    "array_namespace": "a module", "broadcast_shapes": "no tensors: test_shape.py",
    "einsum_path": "a plan: test_einsum.py", "unique_all": "PyTorch has none: test_indexing.py",
}  # fmt: skip


def test_every_operation_has_a_case() -> None:
    "Whoever adds an operation adds a line here; three shapes, one of them empty, unless refused."
    public = {n for n in ops.__all__ if inspect.isfunction(getattr(ops, n)) and n[0] != "_"}
    public |= {n for n in LINALG if inspect.isfunction(getattr(ops.linalg, n))}
    shapes: dict[str, set[Any]] = {name.split()[0]: set() for name in CASES}
    for name, case in CASES.items():
        shapes[name.split()[0]] |= set(case.shapes)
    assert sorted(public - set(shapes) - set(NO_CASE)) == []
    assert sorted(set(NO_CASE) - public) == []
    few = [n for n, s in shapes.items() if len(s) < 3]
    never_empty = [n for n, s in shapes.items() if not any(0 in x for xs in s for x in xs)]
    assert few == [] and never_empty == []


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


def several(out: Any) -> tuple[Any, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


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
        expected = several(case.theirs(*theirs))
        weights = [np.asarray(rng.normal(size=e.shape), dtype=dtype) for e in expected]
        if case.slopes:
            total = sum((e * torch.tensor(w)).sum() for e, w in zip(expected, weights))
            slopes = torch.autograd.grad(total, theirs)
        for layout in ("contiguous", "transposed", "strided"):
            given = [Tensor(0.0) for _ in arrays]
            for tensor, a in zip(given, arrays):
                tensor.data = layouts(a)[layout]
                tensor.requires_grad_(case.slopes)
            outs = several(case.ours(*given))
            bits = case.bits32 if dtype == "float32" else 1.0
            value, slope = (t * bits for t in TOLERANCE[dtype])
            for mine, other in zip(outs, expected, strict=True):
                agree(mine.numpy(), other, value)
            if case.slopes:
                total = sum((o * Tensor(w)).sum() for o, w in zip(outs, weights))
                for mine, other in zip(gradients(total, given), slopes):
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
