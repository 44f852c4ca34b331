"""What imitate-trot and imitate-gaits share: train A1 on a clip until it scores, then validate.

A score is the mean reward per step of deterministic episodes of 10 s from random phases, 0 after a
fall, as the run's own evaluations find it (`rlgym.report.measure`). The clock is the wall's: it
starts before worlds and networks are built, in a fresh process that has imported everything, and
runs through every evaluation. Afterwards, off the clock, the policy with the best evaluation goes
to PyBullet (explicit torques at 1 kHz, every link collides) untouched.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlgym.bench.harness import Case, import_all, in_fresh_process, loaded_modules, say

WORLD = "rlgym/Imitate-v0"
VALIDATION_SCORE = 0.80
"""Least score of every policy in PyBullet, in which all its episodes must survive."""
PUSHED = "push-0.5"
PUSHED_SURVIVAL = 0.95
"""Least share of episodes that survive pushes of 0.5 m/s there."""
EPISODE_SECONDS = 10.0
SEED = 1_000_000
"""Seed of the first validation episode: no training seed comes near it."""


@dataclass(frozen=True)
class Promise:
    """How soon A1 must imitate a clip."""

    clip: str
    """As `--env.clip` takes it."""
    levels: dict[float, float]
    """Score -> wall seconds within which the median seed must reach it."""


def promised_cases(
    promises: tuple[Promise, ...], seeds: tuple[int, ...], limit: float, episodes: int, quick: bool
) -> tuple[Case, ...]:
    """Train and validate every seed on every clip; return the cases.

    Args:
        promises: clips and their goals.
        seeds: of the runs.
        limit: seconds after which a run ends, and a level that it has not reached counts as that.
        episodes: for each policy in PyBullet, undisturbed and pushed.
        quick: train for a few steps only, to see that everything works.
    """
    here, timeout = "rlgym.bench.imitation", limit + 1800.0
    modules = in_fresh_process(f"{here}:imports", timeout=timeout)
    cases: list[Case] = []
    for promise in promises:
        runs = []
        for seed in seeds:
            runs.append(
                in_fresh_process(
                    f"{here}:train_and_validate",
                    timeout=timeout,
                    clip=promise.clip,
                    levels=sorted(promise.levels),
                    seed=seed,
                    limit=limit,
                    episodes=episodes,
                    modules=modules,
                    quick=quick,
                    with_baselines=seed == seeds[0],
                )
            )
            say(f"{promise.clip} seed {seed}: {_line(runs[-1])}")
        cases += cases_of(promise, runs, limit)
    return tuple(cases)


def cases_of(promise: Promise, runs: list[dict[str, Any]], limit: float) -> list[Case]:
    """Return one case per level, and one for the validation.

    Args:
        promise: the clip and its goals.
        runs: what `train_and_validate` returned for each seed.
        limit: seconds that a level counts which a seed did not reach.
    """
    seeds = [run["seed"] for run in runs]
    cases = []
    for level, goal in sorted(promise.levels.items()):
        reached = [run["reached"][f"{level:g}"] for run in runs]
        seconds = tuple(limit if at is None else at for at in reached)
        cases.append(
            Case(
                name=f"{promise.clip} to {level:g}",
                unit="s",
                value=statistics.median(seconds),
                goal=goal,
                values=seconds,
                conditions={"every seed gets there": None not in reached},
                details={
                    "seeds": seeds,
                    "curves": [run["curve"] for run in runs],
                    "env_steps": [run["env_steps"].get(f"{level:g}") for run in runs],
                    "whole_run_seconds": [run["seconds"] for run in runs],
                    "baselines": runs[0]["baselines"],
                },
            )
        )
    scores = tuple(run["bullet"]["nominal"]["score"] for run in runs)
    pushed = [run["bullet"][PUSHED]["survival"] for run in runs]
    cases.append(
        Case(
            name=f"{promise.clip} in PyBullet, lowest of {len(runs)} seeds",
            unit="per step",
            value=min(scores),
            goal=VALIDATION_SCORE,
            goal_is="at least",
            values=scores,
            conditions={
                "every episode survives": all(
                    run["bullet"]["nominal"]["survival"] == 1.0 for run in runs
                ),
                f"{PUSHED_SURVIVAL:.0%} survive pushes of 0.5 m/s": min(pushed) >= PUSHED_SURVIVAL,
            },
            details={"seeds": seeds, "bullet": [run["bullet"] for run in runs]},
        )
    )
    return cases


def _line(run: dict[str, Any]) -> str:
    levels = ", ".join(
        f"{level} {'NOT reached' if at is None else f'in {at:.1f} s'}"
        for level, at in run["reached"].items()
    )
    nominal, pushed = run["bullet"]["nominal"], run["bullet"][PUSHED]
    return (
        f"{levels}; PyBullet {nominal['score']:.3f}, {nominal['survival']:.0%} survive, "
        f"{pushed['survival']:.0%} pushed"
    )


class Levels:
    """Hook that notes when evaluations reach each level; the run goes on to its own end.

    Args:
        levels: scores per step, ascending.
    """

    def __init__(self, levels: list[float]) -> None:
        self.start = time.perf_counter()
        self.reached: dict[str, float | None] = {f"{level:g}": None for level in levels}
        self.curve: list[tuple[float, float]] = []
        self.seconds = 0.0
        self.steps: dict[str, int] = {}

    def on_evaluation(self, run: Any, score: float) -> None:
        """Note the score per step, and the time."""
        dt = 1.0 / run.env.unwrapped.traits.render_fps
        per_step = score / round(EPISODE_SECONDS / dt)
        now = time.perf_counter() - self.start
        self.curve.append((round(now, 2), round(per_step, 4)))
        for level, at in self.reached.items():
            if at is None and per_step >= float(level):
                self.reached[level], self.steps[level] = now, run.state.env_steps

    def on_end(self, run: Any) -> None:
        """Note how long the whole run took."""
        self.seconds = round(time.perf_counter() - self.start, 2)


def train_and_validate(
    *,
    clip: str,
    levels: list[float],
    seed: int,
    limit: float,
    episodes: int,
    modules: list[str],
    quick: bool,
    with_baselines: bool,
    env: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train with the preset for the clip, then measure in PyBullet (a fresh process)."""
    import_all(modules)
    import rlgym
    from rlgym.config import load_config
    from rlgym.report.sim2sim import compare

    changes: dict[str, Any] = {"total_steps": 8192} if quick else {}
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        hook = Levels(levels)
        rlgym.train(
            WORLD,
            run_dir=run_dir,
            env={"robot": "a1", "clip": clip, **(env or {})},
            seed=seed,
            hooks=hook,
            time_limit=limit,
            console="off",
            **changes,
        )
        config = load_config(run_dir / "config.yaml")
        common: dict[str, Any] = {"episodes": episodes, "seed": SEED}
        asked = {"engines": ["bullet"], "disturbances": ["nominal", PUSHED], "actors": ["policy"]}
        found = compare(run_dir, config, **asked, **common)
        baselines = None
        if with_baselines:
            asked = {"disturbances": ["nominal"], "actors": ["open_loop", "standing"]}
            baselines = _numbers(compare(run_dir, config, **asked, **common))
    return {
        "seed": seed,
        "reached": {k: at if at is None or at <= limit else None for k, at in hook.reached.items()},
        "curve": hook.curve,
        "env_steps": hook.steps,
        "seconds": hook.seconds,
        "bullet": {cell["disturbance"]: _short(cell, "policy") for cell in found["cells"]},
        "baselines": baselines,
    }


def _numbers(document: dict[str, Any]) -> dict[str, Any]:
    """Engine and actor -> the numbers of the undisturbed row."""
    return {
        f"{cell['engine']} {actor}": {**_short(cell, actor), "time_step": cell["time_step"]}
        for cell in document["cells"]
        for actor in cell["measured"]
    }


def _short(cell: dict[str, Any], actor: str) -> dict[str, float]:
    one = cell["measured"][actor]
    names = ("score", "survival", "joint_error", "drift", "power")
    return {name: one[name] for name in names}


def imports() -> list[str]:
    """Return the modules that a run loads, found by a short one (a fresh process)."""
    train_and_validate(
        clip="trot",
        levels=[0.99],
        seed=1000,
        limit=60.0,
        episodes=1,
        modules=[],
        quick=True,
        with_baselines=False,
    )
    return loaded_modules()
