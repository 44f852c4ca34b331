"""What a score means: whole episodes on worlds of their own, the same number in every slot."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rlgym.spaces import map_tree

NOISE_STEPS = 64
"""Steps for which exploration noise is drawn at once when an evaluation is not deterministic."""


IDLE_STEPS = 1000
"""Steps in which nobody acts in a slot, after which its remaining episodes are left out: a Unity
agent may have gone for good."""


@dataclass(frozen=True)
class EvalResult:
    """Returns of the evaluation episodes, undiscounted and unscaled."""

    returns: tuple[float, ...]
    """One per episode, slot by slot."""
    lengths: tuple[int, ...]
    """Steps of each episode."""
    successes: tuple[float, ...]
    """`info["is_success"]` at the end of each episode of a world that tells; else empty."""
    cut: int = 0
    """Episodes counted as they stood, because they passed the limit of steps."""

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def mean(self) -> float:
        """Mean return: the score."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes (population)."""
        return float(np.std(self.returns))

    @property
    def min(self) -> float:
        """Lowest return."""
        return float(np.min(self.returns))

    @property
    def max(self) -> float:
        """Highest return."""
        return float(np.max(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean length in steps."""
        return float(np.mean(self.lengths))

    @property
    def success_rate(self) -> float | None:
        """Share of successes; None where the world does not tell."""
        return float(np.mean(self.successes)) if self.successes else None

    def metrics(self) -> dict[str, float]:
        """The scalars of `rlgym.training.logging.NAMES`."""
        found = {
            "eval/mean_reward": self.mean,
            "eval/std_reward": self.std,
            "eval/mean_ep_length": self.mean_length,
        }
        if self.success_rate is not None:
            found["eval/success_rate"] = self.success_rate
        return found

    def document(self) -> dict[str, Any]:
        """The numbers and the episodes, ready for JSON."""
        numbers = {
            name: getattr(self, name)
            for name in ("episodes", "mean", "std", "min", "max", "mean_length", "success_rate")
        }
        return numbers | asdict(self)


@torch.no_grad()
def evaluate(
    policy: Any,
    env: Any,
    episodes: int,
    *,
    deterministic: bool = True,
    seed: int = 0,
    max_steps: int = 100_000,
) -> EvalResult:
    """Play exactly `episodes` episodes and report them.

    Each slot plays a quota fixed beforehand (they differ by one at most). Taking whichever episodes
    end first would favour short ones. An episode whose slot is lost does not count and is repeated.

    Args:
        policy: an `ActorCritic`, or anything that acts like one.
        env: vector env with tensors on the CPU, not the one that trains.
        episodes: how many, at least 1.
        deterministic: take the mode of the policy's distribution instead of a sample.
        seed: of the worlds and of the samples; the same seed plays the same episodes.
        max_steps: steps after which an episode counts as it stands and its slot plays no other,
            for worlds that never end one.
    """
    N, device = env.num_envs, policy.device
    missing = np.full(N, episodes // N)
    missing[: episodes % N] += 1
    found: list[list[tuple[float, int, float]]] = [[] for _ in range(N)]
    cut, step = 0, 0
    idle = np.zeros(N, np.int64)
    generator = torch.Generator(device).manual_seed(seed)
    noise = None
    obs, info = env.reset(seed=seed)
    state = policy.initial_state(N)
    start = torch.ones(N, dtype=torch.bool, device=device)
    while missing.any():
        if not deterministic and step % NOISE_STEPS == 0:
            noise = policy.noise(NOISE_STEPS, N, generator)
        mask = info.get("action_mask")
        actions, _, state = policy.act(
            map_tree(lambda tensor: tensor.to(device), obs),
            noise=None if noise is None else noise[step % NOISE_STEPS],
            state=state,
            start=start,
            mask=None if mask is None else mask.to(device),
            deterministic=deterministic,
        )
        obs, _, terminated, truncated, info = env.step(actions)
        step += 1
        ended = terminated | truncated
        start = ended.to(device)
        lengths = info["episode_length"].numpy()
        endless = (lengths >= max_steps) & ~ended.numpy()
        # where agents act when they like, an episode may end while its slot waits: the world tells
        whole = info["lost"] == 0 if "lost" in info else info["active"]
        counts = (ended & whole).numpy() | endless
        idle = np.where(info["active"].numpy(), 0, idle + 1)
        missing[idle >= IDLE_STEPS] = 0
        for row in np.flatnonzero(counts & (missing > 0)):
            success = float(info["is_success"][row]) if "is_success" in info else math.nan
            found[row].append((float(info["episode_return"][row]), int(lengths[row]), success))
            missing[row] = 0 if endless[row] else missing[row] - 1
            cut += int(endless[row])
    played = [episode for rows in found for episode in rows]
    return EvalResult(
        returns=tuple(score for score, _, _ in played),
        lengths=tuple(length for _, length, _ in played),
        successes=tuple(success for _, _, success in played if not math.isnan(success)),
        cut=cut,
    )
