"Modules: roles, names, states, print, errors; layers and activations against PyTorch."

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.nn import activations, init
from gradbook.nn.activations import ReLU, Softmax, Tanh
from gradbook.nn.linear import Flatten, Identity, Linear, linear
from gradbook.nn.module import (
    Module,
    ModuleDict,
    ModuleError,
    ModuleList,
    Parameter,
    Sequential,
    StateError,
    functional_call,
)
from gradbook.tensor.backend import DtypeError
from gradbook.tensor.check import check_primitive
from gradbook.tensor.core import (
    TABLE,
    GraphError,
    ShapeError,
    Tensor,
    gradients,
    no_grad,
)
from gradbook.tensor.transforms import grad, hvp, jvp, vmap


def mlp(seed: int = 0, dtype: str = "float32") -> Sequential:
    "Linear, ReLU, Linear."
    init.manual_seed(seed)
    return Sequential(Linear(6, 5, dtype=dtype), ReLU(), Linear(5, 3, dtype=dtype))


class Net(Module):
    "Parameters, buffers and children of its own."

    def __init__(self) -> None:
        self.scale = Parameter([1.0, 2.0])
        self.mean = Tensor([0.0, 0.0])
        self._mask = Tensor([True, False])
        self.body = Linear(2, 2, key=1)
        self.width = 2

    def forward(self, x: Any) -> Tensor:
        return self.body(x) * self.scale - self.mean


# ------------------------------------------------------------------------ roles and names


def test_roles_and_names() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == ["scale", "body.weight", "body.bias"]
    assert [n for n, _ in net.named_buffers()] == ["mean", "_mask"]
    assert [n for n, _ in net.named_modules()] == ["", "body"]
    assert [n for n, _ in net.named_parameters(prefix="net")][1] == "net.body.weight"
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert list(net.children()) == [net.body] and list(net.modules()) == [net, net.body]
    assert list(net.state_dict()) == ["scale", "mean", "body.weight", "body.bias"]
    assert all(p.grad is None for p in net.parameters())


def test_a_role_sticks_when_a_parameter_is_frozen() -> None:
    net = Net().requires_grad_(False)
    assert len(list(net.parameters())) == 3 and not any(p.requires_grad for p in net.parameters())
    assert all(p.requires_grad for p in net.requires_grad_().parameters())


def test_attributes_may_change_their_kind() -> None:
    net = Net()
    net.body.bias = None
    assert [n for n, _ in net.body.named_parameters()] == ["weight"]
    net.mean = Parameter([0.0, 0.0])
    assert "mean" in dict(net.named_parameters()) and not list(net.body.buffers())
    del net.mean
    assert "mean" not in net.state_dict() and not hasattr(net, "mean")
    with pytest.raises(AttributeError):
        del net.mean
    net.scale = 3.0
    assert "scale" not in dict(net.named_parameters())


def test_a_result_may_be_kept_under_a_private_name() -> None:
    net = Net()
    net._last = net(np.ones((1, 2)))
    assert "_last" not in dict(net.named_parameters()) and "_last" not in net.state_dict()
    with no_grad():
        net._last = net(np.ones((1, 2)))
    assert "_last" not in net.state_dict()
    net._hidden = Parameter([1.0])
    assert "_hidden" in net.state_dict()


class Property(Module):
    "A property may put what it is given elsewhere."

    @property
    def weight(self) -> Tensor:
        return self.raw * 2.0

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.raw = value


