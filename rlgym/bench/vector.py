"""What worker processes cost: against worlds stepped without any exchange, and Gymnasium's own.

The raw rate is that of the same world objects in as many plain processes that step them in a loop
and tell nobody: no exchange between processes can be faster than none.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlgym.bench.harness import ROOT, Case, Result, paired_case, say
from rlgym.registry import make_vec

COST = 100e-6
"""Seconds that a step of the busy world takes."""
WORKERS = 2
WORLDS_PER_WORKER = 8
CARTPOLES = 8


class Busy(gymnasium.Env):
    """A world that only computes: `work` rounds of a hash per step, episodes of 200 steps.

    The work is C code without memory, as an engine's mostly is. A loop of Python runs at half the
    speed in one process than in the next (where its code lies decides how its branches are
    predicted), which would hide what is measured. And it is a fixed amount of work, not of time:
    time would also pass while another process has the core.

    Args:
        work: rounds of the hash.
    """

    observation_space = spaces.Box(-1.0, 1.0, (24,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

    def __init__(self, work: int) -> None:
        self.work = work
        self.t = 0
        self._obs = np.zeros(24, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        hashlib.pbkdf2_hmac("sha256", b"", b"", self.work)
        self.t += 1
        return self._obs, 1.0, False, self.t >= 200, {}


def calibrated(cost: float = COST) -> int:
    """Return the `work` whose step takes `cost` seconds on a core of its own."""
    work = 1000
    env = Busy(work)
    best = min(_seconds(lambda: env.step(None)) for _ in range(50))
    return max(1, round(work * cost / best))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def bench_vector(*, repeats: int = 9, seconds: float = 1.0, quick: bool = False) -> Result:
    """Steps per second through worker processes, against raw stepping and AsyncVectorEnv.

    Args:
        repeats: repetitions of each side, taken in turn.
        seconds: approximate length of each.
        quick: one short repetition, to see that everything works.
    """
    if quick:
        repeats, seconds = 1, 0.05
    cases = []
    for case in (_busy_case, _cartpole_case):
        cases.append(case(repeats, seconds))
        say(cases[-1].line())
    measured = (
        "steps per second of all worlds with send/recv and torch tensors as in training (two "
        "overlapped groups for the busy worlds, one group for CartPole), median of "
        f"{repeats} interleaved repetitions"
    )
    return Result("vector", measured, tuple(cases), quick)


def _busy_case(repeats: int, seconds: float) -> Case:
    work = calibrated()
    num_envs = WORKERS * WORLDS_PER_WORKER
    rounds = max(2, round(seconds / (COST * WORLDS_PER_WORKER)))
    raw = RawProcesses(WORKERS, WORLDS_PER_WORKER, work)
    env = make_vec(
        Busy, num_envs, backend="process", num_workers=WORKERS, env_kwargs={"work": work}
    )
    try:
        ours, theirs, whole = _interleaved(
            repeats,
            lambda: num_envs * rounds / overlapped(env, rounds),
            lambda: num_envs * rounds / raw.run(rounds),
            lambda: num_envs * rounds / in_whole_steps(env, rounds),
        )
    finally:
        raw.close()
        env.close()
    return paired_case(
        f"{WORKERS} workers x {WORLDS_PER_WORKER} worlds of {COST * 1e6:.0f} us, against raw",
        "steps/s",
        ours,
        theirs,
        goal=0.9,
        goal_is="at least",
        details={"step() instead of send/recv": whole, "rounds": rounds, "work": work},
    )


def _cartpole_case(repeats: int, seconds: float) -> Case:
    rounds = max(2, round(seconds * 1000))
    # worlds this light are best served by one worker with a core to itself, all at once
    env = make_vec("CartPole-v1", CARTPOLES, backend="process", num_workers=1, num_groups=1)
    other = gymnasium.make_vec("CartPole-v1", CARTPOLES, vectorization_mode="async")
    other.reset(seed=0)
    try:
        ours, theirs, whole = _interleaved(
            repeats,
            lambda: CARTPOLES * rounds / overlapped(env, rounds),
            lambda: CARTPOLES * rounds / in_whole_steps(other, rounds),
            lambda: CARTPOLES * rounds / in_whole_steps(env, rounds),
        )
    finally:
        env.close()
        other.close()
    return paired_case(
        f"CartPole-v1 x {CARTPOLES}, 1 worker, against AsyncVectorEnv",
        "steps/s",
        ours,
        theirs,
        goal=5.0,
        goal_is="at least",
        details={"step() instead of send/recv": whole, "rounds": rounds, "workers": 1},
    )


def _interleaved(repeats: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Measure each side in turn, `repeats` times, after once that does not count."""
    rates: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, found in zip(sides, rates, strict=True):
            rate = side()
            if repeat:
                found.append(rate)
    return rates


def overlapped(env: Any, rounds: int) -> float:
    """Step every world `rounds` times by group, as the collector does; the seconds it took."""
    env.reset(seed=0)
    actions = _actions(env)
    groups = range(env.num_groups)
    parts = [_rows(actions, env.group_slice(group)) for group in groups]
    begin = time.perf_counter()
    for group in groups:
        env.send(parts[group], group)
    for _ in range(rounds - 1):
        for group in groups:
            env.recv(group)
            env.send(parts[group], group)
    for group in groups:
        env.recv(group)
    return time.perf_counter() - begin


def in_whole_steps(env: Any, rounds: int) -> float:
    """Step every world `rounds` times with `step`; the seconds it took."""
    env.reset(seed=0)
    actions = _actions(env)
    begin = time.perf_counter()
    for _ in range(rounds):
        env.step(actions)
    return time.perf_counter() - begin


def _actions(env: Any) -> Any:
    env.action_space.seed(0)
    return env.action_space.sample()


def _rows(actions: Any, rows: slice) -> Any:
    return actions[rows]


class RawProcesses:
    """Plain processes that step their own worlds, without sharing anything but a start signal.

    Args:
        count: number of processes.
        worlds: worlds in each.
        work: see `Busy`.
    """

    def __init__(self, count: int, worlds: int, work: int) -> None:
        code = "from rlgym.bench.vector import raw_worker; raw_worker()"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, json.dumps([worlds, work])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
                bufsize=1,
            )
            for _ in range(count)
        ]
        self._expect("ready")

    def run(self, rounds: int) -> float:
        """Step every world `rounds` times; the seconds until the last process was done."""
        begin = time.perf_counter()
        for process in self._processes:
            print(rounds, file=process.stdin, flush=True)
        self._expect("done")
        return time.perf_counter() - begin

    def _expect(self, word: str) -> None:
        for process in self._processes:
            said = process.stdout.readline().strip() if process.stdout else ""
            if said != word:
                raise RuntimeError(f"a raw process said {said!r} instead of {word!r}")

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()


def raw_worker() -> None:
    """Step worlds as often as each line of standard input says."""
    count, work = json.loads(sys.argv[1])
    worlds = [Busy(work) for _ in range(count)]
    action = worlds[0].action_space.sample()
    for world in worlds:
        world.reset(seed=0)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            for world in worlds:
                _, _, terminated, truncated, _ = world.step(action)
                if terminated or truncated:
                    world.reset()
        print("done", flush=True)
