"""A quadruped's clip made another's, a clip scaled, and a clip mirrored left to right.

Feet are retargeted, not joints: their paths about the stance, scaled by the length of the legs,
are put about the stance of the other robot's default pose, and inverse kinematics gives the joints.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlgym.envs.imitation.clips import Clip
from rlgym.envs.imitation.gaits import leg_scale
from rlgym.envs.imitation.kinematics import feet_in_base, leg_angles
from rlgym.envs.imitation.rotations import heading_quat, rotate, rotate_inverse
from rlgym.envs.physics.robots import Robot
from rlgym.errors import ClipError

REACH = 0.06
"""How far a foot may stay from its place because of the joints' limits, for legs of 0.4 m."""
MIRRORED_LEGS = (1, 0, 3, 2)
"""The leg across for each of front right, front left, rear right, rear left."""


def retarget(
    clip: Clip,
    source: Robot,
    target: Robot,
    *,
    scale: float | None = None,
    level: bool = False,
    close: bool = True,
) -> Clip:
    """Return the clip for another quadruped.

    Args:
        clip: Of `source`.
        source: The robot whose joints the clip moves.
        target: The robot whose joints the result moves; `source` itself for a scaled motion.
        scale: Factor of all lengths; None: the ratio of the legs' lengths.
        level: Keep the base level, turning only about the vertical.
        close: Let a looping clip end where it began, in joints and in the height of the base, by
            spreading what is missing over its frames.

    Raises:
        ClipError: one of them has no four legs, or a foot cannot get there.
    """
    for robot in (source, target):
        if len(robot.legs) != 4:
            raise ClipError(
                f"clip '{clip.name}' is of {source.name} and cannot be made {target.name}'s: "
                f"{robot.name} has no four legs in the robot table"
            )
    scale = leg_scale(target) / leg_scale(source) if scale is None else scale
    if not 0.05 <= scale <= 20:
        raise ClipError(f"a scale of {scale} makes no sense: choose one from 0.05 to 20")
    clip = clip.check().for_robot(source)
    quat = heading_quat(clip.root_quat) if level else clip.root_quat
    # feet where they are on the ground, seen from the base that the result will have
    seen = rotate(clip.root_quat[:, None], feet_in_base(source, clip.q))
    feet = rotate_inverse(quat[:, None], seen)
    feet, pos = _between(clip, source, target, feet, scale)
    if close and clip.loop:
        feet = _closed(feet)
        pos[:, 2] = _closed(pos[:, 2])
    pos[:, 2] += target.feet[0].radius - _floor(pos, quat, feet)
    q, _ = leg_angles(target, _within_reach(target, feet))
    _check_reach(clip, target, feet, q)
    return replace(
        clip,
        robot=target.name,
        joint_names=target.joints,
        root_pos=pos,
        root_quat=quat,
        q=q.clip(target.lower, target.upper),
        source=f"{clip.source}, retargeted from {source.name}",
    )


def mirror(clip: Clip, robot: Robot) -> Clip:
    """Return the clip with left and right exchanged: a turn to the left becomes one to the right.

    Raises:
        ClipError: the robot has neither four legs nor joints named left and right.
    """
    clip = clip.check().for_robot(robot)
    if len(robot.legs) == 4:
        columns = [3 * leg + joint for leg in MIRRORED_LEGS for joint in range(3)]
        q = clip.q[:, columns] * np.tile((-1.0, 1.0, 1.0), 4)
    else:
        q = _mirrored_by_name(clip, robot)
    return replace(
        clip,
        name=f"{clip.name} mirrored",
        root_pos=clip.root_pos * (1.0, -1.0, 1.0),
        root_quat=clip.root_quat * (-1.0, 1.0, -1.0, 1.0),
        q=q,
    )


