"""Experience that an off-policy learner draws from: n-step transitions, goals in hindsight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgym.errors import StateError, UserError
from rlgym.rollout.budget import ring_rows, row_bytes
from rlgym.rollout.demonstrations import Demonstrations
from rlgym.rollout.hindsight import ACHIEVED, DESIRED, Hindsight
from rlgym.rollout.priorities import Prioritized
from rlgym.rollout.ring import FINAL, OPEN, TERMINATED, Ring, named
from rlgym.spaces import Layout, Tree

EVEN = 0.9
"""Share of drawn rows that must hold something; below it, those that do are listed."""


@dataclass
class Batch:
    """Transitions drawn from a replay buffer; B of them."""

    obs: Tree[Tensor]
    """Tree of (B, ...), in the world's own types."""
    actions: Tree[Tensor]
    """Tree of (B, ...), as the critic takes them."""
    rewards: Tensor
    """(B,) sum of gamma^k reward over the steps to `next_obs`."""
    next_obs: Tree[Tensor]
    """Tree of (B, ...): what was seen after those steps."""
    discounts: Tensor
    """(B,) gamma^steps, 0 where the episode terminated on the way."""
    weights: Tensor
    """(B,) weight of each loss; 0 for a row that holds no transition. Divide by their sum."""
    index: Tensor
    """(B,) int64: the drawn rows, for `set_priorities`."""
    mask: Tensor | None = None
    """(B, M) bool, actions allowed in `obs`; None without masks."""
    next_mask: Tensor | None = None
    """(B, M) bool, the same in `next_obs`: all of them, where that is an episode's last."""


