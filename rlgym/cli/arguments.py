"""Command-line words and flags into dataclasses.

Flags become the same nested mapping that a YAML file is, and go through the same `change`: so a
wrong flag and a wrong line of a file get the same one-line error. tyro draws the help.
"""

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar, cast, get_origin

from rlgym.errors import ConfigError, UserError
from rlgym.plain_yaml import parse_yaml
from rlgym.settings import ELSEWHERE, change, nested_types

Options = TypeVar("Options")


class Split(NamedTuple):
    """A command line taken apart."""

    words: list[str]
    """Arguments that belong to no flag."""
    flags: dict[str, Any]
    """Dotted path of each flag -> its value: a text, a list of texts, or what YAML reads."""


def wants_help(argv: Sequence[str]) -> bool:
    """Tell whether -h or --help was given."""
    return "-h" in argv or "--help" in argv


def parse(kind: type[Options], argv: Sequence[str], prog: str, words: Sequence[str]) -> Options:
    """Read a verb's command line into its options dataclass, or print its help and exit.

    A field that is a mapping takes flags of any name: `--env.robot a1` into `env`.

    Args:
        kind: A frozen dataclass; its docstring and the line under each field are the help.
        argv: What follows the verb.
        prog: How the verb is called, such as "rlgym eval".
        words: Fields that are given as plain words, in their order; those without a default are
            required.

    Raises:
        UserError: an unknown flag (the nearest is named), a wrong type, a missing word.
    """
    if wants_help(argv):
        show_help(kind, prog)
    types = nested_types(kind)
    mappings = tuple(path for path in types if get_origin(types[path]) is dict)
    known = {path: types[path] for path in types if path not in words}
    given, flags = split(argv, known, mappings)
    if len(given) > len(words):
        raise UserError(f"unexpected '{given[len(words)]}': see {prog} --help")
    values = dict(zip(words, given, strict=False))
    for item in dataclasses.fields(cast(Any, kind)):
        required = item.default is item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            raise UserError(f"{item.name.upper()} is missing: see {prog} --help")
    return change(kind(**values), nest(flags), {}, spell)


def parse_run(
    own: Options, settings: type, argv: Sequence[str], open_sections: tuple[str, ...]
) -> tuple[Options, list[str], dict[str, Any]]:
    """Read the command line of a verb that takes a run's settings beside flags of its own.

    Args:
        own: The verb's own flags, with their defaults.
        settings: Dataclass of the settings; where a name is in both, the flag is the verb's own.
        argv: What follows the verb; -h and --help are passed over.
        open_sections: Settings whose keys are not known here; their values are read as YAML.

    Returns:
        The verb's own flags, the words, and the settings as the nested mapping of a YAML file.

    Raises:
        ConfigError: an unknown flag (the nearest is named), or one without its value.
    """
    names = nested_types(type(own))
    tokens = [token for token in argv if token not in ("-h", "--help")]
    words, flags = split(tokens, {**nested_types(settings), **names}, open_sections)
    given = {name: flags.pop(name) for name in names if name in flags}
    return change(own, given, {}, spell), words, nest(flags)


def split(
    argv: Sequence[str], types: Mapping[str, Any], open_sections: tuple[str, ...] = ()
) -> Split:
    """Take a command line apart; a flag's type says how many arguments it takes.

    Args:
        argv: Words, `--flag value`, `--flag=value`, `--switch`.
        types: Type of the setting behind each flag, by its dotted path.
        open_sections: Sections whose keys are not known here; their values are read as YAML.

    Raises:
        ConfigError: an unknown flag, or one without its value.
    """
    words: list[str] = []
    flags: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            if token.startswith("-") and not _is_number(token):
                raise ConfigError(f"{token} is not a flag: flags begin with two dashes")
            words.append(token)
            continue
        flag, has_value, value = token.partition("=")
        path = flag[2:].replace("-", "_")
        if has_value:
            rest.insert(0, value)
        if path.startswith(tuple(f"{section}." for section in open_sections)):
            flags[path] = _read_yaml(flag, _take(flag, rest, bool(has_value)))
        elif path not in types:
            raise ConfigError(f"{flag} is not a flag: {_nearest_flag(flag, types)}")
        else:
            flags[path] = _value(flag, types[path], rest, bool(has_value))
    return Split(words, flags)


def nest(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"a.b": 1} into {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for path, value in flags.items():
        *sections, name = path.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return nested


def spell(path: str) -> str:
    """Write a dotted path as the flag that a person types."""
    return f"--{path.replace('_', '-')}" if path else ""


def show_help(kind: type, prog: str, default: Any = None, description: str = "") -> NoReturn:
    """Print the help of an options dataclass, with the values of `default`, and exit."""
    import tyro

    extra = {} if default is None else {"default": default}
    text = description or inspect.cleandoc(kind.__doc__ or "")
    # A config's switches take true or false; a verb's are on when they are there.
    switches = tyro.conf.FlagCreatePairsOff if default is None else tyro.conf.FlagConversionOff
    # AvoidSubcommands: the flags of the algorithm that was chosen, instead of a word for each.
    style = (switches, tyro.conf.PositionalMetavarFromFieldName, tyro.conf.AvoidSubcommands)
    with contextlib.suppress(BrokenPipeError):
        tyro.cli(kind, prog=prog, description=text, args=["--help"], config=style, **extra)
    raise SystemExit(0)


def _value(flag: str, hint: Any, rest: list[str], has_value: bool) -> Any:
    """Take a flag's arguments from the front of `rest`."""
    if get_origin(hint) is tuple:
        taken = [_take(flag, rest, has_value)]
        while rest and not rest[0].startswith("--"):
            taken.append(rest.pop(0))
        return [part for word in taken for part in word.split(",") if part]
    if hint is bool:
        # `--overwrite runs/x` is a switch and a word; `--overwrite false` is a value.
        states = {"true": True, "false": False, "yes": True, "no": False}
        if rest and rest[0].lower() in states:
            return states[rest.pop(0).lower()]
        return _take(flag, rest, has_value) if has_value else True
    text = _take(flag, rest, has_value)
    return _read_yaml(flag, text) if get_origin(hint) is dict else text


def _take(flag: str, rest: list[str], has_value: bool) -> str:
    if not rest or (rest[0].startswith("--") and not has_value):
        raise ConfigError(f"{flag} needs a value")
    return rest.pop(0)


def _read_yaml(flag: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {text!r} is not plain YAML, or needs quotes: {error}") from None


def _nearest_flag(flag: str, types: Mapping[str, Any]) -> str:
    wanted = flag[2:].replace("-", "_").rpartition(".")[2]
    same = (wanted, ELSEWHERE.get(wanted))
    close = [spell(path) for path in types if path.rpartition(".")[2] in same]
    close += difflib.get_close_matches(flag, [spell(path) for path in types], 1)
    return f"did you mean '{close[0]}'?" if close else "--help lists them"


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def require_at_least(options: Any, **lowest: float) -> None:
    """Refuse a flag below its lowest value; one that is None was not given.

    Args:
        options: A verb's own options.
        lowest: For each of the flags that have one, by its field's name.

    Raises:
        UserError: names the flag and the value.
    """
    for name, bound in lowest.items():
        value = getattr(options, name)
        if value is not None and not bound <= value < float("inf"):
            raise UserError(f"{spell(name)} must be at least {bound}, not {value}")
        if name == "seed" and value is not None and value >= 2**63:  # as for the run's own
            raise UserError(f"{spell(name)} must be below 2**63, not {value}")
