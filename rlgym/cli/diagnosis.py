"""What the numbers of a run say about it: where its time went, and what looks wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rlgym.errors import UserError
from rlgym.training.logging import METRICS_FILE
from rlgym.vector.check.trial import Finding

KL_HIGH = 0.05
"""Mean approximate KL of an update beyond which PPO's bound no longer says much."""
CLIP_HIGH = 0.4
"""Share of clipped ratios beyond which most of a minibatch gives no gradient."""
STD_LOW = 0.03
"""Action deviation below which hardly anything is explored."""
MAX_CRASH_BYTES = 256_000_000
"""Size beyond which the report of a lost world is not read."""

LEARN_LESS = {
    "ppo": "use fewer epochs, larger minibatches",
    "sac": "lower algo.updates_per_step, use a smaller network",
}
"""Algorithm -> which of its settings make the updates shorter."""
HEALTH = {
    "restarts": "workers died and were replaced: what they were doing is in the run's crashes/",
    "timeouts": "workers gave no answer in time: raise timeout, or find what hangs in the world",
    "lost_slots": "episodes were cut because their world was lost",
    "blow_ups": "the physics of worlds broke: see the reports in crashes/, ask for less at a time",
    "overflows": "worlds lost contacts for want of room: raise env.physics.warp.max_contacts",
    "world_errors": "worlds raised an exception: rlgym doctor ENV shows it",
    "unreplayed": "episodes could not be continued on resume, and began anew",
    "nan_skips": "episodes were dropped for values that are not finite: correct the world",
    "skipped_updates": "updates were skipped for gradients that are not finite: lower the "
    "learning rate, or normalise observations",
}
"""Count in health/* -> what it means and what to do."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics; a last line that was cut short is left out.

    Raises:
        UserError: when there are none.
    """
    lines = []
    try:
        with open(run / METRICS_FILE, encoding="utf-8") as file:
            for line in file:
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
    except OSError:
        raise UserError(
            f"{run} has no {METRICS_FILE}: it was stopped before the first update"
        ) from None
    lines = [line for line in lines if isinstance(line, dict)]
    if not any("perf/learn" in line for line in lines):
        raise UserError(f"{run / METRICS_FILE} holds no update yet: let the run go on for a while")
    return lines


def read_crash(path: Path) -> dict[str, Any]:
    """Read what was written down when a world or a worker was lost, as printable text.

    Raises:
        UserError: when the file is something else.
    """
    try:
        if path.stat().st_size > MAX_CRASH_BYTES:
            raise ValueError
        document = json.loads(path.read_text(encoding="utf-8"))
        facts = {name: str(document[name]) for name in ("what", "world", "time", "traceback")}
        slots = document.get("slots") or []
        facts["slots"] = "; ".join(", ".join(f"{k} {v}" for k, v in slot.items()) for slot in slots)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is neither a NaN dump nor the report of a lost world") from None
    return {name: _printable(value) for name, value in facts.items() if value}


def _printable(text: str) -> str:
    """Text of a file that a stranger may have made, without what could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text).strip()


def shares(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time of a run went, as shares of its wall time that sum to 1.

    "idle" is waiting for worlds, "policy" inference, "transfer" copies between devices, "collect"
    the rest of collecting, "learn" the updates, "other" evaluation, saving and logging.
    """
    sums = {
        part: sum(line.get(f"perf/{part}") or 0.0 for line in lines)
        for part in ("idle", "policy", "transfer", "collect", "learn")
    }
    elapsed = max((line.get("time/time_elapsed") or 0.0 for line in lines), default=0.0)
    inside = sums["idle"] + sums["policy"] + sums["transfer"]
    busy = max(sums["collect"], inside) + sums["learn"]
    sums["collect"] = max(sums["collect"] - inside, 0.0)
    sums["other"] = max(elapsed - busy, 0.0)
    total = sum(sums.values())
    return {part: seconds / total for part, seconds in sums.items()} if total else sums


