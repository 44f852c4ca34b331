"""Reading a bundle, a folder or a zip, without trusting it.

Names, sizes and kinds of all files are checked before the first one is read, hashes before a file
is used. Nothing that a bundle holds is ever run, compiled, unpickled or imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import check_directory, check_member, read_arrays
from .errors import BundleError, DeployError
from .schema import fault_of, manifest_schema

FORMAT = "rlpolicy"
VERSION = 1
MANIFEST = "manifest.json"
GRAPH, ONNX = "policy.npz", "policy.onnx"
GOLDEN, MOTION = "golden.npz", "motion.npz"
MAX_FILES = 200
MAX_BYTES = 1 << 30
"""Of all files together, unpacked."""
MAX_MANIFEST = 4 << 20
MAX_RATIO = 200
"""Unpacked over packed size beyond which a member is taken for a bomb."""
MAX_DIGITS = 15
"""Of a whole number in a manifest: more are not exact in every language."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,3}")


class Bundle:
    """An opened bundle whose names, sizes and hashes have been checked.

    Attributes:
        path: where it lies.
        manifest: see docs/bundle.md.
    """

    def __init__(self, path: str | Path) -> None:
        """Check the whole bundle, hashes included.

        Raises:
            BundleError: says what is wrong with it.
        """
        self.path = Path(path)
        with _opened(self.path) as source:
            sizes = source.sizes()
            _check_names(sizes)
            if MANIFEST not in sizes:
                raise BundleError(
                    f"{path} has no {MANIFEST}, so it is no bundle: rlgym export makes one"
                )
            if sizes[MANIFEST] > MAX_MANIFEST:
                raise BundleError(f"{MANIFEST} has {sizes[MANIFEST]:,} bytes, so it is no manifest")
            self.manifest = read_manifest(source.read(MANIFEST, MAX_MANIFEST))
            self._check_files(source, sizes)

    def read(self, name: str) -> bytes:
        """A file's bytes, checked once more against its hash.

        Raises:
            BundleError: there is no such file, or it has changed.
        """
        files = self.manifest["files"]
        if name not in files:
            raise BundleError(f"{self.path} holds no {name}; it has {', '.join(sorted(files))}")
        with _opened(self.path) as source:
            data = source.read(name, files[name]["bytes"])
        self._check_hash(name, data)
        return data

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz in the bundle; see `read_arrays`."""
        return read_arrays(self.read(name), name)

    def _check_files(self, source: Any, sizes: dict[str, int]) -> None:
        files = self.manifest["files"]
        missing = sorted(set(files) - set(sizes))
        if missing:
            raise BundleError(
                f"{self.path} lacks {', '.join(missing)}: copy the whole bundle again"
            )
        strange = sorted(set(sizes) - set(files) - {MANIFEST})
        if strange:
            raise BundleError(
                f"{self.path} holds files that its manifest does not name: {', '.join(strange[:5])}"
            )
        for name, entry in files.items():
            if sizes[name] != entry["bytes"]:
                raise BundleError(
                    f"{name} has {sizes[name]:,} bytes, the manifest says {entry['bytes']:,}: "
                    "copy the bundle again"
                )
            self._check_hash(name, source.read(name, entry["bytes"]))

    def _check_hash(self, name: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]["sha256"]:
            raise BundleError(
                f"{name} is not what was exported (its SHA-256 differs): copy the bundle again, or "
                "export it anew"
            )


def read_manifest(data: bytes) -> dict[str, Any]:
    """Parse a manifest and check the parts that everything here relies on.

    Raises:
        BundleError: it is no manifest, or of a version that this rlgym does not know.
    """
    try:
        manifest = json.loads(
            data.decode("utf-8"),
            parse_constant=_no_constants,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_no_twins,
        )
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise BundleError(f"{MANIFEST} is not JSON: {said}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{MANIFEST} does not describe a policy: its format is not '{FORMAT}'")
    if manifest.get("version") != VERSION:
        raise BundleError(
            f"the bundle is of version {manifest.get('version')!a:.40}, this rlgym reads "
            f"{VERSION}: update one of the two"
        )
    fault = fault_of(manifest, manifest_schema())
    if fault:
        raise BundleError(f"{MANIFEST}: {fault}: export the policy again")
    return manifest


def finite(value: Any, what: str) -> float:
    """A number out of a manifest.

    Raises:
        BundleError: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BundleError(f"{what} is {value!r} in the manifest, and must be a number")
    return float(value)


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"{text[:40]} is too large a number")
    return float(text)


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an entry is there twice")
    return found


# ----------------------------------------------------------------------------- where files lie


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        seen = 0
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(folder, name)
                mode = path.lstat().st_mode
                label = path.relative_to(self.path).as_posix()
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise BundleError(f"{label} is a link or a device: a bundle has plain files")
                if stat.S_ISREG(mode):
                    found[label] = path.lstat().st_size
                seen += 1
                if seen > 2 * MAX_FILES or len(found) > MAX_FILES:
                    raise BundleError(
                        f"{self.path} has more than {MAX_FILES} files: it is no bundle"
                    )
        return found

    def read(self, name: str, limit: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                return file.read(limit + 1)
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read ({error.strerror})") from None


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        members = self.archive.infolist()
        if len(members) > 2 * MAX_FILES:
            raise BundleError(f"the bundle has more than {MAX_FILES} members: it is none of ours")
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir() and kind in (0, stat.S_IFDIR) and member.file_size == 0:
                _check_names({member.filename.rstrip("/"): 0})  # other programs write folders too
                continue
            if member.is_dir() or kind not in (0, stat.S_IFREG):
                raise BundleError(f"member {member.filename!r} is no plain file")
            if member.filename in found:
                raise BundleError(f"member {member.filename!r} is there twice")
            check_member(member, MAX_RATIO)
            found[member.filename] = member.file_size
        return found

    def read(self, name: str, limit: int) -> bytes:
        with self.archive.open(name) as file:
            return file.read(limit + 1)  # one more than it may have: a header can lie


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.is_dir():
        yield _Folder(path)
        return
    if not path.is_file():
        raise BundleError(f"{path}: there is no such bundle")
    try:
        with path.open("rb") as file:
            check_directory(file)
            with zipfile.ZipFile(file) as archive:
                yield _Zip(archive)
    except DeployError:
        raise
    except Exception as error:  # zlib's, struct's and zipfile's are no common family
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise BundleError(f"{path} is no bundle, or a torn one ({said})") from None


def _check_names(sizes: dict[str, int]) -> None:
    for name in sizes:
        parts = name.split("/")
        bad = any(part.endswith(".") or _RESERVED.fullmatch(part) for part in parts)
        if bad or not _NAME.fullmatch(name) or len(name) > 200:
            raise BundleError(f"{name!r} is no name for a file of a bundle")
    lower = [name.lower() for name in sizes]
    if len(set(lower)) != len(lower):
        raise BundleError("two files of the bundle have names that some systems hold to be equal")
    if sum(sizes.values()) > MAX_BYTES:
        raise BundleError(f"the bundle unpacks to more than {MAX_BYTES >> 20} MiB")
