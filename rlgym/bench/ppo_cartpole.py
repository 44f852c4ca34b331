"""Wall time until PPO solves CartPole, ours against Stable-Baselines3's.

Both train on Gymnasium's own CartPole-v1 objects: ours by `rlgym.train` with the shipped preset,
SB3 with rl-zoo's tuned settings on eight DummyVecEnv worlds. A run is over when the mean of its
last 100 training episodes is 475, the world's own threshold. Each run has a fresh process. Its
clock starts after everything that such a run imports is imported, and before worlds and networks
are built; compilation, if there is any, is on the clock.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlgym.bench.harness import (
    Case,
    Result,
    import_all,
    in_fresh_process,
    loaded_modules,
    paired_case,
    say,
)

WORLD = "CartPole-v1"
THRESHOLD = 475.0
"""Mean return of 100 episodes at which Gymnasium calls the world solved."""
GOAL = 0.1
"""Ours / SB3's, of median seconds."""
EVALUATION_SEED = 1_000_000
"""Seed of the first evaluation episode: no training seed comes near it."""
PRESET = "cartpole-ppo"
SAME_RECIPE_GOAL = 0.5
"""As `GOAL`, when SB3 is given our preset: what the code gives without the settings."""


def bench_ppo_cartpole(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    threads: int | None = None,
    limit: float = 120.0,
    episodes: int = 100,
    same_recipe: bool = False,
    quick: bool = False,
) -> Result:
    """Seconds until the mean of the last 100 training episodes is 475 on CartPole-v1.

    Args:
        seeds: seeds of the runs; none of them was used to tune the preset.
        threads: torch threads of SB3; by default whichever of 1 and 2 is faster here.
        limit: seconds after which a run counts as `limit` and as failed.
        episodes: deterministic episodes that each trained policy plays afterwards, off the clock.
        same_recipe: also train SB3 with our preset's settings, in turn with the other two: how much
            of the difference is code, and how much is settings.
        quick: one seed for 2,048 steps, to see that everything works.
    """
    steps = None
    if quick:
        seeds, threads, episodes, steps = seeds[:1], threads or 1, 1, 2048
    timeout = limit + 300.0
    here = "rlgym.bench.ppo_cartpole"
    ours_needs = in_fresh_process(f"{here}:imports_of_ours", timeout=timeout)
    theirs_needs = in_fresh_process(f"{here}:imports_of_sb3", timeout=timeout)
    tried = None
    if threads is None:
        tried = in_fresh_process("rlgym.bench.baselines:fastest", timeout=timeout, env_id=WORLD)
        threads = tried["threads"]
        say(f"SB3 is faster with {threads} torch thread(s) here: {tried['steps_per_second']}")
    ours, theirs, same = [], [], []
    for seed in seeds:  # A B A B: whatever slows the machine for a while slows both
        common = {"seed": seed, "limit": limit, "episodes": episodes, "steps": steps}
        common["timeout"] = timeout
        ours.append(in_fresh_process(f"{here}:time_ours", modules=ours_needs, **common))
        say(f"seed {seed}: rlgym {line_of(ours[-1])}")
        common |= {"modules": theirs_needs, "threads": threads}
        theirs.append(in_fresh_process(f"{here}:time_sb3", **common))
        say(f"seed {seed}: SB3   {line_of(theirs[-1])}")
        if same_recipe:
            same.append(in_fresh_process(f"{here}:time_sb3", preset=PRESET, **common))
            say(f"seed {seed}: SB3 with our settings {line_of(same[-1])}")
    how = {"seeds": list(seeds), "sb3_threads": threads, "sb3_tried": tried}
    cases = [_case(WORLD, ours, theirs, GOAL, how)]
    if same_recipe:
        name = f"{WORLD}, SB3 with our settings"
        cases.append(_case(name, ours, same, SAME_RECIPE_GOAL, how))
    measured = (
        f"wall seconds until the mean of the last 100 training episodes is {THRESHOLD:.0f} on "
        f"Gymnasium's {WORLD}: rlgym's preset against SB3 PPO with rl-zoo's settings, median of "
        f"{len(seeds)} seeds; building worlds counts, imports do not; a failed seed counts "
        f"{limit:.0f} s"
    )
    return Result("ppo-cartpole", measured, tuple(cases), quick)


def _case(
    name: str,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    goal: float,
    how: dict[str, Any],
) -> Case:
    """Return the case that compares our runs with SB3's."""
    return paired_case(
        name,
        "s",
        [run["seconds"] for run in ours],
        [run["seconds"] for run in theirs],
        goal=goal,
        conditions={
            "each of our policies scores 475 or more": all(r["score"] >= THRESHOLD for r in ours)
        },
        details={**how, "ours": ours, "sb3": theirs},
    )


