"""Wrappers of tensor worlds that have to do otherwise than those of host worlds."""

from __future__ import annotations

import torch

from rlgym.vector.contract import VectorEnv
from rlgym.vector.wrappers import Batch, VectorWrapper


class DeviceRewardNormalize(VectorWrapper):
    """What `RewardNormalize` does, on the worlds' device and without reading anything back.

    The count, which float32 would cease to count from 2^24 on, is kept as a mean's weight and
    bounded: statistics of more than `MEMORY` steps follow the latest of them.

    Args:
        env: the vector env to wrap.
        gamma: discount of the return.
        epsilon: added to the variance.
    """

    MEMORY = 1e7
    changes_rewards = True

    def __init__(self, env: VectorEnv, gamma: float = 0.99, epsilon: float = 1e-8) -> None:
        """Begin with a deviation of 1 that weighs next to nothing."""
        super().__init__(env)
        self.gamma, self.epsilon = gamma, epsilon
        self._returns = torch.zeros(self.num_envs, device=self.device)
        self._continues = torch.zeros(self.num_envs, device=self.device)
        self._moments = torch.tensor([0.0, 1.0, 1e-4], device=self.device)
        self.reward_moments = self._moments
        self.state = {
            "returns": self._returns,
            "continues": self._continues,
            "moments": self._moments,
        }

    def _on_reset(self, obs: object, fresh: torch.Tensor) -> object:
        self._continues.mul_(fresh.logical_not())
        return obs

    def _on_step(self, batch: Batch, rows: slice) -> None:
        active = batch.info["active"]
        # a slot that did not act adds to the reward of its pending transition, undiscounted
        self._returns.mul_(self._continues * torch.where(active, self.gamma, 1.0))
        self._returns.add_(batch.reward)
        self._continues.copy_(batch.done.logical_not())
        mean, var, count = self._moments.unbind()
        batch.reward = batch.reward * (var + self.epsilon).rsqrt()
        weights = active.to(torch.float32)
        number = weights.sum()
        spread = self._returns - mean
        delta = (spread * weights).sum() / number.clamp(min=1.0)
        squares = ((spread - delta).square() * weights).sum()
        total = count + number
        squares = var * count + squares + delta.square() * count * number / total
        merged = torch.stack((mean + delta * number / total, squares / total, total))
        merged[2].clamp_(max=self.MEMORY)
        self._moments.copy_(torch.where(number > 0, merged, self._moments))
