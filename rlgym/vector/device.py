"""Worlds that are tensors already, behind the contract of vector envs: nothing leaves the device.

What is stepped is a `TensorBatch`: worlds written as pure functions become one through
`rlgym.vector.tensor_world.WorldBatch`; a simulator that keeps a batch in the device's memory can be
one itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlgym.errors import ContractError, SpaceError, StateError
from rlgym.spaces import Tree, map_tree
from rlgym.vector.contract import Output, VectorEnv
from rlgym.vector.slot import WorldTraits
from rlgym.vector.snapshot import UNFIT, require_rows

STATE = "world:"
"""Prefix of the worlds' own tensors in a snapshot."""


@dataclass(slots=True)
class TensorStep:
    """What one step of all worlds did, on their device; the next step may overwrite it."""

    obs: Tree[Tensor]
    """Tree of (num_envs, ...): the next observation; an episode's first where one ended."""
    final_obs: Tree[Tensor]
    """The same, before any world began anew; counts where an episode ended."""
    reward: Tensor
    """(num_envs,) float32."""
    terminated: Tensor
    """(num_envs,) bool: the world ended."""
    truncated: Tensor
    """(num_envs,) bool: time ran out, or the slot was lost."""
    going: Tensor
    """(num_envs,) bool: neither of them."""
    active: Tensor | None = None
    """(num_envs,) bool: False where a slot did not act or was lost; None: all acted."""
    action_mask: Tensor | None = None
    """(num_envs, mask_size) bool, True = allowed, where the world masks actions."""
    info: dict[str, Any] = field(default_factory=dict)
    """More (num_envs,) floats by name: "is_success", and "reward_terms" as a dict of its own."""


