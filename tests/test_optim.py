"Optimisers beyond their chapter: PyTorch's numbers, saved states, memory, and faults."

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradbook.optim.adam import Adam, AdamW, Lion
from gradbook.optim.lbfgs import LBFGS
from gradbook.optim.muon import Muon
from gradbook.optim.optimizer import SGD, Adagrad, Optimizer, RMSprop
from gradbook.tensor.core import Tensor, wrap

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