def test_a_property_decides_where_a_parameter_goes() -> None:
    module = Property()
    module.weight = Parameter([3.0])
    assert [n for n, _ in module.named_parameters()] == ["raw"]
    assert module.weight.tolist() == [6.0]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("scale", lambda net: net.scale * 0.9, "result of multiply.*assign_"),
        ("_scale", None, ""),
        ("scale", lambda net: Tensor([1.0, 1.0]), "requires no gradient.*requires_grad_"),
        ("forward", lambda net: Linear(2, 2), "name of a method"),
        ("to", lambda net: Parameter([1.0]), "name of a method"),
        ("a.b", lambda net: Parameter([1.0]), "dot"),
        ("", lambda net: Tensor([1.0]), "empty"),
        ("inner", lambda net: net, "part of itself"),
        ("inner", lambda net: Sequential(ReLU(), Sequential(net)), "part of itself"),
        ("layers", lambda net: [Linear(2, 2), Linear(2, 2)], "list.*: 2.*ModuleList"),
        ("layers", lambda net: (1, [Linear(2, 2)]), "tuple.*: 1.*ModuleList"),
        ("layers", lambda net: {"a": Linear(2, 2)}, "dict.*: 1.*ModuleDict"),
        ("weights", lambda net: {Parameter([1.0])}, "set.*: 1"),
        ("weights", lambda net: [[[Parameter([1.0])]]], "list.*: 1"),
    ],
)
def test_refused_assignments(name: str, make: Any, message: str) -> None:
    net = Net()
    if make is None:
        net._scale = net.scale * 0.9
        return
    before = dict(vars(net)), dict(net._roles)
    with pytest.raises(ModuleError, match=message):
        setattr(net, name, make(net))
    assert (dict(vars(net)), dict(net._roles)) == before


def test_lists_of_other_things_are_nobodys_business() -> None:
    net = Net()
    net.losses = [net(np.ones((1, 2))).sum(), 0.5]  # results, no parameters
    net.names, net.table = ["a", "b"], {"a": 1, "b": np.ones(3)}
    net.constants = [Tensor([1.0])]
    assert len(list(net.parameters())) == 3


@pytest.mark.parametrize("use", [lambda n: list(n.parameters()), lambda n: n.state_dict(), repr,
                                 lambda n: n.to(dtype="float64"), lambda n: n.train()])  # fmt: skip
def test_a_list_that_was_filled_later_is_found(use: Callable[[Any], Any]) -> None:
    net = Sequential(Net())
    net[0].layers = []
    net[0].layers.append(Linear(2, 2))
    with pytest.raises(ModuleError, match=r"Net\.layers.*ModuleList"):
        use(net)


def test_what_is_hidden_on_purpose_stays_hidden() -> None:
    net = Net()
    vars(net)["teacher"] = Net()
    assert len(list(net.parameters())) == 3 and "teacher" not in repr(net)


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        ModuleList([ReLU()])(1)


# ------------------------------------------------------------------------------- sharing


class Tied(Module):
    "An output layer with the weight of the input layer."

    def __init__(self) -> None:
        self.embed, self.head = Linear(3, 4, bias=False, key=0), Linear(3, 4, key=1)
        self.head.weight = self.embed.weight

    def forward(self, x: Any) -> Tensor:
        return self.head(linear(self.embed(x), self.embed.weight.mT))


def test_tied_weights_are_one_parameter_with_two_names() -> None:
    net = Tied()
    assert [n for n, _ in net.named_parameters()] == ["embed.weight", "head.bias"]
    both = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    assert both == ["embed.weight", "head.weight", "head.bias"] == list(net.state_dict())
    state = net.state_dict()
    assert state["embed.weight"] is state["head.weight"] is not net.embed.weight
    net(np.ones((2, 3))).sum().backward()
    assert "head.weight" in state and "weight = embed.weight" in repr(net)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_ties_and_values_and_roles(copied: Callable[[Any], Any]) -> None:
    net = Tied()
    net.embed.requires_grad_(False)
    net.eval().register_forward_hook(lambda *a: None)
    twin = copied(net)
    assert twin.embed.weight is twin.head.weight is not net.embed.weight
    assert not twin.embed.weight.requires_grad and twin.head.bias.requires_grad
    assert repr(twin) == repr(net) and not twin.training and not twin._hooks and net._hooks
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(twin(x).numpy(), net(x).numpy())
    twin.head.bias.assign_(np.zeros(4))
    assert net.head.bias.numpy().any()
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in net.named_parameters()]


def test_a_shared_module_comes_once_and_is_saved_twice() -> None:
    part = Linear(2, 2)
    net = Sequential(part, ReLU(), part)
    assert len(list(net.modules())) == 3 and len(list(net.parameters())) == 2
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "the same as 0" in repr(net)


# ---------------------------------------------------------------------------------- state


