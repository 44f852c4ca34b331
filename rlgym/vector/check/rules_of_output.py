"""The rules of what a vector env declares and returns: names, shapes, types, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rlgym.spaces import Layout, tree_items
from rlgym.vector.check.trial import Found, Trial
from rlgym.vector.contract import VectorEnv

HEALTH = ("restarts", "timeouts", "lost_slots", "world_errors", "unreplayed")
STATISTICS: dict[str, type] = {"episode_return": np.float32, "episode_length": np.int64}


def rule_attributes(trial: Trial) -> Found:
    """Everything that a user may ask an env is there and consistent."""
    env = trial.env
    if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        yield "error", "metadata['autoreset_mode'] is not SAME_STEP: reset in the step that ends"
    for name in ("observation", "action"):
        single = getattr(env, f"single_{name}_space")
        if getattr(env, f"{name}_space") != batch_space(single, env.num_envs):
            fix = f"use batch_space(single_{name}_space, num_envs)"
            yield "error", f"{name}_space is not a batch of single_{name}_space: {fix}"
        layout: Layout = env.obs_layout if name == "observation" else env.action_layout
        if layout.space != single:
            yield "error", f"the {name} layout is of another space: use Layout(single_{name}_space)"
    missing = [key for key in HEALTH if key not in env.health]
    if missing:
        yield "error", f"health lacks {', '.join(missing)}: count them from 0"


def rule_groups(trial: Trial) -> Found:
    """Groups are equal contiguous slices that cover every slot."""
    env = trial.env
    slices = [env.group_slice(group) for group in range(env.num_groups)]
    bounds = [0, *(rows.stop for rows in slices)]
    sizes = {rows.stop - rows.start for rows in slices}
    starts = [rows.start for rows in slices]
    if bounds[-1] != env.num_envs or starts != bounds[:-1] or len(sizes) != 1:
        yield "error", f"group slices {slices} do not cut {env.num_envs} slots into equal parts"


def rule_outputs(trial: Trial) -> Found:
    """Shapes, types and devices of everything that reset and step return."""
    env = trial.env
    obs, info = env.reset(seed=trial.seed)
    yield from _check_tree(env, "reset's obs", obs)
    yield from _check_mask(env, info)
    trial.reset(trial.seed)
    result = env.step(trial.act())
    if not (isinstance(result, tuple) and len(result) == 5):
        yield "error", "step does not return (obs, reward, terminated, truncated, info)"
        return
    obs, reward, terminated, truncated, info = result
    yield from _check_tree(env, "obs", obs)
    yield from _check_array(env, "reward", reward, (env.num_envs,), np.float32)
    yield from _check_array(env, "terminated", terminated, (env.num_envs,), np.bool_)
    yield from _check_array(env, "truncated", truncated, (env.num_envs,), np.bool_)
    missing = [key for key in ("final_obs", "active", *STATISTICS) if key not in info]
    if missing:
        yield "error", f"info lacks {', '.join(missing)}: give them full-size at every step"
        return
    yield from _check_tree(env, "info['final_obs']", info["final_obs"])
    for key, dtype in {"active": np.bool_, **STATISTICS}.items():
        yield from _check_array(env, f"info[{key!r}]", info[key], (env.num_envs,), dtype)
    yield from _check_mask(env, info)
    terms = info.get("reward_terms", {})
    if set(terms) != set(env.reward_term_names):
        yield "error", f"info['reward_terms'] has {sorted(terms)}, not {env.reward_term_names}"
    scalars = {f"info[{key!r}]": info.get(key) for key in env.info_keys}
    scalars |= {f"reward term {key!r}": value for key, value in terms.items()}
    for name, value in scalars.items():
        if value is None:
            yield "error", f"{name} is absent: give NaN where a world gives nothing"
        else:
            yield from _check_array(env, name, value, (env.num_envs,), np.float32)


def _check_tree(env: VectorEnv, name: str, value: Any) -> Found:
    leaves = env.obs_layout.leaves
    if env.output == "torch" and not env.obs_layout.single and not isinstance(value, dict):
        yield (
            "error",
            f"{name} is {type(value).__name__}: give a flat dict {[x.key for x in leaves]}",
        )
        return
    for leaf, (_, array) in zip(leaves, tree_items(env.obs_layout.flatten(value)), strict=True):
        label = f"{name} {leaf.key!r}" if leaf.key else name
        yield from _check_array(env, label, array, (env.num_envs, *leaf.shape), leaf.dtype)


def _check_mask(env: VectorEnv, info: dict[str, Any]) -> Found:
    if ("action_mask" in info) != bool(env.mask_size):
        given = "gives" if env.mask_size == 0 else "lacks"
        yield "error", f"info {given} action_mask, but mask_size is {env.mask_size}"
    elif env.mask_size:
        shape = (env.num_envs, env.action_layout.mask_size)
        yield from _check_array(env, "info['action_mask']", info["action_mask"], shape, np.bool_)


def _check_array(
    env: VectorEnv, name: str, value: Any, shape: tuple[int, ...], dtype: Any
) -> Found:
    kind = torch.Tensor if env.output == "torch" else np.ndarray
    if not isinstance(value, kind):
        yield (
            "error",
            f"{name} is {type(value).__name__}: output {env.output!r} gives {kind.__name__}",
        )
        return
    if tuple(value.shape) != tuple(shape):
        yield "error", f"{name} has shape {list(value.shape)}: give {list(shape)}"
        return
    found = str(value.dtype).removeprefix("torch.")
    if found != np.dtype(dtype).name:
        yield "error", f"{name} is {found}: give {np.dtype(dtype).name}"
    if isinstance(value, torch.Tensor) and value.device.type != env.device.type:
        yield "error", f"{name} is on {value.device}: move it to env.device, {env.device}"
