"""Tensors out of a file of `torch.save` without unpickling it.

Such a file is a zip: `NAME/data.pkl` says what the tensors are called and how they lie, and
`NAME/data/0`, `NAME/data/1`, ... hold their bytes
(https://docs.pytorch.org/docs/stable/notes/serialization.html). The pickle is a little program for
a stack machine. Here it is walked with `pickletools`, which only splits it into instructions, and
the few instructions that a dict of tensors needs are acted out on inert values: the only two
functions that the program may name are those that stand for "a dict" and "a tensor", and neither is
looked up anywhere. Whatever else it asks for is refused by name.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from rlgym.errors import CheckpointError
from rlgym.settings import short

MAX_PICKLE_BYTES = 2 * 1024**2
"""A description of some ten thousand tensors; a network has some tens."""
MAX_MEMBERS = 20_000
"""Entries of one archive; reading their names takes time and memory too."""
MAX_SHARING = 8
"""Bytes of all tensors over bytes of the file; SB3 lists a shared image encoder three times."""
MAX_DIMS = 8
"""Axes of one tensor."""

_STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": "<f4",
        "Double": "<f8",
        "Half": "<f2",
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "|i1",
        "Byte": "|u1",
    }.items()
}
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"


@dataclass(frozen=True)
class _Name:
    """A global that the pickle mentions; it is never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    """Bytes of one member of the archive, as a flat array."""

    values: np.ndarray


class _Mark:
    """Place on the stack from which a tuple or a run of items is taken."""


_MARK = _Mark()


def read_tensors(content: bytes, source: str) -> dict[str, Tensor]:
    """Read what `torch.save(dict_of_tensors)` wrote, on the CPU.

    Args:
        content: the file's bytes.
        source: what to call it in errors.

    Raises:
        CheckpointError: it is not such a file, is damaged, or holds more than tensors.
    """
    if content[:4] != b"PK\x03\x04":
        raise CheckpointError(
            f"{source} is not a zip file of torch.save: load it where it came from and save it "
            "again with PyTorch 1.6 or newer"
        )
    archive = open_zip(io.BytesIO(content), source)
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError(f"{source} has no data.pkl in it: torch.save did not make it")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        order = read_member(archive, f"{root}byteorder", 64, source)
        if order != b"little":
            raise CheckpointError(f"{source} is in byte order {short(order)}: save it on a PC")
    program = read_member(archive, pickles[0], MAX_PICKLE_BYTES, source)
    return _Walk(archive, f"{root}data/", source, MAX_SHARING * len(content)).run(program)


def open_zip(file: IO[bytes], source: str) -> zipfile.ZipFile:
    """Open a zip file whose members can be read without surprise.

    Raises:
        CheckpointError: it is no zip file, or has doubled or far too many members.
    """
    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
        total = sum(info.compress_size for info in archive.infolist())
        room = file.seek(0, io.SEEK_END)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        # the list of members stands at the end of a zip file, so a cut one has none
        raise CheckpointError(
            f"{source} is not a zip file, or not a whole one ({_line(error)}): copy it again"
        ) from None
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names) or total > room:
        # members that lie over each other make gigabytes out of a small file
        raise CheckpointError(f"{source} lists the same bytes twice, or too much: it is no model")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int, source: str) -> bytes:
    """Read one member that is stored as it is; a compressed one could grow without bound.

    Raises:
        CheckpointError: it is absent, compressed, encrypted, damaged, or has more than `limit`
            bytes.
    """
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(f"{source} has no {short(name)} in it: it is not complete") from None
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise CheckpointError(
            f"{source}: {short(name)} is compressed or encrypted, and a model never is: "
            "pack its members again without compression (zip -0)"
        )
    if info.file_size > limit:
        raise CheckpointError(
            f"{source}: {short(name)} claims {info.file_size:,} bytes, more than the {limit:,} "
            "that it can have"
        )
    try:
        content = archive.read(info)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{source}: {short(name)} is damaged ({_line(error)})") from None
    if len(content) != info.file_size:
        raise CheckpointError(f"{source}: {short(name)} is cut short: copy the file again")
    return content


