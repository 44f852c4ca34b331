"""Changing a dataclass by nested mappings, with errors that name what was meant.

This is what YAML files, command-line flags and keyword arguments have in common. It knows nothing
of training; `rlgym.config` says which dataclasses there are.
"""

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from rlgym.errors import ConfigError

Config = TypeVar("Config")

ELSEWHERE = {
    "activation_fn": "activation",
    "batch_size": "minibatch_size",
    "clip_range": "clip",
    "cuda": "device",
    "ent_coef": "entropy_coef",
    "gradient_steps": "updates_per_step",
    "lr": "learning_rate",
    "n_envs": "num_envs",
    "n_epochs": "epochs",
    "n_steps": "num_steps",
    "net_arch": "hidden",
    "timesteps": "total_steps",
    "total_timesteps": "total_steps",
    "vf_coef": "value_coef",
}
"""Names that other libraries, above all Stable-Baselines3, have for settings -> ours."""

_SENTENCE = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class _Asked(NamedTuple):
    """What stays the same while a change descends into the sections of a config."""

    root: type
    variants: Mapping[str, type]
    spell: Callable[[str], str]


def change(
    config: Config,
    changes: Mapping[str, Any],
    variants: Mapping[str, type],
    spell: Callable[[str], str] = str,
) -> Config:
    """Return `config` with `changes` made to it; a mapping changes a section field by field.

    Args:
        config: A frozen dataclass whose fields are plain values or such dataclasses.
        changes: Nested mappings; a section may also be given as its dataclass.
        variants: Dataclasses of which a section holds one, chosen by the section's key "name".
        spell: Turns a dotted path into what the person wrote, for errors ("a.b" -> "--a.b").

    Raises:
        ConfigError: an unknown key (the nearest name is given) or a wrong type.
    """
    return _change(config, changes, "", _Asked(type(config), variants, spell))


@cache
def setting_types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a config dataclass."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


@cache
def nested_types(kind: type) -> dict[str, Any]:
    """Return the type of each setting of a config dataclass, by its dotted path."""
    found: dict[str, Any] = {}
    for name, hint in setting_types(kind).items():
        sections = [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
        for section in sections:
            inner = nested_types(cast(type, section))
            found |= {f"{name}.{path}": inner[path] for path in inner}
        if not sections:
            found[name] = hint
    return found


def plain(value: Any, path: str) -> Any:
    """Return `value` as what YAML can hold."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, path) for entry in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    raise ConfigError(
        f"{path}: a {type(value).__name__} cannot be saved with the run: "
        f"pass plain values, or register a world that builds it"
    )


def suggest(name: str, known: Iterable[Any]) -> str:
    """Say which of the known names was probably meant, or else all of them."""
    names = [str(entry) for entry in known]
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(names) or 'none'}"


def short(value: Any) -> str:
    """Return the value's text, cut to fit into one line of an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _change(config: Any, changes: Any, prefix: str, asked: _Asked) -> Any:
    kind = type(config)
    has_variants = kind in asked.variants.values()
    if isinstance(changes, tuple(asked.variants.values()) if has_variants else kind):
        return changes
    if has_variants and isinstance(changes, str):
        changes = {"name": changes}
    if changes is None:  # the head of a section with nothing under it
        changes = {}
    if not isinstance(changes, Mapping):
        names = ", ".join(setting_types(kind))
        section = asked.spell(prefix.rstrip(".")) or "the config"
        raise ConfigError(f"{section}: expected settings ({names}), got {short(changes)}")
    changes = dict(changes)
    if has_variants and "name" in changes:
        name = str(changes.pop("name"))
        if name not in asked.variants:
            choice = asked.spell(f"{prefix}name")
            raise ConfigError(f"{choice}: there is no '{name}': {suggest(name, asked.variants)}")
        if asked.variants[name] is not kind:  # the other's settings mean nothing to this one
            config, kind = asked.variants[name](), asked.variants[name]
    hints = setting_types(kind)
    values: dict[str, Any] = {}
    for key, value in changes.items():
        path = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(
                f"{asked.spell(path)} is not a setting: {_nearest(path, kind, asked)}"
            )
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            values[key] = _change(current, value, f"{path}.", asked)
        elif get_origin(hints[key]) is dict and isinstance(value, Mapping):
            values[key] = {**current, **value}
        else:
            values[key] = _convert(value, hints[key], asked.spell(path))
    return dataclasses.replace(config, **values)


def _nearest(path: str, kind: type, asked: _Asked) -> str:
    """Say which setting was meant: here, in another section, or else all that there are here."""
    prefix, _, key = path.rpartition(".")
    prefix = f"{prefix}." if prefix else ""
    wanted, siblings = key.replace("-", "_"), list(setting_types(kind))
    if ELSEWHERE.get(wanted) in siblings:
        return f"did you mean {asked.spell(prefix + ELSEWHERE[wanted])}?"
    others = asked.variants.items() if kind in asked.variants.values() else ()
    for name, variant in others:
        if variant is not kind and wanted in setting_types(variant):
            return f"it is one of {name}: choose {asked.spell(prefix.rstrip('.'))} {name}"
    everywhere = list(nested_types(asked.root))
    close = [prefix + name for name in difflib.get_close_matches(wanted, siblings, 1, 0.7)]
    same = (wanted, ELSEWHERE.get(wanted))
    close += [other for other in everywhere if other.rpartition(".")[2] in same]
    close += difflib.get_close_matches(prefix + wanted, everywhere, 1, 0.7)
    if close:
        return f"did you mean {asked.spell(close[0])}?"
    return f"{asked.spell(prefix.rstrip('.')) or 'a config'} has {', '.join(siblings)}"


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Return `value` as the field's type, allowing what YAML and a shell cannot write otherwise.

    From Python come numpy's numbers and arrays, and paths.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        inner = next(option for option in options if option is not type(None))
        return _convert(value, inner, path)
    if origin is Literal:
        if isinstance(value, bool):  # YAML 1.1 reads a bare `off` as false
            value = "on" if value else "off"
        if value in options:
            return value
        near = difflib.get_close_matches(str(value), options, 1, 0.7)
        meant = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(options)}"
        raise ConfigError(f"{path}: {short(value)} is not a choice: {meant}")
    if origin is tuple and _number(value) is not None:  # a list of one
        value = [value]
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(entry, options[0], path) for entry in value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint in (int, float):
        number = _number(value)
        if number is not None and (hint is float or number == int(number)):
            return hint(number)
    raise ConfigError(f"{path}: expected {_describe(hint)}, got {short(value)}")


def _number(value: Any) -> int | float | None:
    """Read a finite number; YAML 1.1 takes 1e-3, without a dot, for a text."""
    if isinstance(value, str):
        try:
            value = int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _describe(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, each {_describe(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "keys with values"
    return _SENTENCE.get(hint, str(hint))
