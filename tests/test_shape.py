"Shapes and new tensors: views, errors, and agreement with NumPy and PyTorch."

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.tensor import core, creation, indexing, shape
from gradbook.tensor.backend import DTYPES, using
from gradbook.tensor.core import GraphError, ShapeError, Tensor, gradients


def tensor(*lengths: int, requires_grad: bool = False) -> Tensor:
    values = np.random.default_rng(0).standard_normal(lengths)
    return Tensor(values, dtype="float64", requires_grad=requires_grad)


VIEWS = {
    "reshape": lambda x: shape.reshape(x, (4, -1)),
    "flatten": lambda x: x.flatten(),
    "expand_dims": lambda x: shape.expand_dims(x, 1),
    "squeeze": lambda x: shape.squeeze(x, 1),
    "permute_dims": lambda x: shape.permute_dims(x, (2, 0, 1)),
    "moveaxis": lambda x: shape.moveaxis(x, 0, -1),
    "swapaxes": lambda x: shape.swapaxes(x, 0, 2),
    "broadcast_to": lambda x: shape.broadcast_to(x, (5, 2, 1, 6)),
    "flip": lambda x: shape.flip(x, axis=-1),
    "split": lambda x: shape.split(x, [1, 5], axis=2)[1],
    "unstack": lambda x: shape.unstack(x, axis=2)[3],
    "iteration": lambda x: list(x)[1],
    "slice": lambda x: x[1, ..., ::-2],
    "newaxis": lambda x: x[:, None, 0],
    "meshgrid": lambda x: creation.meshgrid(x[0, 0], x[1, 0])[1],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_copy_nothing(name: str) -> None:
    x = tensor(2, 1, 6)
    assert np.shares_memory(VIEWS[name](x).data, x.data)


MOVES: dict[str, tuple[Any, Any]] = {
    "flip all": (lambda x: shape.flip(x), lambda x, t: t.flip(x, (0, 1, 2))),
    "flip one": (lambda x: shape.flip(x, axis=-2), lambda x, t: t.flip(x, (1,))),
    "roll flat": (lambda x: shape.roll(x, 5), lambda x, t: t.roll(x, 5)),
    "roll axes": (
        lambda x: shape.roll(x, (1, -3), axis=(0, 2)),
        lambda x, t: t.roll(x, (1, -3), (0, 2)),
    ),
    "roll twice": (
        lambda x: shape.roll(x, (1, 1), axis=(2, 2)),
        lambda x, t: t.roll(x, 2, 2),
    ),
    "tile": (lambda x: shape.tile(x, (2, 1, 3)), lambda x, t: t.tile(x, (2, 1, 3))),
    "tile more": (lambda x: shape.tile(x, (2, 1, 1, 2)), lambda x, t: t.tile(x, (2, 1, 1, 2))),
    "tile fewer": (lambda x: shape.tile(x, (2,)), lambda x, t: t.tile(x, (2,))),
    "repeat": (
        lambda x: indexing.repeat(x, 3, axis=1),
        lambda x, t: t.repeat_interleave(x, 3, 1),
    ),
    "repeat flat": (lambda x: indexing.repeat(x, 2), lambda x, t: t.repeat_interleave(x, 2)),
    "repeat each": (
        lambda x: indexing.repeat(x, [2, 0, 1], axis=1),
        lambda x, t: t.repeat_interleave(x, t.tensor([2, 0, 1]), 1),
    ),
    "concat": (
        lambda x: shape.concat([x, 2 * x, x[:1]]),
        lambda x, t: t.cat([x, 2 * x, x[:1]]),
    ),
    "concat flat": (
        lambda x: shape.concat([x, x[0]], axis=None),
        lambda x, t: t.cat([x.ravel(), x[0].ravel()]),
    ),
    "stack": (
        lambda x: shape.stack([x, x * x], axis=-1),
        lambda x, t: t.stack([x, x * x], -1),
    ),
    "chunk": (lambda x: shape.chunk(x, 3, axis=2)[1], lambda x, t: t.chunk(x, 3, 2)[1]),
    "split": (lambda x: shape.split(x, 3, axis=2)[1], lambda x, t: t.split(x, 3, 2)[1]),
    "moveaxis": (
        lambda x: shape.moveaxis(x, (0, 1), (-1, 0)),
        lambda x, t: t.moveaxis(x, (0, 1), (-1, 0)),
    ),
    "tril": (lambda x: creation.tril(x, k=1), lambda x, t: t.tril(x, 1)),
    "triu": (lambda x: creation.triu(x, k=-1), lambda x, t: t.triu(x, -1)),
    "pad": (
        lambda x: indexing.pad(x, [(0, 0), (1, 2), (3, 0)]),
        lambda x, t: t.nn.functional.pad(x, (3, 0, 1, 2)),
    ),
    "pad value": (
        lambda x: indexing.pad(x, [(0, 0), (1, 2), (3, 0)], value=7.0),
        lambda x, t: t.nn.functional.pad(x, (3, 0, 1, 2), value=7.0),
    ),
    "pad reflect": (
        lambda x: indexing.pad(x, [(0, 0), (0, 0), (3, 1)], mode="reflect"),
        lambda x, t: t.nn.functional.pad(x, (3, 1), mode="reflect"),
    ),
    "pad edge": (
        lambda x: indexing.pad(x, [(0, 0), (0, 0), (3, 1)], mode="edge"),
        lambda x, t: t.nn.functional.pad(x, (3, 1), mode="replicate"),
    ),
    "pad wrap": (
        lambda x: indexing.pad(x, [(0, 0), (0, 0), (3, 1)], mode="wrap"),
        lambda x, t: t.nn.functional.pad(x, (3, 1), mode="circular"),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_values_and_gradients_agree_with_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = MOVES[name]
    x = tensor(2, 3, 4, requires_grad=True)
    other = torch.tensor(x.numpy().copy(), requires_grad=True)
    y, z = ours(x), theirs(other, torch)
    assert np.array_equal(y.data, z.detach().numpy())
    g = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(Tensor(g, dtype="float64"))
    z.backward(torch.from_numpy(g))
    assert np.allclose(x.grad.data, other.grad.numpy(), atol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["reflect", "edge", "wrap", "constant"])
def test_pad_agrees_with_numpy(name: str) -> None:
    x = tensor(3, 5)
    ours = indexing.pad(x, ((1, 2), (4, 0)), mode=name)
    assert np.array_equal(ours.data, np.pad(x.data, ((1, 2), (4, 0)), mode=name))  # type: ignore[call-overload]


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(shapes, st.data())
@settings(max_examples=60, deadline=None)
def test_shapes_agree_with_numpy(lengths: tuple[int, ...], data: st.DataObject) -> None:
    x = tensor(*lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    signed = tuple(k - data.draw(st.sampled_from([0, len(lengths)])) for k in order)
    assert np.array_equal(shape.permute_dims(x, signed).data, x.data.transpose(signed))
    assert np.array_equal(shape.flip(x).data, np.flip(x.data))
    assert np.array_equal(shape.roll(x, 3).data, np.roll(x.data, 3))
    assert shape.squeeze(x).shape == np.squeeze(x.data).shape
    assert np.array_equal(shape.tile(x, (2, 3)).data, np.tile(x.data, (2, 3)))
    wide = (2, *(n if n != 1 else 3 for n in lengths))
    assert np.array_equal(shape.broadcast_to(x, wide).data, np.broadcast_to(x.data, wide))
    if lengths:
        axis = data.draw(st.integers(-len(lengths), len(lengths) - 1))
        assert np.array_equal(
            shape.concat([x, x], axis=axis).data, np.concatenate([x.data] * 2, axis)
        )
        parts = shape.unstack(x, axis=axis)
        assert len(parts) == lengths[axis]
        if parts:
            assert np.array_equal(shape.stack(parts, axis=axis).data, x.data)


@given(st.lists(shapes, max_size=3))
@settings(max_examples=60, deadline=None)
def test_broadcast_shapes_agrees_with_numpy(several: list[tuple[int, ...]]) -> None:
    try:
        expected = np.broadcast_shapes(*several)
    except ValueError:
        with pytest.raises(ShapeError):
            shape.broadcast_shapes(*several)
    else:
        assert shape.broadcast_shapes(*several) == expected


COMPLAINTS = {
    "12 is no multiple of 5": lambda: shape.reshape(tensor(12), (5, -1)),
    "that takes 10 elements": lambda: shape.reshape(tensor(12), (5, 2)),
    "only one length may be -1": lambda: shape.reshape(tensor(12), (-1, -1)),
    "a length can't be negative": lambda: shape.reshape(tensor(12), (-2, -6)),
    r"shapes \(2, 3\) \(number 0\) and \(2, 4\) \(number 1\)": lambda: shape.concat(
        [tensor(2, 3), tensor(2, 4)]
    ),
    "nothing to join": lambda: shape.concat([]),
    r"stack: shapes \(2,\)": lambda: shape.stack([tensor(2), tensor(3)]),
    r"axis 1 of shape \(2, 3\) has length 3": lambda: shape.squeeze(tensor(2, 3), 1),
    r"\(2, 3\) can't be stretched to \(2, 4\)": lambda: shape.broadcast_to(tensor(2, 3), (2, 4)),
    r"add up to 5": lambda: shape.split(tensor(5), [2, 2]),
    "axis 3": lambda: shape.flip(tensor(2, 3), axis=3),
    "names an axis twice": lambda: shape.permute_dims(tensor(2, 3), (0, 0)),
    "2 shifts for 1 axes": lambda: shape.roll(tensor(2, 3), (1, 2), axis=0),
    "needs more than 3 elements": lambda: indexing.pad(tensor(3), 3, mode="reflect"),
    "2 repeats for axis 0 of length 3": lambda: indexing.repeat(tensor(3), [1, 2], axis=0),
    "a matrix needs two axes": lambda: creation.tril(tensor(3)),
}


@pytest.mark.parametrize("words", COMPLAINTS)
def test_errors_name_the_shapes(words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        COMPLAINTS[words]()


def test_reshape_that_may_not_copy() -> None:
    x = tensor(2, 3)
    assert shape.reshape(x, (6,), copy=False).shape == (6,)
    with pytest.raises(ValueError, match="copy=False"):
        shape.reshape(x.T, (6,), copy=False)


def test_methods_take_numbers_or_a_tuple() -> None:
    x = tensor(2, 3)
    assert x.reshape(3, 2).shape == x.reshape((3, 2)).shape == (3, 2)
    assert x.reshape(-1).shape == (6,)
    assert x.permute_dims(1, 0).shape == x.permute_dims((1, 0)).shape == (3, 2)
    assert x.ravel().shape == (6,) and x.expand_dims().shape == (1, 2, 3)
    with pytest.raises(TypeError, match="without axes"):
        list(Tensor(1.0))


def test_concat_gives_each_input_its_own_dtype_back() -> None:
    a = Tensor([1.0], dtype="float32", requires_grad=True)
    b = Tensor([1.0], dtype="float64", requires_grad=True)
    shape.concat([a, b]).sum().backward()
    assert a.grad.dtype == "float32" and b.grad.dtype == "float64"  # type: ignore[union-attr]


def test_unused_pieces_have_no_gradient() -> None:
    x = tensor(6, requires_grad=True)
    (g,) = gradients(shape.split(x, 2)[1].sum(), [x])
    assert g.data.tolist() == [0, 0, 1, 1, 0, 0]


def test_new_tensors() -> None:
    assert creation.zeros(3).dtype == core.default_dtype()
    assert creation.full(2, 3).dtype == "int64" and creation.full(2, True).dtype == "bool"
    assert creation.arange(5).dtype == "int64" and creation.arange(5.0).dtype == "float32"
    assert creation.linspace(0, 1, 3, endpoint=False).shape == (3,)
    assert creation.ones((2, 2), requires_grad=True).requires_grad
    assert creation.zeros_like(creation.arange(3)).dtype == "int64"
    with pytest.raises(ShapeError, match="negative"):
        creation.zeros((2, -1))
    with pytest.raises(ValueError, match="step of 0"):
        creation.arange(0, 1, 0)


def test_asarray_and_dlpack() -> None:
    array = np.ones(3)
    assert np.shares_memory(creation.asarray(array).data, array)
    assert not np.shares_memory(creation.asarray(array, copy=True).data, array)
    x = tensor(3, requires_grad=True)
    assert creation.asarray(x) is x
    creation.asarray(x, dtype="float32").sum().backward()
    assert x.grad.data.tolist() == [1, 1, 1]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="copy=False"):
        creation.asarray(x, dtype="float32", copy=False)
    with pytest.raises(GraphError, match="detach"):
        np.from_dlpack(x)  # type: ignore[arg-type]
    assert np.shares_memory(np.from_dlpack(x.detach()), x.data)  # type: ignore[arg-type]
    assert np.shares_memory(creation.from_dlpack(array).data, array)


def test_dlpack_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = tensor(3)
    there = torch.from_dlpack(x)
    assert there.data_ptr() == x.data.ctypes.data
    assert np.shares_memory(creation.from_dlpack(there).data, x.data)


@pytest.mark.parametrize(
    "names", [("int8", "uint8"), ("bool", "bool"), ("float32", "int64"), ("int32",)]
)
def test_result_type(names: tuple[str, ...]) -> None:
    tensors = [Tensor(np.ones(1, name)) for name in names]
    total: Any = tensors[0]
    for t in tensors[1:]:
        total = core.multiply(total, t)
    assert creation.result_type(*tensors) == total.dtype
    assert creation.result_type(*names) == total.dtype
    assert creation.result_type(tensors[0], 1.5).kind == "f"


@pytest.mark.parametrize("default", ["float32", "float64"])
def test_result_type_is_what_operations_do(default: str) -> None:
    "For every pair of dtypes, whatever the default is."
    with using(dtype=default):
        for a, b in itertools.product(DTYPES, repeat=2):
            x, y = Tensor(np.ones(1, a)), Tensor(np.ones(1, b))
            said = creation.result_type(a, b)
            assert said == core.add(x, y).dtype == creation.result_type(x, y), (a, b)
            assert said == shape.concat([x, y]).dtype, (a, b)
            assert creation.result_type(x, 1.5) == core.add(x, 1.5).dtype, a


def test_dtype_functions() -> None:
    assert creation.isdtype("float32", ("integral", "real floating"))
    assert not creation.isdtype("float32", "complex floating")
    assert creation.isdtype("int8", "int8") and not creation.isdtype("bool", "numeric")
    with pytest.raises(ValueError, match="no kind"):
        creation.isdtype("int8", "whole")
    assert creation.finfo("float32").bits == 32 and creation.iinfo(Tensor([1])).bits == 64
    with pytest.raises(TypeError):
        creation.iinfo("float32")
    info = creation.__array_namespace_info__()
    assert set(info.dtypes(kind="real floating")) == {"float32", "float64"}
    assert info.default_dtypes()["real floating"] == core.default_dtype()


def test_an_index_is_one_whole_number() -> None:
    assert list(range(3))[Tensor(1)] == 1
    with pytest.raises(TypeError, match="one whole number"):
        range(Tensor(1.0))
