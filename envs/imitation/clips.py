"""Reference motions: one clip as frames, and a set of clips sampled at any times as one batch.

A clip is in the robot's canonical convention (see `rlgym.envs.physics.robots`): z up, x forward,
quaternions xyzw, joints by name. The last frame of a looping clip is its first one again, so F
frames last (F - 1) * dt, as in google-research/motion_imitation (arXiv:2004.00784).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from rlgym.envs.imitation.arrays import Array, namespace
from rlgym.envs.imitation.clip_checks import (
    check_frames,
    check_limits,
    check_numbers,
    refuse_joints,
)
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.rotations import (
    about_z,
    angular_velocity,
    conjugate,
    heading,
    multiply,
    rotate_z,
    rotation_vector,
)
from rlgym.envs.physics.robots import Robot
from rlgym.errors import ClipError


@dataclass(frozen=True, eq=False)  # arrays have no single ==
class Clip:
    """One reference motion of one robot, F frames, numpy float64."""

    name: str
    robot: str
    """Name of the robot whose joints these are."""
    joint_names: tuple[str, ...]
    """As in the robot's model file, in the order of the columns of `q`."""
    dt: float
    """Seconds between frames."""
    root_pos: np.ndarray
    """(F, 3) origin of the base link, m."""
    root_quat: np.ndarray
    """(F, 4) xyzw."""
    q: np.ndarray
    """(F, nq) joint positions: a hinge has one column in rad, a spherical joint four (xyzw)."""
    loop: bool = True
    """The motion goes on from the start when it is over."""
    cycle_position: bool = True
    """The next cycle goes on from where the last one ended, in x and y."""
    cycle_heading: bool = False
    """The next cycle goes on in the heading in which the last one ended."""
    spherical: tuple[bool, ...] = ()
    """Which joints are spherical; () = none."""
    source: str = ""
    """Where the motion comes from."""
    licence: str = ""
    may_ship: bool = False
    """Whether the licence lets the motion be passed on, for instance inside a policy's bundle."""

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.root_pos)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.num_frames - 1) * self.dt

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of `q` that each joint has."""
        flags = self.spherical or (False,) * len(self.joint_names)
        return tuple(4 if flag else 1 for flag in flags)

    def check(self) -> Clip:
        """Return the clip itself if it is sound.

        Raises:
            ClipError: wrong widths, NaN, non-unit quaternions, no duration, joints named twice.
        """
        check_frames(self)
        check_numbers(self)
        return self

    def for_robot(self, robot: Robot) -> Clip:
        """Return the clip with its joints in the robot's order.

        Raises:
            ClipError: the clip has other joints than the robot, or bends them far beyond limits.
        """
        if set(self.joint_names) != set(robot.joints):
            refuse_joints(self, robot)
        if self.joint_names == robot.joints:
            check_limits(self, robot)
            return self
        starts = dict(zip(self.joint_names, np.cumsum((0, *self.widths)), strict=False))
        widths = dict(zip(self.joint_names, self.widths, strict=True))
        columns = [starts[name] + k for name in robot.joints for k in range(widths[name])]
        spherical = tuple(widths[name] == 4 for name in robot.joints) if self.spherical else ()
        ordered = replace(self, joint_names=robot.joints, q=self.q[:, columns], spherical=spherical)
        check_limits(ordered, robot)
        return ordered


def require_may_ship(clips: Iterable[Clip]) -> None:
    """Refuse to pass on clips whose licence does not allow it.

    Raises:
        ClipError: names the clip, its licence and source.
    """
    for clip in clips:
        if not clip.may_ship:
            raise ClipError(
                f"clip '{clip.name}' must not be shipped (licence: {clip.licence or 'not stated'}; "
                f"source: {clip.source or 'not stated'}): leave it out, or train on a clip that "
                "may be, such as a generated gait"
            )


class Pose(NamedTuple):
    """Where a reference is; leading axes are those of the times asked for."""

    root_pos: Array
    root_quat: Array
    q: Array


@dataclass
class Ref:
    """What a reference does: `State` of the physics without contacts."""

    root_pos: Array
    """(B, 3)"""
    root_quat: Array
    """(B, 4)"""
    root_linvel: Array
    """(B, 3) m/s, world frame."""
    root_angvel: Array
    """(B, 3) rad/s, world frame."""
    q: Array
    """(B, nq)"""
    qd: Array
    """(B, nv) a hinge rad/s, a spherical joint three in its child's frame."""
    foot_pos: Array
    """(B, feet, 3) world frame."""


