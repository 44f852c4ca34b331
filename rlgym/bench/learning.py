"""Returns of the shipped presets, over seeds: interquartile mean and bootstrap interval.

Each seed of each world trains in a fresh process with the world's preset, then its last policy
plays 100 deterministic episodes in Gymnasium's own world. Where rl-zoo publishes a number for
Stable-Baselines3, `--baseline` trains that too on this machine, in turn with ours, for the wall
time. Every finished run is one line in a file, and a run that stands there is not repeated. Our
runs live beside that file: one that was interrupted, perhaps after an hour, continues from its last
checkpoint, and one that was scored can be watched, exported or trained further.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from rlgym.bench.harness import Case, Result, commit, in_fresh_process, say
from rlgym.bench.stats import bootstrap_interval, interquartile_mean
from rlgym.config import TrainConfig, load_config, load_preset, preset_for, to_dict
from rlgym.errors import UserError
from rlgym.training.folder import EVALUATIONS
from rlgym.training.state import RunState

BULLET = "pybullet_envs_gymnasium"
EVALUATION_SEED = 1_000_000
"""Seed of the first evaluation episode: no training seed comes near it."""


Algorithm = Literal["ppo", "sac"]


@dataclass(frozen=True)
class Promise:
    """What the preset of a world and an algorithm must reach."""

    score: float
    """Bound of the interquartile mean, over seeds, of the mean return over episodes."""
    source: str
    """Where the bound comes from."""
    against_sb3: bool = False
    """Whether SB3, with rl-zoo's settings, must also take longer for its run."""
    seeds: int = 5
    """Seeds that are run unless others are named."""
    success: float | None = None
    """Bound of the success rate over all episodes of all seeds, where the world tells it."""


PROMISES: dict[tuple[str, Algorithm], Promise] = {
    ("CartPole-v1", "ppo"): Promise(500.0, "the most there is"),
    ("Acrobot-v1", "ppo"): Promise(-85.0, "ours"),
    ("Pendulum-v1", "ppo"): Promise(-200.0, "ours, at 100,000 steps"),
    ("MountainCarContinuous-v0", "ppo"): Promise(85.0, "ours"),
    (f"{BULLET}:HopperBulletEnv-v0", "ppo"): Promise(
        2575.0, "rl-zoo's benchmark.md, 2 million steps", True
    ),
    (f"{BULLET}:HalfCheetahBulletEnv-v0", "ppo"): Promise(
        2925.0, "rl-zoo's benchmark.md, 2 million steps", True
    ),
    ("panda_gym:PandaReach-v3", "ppo"): Promise(-5.0, "ours: the goal within 5 of 50 steps"),
    ("Pendulum-v1", "sac"): Promise(-160.0, "ours, at 20,000 steps"),
    (f"{BULLET}:HopperBulletEnv-v0", "sac"): Promise(
        2604.0, "rl-zoo's benchmark.md, 1 million steps", seeds=1
    ),
    (f"{BULLET}:HalfCheetahBulletEnv-v0", "sac"): Promise(
        2792.0, "rl-zoo's benchmark.md, 1 million steps", seeds=1
    ),
    ("HalfCheetah-v5", "sac"): Promise(9000.0, "ours, at 1 million steps", seeds=1),
    ("panda_gym:PandaReach-v3", "sac"): Promise(
        -5.0, "ours: the goal within 5 of 50 steps, always reached", success=1.0
    ),
}
"""World and algorithm -> its promise."""
WORLDS = tuple(dict.fromkeys(world for world, _ in PROMISES))


