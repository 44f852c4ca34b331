"""YAML as a person writes it: plain values, one page, and nothing that could mean another thing."""

import os
from pathlib import Path
from typing import Any

import yaml

from rlgym.errors import ConfigError
from rlgym.settings import short

MAX_FILE_BYTES = 50_000
"""A config is a page of text; a larger file is not read."""
MAX_DEPTH = 30
"""Nesting of a file; a parser takes for ever over thousands of brackets."""


class _Loader(yaml.SafeLoader):
    """Refuses, while it reads, what would take for ever and what was not meant."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):  # nested ones grow a page into gigabytes
            raise _refusal("YAML aliases are refused: write the values out", event)
        if self.depth == MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} deep: nobody wrote it by hand", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:  # PyYAML would take the last
                raise _refusal(f"'{name}' is given twice: delete one of the two", key)
            if name is not None:
                seen.add(name)
        return node


def _refusal(problem: str, where: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(None, None, problem, where.start_mark)


def parse_yaml(text: str) -> Any:
    """Return the plain values of a text: no tags that build objects, no aliases, no key twice.

    Raises:
        ConfigError: it is not plain YAML; says the line where there is one.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{line}{' '.join(str(problem).split())}") from None
    except ValueError as error:  # an impossible date, for one
        raise ConfigError(str(error)) from None


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings that a YAML file holds, or that a run's folder does.

    Raises:
        ConfigError: the file is absent, is larger than a page, or is no mapping in plain YAML.
    """
    file = Path(path)
    if file.is_dir() and (file / "config.yaml").is_file():  # a run
        file /= "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_FILE_BYTES} bytes, so it is not a config")
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not a text file in UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    if values is None:  # an empty file, or one of comments, changes nothing
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected settings such as 'num_envs: 8', found {short(values)}")
    return values
