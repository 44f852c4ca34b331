"""Time of one PPO minibatch: the `PPO.update` that `train` calls, against SB3's `PPO.train`.

Both get a rollout of the same size with random contents and go over it in the same number of
epochs and minibatches. What either does once per update is inside its time: ours evaluates the
rollout's values, log-probabilities and advantages there, SB3 did that while it collected. The
learning rate is so small that the policy, and with it the work, stays the same.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.bench.harness import Case, Result, paired_case, say
from rlgym.config import NetworkConfig, PPOConfig
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.spaces import Layout, map_tree

LEARNING_RATE = 1e-8
"""Small enough that thousands of updates on one rollout leave the policy as it is."""


@dataclass(frozen=True)
class Size:
    """One network with the minibatches that it is trained on."""

    name: str
    obs: int
    """Numbers in an observation."""
    actions: int
    """Discrete choices, or dimensions of a continuous action."""
    discrete: bool
    hidden: tuple[int, ...]
    activation: Literal["tanh", "elu"]
    minibatch: int
    """Transitions per minibatch."""
    minibatches: int
    """Minibatches per epoch; the rollout has minibatch * minibatches transitions."""
    epochs: int
    goal: float
    """Bound of ours / SB3's."""


SIZES = (
    Size("64-64 tanh, batch 256", 4, 2, True, (64, 64), "tanh", 256, 8, 10, goal=0.25),
    Size("256-128 ELU, batch 1024", 48, 12, False, (256, 128), "elu", 1024, 8, 5, goal=0.5),
)
NUM_ENVS = 8


def bench_ppo_update(
    *,
    repeats: int = 5,
    seconds: float = 3.0,
    threads: int | None = None,
    quick: bool = False,
) -> Result:
    """Milliseconds per PPO minibatch on a small and a larger network, against SB3's.

    Args:
        repeats: repetitions of each side, taken in turn.
        seconds: length of each.
        threads: torch threads of both; by default each side runs at the faster of 1 and 2.
        quick: one short repetition, to see that everything works.
    """
    sizes = SIZES
    if quick:
        repeats, seconds, threads = 1, 0.1, 1
        sizes = tuple(replace(size, minibatches=1, epochs=2) for size in SIZES)
    cases = []
    for size in sizes:
        cases.append(_compare(size, repeats, seconds, threads))
        say(cases[-1].line())
    measured = (
        "milliseconds per minibatch (forward, backward, optimizer, and a share of what an update "
        f"does once) of PPO.update against SB3's PPO.train, median of {repeats} interleaved"
    )
    return Result("ppo-update", measured, tuple(cases), quick)


def _compare(size: Size, repeats: int, seconds: float, threads: int | None) -> Case:
    before = torch.get_num_threads()
    sides = {"ours": our_update(size), "sb3": sb3_update(size)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    used = {}
    try:
        for name, update in sides.items():
            used[name] = threads or _faster_threads(update, size, seconds / 3)
        for _ in range(repeats):  # A B A B: whatever slows the machine for a while slows both
            for name, update in sides.items():
                torch.set_num_threads(used[name])
                times[name].append(milliseconds_per_minibatch(update, size, seconds))
    finally:
        torch.set_num_threads(before)
    return paired_case(
        size.name,
        "ms",
        times["ours"],
        times["sb3"],
        goal=size.goal,
        details={
            "threads": used,
            "minibatches_per_epoch": size.minibatches,
            "epochs": size.epochs,
        },
    )


def _faster_threads(update: Callable[[], object], size: Size, seconds: float) -> int:
    speed = {}
    for threads in {1, min(2, os.cpu_count() or 1)}:
        torch.set_num_threads(threads)
        speed[threads] = milliseconds_per_minibatch(update, size, seconds)
    return min(speed, key=lambda threads: speed[threads])


def milliseconds_per_minibatch(update: Callable[[], object], size: Size, seconds: float) -> float:
    """Call `update` for about some seconds and return the mean time of a minibatch in ms.

    Args:
        update: one update of `size.epochs * size.minibatches` minibatches.
        size: what it works on.
        seconds: time to spend, after one call that is not counted.
    """
    update()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or count == 0:
        update()
        count += size.epochs * size.minibatches
    return 1e3 * spent / count


class Worlds(gymnasium.Env):
    """Random observations without end: fills SB3's rollout.

    Args:
        size: its observation and action spaces.
    """

    def __init__(self, size: Size) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (size.obs,), np.float32)
        self.action_space = action_space(size)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return self.observation_space.sample(), float(self.np_random.normal()), False, False, {}


def action_space(size: Size) -> spaces.Space:
    """Return the action space of a size."""
    if size.discrete:
        return spaces.Discrete(size.actions)
    return spaces.Box(-1.0, 1.0, (size.actions,), np.float32)


def sb3_update(size: Size) -> Callable[[], object]:
    """Return SB3's update on one collected rollout."""
    activation = {"tanh": torch.nn.Tanh, "elu": torch.nn.ELU}[size.activation]
    model = SB3PPO(
        "MlpPolicy",
        DummyVecEnv([lambda: Worlds(size)] * NUM_ENVS),
        n_steps=size.minibatch * size.minibatches // NUM_ENVS,
        batch_size=size.minibatch,
        n_epochs=size.epochs,
        learning_rate=LEARNING_RATE,
        policy_kwargs={"net_arch": list(size.hidden), "activation_fn": activation},
        seed=0,
        device="cpu",
    )
    model.learn(size.minibatch * size.minibatches)
    return model.train


def our_update(size: Size) -> Callable[[], object]:
    """Return our update on one rollout with random contents."""
    obs = Layout(spaces.Box(-1.0, 1.0, (size.obs,), np.float32))
    actions = Layout(action_space(size))
    network = NetworkConfig(hidden=size.hidden, activation=size.activation)
    num_steps = size.minibatch * size.minibatches // NUM_ENVS
    config = PPOConfig(
        num_steps=num_steps,
        minibatch_size=size.minibatch,
        epochs=size.epochs,
        learning_rate=LEARNING_RATE,
    )
    policy = ActorCritic.build(obs, actions, network, seed=0)
    learner = PPO(policy, config, total_steps=10**6)
    buffer = RolloutBuffer(num_steps, NUM_ENVS, obs, actions)
    random = torch.Generator().manual_seed(0)
    map_tree(lambda rows: rows.uniform_(-1.0, 1.0, generator=random), buffer.all_obs)
    shape = (num_steps, NUM_ENVS)
    noise = policy.noise(num_steps, NUM_ENVS, random)
    for t in range(num_steps):
        _, raw, _ = policy.act(map_tree(lambda rows, t=t: rows[t], buffer.obs), noise[t])
        map_tree(lambda rows, new, t=t: rows[t].copy_(new), buffer.actions, raw)
    buffer.host["rewards"][:] = torch.randn(shape, generator=random).numpy()
    buffer.upload()
    return lambda: learner.update(buffer, 0.0, random)