def bench_learning(
    *,
    world: tuple[str, ...] = WORLDS,
    algo: tuple[Algorithm, ...] = ("ppo", "sac"),
    seeds: tuple[int, ...] | None = None,
    episodes: int = 100,
    which: Literal["last", "best"] = "last",
    baseline: bool = False,
    timed_steps: int | None = None,
    results: Path = Path("runs/bench/learning.jsonl"),
    steps: int | None = None,
    table: bool = False,
    quick: bool = False,
) -> Result:
    """Returns of the shipped presets: interquartile mean over seeds and 95 % interval.

    Args:
        world: worlds to train on.
        algo: algorithms to train with, where there is a promise.
        seeds: seeds per world; by default 0 to 4, or only 0 where a run takes hours.
        episodes: deterministic episodes per trained policy.
        which: policy to score: the last, or the best by the evaluations during training.
        baseline: also train SB3 with rl-zoo's settings where the promise compares with it.
        timed_steps: with --baseline, compare the minutes of two short runs of so many steps, ours
            and SB3's in turn and without evaluations, scaled up to the whole length.
        results: file of finished runs, one JSON line each; runs in it are not repeated. Beside it,
            in a folder of its name, are our runs, for TensorBoard and to be continued.
        steps: environment steps instead of the preset's, for ours and theirs (for trials).
        table: print what stands in the file, train nothing.
        quick: one seed for 2,000 steps, to see that everything works.
    """
    promised = _promised(world, algo)
    if steps is not None and timed_steps is not None:
        raise UserError("--timed-steps scales times up to whole runs: leave --steps away")
    if quick:
        promised, seeds, steps, episodes = promised[:1], (seeds or (0,))[:1], 2_000, 2
    log = RunLog(results)
    runs: dict[tuple[str, str, str, bool], list[dict[str, Any]]] = {}
    for name, kind in promised:
        for seed in seeds or range(5 if table else PROMISES[name, kind].seeds):
            for side, whole in _sides(name, kind, baseline, timed_steps is not None):
                key = key_of(name, kind, side, seed, steps if whole else timed_steps)
                key |= {"episodes": episodes, "which": which, "whole": whole}
                record = log.find(key) or (None if table else _train(key, log))
                found = runs.setdefault((name, kind, side, whole), [])
                found.extend([record] if record else [])
    cases = []
    for name, kind in promised:
        parts = ((side, whole) for side in ("ours", "sb3") for whole in (True, False))
        ours, timed, *theirs = (runs.get((name, kind, *part), []) for part in parts)
        cases.append(case_of(name, ours, theirs[0] or theirs[1], kind, timed))
    say(markdown(cases))
    measured = (
        f"interquartile mean over seeds of the mean return of {episodes} deterministic episodes "
        f"of the {which} policy, trained with the shipped preset"
    )
    return Result("learning", measured, tuple(cases), quick)


def _promised(worlds: tuple[str, ...], algos: tuple[Algorithm, ...]) -> list[tuple[str, Algorithm]]:
    """Return the promises about these worlds and algorithms, in the order asked for.

    Raises:
        UserError: when there is none about a world.
    """
    promised = []
    for world in worlds:
        found = [(world, algo) for algo in algos if (world, algo) in PROMISES]
        known = [name for name in WORLDS if any((name, algo) in PROMISES for algo in algos)]
        if not found and worlds != WORLDS:
            raise UserError(
                f"no promise for world '{world}' and {' or '.join(algos)}: the worlds are "
                f"{', '.join(known)}"
            )
        promised += found
    return promised


def _sides(
    world: str, algo: Algorithm, baseline: bool, timed: bool
) -> tuple[tuple[str, bool], ...]:
    """Return the runs of one seed: whose, and whether whole ones."""
    ours = (("ours", True),)
    if not (baseline and PROMISES[world, algo].against_sb3):
        return ours
    return (*ours, ("ours", False), ("sb3", False)) if timed else (*ours, ("sb3", True))


def key_of(world: str, algo: Algorithm, side: str, seed: int, steps: int | None) -> dict[str, Any]:
    """Return what tells a run from others in the file of finished runs.

    PPO came first: its runs were written without an "algo", and are still found because what a
    record does not have reads as None.
    """
    key: dict[str, Any] = {"world": world, "side": side, "seed": seed, "steps": steps}
    return key | {"algo": None if algo == "ppo" else algo, "preset": _digest(world, side, algo)}


def _digest(world: str, side: str, algo: Algorithm) -> str | None:
    """Return a hash of the preset: a run of another preset is another run."""
    if side == "sb3":
        return None
    preset = preset_for(world, algo)
    config = TrainConfig(env_id=world) if preset is None else load_preset(preset, world)
    return hashlib.sha256(json.dumps(to_dict(config)).encode()).hexdigest()[:16]


def _train(key: dict[str, Any], log: "RunLog") -> dict[str, Any]:
    """Train one seed in a fresh process; return its record, which is also saved."""
    algo, ours, whole = key["algo"] or "ppo", key["side"] == "ours", key["whole"]
    run_dir = log.run_dir(key)
    given = {name: key[name] for name in ("world", "seed", "steps")} | {"algo": algo}
    if whole:
        given["episodes"] = key["episodes"]
    if whole and ours:
        given |= {"which": key["which"], "run_dir": str(run_dir)}
    outcome = in_fresh_process(
        f"rlgym.bench.learning:{'train' if whole else 'time'}_{key['side']}",
        timeout=48 * 3600.0,
        **given,
    )
    record = {**key, **outcome, "commit": commit()}
    log.add(record)
    score = f"{record['score']:.1f}" if whole else f"{key['steps']} steps scaled up,"
    name = f"{key['world']} {algo} {key['side']} seed {key['seed']}"
    say(f"{name}: {score} in {record['minutes']:.1f} min")
    return record


