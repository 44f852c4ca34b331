"""What a policy sees: readings of the robot's sensors with their history, and what comes next.

The reference specification has 160 values in the order of google-research/motion_imitation (its
sensors by name, then the target frames): roll, pitch and their rates 3 x 4, last action 3 x 12,
joint angles 3 x 12, four target frames of 3 + 4 + 12.
"""

from __future__ import annotations

import functools
import math

from rlgym.envs.imitation.arrays import Array, choose_rows, constant, indices, namespace
from rlgym.envs.imitation.clips import Pose, Ref
from rlgym.envs.imitation.joints import to_angles
from rlgym.envs.imitation.rotations import (
    heading_cos_sin,
    multiply,
    rotate_inverse,
    rotate_z,
    standardize,
    to_rpy,
    wrap_angle,
)
from rlgym.envs.imitation.spec import ObservationSpec
from rlgym.envs.physics.engine import Sensed, State
from rlgym.envs.physics.robots import Robot
from rlgym.errors import ConfigError

SENSED = ("imu", "gravity", "angular_velocity", "joint_angle", "joint_velocity", "last_action")
"""Terms that are read at each step and have a history."""
PRESENT = ("linear_velocity", "targets")
"""Terms without a history, which follow the others."""
TERMS = (*SENSED, *PRESENT)


# ----- Readings and their history ----------------------------------------------------------------


def read(sensed: Sensed, last_action: Array, spec: ObservationSpec, robot: Robot) -> Array:
    """Return one reading of all sensed terms of the spec, side by side, (B, W).

    Args:
        sensed: delayed readings of the sensors.
        last_action: (B, nv), 0 when an episode begins.

    Raises:
        ConfigError: the spec has an unknown term.
    """
    xp = namespace(sensed.q)
    parts: list[Array] = [sensed.q[:, :0]]  # a spec may be content with targets
    for term in sensed_terms(spec):
        if term == "imu":
            roll, pitch, _ = to_rpy(sensed.root_quat)
            rate = sensed.root_angvel
            parts.append(xp.stack((roll, pitch, rate[:, 0], rate[:, 1]), axis=-1))
        elif term == "gravity":
            parts.append(_gravity(sensed.root_quat))
        elif term == "angular_velocity":
            parts.append(sensed.root_angvel)
        elif term == "joint_angle":
            parts.append(wrap_angle(to_angles(robot, sensed.q)))
        elif term == "joint_velocity":
            parts.append(sensed.qd)
        else:
            parts.append(last_action)
    return xp.concatenate(parts, axis=-1)


def start_history(reading: Array, spec: ObservationSpec) -> Array:
    """Return a history (B, H, W), newest first, of nothing but `reading` (B, W)."""
    xp = namespace(reading)
    shape = (reading.shape[0], spec.history, reading.shape[1])
    return xp.copy(xp.broadcast_to(reading[:, None], shape))


def reset_history(history: Array, mask: Array, reading: Array) -> Array:
    """Fill the history with `reading` (B, W) in the rows of `mask` (B,)."""
    return choose_rows(
        mask, namespace(reading).broadcast_to(reading[:, None], history.shape), history
    )


def push_history(history: Array, reading: Array) -> Array:
    """Put `reading` (B, W) in front of the history (B, H, W) and drop the oldest."""
    if history.shape[1] == 1:
        return reading[:, None]
    return namespace(reading).concatenate((reading[:, None], history[:, :-1]), axis=1)


def _gravity(quat: Array) -> Array:
    """Return the direction of gravity in the base's frame, (B, 3): minus the matrix's last row."""
    x, y, z, w = quat[:, 0], quat[:, 1], quat[:, 2], quat[:, 3]
    return namespace(quat).stack(
        (2 * (w * y - x * z), -2 * (y * z + w * x), 2 * (x * x + y * y) - 1), axis=-1
    )


# ----- Observations ------------------------------------------------------------------------------


def observe(
    history: Array, futures: Pose, ref: Ref, state: State, spec: ObservationSpec, robot: Robot
) -> Array:
    """Return the policy's observation, (B, D), D = `observation_size`.

    Args:
        history: (B, H, W) of `read`, newest first.
        futures: poses (B, K, ...) of the reference at `spec.target_steps`, world frame.
        ref: the reference now.
        state: of the robot; of it, only the delayed orientation is shown, with
            `target_origin` "robot" its place, and its velocity where the spec has that term.
    """
    xp = namespace(history)
    order = _history_order(spec, robot)
    flat = history.reshape(history.shape[0], -1)
    parts = [flat if order is None else flat[:, indices(order, flat)]]
    if "linear_velocity" in spec.terms:
        parts.append(rotate_inverse(state.root_quat, state.root_linvel))
    if "targets" in spec.terms:
        origin = ref.root_pos if spec.target_origin == "reference" else state.root_pos
        parts.append(targets(futures, origin, state.sensed.root_quat, spec, robot))
    return xp.concatenate(parts, axis=-1)


