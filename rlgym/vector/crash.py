"""What is written down when a world raises, or a worker dies or freezes: one JSON file each."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from rlgym.vector.worker import plain


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
