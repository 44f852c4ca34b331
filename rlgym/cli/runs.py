"""What the verbs that take a RUN have in common: finding it, and not trusting it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlgym.config import TrainConfig, load_config
from rlgym.errors import UserError
from rlgym.registry import require_trust


def is_run(path: str) -> bool:
    """Tell whether this is the folder of a run."""
    return (Path(path) / "config.yaml").is_file()


def read_run(path: str, trust: bool = False) -> TrainConfig:
    """Return the settings of the run in this folder.

    A config may name a module that registers its world; see `require_trust`.

    Raises:
        UserError: it is no run, or its worlds are not to be had this way.
    """
    if not is_run(path):
        near = sorted(str(folder.parent) for folder in Path("runs").glob("*/config.yaml"))
        hint = f"the newest here is {near[-1]}" if near else "rlgym train prints the folder"
        raise UserError(f"{path} holds no run (no config.yaml in it): {hint}")
    config = load_config(Path(path) / "config.yaml")
    kind, _, _ = config.env_id.rpartition(":")
    if kind == "callable":
        raise UserError(
            f"the worlds of {path} come from a Python function: use rlgym.resume(..., world=...) "
            f"or rlgym.load_policy(...) from Python"
        )
    if not trust:
        require_trust(config.env_id, path)
    return config


def with_env(config: TrainConfig, env: Mapping[str, Any]) -> TrainConfig:
    """Return the settings with other keyword arguments of the worlds, those that evaluate too."""
    scored = replace(config.eval, env={**config.eval.env, **env})
    return replace(config, env={**config.env, **env}, eval=scored)
