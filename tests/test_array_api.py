"The namespace `gradbook.tensor.ops` against the array API standard 2024.12, function by function."

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

strict = pytest.importorskip("array_api_strict")
ops = pytest.importorskip("gradbook.tensor.ops")

from gradbook.tensor.core import Tensor

COMPLEX = {
    "conj": "only for complex numbers, which tensors don't have",
    "imag": "only for complex numbers",
    "real": "only for complex numbers",
}
LATER = {  # in array_api_strict, but not in the edition of 2024.12
    "isin": "2025.12",
    "broadcast_shapes": "2025.12",
}
STRICTS_OWN = {
    "get_array_api_strict_flags",
    "set_array_api_strict_flags",
    "reset_array_api_strict_flags",
}


def functions(module: Any) -> list[str]:
    return sorted(
        name
        for name, f in vars(module).items()
        if inspect.isfunction(f) and not name.startswith("_") and name not in STRICTS_OWN
    )


MAIN = [n for n in functions(strict) if n not in COMPLEX and n not in LATER]
LINALG = [n for n in functions(strict.linalg) if n in strict.linalg.__all__]
CONSTANTS = ("e", "inf", "nan", "newaxis", "pi")
DTYPES = ("bool", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16")
DTYPES += ("uint32", "uint64")


@pytest.fixture(autouse=True)
def edition() -> Iterator[None]:
    strict.set_array_api_strict_flags(api_version="2024.12")
    yield
    strict.reset_array_api_strict_flags()


def test_lists_are_not_empty() -> None:
    assert len(MAIN) > 120 and len(LINALG) > 15


@pytest.mark.parametrize("name", [*CONSTANTS, *DTYPES, "__array_namespace_info__"])
def test_constants_and_dtypes(name: str) -> None:
    assert hasattr(ops, name)
    if name in DTYPES:
        assert np.dtype(getattr(ops, name)) == np.dtype(name)


def compatible(ours: Callable[..., Any], theirs: Callable[..., Any]) -> str:
    "Why a call that the standard allows would fail with ours, if it would."
    try:
        mine = inspect.signature(ours).parameters
    except ValueError:
        return "no signature"
    wanted = inspect.signature(theirs).parameters
    positional = [
        p for p in wanted.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    places = [p for p in mine.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    varied = any(p.kind is p.VAR_POSITIONAL for p in mine.values())
    if len(places) < len(positional) and not varied:
        return f"{len(places)} positional parameters, not {len(positional)}"
    for p, q in zip(places, positional):
        if p.default is p.empty and q.default is not q.empty:
            return f"{q.name} has a default in the standard"
        if q.kind is q.POSITIONAL_OR_KEYWORD and p.name != q.name:
            return f"{q.name} may be given by name"
    for p in places[len(positional) :]:
        if p.default is p.empty:
            return f"{p.name} is not in the standard and has no default"
    named = [q for q in wanted.values() if q.kind in (q.KEYWORD_ONLY, q.POSITIONAL_OR_KEYWORD)]
    for q in named:
        if q.name not in mine or mine[q.name].kind is inspect.Parameter.POSITIONAL_ONLY:
            if q.kind is q.KEYWORD_ONLY or not varied:
                return f"no keyword {q.name}"
            continue
        undefined = "UNDEF" in repr(q.default)
        if q.kind is q.KEYWORD_ONLY and not undefined and mine[q.name].default != q.default:
            return f"{q.name}={mine[q.name].default!r}, not {q.default!r}"
    for p in mine.values():
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in wanted:
            return f"{p.name} is not in the standard and has no default"
    return ""


@pytest.mark.parametrize("name", MAIN)
def test_main_functions_are_there(name: str) -> None:
    assert hasattr(ops, name), f"{name} is missing"
    assert not (why := compatible(getattr(ops, name), getattr(strict, name))), f"{name}: {why}"


@pytest.mark.parametrize("name", LINALG)
def test_linalg_functions_are_there(name: str) -> None:
    assert hasattr(ops.linalg, name), f"linalg.{name} is missing"
    theirs = getattr(strict.linalg, name)
    assert not (why := compatible(getattr(ops.linalg, name), theirs)), f"linalg.{name}: {why}"


rng = np.random.default_rng(0)
FLOATS = rng.uniform(-0.9, 0.9, (3, 4))
POSITIVE = rng.uniform(0.2, 3.0, (3, 4))
WHOLE = rng.integers(-5, 9, (3, 4))
COUNTS = rng.integers(0, 5, (3, 4))
FLAGS = WHOLE > 1
SQUARE = FLOATS @ FLOATS.T + 2 * np.eye(3)

BITS = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift")
LOGIC = ("logical_and", "logical_or", "logical_xor")
TWO = ("add", "subtract", "multiply", "divide", "atan2", "copysign", "hypot", "logaddexp")
TWO += ("maximum", "minimum", "nextafter", "equal", "not_equal", "less", "less_equal", "greater")
TWO += ("greater_equal", "floor_divide", "remainder")
ONE = ("abs", "acos", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "exp", "expm1")
ONE += ("floor", "isfinite", "isinf", "isnan", "negative", "positive", "round", "sign", "signbit")
ONE += ("sin", "sinh", "square", "tan", "tanh", "trunc")
REDUCE = ("sum", "prod", "max", "min", "mean", "std", "var", "all", "any", "count_nonzero")

Case = tuple[tuple[Any, ...], dict[str, Any]]
CASES: dict[str, list[Case]] = {
    **{n: [((FLOATS,), {}), ((FLOATS[0, 0],), {})] for n in ONE},
    **{n: [((POSITIVE,), {})] for n in ("log", "log10", "log1p", "log2", "sqrt", "reciprocal")},
    "acosh": [((POSITIVE + 1,), {})],
    **{n: [((FLOATS, POSITIVE[0]), {}), ((POSITIVE, 2.0), {})] for n in TWO},
    **{n: [((WHOLE, COUNTS), {})] for n in BITS},
    **{n: [((FLAGS, ~FLAGS[0]), {})] for n in LOGIC},
    "bitwise_invert": [((WHOLE,), {}), ((FLAGS,), {})],
    "logical_not": [((FLAGS,), {})],
    "pow": [((POSITIVE, FLOATS), {}), ((POSITIVE, 2.0), {})],
    "clip": [((FLOATS, -0.5, 0.5), {}), ((FLOATS,), {"max": 0.1})],
    "where": [((FLAGS, FLOATS, POSITIVE), {}), ((FLAGS, FLOATS, 0.0), {})],
    **{
        n: [((FLOATS,), {}), ((FLOATS,), {"axis": -1}), ((FLOATS,), {"axis": 0, "keepdims": True})]
        for n in REDUCE
    },
    "argmax": [((FLOATS,), {}), ((FLOATS,), {"axis": 1, "keepdims": True})],
    "argmin": [((FLOATS,), {}), ((FLOATS,), {"axis": 0})],
    "cumulative_sum": [((FLOATS,), {"axis": 1}), ((FLOATS[0],), {"include_initial": True})],
    "cumulative_prod": [((FLOATS,), {"axis": 1}), ((FLOATS[0],), {"include_initial": True})],
    "diff": [((FLOATS,), {}), ((FLOATS,), {"axis": 0, "n": 2})],
    "arange": [((5,), {}), ((1, 9, 3), {}), ((0.0, 1.0, 0.25), {})],
    "linspace": [((0.0, 1.0, 5), {}), ((0.0, 1.0, 4), {"endpoint": False})],
    "eye": [((3,), {}), ((2, 4), {"k": 1})],
    "ones": [(((2, 3),), {}), ((3,), {"dtype": "int64"})],
    "zeros": [(((2, 3),), {})],
    "full": [(((2, 3), 7), {}), (((2,), 1.5), {}), (((2,), True), {})],
    "ones_like": [((WHOLE,), {})],
    "zeros_like": [((FLOATS,), {})],
    "full_like": [((FLOATS, 3.0), {})],
    "asarray": [(([[1.0, 2.0]],), {}), (([1, 2],), {}), ((FLOATS,), {"copy": True})],
    "tril": [((FLOATS,), {}), ((FLOATS,), {"k": 1})],
    "triu": [((FLOATS,), {}), ((FLOATS,), {"k": -1})],
    "broadcast_to": [((FLOATS[0], (2, 4)), {})],
    "expand_dims": [((FLOATS,), {"axis": 1})],
    "flip": [((FLOATS,), {}), ((FLOATS,), {"axis": -1})],
    "moveaxis": [((FLOATS, 0, -1), {})],
    "permute_dims": [((FLOATS, (1, 0)), {})],
    "repeat": [((FLOATS, 2), {}), ((FLOATS, np.array([1, 0, 2])), {"axis": 0})],
    "reshape": [((FLOATS, (2, -1)), {})],
    "roll": [((FLOATS, 5), {}), ((FLOATS, (1, -1)), {"axis": (0, 1)})],
    "squeeze": [((FLOATS[None], 0), {})],
    "tile": [((FLOATS, (2, 1, 2)), {})],
    "unstack": [((FLOATS,), {"axis": 1})],
    "take": [((FLOATS, np.array([2, 0])), {"axis": 0})],
    "take_along_axis": [((FLOATS, COUNTS % 3), {"axis": 0})],
    "nonzero": [((FLAGS,), {})],
    "searchsorted": [
        ((np.sort(FLOATS[0]), POSITIVE[0]), {}),
        ((FLOATS[0], POSITIVE[0]), {"side": "right", "sorter": np.argsort(FLOATS[0])}),
    ],
    "sort": [((FLOATS,), {}), ((FLOATS,), {"axis": 0, "descending": True})],
    "argsort": [((WHOLE,), {}), ((WHOLE,), {"axis": 0, "descending": True})],
    "unique_all": [((WHOLE,), {})],
    "unique_counts": [((WHOLE,), {})],
    "unique_inverse": [((WHOLE,), {})],
    "unique_values": [((WHOLE,), {})],
    "matmul": [((FLOATS, FLOATS.T), {})],
    "matrix_transpose": [((FLOATS,), {})],
    "tensordot": [((FLOATS, FLOATS.T), {"axes": 1})],
    "vecdot": [((FLOATS, POSITIVE), {})],
}
ELSEWHERE = {
    "astype", "can_cast", "finfo", "iinfo", "isdtype", "result_type",  # dtypes: tested below
    "broadcast_arrays", "concat", "stack", "meshgrid",  # several arrays: tested below
    "empty", "empty_like",  # any values will do
    "from_dlpack",  # test_shape.py
}  # fmt: skip


def test_every_function_is_tried() -> None:
    assert sorted(set(MAIN) - set(CASES) - ELSEWHERE) == []


def made(x: Any, space: Any) -> Any:
    "An argument for one library or the other."
    if isinstance(x, np.ndarray | np.float64):
        return space.asarray(x)
    return getattr(space, x) if isinstance(x, str) and x in DTYPES else x


def same(ours: Any, theirs: Any, why: str) -> None:
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs), why
        assert getattr(ours, "_fields", None) == getattr(theirs, "_fields", None), why
        for a, b in zip(ours, theirs):
            same(a, b, why)
        return
    expected = np.asarray(theirs._array if hasattr(theirs, "_array") else theirs)
    got = ours.numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    assert got.shape == expected.shape, why
    assert got.dtype.kind == expected.dtype.kind, (why, got.dtype, expected.dtype)
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True), why


@pytest.mark.parametrize("name", CASES)
def test_values_agree(name: str) -> None:
    for args, options in CASES[name]:
        results = []
        for space in (ops, strict):
            given = [made(a, space) for a in args]
            named = {k: made(v, space) for k, v in options.items()}
            results.append(getattr(space, name)(*given, **named))
        same(*results, f"{name}{args}{options}")


EXACT = {
    "cholesky": (SQUARE,), "cross": (FLOATS[:, :3], POSITIVE[:, :3]), "det": (SQUARE,),
    "diagonal": (FLOATS,), "eigvalsh": (SQUARE,), "inv": (SQUARE,), "matmul": (SQUARE, FLOATS),
    "matrix_norm": (FLOATS,), "matrix_power": (SQUARE, 3), "matrix_rank": (SQUARE,),
    "matrix_transpose": (FLOATS,), "outer": (FLOATS[0], POSITIVE[0]), "pinv": (FLOATS,),
    "slogdet": (SQUARE,), "solve": (SQUARE, FLOATS), "svdvals": (FLOATS,), "trace": (SQUARE,),
    "tensordot": (SQUARE, FLOATS), "vecdot": (FLOATS, POSITIVE), "vector_norm": (FLOATS,),
}  # fmt: skip
UP_TO_SIGN = {"eigh", "qr", "svd"}  # columns may point the other way: tested with linalg itself


def test_every_linalg_function_is_tried() -> None:
    assert set(LINALG) == set(EXACT) | UP_TO_SIGN


@pytest.mark.parametrize("name", EXACT)
def test_linalg_values_agree(name: str) -> None:
    options = {"axes": 1} if name == "tensordot" else {}
    results = [
        getattr(space.linalg, name)(*(made(a, space) for a in EXACT[name]), **options)
        for space in (ops, strict)
    ]
    same(*results, name)


@pytest.mark.parametrize("name", sorted(UP_TO_SIGN))
def test_factors_multiply_back(name: str) -> None:
    x = ops.asarray(SQUARE)
    theirs = getattr(strict.linalg, name)(strict.asarray(SQUARE))
    ours = getattr(ops.linalg, name)(x)
    assert ours._fields == theirs._fields
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape
        assert np.allclose(np.abs(a.numpy()), np.abs(b._array), atol=1e-6)


def test_functions_of_several_arrays() -> None:
    for f in (
        lambda xp, a, b: xp.concat([a, b], axis=1),
        lambda xp, a, b: xp.concat((a, b), axis=None),
        lambda xp, a, b: xp.stack([a, b], axis=-1),
        lambda xp, a, b: tuple(xp.broadcast_arrays(a, b[0, ...])),
        lambda xp, a, b: tuple(xp.meshgrid(a[0, ...], b[:, 0])),
        lambda xp, a, b: tuple(xp.meshgrid(a[0, ...], b[:, 0], indexing="ij")),
    ):
        ours, theirs = (f(s, s.asarray(FLOATS), s.asarray(POSITIVE)) for s in (ops, strict))
        same(ours, theirs, "several")


def test_dtype_functions() -> None:
    for a in DTYPES:
        assert ops.isdtype(getattr(ops, a), "numeric") == (a != "bool")
        for kind in ("bool", "integral", "real floating", "signed integer", "unsigned integer"):
            theirs = strict.isdtype(getattr(strict, a), kind)
            assert ops.isdtype(getattr(ops, a), kind) == theirs
        for b in DTYPES:
            try:
                theirs = strict.result_type(getattr(strict, a), getattr(strict, b))
            except TypeError:
                continue  # a mixture of kinds: not in the standard
            pair = getattr(ops, a), getattr(ops, b)
            assert ops.result_type(*pair) == np.dtype(theirs._np_dtype)
            assert ops.can_cast(*pair) == strict.can_cast(getattr(strict, a), getattr(strict, b))
    for name in ("bits", "eps", "max", "min", "smallest_normal"):
        ours, theirs = ops.finfo(ops.float32), strict.finfo(strict.float32)
        assert math.isclose(getattr(ours, name), getattr(theirs, name))
    for name in ("bits", "max", "min"):
        ours, theirs = ops.iinfo(ops.int16), strict.iinfo(strict.int16)
        assert getattr(ours, name) == getattr(theirs, name)
    assert ops.astype(ops.asarray(WHOLE), ops.float64).dtype == ops.float64
    assert ops.empty((2, 3)).shape == ops.empty_like(ops.ones((2, 3))).shape == (2, 3)


ATTRIBUTES = ("T", "device", "dtype", "mT", "ndim", "shape", "size", "to_device")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name: str) -> None:
    x = ops.asarray(SQUARE)
    assert hasattr(x, name)
    if name in ("ndim", "shape", "size"):
        assert getattr(x, name) == getattr(SQUARE, name)


