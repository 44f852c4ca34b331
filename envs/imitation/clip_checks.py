"""What makes a clip unsound; every function raises `ClipError`, one line that says where."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from rlgym.envs.physics.robots import Robot
from rlgym.errors import ClipError
from rlgym.settings import short, suggest

if TYPE_CHECKING:
    from rlgym.envs.imitation.clips import Clip

MAX_FRAMES = 200_000
"""More than an hour at 50 Hz; a longer clip is a mistake."""
LARGEST = 1e6
"""Of any number in a clip; what is larger is no position, angle or time."""
FRAME_TIMES = (1e-4, 60.0)
"""Shortest and longest time between frames, s."""
BEYOND = 1.0
"""Radians by which a clip may go beyond a joint's limit: mocap of another body does, a little."""
UNIT_TOLERANCE = 0.01
"""How far a quaternion's norm may be from 1 through rounding in a text file."""


def check_frames(clip: Clip) -> None:
    """Refuse a clip without duration, or with arrays that do not belong together."""
    count, name = clip.num_frames, f"clip '{clip.name}'"
    if count < 2 or not (np.isfinite(clip.dt) and clip.dt > 0):
        raise ClipError(
            f"{name} has no duration: {count} frames of {clip.dt} s; a clip needs two or more "
            "frames and a positive frame time"
        )
    if not FRAME_TIMES[0] <= clip.dt <= FRAME_TIMES[1]:
        raise ClipError(
            f"{name} has a frame every {clip.dt:.3g} s: from {FRAME_TIMES[0]} to {FRAME_TIMES[1]} "
            "are possible"
        )
    if count > MAX_FRAMES:
        raise ClipError(f"{name} has {count} frames, more than {MAX_FRAMES}: cut it into parts")
    if len(set(clip.joint_names)) != len(clip.joint_names):
        raise ClipError(f"{name} names a joint twice: each joint has one name")
    if clip.spherical and len(clip.spherical) != len(clip.joint_names):
        raise ClipError(
            f"{name} says for {len(clip.spherical)} of {len(clip.joint_names)} joints whether "
            "they are spherical: say it for each, or for none"
        )
    shapes = {
        "root_pos": (clip.root_pos, (count, 3)),
        "root_quat": (clip.root_quat, (count, 4)),
        "q": (clip.q, (count, sum(clip.widths))),
    }
    for field, (array, wanted) in shapes.items():
        if array.shape != wanted:
            raise ClipError(
                f"{name} has {field} of shape {array.shape}; {count} frames and "
                f"{len(clip.joint_names)} joints need {wanted}"
            )


def check_numbers(clip: Clip) -> None:
    """Refuse numbers that are not finite, and quaternions that are no rotations."""
    for field in ("root_pos", "root_quat", "q"):
        bad = ~(abs(getattr(clip, field)) <= LARGEST).all(-1)  # true of NaN, too
        if bad.any():
            raise ClipError(
                f"clip '{clip.name}': frame {int(bad.argmax())} of {field} is not finite, "
                "or absurdly large: repair or cut it"
            )
    starts = np.cumsum((0, *clip.widths))
    quats = {"root_quat": clip.root_quat}
    for joint, width, start in zip(clip.joint_names, clip.widths, starts, strict=False):
        if width == 4:
            quats[joint] = clip.q[:, start : start + 4]
    for field, values in quats.items():
        norm = np.linalg.norm(values, axis=-1)
        bad = abs(norm - 1) > UNIT_TOLERANCE
        if bad.any():
            frame = int(bad.argmax())
            raise ClipError(
                f"clip '{clip.name}': frame {frame} of {field} is no rotation: a quaternion of "
                f"norm {norm[frame]:.3g} instead of 1 (is the order of the columns right?)"
            )


def check_limits(clip: Clip, robot: Robot) -> None:
    """Refuse a clip whose hinges go further than `BEYOND` past the robot's limits."""
    starts = np.cumsum((0, *clip.widths))
    bounds = zip(robot.joints, clip.widths, starts, robot.lower, robot.upper, strict=False)
    for joint, width, start, lower, upper in bounds:
        angles = clip.q[:, start]
        if width == 1 and (angles.min() < lower - BEYOND or angles.max() > upper + BEYOND):
            raise ClipError(
                f"clip '{clip.name}' turns {joint} from {angles.min():.3g} to {angles.max():.3g} "
                f"rad, far beyond {robot.name}'s limits of {lower:.3g} and {upper:.3g}: are these "
                "degrees, or angles of another convention?"
            )


def refuse_joints(clip: Clip, robot: Robot) -> NoReturn:
    """Say which joint a clip has too many, or too few."""
    unknown = [name for name in clip.joint_names if name not in robot.joints]
    absent = [name for name in robot.joints if name not in clip.joint_names]
    if unknown:
        hint = suggest(unknown[0], absent or robot.joints)
        raise ClipError(
            f"clip '{clip.name}' moves a joint {short(unknown[0])} "
            f"that {robot.name} has not: {hint}"
        )
    raise ClipError(
        f"clip '{clip.name}' says nothing of {robot.name}'s joint '{absent[0]}': "
        f"it needs a column for each of {len(robot.joints)} joints"
    )
