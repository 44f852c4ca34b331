"""A policy's deterministic action as a short list of operations on named arrays.

Every format is written from this graph, and none from the network itself: what an operation means
is said here once, and proven once, by `rlgym.export.reference`, which computes it in numpy.

Arrays have a leading batch axis. Constants are float32. The graph ends at the normalised action:
what a robot or a world is told follows from it by `Action.scale`, `offset`, `low` and `high`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from torch import Tensor

from rlgym.agents.critics import Ensemble
from rlgym.agents.distributions import Bernoulli, Categorical, Joint, MultiCategorical
from rlgym.agents.networks import Encoder, ImageEncoder, Memory, Preparation
from rlgym.agents.policy import ActorCritic
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.agents.towers import Towers
from rlgym.errors import UserError
from rlgym.spaces import Layout, Leaf

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


def read_policy(policy: Any, masked: bool = False) -> Graph:
    """Read the deterministic action of a trained policy into a graph.

    Args:
        policy: an `ActorCritic` or a `SoftPolicy`, or what `load_policy` gave.
        masked: the world says which choices are allowed, so the graph takes a mask.

    Raises:
        UserError: for a network of the user's own, which only .pt2 can hold.
    """
    policy = getattr(policy, "policy", policy)
    own = getattr(policy, "network", None) is not None or getattr(policy, "has_own_network", False)
    if own or type(policy) not in (ActorCritic, SoftPolicy):
        raise UserError(
            "a network of your own cannot be written as layers: export it with --to pt2, or train "
            "with the networks that --network.hidden and the others describe"
        )
    return _Reader(policy, masked).graph()


@dataclass
class _Reader:
    """Collects ports and operations while it follows a policy from its inputs to its actions."""

    policy: Any
    masked: bool
    inputs: list[Port] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    mask: str = ""
    count: int = 0

    def graph(self) -> Graph:
        policy, preparation = self.policy, self.policy.preparation
        soft = isinstance(policy, SoftPolicy)
        encoder = policy.actor.features.encoder if soft else policy.encoder
        features = self._features(preparation, encoder)
        memory = None if soft else policy.memory
        if memory is not None:
            features = self._memory(memory, features)
        if soft:
            params = self._ensemble(policy.actor.layers, features)
        else:
            params = self._towers(policy.towers, features)
        self._heads(params)
        size = 0 if memory is None else memory.state_size
        order = [*self.inputs]
        order.sort(key=lambda port: (port.name in (MASK, STATE), port.name == STATE))
        return Graph(tuple(order), tuple(self.ops), tuple(self.outputs), tuple(self.actions), size)

    # ------------------------------------------------------------------------------- inputs

    def _features(self, preparation: Preparation, encoder: Encoder) -> str:
        """What the actor sees, (B, n): vectors, then images, in the encoder's order."""
        seen: list[str] = []
        vectors = [self._vector(preparation, leaf) for leaf in preparation.vector]
        if vectors:
            seen.append(self._concat(vectors))
        for leaf, image_encoder in zip(preparation.images, encoder.image_encoders, strict=True):
            if not preparation.hidden_from_actor[leaf.key]:
                seen.append(self._image(leaf, image_encoder))  # type: ignore[arg-type]
        return self._concat(seen)

    def _vector(self, preparation: Preparation, leaf: Leaf) -> str:
        name = self._input(leaf)
        rows = self._add(Flatten, name)
        if leaf.num_choices:
            start = tuple(int(value) for value in leaf.start.reshape(-1))
            return self._add(OneHot, rows, sizes=leaf.num_choices, start=start)
        norm = preparation._norm_of.get(leaf.key)
        if norm is None:
            return rows
        mean, inv_std = _array(norm.shift).reshape(-1), _array(norm.scale).reshape(-1)
        return self._add(Normalize, rows, mean=mean, inv_std=inv_std, clip=float(norm.clip))

    def _image(self, leaf: Leaf, encoder: ImageEncoder) -> str:
        x = self._add(Image, self._input(leaf), channels_last=encoder.channels_last)
        for layer in encoder.layers:
            kind = type(layer).__name__
            if kind == "Conv2d":
                stride, padding = int(layer.stride[0]), int(layer.padding[0])  # type: ignore
                weights = {"weight": _array(layer.weight), "bias": _array(layer.bias)}
                x = self._add(Conv, x, stride=stride, padding=padding, **weights)
            elif kind == "Linear":
                x = self._add(Dense, x, weight=_array(layer.weight), bias=_array(layer.bias))
            else:
                x = self._add(Flatten, x) if kind == "Flatten" else self._activate(x, "relu")
        return x

    def _input(self, leaf: Leaf) -> str:
        name = leaf.key or "obs"
        self.inputs.append(Port(name, leaf.shape, str(leaf.dtype)))
        return name

    # ------------------------------------------------------------------------------- layers

    def _memory(self, memory: Memory, features: str) -> str:
        self.inputs.append(Port(STATE, (memory.state_size,), "float32"))
        cell = memory.cell
        weights = {
            "weight_input": _array(cell.weight_ih),
            "weight_hidden": _array(cell.weight_hh),
            "bias_input": _array(cell.bias_ih),
            "bias_hidden": _array(cell.bias_hh),
        }
        kind = LSTM if memory.is_lstm else GRU
        self.ops.append(kind("next_state", (features, STATE), **weights))
        self.outputs.append(Port("next_state", (memory.state_size,), "float32"))
        if not memory.is_lstm:
            return "next_state"
        return self._add(Slice, "next_state", start=0, stop=memory.size)

    def _towers(self, towers: Towers, x: str) -> str:
        *layers, (weight, bias) = towers._actor_views()
        for own_weight, own_bias in layers:
            x = self._add(Dense, x, weight=_array(own_weight.t()), bias=_array(own_bias))
            x = self._activate(x, towers.activation)
        return self._add(Dense, x, weight=_array(weight.t()), bias=_array(bias))

    def _ensemble(self, layers: Ensemble, x: str) -> str:
        for weight, bias, *norm in layers._layers:
            x = self._add(Dense, x, weight=_array(weight[0].t()), bias=_array(bias[0, 0]))
            if norm:
                scale, shift = (_array(part[0, 0]) for part in norm)
                x = self._add(LayerNorm, x, scale=scale, shift=shift)
            x = self._activate(x, layers.activation)
        weight, bias = layers.head_weight[0], layers.head_bias[0, 0]
        return self._add(Dense, x, weight=_array(weight), bias=_array(bias))

    # -------------------------------------------------------------------------------- heads

    def _heads(self, params: str) -> None:
        layout: Layout = self.policy.action_layout
        distribution = self.policy.distribution
        parts = distribution.parts if isinstance(distribution, Joint) else [distribution]
        mask_size = sum(part.mask_size for part in parts)
        at = mask_at = 0
        for leaf, part in zip(layout.leaves, parts, strict=True):
            is_box = not isinstance(part, (Categorical, MultiCategorical, Bernoulli))
            width = int(np.prod(leaf.shape)) if is_box else part.num_params
            columns = _output_name("mean" if is_box else "logits", leaf)
            self.ops.append(Slice(columns, (params,), at, at + width))
            at += part.num_params
            if is_box:
                self._box(leaf, part, columns)
                continue
            self.outputs.append(Port(columns, (width,), "float32"))
            if isinstance(part, Bernoulli):
                self._switch(leaf, columns)
            else:
                mask = self._mask(mask_size, mask_at, part.mask_size) if self.masked else None
                mask_at += part.mask_size
                self._choice(leaf, part, columns, mask)

    def _box(self, leaf: Leaf, part: Any, mean: str) -> None:
        low = _array(part.bounds.low).reshape(-1)
        high = _array(part.bounds.high).reshape(-1)
        output = _output_name("action", leaf)
        if part.squash:
            self.ops.append(Activation(output, (mean,), "tanh"))
            scale, offset = 0.5 * (high - low), 0.5 * (high + low)
        else:
            self.ops.append(Clip(output, (mean,), low, high))
            scale, offset = np.ones_like(low), np.zeros_like(low)
        self.outputs.append(Port(output, low.shape, "float32"))
        self.actions.append(
            Action(leaf.key, output, "box", leaf.shape, "", scale, offset, low, high)
        )

    def _choice(self, leaf: Leaf, part: Any, logits: str, mask: str | None) -> None:
        start = tuple(int(value) for value in np.reshape(leaf.start, -1))
        inputs = (logits,) if mask is None else (logits, mask)
        output = _output_name("action", leaf)
        self.ops.append(Choose(output, inputs, tuple(leaf.num_choices), start))
        self.outputs.append(Port(output, (len(start),), "int64"))
        kind = "discrete" if isinstance(part, Categorical) else "multi_discrete"
        self.actions.append(Action(leaf.key, output, kind, leaf.shape, logits))

    def _switch(self, leaf: Leaf, logits: str) -> None:
        output = _output_name("action", leaf)
        count = int(np.prod(leaf.shape))
        self.ops.append(Switch(output, (logits,)))
        self.outputs.append(Port(output, (count,), "int64"))
        self.actions.append(Action(leaf.key, output, "multi_binary", leaf.shape, logits))

    def _mask(self, total: int, start: int, size: int) -> str:
        if not self.mask:
            self.inputs.append(Port(MASK, (total,), "bool"))
            self.mask = self._add(Flatten, MASK)
        return self._add(Slice, self.mask, start=start, stop=start + size)

    # ------------------------------------------------------------------------------ details

    def _activate(self, x: str, kind: Any) -> str:
        return self._add(Activation, x, kind=kind)

    def _concat(self, names: list[str]) -> str:
        return names[0] if len(names) == 1 else self._add(Concat, *names)

    def _add(self, op: type[Op], *inputs: str, **rest: Any) -> str:
        self.count += 1
        name = f"{op.__name__.lower()}_{self.count}"
        self.ops.append(op(name, tuple(inputs), **rest))
        return name


def _output_name(what: str, leaf: Leaf) -> str:
    return f"{what}/{leaf.key}" if leaf.key else what


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().to("cpu").float().numpy())
