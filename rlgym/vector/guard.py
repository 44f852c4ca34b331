"""A guard against NaN and infinity from a world, and the file from which they can be seen again."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from rlgym.config import PRIVILEGED
from rlgym.errors import ContractError, WorldError
from rlgym.spaces import Layout, Tree, map_tree, tree_items
from rlgym.vector.contract import VectorEnv
from rlgym.vector.slot import Episode, fresh_seed, set_rng_state
from rlgym.vector.wrappers import Batch, VectorWrapper

MAX_FILE_BYTES = 256_000_000
MAX_FRESH_STARTS = 10
"""Episodes in a row that may begin with a value that is not finite before the guard gives up."""


class NaNGuard(VectorWrapper):
    """Watch every observation and reward; while all are finite, nothing is changed.

    On a value that is not finite, "halt" stops with an error that names the world and the slot.
    "skip" ends the slot's episode as a lost one: truncated, not active, reward 0, `final_obs` its
    last finite observation; a new episode begins, and `health["nan_skips"]` counts it. Both write a
    JSON file that `replay_dump` shows again.

    It looks at the arrays of host worlds (`env.arrays`), before anything is copied to a device:
    worlds that are tensors on an accelerator (`kind` "device") it cannot guard.

    Args:
        env: the vector env of the worlds; other wrappers go around the guard.
        policy: "halt" or "skip".
        dump_dir: folder for the files.

    Raises:
        ContractError: for an unknown policy, or a guard around another wrapper.
    """

    def __init__(
        self, env: VectorEnv, policy: Literal["halt", "skip"] = "halt", dump_dir: str | Path = "."
    ) -> None:
        """Allocate the last finite observations."""
        if policy not in ("halt", "skip"):
            raise ContractError(f'nan_guard is {policy!r}: use "off", "halt" or "skip"')
        if isinstance(env, VectorWrapper):
            raise ContractError(
                f"NaNGuard around {type(env).__name__}: put the guard directly on the worlds, "
                "the other wrappers around it"
            )
        super().__init__(env)
        self.policy, self.dump_dir = policy, Path(dump_dir)
        self.health["nan_skips"] = 0
        self._float_keys = {leaf.key for leaf in env.obs_layout.leaves if leaf.dtype.kind == "f"}
        arrays = env.obs_layout.alloc(self.num_envs)
        self._last = map_tree(lambda array: torch.from_numpy(array).to(self.device), arrays)
        self._watched: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        # sums of the episodes before the present step, which a NaN has not reached
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)

    def _on_reset(self, obs: Tree[torch.Tensor], fresh: torch.Tensor) -> Tree[torch.Tensor]:
        for slot, what in self._find(obs).items():
            if self.policy == "halt":
                raise WorldError(self._report(slot, f"{what} of reset", None))
            self._restart(obs, {}, slot, slot)
        self._remember(obs, slice(0, self.num_envs))
        return obs

    def _on_step(self, batch: Batch, rows: slice) -> None:
        if not self._looks_finite(rows):
            done = batch.done
            found = self._find(batch.obs)
            lasts = map_tree(
                lambda a: torch.where(_column(done, a), a, torch.zeros_like(a)),
                batch.info["final_obs"],
            )
            found |= {row: f"final {what}" for row, what in self._find(lasts).items()}
            found |= {row: "reward" for row in _bad_rows(batch.reward)}
            for row, what in found.items():
                self._act(batch, row, rows.start + row, what)
        if self.policy == "skip":
            self._remember(batch.obs, rows)

    def _looks_finite(self, rows: slice) -> bool:
        """False when a value may not be finite: a dot product with ones hides neither NaN nor inf.

        It costs a microsecond, where `isfinite().all()` costs five. Rows of `final_obs` that do not
        count hold older final observations, which are finite.
        """
        key = (rows.start, rows.stop)
        if key not in self._watched:
            self._watched[key] = self._flat_views(rows)
        return all(math.isfinite(np.dot(view, ones)) for view, ones in self._watched[key])

    def _flat_views(self, rows: slice) -> list[tuple[np.ndarray, np.ndarray]]:
        arrays = self.env.arrays  # the same for life
        parts = [*tree_items(arrays.obs), *tree_items(arrays.final_obs), ("", arrays.reward)]
        flat = [part[rows].reshape(-1) for _, part in parts if part.dtype.kind == "f"]
        return [(view, np.ones_like(view)) for view in flat]

    def _act(self, batch: Batch, row: int, slot: int, what: str) -> None:
        ended = bool(batch.done[row])
        report = self._report(slot, what, self._dump(slot, what, ended))
        if self.policy == "halt":
            raise WorldError(f"{report}. Correct the world, or drop such episodes: nan_guard skip")
        print(f"rlgym: {report}; its episode is dropped", file=sys.stderr)
        self.health["nan_skips"] += 1
        if not ended or row in self._find(batch.obs):
            self._restart(batch.obs, batch.info, row, slot)
        lasts = dict(tree_items(self._last))
        own = dict(tree_items(self.env.arrays.final_obs))
        for key, final in tree_items(batch.info["final_obs"]):
            final[row] = lasts[key][slot]
            own[key][slot] = lasts[key][slot].cpu()  # where the output is a copy of it
        batch.reward[row] = 0.0
        batch.terminated[row] = False
        batch.truncated[row] = True
        batch.info["active"][row] = False
        batch.info["episode_return"][row] = float(self._returns[slot])
        batch.info["episode_length"][row] = int(self._lengths[slot])
        for key in ("_final_obs", "_episode_return", "_episode_length"):
            if key in batch.info:  # numpy output marks the rows that count
                batch.info[key][row] = True

    def _restart(self, obs: Tree[torch.Tensor], info: dict[str, Any], row: int, slot: int) -> None:
        """Begin a new episode in `slot` and write its first observation to row `row`."""
        env = self.env
        for attempt in range(MAX_FRESH_STARTS):
            env._restart_slot(slot, fresh_seed(env.seed, slot, self.health["nan_skips"] + attempt))
            firsts = dict(tree_items(env.arrays.obs))
            if all(np.isfinite(firsts[key][slot]).all() for key in self._float_keys):
                break
        else:
            raise WorldError(self._report(slot, f"observation of {MAX_FRESH_STARTS} resets", None))
        env._returns[slot], env._lengths[slot] = 0.0, 0
        for key, array in tree_items(obs):
            array[row] = torch.as_tensor(firsts[key][slot])
        if "action_mask" in info:
            info["action_mask"][row] = torch.from_numpy(env.arrays.action_mask[slot])

    def _remember(self, obs: Tree[torch.Tensor], rows: slice) -> None:
        lasts = dict(tree_items(self._last))
        for key, array in tree_items(obs):
            lasts[key][rows] = array
        self._returns[rows] = self.env._returns[rows]
        self._lengths[rows] = self.env._lengths[rows]

    # ------------------------------------------------------------------ looking and telling
    def _find(self, tree: Tree[torch.Tensor]) -> dict[int, str]:
        """Rows that are not finite, with the name of what is not."""
        return {
            row: f"observation {key!r}" if key else "observation"
            for key, array in tree_items(tree)
            if key in self._float_keys
            for row in _bad_rows(array)
        }

    def _report(self, slot: int, what: str, path: Path | None) -> str:
        text = f"world {self.traits.spec_id}, slot {slot}: {what} is not finite"
        return text + (f"; see it again: rlgym doctor {path}" if path else "")

    def _dump(self, slot: int, what: str, ended: bool) -> Path | None:
        """Write the file of one slot's episode; None where its worlds cannot tell."""
        episode = self.env._episode(slot, ended)
        if episode is None:
            return None
        spec = getattr(self.env, "factory", None)  # a registry.WorldSpec, when the env has one
        world = getattr(spec, "world", None)
        document = {
            "format": 1,
            "world": world if isinstance(world, str) else None,
            "name": getattr(spec, "name", self.traits.spec_id),
            "kwargs": dict(getattr(spec, "kwargs", {})),
            "slot": slot,
            "what": what,
            "seed": episode.seed,
            "options": episode.options,
            "rng": episode.rng,
            "actions": _listed(episode, self.env.action_layout),
        }
        self.dump_dir.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = self.dump_dir / f"nan-slot{slot}-{stamp}-{len(episode.actions)}.json"
        try:
            path.write_text(json.dumps(document))
        except TypeError:  # arguments or options that JSON cannot hold
            path.unlink(missing_ok=True)
            return None
        return path