def test_a_state_is_a_snapshot() -> None:
    net = mlp()
    state = net.state_dict()
    kept = {n: v.numpy().copy() for n, v in state.items()}
    for p in net.parameters():
        p.data += 1.0  # what an optimiser does
    assert all((state[n].numpy() == v).all() for n, v in kept.items())
    net.load_state_dict(state)
    for p in net.parameters():
        p.data *= 2.0
    assert all((state[n].numpy() == v).all() for n, v in kept.items())
    assert not any(v.requires_grad for v in state.values())


def test_loading_keeps_tensors_and_their_demand_for_gradients() -> None:
    net, other = mlp(0), mlp(1)
    params = list(net.parameters())
    assert net.load_state_dict(other.state_dict()) == ([], [])
    assert all(p is q for p, q in zip(params, net.parameters()))
    assert all(p.requires_grad for p in params)
    for p, q in zip(params, other.parameters()):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
        assert not np.shares_memory(p.numpy(), q.numpy())


def test_every_fault_is_listed_and_nothing_is_loaded() -> None:
    net = Net()
    before = {n: v.tolist() for n, v in net.state_dict().items()}
    state = {
        "scale": np.full(2, 7.0),
        "mean": np.full((3,), 7.0),
        "body.weigth": np.full((2, 2), 7.0),
        "body.bias": ["a", "b"],
        "extra": 1.0,
    }
    with pytest.raises(StateError) as caught:
        net.load_state_dict(state)
    text = str(caught.value)
    assert text.splitlines()[0] == "Net.load_state_dict: nothing was loaded"
    for line in (
        "missing: body.weight",
        "unexpected: body.weigth; did you mean body.weight?",
        "unexpected: extra",
        "mean: shape (2,) needed, (3,) given",
        "body.bias: ",
    ):
        assert line in text, text
    assert {n: v.tolist() for n, v in net.state_dict().items()} == before


def test_not_strict_forgives_names_but_no_shapes() -> None:
    net = Net()
    found = net.load_state_dict({"scale": [5.0, 6.0], "other": [1.0]}, strict=False)
    assert found.missing_keys == ["mean", "body.weight", "body.bias"]
    assert found.unexpected_keys == ["other"] and net.scale.tolist() == [5.0, 6.0]
    with pytest.raises(StateError, match=r"body\.weight: shape \(2, 2\) needed, \(1,\) given"):
        net.load_state_dict({"scale": [0.0, 0.0], "body.weight": [1.0]}, strict=False)
    assert net.scale.tolist() == [5.0, 6.0]
    with pytest.raises(StateError, match="transposed"):
        Linear(2, 3).load_state_dict({"weight": np.ones((2, 3))}, strict=False)


class Count(Module):
    "A buffer of whole numbers."

    def __init__(self) -> None:
        self.steps, self.mean = Tensor([1, 2]), Tensor([0.0])


def test_dtypes_are_cast_where_nothing_is_lost() -> None:
    net = Count()
    net.load_state_dict({"steps": np.array([3, 4], "int32"), "mean": np.array([2], "int64")})
    assert net.steps.dtype == "int64" and net.mean.dtype == "float32" and net.mean.item() == 2.0
    with pytest.raises(StateError, match="steps: dtype int64 needed, float64 given"):
        net.load_state_dict({"steps": np.array([0.5, 0.5]), "mean": [1.0]})


def test_tied_names_must_agree() -> None:
    net = Tied()
    state = {n: v.numpy().copy() for n, v in net.state_dict().items()}
    net.load_state_dict(state)
    state["head.weight"] += 1
    with pytest.raises(StateError, match=r"head\.weight: not the value of the tensor"):
        net.load_state_dict(state)
    del state["head.weight"]
    net.load_state_dict(state, strict=False)
    state["embed.weight"][0, 0] = state["embed.weight"][0, 0] * np.nan
    state["head.weight"] = state["embed.weight"]
    net.load_state_dict(state)  # NaN is equal to NaN here


def test_a_state_goes_through_a_file_of_numpy() -> None:
    file, net, other = io.BytesIO(), mlp(0), mlp(1)
    np.savez(file, **net.state_dict())
    file.seek(0)
    other.load_state_dict(np.load(file))
    np.testing.assert_array_equal(other[0].weight.numpy(), net[0].weight.numpy())


# ------------------------------------------------------------------------------ to, train


