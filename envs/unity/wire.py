"""Lists of agents as they are on the wire, read as a table instead of message by message.

The records of a behaviour's agents differ in few bytes: the same fields in the same order, of the
same lengths. Once one record is taken apart, its layout is a `Record`: which bytes must be equal
for another record of that length to be laid out alike, and where the numbers are. All records that
pass are then read at once, column by column. Whatever does not pass goes the general way, through
protobuf, so an odd record costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_VARINT, _BYTES, _FLOAT = 0, 2, 5  # the wire types that these messages use
_FLAGS = {8: "done", 9: "interrupted"}
_NUMBERS = {10: "ids", 14: "group_ids"}
_FLOATS = {7: "reward", 15: "group_reward"}
_MASK, _OBSERVATION = 11, 13  # fields of AgentInfoProto
_COMPRESSED, _FLOAT_DATA = 3, 4  # fields of ObservationProto


class NotPlain(Exception):  # noqa: N818 - a finding, not a failure
    """A record that is legal protobuf and not of the usual form."""


@dataclass(frozen=True)
class Record:
    """The layout of one agent's record, header included."""

    size: int
    """Bytes of a whole record."""
    checks: tuple[tuple[slice, np.ndarray, np.ndarray | None], ...]
    """Stretches of bytes, what they must be, and which bits of them count (None: all)."""
    dtype: np.dtype
    """A whole record as a structure: `present`, "mask" and "obs0", "obs1", ... where they are."""
    present: tuple[str, ...]
    """Of the columns; one that is absent is 0 in all records."""
    numbers: dict[str, np.ndarray]
    """Of those, the numbers of several bytes: what each byte's low seven bits count."""
    mask_size: int
    """Bytes of the mask, other than 0 = forbidden; 0: nothing is forbidden."""
    sizes: tuple[int, ...]
    """Floats of each observation."""
    expected: np.ndarray
    """(size,) uint8: the bytes of the layout, zero elsewhere."""
    bits: np.ndarray
    """(size,) uint8: which bits of each byte are layout."""

    @classmethod
    def of(cls, record: bytes) -> Record:
        """Take one record apart.

        Raises:
            NotPlain: it holds what can only be read the general way, such as an image.
        """
        return _Reader(record).read()

    def fits(self, rows: np.ndarray) -> np.ndarray | bool:
        """Which records are laid out like this one.

        Args:
            rows: (n, size) uint8.

        Returns:
            True for all of them, else (n,) bool.
        """
        wrong: np.ndarray | None = None
        for where, expected, bits in self.checks:
            part = rows[:, where]
            differs = part != expected if bits is None else (part & bits) != expected
            if np.count_nonzero(differs):  # for bools much quicker than any()
                bad = differs.any(axis=1)
                wrong = bad if wrong is None else wrong | bad
        return True if wrong is None else ~wrong