class _Place(NamedTuple):
    """Where in the tables a batch of times lies."""

    row: Array
    """Frame before the time."""
    blend: Array
    """(..., 1) share of the way to the next frame."""
    cycles: Array
    """Whole cycles before the time, as a float."""


class ClipSet:
    """Clips of one robot as tables, sampled for a whole batch with one gather.

    Between frames positions and velocities are linear and rotations are slerps, as in the original;
    velocities are forward differences of frames, that of the last frame being its predecessor's.
    A time beyond a looping clip goes on in the next cycle, moved (and turned) by the net motion of
    the cycles before it, in closed form; a time beyond another clip stays at its end.
    """

    def __init__(self, clips: Sequence[Clip], robot: Robot) -> None:
        """Build the tables.

        Raises:
            ClipError: no clip, an unsound one, or one of another robot.
        """
        if not clips:
            raise ClipError("a set of clips needs at least one")
        self.clips = tuple(clip.check().for_robot(robot) for clip in clips)
        self.robot = robot
        self.names = tuple(clip.name for clip in self.clips)
        tables = [_Tables(clip) for clip in self.clips]
        frames = np.array([clip.num_frames for clip in self.clips])
        self.num_joints = self.clips[0].q.shape[1]
        self.duration: Array = np.array([clip.duration for clip in self.clips])
        """(C,) seconds."""
        self.looping: Array = np.array([clip.loop for clip in self.clips])
        """(C,) bool."""
        self.mean_pose: Array = np.stack([_mean_pose(clip) for clip in self.clips])
        """(C, nq) mean of the joints' positions over a clip."""
        self._poses: Array = np.concatenate([table.poses() for table in tables])
        self._velocities: Array = np.concatenate([table.velocities() for table in tables])
        self._start: Array = np.cumsum(frames) - frames
        self._last: Array = (frames - 1).astype(float)
        self._rate: Array = np.array([1 / clip.dt for clip in self.clips])
        shifts = [_cycle_shift(clip) for clip in self.clips]
        self._shift: Array = np.stack([shift for shift, _ in shifts])
        self._turn: Array = np.array([turn for _, turn in shifts])
        self._turns = bool(self._turn.any())
        self._moves = bool(self._shift.any())
        self._all_loop = bool(self.looping.all())
        self._linear = tables[0].linear.shape[1]
        self._quats = tables[0].quats.shape[1]
        self._columns: Array = _joint_columns(self.clips[0].widths)

    def to(self, device: Any) -> ClipSet:
        """Return the set as torch float32 tensors on a device."""
        import torch

        moved = object.__new__(ClipSet)
        moved.__dict__.update(self.__dict__)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                kind = torch.float32 if value.dtype == np.float64 else None
                setattr(moved, name, torch.as_tensor(value, dtype=kind, device=device))
        return moved

    def over(self, clip_id: Array, t: Array) -> Array:
        """(B,) bool: the clip does not loop and its end is reached."""
        return ~self.looping[clip_id] & (t >= self.duration[clip_id])

    def pose(self, clip_id: Array, t: Array) -> Pose:
        """Return poses, for instance of frames ahead.

        Args:
            clip_id: (B,) index of the clip of each row.
            t: (B,) or (B, K) seconds since its start.

        Returns:
            Arrays (B, ...) or (B, K, ...).
        """
        clip_id = clip_id if t.ndim == 1 else clip_id[:, None]
        return self._pose(clip_id, self._place(clip_id, t))

    def sample(self, clip_id: Array, t: Array) -> Ref:
        """Return the reference of each row at its time.

        Args:
            clip_id: (B,) index of the clip of each row.
            t: (B,) seconds since its start.
        """
        place = self._place(clip_id, t)
        root_pos, root_quat, q = self._pose(clip_id, place)
        velocity = self._velocities[place.row]
        half = velocity.shape[-1] // 2
        velocity = velocity[..., :half] + place.blend * velocity[..., half:]
        linvel, angvel = velocity[..., 0:3], velocity[..., 3:6]
        if self._turns:
            xp: Any = namespace(t)
            turn = place.cycles * self._turn[clip_id]
            cos, sin = xp.cos(turn), xp.sin(turn)
            linvel, angvel = rotate_z(cos, sin, linvel), rotate_z(cos, sin, angvel)
        feet = foot_positions(self.robot, root_pos, root_quat, q)
        return Ref(root_pos, root_quat, linvel, angvel, q, velocity[..., 6:], feet)

    def _place(self, clip_id: Array, t: Array) -> _Place:
        xp: Any = namespace(t)
        last = self._last[clip_id]
        frame = t * self._rate[clip_id]
        cycles = xp.floor(frame / last)
        if not self._all_loop:
            cycles = xp.where(self.looping[clip_id], cycles, 0.0 * cycles)
        frame = xp.clip(frame - cycles * last, 0.0 * last, last)
        before = xp.minimum(xp.floor(frame), last - 1)
        row = self._start[clip_id] + _whole(before)
        return _Place(row, (frame - before)[..., None], cycles)

    def _pose(self, clip_id: Array, place: _Place) -> Pose:
        xp: Any = namespace(place.blend)
        table = self._poses[place.row]
        linear, quats = self._linear, 4 * self._quats
        flat = table[..., :linear] + place.blend * table[..., linear : 2 * linear]
        table = table[..., 2 * linear :]
        angle = place.blend * table[..., 2 * quats :]
        if self._quats == 1:
            quat = xp.cos(angle) * table[..., :4] + xp.sin(angle) * table[..., 4:8]
            root_pos, root_quat, q = flat[..., :3], quat, flat[..., 3:]
        else:
            shape = (*table.shape[:-1], self._quats, 4)
            start, across = table[..., :quats], table[..., quats : 2 * quats]
            turned = xp.cos(angle)[..., None] * start.reshape(shape)
            turned = turned + xp.sin(angle)[..., None] * across.reshape(shape)
            root_pos, root_quat = flat[..., :3], turned[..., 0, :]
            joints = turned[..., 1:, :].reshape((*table.shape[:-1], quats - 4))
            q = xp.concatenate([flat[..., 3:], joints], -1)[..., self._columns]
        return Pose(*self._continued(clip_id, place.cycles, root_pos, root_quat), q)

    def _continued(
        self, clip_id: Array, cycles: Array, root_pos: Array, root_quat: Array
    ) -> tuple[Array, Array]:
        """Move a pose of the first cycle into the cycle that it belongs to."""
        if not (self._turns or self._moves):
            return root_pos, root_quat
        xp: Any = namespace(root_pos)
        shift = self._shift[clip_id]
        if not self._turns:
            return root_pos + cycles[..., None] * shift, root_quat
        # sum of R(i * turn) shift for i = 0 .. n-1, a geometric series of plane rotations
        turn = self._turn[clip_id]
        half = 0.5 * turn
        small = abs(half) < 1e-7
        ratio = xp.sin(cycles * half) / xp.where(small, 1.0 + half, xp.sin(half))
        ratio = xp.where(small, cycles, ratio)
        middle, turned = (cycles - 1) * half, cycles * turn
        moved = ratio[..., None] * rotate_z(xp.cos(middle), xp.sin(middle), shift)
        root_pos = rotate_z(xp.cos(turned), xp.sin(turned), root_pos) + moved
        return root_pos, multiply(about_z(turned), root_quat)