class ReplayBuffer(Ring):
    """The newest transitions of every slot, on the learner's device.

    A final observation takes a row of its own, so episodes of L steps fill `capacity` rows with
    capacity * L / (L + 1) transitions. All rows are drawn with equal chance; one that is no
    transition gets weight 0.

    Args:
        capacity: rows over all slots, beside one open row per slot.
        num_envs: N slots.
        obs_layout: layout of the observations.
        action_layout: layout of the stored actions.
        device: where the rows live and batches are made.
        gamma: discount per step.
        n_step: rewards summed in one transition. A sum ends early with the episode, and at the
            newest row.
        mask_size: flags of an action mask; 0 without masks.
        memory: GiB that the buffer may take; None = three quarters of what is free.
        prioritized: draw by priority; None draws uniformly.
        hindsight: replace goals; None leaves them. The reward function runs on the host.

    Raises:
        UserError: before anything is allocated, when it does not fit the memory; settings that
            contradict the world.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_layout: Layout,
        action_layout: Layout,
        device: torch.device | str = "cpu",
        *,
        gamma: float = 0.99,
        n_step: int = 1,
        mask_size: int = 0,
        memory: float | None = None,
        prioritized: Prioritized | None = None,
        hindsight: Hindsight | None = None,
    ) -> None:
        if capacity < 1 or n_step < 1:
            raise UserError(
                f"a buffer of {capacity} transitions with n-step {n_step}: make both at least 1 "
                "with --algo.buffer-size and --algo.n-step"
            )
        if hindsight is not None:
            hindsight.check(obs_layout)
        layouts = obs_layout, action_layout
        super().__init__(
            capacity,
            num_envs,
            *layouts,
            device,
            mask_size,
            memory,
            prioritized,
            hindsight is not None,
        )
        self.gamma = gamma
        self.n_step = n_step
        self.hindsight = hindsight
        self._obs_keys = [leaf.key for leaf in obs_layout.leaves]
        self._action_keys = [leaf.key for leaf in action_layout.leaves]
        flags = np.arange(OPEN + 1)
        outcomes = np.stack((gamma * (flags & TERMINATED == 0), flags < FINAL))
        self._outcomes = torch.from_numpy(outcomes.astype(np.float32)).to(self.device)
        steps = torch.arange(n_step + 1, device=self.device)
        self._gammas, self._offsets = gamma ** steps.float(), steps[:, None] * num_envs
        self._prepare()

    @staticmethod
    def bytes_needed(
        capacity: int,
        num_envs: int,
        obs_layout: Layout,
        action_layout: Layout,
        mask_size: int = 0,
        prioritized: bool = False,
        hindsight: bool = False,
    ) -> int:
        """Bytes that a buffer of these settings takes on its device."""
        row = row_bytes(obs_layout, action_layout, mask_size, prioritized, hindsight)
        return ring_rows(capacity, num_envs) * num_envs * row

    def add_demonstrations(
        self, demonstrations: Demonstrations, scale_action: Callable[[Any], Any] | None = None
    ) -> None:
        """Append recorded episodes, each to the slot that holds the fewest rows.

        Like everything in a ring, they leave it when newer rows need the room. Of an old run's
        buffer that is larger than this one, the oldest rows are gone at once.

        Args:
            demonstrations: what `rlgym.rollout.demonstrations.load` returned.
            scale_action: from the world's units to the stored ones, a batch of actions at once;
                None when they are the same. Not used for demonstrations that are stored already.

        Raises:
            UserError: what was recorded for the purpose does not fit.
        """
        episodes = list(demonstrations.episodes())
        slots = self._share(episodes)
        if not demonstrations.stored:
            taken = np.bincount(slots, [last - first for first, last in episodes])
            if taken.max() > self.num_rows - 1:
                raise UserError(
                    f"{len(demonstrations.flags):,} rows of demonstrations do not fit the "
                    f"{self.num_rows - 1:,} rows of each of {self.num_envs} slots, in whole "
                    f"episodes: pass --algo.buffer-size {int(taken.max()) * self.num_envs}"
                )
        actions = demonstrations.actions
        if scale_action is not None and not demonstrations.stored:
            actions = scale_action(actions)
        values = {**named("obs", demonstrations.obs), **named("actions", actions)}
        if "mask" in self._fields:
            mask = demonstrations.mask
            everything = torch.ones(len(demonstrations.flags), self._mask_size, dtype=torch.bool)
            values["mask"] = everything if mask is None else mask
        self._cut(np.flatnonzero(self._pending))
        for slot, (first, last) in zip(slots, episodes, strict=True):
            rows = slice(max(first, last - self.num_rows + 1), last)
            part = {name: value[rows] for name, value in values.items()}
            flags = demonstrations.flags[rows]
            self._append(slot, part, demonstrations.rewards[rows], flags)
        self._publish()

    def _share(self, episodes: list[tuple[int, int]]) -> list[int]:
        """Choose a slot for each episode: the one that was given the fewest rows so far."""
        heads, slots = self._heads.copy(), []
        for first, last in episodes:
            slot = int(heads.argmin())
            heads[slot] += last - first
            slots.append(slot)
        return slots

    def mark_saved(self) -> None:
        super().mark_saved()
        self._prepare()

    def _publish(self) -> None:
        super()._publish()
        self._prepare()

    def _prepare(self) -> None:
        """Say which numbers are drawn, and how they become rows."""
        heads, rows, N = self._heads, self.num_rows, self.num_envs
        top = int(heads.max())
        self._stored = min(top, rows - 1) if N == 1 else int(np.minimum(heads, rows - 1).sum())
        # Every number below `span` is a row. Some hold nothing and weigh nothing: the open ones,
        # and those that a slot has not reached. Where these are many, the others are listed.
        self._span = min(top, rows) * N
        self._uneven = self._stored < EVEN * self._span
        if self._uneven:
            ends = np.minimum(heads, rows - 1).cumsum()
            bases = (heads - ends) % rows  # a slot's oldest row, less the rows of the slots before
            table = torch.from_numpy(np.stack((ends, bases))).to(self.device)
            self._ends, self._bases = table.unbind(0)
        if self.hindsight is not None:
            self._newest = torch.from_numpy(heads % rows).to(self.device)

    def _draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw rows; each row that holds something has the same chance."""
        count = self._stored if self._uneven else self._span
        index = torch.randint(count, (batch_size,), generator=generator, device=generator.device)
        index = index.to(self.device)
        if not self._uneven:
            return index
        slots = torch.searchsorted(self._ends, index, right=True)
        index += self._bases.index_select(0, slots)
        return index.remainder_(self.num_rows).mul_(self.num_envs).add_(slots)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch; nothing is read back from the device (hindsight's rewards apart).

        Args:
            batch_size: B.
            generator: all the randomness there is, on the CPU or on the buffer's device.

        Raises:
            StateError: the buffer is empty.
        """
        if self._stored == 0:
            raise StateError("the replay buffer is empty: add a rollout before drawing from it")
        importance = goals = None
        if self._priorities is None:
            index = self._draw(batch_size, generator)
        else:
            index, importance = self._priorities.draw(batch_size, generator)
        flags = self._copies["flags"].index_select(0, index)
        discounts, weights = self._outcomes.index_select(1, flags).unbind(0)
        if self.hindsight is not None:
            goals = self._goals(index, self.hindsight, generator)
        if self.n_step == 1:
            following = (index + self.num_envs).remainder_(self._size)
            rewards = self._copies["rewards"].index_select(0, index)
            if goals is not None:
                rewards = self._relabelled(following[None], rewards[None], goals)[0]
        else:
            rewards, discounts, following = self._walk(index, goals)
        if importance is not None:
            weights = weights * importance
        both = torch.cat((index, following))  # one gather instead of two
        obs, next_obs = self._halves("obs", self._obs_keys, both, batch_size)
        if goals is not None:
            chosen, desired = goals
            for tree in (obs, next_obs):
                tree[DESIRED] = torch.where(chosen, desired, tree[DESIRED])  # type: ignore[index]
        mask = next_mask = None
        if self._mask_size:
            mask, next_mask = self._halves("mask", [""], both, batch_size)
        actions: Tree[Tensor] = {
            key: self._fields[f"actions/{key}" if key else "actions"].index_select(0, index)
            for key in self._action_keys
        }
        if self._action_keys == [""]:
            actions = actions[""]
        return Batch(obs, actions, rewards, next_obs, discounts, weights, index, mask, next_mask)

    def _halves(self, prefix: str, keys: list[str], both: Tensor, batch_size: int) -> Any:
        """Gather a tree's rows, and give the first and the second half of them."""
        if keys == [""]:
            return self._fields[prefix].index_select(0, both).split(batch_size)
        parts = [
            self._fields[f"{prefix}/{key}"].index_select(0, both).split(batch_size) for key in keys
        ]
        return tuple(dict(zip(keys, half, strict=True)) for half in zip(*parts, strict=True))

    def set_priorities(self, index: Tensor, errors: Tensor) -> None:
        """Give drawn rows the priority of their new temporal-difference errors.

        Args:
            index: (B,) `Batch.index`.
            errors: (B,) of either sign.
        """
        if self._priorities is not None:
            self._priorities.update(index, errors)

    def anneal(self, progress: float) -> None:
        """Let the importance weights grow to full correction over a run (0 to 1)."""
        if self._priorities is not None:
            start = self._priorities.settings.importance
            self._priorities.beta = start + (1.0 - start) * min(max(progress, 0.0), 1.0)

    def _walk(
        self, index: Tensor, goals: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum up to n rewards from each row on.

        Returns:
            Sums, discounts (B,) and the indices of the rows after the last summed one.
        """
        n, B = self.n_step, len(index)
        path = (index + self._offsets).remainder_(self._size)  # (n + 1, B): steps lie in rows
        rows = path[:n].view(-1)
        flags = self._copies["flags"].index_select(0, rows).view(n, B)
        rewards = self._copies["rewards"].index_select(0, rows).view(n, B)
        if goals is not None:
            rewards = self._relabelled(path[1:], rewards, goals)
        # A step counts when the one before ended nothing and it is not the open row itself.
        counts = torch.ones_like(rewards)
        counts[1:] = (flags[:-1] == 0) & (flags[1:] < FINAL)
        counts = counts.cumprod(0)
        steps = counts.sum(0, keepdim=True).long()
        goes_on = 1.0 - (counts * (flags & TERMINATED)).sum(0)
        discounts = self._gammas.index_select(0, steps[0]) * goes_on
        total = self._gammas[:n] @ rewards.mul(counts)
        return total, discounts, path.gather(0, steps)[0]

    def _goals(
        self, index: Tensor, hindsight: Hindsight, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Choose which rows get another goal, and one achieved later in their episode for each.

        Returns:
            (B, 1, ...) bool, True where relabelled, and the goals (B, *goal).
        """
        shape = (2, len(index))
        noise = torch.rand(shape, generator=generator, device=generator.device).to(self.device)
        left = self._copies["left"].index_select(0, index).long()
        ahead = self._newest.index_select(0, index % self.num_envs) - index // self.num_envs
        # an episode in progress reaches to the open row
        left = torch.where(left > 0, left, ahead % self.num_rows).clamp_(min=1)
        later = 1 + (noise[1] * left).long().clamp_(max=left - 1)
        place = (index + self.num_envs * later).remainder_(self._size)
        goals = self._fields[f"obs/{ACHIEVED}"].index_select(0, place)
        return (noise[0] < hindsight.share).view(-1, *[1] * (goals.ndim - 1)), goals

    def _relabelled(self, after: Tensor, rewards: Tensor, goals: tuple[Tensor, Tensor]) -> Tensor:
        """Rewards (n, B) of steps that led to the rows `after` (n, B), under the new goals."""
        chosen, desired = goals
        achieved = self._fields[f"obs/{ACHIEVED}"].index_select(0, after.reshape(-1))
        assert self.hindsight is not None
        found = self.hindsight.rewards(achieved.view(*after.shape, *achieved.shape[1:]), desired)
        return torch.where(chosen.flatten(), found, rewards)