SPECIAL = [
    name
    for name in vars(type(strict.asarray([1])))
    if name.startswith("__") and name.endswith("__")
]
PYTHONS = {
    "__init__", "__new__", "__class_getitem__", "__annotations__", "__dict__", "__doc__",
    "__module__", "__slots__", "__weakref__", "__hash__", "__reduce__", "__array_priority__",
    "__buffer__", "__static_attributes__", "__firstlineno__", "__array_ufunc__", "__qualname__",
}  # fmt: skip
INPLACE = ("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift")
INPLACE += ("sub", "truediv", "xor")
REFUSED = {
    "__complex__": "tensors have no complex numbers",
    "__setitem__": "tensors don't change; the standard allows that",
    **{
        f"__i{n}__": "x += y makes a new tensor, as Python does without this method"
        for n in INPLACE
    },
}


@pytest.mark.parametrize("name", sorted(set(SPECIAL) - PYTHONS - set(REFUSED)))
def test_special_methods(name: str) -> None:
    assert callable(getattr(Tensor, name, None)), f"Tensor has no {name}"


def test_x_plus_equals_y_makes_a_new_tensor() -> None:
    x = before = ops.asarray([1.0, 2.0])
    x += 1.0
    assert before.numpy().tolist() == [1, 2] and x.numpy().tolist() == [2, 3]


