"""What is written down when a world raises, or a worker dies or freezes: one JSON file each."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.vector.slot import Episode


def default_folder() -> Path:
    """Where reports go unless told otherwise."""
    return Path(tempfile.gettempdir()) / "rlgym-crashes"


def write_report(folder: Path, report: dict[str, Any]) -> str:
    """Write one report.

    Never raises: a full disk must not end a run that has just survived a crash.

    Returns:
        The file's path, or why there is none.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    report = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **plain(report),
    }
    for attempt in range(1000):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}-{attempt}.json"
            with open(path, "x", encoding="utf-8") as file:  # never through someone's link
                json.dump(report, file, indent=1)
            return str(path)
        except FileExistsError:
            continue
        except OSError as error:
            return f"not written, {error.strerror or error}"
    return "not written, the folder is full"


def episode_facts(episode: Episode) -> dict[str, Any]:
    """What runs an episode again, as JSON can hold it."""
    return plain(
        {
            "seed": episode.seed,
            "options": episode.options,
            "rng": episode.rng,
            "actions": episode.actions,
        }
    )


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; what it cannot becomes its `repr`."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
