"""The two JSON dialects of clips, turned into our frames.

motion_imitation (arXiv:2004.00784): LoopMode, FrameDuration and Frames of root position, quaternion
xyzw and joints, all as Laikago's URDF has them. DeepMimic (arXiv:1804.02717) and pybullet_data:
Loop, and each frame begins with its duration; the humanoid's are y up with quaternions wxyz and
spherical joints; laikago_walk has xyzw in Laikago's URDF frame, angles of Laikago's SDK, and walks
towards +y.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.envs.imitation.clip_checks import FRAME_TIMES, LARGEST, MAX_FRAMES
from rlgym.envs.imitation.clips import Clip, ClipSet
from rlgym.envs.imitation.rotations import about_z, conjugate, heading, multiply, rotate
from rlgym.envs.physics.robots import Robot, get_robot
from rlgym.errors import ClipError
from rlgym.settings import short

UNKNOWN_LICENCE = "not stated: the file is the user's own"
HUMANOID_COLUMNS = 43
"""Root position 3 and quaternion 4, then 28 + 8 of the joints."""
LOOSE = 0.5
"""How far from 1 the norms of joints' quaternions are in DeepMimic's own clips (kick)."""
TURNING = 0.4
"""Net change of heading in a cycle, rad, from which a DeepMimic clip counts as one that turns."""


def parse_json_clip(content: bytes, path: Path, robot: Robot) -> Clip:
    """Read either dialect; the clip is of Laikago, of the humanoid, or of the robot asked for.

    Raises:
        ClipError: not JSON, keys that neither dialect has, frames of unequal or wrong width.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClipError(f"{path} is not JSON ({short(str(error))})") from None
    if not isinstance(document, dict) or "Frames" not in document:
        raise ClipError(f"{path} is no clip: a JSON object with Frames is expected")
    frames = _frames(document["Frames"], path)
    if "FrameDuration" in document:
        return _motion_imitation(document, frames, path, robot)
    if "Loop" in document:
        return _deep_mimic(document, frames, path, robot)
    raise ClipError(
        f"{path} has neither FrameDuration (motion_imitation) nor Loop (DeepMimic): add the one "
        "that it is"
    )