class Message:
    """The layout of a whole list of records, for lists that come again and again.

    Where the agents of a scene are not all laid out alike, sorting them into groups costs more than
    reading them. Here each column is one look-up over all agents; what a record lacks is looked up
    in zeros behind the message. Observations are copied in runs of agents that are laid out alike.

    Args:
        records: of each agent.
        starts: where each begins.
        mask_size: choices that a mask speaks of; one of another size forbids nothing.
    """

    def __init__(self, records: Sequence[Record], starts: Sequence[int], mask_size: int) -> None:
        self.size = size = sum(record.size for record in records)
        self.count = len(records)
        self.expected = np.concatenate([record.expected for record in records])
        self.bits = np.concatenate([record.bits for record in records])
        self.padding = bytes(max(16, mask_size))

        def places(name: str, width: int) -> np.ndarray:
            """(n, width) positions of a field's bytes, or of as many zeros."""
            found = np.empty((len(records), width), np.intp)
            for i, (record, start) in enumerate(zip(records, starts, strict=True)):
                found[i] = size + np.arange(width)
                if name in (fields := _fields(record)):
                    kind, offset = fields[name][:2]
                    known = min(kind.itemsize, width)
                    found[i, :known] = start + offset + np.arange(known)
            return found

        first = records[0]
        self.floats = np.stack([places("reward", 4), places("group_reward", 4)])
        self.flags = np.stack([places("done", 1), places("interrupted", 1)])[..., 0]
        self.numbers = np.stack([places("ids", 5), places("group_ids", 5)])
        fits = [record.mask_size == mask_size for record in records]
        self.mask = places("mask", mask_size)
        self.mask[~np.asarray(fits)] = size + np.arange(mask_size)
        self.runs: list[tuple[int, int, int]] = []  # first agent, the one after the last, start
        for i, record in enumerate(records):
            if i and record is records[i - 1]:
                self.runs[-1] = (self.runs[-1][0], i + 1, self.runs[-1][2])
            else:
                self.runs.append((i, i + 1, starts[i]))
        self.parts = [
            (i, size, begin, end, start + offset, records[begin].size)
            for begin, end, start in self.runs
            for i, size in enumerate(first.sizes)
            for offset in (_fields(records[begin])[f"obs{i}"][1],)
        ]

    def read(
        self, data: bytes, columns: tuple[np.ndarray, ...], mask: np.ndarray | None, obs: list[Any]
    ) -> bool:
        """Read a list of this size; False, and nothing is written, if it is laid out otherwise.

        Args:
            data: the list.
            columns: (2, n) each: reward and group_reward; done and interrupted; ids and group_ids.
            mask: (n, mask_size) bool, or None.
            obs: (n, size) float32 of each observation.
        """
        table = np.frombuffer(data + self.padding, np.uint8)
        if np.count_nonzero((table[: self.size] & self.bits) != self.expected):
            return False
        count = self.count
        floats, flags, numbers = columns
        floats[:, :count] = table[self.floats].view("<f4")[..., 0]
        flags[:, :count] = table[self.flags]
        numbers[:, :count] = (table[self.numbers] & 0x7F) @ _SEVEN_BITS
        if mask is not None:
            mask[:count] = table[self.mask] == 0
        for i, size, begin, end, start, stride in self.parts:
            obs[i][begin:end] = np.ndarray((end - begin, size), "<f4", data, start, (stride, 4))
        return True


def _fields(record: Record) -> Mapping[str, Any]:
    """Type and offset of each field of a record."""
    fields: Any = record.dtype.fields
    return fields


_SEVEN_BITS = 1 << 7 * np.arange(5)


