"""Ground as a height field: the same numbers for every engine and every run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlgym.errors import WorldError
from rlgym.settings import suggest

SPACING = 0.1
"""m between the points of a height field."""
POINTS = 401
"""Points along each side: 40 m."""
START = 1.0
"""m around the origin that are level, so that a robot can be put there."""


@dataclass(frozen=True)
class Terrain:
    """A square of ground around the origin; beyond its edge nothing is defined."""

    name: str
    """As it was asked for."""
    heights: np.ndarray = field(repr=False)
    """(rows, columns) m, float32; row = y, column = x, both from low to high."""
    spacing: float = SPACING
    """m between neighbours."""
    _tables: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """Heights as tensors, by device: made once."""

    @property
    def is_flat(self) -> bool:
        """The ground is the plane z = 0."""
        return self.heights.size == 1

    def height(self, xy: Any) -> Any:
        """Return the ground's height (...) at places (..., 2), linear between the field's points.

        Outside the field it is that of the nearest edge. Arrays or tensors; this module does
        without torch, which processes of PyBullet do not load.
        """
        if self.is_flat:
            return 0.0 * xy[..., 0]
        rows, columns = self.heights.shape
        x = (xy[..., 0] / self.spacing + 0.5 * (columns - 1)).clip(0.0, columns - 1.0)
        y = (xy[..., 1] / self.spacing + 0.5 * (rows - 1)).clip(0.0, rows - 1.0)
        if isinstance(xy, np.ndarray):
            h, i, j = self.heights, y.astype(np.int64), x.astype(np.int64)
        else:
            h, i, j = self._table(xy), y.long(), x.long()
        i, j = i.clip(0, rows - 2), j.clip(0, columns - 2)
        v, u = y - i, x - j
        low = (1 - u) * h[i, j] + u * h[i, j + 1]
        return (1 - v) * low + v * ((1 - u) * h[i + 1, j] + u * h[i + 1, j + 1])

    def _table(self, like: Any) -> Any:
        """The heights as a tensor of the kind of `like`."""
        key = like.device, like.dtype
        if key not in self._tables:
            self._tables[key] = like.new_tensor(self.heights)
        return self._tables[key]


def _slope(x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Rise by `size` metres per metre along x, after the level start."""
    return size * np.maximum(x - START, 0.0)


def _rough(x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Bumps of up to `size` metres, 0.2 m apart."""
    rng = np.random.default_rng(20)
    coarse = rng.uniform(0.0, size, (POINTS // 2 + 1, POINTS // 2 + 1))
    fine = np.empty((2 * len(coarse) - 1,) * 2)
    fine[::2, ::2] = coarse
    fine[1::2, ::2] = 0.5 * (coarse[1:] + coarse[:-1])
    fine[:, 1::2] = 0.5 * (fine[:, 2::2] + fine[:, :-2:2])
    return fine * _ramp(x, y)


def _steps(x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Square slabs of 0.5 m at heights of up to `size` metres."""
    rng = np.random.default_rng(21)
    slabs = rng.uniform(0.0, size, (POINTS // 5 + 1, POINTS // 5 + 1))
    tall = slabs.repeat(5, axis=0).repeat(5, axis=1)[:POINTS, :POINTS]
    return tall * (_ramp(x, y) >= 1.0)


def _ramp(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return 0 at the level start, 1 from 0.5 m outside of it."""
    return np.clip((np.maximum(np.abs(x), np.abs(y)) - START) / 0.5, 0.0, 1.0)


TERRAINS = {"slope": (_slope, 0.1), "rough": (_rough, 0.04), "steps": (_steps, 0.04)}
"""Builder and default size of each terrain, beside "flat"."""


def make_terrain(name: str | Terrain = "flat") -> Terrain:
    """Return a terrain by name, or by name and size: "flat", "slope", "rough", "steps:0.06".

    Sizes: the grade of a slope, the height in m of bumps and steps.

    Raises:
        WorldError: there is no such terrain (the nearest name is given), or its size is no number.
    """
    if isinstance(name, Terrain):
        return name
    kind, _, size = name.partition(":")
    if kind == "flat" and not size:
        return Terrain(name, np.zeros((1, 1), np.float32))
    if kind not in TERRAINS:
        raise WorldError(f"there is no terrain '{kind}': {suggest(kind, ['flat', *TERRAINS])}")
    build, default = TERRAINS[kind]
    try:
        value = float(size) if size else default
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise WorldError(f"terrain '{name}': its size must be from 0 to 1, as in '{kind}:0.05'")
    side = SPACING * (np.arange(POINTS) - (POINTS - 1) / 2)
    x, y = np.meshgrid(side, side)
    return Terrain(name, build(x, y, value).astype(np.float32))
