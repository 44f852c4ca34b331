"""The table of measured numbers (docs/measured.md), from saved results.

Save a result with `rlgym bench NAME --json | tail -n 1 > docs/results/NAME.json`.
"""

import json
from pathlib import Path
from typing import Any

from rlgym.errors import UserError


def markdown(folder: Path) -> str:
    """Return a Markdown table, one row per case of each `*.json` in the folder.

    A goal that was not met for a condition beside its bound says which.

    Raises:
        UserError: when the folder has none, or one is not a result.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(
            f"{folder} has no results: save one with "
            f"`rlgym bench NAME --json | tail -n 1 > {folder / 'NAME.json'}`"
        )
    rows = ["| measured | value | baseline | ratio | goal | met |", "|---|---|---|---|---|---|"]
    machines = []
    for file in files:
        result = read(file)
        rows += [_row(result, case) for case in result["cases"]]
        machines.append(f"{file.stem}: {_where(result)}")
    return "\n".join([*rows, "", *(f"- {line}" for line in machines)])


def _where(result: dict[str, Any]) -> str:
    machine, torch = result["machine"], result["versions"].get("torch", "?")
    parts = [machine["cpu"], f"{machine['cores']} cores", machine["gpu"], f"torch {torch}"]
    parts += [result["date"][:10], f"commit {(result['commit'] or '?')[:9]}"]
    parts += ["BUSY machine"] if result["busy"] else []
    return ", ".join(part for part in parts if part)


def read(file: Path) -> dict[str, Any]:
    """Return a saved result.

    Raises:
        UserError: when the file is none.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not {"name", "cases", "machine", "versions", "date", "commit", "busy"} <= result.keys():
            raise ValueError("fields are missing")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is not a saved result ({error}): run its benchmark again"
        ) from None
    return result


def _row(result: dict[str, Any], case: dict[str, Any]) -> str:
    unit = "" if case["unit"] in ("", "return") else f" {case['unit']}"
    baseline = "" if case["baseline"] is None else f"{case['baseline']:.4g}{unit}"
    ratio = "" if case["ratio"] is None else f"{case['ratio']:.3g}"
    value = "" if case["value"] is None else f"{case['value']:.4g}{unit}"
    if "interval" in case["details"]:
        low, high = case["details"]["interval"]
        one = len(case["values"]) == 1
        value += " (one seed)" if one else f" ({low:.4g} to {high:.4g})"
    goal = case["goal"]
    bound = f"{goal['on']} {goal['is']} {goal['bound']:g}"
    what = f"{result['name']}: {case['name'].rpartition(':')[2]}"
    broken = ", ".join(name for name, holds in case["conditions"].items() if not holds)
    met = "yes" if case["met"] else f"no: {broken}" if broken else "no"
    return f"| {what} | {value} | {baseline} | {ratio} | {bound} | {met} |"
