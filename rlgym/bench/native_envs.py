"""Environment steps per second of the tensor worlds alone, on one core.

Random actions through the vector env's own `step`, episodes' statistics and automatic resets
included; Gymnasium's objects in its SyncVectorEnv beside them, taken in turn.
"""

import statistics
import time
from typing import Any

import gymnasium
import torch

from rlgym.bench.harness import Case, Result, paired_case, say
from rlgym.registry import TENSOR_WORLDS, make_vec

WORLDS = 4096
GOAL = 4e6
"""Steps per second of one core in CartPole."""
RATIO = 20.0
"""Ours / Gymnasium's, of the other worlds."""
HEADLINE = "CartPole-v1"


def bench_native_envs(*, repeats: int = 5, seconds: float = 1.0, quick: bool = False) -> Result:
    """Steps per second of 4,096 tensor worlds on one core, with random actions.

    Args:
        repeats: measurements of each world and side.
        seconds: length of each.
        quick: one short measurement of each, to see that everything works.
    """
    if quick:
        repeats, seconds = 1, 0.05
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        names = [HEADLINE, *(name for name in TENSOR_WORLDS if name != HEADLINE)]
        cases = tuple(_case(name, repeats, seconds) for name in names)
    finally:
        torch.set_num_threads(threads)
    measured = (
        f"env steps per second of {WORLDS} tensor worlds on one core with random actions, "
        f"median of {repeats}, and of Gymnasium's SyncVectorEnv of 8 objects"
    )
    return Result("native-envs", measured, cases, quick)


def _case(name: str, repeats: int, seconds: float) -> Case:
    env = make_vec(name, WORLDS, backend="device")
    theirs = gymnasium.make_vec(name, 8, vectorization_mode="sync")
    env.reset(seed=0)
    theirs.reset(seed=0)
    env.action_space.seed(0)
    theirs.action_space.seed(0)
    actions, few = torch.from_numpy(env.action_space.sample()), theirs.action_space.sample()
    ours = [_rate(env, actions, seconds) for _ in range(repeats + 1)][1:]
    host = [_rate(theirs, few, seconds) for _ in range(repeats)]
    env.close()
    theirs.close()
    say(f"{name}: {statistics.median(ours):,.0f} steps/s, Gymnasium {statistics.median(host):,.0f}")
    if name == HEADLINE:
        value = statistics.median(ours)
        details = {"gymnasium": host}
        return Case(name, "steps/s", value, GOAL, "at least", values=tuple(ours), details=details)
    return paired_case(name, "steps/s", ours, host, goal=RATIO, goal_is="at least")


def _rate(env: Any, actions: Any, seconds: float) -> float:
    """Steps per second over all slots."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(10):
            env.step(actions)
        count += 10
    return count * env.num_envs / (time.perf_counter() - begin)
