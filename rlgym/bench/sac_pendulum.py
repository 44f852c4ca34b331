"""Wall time until SAC swings up Pendulum, ours against Stable-Baselines3's.

Ours trains by `rlgym.train` with the shipped preset, SB3 with rl-zoo's settings. Every `every`
environment steps the clock is stopped and the deterministic policy plays the same 100 episodes on
either side; the run is over when their mean return is -180. Each run has a fresh process, whose
clock starts after everything that such a run imports is imported, and before worlds and networks
are built.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np

from rlgym.bench.harness import (
    Result,
    import_all,
    in_fresh_process,
    loaded_modules,
    paired_case,
    say,
)

WORLD = "Pendulum-v1"
THRESHOLD = -180.0
"""Mean return of the evaluation episodes at which the clock stops for good."""
GOAL = 0.25
"""Ours / SB3's, of median seconds."""
EVALUATION_SEED = 1_000_000
"""Seed of the first evaluation episode: no training seed comes near it."""
NEVER = 10**12

Act = Callable[[np.ndarray], np.ndarray]
"""Observations (n, 3) -> deterministic actions (n, 1)."""


def bench_sac_pendulum(
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    threads: int | None = None,
    every: int = 250,
    episodes: int = 100,
    limit: float = 600.0,
    quick: bool = False,
) -> Result:
    """Seconds of training until the mean evaluation return is -180 on Pendulum-v1.

    Args:
        seeds: seeds of the runs; none of them was used to tune the preset.
        threads: torch threads of SB3; by default whichever of 1 and 2 is faster here.
        every: environment steps between two evaluations, on both sides; they are off the clock.
        episodes: evaluation episodes, each time from the same states.
        limit: seconds after which a run counts as `limit` and as failed.
        quick: one seed for 1,000 steps, to see that everything works.
    """
    steps = None
    if quick:
        seeds, threads, episodes, steps = seeds[:1], threads or 1, 2, 1000
    here, timeout = "rlgym.bench.sac_pendulum", 3.0 * limit + 300.0
    ours_needs = in_fresh_process(f"{here}:imports_of_ours", timeout=timeout)
    theirs_needs = in_fresh_process(f"{here}:imports_of_sb3", timeout=timeout)
    tried = None
    if threads is None:
        tried = in_fresh_process(
            "rlgym.bench.baselines:fastest", timeout=timeout, env_id=WORLD, algo="sac"
        )
        threads = tried["threads"]
        say(f"SB3 is faster with {threads} torch thread(s) here: {tried['steps_per_second']}")
    ours, theirs = [], []
    for seed in seeds:  # A B A B: whatever slows the machine for a while slows both
        common = {"seed": seed, "limit": limit, "every": every, "episodes": episodes}
        common |= {"steps": steps, "timeout": timeout}
        ours.append(in_fresh_process(f"{here}:time_ours", modules=ours_needs, **common))
        say(f"seed {seed}: rlgym {_line(ours[-1])}")
        theirs.append(
            in_fresh_process(f"{here}:time_sb3", modules=theirs_needs, threads=threads, **common)
        )
        say(f"seed {seed}: SB3   {_line(theirs[-1])}")
    case = paired_case(
        WORLD,
        "s",
        [run["seconds"] for run in ours],
        [run["seconds"] for run in theirs],
        goal=GOAL,
        conditions={"each of our runs gets there": all(run["reached"] for run in ours)},
        details={
            "seeds": list(seeds),
            "evaluated_every": every,
            "sb3_threads": threads,
            "sb3_tried": tried,
            "ours": ours,
            "sb3": theirs,
        },
    )
    measured = (
        f"seconds of training until the mean return of {episodes} deterministic episodes is "
        f"{THRESHOLD:.0f} on {WORLD}: rlgym's SAC preset against SB3 SAC with rl-zoo's settings, "
        f"median of {len(seeds)} seeds; an evaluation every {every} environment steps, off the "
        f"clock; building worlds counts, imports do not; a failed seed counts {limit:.0f} s"
    )
    return Result("sac-pendulum", measured, (case,), quick)


def _line(run: dict[str, Any]) -> str:
    reached = "reached" if run["reached"] else "NOT reached"
    last = f"{run['curve'][-1][1]:.1f}" if run["curve"] else "none"
    return f"{run['seconds']:6.2f} s, {run['steps']} steps, {reached}; last evaluation {last}"


