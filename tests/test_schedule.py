"Schedules beyond their chapter: PyTorch's numbers at the edges."

from __future__ import annotations

import warnings

import numpy as np
import pytest

from gradbook.optim.optimizer import SGD
from gradbook.optim.schedule import OneCycleLR
from gradbook.tensor.core import Tensor


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
