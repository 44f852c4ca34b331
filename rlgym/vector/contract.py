"""The contract of a vector env, and the parts of it that every backend shares.

    env = rlgym.make_vec("CartPole-v1", num_envs=8)
    obs, info = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(actions)

- `num_envs` slots, fixed for life; static shapes. `obs` is a tensor (num_envs, *shape), or a flat
  dict of them.
- `terminated` (the world ended) and `truncated` (time ran out, or the slot was lost) are never
  merged.
- Autoreset is SAME_STEP: `obs` is already the next episode's first observation where an episode
  ended, and `info["final_obs"]`, full-size, holds the last one in the rows where `terminated |
  truncated`.
- `info["episode_return"]`, `info["episode_length"]`: full-size; count in the same rows.
- `info["active"]`: False for a slot that did not act or was lost. A lost slot is also truncated,
  with reward 0 and its last valid observation as `final_obs`. Where agents act when they like, a
  slot that did not act may show what came of its last action: reward, end, the observation that it
  will act on next; such a world gives `info["lost"]`, 1 where a slot was lost, else 0.
- `info["action_mask"]`: True = allowed, (num_envs, mask_size), when the world masks actions.
- `info["reward_terms"]`: name -> (num_envs,), when the world names them; each declared info key as
  (num_envs,) floats.
- What a step returns lives in buffers that the next one overwrites: copy what is kept.
- `send(actions, group)` and `recv(group)` are the halves of `step`; groups are equal contiguous
  slices of the slots.
- `mark()` remembers this moment at no cost; `snapshot()` says how to come back to it, `restore()`
  does.
- `output="numpy"` gives copies, nested as Gymnasium nests them, with its `_final_obs` masks.

`check(env)` tests all this on any env; `rlgym doctor ENV` runs it from the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rlgym.errors import ContractError, SpaceError, StateError, WorldError
from rlgym.spaces import Layout, map_tree
from rlgym.vector.arrays import StepArrays
from rlgym.vector.slot import Episode, WorldTraits
from rlgym.vector.snapshot import decode, encode, require_rows, row_hash

Output = Literal["torch", "numpy"]


class VectorEnv(gymnasium.vector.VectorEnv):
    """Worlds in fixed slots behind one interface; see the module's docstring for what it promises.

    A backend implements `_reset_slots`, `_send`, `_recv`, `_mark`, `_records`, `_replay` and
    `_close` over the shared `StepArrays`; states, statistics, devices and outputs are handled here,
    once.

    Attributes:
        health: counts of restarts, timeouts, lost_slots, world_errors and unreplayed episodes since
            the start.
    """

    kind: Literal["host", "device"] = "host"
    backend: str = ""
    """Where worlds made one by one run; "" where the whole batch is one world."""

    def __init__(
        self,
        traits: WorldTraits,
        num_envs: int,
        *,
        arrays: StepArrays | None = None,
        num_groups: int = 1,
        device: torch.device | str = "cpu",
        output: Output = "torch",
        seed: int = 0,
        info_keys: Iterable[str] = (),
    ) -> None:
        """Allocate everything that a step writes to.

        Raises:
            ContractError: when `num_envs` slots do not divide into `num_groups` equal groups.
        """
        self._declare(traits, num_envs, num_groups, device, output, seed, info_keys)
        num_extras = len(self.reward_term_names) + len(self.info_keys)
        self.arrays = arrays or StepArrays.alloc(
            num_envs, self.obs_layout, self.action_layout, self.mask_size, num_extras
        )
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)
        self._episode_return = np.zeros(num_envs, np.float32)
        self._episode_length = np.zeros(num_envs, np.int64)
        a = self.arrays
        per_slot = (self._returns, self._lengths, self._episode_return, self._episode_length)
        per_slot = (*per_slot, a.reward, a.active, a.terminated, a.truncated)
        self._statistics: list[Any] = [[array[rows] for array in per_slot] for rows in self._slices]
        self._prepare_views()

    def _declare(
        self,
        traits: WorldTraits,
        num_envs: int,
        num_groups: int,
        device: torch.device | str,
        output: Output,
        seed: int,
        info_keys: Iterable[str],
    ) -> None:
        """Set what a vector env says of itself, and that it has not begun."""
        check_counts(num_envs, num_groups)
        self.traits = traits
        self.num_envs = num_envs
        self.num_groups = num_groups
        self.device = torch.device(device)
        self.output: Output = output
        self.seed = seed
        self.info_keys = tuple(info_keys)
        self.reward_term_names = traits.reward_terms
        self.single_observation_space = traits.observation_space
        self.single_action_space = traits.action_space
        self.observation_space = batch_space(traits.observation_space, num_envs)
        self.action_space = batch_space(traits.action_space, num_envs)
        self.obs_layout = Layout(traits.observation_space)
        self.action_layout = Layout(traits.action_space)
        self.mask_size = self.action_layout.mask_size if traits.has_mask else 0
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_fps": traits.render_fps}
        self.spec = None
        self.health = {
            "restarts": 0,
            "timeouts": 0,
            "lost_slots": 0,
            "world_errors": 0,
            "unreplayed": 0,
        }
        self._pending = [False] * num_groups
        self._started = False
        self._marked: dict[str, Any] | None = None
        size = num_envs // num_groups
        self._slices = [slice(g * size, (g + 1) * size) for g in range(num_groups)]

    # ------------------------------------------------------------------ what a user calls
    def group_slice(self, group: int) -> slice:
        """The rows of group `group`."""
        return self._slices[group]

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> Any:
        """Begin a new episode in every slot.

        Args:
            seed: slot i is seeded with `seed + i`, or with `seed[i]`. None lets the worlds'
                generators go on; the very first reset then uses the env's own seed.
            options: passed to every world's reset.

        Returns:
            `(obs, info)`.

        Raises:
            StateError: when actions are pending, or the env is closed.
        """
        self._require_open()
        if any(self._pending):
            raise StateError(
                "reset while a step is pending: call recv() for every group that was sent"
            )
        seeds = self._seeds(seed)
        self._begin()
        self._reset_slots(seeds, options)
        self._started = True
        self.mark()
        return self._publish_reset()

    def step(self, actions: Any) -> Any:
        """Send `actions` to every group and receive them all.

        Args:
            actions: (num_envs, *action shape) tensor or array, or a dict of them for a dict space.

        Returns:
            `(obs, reward, terminated, truncated, info)`; see the module's docstring.
        """
        for group in range(self.num_groups):
            self._require_idle(group)
        self._write_actions(actions, slice(0, self.num_envs))  # refused before any world steps
        for group in range(self.num_groups):
            self._send(group)
            self._pending[group] = True
        for group in range(self.num_groups):
            self._receive(group)
        return self._publish(None)

    def send(self, actions: Any, group: int = 0) -> None:
        """Give group `group` its actions and let it step; the other groups are not touched.

        Raises:
            StateError: before the first reset, after close, or when the group was already sent.
            SpaceError: when the actions' shape is not the group's.
        """
        self._require_idle(group)
        self._write_actions(actions, self._slices[group])
        self._send(group)
        self._pending[group] = True

    def recv(self, group: int = 0) -> Any:
        """Wait for group `group` and return its rows `group_slice(group)` of what `step` returns.

        Raises:
            StateError: when nothing was sent.
        """
        self._require_open()
        self._receive(group)
        return self._publish(group)

    def mark(self) -> None:
        """Remember this moment for a later `snapshot(at_mark=True)`."""
        if any(self._pending):
            raise StateError(
                "mark while a step is pending: call recv() for every group that was sent"
            )
        self._marked = {
            "obs": map_tree(np.copy, self.arrays.obs),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
        }
        self._mark()

    def snapshot(
        self, *, at_mark: bool = False, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Describe how to bring every slot to its present state (or to the last `mark`).

        Nothing is changed in the worlds. Arrays only, so that it can be saved as safetensors.

        Args:
            at_mark: describe the moment of the last `mark` instead of now; allowed while a step is
                pending.
            timeout: seconds to wait for worlds that hang; their slots are then marked as not
                replayable.
        """
        self._require_open()
        if not at_mark:
            self.mark()
        marked = self._marked
        if marked is None:
            raise StateError("snapshot before the first reset: call reset() once")
        return encode(self._records(timeout), marked, self.action_layout)

    def restore(self, snapshot: dict[str, np.ndarray]) -> Any:
        """Bring fresh worlds to the state that `snapshot` describes by replaying their episodes.

        A slot whose replay ends in another observation starts a new episode instead;
        `info["replayed"]` is False there and `health["unreplayed"]` counts it.

        Returns:
            `(obs, info)` as `reset` does.

        Raises:
            ContractError: when the snapshot was taken of another number of slots or other spaces.
            CheckpointError: no env writes such a snapshot.
        """
        self._require_open()
        episodes = decode(snapshot, self.num_envs, self.action_layout)
        require_rows(snapshot, self.num_envs, hashed=True)
        self._begin()
        fresh = [
            int(s)
            for s in np.random.SeedSequence(
                [self.seed, len(snapshot["lengths"]), int(snapshot["lengths"].sum())]
            ).generate_state(self.num_envs)
        ]
        replayed = self._replay(episodes, fresh)
        for row in np.flatnonzero(replayed).tolist():
            if not np.array_equal(row_hash(self.arrays.obs, row), snapshot["obs_hash"][row]):
                replayed[row] = False
                self._restart_slot(int(row), fresh[row])
        self._returns[:] = np.where(replayed, snapshot["returns"], 0.0)
        self._lengths[:] = np.where(replayed, snapshot["lengths"], 0)
        self.health["unreplayed"] += int(np.sum(~replayed))
        self._started = True
        self.mark()
        obs, info = self._publish_reset()
        info["replayed"] = (
            replayed if self.output == "numpy" else torch.from_numpy(replayed).to(self.device)
        )
        return obs, info

    def deployment(self) -> dict[str, Any]:
        """What a robot's runtime must know beyond the spaces; see docs/bundle.md.

        All optional: "terms" (by the key of an observation, in order: name, size, units, history),
        "robot", "timing", "safety", "targets", "simulation", all plain JSON; and "motion", arrays
        by name, which a bundle keeps in a file of their own.
        """
        return {}

    def busy_seconds(self) -> float:
        """Seconds that worker processes have been stepping so far, each on average; NaN without."""
        return float("nan")

    def scalars(self) -> dict[str, float]:
        """Numbers by which a world describes itself since the last call, named for the log."""
        return {}

    def render_slot(self, row: int) -> Any:
        """Frame of the world in slot `row`, (H, W, 3) uint8; its render_mode must be rgb_array."""
        raise WorldError(f"{type(self).__name__} cannot render: use backend sync")

    def close_extras(self, **kwargs: Any) -> None:
        """Close the backend; called once by `close`."""
        self._close()

    # ------------------------------------------------------------------ what a backend implements
    def _reset_slots(self, seeds: list[int | None], options: dict[str, Any] | None) -> None:
        """Reset every slot, writing `arrays.obs` and `arrays.action_mask`."""
        raise NotImplementedError  # pragma: contract

    def _send(self, group: int) -> None:
        """Begin to step the rows of `group` with `arrays.actions`."""
        raise NotImplementedError  # pragma: contract

    def _recv(self, group: int) -> None:
        """Wait until the rows of `group` are written."""
        raise NotImplementedError  # pragma: contract

    def _mark(self) -> None:
        """Let every slot remember this moment."""
        raise NotImplementedError  # pragma: contract

    def _records(self, timeout: float | None) -> list[Episode | None]:
        """Each slot's episode as it stood at the last mark; None where it cannot be had."""
        raise NotImplementedError  # pragma: contract

    def _episode(self, slot: int, ended: bool) -> Episode | None:
        """One slot's episode as it stands now, or the one that it ended last; marks stay."""
        raise NotImplementedError  # pragma: contract

    def _replay(self, episodes: list[Episode | None], fresh_seeds: list[int]) -> np.ndarray:
        """Replay each episode, or reset with the fresh seed; (num_envs,) bool: replayed."""
        raise NotImplementedError  # pragma: contract

    def _restart_slot(self, row: int, seed: int) -> None:
        """Begin a new episode in one slot, with `seed`."""
        raise NotImplementedError  # pragma: contract

    def _close(self) -> None:
        """Release worlds, processes and memory; called once."""
        raise NotImplementedError  # pragma: contract

    # ------------------------------------------------------------------ shared parts
    def _require_open(self) -> None:
        if self.closed:
            raise StateError("this vector env is closed: make a new one")

    def _require_idle(self, group: int) -> None:
        self._require_open()
        if not self._started:
            raise StateError("step before the first reset: call reset() once")
        if self._pending[group]:
            raise StateError(f"group {group} was sent twice: call recv({group}) first")

    def _seeds(self, seed: int | list[int] | None) -> list[int | None]:
        """One seed per slot out of what `reset` was given."""
        if seed is None and not self._started:
            seed = self.seed
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + i for i in range(self.num_envs)]
        seeds = [None if s is None else int(s) for s in seed]
        if len(seeds) != self.num_envs:
            raise ContractError(
                f"{len(seeds)} seeds for {self.num_envs} worlds: give one, or one per world"
            )
        return seeds

    def _begin(self) -> None:
        arrays = self.arrays
        arrays.reward[:] = 0.0
        arrays.terminated[:] = False
        arrays.truncated[:] = False
        arrays.active[:] = True
        arrays.extras[:] = np.nan
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def _write_actions(self, actions: Any, rows: slice) -> None:
        count = rows.stop - rows.start
        actions = self.action_layout.flatten(actions)
        for leaf in self.action_layout.leaves:
            value = actions[leaf.key] if isinstance(actions, dict) else actions
            value = (
                value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)
            )
            if value.shape != (count, *leaf.shape):
                raise SpaceError(
                    f"actions {leaf.key!r} have shape {list(value.shape)}, expected "
                    f"{[count, *leaf.shape]}: one row per slot"
                )
            target = self.arrays.actions
            (target[leaf.key] if isinstance(target, dict) else target)[rows] = value

    def _receive(self, group: int) -> None:
        if not self._pending[group]:
            raise StateError(
                f"nothing was sent to group {group}: call send(actions, {group}) first"
            )
        try:
            self._recv(group)
        finally:
            self._pending[group] = False
        returns, lengths, final_returns, final_lengths, reward, active, terminated, truncated = (
            self._statistics[group]
        )
        returns += reward
        lengths += active
        final_returns[:] = returns
        final_lengths[:] = lengths
        done = terminated | truncated
        if b"\1" in done.tobytes():  # what done.any() says, in a tenth of its time
            returns[done] = 0.0
            lengths[done] = 0

    def _prepare_views(self) -> None:
        """Wrap the step's arrays once as tensors: whole, and per group."""
        arrays = self.arrays
        num_terms = len(self.reward_term_names)
        info: dict[str, Any] = {
            "final_obs": arrays.final_obs,
            "episode_return": self._episode_return,
            "episode_length": self._episode_length,
            "active": arrays.active,
        }
        if self.mask_size:
            info["action_mask"] = arrays.action_mask
        for i, name in enumerate(self.info_keys, start=num_terms):
            info[name] = arrays.extras[:, i]
        if num_terms:
            info["reward_terms"] = {
                n: arrays.extras[:, i] for i, n in enumerate(self.reward_term_names)
            }
        whole = (arrays.obs, arrays.reward, arrays.terminated, arrays.truncated, info)
        self._host = _apply(torch.from_numpy, whole)
        self._device_copy = (
            None if self.device.type == "cpu" else _apply(lambda t: t.to(self.device), self._host)
        )
        source = self._device_copy or self._host
        self._views = [_apply(lambda t, rows=rows: t[rows], source) for rows in self._slices]
        self._whole = source

    def _publish(self, group: int | None) -> Any:
        rows = slice(0, self.num_envs) if group is None else self._slices[group]
        if self.output == "numpy":
            return self._numpy_output(rows)
        if self._device_copy is not None:
            _copy(self._device_copy, self._host, rows)
        obs, reward, terminated, truncated, info = (
            self._whole if group is None else self._views[group]
        )
        return obs, reward, terminated, truncated, dict(info)

    def _publish_reset(self) -> Any:
        obs, _, _, _, info = self._publish(None)
        if self.output == "numpy":
            return obs, {"action_mask": info["action_mask"]} if self.mask_size else {}
        return obs, {key: info[key] for key in ("active", "action_mask") if key in info}

    def _numpy_output(self, rows: slice) -> Any:
        obs, reward, terminated, truncated, info = _apply(
            lambda t: t.numpy()[rows].copy(), self._host
        )
        done = terminated | truncated
        info["final_obs"] = self.obs_layout.nest(info["final_obs"])
        for key in ("final_obs", "episode_return", "episode_length"):
            info[f"_{key}"] = done.copy()
        return self.obs_layout.nest(obs), reward, terminated, truncated, info


