"""Checkpoints that a crash cannot tear and that run no code: safetensors, JSON and hashes.

A run folder holds them so:

    checkpoints/step-000012345/     complete, or it does not have this name
        model.safetensors ...       tensors
        state.json ...              plain values
        manifest.json               size and SHA-256 of each of the files, written last
    latest.json, best.json          small pointers for people and tools

Saving writes into `step-N.tmp-PID`, flushes every file and the folder to the disk, renames the
folder, flushes its parent, and only then deletes what is too old. At whichever instant the machine
stops, the newest folder whose manifest verifies is a whole checkpoint. What does not verify is
reported and left for the person to look at.

A file that an older checkpoint holds already, and that never changes, may be linked instead of
written: one file on the disk with a name in each folder, gone when the last of them is deleted.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from rlgym.errors import CheckpointError
from rlgym.settings import short
from rlgym.training.tensor_file import TensorFile

FORMAT = "rlgym-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 256 * 1024**2
"""Bound on a JSON file that is read; larger things are tensors."""

_STEP = re.compile(r"step-(\d{1,15})(?:\.(\d{1,6}))?")
_STALE = re.compile(r"(?:step-[\d.]+|[a-z]+\.(?:json|yaml))\.(?:tmp|old)-\d+")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.(?:safetensors|json)")
_CHUNK = 1024**2
_SLACK = 1024**2  # bytes that must stay free beside what is written: folders, pointers, logs


@dataclass(frozen=True)
class Linked:
    """A file of an older checkpoint that a new one holds as well."""

    path: Path
    """Where it is."""
    bytes: int
    """Its size."""
    sha256: str
    """Its SHA-256, as the older checkpoint's manifest states it."""

    @property
    def whole(self) -> bool:
        """Whether a plain file of this size still stands there; its content is not read."""
        try:
            _check_size(self.path, self.bytes)
        except (CheckpointError, OSError):
            return False
        return True


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found whole."""

    path: Path
    """Its folder."""
    step: int
    """Environment steps when it was made."""
    files: Mapping[str, tuple[int, str]] = field(repr=False)
    """Size in bytes and SHA-256 of each file, as the manifest states them."""

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of the file `name` (with or without ".safetensors"), on the CPU.

        Raises:
            CheckpointError: there is no such file, or it is not what was saved.
        """
        name = _with_suffix(name, ".safetensors")
        try:
            return safetensors.torch.load(self._read(name))
        except SafetensorError as error:
            raise CheckpointError(f"{self.path / name}: not a safetensors file ({error})") from None

    def document(self, name: str) -> Any:
        """Return the value of the file `name` (with or without ".json").

        Raises:
            CheckpointError: as `tensors`.
        """
        name = _with_suffix(name, ".json")
        return _parse_json(self._read(name), self.path / name)

    def linked(self, name: str) -> Linked:
        """Return what `save` needs to hold the file `name` in another checkpoint too."""
        size, digest = self.files[name]
        return Linked(self.path / name, size, digest)

    def _read(self, name: str) -> bytes:
        if name not in self.files:
            known = ", ".join(sorted(self.files))
            raise CheckpointError(f"{self.path} has no {name}: it has {known}")
        if name.endswith(".json") and self.files[name][0] > MAX_JSON_BYTES:
            raise CheckpointError(f"{self.path / name}: too large for a JSON file")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path / name}: {error.strerror}") from None
        if (len(content), hashlib.sha256(content).hexdigest()) != self.files[name]:
            raise CheckpointError(f"{self.path / name} was changed after it was saved")
        return content


def save(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Mapping[str, Any]],
    documents: Mapping[str, Any],
    keep: int = 3,
    links: Mapping[str, Linked] | None = None,
) -> Checkpoint:
    """Save a checkpoint and return it; then delete the oldest beyond `keep`, but never the best.

    Args:
        folder: The run's folder.
        step: Environment steps so far; the checkpoint is named after it.
        tensors: For each file name, named tensors or numeric numpy arrays of any device.
        documents: For each file name, a value that JSON can hold.
        keep: How many of the newest complete checkpoints stay.
        links: For each file name, a file of an older checkpoint to hold as well: a hard link where
            the disk has them, else a copy. Neither is read to be hashed.

    Raises:
        CheckpointError: the disk is full or refuses, or a file to link is gone or of another size;
            everything saved before is intact.
    """
    links = links or {}
    contents: dict[str, TensorFile | bytes] = {
        _with_suffix(name, ".safetensors"): TensorFile(named) for name, named in tensors.items()
    }
    for name, value in documents.items():
        contents[_with_suffix(name, ".json")] = json.dumps(value, indent=1).encode()
    for name in (*contents, *links):
        if not _FILE.fullmatch(name) or name == MANIFEST or (name in contents and name in links):
            raise CheckpointError(f"'{name}' cannot name a file of a checkpoint")
    folder = Path(folder)
    store = folder / "checkpoints"
    checkpoint = None
    try:
        store.mkdir(parents=True, exist_ok=True)
        _sweep(folder, store)
        checkpoint = _write(store, step, contents, links)
        _flush_folder(store)
        pointer = {"checkpoint": checkpoint.path.name, "step": step}
        _write_pointer(folder / "latest.json", pointer)
        _delete_old(folder, store, checkpoint, keep)
    except OSError as error:
        happened = (
            "was not saved" if checkpoint is None else "was saved, but what follows a save failed"
        )
        raise CheckpointError(
            f"step {step} {happened} in {store}: {error.strerror or error}; what was saved before "
            f"is intact: free some space or make the folder writable"
        ) from error
    return checkpoint


