"Optimisers beyond their chapter: PyTorch's numbers, saved states, memory, and faults."

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.optim.adam import Adam, AdamW, Lion
from gradbook.optim.clip import clip_grad_norm_, grad_norm
from gradbook.optim.lbfgs import LBFGS, Point, strong_wolfe
from gradbook.optim.muon import Muon, newton_schulz
from gradbook.optim.optimizer import SGD, Adagrad, Optimizer, OptimizerError, RMSprop
from gradbook.tensor.core import GraphError, Tensor, wrap

SHAPES = [(5, 4), (4,), (), (3, 7), (2, 3, 2)]
MATRICES = [(5, 4), (3, 7), (4, 4), (1, 6)]


def arrays(shapes: list[tuple[int, ...]], seed: int, dtype: str = "float64") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def leaves(shapes: list[tuple[int, ...]] = SHAPES, dtype: str = "float64") -> list[Tensor]:
    return [Tensor(a, requires_grad=True) for a in arrays(shapes, 0, dtype)]


def gradient(values: list[np.ndarray], t: int) -> list[np.ndarray]:
    "Of a bowl, with noise; sizes from 1e-3 to 10, so that eps and scales matter."
    noise = arrays([v.shape for v in values], 1000 + t)
    sizes = [10.0 ** (k % 5 - 3) for k in range(len(values))]
    return [
        np.asarray((v + n) * size, v.dtype)
        for v, n, size in zip(values, noise, sizes, strict=True)
    ]


def give_gradients(params: list[Tensor], t: int) -> None:
    for p, g in zip(params, gradient([p.data for p in params], t), strict=True):
        p.grad = wrap(g)


