"""What the rules of the contract work with: random allowed actions, and copies of each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces

from rlgym.errors import StateError
from rlgym.spaces import Layout, Leaf, Tree, map_tree, tree_items
from rlgym.vector.contract import VectorEnv

Severity = Literal["error", "warning", "note"]
Found = Iterator[tuple[Severity, str]]
"""What a rule yields."""


@dataclass(frozen=True)
class Finding:
    """One thing that an env does and should not."""

    severity: Severity
    """error: breaks the contract; warning: costs something, such as exact resume; note: to know."""
    rule: str
    """Name of the rule."""
    message: str
    """What was seen and what to change, one line."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.severity}: {self.rule}: {self.message}"


@dataclass
class Frame:
    """Copies of what one reset or step returned, as numpy."""

    obs: Tree[np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]

    @property
    def done(self) -> np.ndarray:
        """(num_envs,) bool."""
        return self.terminated | self.truncated


class Trial:
    """An env under test, with actions for it and a record of one long run."""

    def __init__(
        self,
        env: VectorEnv,
        fresh: Callable[[], VectorEnv] | None,
        steps: int,
        seconds: float,
        seed: int,
    ) -> None:
        """Nothing is run yet."""
        self.env, self.fresh, self.steps, self.seconds, self.seed = env, fresh, steps, seconds, seed
        self.short = min(steps, 30)
        self.reproducible = True
        self.first_obs: Tree[np.ndarray] = np.zeros(0)
        self.frames: list[Frame] = []
        self.actions: list[Any] = []
        self._rng = np.random.default_rng(seed)
        self.mask: np.ndarray | None = None

    def reset(self, seed: Any, env: VectorEnv | None = None) -> Tree[np.ndarray]:
        """Reset and copy the observation."""
        env = env or self.env
        obs, info = env.reset(seed=seed)
        self.mask = _host(info["action_mask"]) if env.mask_size else None
        return _copied(env.obs_layout.flatten(obs))

    def act(self) -> Any:
        """Random allowed actions for every slot, as the env takes them."""
        env = self.env
        tree = env.action_layout.alloc(env.num_envs)
        for row in range(env.num_envs):
            mask = None if self.mask is None else self.mask[row]
            values = sample_action(env.action_layout, self._rng, mask)
            for (_, array), value in zip(tree_items(tree), values, strict=True):
                array[row] = value
        if env.output == "numpy":
            return env.action_layout.nest(tree)
        return map_tree(lambda a: torch.from_numpy(a).to(env.device), tree)

    def step(self, actions: Any, env: VectorEnv | None = None) -> Frame:
        """Step and copy everything."""
        frame = to_frame(env or self.env, (env or self.env).step(actions))
        self.mask = frame.info.get("action_mask")
        return frame

    def compare(self, a: list[Frame], b: list[Frame]) -> str | None:
        """Name a part in which two runs differ; not rewards that running statistics change."""
        ignored = {"reward"} if getattr(self.env, "changes_rewards", False) else set()
        for one, other in zip(a, b, strict=True):
            parts = [part for part in differences(one, other) if part not in ignored]
            if parts:
                return parts[0]
        return None

    def settle(self) -> None:
        """Receive what a rule that failed has left pending."""
        for group in range(self.env.num_groups):
            with contextlib.suppress(StateError):
                self.env.recv(group)

    def run(self, count: int, seed: int) -> tuple[list[Any], list[Frame]]:
        """Reset with `seed`, then take `count` random steps."""
        self.reset(seed)
        actions, frames = [], []
        for _ in range(count):
            actions.append(self.act())
            frames.append(self.step(actions[-1]))
        return actions, frames

    def again(self, actions: list[Any], env: VectorEnv | None = None) -> list[Frame]:
        """Take the same steps from where the env is."""
        return [self.step(action, env) for action in actions]


def to_frame(env: VectorEnv, result: Any) -> Frame:
    """Copy what `step` or `recv` returned."""
    obs, reward, terminated, truncated, info = result
    plain = {key: _copied(value) for key, value in info.items() if key != "final_obs"}
    plain["final_obs"] = _copied(env.obs_layout.flatten(info["final_obs"]))
    return Frame(
        _copied(env.obs_layout.flatten(obs)),
        _copied(reward),
        _copied(terminated),
        _copied(truncated),
        plain,
    )


def differences(a: Frame, b: Frame) -> list[str]:
    """Names of the parts in which two frames differ, in rows that count."""
    parts = [
        name
        for name in ("reward", "terminated", "truncated")
        if not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "reward")
    ]
    if not same(a.obs, b.obs):
        parts.append("obs")
    elif not parts and a.done.any():
        done = a.done
        pick = lambda tree: map_tree(lambda array: array[done], tree)  # noqa: E731
        if not same(pick(a.info["final_obs"]), pick(b.info["final_obs"])):
            parts.append("final_obs")
    return parts


def same(a: Tree[np.ndarray], b: Tree[np.ndarray]) -> bool:
    """True when two trees are bit-equal (NaN equals NaN)."""
    one, other = dict(tree_items(a)), dict(tree_items(b))
    return one.keys() == other.keys() and all(
        np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f") for key in one
    )


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return np.array(_host(value))


def _host(value: Any) -> np.ndarray:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)


def sample_action(
    layout: Layout, rng: np.random.Generator, mask: np.ndarray | None
) -> list[np.ndarray]:
    """One random action, a value per leaf; `mask` (mask_size,) bool restricts its choices."""
    values, offset = [], 0
    for leaf in layout.leaves:
        size = sum(leaf.num_choices)
        part = np.ones(size, bool) if mask is None else mask[offset : offset + size]
        values.append(_sample(leaf, rng, part))
        offset += size
    return values


def _sample(leaf: Leaf, rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    if leaf.num_choices:
        parts = np.split(mask, np.cumsum(leaf.num_choices)[:-1])
        picked = [rng.choice(np.flatnonzero(part)) if part.any() else 0 for part in parts]
        return np.asarray(picked).reshape(leaf.shape) + leaf.start
    if isinstance(leaf.space, spaces.MultiBinary):
        return rng.integers(0, 2, leaf.shape)
    box = leaf.space
    assert isinstance(box, spaces.Box)
    if leaf.dtype.kind in "iu":
        return rng.integers(box.low, box.high, endpoint=True)
    low, high = np.maximum(box.low, -1e3), np.minimum(box.high, 1e3)
    normal = np.clip(rng.normal(size=leaf.shape), low, high)
    bounded = np.isfinite(box.low) & np.isfinite(box.high)
    return np.where(bounded, rng.uniform(low, high), normal)


def outside(layout: Layout, tree: Tree[np.ndarray], row: int) -> str | None:
    """Say which leaf of row `row` is not in its space, and why; None when all are."""
    for (key, array), leaf in zip(tree_items(tree), layout.leaves, strict=True):
        value = np.asarray(array[row], leaf.space.dtype)
        if not leaf.space.contains(
            int(value) if isinstance(leaf.space, spaces.Discrete) else value
        ):
            return f"{key!r} = {_short(value)} is not in {_short(leaf.space)}"
    return None


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 90 else text[:87] + "..."


def raises(kind: type[Exception], call: Callable[[], Any]) -> str | None:
    """None when `call` raises `kind` with one line; else what happened instead."""
    try:
        call()
    except kind as error:
        return None if "\n" not in str(error) and str(error) else f"raised an unclear {error!r}"
    except Exception as error:
        return f"raised {type(error).__name__}, not {kind.__name__}"
    return "was accepted"
