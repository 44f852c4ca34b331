"""The imitation task: an engine's batch of worlds, a set of clips, a spec; one step at a time.

    task = ImitationTask(engine, clips, spec, seeds)
    obs, privileged = task.reset()
    result = task.step(actions)

All that is decided is decided by pure functions of arrays (observation, reward, termination,
action, episode); this module calls them in order, once per step for the whole batch, and begins the
next episode where one ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from gymnasium import spaces

from rlgym.envs.imitation import randomize
from rlgym.envs.imitation.action import (
    act,
    asking_for,
    commanded_angles,
    renewed_filter,
    reset_filter,
    start_filter,
)
from rlgym.envs.imitation.arrays import Array, choose_rows, constant, namespace, renewed
from rlgym.envs.imitation.clips import ClipSet, Ref
from rlgym.envs.imitation.episode import Episodes, Rows
from rlgym.envs.imitation.joints import to_angles, to_positions
from rlgym.envs.imitation.kinematics import sole_heights
from rlgym.envs.imitation.observation import (
    observation_size,
    observe,
    privileged,
    privileged_size,
    push_history,
    read,
    start_history,
)
from rlgym.envs.imitation.random import normal, uniform
from rlgym.envs.imitation.reward import reward
from rlgym.envs.imitation.rotations import from_rotation_vector, multiply
from rlgym.envs.imitation.spec import Spec
from rlgym.envs.imitation.termination import terminate
from rlgym.envs.physics.engine import Engine, Sensed, State
from rlgym.envs.physics.terrain import Terrain

Part = TypeVar("Part", State, Ref, Sensed)

_PERTURB = 100
"""Number of the first draw that disturbs an episode's first state."""


@dataclass
class StepResult:
    """What a step of the whole batch gives."""

    obs: Array
    """(B, D) policy's observation, of the next episode where one ended."""
    privileged: Array | None
    """(B, K) critic's, likewise."""
    final_obs: Array
    """(B, D) last observation of the episode; counts where one ended."""
    final_privileged: Array | None
    """(B, K) critic's, likewise."""
    reward: Array
    """(B,)"""
    terms: dict[str, Array]
    """(B,) each, before their weights."""
    terminated: Array
    """(B,) bool."""
    truncated: Array
    """(B,) bool: time limit, end of a clip that does not fail the robot, or a lost world."""
    broken: Array
    """(B,) bool: the physics blew up; its row counts for nothing."""
    cause: Array
    """(B,) int8, of `CAUSES`."""
    lost: dict[int, dict[str, Any]]
    """What each broken world was doing, for a report."""


class Asked(NamedTuple):
    """What one step asks of the engine, and what it is judged by afterwards."""

    actions: Array
    """(B, nv) within their bound."""
    offset: Array
    """(B, nq) pose that an action of zero asks for."""
    previous: Array
    """(B, nq) target at the end of the step before."""
    target: Array
    """(B, nq) of the joints."""
    push: Array | None
    """(B, 3) change of the base's velocity, m/s."""


class _First(NamedTuple):
    """States that episodes begin with, (B, ...), as `Engine.reset` takes them."""

    root_pos: Array
    root_quat: Array
    root_linvel: Array
    root_angvel: Array
    q: Array
    qd: Array


