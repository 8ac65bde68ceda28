"Trees: there and back, matching with a message that says where, prefixes, registration."

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradbook.tensor.tree import (
    StructureError,
    register,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_match,
    tree_paths,
    tree_spread,
    tree_unflatten,
)

Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Dense:
    weight: object
    bias: object
    name: str = field(default="relu", metadata={"static": True})

    def __post_init__(self):
        if self.weight == "forbidden":
            raise AssertionError("rebuilding must not call __init__")


trees = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=3)
        | st.builds(Point, inner, inner)
        | st.builds(lambda a, b: Dense(a, b), inner, inner)
        | st.none()
    ),
    max_leaves=12,
)


@given(trees)
def test_there_and_back(tree):
    leaves, structure = tree_flatten(tree)
    back = tree_unflatten(structure, leaves)
    assert back == tree and type(back) is type(tree)
    assert tree_flatten(back)[1] == structure
    assert len(tree_paths(structure)) == len(leaves)
    assert tree_match(structure, tree) == leaves
    assert tree_spread(tree_map(lambda x: 1, tree), structure) == [1] * len(leaves)


def test_order_and_containers():
    tree = {"b": [1, (2, 3)], "a": Point(4, None), "c": OrderedDict(z=5, y=6)}
    assert tree_leaves(tree) == [1, 2, 3, 4, 5, 6]
    doubled = tree_map(lambda x: 2 * x, tree)
    assert doubled == {"b": [2, (4, 6)], "a": Point(8, None), "c": OrderedDict(z=10, y=12)}
    assert list(doubled) == ["b", "a", "c"] and type(doubled["c"]) is OrderedDict


def test_keys_in_any_order():
    assert tree_map(lambda x, y: x - y, {"a": 5, "b": 7}, {"b": 1, "a": 2}) == {"a": 3, "b": 6}


def test_dataclass_keeps_what_is_static_and_is_not_checked_again():
    tree = Dense(1, 2, "tanh")
    assert tree_leaves(tree) == [1, 2]
    moved = tree_map(lambda x: "forbidden", tree)
    assert (moved.weight, moved.name) == ("forbidden", "tanh")
    with pytest.raises(StructureError):
        tree_map(lambda x, y: x, tree, Dense(1, 2, "relu"))


def test_paths():
    tree = {"layers": [Dense(1, Point(2, 3))], 0: 4}
    assert tree_paths(tree_flatten(tree)[1]) == [
        "['layers'][0].weight",
        "['layers'][0].bias.x",
        "['layers'][0].bias.y",
        "[0]",
    ]


@pytest.mark.parametrize(
    "first,second,says",
    [
        (
            {"w": 1},
            {"v": 1},
            "at the root: a dict with the keys 'w' expected, not a dict with the keys 'v'",
        ),
        (
            {"w": [1, 2]},
            {"w": [1]},
            "at ['w']: a list of length 2 expected, not a list of length 1",
        ),
        ([(1, 2)], [[1, 2]], "at [0]: a tuple of length 2 expected, not a list of length 2"),
        ([1], [None], "at [0]: a leaf expected, not None"),
        ([None], [1], "at [0]: None expected, not a int"),
        (Point(1, {"a": 1}), Point(1, 2), "at .y: a dict with the keys 'a' expected, not a int"),
    ],
)
def test_says_where_structures_differ(first, second, says):
    with pytest.raises(StructureError) as error:
        tree_map(lambda x, y: x, first, second)
    assert says in str(error.value)


def test_not_enough_leaves():
    structure = tree_flatten([1, [2, 3]])[1]
    with pytest.raises(StructureError, match=r"\[\*, \[\*, \*\]\]"):
        tree_unflatten(structure, [1, 2])


def test_register():
    class Bag:
        def __init__(self, items, colour):
            self.items, self.colour = items, colour

    assert tree_leaves([Bag([1], "red")]) != [1]
    register(Bag, lambda b: (b.items, b.colour), lambda colour, items: Bag(list(items), colour))
    bag = tree_map(lambda x: x + 1, Bag([1, 2], "red"))
    assert (bag.items, bag.colour) == ([2, 3], "red")
    with pytest.raises(StructureError):
        tree_match(tree_flatten(bag)[1], Bag([1, 2], "blue"))


def test_spread():
    structure = tree_flatten(({"w": 1, "b": 2}, 3))[1]
    assert tree_spread(0, structure) == [0, 0, 0]
    assert tree_spread((None, 0), structure) == [None, None, 0]
    assert tree_spread([{"b": 1, "w": None}, 0], structure) == [None, 1, 0]
    with pytest.raises(StructureError, match="length 1 for a tuple of length 2"):
        tree_spread((0,), structure)
