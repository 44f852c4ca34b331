"""A policy acting in host worlds: fills a rollout buffer, two groups of worlds overlapped."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlgym.device import synchronize
from rlgym.rollout.buffer import Finals, RolloutBuffer
from rlgym.rollout.transfer import Transfer
from rlgym.spaces import Tree, map_tree, tree_items


class Policy(Protocol):
    """What a collector needs of a policy; `rlgym.agents.policy.ActorCritic` has it."""

    def noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Any:
        """Draw a whole rollout's noise at once, (num_steps, num_envs, K); used as `[t, rows]`."""
        ...

    def act(
        self, obs: Any, noise: Any = None, state: Any = None, start: Any = None, mask: Any = None
    ) -> tuple[Any, Any, Any]:
        """Choose actions: `(for the world, raw for the buffer, next recurrent state)`."""
        ...

    def values(self, obs: Any, state: Any = None, start: Any = None) -> Tensor:
        """V(obs), (batch,)."""
        ...

    def initial_state(self, num_envs: int) -> Any:
        """Recurrent state at the start of an episode, a tree of (num_envs, ...); or None."""
        ...


@dataclass
class CollectStats:
    """What happened in one rollout, besides what the buffer holds."""

    returns: list[float] = field(default_factory=list)
    """Undiscounted, unscaled returns of the episodes that ended, in order of time, then slot."""
    lengths: list[int] = field(default_factory=list)
    """Their lengths, in steps of their own slot."""
    successes: list[float] = field(default_factory=list)
    """Their `info["is_success"]`, where the world gives it."""
    env_steps: int = 0
    """Active rows: steps in which a world took an action."""
    seconds: float = 0.0
    """Wall time of the rollout."""
    idle: float = 0.0
    """Seconds in which the policy waited for worlds."""
    policy: float = 0.0
    """Seconds of inference, of the device's own where it is an accelerator."""
    busy: float = float("nan")
    """Seconds in which the workers of the worlds were at work, on average; NaN without workers."""
    transfer: float = 0.0
    """Seconds of copies to the learner's device at the end of the rollout."""
    term_sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum of each named reward term, and the number of steps that gave it."""

    @property
    def reward_terms(self) -> dict[str, float]:
        """Mean of each named reward term over the rollout's steps; NaN where no step gave it."""
        sums = self.term_sums.items()
        return {name: total / count if count else float("nan") for name, (total, count) in sums}

    def add(self, other: CollectStats) -> None:
        """Add what happened in a later rollout."""
        self.returns += other.returns
        self.lengths += other.lengths
        self.successes += other.successes
        self.env_steps += other.env_steps
        self.seconds += other.seconds
        self.idle += other.idle
        self.policy += other.policy
        self.busy = other.busy if math.isnan(self.busy) else self.busy + other.busy
        self.transfer += other.transfer
        for name, (total, count) in other.term_sums.items():
            before, steps = self.term_sums.get(name, (0.0, 0))
            self.term_sums[name] = (before + total, steps + count)


