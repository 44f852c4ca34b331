"""Worlds written as pure functions of tensors, and a batch of them.

A world says how an episode starts, what a step does to a state and what is seen of it. Seeds, time
limits, automatic resets and saving are the batch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlgym.spaces import Layout, Tree, map_tree, tree_items
from rlgym.vector.device import TensorStep, same_names
from rlgym.vector.slot import WorldTraits

BLOCK = 64
"""Steps whose random numbers are drawn at once, where nobody says how many will follow."""


class TensorWorld(Protocol):
    """A world of N slots: three functions of tensors, N being whatever they are given.

    They must not read values back (`.item()`, `if tensor`), nor index by booleans: `torch.where`
    chooses. Then they run on any device, and in a recorded graph.
    """

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    start_random: int
    """Random numbers that one start takes."""
    step_random: int
    """Random numbers that one step takes; 0 where the world is deterministic."""

    def start(self, random: Tensor) -> Tree[Tensor]:
        """Begin an episode: `random` (N, start_random) in [0, 1); returns states (N, ...)."""
        ...

    def step(
        self, state: Tree[Tensor], actions: Any, random: Tensor
    ) -> tuple[Tree[Tensor], Tensor, Tensor]:
        """Take one step.

        Args:
            state: tree of (N, ...), not to be written to.
            actions: (N, *action shape), int64 or float32, or a dict of them.
            random: (N, step_random) in [0, 1).

        Returns:
            The next states, rewards (N,) float32, and terminated (N,) bool.
        """
        ...

    def observe(self, state: Tree[Tensor]) -> Tree[Tensor]:
        """What is seen of a state: tree of (N, ...)."""
        ...


class WorldBatch:
    """`num_envs` worlds of one kind side by side; a `TensorBatch`.

    Each slot's random numbers are a function of its seed and the number of steps since the reset:
    neither the other slots nor the device have a part in them.

    Args:
        world: the functions.
        num_envs: slots.
        device: where they live.
        name: the world's id.
        render_fps: control steps per second of the world, for films.
    """

    obstacle = ""

    def __init__(
        self,
        world: TensorWorld,
        num_envs: int,
        device: torch.device | str = "cpu",
        name: str = "",
        render_fps: float = 50.0,
    ) -> None:
        """Allocate the states."""
        self.world = world
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.truncation_gap = world.max_episode_steps
        self.traits = WorldTraits(
            observation_space=world.observation_space,
            action_space=world.action_space,
            reward_terms=(),
            has_mask=False,
            render_fps=render_fps,
            spec_id=name or type(world).__name__,
        )
        self._keys = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._tick = torch.zeros((), dtype=torch.int64, device=self.device)
        self._elapsed = torch.zeros(num_envs, dtype=torch.int32, device=self.device)
        self._starts: list[Tree[Tensor]] = []  # of the steps that random numbers were drawn for
        self._during: list[Tensor] = []
        self._next = 0
        with torch.no_grad():
            self._state = map_tree(torch.clone, self._begin())
        self._flags = {key: (-1, *[1] * (t.ndim - 1)) for key, t in tree_items(self._state)}

    # ------------------------------------------------------------------ stepping
    @torch.no_grad()
    def reset(self, seeds: list[int | None]) -> Tree[Tensor]:
        """See `TensorBatch`."""
        given = torch.tensor([seed is not None for seed in seeds], device=self.device)
        keys = torch.tensor([(seed or 0) % (1 << 62) for seed in seeds], device=self.device)
        self._keys.copy_(torch.where(given, keys, _mix(self._keys + self._tick)))
        self._tick.zero_()
        self._elapsed.zero_()
        self._starts, self._next = [], 0
        map_tree(lambda kept, new: kept.copy_(new), self._state, self._begin())
        return self.world.observe(self._state)

    def prepare(self, num_steps: int) -> None:
        """Draw the random numbers of so many steps, and the episodes that may begin in them."""
        steps = self._tick + torch.arange(num_steps, device=self.device)
        for_start, during = self._draw(steps)
        rows = self.world.start(for_start.flatten(0, 1))
        split = map_tree(lambda x: x.view(num_steps, self.num_envs, *x.shape[1:]).unbind(0), rows)
        parts: Any = split
        if isinstance(parts, dict):
            keys, columns = list(parts), zip(*parts.values(), strict=True)
            self._starts = [dict(zip(keys, column, strict=True)) for column in columns]
        else:
            self._starts = list(parts)
        self._during = list(during.unbind(0))
        self._next = 0

    @torch.no_grad()
    def step(self, actions: Any) -> TensorStep:
        """See `TensorBatch`."""
        world, at = self.world, self._next
        if at == len(self._starts):
            self.prepare(BLOCK)
            at = 0
        after, reward, terminated = world.step(self._state, actions, self._during[at])
        truncated = self._elapsed.add_(1) >= world.max_episode_steps
        going = torch.logical_or(terminated, truncated).logical_not_()
        final_obs = world.observe(after)
        self._go_on(going, after, self._starts[at])
        self._elapsed.mul_(going)
        self._next = at + 1
        if self._next == len(self._starts):  # so that a recorded rollout moves it along
            self._tick.add_(self._next)
            self._starts, self._next = [], 0
        obs = world.observe(self._state)
        return TensorStep(obs, final_obs, reward, terminated, truncated, going)

    def _go_on(self, going: Tensor, after: Tree[Tensor], fresh: Tree[Tensor]) -> None:
        """Go on from `after`, or from `fresh` where an episode ended."""
        if isinstance(self._state, Tensor):
            flags = going.view(self._flags[""])
            torch.where(flags, after, fresh, out=self._state)  # type: ignore[call-overload]
            return
        for key, kept in self._state.items():
            flags = going.view(self._flags[key])
            torch.where(flags, after[key], fresh[key], out=kept)  # type: ignore[index, call-overload]

    def _begin(self) -> Tree[Tensor]:
        """First states after a reset: drawn for a step before the first."""
        before = torch.full((1,), -1, dtype=torch.int64, device=self.device)
        return self.world.start(self._draw(before)[0][0])

    def _draw(self, ticks: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (K, N, start_random) and (K, N, step_random) of the steps `ticks` (K,)."""
        sizes = self.world.start_random, self.world.step_random
        return uniform(self._keys, ticks, sum(sizes)).split(sizes, -1)  # type: ignore[return-value]

    # ------------------------------------------------------------------ saving
    def state(self) -> dict[str, Tensor]:
        """See `TensorBatch`."""
        if self._next:  # begun in the middle of what was drawn
            self._tick.add_(self._next)
            self._starts, self._during = self._starts[self._next :], self._during[self._next :]
            self._next = 0
        own = {"keys": self._keys, "tick": self._tick, "elapsed": self._elapsed}
        return own | {f"state {key}": tensor for key, tensor in tree_items(self._state)}

    def load(self, state: Mapping[str, Tensor]) -> Tree[Tensor]:
        """See `TensorBatch`."""
        own = self.state()
        same_names(state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self._starts, self._next = [], 0
        return self.world.observe(self._state)

    def close(self) -> None:
        """Nothing to give back: memory goes with the object."""


class OneWorld(gymnasium.Env):
    """One slot of a tensor world as a `gymnasium.Env`, to be played, evaluated and checked.

    Its random numbers are Gymnasium's, so that its episodes are not those of a batch.

    Args:
        world: the functions.
    """

    def __init__(self, world: TensorWorld) -> None:
        """Take over the spaces."""
        self.world = world
        self.observation_space = world.observation_space
        self.action_space = world.action_space
        self._obs_layout = Layout(world.observation_space)
        self._action_layout = Layout(world.action_space)
        self._state: Any = None
        self._elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        with torch.no_grad():
            self._state = self.world.start(self._draw(self.world.start_random))
        self._elapsed = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; the time limit is the world's own."""
        row = self._action_layout.alloc(1)
        self._action_layout.write(action, row, 0)
        actions = map_tree(torch.from_numpy, row)
        with torch.no_grad():
            random = self._draw(self.world.step_random)
            self._state, reward, terminated = self.world.step(self._state, actions, random)
        self._elapsed += 1
        late = self._elapsed >= self.world.max_episode_steps
        return self._seen(), float(reward), bool(terminated), late, {}

    def _draw(self, count: int) -> Tensor:
        return torch.from_numpy(self.np_random.random((1, count), np.float32))

    def _seen(self) -> Any:
        with torch.no_grad():
            obs = map_tree(lambda tensor: tensor.numpy().copy(), self.world.observe(self._state))
        return self._obs_layout.read(obs, 0)


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, odd: 2^64 over the golden ratio
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def uniform(keys: Tensor, ticks: Tensor, count: int) -> Tensor:
    """Random numbers as a pure function of integers, the same on every device.

    SplitMix64's finalizer (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators") over the key, the tick and the column.

    Args:
        keys: (N,) int64, of each slot.
        ticks: (K,) int64.
        count: columns.

    Returns:
        (K, N, count) float32 in [0, 1), in steps of 2^-24.
    """
    columns = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    mixed = _mix(_mix(keys * _GOLDEN + ticks[:, None]) + ticks[:, None] * _GOLDEN)
    bits = _mix(mixed[..., None] + columns)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64; the masks make the arithmetic shifts logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
