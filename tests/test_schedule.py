"Schedules, clipping and means beyond their chapter: PyTorch's numbers."

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gradbook.optim import schedule
from gradbook.optim.average import EMA, SWA
from gradbook.optim.clip import clip_grad_norm_, clip_grad_value_
from gradbook.optim.optimizer import SGD, OptimizerError
from gradbook.optim.schedule import OneCycleLR
from gradbook.tensor.core import Tensor, wrap


def one_cycle(total: int, share: float) -> list[tuple[float, float]]:
    "The rate and the momentum of every step."
    optimizer = SGD([Tensor([1.0], requires_grad=True)], lr=0.1, momentum=0.9)
    schedule = OneCycleLR(optimizer, 1.0, total, pct_start=share)
    group, out = optimizer.param_groups[0], []
    for t in range(total):
        out.append((group["lr"], group["momentum"]))
        if t + 1 < total:
            schedule.step()
    return out


@pytest.mark.parametrize(
    ("total", "share"), [(20, 0.3), (3, 0.4), (10, 0.05), (2, 0.3), (4, 0.99), (10, 0.95)]
)
def test_one_cycle_is_that_of_pytorch(total: int, share: float) -> None:
    "Also where the first part is shorter than a step, or nearly all of them."
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=total, pct_start=share
    )
    group, theirs = optimizer.param_groups[0], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimiser in between
        for _ in range(total):
            theirs.append((group["lr"], group["momentum"]))
            schedule.step()
    np.testing.assert_allclose(one_cycle(total, share), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("total", "share"), [(10, 0.1), (2, 0.5), (4, 0.25), (3, 1 / 3)])
def test_one_cycle_whose_first_part_is_one_step_begins_at_the_top(total: int, share: float) -> None:
    "Where PyTorch divides by zero; as it is for a slightly shorter first part."
    found = one_cycle(total, share)
    assert found[0] == (1.0, 0.85)
    np.testing.assert_allclose(found[-1], (1 / 250_000, 0.95))
    np.testing.assert_allclose(found, one_cycle(total, share - 1e-9), atol=1e-7)


# ------------------------------------------------------------- the other schedules


def both(torch: Any) -> tuple[Any, Any]:
    "Our optimiser and PyTorch's, of two groups with rates of their own."
    ours = [{"params": [Tensor(np.ones(n), requires_grad=True)], "lr": n / 10} for n in (1, 2)]
    theirs = [{"params": [torch.nn.Parameter(torch.ones(n))], "lr": n / 10} for n in (1, 2)]
    return SGD(ours, momentum=0.9), torch.optim.SGD(theirs, momentum=0.9)


def rates_of(optimizer: Any, schedule: Any, marks: Sequence[Any]) -> list[list[float]]:
    "The rates of all groups, before each step and after the last."
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimiser in between
        for mark in [*marks, None]:
            out.append([group["lr"] for group in optimizer.param_groups])
            if len(out) <= len(marks):
                schedule.step(*mark)
    return out


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("StepLR", {"step_size": 7, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [9, 3, 9], "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 10}),
    ("LambdaLR", {"lr_lambda": lambda t: 1 / (1 + t)}),
    ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.001}),
    ("OneCycleLR", {"max_lr": [0.3, 0.1], "total_steps": 31}),
]


@pytest.mark.parametrize(("name", "options"), KINDS, ids=[name for name, _ in KINDS])
def test_rates_are_those_of_pytorch(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    a, b = both(torch)
    ours = rates_of(a, getattr(schedule, name)(a, **options), [()] * 30)
    theirs = rates_of(b, getattr(torch.optim.lr_scheduler, name)(b, **options), [()] * 30)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_schedules_in_a_row_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")

    def row(home: Any, optimizer: Any) -> Any:
        parts = [
            home.LinearLR(optimizer, 0.1, 1.0, 5),
            home.CosineAnnealingLR(optimizer, 10),
            home.StepLR(optimizer, 4, 0.5),
        ]
        return home.SequentialLR(optimizer, parts, [5, 15])

    a, b = both(torch)
    ours = rates_of(a, row(schedule, a), [()] * 30)
    theirs = rates_of(b, row(torch.optim.lr_scheduler, b), [()] * 30)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "max"},
        {"threshold_mode": "abs", "threshold": 0.1},
        {"cooldown": 3, "patience": 2},
        {"patience": 0, "min_lr": 1e-3, "factor": 0.3},
    ],
)
def test_a_plateau_is_that_of_pytorch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    marks = [(float(m),) for m in np.abs(np.random.default_rng(0).normal(size=40))]
    a, b = both(torch)
    ours = rates_of(a, schedule.ReduceLROnPlateau(a, **options), marks)
    theirs = rates_of(b, torch.optim.lr_scheduler.ReduceLROnPlateau(b, **options), marks)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_cycle_keeps_its_last_rate_for_one_call_more() -> None:
    optimizer = SGD([Tensor([1.0], requires_grad=True)], lr=0.1, momentum=0.9)
    cycle = OneCycleLR(optimizer, 1.0, 10)
    for _ in range(9):
        cycle.step()
    last = dict(optimizer.param_groups[0])
    cycle.step()  # after the tenth update
    assert optimizer.param_groups[0] == last
    with pytest.raises(OptimizerError, match="step 11 of 10: it is over"):
        cycle.step()


# ------------------------------------------------------------- clipping and means


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
def test_clipping_is_that_of_pytorch(power: float, limit: float) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape) * 10 for shape in ((3, 4), (5,), ())]
    ours = [Tensor(np.zeros_like(g), requires_grad=True) for g in grads]
    theirs = [torch.nn.Parameter(torch.zeros(np.shape(g), dtype=torch.float64)) for g in grads]

    def give() -> None:
        for p, q, g in zip(ours, theirs, grads, strict=True):
            p.grad, q.grad = wrap(np.array(g)), torch.tensor(np.array(g))

    def compare() -> None:
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.grad.data, q.grad.numpy(), rtol=1e-6, atol=1e-12)

    give()
    norm = clip_grad_norm_(ours, limit, power)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, limit, power)))
    compare()
    give()
    clip_grad_value_(ours, limit)
    torch.nn.utils.clip_grad_value_(theirs, limit)
    compare()


@pytest.mark.parametrize("kind", ["EMA", "SWA"])
def test_means_are_those_of_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    utils = torch.optim.swa_utils
    values = np.random.default_rng(0).normal(size=(20, 3, 2))
    p = Tensor(values[0].copy(), requires_grad=True)
    line = torch.nn.Linear(2, 3, bias=False, dtype=torch.float64)
    ours = EMA([p], 0.9) if kind == "EMA" else SWA([p])
    fading = {"multi_avg_fn": utils.get_ema_multi_avg_fn(0.9)} if kind == "EMA" else {}
    theirs = utils.AveragedModel(line, **fading)
    for value in values:
        p.assign_(value)
        line.weight.data = torch.tensor(value)
        ours.update()
        theirs.update_parameters(line)
    with ours.swapped():
        np.testing.assert_allclose(p.data, theirs.module.weight.detach().numpy(), rtol=1e-10)
    assert np.array_equal(p.data, values[-1])
