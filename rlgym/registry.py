"""Worlds by id (Gymnasium's, "module:id", our own) or callable, and vector envs of them.

Torch is imported only when a vector env is made, so that workers can build worlds without it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium

from rlgym.config import PRIVILEGED, TrainConfig
from rlgym.errors import ConfigError, DeviceError, MissingExtraError, UserError, WorldError
from rlgym.settings import suggest

if TYPE_CHECKING:
    from rlgym.spaces import Layout
    from rlgym.vector.contract import VectorEnv

Backend = Literal["auto", "sync", "process", "device"]
WorldFactory = Callable[..., gymnasium.Env]

VECTOR_ENTRY_POINTS: dict[str, str | Callable[..., VectorEnv]] = {
    "rlgym/Imitate-v0": "rlgym.envs.imitation.vector_env:make_imitation",
}
"""Id -> builder of a whole vector env, for worlds that are batches already."""
TENSOR_WORLDS: dict[str, str | Callable[..., Any]] = {
    "CartPole-v1": "rlgym.envs.classic:CartPole",
    "Pendulum-v1": "rlgym.envs.classic:Pendulum",
    "MountainCar-v0": "rlgym.envs.classic:MountainCar",
    "MountainCarContinuous-v0": "rlgym.envs.classic:MountainCarContinuous",
    "Acrobot-v1": "rlgym.envs.classic:Acrobot",
}
"""Id -> builder of a `rlgym.vector.tensor_world.TensorWorld`; Gymnasium has each of them too."""
MANY = 64
"""Worlds from which on a batch of tensors is stepped sooner than so many Python objects."""

DEVICE_BATCHES: dict[str, tuple[str, str]] = {"rlgym/Imitate-v0": ("engine", "warp")}
"""Id of `VECTOR_ENTRY_POINTS` -> argument, and its value with which the batch lives on a device."""


UNITY = "unity:"
"""How the name of a Unity scene begins: unity:PATH, unity:editor, unity:standin."""
EDITOR = "unity:editor"
"""The scene that is open in the Unity editor; there is one, so it trains and evaluates in turn."""


@dataclass(frozen=True)
class WorldSpec:
    """How to build one world; small and picklable, so that workers get it whole."""

    world: str | WorldFactory
    """A registered id, "module:id", or a callable that returns a `gymnasium.Env`."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world."""

    @property
    def name(self) -> str:
        """The id, or the callable's name."""
        return (
            self.world
            if isinstance(self.world, str)
            else getattr(self.world, "__name__", repr(self.world))
        )

    def __call__(self) -> gymnasium.Env:
        """Build the world.

        Raises:
            WorldError: for an unknown id (with the nearest ones), a package that is not installed,
                a wrong argument.
        """
        if isinstance(self.world, str):
            if is_scene(self.world):
                raise WorldError(
                    f"{self.world} is a scene of many agents, not one world: use make_vec, train, "
                    "eval or bench"
                )
            from rlgym.envs.gymnasium import make_world

            return make_world(self.world, dict(self.kwargs))
        from rlgym.envs.gymnasium import bullet

        bullet.hush()
        env = self.world(**self.kwargs)
        if not isinstance(env, gymnasium.Env):
            raise WorldError(
                f"{self.name}() returned {type(env).__name__}: return a gymnasium.Env "
                "(wrap old Gym worlds with shimmy)"
            )
        return env


def make(world: str | WorldFactory, **kwargs: Any) -> gymnasium.Env:
    """Build one world, as `gymnasium.make` does, from any id that rlgym knows.

    Raises:
        WorldError: see `WorldSpec`.
    """
    return WorldSpec(world, kwargs)()


