"""Where feet are for given joint angles, and the angles that put them there; batched.

Quadrupeds (`robot.legs`) have closed forms, in which the four legs are one array operation; any
other robot is a tree of joints, read from its model file, in which the joints of one depth are.
Frames, order and signs are the robot table's (`rlgym.envs.physics.robots`).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rlgym.envs.imitation.arrays import Array, constant, indices, namespace
from rlgym.envs.imitation.rotations import cross, multiply, rotate, wrap_angle
from rlgym.envs.physics.robots import Robot
from rlgym.envs.physics.urdf import Tree, read_tree
from rlgym.errors import WorldError


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
    if len(robot.legs) == len(robot.feet):
        return _leg_ends(robot, q)
    tree, frames = _tree(robot), joint_frames(robot, q)
    on = indices(tree.foot_parent, q)
    return frames.pos[:, on] + rotate(frames.quat[:, on], constant(tree.foot_pos, q))


def sole_heights(robot: Robot, root_pos: Array, root_quat: Array, q: Array) -> Array:
    """Return the heights of the feet's lowest points, (B, feet) m; as for `foot_positions`."""
    xp = namespace(q)
    pos = foot_positions(robot, root_pos, root_quat, q)
    radius = constant(tuple(foot.radius for foot in robot.feet), q)
    if not any(foot.half for foot in robot.feet):
        return pos[..., 2] - radius
    on = indices(_tree(robot).foot_parent, q)
    quat = multiply(root_quat[:, None], joint_frames(robot, q).quat[:, on])
    x, y, z, w = (quat[..., i] for i in range(4))
    # heights of the link's axes: the last row of the rotation's matrix
    axes = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    half = constant(tuple(foot.half or (0.0,) * 3 for foot in robot.feet), q)
    box = sum(half[:, i] * xp.abs(axis) for i, axis in enumerate(axes))
    return pos[..., 2] - xp.where(half[:, 0] > 0, box, radius)


def knee_heights(robot: Robot, root_pos: Array, root_quat: Array, q: Array) -> Array:
    """Return the heights of a quadruped's knees, (B, 4) m; arguments as for `foot_positions`."""
    knees = _knees(robot, q)
    x, y, z, w = (root_quat[:, i, None] for i in range(4))
    # the product with the last row of the rotation's matrix
    height = 2 * (x * z - w * y) * knees[..., 0] + 2 * (y * z + w * x) * knees[..., 1]
    return root_pos[:, 2, None] + height + (1 - 2 * (x * x + y * y)) * knees[..., 2]


def shanks_known(robot: Robot) -> bool:
    """Say whether the table gives the centres of mass of the robot's shanks."""
    return bool(robot.legs) and all(leg.shank_centre[0] for leg in robot.legs)


def shank_positions(robot: Robot, root_pos: Array, root_quat: Array, q: Array) -> Array:
    """Return where the centres of mass of a quadruped's shanks are in the world, (B, 4, 3) m."""
    in_base = _leg_ends(robot, q, to_centre=True)
    return root_pos[:, None] + rotate(root_quat[:, None], in_base)


def leg_length(robot: Robot) -> float:
    """Return the length of a quadruped's stretched leg, m.

    Raises:
        WorldError: the robot has no legs in its table entry.
    """
    if not robot.legs:
        raise _legless(robot)
    return robot.legs[0].thigh + robot.legs[0].shank


def _legless(robot: Robot) -> WorldError:
    return WorldError(f"robot '{robot.name}' has no legs: give `legs` in the robot's entry")


def _leg_ends(robot: Robot, q: Array, to_centre: bool = False) -> Array:
    """Return feet, or the shanks' centres of mass, in the base's frame, (B, legs, 3)."""
    xp = namespace(q)
    leg = _legs(robot, to_centre)
    angles = q.reshape(q.shape[0], -1, 3) + constant(leg.zero, q)
    # all sines and cosines in two calls: abduction, hip, and the shank's angle to the vertical
    angles = xp.stack((angles[..., 0], angles[..., 1], angles[..., 1] + angles[..., 2]), axis=0)
    sin, cos = xp.sin(angles), xp.cos(angles)
    thigh, shank = constant(leg.thigh, q), constant(leg.shank, q)
    x, z = -thigh * sin[1] - shank * sin[2], -thigh * cos[1] - shank * cos[2]
    return _out_of_plane(leg, sin[0], cos[0], x, z)