def _frames(rows: Any, path: Path) -> np.ndarray:
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], list):
        raise ClipError(f"{path} has no frames: Frames must be a list of lists of numbers")
    if len(rows) > MAX_FRAMES:
        raise ClipError(f"{path} has {len(rows)} frames, more than {MAX_FRAMES}: cut it into parts")
    width = len(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            got = len(row) if isinstance(row, list) else "no list of"
            raise ClipError(f"{path}: frame {number} has {got} values, the first one has {width}")
        if not all(type(value) in (int, float) for value in row):
            raise ClipError(f"{path}: frame {number} holds something that is not a number")
    try:
        frames = np.array(rows, float)
    except OverflowError:
        raise ClipError(f"{path} holds a number that is too large") from None
    large = abs(frames) > LARGEST
    if (large & np.isfinite(frames)).any():
        value = frames[large][0]
        raise ClipError(f"{path} holds {value:.3g}: no position, angle or time is that large")
    return frames


def _setting(document: dict[str, Any], key: str, kinds: tuple[type, ...], path: Path) -> Any:
    value = document[key]
    if type(value) not in kinds or abs(value) > LARGEST:
        raise ClipError(f"{path}: {key} is {short(value)}, expected {kinds[-1].__name__}")
    return value


def _motion_imitation(
    document: dict[str, Any], frames: np.ndarray, path: Path, robot: Robot
) -> Clip:
    mode = document.get("LoopMode", "Clamp")
    if mode not in ("Wrap", "Clamp"):
        raise ClipError(f"{path}: LoopMode is {short(mode)}: it is Wrap or Clamp")
    frame_time = float(_setting(document, "FrameDuration", (int, float), path))
    flags = {
        key: bool(_setting(document, key, (int, bool), path)) if key in document else False
        for key in ("EnableCycleOffsetPosition", "EnableCycleOffsetRotation")
    }
    source = robot
    if frames.shape[1] == 19 and _stands_y_up(frames[:, 3:7]):
        source = get_robot("laikago")
    if any(source.spherical) or frames.shape[1] != 7 + len(source.joints):
        raise ClipError(
            f"{path} has frames of {frames.shape[1]} values; {source.name} needs "
            f"{7 + len(source.joints)}: root position 3, quaternion xyzw 4, and its joints"
        )
    clip = Clip(
        name=path.stem,
        robot=source.name,
        joint_names=source.joints,
        dt=frame_time,
        root_pos=frames[:, :3],
        root_quat=frames[:, 3:7],
        q=frames[:, 7:] * source.sign - source.offset,
        loop=mode == "Wrap",
        cycle_position=flags["EnableCycleOffsetPosition"],
        cycle_heading=flags["EnableCycleOffsetRotation"],
        source=path.name,
        licence=UNKNOWN_LICENCE,
    ).check()
    # the root there is what Bullet moves: the centre of mass, which is Laikago's base_origin
    return replace(clip, root_quat=_without_base(clip.root_quat, source))


def _deep_mimic(document: dict[str, Any], frames: np.ndarray, path: Path, robot: Robot) -> Clip:
    loop = document["Loop"]
    if loop not in ("wrap", "none"):
        raise ClipError(f"{path}: Loop is {short(loop)}: it is wrap or none")
    if frames.shape[1] == 1 + 19:
        clip = _laikago_walk(frames[:, 1:], path)
    elif frames.shape[1] == 1 + HUMANOID_COLUMNS:
        clip = _humanoid(frames[:, 1:], path)
    else:
        raise ClipError(
            f"{path} has frames of {frames.shape[1]} values: this dialect has 44 for the humanoid "
            "and 20 for Laikago"
        )
    clip = replace(clip, loop=loop == "wrap", source=path.name, licence=UNKNOWN_LICENCE)
    clip = _uniform(clip, frames[:, 0], path)
    turned = float(heading(multiply(clip.root_quat[-1], conjugate(clip.root_quat[0]))))
    return replace(clip, cycle_heading=clip.loop and abs(turned) > TURNING)


def _laikago_walk(frames: np.ndarray, path: Path) -> Clip:
    robot = get_robot("laikago")
    clip = Clip(
        name=path.stem,
        robot=robot.name,
        joint_names=robot.joints,
        dt=1.0,
        root_pos=frames[:, :3],
        root_quat=frames[:, 3:7],
        q=frames[:, 7:],
    ).check()
    # it walks towards +y; ours walk towards +x
    quarter = about_z(np.full(clip.num_frames, -0.5 * math.pi))
    pos = rotate(quarter, clip.root_pos)
    return replace(
        clip,
        root_pos=pos,
        root_quat=multiply(quarter, _without_base(clip.root_quat, robot)),
    )


def _humanoid(frames: np.ndarray, path: Path) -> Clip:
    robot = get_robot("humanoid")
    q, column, at = np.empty((len(frames), robot.nq)), 7, 0
    for spherical in robot.is_spherical:
        width = 4 if spherical else 1
        values = frames[:, column : column + width]
        q[:, at : at + width] = _nearly_unit(values[:, [1, 2, 3, 0]]) if spherical else values
        column, at = column + width, at + width
    clip = Clip(
        name=path.stem,
        robot=robot.name,
        joint_names=robot.joints,
        dt=1.0,
        root_pos=frames[:, :3],
        root_quat=frames[:, [4, 5, 6, 3]],
        q=q,
        spherical=robot.spherical,
    ).check()
    # y up to z up: a quarter turn about x, which is also how the model's base lies in ours
    upright = np.array(robot.base_rotation)
    pos, quat = clip.root_pos, clip.root_quat
    return replace(
        clip,
        root_pos=rotate(np.broadcast_to(upright, quat.shape), pos),
        root_quat=_without_base(multiply(upright[None], quat), robot),
    )


def _nearly_unit(quats: np.ndarray) -> np.ndarray:
    """Normalize quaternions (F, 4) that are off by at most `LOOSE`; leave others to the check."""
    norm = np.linalg.norm(quats, axis=1, keepdims=True)
    return quats / np.where(abs(norm - 1) < LOOSE, norm, 1)


def _uniform(clip: Clip, durations: np.ndarray, path: Path) -> Clip:
    """Give the frames their durations, in seconds; the last frame's means nothing.

    Frames that last differently are resampled at the shortest duration.
    """
    steps = durations[:-1]
    if len(steps) == 0 or not (steps >= FRAME_TIMES[0]).all():
        raise ClipError(
            f"{path}: each frame but the last needs a duration of {FRAME_TIMES[0]} s or more"
        )
    shortest = float(steps.min())
    if np.ptp(steps) < 1e-5:
        return replace(clip, dt=float(steps.mean()))
    times = np.concatenate([[0.0], np.cumsum(steps)])
    count = math.ceil(times[-1] / shortest - 1e-6)
    if count > MAX_FRAMES:
        raise ClipError(f"{path} has frames too unequal in duration: resample it evenly")
    return resample(clip, np.linspace(0.0, times[-1], count + 1), times)


def resample(clip: Clip, times: np.ndarray, frame_times: np.ndarray) -> Clip:
    """Return the clip at other, even times; its frames are at `frame_times` (F,)."""
    place = np.interp(times, frame_times, np.arange(len(frame_times)))
    once = replace(clip, dt=1.0, loop=False, cycle_position=False, cycle_heading=False)
    pose = ClipSet([once], get_robot(clip.robot)).pose(np.zeros(len(times), np.int64), place)
    origin = clip.root_pos[0] * (1.0, 1.0, 0.0)
    return replace(
        clip,
        dt=float(times[1] - times[0]),
        root_pos=pose.root_pos + origin,
        root_quat=pose.root_quat,
        q=pose.q,
    )


def _without_base(quat: np.ndarray, robot: Robot) -> np.ndarray:
    """Turn orientations of the model's base into orientations of ours."""
    return multiply(quat, conjugate(np.array(robot.base_rotation))[None])


def _stands_y_up(quats: np.ndarray) -> bool:
    """Whether the y axis of the root points up, as in Laikago's URDF, rather than the z axis."""
    if not np.isfinite(quats).all():
        return False  # the check of the clip will say so
    x, y, z, w = quats.T
    y_up, z_up = 2 * (y * z + w * x), w * w - x * x - y * y + z * z
    return float(np.mean(y_up)) > float(np.mean(z_up))
