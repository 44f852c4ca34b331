"""Where feet are for given joint angles, and the angles that put them there; batched.

Quadrupeds (`robot.legs`) have closed forms, in which the four legs are one array operation; any
other robot is a tree of joints, read from its model file, in which the joints of one depth are.
Frames, order and signs are the robot table's (`rlgym.envs.physics.robots`).
"""

from __future__ import annotations

import functools

import numpy as np

from rlgym.envs.imitation.arrays import Array, constant, namespace
from rlgym.envs.imitation.rotations import rotate, wrap_angle
from rlgym.envs.physics.robots import Robot


def foot_positions(robot: Robot, root_pos: Array, root_quat: Array, q: Array) -> Array:
    """Return where the feet are in the world, (B, feet, 3) m.

    Args:
        root_pos: (B, 3) origin of the base.
        root_quat: (B, 4) its orientation.
        q: (B, nq) joint positions.
    """
    in_base = feet_in_base(robot, q)
    return root_pos[:, None] + rotate(root_quat[:, None], in_base)


def feet_in_base(robot: Robot, q: Array) -> Array:
    """Return where the feet are in the base's frame, (B, feet, 3) m, for `q` (B, nq)."""
    return _leg_points(robot, q)[1]


def knee_positions(robot: Robot, root_pos: Array, root_quat: Array, q: Array) -> Array:
    """Return where a quadruped's knees are in the world, (B, 4, 3) m; as `foot_positions`."""
    in_base = _leg_points(robot, q)[0]
    return root_pos[:, None] + rotate(root_quat[:, None], in_base)


def _leg_points(robot: Robot, q: Array) -> tuple[Array, Array]:
    """Return knees and feet in the base's frame, (B, legs, 3) each."""
    xp = namespace(q)
    leg = _legs(robot)
    hip = constant(leg.hip, q)
    side = constant(leg.abduction, q)
    thigh, shank = constant(leg.thigh, q), constant(leg.shank, q)
    angles = q.reshape(q.shape[0], -1, 3) + constant(leg.zero, q)
    # all sines and cosines in two calls: abduction, hip, and the shank's angle to the vertical
    angles = xp.stack((angles[..., 0], angles[..., 1], angles[..., 1] + angles[..., 2]), axis=0)
    sin, cos = xp.sin(angles), xp.cos(angles)
    knee_x, knee_z = -thigh * sin[1], -thigh * cos[1]
    foot_x, foot_z = knee_x - shank * sin[2], knee_z - shank * cos[2]

    def place(x: Array, z: Array) -> Array:
        # from the leg's plane, at `side` from the hip, about the abduction axis
        y, z = side * cos[0] - z * sin[0], side * sin[0] + z * cos[0]
        return xp.stack((x, y, z), axis=-1) + hip

    return place(knee_x, knee_z), place(foot_x, foot_z)


def leg_angles(robot: Robot, foot_pos: Array) -> tuple[Array, Array]:
    """Return the joint angles that put a quadruped's feet at points in its base's frame.

    The knee bends to the side to which it does in the default pose. Where a point cannot be
    reached, the leg points at it, as far stretched or bent as it goes.

    Args:
        foot_pos: (B, 4, 3) m.

    Returns:
        (B, 12) rad, and (B,) whether all four are within the legs' reach and the joints' limits.
    """
    xp = namespace(foot_pos)
    leg = _legs(robot)
    side = constant(leg.abduction, foot_pos)
    thigh, shank = constant(leg.thigh, foot_pos), constant(leg.shank, foot_pos)
    p = foot_pos - constant(leg.hip, foot_pos)
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    depth_squared = y * y + z * z - side * side
    depth = xp.sqrt(xp.maximum(depth_squared, 0.0))  # of the foot below the hip, in its plane
    abduction = wrap_angle(xp.arctan2(z, y) - xp.arctan2(-depth, side + xp.zeros_like(y)))
    cos_knee = (x * x + depth * depth - thigh * thigh - shank * shank) / (2 * thigh * shank)
    bend = constant(leg.bend, foot_pos) * xp.arccos(xp.clip(cos_knee, -1.0, 1.0))
    # the foot's direction, less the angle that the bent shank adds to the thigh's
    hip = xp.arctan2(-x, depth) - xp.arctan2(shank * xp.sin(bend), thigh + shank * xp.cos(bend))
    angles = xp.stack((abduction, hip, bend), axis=-1) - constant(leg.zero, foot_pos)
    q = angles.reshape(foot_pos.shape[0], -1)

    tolerance = 1e-6  # of a stretched leg's cosine and of a limit: what float32 leaves
    within = (depth_squared > -tolerance) & (xp.abs(cos_knee) < 1 + tolerance)
    lower, upper = constant(robot.lower, q), constant(robot.upper, q)
    allowed = (q > lower - tolerance) & (q < upper + tolerance)
    return q, xp.all(within, axis=-1) & xp.all(allowed, axis=-1)


class _Legs:
    """A robot's legs as tuples over legs, ready for `constant`."""

    def __init__(self, robot: Robot) -> None:
        legs = robot.legs
        if not legs:
            raise ValueError(f"robot '{robot.name}' has no legs in the robot table")
        self.hip = tuple(leg.hip for leg in legs)
        self.abduction = tuple(leg.abduction for leg in legs)
        self.thigh = tuple(leg.thigh for leg in legs)
        self.shank = tuple(leg.shank for leg in legs)
        self.zero = tuple((0.0, leg.thigh_zero, leg.shank_zero) for leg in legs)
        knees = np.array(robot.default_pose)[2::3] + [leg.shank_zero for leg in legs]
        self.bend = tuple(np.where(knees > 0, 1.0, -1.0).tolist())


@functools.lru_cache(maxsize=64)
def _legs(robot: Robot) -> _Legs:
    return _Legs(robot)