def newest(
    folder: str | os.PathLike[str],
    report: Callable[[str], None] | None = None,
    needed: Container[str] | None = None,
) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, None when none was ever saved.

    Args:
        folder: The run's folder.
        report: Called with a line for each newer one that does not verify (default: stderr).
        needed: As `read` takes it.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
    """
    broken: list[str] = []
    for path in _folders(Path(folder) / "checkpoints"):
        try:
            checkpoint = read(path, needed)
        except CheckpointError as error:
            broken.append(str(error))
            continue
        for line in broken:
            (report or _report)(f"{line}; using {path.name} instead")
        return checkpoint
    if broken:
        raise CheckpointError(f"no checkpoint in {folder} can be used: {'; '.join(broken)}")
    return None


def best(folder: str | os.PathLike[str], needed: Container[str] | None = None) -> Checkpoint | None:
    """Return the checkpoint that `mark_best` named, None when none was.

    Args:
        folder: The run's folder.
        needed: As `read` takes it.

    Raises:
        CheckpointError: it is named but cannot be used.
    """
    name = _best_name(Path(folder))
    if name is None:
        return None
    try:
        return read(Path(folder) / "checkpoints" / name, needed)
    except CheckpointError as error:
        raise CheckpointError(
            f"the best checkpoint: {error}; use the last one instead (--which last)"
        ) from None


def mark_best(checkpoint: Checkpoint, score: float) -> None:
    """Make `best.json` name this checkpoint, which is then kept however old it gets.

    Raises:
        CheckpointError: the disk is full or refuses; the pointer is as before.
    """
    pointer = checkpoint.path.parent.parent / "best.json"
    try:
        _write_pointer(
            pointer, {"checkpoint": checkpoint.path.name, "step": checkpoint.step, "score": score}
        )
    except OSError as error:
        raise CheckpointError(f"{pointer} was not written: {error.strerror or error}") from error


def read(path: str | os.PathLike[str], needed: Container[str] | None = None) -> Checkpoint:
    """Verify the checkpoint in this folder against its manifest: names, sizes and hashes.

    Args:
        path: Its folder.
        needed: Names of the files that will be read, when the others may be broken or gone: who
            wants a policy need not wait until a replay buffer is hashed. Default: all of them.

    Raises:
        CheckpointError: says which file is missing, cut short or changed.
    """
    path = Path(path)
    try:
        files = _read_manifest(path)
        for name, (size, digest) in files.items():
            if needed is not None and name not in needed:
                continue
            _check_size(path / name, size)
            if _hash(path / name) != digest:
                raise CheckpointError(f"{path / name} was changed after it was saved")
    except OSError as error:  # no permission, a disk that fails
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    return Checkpoint(path, _key(path)[0], files)


def _write(
    store: Path,
    step: int,
    contents: Mapping[str, TensorFile | bytes],
    links: Mapping[str, Linked],
) -> Checkpoint:
    """Write, flush, hash and rename: the order that makes a half-written checkpoint impossible."""
    final = _free_name(store, step)
    stage = store / f"{final.name}.tmp-{os.getpid()}"
    try:
        stage.mkdir()
        copies = _link(stage, links)  # only now is it known what takes room
        written = [len(c) if isinstance(c, bytes) else c.size for c in contents.values()]
        _check_space(store, sum(written) + sum(copy.bytes for copy in copies.values()))
        files = {name: (link.bytes, link.sha256) for name, link in links.items()}
        for name, link in copies.items():
            _copy(link.path, stage / name)
        for name, content in contents.items():
            files[name] = _write_file(stage / name, content)
        listed = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": listed}
        _write_file(stage / MANIFEST, json.dumps(manifest, indent=1).encode())
        _flush_folder(stage)
        os.replace(stage, final)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)  # a full disk needs the room
        raise
    return Checkpoint(final, step, files)


def _link(stage: Path, links: Mapping[str, Linked]) -> dict[str, Linked]:
    """Link what can be linked; return what must be copied: no such links here, or too many."""
    copies = {}
    for name, link in links.items():
        _check_size(link.path, link.bytes)
        try:
            os.link(link.path, stage / name)
        except (OSError, NotImplementedError):
            copies[name] = link
    return copies


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with open(target, "r+b") as file:
        os.fsync(file.fileno())


def _write_file(path: Path, content: TensorFile | bytes) -> tuple[int, str]:
    """Write and flush a new file; return its size and its SHA-256."""
    size, digest = 0, hashlib.sha256()
    with open(path, "xb") as file:
        for piece in (content,) if isinstance(content, bytes) else content:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _write_pointer(path: Path, value: Mapping[str, Any]) -> None:
    stage = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    stage.unlink(missing_ok=True)
    try:
        _write_file(stage, json.dumps(value).encode())
        os.replace(stage, path)
    except OSError:
        stage.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    """Make a rename inside the folder survive a loss of power (POSIX; Windows has no such call)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(store: Path, needed: int) -> None:
    free = shutil.disk_usage(store).free
    needed += _SLACK
    if free < needed:
        raise OSError(
            f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free on the disk"
        )