def test_the_info() -> None:
    info = ops.__array_namespace_info__()
    for method in ("capabilities", "default_device", "default_dtypes", "devices", "dtypes"):
        assert hasattr(info, method)
    assert set(info.dtypes(kind="integral")) == {n for n in DTYPES if "int" in n}
    assert info.default_device() in info.devices()
    assert ops.zeros(2, device=info.default_device()).device == info.default_device()


def standardised(x: Any, xp: Any) -> Any:
    "A small program in the standard's words, which names no library."
    middle = xp.mean(x, axis=0, keepdims=True)
    spread = xp.std(x, axis=0, keepdims=True)
    z = (x - middle) / xp.where(spread == 0, xp.ones_like(spread), spread)
    order = xp.argsort(z[:, 0], descending=True)
    best = xp.take(z, order[:2], axis=0)
    return xp.concat([best, xp.expand_dims(xp.max(z, axis=0), axis=0)], axis=0)


def test_generic_code_runs_unchanged() -> None:
    compat = pytest.importorskip("array_api_compat")
    x = Tensor(FLOATS, dtype="float64", requires_grad=True)
    assert compat.array_namespace(x) is ops
    assert compat.array_namespace(x, ops.asarray([1.0])) is ops
    ours = standardised(x, compat.array_namespace(x))
    theirs = standardised(FLOATS, compat.array_namespace(FLOATS))
    exact = standardised(strict.asarray(FLOATS), strict)
    assert np.allclose(ours.numpy(), theirs) and np.allclose(ours.numpy(), exact._array)
    ours.sum().backward()  # and it is differentiable, which nobody had to think of
    assert x.grad is not None and x.grad.shape == x.shape


def test_the_namespace_knows_its_edition() -> None:
    x = ops.asarray([1.0])
    assert x.__array_namespace__() is ops
    assert x.__array_namespace__(api_version="2024.12") is ops
    assert ops.__array_api_version__ == "2024.12"
    with pytest.raises(ValueError):
        x.__array_namespace__(api_version="1999.01")
