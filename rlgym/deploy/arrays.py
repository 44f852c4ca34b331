"""Arrays out of an .npz that a stranger may have made: plain numbers, of bounded size."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np

from .errors import BundleError

MAX_ARRAYS = 20_000
MAX_UNPACKED = 512 << 20
"""Bytes of all arrays of a file together."""
MAX_RATIO = 1100
"""Unpacked over packed size; deflate cannot do better than 1032, so a larger one is a lie."""
MAX_DIRECTORY = 4 << 20
"""Bytes of the list of members at the end of a zip."""
_KINDS = "biuf"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END, _END_SIZE, _ZIP64 = b"PK\x05\x06", 22, b"PK\x06\x07"


def read_arrays(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz without pickles, and without trusting any size that it states.

    Raises:
        BundleError: names the file; it is no such archive, holds objects or text, or unpacks to
            more than `MAX_UNPACKED`.
    """
    try:
        check_directory(io.BytesIO(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise ValueError(f"{len(members)} arrays")
            if sum(member.file_size for member in members) > MAX_UNPACKED:
                raise ValueError(f"it unpacks to more than {MAX_UNPACKED >> 20} MiB")
            found: dict[str, np.ndarray] = {}
            for member in members:
                check_member(member, MAX_RATIO)
                key = member.filename.removesuffix(".npy")
                if key in found or key == member.filename:
                    raise ValueError(f"member {member.filename!r} is no array, or there twice")
                with archive.open(member) as stream:
                    found[key] = _array(stream.read(member.file_size + 1), key)
            return found
    except Exception as error:  # zlib's, struct's and zipfile's are no common family
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise BundleError(
            f"{name} holds no plain arrays ({said}): export the policy again"
        ) from None


def check_directory(file: io.BufferedIOBase) -> None:
    """Look at a zip's list of members before `zipfile` reads it whole.

    Raises:
        ValueError: there is none at the very end, or it is larger than any bundle's.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_SIZE - 20))
    tail = file.read()
    end = tail[-_END_SIZE:]
    if not end.startswith(_END) or tail[:-_END_SIZE].startswith(_ZIP64):
        raise ValueError("no zip, a torn one, or one with something behind its end")
    length = int.from_bytes(end[12:16], "little")
    if length > min(MAX_DIRECTORY, size):
        raise ValueError(f"its list of members has {length:,} bytes")


def check_member(member: zipfile.ZipInfo, max_ratio: int) -> None:
    """Refuse a member that is encrypted, packed in an unusual way, or a bomb.

    Raises:
        ValueError: names it.
    """
    if member.flag_bits & 0x1:
        raise ValueError(f"member {member.filename!r} is encrypted: bundles are not")
    if member.compress_type not in _METHODS:
        raise ValueError(f"member {member.filename!r} is packed in another way than deflate")
    if member.file_size > max_ratio * max(member.compress_size, 1):
        raise ValueError(f"member {member.filename!r} unpacks to {member.file_size:,} bytes")


def _array(data: bytes, name: str) -> np.ndarray:
    """Parse an .npy whose header claims exactly the data that follow."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"array '{name}' is of version {version}")
    shape, fortran, dtype = readers[version](stream)
    rest = data[stream.tell() :]
    if dtype.kind not in _KINDS or dtype.names or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"array '{name}' holds objects, or other data than its header says")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C").copy()