def _knees(robot: Robot, q: Array) -> Array:
    """Return a quadruped's knees in the base's frame, (B, legs, 3)."""
    xp = namespace(q)
    leg = _legs(robot)
    angles = q.reshape(q.shape[0], -1, 3)[..., :2] + constant(leg.zero, q)[:, :2]
    sin, cos = xp.sin(angles), xp.cos(angles)
    thigh = constant(leg.thigh, q)
    return _out_of_plane(leg, sin[..., 0], cos[..., 0], -thigh * sin[..., 1], -thigh * cos[..., 1])


def _out_of_plane(leg: _Legs, sin: Array, cos: Array, x: Array, z: Array) -> Array:
    """Turn points (B, legs) of the legs' planes about the abduction axes, (B, legs, 3)."""
    side = constant(leg.abduction, x)
    y, z = side * cos - z * sin, side * sin + z * cos
    return namespace(x).stack((x, y, z), axis=-1) + constant(leg.hip, x)


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


@functools.lru_cache(maxsize=64)
def _legs(robot: Robot, to_centre: bool = False) -> _Legs:
    return _Legs(robot, to_centre)


class _Legs:
    """A robot's legs as tuples over legs, ready for `constant`.

    With `to_centre` they end at the shanks' centres of mass instead of the feet.
    """

    def __init__(self, robot: Robot, to_centre: bool) -> None:
        legs = robot.legs
        if to_centre:
            if not shanks_known(robot):
                raise WorldError(f"robot '{robot.name}': its legs need a shank_centre")
            legs = tuple(
                replace(leg, shank=length, shank_zero=leg.shank_zero + turn)
                for leg in legs
                for length, turn in (leg.shank_centre,)
            )
        if not legs:
            raise _legless(robot)
        self.hip = tuple(leg.hip for leg in legs)
        self.abduction = tuple(leg.abduction for leg in legs)
        self.thigh = tuple(leg.thigh for leg in legs)
        self.shank = tuple(leg.shank for leg in legs)
        self.zero = tuple((0.0, leg.thigh_zero, leg.shank_zero) for leg in legs)
        knees = np.array(robot.default_pose)[2::3] + [leg.shank_zero for leg in legs]
        self.bend = tuple(np.where(knees > 0, 1.0, -1.0).tolist())


# ----- Any other robot: a tree of joints ---------------------------------------------------------


class Frames(NamedTuple):
    """Frames of the joints' child links in the base's frame; the last is the base's own."""

    pos: Array
    """(B, J + 1, 3) m."""
    quat: Array
    """(B, J + 1, 4)."""


def joint_frames(robot: Robot, q: Array) -> Frames:
    """Return where the links are that each joint moves, in the base's frame, for `q` (B, nq)."""
    return _forward(_tree(robot), q)


def centre_of_mass_velocity(
    robot: Robot, root_quat: Array, root_linvel: Array, root_angvel: Array, q: Array, qd: Array
) -> Array:
    """Return the velocity of the whole robot's centre of mass, (B, 3) m/s, world frame.

    Args:
        root_quat: (B, 4) orientation of the base.
        root_linvel, root_angvel: (B, 3) velocity of the base's origin, world frame.
        q: (B, nq) joint positions.
        qd: (B, nv) joint velocities; three of a spherical joint, in its child's frame.
    """
    xp = namespace(q)
    tree = _tree(robot)
    frames = _forward(tree, q)
    # Each joint moves all that hangs on it as one body: its angular velocity, in the base's frame,
    # crossed with the arm from the joint to that body's centre, times that body's mass.
    mass = constant(tree.mass, q)
    centre = frames.pos + rotate(frames.quat, constant(tree.com, q))
    moved = constant(tree.below, q)  # (J, J + 1) 1 where a joint moves a link
    weight = xp.matmul(moved, mass)
    arm = xp.matmul(moved * mass, centre) - weight[:, None] * frames.pos[:, :-1]
    turning = rotate(frames.quat[:, :-1], _joint_turning(tree, qd))
    total = constant(sum(tree.mass), q)
    centre = xp.matmul(mass, centre) / total
    velocity = xp.sum(cross(turning, arm), axis=-2) / total
    return root_linvel + cross(root_angvel, rotate(root_quat, centre)) + rotate(root_quat, velocity)