KINDS: list[tuple[Callable[..., Optimizer], str, dict[str, Any]]] = [
    (SGD, "SGD", {"lr": 0.05}),
    (SGD, "SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    (SGD, "SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    (SGD, "SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    (Adagrad, "Adagrad", {"lr": 0.1}),
    (
        Adagrad,
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    (RMSprop, "RMSprop", {"lr": 0.01}),
    (RMSprop, "RMSprop", {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "alpha": 0.9}),
    (RMSprop, "RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True, "eps": 1e-5}),
    (RMSprop, "RMSprop", {"lr": 0.01, "centered": True}),
    (Adam, "Adam", {"lr": 0.05}),
    (Adam, "Adam", {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": True}),
    (AdamW, "AdamW", {"lr": 0.05}),
    (AdamW, "AdamW", {"lr": 0.05, "weight_decay": 0.3, "eps": 1e-3, "amsgrad": True}),
    (Muon, "Muon", {"lr": 0.05}),
    (Muon, "Muon", {"lr": 0.05, "nesterov": False, "weight_decay": 0.0, "ns_steps": 3}),
    (Muon, "Muon", {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw", "momentum": 0.5}),
]
IDS = [f"{name}-{'-'.join(options)}" for _, name, options in KINDS]


def shapes_for(kind: Any) -> list[tuple[int, ...]]:
    return MATRICES if kind is Muon else SHAPES


# --- PyTorch's numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("kind", "name", "options"), KINDS, ids=IDS)
def test_fifty_steps_are_those_of_pytorch(
    kind: Any, name: str, options: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Two groups, a schedule on the learning rate, one parameter that sometimes has no gradient."
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    # PyTorch orthogonalises in bfloat16, which has three digits; here it keeps the dtype
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    ours = leaves(shapes_for(kind), dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    special = {"lr": 0.02, "weight_decay": 0.05}
    a = kind([{"params": ours[:2]}, {"params": ours[2:], **special}], **options)
    groups = [{"params": theirs[:2]}, {"params": theirs[2:], **special}]
    b = getattr(torch.optim, name)(groups, **options)
    half = torch.optim.lr_scheduler.CosineAnnealingLR(b, 60)
    for t in range(50):
        values = gradient([p.data for p in ours], t)
        for k, (p, q, g) in enumerate(zip(ours, theirs, values, strict=True)):
            skip = k == 3 and t % 7 == 3
            p.grad, q.grad = (None, None) if skip else (wrap(g), torch.tensor(g))
        for mine, other in zip(a.param_groups, b.param_groups, strict=True):
            mine["lr"] = other["lr"]
        a.step()
        b.step()
        half.step()
    for p, q in zip(ours, theirs, strict=True):
        limit = {"rtol": 1e-6, "atol": 1e-6} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(p.data, q.detach().numpy(), **limit)
        if dtype == "float64":
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-9, atol=1e-9)


def lion_reference(p: Any, g: Any, m: Any, lr: float, b1: float, b2: float, decay: float) -> Any:
    "Algorithm 2 of Chen et al. (2023), as it is printed."
    c = b1 * m + (1 - b1) * g
    p = p - lr * (np.sign(c) + decay * p)
    return p, b2 * m + (1 - b2) * g


def test_lion_is_its_paper() -> None:
    ours = leaves()
    values, moments = [p.data.copy() for p in ours], [np.zeros_like(p.data) for p in ours]
    optimizer = Lion(ours, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for t in range(50):
        gs = gradient(values, t)
        give_gradients(ours, t)
        optimizer.step()
        for k, g in enumerate(gs):
            values[k], moments[k] = lion_reference(values[k], g, moments[k], 0.01, 0.8, 0.95, 0.1)
    for p, value in zip(ours, values, strict=True):
        np.testing.assert_allclose(p.data, value, rtol=1e-12)


def rosenbrock_of(engine: Any, x: Any) -> Any:
    return ((x[1:] - x[:-1] ** 2) ** 2).sum() * 100 + ((1 - x[:-1]) ** 2).sum()


def wiggly_of(engine: Any, x: Any) -> Any:
    return (x**4 * 0.1).sum() + engine.sin(x * 3).sum() + (x * x.sum()).sum() * 0.05


@pytest.mark.parametrize("f", [rosenbrock_of, wiggly_of])
@pytest.mark.parametrize("search", ["strong_wolfe", None])
@pytest.mark.parametrize("options", [{}, {"history_size": 2, "max_iter": 7}, {"max_eval": 5}])
def test_lbfgs_takes_the_steps_of_pytorch(f: Any, search: str | None, options: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    from gradbook.tensor import ops

    start = np.array([0.5, 0.3, -0.2, 0.8, 1.1])  # not a start from which rounding errors explode
    lr = 1.0 if search else 1e-3
    x, y = Tensor(start, requires_grad=True), torch.nn.Parameter(torch.tensor(start))
    options = {"history_size": 10, "lr": lr, "line_search_fn": search} | options
    ours, theirs = LBFGS([x], **options), torch.optim.LBFGS([y], **options)

    def ours_at() -> Any:
        ours.zero_grad()
        loss = f(ops, x)
        loss.backward()
        return loss

    def theirs_at() -> Any:
        theirs.zero_grad()
        loss = f(torch, y)
        loss.backward()
        return loss

    for _ in range(12):
        a, b = float(ours.step(ours_at)), theirs.step(theirs_at).item()
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(x.data, y.detach().numpy(), rtol=1e-6, atol=1e-6)
    mine, other = ours.state[x], theirs.state[y]
    assert mine["step"] == other["n_iter"] and mine["func_evals"] == other["func_evals"]


def test_muon_in_bfloat16_is_near() -> None:
    "PyTorch as it is: three digits in the orthogonal factor, so nearly the same path."
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    ours = leaves(MATRICES, "float32")
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    a, b = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02)
    for t in range(10):
        for p, q, g in zip(ours, theirs, gradient([p.data for p in ours], t), strict=True):
            p.grad, q.grad = wrap(g), torch.tensor(g)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert np.abs(p.data - q.detach().numpy()).max() < 0.02


@pytest.mark.parametrize("shape", [(6, 6), (3, 9), (9, 3), (1, 5), (5, 1)])
def test_newton_schulz_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    (g,) = arrays([shape], 5)
    W = Tensor(np.zeros(shape), requires_grad=True)
    W.grad = wrap(g)
    Muon([W], lr=1.0, weight_decay=0.0, ns_steps=6).step()
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    u, _, v = np.linalg.svd(g, full_matrices=False)
    s = np.diag(u.T @ (-W.data / scale) @ v.T)
    assert (s > 0.6).all() and (s < 1.25).all()
    eye = [np.eye(2) for _ in range(4)]
    assert np.allclose(newton_schulz(*eye, coefficients=(2, -1.5, 0.5)), np.eye(2))


# --- states ---------------------------------------------------------------------------------------


ALL = [*KINDS, (Lion, "Lion", {"lr": 0.01, "weight_decay": 0.1})]
ALL_IDS = [*IDS, "Lion"]


def trained(kind: Any, options: Any, steps: range, params: list[Tensor], state: Any = None) -> Any:
    optimizer = kind(params, **options)
    if state is not None:
        optimizer.load_state_dict(state)
    for t in steps:
        give_gradients(params, t)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("kind", "name", "options"), ALL, ids=ALL_IDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_restores_the_run_to_the_bit(
    kind: Any, name: str, options: Any, dtype: str
) -> None:
    one, two = (leaves(shapes_for(kind), dtype) for _ in range(2))
    whole = trained(kind, options, range(20), one)
    half = trained(kind, options, range(8), two)
    state = pickle.loads(pickle.dumps(half.state_dict()))  # plain data, nothing of ours
    three = [Tensor(p, requires_grad=True) for p in two]
    resumed = trained(kind, {**options, "lr": 123.0}, range(8, 20), three, state)
    for p, q in zip(one, three, strict=True):
        assert np.array_equal(p.data, q.data)
    assert repr(resumed.state_dict()) == repr(whole.state_dict())


def test_a_state_is_a_snapshot_in_the_layout_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    ours = leaves()
    a = trained(AdamW, {}, range(3), ours)
    state = a.state_dict()
    kept = copy.deepcopy(state)
    give_gradients(ours, 3)
    a.step()
    assert repr(state) == repr(kept)
    b = torch.optim.AdamW([torch.nn.Parameter(torch.tensor(p.data)) for p in ours])
    for p in b.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    b.step()
    theirs = b.state_dict()
    assert set(state) == set(theirs) and set(state["state"]) == set(theirs["state"])
    assert set(state["state"][0]) == set(theirs["state"][0])
    assert state["param_groups"][0].keys() <= theirs["param_groups"][0].keys()


def refused(optimizer: Any, state: Any) -> str:
    "The message; nothing may have changed."
    before = repr((optimizer.state_dict(), optimizer))
    with pytest.raises(OptimizerError) as caught:
        optimizer.load_state_dict(state)
    assert repr((optimizer.state_dict(), optimizer)) == before
    return str(caught.value)


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    named = [("first.weight", p) if k == 0 else (f"p{k}", p) for k, p in enumerate(leaves())]
    optimizer = AdamW(named)
    for _, p in named:
        p.grad = wrap(np.ones_like(p.data))
    optimizer.step()
    good = optimizer.state_dict()

    def changed(change: Callable[[Any], None]) -> Any:
        state = copy.deepcopy(good)
        change(state)
        return state

    shape = refused(optimizer, changed(lambda s: s["state"][0].update(exp_avg=np.zeros((4, 5)))))
    assert "exp_avg of 'first.weight' has shape (4, 5), not (5, 4)" in shape
    assert "groups of [4]" in refused(
        optimizer, changed(lambda s: s["param_groups"][0]["params"].pop())
    )
    names = changed(lambda s: s["param_groups"][0].update(param_names=["x"] * 5))
    assert "'x' stands where 'first.weight' does here" in refused(optimizer, names)
    assert "no options ['momentum']" in refused(
        optimizer, changed(lambda s: s["param_groups"][0].update(momentum=0.9))
    )
    assert "betas=(0.9, 2.0)" in refused(
        optimizer, changed(lambda s: s["param_groups"][0].update(betas=(0.9, 2.0)))
    )
    assert "of parameter 9" in refused(optimizer, changed(lambda s: s["state"].update({9: {}})))
    assert "no state of an optimiser" in refused(optimizer, {"weights": 1})
    assert "no state of an optimiser" in refused(optimizer, None)


def test_lbfgs_resumes_where_it_was() -> None:
    def run(x: Tensor, calls: int, state: Any = None) -> LBFGS:
        optimizer = LBFGS([x], max_iter=2, history_size=3)
        if state is not None:
            optimizer.load_state_dict(pickle.loads(pickle.dumps(state)))

        def closure() -> Any:
            optimizer.zero_grad()
            loss = rosenbrock_of(None, x)
            loss.backward()
            return loss

        for _ in range(calls):
            optimizer.step(closure)
        return optimizer

    start = [-1.2, 1.0, 0.3, 0.7]
    whole, half = (Tensor(start, requires_grad=True, dtype="float64") for _ in range(2))
    run(whole, 9)
    state = run(half, 4).state_dict()
    resumed = Tensor(half, requires_grad=True)
    run(resumed, 5, state)
    assert np.array_equal(whole.data, resumed.data)
    other = LBFGS([resumed], history_size=4)
    with pytest.raises(OptimizerError, match=r"old_dirs of parameter 0 has shape \(3, 4\)"):
        other.load_state_dict({**state, "param_groups": other.state_dict()["param_groups"]})


# --- memory, threads ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, (1_000_003,)),
        (Adagrad, {"weight_decay": 0.1}, (1_000_003,)),
        (RMSprop, {"momentum": 0.9, "centered": True}, (1_000_003,)),
        (Adam, {"weight_decay": 0.1, "amsgrad": True}, (1_000_003,)),
        (AdamW, {}, (1_000_003,)),
        (Lion, {}, (1_000_003,)),
        (Muon, {}, (600, 400)),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_step_makes_no_arrays(
    kind: Any, options: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    "In one thread: each further one makes its scratch when it gets its first piece, maybe late."
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    p = Tensor(np.ones(shape, "float32"), requires_grad=True)
    p.grad = wrap(np.full(shape, 0.1, "float32"))
    optimizer, array = kind([p], lr=1e-3, **options), p.data
    optimizer.step()
    tracemalloc.start()
    for _ in range(3):
        optimizer.step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000 and p.data is array, "the parameter has more than 900,000 bytes"


@pytest.mark.parametrize("kind", [SGD, AdamW, Lion])
def test_the_number_of_threads_does_not_show(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for count in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        params = leaves([(700_001,), (3,), (300, 1000)], "float32")
        optimizer = kind(params, lr=0.01)
        for t in range(3):
            give_gradients(params, t)
            optimizer.step()
        found.append([p.data.tobytes() for p in params])
    assert found[0] == found[1] == found[2]


def test_an_error_in_a_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SGD):
        def rule(self, group: Any, step: int) -> Any:
            def change(xp: Any, p: Any, *rest: Any) -> None:
                raise FloatingPointError(f"a piece of {p.size}")

            return change

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    p = leaves([(2_000_000,)])[0]
    p.grad = wrap(np.ones(2_000_000))
    with pytest.raises(FloatingPointError, match="a piece of"):
        Broken([p], lr=0.1).step()


def test_a_forked_child_gets_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    p = leaves([(1_000_000,)])[0]
    p.grad = wrap(np.ones(1_000_000))
    optimizer = SGD([p], lr=0.5)
    optimizer.step()
    child = os.fork()
    if not child:
        optimizer.step()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_arrays_that_may_not_be_written_into_are_replaced() -> None:
    "A transposed parameter, a read-only one, a broadcast gradient."
    wanted = np.arange(6.0).reshape(2, 3).T - 0.5
    for array in (np.arange(6.0).reshape(2, 3).T, np.broadcast_to(wanted + 0.5, (3, 2))):
        p = Tensor(np.zeros((3, 2)), requires_grad=True)
        p.data = array
        before = array.copy()
        p.grad = wrap(np.broadcast_to(np.array(1.0), (3, 2)))
        SGD([p], lr=0.5).step()
        assert np.array_equal(p.data, wanted) and np.array_equal(array, before)


def test_a_gradient_is_never_written_into() -> None:
    for kind, _, options in ALL:
        params = leaves(shapes_for(kind))
        shared = {p.shape: np.full(p.shape, 0.5) for p in params}
        for p in params:
            p.grad = wrap(shared[p.shape])
            shared[p.shape].flags.writeable = False
        kind(params, **options).step()


def test_a_gradient_that_is_the_parameter_itself_is_read_before_it_is_written() -> None:
    for kind, _, options in ALL:
        one, two = (leaves(shapes_for(kind)) for _ in range(2))
        for p, q in zip(one, two, strict=True):
            p.grad, q.grad = wrap(p.data), wrap(p.data.copy())
        kind(one, **options).step()
        kind(two, **options).step()
        for p, q in zip(one, two, strict=True):
            assert np.array_equal(p.data, q.data), kind


def test_backward_refuses_what_was_recorded_before_the_step() -> None:
    w, x = leaves([(4, 3), (2, 3)])
    loss = (x @ w.mT * 1.0).sum()
    w.grad = wrap(np.ones((4, 3)))
    AdamW([w]).step()
    with pytest.raises(GraphError, match="call backward"):
        loss.backward()


# --- wrong calls ---------------------------------------------------------------------------------


def tensor(n: int = 2) -> Tensor:
    return Tensor(np.ones(n), requires_grad=True)


ONE = tensor()
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: SGD([]), "SGD: no parameters; is the model empty"),
    (lambda: SGD(p for p in ()), "no parameters"),
    (lambda: SGD(ONE), "params is one Tensor; give a list"),
    (lambda: SGD({"params": [ONE]}), "params is one dict"),
    (lambda: SGD([ONE.detach()]), r"parameter 0, shape \(2,\), requires no gradient"),
    (lambda: SGD([("fc.bias", ONE.detach())]), r"'fc.bias', shape \(2,\), requires no gradient"),
    (lambda: SGD([ONE * 2]), "a result of multiply"),
    (lambda: SGD([ONE.data]), "parameter 0 is a ndarray, not a Tensor"),
    (lambda: SGD([ONE, tensor(), ONE]), "parameter 2.*twice.*parameter 0"),
    (lambda: SGD([{"params": ONE}, {"params": [ONE]}]), "twice"),
    (lambda: SGD([{"params": []}]), "a group without parameters"),
    (lambda: SGD([{"lr": 1.0}]), "a group has no 'params', only"),
    (lambda: SGD([{"params": [ONE], "learn": 1.0}]), "unknown option 'learn'"),
    (lambda: SGD([{"params": [ONE], "momentun": 0.9}]), "did you mean 'momentum'"),
    (lambda: SGD([{"params": [ONE], "lr": -1.0}]), r"lr=-1\.0"),
    (lambda: SGD([("a", ONE), tensor()]), "some parameters have names and some have none"),
    (lambda: SGD([ONE], lr=0.0), r"lr=0\.0; lr is a finite number above 0"),
    (lambda: SGD([ONE], lr=float("nan")), "lr=nan"),
    (lambda: SGD([ONE], lr=float("inf")), "lr=inf"),
    (lambda: SGD([ONE], lr="fast"), "lr='fast'"),
    (lambda: SGD([ONE], momentum=1.5), r"momentum=1\.5"),
    (lambda: SGD([ONE], nesterov=True), r"nesterov needs a momentum.*momentum=0\.0"),
    (lambda: SGD([ONE], weight_decay=-0.1), "weight_decay"),
    (lambda: Adam([ONE], betas=(0.9, 1.0)), "betas"),
    (lambda: Adam([ONE], betas=0.9), r"betas=0\.9; betas is two numbers"),
    (lambda: Adam([ONE], eps=-1e-8), "eps"),
    (lambda: RMSprop([ONE], alpha=1.0), "alpha"),
    (lambda: Muon([("b", ONE)]), r"Muon: 'b' has shape \(2,\); only matrices"),
    (lambda: Muon([Tensor(np.eye(2), True)], adjust_lr_fn="x"), "adjust_lr_fn='x'"),
    (lambda: LBFGS([ONE], line_search_fn="armijo"), "line_search_fn='armijo'"),
    (lambda: LBFGS([{"params": ONE}, {"params": tensor()}]), "one group only"),
    (lambda: LBFGS([ONE]).step(), "needs a closure, which is to clear"),
    (lambda: LBFGS([ONE]).step(lambda: None), "the closure returned None"),
    (lambda: LBFGS([ONE]).step(lambda: 1.0), "the closure left no gradients"),
]


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_calls_say_what_is_wrong(call: Callable[[], Any], words: str) -> None:
    ONE.grad = None
    with pytest.raises(OptimizerError, match=words):
        call()


def test_a_gradient_that_does_not_fit_changes_nothing() -> None:
    a, b = tensor(2), tensor(3)
    optimizer = AdamW([("a", a), ("b", b)])
    a.grad = wrap(np.ones(2))
    for g, words in ((np.ones(2), r"'b' has shape \(3,\)"), (np.ones(3, "float32"), "float32")):
        b.grad = wrap(g)
        with pytest.raises(OptimizerError, match=words):
            optimizer.step()
    assert a.tolist() == [1, 1] and all(s["step"] == 0 for s in optimizer.state.values())
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(OptimizerError, match="lr=nan"):
        optimizer.step()


def test_step_runs_the_closure_and_skips_what_has_no_gradient() -> None:
    a, b = tensor(), tensor()
    optimizer = SGD([a, b], lr=1.0)

    def closure() -> float:
        a.grad = wrap(np.ones(2))
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert a.tolist() == [0, 0] and b.tolist() == [1, 1] and b not in optimizer.state
    optimizer.zero_grad()
    assert a.grad is None
    optimizer.add_param_group({"params": [tensor()], "lr": 0.5})
    assert repr(optimizer).count("\n") == 3 and "lr=0.5" in repr(optimizer)


# --- the line search ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    a=st.floats(0.1, 10),
    b=st.floats(-2, 2),
    first=st.floats(1e-3, 100),
    wave=st.floats(0, 1),
)
def test_the_line_search_finds_a_wolfe_point(a: float, b: float, first: float, wave: float) -> None:
    def at(t: float) -> Point:
        f = a * (t - 2) ** 2 + b + wave * np.sin(3 * t)
        return Point(t, float(f), float(2 * a * (t - 2) + 3 * wave * np.cos(3 * t)), None)

    start = at(0.0)
    if start.slope < 0:
        end = strong_wolfe(at, start, first, tries=50)
        assert end.f <= start.f + 1e-4 * end.t * start.slope + 1e-12
        assert abs(end.slope) <= -0.9 * start.slope + 1e-9


def test_a_loss_that_is_not_finite_far_out_does_no_harm() -> None:
    x = Tensor([1.0], requires_grad=True, dtype="float64")
    optimizer = LBFGS([x], lr=1000.0)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = ((x - 3.0) ** 2).sum() if abs(x.item()) < 10 else (x * float("nan")).sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert abs(x.item() - 3) < 1e-6


def test_an_error_in_the_closure_puts_the_parameters_back() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True, dtype="float64")
    optimizer, calls = LBFGS([x]), []

    def closure() -> Any:
        calls.append(x.tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = (x**4).sum()
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert x.tolist() != calls[2] and x.tolist() in calls[:2]
    bad = LBFGS([x])

    def nan() -> Any:
        x.grad = wrap(np.ones(2))
        return float("nan")

    with pytest.raises(OptimizerError, match="the loss is nan before the first step"):
        bad.step(nan)


# ------------------------------------------------------------- states that are not whole


def saved_adam() -> tuple[Adam, dict[str, Any]]:
    "An optimiser after a step, and its state."
    optimizer = trained(Adam, {}, range(1), leaves())
    return optimizer, optimizer.state_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[0].pop("exp_avg"), "of parameter 0 there is ['step', 'exp_avg_sq'], not"),
        (lambda s: s[0].pop("step"), "not ['step', 'exp_avg', 'exp_avg_sq']"),
        (lambda s: s[0].update(foo=np.ones(3)), "'foo'], not"),
        (lambda s: s[0].update(step=-5), "step of parameter 0 is -5; a whole number from 0"),
        (lambda s: s[0].update(step=2.5), "step of parameter 0 is 2.5; a whole number"),
        (lambda s: s[0].update(step=np.ones(())), "a whole number from 0 is needed"),
        (lambda s: s[0].update(exp_avg="hello"), "exp_avg of parameter 0 has shape None"),
        (lambda s: s[0].update(exp_avg=0.0), "exp_avg of parameter 0 has shape None"),
        (lambda s: s.update(x={}), "of parameter x, but there are 5"),
        (lambda s: s.update({-1: {}}), "of parameter -1, but there are 5"),
        (lambda s: s.update({0: 3}), "there is 3, not ['step'"),
    ],
)
def test_a_state_with_something_missing_or_wrong_is_refused(change: Any, words: str) -> None:
    optimizer, state = saved_adam()
    change(state["state"])
    assert words in refused(optimizer, state)


def test_a_state_after_an_option_was_changed_is_whole() -> None:
    "Momentum switched on or off between two steps: the state has what the next step needs."
    for before, after in ((0.0, 0.9), (0.9, 0.0)):
        one = leaves()
        optimizer = trained(SGD, {"lr": 0.1, "momentum": before}, range(2), one)
        optimizer.param_groups[0]["momentum"] = after
        state = optimizer.state_dict()
        two = [Tensor(p, requires_grad=True) for p in one]
        resumed = trained(SGD, {"lr": 0.1, "momentum": before}, range(2, 4), two, state)
        for t in (2, 3):
            give_gradients(one, t)
            optimizer.step()
        assert all(np.array_equal(p.data, q.data) for p, q in zip(one, two, strict=True))
        assert repr(resumed.state_dict()) == repr(optimizer.state_dict())


def test_lbfgs_states_are_checked_too() -> None:
    x = Tensor([3.0, 4.0], requires_grad=True)
    optimizer = LBFGS([x])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    state = optimizer.state_dict()
    LBFGS([x]).load_state_dict(state)
    for name, value in (("t", -1.0), ("updates", 1.5), ("H_diag", math.inf), ("d", np.ones(3))):
        wrong = copy.deepcopy(state)
        wrong["state"][0][name] = value
        assert f"{name} of parameter 0" in refused(optimizer, wrong)
    del state["state"][0]["old_dirs"]
    assert "'prev_flat_grad', 'old_stps'], not" in refused(optimizer, state)


# ------------------------------------------------------------- norms beyond float64


@pytest.mark.parametrize(
    ("value", "dtype", "power"),
    [(1e38, "float32", 10), (1e200, "float64", 2), (1e-200, "float64", 2), (1e-40, "float64", 9)],
)
def test_a_norm_whose_powers_do_not_fit(value: float, dtype: str, power: float) -> None:
    p = Tensor(np.ones(3, dtype), requires_grad=True)
    p.grad = wrap(np.full(3, value, dtype))
    norm = clip_grad_norm_([p], 1e30, power, error_if_nonfinite=True)
    assert norm == pytest.approx(value * 3 ** (1 / power), rel=1e-6)
    assert grad_norm([p], power) == pytest.approx(min(norm, 1e30), rel=1e-5)


def test_a_norm_that_is_too_large_for_any_number() -> None:
    p = Tensor(np.ones(9), requires_grad=True)
    p.grad = wrap(np.full(9, 1e308))
    with pytest.raises(OptimizerError, match="the norm is inf; though each gradient is finite"):
        clip_grad_norm_([p], 1.0, error_if_nonfinite=True)


def test_nan_anywhere_makes_every_norm_nan() -> None:
    "Also behind the first piece, where Python's `max` would pass it over."
    g = np.ones(100_000, "float32")
    g[90_000] = np.nan
    p = Tensor(np.ones_like(g), requires_grad=True)
    p.grad = wrap(g)
    for power in (1.0, 2.0, 3.5, math.inf):
        assert math.isnan(grad_norm([p], power))
        with pytest.raises(OptimizerError, match="w is the first of 1 of 1"):
            clip_grad_norm_([("w", p)], 1.0, power, error_if_nonfinite=True)