class Collector(ABC):
    """What the collectors of one process share: where they begin, and how they resume.

    Args:
        env: vector env.
        policy: chooses actions, on the buffer's device.
        buffer: filled by `collect`.
        generator: source of the policy's noise; nothing else may draw from it.
        last_start: the buffer's `last_start`, where this collector writes it.
    """

    def __init__(
        self,
        env: Any,
        policy: Policy,
        buffer: RolloutBuffer,
        generator: torch.Generator,
        last_start: Tensor,
    ) -> None:
        self.env = env
        self.policy = policy
        self.buffer = buffer
        self.generator = generator
        fresh = policy.initial_state(env.num_envs)
        self._state: Any = None if fresh is None else map_tree(torch.clone, fresh)
        self._last_start = last_start
        self._marked: dict[str, Tensor] = {}
        self._stats = CollectStats()

    def start(self, obs: Tree[Tensor], info: dict[str, Any]) -> None:
        """Take what `env.reset` or `env.restore` returned as the next observation."""
        buffer = self.buffer
        copy_tree(buffer.last_obs, obs)
        if buffer.all_masks is not None:
            buffer.all_masks[-1].copy_(info["action_mask"])
        self._last_start.fill_(True)
        if self._state is not None:
            copy_tree(self._state, self.policy.initial_state(self.env.num_envs))
        self.mark()

    def collect(self) -> CollectStats:
        """Fill the buffer with `num_steps` steps of every slot.

        An exception (a signal, a world) leaves the buffer half filled; `state` still describes the
        last `mark`.
        """
        self.begin()
        return self.finish()

    @abstractmethod
    def begin(self) -> None:
        """Do what of `collect` needs no waiting; what the caller then does is done beside it."""

    @abstractmethod
    def finish(self) -> CollectStats:
        """Do the rest of `collect`."""

    def mark(self) -> None:
        """Remember this moment, between two rollouts, as what `state` describes."""
        self.env.mark()
        self._marked = {
            "generator": self.generator.get_state().clone(),
            "episode_start": self._last_start.clone(),
        }
        if self._state is not None:
            for key, tensor in tree_items(self._state):
                self._marked[f"recurrent:{key}"] = tensor.clone()

    def state(self) -> dict[str, Tensor]:
        """The noise generator, recurrent state and episode starts at the last mark."""
        return self._marked

    def load_state(self, state: dict[str, Tensor], replayed: Tensor | None = None) -> None:
        """Go on from `state`, after `start` was given the restored observations.

        Args:
            state: what `state` returned.
            replayed: (num_envs,) bool: slots that stand where they stood; the others keep the start
                of a new episode.
        """
        set_generator(self.generator, state["generator"])
        starts = self._last_start
        saved = state["episode_start"].to(starts.device)
        starts.copy_(saved if replayed is None else saved | ~replayed.to(starts.device))
        if self._state is not None:
            for key, tensor in tree_items(self._state):
                tensor.copy_(state[f"recurrent:{key}"])
        self.mark()