def _joint_turning(tree: _Tree, qd: Array) -> Array:
    """Return angular velocities (B, J, 3) in the frames of the joints' child links."""
    hinge = qd[:, indices(tree.hinge_qd, qd), None] * constant(tree.axis, qd)
    if not tree.balls:
        return hinge
    ball = qd[:, indices(tree.ball_qd, qd)].reshape(qd.shape[0], -1, 3)
    return namespace(qd).concatenate((hinge, ball), axis=1)[:, indices(tree.joint_order, qd)]


def _forward(tree: _Tree, q: Array) -> Frames:
    """Return the links' frames in the base's, for `q` (B, nq)."""
    xp = namespace(q)
    half = 0.5 * q[:, indices(tree.hinge_q, q)]
    turn = xp.concatenate(
        (xp.sin(half)[..., None] * constant(tree.axis, q), xp.cos(half)[..., None]), axis=-1
    )
    if tree.balls:
        ball = q[:, indices(tree.ball_q, q)].reshape(q.shape[0], -1, 4)
        turn = xp.concatenate((turn, ball), axis=1)[:, indices(tree.joint_order, q)]
    place, lean = constant(tree.pos, q), constant(tree.quat, q)
    batch = q.shape[0]
    pos = xp.zeros((batch, 1, 3), q)
    quat = xp.broadcast_to(constant((0.0, 0.0, 0.0, 1.0), q), (batch, 1, 4))
    # `pos` and `quat` grow level by level: the base, its joints, the joints on those, ...
    for level, parents in tree.levels:
        joints, on = indices(level, q), indices(parents, q)
        above = quat[:, on]
        pos = xp.concatenate((pos, pos[:, on] + rotate(above, place[joints])), axis=1)
        lying = multiply(above, lean[joints])
        quat = xp.concatenate((quat, multiply(lying, turn[:, joints])), axis=1)
    links = indices(tree.unsort_links, q)
    return Frames(pos[:, links], quat[:, links])


@functools.lru_cache(maxsize=64)
def _tree(robot: Robot) -> _Tree:
    return _Tree(robot, read_tree(robot))


class _Tree:
    """A robot's joint tree by levels; numbers as tuples, ready for `constant`."""

    def __init__(self, robot: Robot, tree: Tree) -> None:
        count = len(tree.parent)
        depth: list[int] = [0] * count
        for j in tree.order:
            depth[j] = 0 if tree.parent[j] < 0 else depth[tree.parent[j]] + 1
        by_level = [
            tuple(j for j in range(count) if depth[j] == level) for level in range(max(depth) + 1)
        ]
        place = {-1: 0} | {j: i + 1 for i, j in enumerate(itertools.chain(*by_level))}
        self.levels = [(level, tuple(place[tree.parent[j]] for j in level)) for level in by_level]
        """Joints of each depth, and where their parents stand among what is done before."""
        self.unsort_links = (*(place[j] for j in range(count)), 0)

        widths_q = [4 if ball else 1 for ball in tree.spherical]
        widths_qd = [3 if ball else 1 for ball in tree.spherical]
        start_q, start_qd = np.cumsum([0, *widths_q]), np.cumsum([0, *widths_qd])
        hinges = [j for j in range(count) if not tree.spherical[j]]
        self.balls = [j for j in range(count) if tree.spherical[j]]
        self.hinge_q = tuple(int(start_q[j]) for j in hinges)
        self.hinge_qd = tuple(int(start_qd[j]) for j in hinges)
        self.ball_q = tuple(int(start_q[j]) + k for j in self.balls for k in range(4))
        self.ball_qd = tuple(int(start_qd[j]) + k for j in self.balls for k in range(3))
        self.joint_order = tuple(np.argsort(hinges + self.balls).tolist())

        self.axis = _tuples(tree.axis[hinges])
        self.pos, self.quat = _tuples(tree.pos), _tuples(tree.quat)
        self.mass, self.com = _tuples(tree.mass), _tuples(tree.com)
        self.foot_parent, self.foot_pos = tree.foot_parent, _tuples(tree.foot_pos)
        below = np.zeros((count, count + 1))
        for j in range(count):
            at = j
            while at >= 0:
                below[at, j] = 1.0
                at = tree.parent[at]
        self.below = _tuples(below)


def _tuples(array: np.ndarray) -> Any:
    """Return nested tuples of floats, which can be keys."""
    return tuple(_tuples(row) for row in array) if array.ndim else float(array)
