"""Where feet are for given joint angles, and the angles that put them there; batched.

Quadrupeds (`robot.legs`) have closed forms, in which the four legs are one array operation; any
other robot is a tree of joints, read from its model file, in which the joints of one depth are.
Frames, order and signs are the robot table's (`rlgym.envs.physics.robots`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rlgym.envs.imitation.arrays import Array, constant, indices, namespace
from rlgym.envs.imitation.rotations import (
    Parts,
    cross,
    multiply,
    product,
    rotate,
    turned,
    wrap_angle,
)
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
    tree = _tree(robot)
    pos, quat = _walk(tree, q)
    on = indices(tree.foot_parent, q)
    arm = turned(tuple(part[on] for part in quat), _columns(tree.foot_pos, q))
    return _rows(namespace(q), tuple(part[on] + a for part, a in zip(pos, arm, strict=True)))


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
    return WorldError(
        f"robot '{robot.name}' has no legs: give `legs` in the robot's entry, or use a spec that "
        f'measures nothing by them, such as spec="humanoid"'
    )


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
    xp = namespace(q)
    pos, quat = _walk(_tree(robot), q)
    return Frames(_rows(xp, pos), _rows(xp, quat))


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
    pos, quat = _walk(tree, q)
    mass, total = constant(tree.mass, q), sum(tree.mass)
    centre = turned(quat, _columns(tree.com, q))
    centre = tuple(p + c for p, c in zip(pos, centre, strict=True))
    # Each joint moves all that hangs on it as one body: its angular velocity, in the base's frame,
    # crossed with the arm from the joint to that body's centre, times that body's mass.
    moved = constant(tree.moved_mass, q)  # (J, J + 1) a link's mass where the joint moves it
    weight = xp.sum(moved, axis=1)[:, None]
    ax, ay, az = (xp.matmul(moved, c) - weight * p[:-1] for p, c in zip(pos, centre, strict=True))
    wx, wy, wz = turned(tuple(part[:-1] for part in quat), _turning(tree, qd))
    flow = wy * az - wz * ay, wz * ax - wx * az, wx * ay - wy * ax
    velocity = xp.stack([xp.sum(part, axis=0) for part in flow], axis=-1) / total
    middle = xp.stack([xp.matmul(mass, part) for part in centre], axis=-1) / total
    return root_linvel + cross(root_angvel, rotate(root_quat, middle)) + rotate(root_quat, velocity)


# Below, joints come before worlds and components stand apart: (J, B) arrays, whose rows are then
# whole in memory. That is more than twice as fast as (B, J, 3).


def _turning(tree: _Tree, qd: Array) -> Parts:
    """Return the joints' angular velocities, (J, B) each, in the frames of their child links."""
    xp, rows = namespace(qd), qd.T
    hinge = rows[indices(tree.hinge_qd, qd)]
    ordered = indices(tree.joint_order, qd)
    parts = []
    for axis, ball in zip(_columns(tree.axis, qd), tree.ball_qd, strict=True):
        parts.append(xp.concatenate((axis * hinge, rows[indices(ball, qd)]), axis=0)[ordered])
    return tuple(parts)


