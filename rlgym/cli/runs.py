"""What the verbs that take a RUN have in common: finding it, and not trusting it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlgym.config import TrainConfig, load_config, merge
from rlgym.errors import UserError
from rlgym.registry import require_trusted_worlds
from rlgym.training.folder import require_plain


def is_run(path: str) -> bool:
    """Tell whether this is the folder of a run."""
    return (Path(path) / "config.yaml").is_file()


def read_run(path: str, trust: bool = False, env: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the settings of the run in this folder.

    Args:
        path: its folder.
        trust: do what it asks for, without asking; see `require_trusted_worlds`.
        env: keyword arguments in place of the run's, for the worlds that evaluate, too.

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
    require_plain(Path(path))
    given = {"env": env or {}, "eval": {"env": env or {}}}
    if not trust:
        require_trusted_worlds(config, path, given)
    return merge(config, given)