def line_of(run: dict[str, Any]) -> str:
    """Tell a person of one run."""
    reached = "reached" if run["reached"] else "NOT reached"
    return (
        f"{run['seconds']:6.2f} s, {run['steps']} steps, {reached}; "
        f"deterministic score {run['score']:.1f}"
    )


def _outcome(
    start: float,
    reached_at: float | None,
    limit: float,
    steps: int,
    scores: list[float],
    curve: list[tuple[float, float]],
) -> dict[str, Any]:
    thin = [*curve[:: max(1, len(curve) // 50)], *curve[-1:]]
    seconds = limit if reached_at is None else min(reached_at - start, limit)
    return {
        "seconds": seconds,
        "reached": reached_at is not None and reached_at - start <= limit,
        "steps": steps,
        "score": sum(scores) / len(scores),
        "worst": min(scores),
        "curve": [[round(at - start, 3), round(mean, 1)] for at, mean in thin],
    }


class StopAtMean:
    """Hook that ends our training when the last 100 episodes' mean reaches a threshold."""

    def __init__(self) -> None:
        self.reached_at: float | None = None
        self.steps = 0
        self.curve: list[tuple[float, float]] = []

    def on_rollout(self, run: Any, buffer: Any) -> None:
        """Look at the window as soon as the rollout that filled it is in."""
        window = run.state.returns
        self.steps = run.state.env_steps
        if window:
            self.curve.append((time.perf_counter(), sum(window) / len(window)))
        if self.reached_at is None and len(window) == 100 and sum(window) >= 100 * THRESHOLD:
            self.reached_at = time.perf_counter()

    def on_update(self, run: Any, metrics: Any) -> bool:
        """Stop once the threshold was reached."""
        return self.reached_at is not None


def time_ours(
    *,
    seed: int,
    limit: float,
    episodes: int,
    modules: list[str],
    steps: int | None,
    preset: str = PRESET,
) -> dict[str, Any]:
    """Train with a shipped preset until the threshold and score the policy (a fresh process).

    Evaluations and checkpoints during the run are off, as they are for SB3; the logs are on.
    """
    import_all(modules)
    import rlgym
    from rlgym.bench.baselines import play

    never = 10**12
    changes: dict[str, Any] = {} if steps is None else {"total_steps": steps}
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        hook = StopAtMean()
        start = time.perf_counter()
        rlgym.train(
            WORLD,
            preset=preset,
            run_dir=run_dir,
            hooks=hook,
            seed=seed,
            time_limit=limit,
            eval={"every": 0},
            checkpoint={"every": never},
            **changes,
        )
        policy = rlgym.load_policy(run_dir, which="last")
        scores, _ = play(
            WORLD, policy.act, episodes=episodes, seed=EVALUATION_SEED, begin=policy.reset
        )
    return _outcome(start, hook.reached_at, limit, hook.steps, scores, hook.curve)


def time_sb3(
    *,
    seed: int,
    limit: float,
    episodes: int,
    threads: int,
    modules: list[str],
    steps: int | None,
    preset: str | None = None,
) -> dict[str, Any]:
    """Train SB3's PPO until the threshold and score the policy (a fresh process).

    `preset` names one of ours whose settings it gets instead of the zoo's.
    """
    import_all(modules)
    import torch

    from rlgym.bench.baselines import StopAtMean as StopSB3
    from rlgym.bench.baselines import act_of, make_sb3, play, settings_of, settings_of_preset

    torch.set_num_threads(threads)
    settings = settings_of(WORLD) if preset is None else settings_of_preset(preset)
    start = time.perf_counter()
    stop = StopSB3(THRESHOLD, deadline=start + limit)
    model = make_sb3(WORLD, seed, settings=settings)
    model.learn(steps or settings.total_steps, callback=stop)
    scores, _ = play(WORLD, act_of(model), episodes=episodes, seed=EVALUATION_SEED)
    taken = model.num_timesteps
    return _outcome(start, stop.reached_at, limit, taken, scores, stop.curve)


def imports_of_ours(preset: str = PRESET) -> list[str]:
    """Return the modules that a run of ours loads, found by a short one (a fresh process)."""
    time_ours(seed=1000, limit=60.0, episodes=1, modules=[], steps=4096, preset=preset)
    return loaded_modules()


def imports_of_sb3() -> list[str]:
    """Return the modules that a run of SB3 loads, found by a short one (a fresh process)."""
    time_sb3(seed=1000, limit=60.0, episodes=1, threads=1, modules=[], steps=512)
    return loaded_modules()
