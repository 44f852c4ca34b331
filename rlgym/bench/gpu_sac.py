"""Time of a SAC gradient step on an accelerator, against Stable-Baselines3's on the same one.

Both draw batches of 256 from a full replay buffer of a 17-number observation and 6 actions (those
of HalfCheetah), with two hidden layers of 256. Ours is what `rlgym.train` runs, recorded as a graph
where the device has them; SB3 is its `SAC.train`.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlgym.agents.sac import SAC
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.bench.harness import Result, paired_case, say
from rlgym.config import NetworkConfig, SACConfig
from rlgym.device import Mode, describe, has_graphs, resolve, synchronize
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.replay import ReplayBuffer
from rlgym.spaces import Layout

GOAL = 0.2
"""Ours / SB3's, of median seconds per gradient step."""
OBS = spaces.Box(-np.inf, np.inf, (17,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (6,), np.float32)
FILL = 20_000
"""Transitions in the buffers."""


def bench_gpu_sac(
    *, device: str = "auto", steps: int = 200, repeats: int = 7, quick: bool = False
) -> Result:
    """Milliseconds of one SAC gradient step, against SB3's on the same device.

    Args:
        device: where; the goal is for an accelerator.
        steps: gradient steps of a repetition.
        repeats: repetitions of both, taken in turn.
        quick: few steps, to see that everything works.
    """
    place = resolve(device)
    if quick:
        steps, repeats = 2, 1
    modes: tuple[Mode, ...] = ("graph", "eager") if has_graphs(place) else ("eager",)
    sides = {mode: _ours(place, mode) for mode in modes}
    sides["sb3"] = _sb3(place)  # type: ignore[index]
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            synchronize(place)
            begin = time.perf_counter()
            side(max(steps, 5))
            synchronize(place)
            if repeat:
                found[name].append((time.perf_counter() - begin) / max(steps, 5) * 1e3)
    for name, times in found.items():
        say(f"{name}: {statistics.median(times):.3f} ms a step")
    case = paired_case(
        "batch 256, hidden 256-256",
        "ms",
        found[modes[0]],
        found["sb3"],
        goal=GOAL,
        conditions={"the device is an accelerator": place.type != "cpu"},
        details={"milliseconds": found},
    )
    measured = f"milliseconds of one SAC gradient step on {describe(place)}, drawing included"
    return Result("gpu-sac", measured, (case,), quick)


def _ours(place: torch.device, mode: Mode) -> Callable[[int], Any]:
    layouts = Layout(OBS), Layout(ACTIONS)
    network = NetworkConfig(hidden=(256, 256), activation="relu", std="state", squash=True)
    policy = SoftPolicy.build(*layouts, network).to(place)
    learner = SAC(policy, SACConfig(batch_size=256), mode=mode)
    replay = ReplayBuffer(FILL, 8, *layouts, place, gamma=0.99)
    rollout = RolloutBuffer(100, 8, *layouts, place, keep_finals=True)
    for _ in range(FILL // 800):
        rollout.all_obs.normal_()  # type: ignore[union-attr]
        rollout.actions.uniform_(-1, 1)  # type: ignore[union-attr]
        rollout.host["rewards"][:] = np.random.default_rng(0).normal(size=(100, 8))
        rollout.upload()
        replay.add(rollout)
    generator = torch.Generator(place).manual_seed(0)
    return lambda count: learner.update(replay, count, 0.0, generator)


class _Nowhere(gymnasium.Env):
    """Spaces, and noise."""

    observation_space, action_space = OBS, ACTIONS

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(17, np.float32), {}

    def step(self, action: Any) -> Any:
        obs = self.np_random.standard_normal(17, np.float32)
        return obs, float(obs[0]), False, False, {}


def _sb3(place: torch.device) -> Callable[[int], Any]:
    from stable_baselines3 import SAC as SB3

    model = SB3("MlpPolicy", _Nowhere(), buffer_size=FILL, learning_starts=FILL, device=place)
    model.learn(2000)  # fills a part of the buffer without a gradient step
    return lambda count: model.train(gradient_steps=count, batch_size=256)
