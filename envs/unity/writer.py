"""Actions of a behaviour's agents to bytes, all agents at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlgym.envs.unity import messages
from rlgym.envs.unity.frames import Actions, BehaviorSpec
from rlgym.errors import ContractError, StateError


class ActionWriter:
    """Writes the actions of one behaviour.

    Args:
        spec: the behaviour.
        hybrid: whether the player knows the two lists of actions.
    """

    def __init__(self, spec: BehaviorSpec, hybrid: bool) -> None:
        self.spec = spec
        self.hybrid = hybrid
        self.branches = np.asarray(spec.branches, np.int32)
        num_branches, width = len(spec.branches), spec.continuous + len(spec.branches)
        # one record with zeros in it; fields stand in the order of their numbers: the list that
        # both kinds share, the continuous one, the discrete one
        record = self.serialize(np.zeros((1, spec.continuous)), np.zeros((1, num_branches), int))
        self.record = np.frombuffer(record, np.uint8)
        end = len(record)
        self.discrete = slice(end - num_branches, end)
        end = self.discrete.start - _header_size(num_branches)
        self.continuous = slice(end - 4 * spec.continuous, end)
        end = self.continuous.start - _header_size(4 * spec.continuous)
        self.shared = slice(end - 4 * width, end)
        self.table = np.zeros((0, len(record)), np.uint8)

    def write(self, actions: Actions, waiting: int) -> bytes:
        """A serialized list of `waiting` actions."""
        spec = self.spec
        continuous = self.rows(actions.continuous, waiting, spec.continuous, np.float32)
        discrete = self.rows(actions.discrete, waiting, len(spec.branches), np.int32)
        if discrete.size and ((discrete < 0) | (discrete >= self.branches)).any():
            raise ContractError(
                f"a discrete action of '{spec.name}' is outside its branch of {spec.branches}"
            )
        if discrete.size and discrete.max() >= 0x80:  # no longer one byte each
            return self.serialize(continuous, discrete)
        if len(self.table) < waiting:
            self.table = np.repeat(self.record[None], 2 * waiting, axis=0)
        table = self.table[:waiting]
        if spec.continuous:
            table[:, self.continuous] = continuous.view(np.uint8)
        if spec.branches:
            table[:, self.discrete] = discrete
        if not self.hybrid:
            both = np.concatenate((continuous, discrete), axis=1, dtype=np.float32)
            table[:, self.shared] = both.view(np.uint8)
        return table.tobytes()

    def rows(self, given: np.ndarray | None, count: int, width: int, dtype: Any) -> np.ndarray:
        """The given actions as a (count, width) array in one piece."""
        if given is None:
            given = np.zeros((count if width == 0 else 0, width), dtype)
        rows = np.ascontiguousarray(given, dtype)
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ContractError(
                f"actions of '{self.spec.name}' have the shape {rows.shape}: ({count}, {width}) "
                "is expected"
            )
        if len(rows) != count:
            raise StateError(
                f"{count} agents of '{self.spec.name}' wait for actions and {len(rows)} are given"
            )
        return rows

    def serialize(self, continuous: np.ndarray, discrete: np.ndarray) -> bytes:
        """The same through protobuf: for a record to begin with, and for large numbers."""
        message = messages.fast_message("UnityRLInputProto.ListAgentActionProto")()
        for floats, numbers in zip(continuous, discrete, strict=True):
            action = message.value.add()
            action.continuous_actions = floats.astype("<f4").tobytes()
            action.discrete_actions.extend(numbers.tolist())
            if not self.hybrid:
                both = np.concatenate((floats, numbers))
                action.vector_actions_deprecated = both.astype("<f4").tobytes()
        return message.SerializeToString()


def _header_size(size: int) -> int:
    """Bytes of a field's tag and length before `size` bytes of content; an empty one is absent."""
    return 1 + (1 if size < 0x80 else 2 if size < 0x4000 else 3) if size else 0