def test_to_moves_in_place_so_that_lists_of_parameters_stay_right() -> None:
    net = Net()
    net(np.ones((1, 2))).sum().backward()
    params, buffers = list(net.parameters()), list(net.buffers())
    assert net.to(dtype="float64") is net
    assert all(p is q for p, q in zip(params, net.parameters()))
    assert all(p.dtype == "float64" == p.grad.dtype for p in params)
    assert buffers[0].dtype == "float64" and buffers[1].dtype == "bool"
    assert net(np.ones((1, 2))).dtype == "float64"
    before = params[0].data
    net.to("cpu", "float64")
    assert params[0].data is before, "nothing to do, nothing done"
    with pytest.raises(DtypeError, match="float16, float32 or float64"):
        net.to(dtype="int64")


def test_backward_refuses_a_record_from_before_the_move() -> None:
    net = Net()
    loss = net(np.ones((1, 2))).sum()
    net.to(dtype="float64")
    with pytest.raises(GraphError, match="reassigned"):
        loss.backward()


def test_train_eval_apply_zero_grad() -> None:
    net = Sequential(Linear(2, 2), Sequential(ReLU()))
    assert net.training and not net.eval().training and not net[1][0].training
    assert net.train()[1].training
    with pytest.raises(ModuleError, match="True or False"):
        net.train("yes")
    order: list[str] = []
    assert net.apply(lambda m: order.append(type(m).__name__)) is net
    assert order == ["Linear", "ReLU", "Sequential", "Sequential"]
    net(np.ones((1, 2))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_hooks_look_and_may_replace() -> None:
    net, seen = mlp(), []
    remove = net[1].register_forward_hook(lambda m, inputs, out: seen.append((m, len(inputs))))
    other = net[1].register_forward_hook(lambda m, inputs, out: out * 0.0)
    y = net(np.ones(6))
    assert seen == [(net[1], 1)]
    np.testing.assert_array_equal(y.numpy(), net[2].bias.numpy())
    remove(), other()
    assert net(np.ones(6)).tolist() != y.tolist() and len(seen) == 1


# ------------------------------------------------------------------------------ in print


class Scaled(Module):
    "A buffer and nothing else."

    def __init__(self) -> None:
        self.factor = Tensor([1.0, 2.0])


def test_print() -> None:
    assert repr(mlp()) == (
        "Sequential()\n"
        "  0: Linear(6, 5)  weight (5, 6), bias (5,)  35\n"
        "  1: ReLU()\n"
        "  2: Linear(5, 3)  weight (3, 5), bias (3,)  18\n"
        "53 parameters, float32"
    )
    assert repr(ReLU()) == "ReLU()" and repr(Sequential(ReLU())).endswith("\n0 parameters")
    assert repr(Scaled()) == "Scaled()  factor (2,) buffer"
    assert repr(Linear(3, 2, bias=False)) == (
        "Linear(3, 2, bias=False)  weight (2, 3)\n6 parameters, float32"
    )
    net = Net()
    net.body.weight.requires_grad_(False)
    net.body.to(dtype="float64")
    text = repr(net)
    assert "mean (2,) buffer" in text and "weight (2, 2) frozen" in text
    assert text.endswith("8 parameters, float32/float64")


def test_equal_neighbours_are_one_row() -> None:
    def block() -> Module:
        return Sequential(Linear(4, 4), ReLU())

    text = repr(Sequential(*[block() for _ in range(3)], Linear(4, 2), block()))
    assert "0-2: 3 x Sequential()" in text and "  4: Sequential()" in text
    assert text.count("Linear(4, 4)") == 2 and "90 parameters" in text


# --------------------------------------------------------------------------- containers


def test_sequential() -> None:
    net = mlp()
    assert len(net) == 3 and isinstance(net[-1], Linear) and list(net)[1] is net[1]
    assert type(net[:2]) is Sequential and net[:2][0] is net[0]
    net[-1] = Linear(5, 7)
    assert net(np.ones((2, 6))).shape == (2, 7) and list(net.state_dict())[-1] == "2.bias"
    named = Sequential(OrderedDict(first=Linear(6, 5), act=ReLU()))
    assert list(named.state_dict()) == ["first.weight", "first.bias"]
    assert named.append(Linear(5, 1))(np.ones(6)).shape == (1,)
    assert Sequential()(3) == 3
    with pytest.raises(IndexError):
        net[5]
    with pytest.raises(ModuleError, match=r"ReLU at 1 is no module; did you mean ReLU\(\)\?"):
        Sequential(Linear(2, 2), ReLU)
    with pytest.raises(ModuleError, match="relu at 0 is no module"):
        Sequential(activations.elementwise.relu)
    net.extra = Tensor([1.0])  # a buffer is no layer
    assert net(np.ones((2, 6))).shape == (2, 7)


def test_module_list_and_dict() -> None:
    layers = ModuleList(Linear(2, 2) for _ in range(3)).append(ReLU()).extend([Tanh()])
    assert len(layers) == 5 and [n for n, _ in layers.named_children()] == list("01234")
    layers[0] = Identity()
    assert len(list(layers.parameters())) == 4
    heads = ModuleDict({"a": Linear(2, 2)})
    heads["b"] = ReLU()
    assert "a" in heads and "c" not in heads and len(heads) == 2 and list(heads) == ["a", "b"]
    assert heads.values() == [heads["a"], heads["b"]] and dict(heads.items())["b"] is heads["b"]
    del heads["a"]
    assert heads.keys() == ["b"] and not list(heads.parameters())
    with pytest.raises(KeyError):
        heads["a"]
    for wrong in ({"x": 3}, {"train": ReLU()}, {"a.b": ReLU()}):
        with pytest.raises(ModuleError):
            heads.update(wrong)


# --------------------------------------------------------------------------------- linear


def test_the_primitive_has_right_rules() -> None:
    for row in check_primitive(TABLE["linear"]):
        assert not row.trouble and max(row.errors) < 1e-6, row


@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_linear_on_any_axes(front: list[int], n_in: int, n_out: int) -> None:
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(*front, n_in)), requires_grad=True)
    w = Tensor(rng.normal(size=(n_out, n_in)), requires_grad=True)
    b = Tensor(rng.normal(size=n_out), requires_grad=True)
    g = rng.normal(size=(*front, n_out))
    for bias in (b, None):
        y = linear(x, w, bias)
        simple = x @ w.mT if bias is None else x @ w.mT + bias
        np.testing.assert_allclose(y.numpy(), simple.numpy(), atol=1e-12)
        leaves = [x, w] if bias is None else [x, w, bias]
        for d, e in zip(gradients(y, leaves, g), gradients(simple, leaves, g)):
            assert d.shape == e.shape
            np.testing.assert_allclose(d.numpy(), e.numpy(), atol=1e-12)


