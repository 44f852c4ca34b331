"""A policy's deterministic action as a short list of operations on named arrays.

Every format is written from this graph, and none from the network itself: what an operation means
is said here once, and proven once, by `reference`, which computes it in numpy.

Arrays have a leading batch axis. Constants are float32. The graph ends at the normalised action:
what a robot or a world is told follows from it by `Action.scale`, `offset`, `low` and `high`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np

STATE = "state"
"""Name of the recurrent state among a graph's inputs; "next_state" among its outputs."""
MASK = "action_mask"
"""Name of the action mask among a graph's inputs."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph."""

    name: str
    shape: tuple[int, ...]
    """Without the batch axis."""
    dtype: str
    """numpy's name of the type."""


@dataclass(frozen=True)
class Op:
    """One operation: reads arrays by name, writes one."""

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Flatten(Op):
    """(B, ...) of any type to (B, n) float32."""


@dataclass(frozen=True)
class Normalize(Op):
    """clip((x - mean) * inv_std, -clip, clip) of (B, n)."""

    mean: np.ndarray
    inv_std: np.ndarray
    clip: float


@dataclass(frozen=True)
class OneHot(Op):
    """(B, k) whole numbers as floats to (B, sum(sizes)): each component's choices side by side."""

    sizes: tuple[int, ...]
    start: tuple[int, ...]
    """Lowest value of each component."""


@dataclass(frozen=True)
class Concat(Op):
    """(B, n1), (B, n2), ... side by side."""


@dataclass(frozen=True)
class Image(Op):
    """(B, ...) uint8 to (B, C, H, W) float32 in [0, 1]."""

    channels_last: bool


@dataclass(frozen=True)
class Conv(Op):
    """Cross-correlation of (B, C, H, W) with `weight` (filters, C, k, k), plus `bias`."""

    weight: np.ndarray
    bias: np.ndarray
    stride: int
    padding: int


@dataclass(frozen=True)
class Dense(Op):
    """x @ weight.T + bias, with weight (outputs, inputs) and bias (outputs)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class LayerNorm(Op):
    """Rows of zero mean and unit variance (epsilon 1e-5), times `scale`, plus `shift`."""

    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Activation(Op):
    """tanh, relu, elu (alpha 1) or silu, of each element."""

    kind: Literal["tanh", "relu", "elu", "silu"]


@dataclass(frozen=True)
class GRU(Op):
    """One step of a GRU (Cho et al. 2014, arXiv 1406.1078) on (x, h); torch's gates r, z, n."""

    weight_input: np.ndarray
    """(3 h, inputs)."""
    weight_hidden: np.ndarray
    """(3 h, h)."""
    bias_input: np.ndarray
    bias_hidden: np.ndarray


@dataclass(frozen=True)
class LSTM(Op):
    """One step of an LSTM on (x, [h | c]), giving [h | c]; torch's gates i, f, g, o."""

    weight_input: np.ndarray
    """(4 h, inputs)."""
    weight_hidden: np.ndarray
    """(4 h, h)."""
    bias_input: np.ndarray
    bias_hidden: np.ndarray


@dataclass(frozen=True)
class Slice(Op):
    """Columns `start` to `stop` of (B, n)."""

    start: int
    stop: int


@dataclass(frozen=True)
class Clip(Op):
    """Each column of (B, n) within its bounds, which may be infinite."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Choose(Op):
    """Index of the largest logit of each component, plus `start`: (B, components) int64.

    A second input is the mask (B, sum(sizes)), nonzero = allowed; a component of which nothing is
    allowed counts as if everything were.
    """

    sizes: tuple[int, ...]
    start: tuple[int, ...]


@dataclass(frozen=True)
class Switch(Op):
    """1 where a logit is above 0, else 0: (B, n) int64."""


@dataclass(frozen=True)
class Action:
    """One leaf of the action space: which output it is, and what the world makes of it."""

    key: str
    """Path in the action space; "" when the whole space is this leaf."""
    output: str
    kind: Literal["box", "discrete", "multi_discrete", "multi_binary"]
    shape: tuple[int, ...]
    logits: str = ""
    """Output that holds the logits of a discrete leaf."""
    scale: np.ndarray | None = None
    """(n,) Box: world = clip(offset + scale * normalised, low, high)."""
    offset: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Graph:
    """A policy, ready to be written down."""

    inputs: tuple[Port, ...]
    """Observations by key ("obs" for a single one), then the mask and the state where there are."""
    ops: tuple[Op, ...]
    outputs: tuple[Port, ...]
    actions: tuple[Action, ...]
    state_size: int = 0
    """Width of the recurrent state, which starts from zeros; 0 without memory."""

    @cached_property
    def done(self) -> tuple[tuple[str, ...], ...]:
        """For each operation, the values that nothing needs after it."""
        needed, found = {port.name for port in self.outputs}, []
        for op in reversed(self.ops):
            last = {op.output, *op.inputs} - needed
            found.append(tuple(last))
            needed |= last
        return tuple(reversed(found))

    @property
    def num_parameters(self) -> int:
        """Numbers in all constants."""
        return sum(array.size for op in self.ops for array in constants(op).values())

    @property
    def is_mlp(self) -> bool:
        """Whether one vector goes in and dense layers and elementwise operations are all."""
        plain = (Flatten, Normalize, Dense, Activation, Clip, LayerNorm)
        ends = (Choose, Switch, Slice)
        return len(self.inputs) == 1 and all(isinstance(op, (*plain, *ends)) for op in self.ops)


def constants(op: Op) -> dict[str, np.ndarray]:
    """An operation's arrays by field."""
    values = ((item.name, getattr(op, item.name)) for item in fields(op))
    return {name: value for name, value in values if isinstance(value, np.ndarray)}
