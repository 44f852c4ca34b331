"""Terrains: the same everywhere, level at the start, and as high as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from rlgym.envs.physics.terrain import TERRAINS, make_terrain
from rlgym.errors import WorldError


@pytest.mark.parametrize("name", TERRAINS)
def test_a_terrain_is_the_same_each_time_and_level_at_the_start(name):
    first, second = make_terrain(name), make_terrain(name)
    np.testing.assert_array_equal(first.heights, second.heights)
    start = np.random.default_rng(0).uniform(-0.9, 0.9, (100, 2))
    np.testing.assert_array_equal(first.height(start), 0.0)
    assert first.heights.max() > 0.03


def test_heights_are_linear_between_points():
    terrain = make_terrain("slope:0.2")
    np.testing.assert_allclose(
        terrain.height(np.array([[3.0, 0.5], [3.05, -7.0]])), [0.4, 0.41], atol=1e-6
    )
    rough = make_terrain("rough")
    row, column = 310, 77  # y = 11, x = -12.3
    np.testing.assert_allclose(
        rough.height(np.array([-12.3, 11.0])), rough.heights[row, column], atol=1e-6
    )
    middle = rough.heights[row : row + 2, column : column + 2].mean()
    np.testing.assert_allclose(rough.height(np.array([-12.25, 11.05])), middle, atol=1e-6)


def test_sizes_bound_the_heights():
    for name in ("rough:0.07", "steps:0.07"):
        heights = make_terrain(name).heights
        assert heights.min() >= 0.0
        assert 0.06 < heights.max() <= 0.07


def test_beyond_the_edge_is_the_edge():
    terrain = make_terrain("slope:0.1")
    assert terrain.height(np.array([1e6, 0.0])) == pytest.approx(1.9)
    assert terrain.height(np.array([-1e6, -1e6], np.float32)) == 0.0


def test_flat_ground_is_flat():
    terrain = make_terrain("flat")
    assert terrain.is_flat
    np.testing.assert_array_equal(terrain.height(np.ones((3, 4, 2))), np.zeros((3, 4)))
    assert make_terrain(terrain) is terrain


@pytest.mark.parametrize(
    ("name", "message"),
    [("slop", "did you mean 'slope'"), ("rough:x", "from 0 to 1"), ("steps:7", "from 0 to 1")],
)
def test_what_is_no_terrain_is_refused(name, message):
    with pytest.raises(WorldError, match=message):
        make_terrain(name)