def register(
    id: str,
    entry_point: str | Callable[..., Any],
    *,
    vector: bool = False,
    tensor: bool = False,
    **kwargs: Any,
) -> None:
    """Add a world of your own.

    Args:
        id: the name to train it by, such as "lab/Reach-v0".
        entry_point: "module:Class" or a callable; builds a `gymnasium.Env`, or a whole `VectorEnv`
            with `vector=True` (called with num_envs, device, seed, output and the world's own
            keyword arguments; with num_workers, timeout, max_restarts and crash_dir if it names
            them).
        vector: the entry point builds vector envs.
        tensor: the entry point builds a `rlgym.vector.tensor_world.TensorWorld`.
        kwargs: passed to `gymnasium.register` (max_episode_steps, kwargs, ...).
    """
    if vector:
        VECTOR_ENTRY_POINTS[id] = entry_point
    elif tensor:
        TENSOR_WORLDS[id] = entry_point
        gymnasium.register(id, entry_point=lambda **given: _one_tensor_world(id, given), **kwargs)
    else:
        gymnasium.register(id, entry_point=entry_point, **kwargs)


def require_trust(world: str, source: str | Path) -> None:
    """Refuse to import a module only because a file names it: importing one runs its code.

    What rlgym knows, and what this process has imported already, needs no asking.

    Args:
        world: id, as the file gives it.
        source: the file or folder that names it.

    Raises:
        UserError: says how to vouch for it.
    """
    module = world.rpartition(":")[0]
    if not needs_trust(world) or (module in sys.modules and not is_scene(world)):
        return
    if is_scene(world):
        raise UserError(
            f"{source} asks to start the program {world.removeprefix(UNITY)} for its worlds: if "
            "you know who made both, add --trust, or trust=True in Python"
        )
    raise UserError(
        f"{source} asks to import the module '{module}' for its worlds: if you know who made it, "
        "add --trust, or trust=True in Python"
    )


def needs_trust(world: str) -> bool:
    """Tell whether a process that has imported nothing yet would be asked about this world."""
    if is_scene(world):
        return world.removeprefix(UNITY) not in ("editor", "standin")
    module = world.rpartition(":")[0]
    own = module.split(".")[0] == "rlgym"
    return bool(module) and not own and module not in _known_modules()


def require_trusted_worlds(
    config: TrainConfig, source: str | Path, given: Mapping[str, Any]
) -> None:
    """Refuse what a config may not ask for only because a file says so: see `require_trust`.

    That goes for the arguments of its worlds, too: an argument may name a file to write to.

    Args:
        config: as the file gives it.
        source: the file or folder that it is from.
        given: settings that a person gives in place of the file's: these need no asking.

    Raises:
        UserError: says how to vouch for it.
    """
    if "env_id" not in given:
        require_trust(config.env_id, source)
    scene = is_scene(given.get("env_id", config.env_id))
    for path, arguments, own in (
        ("env", config.env, given.get("env", {})),
        ("eval.env", config.eval.env, _section(given, "eval").get("env", {})),
    ):
        for name, value in arguments.items():
            if name in own or not (name in PRIVILEGED or (scene and _is_flag(value))):
                continue
            raise UserError(
                f"{source} gives its worlds {path}.{name}, with which they can write anywhere: if "
                "you know who made it, add --trust, or trust=True in Python"
            )


def _is_flag(value: Any) -> bool:
    """Whether a scene's program would take a value for one of its flags, which it is not behind."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, str) and first.startswith("-")


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a person gives of a section: a mapping of some settings, or its dataclass with all."""
    section = given.get(name, {})
    return section if isinstance(section, Mapping) else vars(section)


def require_trusted_cluster(
    config: TrainConfig, source: str | Path, given: Mapping[str, Any]
) -> None:
    """Refuse to join a Ray cluster only because a file names it: its members run each other's code.

    Args:
        config, source, given: as `require_trusted_worlds` takes them.

    Raises:
        UserError: says how to vouch for it.
    """
    address = config.collect.ray
    if address not in (None, "local") and "ray" not in _section(given, "collect"):
        raise UserError(
            f"{source} asks to join the Ray cluster '{address}': if you know whose it is, add "
            "--trust, or trust=True in Python"
        )