class RunLog:
    """Finished runs, one JSON line each; a line that was cut short by a crash is ignored.

    Args:
        path: the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.records.append(json.loads(line))
                except json.JSONDecodeError:
                    say(f"{path}: a line is not JSON and is left out: {line[:60]!r}")

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the last record that has all of the key's values, or None."""
        for record in reversed(self.records):
            if all(record.get(name) == value for name, value in key.items()):
                return record
        return None

    def run_dir(self, key: dict[str, Any]) -> Path:
        """Return the folder of the run of a key."""
        world, algo = key["world"].rpartition(":")[2], key["algo"] or "ppo"
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        return self.path.with_suffix("") / f"{world}-{algo}-seed{key['seed']}-{digest}"

    def add(self, record: dict[str, Any]) -> None:
        """Append a record to the file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.read_bytes() if self.path.is_file() else b""
        start = "\n" if written and not written.endswith(b"\n") else ""  # after a line cut short
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{json.dumps(record)}\n")
        self.records.append(record)


def case_of(
    world: str,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    algo: Algorithm = "ppo",
    timed: Sequence[dict[str, Any]] = (),
) -> Case:
    """Return the case of one world and algorithm.

    Args:
        world: a world of `PROMISES`.
        ours: records of our runs; none gives a case that is not met.
        theirs: records of SB3's runs, where the promise compares with them.
        algo: an algorithm with a promise about this world.
        timed: records of our short runs, whose minutes are compared with SB3's in place of `ours`.
    """
    promise = PROMISES[world, algo]
    scores = [record["score"] for record in ours]
    minutes = [record["minutes"] for record in ours]
    their_scores = [record["score"] for record in theirs if record["whole"]]
    details: dict[str, Any] = {"source": promise.source, "seeds": [r["seed"] for r in ours]}
    conditions = {}
    if scores:
        details["interval"] = list(bootstrap_interval([scores]))
        details["minutes"] = statistics.median(minutes)
        details["steps"] = statistics.median(record["env_steps"] for record in ours)
        successes = [r["success"] for r in ours if r["success"] is not None]
        success = statistics.mean(successes) if successes else None
        details["success"] = success
        details["curves"] = [record.get("curve", []) for record in ours]
        if promise.success is not None:
            reached = success is not None and success >= promise.success
            conditions[f"success rate {promise.success:.0%}"] = reached
    if promise.against_sb3:
        their_minutes = [record["minutes"] for record in theirs]
        details["sb3_minutes_scaled_up"] = not all(record["whole"] for record in theirs)
        details["sb3_minutes"] = statistics.median(their_minutes) if theirs else None
        if timed:
            details["minutes_scaled_up"] = statistics.median(run["minutes"] for run in timed)
        mine = [record["minutes"] for record in timed or ours]
        faster = bool(mine and theirs) and statistics.median(mine) < details["sb3_minutes"]
        conditions["fewer wall minutes than SB3 here (--baseline)"] = faster
    return Case(
        name=world if algo == "ppo" else f"{world} {algo.upper()}",
        unit="return",
        value=float(interquartile_mean(np.array(scores))) if scores else math.nan,
        goal=promise.score,
        goal_is="at least",
        baseline=float(interquartile_mean(np.array(their_scores))) if their_scores else None,
        values=tuple(scores),
        baseline_values=tuple(their_scores),
        conditions=conditions,
        details=details,
    )


def markdown(cases: list[Case]) -> str:
    """Return the table of the README: one row per world."""
    head = "| world | goal | IQM (95 % interval) | seeds | steps | minutes |"
    rows = [head, "|---|---|---|---|---|---|"]
    for case in cases:
        world, details = case.name.rpartition(":")[2], case.details
        if not case.values:
            rows.append(f"| {world} | {case.goal:g} | not run | 0 | | |")
            continue
        low, high = details["interval"]
        spread = "one seed" if len(case.values) == 1 else f"{low:.1f} to {high:.1f}"
        minutes = f"{details['minutes']:.1f}"
        if details.get("sb3_minutes"):
            score = "" if case.baseline is None else f", score {case.baseline:.0f}"
            theirs = f"SB3 {details['sb3_minutes']:.1f}{score}"
            if details["sb3_minutes_scaled_up"]:
                mine = details.get("minutes_scaled_up", details["minutes"])
                theirs = f"scaled up from short runs {mine:.1f}, {theirs}"
            minutes += f" ({theirs})"
        rows.append(
            f"| {world} | {case.goal:g} | {case.value:.1f} ({spread}) "
            f"| {len(case.values)} | {details['steps']:,.0f} | {minutes} |"
        )
    return "\n".join(rows)


def train_ours(
    *,
    world: str,
    seed: int,
    steps: int | None,
    episodes: int,
    which: Literal["last", "best"],
    run_dir: str,
    algo: Algorithm,
) -> dict[str, Any]:
    """Train with the shipped preset, or go on with it, and score the policy (a fresh process)."""
    import rlgym
    from rlgym.bench.baselines import play
    from rlgym.training import checkpoint

    folder = Path(run_dir)
    start = time.perf_counter()
    saved = checkpoint.newest(folder) if folder.is_dir() else None
    if saved is None:
        preset = preset_for(world, algo)
        changes: dict[str, Any] = {} if steps is None else {"total_steps": steps}
        state = rlgym.train(
            world, run_dir=folder, preset=preset, seed=seed, overwrite=True, **changes
        ).state
        before = 0.0
    else:
        state = RunState.from_document(saved.document("state"))
        before = state.seconds
        if state.env_steps < load_config(folder / "config.yaml").total_steps:
            state = rlgym.resume(folder, trust=True).state
    minutes = (before + time.perf_counter() - start) / 60.0
    policy = rlgym.load_policy(folder, which=which)
    scores, successes = play(
        world, policy.act, episodes=episodes, seed=EVALUATION_SEED, begin=policy.reset
    )
    outcome = _outcome(scores, successes, minutes, state.env_steps)
    return {**outcome, "curve": _curve(folder)}


def _curve(run_dir: Path) -> list[list[float]]:
    """Return (environment steps, mean return) of each evaluation of a run."""
    lines = (run_dir / EVALUATIONS).read_text(encoding="utf-8").splitlines()
    return [[line["step"], round(line["mean"], 2)] for line in map(json.loads, lines)]


def time_ours(*, world: str, seed: int, steps: int, algo: Algorithm) -> dict[str, Any]:
    """Train for a while, without evaluations; minutes are scaled up to the preset's length."""
    import rlgym

    off: dict[str, Any] = {"eval": {"every": 0}, "checkpoint": {"every": 10**12}}
    preset = preset_for(world, algo)
    assert preset is not None, "each promise has a preset"
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = rlgym.train(
            world, run_dir=Path(folder) / "run", preset=preset, seed=seed, total_steps=steps, **off
        )
        seconds = time.perf_counter() - start
    return _scaled(seconds, run.state.env_steps, load_preset(preset, world).total_steps)


