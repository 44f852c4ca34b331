"""Bytes of a behaviour's agents to arrays, all agents at a time.

Plain records (numbers only) are read as a table, see `wire`; all others, those with images among
them, go through protobuf, where floats and masks are bytes that numpy reads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from rlgym.envs.unity import messages
from rlgym.envs.unity.frames import Batch, BehaviorSpec, ObservationSpec
from rlgym.envs.unity.pixels import decode_images
from rlgym.envs.unity.wire import Message, NotPlain, Record, split
from rlgym.errors import WorldError

_LIST = "UnityRLOutputProto.ListAgentInfoProto"
_MAX_RECORDS = 64
"""Layouts that are remembered for one behaviour; a player with more of them is read in general."""

_MAX_MESSAGES = 64
"""Layouts of whole messages that are remembered."""
_MAX_RUNS = 12
"""Runs of records that are alike, up to which a message is worth remembering."""


class AgentReader:
    """Reads the agents of one behaviour into arrays that it keeps.

    Args:
        player: how errors name the player.
        spec: the behaviour.
    """

    def __init__(self, player: str, spec: BehaviorSpec) -> None:
        self.player = player
        self.spec = spec
        self.records: dict[int, list[Record]] = {}
        self.num_records = 0
        self.last: Record | None = None
        self.messages: dict[int, list[Message]] = {}
        self.seen: set[tuple[int, ...]] = set()
        self.plain = not any(obs.compressed for obs in spec.observations)
        self.capacity = 0
        self.batch: Batch | None = None
        self.allocate(16)

    def allocate(self, capacity: int) -> None:
        """Make room for that many agents, if there is less."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity = max(capacity, 2 * self.capacity)
        self.batch = None
        spec = self.spec
        floats = np.zeros((2, capacity), np.float32)
        flags = np.zeros((2, capacity), np.bool_)
        numbers = np.zeros((2, capacity), np.int32)
        self.pairs = (floats, flags, numbers)
        names = ("reward", "group_reward", "done", "interrupted", "ids", "group_ids")
        self.columns = dict(zip(names, (*floats, *flags, *numbers), strict=True))
        self.masks = np.ones((capacity, spec.mask_size), np.bool_)
        # as they arrive; an image of numbers that must become (C, H, W) has its array in `turned`
        self.obs = [
            np.zeros((capacity, *(o.decoded_shape if o.compressed else o.shape)), o.dtype)
            for o in spec.observations
        ]
        self.flat = [array.reshape(capacity, -1) for array in self.obs]
        self.turned = {
            i: np.zeros((capacity, *o.decoded_shape), o.dtype)
            for i, o in enumerate(spec.observations)
            if o.order == "HWC" and not o.compressed
        }

    def read(self, data: bytes) -> Batch:
        """Read a serialized list of agents."""
        count = self.read_table(data) if self.plain else None
        if count is None:
            count = self.read_messages(data)
        for i, turned in self.turned.items():
            turned[:count] = self.obs[i][:count].transpose(0, 3, 1, 2)
        if self.batch is None or len(self.batch.ids) != count:  # else the views are the same ones
            self.batch = Batch(
                obs=[self.turned.get(i, array)[:count] for i, array in enumerate(self.obs)],
                masks=self.masks[:count] if self.spec.branches else None,
                **{name: array[:count] for name, array in self.columns.items()},
            )
        return self.batch

    # -------------------------------------------------------------- plain records
    def read_table(self, data: bytes) -> int | None:
        """Read plain records column by column; None where some are not plain."""
        record = self.last
        if record is not None and len(data) % record.size == 0:
            rows = np.frombuffer(data, np.uint8).reshape(-1, record.size)
            if record.fits(rows) is True:
                self.allocate(len(rows))
                self.fill(record, rows, slice(0, len(rows)))
                return len(rows)
        masks = self.masks if self.spec.branches else None
        for message in self.messages.get(len(data), ()):
            if message.read(data, self.pairs, masks, self.flat):
                return message.count
        try:
            starts, ends = split(data)
            self.allocate(len(starts))
            groups: dict[int, list[int]] = {}
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                groups.setdefault(end - start, []).append(i)
            found: list[Record | None] = [None] * len(starts)
            for size, members in groups.items():
                joined = b"".join([data[starts[i] : ends[i]] for i in members])
                rows = np.frombuffer(joined, np.uint8).reshape(-1, size)
                self.read_group(rows, np.asarray(members), found)
        except NotPlain:
            return None
        self.remember(tuple(ends), starts, [record for record in found if record is not None])
        return len(starts)

    def remember(self, ends: tuple[int, ...], starts: list[int], records: Sequence[Record]) -> None:
        """Keep the layout of a message, the second time that one of such records comes."""
        if sum(a is not b for a, b in pairwise(records)) >= _MAX_RUNS:
            return
        if ends not in self.seen:
            if len(self.seen) > 16 * _MAX_MESSAGES:
                self.seen.clear()
            self.seen.add(ends)
            return
        if sum(map(len, self.messages.values())) >= _MAX_MESSAGES:
            self.messages.clear()
        message = Message(records, starts, self.spec.mask_size)
        self.messages.setdefault(ends[-1], []).insert(0, message)

    def read_group(self, rows: np.ndarray, members: np.ndarray, found: list[Record | None]) -> None:
        """Read records of one length into the rows `members` of the arrays."""
        known = self.records.setdefault(rows.shape[1], [])
        tried = 0
        while len(rows):
            if tried == len(known):
                known.append(self.learn(rows[0].tobytes()))
            record = known[tried]
            tried += 1
            fits = record.fits(rows)
            fitting = members[fits] if isinstance(fits, np.ndarray) else members
            for member in fitting.tolist():
                found[member] = record
            if fits is True:
                self.last = record
                self.fill(record, rows, members)
                return
            if len(fitting):
                self.fill(record, rows[fits], fitting)
                rows, members = rows[~fits], members[~fits]

    def learn(self, data: bytes) -> Record:
        """Take a record of an unknown layout apart, and see that it fits the behaviour."""
        if self.num_records >= _MAX_RECORDS:
            raise NotPlain
        record = Record.of(data)
        try:
            infos = messages.fast_message(_LIST).FromString(data)
        except DecodeError:
            raise NotPlain from None
        shapes = [tuple(obs.shape) for obs in infos.value[0].observations]
        if shapes != [obs.shape for obs in self.spec.observations]:
            raise NotPlain  # the general way says what is wrong
        if record.sizes != tuple(int(np.prod(shape)) for shape in shapes):
            raise NotPlain
        self.num_records += 1
        return record

    def fill(self, record: Record, rows: np.ndarray, members: Any) -> None:
        """Copy the numbers of `rows` to where they belong."""
        table = rows.view(record.dtype)[:, 0]
        present = record.present
        for name, column in self.columns.items():
            if name not in present:
                column[members] = 0
            elif name in record.numbers:
                column[members] = (table[name] & 0x7F) @ record.numbers[name]
            else:
                column[members] = table[name]
        if self.spec.branches:
            fits = record.mask_size == self.spec.mask_size  # else nothing is forbidden
            self.masks[members] = table["mask"] == 0 if fits else True
        for i, target in enumerate(self.flat):
            target[members] = table[f"obs{i}"]

    # -------------------------------------------------------------- the general way
    def read_messages(self, data: bytes) -> int:
        """Read agents one message at a time."""
        agents = self.parse(data, messages.fast_message(_LIST))
        count = len(agents)
        self.allocate(count)
        columns = self.columns
        columns["ids"][:count] = [agent.id for agent in agents]
        columns["group_ids"][:count] = [agent.group_id for agent in agents]
        columns["reward"][:count] = [agent.reward for agent in agents]
        columns["group_reward"][:count] = [agent.group_reward for agent in agents]
        columns["done"][:count] = [agent.done for agent in agents]
        columns["interrupted"][:count] = [agent.max_step_reached for agent in agents]
        if self.masks is not None:
            self.read_masks([agent.action_mask for agent in agents])
        rows = [agent.observations for agent in agents]
        self.check_shapes(agents, rows)
        for i, spec in enumerate(self.spec.observations):
            if spec.compressed:
                self.read_images([row[i] for row in rows], spec, self.obs[i])
            else:
                self.read_floats([row[i] for row in rows], data, i)
        return count

    def parse(self, data: bytes, kind: Any) -> Sequence[Any]:
        """The agents in a list, as messages.

        Raises:
            WorldError: it is no such list.
        """
        try:
            return kind.FromString(data).value
        except DecodeError as error:
            raise WorldError(
                f"{self.player} sent agents of '{self.spec.name}' that are no message of Unity's "
                "protocol"
            ) from error

    def read_masks(self, masks: Sequence[bytes]) -> None:
        width = self.spec.mask_size
        target = self.masks
        for i, mask in enumerate(masks):  # of another length, or absent: nothing is forbidden
            flags = np.frombuffer(mask, np.uint8)
            target[i] = flags == 0 if len(flags) == width else True  # type: ignore[index]

    def check_shapes(self, agents: Sequence[Any], rows: Sequence[Any]) -> None:
        """Say which agent's sensors are not those that the behaviour was introduced with.

        Raises:
            WorldError: one's are not.
        """
        expected = [obs.shape for obs in self.spec.observations]
        for agent, row in zip(agents, rows, strict=True):
            shapes = [tuple(obs.shape) for obs in row]
            if shapes != expected:
                raise WorldError(
                    f"{self.player}: agent {agent.id} of '{self.spec.name}' observes {shapes} and "
                    f"the first one {expected}: give all agents of a behaviour the same sensors"
                )

    def read_floats(self, rows: Sequence[Any], data: bytes, index: int) -> None:
        spec = self.spec.observations[index]
        size = 4 * int(np.prod(spec.shape))
        parts = [obs.float_data.data for obs in rows]
        if any(len(part) != size for part in parts):
            parts = self.unpacked(data, index)
        for i, part in enumerate(parts):
            if len(part) != size:
                raise WorldError(
                    f"{self.player}: observation '{spec.name}' of '{self.spec.name}' has "
                    f"{len(part) // 4} numbers and the shape {spec.shape} (agent "
                    f"{self.columns['ids'][i]}): is it compressed for some agents only?"
                )
        floats = np.frombuffer(b"".join(parts), "<f4")
        self.flat[index][: len(parts)] = floats.reshape(len(parts), -1)

    def unpacked(self, data: bytes, index: int) -> list[bytes]:
        """The floats of one observation where they are not packed, or packed in several parts."""
        agents = self.parse(data, messages.message(_LIST))
        return [
            np.asarray(agent.observations[index].float_data.data, "<f4").tobytes()
            for agent in agents
        ]

    def read_images(self, rows: Sequence[Any], spec: ObservationSpec, target: np.ndarray) -> None:
        try:
            decode_images(
                [obs.compressed_data for obs in rows],
                [list(obs.compressed_channel_mapping) for obs in rows],
                target[: len(rows)],
            )
        except WorldError as error:
            raise WorldError(
                f"{self.player}: observation '{spec.name}' of '{self.spec.name}': {error}"
            ) from error
