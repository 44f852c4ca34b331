"""What a policy did in its worlds: time-major tensors (T, N, ...), allocated once, and GAE.

Row `[t, n]` holds what slot n saw at step t, what it was told to do, and what came of it. Values
and log-probabilities are not stored: parameters and statistics do not change during a rollout, so
the learner evaluates all T * N rows in one batch instead of computing them step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgym.device import pin
from rlgym.spaces import Layout, Tree, map_tree, tree_items


def gae(
    rewards: Tensor,
    values: Tensor,
    last_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    bootstrap: Tensor,
    active: Tensor | None = None,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    For an active row, with V' the value of the next active row (`bootstrap` where the episode was
    truncated, 0 where it terminated):

        delta = reward + gamma V' - V        A = delta + gamma lam A'

    An inactive row is a step in which the slot took no action. Its reward and its end belong to
    the pending transition, the slot's last active row; V' and A' pass through it undiscounted.
    Inactive rows before a slot's first active row have no pending transition here and count for
    nothing.

    Args:
        rewards: (T, N) float.
        values: (T, N) V(obs) of the behaviour policy.
        last_values: (N,) V(obs) after the last row.
        terminated: (T, N) bool, the world ended in this step.
        truncated: (T, N) bool, time ran out in this step, or the slot was lost.
        bootstrap: (T, N) V(final_obs) where truncated, else 0.
        active: (T, N) bool; None when every row is active, which is faster.
        gamma: discount per step.
        lam: decay of the estimator.

    Returns:
        Advantages and returns (advantages + values), both (T, N); inactive rows have advantage 0.
    """
    goes_on = (~(terminated | truncated)).to(rewards.dtype)
    bootstrap = torch.where(terminated, torch.zeros_like(bootstrap), bootstrap)
    if active is None:
        next_values = torch.cat((values[1:], last_values[None]))
        delta = rewards + gamma * (goes_on * next_values + bootstrap) - values
        advantages = _scan_back(gamma * lam * goes_on, delta, torch.zeros_like(last_values))
        return advantages, advantages + values

    acts = active.to(rewards.dtype)
    passes = (1.0 - acts) * goes_on
    # What the row before sees of each row: its value, and the reward it hands back.
    seen = torch.stack((acts * values + (1.0 - acts) * bootstrap, (1.0 - acts) * rewards), dim=1)
    last = torch.stack((last_values, torch.zeros_like(last_values)))
    seen = _scan_back(passes[:, None], seen, last, keep_last=True)[1:]
    delta = rewards + goes_on * seen[:, 1] + gamma * (goes_on * seen[:, 0] + bootstrap) - values
    decay = goes_on * torch.where(active, gamma * lam, 1.0)
    advantages = acts * _scan_back(decay, acts * delta, torch.zeros_like(last_values))
    return advantages, advantages + values


def _scan_back(decay: Tensor, terms: Tensor, last: Tensor, keep_last: bool = False) -> Tensor:
    """Solve x[t] = terms[t] + decay[t] x[t + 1] backwards from x[T] = last.

    By doubling (Hillis and Steele 1986, doi 10.1145/7902.7903): after k rounds x[t] holds the next
    2^k terms, so T steps take log2(T) rounds of large operations instead of T small ones.
    """
    out = torch.cat((terms, last[None]))
    reach = 1
    while reach < len(out):
        out[:-reach] += decay * out[reach:]
        decay = decay[:-reach] * decay[reach:]
        reach *= 2
    return out if keep_last else out[:-1]


@dataclass(frozen=True)
class Finals:
    """The last observations of the episodes that ended in one step of some slots."""

    t: int
    """Row of the step."""
    slots: np.ndarray
    """(K,) int64: slots whose episode ended in it."""
    obs: Tree[Tensor]
    """Tree of (K, ...), on the buffer's device: what they saw last."""