def train_sb3(
    *, world: str, seed: int, steps: int | None, episodes: int, algo: Algorithm
) -> dict[str, Any]:
    """Train SB3 with rl-zoo's settings, and score the last policy."""
    from rlgym.bench.baselines import act_of, play

    model, seconds, pick = _learn_sb3(world, seed, steps, algo)
    scores, successes = play(world, act_of(model), episodes=episodes, seed=EVALUATION_SEED)
    outcome = _outcome(scores, successes, seconds / 60.0, model.num_timesteps)
    return {**outcome, "setting": pick}


def time_sb3(*, world: str, seed: int, steps: int, algo: Algorithm) -> dict[str, Any]:
    """Train SB3 for a while; minutes are scaled up to the length of rl-zoo's runs."""
    from rlgym.bench.baselines import settings_of

    model, seconds, pick = _learn_sb3(world, seed, steps, algo)
    total = settings_of(world, algo).total_steps
    return {**_scaled(seconds, model.num_timesteps, total), "setting": pick}


def _learn_sb3(
    world: str, seed: int, steps: int | None, algo: Algorithm
) -> tuple[Any, float, dict[str, Any]]:
    """Train SB3 at the fastest of its threads and vector envs here; model, seconds, setting."""
    import torch

    from rlgym.bench.baselines import fastest, make_sb3, settings_of

    # SAC steps a single world: nothing to spread over processes
    pick = fastest(world, vec_envs=("dummy",) if algo == "sac" else ("dummy", "subproc"), algo=algo)
    torch.set_num_threads(pick["threads"])
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        model = make_sb3(world, seed, algo=algo, vec_env=pick["vec_env"], tensorboard=folder)
        model.learn(steps or settings_of(world, algo).total_steps)
        seconds = time.perf_counter() - start
        model.env.close()
    return model, seconds, pick


def _scaled(seconds: float, env_steps: int, total: int) -> dict[str, Any]:
    return {"minutes": seconds / 60.0 * total / env_steps, "env_steps": env_steps}


def _outcome(
    scores: list[float], successes: list[float], minutes: float, env_steps: int
) -> dict[str, Any]:
    known = [success for success in successes if not math.isnan(success)]
    return {
        "score": statistics.mean(scores),
        "deviation": statistics.pstdev(scores),
        "success": statistics.mean(known) if known else None,
        "minutes": minutes,
        "env_steps": env_steps,
    }