def is_scene(world: Any) -> bool:
    """Tell whether this names a Unity scene, which has as many slots as it has agents."""
    return isinstance(world, str) and world.startswith(UNITY)


def _known_modules() -> set[str]:
    """Modules that the shipped presets, or the advice of an error, name."""
    from rlgym.config import load_preset, presets
    from rlgym.envs.gymnasium import PACKAGES

    named = {package.partition("[")[0].replace("-", "_") for package in PACKAGES.values()}
    return named | {load_preset(name).env_id.rpartition(":")[0] for name in presets()}


def make_vec(
    world: str | WorldFactory,
    num_envs: int | None = None,
    *,
    backend: Backend = "auto",
    device: Any = "cpu",
    seed: int = 0,
    output: Literal["torch", "numpy"] = "torch",
    num_groups: int | None = None,
    num_workers: int | None = None,
    timeout: float = 60.0,
    max_restarts: int = 10,
    crash_dir: str | Path | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    info_keys: tuple[str, ...] = ("is_success",),
    verbose: bool = True,
    **world_kwargs: Any,
) -> VectorEnv:
    """Build `num_envs` worlds behind one vector env.

    Args:
        world: a registered id, "module:id" (the module is imported), "unity:PATH", or a callable
            that returns a world.
        num_envs: slots, fixed for life; None: 1, or as many as a Unity scene has agents.
        backend: "sync" (this process), "process" (worker processes), "device" (worlds that are
            tensors), or "auto", which chooses, and says what and why on stderr: tensors where the
            world has them and the device is an accelerator or the worlds are many; else it times a
            few steps. No choice where a world is a whole batch already.
        device: device of the returned tensors.
        seed: seed of the first reset; slot i gets seed + i.
        output: torch tensors, or numpy copies as Gymnasium's own vector envs give them.
        num_groups: groups for send/recv; None: 1 on sync, 2 on process where `num_envs` is even.
        num_workers: worker processes; None: one per core (from four cores on, less one for this
            process), at most one per slot.
        timeout: seconds to wait for a world before its worker is replaced.
        max_restarts: workers (or raising worlds) replaced before the env gives up.
        crash_dir: folder for reports of lost worlds and workers; None: "rlgym-crashes" in the
            folder for temporary files.
        env_kwargs: keyword arguments of each world.
        info_keys: scalar entries of the worlds' info to carry as arrays, NaN where absent.
        verbose: let "auto" say what it chose.
        world_kwargs: more keyword arguments of each world, as `env_kwargs`.

    Raises:
        WorldError: for an unknown or broken world.
        ContractError: for counts that do not fit together.
        ConfigError: for an unknown backend.
    """
    from rlgym.device import resolve

    place = resolve(device)
    if str(device) == "auto" and place.type == "cpu":
        require_accelerator(world, {**(env_kwargs or {}), **world_kwargs})
    common: dict[str, Any] = {"device": place, "seed": seed, "output": output}
    kwargs = {**(env_kwargs or {}), **world_kwargs}
    if isinstance(world, str) and is_scene(world):
        common |= {"timeout": timeout, "max_restarts": max_restarts, "crash_dir": crash_dir}
        for key in common.keys() & kwargs.keys():
            raise ConfigError(f"{key} is not the scene's: give it without 'env.'")
        return _build_scene(world, num_envs, **common, **kwargs)
    num_envs = 1 if num_envs is None else num_envs
    builder = VECTOR_ENTRY_POINTS.get(world) if isinstance(world, str) else None
    if builder is not None:
        common |= {"num_workers": num_workers, "timeout": timeout, "max_restarts": max_restarts}
        return _build_batch(
            world, _load(builder), num_envs, common | {"crash_dir": crash_dir}, kwargs
        )
    spec = WorldSpec(world, kwargs)
    if backend == "auto":
        if suits_tensors(world, kwargs, num_envs, place, num_groups, num_workers):
            backend, reason = "device", f"{num_envs} worlds as tensors on {place}"
        else:
            backend, reason = choose_backend(spec, num_envs, num_workers)
        if verbose:
            print(f"rlgym: backend {backend} for {spec.name}: {reason}", file=sys.stderr)
    if backend == "device":
        if num_groups not in (None, 1):
            raise ConfigError("tensor worlds are one group: leave num_groups out")
        return _build_tensors(spec, num_envs, **common)
    common |= {"max_restarts": max_restarts, "crash_dir": crash_dir}
    common |= {"info_keys": tuple(info_keys)}
    if backend == "sync":
        from rlgym.vector.sync import SyncVectorEnv

        return SyncVectorEnv(spec, num_envs, num_groups=num_groups or 1, **common)
    if backend == "process":
        from rlgym.vector.process import ProcessVectorEnv

        groups = num_groups or (2 if num_envs % 2 == 0 else 1)
        return ProcessVectorEnv(
            spec, num_envs, num_groups=groups, num_workers=num_workers, timeout=timeout, **common
        )
    raise ConfigError(f'unknown backend {backend!r}: use "auto", "sync", "process" or "device"')


