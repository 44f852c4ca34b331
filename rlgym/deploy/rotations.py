"""The few rotations that a robot's runtime needs: unit quaternions, xyzw, in float64 arrays (K, 4).

The formulas are those of training (`rlgym.envs.imitation.rotations`), so that the numbers are too;
tests hold one against the other.
"""

from __future__ import annotations

import math

import numpy as np

TINY = 1e-12
"""Squared length below which a direction is taken for undefined."""


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rotation `b` followed by `a`, (..., 4); leading axes broadcast."""
    ax, ay, az, aw = (a[..., i] for i in range(4))
    bx, by, bz, bw = (b[..., i] for i in range(4))
    return np.stack(
        (
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ),
        axis=-1,
    )


def conjugate(q: np.ndarray) -> np.ndarray:
    """Return the inverse of unit quaternions, (..., 4)."""
    return q * np.array([-1.0, -1.0, -1.0, 1.0])


def rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Turn one vector (3,) by one unit quaternion (4,)."""
    x, y, z, w = q.tolist()
    vx, vy, vz = v.tolist()
    tx, ty, tz = 2 * (y * vz - z * vy), 2 * (z * vx - x * vz), 2 * (x * vy - y * vx)
    return np.array(
        [
            vx + w * tx + y * tz - z * ty,
            vy + w * ty + z * tx - x * tz,
            vz + w * tz + x * ty - y * tx,
        ]
    )


def about_z(angle: float) -> np.ndarray:
    """Return the rotation by `angle` rad about the z axis, (4,)."""
    return np.array([0.0, 0.0, math.sin(0.5 * angle), math.cos(0.5 * angle)])


def rotate_z(angle: float, v: np.ndarray) -> np.ndarray:
    """Turn vectors (..., 3) about the z axis by `angle` rad."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = v[..., 0], v[..., 1]
    return np.stack((cos * x - sin * y, sin * x + cos * y, v[..., 2]), axis=-1)


def heading(q: np.ndarray) -> float:
    """Return the direction of the body's x axis seen from above, rad; 0 where it is vertical."""
    x, y, z, w = q.tolist()
    cos, sin = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z)
    return math.atan2(sin, cos) if cos * cos + sin * sin > TINY else 0.0


def gravity(q: np.ndarray) -> np.ndarray:
    """Return the direction of gravity in the body's frame, (3,)."""
    x, y, z, w = q.tolist()
    return np.array([2 * (w * y - x * z), -2 * (y * z + w * x), 2 * (x * x + y * y) - 1])


def roll_pitch(q: np.ndarray) -> tuple[float, float]:
    """Return the turns about x, then y (then z), fixed axes, rad."""
    x, y, z, w = q.tolist()
    roll = math.atan2(2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    return roll, math.asin(min(max(2 * (w * y - x * z), -1.0), 1.0))


def standardize(q: np.ndarray) -> np.ndarray:
    """Of q and -q, which are one rotation, return the one with w >= 0; (..., 4)."""
    return np.where(q[..., 3:] < 0, -q, q)


def rotation_vector(q: np.ndarray) -> np.ndarray:
    """Return axis times angle (..., 3), rad, of unit quaternions; the angle is in [0, pi]."""
    q = standardize(q)
    vector, w = q[..., :3], q[..., 3:]
    squared = np.square(vector).sum(-1, keepdims=True)
    length = np.sqrt(np.maximum(squared, TINY))
    scale = np.where(squared > TINY, 2 * np.arctan2(length, w) / length, 2 + squared / 3)
    return scale * vector


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Return angles, rad, in [-pi, pi)."""
    turn = 6.283185307179586
    return angle - turn * np.floor(angle / turn + 0.5)
