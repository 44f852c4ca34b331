"""What an actor is worth in imitation worlds: whole episodes, measured step by step.

An actor chooses actions: a trained policy, a robot that stands still, or the open-loop reference,
whose targets are the clip's joints one control step ahead. All three play the same episodes (seeds,
start phases, pushes), because each draw is a function of the slot's seed and the episode's number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlgym.envs.imitation.rotations import angle_between, heading, wrap_angle
from rlgym.envs.imitation.termination import CAUSES
from rlgym.errors import UserError

Actor = Callable[[Any, dict[str, Any]], Any]
"""(observation, info) of a vector env -> its actions."""

FALLS = frozenset(CAUSES) - {"none", "clip_over"}
"""Causes after which every step of the episode counts 0."""
STANDS = 0.05
"""m/s below which a robot is not under way, so that energy per metre means nothing."""
TRACE_SECONDS = 3.0
"""Of the first slot's first episode, kept for the plots."""


@dataclass(frozen=True)
class Measured:
    """Means over whole episodes; errors and power count the steps before a fall."""

    episodes: int
    """How many were played."""
    score: float
    """Mean reward per step of the full episode: 0 after a fall, at most 1."""
    scores: tuple[float, ...]
    """The same of each episode."""
    terms: dict[str, float]
    """Each reward term's share of `score`."""
    clips: dict[str, float]
    """Score of the episodes that began with each clip."""
    survival: float
    """Share of episodes that lasted to the time limit."""
    causes: dict[str, int]
    """How many episodes each cause ended before it."""
    joint_error: float
    """Root mean square over joints and steps of the angle from the reference's, rad."""
    drift: float
    """Mean horizontal distance by which the base leaves the reference in a cycle of the clip, m."""
    heading_error: float
    """Root mean square of the heading's angle from the reference's, rad."""
    power: float
    """Mean of the sum over joints of |torque * velocity|, W."""
    energy: float
    """Of that power, per metre that the base came forward in a straight line, J/m; NaN in place."""
    trace: dict[str, list[float]] = field(default_factory=dict)
    """Of the first seconds of one episode: "t", s, and for each joint of the first leg (or the
    first three joints) "joint" and "joint (clip)", rad."""

    def document(self) -> dict[str, Any]:
        """Plain values for JSON, which has no number for "not a number"."""
        numbers = {key: None if value != value else value for key, value in vars(self).items()}
        return {**numbers, "scores": list(self.scores)}


