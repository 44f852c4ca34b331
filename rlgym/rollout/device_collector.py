"""A policy acting in worlds that are tensors: a whole rollout is one function, launched at once."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgym.device import GraphedFn, Mode
from rlgym.errors import WorldError
from rlgym.rollout.buffer import Finals, RolloutBuffer
from rlgym.rollout.collector import Collector, CollectStats, Policy, copy_tree, step_rows
from rlgym.spaces import Tree, map_tree, tree_items


class DeviceCollector(Collector):
    """Steps device worlds with a policy and stores what happens, time-major, on their device.

    Policy, step and store of all `num_steps` steps are one function of static shapes: where the
    device has graphs it is recorded once and replayed (`rlgym.device.GraphedFn`). Nothing is read
    back until the rollout ends; then come the episodes' statistics, in one go.

    Truncated episodes are bootstrapped on the way: the worlds say how many steps lie between two
    truncations of a slot at least, so one last observation per slot has to be kept for that long.

    Args:
        env: vector env of kind "device".
        policy: chooses actions, on the worlds' device.
        buffer: filled by `collect`, on the same device.
        generator: source of the policy's noise; nothing else may draw from it.
        guard: stop where an observation or a reward is not finite.
        mode: see `GraphedFn`.
    """

    def __init__(
        self,
        env: Any,
        policy: Policy,
        buffer: RolloutBuffer,
        generator: torch.Generator,
        guard: bool = True,
        mode: Mode = "auto",
    ) -> None:
        super().__init__(env, policy, buffer, generator, buffer.last_start)
        self.guard = guard
        self.mode: Mode = mode
        batch = env.unwrapped.batch
        self.obstacle: str = batch.obstacle
        self._gap = min(batch.truncation_gap, buffer.num_steps)
        self._rollouts: dict[Any, GraphedFn] = {}
        T, N, device = buffer.num_steps, env.num_envs, buffer.device
        # Views of every row, made once: indexing a tensor costs as much as copying a small one.
        self._obs = step_rows(buffer.all_obs, T + 1)
        self._actions = step_rows(buffer.actions, T)
        self._masks = None if buffer.all_masks is None else buffer.all_masks.unbind(0)
        self._starts = buffer.all_starts.unbind(0)
        self._episodes = torch.zeros(2, T, N, device=device)
        self._active = buffer.active.unbind(0)
        fields = (buffer.rewards, buffer.terminated, buffer.truncated)
        self._columns = [tensor.unbind(0) for tensor in (*fields, *self._episodes.unbind(0))]
        self._terms = {name: torch.zeros(T, N, device=device) for name in env.reward_term_names}
        self._success = torch.full((T, N), torch.nan, device=device)
        self._finals: Any = None
        if buffer.keep_finals:
            self._finals = map_tree(torch.zeros_like, buffer.obs)
        self._kept: Any = map_tree(torch.zeros_like, buffer.last_obs)
        self._kept_state: Any = None
        if self._state is not None:
            self._kept_state = map_tree(torch.clone, self._state)

    @torch.inference_mode()
    def begin(self) -> None:
        """Launch the rollout; what the caller does before `finish` is done beside it."""
        begin = perf_counter()
        self._stats = CollectStats()
        noise = self.policy.noise(self.buffer.num_steps, self.env.num_envs, self.generator)
        every = getattr(noise, "every", 1)  # noise that is held says for how many steps
        blocks = noise if isinstance(noise, Tensor) else noise.blocks
        key = (every, getattr(self.policy, "random", False))
        if key not in self._rollouts:
            name = "the rollout"
            rollout = GraphedFn(
                lambda blocks: self._roll(blocks, every),
                self.buffer.device,
                self.mode,
                name,
                self.obstacle,
            )
            self._rollouts[key] = rollout
        self._rollouts[key](blocks)
        self._stats.seconds = perf_counter() - begin

    @torch.no_grad()
    def finish(self) -> CollectStats:
        """Read the episodes' statistics, and see that every value is finite.

        Raises:
            WorldError: one is not; the message names the world, the slot, the step and the value.
        """
        begin = perf_counter()
        stats, buffer = self._stats, self.buffer
        if self.guard:
            self._look_for_nan()
        buffer.all_active = bool(buffer.active.all())
        stats.env_steps = buffer.active.numel()
        if not buffer.all_active:
            stats.env_steps = int(buffer.active.sum())
        done = (buffer.terminated | buffer.truncated).cpu().numpy()
        if done.any():
            returns, lengths = self._episodes.cpu().numpy()
            stats.returns = returns[done].tolist()
            stats.lengths = lengths[done].astype(np.int64).tolist()
            success = self._success.cpu().numpy()[done]
            stats.successes = success[~np.isnan(success)].tolist()
        if self._finals is not None:
            buffer.download()
            self._keep_finals(done)
        for name, values in self._terms.items():
            present = values.isfinite()
            total = torch.where(present, values, 0.0).sum()
            stats.term_sums[name] = (float(total), int(present.sum()))
        stats.seconds += perf_counter() - begin
        return stats

    # ------------------------------------------------------------------ the rollout
    def _roll(self, blocks: Tensor, every: int) -> None:
        """All steps: what is recorded. `blocks` (T / every, N, K) is the policy's noise."""
        buffer, T = self.buffer, self.buffer.num_steps
        noise = blocks.unbind(0)
        self._carry_over()
        self.env.unwrapped.prepare(T)
        begin = 0
        for t in range(T):
            self._step(t, noise[t // every])
            if not buffer.keep_finals and (t + 1 - begin == self._gap or t + 1 == T):
                self._bootstrap(slice(begin, t + 1))
                begin = t + 1
        if self._state is not None:
            copy_tree(buffer.last_state, self._state)

    def _carry_over(self) -> None:
        """Begin where the last rollout ended."""
        buffer = self.buffer
        copy_tree(self._obs[0], self._obs[-1])
        self._starts[0].copy_(self._starts[-1])
        if self._masks is not None:
            self._masks[0].copy_(self._masks[-1])
        if self._state is not None:
            copy_tree(buffer.initial_state, self._state)

    def _step(self, t: int, noise: Tensor) -> None:
        mask = None if self._masks is None else self._masks[t]
        if self._state is None:
            actions, raw, _ = self.policy.act(self._obs[t], noise=noise, mask=mask)
        else:
            actions, raw, after = self.policy.act(
                self._obs[t], noise=noise, state=self._state, start=self._starts[t], mask=mask
            )
            copy_tree(self._state, after)
        copy_tree(self._actions[t], raw)
        obs, reward, terminated, truncated, info = self.env.step(actions)
        copy_tree(self._obs[t + 1], obs)
        values = (reward, terminated, truncated, info["episode_return"], info["episode_length"])
        for column, value in zip(self._columns, values, strict=True):
            column[t].copy_(value)
        if info["active"] is not self.env.unwrapped.all_active:
            self._active[t].copy_(info["active"])
        torch.logical_or(terminated, truncated, out=self._starts[t + 1])
        if self._masks is not None:
            self._masks[t + 1].copy_(info["action_mask"])
        if "is_success" in info:
            self._success[t].copy_(info["is_success"])
        for name, total in self._terms.items():
            total[t].copy_(info["reward_terms"][name])
        self._keep(t, info["final_obs"], truncated)

    def _keep(self, t: int, final_obs: Tree[Tensor], truncated: Tensor) -> None:
        """Keep what the truncated slots saw last, until it is bootstrapped from."""
        if self._finals is not None:
            map_tree(lambda kept, new: kept[t].copy_(new), self._finals, final_obs)
            return
        pairs = [(self._kept, final_obs)]
        if self._state is not None:
            pairs.append((self._kept_state, self._state))
        for kept_tree, new_tree in pairs:
            for (_, kept), (_, new) in zip(
                tree_items(kept_tree), tree_items(new_tree), strict=True
            ):
                flags = truncated.view(-1, *[1] * (kept.ndim - 1))
                torch.where(flags, new, kept, out=kept)

    def _bootstrap(self, steps: slice) -> None:
        """V(final_obs) of the episodes that were truncated in these steps: one a slot at most."""
        buffer = self.buffer
        if self._state is None:
            values = self.policy.values(self._kept)
        else:
            start = torch.zeros_like(self._starts[0])
            values = self.policy.values(self._kept, self._kept_state, start)
        cut = buffer.truncated[steps] & ~buffer.terminated[steps]
        buffer.bootstrap[steps] = torch.where(cut, values, 0.0)

    def _keep_finals(self, done: np.ndarray) -> None:
        """Hand over the last observations of the episodes that ended, as replay buffers want it."""
        finals = self.buffer.finals
        finals.clear()
        for t in np.flatnonzero(done.any(1)).tolist():
            slots = np.flatnonzero(done[t])
            index = torch.from_numpy(slots).to(self.buffer.device)
            finals.append(Finals(t, slots, map_tree(lambda x: x[t][index], self._finals)))  # noqa: B023

    # ------------------------------------------------------------------ looking
    def _look_for_nan(self) -> None:
        buffer = self.buffer
        watched = {"reward": buffer.rewards}
        for key, tensor in tree_items(buffer.all_obs):
            if tensor.is_floating_point():
                watched[f"observation {key!r}" if key else "observation"] = tensor[1:]
        if self._finals is None:
            watched["value of a truncated episode's last observation"] = buffer.bootstrap
        fine = torch.stack([tensor.isfinite().all() for tensor in watched.values()])
        for (what, tensor), is_fine in zip(watched.items(), fine.tolist(), strict=True):
            if not is_fine:
                bad = (
                    ~tensor.isfinite().flatten(2).all(2) if tensor.ndim > 2 else ~tensor.isfinite()
                )
                t, slot = (int(i) for i in bad.nonzero()[0])
                raise WorldError(
                    f"world {self.env.traits.spec_id}, slot {slot}: {what} is not finite in step "
                    f"{t} of a rollout of {buffer.num_steps}. Correct the world; its state before "
                    "this rollout is in the last checkpoint"
                )