def targets(
    futures: Pose, origin: Array, root_quat: Array, spec: ObservationSpec, robot: Robot
) -> Array:
    """Return what the reference does next as the robot sees it, (B, K * (3 + 4 + nq)).

    Per frame: position from `origin` (B, 3) and orientation, both in the heading of `root_quat`
    (B, 4), and joints. In the model's convention, when the spec says so, the orientation is that of
    the model file's base and the joints have the model file's signs and zeros.
    """
    xp = namespace(root_quat)
    cos, sin = heading_cos_sin(root_quat)
    pos = rotate_z(cos[:, None], -sin[:, None], futures.root_pos - origin[:, None])
    # the inverse of the heading as a quaternion about z, by half-angle formulas
    half_cos = xp.sqrt(xp.maximum(0.5 + 0.5 * cos, 0.0))
    half_sin = xp.sqrt(xp.maximum(0.5 - 0.5 * cos, 0.0))
    half_sin = xp.where(sin < 0, half_sin, -half_sin)
    zero = xp.zeros_like(cos)
    unturn = xp.stack((zero, zero, half_sin, half_cos), axis=-1)
    quat, joints = futures.root_quat, futures.q
    if spec.target_convention == "model":
        quat = multiply(quat, constant(robot.base_rotation, quat))
        sign, offset = constant(robot.sign, joints), constant(robot.offset, joints)
        joints = sign * (joints + offset)
    quat = standardize(multiply(unturn[:, None], quat))
    frames = xp.concatenate((pos, quat, joints), axis=-1)
    return frames.reshape(frames.shape[0], -1)


def privileged(state: State, ref: Ref, phase: Array) -> Array:
    """Return what only a simulation knows, for the critic, (B, 9 + 2 feet).

    Velocity of the base in its own frame 3, its height 1, the reference's place in the robot's
    heading 2 and heading from the robot's 1, heights of the feet and their contacts, cosine and
    sine of the phase 2.

    Args:
        phase: (B,) share of the clip's cycle that has passed.
    """
    xp = namespace(state.q)
    cos, sin = heading_cos_sin(state.root_quat)
    ref_cos, ref_sin = heading_cos_sin(ref.root_quat)
    x = ref.root_pos[:, 0] - state.root_pos[:, 0]
    y = ref.root_pos[:, 1] - state.root_pos[:, 1]
    angle = 2 * math.pi * phase
    single = xp.stack(
        (
            state.root_pos[:, 2],
            cos * x + sin * y,
            cos * y - sin * x,
            xp.arctan2(ref_sin * cos - ref_cos * sin, ref_cos * cos + ref_sin * sin),
            xp.cos(angle),
            xp.sin(angle),
        ),
        axis=-1,
    )
    velocity = rotate_inverse(state.root_quat, state.root_linvel)
    contact = xp.astype(state.foot_contact, state.q)
    return xp.concatenate((velocity, single, state.foot_pos[..., 2], contact), axis=-1)


# ----- Layout ------------------------------------------------------------------------------------


def sensed_terms(spec: ObservationSpec) -> tuple[str, ...]:
    """Return the spec's terms that have a history, in its order.

    Raises:
        ConfigError: the spec has an unknown term, or terms without a history before the others.
    """
    for term in spec.terms:
        if term not in TERMS:
            raise ConfigError(f"observation.terms has no term {term!r}: use {', '.join(TERMS)}")
    sensed = tuple(term for term in spec.terms if term not in PRESENT)
    present = tuple(term for term in PRESENT if term in spec.terms)
    if spec.terms != sensed + present:
        raise ConfigError(
            f"observation.terms: {' and '.join(PRESENT)} come last, once, in this order"
        )
    return sensed


def term_sizes(spec: ObservationSpec, robot: Robot) -> dict[str, int]:
    """Return how many values each term of the spec has in an observation, in its order."""
    one = {"imu": 4, "gravity": 3, "angular_velocity": 3}
    sizes = {term: spec.history * one.get(term, robot.nv) for term in sensed_terms(spec)}
    if "linear_velocity" in spec.terms:
        sizes["linear_velocity"] = 3
    if "targets" in spec.terms:
        sizes["targets"] = len(spec.target_steps) * (7 + robot.nq)
    return sizes


def observation_size(spec: ObservationSpec, robot: Robot) -> int:
    """Return D, the values of an observation."""
    return sum(term_sizes(spec, robot).values())


def privileged_size(robot: Robot) -> int:
    """Return K, the values of `privileged`."""
    return 9 + 2 * len(robot.feet)


@functools.lru_cache(maxsize=64)
def _history_order(spec: ObservationSpec, robot: Robot) -> tuple[int, ...] | None:
    """Return where the values of each term's history stand in a flat history (H * W).

    None when they stand in order, as with a history of one.
    """
    if spec.history == 1:
        return None
    sizes = [
        size // spec.history
        for term, size in term_sizes(spec, robot).items()
        if term not in PRESENT
    ]
    width, order, start = sum(sizes), [], 0
    for size in sizes:
        for age in range(spec.history):
            order.extend(range(age * width + start, age * width + start + size))
        start += size
    return tuple(order)