@pytest.mark.parametrize("x", ["float16", "float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("w", ["float16", "float32", "float64", "int64"])
@pytest.mark.parametrize("b", ["float16", "float32", "float64", "int64"])
def test_linear_mixes_dtypes_as_its_parts_do(x: str, w: str, b: str) -> None:
    given = [Tensor(np.ones(s), dtype=d) for s, d in [((2, 3), x), ((4, 3), w), ((4,), b)]]
    got, parts = linear(*given), given[0] @ given[1].mT + given[2]
    assert got.dtype == parts.dtype and got.tolist() == parts.tolist()


def test_linear_inside_vmap_and_jvp() -> None:
    "Any of the three may be mapped, and one product is done where that is possible."
    rng = np.random.default_rng(1)
    x, w, b = rng.normal(size=(7, 3)), rng.normal(size=(7, 4, 3)), rng.normal(size=(7, 4))
    for axes in [(0, None, None), (0, 0, 0), (None, 0, None), (None, None, 0), (0, None, 0)]:
        args = [a if axis == 0 else a[0] for a, axis in zip((x, w, b), axes)]
        got = vmap(linear, axes)(*args).numpy()
        rows = [
            linear(*(a[k] if axis == 0 else a for a, axis in zip(args, axes))).numpy()
            for k in range(7)
        ]
        np.testing.assert_allclose(got, np.stack(rows), atol=1e-12)
    _, tangent = jvp(linear, (x, w[0], b[0]), (x, w[1], b[1]))
    np.testing.assert_allclose(tangent.numpy(), x @ w[0].T + x @ w[1].T + b[1], atol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "b", "message"),
    [
        ((32, 28, 28), (10, 784), None, r"\(32, 28, 28\).*\(10, 784\).*28 numbers.*784.*Flatten"),
        ((784, 32), (10, 784), None, "axis 0 has"),
        ((5, 3), (4, 2), None, "3 numbers, and 2 are needed$"),
        ((), (4, 2), None, r"\(..., in\), \(out, in\)"),
        ((2,), (2,), None, r"\(..., in\), \(out, in\)"),
        ((5, 3), (4, 3), (3,), r"takes no bias of shape \(3,\)"),
        ((5, 3), (4, 3), (1,), r"takes no bias of shape \(1,\)"),
    ],
)
def test_linear_names_the_shapes(x: Any, w: Any, b: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        linear(np.ones(x), np.ones(w), None if b is None else np.ones(b))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3), (2.5, 3), ("3", 3), (None, 3)])
def test_linear_refuses_sizes(sizes: Any) -> None:
    with pytest.raises(ShapeError, match="a whole number above 0 is needed"):
        Linear(*sizes)


