"Initialisations against theory, and the default stream of keys."

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.nn import init
from gradbook.nn.linear import Linear
from gradbook.nn.module import Parameter
from gradbook.tensor import random
from gradbook.tensor.core import GraphError, ShapeError, Tensor

SHAPE = (300, 400)


def empty(*shape: int, dtype: str = "float32") -> Tensor:
    return Parameter(np.full(shape, np.nan, dtype))


RANDOM: dict[str, tuple[dict[str, Any], float, str]] = {  # options, variance, kind
    "uniform_": ({"a": -0.3, "b": 0.3}, 0.03, "uniform"),
    "normal_": ({"std": 0.2}, 0.04, "normal"),
    "xavier_uniform_": ({}, 2 / 700, "uniform"),
    "xavier_normal_": ({"gain": 2.0}, 4 * 2 / 700, "normal"),
    "kaiming_uniform_": ({"a": 1.0}, 1 / 400, "uniform"),
    "kaiming_normal_": ({"mode": "fan_out", "nonlinearity": "relu"}, 2 / 300, "normal"),
    "lecun_uniform_": ({}, 1 / 400, "uniform"),
    "lecun_normal_": ({}, 1 / 400, "normal"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RANDOM)
def test_mean_variance_and_shape_of_the_distribution(name: str, dtype: str) -> None:
    options, variance, kind = RANDOM[name]
    tensor = empty(*SHAPE, dtype=dtype)
    assert getattr(init, name)(tensor, **options, key=1) is tensor
    values = tensor.numpy()
    assert tensor.requires_grad and values.dtype == dtype
    n, std = values.size, variance**0.5
    kurtosis = {"uniform": 1.8, "normal": 3.0}[kind]
    assert abs(values.mean()) < 5 * std / n**0.5
    assert abs(values.var() / variance - 1) < 5 * ((kurtosis - 1) / n) ** 0.5
    assert abs(np.mean((values / std) ** 4.0) - kurtosis) < 0.1
    if kind == "uniform":
        assert 0.999 < abs(values).max() / (std * 3**0.5) <= 1 + 1e-6
    halves = values[:, ::2].ravel() * values[:, 1::2].ravel()
    assert abs(halves.mean()) < 5 * variance / (n / 2) ** 0.5


@pytest.mark.parametrize("name", [*RANDOM, "trunc_normal_", "orthogonal_"])
def test_a_key_decides(name: str) -> None:
    fill = getattr(init, name)
    options = RANDOM.get(name, ({}, 0, ""))[0]
    one = fill(empty(8, 6), **options, key=1).tolist()
    assert fill(empty(8, 6), **options, key=random.key(1)).tolist() == one
    assert fill(empty(8, 6), **options, key=2).tolist() != one
    init.manual_seed(3)
    first, second = (fill(empty(8, 6), **options).tolist() for _ in range(2))
    assert first != second
    init.manual_seed(3)
    assert fill(empty(8, 6), **options).tolist() == first


def test_fans_of_a_window() -> None:
    assert init.fan_in_and_out(empty(16, 8, 3, 3)) == (72, 144)
    w = init.kaiming_normal_(empty(64, 32, 3, 3), nonlinearity="relu", key=0).numpy()
    assert abs(w.var() * 288 / 2 - 1) < 0.05


@given(st.floats(-1, 1), st.floats(0.1, 2), st.floats(-2, 1), st.floats(0.2, 3))
@settings(max_examples=40, deadline=None)
def test_truncated_normal_against_theory(mean: float, std: float, a: float, width: float) -> None:
    import math

    b = a + width
    low, high = (a - mean) / std, (b - mean) / std
    share = (math.erf(high / 2**0.5) - math.erf(low / 2**0.5)) / 2
    tensor = empty(4000, 1, dtype="float64")
    if share < 0.001:
        with pytest.raises(ValueError, match=r"less than 0\.1 %"):
            init.trunc_normal_(tensor, mean, std, a, b, key=0)
        return
    values = init.trunc_normal_(tensor, mean, std, a, b, key=0).numpy()
    assert values.min() >= a and values.max() <= b
    density = [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in (low, high)]
    expected = mean + std * (density[0] - density[1]) / share
    assert abs(values.mean() - expected) < 6 * values.std() / 4000**0.5


def test_truncated_normal_in_numbers() -> None:
    values = init.trunc_normal_(empty(400, 400), key=1).numpy()
    assert abs(values).max() <= 2 and abs(values.std() - 0.8796) < 0.005
    for wrong in ({"std": 0.0}, {"std": -1.0}, {"a": 2.0, "b": -2.0}, {"a": 9.0, "b": 10.0},
                  {"mean": float("nan")}):  # fmt: skip
        with pytest.raises(ValueError, match="trunc_normal_"):
            init.trunc_normal_(empty(3, 3), **wrong)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (6, 2, 2), (4, 3, 2, 2), (1, 7)])
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_orthogonal(shape: tuple[int, ...], gain: float) -> None:
    w = init.orthogonal_(empty(*shape, dtype="float64"), gain, key=2).numpy()
    w = w.reshape(shape[0], -1)
    square = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(square, gain**2 * np.eye(len(square)), atol=1e-12)


