"""What chapter 36b says of other libraries, tried where they are installed, and of our own code."""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import gradbook as gb
from gradbook.course import ch36b
from gradbook.roads.cpp import adept_flags, adolc_flags, cppad_flags
from gradbook.roads.taped import record
from gradbook.scalar.value import Value as OurValue
from gradbook.tensor.transforms import TransformError
from tools.notebook import load, source

ROOT = Path(__file__).resolve().parent.parent
PAGE = load(ROOT / "nbs" / "36b_design.ipynb")
PROGRAM = Path(__file__).with_name("peers") / "branches.cpp"


def data() -> dict[str, Any]:
    "The table as the page has it."
    [cell] = [c for c in PAGE["cells"] if "\nLIBRARIES = {" in source(c)]
    names: dict[str, Any] = {}
    exec("import importlib, operator\n" + source(cell), names)
    return names


def branch(x: Any) -> Any:
    return x * x if x > 2 else -x


# ------------------------------------------------------------- the table


def energy(x: Any, numbers: Any, exp: Any) -> Any:
    "The page's program on one array."
    d = x - numbers
    return exp(-(d * d).sum())


def test_every_place_is_there_and_every_library_has_seven_answers() -> None:
    page = data()
    places = page["PLACES"]
    for name in " ".join(places.values()).split():
        assert page["look_up"](name), name
    assert len(page["LIBRARIES"]) == 11
    for library, said in page["LIBRARIES"].items():
        assert said.keys() == places.keys() and all(said.values()), library


def test_versions_are_those_that_the_book_is_made_with_or_those_installed() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    packages = {"CppAD": "cmeel-cppad", "PyTorch": "torch", "Dr.Jit": "drjit"}
    for library in data()["LIBRARIES"]:
        name, said = library.split()
        package = packages.get(name, name.lower())
        try:
            now = pinned.get(package) or version(package)
        except PackageNotFoundError:  # ADOL-C, Adept and tiny-dnn are none, others may be missing
            continue
        assert now == said, library


def test_names_in_the_prose_are_in_our_code() -> None:
    "After *In our code*, each name is one that a module of the library has; it tells which."
    text = "\n".join(source(c) for c in PAGE["cells"] if c["cell_type"] == "markdown")
    homes: dict[str, set[str]] = {}
    for file in (ROOT / "gradbook").rglob("*.py"):
        if "course" not in file.parts:
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                names = [getattr(node, "name", "")]
                if isinstance(node, ast.Assign):
                    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
                for name in names:
                    homes.setdefault(name, set()).add(file.stem)
    paragraphs = re.findall(r"^\*In our code:\*(.*)$", text, re.M)
    assert len(paragraphs) == 7
    for paragraph in paragraphs:
        said = re.findall(r"`(?:(\w+)\.)?(\w+)`", paragraph.partition("PyTorch has")[0])
        assert said
        for module, name in said:
            assert module in homes[name] if module else name in homes, (module, name)
    for name in ("Term", "noting"):  # without a module they would be linked to another chapter's
        assert len(homes[name]) > 1 and f"`{name}`" not in text


# ------------------------------------------------------------- ours


def test_ours() -> None:
    with pytest.raises(TransformError):
        gb.grad(lambda x: 3.0)(gb.Tensor(1.0))  # a constant
    frozen = ch36b.recorded(branch, ch36b.without_guards)
    assert frozen(3.0) == 6.0 and frozen(-2.0) == -4.0  # what a tape without guards says
    with pytest.raises(RuntimeError):
        record(lambda x: branch(x[0]), [3.0]).gradient([-2.0])
    second, _ = gb.jvp(gb.grad(lambda x: x * x * x), (gb.Tensor(2.0),), (gb.Tensor(1.0),))
    assert second.item() == 12.0


# ------------------------------------------------------------- Python