class _Tables:
    """Frames of one clip, split into what is blended linearly and what is a rotation."""

    def __init__(self, clip: Clip) -> None:
        starts = np.cumsum((0, *clip.widths))[:-1]
        hinges = [start for start, width in zip(starts, clip.widths, strict=True) if width == 1]
        balls = [start for start, width in zip(starts, clip.widths, strict=True) if width == 4]
        origin = clip.root_pos[0] * (1.0, 1.0, 0.0)
        self.clip = clip
        self.linear = np.concatenate([clip.root_pos - origin, clip.q[:, hinges]], 1)
        quats = [clip.root_quat, *(clip.q[:, start : start + 4] for start in balls)]
        self.quats = np.stack([_continuous(values) for values in quats], 1)

    def poses(self) -> np.ndarray:
        """(F, 2 L + 9 Q): values, steps to the next frame; start, across, angle of rotations.

        With start s, across a (a unit quaternion normal to s) and angle w, a slerp is
        cos(w u) s + sin(w u) a for u from 0 to 1.
        """
        step = np.diff(self.linear, axis=0, append=self.linear[-1:])
        start = self.quats
        end = np.concatenate([start[1:], start[-1:]])
        dot = np.clip((start * end).sum(-1, keepdims=True), -1, 1)
        across = end - dot * start
        length = np.linalg.norm(across, axis=-1, keepdims=True)
        across = across / np.where(length < 1e-12, 1, length)
        angle = np.arctan2(length, dot)[..., 0]
        count = len(start)
        flat = (start.reshape(count, -1), across.reshape(count, -1), angle)
        return np.concatenate([self.linear, step, *flat], 1)

    def velocities(self) -> np.ndarray:
        """(F, 2 V): velocities at the frame, and their steps to the next one."""
        clip, dt = self.clip, self.clip.dt
        linear = np.diff(self.linear, axis=0) / dt
        before, after = self.quats[:-1], self.quats[1:]
        turning = rotation_vector(multiply(conjugate(before), after)) / dt  # in the child's frame
        parts = [linear[:, :3], angular_velocity(before[:, 0], after[:, 0], dt)]
        hinge, ball = 3, 1
        for width in clip.widths:
            if width == 1:
                parts.append(linear[:, hinge : hinge + 1])
                hinge += 1
            else:
                parts.append(turning[:, ball])
                ball += 1
        values = np.concatenate(parts, 1)
        values = np.concatenate([values, values[-1:]])
        return np.concatenate([values, np.diff(values, axis=0, append=values[-1:])], 1)