class TensorBatch(Protocol):
    """All worlds of a `DeviceVectorEnv`; every tensor is on `device`, and changed in place only."""

    num_envs: int
    device: torch.device
    traits: WorldTraits
    obstacle: str
    """Why stepping cannot be recorded in a graph (it reads back, it launches elsewhere); "" where
    it can. Python then runs once for many steps, and must not decide anything."""
    truncation_gap: int
    """Least number of steps between two truncations of one slot: its time limit, or 1."""

    def reset(self, seeds: list[int | None]) -> Tree[Tensor]:
        """Begin a new episode everywhere; None lets that slot's random numbers go on."""
        ...

    def prepare(self, num_steps: int) -> None:
        """Make ready for so many steps, such as by drawing their random numbers at once."""
        ...

    def step(self, actions: Tree[Tensor]) -> TensorStep:
        """Step every world, and begin a new episode where one ended."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name: the tensors themselves, not copies."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> Tree[Tensor]:
        """Copy a saved state into place; returns the observation.

        Raises:
            ValueError: names or shapes are others.
        """
        ...

    def close(self) -> None:
        """Give back memory and windows."""
        ...


class DeviceVectorEnv(VectorEnv):
    """A `TensorBatch` as a vector env of one group.

    `step` reads nothing back and launches the same operations each time. Its tensors are on the
    worlds' device; `output="numpy"` copies them to the host.

    Episode returns are summed in float32.

    Args:
        batch: the worlds; closed with the env.
        seed: seed of the first reset; slot i gets seed + i.
        output: "torch" or "numpy".

    Attributes:
        batch: the worlds.
    """

    kind = "device"
    backend = "device"

    def __init__(self, batch: TensorBatch, *, seed: int = 0, output: Output = "torch") -> None:
        """Allocate the episodes' statistics."""
        self._declare(batch.traits, batch.num_envs, 1, batch.device, output, seed, ())
        self.batch = batch
        N, device = batch.num_envs, self.device
        self._returns = torch.zeros(N, device=device)  # of the episodes that go on
        self._lengths = torch.zeros(N, dtype=torch.int64, device=device)
        self._all_active = torch.ones(N, dtype=torch.bool, device=device)
        self._obs: Any = None
        self._result: Any = None
        self._kept: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ what a user calls
    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> Any:
        self._require_open()
        if self._pending[0]:
            raise StateError("reset while a step is pending: call recv() for it first")
        if options:
            raise ContractError("tensor worlds take no reset options: leave them out")
        self._obs = self.batch.reset(self._seeds(seed))
        self._returns.zero_()
        self._lengths.zero_()
        self._started = True
        self.mark()
        return self._after_reset()

    @torch.no_grad()
    def step(self, actions: Any) -> Any:
        self._require_idle(0)
        return self._advance(self._on_device(actions))

    @torch.no_grad()
    def send(self, actions: Any, group: int = 0) -> None:
        self._require_idle(group)
        self._result = self._advance(self._on_device(actions))
        self._pending[group] = True

    def recv(self, group: int = 0) -> Any:
        self._require_open()
        if not self._pending[group]:
            raise StateError(
                f"nothing was sent to group {group}: call send(actions, {group}) first"
            )
        self._pending[group] = False
        return self._result

    @property
    def all_active(self) -> Tensor:
        """(num_envs,) True: the very tensor that `info["active"]` is where all slots acted."""
        return self._all_active

    def prepare(self, num_steps: int) -> None:
        """Make ready for so many steps; not needed, but cheaper than each step by itself."""
        self.batch.prepare(num_steps)

    def _advance(self, actions: Tree[Tensor]) -> Any:
        result = self.batch.step(actions)
        active = self._all_active if result.active is None else result.active
        returns = self._returns + result.reward
        lengths = self._lengths + (1 if result.active is None else active)
        torch.mul(returns, result.going, out=self._returns)
        torch.mul(lengths, result.going, out=self._lengths)
        self._obs = result.obs
        info = {
            "final_obs": result.final_obs,
            "episode_return": returns,
            "episode_length": lengths,
            "active": active,
            **result.info,
        }
        if result.action_mask is not None:
            info["action_mask"] = result.action_mask
        whole = (result.obs, result.reward, result.terminated, result.truncated, info)
        return whole if self.output == "torch" else self._as_numpy(whole)

    def _on_device(self, actions: Any) -> Tree[Tensor]:
        """The actions as a flat tree of tensors on the device.

        Raises:
            SpaceError: when a shape is not that of the slots.
        """
        actions = self.action_layout.flatten(actions)
        return map_tree(lambda leaf: self._leaf(actions, leaf), self._leaves())

    def _leaves(self) -> Any:
        leaves = self.action_layout.leaves
        return leaves[0] if self.action_layout.single else {leaf.key: leaf for leaf in leaves}

    def _leaf(self, actions: Any, leaf: Any) -> Tensor:
        value = actions[leaf.key] if isinstance(actions, dict) else actions
        value = torch.as_tensor(value, device=self.device)
        if value.shape != (self.num_envs, *leaf.shape):
            raise SpaceError(
                f"actions {leaf.key!r} have shape {list(value.shape)}, expected "
                f"{[self.num_envs, *leaf.shape]}: one row per slot"
            )
        return value

    # ------------------------------------------------------------------ saving
    def mark(self) -> None:
        if self._pending[0]:
            raise StateError("mark while a step is pending: call recv() for it first")
        state = {f"{STATE}{name}": tensor for name, tensor in self.batch.state().items()}
        self._kept = {name: tensor.clone() for name, tensor in state.items()}
        self._kept |= {"returns": self._returns.clone(), "lengths": self._lengths.clone()}

    def snapshot(
        self, *, at_mark: bool = False, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Arrays that bring another env of the same worlds to this moment; see `VectorEnv`."""
        self._require_open()
        if not self._started:
            raise StateError("snapshot before the first reset: call reset() once")
        if not at_mark:
            self.mark()
        return {name: tensor.cpu().numpy() for name, tensor in self._kept.items()}

    def restore(self, snapshot: dict[str, np.ndarray]) -> Any:
        """Go on from a snapshot, bit for bit on the same kind of device; see `VectorEnv`.

        One of other worlds begins new episodes, which health["unreplayed"] counts.
        """
        self._require_open()
        require_rows(snapshot, self.num_envs)
        lengths = snapshot["lengths"]
        state = {
            name.removeprefix(STATE): torch.from_numpy(np.array(value)).to(self.device)
            for name, value in snapshot.items()
            if name.startswith(STATE)
        }
        try:
            self._obs = self.batch.load(state)
            self._returns.copy_(torch.from_numpy(np.array(snapshot["returns"])))
            self._lengths.copy_(torch.from_numpy(np.array(lengths)))
            exact = True
        except UNFIT:
            first = self.seed + 1 + int(lengths.sum())  # not the episodes that the run began with
            self._obs = self.batch.reset([first + slot for slot in range(self.num_envs)])
            self._returns.zero_()
            self._lengths.zero_()
            self.health["unreplayed"] += self.num_envs
            exact = False
        self._started = True
        self.mark()
        obs, info = self._after_reset()
        info["replayed"] = torch.full((self.num_envs,), exact, device=self.device)
        if self.output == "numpy":
            info["replayed"] = info["replayed"].cpu().numpy()
        return obs, info

    def deployment(self) -> dict[str, Any]:
        """What a robot must know, where the batch tells; see `VectorEnv`."""
        own = getattr(self.batch, "deployment", None)
        return own() if own is not None else {}

    def close_extras(self, **kwargs: Any) -> None:
        self.batch.close()

    # ------------------------------------------------------------------ what is returned
    def _after_reset(self) -> Any:
        info: dict[str, Any] = {"active": self._all_active}
        mask = getattr(self.batch, "action_mask", None)
        if mask is not None:
            info["action_mask"] = mask
        if self.output == "torch":
            return self._obs, info
        info.pop("active")
        return self.obs_layout.nest(_to_numpy(self._obs)), _to_numpy(info)

    def _as_numpy(self, whole: Any) -> Any:
        obs, reward, terminated, truncated, info = _to_numpy(whole)
        done = terminated | truncated
        info["final_obs"] = self.obs_layout.nest(info["final_obs"])
        for key in ("final_obs", "episode_return", "episode_length"):
            info[f"_{key}"] = done.copy()
        return self.obs_layout.nest(obs), reward, terminated, truncated, info


def same_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Make sure that a saved state fits.

    Raises:
        ValueError: names or shapes are others.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
        raise ValueError(f"a state of {sorted(shapes)} does not fit")


def _to_numpy(nested: Any) -> Any:
    if isinstance(nested, dict):
        return {key: _to_numpy(value) for key, value in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_to_numpy(value) for value in nested)
    return nested.cpu().numpy().copy()
