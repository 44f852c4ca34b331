"""Where clips come from: names of gaits and of pybullet_data's motions, and files in five formats.

    load_clip("trot", robot)                    a generated gait
    load_clip("trot:speed=.8,period=.4", robot)
    load_clip({"gait": "trot", "speed": 0.8}, robot)
    load_clip("laikago_walk", robot)            a motion that pybullet_data brings
    load_clip("motions/dog_pace.txt", robot)    your own file
    load_clip({"file": "motions/dog_pace.txt", "mirror": True, "scale": 0.7}, robot)

A clip of another quadruped is retargeted. Files are read as plain numbers: nothing in them runs,
and sizes are checked before anything is believed. docs/clips.md describes the formats.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.envs.imitation.clip_checks import FRAME_TIMES, MAX_FRAMES
from rlgym.envs.imitation.clip_json import UNKNOWN_LICENCE, parse_json_clip
from rlgym.envs.imitation.clips import Clip
from rlgym.envs.imitation.gaits import GAITS, generate, parse_gait
from rlgym.envs.imitation.retarget import mirror, retarget
from rlgym.envs.imitation.rotations import conjugate, multiply, normalize, rotate
from rlgym.envs.physics.robots import Robot, get_robot
from rlgym.errors import ClipError, ConfigError
from rlgym.settings import change, short, suggest

MAX_BYTES = 64 << 20
"""Of a file, and of what an archive unpacks to; an hour of a humanoid at 50 Hz takes 60 MB."""
SUFFIXES = (".txt", ".json", ".csv", ".npz")
MAX_TEXT = 200
"""Characters of a name, source or licence that are kept."""
FORMAT = "rlgym-clip"

Source = str | os.PathLike[str] | Mapping[str, Any] | Clip


@dataclass(frozen=True)
class Treatment:
    """What is done to a clip that is read, beside making it the robot's own."""

    fps: float = 30.0
    """Frames per second of a file that does not say (.csv)."""
    scale: float | None = None
    """Factor of lengths; None: 1, or the ratio of the legs' lengths for another robot's clip."""
    level: bool = False
    """Keep the base level, turning only about the vertical."""
    mirror: bool = False
    """Exchange left and right."""


def load_clip(source: Source, robot: Robot | str, treatment: Treatment | None = None) -> Clip:
    """Return a clip for a robot.

    Args:
        source: A gait with or without parameters, a motion of pybullet_data, a path, a mapping
            {"gait": ..., parameters} or {"file": path or name, fields of `Treatment`}, or a clip.
        robot: Whose joints the clip shall move.
        treatment: What is done to it.

    Raises:
        ClipError: there is no such clip, it is damaged, or it cannot be made the robot's.
    """
    robot, treatment = get_robot(robot), treatment or Treatment()
    if isinstance(source, Mapping):
        settings = dict(source)
        if "gait" in settings:
            return generate(robot, str(settings.pop("gait")), settings)
        if "file" not in settings:
            raise ClipError(
                f"a clip as a mapping needs the key 'gait' or 'file', got {short(settings)}"
            )
        name = str(settings.pop("file"))
        try:
            treatment = change(treatment, settings, {}, lambda path: f"clip {name}: {path}")
        except ConfigError as error:
            raise ClipError(str(error)) from None
        return load_clip(name, robot, treatment)
    if isinstance(source, Clip):
        clip = source.check()
    else:
        clip = find_clip(os.fspath(source), robot, treatment.fps)
    if clip.robot != robot.name or treatment.scale is not None or treatment.level:
        known = get_robot(clip.robot)
        clip = retarget(clip, known, robot, scale=treatment.scale, level=treatment.level)
    clip = clip.for_robot(robot)
    return mirror(clip, robot) if treatment.mirror else clip


def clip_names() -> list[str]:
    """Return the names that `load_clip` knows, gaits first."""
    return [*GAITS, *bundled_clips()]


def bundled_clips() -> dict[str, Path]:
    """Return the motions inside pybullet_data, by name."""
    import pybullet_data

    folder = Path(pybullet_data.getDataPath()) / "data" / "motions"
    return {path.stem: path for path in sorted(folder.rglob("*.txt"))}


def find_clip(name: str, robot: Robot, fps: float = 30.0) -> Clip:
    """Return a clip by name or path, of whatever robot it is; gaits are made for `robot`.

    Raises:
        ClipError: there is no such clip, or it is damaged.
    """
    gait = name.partition(":")[0]
    if gait in GAITS:
        return generate(robot, *parse_gait(name))
    bundled = bundled_clips()
    if name in bundled:
        clip = read_clip(bundled[name], robot)
        return replace(clip, source="pybullet_data", licence="pybullet_data (zlib)")
    is_path = Path(name).suffix in SUFFIXES or "/" in name or "\\" in name
    if is_path or os.path.exists(name):
        return read_clip(Path(name), robot, fps)
    raise ClipError(f"there is no clip '{short(name)[1:-1]}': {suggest(gait, clip_names())}")


# ----- Files -------------------------------------------------------------------------------------


