"""Whether worlds in worker processes ever wait for the policy, with one group of them and with two.

A worker notes the time that it spends stepping; the rest of a rollout it waits: for actions, or for
the parent to take what it brought. With two groups one simulates while the other's actions are
computed, on the accelerator where there is one (copies by way of page-locked memory).
"""

import math
from statistics import median
from typing import Any

import torch

from rlgym.agents.policy import ActorCritic
from rlgym.bench.harness import Case, Result, say
from rlgym.config import NetworkConfig
from rlgym.device import resolve
from rlgym.registry import make_vec
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.collector import HostCollector

WORLD = "pybullet_envs_gymnasium:AntBulletEnv-v0"


def bench_host_overlap(
    *,
    world: str = WORLD,
    num_envs: int = 32,
    num_workers: int | None = None,
    device: str = "auto",
    steps: int = 64,
    repeats: int = 7,
    quick: bool = False,
) -> Result:
    """Share of a rollout in which PyBullet's workers wait, and the same for the policy's device.

    Args:
        world: what is simulated.
        num_envs: worlds; half of them in each group.
        num_workers: worker processes; None: as training chooses.
        device: the policy's.
        steps: of a rollout.
        repeats: rollouts of each number of groups, in turn.
        quick: one short rollout of each, to see that everything works.
    """
    if quick:
        num_envs, steps, repeats = 4, 8, 1
    place = resolve(device)
    collectors = [_collector(world, num_envs, num_workers, place, steps, g) for g in (1, 2)]
    found: list[list[dict[str, float]]] = [[], []]
    try:
        for repeat in range(repeats + 1):
            for collector, shares in zip(collectors, found, strict=True):
                measured = _shares(collector)
                if repeat:  # the first warms up
                    shares.append(measured)
        workers = len(collectors[1].env.unwrapped._links)
    finally:
        for collector in collectors:
            collector.env.close()
    one, two = found
    case = Case(
        f"{world}, {num_envs} worlds, {workers} workers, policy on {place}, workers wait",
        "share of a rollout",
        median(share["workers"] for share in two),
        0.05,
        values=tuple(share["workers"] for share in two),
        details={
            "with one group": [share["workers"] for share in one],
            "policy idle": [share["policy"] for share in two],
            "policy idle with one group": [share["policy"] for share in one],
            "steps per second": [share["rate"] for share in two],
            "steps per second with one group": [share["rate"] for share in one],
        },
    )
    say(case.line())
    measured = (
        f"1 - seconds of stepping / seconds of a rollout of {steps} steps, mean over the workers, "
        f"two overlapped groups, median of {repeats} rollouts (in turn with one group); where "
        "workers and policy share cores, time that the policy takes from a worker counts as its "
        "stepping"
    )
    return Result("host-overlap", measured, (case,), quick)


def _collector(
    world: str, num_envs: int, num_workers: int | None, place: torch.device, steps: int, groups: int
) -> Any:
    env = make_vec(
        world, num_envs, backend="process", num_workers=num_workers, num_groups=groups, seed=0
    )
    layouts = env.obs_layout, env.action_layout
    policy = ActorCritic.build(*layouts, NetworkConfig(hidden=(256, 256))).to(place)
    buffer = RolloutBuffer(steps, num_envs, *layouts, place)
    collector = HostCollector(env, policy, buffer, torch.Generator(place).manual_seed(0))
    collector.start(*env.reset(seed=0))
    return collector


def _shares(collector: Any) -> dict[str, float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stats = collector.collect()
    finally:
        torch.set_num_threads(threads)
    assert not math.isnan(stats.busy)
    return {
        "workers": 1.0 - stats.busy / stats.seconds,
        "policy": stats.idle / stats.seconds,
        "rate": stats.env_steps / stats.seconds,
    }