def test_linear_keys_and_dtypes() -> None:
    one, two = Linear(4, 3, key=5), Linear(4, 3, key=5)
    assert one.weight.tolist() == two.weight.tolist() and one.bias.tolist() == two.bias.tolist()
    assert Linear(4, 3, key=6).weight.tolist() != one.weight.tolist()
    assert Linear(4, 3, dtype="float64")(np.ones(4)).dtype == "float64"
    assert one(np.ones((2, 4), "uint8")).dtype == "float32"
    wide = Linear(10_000, 8, key=0)
    assert 0.0099 < abs(wide.weight.numpy()).max() <= 0.01
    assert abs(wide.bias.numpy()).max() <= 0.01


def test_flatten_and_identity() -> None:
    x = Tensor(np.ones((2, 3, 4)))
    assert Flatten()(x).shape == (2, 12) and Flatten(0, 1)(x).shape == (6, 4)
    assert Identity()(x) is x and repr(Flatten(0)).startswith("Flatten(0, -1)")


# -------------------------------------------------------------------------- functional_call


def test_functional_call_lends_and_returns() -> None:
    net = Tied()
    before = net.embed.weight
    fresh = {"embed.weight": Tensor(np.ones((4, 3), "float32"))}
    y = functional_call(net, fresh, np.ones(3, "float32"))
    np.testing.assert_allclose(y.numpy(), 3 * 12.0 / 3 * 3 + net.head.bias.numpy() - 0, rtol=1)
    assert net.embed.weight is before is net.head.weight
    with pytest.raises(StateError, match=r"no embed\.weigth; did you mean embed\.weight"):
        functional_call(net, {"embed.weigth": before}, np.ones(3))
    with pytest.raises(ShapeError):
        functional_call(net, {"embed.weight": Tensor(np.ones((2, 2)))}, np.ones(3))
    assert net.embed.weight is before is net.head.weight


def test_transforms_of_a_module() -> None:
    net = mlp(dtype="float64")
    x, y = np.random.default_rng(0).normal(size=(8, 6)), np.ones((8, 3))
    params = {n: p.detach() for n, p in net.named_parameters()}

    def loss(p: Any, x: Any, y: Any) -> Tensor:
        d = functional_call(net, p, x) - y
        return (d * d).sum()

    each = vmap(grad(loss), (None, 0, 0))(params, x, y)
    d = net(x) - y
    (d * d).sum().backward()
    for name, p in net.named_parameters():
        np.testing.assert_allclose(each[name].numpy().sum(axis=0), p.grad.numpy(), atol=1e-12)
    product = hvp(lambda p: loss(p, x, y), (params,), (params,))
    assert product.keys() == params.keys()


def test_a_call_is_cheap() -> None:
    "One Python function more than the operation itself."
    import timeit

    x, module = Tensor([1.0]), Identity()
    t = min(timeit.repeat(lambda: module(x), number=2000, repeat=5)) / 2000
    assert t < 5e-6  # about 0.3 us on a quiet machine


# -------------------------------------------------------------------------- against PyTorch

torch = pytest.importorskip("torch", reason="PyTorch is the reference of these tests")

