"""Joint positions as angles: a spherical joint's quaternion as the three of its rotation vector.

Policies act in angles and see them, and servos push along them, so that the filter, the limits and
the scale of actions treat a shoulder as three hinges. Robots without spherical joints have nq = nv
and pass through untouched.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from rlgym.envs.imitation.arrays import Array, namespace
from rlgym.envs.imitation.rotations import from_rotation_vector, rotation_vector
from rlgym.envs.physics.robots import Robot


class Columns(NamedTuple):
    """Where a robot's hinges and balls stand in its rows of positions and of velocities."""

    hinge_q: Array
    """(hinges,) columns in q."""
    ball_q: Array
    """(balls, 4) columns in q."""
    hinge_v: Array
    """(hinges,) columns in qd."""
    ball_v: Array
    """(balls, 3) columns in qd."""
    to_v: Array
    """(nv,) column of each value of qd in [hinges, balls]."""
    to_q: Array
    """(nq,) column of each value of q in [hinges, balls]."""
    joint_of_v: Array
    """(nv,) joint that each value of qd belongs to."""


def to_angles(robot: Robot, q: Array) -> Array:
    """Return (..., nv) angles, rad, of positions `q` (..., nq); the vectors' lengths are <= pi."""
    if not any(robot.spherical):
        return q
    at = columns(robot, q)
    balls = rotation_vector(q[..., at.ball_q])
    balls = balls.reshape((*q.shape[:-1], -1))
    return namespace(q).concatenate((q[..., at.hinge_q], balls), axis=-1)[..., at.to_v]


def to_positions(robot: Robot, angles: Array) -> Array:
    """Return positions (..., nq) of `angles` (..., nv), rad: the reverse of `to_angles`."""
    if not any(robot.spherical):
        return angles
    at = columns(robot, angles)
    balls = from_rotation_vector(angles[..., at.ball_v])
    balls = balls.reshape((*angles.shape[:-1], -1))
    return namespace(angles).concatenate((angles[..., at.hinge_v], balls), axis=-1)[..., at.to_q]


def per_velocity(robot: Robot, values: tuple[float, ...]) -> tuple[float, ...]:
    """Repeat one value per joint, such as a limit or a gain, for each of the joint's velocities."""
    return tuple(
        value
        for value, ball in zip(values, robot.is_spherical, strict=True)
        for _ in range(3 if ball else 1)
    )


def per_position(robot: Robot, values: tuple[float, ...], ball: float) -> tuple[float, ...]:
    """Return one value per joint as one per position; all four of a spherical joint are `ball`."""
    return tuple(
        x
        for value, spherical in zip(values, robot.is_spherical, strict=True)
        for x in ((ball,) * 4 if spherical else (value,))
    )


def columns(robot: Robot, like: Array) -> Columns:
    """Return the robot's columns as arrays of the kind, and on the device, of `like`; cached."""
    if isinstance(like, torch.Tensor):
        return _torch_columns(robot, like.device)
    return _numpy_columns(robot)


@functools.lru_cache(maxsize=64)
def _numpy_columns(robot: Robot) -> Columns:
    flags = robot.is_spherical
    starts_q = np.cumsum([0, *(4 if ball else 1 for ball in flags)])
    starts_v = np.cumsum([0, *(3 if ball else 1 for ball in flags)])
    parts: dict[str, list] = {"hinge_q": [], "ball_q": [], "hinge_v": [], "ball_v": []}
    for start_q, start_v, ball in zip(starts_q, starts_v, flags, strict=False):
        if ball:
            parts["ball_q"].append(range(start_q, start_q + 4))
            parts["ball_v"].append(range(start_v, start_v + 3))
        else:
            parts["hinge_q"].append(start_q)
            parts["hinge_v"].append(start_v)
    at = {name: np.array(list(map(np.array, part)), np.int64) for name, part in parts.items()}
    joint_of_v = [j for j, ball in enumerate(flags) for _ in range(3 if ball else 1)]
    return Columns(
        **at,
        to_v=np.argsort(np.concatenate((at["hinge_v"], at["ball_v"].ravel()))),
        to_q=np.argsort(np.concatenate((at["hinge_q"], at["ball_q"].ravel()))),
        joint_of_v=np.array(joint_of_v),
    )


@functools.cache  # for good: a recorded graph knows where they are
def _torch_columns(robot: Robot, device: torch.device) -> Columns:
    return Columns(*(torch.as_tensor(values, device=device) for values in _numpy_columns(robot)))
