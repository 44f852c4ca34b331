"""From names and settings to an imitation task: what one world and a batch of them share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast

import torch

from rlgym.envs.imitation.clip_files import Source, load_clip
from rlgym.envs.imitation.clips import ClipSet
from rlgym.envs.imitation.kinematics import leg_length
from rlgym.envs.imitation.random import as_seeds
from rlgym.envs.imitation.spec import RANDOMIZE, RandomizeSpec, Spec, get_spec
from rlgym.envs.imitation.task import ImitationTask
from rlgym.envs.physics import make_engine
from rlgym.envs.physics.robots import Robot, get_robot
from rlgym.envs.physics.terrain import Terrain, make_terrain
from rlgym.errors import ConfigError
from rlgym.settings import change, suggest

Clips = Source | Sequence[Source]
"""One clip, or several of which each episode imitates one."""


def build_task(
    num_worlds: int,
    *,
    seed: int = 0,
    engine: str = "mujoco",
    robot: str | Robot = "a1",
    clip: Clips = "trot",
    spec: str | Spec = "modern",
    randomize: str | Mapping[str, Any] | RandomizeSpec | None = None,
    terrain: str | Terrain = "flat",
    push: float = 0.0,
    evaluation: bool = False,
    num_workers: int | None = None,
    timeout: float = 60.0,
    max_restarts: int = 10,
    device: torch.device | str = "auto",
    **changes: Any,
) -> ImitationTask:
    """Build a task, and the engine that it owns.

    Args:
        num_worlds: slots.
        seed: slot i is seeded with `seed + i`.
        engine: "mujoco", "bullet" ("pybullet" is the same), or "warp": MuJoCo on an NVIDIA GPU.
        robot: an entry of the robot table.
        clip: what `load_clip` takes, or a list of such.
        spec: "modern", "reference", "humanoid", or a spec.
        randomize: "none", "reference", "modern", or ranges, {"mass": [0.8, 1.2]}.
        terrain: "flat", "slope", "rough" or "steps", with a size as in "rough:0.05".
        push: largest change of the base's velocity along x and y, m/s, about every two seconds.
        evaluation: what a score means: 10 s from a random phase of the reference, the same for all
            training settings of the episode, and in the engine "mujoco" where "warp" trains.
        num_workers: processes of PyBullet (0: none but this one), or threads of MuJoCo; None: one
            per core. "warp" has neither.
        timeout: seconds to wait for a process before it is replaced.
        max_restarts: processes that are replaced before the engine gives up.
        device: of "warp": "cuda", "cuda:1", or "cpu" (for tests); "auto": the first GPU.
        changes: to the spec, section by section: action={"scale": 0.3}.

    Raises:
        UserError: an unknown name or setting, or what the engine cannot do.
    """
    _check_names(changes)
    chosen = _spec(spec, randomize, push, evaluation, changes)
    table = get_robot(robot)
    if chosen.termination.knee_height is not None or chosen.termination.trunk_height is not None:
        leg_length(table)  # refuses a robot that has none, before anything is built
    clips = ClipSet([load_clip(source, table) for source in _listed(clip)], table)
    ground = make_terrain(terrain)
    settings: dict[str, Any] = {} if ground.is_flat else {"terrain": ground}
    if engine == "warp" and evaluation:
        engine = "mujoco"  # the same model in double precision: scores do not hang on a device
    if engine == "warp":
        settings |= {"device": device, **asdict(chosen.physics.warp)}
    elif num_workers is not None:
        settings["num_threads" if engine == "mujoco" else "num_workers"] = num_workers
    if engine in ("bullet", "pybullet"):
        settings |= {"timeout": timeout, "max_restarts": max_restarts}
        settings |= asdict(chosen.physics.bullet)
    worlds = make_engine(
        engine,
        table,
        chosen.actuation,
        num_worlds,
        collide=chosen.physics.collide,
        gravity=chosen.physics.gravity,
        friction=chosen.physics.friction,
        **settings,
    )
    try:
        seeds: Any = as_seeds(range(seed, seed + num_worlds))
        place = getattr(worlds, "device", None)
        if place is not None:
            clips, seeds = clips.to(place), torch.from_numpy(seeds).to(place)
        return ImitationTask(worlds, clips, chosen, seeds, None if ground.is_flat else ground)
    except BaseException:
        worlds.close()
        raise


def _check_names(changes: Mapping[str, Any]) -> None:
    """Refuse what is neither an argument nor a section of a spec."""
    sections = [field.name for field in fields(Spec)]
    arguments = [name for name in inspect.signature(build_task).parameters if name != "changes"]
    for name in changes:
        if name not in sections:
            known = [*arguments, "render_mode", *sections]
            raise ConfigError(f"imitation takes no argument {name!r}: {suggest(name, known)}")


def _spec(
    spec: str | Spec, randomize: Any, push: float, evaluation: bool, changes: Mapping[str, Any]
) -> Spec:
    chosen = get_spec(spec, changes)
    if isinstance(randomize, str):
        if randomize not in RANDOMIZE:
            raise ConfigError(
                f"there is no randomize {randomize!r}: {suggest(randomize, RANDOMIZE)}"
            )
        randomize = RANDOMIZE[randomize]
    if randomize is not None:
        chosen = change(chosen, {"randomize": randomize}, {})
    if push:
        chosen = change(chosen, {"randomize": {"push": push}}, {})
    if evaluation:
        episode = replace(
            chosen.episode,
            seconds=10.0,
            curriculum_seconds=None,
            reference_start=1.0,
            perturb=0.0,
        )
        chosen = replace(chosen, episode=episode)
    return chosen


def _listed(clip: Clips) -> Sequence[Source]:
    if isinstance(clip, Sequence) and not isinstance(clip, str):
        return clip
    return [cast(Source, clip)]
