"""Start a training run, or continue one: `train` and `resume`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rlgym.config import (
    NetworkConfig,
    TrainConfig,
    algo_named,
    asks_for_tensors,
    load_config,
    merge,
    starting_config,
)
from rlgym.errors import UserError
from rlgym.registry import WorldFactory, require_trusted_cluster, require_trusted_worlds
from rlgym.settings import short
from rlgym.training import checkpoint as checkpoints
from rlgym.training.console import Mode
from rlgym.training.distributed import joined
from rlgym.training.folder import check_world, choose_folder, world_name
from rlgym.training.loaded import LoadedPolicy, load_policy
from rlgym.training.run_lock import locked
from rlgym.training.session import Run
from rlgym.training.state import RunState, Snapshot

__all__ = ["LoadedPolicy", "Run", "load_policy", "resume", "train"]


def train(
    world: str | WorldFactory | TrainConfig,
    *,
    run_dir: str | Path | None = None,
    preset: str | None = "auto",
    network: Any = None,
    hooks: Any = None,
    overwrite: bool = False,
    console: Mode = "auto",
    trust: bool = False,
    **settings: Any,
) -> Run:
    """Train a policy and return the finished run.

        run = rlgym.train("CartPole-v1", total_steps=50_000, algo={"num_steps": 32})
        run = rlgym.train("Pendulum-v1", algo="sac")

    Args:
        world: an id, "module:id", a callable that builds a `gymnasium.Env`, or a whole config.
        run_dir: folder of the run; by default a new one under runs/.
        preset: settings to start from: "auto" takes the one tuned for this world and algorithm, if
            there is one; None takes plain defaults. Not used with a whole config.
        network: settings of the network, as a mapping; or the user's own network in place of it
            (see `ActorCritic.build`), or a whole policy.
        hooks: an object, or several, with any of the methods `on_start(run)`,
            `on_rollout(run, buffer)`, `on_update(run, metrics)`, `on_evaluation(run, score)` and
            `on_end(run)`, and `symmetry(obs, actions)`, which mirrors both for
            `algo.symmetry_coef` (see `PPO`). `on_update` is called when scalars were written: PPO
            writes them after each update, SAC about every 1000 steps. True from it, or from SAC's
            `on_rollout`, ends the run.
        overwrite: replace a run that stands in `run_dir`.
        console: "auto", "live", "plain" or "off".
        trust: let a whole config, which may have been read from a file, import the module that its
            `env_id` names, though neither rlgym nor this process knows it, and give its worlds
            arguments with which they can write anywhere.
        settings: fields of `TrainConfig`; a section is given as a mapping of its fields, the
            algorithm also as its name.

    Raises:
        UserError: a wrong setting, an unknown world, a folder that holds a run already or in which
            another process is training.
        SystemExit: SIGINT or SIGTERM ended the run, after it was saved; 128 + the signal's number.
    """
    factory = None if isinstance(world, str | TrainConfig) else world
    if not isinstance(world, str | TrainConfig) and not callable(world):
        raise UserError(
            f"the world is {short(world)}: pass its id, its class or a function that builds one, "
            "not one that is built"
        )
    network = _own_network(network, settings)
    config = _config(world, preset, settings)
    if isinstance(world, TrainConfig) and not trust:
        require_trusted_worlds(world, "this config", settings)
        require_trusted_cluster(world, "this config", settings)
    with joined() as group:
        folder = choose_folder(run_dir, config, overwrite) if group.leads else Path()
        folder = Path(group.exchange(str(folder))[0])
        with locked(folder) if group.leads else nullcontext():
            if group.leads:  # another run may have ended there meanwhile
                choose_folder(folder, config, overwrite)
            return Run(config, folder, factory, network, hooks, console, group=group).go()


def resume(
    run_dir: str | Path,
    total_steps: int | None = None,
    *,
    world: WorldFactory | None = None,
    network: Any = None,
    hooks: Any = None,
    console: Mode = "auto",
    trust: bool = False,
    **settings: Any,
) -> Run:
    """Continue a run from its newest checkpoint, bit for bit on a CPU.

    Args:
        run_dir: its folder.
        total_steps: a new end, when the run is to go on beyond the old one.
        world: the callable, for a run that was started with one.
        network: the user's own network, for a run that was started with one.
        hooks: as in `train`.
        console: as in `train`.
        trust: let the run import the module that it names for its worlds, though neither rlgym nor
            this process knows it, and give them arguments with which they can write anywhere;
            giving `env_id`, or such an argument, again does the same.
        settings: fields of `TrainConfig` to change from here on.

    Raises:
        UserError: there is no run, nothing was saved, the run is at its end, or another process is
            training it.
        SystemExit: as in `train`.
    """
    folder = Path(run_dir)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run: give the folder that has config.yaml in it")
    old = load_config(folder / "config.yaml")
    network = _own_network(network, settings)
    if total_steps is not None:
        settings["total_steps"] = total_steps
    config = merge(old, settings)
    _check_demonstrations(old, config)
    check_world(config, world)
    if world is None and not trust:
        require_trusted_worlds(old, folder, settings)
    if not trust:
        require_trusted_cluster(old, folder, settings)
    with joined() as group, locked(folder) if group.leads else nullcontext():
        saved = checkpoints.newest(folder)
        if saved is None:
            raise UserError(
                f"{folder} has no checkpoint yet: start it again, rlgym train --config {folder} "
                f"--run-dir {folder} --overwrite"
            )
        snapshot = Snapshot.from_files(saved)
        state = RunState.from_document(snapshot.state)
        if state.env_steps >= config.total_steps:
            raise UserError(
                f"{folder} is at its end, {state.env_steps} steps: give more than that as "
                "--total-steps"
            )
        run = Run(config, folder, world, network, hooks, console, snapshot, group)
        return run.go()


def _config(
    world: str | WorldFactory | TrainConfig, preset: str | None, settings: dict[str, Any]
) -> TrainConfig:
    """Start from the config, the preset or the defaults, and change what the caller asks for."""
    if isinstance(world, TrainConfig):
        return merge(world, settings)
    env_id = world if isinstance(world, str) else world_name(world)
    env = settings.get("env") or {}
    tensors = asks_for_tensors(settings)
    return merge(starting_config(env_id, preset, algo_named(settings), env, tensors), settings)


def _check_demonstrations(old: TrainConfig, config: TrainConfig) -> None:
    """Refuse to add demonstrations to the buffer of a run that goes on.

    Raises:
        UserError: names how to use them.
    """
    before, now = (getattr(cfg.algo, "demonstrations", None) for cfg in (old, config))
    if now not in (before, None):
        raise UserError(
            "algo.demonstrations go into a new run's replay buffer, and this run has begun: start "
            "a new one with them"
        )


def _own_network(network: Any, settings: dict[str, Any]) -> Any:
    """Move settings of the network to the other settings; what remains is the user's own one."""
    if isinstance(network, Mapping | NetworkConfig):
        settings["network"] = network
        return None
    return network
