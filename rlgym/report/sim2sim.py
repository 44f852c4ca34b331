"""One trained policy in several engines and under disturbances, beside standing and open loop.

A policy that was trained in one engine has learned that engine's errors too. The other engine
computes contacts differently, and a push, another friction or a late sensor is what a real robot
meets: a score that survives all of them is worth carrying on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rlgym import __version__
from rlgym.config import TrainConfig
from rlgym.envs.imitation import WORLD
from rlgym.errors import UserError
from rlgym.report.film import film
from rlgym.report.measure import Actor, Measured, open_loop, play, standing, task_of, trained
from rlgym.settings import suggest
from rlgym.training.loaded import LoadedPolicy, load_policy
from rlgym.training.worlds import make_worlds

ENGINES: dict[str, str] = {"bullet": "PyBullet", "mujoco": "MuJoCo"}
"""By the name that `--engines` takes, and what the page calls them."""
ACTORS: dict[str, str] = {
    "policy": "trained policy",
    "open_loop": "open loop",
    "standing": "standing still",
}
"""Who is measured in each engine under each disturbance, and what the page calls it."""
BULLET_WORLDS = 8
"""Slots in PyBullet, where each world is a robot of its own to load (about 0.3 s, 30 MB)."""


@dataclass(frozen=True)
class Disturbance:
    """What differs from the world that the robot table describes."""

    title: str
    """In words, for the page."""
    randomize: dict[str, Any] = field(default_factory=dict)
    """Ranges of one value each; see `rlgym.envs.imitation.spec.RandomizeSpec`."""


def _always(**values: float) -> dict[str, Any]:
    return {name: (value, value) for name, value in values.items()}


DISTURBANCES: dict[str, Disturbance] = {
    "nominal": Disturbance("undisturbed"),
    "push-0.5": Disturbance("pushes of 0.5 m/s", {"push": 0.5}),
    "push-1.0": Disturbance("pushes of 1 m/s", {"push": 1.0}),
    "friction-0.5": Disturbance("friction 0.5", _always(friction=0.5)),
    "friction-1.25": Disturbance("friction 1.25", _always(friction=1.25)),
    "mass-1.25": Disturbance("a quarter heavier", _always(mass=1.25)),
    "kp-0.8": Disturbance("gain kp × 0.8", _always(kp=0.8)),
    "latency-20ms": Disturbance("sensors 20 ms late", _always(latency=0.02)),
    "latency-40ms": Disturbance("sensors 40 ms late", _always(latency=0.04)),
}
"""By the name that `--disturbances` takes."""


@dataclass(frozen=True)
class Cell:
    """One engine under one disturbance."""

    engine: str
    disturbance: str
    time_step: float | None
    """Of physics, s; None where it was not measured."""
    measured: dict[str, Measured]
    """By actor; empty where the engine cannot do this."""
    refused: str = ""
    """Why it was not measured."""

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "measured": {k: m.document() for k, m in self.measured.items()}}


def compare(
    run_dir: str | Path,
    config: TrainConfig,
    *,
    engines: Sequence[str] = tuple(ENGINES),
    disturbances: Sequence[str] = tuple(DISTURBANCES),
    actors: Sequence[str] = tuple(ACTORS),
    episodes: int = 32,
    which: Literal["best", "last"] = "best",
    seed: int = 0,
    num_envs: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure a run's policy everywhere, and describe what was found.

    Ctrl-C ends it with the cells that were measured until then.

    Args:
        run_dir: the run's folder.
        config: its settings.
        engines: of `ENGINES`.
        disturbances: of `DISTURBANCES`.
        actors: of `ACTORS`.
        episodes: for each actor in each cell; all play the same ones.
        which: the best checkpoint or the last.
        seed: of the first slot's episodes.
        num_envs: slots; by default one per episode, in PyBullet a few.
        tell: called with a line about each cell that is done.

    Returns:
        A document of plain values: "about" and "cells"; `rlgym.report.page` writes it as a page.

    Raises:
        UserError: an unknown name, or a run of other worlds.
    """
    if config.env_id.rpartition(":")[2] != WORLD:
        raise UserError(f"{run_dir} trained in {config.env_id}: sim2sim is for runs of {WORLD}")
    for given, known in ((engines, ENGINES), (disturbances, DISTURBANCES), (actors, ACTORS)):
        for name in given:
            if name not in known:
                raise UserError(f"there is no '{name}' here: {suggest(name, known)}")
    if episodes < 1:
        raise UserError(f"{episodes} episodes: ask for at least 1")
    policy = load_policy(run_dir, which)
    cells: list[Cell] = []
    try:
        for engine in engines:
            slots = num_envs or min(episodes, BULLET_WORLDS if engine == "bullet" else episodes)
            for name in disturbances:
                cell = _cell(config, run_dir, policy, engine, name, actors, episodes, slots, seed)
                cells.append(cell)
                tell(_line(cell))
    except KeyboardInterrupt:
        if not cells:
            raise
        tell("stopped: what was measured until here is kept")
    asked = {
        "which": which,
        "episodes": episodes,
        "seed": seed,
        "actors": {name: ACTORS[name] for name in actors},
        "engines": {name: ENGINES[name] for name in engines},
        "disturbances": {name: DISTURBANCES[name].title for name in disturbances},
    }
    about = {**_about(Path(run_dir), config, policy), **asked}
    return {"about": about, "cells": [cell.document() for cell in cells]}