def _walk(tree: _Tree, q: Array) -> tuple[Parts, Parts]:
    """Return the links' positions and orientations in the base's frame, (J + 1, B) each part."""
    xp, rows = namespace(q), q.T
    half = 0.5 * rows[indices(tree.hinge_q, q)]
    sin, cos = xp.sin(half), xp.cos(half)
    hinge = (*(axis * sin for axis in _columns(tree.axis, q)), cos)
    by_depth = indices(tree.by_depth, q)
    turn = tuple(
        xp.concatenate((part, rows[indices(ball, q)]), axis=0)[by_depth]
        for part, ball in zip(hinge, tree.ball_q, strict=True)
    )
    turn = product(_columns(tree.quat, q), turn)
    place = _columns(tree.pos, q)
    roots = slice(0, tree.roots)
    pos = tuple(part[roots] + xp.zeros_like(turn[0][roots]) for part in place)
    quat = tuple(part[roots] for part in turn)
    # `pos` and `quat` grow level by level: the joints on the base, those on them, ...
    for start, stop, parents in tree.levels:
        level, on = slice(start, stop), indices(parents, q)
        above = tuple(part[on] for part in quat)
        arm = turned(above, tuple(part[level] for part in place))
        here = product(above, tuple(part[level] for part in turn))
        pos = tuple(xp.concatenate((p, p[on] + a), axis=0) for p, a in zip(pos, arm, strict=True))
        quat = tuple(xp.concatenate(pair, axis=0) for pair in zip(quat, here, strict=True))
    base = xp.zeros_like(turn[0][:1])
    links = indices(tree.unsort, q)
    pos = tuple(xp.concatenate((part, base), axis=0)[links] for part in pos)
    ends = (base, base, base, base + 1)
    quat = tuple(xp.concatenate(pair, axis=0)[links] for pair in zip(quat, ends, strict=True))
    return pos, quat


def _columns(table: tuple[tuple[float, ...], ...], like: Array) -> Parts:
    """Turn k tuples of n numbers into k arrays (n, 1)."""
    array = constant(table, like)[..., None]
    return tuple(array[i] for i in range(len(table)))


def _rows(xp: Any, parts: Parts) -> Array:
    """Turn parts (n, B) into an array (B, n, k)."""
    return xp.stack([part.T for part in parts], axis=-1)


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
        sequence = sorted(range(count), key=lambda j: depth[j])
        place = {j: i for i, j in enumerate(sequence)}
        starts = [depth[j] for j in sequence]
        self.roots = starts.count(0)
        """Joints on the base."""
        self.levels = []
        """Of each further depth: where its joints begin and end among all, and their parents."""
        for level in range(1, max(depth) + 1):
            start = starts.index(level)
            stop = start + starts.count(level)
            parents = tuple(place[tree.parent[j]] for j in sequence[start:stop])
            self.levels.append((start, stop, parents))
        self.unsort = (*(place[j] for j in range(count)), count)

        widths_q = [4 if ball else 1 for ball in tree.spherical]
        widths_qd = [3 if ball else 1 for ball in tree.spherical]
        start_q, start_qd = np.cumsum([0, *widths_q]), np.cumsum([0, *widths_qd])
        hinges = [j for j in range(count) if not tree.spherical[j]]
        balls = [j for j in range(count) if tree.spherical[j]]
        self.hinge_q = tuple(int(start_q[j]) for j in hinges)
        self.hinge_qd = tuple(int(start_qd[j]) for j in hinges)
        self.ball_q = tuple(tuple(int(start_q[j]) + k for j in balls) for k in range(4))
        self.ball_qd = tuple(tuple(int(start_qd[j]) + k for j in balls) for k in range(3))
        kinds = hinges + balls
        self.joint_order = tuple(np.argsort(kinds).tolist())
        self.by_depth = tuple(kinds.index(j) for j in sequence)

        self.axis = _tuples(tree.axis[hinges].T)
        self.pos, self.quat = _tuples(tree.pos[sequence].T), _tuples(tree.quat[sequence].T)
        self.mass, self.com = _tuples(tree.mass), _tuples(tree.com.T)
        self.foot_parent, self.foot_pos = tree.foot_parent, _tuples(tree.foot_pos.T)
        below = np.zeros((count, count + 1))
        for j in range(count):
            at = j
            while at >= 0:
                below[at, j] = 1.0
                at = tree.parent[at]
        self.moved_mass = _tuples(below * tree.mass)


def _tuples(array: np.ndarray) -> Any:
    """Return nested tuples of floats, which can be keys."""
    return tuple(_tuples(row) for row in array) if array.ndim else float(array)