def advice(parts: dict[str, float], algo: str = "ppo") -> str:
    """Say in words what takes the most time and what would help a run of this algorithm."""
    most = max(parts, key=lambda part: parts[part])
    words = {
        "idle": "waiting for the worlds: use backend process, more num_workers or more num_envs",
        "policy": "the policy's inference: use more num_envs per step, or a smaller network",
        "transfer": "copies between devices: use device cpu for a network this small",
        "collect": "handling each step: use more num_envs per step",
        "learn": f"the updates: {LEARN_LESS.get(algo, 'use a smaller network')}, or an accelerator",
        "other": "evaluation, saving and logging: raise eval.every and checkpoint.every",
    }
    return f"{parts[most]:.0%} of the time goes to {words[most]}"


def diagnose(lines: list[dict[str, Any]]) -> list[Finding]:
    """Find what looks wrong in the numbers of a run."""
    return [
        *_learning(lines),
        *_not_finite(lines),
        *_returns(lines),
        *_speed(lines),
        *_health(lines),
    ]


def series(lines: Iterable[dict[str, Any]], name: str) -> list[float]:
    """The values of a scalar, without gaps."""
    return [line[name] for line in lines if isinstance(line.get(name), (int, float))]


def _late(values: list[float], share: float = 0.25) -> list[float]:
    return values[-max(int(len(values) * share), 1) :]


def _learning(lines: list[dict[str, Any]]) -> list[Finding]:
    found = []
    kl = series(lines, "train/approx_kl")
    if kl and fmean(_late(kl)) > KL_HIGH:
        fix = "lower algo.learning_rate, or set algo.target_kl"
        found.append(Finding("warning", "kl", f"approx_kl is {fmean(_late(kl)):.3g} lately: {fix}"))
    clipped = series(lines, "train/clip_fraction")
    if clipped and fmean(_late(clipped)) > CLIP_HIGH:
        text = f"{fmean(_late(clipped)):.0%} of the ratios are clipped: fewer epochs, smaller steps"
        found.append(Finding("warning", "clip", text))
    explained = series(lines, "train/explained_variance")
    if len(explained) >= 4 and median(_late(explained)) < 0:
        text = (
            f"explained_variance is {median(_late(explained)):.2g} lately, so the values predict "
            "worse than their mean: normalise rewards, or raise algo.value_coef"
        )
        found.append(Finding("warning", "values", text))
    std = series(lines, "train/std")
    if std and std[-1] < STD_LOW:
        text = (
            f"the actions' deviation fell to {std[-1]:.2g}, so little is explored: raise "
            "algo.entropy_coef or network.log_std_init"
        )
        found.append(Finding("warning", "std", text))
    return found


def _not_finite(lines: list[dict[str, Any]]) -> list[Finding]:
    for line in lines:
        names = [
            name for name, value in line.items() if value is None and name.startswith("train/")
        ]
        if names:
            text = (
                f"{names[0]} was not finite at step {line.get('step')}: lower the learning rate, "
                "or normalise observations and rewards"
            )
            return [Finding("error", "finite", text)]
    return []


def _returns(lines: list[dict[str, Any]]) -> list[Finding]:
    returns = series(lines, "rollout/ep_rew_mean")
    if len(returns) < 10:
        return []
    first, last, best = (
        fmean(returns[: len(returns) // 5]),
        fmean(_late(returns, 0.2)),
        max(returns),
    )
    rise = best - first
    if rise > 0.5 * abs(first) and last < best - 0.5 * rise:
        fix = "evaluate the best checkpoint, not the last"
        text = f"the return fell from {best:.4g} to {last:.4g}: {fix}"
        return [Finding("warning", "return", text)]
    if last <= first:
        text = f"the return went from {first:.4g} to {last:.4g}: nothing was learned so far"
        return [Finding("warning", "return", text)]
    return []


def _speed(lines: list[dict[str, Any]]) -> list[Finding]:
    speed = series(lines, "perf/steps_per_second")
    if len(speed) < 20:
        return []
    early, late = median(speed[: len(speed) // 4]), median(_late(speed))
    if late < 0.6 * early:
        text = f"it slowed from {early:.0f} to {late:.0f} steps a second: is the machine shared?"
        return [Finding("warning", "speed", text)]
    return []


def _health(lines: list[dict[str, Any]]) -> list[Finding]:
    found = []
    for name, meaning in HEALTH.items():
        counts = series(lines, f"health/{name}")
        if counts and counts[-1] > 0:
            found.append(Finding("warning", name, f"{counts[-1]:.0f} {meaning}"))
    return found
