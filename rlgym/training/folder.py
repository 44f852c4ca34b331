"""The folder of a run, apart from its checkpoints: made, described, never overwritten unasked."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rlgym import __version__
from rlgym.config import ALGOS, TrainConfig, save_config
from rlgym.errors import UserError
from rlgym.registry import WorldFactory

EVALUATIONS = "evaluations.jsonl"
CRASHES = "crashes"
"""Folder for the reports of worlds and workers that were lost."""
CALLABLE = "callable:"
"""Prefix of the `env_id` of a run whose worlds come from a callable."""
LOCK = "run.lock"
"""File that whoever trains into the folder holds; see `rlgym.training.run_lock`."""

_OWN = ("config.yaml", "system.json", "metrics.jsonl", EVALUATIONS, "latest.json", "best.json")
_PACKAGES = ("torch", "numpy", "gymnasium", "safetensors", "mujoco", "pybullet")


def choose_folder(run_dir: str | Path | None, config: TrainConfig, overwrite: bool) -> Path:
    """Name the folder of a new run; nothing is touched yet.

    Raises:
        UserError: it holds a run or anything else already.
    """
    folder = Path(run_dir) if run_dir is not None else _fresh_name(config)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give another folder with --run-dir")
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} is not empty and holds no run: give another folder")
        if not overwrite and not (folder / "checkpoints").is_dir():
            raise UserError(
                f"{folder} holds a run of which nothing was saved: --overwrite begins it anew"
            )
        if not overwrite:
            raise UserError(
                f"{folder} holds a run already: rlgym resume {folder} continues it, "
                "--overwrite replaces it"
            )
    return folder


def open_folder(folder: Path, config: TrainConfig) -> None:
    """Make the folder, empty it of an older run, and write down what the new one is made of.

    Raises:
        UserError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        save_config(config, folder / "config.yaml")
        write_system(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): give another folder with --run-dir"
        ) from None


def require_plain(folder: Path) -> None:
    """Refuse a run's folder that holds links: who writes through one does not write in there.

    The way to the folder may lead through links.

    Raises:
        UserError: names the link, or says why the folder cannot be looked into.
    """
    try:
        found = [path for path in folder.iterdir() if path.is_symlink()]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error})") from None
    if found:
        raise UserError(
            f"{min(found)} is a link, and what a run writes stays in its folder: put what it leads "
            "to in its place, or delete it"
        )


def world_name(world: WorldFactory) -> str:
    """Name under which a callable's run is kept."""
    return CALLABLE + getattr(world, "__qualname__", type(world).__name__)


def check_world(config: TrainConfig, world: WorldFactory | None) -> None:
    """Refuse to resume a callable's run without the callable.

    Raises:
        UserError: names what to pass.
    """
    if world is None and config.env_id.startswith(CALLABLE):
        name = config.env_id.removeprefix(CALLABLE)
        raise UserError(
            f"this run's worlds come from the callable {name}: continue it from Python with "
            f"rlgym.resume(run_dir, world={name})"
        )


def write_system(folder: Path) -> None:
    """Write down the machine and the versions that a run was started with."""
    versions = {"rlgym": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    system: dict[str, Any] = {
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (folder / "system.json").write_text(json.dumps(system, indent=1) + "\n", encoding="utf-8")


def cut_lines(path: Path, step: int) -> None:
    """Drop the JSON lines of a file that lie after `step`, or that a crash has torn."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    staged = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    staged.write_text("".join(kept), encoding="utf-8")
    os.replace(staged, path)


def _fresh_name(config: TrainConfig) -> Path:
    algo = next(name for name, kind in ALGOS.items() if type(config.algo) is kind)
    world = re.sub(r"[^A-Za-z0-9._-]+", "-", config.env_id.rpartition(":")[2]).strip("-.")
    stem = f"{world or 'world'}-{algo}-{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = Path("runs") / stem, 2
    while path.exists():
        path, count = Path("runs") / f"{stem}.{count}", count + 1
    return path


def _clear(folder: Path) -> None:
    """Delete what a run writes; files of the person's stay."""
    for path in folder.iterdir():
        if path.name in ("checkpoints", CRASHES) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name in _OWN or path.name.startswith("events.out.tfevents"):
            path.unlink()