class _Reader:
    """Walks through one record and notes where everything is."""

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.bits = np.full(len(record), 0xFF, np.uint8)  # which bits of each byte are layout
        self.columns: dict[str, tuple[slice, str]] = {}  # where, and as which numpy type
        self.mask: slice | None = None
        self.observations: list[slice] = []

    def read(self) -> Record:
        outer = list(self.fields(0, len(self.record)))
        if len(outer) != 1 or outer[0][:2] != (1, _BYTES):
            raise NotPlain
        seen: set[int] = set()
        for number, kind, start, end in self.fields(*outer[0][2:]):
            if number in seen and number != _OBSERVATION:
                raise NotPlain  # the last one counts: protobuf knows
            seen.add(number)
            self.note(number, kind, slice(start, end))
        return Record(
            size=len(self.record),
            checks=tuple(self.checks()),
            dtype=self.dtype(),
            present=tuple(self.columns),
            numbers={
                name: 1 << 7 * np.arange(where.stop - where.start)
                for name, (where, kind) in self.columns.items()
                if kind == "number"
            },
            mask_size=self.mask.stop - self.mask.start if self.mask is not None else 0,
            sizes=tuple((where.stop - where.start) // 4 for where in self.observations),
            expected=np.frombuffer(self.record, np.uint8) & self.bits,
            bits=self.bits,
        )

    def dtype(self) -> np.dtype:
        fields: dict[str, tuple[int, Any]] = {}
        for name, (where, kind) in self.columns.items():
            size = where.stop - where.start
            fields[name] = (where.start, (np.uint8, (size,)) if kind == "number" else kind)
        if self.mask is not None:
            size = self.mask.stop - self.mask.start
            fields["mask"] = (self.mask.start, (np.uint8, (size,)))
        for i, where in enumerate(self.observations):
            size = (where.stop - where.start) // 4
            fields[f"obs{i}"] = (where.start, ("<f4", (size,)))
        return np.dtype(
            {
                "names": list(fields),
                "formats": [form for _, form in fields.values()],
                "offsets": [offset for offset, _ in fields.values()],
                "itemsize": len(self.record),
            }
        )

    def note(self, number: int, kind: int, where: slice) -> None:
        size = where.stop - where.start
        if number in _FLOATS and kind == _FLOAT:
            self.columns[_FLOATS[number]] = where, "<f4"
            self.bits[where] = 0
        elif number in _FLAGS and kind == _VARINT and size == 1:
            self.columns[_FLAGS[number]] = where, "u1"
            self.bits[where] = 0x80  # that it is one byte is layout, what it says is not
        elif number in _NUMBERS and kind == _VARINT and size <= 5:
            self.columns[_NUMBERS[number]] = where, "number" if size > 1 else "u1"
            self.bits[where] = 0x80
        elif number == _MASK and kind == _BYTES and max(self.record[where], default=0) < 0x80:
            self.mask = where
            self.bits[where] = 0x80
        elif number == _OBSERVATION and kind == _BYTES:
            self.observations.append(self.observation(where))
        else:
            raise NotPlain

    def observation(self, where: slice) -> slice:
        floats: slice | None = None
        for number, kind, start, end in self.fields(where.start, where.stop):
            if number == _COMPRESSED:
                raise NotPlain
            if number != _FLOAT_DATA:
                continue  # shape, properties and name: all layout
            inner = list(self.fields(start, end))
            if floats is not None or kind != _BYTES or len(inner) != 1:
                raise NotPlain
            number, kind, start, end = inner[0]
            if (number, kind) != (1, _BYTES) or (end - start) % 4:
                raise NotPlain
            floats = slice(start, end)
            self.bits[floats] = 0
        if floats is None:
            raise NotPlain
        return floats

    def checks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
        """The stretches of layout; those with only a few free bytes between them are one."""
        data = np.frombuffer(self.record, np.uint8)
        places = np.flatnonzero(self.bits)
        for stretch in np.split(places, np.flatnonzero(np.diff(places) > 64) + 1):
            where = slice(int(stretch[0]), int(stretch[-1]) + 1)
            bits = self.bits[where]
            yield where, data[where] & bits, None if (bits == 0xFF).all() else bits.copy()

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Field number, wire type, and where the content begins and ends."""
        while start < end:
            tag, start = self.varint(start, end)
            kind = tag & 7
            if kind == _VARINT:
                stop = self.varint(start, end)[1]
            elif kind == _FLOAT:
                stop = start + 4
            elif kind == _BYTES:
                size, start = self.varint(start, end)
                stop = start + size
            else:
                raise NotPlain
            if stop > end:
                raise NotPlain
            yield tag >> 3, kind, start, stop
            start = stop

    def varint(self, start: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while start < end and shift < 64:
            byte = self.record[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, start
            shift += 7
        raise NotPlain


def split(data: bytes) -> tuple[list[int], list[int]]:
    """Where the records of a list begin, headers included, and where they end.

    Raises:
        NotPlain: something else than records is in the list, or a record is cut short.
    """
    starts: list[int] = []
    ends: list[int] = []
    position, total = 0, len(data)
    try:
        while position < total:
            starts.append(position)
            if data[position] != 0x0A:
                raise NotPlain
            size = data[position + 1]
            position += 2
            if size >= 0x80:
                size &= 0x7F
                shift = 7
                while (byte := data[position]) >= 0x80:
                    size |= (byte & 0x7F) << shift
                    shift += 7
                    position += 1
                size |= byte << shift
                position += 1
            position += size
            ends.append(position)
    except IndexError:
        raise NotPlain from None
    if position != total:
        raise NotPlain
    return starts, ends