def _sweep(folder: Path, store: Path) -> None:
    """Remove what a save that was killed has left; a run has one writer, so all of it is stale."""
    for path in [*store.iterdir(), *folder.iterdir()]:
        if _STALE.fullmatch(path.name):
            _remove(path)


def _delete_old(folder: Path, store: Path, newest_one: Checkpoint, keep: int) -> None:
    """Delete complete checkpoints beyond `keep`; the new, the best and the broken ones stay."""
    try:
        spared = {newest_one.path.name, _best_name(folder)}
    except CheckpointError:
        return  # an unreadable best.json: whichever it meant must not be lost
    complete = [path for path in _folders(store) if _looks_complete(path)]
    for path in complete[max(keep, 1) :]:
        if path.name not in spared:
            doomed = path.with_name(f"{path.name}.old-{os.getpid()}")
            os.replace(path, doomed)  # half deleted, it must not look like a broken checkpoint
            _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _best_name(folder: Path) -> str | None:
    pointer = folder / "best.json"
    if not pointer.is_file():
        return None
    value = _parse_json(_read_small(pointer), pointer)
    name = value.get("checkpoint") if isinstance(value, dict) else None
    if not isinstance(name, str) or not _STEP.fullmatch(name):
        raise CheckpointError(
            f"{pointer} names no checkpoint: delete it, or use the last one (--which last)"
        )
    return name


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    source = path / MANIFEST
    if not source.is_file():
        raise CheckpointError(f"{path} has no {MANIFEST}: it was not saved completely")
    manifest = _parse_json(_read_small(source), source)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{source} is not the manifest of a checkpoint")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is not of format version {VERSION}: read it with the rlgym that saved it"
        )
    listed = manifest.get("files")
    if manifest.get("step") != _key(path)[0] or not isinstance(listed, dict):
        raise CheckpointError(f"{source} does not belong to this folder")
    files = {}
    for name, entry in listed.items():
        known = entry if isinstance(entry, dict) else {}
        size, digest = known.get("bytes"), known.get("sha256")
        if not _FILE.fullmatch(name) or type(size) is not int or not isinstance(digest, str):
            raise CheckpointError(f"{source} lists {short(name)}, which no checkpoint holds")
        files[name] = (size, digest)
    return files


def _looks_complete(path: Path) -> bool:
    """Tell, without reading the tensors, whether all files are there in their sizes."""
    try:
        for name, (size, _) in _read_manifest(path).items():
            _check_size(path / name, size)
    except CheckpointError:
        return False
    return True


def _check_size(path: Path, size: int) -> None:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path} is missing or not a plain file")
    if path.stat().st_size != size:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes instead of {size}")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_small(path: Path) -> bytes:
    if path.stat().st_size > _CHUNK:
        raise CheckpointError(f"{path} is larger than such a file can be")
    return path.read_bytes()


def _parse_json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from None


def _folders(store: Path) -> Iterator[Path]:
    """Yield the checkpoints' folders, newest first."""
    if store.is_dir():
        found = [path for path in store.iterdir() if _STEP.fullmatch(path.name)]
        folders = [path for path in found if path.is_dir() and not path.is_symlink()]
        yield from sorted(folders, key=_key, reverse=True)


def _key(path: Path) -> tuple[int, int]:
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint's folder (step-000012345)")
    return int(match[1]), int(match[2] or 1)


def _free_name(store: Path, step: int) -> Path:
    """Return a name that is not taken: a second save of a step replaces nothing, it comes after."""
    revision = 1
    while True:
        path = store / (f"step-{step:09d}" if revision == 1 else f"step-{step:09d}.{revision}")
        if not path.exists():
            return path
        revision += 1


def _with_suffix(name: str, suffix: str) -> str:
    return name if name.endswith(suffix) else name + suffix


def _report(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)
