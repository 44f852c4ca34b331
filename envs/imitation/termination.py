"""Which robots of a batch have failed, and why."""

from __future__ import annotations

import math

from rlgym.envs.imitation.arrays import Array, namespace
from rlgym.envs.imitation.clips import Ref
from rlgym.envs.imitation.kinematics import knee_heights, leg_length
from rlgym.envs.imitation.rotations import angle_between
from rlgym.envs.imitation.spec import TerminationSpec
from rlgym.envs.physics.engine import State
from rlgym.envs.physics.robots import Robot

CAUSES = (
    "none",
    "clip_over",
    "knee_height",
    "trunk_height",
    "tilt",
    "rotation",
    "distance",
    "contact",
    "broken",
)
"""By the index that `terminate` returns; where several hold, the last of them is named."""


def terminate(
    state: State,
    ref: Ref,
    spec: TerminationSpec,
    robot: Robot,
    step: Array,
    clip_over: Array,
    ground: Array | None = None,
) -> tuple[Array, Array]:
    """Return which episodes are over, (B,) bool, and the cause, (B,) int8 index into `CAUSES`.

    Args:
        step: (B,) control steps since the reset, this one included. As in the original, contacts
            do not count in the first: a robot may begin a little inside the ground.
        clip_over: (B,) bool: the clip does not loop and has ended.
        ground: (B,) height of the ground under the base, m; None = 0 everywhere.
    """
    xp = namespace(state.q)
    held: list[tuple[str, Array]] = []
    if spec.clip_over:
        held.append(("clip_over", clip_over))
    if spec.knee_height is not None:
        heights = knee_heights(robot, state.root_pos, state.root_quat, state.q)
        held.append(
            (
                "knee_height",
                _above(xp.min(heights, axis=-1), ground) < spec.knee_height * leg_length(robot),
            )
        )
    if spec.trunk_height is not None:
        height = _above(state.root_pos[:, 2], ground)
        held.append(("trunk_height", height < spec.trunk_height * leg_length(robot)))
    if spec.tilt is not None:
        x, y = state.root_quat[:, 0], state.root_quat[:, 1]
        held.append(("tilt", 1 - 2 * (x * x + y * y) < math.cos(spec.tilt)))
    if spec.rotation is not None:
        angle = angle_between(state.root_quat, ref.root_quat)
        held.append(("rotation", angle > spec.rotation))
    if spec.distance is not None:
        apart = state.root_pos - ref.root_pos
        held.append(("distance", xp.dot(apart, apart) > spec.distance**2))
    if spec.contact:
        held.append(("contact", state.illegal_contact & (step > 1)))
    held.append(("broken", state.broken))

    cause = xp.int8(xp.zeros_like(state.root_pos[:, 0]))
    for name, holds in held:
        cause = xp.where(holds, xp.int8(xp.full((), CAUSES.index(name), state.q)), cause)
    return cause > 0, cause


def _above(height: Array, ground: Array | None) -> Array:
    return height if ground is None else height - ground
