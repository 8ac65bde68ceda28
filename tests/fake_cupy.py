"""A stand-in for CuPy: arrays on a pretended card that refuse what CuPy refuses.

They hold NumPy arrays that nobody else can reach. Mixing one with a NumPy array is an error, as in
CuPy; what comes back to the host, or makes it wait, is counted; RawModule is the simulator.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from gradbook.cuda.sim import BOUNDED, SimModule

COPIES: Counter[str] = Counter()  # "to host", "to device", "waits"
PINNED: list[Any] = []
USED: set[str] = set()  # names of the library that were asked for
PRODUCTS: Counter[tuple[int, int]] = Counter()  # of how many axes the factors of products are


class ndarray:
    "An array on the card."

    __array_priority__ = 1000
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    device = SimpleNamespace(id=0)

    def __init__(self, a: Any) -> None:
        self._a = np.asarray(a)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`")

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._a.ctypes.data)

    def __dlpack__(self, **kwargs: Any) -> Any:  # for PyTorch on the processor, its peer here
        return self._a.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._a.__dlpack_device__()

    def get(self) -> Any:
        COPIES["to host"] += 1
        return self._a.copy()

    def set(self, host: Any, stream: Any = None) -> None:
        COPIES["to device"] += 1
        assert stream is not None and any(np.shares_memory(host, p) for p in PINNED)
        self._a[...] = host

    def item(self, *args: Any) -> Any:
        COPIES["waits"] += 1
        return self._a.item(*args)

    def tolist(self) -> Any:
        COPIES["to host"] += 1
        return self._a.tolist()

    def __bool__(self) -> bool:
        COPIES["waits"] += 1
        return bool(self._a)

    def __float__(self) -> float:
        COPIES["waits"] += 1
        return float(self._a)

    def __int__(self) -> int:
        COPIES["waits"] += 1
        return int(self._a)

    __index__ = __int__

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[Any]:
        return (wrapped(x) for x in self._a)

    def __getitem__(self, key: Any) -> Any:
        return wrapped(self._a[around(inner(key), self._a.shape)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._a[around(inner(key), self._a.shape)] = inner(value)

    def __repr__(self) -> str:
        return f"fake({self._a!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._a, name)
        return calling(value) if callable(value) else wrapped(value)


PLAIN = (int, float, bool, complex, str, np.generic, np.dtype, type, slice, type(None))


def inner(x: Any) -> Any:
    "What a wrapped call gets: the card's arrays opened, the host's refused."
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, tuple | list):
        return type(x)(inner(y) for y in x)
    return x


def around(key: Any, shape: tuple[int, ...]) -> Any:
    "Arrays of indices wrap around, as CuPy's do: a card raises no IndexError."
    if isinstance(key, np.ndarray):
        return key % shape[0] if key.dtype.kind in "iu" and shape[0] else key
    if isinstance(key, tuple) and all(isinstance(k, np.ndarray | int | slice) for k in key):
        return tuple(around(k, (n,)) for k, n in zip(key, shape, strict=False))
    return key


def wrapped(x: Any) -> Any:
    "Arrays, and NumPy's numbers, as arrays on the card."
    if isinstance(x, np.ndarray | np.generic):
        return ndarray(x)
    if isinstance(x, tuple) and type(x) is not tuple:  # a named tuple
        return type(x)(*(wrapped(y) for y in x))
    return type(x)(wrapped(y) for y in x) if isinstance(x, tuple | list) else x


def calling(f: Any) -> Any:
    "A function of NumPy for arrays on the card."

    def call(*args: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        result = f(*map(inner, args), **{k: inner(v) for k, v in kwargs.items()})
        return out if isinstance(out, ndarray) else wrapped(result)

    return call


def operator(name: str, in_place: bool = False) -> Any:
    def call(self: ndarray, *others: Any) -> Any:
        others = tuple(map(inner, others))
        if in_place:
            getattr(np.ndarray, name)(self._a, *others)
            return self
        return wrapped(getattr(np.asarray(self._a), name)(*others))

    return call


for name in "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split():
    setattr(ndarray, f"__{name}__", operator(f"__{name}__"))
    setattr(ndarray, f"__r{name}__", operator(f"__r{name}__"))
    setattr(ndarray, f"__i{name}__", operator(f"__i{name}__", in_place=True))
for name in "neg pos abs invert lt le gt ge eq ne divmod".split():
    setattr(ndarray, f"__{name}__", operator(f"__{name}__"))


class Function:
    "A function or ufunc of the library, with its methods."

    def __init__(self, f: Any) -> None:
        self.f, self.call = f, calling(f)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return calling(getattr(self.f, name))


class Module(types.ModuleType):
    "A module of the library, made of one of NumPy's."

    def __init__(self, name: str, real: Any) -> None:
        super().__init__(name)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        USED.add(f"{self.__name__}.{name}")
        value = getattr(self._real, name)
        if isinstance(value, types.ModuleType):
            return Module(f"{self.__name__}.{name}", value)
        if isinstance(value, type) or not callable(value):
            return value
        return Function(value)


def to_card(x: Any, dtype: Any = None, **kwargs: Any) -> ndarray:
    if isinstance(x, ndarray):
        return x if dtype is None else ndarray(x._a.astype(dtype, copy=False))
    if isinstance(x, list | tuple) and any(isinstance(y, ndarray) for y in x):
        return ndarray(np.array(inner(x), dtype=dtype))
    COPIES["to device"] += 1
    return ndarray(np.array(x, dtype=dtype))


class RawModule:
    "CuPy's, with the simulator behind it."

    def __init__(self, code: str, options: tuple[str, ...] = (), **kwargs: Any) -> None:
        self.module = SimModule(code, [o for o in options if o.startswith("-D")], check=False)

    def get_function(self, name: str) -> Any:
        function = self.module.get_function(name)
        function.max_dynamic_shared_size_bytes = BOUNDED  # the Launcher looks at it

        def launch(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            LAUNCHES[name] += 1
            function(grid, block, [x._a if isinstance(x, ndarray) else x for x in args], shared_mem)

        return Launcher(launch)


class Launcher:
    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, f: Any) -> None:
        self.f = f

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        assert kwargs.get("shared_mem", 0) <= self.max_dynamic_shared_size_bytes
        self.f(*args, **kwargs)


LAUNCHES: Counter[str] = Counter()


def take_along_axis(x: Any, indices: Any, axis: int) -> Any:
    return wrapped(np.take_along_axis(x._a, indices._a % x.shape[axis], axis))


def matmul(x: Any, y: Any, **kwargs: Any) -> Any:
    PRODUCTS[x.ndim, y.ndim] += 1
    return calling(np.matmul)(x, y, **kwargs)


@contextmanager
def fake_cupy() -> Iterator[Any]:
    "Inside, `import cupy` gives the stand-in, with one card."
    cupy = Module("cupy", np)
    special = types.ModuleType("cupyx.scipy.special")

    def erf(x: Any) -> Any:
        import math

        return ndarray(np.vectorize(math.erf)(x._a).astype(x._a.dtype).reshape(x._a.shape))

    special.erf = erf  # type: ignore[attr-defined]
    cupyx = types.ModuleType("cupyx")

    @contextmanager
    def errstate(**kwargs: Any) -> Iterator[None]:
        yield

    cupyx.errstate = errstate  # type: ignore[attr-defined]

    class CardDevice:
        def __init__(self, index: int = 0) -> None:
            self.id = index

        def __enter__(self) -> CardDevice:
            return self

        def __exit__(self, *args: object) -> None:
            pass

    class Event:
        done = False

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            COPIES["waits"] += 1

    class Stream:
        def __init__(self, non_blocking: bool = False) -> None:
            self.order: list[Any] = []

        def record(self) -> Event:
            event = Event()
            self.order.append(("record", event))
            return event

        def wait_event(self, event: Event) -> None:
            self.order.append(("wait", event))
            event.done = True

    def pinned(n: int) -> Any:
        PINNED.append(np.empty(n, np.uint8))
        return PINNED[-1]

    PINNED.clear()
    main = Stream()
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda k: {"name": b"a pretended card"},
        driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000,
        deviceSynchronize=lambda: None,
    )  # fmt: skip
    linalg = types.ModuleType("cupy._core._routines_linalg")
    kinds = {"float32": 1}
    linalg.__dict__.update(
        COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7, kinds=kinds,
        get_compute_type=lambda dtype: kinds[np.dtype(dtype).name],
        set_compute_type=lambda dtype, kind: kinds.update({np.dtype(dtype).name: kind}),
    )  # fmt: skip
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    cupy.__dict__.update(
        ndarray=ndarray, asarray=to_card, array=to_card, RawModule=RawModule, matmul=matmul,
        take_along_axis=take_along_axis,
        asnumpy=lambda x, **k: x.get(), __version__="0", get_default_memory_pool=lambda: pool,
        ascontiguousarray=lambda x, dtype=None: ndarray(
            np.ascontiguousarray(inner(x), dtype)
        ),
        cuda=SimpleNamespace(is_available=lambda: True, runtime=runtime, Device=CardDevice,
                             Event=Event, get_elapsed_time=lambda a, b: 1.0, Stream=Stream,
                             get_current_stream=lambda: main,
                             alloc_pinned_memory=pinned),
    )  # fmt: skip
    modules = {"cupy": cupy, "cupyx": cupyx, "cupy._core": types.ModuleType("cupy._core"),
               "cupy._core._routines_linalg": linalg,
               "cupyx.scipy": types.ModuleType("cupyx.scipy"),
               "cupyx.scipy.special": special}  # fmt: skip
    COPIES.clear()
    LAUNCHES.clear()
    PRODUCTS.clear()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield cupy
    finally:  # only these: what was imported meanwhile, PyTorch say, must not be imported twice
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module

