"""`rlgym envs`: the worlds that can be trained here, and what brings the others."""

import contextlib
import difflib
import importlib
import importlib.util
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tyro.conf import Positional

from rlgym.cli.arguments import parse
from rlgym.errors import UserError

EXTRA_PACKAGES = {"pybullet_envs_gymnasium": "worlds", "panda_gym": "worlds"}
"""Package that registers worlds when it is imported -> our extra that installs it."""

_NEEDS = {
    "gymnasium.envs.mujoco": ("mujoco", 'pip install "rlgym-lab[mujoco]"'),
    "gymnasium.envs.box2d": ("Box2D", 'pip install "gymnasium[box2d]"'),
    "gymnasium.envs.phys2d": ("jax", 'pip install "gymnasium[jax]"'),
    "gymnasium.envs.tabular": ("jax", 'pip install "gymnasium[jax]"'),
}
"""Start of an entry point -> the module that it needs, and how to install it."""

_VERSION = re.compile(r"(.*)-v(\d+)")


@dataclass(frozen=True)
class Options:
    """List the worlds whose id contains FILTER, with what they still need."""

    filter: Positional[str] = ""
    """Part of an id, in any case."""
    json: bool = False
    """Print one JSON list instead of a table."""


@dataclass(frozen=True)
class World:
    """A line of the list."""

    id: str
    source: str
    needs: str
    preset: str
    """The preset that `rlgym train` takes, or the first of the others; "" without any."""
    presets: tuple[str, ...] = ()
    """All of its presets, that one first."""


def run(argv: list[str]) -> int:
    """Print the list."""
    wanted = parse(Options, argv, "rlgym envs", ("filter",))
    found = worlds()
    shown = [world for world in found if wanted.filter.lower() in world.id.lower()]
    if wanted.json:
        print(json.dumps([vars(world) for world in shown], indent=1))
        return 0
    if not shown:
        names = [world.id for world in found]
        close = difflib.get_close_matches(wanted.filter, names, 1, 0.3)
        raise UserError(
            f"no id contains '{wanted.filter}': {close[0] if close else names[0]} is near"
        )
    print_table(shown)
    for package, extra in EXTRA_PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            print(f'more with {package}: pip install "rlgym-lab[{extra}]"')
    return 0


def worlds() -> list[World]:
    """Return every known world, newest versions only, in the order of their ids."""
    import gymnasium

    from rlgym.registry import VECTOR_ENTRY_POINTS

    for own in ("toy", "imitation"):  # register our own
        importlib.import_module(f"rlgym.envs.{own}")
    tuned = _presets()
    for package in EXTRA_PACKAGES:
        if importlib.util.find_spec(package) is not None:
            with contextlib.redirect_stdout(io.StringIO()):  # some greet on import
                importlib.import_module(package)
    names = _newest(name for name in gymnasium.registry if not _is_removed(name))
    found = [_world(name, tuned) for name in names]
    batches = [name for name in VECTOR_ENTRY_POINTS if name not in gymnasium.registry]
    found += [_tuned(name, "rlgym", "", tuned) for name in batches]
    return sorted(found, key=lambda world: world.id.lower())


def print_table(shown: list[World]) -> None:
    """Print one line per world: id, where it is from, what it needs, its preset."""
    width = max(len(world.id) for world in shown)
    origin = max(len(world.source) for world in shown)
    for world in shown:
        word = "presets" if len(world.presets) > 1 else "preset"
        notes = [world.needs, f"{word} {', '.join(world.presets)}" if world.presets else ""]
        note = ", ".join(note for note in notes if note) or "ready"
        print(f"{world.id:<{width}}  {world.source:<{origin}}  {note}")


def _presets() -> dict[str, tuple[str, ...]]:
    """World -> its presets, the one that `rlgym train` takes first."""
    from rlgym.config import load_preset, preset_for, presets

    found: dict[str, list[str]] = {}
    for name in presets():
        found.setdefault(load_preset(name).env_id, []).append(name)
    ordered = {}
    for env_id, names in found.items():
        taken = preset_for(env_id)
        ordered[env_id] = tuple(sorted(names, key=lambda name: (name != taken, name)))
    return ordered


def _tuned(name: str, source: str, needs: str, tuned: dict[str, tuple[str, ...]]) -> World:
    names = tuned.get(name, ())
    return World(name, source, needs, names[0] if names else "", names)


def _world(name: str, tuned: dict[str, tuple[str, ...]]) -> World:
    entry = _entry_point(name)
    source = entry.partition(".")[0]
    full = f"{source}:{name}" if source in EXTRA_PACKAGES else name
    needs = ""
    for start, (module, fix) in _NEEDS.items():
        if entry.startswith(start) and importlib.util.find_spec(module) is None:
            needs = fix
    return _tuned(full, source, needs, tuned)


def _newest(names: Iterable[str]) -> list[str]:
    """Keep the highest version of each name."""
    versions: dict[str, int] = {}
    for name in names:
        match = _VERSION.fullmatch(name)
        stem, version = (match[1], int(match[2])) if match else (name, -1)
        versions[stem] = max(version, versions.get(stem, -1))
    return [stem if version < 0 else f"{stem}-v{version}" for stem, version in versions.items()]


def _is_removed(name: str) -> bool:
    """Tell whether the id only raises, as those of old MuJoCo worlds, or adapts other packages'."""
    return _entry_point(name).startswith("gymnasium.envs:") or name.startswith("GymV2")


def _entry_point(name: str) -> str:
    import gymnasium

    entry = gymnasium.registry[name].entry_point
    return entry if isinstance(entry, str) else getattr(entry, "__module__", "") or ""
