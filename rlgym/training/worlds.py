"""The worlds of a run: those that train, those that evaluate, and the threads beside them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlgym.config import CollectConfig, SACConfig, TrainConfig
from rlgym.device import resolve
from rlgym.errors import MissingExtraError, UserError
from rlgym.registry import (
    WorldFactory,
    is_device_batch,
    is_scene,
    make_vec,
    require_accelerator,
    suits_tensors,
)
from rlgym.spaces import Layout
from rlgym.training.distributed import is_grouped
from rlgym.training.folder import CRASHES, check_world
from rlgym.vector.contract import VectorEnv
from rlgym.vector.wrappers import wrap

SMALL_FLOPS = 1e9
"""Floating-point operations of a minibatch (about 15 ms on one core) below which a second thread,
or an accelerator, costs more than it brings. Waking either takes some 10 us for each of some
hundred small operations; and where the cores are busy with worlds, each wake-up waits for one."""
CROWD = 1024
"""Tensor worlds from which on an accelerator is faster than a core."""


def make_worlds(
    config: TrainConfig,
    world: WorldFactory | None,
    dump_dir: str | Path,
    *,
    evaluation: bool = False,
    verbose: bool = False,
    processes: int = 1,
) -> VectorEnv:
    """Make a config's vector env, with its wrappers: on the CPU, or where worlds are tensors.

    Args:
        config: settings.
        world: builds one world instead of `config.env_id`.
        dump_dir: folder for the NaN guard's dumps, and in its `crashes` for reports of lost worlds.
        evaluation: at most `eval.episodes` worlds with the arguments of `eval.env`, and rewards as
            the worlds give them.
        verbose: print the backend that was chosen.
        processes: that train on this machine together, and share its cores.

    Raises:
        UserError: the worlds cannot be made.
    """
    check_world(config, world)
    if config.collect.ray is not None and not evaluation:
        return _remote_worlds(config, world)
    wrappers = config.wrappers
    num_envs: int | None = config.num_envs
    backend, arguments = config.backend, config.env
    if isinstance(config.algo, SACConfig) and config.algo.overlap and backend == "auto":
        backend = "process"  # worlds in this process would step when they are waited for
    if evaluation:
        wrappers = dataclasses.replace(
            wrappers, reward_scale=1.0, normalize_reward=False, clip_reward=None
        )
        num_envs = min(config.num_envs, config.eval.episodes)
        arguments = {**arguments, **config.eval.env}
        backend = "auto" if backend == "device" else backend  # scores are of the worlds themselves
    if world is None and is_scene(config.env_id):
        num_envs, arguments = _scene(config, evaluation)
    env = make_vec(
        world or config.env_id,
        num_envs,
        backend=backend,
        device="cpu" if evaluation else worlds_device(config, world),
        seed=config.eval.seed if evaluation else config.seed,
        num_groups=None if evaluation else config.num_groups,
        num_workers=config.num_workers or _share_of_cores(processes),
        timeout=config.timeout,
        max_restarts=config.max_restarts,
        crash_dir=Path(dump_dir) / CRASHES,
        env_kwargs=arguments,
        verbose=verbose,
    )
    try:
        return wrap(env, wrappers, config.algo.gamma, dump_dir)
    except BaseException:
        env.close()
        raise


def _scene(config: TrainConfig, evaluation: bool) -> tuple[int | None, dict[str, Any]]:
    """Number of slots, if it is to be checked, and arguments of a Unity scene."""
    if not evaluation:
        return config.num_envs or None, {"total_steps": config.total_steps, **config.env}
    own = {"num_players": 1, "evaluation": True}  # scores are of the last lesson
    return None, {**config.env, **own, **config.eval.env}


def _remote_worlds(config: TrainConfig, world: WorldFactory | None) -> Any:
    """Have Ray actors make the worlds, and step them with copies of the policy.

    Raises:
        UserError: Ray is not installed, or processes of a group ask for it.
    """
    try:
        from rlgym.rollout.ray import RemoteWorlds
    except ImportError as error:
        raise MissingExtraError(
            f"collect.ray needs Ray ({error}): pip install 'rlgym-lab[ray]'"
        ) from None
    if is_grouped():
        raise UserError("collect.ray has one learner: start it without torchrun")
    collect = config.collect
    own = dataclasses.replace(
        config,
        num_envs=config.num_envs // collect.actors,
        num_workers=config.num_workers or max(int(collect.cpus), 1),
        collect=CollectConfig(),
        device="cpu",
    )
    reports = Path(tempfile.gettempdir()) / "rlgym-actors"  # of the machine that an actor is on
    return RemoteWorlds(
        partial(make_worlds, own, world, reports),
        config.num_envs,
        address=str(collect.ray),
        actors=collect.actors,
        cpus=collect.cpus,
        patience=collect.patience,
        max_restarts=config.max_restarts,
    )


def worlds_device(config: TrainConfig, world: WorldFactory | None) -> torch.device:
    """Where the worlds that train live: on the learner's device where they are tensors, or the CPU.

    "auto" leaves fewer than `CROWD` of them on the CPU: an accelerator takes some 10 us for each
    operation, however small.
    """
    cpu = torch.device("cpu")
    name = world or config.env_id
    if is_device_batch(name, config.env):
        place = resolve(config.device)
        if config.device == "auto" and place == cpu:
            require_accelerator(name, config.env)
        return place
    if config.device == "auto" and config.num_envs < CROWD:
        return cpu
    place = resolve(config.device)
    if config.backend == "device":
        return place
    asked = (config.num_groups, config.num_workers)
    suits = suits_tensors(name, config.env, config.num_envs, place, *asked)
    return place if config.backend == "auto" and suits else cpu


def settle(
    config: TrainConfig, env: VectorEnv, policy: nn.Module, processes: int = 1
) -> TrainConfig:
    """Replace what was left to choose by what was chosen, so that a resume computes the same bits.

    The sizes of groups and the number of threads change the order in which sums are taken.
    """
    backend: Any = env.unwrapped.backend  # type: ignore[attr-defined]
    return dataclasses.replace(
        config,
        backend=backend or config.backend,
        num_envs=config.num_envs or env.num_envs,
        num_groups=env.num_groups,
        torch_threads=_choose_threads(config, policy, env.obs_layout, processes),
    )


def world_seeds(seed: int, num_envs: int) -> list[int]:
    """Seeds of the slots: unrelated for neighbouring runs, below 2^31 for old generators."""
    return [int(word >> 1) for word in np.random.SeedSequence([seed, 1]).generate_state(num_envs)]


def choose_device(config: TrainConfig, policy: nn.Module, env: VectorEnv) -> torch.device:
    """The learner's device: that of tensor worlds; "auto" leaves other small networks on the CPU.

    An accelerator takes some 10 us for each operation, however small, and each step of host worlds
    waits for it.
    """
    if env.kind == "device":
        return env.device
    if config.device == "auto" and _is_small(config, policy, env.obs_layout):
        return torch.device("cpu")
    return resolve(config.device)


def _choose_threads(
    config: TrainConfig, policy: nn.Module, obs_layout: Layout, processes: int
) -> int:
    """Threads for tensor operations: one for small networks, else one per core."""
    if config.torch_threads is not None:
        return config.torch_threads
    return 1 if _is_small(config, policy, obs_layout) else max(_num_cores() // processes, 1)


def _is_small(config: TrainConfig, policy: nn.Module, obs_layout: Layout) -> bool:
    """Whether a minibatch costs by the number of operations and not by their size."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    images = any(leaf.is_image for leaf in obs_layout.leaves)
    algo = config.algo
    rows = algo.batch_size if isinstance(algo, SACConfig) else algo.minibatch_size
    flops = 6 * parameters * rows * (50 if images else 1)
    return flops < SMALL_FLOPS


def _share_of_cores(processes: int) -> int | None:
    """Workers of one of several processes on this machine; None leaves it to the worlds."""
    return None if processes == 1 else max(_num_cores() // processes, 1)


def _num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