def test_micrograd() -> None:
    engine = pytest.importorskip("micrograd.engine", reason="micrograd is not installed")
    Value = engine.Value

    def alive() -> int:
        return sum(isinstance(o, Value) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        y = Value(2.0) * 3.0
        del y
        assert alive() == before + 3  # nobody holds them
        gc.collect()
        assert alive() == before
    finally:
        gc.enable()
    with pytest.raises(TypeError, match="'<' not supported"):
        Value(1.0) < Value(2.0)  # noqa: B015
    assert bool(Value(0.0)) and Value(1.0) != 1.0 and not hasattr(Value, "exp")
    sweeps: dict[Any, list[float]] = {}
    for kind in (Value, OurValue):
        x = kind(2.0)
        u = x * x
        y = u * u
        for _ in range(2):
            y.backward()
            sweeps.setdefault(kind, []).append(x.grad)
    assert sweeps == {Value: [32.0, 96.0], OurValue: [32.0, 64.0]}
    y = Value(1.0)
    for _ in range(5000):
        y = y + 1.0
    with pytest.raises(RecursionError):
        y.backward()


def test_autograd() -> None:
    autograd = pytest.importorskip("autograd", reason="autograd is not installed")
    from autograd.extend import defvjp, primitive

    seen: list[str] = []

    def watched(x: Any) -> Any:
        seen.append(type(x).__name__)
        return branch(x)

    slope = autograd.grad(watched)
    assert slope(3.0) == 6.0 and slope(-2.0) == -1.0
    assert seen == ["ArrayBox", "ArrayBox"]  # traced at each call
    with pytest.warns(UserWarning, match="independent"):
        assert autograd.grad(lambda x: 3.0)(1.0) == 0.0

    def writes(x: Any) -> Any:
        y = x * autograd.numpy.ones(2)
        y[0] = 1.0
        return y

    with pytest.raises(TypeError, match="item assignment"):
        autograd.grad(writes)(1.0)
    cubed = primitive(lambda x: x**3)
    defvjp(cubed, lambda out, x: lambda g: 3 * x**2 * g)
    assert autograd.grad(autograd.grad(cubed))(2.0) == 12.0
    pull, _ = autograd.make_vjp(lambda x: x**2)(3.0)
    assert pull(1.0) == 6.0 and pull(2.0) == 12.0
    twice = autograd.make_jvp(autograd.grad(lambda x: x**3))(2.0)
    assert twice(1.0)[1] == 12.0  # forward over backward
    with pytest.raises(TypeError, match="ArrayBox"):
        autograd.grad(lambda x: float(x * x))(3.0)
    assert importlib.import_module("autograd.test_util").check_grads


def test_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.tensor(3.0, requires_grad=True)
    y = x * x
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    u = x.exp()
    y = u * u
    u.add_(1)
    with pytest.raises(RuntimeError, match="is at version 1; expected version 0"):
        y.backward()
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        torch.func.vmap(branch)(torch.tensor([3.0, -2.0]))
    assert torch.func.jacrev(lambda v: v * v)(torch.ones(3)).layout == torch.strided
    w = torch.tensor(0.0, requires_grad=True)
    with (
        pytest.warns(UserWarning, match="SqrtBackward"),
        pytest.raises(RuntimeError, match="nan values"),
        torch.autograd.detect_anomaly(),
    ):
        (w.sqrt() * 0).backward()
    v = torch.tensor(3.0, requires_grad=True)
    y = v * v
    y.backward(retain_graph=True)
    y.backward()
    assert v.grad == 12.0
    with pytest.raises(RuntimeError, match="to return a Tensor"):
        torch.func.grad(lambda x: 3.0)(torch.tensor(1.0))

    class Cubed(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (x,) = ctx.saved_tensors
            return 3 * x * x * g

    x = torch.tensor(2.0, requires_grad=True)
    [slope] = torch.autograd.grad(Cubed.apply(x), x, create_graph=True)
    assert torch.autograd.grad(slope, x)[0] == 12.0
    one = torch.tensor(1.0)
    assert torch.func.jvp(torch.func.grad(lambda x: x**3), (2 * one,), (one,))[1] == 12.0


def test_pytorch_compiles_a_piece_for_each_path() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    testing = importlib.import_module("torch._dynamo.testing")
    counter = testing.CompileCounter()
    pieces = torch.compile(branch, backend=counter)
    assert [pieces(torch.tensor(x)).item() for x in (3.0, 4.0, -2.0, -3.0)] == [9.0, 16.0, 2.0, 3.0]
    assert counter.frame_count == 3  # the condition, and a piece for each side
    with pytest.raises(Exception, match=r"[Dd]ata-dependent"):
        torch.compile(branch, backend="eager", fullgraph=True)(torch.tensor(3.0))
    x = torch.tensor(-2.0)
    assert torch.cond(x > 2, lambda x: x * x, lambda x: -x, (x,)) == 2.0


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    jnp = jax.numpy
    assert jax.grad(branch)(3.0) == 6.0 and jax.grad(branch)(-2.0) == -1.0
    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"docs\.jax\.dev"):
        jax.jit(branch)(3.0)
    ran: list[int] = []
    slope = jax.jit(jax.grad(lambda x: (ran.append(1), x * x)[1]))
    assert [float(slope(x)) for x in (1.0, 2.0, 3.0)] == [2.0, 4.0, 6.0] and len(ran) == 1
    _, pull = jax.vjp(lambda x: x * x, 3.0)
    assert pull(1.0)[0] == 6.0 and pull(2.0)[0] == 12.0
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(lambda x: jax.lax.while_loop(lambda s: s < 9.0, lambda s: 2 * s, x))(1.0)
    assert jnp.arange(3.0)[10] == 2.0 and jax.grad(lambda x: 3.0)(1.0) == 0.0
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jnp.log(-1.0)
    with pytest.raises(TypeError, match="immutable"):
        jnp.zeros(2)[0] = 1.0
    assert isinstance(jax.jacrev(lambda v: v * v)(jnp.ones(3)), jax.Array)
    numbers = jnp.arange(1000.0)
    noted = jax.make_jaxpr(lambda x: energy(x, numbers, jnp.exp))(numbers)
    assert len(noted.eqns) == 5
    cubed = jax.custom_vjp(lambda x: x**3)
    cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    assert jax.grad(jax.grad(cubed))(2.0) == 12.0
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(cubed, (2.0,), (1.0,))
    assert jax.jvp(jax.grad(lambda x: x**3), (2.0,), (1.0,))[1] == 12.0
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.grad(lambda x: float(x * x))(3.0)
    assert jax.lax.cond(True, lambda x: x * x, lambda x: -x, 3.0) == 9.0


def test_tinygrad() -> None:
    pytest.importorskip("tinygrad", reason="tinygrad is not installed")
    program = """
from tinygrad import Tensor, TinyJit
x = Tensor([1.0, 2.0, 3.0])
y = (x * x).sum()
[g] = y.gradient(x)
assert not y.uop.is_realized and not g.uop.is_realized
assert g.tolist() == [2.0, 4.0, 6.0]
try:
    bool(Tensor([1.0]) > 0)
except TypeError:
    pass
else:
    raise AssertionError("an if")
[h] = (g * x).sum().gradient(x)
assert h.tolist() == [4.0, 8.0, 12.0] and not hasattr(Tensor, "jvp")
assert (Tensor([1.0]) > 0).item() is True
try:
    Tensor.ones(32, 784) @ Tensor.ones(100, 784)
except RuntimeError as error:
    assert "(32, 784) and (100, 784)" in str(error)
else:
    raise AssertionError("shapes")
assert x[Tensor([10])].tolist() == [0.0]
ran = []
@TinyJit
def double(a):
    ran.append(1)
    return (a * 2).realize()
for k in range(5):
    double(Tensor([float(k)]).realize())
assert len(ran) == 2
assert "alpha" in Tensor.custom_kernel.__doc__
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"DEV": "PYTHON", "PATH": "", "HOME": "/nonexistent", "CACHELEVEL": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_casadi() -> None:
    ca = pytest.importorskip("casadi", reason="CasADi is not installed")
    for kind in (ca.SX, ca.MX):
        x = kind.sym("x", 5)
        with pytest.raises(RuntimeError, match=r"core/.*cpp"):
            branch(x[0])
        y = ca.vertcat(x[0] * x[1], x[2], ca.sin(x[3]) + x[4])
        f = ca.Function("f", [x], [y])
        assert ca.jacobian(y, x).nnz() == f.jac_sparsity(0, 0).nnz() == 5
    assert f.expand().class_name() == "SXFunction"  # MX becomes SX
    chosen = ca.Function("c", [x], [ca.if_else(x[0] > 2, x[0] ** 2, -x[0])])
    assert float(chosen([-2.0] * 5)) == 2.0
    colours = f.jac_sparsity(0, 0).uni_coloring()
    assert colours.size2() == 2  # five columns in two sweeps
    with pytest.raises(RuntimeError, match=r"incompatible dimensions. Lhs is 32x784"):
        ca.mtimes(ca.SX.sym("a", 32, 784), ca.SX.sym("b", 100, 784))
    z = ca.MX.sym("z")
    cubed = casadi_callback(ca)
    for name, rule in {"its own": z**3, "a callback": cubed(z)}.items():
        slope = ca.gradient(rule, z)
        assert float(ca.Function("s", [z], [ca.gradient(slope, z)])(2.0)) == 12.0, name
    assert float(ca.Function("t", [z], [ca.jtimes(z**3, z, 1)])(2.0)) == 12.0  # forward


def casadi_callback(ca: Any) -> Any:
    class Cubed(ca.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            ca.Callback.__init__(self)
            self.construct("cubed", {})

        def eval(self, given: Any) -> Any:
            return [given[0] ** 3]

        def has_reverse(self, n: int) -> bool:
            return n == 1

        def get_reverse(self, n: int, name: str, ins: Any, outs: Any, options: Any) -> Any:
            x, y, g = map(ca.MX.sym, "xyg")
            return ca.Function(name, [x, y, g], [3 * x * x * g], ins, outs, options)

    return Cubed()


def test_drjit() -> None:
    dr = pytest.importorskip("drjit", reason="Dr.Jit is not installed")
    try:
        Float = importlib.import_module("drjit.llvm.ad").Float
        x = Float([1, 2, 3])
        dr.eval(x)
    except Exception as error:
        pytest.skip(f"Dr.Jit has no LLVM here: {error}")
    y = x * x + 1
    assert y.state == dr.VarState.Unevaluated
    dr.eval(y)
    assert y.state == dr.VarState.Evaluated
    dr.enable_grad(x)
    y = dr.sum(x * x)
    dr.backward(y)
    dr.backward(y)  # the second time is silent, and adds nothing
    assert list(x.grad) == [2, 4, 6] and not dr.grad_enabled(x.grad)
    x = Float([1, 2, 3])
    dr.enable_grad(x)
    y = dr.sum(x * x)
    dr.backward(y, flags=dr.ADFlag.ClearNone)
    dr.backward(y)
    assert list(x.grad) == [6, 12, 18]  # with its edges kept it adds, inner slopes included

    @dr.syntax
    def choose(x: Any) -> Any:
        if x > 2:
            y = x * x
        else:
            y = -x
        return y

    @dr.syntax
    def loop(x: Any) -> Any:
        n = 0.0 * x
        while n < 3:
            x = x * x
            n += 1
        return x

    @dr.syntax
    def loop_in_kernels(x: Any) -> Any:
        n = 0.0 * x
        while dr.hint(n < 3, mode="evaluated"):
            x = x * x
            n += 1
        return x

    x = Float([1, 2, 3])
    dr.enable_grad(x)
    y = choose(x)
    assert list(y) == [-1, -2, 9]
    dr.backward(y)
    assert list(x.grad) == [-1, -1, 6]
    x = Float([1, 2])
    dr.enable_grad(x)
    y = loop(x)
    with pytest.raises(RuntimeError, match="max_iterations"):
        dr.backward(y)
    x = Float([1, 2])
    dr.enable_grad(x)
    dr.backward(loop_in_kernels(x))
    assert list(x.grad) == [8, 1024]

    class Cubed(dr.CustomOp):  # type: ignore[misc]
        def eval(self, x: Any) -> Any:
            self.x = x
            return x**3

        def forward(self) -> None:
            self.set_grad_out(3 * self.x * self.x * self.grad_in("x"))

        def backward(self) -> None:
            self.set_grad_in("x", 3 * self.x * self.x * self.grad_out())

    x = Float([1, 2])
    dr.enable_grad(x)
    dr.backward(dr.custom(Cubed, x))
    assert list(x.grad) == [3, 12]
    x = Float([1, 2])
    dr.enable_grad(x)
    y = x * x
    dr.forward(x)
    assert list(y.grad) == [2, 4]
    with pytest.raises(RuntimeError, match="sizes: 3, 2"):
        Float([1, 2, 3]) + Float([1, 2])


# ------------------------------------------------------------- C++


FLAGS = {"CPPAD": cppad_flags, "ADOLC": adolc_flags, "ADEPT": adept_flags}


def said(library: str, folder: Path, *more: str) -> str:
    try:
        flags = FLAGS[library]()
    except ImportError as error:
        pytest.skip(f"{library}: {error}")
    made = folder / "branches"
    command = ["c++", "-O0", "-std=c++17", f"-D{library}", *more, str(PROGRAM), "-o", str(made)]
    command += flags
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no C++ compiler on this machine")
    run = subprocess.run([made], capture_output=True, text=True, cwd=folder, check=True)
    return run.stdout + run.stderr


def test_cppad_counts_a_changed_branch_and_checks_unless_ndebug(tmp_path: Path) -> None:
    first, second, *_ = said("CPPAD", tmp_path).split("\n")
    assert first == "value 4 changed 1 refused" and second == "operators 5001"
    assert "changed 1 nothing said" in said("CPPAD", tmp_path, "-DNDEBUG")


def test_adolc_refuses_a_changed_branch_shares_slots_and_uses_the_disk(tmp_path: Path) -> None:
    words = said("ADOLC", tmp_path)
    assert "code -1 slope 99 slots 4 disk 0 disk 1 operations 6007" in words
    assert "Retaping recommended" in words


def test_adept_counts_statements_and_keeps_slopes(tmp_path: Path) -> None:
    words = said("ADEPT", tmp_path)
    assert words == "statements 1003 slopes 3001 slope 3 slope 3 forward 3\n"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("adolc/externfcts.h", "ext_diff_fct"),
        ("adolc/adouble.h", "condassign"),
        ("adolc/sparse/sparsedrivers.h", "sparse_jac sparse_hess"),
        ("tiny_dnn/layers/layer.h", "forward_propagation back_propagation"),
        ("tiny_dnn/node.h", "data_ grad_ class edge"),
        ("tiny_dnn/network.h", "gradient_check"),
        ("tiny_dnn/util/nn_error.h", "nn_error"),
        ("tiny_dnn/activations/activation_function.h", "df"),
        ("cppad/core/atomic/four/forward.hpp", "AD<Base> taylor_x"),
        ("cppad/core/atomic/four/jac_sparsity.hpp", "jac_sparsity"),
        ("cppad/core/for_jac_sparsity.hpp", "for_jac_sparsity"),
        ("cppad/core/subgraph_jac_rev.hpp", "subgraph_jac_rev"),
        ("cppad/core/sparse_jac.hpp", "coloring"),
        ("cppad/core/cond_exp.hpp", "CondExp"),
        ("cppad/core/parallel_ad.hpp", "parallel_ad"),
    ],
)
def test_headers_have_what_the_page_names(header: str, words: str) -> None:
    folders = [Path("/usr/include")]
    with contextlib.suppress(ImportError):
        folders += [Path(flag[2:]) for flag in cppad_flags() if flag[:2] == "-I"]
    found = [folder / header for folder in folders if (folder / header).exists()]
    if not found:
        pytest.skip(f"no {header} on this machine")
    text = found[0].read_text(encoding="utf-8", errors="replace")
    assert all(word in text for word in words.split())