def test_orthogonal_prefers_no_direction() -> None:
    "Without the signs of R, entry (0, 0) would always have the same sign."
    entries = [init.orthogonal_(empty(3, 3), key=k).numpy() for k in range(400)]
    mean, square = np.mean(entries, axis=0), np.mean(np.square(entries), axis=0)
    assert abs(mean).max() < 0.15 and abs(square - 1 / 3).max() < 0.1
    turns = np.mean([np.linalg.det(w) > 0 for w in entries])
    assert 0.4 < turns < 0.6


def test_constants() -> None:
    assert init.zeros_(empty(2, 2)).tolist() == [[0, 0], [0, 0]]
    assert init.ones_(empty(2)).tolist() == [1, 1]
    assert init.constant_(empty(2), 0.5).tolist() == [0.5, 0.5]
    assert init.eye_(empty(2, 3)).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert init.zeros_(Tensor([1, 2])).dtype == "int64"


@pytest.mark.parametrize("name", [n for n in RANDOM if n not in ("uniform_", "normal_")])
def test_a_vector_has_no_fan(name: str) -> None:
    with pytest.raises(ShapeError, match=rf"{name}: shape \(5,\) has no fan-in"):
        getattr(init, name)(empty(5))


def test_other_errors() -> None:
    with pytest.raises(ShapeError, match=r"eye_.*\(3,\)"):
        init.eye_(empty(3))
    with pytest.raises(ShapeError, match=r"orthogonal_: shape \(3,\)"):
        init.orthogonal_(empty(3))
    with pytest.raises(ValueError, match=r"kaiming_normal_: mode 'fan_on'.*fan_in, fan_out"):
        init.kaiming_normal_(empty(2, 2), mode="fan_on")
    with pytest.raises(ValueError, match=r"calculate_gain: 'rely'.*relu"):
        init.calculate_gain("rely")
    with pytest.raises(GraphError, match="result of multiply"):
        init.zeros_(empty(2) * 2.0)
    with pytest.raises(ValueError, match="low < high"):
        init.uniform_(empty(2), 1.0, 1.0)


def test_empty_tensors_stay_empty() -> None:
    for name in [*RANDOM, "orthogonal_", "trunc_normal_", "zeros_"]:
        if name != "uniform_":
            assert getattr(init, name)(empty(0, 3)).shape == (0, 3)


# ------------------------------------------------------------------------ the default stream


def test_the_state_of_the_stream() -> None:
    init.manual_seed(11)
    assert init.get_rng_state() == (11, 0)
    keys = [init.next_key() for _ in range(5)]
    assert len(set(keys)) == 5 and init.get_rng_state() == (11, 5)
    init.set_rng_state((11, 3))
    assert [init.next_key(), init.next_key()] == keys[3:]
    init.set_rng_state([11, np.int64(0)])  # as it comes back from a file
    assert init.next_key() == keys[0]
    for wrong in ((-1, 0), (0, -1), (2**64, 0)):
        with pytest.raises(ValueError, match=r"key|set_rng_state"):
            init.set_rng_state(wrong)
    with pytest.raises(TypeError):
        init.set_rng_state((0.5, 0))
    assert init.get_rng_state() == (11, 1)


def test_layers_draw_one_key_each() -> None:
    init.manual_seed(0)
    one, two = Linear(3, 3), Linear(3, 3)
    assert one.weight.tolist() != two.weight.tolist() and init.get_rng_state() == (0, 2)
    assert one.weight.numpy()[0].tolist() != one.bias.tolist()
    init.manual_seed(0)
    assert Linear(3, 3).weight.tolist() == one.weight.tolist()
    Linear(3, 3, key=5)
    assert init.get_rng_state() == (0, 1)


def test_threads_never_get_the_same_key() -> None:
    init.manual_seed(0)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(init.next_key() for _ in range(50)))
        for _ in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(found)) == 400 and init.get_rng_state() == (0, 400)


def test_a_program_begins_with_the_seed_of_the_settings() -> None:
    code = "from gradbook.nn import init; init.next_key(); print(*init.get_rng_state())"
    out = subprocess.run(
        [sys.executable, "-c", code], env={"GRADBOOK_SEED": "42", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.split() == ["42", "1"]


# -------------------------------------------------------------------------- against PyTorch

torch = pytest.importorskip("torch", reason="PyTorch is the reference of these tests")


@pytest.mark.parametrize("name", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_are_pytorchs(name: str) -> None:
    assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


@pytest.mark.parametrize("name", [n for n in RANDOM if not n.startswith("lecun")])
def test_spread_is_pytorchs(name: str) -> None:
    "The same arguments give the same distribution: compare quantiles."
    options = RANDOM[name][0]
    ours = getattr(init, name)(empty(*SHAPE), **options, key=0).numpy().ravel()
    torch.manual_seed(0)
    theirs = getattr(torch.nn.init, name)(torch.empty(SHAPE), **options).numpy().ravel()
    at = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(
        np.quantile(ours, at), np.quantile(theirs, at), atol=0.03 * theirs.std()
    )


def test_the_beginning_of_linear_is_pytorchs() -> None:
    ours, theirs = Linear(400, 300, key=0), torch.nn.Linear(400, 300)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        values, other = p.numpy(), q.detach().numpy()
        assert abs(values.std() / other.std() - 1) < 0.15
        assert abs(values).max() <= 1 / 20 and abs(other).max() <= 1 / 20
