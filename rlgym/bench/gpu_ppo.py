"""PPO in tensor worlds on an accelerator: collection alone, and the whole loop.

What is measured is what `rlgym.train` runs: `DeviceCollector` and `PPO`, recorded as graphs where
the device has them. Every number is also taken with graphs off, which says what they bring.
"""

import statistics
import time
from typing import Any

import torch

from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.bench.harness import Case, Result, say
from rlgym.config import NetworkConfig, PPOConfig
from rlgym.device import Mode, describe, has_graphs, resolve, synchronize
from rlgym.registry import make_vec
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.device_collector import DeviceCollector

WORLD = "CartPole-v1"
COLLECT_GOAL = 50e6
"""Environment steps per second of collection, policy included."""
LOOP_GOAL = 4e6
"""Environment steps per second of collection and learning, four epochs."""


def bench_gpu_ppo(
    *,
    device: str = "auto",
    worlds: tuple[int, ...] = (4096, 16384, 65536),
    steps: int = 32,
    repeats: int = 20,
    quick: bool = False,
) -> Result:
    """Environment steps per second of PPO on CartPole worlds that never leave the device.

    Args:
        device: where; the goals are for an accelerator.
        worlds: numbers of worlds; the best of them counts.
        steps: of a rollout.
        repeats: rollouts or iterations that are timed, after five that are not.
        quick: few worlds and rollouts, to see that everything works.
    """
    place = resolve(device)
    if quick:
        worlds, steps, repeats = (64,), 4, 1
    rows: list[dict[str, Any]] = []
    for count in worlds:
        for mode in ("graph", "eager") if has_graphs(place) else ("eager",):
            rows.append(_measure(place, count, steps, repeats, mode))
            say(f"{count} worlds, {mode}: {rows[-1]['text']}")
    cases = tuple(
        _case(what, goal, rows, place)
        for what, goal in (("collect", COLLECT_GOAL), ("loop", LOOP_GOAL))
    )
    measured = (
        f"env steps per second on {describe(place)}, policy 64-64, rollouts of {steps} steps: "
        "collection alone, and collection with four epochs of PPO"
    )
    return Result("gpu-ppo", measured, cases, quick)


def _case(what: str, goal: float, rows: list[dict[str, Any]], place: torch.device) -> Case:
    best = max(rows, key=lambda row: statistics.median(row[what]))
    name = {"collect": "collection", "loop": "whole loop"}[what]
    return Case(
        f"{WORLD}, {name}, {best['worlds']} worlds",
        "steps/s",
        statistics.median(best[what]),
        goal,
        "at least",
        values=tuple(best[what]),
        conditions={"the device is an accelerator": place.type != "cpu"},
        details={"rows": rows},
    )


def _measure(
    place: torch.device, count: int, steps: int, repeats: int, mode: Mode
) -> dict[str, Any]:
    env: Any = make_vec(WORLD, count, backend="device", device=place)
    network = NetworkConfig(hidden=(64, 64))
    policy = ActorCritic.build(env.obs_layout, env.action_layout, network).to(place)
    rows = count * steps
    cfg = PPOConfig(num_steps=steps, minibatch_size=max(rows // 4, 1), epochs=4)
    learner = PPO(policy, cfg, mode=mode)
    buffer = RolloutBuffer(steps, count, env.obs_layout, env.action_layout, place)
    generator = torch.Generator(place).manual_seed(0)
    collector = DeviceCollector(env, policy, buffer, generator, mode=mode)
    collector.start(*env.reset(seed=0))
    shuffle = torch.Generator(place).manual_seed(1)

    def loop() -> None:
        collector.collect()
        learner.update(buffer, 0.0, shuffle)

    found: dict[str, Any] = {"worlds": count, "mode": mode}
    for what, call in (("collect", collector.collect), ("loop", loop)):
        found[what] = _rates(call, place, rows, repeats)
    found["text"] = ", ".join(
        f"{what} {statistics.median(found[what]):,.0f} steps/s" for what in ("collect", "loop")
    )
    return found


def _rates(call: Any, place: torch.device, rows: int, repeats: int) -> list[float]:
    for _ in range(5):  # the first ones set things up, and record
        call()
    rates = []
    for _ in range(repeats):
        synchronize(place)
        begin = time.perf_counter()
        call()
        synchronize(place)
        rates.append(rows / (time.perf_counter() - begin))
    return rates
