"""One run folder, one process that trains into it: two would delete each other's checkpoints.

The lock is the operating system's, on the file `run.lock`; it ends with the process, however that
ends, so a lock that a crash left behind is free. What the file says, who holds it, is for people.
A disk that has no locks (some network disks) is used without one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rlgym.errors import UserError
from rlgym.training.folder import LOCK, require_plain

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_FAR = 2**30  # Windows lets no one read what is locked: a byte far behind the text is


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from training into the folder; it is made where it is missing.

    Whoever trains comes through here before anything is written.

    Raises:
        UserError: another run is going on there, a file of it is a link, or the disk refuses.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_plain(folder)
        file = _take(folder / LOCK)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): make it so, or train into another "
            "folder (rlgym train --run-dir)"
        ) from None
    try:
        yield
    finally:
        _release(file, folder / LOCK)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing came of the run, not even its settings


def _take(path: Path) -> BinaryIO:
    """Open the file, lock it, and write down who we are."""
    while True:
        file = open(path, "a+b", opener=_open_no_link)  # noqa: SIM115
        try:
            _lock(file)
            if not _is_same(file, path):  # whoever held it deleted it just now
                file.close()
                continue
            file.truncate(0)
            owner = {
                "pid": os.getpid(),
                "host": platform.node(),
                "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            file.write(json.dumps(owner).encode())
            file.flush()
        except BaseException:
            file.close()
            raise
        return file


def _open_no_link(path: str, flags: int) -> int:
    """As `open` does, but never through a link that was put there just now (POSIX)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _lock(file: BinaryIO) -> None:
    """Lock the file without waiting.

    Raises:
        UserError: another process has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise UserError(_refusal(Path(file.name), file)) from None


def _refusal(path: Path, file: BinaryIO) -> str:
    file.seek(0)
    try:
        owner = json.loads(file.read(4096))
        who = f"process {int(owner['pid'])} on {owner['host']!s:.80} since {owner['since']!s:.20}"
    except (ValueError, TypeError, KeyError, RecursionError):
        who = "another process"
    return (
        f"{path.parent} is being trained by {who}: stop that one first, or train into another "
        "folder (rlgym train --run-dir)"
    )


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _release(file: BinaryIO, path: Path) -> None:
    """Delete the file and unlock it; a POSIX lock must not end first, Windows wants it closed."""
    with contextlib.suppress(OSError):
        path.unlink()
    file.close()
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            path.unlink()  # fails where the next one has opened it already, as it should
