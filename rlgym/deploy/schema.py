"""A small checker of JSON Schema: the words that manifest.schema.json uses, and no others.

A robot has numpy and little else, so this stands in for a library. `format`, remote references and
patterns of property names are not known and would be an error in the schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("manifest.schema.json")
_IGNORED = {"$schema", "$id", "$defs", "title", "description"}

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ),
}


@cache
def manifest_schema() -> dict[str, Any]:
    """What a bundle's manifest must look like."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def fault_of(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> str:
    """Return the first thing that is wrong, as "where: what"; "" where nothing is.

    Args:
        value: parsed JSON.
        schema: of it.
        root: where "$defs" stand; the schema itself by default.
    """
    return _fault(value, schema, schema if root is None else root, "")


def _fault(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> str:
    for word, wanted in schema.items():
        if word in _IGNORED:
            continue
        if word in _INSIDE:
            fault = _INSIDE[word](value, wanted, root, where, schema)
        else:
            said = _SIMPLE[word](value, wanted)
            fault = f"{where or 'it'}: {said}" if said else ""
        if fault:
            return fault
    return ""


def _type(value: Any, wanted: Any) -> str:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if any(_TYPES[kind](value) for kind in kinds):
        return ""
    return f"must be {' or '.join(kinds)}, is {_short(value)}"


def _enum(value: Any, wanted: Any) -> str:
    return "" if value in wanted else f"must be one of {', '.join(map(str, wanted))}"


def _const(value: Any, wanted: Any) -> str:
    same = type(value) is type(wanted) and value == wanted
    return "" if same else f"must be {wanted!r}, is {_short(value)}"


def _pattern(value: Any, wanted: str) -> str:
    wanted = re.sub(r"\$$", r"\\Z", wanted)  # "$" would let a line feed follow
    fits = not isinstance(value, str) or re.search(wanted, value)
    return "" if fits else f"{_short(value)} is not allowed"


def _bound(words: str, fits: Callable[[Any, Any], bool]) -> Callable[[Any, Any], str]:
    def check(value: Any, wanted: Any) -> str:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (
            "" if not is_number or fits(value, wanted) else f"is {value}, must be {words} {wanted}"
        )

    return check


def _length(kind: type, words: str, fits: Callable[[int, int], bool]) -> Callable[[Any, Any], str]:
    def check(value: Any, wanted: int) -> str:
        if not isinstance(value, kind) or fits(len(value), wanted):
            return ""
        return f"has {len(value)} {words.format(wanted)}"

    return check


def _required(value: Any, wanted: list[str]) -> str:
    missing = [name for name in wanted if name not in value] if isinstance(value, dict) else []
    return f"lacks {', '.join(missing)}" if missing else ""


_SIMPLE: dict[str, Callable[[Any, Any], str]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "pattern": _pattern,
    "minimum": _bound("at least", lambda value, wanted: value >= wanted),
    "maximum": _bound("at most", lambda value, wanted: value <= wanted),
    "exclusiveMinimum": _bound("above", lambda value, wanted: value > wanted),
    "minItems": _length(list, "entries, needs {}", lambda found, wanted: found >= wanted),
    "maxItems": _length(list, "entries, {} are allowed", lambda found, wanted: found <= wanted),
    "maxLength": _length(str, "letters, {} are allowed", lambda found, wanted: found <= wanted),
    "maxProperties": _length(dict, "entries, {} are allowed", lambda found, n: found <= n),
    "required": _required,
}


def _reference(value: Any, wanted: str, root: Any, where: str, _: Any) -> str:
    return _fault(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, where)


def _any_of(value: Any, wanted: list[Any], root: Any, where: str, _: Any) -> str:
    faults = [_fault(value, schema, root, where) for schema in wanted]
    return "" if "" in faults else faults[-1]


def _items(value: Any, wanted: Any, root: Any, where: str, _: Any) -> str:
    if isinstance(value, list):
        for i, item in enumerate(value):
            fault = _fault(item, wanted, root, f"{where}[{i}]")
            if fault:
                return fault
    return ""


def _properties(value: Any, wanted: Any, root: Any, where: str, _: Any) -> str:
    if isinstance(value, dict):
        for name, schema in wanted.items():
            fault = _fault(value[name], schema, root, _at(where, name)) if name in value else ""
            if fault:
                return fault
    return ""


def _others(value: Any, wanted: Any, root: Any, where: str, schema: Any) -> str:
    if isinstance(value, dict):
        for name in value.keys() - schema.get("properties", {}).keys():
            if wanted is False:
                return f"{where or 'it'}: has the unknown entry {_short(name)}"
            fault = _fault(value[name], wanted, root, _at(where, name))
            if fault:
                return fault
    return ""


_INSIDE: dict[str, Callable[..., str]] = {
    "$ref": _reference,
    "anyOf": _any_of,
    "items": _items,
    "properties": _properties,
    "additionalProperties": _others,
}


def _at(where: str, name: str) -> str:
    name = _short(name)[1:-1]
    return f"{where}.{name}" if where else name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
