"""Unity's message types, made at run time from the descriptors inside Unity's own package.

The modules that protoc once generated for `mlagents-envs` do not run on today's protobuf, and newly
generated ones would stop running with some later one. A descriptor has no such limit: each file's
is read as text and goes into a pool of our own, so no other copy in the process is touched.

The fast twin of the types is the same on the wire, with some fields read as the bytes that they
are: a batch of floats then becomes one numpy array without a Python object for each float.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from rlgym.errors import MissingExtraError, WorldError

PACKAGE = "communicator_objects"
"""Name space of all messages."""

METHOD = "/communicator_objects.UnityToExternalProto/Exchange"
"""The one call of the protocol: the player sends its state and receives actions."""

_AS_BYTES = {
    "ObservationProto.FloatData": ("data",),
    "AgentInfoProto": ("action_mask",),
    "AgentActionProto": ("vector_actions_deprecated", "continuous_actions"),
    # whole lists of agents, which the codec takes apart by itself
    "UnityRLOutputProto.AgentInfosEntry": ("value",),
    "UnityRLInputProto.AgentActionsEntry": ("value",),
}
"""Fields of the fast twin that are declared as bytes: packed numbers and nested messages are on the
wire as a length and that many bytes, and so are bytes."""


def package_folder() -> Path:
    """Where `mlagents_envs` is installed; nothing of it is imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = importlib.util.find_spec("mlagents_envs")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "Unity's package is not installed: pip install mlagents-envs==0.28.0"
        )
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def descriptors() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The description of each generated module, by module name (`agent_info_pb2`).

    Raises:
        WorldError: a module holds no description, so this is not a known release of the package.
    """
    folder = package_folder() / PACKAGE
    found = {}
    for file in sorted(folder.glob("*_pb2.py")):
        serialized = _serialized(file.read_text("utf-8"))
        if serialized is None:
            raise WorldError(
                f"{file} describes no messages: pip install --force-reinstall mlagents-envs==0.28.0"
            )
        found[file.stem] = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    return found


def _serialized(source: str) -> bytes | None:
    """The serialized descriptor that stands in a generated module, of whichever protoc."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            value: Any = node.value
            if isinstance(value, ast.Call):  # _b('...'): text that stands for bytes
                value = value.args[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            value = node.args[0]
        else:
            continue
        content = getattr(value, "value", None)
        if isinstance(content, str):
            return content.encode("latin-1")
        if isinstance(content, bytes):
            return content
    return None


@cache
def pool(fast: bool) -> descriptor_pool.DescriptorPool:
    """The private pool with all of Unity's files, or that of the fast twin; each is made once."""
    made = descriptor_pool.DescriptorPool()
    files = {file.name: file for file in descriptors().values()}
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        file = files[name]
        for needed in file.dependency:
            add(needed)
        made.Add(_twin(file) if fast else file)

    for name in files:
        add(name)
    return made


def _twin(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """A copy of `file` in which the fields of `_AS_BYTES` are bytes."""
    copy = descriptor_pb2.FileDescriptorProto()
    copy.CopyFrom(file)
    field_type = descriptor_pb2.FieldDescriptorProto

    def walk(messages: Any, prefix: str) -> None:
        for message in messages:
            name = prefix + message.name
            for entry in message.field:
                if entry.name in _AS_BYTES.get(name, ()):
                    entry.type = field_type.TYPE_BYTES
                    entry.label = field_type.LABEL_OPTIONAL
                    entry.ClearField("type_name")
                    entry.ClearField("options")  # `packed` is said of numbers only
            walk(message.nested_type, f"{name}.")

    walk(copy.message_type, "")
    return copy


def message(name: str) -> type[Any]:
    """The class of a message, such as `UnityMessageProto` or `ObservationProto.FloatData`.

    It is the very class that `compat.load()` gives, too.
    """
    return message_factory.GetMessageClass(pool(False).FindMessageTypeByName(f"{PACKAGE}.{name}"))


def fast_message(name: str) -> type[Any]:
    """The twin's class of a message, in which the fields of `_AS_BYTES` are bytes."""
    return message_factory.GetMessageClass(pool(True).FindMessageTypeByName(f"{PACKAGE}.{name}"))
