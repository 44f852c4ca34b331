"""A trained policy read into the graph that every format is written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from rlgym.agents.critics import Ensemble
from rlgym.agents.distributions import Bernoulli, Categorical, Joint, MultiCategorical
from rlgym.agents.networks import Encoder, ImageEncoder, Memory, Preparation
from rlgym.agents.policy import ActorCritic
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.agents.towers import Towers
from rlgym.deploy.graph import (
    GRU,
    LSTM,
    MASK,
    STATE,
    Action,
    Activation,
    Choose,
    Clip,
    Concat,
    Conv,
    Dense,
    Flatten,
    Graph,
    Image,
    LayerNorm,
    Normalize,
    OneHot,
    Op,
    Port,
    Slice,
    Switch,
)
from rlgym.errors import UserError
from rlgym.spaces import Layout, Leaf


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
            "a network of your own cannot be written as layers: train with the networks that "
            "--network.hidden and the others describe, or take yours out with torch.export"
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
        encoder: Any = policy.actor.features.encoder if soft else policy.encoder
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
        layers: Any = encoder.layers
        for layer in layers:
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
        cell: Any = memory.cell
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
        head: Any = layers
        weight, bias = head.head_weight[0], head.head_bias[0, 0]
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