class HostCollector(Collector):
    """Steps host worlds with a policy and stores what happens, time-major.

    With two groups, one simulates while the actions of the other are computed. The noise of a whole
    rollout is drawn at once, so the number of groups does not change what the policy does.

    A recurrent state advances in every row, active or not, and is reset where an episode starts;
    the learner, which evaluates whole sequences, does the same.

    Args:
        env: vector env with tensors on the CPU; the collector copies observations to the device.
        policy: chooses actions, on the buffer's device.
        buffer: filled by `collect`.
        generator: source of the policy's noise; nothing else may draw from it.
        transfer: copies between host and device; None makes it where they are not one.
    """

    def __init__(
        self,
        env: Any,
        policy: Policy,
        buffer: RolloutBuffer,
        generator: torch.Generator,
        transfer: Transfer | None = None,
    ) -> None:
        if transfer is None and buffer.device.type != "cpu":
            transfer = Transfer(buffer.device, env.num_groups)
        self.transfer = transfer
        last_start = torch.from_numpy(buffer.host["episode_start"][-1])
        super().__init__(env, policy, buffer, generator, last_start)
        T = buffer.num_steps
        self._groups = [env.group_slice(g) for g in range(env.num_groups)]
        # Views of every row, made once: indexing a tensor costs as much as copying a small one.
        self._obs = [step_rows(buffer.all_obs, T + 1, rows) for rows in self._groups]
        self._actions = [step_rows(buffer.actions, T, rows) for rows in self._groups]
        self._masks = [
            None if buffer.all_masks is None else buffer.all_masks[:, rows].unbind(0)
            for rows in self._groups
        ]
        kept = [tensor for _, tensor in tree_items(buffer.all_obs)]
        kept += [] if buffer.all_masks is None else [buffer.all_masks]
        self._ends = [(tensor[0], tensor[-1]) for tensor in kept]
        self._terms = {
            name: np.zeros((T, env.num_envs), np.float32) for name in env.reward_term_names
        }
        self._cuts: list[tuple[Finals, Any]] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Do the first half of `collect`: all up to the last step, which the worlds then take.

        What the caller does before `finish` is done while they take it.
        """
        begin = perf_counter()
        synchronize(self.buffer.device)  # the last rollout has left the host's memory
        self._stats = stats = CollectStats()
        self._busy = self.env.unwrapped.busy_seconds()
        T = self.buffer.num_steps
        noise = self.policy.noise(T, self.env.num_envs, self.generator)
        noises = [_noise_rows(noise, rows, T) for rows in self._groups]
        self._carry_over()
        groups = range(len(self._groups))
        for t in range(T):
            for g in groups:
                if t:
                    self._receive(g, t - 1, stats)
                self._act(g, t, noises[g][t], stats)
        stats.seconds = perf_counter() - begin

    @torch.no_grad()
    def finish(self) -> CollectStats:
        """Do the second half of `collect`: wait for the last step, and complete the buffer."""
        begin = perf_counter()
        stats, buffer = self._stats, self.buffer
        for g in range(len(self._groups)):
            self._receive(g, buffer.num_steps - 1, stats)
        if self.transfer is not None:
            self.transfer.wait()
        if self._state is not None:
            copy_tree(buffer.last_state, self._state)
        self._bootstrap()
        sent = perf_counter()
        buffer.upload()
        end = perf_counter()
        stats.transfer = end - sent
        stats.seconds += end - begin
        stats.busy = self.env.unwrapped.busy_seconds() - self._busy
        if self.transfer is not None and buffer.device.type != "cpu":
            synchronize(buffer.device)
            stats.policy = self.transfer.busy()
            stats.idle = max(stats.seconds - stats.policy - stats.transfer, 0.0)
        stats.env_steps = int(np.count_nonzero(buffer.host["active"]))
        stats.term_sums = {name: _sum(values) for name, values in self._terms.items()}
        return stats

    # ------------------------------------------------------------------ one step of one group
    def _carry_over(self) -> None:
        """Begin where the last rollout ended."""
        buffer = self.buffer
        for first, last in self._ends:
            first.copy_(last)
        starts = buffer.host["episode_start"]
        starts[0] = starts[-1]
        if not buffer.keep_finals:
            buffer.bootstrap.zero_()
        if self._state is not None:
            copy_tree(buffer.initial_state, self._state)
        self._cuts.clear()
        buffer.finals.clear()

    def _act(self, g: int, t: int, noise: Tensor, stats: CollectStats) -> None:
        begin = perf_counter()
        rows, masks = self._groups[g], self._masks[g]
        mask = None if masks is None else masks[t]
        if self.transfer is not None:
            self.transfer.wait()
            self.transfer.begin()
        if self._state is None:
            actions, raw, _ = self.policy.act(self._obs[g][t], noise=noise, mask=mask)
        else:
            start = torch.from_numpy(self.buffer.host["episode_start"][t, rows])
            actions, raw, after = self.policy.act(
                self._obs[g][t],
                noise=noise,
                state=map_tree(lambda tensor: tensor[rows], self._state),
                start=start.to(self.buffer.device),
                mask=mask,
            )
            map_tree(lambda tensor, new: tensor[rows].copy_(new), self._state, after)
        copy_tree(self._actions[g][t], raw)
        if self.transfer is not None:
            self.transfer.end()
            actions = self.transfer.fetch(g, actions)
        end = perf_counter()
        self.env.send(actions, g)
        stats.policy += end - begin
        stats.idle += perf_counter() - end

    def _receive(self, g: int, t: int, stats: CollectStats) -> None:
        """Wait for a group and store what step `t` did; its observation belongs to row t + 1."""
        begin = perf_counter()
        obs, reward, terminated, truncated, info = self.env.recv(g)
        stats.idle += perf_counter() - begin
        rows, host = self._groups[g], self.buffer.host
        target = self._obs[g][t + 1]
        if self.transfer is not None:
            self.transfer.bring(g, "obs", target, obs)
        else:
            copy_tree(target, obs)
        masks = self._masks[g]
        if masks is not None and self.transfer is not None:
            self.transfer.bring(g, "mask", masks[t + 1], info["action_mask"])
        elif masks is not None:
            masks[t + 1].copy_(info["action_mask"])
        ended, cut = terminated.numpy(), truncated.numpy()
        done = ended | cut
        host["rewards"][t, rows] = reward.numpy()
        host["terminated"][t, rows] = ended
        host["truncated"][t, rows] = cut
        host["active"][t, rows] = info["active"].numpy()
        host["episode_start"][t + 1, rows] = done
        if self._terms:
            for name, value in info["reward_terms"].items():
                self._terms[name][t, rows] = value.numpy()
        if done.any():
            self._finish(rows, t, done, cut & ~ended, info, stats)

    def _finish(
        self,
        rows: slice,
        t: int,
        done: np.ndarray,
        cut: np.ndarray,
        info: dict[str, Any],
        stats: CollectStats,
    ) -> None:
        """Count the episodes that ended, and keep the last observation of those cut short."""
        stats.returns += info["episode_return"].numpy()[done].tolist()
        stats.lengths += info["episode_length"].numpy()[done].tolist()
        success = info.get("is_success")
        if success is not None:
            values = success.numpy()[done]
            stats.successes += values[~np.isnan(values)].tolist()
        kept = done if self.buffer.keep_finals else cut
        if not kept.any():
            return
        local = torch.from_numpy(np.flatnonzero(kept))
        slots = local.numpy() + rows.start
        device = self.buffer.device
        obs = map_tree(lambda tensor: tensor[local].to(device), info["final_obs"])
        final = Finals(t, slots, obs)
        if self.buffer.keep_finals:
            self.buffer.finals.append(final)
            return
        state = None
        if self._state is not None:
            index = torch.from_numpy(slots).to(device)
            state = map_tree(lambda tensor: tensor[index], self._state)
        self._cuts.append((final, state))

    def _bootstrap(self) -> None:
        """Compute V(final_obs) of the truncated episodes, all in one batch."""
        if not self._cuts:
            return
        device = self.buffer.device
        steps = np.concatenate([np.full(len(final.slots), final.t) for final, _ in self._cuts])
        slots = np.concatenate([final.slots for final, _ in self._cuts])
        final = map_tree(lambda *parts: torch.cat(parts), *(final.obs for final, _ in self._cuts))
        if self._state is None:
            values = self.policy.values(final)
        else:
            states = map_tree(lambda *p: torch.cat(p), *(state for _, state in self._cuts))
            start = torch.zeros(len(slots), dtype=torch.bool, device=device)
            values = self.policy.values(final, states, start)
        where = (torch.from_numpy(steps).to(device), torch.from_numpy(slots).to(device))
        self.buffer.bootstrap[where] = values
        self._cuts.clear()


def set_generator(generator: torch.Generator, state: Tensor) -> None:
    """Bring a generator to a saved state; one of another kind of device begins a new sequence."""
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())
    else:
        generator.manual_seed(generator.initial_seed() + 1)


def step_rows(tree: Tree[Tensor], count: int, columns: slice | None = None) -> list[Any]:
    """Views of each of `count` steps' rows, of all slots or of a group's columns."""
    if not isinstance(tree, dict):
        return list((tree if columns is None else tree[:, columns]).unbind(0))
    parts = {key: step_rows(tensor, count, columns) for key, tensor in tree.items()}
    return [{key: part[t] for key, part in parts.items()} for t in range(count)]


def copy_tree(target: Any, source: Any) -> None:
    """Copy into tensors that stay in place."""
    if isinstance(target, dict):
        for key, tensor in target.items():
            tensor.copy_(source[key])
    else:
        target.copy_(source)


def _noise_rows(noise: Any, rows: slice, num_steps: int) -> Sequence[Tensor]:
    """Each step's noise; a policy may give something that only indexes like a tensor."""
    if isinstance(noise, Tensor):
        return noise[:, rows].unbind(0)
    return [noise[t, rows] for t in range(num_steps)]


def _sum(values: np.ndarray) -> tuple[float, int]:
    """Sum and number of the entries that are not NaN."""
    present = values[~np.isnan(values)]
    return float(present.sum(dtype=np.float64)), present.size
