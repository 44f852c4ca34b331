"""Layouts: every kind of space, in and out."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgym.errors import SpaceError
from rlgym.spaces import Layout, map_tree, tree_items

NESTED = spaces.Dict(
    {
        "camera": spaces.Dict({"left": spaces.Box(0, 255, (4, 5, 3), np.uint8)}),
        "pair": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float64))),
        "flags": spaces.MultiBinary(4),
        "grid": spaces.MultiDiscrete([2, 5]),
    }
)


def leaf_spaces() -> st.SearchStrategy[gymnasium.Space]:
    shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    boxes = st.builds(
        lambda shape, dtype: spaces.Box(0, 9, shape, dtype),
        shapes,
        st.sampled_from([np.float32, np.float64, np.uint8, np.int32]),
    )
    return st.one_of(
        boxes,
        st.builds(
            lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-2, 2)
        ),
        st.builds(spaces.MultiBinary, st.integers(1, 4)),
        st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    )


def any_space() -> st.SearchStrategy[gymnasium.Space]:
    names = st.text("abc", min_size=1, max_size=2)
    return st.recursive(
        leaf_spaces(),
        lambda children: st.one_of(
            st.dictionaries(names, children, min_size=1, max_size=3).map(spaces.Dict),
            st.lists(children, min_size=1, max_size=3).map(spaces.Tuple),
        ),
        max_leaves=5,
    )


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return np.allclose(np.asarray(a), np.asarray(b))


def test_nested_space_becomes_a_flat_dict_keyed_by_path() -> None:
    layout = Layout(NESTED)
    tree = layout.alloc(7)
    assert isinstance(tree, dict)
    shapes = {key: (array.shape, array.dtype.name) for key, array in tree.items()}
    assert shapes == {
        "camera/left": ((7, 4, 5, 3), "uint8"),
        "flags": ((7, 4), "int8"),
        "grid": ((7, 2), "int64"),
        "pair/0": ((7,), "int64"),
        "pair/1": ((7, 2), "float32"),
    }
    assert layout.mask_size == 3 + 2 + 5
    assert layout.nbytes() == 60 + 4 + 16 + 8 + 8


def test_single_space_is_a_bare_array() -> None:
    layout = Layout(spaces.Box(-1, 1, (3,), np.float32))
    tree = layout.alloc(2, 5)
    assert isinstance(tree, np.ndarray)
    assert tree.shape == (2, 5, 3)


@given(space=any_space(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_values_survive_the_way_in_and_out(space: gymnasium.Space, seed: int) -> None:
    layout = Layout(space)
    tree = layout.alloc(3)
    space.seed(seed)
    values = [space.sample() for _ in range(3)]
    for row, value in enumerate(values):
        layout.write(value, tree, row)
    for row, value in enumerate(values):
        read = layout.read(tree, row)
        assert same(read, value)
        assert space.contains(read)
    nested = layout.nest(tree)
    assert same(map_tree(np.asarray, layout.flatten(nested)), tree)
    if all(leaf.dtype == leaf.space.dtype for leaf in layout.leaves):
        assert batch_space(space, 3).contains(nested)


def test_wrong_shapes_and_missing_entries_are_refused_by_name() -> None:
    layout = Layout(NESTED)
    tree = layout.alloc(1)
    value = NESTED.sample()
    with pytest.raises(SpaceError, match=r"'flags' has shape \[3\].*says \[4\]"):
        layout.write({**value, "flags": np.zeros(3, np.int8)}, tree, 0)
    del value["pair"]
    with pytest.raises(SpaceError, match="no entry 'pair/0'"):
        layout.write(value, tree, 0)
    with pytest.raises(SpaceError, match=r"expected .*camera/left"):
        layout.flatten({"flags": 1})


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))})]
)
def test_spaces_without_a_fixed_shape_are_refused(space: gymnasium.Space) -> None:
    with pytest.raises(SpaceError, match="no fixed shape"):
        Layout(space)


def test_empty_and_ambiguous_spaces_are_refused() -> None:
    with pytest.raises(SpaceError, match="holds no values"):
        Layout(spaces.Dict({}))
    twice = spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})})
    with pytest.raises(SpaceError, match="same path"):
        Layout(twice)


def test_discrete_start_is_kept() -> None:
    layout = Layout(spaces.Discrete(3, start=-1))
    tree = layout.alloc(2)
    layout.write(-1, tree, 1)
    assert layout.read(tree, 1) == -1
    assert layout.leaves[0].start == -1
    assert layout.leaves[0].num_choices == (3,)
    assert [key for key, _ in tree_items(tree)] == [""]