def check_counts(num_envs: int, num_groups: int) -> None:
    """Make sure that the slots divide into equal groups.

    Raises:
        ContractError: when they do not.
    """
    if num_envs < 1:
        raise ContractError(f"num_envs is {num_envs}: ask for at least 1")
    if num_groups < 1 or num_envs % num_groups:
        groups = max(num_groups, 1)
        raise ContractError(
            f"{num_envs} worlds do not divide into {num_groups} equal groups: use num_envs "
            f"{-(-num_envs // groups) * groups} or num_groups 1"
        )


def check(env: Any, **kwargs: Any) -> Any:
    """Test the contract on an env, a factory or an id; see `rlgym.vector.check.conformance`."""
    from rlgym.vector.check.conformance import check as run  # heavy, and not needed to train

    return run(env, **kwargs)


def _apply(fn: Any, nested: Any) -> Any:
    if isinstance(nested, dict):
        return {key: _apply(fn, value) for key, value in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_apply(fn, value) for value in nested)
    return fn(nested)


def _copy(target: Any, source: Any, rows: slice) -> None:
    if isinstance(target, dict):
        for key, value in target.items():
            _copy(value, source[key], rows)
    elif isinstance(target, tuple):
        for a, b in zip(target, source, strict=True):
            _copy(a, b, rows)
    else:
        target[rows].copy_(source[rows])