def read_clip(path: Path, robot: Robot, fps: float = 30.0) -> Clip:
    """Read a clip file; the clip may be of another robot than the one asked for.

    Args:
        path: .txt or .json (motion_imitation, DeepMimic), .csv, .npz.
        robot: Whose joints are meant where the file does not name any.
        fps: Frames per second of a .csv.

    Raises:
        ClipError: no such file, too large, or not what its suffix says.
    """
    if path.suffix not in SUFFIXES:
        raise ClipError(f"{path} is no clip file: their names end in {', '.join(SUFFIXES)}")
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ClipError(f"{path} is not a file: name one of {', '.join(SUFFIXES)}")
        if size > MAX_BYTES:
            raise ClipError(f"{path} has {size >> 20} MB, more than {MAX_BYTES >> 20}: cut it")
        content = path.read_bytes()
    except OSError as error:
        raise ClipError(f"{path}: {error.strerror or error}") from None
    if path.suffix == ".npz":
        clip = _from_npz(content, path, robot)
    elif path.suffix == ".csv":
        clip = _from_csv(content, path, robot, fps)
    else:
        clip = parse_json_clip(content, path, robot)
    return replace(clip.check(), root_quat=normalize(clip.root_quat))


def save_clip(clip: Clip, path: str | os.PathLike[str]) -> Path:
    """Write a clip as .npz, whole or not at all.

    Raises:
        ClipError: the name does not end in .npz, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ClipError(f"{path}: clips are written as .npz, so the name must end in .npz")
    clip.check()
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "version": np.array(1),
        "name": np.array(clip.name),
        "robot": np.array(clip.robot),
        "joint_names": np.array(clip.joint_names),
        "spherical": np.array(clip.spherical, bool),
        "fps": np.array(1 / clip.dt),
        "loop": np.array(clip.loop),
        "cycle_position": np.array(clip.cycle_position),
        "cycle_heading": np.array(clip.cycle_heading),
        "root_pos": clip.root_pos,
        "root_quat": clip.root_quat,
        "joint_pos": clip.q,
        "source": np.array(clip.source),
        "licence": np.array(clip.licence),
        "may_ship": np.array(clip.may_ship),
    }
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(staging, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(staging, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise ClipError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def read_arrays(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """Read an .npz archive of plain arrays, without pickles and without trusting its headers.

    Raises:
        ClipError: no archive, objects instead of numbers, more data than `MAX_BYTES`.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > 64 or sum(member.file_size for member in members) > MAX_BYTES:
                raise ClipError(f"{path} unpacks to more than {MAX_BYTES >> 20} MB: cut it")
            for member in members:
                with archive.open(member) as stream:
                    data = stream.read(member.file_size + 1)
                arrays[member.filename.removesuffix(".npy")] = _array(data)
    except (ValueError, TypeError, KeyError, SyntaxError, EOFError, RecursionError) as error:
        if isinstance(error, ClipError):
            raise
        raise ClipError(f"{path} is not a plain .npz file ({short(str(error))})") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
        raise ClipError(f"{path} is not an .npz archive ({short(str(error))})") from None
    except Exception as error:  # zlib.error and lzma's are no common family
        raise ClipError(f"{path} is a damaged archive ({short(str(error))})") from None
    return arrays


