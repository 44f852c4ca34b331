"""What an actor is worth in imitation worlds: whole episodes, measured step by step.

An actor chooses actions: a trained policy, a robot that stands still, or the open-loop reference,
whose targets are the clip's joints one control step ahead. All three play the same episodes (seeds,
start phases, pushes), because each draw is a function of the slot's seed and the episode's number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlgym.envs.imitation.rotations import angle_between, heading, wrap_angle
from rlgym.envs.imitation.task import CAUSES
from rlgym.errors import UserError

Actor = Callable[[Any, dict[str, Any]], Any]
"""(observation, info) of a vector env -> its actions."""

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


def play(env: Any, act: Actor, episodes: int, *, seed: int = 0) -> Measured:
    """Let an actor play exactly `episodes` whole episodes, and measure them.

    Each slot plays a quota fixed beforehand, so that early falls are not counted more often.

    Args:
        env: vector env of "rlgym/Imitate-v0", wrapped or not; episodes as in evaluation.
        act: chooses the actions.
        episodes: how many, at least 1.
        seed: slot i is seeded with `seed + i`; the same seed plays the same episodes.

    Raises:
        UserError: the worlds are not imitation worlds.
    """
    task = task_of(env)
    tally = _Tally(task, env.num_envs, env.reward_term_names)
    missing = np.full(env.num_envs, episodes // env.num_envs)
    missing[: episodes % env.num_envs] += 1
    found: list[_Episode] = []
    obs, info = env.reset(seed=seed)
    tally.start(np.ones(env.num_envs, bool))
    while missing.any():
        obs, reward, terminated, truncated, info = env.step(act(obs, info))
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        done = terminated | truncated
        tally.add(np.asarray(reward), info["reward_terms"], done)
        for row in np.flatnonzero(done & np.asarray(info["active"]) & (missing > 0)):
            cause = CAUSES[int(task.cause[row])] if terminated[row] else ""
            found.append(tally.take(int(row), cause))
            missing[row] -= 1
        tally.start(done)
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
    pose = np.broadcast_to(np.asarray(task.robot.default_pose), (env.num_envs, task.robot.nq))
    return lambda obs, info: task.actions_towards(pose)


def open_loop(env: Any) -> Actor:
    """Send the clip's joints one control step ahead: what it is worth not to look."""
    task = task_of(env)
    return lambda obs, info: task.actions_towards(task.future(1).q)


def trained(policy: Any) -> Actor:
    """Let a `LoadedPolicy` choose, without noise."""
    policy.reset()
    return lambda obs, info: policy.act(obs, mask=info.get("action_mask"))


# ----- Sums over steps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Episode:
    """Sums over one episode."""

    cause: str
    steps: int
    tracked: int
    sums: dict[str, float]
    drifts: tuple[float, ...]