def _about(run_dir: Path, config: TrainConfig, policy: LoadedPolicy) -> dict[str, Any]:
    """What was trained, and with what it is measured."""
    env = config.env
    engine = str(env.get("engine", "mujoco"))
    return {
        "run": run_dir.resolve().name,
        "robot": env.get("robot", "a1"),
        "clip": str(env.get("clip", "trot")),
        "spec": env.get("spec", "modern"),
        "trained_in": ENGINES.get(engine, "PyBullet" if engine == "pybullet" else engine),
        "env_steps": policy.step,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"rlgym": __version__, **_versions("torch", "numpy", "mujoco", "pybullet")},
    }


def _cell(
    config: TrainConfig,
    run_dir: str | Path,
    policy: LoadedPolicy,
    engine: str,
    disturbance: str,
    actors: Iterable[str],
    episodes: int,
    num_envs: int,
    seed: int,
) -> Cell:
    """Measure all actors in one engine under one disturbance."""
    randomize = DISTURBANCES[disturbance].randomize
    try:
        with worlds(config, run_dir, engine, randomize, num_envs=num_envs) as env:
            step = float(task_of(env).engine.physics_step)
            found = {
                name: play(
                    env,
                    actor(name, env, policy),
                    episodes,
                    seed=seed,
                    trace=name == "policy" and not randomize,
                )
                for name in actors
            }
    except UserError as error:
        if not randomize:
            raise
        return Cell(engine, disturbance, None, {}, " ".join(str(error).split()))
    return Cell(engine, disturbance, step, found)


def actor(name: str, env: Any, policy: LoadedPolicy) -> Actor:
    """Return who acts, by its name in `ACTORS`."""
    if name == "policy":
        return trained(policy)
    return standing(env) if name == "standing" else open_loop(env)


def film_policy(
    run_dir: str | Path,
    config: TrainConfig,
    folder: Path,
    engines: Iterable[str],
    seconds: float,
    *,
    which: Literal["best", "last"] = "best",
) -> dict[str, str]:
    """Film a run's policy undisturbed in each engine, and return caption -> file name.

    Raises:
        MissingExtraError: what writes films is not installed.
    """
    policy = load_policy(run_dir, which)
    folder.mkdir(parents=True, exist_ok=True)
    films = {}
    for engine in engines:
        with worlds(config, run_dir, engine, {}, num_envs=1, render_mode="rgb_array") as env:
            film(env, trained(policy), folder / f"{engine}.mp4", seconds)
        films[f"the policy in {ENGINES[engine]}"] = f"{engine}.mp4"
    return films


@contextmanager
def worlds(
    config: TrainConfig,
    run_dir: str | Path,
    engine: str,
    randomize: dict[str, Any],
    *,
    num_envs: int,
    **kwargs: Any,
) -> Iterator[Any]:
    """Open the run's evaluation worlds in an engine: 10 s episodes from random phases.

    Args:
        config: the run's settings.
        run_dir: its folder, for reports of lost worlds.
        engine: of `ENGINES`.
        randomize: the only thing that is randomised; {} is the robot table's world.
        num_envs: slots.
        kwargs: more of the world's keyword arguments.
    """
    env = {**config.env, **config.eval.env, "engine": engine, "evaluation": True}
    push = float(randomize.get("push", 0.0))
    ranges = {name: value for name, value in randomize.items() if name != "push"}
    env |= {"randomize": ranges or "none", "push": push, **kwargs}
    config = replace(config, env=env, num_envs=num_envs, eval=replace(config.eval, env={}))
    config = replace(config, eval=replace(config.eval, episodes=num_envs))
    opened = make_worlds(config, None, run_dir, evaluation=True)
    try:
        yield opened
    finally:
        opened.close()


def _line(cell: Cell) -> str:
    """One line for a person who waits."""
    if cell.refused:
        return f"{cell.engine} {cell.disturbance}: not measured: {cell.refused}"
    shown = ", ".join(
        f"{ACTORS[name]} {one.score:.3f} ({one.survival:.0%} survive)"
        for name, one in cell.measured.items()
    )
    return f"{cell.engine} {cell.disturbance}: {shown}"


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
