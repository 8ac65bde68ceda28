"Arrays of two libraries under one name: devices, dtypes, conversion, and errors that help."

from __future__ import annotations

import array
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gradbook.tensor import backend as module
from gradbook.tensor.backend import (
    CPU,
    DTYPES,
    Device,
    DeviceError,
    DtypeError,
    as_device,
    as_dtype,
    asarray,
    default_device,
    default_dtype,
    device,
    device_of,
    float32,
    float64,
    from_dlpack,
    int64,
    is_floating,
    namespace,
    set_default_device,
    set_default_dtype,
    to_numpy,
    transfer,
    uint64,
    using,
)


@pytest.fixture(autouse=True)
def fresh_defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    "No test sees what another one chose."
    monkeypatch.delenv("GRADBOOK_DTYPE", raising=False)
    monkeypatch.delenv("GRADBOOK_BACKEND", raising=False)
    before = dict(module._program)
    module._program.clear()
    yield
    module._program.clear()
    module._program.update(before)


def fake_cupy(gpus: int) -> Any:
    "As much of CuPy as is asked before an array is made there."
    runtime = SimpleNamespace(getDeviceCount=lambda: gpus)
    cuda = SimpleNamespace(is_available=lambda: gpus > 0, runtime=runtime)
    return SimpleNamespace(ndarray=type("ndarray", (), {}), cuda=cuda)


# --- devices ------------------------------------------------------------------------------------


def test_devices_have_names() -> None:
    assert device("cpu") is CPU and device(CPU) is CPU and as_device(None) == CPU
    assert str(CPU) == CPU.name == "cpu" and CPU.xp is np
    assert Device("cuda", 1).name == "cuda:1" and {CPU: 1}[Device()] == 1


def test_without_cupy_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError) as caught:
        device("cuda")
    assert str(caught.value) == "device 'cuda' needs CuPy: pip install 'gradbook[cuda]'"


def test_a_broken_cupy_is_not_called_missing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cupy.py").write_text("import a_library_that_is_not_there", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(DeviceError, match=r"can.t be imported: .*a_library_that_is_not_there"):
        device("cuda")


def test_cupy_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(0))
    with pytest.raises(DeviceError, match="'cuda:0': CuPy is installed, but finds no GPU"):
        device("cuda:0")


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(2))
    assert device("cuda") == device("cuda:0") == Device("cuda", 0)
    assert device("cuda:1") == Device("cuda", 1)
    with pytest.raises(DeviceError, match="no device 'cuda:2'; the last GPU here is cuda:1"):
        device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "CPU", "", 3])
def test_an_unknown_device_lists_the_known(name: Any) -> None:
    with pytest.raises(DeviceError, match="there are: cpu, cuda, cuda:0"):
        device(name)


def test_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    here = np.ones(2)
    assert namespace(here, 2, 3.0, np.float32(1)) is np and namespace() is np
    with pytest.raises(TypeError, match=r"list is no array .* asarray\(x\) makes one"):
        namespace([1.0])

    class Elsewhere:
        device = SimpleNamespace(id=1)

    cupy = fake_cupy(2)
    cupy.ndarray = Elsewhere
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert namespace(Elsewhere(), 2) is cupy and device_of(Elsewhere()) == Device("cuda", 1)
    with pytest.raises(DeviceError, match=r"cpu and cuda:1; .*transfer\(x, 'cpu'\)"):
        namespace(here, Elsewhere())


