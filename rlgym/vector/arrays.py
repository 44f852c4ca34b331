"""The arrays through which worlds and a vector env exchange one step; torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlgym.spaces import Layout, Tree


@dataclass(frozen=True)
class StepArrays:
    """One row per slot; the same arrays for the life of a vector env, overwritten by each step."""

    actions: Tree[np.ndarray]
    """What the slots are told to do next."""
    obs: Tree[np.ndarray]
    """Current observation; where an episode just ended, the first of the next one."""
    final_obs: Tree[np.ndarray]
    """Last observation of an episode; counts where terminated or truncated."""
    reward: np.ndarray
    """(num_envs,) float32."""
    terminated: np.ndarray
    """(num_envs,) bool: the world ended."""
    truncated: np.ndarray
    """(num_envs,) bool: time ran out, or the slot was lost."""
    active: np.ndarray
    """(num_envs,) bool: False for a slot that did not act or was lost."""
    action_mask: np.ndarray
    """(num_envs, mask_size) bool, True = allowed; mask_size 0 when the world has no mask."""
    extras: np.ndarray
    """(num_envs, number of declared reward terms and info keys) float32; NaN = absent."""

    @staticmethod
    def plan(
        num_envs: int, obs_layout: Layout, action_layout: Layout, mask_size: int, num_extras: int
    ) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name, shape and type of every array, for whoever allocates them."""
        plan: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for group, layout in (
            ("actions", action_layout),
            ("obs", obs_layout),
            ("final_obs", obs_layout),
        ):
            for leaf in layout.leaves:
                plan[f"{group}:{leaf.key}"] = ((num_envs, *leaf.shape), leaf.dtype)
        plan["reward"] = ((num_envs,), np.dtype(np.float32))
        for flag in ("terminated", "truncated", "active"):
            plan[flag] = ((num_envs,), np.dtype(np.bool_))
        plan["action_mask"] = ((num_envs, mask_size), np.dtype(np.bool_))
        plan["extras"] = ((num_envs, num_extras), np.dtype(np.float32))
        return plan

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], obs_layout: Layout, action_layout: Layout
    ) -> StepArrays:
        """Sort the arrays of a `plan` into place, whoever allocated them."""

        def tree(group: str, layout: Layout) -> Tree[np.ndarray]:
            if layout.single:
                return arrays[f"{group}:"]
            return {leaf.key: arrays[f"{group}:{leaf.key}"] for leaf in layout.leaves}

        return cls(
            actions=tree("actions", action_layout),
            obs=tree("obs", obs_layout),
            final_obs=tree("final_obs", obs_layout),
            **{
                name: arrays[name]
                for name in ("reward", "terminated", "truncated", "active", "action_mask", "extras")
            },
        )

    @classmethod
    def alloc(
        cls,
        num_envs: int,
        obs_layout: Layout,
        action_layout: Layout,
        mask_size: int,
        num_extras: int,
    ) -> StepArrays:
        """Allocate in this process's own memory."""
        plan = cls.plan(num_envs, obs_layout, action_layout, mask_size, num_extras)
        return cls.from_arrays(
            {name: np.zeros(shape, dtype) for name, (shape, dtype) in plan.items()},
            obs_layout,
            action_layout,
        )