def _array(data: bytes) -> np.ndarray:
    """Parse an .npy file whose header claims exactly the data that follow."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of .npy")
    shape, fortran, dtype = read(stream)
    rest = data[stream.tell() :]
    if dtype.kind not in "biufU" or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError("objects, or other data than the header says")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")


def _from_npz(content: bytes, path: Path, robot: Robot) -> Clip:
    arrays = read_arrays(content, path)
    if "root_pos" in arrays:
        return _from_ours(arrays, path, robot)
    if {"joint_pos", "body_pos_w", "body_quat_w"} <= arrays.keys():
        return _from_mjlab(arrays, path, robot)
    raise ClipError(
        f"{path} holds {short(sorted(arrays))}: a clip has root_pos, root_quat, joint_pos, "
        "joint_names and fps; mjlab's has joint_pos, body_pos_w, body_quat_w and fps"
    )


def _from_ours(arrays: Mapping[str, np.ndarray], path: Path, robot: Robot) -> Clip:
    """What `save_clip` writes, or a person by `numpy.savez`: only five arrays are required."""
    names = tuple(str(name) for name in _get(arrays, "joint_names", path, "U", 1))
    spherical = tuple(bool(flag) for flag in arrays.get("spherical", np.zeros(0, bool)).flat)

    def text(key: str, default: str) -> str:
        value = str(arrays[key].reshape(-1)[0]) if arrays.get(key, np.zeros(0)).size else ""
        return "".join(filter(str.isprintable, value))[:MAX_TEXT] or default

    def flag(key: str, default: bool) -> bool:
        return bool(_number(arrays, key, path)) if key in arrays else default

    return Clip(
        name=text("name", path.stem),
        robot=text("robot", robot.name),
        joint_names=names,
        dt=_frame_time(_number(arrays, "fps", path), path),
        root_pos=_get(arrays, "root_pos", path, "fiu", 2).astype(float),
        root_quat=_get(arrays, "root_quat", path, "fiu", 2).astype(float),
        q=_get(arrays, "joint_pos", path, "fiu", 2).astype(float),
        loop=flag("loop", False),
        cycle_position=flag("cycle_position", True),
        cycle_heading=flag("cycle_heading", False),
        spherical=spherical,
        source=text("source", str(path.name)),
        licence=text("licence", UNKNOWN_LICENCE),
        may_ship=flag("may_ship", False),
    )


def _from_mjlab(arrays: Mapping[str, np.ndarray], path: Path, robot: Robot) -> Clip:
    """What mjlab's and BeyondMimic's csv_to_npz write: body 0 is the root, quaternions wxyz.

    The file says nothing of the order of its joints: it is taken to be the robot table's, unless
    an array joint_names stands beside.
    """
    pos = _get(arrays, "body_pos_w", path, "fiu", 3)[:, 0].astype(float)
    quat = _get(arrays, "body_quat_w", path, "fiu", 3)[:, 0].astype(float)
    names = robot.joints
    if "joint_names" in arrays:
        names = tuple(str(name) for name in _get(arrays, "joint_names", path, "U", 1))
    angles = _get(arrays, "joint_pos", path, "fiu", 2).astype(float)
    if quat.shape[1:] != (4,) or pos.shape[1:] != (3,):
        raise ClipError(f"{path}: body_pos_w and body_quat_w need 3 and 4 columns per body")
    frame_time = _frame_time(_number(arrays, "fps", path), path)
    return _of_model(path, robot, names, frame_time, pos, quat[:, [1, 2, 3, 0]], angles)


def _from_csv(content: bytes, path: Path, robot: Robot, fps: float) -> Clip:
    """LAFAN1's layout, as BeyondMimic and Unitree use it: x y z, quaternion xyzw, joint angles.

    A first line of names (seven for the root, then the joints') puts the columns in order.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClipError(f"{path} is not a table of numbers ({error})") from None
    if len(rows) > MAX_FRAMES + 1:
        raise ClipError(f"{path} has {len(rows)} lines, more than {MAX_FRAMES}: cut it into parts")
    names = robot.joints
    if rows and not _is_number(rows[0][0]):
        names = tuple(name.strip() for name in rows.pop(0)[7:])
    widths = {len(row) for row in rows}
    if widths != {7 + len(names)}:
        raise ClipError(
            f"{path} has rows of {short(sorted(widths))} values; {robot.name} needs "
            f"{7 + len(names)}: x y z, a quaternion xyzw, and {len(names)} joint angles"
        )
    try:
        table = np.array(rows, float)
    except ValueError as error:
        raise ClipError(f"{path} is not a table of numbers ({short(str(error))})") from None
    parts = table[:, :3], table[:, 3:7], table[:, 7:]
    return _of_model(path, robot, names, _frame_time(fps, path), *parts)


def _of_model(
    path: Path,
    robot: Robot,
    names: tuple[str, ...],
    frame_time: float,
    pos: np.ndarray,
    quat: np.ndarray,
    angles: np.ndarray,
) -> Clip:
    """Turn a motion in the frames and angles of the robot's model file into ours."""
    clip = Clip(path.stem, robot.name, names, frame_time, pos, quat, angles, loop=False)
    clip = clip.check().for_robot(robot)
    if any(robot.spherical):
        raise ClipError(f"{path}: this format has no spherical joints, and {robot.name} has some")
    root_pos, root_quat = from_model_root(robot, pos, quat)
    return replace(
        clip,
        root_pos=root_pos,
        root_quat=root_quat,
        q=clip.q * robot.sign - robot.offset,  # sign is +-1, its own inverse
        source=path.name,
        licence=UNKNOWN_LICENCE,
    )


def from_model_root(
    robot: Robot, pos: np.ndarray, quat: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn poses of the model's base link into poses of our base frame."""
    origin = np.array(robot.base_origin)
    turned = multiply(quat, conjugate(np.array(robot.base_rotation))[None])
    return pos + rotate(quat, np.broadcast_to(origin, pos.shape)), turned


def _get(
    arrays: Mapping[str, np.ndarray], key: str, path: Path, kinds: str, axes: int
) -> np.ndarray:
    if key not in arrays:
        raise ClipError(f"{path} has no array '{key}': {suggest(key, arrays)}")
    array = arrays[key]
    if array.dtype.kind not in kinds or array.ndim != axes:
        kind = "texts" if kinds == "U" else "numbers"
        raise ClipError(
            f"{path}: '{key}' has {array.ndim} axes of {array.dtype}, expected {axes} of {kind}"
        )
    return array


def _number(arrays: Mapping[str, np.ndarray], key: str, path: Path) -> float:
    if key not in arrays:
        raise ClipError(f"{path} has no '{key}': {suggest(key, arrays)}")
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ClipError(f"{path}: '{key}' is not one number")
    return float(array.reshape(-1)[0])


def _frame_time(fps: float, path: Path) -> float:
    if not 1 / FRAME_TIMES[1] <= fps <= 1 / FRAME_TIMES[0]:
        raise ClipError(f"{path}: {fps} frames per second is no frame rate: say --fps 30 or such")
    return 1 / fps


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