def play(env: Any, act: Actor, episodes: int, *, seed: int = 0, trace: bool = False) -> Measured:
    """Let an actor play exactly `episodes` whole episodes, and measure them.

    Each slot plays a quota fixed beforehand, so that early falls are not counted more often.

    Args:
        env: vector env of "rlgym/Imitate-v0", wrapped or not; episodes as in evaluation.
        act: chooses the actions.
        episodes: how many, at least 1.
        seed: slot i is seeded with `seed + i`; the same seed plays the same episodes.
        trace: keep joints of the first seconds in the first slot.

    Raises:
        UserError: the worlds are not imitation worlds.
    """
    tally = _Tally(env, trace)
    missing = np.full(env.num_envs, episodes // env.num_envs)
    missing[: episodes % env.num_envs] += 1
    found: list[_Episode] = []
    obs, info = env.reset(seed=seed)
    tally.clear(np.ones(env.num_envs, bool))
    while missing.any():
        obs, reward, terminated, truncated, info = env.step(act(obs, info))
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        done = terminated | truncated
        tally.add(np.asarray(reward), info["reward_terms"], done)
        for row in np.flatnonzero(done & np.asarray(info["active"]) & (missing > 0)):
            cause = CAUSES[int(env.unwrapped.cause[row])] if terminated[row] else ""
            found.append(tally.take(int(row), cause))
            missing[row] -= 1
        tally.clear(done)
    return tally.summary(found)


def task_of(env: Any) -> Any:
    """Return the imitation task behind a vector env.

    Raises:
        UserError: there is none.
    """
    task = getattr(env.unwrapped, "task", None)
    if task is None or not hasattr(task, "ref"):
        raise UserError(
            "these are no imitation worlds: engines are compared for runs of rlgym/Imitate-v0"
        )
    return task


# ----- Actors ------------------------------------------------------------------------------------


def standing(env: Any) -> Actor:
    """Keep the robot's default pose: what a score is worth that moves nothing."""
    task = task_of(env)
    pose = np.tile(task.robot.default_pose, (env.num_envs, 1))
    return lambda obs, info: task.asking_for(pose)


def open_loop(env: Any) -> Actor:
    """Send the clip's joints one control step ahead: what it is worth not to look."""
    task = task_of(env)
    episodes, clips = task.episodes, task.clips
    return lambda obs, info: task.asking_for(
        clips.pose(episodes.clip, episodes.time() + task.control_dt).q
    )


def trained(policy: Any) -> Actor:
    """Let a `LoadedPolicy` choose, without noise."""
    policy.reset()
    return lambda obs, info: policy.act(obs, mask=info.get("action_mask"))


# ----- Sums over steps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Episode:
    """Sums over one episode."""

    cause: str
    """What ended it, of `CAUSES`; "" for the time limit."""
    clip: str
    score: float
    steps: int
    """Those that `score` is a mean of: all of a whole episode after a fall."""
    tracked: int
    """Those that errors and power were summed over."""
    sums: dict[str, float]
    drifts: tuple[float, ...]
    """m, of each whole cycle."""


class _Tally:
    """Running sums of each slot's episode.

    The step that ends an episode leaves the slot in the next one's first state, so errors skip it;
    the next one's first step then only says where the way begins.
    """

    def __init__(self, env: Any, trace: bool) -> None:
        self.task = task = task_of(env)
        count = env.num_envs
        self.full = round(task.spec.episode.seconds / task.control_dt)
        terms = task.spec.reward
        self.weights = {name: getattr(terms, name).weight for name in env.reward_term_names}
        self.clip = np.zeros(count, np.int64)
        self.steps = np.zeros(count, np.int64)
        self.tracked = np.zeros(count, np.int64)
        self.sums = {
            n: np.zeros(count) for n in ("reward", "joint", "turn", "power", *self.weights)
        }
        self.fresh = np.ones(count, bool)
        self.before = np.zeros((count, 2))
        self.speed = np.zeros((count, 2))
        self.way = np.zeros((count, 2))
        self.left = np.zeros((count, 2))  # the robot's way less the reference's, in this cycle
        self.window = np.zeros(count, np.int64)
        self.drifts: list[list[float]] = [[] for _ in range(count)]
        self.trace: dict[str, list[float]] = {}
        self.tracing = trace

    def add(self, reward: np.ndarray, terms: dict[str, Any], done: np.ndarray) -> None:
        """Take a step in."""
        task, state, ref = self.task, self.task.state, self.task.ref
        self.steps += 1
        self.sums["reward"] += reward
        for name, weight in self.weights.items():
            self.sums[name] += weight * np.asarray(terms[name])
        alive = ~done
        self.tracked += alive
        turned = wrap_angle(heading(state.root_quat) - heading(ref.root_quat))
        for name, values in (
            ("joint", _squared_joint_error(task)),
            ("turn", turned**2),
            ("power", state.power),
        ):
            self.sums[name] += np.where(alive, values, 0.0)
        self._move(state.root_pos[:, :2], ref.root_linvel[:, :2], alive)
        self.tracing = (
            self.tracing and alive[0] and self.steps[0] * task.control_dt <= TRACE_SECONDS
        )
        if self.tracing:
            self._trace()

    def _move(self, place: np.ndarray, speed: np.ndarray, alive: np.ndarray) -> None:
        """Sum up the ways of robot and reference, and note how far apart each cycle left them."""
        dt, episodes = self.task.control_dt, self.task.episodes
        counts = alive & ~self.fresh
        moved = place - self.before
        planned = 0.5 * dt * (self.speed + speed)
        self.way += np.where(counts[:, None], moved, 0.0)
        self.left += np.where(counts[:, None], moved - planned, 0.0)
        self.window += counts
        self.before, self.speed, self.fresh = place.copy(), speed.copy(), ~alive
        cycle = self.task.clips.duration[episodes.clip] / dt
        whole = np.maximum(np.round(cycle), 1.0)
        for row in np.flatnonzero(self.window >= whole):
            # a cycle is seldom a whole number of steps
            self.drifts[row].append(float(np.hypot(*self.left[row]) * cycle[row] / whole[row]))
            self.left[row], self.window[row] = 0.0, 0

    def _trace(self) -> None:
        task = self.task
        values = {"t": self.steps[0] * task.control_dt}
        for joint in range(min(3, task.robot.nq)):
            name = task.robot.joints[joint]
            values[name] = task.state.q[0, joint]
            values[f"{name} (clip)"] = task.ref.q[0, joint]
        for name, value in values.items():
            self.trace.setdefault(name, []).append(float(value))

    def take(self, row: int, cause: str) -> _Episode:
        """Return the episode that has just ended in a slot."""
        sums = {name: float(array[row]) for name, array in self.sums.items()}
        sums["distance"] = float(np.hypot(*self.way[row]))
        steps = self.full if cause in FALLS else int(self.steps[row])
        score = sums["reward"] / steps
        clip = self.task.clips.names[self.clip[row]]
        return _Episode(
            cause, clip, score, steps, int(self.tracked[row]), sums, tuple(self.drifts[row])
        )

    def clear(self, rows: np.ndarray) -> None:
        """Begin new episodes in some rows; the task stands at their start."""
        self.clip[rows] = self.task.episodes.clip[rows]
        for array in (self.steps, self.tracked, self.window, self.way, self.left):
            array[rows] = 0
        for array in self.sums.values():
            array[rows] = 0.0
        for row in np.flatnonzero(rows):
            self.drifts[row] = []

    def summary(self, found: list[_Episode]) -> Measured:
        """Means over the episodes."""
        total = {name: sum(one.sums[name] for one in found) for name in found[0].sums}
        tracked = max(sum(one.tracked for one in found), 1)
        drifts = [drift for one in found for drift in one.drifts]
        causes = Counter(one.cause for one in found if one.cause in FALLS)
        seconds = tracked * self.task.control_dt
        moves = total["distance"] / seconds > STANDS
        by_clip: dict[str, list[float]] = {}
        for one in found:
            by_clip.setdefault(one.clip, []).append(one.score)
        return Measured(
            episodes=len(found),
            score=float(np.mean([one.score for one in found])),
            scores=tuple(one.score for one in found),
            terms={
                name: float(np.mean([one.sums[name] / one.steps for one in found]))
                for name in self.weights
            },
            clips={name: float(np.mean(by_clip[name])) for name in sorted(by_clip)},
            survival=1.0 - sum(causes.values()) / len(found),
            causes=dict(causes),
            joint_error=math.sqrt(total["joint"] / tracked),
            drift=float(np.mean(drifts)) if drifts else math.nan,
            heading_error=math.sqrt(total["turn"] / tracked),
            power=total["power"] / tracked,
            energy=total["power"] * self.task.control_dt / total["distance"] if moves else math.nan,
            trace=self.trace,
        )


def _squared_joint_error(task: Any) -> np.ndarray:
    """(B,) mean over joints of the squared angle between robot and reference, rad^2."""
    q, ref, spherical = task.state.q, task.ref.q, task.robot.is_spherical
    if not any(spherical):
        return np.mean((q - ref) ** 2, axis=1)
    squares, at = [], 0
    for ball in spherical:
        if ball:
            squares.append(angle_between(q[:, at : at + 4], ref[:, at : at + 4]) ** 2)
        else:
            squares.append((q[:, at] - ref[:, at]) ** 2)
        at += 4 if ball else 1
    return np.mean(squares, axis=0)
