"""A robot's entry of the table as a YAML file, for those who add a robot without writing Python.

It is data: nothing in it is run or imported. docs/robots.md has one that works.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rlgym.envs.physics.robots import Foot, Leg, Robot
from rlgym.errors import ConfigError, WorldError
from rlgym.plain_yaml import parse_yaml
from rlgym.settings import short, suggest

MAX_BYTES = 1 << 20
PER_JOINT = ("sign", "offset", "kp", "kd", "torque_limit", "lower", "upper", "default_pose")
"""Fields in which one number stands for all joints, and as many as a leg has for all legs."""
DEFAULTS = {"sign": 1.0, "offset": 0.0, "torque_limit": (), "lower": (), "upper": ()}
"""Of fields that a `Robot` must be given and a file may leave out."""


def read_robot(path: str | Path) -> Robot:
    """Return the robot that a file describes; its `model` may be given relative to the file.

    Raises:
        WorldError: the file is not there, is no YAML mapping, lacks a field, or has one that a
            `Robot` has not (the nearest name is given) or that has the wrong type.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise WorldError(f"there is no robot file {path}, or it is larger than 1 MB")
    try:
        fields = parse_yaml(path.read_text("utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise WorldError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise WorldError(f"{path} must be a mapping of a robot's fields, as in docs/robots.md")
    fields = {"name": path.stem} | DEFAULTS | _known(fields, Robot, path)
    joints = fields.get("joints")
    if not isinstance(joints, list) or not all(isinstance(name, str) for name in joints):
        raise WorldError(f"{path}: joints must be a list of names")
    for name in PER_JOINT:
        if name in fields:
            fields[name] = _spread(fields[name], len(joints), f"{path}: {name}")
    fields["feet"] = tuple(_part(one, Foot, f"{path}: feet") for one in _list(fields, "feet", path))
    fields["legs"] = tuple(_part(one, Leg, f"{path}: legs") for one in _list(fields, "legs", path))
    if (path.parent / str(fields.get("model"))).is_file():
        fields["model"] = str((path.parent / str(fields["model"])).resolve())
    missing = _missing(fields, Robot)
    if missing:
        raise WorldError(f"{path}: a robot needs {', '.join(missing)}")
    return Robot(**{name: _plain(value, f"{path}: {name}") for name, value in fields.items()})


def _known(fields: dict[Any, Any], kind: type, where: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in names:
            raise WorldError(f"{where}: there is no field '{name}': {suggest(str(name), names)}")
    return dict(fields)


def _missing(fields: dict[str, Any], kind: type) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in fields
    ]


def _list(fields: dict[str, Any], name: str, path: Path) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise WorldError(f"{path}: {name} must be a list")
    return value


def _part(value: Any, kind: type, where: str) -> Any:
    """Return a `Foot` or a `Leg` of a mapping; a foot may be its link's name alone."""
    if kind is Foot and isinstance(value, str):
        value = {"link": value}
    if not isinstance(value, dict):
        raise WorldError(f"{where}: {value!r} is not a mapping")
    fields = _known(value, kind, where)
    missing = _missing(fields, kind)
    if missing:
        raise WorldError(f"{where}: one needs {', '.join(missing)}")
    return kind(**{name: _plain(one, f"{where}: {name}") for name, one in fields.items()})


def _spread(value: Any, count: int, where: str) -> Any:
    """Repeat a number, or the numbers of one leg, for all `count` joints."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    for one in values:
        if isinstance(one, bool) or not _is_number(one):
            raise WorldError(f"{where}: {short(one)} is not a number")
    if values and len(values) < count and count % len(values) == 0:
        values *= count // len(values)
    return tuple(float(one) for one in values)


def _is_number(value: Any) -> bool:
    # compared, because a whole number of a thousand digits fits no float
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _plain(value: Any, where: str) -> Any:
    """Return lists as tuples, and refuse what no field of a robot is."""
    if isinstance(value, list | tuple):
        return tuple(_plain(one, where) for one in value)
    if isinstance(value, Foot | Leg | str | bool):
        return value
    if _is_number(value):
        return float(value)
    raise WorldError(f"{where}: {short(value)} is not a number, a text or a list of them")