def _continuous(quats: np.ndarray) -> np.ndarray:
    """Normalize (F, 4), each sign chosen so that neighbours are on the same side."""
    quats = quats / np.linalg.norm(quats, axis=-1, keepdims=True)
    flips = np.cumprod(np.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0))
    first = 1.0 if quats[0, 3] >= 0 else -1.0
    return quats * (first * np.concatenate([[1.0], flips]))[:, None]


def _joint_columns(widths: Sequence[int]) -> np.ndarray:
    """(nq,) where each column of q stands in [hinges, then balls]."""
    hinges, columns = 0, []
    balls = sum(width == 1 for width in widths)
    for width in widths:
        if width == 1:
            columns.append(hinges)
            hinges += 1
        else:
            columns += range(balls, balls + 4)
            balls += 4
    return np.array(columns, np.int64)


def _mean_pose(clip: Clip) -> np.ndarray:
    """(nq,) of the frames, the last frame of a loop counting as the first one that it repeats."""
    q = clip.q[:-1] if clip.loop else clip.q
    mean = q.mean(0)
    for start, width in zip(np.cumsum((0, *clip.widths)), clip.widths, strict=False):
        if width == 4:
            mean[start : start + 4] = _continuous(q[:, start : start + 4]).mean(0)
            mean[start : start + 4] /= np.linalg.norm(mean[start : start + 4])
    return mean


def _cycle_shift(clip: Clip) -> tuple[np.ndarray, float]:
    """Net motion (3,) in x and y, and net change of heading, of one cycle."""
    shift, turn = np.zeros(3), 0.0
    if clip.loop and clip.cycle_position:
        shift[:2] = clip.root_pos[-1, :2] - clip.root_pos[0, :2]
    if clip.loop and clip.cycle_heading:
        turn = float(heading(multiply(clip.root_quat[-1], conjugate(clip.root_quat[0]))))
    return shift, turn


def _whole(values: Array) -> Array:
    """Whole numbers held as floats, as indices."""
    return values.astype(np.int64) if isinstance(values, np.ndarray) else values.long()
