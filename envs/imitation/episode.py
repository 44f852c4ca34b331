"""Where each slot is in its episode and in its clip, and where the reference stands in the world.

All state is arrays with one row per slot. What is random is drawn from the slot's seed and the
episode's number (`rlgym.envs.imitation.random`), so that arrays are all there is to save.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rlgym.envs.imitation.arrays import Array, choose_rows, constant, namespace, renewed
from rlgym.envs.imitation.clips import Clip, ClipSet, Pose, Ref
from rlgym.envs.imitation.kinematics import foot_positions
from rlgym.envs.imitation.random import uniform
from rlgym.envs.imitation.rotations import about_z, heading, heading_cos_sin, multiply, rotate_z
from rlgym.envs.imitation.spec import EpisodeSpec

STEP_BITS = 24
"""Of a draw's counter; the bits above are the episode's number."""
NEVER = 1 << 40
"""A step that no episode reaches."""

_CLIP, _WARM, _PHASE, _SWITCH, _NEXT_CLIP, _NEXT_PHASE, _NEXT_SWITCH = range(7)


class Rows:
    """The rows of a mask.

    Indices in numpy, where work should be in proportion to their number; all of them in torch,
    where shapes must not depend on data.
    """

    def __init__(self, mask: Array) -> None:
        """`mask`: (B,) bool."""
        self.mask = mask
        self.index = np.flatnonzero(mask) if isinstance(mask, np.ndarray) else slice(None)

    @property
    def empty(self) -> bool:
        """There are none, and one can know without asking an accelerator."""
        return isinstance(self.index, np.ndarray) and not self.index.size

    def take(self, array: Array) -> Array:
        """The rows of an array (B, ...)."""
        return array[self.index]

    def put(self, array: Array, values: Any) -> None:
        """Write `values`, one for each taken row or one for all, into an array (B, ...)."""
        if isinstance(array, np.ndarray):
            array[self.index] = values
        else:
            array.copy_(choose_rows(self.mask, values, array))


class Episodes:
    """The episodes of B slots over a set of clips.

    Args:
        spec: how episodes begin, go on and end in time.
        clips: reference motions.
        control_dt: seconds of a step.
        height: of the robot's base above the ground in its default pose, m.
        default_pose: (nq,) of the robot.
        seeds: (B,) int64, of each slot.
        like: a float array of the kind that the engine gives.
    """

    SAVED = (
        *("seed", "number", "step", "clip", "start", "cycle", "warm", "limit", "switch_step"),
        *("offset", "cos", "sin"),
    )
    """Names of the arrays that make up the state."""

    def __init__(
        self,
        spec: EpisodeSpec,
        clips: ClipSet,
        control_dt: float,
        height: float,
        default_pose: Array,
        seeds: Array,
        like: Array,
    ) -> None:
        xp, count = namespace(like), (len(seeds),)
        self.spec, self.clips, self.control_dt = spec, clips, control_dt
        self.seed = seeds
        self.number = seeds * 0 - 1
        """Episodes begun in the slot, less one."""
        self.step = seeds * 0
        """Steps since the episode began."""
        self.clip = seeds * 0
        """Index of the clip."""
        self.start = xp.zeros(count, like)
        """Clip's time at step 0, s."""
        self.cycle = xp.zeros(count, like)
        """Whole cycles of the clip that are over."""
        self.warm = seeds < seeds
        """The reference stands in the default pose before the clip's time 0."""
        self.limit = seeds * 0 + round(spec.seconds / control_dt)
        """Steps at which the episode is truncated."""
        self.switch_step = seeds * 0 + NEVER
        """Step at which another clip begins."""
        self.offset = xp.zeros((*count, 3), like)
        """The reference in the world: its clip, turned about z, then moved by this, m; z is the
        height of the ground under the robot."""
        self.cos = xp.zeros(count, like) + 1.0
        self.sin = xp.zeros(count, like)
        self.total_steps = xp.array(0, seeds)
        """() steps of all slots together, which the curriculum goes by."""
        self._full = round(spec.seconds / control_dt)
        self._can_warm = spec.reference_start < 1.0 and spec.warm_up > 0.0
        self._can_switch = bool(spec.switch_seconds) and len(clips.clips) > 1
        self._turns = self._can_switch or any(_ever_turns(clip) for clip in clips.clips)
        self._warm_pose = self._standing(height, default_pose, like)

    def _standing(self, height: float, default_pose: Array, like: Array) -> Pose:
        """The default pose, (C, ...), in the heading in which each clip begins."""
        xp, count = namespace(like), len(self.clips.clips)
        first = [self._start_heading(clip.root_quat[:1]) for clip in self.clips.clips]
        angle = xp.array([math.atan2(sin[0], cos[0]) for cos, sin in first], like)
        root_pos = xp.zeros((count, 3), like)
        root_pos[:, 2] = height
        q = xp.zeros((count, len(default_pose)), like) + xp.array(default_pose, like)
        return Pose(root_pos, about_z(angle), q)

    def _start_heading(self, quat: Array) -> tuple[Array, Array]:
        """Cosine and sine (B,) of the heading that episodes start by, of `quat` (B, 4)."""
        if self.spec.start_axis == "forward":
            return heading_cos_sin(quat)
        half = math.sqrt(0.5)
        cos, sin = heading_cos_sin(multiply(quat, constant((0.0, 0.0, half, half), quat)[None]))
        return sin, -cos  # of the left axis, which lies a quarter turn ahead

    # ------------------------------------------------------------------ time
    def counter(self) -> Array:
        """(B,) int64 for draws that are made anew at each step."""
        return (self.number << STEP_BITS) + self.step

    def time(self) -> Array:
        """(B,) the clip's time now, s."""
        steps = self.step
        if self.spec.hold_first_step:
            steps = namespace(steps).maximum(steps - 1, 0)
        return self.start + self.control_dt * steps

    def begin(self, rows: Rows) -> None:
        """Begin the next episode in some rows: choose clip, phase, and time limit."""
        seed, number = rows.take(self.seed), rows.take(self.number) + 1
        xp = namespace(self.start)
        draws = uniform(seed, number << STEP_BITS, (_CLIP, _WARM, _PHASE, _SWITCH))
        clip = _index(draws[:, _CLIP] * len(self.clips.clips))
        phase = draws[:, _PHASE]
        start = phase * self.clips.duration[clip]
        warm = draws[:, _WARM] < 0.0
        if self._can_warm:
            warm = draws[:, _WARM] >= self.spec.reference_start
            start = xp.where(warm, (phase - 1.0) * self.spec.warm_up, start)
        for name, value in (
            *(("number", number), ("step", 0), ("clip", clip), ("start", start), ("warm", warm)),
            *(("limit", self._limit()), ("cycle", self._cycles(clip, start))),
            ("switch_step", self._switch(draws[:, _SWITCH], 0)),
        ):
            rows.put(getattr(self, name), value)

    def advance(self) -> tuple[Array, Array]:
        """Go one step on.

        Returns:
            moved: (B,) bool: the reference's position is to be synchronized with the robot's.
            turned: (B,) bool: its heading too.
        """
        self.step += 1
        self.total_steps += len(self.step)
        turned = self.step >= self.switch_step
        if self._can_switch:
            self._switch_clips(turned)
        cycle = self._cycles(self.clip, self.time())
        wrapped = cycle != self.cycle
        self.cycle = renewed(self.cycle, cycle)
        return (wrapped | turned if self.spec.sync_position else turned), turned

    def over(self) -> tuple[Array, Array]:
        """(B,) bool each: the clip has ended (it does not loop); the time limit is reached."""
        return self.clips.over(self.clip, self.time()), self.step >= self.limit

    def _switch_clips(self, change: Array) -> None:
        rows = Rows(change)
        counter = rows.take(self.counter())
        draws = uniform(rows.take(self.seed), counter, (_NEXT_CLIP, _NEXT_PHASE, _NEXT_SWITCH))
        step = rows.take(self.step)
        clip = _index(draws[:, 0] * len(self.clips.clips))
        rows.put(self.clip, clip)
        rows.put(self.start, draws[:, 1] * self.clips.duration[clip] - step * self.control_dt)
        rows.put(self.switch_step, self._switch(draws[:, 2], step))
        rows.put(self.warm, draws[:, 0] < 0.0)

    def _switch(self, draw: Array, step: Array | int) -> Array | int:
        if not self._can_switch:
            return NEVER
        low, high = self.spec.switch_seconds
        return step + 1 + _index((low + draw * (high - low)) / self.control_dt)

    def _cycles(self, clip: Array, time: Array) -> Array:
        xp = namespace(time)
        cycles = xp.floor(time / self.clips.duration[clip])
        return xp.where(self.clips.looping[clip], cycles, xp.zeros_like(cycles))

    def _limit(self) -> Array | int:
        first = self.spec.curriculum_seconds
        if first is None:
            return self._full
        done = self.total_steps / max(self.spec.curriculum_steps, 1)
        share = namespace(self.start).minimum(done, 1.0) ** 3
        return _index((1.0 - share) * round(first / self.control_dt) + share * self._full)

    # ------------------------------------------------------------------ the reference's place
    def settle(self, rows: Rows, clip_pos: Array, clip_quat: Array) -> None:
        """Put the reference's root at x = y = 0 with heading 0 in some rows, as episodes begin.

        Args:
            rows: n of them.
            clip_pos, clip_quat: (n, 3), (n, 4) root of their clips now, before it is placed.
        """
        cos, sin = self._start_heading(clip_quat)
        rows.put(self.cos, cos)
        rows.put(self.sin, -sin)
        rows.put(self.offset, -_level(rotate_z(cos, -sin, clip_pos)))

    def sync(
        self,
        moved: Array,
        turned: Array,
        clip_pos: Array,
        clip_quat: Array,
        pos: Array,
        quat: Array,
    ) -> None:
        """Move (and turn) the reference to the robot in some rows.

        Args:
            moved: (B,) bool, rows whose reference is moved in x and y.
            turned: (B,) bool, rows whose reference is turned to the robot's heading first.
            clip_pos, clip_quat: (B, 3), (B, 4) root of the clip now, before it is placed.
            pos, quat: (B, 3), (B, 4) root of the robot.
        """
        xp = namespace(pos)
        if self._turns:
            robot_cos, robot_sin = heading_cos_sin(quat)
            clip_cos, clip_sin = heading_cos_sin(clip_quat)
            cos = robot_cos * clip_cos + robot_sin * clip_sin
            sin = robot_sin * clip_cos - robot_cos * clip_sin
            self.cos = renewed(self.cos, xp.where(turned, cos, self.cos))
            self.sin = renewed(self.sin, xp.where(turned, sin, self.sin))
            clip_pos = rotate_z(self.cos, self.sin, clip_pos)
        offset = choose_rows(moved, _level(pos - clip_pos), self.offset)
        self.offset = renewed(self.offset, offset)

    def place(self, ref: Ref, rows: Rows | None = None) -> Ref:
        """Turn and move what a clip says to where the reference is; for all rows, or some."""
        take = rows.take if rows else _same
        if self._turns:
            cos, sin = take(self.cos), take(self.sin)
            ref = replace(
                ref,
                root_quat=_turned(ref.root_quat, cos, sin),
                root_linvel=rotate_z(cos, sin, ref.root_linvel),
                root_angvel=rotate_z(cos, sin, ref.root_angvel),
                foot_pos=rotate_z(cos[:, None], sin[:, None], ref.foot_pos),
                root_pos=rotate_z(cos, sin, ref.root_pos),
            )
        offset = take(self.offset)
        return replace(ref, root_pos=ref.root_pos + offset, foot_pos=ref.foot_pos + offset[:, None])

    def place_pose(self, pose: Pose, rows: Rows | None = None) -> Pose:
        """The same for poses (B, K, ...), or those of some rows."""
        take = rows.take if rows else _same
        root_quat, root_pos = pose.root_quat, pose.root_pos
        if self._turns:
            cos, sin = take(self.cos)[:, None], take(self.sin)[:, None]
            root_quat = _turned(root_quat, cos, sin)
            root_pos = rotate_z(cos, sin, root_pos)
        return Pose(root_pos + take(self.offset)[:, None], root_quat, pose.q)

    def stand_on(self, ground: Array) -> None:
        """Put the reference on ground of that height, (B,) m."""
        xp = namespace(self.offset)
        offset = xp.concatenate([self.offset[:, :2], ground[:, None]], -1)
        self.offset = renewed(self.offset, offset)

    # ------------------------------------------------------------------ warm-up
    def warmed_pose(self, pose: Pose, time: Array, rows: Rows | None = None) -> Pose:
        """Replace poses before the clip's time 0 by the default one, where the episode has warm-up.

        Args:
            pose: (B, K, ...) of the clip, or those of some rows.
            time: (B, K) the clip's time.
            rows: the rows.
        """
        if not self._can_warm:
            return pose
        take, xp = rows.take if rows else _same, namespace(time)
        early = take(self.warm)[:, None] & (time < 0.0)
        clip = take(self.clip)
        pairs = zip(pose, self._warm_pose, strict=True)
        return Pose(*(xp.where(early[..., None], stand[clip][:, None], p) for p, stand in pairs))

    def warmed(self, ref: Ref, rows: Rows | None = None) -> Ref:
        """The same for the reference now, which then stands still."""
        if not self._can_warm:
            return ref
        take, xp = rows.take if rows else _same, namespace(self.start)
        early = take(self.warm & (self.time() < 0.0))[:, None]
        clip = take(self.clip)
        pairs = zip((ref.root_pos, ref.root_quat, ref.q), self._warm_pose, strict=True)
        pos, quat, q = (xp.where(early, stand[clip], part) for part, stand in pairs)
        moving = xp.where(early, 0.0 * pos[:, :1], 0.0 * pos[:, :1] + 1.0)
        return Ref(
            pos,
            quat,
            moving * ref.root_linvel,
            moving * ref.root_angvel,
            q,
            moving * ref.qd,
            foot_positions(self.clips.robot, pos, quat, q),
        )

    # ------------------------------------------------------------------ saving
    def arrays(self) -> dict[str, Array]:
        """The state, not copied."""
        return {name: getattr(self, name) for name in self.SAVED}


def _same(array: Array) -> Array:
    return array


def _level(vectors: Array) -> Array:
    """Vectors (n, 3) of our own, with z set to 0."""
    vectors[:, 2] = 0.0
    return vectors


def _turned(quat: Array, cos: Array, sin: Array) -> Array:
    """Turn rotations about z by angles of that cosine and sine."""
    return multiply(about_z(namespace(cos).arctan2(sin, cos)), quat)


def _ever_turns(clip: Clip) -> bool:
    """Whether the heading is ever other than 0."""
    return clip.cycle_heading or bool(abs(heading(clip.root_quat)).max() > 1e-9)


def _index(values: Array) -> Array:
    """Floats rounded down to indices."""
    return values.long() if isinstance(values, torch.Tensor) else values.astype(np.int64)
