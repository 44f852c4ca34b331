"""How well a batch of robots does what the reference does: five terms, each 1 when it is exact.

A term is exp(-scale * error); the reward is their weighted sum. What the errors are made of is
data (`RewardSpec`): Peng et al. 2020, arXiv:2004.00784, section V.B and google-research/
motion_imitation for quadrupeds; Peng et al. 2018, arXiv:1804.02717, section 5.2 as pybullet_envs
has it for the humanoid.
"""

from __future__ import annotations

import functools

from rlgym.envs.imitation.arrays import Array, constant, namespace
from rlgym.envs.imitation.clips import Ref
from rlgym.envs.imitation.joints import columns, per_velocity
from rlgym.envs.imitation.kinematics import (
    centre_of_mass_velocity,
    foot_positions,
    shank_positions,
    shanks_known,
)
from rlgym.envs.imitation.rotations import (
    angle_between,
    from_rotation_vector,
    heading_cos_sin,
    multiply,
)
from rlgym.envs.imitation.spec import RewardSpec
from rlgym.envs.physics.engine import State
from rlgym.envs.physics.robots import Robot

TERMS = ("pose", "velocity", "end_effector", "root_pose", "root_velocity")


def reward(
    state: State, ref: Ref, spec: RewardSpec, robot: Robot
) -> tuple[Array, dict[str, Array]]:
    """Return the reward (B,) and its terms, name of `TERMS` -> (B,), before their weights."""
    xp = namespace(state.q)
    angle = angle_between(state.root_quat, ref.root_quat)
    rotation = angle * angle
    distance = _squared(state.root_pos - ref.root_pos)
    linear = _squared(state.root_linvel - ref.root_linvel)
    angular = _squared(state.root_angvel - ref.root_angvel)

    pose = _pose_error(state.q, ref.q, spec, robot)
    velocity = _weighted(state.qd - ref.qd, _velocity_weights(spec, robot))
    if spec.root_weight:
        pose = pose + spec.root_weight * rotation
        velocity = velocity + spec.root_weight * angular
    root_pose = distance + spec.rotation_share * rotation
    if spec.linear_velocity_share:
        root_pose = root_pose + spec.linear_velocity_share * linear
    if spec.angular_velocity_share:
        root_pose = root_pose + spec.angular_velocity_share * angular
    moving = linear
    if spec.velocity_point == "centre_of_mass":
        moving = _squared(_centre_velocity_error(state, ref, robot))
    errors = (
        pose,
        velocity,
        _end_effector_error(state, ref, spec, robot),
        root_pose,
        spec.velocity_linear_share * moving + spec.velocity_angular_share * angular,
    )
    chosen = [getattr(spec, name) for name in TERMS]
    scale = constant(tuple(-term.scale for term in chosen), state.q)
    weight = constant(tuple(term.weight for term in chosen), state.q)
    terms = xp.exp(xp.stack(errors, axis=-1) * scale)
    total = xp.matmul(terms, weight)
    return total, {name: terms[:, i] for i, name in enumerate(TERMS)}


def _centre_velocity_error(state: State, ref: Ref, robot: Robot) -> Array:
    """Return the difference of the centres of mass's velocities, (B, 3) m/s, world frame."""
    join = namespace(state.q).concatenate  # both in one call, which costs as much as one alone
    names = ("root_quat", "root_linvel", "root_angvel", "q", "qd")
    both = (join((getattr(state, name), getattr(ref, name)), axis=0) for name in names)
    velocity = centre_of_mass_velocity(robot, *both)
    count = state.q.shape[0]
    return velocity[:count] - velocity[count:]


def _squared(x: Array) -> Array:
    return namespace(x).dot(x, x)


def _weighted(difference: Array, weights: tuple[float, ...]) -> Array:
    """Sum of squares over the last axis, weighted where there are weights."""
    xp = namespace(difference)
    if not weights:
        return xp.dot(difference, difference)
    return xp.matmul(difference * difference, constant(weights, difference))


def _pose_error(q: Array, ref_q: Array, spec: RewardSpec, robot: Robot) -> Array:
    """Sum of squared differences of angles; a spherical joint's is the rotation between them."""
    if not robot.spherical:
        return _weighted(q - ref_q, spec.joint_weights)
    at = columns(robot, q)
    hinge = q[:, at.hinge_q] - ref_q[:, at.hinge_q]
    ball = angle_between(q[:, at.ball_q], ref_q[:, at.ball_q])
    difference = namespace(q).concatenate((hinge, ball), axis=-1)
    return _weighted(difference, _pose_weights(spec, robot))


@functools.lru_cache(maxsize=64)
def _pose_weights(spec: RewardSpec, robot: Robot) -> tuple[float, ...]:
    """Return the weight of each joint, hinges first; () when each counts once."""
    if not spec.joint_weights:
        return ()
    kinds = list(zip(robot.is_spherical, spec.joint_weights, strict=True))
    return tuple(w for wanted in (False, True) for ball, w in kinds if ball == wanted)


@functools.lru_cache(maxsize=64)
def _velocity_weights(spec: RewardSpec, robot: Robot) -> tuple[float, ...]:
    """Return the weight of each column of qd; () when each counts once."""
    if not spec.joint_weights:
        return ()
    return per_velocity(robot, spec.joint_weights)


def _end_effector_error(state: State, ref: Ref, spec: RewardSpec, robot: Robot) -> Array:
    """Squared differences of the feet's positions, summed (or averaged) over feet."""
    xp = namespace(state.q)
    points = _end_effectors(state, spec, robot, spec.end_effector_age)
    ref_points = _end_effectors(ref, spec, robot, 0.0)
    difference = points - ref_points
    up = difference[..., 2]
    if spec.end_effector_frame == "heading":
        x, y = _in_heading(state.root_pos, state.root_quat, points)
        ref_x, ref_y = _in_heading(ref.root_pos, ref.root_quat, ref_points)
        x, y = x - ref_x, y - ref_y
    else:
        x, y = difference[..., 0], difference[..., 1]
    error = xp.sum(x * x + y * y + spec.end_effector_height * (up * up), axis=-1)
    return error / points.shape[1] if spec.end_effector_mean else error


def _end_effectors(body: State | Ref, spec: RewardSpec, robot: Robot, age: float) -> Array:
    """Return the feet, and the shanks if they count, as they were `age` s ago, (B, points, 3)."""
    points, root_pos, root_quat, q = body.foot_pos, body.root_pos, body.root_quat, body.q
    if age:  # exact for hinges: Bullet's last step moved everything by its new velocity
        root_pos, q = root_pos - age * body.root_linvel, q - age * body.qd
        root_quat = multiply(from_rotation_vector(-age * body.root_angvel), root_quat)
        points = foot_positions(robot, root_pos, root_quat, q)
    if not (spec.end_effector_shanks and shanks_known(robot)):
        return points
    shanks = shank_positions(robot, root_pos, root_quat, q)
    return namespace(q).concatenate((points, shanks), axis=1)


def _in_heading(root_pos: Array, root_quat: Array, points: Array) -> tuple[Array, Array]:
    """Return x and y of points (B, F, 3) from the base, in the frame of its heading, (B, F)."""
    cos, sin = heading_cos_sin(root_quat)
    x = points[..., 0] - root_pos[:, 0, None]
    y = points[..., 1] - root_pos[:, 1, None]
    cos, sin = cos[:, None], sin[:, None]
    return cos * x + sin * y, cos * y - sin * x
