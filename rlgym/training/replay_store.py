"""A replay buffer in checkpoints: what is new is written once, what is old is linked.

A checkpoint of an off-policy run holds, besides its other files,

    replay.safetensors                where the ring stands, priorities, what it is a buffer of
    replay-000000001.safetensors ...  segments: rows in the order in which they were added
    replay-tail.safetensors           the rows since the last segment, while they are few

Segments never change: each save writes one for the rows since the save before, and links the older
ones from the checkpoint before (`checkpoint.save`). The tail is written anew each time, so that a
run which saves often does not leave thousands of small files. Segments whose rows were all
overwritten in the ring are left out, and vanish with the last checkpoint that names them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlgym.errors import CheckpointError
from rlgym.training.checkpoint import Checkpoint, Linked

SEGMENT_BYTES = 16 * 1024**2
"""Bytes of rows from which on they become a segment."""
HEADER = ("first", "count")
"""Tensors (num_envs,) of a segment: number of each slot's first row, counted from the start of the
run, and how many rows follow."""

_STATE = "replay.safetensors"
_TAIL = "replay-tail.safetensors"
_SEGMENT = re.compile(r"replay-(\d{9})\.safetensors")
_NONSENSE = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What numbers cause that no run saves, in a file that its manifest vouches for."""


class Replay(Protocol):
    """What is asked of a replay buffer (`rlgym.rollout.replay.ReplayBuffer`)."""

    @property
    def unsaved_bytes(self) -> int:
        """Bytes that `unsaved` would take."""
        ...

    def unsaved(self) -> dict[str, Tensor]:
        """Rows added since the last `mark_saved`, with what is needed to put them back."""
        ...

    def mark_saved(self) -> None:
        """Count everything that is in the ring as saved."""
        ...

    def mark_unsaved(self) -> None:
        """Count nothing as saved."""
        ...

    def load_segment(self, tensors: dict[str, Tensor]) -> None:
        """Put rows back; rows that the ring would have overwritten since are passed over."""
        ...

    def holds(self, header: dict[str, Tensor]) -> bool:
        """Whether any row of the segment with this header is still in the ring."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything but the rows."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take what `state` gave; comes before the segments."""
        ...


@dataclass(frozen=True)
class _Segment:
    file: Linked
    header: dict[str, Tensor]


class ReplayStore:
    """The segments of one replay buffer, from one checkpoint to the next.

    Used in pairs: `segments` says what a checkpoint is made of; after it was saved, `saved` takes
    note. When saving fails, `segments` gives the same again, with what was added meanwhile.

    Args:
        replay: the buffer.
        report: called with a line when segments are gone that older checkpoints held.
    """

    def __init__(self, replay: Replay, report: Callable[[str], None] | None = None) -> None:
        self._replay = replay
        self._report = report or (lambda line: print(line, file=sys.stderr))
        self._segments: dict[str, _Segment] = {}
        self._written: tuple[str, dict[str, Tensor]] | None = None

    def segments(self) -> tuple[dict[str, Linked], dict[str, dict[str, Tensor]]]:
        """Return the files to link and the tensors to write, for `checkpoint.save`."""
        held = {n: s for n, s in self._segments.items() if self._replay.holds(s.header)}
        lost = [segment.file.path for segment in held.values() if not segment.file.whole]
        if lost:  # somebody deleted the checkpoint; the rows are all here still
            self._report(f"warning: {lost[0]} is gone or cut short: writing the whole buffer anew")
            self._replay.mark_unsaved()
            held = {}
        links = {name: segment.file for name, segment in held.items()}
        tensors = {_STATE: self._replay.state()}
        self._written = None
        size = self._replay.unsaved_bytes
        if size:
            name = _TAIL if size < SEGMENT_BYTES else self._next_name()
            tensors[name] = self._replay.unsaved()
            self._written = name, _header(tensors[name])
        return links, tensors

    def saved(self, checkpoint: Checkpoint) -> None:
        """Link from this checkpoint from now on: the one before may be deleted."""
        if self._written is not None and self._written[0] != _TAIL:
            name, header = self._written
            self._segments[name] = _Segment(checkpoint.linked(name), header)
            self._replay.mark_saved()
        self._written = None
        self._segments = {
            name: _Segment(checkpoint.linked(name), segment.header)
            for name, segment in self._segments.items()
            if name in checkpoint.files
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Fill the buffer from a checkpoint, one segment at a time, oldest first.

        Raises:
            CheckpointError: it holds no buffer, one that is damaged, or that of another world or
                another size.
        """
        if _STATE not in checkpoint.files:
            raise CheckpointError(f"{checkpoint.path} holds no replay buffer: start a new run")
        self._segments = {}
        try:
            self._replay.load_state(checkpoint.tensors(_STATE))
            for name in sorted(filter(_SEGMENT.fullmatch, checkpoint.files)):
                self._segments[name] = self._load(checkpoint, name)
            if _TAIL in checkpoint.files:  # it never changes any more: a segment like the others
                self._segments[self._next_name()] = self._load(checkpoint, _TAIL)
            self._replay.mark_saved()
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        except (
            ArithmeticError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as e:
            # numbers that no run saves, in a file whose hash is right all the same
            raise CheckpointError(
                f"{checkpoint.path} holds no replay buffer that a run saved ({e!r:.100})"
            ) from None

    def _load(self, checkpoint: Checkpoint, name: str) -> _Segment:
        """Put one segment back; its rows are in memory twice until this returns."""
        tensors = checkpoint.tensors(name)
        self._replay.load_segment(tensors)
        return _Segment(checkpoint.linked(name), _header(tensors))

    def _next_name(self) -> str:
        newest = _SEGMENT.fullmatch(max(self._segments, default="replay-000000000.safetensors"))
        assert newest is not None
        return f"replay-{int(newest[1]) + 1:09d}.safetensors"


def _header(segment: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two small tensors that say which rows these are; the rows stay on the disk."""
    return {name: segment[name] for name in HEADER}
