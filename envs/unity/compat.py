"""Unity's own Python package, `mlagents_envs`, on today's Python and protobuf.

    UnityEnvironment = compat.load().environment.UnityEnvironment

Release 0.28.0 is the newest one that pip gives on Python 3.11 and later, and it does not import
there: protobuf refuses its generated modules, and Python 3.12 no longer has `distutils`. Both are
mended by one import hook, which answers for modules of `mlagents_envs` and for nothing else. No
generated code runs: the message classes are made from the descriptors in its text.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from google.protobuf import message_factory
from google.protobuf.internal import enum_type_wrapper

from rlgym.envs.unity import messages
from rlgym.errors import WorldError

_GENERATED = f"mlagents_envs.{messages.PACKAGE}."
_NEEDS_DISTUTILS = "mlagents_envs.environment"
_MODULES = ("base_env", "environment", "exception", "rpc_utils", "side_channel")


def load() -> ModuleType:
    """Import Unity's package and return it.

    Returns:
        `mlagents_envs`, with its modules base_env, environment, exception, rpc_utils and
        side_channel imported.

    Raises:
        MissingExtraError: it is not installed.
        WorldError: it was imported before, without the hook, and broke on the way.
    """
    messages.package_folder()
    install()
    try:
        for name in _MODULES:
            importlib.import_module(f"mlagents_envs.{name}")
    except (ImportError, TypeError) as error:
        raise WorldError(
            f"mlagents_envs does not import ({type(error).__name__}: {error}): "
            "pip install --force-reinstall mlagents-envs==0.28.0"
        ) from error
    return sys.modules["mlagents_envs"]


def install() -> None:
    """Put the hook in place, once; from then on `import mlagents_envs...` works by itself."""
    if not any(isinstance(finder, UnityFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, UnityFinder())


class StrictVersion:
    """The one thing that `mlagents_envs` wants of `distutils`: a version's numbers.

    Args:
        text: "1.5.0", or "1.5".

    Raises:
        ValueError: `text` is not numbers with points between them.
    """

    def __init__(self, text: str) -> None:
        numbers = [int(part) for part in text.strip().split(".")]
        if not 2 <= len(numbers) <= 3:
            raise ValueError(f"invalid version number '{text}'")
        self.version = (*numbers, 0)[:3]


class UnityFinder(MetaPathFinder):
    """Answers for the modules of `mlagents_envs` that would not import, and for no others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(_GENERATED) and fullname.endswith("_pb2"):
            return ModuleSpec(fullname, _MessageLoader())
        if fullname == _NEEDS_DISTUTILS:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None:
                spec.loader = _MendedLoader(fullname, spec.origin)
            return spec
        return None


class _MessageLoader(Loader):
    """Fills a generated module from its descriptor instead of running it."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        stem = module.__name__.removeprefix(_GENERATED)
        if stem not in messages.descriptors():
            raise ModuleNotFoundError(f"No module named '{module.__name__}'", name=module.__name__)
        file = messages.pool(False).FindFileByName(messages.descriptors()[stem].name)
        content: dict[str, Any] = {"DESCRIPTOR": file}
        for name, descriptor in file.message_types_by_name.items():
            made = message_factory.GetMessageClass(descriptor)
            made.__module__ = module.__name__  # stock code sends messages through a pickling pipe
            content[name] = made
        for name, descriptor in file.enum_types_by_name.items():
            content[name] = enum_type_wrapper.EnumTypeWrapper(descriptor)
            content.update((value.name, value.number) for value in descriptor.values)
        vars(module).update(content)


class _MendedLoader(SourceFileLoader):
    """Loads a module with `distutils.version` replaced by this one."""

    def get_code(self, fullname: str) -> CodeType:
        # all of get_code: the inherited one would take the .pyc that pip has made of the original
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "distutils.version":
                node.module = __name__
        return self.source_to_code(tree, path)  # type: ignore[arg-type]