def _between(
    clip: Clip, source: Robot, target: Robot, feet: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move feet (F, 4, 3) and root positions (F, 3) from one robot's proportions to the other's.

    Feet keep their place below their hips, times the scale.
    """
    hips = np.array([leg.hip for leg in source.legs])
    new_hips = np.array([leg.hip for leg in target.legs])
    sides = np.array([(0.0, leg.abduction, 0.0) for leg in source.legs])
    new_sides = np.array([(0.0, leg.abduction, 0.0) for leg in target.legs])
    moved = new_hips + new_sides + scale * (feet - hips - sides)
    return moved, clip.root_pos * scale


def _floor(pos: np.ndarray, quat: np.ndarray, feet: np.ndarray) -> float:
    """Return the height on which feet (F, 4, 3) of the base's frame stand.

    The lowest foot's, in the middle of all frames: in most of them one is on the ground, and there
    it sinks in or hovers by what measuring leaves.
    """
    return float(np.median(pos[:, 2] + rotate(quat[:, None], feet)[..., 2].min(1)))


def _closed(values: np.ndarray) -> np.ndarray:
    """Spread the difference between the last frame and the first one over all frames."""
    share = np.linspace(-0.5, 0.5, len(values)).reshape(-1, *[1] * (values.ndim - 1))
    return values - share * (values[-1] - values[0])


def _within_reach(robot: Robot, feet: np.ndarray) -> np.ndarray:
    """Bring feet (F, 4, 3) along their legs to where the knees' limits let them be."""
    knees = np.array([robot.lower[2::3], robot.upper[2::3]])
    zero = np.array([leg.shank_zero for leg in robot.legs])
    thigh, shank = (np.array([getattr(leg, k) for leg in robot.legs]) for k in ("thigh", "shank"))
    side = np.array([leg.abduction for leg in robot.legs])
    ends = np.sqrt(thigh**2 + shank**2 + 2 * thigh * shank * np.cos(knees + zero))
    hips = np.array([leg.hip for leg in robot.legs])
    x, y, z = np.moveaxis(feet - hips, -1, 0)
    depth = np.sqrt(np.maximum(y**2 + z**2 - side**2, 0))  # in the leg's plane, below the hip
    reach = np.hypot(x, depth)
    share = reach.clip(ends.min(0), ends.max(0)) / np.maximum(reach, 1e-9)
    turn = np.arctan2(z, y) - np.arctan2(-depth, side)
    depth = depth * share
    y = side * np.cos(turn) + depth * np.sin(turn)
    z = side * np.sin(turn) - depth * np.cos(turn)
    return np.stack([x * share, y, z], -1) + hips


def _check_reach(clip: Clip, target: Robot, feet: np.ndarray, q: np.ndarray) -> None:
    """Refuse where the joints that are possible put a foot more than `REACH` from its place."""
    missed = np.linalg.norm(feet_in_base(target, q.clip(target.lower, target.upper)) - feet, axis=2)
    worst = float(missed.max()) / leg_scale(target)
    if worst > REACH:
        frame, leg = np.unravel_index(int(missed.argmax()), missed.shape)
        raise ClipError(
            f"clip '{clip.name}' is beyond {target.name}: in frame {frame} foot {leg} misses its "
            f"place by {missed.max():.3f} m; choose another scale"
        )


def _mirrored_by_name(clip: Clip, robot: Robot) -> np.ndarray:
    """Joint positions with right and left exchanged; links have z to the right (DeepMimic)."""
    starts = dict(zip(robot.joints, np.cumsum((0, *clip.widths)), strict=False))
    columns: list[int] = []
    signs: list[float] = []
    for name, width in zip(robot.joints, clip.widths, strict=True):
        across = _across(name)
        if across not in starts:
            raise ClipError(f"{robot.name} has no joint '{across}' across from '{name}'")
        columns += range(starts[across], starts[across] + width)
        signs += (-1.0, -1.0, 1.0, 1.0) if width == 4 else (1.0,)
    return clip.q[:, columns] * signs


def _across(name: str) -> str:
    for one, other in (("right", "left"), ("left", "right")):
        if one in name:
            return name.replace(one, other)
    return name