class _Tally:
    """Running sums of each slot's episode."""

    def __init__(self, task: Any, num_envs: int, term_names: tuple[str, ...]) -> None:
        self.task = task
        self.dt = float(task.spec.actuation.control_dt)
        self.full = round(task.spec.episode.seconds / self.dt)
        self.names = term_names
        self.period = np.maximum(np.asarray(task.clips.duration)[task.clip_id] / self.dt, 1.0)
        self.steps = np.zeros(num_envs, np.int64)
        self.tracked = np.zeros(num_envs, np.int64)
        measured = ("reward", "joint", "heading", "power", *term_names)
        self.sums = {name: np.zeros(num_envs) for name in measured}
        self.left = np.zeros((num_envs, 2))  # since the window began: robot's way - reference's way
        self.way = np.zeros((num_envs, 2))
        self.window = np.zeros(num_envs, np.int64)
        self.drifts: list[list[float]] = [[] for _ in range(num_envs)]
        self.before = np.zeros((num_envs, 2))
        self.speed_before = np.zeros((num_envs, 2))
        self.trace: dict[str, list[float]] = {}
        self.tracing = True

    def start(self, rows: np.ndarray) -> None:
        """Begin new episodes where `rows` is True; the task stands at their first step."""
        if not rows.any():
            return
        for array in (self.steps, self.tracked, self.window, *self.sums.values()):
            array[rows] = 0
        self.left[rows], self.way[rows] = 0.0, 0.0
        for row in np.flatnonzero(rows):
            self.drifts[row] = []
        self._remember(rows)

    def _remember(self, rows: np.ndarray) -> None:
        self.before[rows] = self.task.state.root_pos[rows, :2]
        self.speed_before[rows] = self.task.ref.root_linvel[rows, :2]

    def add(self, reward: np.ndarray, terms: dict[str, Any], done: np.ndarray) -> None:
        """Take a step in; where it ended an episode the task already stands in the next one."""
        state, ref = self.task.state, self.task.ref
        self.steps += 1
        self.sums["reward"] += reward
        for name in self.names:
            self.sums[name] += np.asarray(terms[name])
        alive = ~done
        self.tracked += alive
        self.sums["joint"] += np.where(alive, _joint_error(self.task), 0.0)
        turned = wrap_angle(heading(state.root_quat) - heading(ref.root_quat))
        self.sums["heading"] += np.where(alive, turned**2, 0.0)
        self.sums["power"] += np.where(alive, state.power, 0.0)
        moved = state.root_pos[:, :2] - self.before
        planned = 0.5 * self.dt * (self.speed_before + ref.root_linvel[:, :2])
        self.left += np.where(alive[:, None], moved - planned, 0.0)
        self.way += np.where(alive[:, None], moved, 0.0)
        self.window += alive
        self._remember(np.ones_like(done))
        length = np.maximum(np.round(self.period), 1)
        for row in np.flatnonzero(self.window >= length):
            distance = float(np.hypot(*self.left[row]))
            self.drifts[row].append(distance * self.period[row] / length[row])
            self.left[row], self.window[row] = 0.0, 0
        self._trace(done)

    def _trace(self, done: np.ndarray) -> None:
        self.tracing = self.tracing and not done[0] and self.steps[0] * self.dt <= TRACE_SECONDS
        if not self.tracing:
            return
        robot = self.task.robot
        count = min(3, robot.nq)
        values = {"t": self.steps[0] * self.dt}
        for joint in range(count):
            values[robot.joints[joint]] = float(self.task.state.q[0, joint])
            values[f"{robot.joints[joint]} (clip)"] = float(self.task.ref.q[0, joint])
        for name, value in values.items():
            self.trace.setdefault(name, []).append(float(value))

    def take(self, row: int, cause: str) -> _Episode:
        """Return the episode that has just ended in a slot."""
        sums = {name: float(array[row]) for name, array in self.sums.items()}
        sums["distance"] = float(np.hypot(*self.way[row]))
        return _Episode(
            cause, int(self.steps[row]), int(self.tracked[row]), sums, tuple(self.drifts[row])
        )

    def summary(self, found: list[_Episode]) -> Measured:
        """Means over the episodes."""
        count = len(found)
        total = {name: sum(one.sums[name] for one in found) for name in found[0].sums}
        tracked = max(sum(one.tracked for one in found), 1)
        drifts = [drift for one in found for drift in one.drifts]
        scores = tuple(one.sums["reward"] / self.full for one in found)
        causes: dict[str, int] = {}
        for one in found:
            if one.cause:
                causes[one.cause] = causes.get(one.cause, 0) + 1
        joules = total["power"] * self.dt
        seconds = tracked * self.dt
        moves = total["distance"] / seconds > 0.05  # m/s; below that it stands or turns in place
        return Measured(
            episodes=count,
            score=float(np.mean(scores)),
            scores=scores,
            terms={name: total[name] / (count * self.full) for name in self.names},
            survival=sum(not one.cause for one in found) / count,
            causes=causes,
            joint_error=float(np.sqrt(total["joint"] / tracked)),
            drift=float(np.mean(drifts)) if drifts else float("nan"),
            heading_error=float(np.sqrt(total["heading"] / tracked)),
            power=total["power"] / tracked,
            energy=joules / total["distance"] if moves else float("nan"),
            trace=self.trace,
        )


def _joint_error(task: Any) -> np.ndarray:
    """(B,) mean over joints of the squared angle between robot and reference, rad^2."""
    q, ref, spherical = task.state.q, task.ref.q, task.robot.spherical
    if not any(spherical):
        return np.mean((q - ref) ** 2, axis=1)
    squares, at = [], 0
    for is_ball in spherical:
        if is_ball:
            squares.append(angle_between(q[:, at : at + 4], ref[:, at : at + 4]) ** 2)
        else:
            squares.append((q[:, at] - ref[:, at]) ** 2)
        at += 4 if is_ball else 1
    return np.mean(squares, axis=0)