class ImitationTask:
    """Imitation of clips by the worlds of one engine.

    Args:
        engine: simulates B worlds; closed by `close`.
        clips: of the engine's robot, of the engine's kind of arrays.
        spec: what the task is.
        seeds: (B,) int64 of that kind, one per slot.
        terrain: what the engine's worlds stand on; None: the plane z = 0.

    Raises:
        ConfigError: the engine cannot randomize what the spec asks for.
    """

    def __init__(
        self,
        engine: Engine,
        clips: ClipSet,
        spec: Spec,
        seeds: Array,
        terrain: Terrain | None = None,
    ) -> None:
        robot = engine.robot
        randomize.check_ranges(spec.randomize, engine)
        self.engine, self.clips, self.spec, self.robot = engine, clips, spec, robot
        self.terrain = terrain
        self.num_envs = engine.num_worlds
        self.control_dt = engine.actuation.control_dt
        self.state: State | None = None
        """Of the robots, after the last reset or step and the resets within it."""
        self.ref: Ref | None = None
        """What they should be doing then."""
        like = clips.duration
        xp, count = namespace(like), self.num_envs
        default = xp.array(robot.default_pose, like)
        self.episodes = Episodes(
            spec.episode, clips, self.control_dt, robot.init_height, default, seeds, like
        )
        self._ahead = self.control_dt * xp.array(spec.observation.target_steps, like)
        self._default = default[None] + xp.zeros((count, 1), like)
        self._previous = xp.copy(self._default)
        self._memory = start_filter(to_angles(robot, self._default))
        self._idle = xp.zeros((count, robot.nv), like)
        self._standing = self._stand()
        reading = read(self._standing, self._idle, spec.observation, robot)
        self._history = start_history(reading, spec.observation)
        self._first = _First(
            *(xp.zeros((count, size), like) for size in (3, 4, 3, 3, robot.nq, robot.nv))
        )
        if spec.action.offset == "clip_mean":
            self.offsets = clips.mean_pose
        else:
            self.offsets = default[None] + xp.zeros((len(clips.clips), 1), like)
        """(C, nq) pose that an action of zero asks for while each clip is imitated."""

    # ------------------------------------------------------------------ spaces
    @property
    def observation_space(self) -> spaces.Space:
        """Of one slot: a Box, or a Dict of "policy" and "privileged" ones."""
        policy = _unbounded(observation_size(self.spec.observation, self.robot))
        if not self.spec.observation.privileged:
            return policy
        critic = _unbounded(privileged_size(self.robot))
        return spaces.Dict({"policy": policy, "privileged": critic})

    @property
    def action_space(self) -> spaces.Box:
        """Of one slot."""
        bound = self.spec.action.bound
        return spaces.Box(-bound, bound, (self.robot.nv,), np.float32)

    # ------------------------------------------------------------------ reset and step
    def seed(self, mask: Array, seeds: Array) -> None:
        """Seed the slots of `mask` (B,) anew; their next episode is the first of that seed."""
        rows, episodes = Rows(mask), self.episodes
        rows.put(episodes.seed, rows.take(seeds))
        rows.put(episodes.number, -1)

    def reset(self) -> tuple[Array, Array | None]:
        """Begin the next episode in every slot.

        Returns:
            Observations (B, D) and (B, K).
        """
        everywhere = self.episodes.step >= 0
        return self._begin(Rows(everywhere))

    def step(self, actions: Array) -> StepResult:
        """Let every slot take one action, (B, nv), and begin the next episode where one ended."""
        asked = self.ask(actions)
        state = self.engine.step(asked.previous, asked.target, asked.push)
        return self.judge(asked, state)

    def ask(self, actions: Array) -> Asked:
        """Do the first half of `step`: say what the engine is to do.

        Between the halves, nothing else may be asked of the task.
        """
        spec, episodes = self.spec, self.episodes
        actions = namespace(actions).clip(actions, -spec.action.bound, spec.action.bound)
        offset = self.offsets[episodes.clip]
        target, memory = act(
            self._memory, actions, spec.action, self.robot, offset, self.control_dt
        )
        self._memory = renewed_filter(self._memory, memory)
        previous = self._previous
        if self.engine.actuation.interpolate:  # the first target is there at once
            previous = choose_rows(episodes.step == 0, target, previous)
        push = randomize.push(spec.randomize, episodes.seed, episodes.counter(), self.control_dt)
        return Asked(actions, offset, previous, target, push)

    def judge(self, asked: Asked, state: State) -> StepResult:
        """Do the second half of `step`, from what the engine did, which began from `ask`."""
        spec, episodes, robot = self.spec, self.episodes, self.robot
        actions, target = asked.actions, asked.target
        xp, seed = namespace(actions), episodes.seed
        self._previous = renewed(self._previous, target)
        ref, ground = self._follow(state)
        total, terms = reward(state, ref, spec.reward, robot)
        clip_over, late = episodes.over()
        done, cause = terminate(
            state, ref, spec.termination, robot, episodes.step, clip_over, ground
        )
        broken = xp.copy(state.broken)  # the engine's own, which its reset writes to
        terminated = done & ~broken
        truncated = (late | clip_over | broken) & ~terminated
        lost = self._describe(broken, asked)
        state = self._noisy(state, seed, episodes.counter())
        shown = actions
        if spec.observation.last_action == "target":
            shown = commanded_angles(actions, spec.action, robot, asked.offset)
        reading = read(state.sensed, shown, spec.observation, robot)
        self._history = renewed(self._history, push_history(self._history, reading))
        self.state, self.ref = state, ref
        final, final_critic = self._observe(state, ref)
        obs, critic = self._begin(Rows(terminated | truncated), final, final_critic)
        return StepResult(
            *(obs, critic, final, final_critic, xp.where(broken, 0.0 * total, total), terms),
            *(terminated, truncated, broken, cause, lost),
        )

    def asking_for(self, positions: Array) -> Array:
        """Return the actions, (B, nv), that ask for joint positions (B, nq) in the next step.

        The spec's filter and limits still apply to what they ask for.
        """
        offset = self.offsets[self.episodes.clip]
        return asking_for(positions, self.spec.action, self.robot, offset)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    # ------------------------------------------------------------------ parts of a step
    def _follow(self, state: State) -> tuple[Ref, Array | None]:
        """Move the reference one step on; return where it is, and the ground under each robot."""
        episodes, ground = self.episodes, None
        moved, turned = episodes.advance()
        clip = episodes.warmed(self.clips.sample(episodes.clip, episodes.time()))
        episodes.sync(moved, turned, clip.root_pos, clip.root_quat, state.root_pos, state.root_quat)
        if self.terrain is not None:
            ground = self.terrain.height(state.root_pos[:, :2])
            episodes.stand_on(ground)
        return episodes.place(clip), ground

    def _observe(
        self, state: State, ref: Ref, rows: Rows | None = None
    ) -> tuple[Array, Array | None]:
        """Observations (B, D) and (B, K), or those of some rows; `state` and `ref` are theirs."""
        spec, episodes = self.spec.observation, self.episodes
        clip, time, history = episodes.clip, episodes.time(), self._history
        cycle = episodes.cycle
        if rows:
            clip, time, history, cycle = map(rows.take, (clip, time, history, cycle))
        ahead = time[:, None] + self._ahead
        poses = episodes.warmed_pose(self.clips.pose(clip, ahead), ahead, rows)
        futures = episodes.place_pose(poses, rows)
        obs = observe(history, futures, ref, state, spec, self.robot)
        if not spec.privileged:
            return obs, None
        return obs, privileged(state, ref, time / self.clips.duration[clip] - cycle)

    def _begin(
        self, rows: Rows, obs: Array | None = None, critic: Array | None = None
    ) -> tuple[Any, Any]:
        """Begin the next episode in some rows; return observations in which these rows are new."""
        if rows.empty:
            return obs, critic
        episodes, spec = self.episodes, self.spec
        episodes.begin(rows)
        clip = self.clips.sample(rows.take(episodes.clip), rows.take(episodes.time()))
        clip = episodes.warmed(clip, rows)
        episodes.settle(rows, clip.root_pos, clip.root_quat)
        ref = episodes.place(clip, rows)
        for buffer, values in zip(self._first, self._first_state(rows, ref), strict=True):
            rows.put(buffer, values)
        seed, counter = episodes.seed, episodes.counter()
        drawn = randomize.draw(spec.randomize, seed, counter, self.robot.nv)
        everyone = self.engine.reset(rows.mask, *self._first, drawn)
        sensed = everyone.sensed
        if spec.observation.history_start == "default":
            sensed = self._standing
        state = _rows(replace(everyone, sensed=sensed), rows)
        state = self._noisy(state, rows.take(seed), rows.take(counter))
        previous = choose_rows(rows.mask, sensed.q, self._previous)
        self._previous = renewed(self._previous, previous)
        if spec.action.cutoff is not None:
            angles = to_angles(self.robot, sensed.q)
            memory = reset_filter(self._memory, rows.mask, angles)
            self._memory = renewed_filter(self._memory, memory)
        reading = read(state.sensed, rows.take(self._idle), spec.observation, self.robot)
        rows.put(self._history, start_history(reading, spec.observation))
        new, new_critic = self._observe(state, ref, rows)
        self.state = everyone
        if obs is None:
            self.ref = ref
            return new, new_critic
        for field in dataclasses.fields(ref):
            rows.put(getattr(self.ref, field.name), getattr(ref, field.name))
        obs, critic = _renewed(rows, obs, new), _renewed(rows, critic, new_critic)
        return obs, critic

    def _first_state(self, rows: Rows, ref: Ref) -> _First:
        """States (n, ...) that episodes begin with: the reference's, lifted, some disturbed."""
        spec, robot = self.spec.episode, self.robot
        lift = constant((0.0, 0.0, spec.lift), ref.root_pos)
        if spec.lift_feet:
            lift = lift + self._out_of_ground(rows, ref)
        first = _First(
            *(ref.root_pos + lift, ref.root_quat, ref.root_linvel, ref.root_angvel, ref.q, ref.qd)
        )
        if not spec.perturb:
            return first
        seed, counter = rows.take(self.episodes.seed), rows.take(self.episodes.counter())
        xp = namespace(ref.q)
        chosen = uniform(seed, counter, _PERTURB) < spec.perturb
        draws = normal(seed, counter, range(_PERTURB + 1, _PERTURB + 13 + 2 * robot.nv))
        draws = xp.astype(xp.where(chosen[:, None], draws, 0.0 * draws), ref.q)
        size = (3, 3, 3, 3, robot.nv, robot.nv)
        place, turn, linear, angular, angles, rates = _split(draws, size)
        flat = constant((1.0, 1.0, 0.0), ref.root_pos)
        # a turn about a random axis by a normal angle has components of a third of its variance
        turned = from_rotation_vector(spec.perturb_rotation / math.sqrt(3.0) * turn)
        angles = to_angles(robot, ref.q) + spec.perturb_joints * angles
        return _First(
            first.root_pos + spec.perturb_position * flat * place,
            multiply(turned, ref.root_quat),
            ref.root_linvel + spec.perturb_velocity * flat * linear,
            ref.root_angvel + spec.perturb_rate * angular,
            to_positions(robot, angles),
            ref.qd + spec.perturb_rate * rates,
        )

    def _out_of_ground(self, rows: Rows, ref: Ref) -> Array:
        """The way up, (n, 3), that brings feet to the ground which the reference has in it."""
        heights = sole_heights(self.robot, ref.root_pos, ref.root_quat, ref.q)
        ground = rows.take(self.episodes.offset)[:, 2]
        xp = namespace(heights)
        deep = xp.maximum(ground - xp.min(heights, axis=-1), 0.0)
        return deep[:, None] * constant((0.0, 0.0, 1.0), heights)

    def _stand(self) -> Sensed:
        """What the sensors of robots read that stand still in their default pose."""
        xp = namespace(self._default)
        quat = xp.zeros((self.num_envs, 4), self._default)
        quat[:, 3] = 1.0
        return Sensed(quat, quat[:, :3] * 0.0, self._default, self._idle)

    def _noisy(self, state: State, seed: Array, counter: Array) -> State:
        sensed = randomize.noisy(self.spec.randomize, seed, counter, state.sensed, self.robot)
        return state if sensed is state.sensed else replace(state, sensed=sensed)

    def _describe(self, broken: Array, asked: Asked) -> dict[int, dict[str, Any]]:
        """What each broken world was doing, on the host only."""
        rows = Rows(broken)
        if rows.empty or not isinstance(broken, np.ndarray):
            return {}
        known = {"action": asked.actions, "target": asked.target}
        known |= {"previous_target": asked.previous}
        known |= {"last_readings": self._history[:, 0]} | self.episodes.arrays()
        return {
            row: {name: array[row] for name, array in known.items()}
            for row in np.flatnonzero(broken).tolist()
        }

    # ------------------------------------------------------------------ saving
    def arrays(self) -> dict[str, Array]:
        """Copies of all that the task's future depends on, besides the engine's."""
        return {name: namespace(array).copy(array) for name, array in self.memory().items()}

    def memory(self) -> dict[str, Array]:
        """The arrays themselves; on torch, each step writes to the same ones."""
        kept = {f"episode.{name}": array for name, array in self.episodes.arrays().items()}
        kept |= {"previous": self._previous, "history": self._history}
        kept["total_steps"] = self.episodes.total_steps
        if self.spec.action.cutoff is not None:
            kept |= {f"filter.{name}": part for name, part in self._memory._asdict().items()}
        return kept

    def load(self, arrays: dict[str, Array], state: State) -> None:
        """Go on from what `arrays` gave, the engine being at `state` already."""
        episodes = self.episodes
        for name in Episodes.SAVED:
            setattr(episodes, name, _loaded(getattr(episodes, name), arrays[f"episode.{name}"]))
        self._previous = _loaded(self._previous, arrays["previous"])
        self._history = _loaded(self._history, arrays["history"])
        if self.spec.action.cutoff is not None:
            parts = (
                (name, _loaded(part, arrays[f"filter.{name}"]))
                for name, part in self._memory._asdict().items()
            )
            self._memory = self._memory._replace(**dict(parts))
        episodes.total_steps = _loaded(episodes.total_steps, arrays["total_steps"])
        self.state = state
        clip = episodes.warmed(self.clips.sample(episodes.clip, episodes.time()))
        self.ref = episodes.place(clip)


def _rows(part: Part, rows: Rows) -> Part:
    """The rows of every array in a state, its readings included."""
    values = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        values[field.name] = _rows(value, rows) if isinstance(value, Sensed) else rows.take(value)
    return replace(part, **values)


def _renewed(rows: Rows, old: Array | None, new: Array | None) -> Array | None:
    """A copy of `old` with other rows put in."""
    if old is None or new is None:
        return None
    out = namespace(old).copy(old)
    rows.put(out, new)
    return out


def _split(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Columns side by side."""
    stops = np.cumsum(sizes).tolist()
    return [array[:, stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def _loaded(old: Array, value: Any) -> Array:
    """A copy of `value` as an array of the kind, dtype and shape of `old`.

    Raises:
        ValueError: it has another shape.
    """
    if isinstance(old, np.ndarray):
        return np.array(value, old.dtype).reshape(old.shape)
    return renewed(old, torch.as_tensor(value).reshape(old.shape))


def _unbounded(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