def test_transfer_calls_cupy_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        device = SimpleNamespace(id=0)

    class Place:
        def __init__(self, index: int) -> None:
            calls.append(f"device {index}")

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    calls: list[str] = []
    cupy = fake_cupy(2)
    cupy.ndarray, cupy.cuda.Device = Elsewhere, Place
    cupy.asarray = lambda x: calls.append("up") or Elsewhere()
    cupy.asnumpy = lambda x: calls.append("down") or np.zeros(1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    x, there = np.zeros(1), Elsewhere()
    assert transfer(x, "cpu") is x and transfer(there, "cuda") is there and calls == []
    transfer(x, "cuda:1")
    transfer(there, "cuda:1")
    transfer(there, CPU)
    assert calls == ["device 1", "up", "device 1", "up", "down"]


def test_cupy_is_never_imported_by_looking() -> None:
    code = (
        "import sys, numpy as np; from gradbook.tensor.backend import *; "
        "from gradbook.tensor import random as r; "
        "x = asarray([1.0]); namespace(x); device_of(x); to_numpy(x); r.normal(r.key(0), 3); "
        "assert not {'cupy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- dtypes -------------------------------------------------------------------------------------


def test_dtypes_by_any_name() -> None:
    for name, dtype in DTYPES.items():
        assert as_dtype(name) is as_dtype(dtype) is as_dtype(dtype.type) is dtype
        assert as_dtype(dtype.newbyteorder()) is dtype
        assert is_floating(name) == name.startswith("float")
    assert as_dtype(float) == as_dtype() == default_dtype() == float32
    assert as_dtype(int) == int64 and as_dtype(bool) == DTYPES["bool"]
    assert as_dtype(np.longlong) is int64
    assert module.bool_ is DTYPES["bool"] and bool is not module.bool_


@pytest.mark.parametrize("wrong", [complex, "complex64", object, str, "U3", "M8[s]", "float99", 7])
def test_other_dtypes_are_refused(wrong: Any) -> None:
    with pytest.raises(DtypeError, match="is not supported; there are: bool, int8"):
        as_dtype(wrong)


def test_the_default_dtype_can_be_changed() -> None:
    set_default_dtype("float64")
    assert asarray([0.5]).dtype == float64
    with using(dtype="float16"):
        assert asarray(0.5).dtype == np.float16
        with using(device="cpu"):
            assert default_dtype() == np.float16
    with pytest.raises(ZeroDivisionError), using(dtype=float32):
        assert default_dtype() == float32
        raise ZeroDivisionError
    assert default_dtype() == float64
    with pytest.raises(DtypeError, match="only float16, float32 or float64"):
        set_default_dtype("int64")


def test_using_is_for_one_thread() -> None:
    seen = []
    with using(dtype="float64"):
        thread = threading.Thread(target=lambda: seen.append(default_dtype()))
        thread.start()
        thread.join()
        assert default_dtype() == float64
    assert seen == [float32]


def test_defaults_come_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADBOOK_DTYPE", "float64")
    monkeypatch.setenv("GRADBOOK_BACKEND", "cupy")
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert default_dtype() == float64
    with pytest.raises(DeviceError, match="needs CuPy"):
        default_device()
    set_default_device("cpu")
    assert default_device() == CPU


# --- conversion ---------------------------------------------------------------------------------


def test_python_numbers() -> None:
    assert asarray(1.5).dtype == asarray([[1, 2.5]]).dtype == asarray([]).dtype == float32
    assert asarray(3).dtype == asarray([True, 2]).dtype == asarray(range(3)).dtype == int64
    assert asarray(True).dtype == asarray([[False]]).dtype == DTYPES["bool"]
    assert asarray(1.5).shape == () and asarray([[], []]).shape == (2, 0)
    assert isinstance(asarray(1.5), np.ndarray)
    assert asarray([1, 2], dtype="uint8").dtype == np.uint8
    assert asarray([1.7], dtype=int).tolist() == [1]


def test_arrays_keep_their_dtype() -> None:
    for dtype in DTYPES.values():
        assert asarray(np.ones(2, dtype)).dtype == dtype
    assert asarray(np.float64(1)).dtype == asarray([np.float64(1), 2.0]).dtype == float64
    assert asarray([np.ones(2, "float16"), np.ones(2, "float16")]).dtype == np.float16
    assert asarray([np.uint64(1)]).dtype == uint64
    assert asarray(array.array("d", [1, 2])).dtype == float64


@pytest.mark.parametrize(
    "ragged, words",
    [
        ([[1, 2, 3], [4, 5]], "[1] has length 2, but [0] has length 3"),
        ([1, [2]], "[1] has length 1, but [0] is a number"),
        ([[1], 2], "[1] is a number, but [0] has length 1"),
        ([[[1, 2]], [[1, 2, 3]]], "[1][0] has length 3, but [0][0] has length 2"),
        ([np.ones(2), np.ones(3)], "[1] has shape (3,), but [0] has shape (2,)"),
    ],
)
def test_ragged_lists_say_where(ragged: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        asarray(ragged)
    assert str(caught.value).endswith(words)
    with pytest.raises(ValueError):
        asarray(ragged, dtype="float64")


@pytest.mark.parametrize(
    "wrong, words",
    [
        ([[1, 2], [3, None]], r"\[1\]\[1\] is None, of type NoneType"),
        (["1.5"], r"\[0\] is '1.5', of type str"),
        ([1, 2j], r"\[1\] is 2j, of type complex"),
        ([Fraction(1, 3)], "of type Fraction"),
        (1j, "complex of dtype complex128"),
        ("text", "str of dtype"),
        (None, "NoneType of dtype object"),
        ({1: 2}, "dict of dtype object"),
        (np.array([1j]), "ndarray of dtype complex128"),
        (np.array([None]), "ndarray of dtype object"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.zeros(1, [("a", "f4")]), "ndarray of dtype"),
        ([np.datetime64("2020-01-01")], "of type datetime64"),
    ],
)
def test_what_is_no_number_is_refused(wrong: Any, words: str) -> None:
    for dtype in (None, "float32"):
        with pytest.raises(DtypeError, match=words):
            asarray(wrong, dtype=dtype)


def test_lists_that_contain_themselves_end() -> None:
    endless: list[Any] = []
    endless += [endless, endless]
    with pytest.raises(ValueError, match="more than 64 deep"):
        asarray(endless)
    with pytest.raises(ValueError, match=r"\[1\] has length 2, but \[0\] is a number"):
        asarray([1, endless])
    deep: Any = 1.0
    for _ in range(64):
        deep = [deep]
    assert asarray(deep).ndim == 64


def test_large_whole_numbers_are_not_bent() -> None:
    with pytest.raises(OverflowError, match=r"\[0\] is 9223372036854775808, .*; dtype='uint64'"):
        asarray([2**63])
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(DtypeError, match=r"\[1\] is -?\d+, too large for int64"):
            asarray([1, number])
    assert asarray([2**63], dtype="uint64").tolist() == [2**63]
    with pytest.raises(OverflowError):
        asarray([300], dtype="int8")


def test_masked_arrays_are_refused_and_other_subclasses_opened() -> None:
    with pytest.raises(TypeError, match="lose its mask"):
        asarray(np.ma.masked_equal([1, 2], 2))
    assert type(asarray(np.ones(2).view(np.recarray))) is np.ndarray


def test_copy_true_false_none() -> None:
    x = np.zeros(3, "float32")
    for copy, shares in ((None, True), (False, True), (True, False)):
        y = asarray(x, copy=copy)
        assert np.shares_memory(x, y) == shares
    assert asarray(x) is x
    y = asarray(x, dtype="float64", copy=True)
    assert y.dtype == float64
    for wrong in ([1.0], 1.0, np.float32(1), x.astype(">f4")):
        with pytest.raises(ValueError, match="copy=False"):
            asarray(wrong, copy=False)
    with pytest.raises(ValueError, match="copy=False, but this ndarray has to be copied"):
        asarray(x, dtype="int8", copy=False)


def test_copies_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = module.from_numbers([1.0], None)
    monkeypatch.setattr(module, "from_numbers", lambda obj, dtype: fresh)
    assert asarray([1.0], copy=True) is fresh


def test_foreign_byte_order_is_turned() -> None:
    x = np.array([1.0, 2.5], dtype=">f4").astype(np.dtype("f4").newbyteorder())
    y = asarray(x)
    assert y.dtype == float32 and y.dtype.isnative and y.tolist() == [1.0, 2.5]


def test_objects_that_offer_an_array() -> None:
    class Offers:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.arange(3.0)

    assert asarray(Offers()).tolist() == [0, 1, 2]
    assert to_numpy([1, 2]).tolist() == [1, 2]


def test_dlpack_shares_memory_both_ways() -> None:
    class Exports:
        "Only DLPack, nothing else."

        def __init__(self, x: Any) -> None:
            self.x = x

        def __dlpack__(self, **options: Any) -> Any:
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.x.__dlpack_device__()

    x = np.arange(6.0).reshape(2, 3)
    for y in (from_dlpack(x), asarray(Exports(x)), np.from_dlpack(asarray(Exports(x)))):
        assert y.shape == (2, 3) and np.shares_memory(x, y)
    assert not np.shares_memory(x, from_dlpack(x, copy=True))
    with pytest.raises(TypeError, match="list does not speak DLPack"):
        from_dlpack([1])

    class Metal(Exports):
        def __dlpack_device__(self) -> Any:
            return 8, 0

    with pytest.raises(DeviceError, match="DLPack's kind 8"):
        asarray(Metal(x))


def test_torch_tensors_come_in_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    for name in ("float32", "float64", "float16", "int64", "uint8", "bool"):
        theirs = torch.ones(2, 3, dtype=getattr(torch, name))
        ours = asarray(theirs)
        assert ours.dtype.name == name and ours.shape == (2, 3)
        theirs[0, 0] = 0
        assert ours[0, 0] == 0
        ours[1, 1] = 0
        assert theirs[1, 1] == 0
    assert asarray(theirs, dtype="float32").dtype == float32
    assert asarray(torch.arange(6).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]
    back = torch.from_dlpack(asarray([1.0, 2.0]))
    assert back.tolist() == [1.0, 2.0]


def test_torch_tensors_that_must_not_come_in() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"requires a gradient; use x.detach\(\)"):
        asarray(torch.ones(2, requires_grad=True))
    assert asarray(torch.ones(2, requires_grad=True).detach()).tolist() == [1, 1]
    with pytest.raises(DtypeError, match=r"Tensor of torch.bfloat16 can't be shared"):
        asarray(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(DtypeError, match="complex64"):
        asarray(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(DtypeError, match=r"torch.float32 is not supported"):
        as_dtype(torch.float32)


@settings(deadline=None)
@given(npst.arrays(st.sampled_from(list(DTYPES.values())), npst.array_shapes(min_dims=0)))
def test_arrays_survive_the_round_trip(x: Any) -> None:
    y = to_numpy(from_dlpack(asarray(x)))
    assert y.dtype == x.dtype and y.shape == x.shape and y.tobytes() == x.tobytes()


def flat(nested: Any) -> list[float]:
    return [y for x in nested for y in flat(x)] if isinstance(nested, list) else [nested]


@settings(deadline=None)
@given(
    st.recursive(
        st.integers(-(2**24), 2**24) | st.floats(width=32, allow_nan=False) | st.booleans(),
        lambda inner: st.lists(inner, max_size=3),
    )
)
def test_any_nested_list_becomes_an_array_or_a_clear_error(nested: Any) -> None:
    try:
        array = asarray(nested)
    except ValueError as error:
        assert ", but [" in str(error)
    else:
        assert array.dtype in (float32, int64, DTYPES["bool"])
        assert array.reshape(-1).tolist() == flat(nested)