@dataclass(frozen=True)
class Replay:
    """Where a replayed episode stopped being finite."""

    step: int
    """Number of steps taken, 0 for the reset."""
    what: str
    """What was not finite, as the dump names it."""
    obs: Any
    """The world's observation at that step."""
    reward: float
    """Its reward."""


def replay_dump(
    path: str | Path, make: Callable[..., gymnasium.Env], *, trust: bool = False
) -> Replay:
    """Run the episode of a dump again, up to the value that is not finite.

    Args:
        path: file that a NaN guard wrote.
        make: builds the world from its id and keyword arguments: `rlgym.make`. For a dump of a
            callable, the callable: it is given the keyword arguments alone.
        trust: allow a dump to import the module that a "module:id" names.

    Raises:
        WorldError: when the file is not a dump, or everything stays finite.
    """
    path = Path(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise WorldError(f"{path} is too large for a NaN dump")
    try:
        document = json.loads(path.read_text())
        world_id, kwargs = document["world"], document["kwargs"]
        begin = {key: document[key] for key in ("seed", "options", "rng")}
        listed = document["actions"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WorldError(
            f"{path} is not a NaN dump: give a file that the NaN guard wrote"
        ) from None
    if world_id is not None and ":" in world_id and not trust:
        raise WorldError(
            f"{path} would import {world_id.split(':')[0]}: if you know who made it, add --trust, "
            "or trust=True in Python"
        )
    if not isinstance(kwargs, dict) or (not trust and not kwargs.keys().isdisjoint(PRIVILEGED)):
        raise WorldError(
            f"{path} gives its world arguments with which it can write anywhere: if you know who "
            "made it, add --trust, or trust=True in Python"
        )
    world = make(**kwargs) if world_id is None else make(world_id, **kwargs)
    try:
        return _run(world, begin, listed, path)
    finally:
        world.close()


def _run(world: gymnasium.Env, begin: dict[str, Any], listed: Any, path: Path) -> Replay:
    obs_layout, action_layout = Layout(world.observation_space), Layout(world.action_space)
    row = obs_layout.alloc(1)
    count = len(next(iter(listed.values())))
    actions: Any = {
        leaf.key: np.array(listed[leaf.key], leaf.dtype).reshape(count, *leaf.shape)
        for leaf in action_layout.leaves
    }
    actions = actions[""] if action_layout.single else actions
    if begin["rng"] is not None:
        set_rng_state(world, begin["rng"])
    obs, _ = world.reset(seed=begin["seed"], options=begin["options"])
    reward: Any = 0.0
    for step in range(count + 1):
        obs_layout.write(obs, row, 0)
        for key, array in tree_items(row):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return Replay(step, f"observation {key!r}" if key else "observation", obs, reward)
        if not math.isfinite(reward):
            return Replay(step, "reward", obs, reward)
        if step < count:
            obs, reward, *_ = world.step(action_layout.read(actions, step))
    raise WorldError(
        f"{path}: all {count} steps stay finite when they are run again; the world has randomness "
        "that its seed does not reach, or has changed since"
    )


def _listed(episode: Episode, layout: Layout) -> dict[str, Any]:
    """The actions of an episode as JSON lists, by leaf."""
    actions = layout.alloc(len(episode.actions))
    for row, action in enumerate(episode.actions):
        layout.write(action, actions, row)
    return {key: array.tolist() for key, array in tree_items(actions)}


def _bad_rows(array: torch.Tensor) -> list[int]:
    return torch.nonzero(~array.isfinite().reshape(len(array), -1).all(1)).flatten().tolist()


def _column(flags: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return flags.reshape(-1, *([1] * (target.ndim - 1)))
