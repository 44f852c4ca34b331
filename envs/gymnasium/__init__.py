"""Any world in Gymnasium's registry, and any package that registers some."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from typing import Any

import gymnasium
from gymnasium import error
from gymnasium.envs.registration import find_highest_version, load_env_creator

from rlgym.envs.gymnasium import bullet
from rlgym.errors import ConfigError, MissingExtraError, UserError, WorldError

PACKAGES = {
    "AdroitHand": "gymnasium-robotics",
    "ALE": "ale-py",
    "AntBullet": "pybullet_envs_gymnasium",
    "Bullet": "pybullet_envs_gymnasium",
    "Fetch": "gymnasium-robotics",
    "MiniGrid": "minigrid",
    "Panda": "panda_gym",
    "dm_control": "shimmy[dm-control]",
    "highway": "highway-env",
}
"""A part of an id -> the package that registers it, for the error that an unknown id gives."""

_EXTRAS = {
    "mujoco": "mujoco",
    "imageio": "mujoco",
    "pybullet_envs_gymnasium": "worlds",
    "panda_gym": "worlds",
}
"""A module that is missing -> our extra that brings it."""


def make_world(name: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """Build a registered world; "module:id" imports the module first.

    Raises:
        WorldError: for an unknown id, with the nearest known ones and the package to install.
        MissingExtraError: when the world's own dependency is not installed.
        ConfigError: for a keyword argument that the world does not take.
    """
    module, _, world_id = name.rpartition(":")
    if module:
        _import(module)
    else:
        for own in ("toy", "imitation"):  # register our own worlds; light, and idempotent
            importlib.import_module(f"rlgym.envs.{own}")
    try:
        spec = gymnasium.spec(world_id)
        if isinstance(spec.entry_point, str):
            with bullet.without_noise(bullet.GREETING, descriptor=2):  # imports the world's module
                load_env_creator(spec.entry_point)
        bullet.hush()
        return gymnasium.make(world_id, disable_env_checker=True, **kwargs)
    except (
        error.NameNotFound,
        error.NamespaceNotFound,
        error.VersionNotFound,
        error.Error,
    ) as problem:
        if isinstance(problem, error.DependencyNotInstalled):
            raise _missing(world_id, problem) from problem
        if (
            isinstance(problem, (error.UnregisteredEnv, error.DeprecatedEnv))
            or world_id not in gymnasium.registry
        ):
            raise WorldError(_unknown(world_id, str(problem))) from None
        raise WorldError(f"{world_id} cannot be built: {problem}") from problem
    except ImportError as problem:
        raise _missing(world_id, problem) from problem
    except TypeError as problem:
        raise _wrong_argument(world_id, spec, kwargs, problem) from problem
    except UserError:
        raise
    except Exception as problem:  # its own constructor's
        raise WorldError(f"{world_id} cannot be built: {_told(problem)}") from problem


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name != module.partition(".")[0]:
            raise WorldError(f"importing {module} failed: {problem}") from problem
        extra, package = _EXTRAS.get(module), module.replace("_", "-")
        if extra:
            fix = f'pip install "rlgym-lab[{extra}]"'
        elif package in PACKAGES.values() or module in PACKAGES.values():
            fix = f"pip install {package}"
        else:  # it would be somebody else's package that the index has under a name of one's own
            fix = "call from the folder that holds it, or install what brings it"
        raise MissingExtraError(f"module {module!r} is not installed: {fix}") from None
    except UserError:
        raise
    except Exception as problem:  # what stands in it runs
        raise WorldError(f"importing {module} failed: {_told(problem)}") from problem


def _told(problem: Exception) -> str:
    """An error of a world's own code in a line, and where it was raised."""
    text = " ".join(str(problem).split())
    last = traceback.extract_tb(problem.__traceback__)[-1]
    where = "" if isinstance(problem, SyntaxError) else f" ({last.filename}:{last.lineno})"
    return f"{type(problem).__name__}: {text}{where}"


def _missing(world_id: str, problem: Exception) -> WorldError | MissingExtraError:
    if "gymnasium-robotics" in str(problem):
        spec = gymnasium.spec(world_id)
        newest = find_highest_version(spec.namespace, spec.name)
        return WorldError(
            f"{world_id} is old and no longer part of gymnasium: use {spec.name}-v{newest}"
        )
    for part, extra in _EXTRAS.items():
        if part in str(problem).lower():
            return MissingExtraError(f'{world_id} needs {part}: pip install "rlgym-lab[{extra}]"')
    return MissingExtraError(f"{world_id} needs a package that is not installed: {problem}")


def _unknown(world_id: str, reason: str) -> str:
    known = list(gymnasium.registry)
    lower = {name.lower(): name for name in known}
    near = [lower[n] for n in difflib.get_close_matches(world_id.lower(), lower, n=3, cutoff=0.5)]
    same = [
        n
        for n in known
        if n.rpartition("-v")[0].lower() == world_id.rpartition("-v")[0].lower() and n not in near
    ]
    text = f"unknown world {world_id!r}"
    if near or same:
        text += f": did you mean {', '.join((same + near)[:3])}?"
    for part, package in PACKAGES.items():
        if part in world_id or world_id.lower().startswith(part.lower()):
            module = package.replace("-", "_")
            text += (
                f" It may be from {package}: pip install {package}, then use {module}:{world_id}."
            )
            break
    else:
        if not (near or same):
            text += ' (see "rlgym envs"; a package that registers it is imported by "module:id").'
    return text if "deprecated" not in reason.lower() else f"{text} ({reason})"


def _wrong_argument(
    world_id: str, spec: Any, kwargs: dict[str, Any], problem: TypeError
) -> Exception:
    try:
        entry = (
            spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
        )
        known = [
            p for p in inspect.signature(entry).parameters if p not in ("self", "kwargs", "args")
        ]
    except (TypeError, ValueError):
        known = []
    wrong = [key for key in kwargs if known and key not in known]
    if not wrong:
        return WorldError(f"{world_id} cannot be built: {problem}")
    near = difflib.get_close_matches(wrong[0], known, n=1)
    fix = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
    return ConfigError(f"{world_id} takes no argument {wrong[0]!r}: {fix}")
