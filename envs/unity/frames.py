"""What a player says in one message, as arrays: the border between the codec and the worlds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

VARIABLE_SIZE = 4
"""Dimension property of an axis of which only the first rows may be in use (a buffer sensor)."""


@dataclass(frozen=True)
class ObservationSpec:
    """One observation of a behaviour, as the player describes it."""

    name: str
    """The sensor's name; may be empty, and need not be unique."""
    shape: tuple[int, ...]
    """As stated by the player: (n,), (rows, size), or an image in either of its orders."""
    dimension_properties: tuple[int, ...] = ()
    """Unity's property of each axis: 1 none, 2 translational equivariance, 4 variable size."""
    goal: bool = False
    """A goal signal instead of an ordinary observation."""
    compressed: bool = False
    """Sent as PNG: decoded to uint8 instead of float32."""
    order: Literal["", "HWC", "CHW"] = ""
    """The order of a rank-three `shape`; empty for all others."""

    @property
    def kind(self) -> Literal["vector", "buffer", "image"]:
        """Which network reads it: rank one, two or three."""
        kinds: dict[int, Literal["vector", "buffer", "image"]] = {2: "buffer", 3: "image"}
        return kinds.get(len(self.shape), "vector")

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of one agent's row in `Batch.obs`: `shape`, and (C, H, W) for every image."""
        if self.order == "HWC":
            height, width, channels = self.shape
            return (channels, height, width)
        return self.shape

    @property
    def dtype(self) -> np.dtype:
        """uint8 in 0..255 for what arrives as PNG, else float32 as the player sends it."""
        return np.dtype(np.uint8 if self.compressed else np.float32)


@dataclass(frozen=True)
class BehaviorSpec:
    """What the agents of one behaviour see and do."""

    name: str
    """As Unity names it, with the team where there are teams: `Striker?team=1`."""
    observations: tuple[ObservationSpec, ...]
    continuous: int
    """Number of continuous actions, each in [-1, 1]."""
    branches: tuple[int, ...]
    """Number of choices of each discrete action."""

    @property
    def mask_size(self) -> int:
        """Width of `Batch.masks`: all choices of all branches, side by side."""
        return sum(self.branches)


@dataclass(frozen=True)
class Batch:
    """All agents of one behaviour that one message speaks of, in the message's order.

    The arrays are the codec's own and are overwritten by its next `decode`: copy what is kept.
    """

    ids: np.ndarray
    """(n,) int32; an agent has a new id in each episode."""
    obs: list[np.ndarray]
    """One (n, *decoded_shape) array of `dtype` for each of the spec's observations."""
    reward: np.ndarray
    """(n,) float32."""
    group_reward: np.ndarray
    """(n,) float32."""
    done: np.ndarray
    """(n,) bool: this id's episode is over, and it takes no action."""
    interrupted: np.ndarray
    """(n,) bool: where done, because a limit of steps was reached."""
    masks: np.ndarray | None
    """(n, mask_size) bool, True = allowed; None for a behaviour without discrete actions."""
    group_ids: np.ndarray
    """(n,) int32; 0 = in no group."""

    @property
    def num_agents(self) -> int:
        """Infos in this batch: decisions that are asked for and episodes that are over."""
        return len(self.ids)

    @property
    def num_deciding(self) -> int:
        """Agents that wait for an action: how many rows the reply must have."""
        return int(len(self.done) - np.count_nonzero(self.done))


@dataclass(frozen=True)
class Actions:
    """The reply to one batch: a row for each agent that is not done, in the batch's order."""

    continuous: np.ndarray | None = None
    """(number deciding, continuous) float32."""
    discrete: np.ndarray | None = None
    """(number deciding, number of branches) int32."""


@dataclass(frozen=True)
class Frame:
    """One message of a player."""

    batches: dict[str, Batch] = field(default_factory=dict)
    """By behaviour; a behaviour of which nothing is said is absent."""
    new_specs: tuple[BehaviorSpec, ...] = ()
    """Behaviours that this message names for the first time."""
    side_channel: bytes = b""
    """Messages of side channels, as they are on the wire."""

    @property
    def num_deciding(self) -> int:
        """Agents of all behaviours that wait for an action."""
        return sum(batch.num_deciding for batch in self.batches.values())
