"""The motion that a policy imitates: a clip, where it lies in the world, and what comes next of it.

The same numbers as in training (`rlgym.envs.imitation.clips` and `episode`): between frames
positions are linear and rotations are slerps; a clip that loops goes on where it ended.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import BundleError, DeployError
from .rotations import (
    about_z,
    conjugate,
    heading,
    multiply,
    rotate_z,
    standardize,
)

FIELDS = ("root_pos", "root_quat", "q")
"""Arrays of a clip: (F, 3) m, (F, 4) xyzw, (F, nq) rad."""


class Clip:
    """Frames of a motion, sampled at any time.

    Args:
        about: its entry in the manifest's targets["clips"].
        arrays: of `FIELDS`.
        spherical: which joints have four columns in q.

    Raises:
        BundleError: the arrays are not those of the motion that the policy was trained on.
    """

    def __init__(
        self, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], spherical: Sequence[bool]
    ) -> None:
        name = about["name"]
        pos, quat, q = (np.asarray(arrays[field], np.float64) for field in FIELDS)
        width = sum(4 if ball else 1 for ball in spherical)
        frames = int(about["frames"])
        if not (frames > 1 and [a.shape for a in (pos, quat, q)] == _shapes(frames, width)):
            raise BundleError(f"clip '{name}' has arrays of other sizes than the manifest says")
        if fingerprint(float(about["dt"]), pos, quat, q) != about["sha256"]:
            raise BundleError(
                f"this is not the clip '{name}' that the policy was trained on (its SHA-256 "
                "differs): give that one, or train on this one"
            )
        self.name: str = name
        self.action_offset = np.array(about["action_offset"], np.float64)
        """(nv,) rad: what an action of zero asks for while this clip is imitated."""
        self.loop = bool(about["loop"])
        self._last, self._rate = frames - 1, 1.0 / float(about["dt"])
        self.duration = self._last * float(about["dt"])
        """Seconds from the first frame to the last."""
        starts = np.cumsum([0, *(4 if ball else 1 for ball in spherical)])
        pairs = list(zip(starts, spherical, strict=False))
        self._hinges = [int(at) for at, ball in pairs if not ball]
        self._balls = [int(at) + k for at, ball in pairs if ball for k in range(4)]
        self._linear = np.concatenate([pos - pos[0] * (1.0, 1.0, 0.0), q[:, self._hinges]], 1)
        balls = q[:, self._balls].reshape(frames, -1, 4)
        self._quats = _continuous(np.concatenate([quat[:, None], balls], 1))
        self._width = width
        self._shift, self._turn = np.zeros(3), 0.0
        if self.loop and about["cycle_position"]:
            self._shift[:2] = pos[-1, :2] - pos[0, :2]
        if self.loop and about["cycle_heading"]:
            self._turn = heading(multiply(quat[-1], conjugate(quat[0])))

    def pose(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return root positions (K, 3), orientations (K, 4), joints (K, nq) at (K,) seconds."""
        frame = np.asarray(time, np.float64) * self._rate
        cycles = np.floor(frame / self._last) if self.loop else np.zeros_like(frame)
        frame = np.clip(frame - cycles * self._last, 0.0, self._last)
        row = np.minimum(np.floor(frame), self._last - 1).astype(int)
        share = (frame - row)[:, None]
        linear = self._linear[row] + share * (self._linear[row + 1] - self._linear[row])
        quats = _slerp(self._quats[row], self._quats[row + 1], share)
        q = np.empty((len(row), self._width))
        q[:, self._hinges] = linear[:, 3:]
        q[:, self._balls] = quats[:, 1:].reshape(len(row), -1)
        pos, quat = self._continued(cycles, linear[:, :3], quats[:, 0])
        return pos, quat, q

    def _continued(
        self, cycles: np.ndarray, pos: np.ndarray, quat: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move poses of the first cycle into the cycles that they belong to."""
        if not self._turn:
            return pos + cycles[:, None] * self._shift, quat
        # sum of R(i * turn) shift for i = 0 .. n-1, a geometric series of plane rotations
        half = 0.5 * self._turn
        ratio = np.sin(cycles * half) / math.sin(half) if abs(half) >= 1e-7 else cycles
        out_pos, out_quat = np.empty_like(pos), np.empty_like(quat)
        for k, n in enumerate(cycles.tolist()):
            moved = ratio[k] * rotate_z((n - 1) * half, self._shift)
            out_pos[k] = rotate_z(n * self._turn, pos[k]) + moved
            out_quat[k] = multiply(about_z(n * self._turn), quat[k])
        return out_pos, out_quat


class Reference:
    """Where a clip is in time and lies in the world, as in an episode of training.

    Args:
        targets: the manifest's section.
        robot: the manifest's section.
        clip: the one to imitate.
        control_dt: seconds of a control step.
    """

    def __init__(
        self, targets: Mapping[str, Any], robot: Mapping[str, Any], clip: Clip, control_dt: float
    ) -> None:
        self.clip, self._dt = clip, control_dt
        self._ahead = control_dt * np.array(targets["steps"], np.float64)
        self._from_robot = targets["origin"] == "robot"
        self._hold_first = bool(targets["hold_first_step"])
        self._left = targets["start_axis"] == "left"
        self._sync = bool(targets["sync_position"])
        self._warm_up = float(targets["warm_up"])
        self._model = None
        if targets["convention"] == "model":
            spherical = robot["spherical"]
            widths = [4 if ball else 1 for ball in spherical]
            self._model = (
                np.array(robot["base_rotation"], np.float64),
                np.repeat(np.array(robot["sign"], np.float64), widths),
                np.repeat(np.array(robot["offset"], np.float64), widths),
            )
        _, quat, _ = clip.pose(np.zeros(1))
        self._standing = (
            np.array([0.0, 0.0, float(robot["init_height"])]),
            about_z(self.start_heading(quat[0])),
            np.array(robot["default_joint_pos"], np.float64),
        )
        self.begin(about_z(0.0), None)

    @property
    def over(self) -> bool:
        """The clip does not loop and its end is reached."""
        return not self.clip.loop and self.time >= self.clip.duration

    @property
    def time(self) -> float:
        """The clip's time now, s; below 0 while the reference still stands."""
        steps = max(self._step - 1, 0) if self._hold_first else self._step
        return self._start + self._dt * steps

    def start_heading(self, quat: np.ndarray) -> float:
        """Direction, rad, that an episode's first orientation (4,) counts as."""
        if not self._left:
            return heading(quat)
        half = math.sqrt(0.5)
        return heading(multiply(quat, np.array([0.0, 0.0, half, half]))) - 0.5 * math.pi

    def start_pose(self, start: float | None = None) -> np.ndarray:
        """Joints (nq) that a robot should stand in before `begin`."""
        return self._poses(np.array([self._first_time(start)]))[2][0]

    def begin(
        self, orientation: np.ndarray, position: np.ndarray | None, start: float | None = None
    ) -> None:
        """Lay the clip so that it begins where the robot is and looks.

        Args:
            orientation: (4,) of the robot.
            position: (3,) m, or None where it is not known.
            start: the clip's time, s; None: its beginning, after the warm-up if it has one.
        """
        self._step, self._start = 0, self._first_time(start)
        self._cycle = self._cycles()
        pos, quat, _ = self._poses(np.array([self.time]))
        self._yaw = self.start_heading(orientation) - self.start_heading(quat[0])
        self._offset = np.zeros(3)
        self._move(pos[0], position)

    def advance(self, orientation: np.ndarray, position: np.ndarray | None, steps: int = 1) -> None:
        """Go on by some control steps; at the end of a cycle, move the clip to the robot."""
        self._step += steps
        cycle = self._cycles()
        if cycle != self._cycle and self._sync:
            self._move(self._poses(np.array([self.time]))[0][0], position)
        self._cycle = cycle

    def targets(self, orientation: np.ndarray, position: np.ndarray | None) -> np.ndarray:
        """What comes next as the robot sees it: (steps * (7 + nq),).

        Args:
            orientation: (4,) as the robot's sensor shows it.
            position: (3,) m; counts only where targets are measured from the robot.

        Raises:
            DeployError: the position counts and is not known.
        """
        times = np.concatenate([[self.time], self.time + self._ahead])
        pos, quat, q = self._poses(times)
        pos = rotate_z(self._yaw, pos) + self._offset
        if self._from_robot and position is None:
            raise DeployError("the policy's targets are measured from the robot's position")
        origin = np.asarray(position, np.float64) if self._from_robot else pos[0]
        own = heading(orientation)
        pos = rotate_z(-own, pos[1:] - origin)
        quat, q = multiply(about_z(self._yaw), quat[1:]), q[1:]
        if self._model is not None:
            turn, sign, zero = self._model
            quat, q = multiply(quat, turn), sign * (q + zero)
        quat = standardize(multiply(about_z(-own), quat))
        return np.concatenate([pos, quat, q], 1).ravel()

    def _first_time(self, start: float | None) -> float:
        return -self._warm_up if start is None else start

    def _cycles(self) -> int:
        return math.floor(self.time / self.clip.duration) if self.clip.loop else 0

    def _poses(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The clip's poses; before its time 0, after a start with warm-up, the standing one."""
        pos, quat, q = self.clip.pose(times)
        if self._warm_up > 0.0 and times[0] < 0.0:
            early = times < 0.0
            pos[early], quat[early], q[early] = self._standing
        return pos, quat, q

    def _move(self, clip_pos: np.ndarray, position: np.ndarray | None) -> None:
        """Lay the point of the clip under the robot; heights stay the clip's."""
        place = np.zeros(3) if position is None else np.asarray(position, np.float64)
        self._offset = (place - rotate_z(self._yaw, clip_pos)) * (1.0, 1.0, 0.0)


def fingerprint(dt: float, pos: np.ndarray, quat: np.ndarray, q: np.ndarray) -> str:
    """SHA-256, hex, of what a clip makes a robot do, to 1e-6 m and rad.

    Of whole numbers (little-endian, 64 bits): the rounded millionths of frame time, root_pos,
    root_quat and q, row by row.
    """
    digest = hashlib.sha256()
    for part in (np.array([dt]), pos, quat, q):
        digest.update(np.rint(part * 1e6).astype("<i8").tobytes())
    return digest.hexdigest()


def _shapes(frames: int, width: int) -> list[tuple[int, int]]:
    return [(frames, 3), (frames, 4), (frames, width)]


def _continuous(quats: np.ndarray) -> np.ndarray:
    """Normalize (F, Q, 4), each sign chosen so that neighbours are on the same side."""
    quats = quats / np.linalg.norm(quats, axis=-1, keepdims=True)
    sides = np.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0)
    first = np.where(quats[:1, :, 3] >= 0, 1.0, -1.0)
    return quats * (first * np.concatenate([np.ones_like(first), np.cumprod(sides, 0)]))[..., None]


def _slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """From `a` (K, Q, 4) to `b` by a share (K, 1), at constant angular velocity."""
    dot = np.clip((a * b).sum(-1, keepdims=True), -1, 1)
    across = b - dot * a
    length = np.linalg.norm(across, axis=-1, keepdims=True)
    across = across / np.where(length < 1e-12, 1, length)
    angle = share[..., None] * np.arctan2(length, dot)
    return np.cos(angle) * a + np.sin(angle) * across