def mean_return(act: Act, episodes: int) -> float:
    """Play episodes side by side in Gymnasium's own world and return their mean return.

    Args:
        act: the deterministic policy.
        episodes: how many; episode i starts from seed EVALUATION_SEED + i.
    """
    worlds = [gymnasium.make(WORLD) for _ in range(episodes)]
    starts = [env.reset(seed=EVALUATION_SEED + i)[0] for i, env in enumerate(worlds)]
    obs, total, ended = np.stack(starts), 0.0, False
    while not ended:  # every episode has 200 steps, so all end at once
        moves = [env.step(a) for env, a in zip(worlds, act(obs), strict=True)]
        obs = np.stack([move[0] for move in moves])
        total += sum(float(move[1]) for move in moves)
        ended = moves[0][2] or moves[0][3]
    for env in worlds:
        env.close()
    return total / episodes


class Watch:
    """A clock of training that stands still while the policy is evaluated.

    Args:
        every: environment steps between two evaluations.
        episodes: episodes of each.
        limit: seconds after which it is over.
    """

    def __init__(self, every: int, episodes: int, limit: float) -> None:
        self.every, self.episodes, self.limit = every, episodes, limit
        self.reached = False
        self.steps = 0
        self.curve: list[tuple[float, float]] = []
        self._start = time.perf_counter()
        self._paused = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._start - self._paused

    @property
    def over(self) -> bool:
        """Whether the threshold is reached or the time used up."""
        return self.reached or self.seconds > self.limit

    def look(self, steps: int, act: Act) -> None:
        """Evaluate when it is due; `steps` is the number of environment steps so far."""
        if self.over or steps // self.every == self.steps // self.every:
            self.steps = self.steps if self.over else steps
            return
        self.steps = steps
        seconds, begin = self.seconds, time.perf_counter()
        score = mean_return(act, self.episodes)
        self._paused += time.perf_counter() - begin
        self.curve.append((round(seconds, 3), round(score, 1)))
        self.reached = score >= THRESHOLD

    def outcome(self) -> dict[str, Any]:
        """Return what a benchmark keeps of a run."""
        reached = self.reached and self.curve[-1][0] <= self.limit
        return {
            "seconds": self.curve[-1][0] if reached else self.limit,
            "reached": reached,
            "steps": self.steps,
            "curve": self.curve,
        }


class StopWhenSwungUp:
    """Hook that shows our policy to the watch after each step, and ends the run.

    Args:
        watch: the clock.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_rollout(self, run: Any, buffer: Any) -> bool:
        """Evaluate when it is due, as SB3's callback does; True ends the run."""
        from torch import from_numpy

        def act(obs: np.ndarray) -> np.ndarray:
            return run.policy.act(from_numpy(obs), deterministic=True)[0].numpy()

        self.watch.look(run.state.env_steps, act)
        return self.watch.over


def time_ours(
    *, seed: int, limit: float, every: int, episodes: int, modules: list[str], steps: int | None
) -> dict[str, Any]:
    """Train with the shipped preset until the threshold (a fresh process).

    The run's own evaluations and checkpoints are off, as they are for SB3; the logs are on.
    """
    import_all(modules)
    import rlgym
    from rlgym.config import preset_for

    changes: dict[str, Any] = {} if steps is None else {"total_steps": steps}
    preset = preset_for(WORLD, "sac")
    with TemporaryDirectory() as folder:
        watch = Watch(every, episodes, limit)
        rlgym.train(
            WORLD,
            run_dir=Path(folder) / "run",
            preset=preset,
            hooks=StopWhenSwungUp(watch),
            seed=seed,
            eval={"every": 0, "episodes": 1},
            checkpoint={"every": NEVER},
            **changes,
        )
    return watch.outcome()


def time_sb3(
    *,
    seed: int,
    limit: float,
    every: int,
    episodes: int,
    threads: int,
    modules: list[str],
    steps: int | None,
) -> dict[str, Any]:
    """Train SB3's SAC until the threshold (a fresh process)."""
    import_all(modules)
    import torch

    from rlgym.bench.baselines import AfterEachStep, make_sb3, settings_of

    torch.set_num_threads(threads)
    watch = Watch(every, episodes, limit)
    model = make_sb3(WORLD, seed, algo="sac")

    def look(count: int) -> bool:
        watch.look(count, lambda obs: model.predict(obs, deterministic=True)[0])
        return not watch.over

    total = steps or settings_of(WORLD, "sac").total_steps
    model.learn(total, callback=AfterEachStep(look))
    return watch.outcome()


def imports_of_ours() -> list[str]:
    """Return the modules that a run of ours loads, found by a short one (a fresh process)."""
    time_ours(seed=1000, limit=60.0, every=100, episodes=1, modules=[], steps=1200)
    return loaded_modules()


def imports_of_sb3() -> list[str]:
    """Return the modules that a run of SB3 loads, found by a short one (a fresh process)."""
    time_sb3(seed=1000, limit=60.0, every=100, episodes=1, threads=1, modules=[], steps=150)
    return loaded_modules()