def is_device_batch(world: str | WorldFactory, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a world is a batch that lives on the device which it is made for."""
    argument, value = DEVICE_BATCHES.get(world, ("", "")) if isinstance(world, str) else ("", "")
    return bool(argument) and kwargs.get(argument) == value


def require_accelerator(world: str | WorldFactory, kwargs: Mapping[str, Any]) -> None:
    """Refuse to put a batch on a CPU that is made for an accelerator, where nobody asked for that.

    Raises:
        DeviceError: names what to use instead.
    """
    if is_device_batch(world, kwargs):
        argument, value = DEVICE_BATCHES[str(world)]
        raise DeviceError(
            f"{world} with {argument} {value} wants an NVIDIA GPU, and torch sees none: use "
            f"--env.{argument} mujoco, which is the same physics and faster on a CPU, or say "
            "--device cpu to run it all the same"
        )


def suits_tensors(
    world: str | WorldFactory,
    kwargs: Mapping[str, Any],
    num_envs: int,
    device: Any,
    num_groups: int | None = None,
    num_workers: int | None = None,
) -> bool:
    """Whether "auto" takes a world's tensors: it has them, and they are many or on an accelerator.

    Not where something was asked for that they do not have: an argument, groups, workers.
    """
    if not isinstance(world, str) or world not in TENSOR_WORLDS:
        return False
    known = inspect.signature(_load(TENSOR_WORLDS[world])).parameters
    asked = num_groups not in (None, 1) or num_workers is not None
    wanted = num_envs >= MANY or device.type != "cpu"
    return wanted and not asked and all(key in known for key in kwargs)


def _build_tensors(spec: WorldSpec, num_envs: int, *, device: Any, **common: Any) -> VectorEnv:
    """Build a batch of tensors; see `TENSOR_WORLDS`."""
    from rlgym.vector.contract import check_counts
    from rlgym.vector.device import DeviceVectorEnv
    from rlgym.vector.tensor_world import WorldBatch

    if not isinstance(spec.world, str) or spec.world not in TENSOR_WORLDS:
        raise ConfigError(
            f'{spec.name} is not a tensor world: use backend="sync" or "process"; '
            f"worlds of tensors: {', '.join(sorted(TENSOR_WORLDS))}"
        )
    check_counts(num_envs, 1)
    batch = WorldBatch(_tensor_world(spec.world, spec.kwargs), num_envs, device, spec.world)
    return DeviceVectorEnv(batch, **common)


def _tensor_world(name: str, kwargs: Mapping[str, Any]) -> Any:
    builder = _load(TENSOR_WORLDS[name])
    known = list(inspect.signature(builder).parameters)
    for key in kwargs:
        if key not in known:
            raise ConfigError(
                f"{name} as tensors takes no argument {key!r}: {suggest(key, known)}, or use "
                'backend="sync"'
            )
    return builder(**kwargs)


def _one_tensor_world(name: str, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    from rlgym.vector.tensor_world import OneWorld

    return OneWorld(_tensor_world(name, kwargs))


def _build_scene(world: str, num_envs: int | None, **arguments: Any) -> VectorEnv:
    """Start a Unity scene."""
    try:
        from rlgym.envs.unity.vector_env import make_unity
    except ImportError as error:
        raise MissingExtraError(
            f"Unity scenes need {error.name}: pip install mlagents-envs==0.28.0"
        ) from error
    return make_unity(world.removeprefix(UNITY), num_envs, **arguments)


def _build_batch(
    name: Any, builder: Callable[..., Any], num_envs: int, common: dict[str, Any], kwargs: Any
) -> VectorEnv:
    """Call the builder of a whole batch with those of our own arguments that it names."""
    parameters = inspect.signature(builder).parameters
    always = ("device", "seed", "output")
    named = {key: value for key, value in common.items() if key in always or key in parameters}
    known = [key for key in parameters if key != "num_envs" and key not in common]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for key in kwargs:
        if key in named:
            raise ConfigError(f"{key} is not the world's: give it to make_vec itself")
        if key not in known and not takes_any:
            raise ConfigError(f"{name} takes no argument {key!r}: {suggest(key, known)}")
    return builder(num_envs=num_envs, **named, **kwargs)


def recording(path: str | os.PathLike[str], obs: Layout, actions: Layout) -> Any:
    """What somebody did in a world, as `rlgym.rollout.demonstrations` names its arrays.

    Args:
        path: Unity's .demo, or a folder of them.
        obs: layout of the world's observations.
        actions: layout of its actions.

    Returns:
        Arrays by name; None where this is no file of a kind of worlds.

    Raises:
        UserError: the file is no recording, or of a scene with other sensors or actions.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.demo")) if folder.is_dir() else [folder]
    if not files or files[0].suffix != ".demo":
        return None
    try:
        from rlgym.envs.unity.demonstrations import arrays_of
    except ImportError as error:
        raise MissingExtraError(
            f"Unity's demonstrations need {error.name}: pip install mlagents-envs==0.28.0"
        ) from error
    return arrays_of(files, obs, actions)


def choose_backend(
    spec: WorldSpec, num_envs: int, num_workers: int | None = None
) -> tuple[Literal["sync", "process"], str]:
    """Choose where worlds run by timing one of them.

    Worker processes pay about 0.1 ms a step for the exchange, so they win where the worlds of one
    step cost more than that over what the workers share among them.
    """
    workers = min(num_workers or os.cpu_count() or 1, num_envs)
    if workers < 2:
        return "sync", "one world, or one core"
    cost = _seconds_per_step(spec)
    saved = num_envs * cost * (1 - 1 / workers)
    text = f"{num_envs} worlds of {cost * 1e6:.0f} us a step"
    if saved > 400e-6:
        return "process", f"{text} over {workers} workers"
    return "sync", f"{text} are not worth an exchange between processes"


def _seconds_per_step(spec: WorldSpec) -> float:
    env = spec()
    try:
        env.reset(seed=0)
        env.action_space.seed(0)
        costs = []
        for _ in range(40):
            action = env.action_space.sample()
            begin = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
            costs.append(time.perf_counter() - begin)
            if sum(costs) > 0.2:
                break
        return sorted(costs)[len(costs) // 2]
    except Exception as error:
        raise WorldError(
            f"{spec.name} failed in its first steps: {type(error).__name__}: {error}"
        ) from error
    finally:
        env.close()


def _load(entry_point: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(entry_point, str):
        return entry_point
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)