class _Walk:
    """Acts out the pickle of a dict of tensors on values that can do nothing."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, source: str, room: int) -> None:
        self.room = room  # bytes that tensors may still take
        self.archive = archive
        self.folder = folder
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def run(self, program: bytes) -> dict[str, Tensor]:
        """Walk to the end and return the dict.

        Raises:
            CheckpointError: names the instruction or the function that no dict of tensors needs.
        """
        stopped = False
        try:
            for operation, argument, _ in pickletools.genops(program):
                stopped = operation.name == "STOP"
                if not stopped:
                    self._step(operation.name, argument)
            result = self.stack.pop()
        except CheckpointError:
            raise
        except Exception as error:  # a stranger's program may be wrong in any way
            raise self._refusal(f"its pickle is damaged ({_line(error)})") from None
        if not stopped or self.stack or not isinstance(result, dict):
            raise self._refusal("its pickle does not end with one dict")
        for name, value in result.items():
            if not isinstance(value, Tensor):
                raise self._refusal(f"entry {short(name)} is not a tensor")
        return result

    def _step(self, operation: str, argument: Any) -> None:
        if operation in _PUSHED:
            self.stack.append(_PUSHED[operation])
        elif operation in _LITERALS:
            self.stack.append(argument)
        elif operation in _EMPTY:
            self.stack.append(_EMPTY[operation]())
        elif operation in _TUPLES:
            size = _TUPLES[operation]
            parts = self.stack[-size:]
            if len(parts) != size:
                raise self._refusal("its pickle takes more than it has")
            self.stack[-size:] = [tuple(parts)]
        elif operation == "TUPLE":
            self.stack.append(tuple(self._to_mark()))
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif operation == "GLOBAL":
            self.stack.append(self._name(argument))
        elif operation == "BINPERSID":
            self.stack.append(self._storage(self.stack.pop()))
        elif operation == "REDUCE":
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(self._call(function, arguments))
        elif operation == "SETITEM":
            value, key = self.stack.pop(), self.stack.pop()
            self._set_items([key, value])
        elif operation == "SETITEMS":
            self._set_items(self._to_mark())
        elif operation == "BUILD":  # a state_dict carries version numbers of modules: not needed
            state = self.stack.pop()
            if not isinstance(state, dict) or not isinstance(self.stack[-1], dict):
                raise self._refusal("its pickle sets the state of something that is not a dict")
        elif operation != "PROTO":
            raise self._refusal(
                f"its pickle holds the instruction {operation}, and a dict of tensors needs none "
                "such: nothing of it was run"
            )

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _name(self, argument: str) -> _Name:
        if argument not in (_DICT, _TENSOR) and argument not in _STORAGES:
            raise self._refusal(
                f"its pickle names {short(argument.replace(' ', '.'))}, and only tensors are read: "
                "nothing of it was run"
            )
        return _Name(argument)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.text if isinstance(function, _Name) else ""
        size = len(arguments) if isinstance(arguments, tuple) else -1
        if name == _DICT and size == 0:
            return {}
        if name == _TENSOR and size == 6:
            return self._tensor(*arguments[:4])
        raise self._refusal("its pickle calls something that makes no tensor: nothing was run")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise self._refusal("its pickle fills something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self._refusal("its pickle has keys that are not names")
            target[key] = value

    def _storage(self, persistent: Any) -> _Storage:
        kind = persistent[1] if isinstance(persistent, tuple) and len(persistent) == 5 else None
        if not isinstance(kind, _Name) or kind.text not in _STORAGES or persistent[0] != "storage":
            raise self._refusal("its pickle refers to something that is not a tensor's storage")
        _, _, key, _, count = persistent
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 9):
            # not shown when it is no text: tuples of tuples can print as gigabytes
            what = short(key) if isinstance(key, str) else "without a name"
            raise self._refusal(f"storage {what} cannot be one of torch.save's")
        dtype = np.dtype(_STORAGES[kind.text])
        if key not in self.storages:
            name = f"{self.folder}{key}"
            content = read_member(self.archive, name, 2**62, self.source)
            if len(content) % dtype.itemsize:
                raise self._refusal(f"storage {key} holds half a number")
            self.storages[key] = _Storage(np.frombuffer(content, dtype))
        storage = self.storages[key]
        if storage.values.dtype != dtype or type(count) is not int or len(storage.values) != count:
            claim = f"{count:,}" if type(count) is int else "something else than"
            raise self._refusal(
                f"storage {key} claims {claim} numbers and holds {len(storage.values):,}"
            )
        return storage

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        sizes = (*shape, *stride, offset) if isinstance(stride, tuple) else (-1,)
        if not isinstance(storage, _Storage) or any(
            type(size) is not int or not 0 <= size < 2**40 for size in sizes
        ):
            raise self._refusal("a tensor's shape is not one that a tensor can have")
        flat, count = storage.values, math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        # a stride of 0 would make any shape out of one number
        if len(shape) > MAX_DIMS or count > len(flat) or (count and last >= len(flat)):
            raise self._refusal(
                f"a tensor claims the shape {short(list(shape))}, and its storage holds "
                f"{len(flat)} numbers"
            )
        self.room -= count * flat.itemsize
        if self.room < 0:
            raise self._refusal("its tensors share their bytes too often to be a network's")
        if not count:
            return torch.empty(shape)
        steps = [step * flat.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
        return torch.from_numpy(np.array(view, dtype=flat.dtype.newbyteorder("=")))

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {reason}")


_PUSHED = {"MARK": _MARK, "NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__