class RolloutBuffer:
    """One rollout of `num_steps` steps in `num_envs` slots, overwritten by the next.

    Rewards and flags are written on the host, where worlds report them, and cross to the device
    once per rollout (`upload`); on a CPU both are the same memory. Observations and actions live on
    the device from the start, because the policy needs them there at each step.

    Args:
        num_steps: T.
        num_envs: N.
        obs_layout: layout of the observations.
        action_layout: layout of the actions.
        device: where the learner works.
        mask_size: flags of an action mask; 0 without masks.
        state_shape: shapes of a recurrent policy's state without the batch axis, as a tree.
        keep_finals: keep the last observation of every episode that ended, in place of the values
            of those that were truncated; replay buffers want it so.

    Attributes:
        obs: tree of (T, N, ...), in the world's own types (images stay uint8).
        actions: tree of (T, N, ...): raw actions, before clipping or squashing to the bounds.
        rewards: (T, N) float32.
        terminated: (T, N) bool.
        truncated: (T, N) bool.
        bootstrap: (T, N) float32: V(final_obs) where truncated and not terminated, else 0.
        active: (T, N) bool: False where the slot took no action; such rows weigh nothing.
        episode_start: (T, N) bool: obs[t] is the first of an episode.
        action_mask: (T, N, mask_size) bool, True = allowed; None without masks.
        last_obs: tree of (N, ...): the observation after the last row.
        all_obs: tree of (T + 1, N, ...): `obs` and `last_obs` in one piece; all_masks and
            all_starts likewise.
        last_start: (N,) bool: last_obs is the first of an episode.
        initial_state: tree of (N, ...): the recurrent state before row 0; None without memory.
        last_state: the recurrent state after the last row; None without memory.
        all_active: True when no row is inactive; known on the host, so the learner need not ask.
        finals: with `keep_finals`, last observations of the episodes that ended, in order of time;
            `bootstrap` is then 0 everywhere.
        host: the (T, N) numpy arrays behind rewards and flags.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        obs_layout: Layout,
        action_layout: Layout,
        device: torch.device | str = "cpu",
        mask_size: int = 0,
        state_shape: Tree[tuple[int, ...]] | None = None,
        keep_finals: bool = False,
    ) -> None:
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.device = torch.device(device)
        T, N = num_steps, num_envs

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.all_obs: Tree[Tensor] = _to(obs_layout.alloc(T + 1, N), self.device)
        self.obs: Tree[Tensor] = map_tree(lambda tensor: tensor[:-1], self.all_obs)
        self.last_obs: Tree[Tensor] = map_tree(lambda tensor: tensor[-1], self.all_obs)
        self.actions: Tree[Tensor] = _to(action_layout.alloc(T, N), self.device)
        hosts = {
            "rewards": torch.zeros(T, N),
            "terminated": torch.zeros(T, N, dtype=torch.bool),
            "truncated": torch.zeros(T, N, dtype=torch.bool),
            "active": torch.ones(T, N, dtype=torch.bool),
            "episode_start": torch.zeros(T + 1, N, dtype=torch.bool),
        }
        self._hosts = {name: pin(tensor, self.device) for name, tensor in hosts.items()}
        self.host = {name: tensor.numpy() for name, tensor in self._hosts.items()}
        on_device = {name: tensor.to(self.device) for name, tensor in self._hosts.items()}
        self.rewards, self.terminated = on_device["rewards"], on_device["terminated"]
        self.truncated, self.active = on_device["truncated"], on_device["active"]
        self.all_starts = on_device["episode_start"]
        self.episode_start = self.all_starts[:-1]
        self.last_start = self.all_starts[-1]
        self._on_device = on_device
        self.bootstrap = zeros(T, N)
        self.all_masks = zeros(T + 1, N, mask_size, dtype=torch.bool) if mask_size else None
        self.action_mask = None if self.all_masks is None else self.all_masks[:-1]
        self.initial_state: Tree[Tensor] | None = None
        self.last_state: Tree[Tensor] | None = None
        if state_shape is not None:
            self.initial_state = map_tree(lambda shape: zeros(N, *shape), state_shape)
            self.last_state = map_tree(lambda shape: zeros(N, *shape), state_shape)
        self.all_active = True
        self.keep_finals = keep_finals
        self.finals: list[Finals] = []

    def upload(self) -> None:
        """Bring rewards and flags from the host to the device; on a CPU they are there already."""
        if self.device.type != "cpu":
            for name, tensor in self._hosts.items():  # page-locked: nobody waits for it
                self._on_device[name].copy_(tensor, non_blocking=True)
        self.all_active = bool(self.host["active"].all())

    def download(self) -> None:
        """Bring rewards and flags that were written on the device to the host."""
        if self.device.type != "cpu":
            for name, array in self.host.items():
                torch.from_numpy(array).copy_(self._on_device[name])

    def advantages(
        self, values: Tensor, last_values: Tensor, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns of this rollout; see `gae`."""
        active = None if self.all_active else self.active
        return gae(
            self.rewards,
            values,
            last_values,
            self.terminated,
            self.truncated,
            self.bootstrap,
            active,
            gamma,
            lam,
        )

    @property
    def nbytes(self) -> int:
        """Bytes on the device, all tensors together."""
        trees: list[Any] = [self.all_obs, self.actions, self._on_device, self.bootstrap]
        optional = (self.all_masks, self.initial_state, self.last_state)
        trees += [tree for tree in optional if tree is not None]
        return sum(tensor.nbytes for tree in trees for _, tensor in tree_items(tree))


def _to(tree: Tree[np.ndarray], device: torch.device) -> Any:
    """Tensors on `device`; on a CPU they share the arrays' memory."""
    return map_tree(lambda array: torch.from_numpy(array).to(device), tree)