PAIRS: list[tuple[Module, Any]] = [
    (activations.ReLU(), torch.nn.ReLU()),
    (activations.ReLU6(), torch.nn.ReLU6()),
    (activations.Hardtanh(-0.5, 2.0), torch.nn.Hardtanh(-0.5, 2.0)),
    (activations.Tanh(), torch.nn.Tanh()),
    (activations.Sigmoid(), torch.nn.Sigmoid()),
    (activations.LogSigmoid(), torch.nn.LogSigmoid()),
    (activations.Softsign(), torch.nn.Softsign()),
    (activations.LeakyReLU(), torch.nn.LeakyReLU()),
    (activations.LeakyReLU(0.2), torch.nn.LeakyReLU(0.2)),
    (activations.PReLU(), torch.nn.PReLU()),
    (activations.ELU(), torch.nn.ELU()),
    (activations.ELU(0.7), torch.nn.ELU(0.7)),
    (activations.SELU(), torch.nn.SELU()),
    (activations.GELU(), torch.nn.GELU()),
    (activations.GELU("tanh"), torch.nn.GELU("tanh")),
    (activations.SiLU(), torch.nn.SiLU()),
    (activations.Mish(), torch.nn.Mish()),
    (activations.Softplus(), torch.nn.Softplus(threshold=80)),
    (activations.Softplus(2.0), torch.nn.Softplus(2.0, threshold=80)),
    (activations.Softmax(), torch.nn.Softmax(dim=-1)),
    (activations.Softmax(axis=0), torch.nn.Softmax(dim=0)),
    (activations.LogSoftmax(axis=1), torch.nn.LogSoftmax(dim=1)),
]


def test_every_activation_is_compared() -> None:
    ours = {
        cls.__name__
        for cls in vars(activations).values()
        if isinstance(cls, type) and issubclass(cls, Module) and cls is not Module
    }
    assert ours == {type(module).__name__ for module, _ in PAIRS}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 5e-6)])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda m: str(m).split("\n")[0])
def test_activations_equal_pytorch(ours: Module, theirs: Any, dtype: str, tolerance: float) -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 3, 117), [0.0, 50.0, -50.0]])
    values = values.reshape(20, 6).astype(dtype)
    x, t = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    g = np.random.default_rng(1).normal(size=values.shape).astype(dtype)
    y = copy.deepcopy(ours).to(dtype=dtype)(x)
    u = copy.deepcopy(theirs).to(t.dtype)(t)
    y.backward(g)
    u.backward(torch.tensor(g))
    assert y.dtype == dtype
    np.testing.assert_allclose(y.numpy(), u.detach().numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 3e-6)])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorch(dtype: str, tolerance: float, shape: Any, bias: bool) -> None:
    ours = Linear(6, 5, bias=bias, key=0, dtype=dtype)
    theirs = torch.nn.Linear(6, 5, bias=bias, dtype=getattr(torch, dtype))
    theirs.load_state_dict({n: torch.tensor(v.numpy()) for n, v in ours.state_dict().items()})
    rng = np.random.default_rng(0)
    values, g = rng.normal(size=shape).astype(dtype), rng.normal(size=(*shape[:-1], 5))
    x, t = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    y, u = ours(x), theirs(t)
    y.backward(g.astype(dtype))
    u.backward(torch.tensor(g.astype(dtype)))
    np.testing.assert_allclose(y.numpy(), u.detach().numpy(), atol=tolerance)
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), atol=tolerance)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), atol=tolerance, err_msg=name)


def torch_mlp() -> Any:
    nn = torch.nn
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_states_go_both_ways() -> None:
    ours, theirs = mlp(), torch_mlp()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    np.testing.assert_allclose(ours(x).numpy(), theirs(torch.tensor(x)).detach().numpy(), atol=1e-6)
    other = mlp(3)
    theirs.load_state_dict({n: torch.tensor(v.numpy()) for n, v in other.state_dict().items()})
    np.testing.assert_allclose(
        other(x).numpy(), theirs(torch.tensor(x)).detach().numpy(), atol=1e-6
    )


def test_an_mlp_has_pytorchs_gradients() -> None:
    ours, theirs = mlp(dtype="float64"), torch_mlp().double()
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).normal(size=(4, 6))
    (ours(x) ** 2).mean().backward()
    (theirs(torch.tensor(x)) ** 2).mean().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), atol=1e-14)
    assert isinstance(Softmax(), Module)
