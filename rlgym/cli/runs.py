"""What the verbs that take a RUN have in common: finding it, and not trusting it."""

from pathlib import Path

from rlgym.config import TrainConfig, load_config, load_preset, presets
from rlgym.envs.gymnasium import PACKAGES
from rlgym.errors import UserError


def is_run(path: str) -> bool:
    """Tell whether this is the folder of a run."""
    return (Path(path) / "config.yaml").is_file()


def read_run(path: str, trust: bool = False) -> TrainConfig:
    """Return the settings of the run in this folder.

    A config may name a module that registers its world, and importing one runs its code: packages
    that rlgym knows are imported, others only when the person says so.

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
    if kind and not trust and kind not in known_modules():
        raise UserError(
            f"{path} asks to import the module '{kind}' for its worlds: add --trust if you know "
            f"who made this run"
        )
    return config


def known_modules() -> set[str]:
    """Return the modules that a run may import without being asked about."""
    named = {package.partition("[")[0].replace("-", "_") for package in PACKAGES.values()}
    tuned = {load_preset(name).env_id.rpartition(":")[0] for name in presets()}
    return (named | tuned) - {""}
