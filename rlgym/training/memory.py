"""What a run in tensor worlds takes of its device's memory, said before it is allocated."""

from __future__ import annotations

from typing import Any

import torch

from rlgym.config import PPOConfig, TrainConfig
from rlgym.device import describe, free_memory
from rlgym.errors import UserError
from rlgym.vector.contract import VectorEnv

GIB = 2**30
CPU_ROWS = 1024
"""Rows that a CPU puts through a network at once; an accelerator takes all."""


def parts(
    config: TrainConfig,
    env: VectorEnv,
    policy: Any,
    device: torch.device,
    num_envs: int | None = None,
) -> dict[str, int]:
    """Bytes that a run of PPO will take, about, by what takes them.

    Args:
        config: settings.
        env: its worlds, made already.
        policy: what is trained.
        device: where.
        num_envs: worlds; None: as many as there are.
    """
    algo = config.algo
    if not isinstance(algo, PPOConfig):  # a replay buffer looks after itself
        return {}
    rows = (num_envs or env.num_envs) * algo.num_steps
    obs, actions = env.obs_layout.nbytes(), env.action_layout.nbytes()
    noise = 4 * getattr(policy.distribution, "noise_size", 1)
    width = 2 * sum(config.network.hidden)  # of actor and critic
    weights = sum(parameter.numel() for parameter in policy.parameters())
    at_once = CPU_ROWS if device.type == "cpu" else rows
    return {
        "the rollout": rows * (obs + actions + noise + env.mask_size + 24),
        "shuffled copies of it": 2 * rows * (obs + actions + env.mask_size + 64),
        "layers of the networks": 3 * 4 * width * (min(rows, at_once) + algo.minibatch_size),
        "weights and their optimiser": 5 * 4 * weights,
    }


def check_memory(config: TrainConfig, env: VectorEnv, policy: Any, device: torch.device) -> None:
    """Refuse a run in tensor worlds that does not fit, before it allocates.

    Raises:
        UserError: says how much each part needs, and the largest `num_envs` that fits.
    """
    free = free_memory(device)
    needed = sum(parts(config, env, policy, device).values())
    if env.kind == "device" and free is not None and needed > free:
        raise UserError(shortage(config, env, policy, device, free))


def shortage(
    config: TrainConfig, env: VectorEnv, policy: Any, device: torch.device, free: int | None
) -> str:
    """Say what each part needs and what would fit; `free` bytes, None where they are gone."""
    needed = parts(config, env, policy, device)
    if not needed:
        return (
            f"{describe(device)} has no memory left: use a smaller --algo.batch-size, "
            "--algo.buffer-size or network"
        )
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in needed.items())
    text = f"{env.num_envs} worlds need about {_gib(sum(needed.values()))} ({listed})"
    if free is None:
        return f"{text}, more than {describe(device)} has left: use fewer worlds (--num-envs)"
    fits, beyond = 1, env.num_envs
    while beyond - fits > max(fits // 100, 1):
        middle = (fits + beyond) // 2
        enough = sum(parts(config, env, policy, device, middle).values()) <= free
        fits, beyond = (middle, beyond) if enough else (fits, middle)
    return f"{text} and {_gib(free)} of {describe(device)} are free: pass --num-envs {fits}"


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= 0.1 * GIB else f"{count / GIB:.3g} GiB"
