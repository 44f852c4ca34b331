"""Spaces survive a trip through JSON; what is not a space's description is refused."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from rlgym import space_json
from rlgym.errors import SpaceError
from rlgym.space_json import space_from_json, space_to_json

SPACES = [
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(np.array([-np.inf, 0.25]), np.array([np.inf, 0.1]) + 1, dtype=np.float64),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, (), np.float32),
    spaces.Box(-(2**62), 2**62 + 1, (2,), np.int64),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([3, 4], start=[1, -1]),
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Tuple([spaces.Box(0, 1, (2,))])}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_round_trip(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    again = space_from_json(json.loads(text))
    assert again == space
    assert again.dtype == space.dtype
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"kind": "Graph"},
        {"kind": "Box", "shape": [10**6, 10**6], "dtype": "float32", "low": 0, "high": 1},
        {"kind": "Box", "shape": [2], "dtype": "object", "low": 0, "high": 1},
        {"kind": "Box", "shape": [2], "dtype": "float32", "low": [0, 0, 0], "high": 1},
        {"kind": "Discrete", "n": "many", "start": 0},
        {"kind": "Dict", "spaces": [["a", {"kind": "Text"}]]},
    ],
)
def test_what_is_no_space_is_refused(document):
    with pytest.raises(SpaceError):
        space_from_json(document)


def test_all_parts_of_a_space_count_together(monkeypatch):
    monkeypatch.setattr(space_json, "MAX_VALUES", 10)
    part = {"kind": "Box", "shape": [2, 2], "dtype": "float32", "low": 0, "high": 1}
    switches = {"kind": "MultiBinary", "shape": [3]}
    parts = {"kind": "Dict", "spaces": [["a", part], ["b", {"kind": "Tuple", "spaces": [part]}]]}
    assert len(space_from_json(parts).spaces) == 2
    with pytest.raises(SpaceError, match="more than 10 values"):
        space_from_json({"kind": "Tuple", "spaces": [parts, switches]})
    for shape in ([11], [2, 6]):
        with pytest.raises(SpaceError, match="more than 10 values"):
            space_from_json({**part, "shape": shape})
    less = {"kind": "Tuple", "spaces": [{**part, "shape": [-4, 3]}, {**part, "shape": [20]}]}
    with pytest.raises(SpaceError, match="not one of ours"):  # nothing makes up for too much
        space_from_json(less)


def test_spaces_without_a_fixed_shape_are_refused():
    with pytest.raises(SpaceError, match="Text"):
        space_to_json(spaces.Text(5))
