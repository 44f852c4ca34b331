"""What stands between an observation and the heads: inputs, encoders, memory, two towers.

The actor's and the critic's hidden layers have the same widths, so `Towers` computes both as one
batch of two matrices: on a CPU a small network costs by the operation, not by the flop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlgym.agents.normalize import RunningMeanStd
from rlgym.config import NetworkConfig
from rlgym.errors import UserError
from rlgym.spaces import Layout, Leaf, Tree

HIDDEN_GAIN = math.sqrt(2.0)
"""Gain of hidden layers' orthogonal weights (Engstrom et al. 2020, arXiv 2005.12729, table 1)."""
ACTOR_GAIN = 0.01
"""Gain of the actor's head: the first policy is nearly the same in every state."""
CRITIC_GAIN = 1.0
"""Gain of the critic's head."""
SMALL_IMAGE = 36
"""Pixels per side under which Nature DQN's strides leave nothing."""

Inputs = dict[str, Tensor]
"""Prepared observations, rows first: "vector", "privileged", and one uint8 entry per image."""


def orthogonal(module: nn.Module, gain: float) -> nn.Module:
    """Give a layer orthogonal weights (Saxe et al. 2014, arXiv 1312.6120) and zero biases."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.orthogonal_(parameter, gain)
        elif "bias" in name:
            nn.init.zeros_(parameter)
    return module


# ------------------------------------------------------------------------------------- inputs


class Preparation(nn.Module):
    """Turn a tree of observations into rows that a network takes; it has nothing to learn.

    Box leaves are normalised (with `cfg.normalize_obs`) and flattened, Discrete and MultiDiscrete
    ones become one-hot (their `start` subtracted), MultiBinary ones floats; in leaf order they
    make up "vector", or "privileged" for the keys that only the critic sees. Images stay uint8.

    Args:
        layout: leaves of the observation space.
        cfg: `normalize_obs`, `obs_clip`, `privileged`.
        as_leaves: keep one entry per leaf in its own shape, for a user's own network.

    Raises:
        UserError: when every leaf is privileged.
    """

    def __init__(self, layout: Layout, cfg: NetworkConfig, as_leaves: bool = False) -> None:
        super().__init__()
        self.layout = layout
        self.as_leaves = as_leaves
        self.hidden_from_actor = {
            leaf.key: not layout.single
            and (leaf.key in cfg.privileged or str(leaf.path[0]) in cfg.privileged)
            for leaf in layout.leaves
        }
        if all(self.hidden_from_actor.values()):
            raise UserError(
                f"every observation is privileged ({', '.join(self.hidden_from_actor)}): "
                "leave the actor at least one, with --network.privileged"
            )
        self.obs_norm = nn.ModuleDict()
        for i, leaf in enumerate(layout.leaves):
            if cfg.normalize_obs and isinstance(leaf.space, spaces.Box) and not leaf.is_image:
                self.obs_norm[_norm_name(i, leaf)] = RunningMeanStd(leaf.shape, cfg.obs_clip)
        self._norm_of = {
            leaf.key: self.obs_norm[_norm_name(i, leaf)]
            for i, leaf in enumerate(layout.leaves)
            if _norm_name(i, leaf) in self.obs_norm
        }
        vectors = [leaf for leaf in layout.leaves if not leaf.is_image]
        self.vector = [leaf for leaf in vectors if not self.hidden_from_actor[leaf.key]]
        self.privileged = [leaf for leaf in vectors if self.hidden_from_actor[leaf.key]]
        self.images = [leaf for leaf in layout.leaves if leaf.is_image]
        self.vector_size = sum(_width(leaf) for leaf in self.vector)
        self.privileged_size = sum(_width(leaf) for leaf in self.privileged)

    def forward(self, obs: Tree[Tensor]) -> Inputs:
        """Prepare (B, ...) or (T, N, ...) observations; leading axes become one axis of rows."""
        if self.as_leaves:
            return {leaf.key: self._leaf(leaf, _part(obs, leaf)) for leaf in self.layout.leaves}
        inputs = {}
        if self.vector:
            inputs["vector"] = self._rows(self.vector, obs)
        if self.privileged:
            inputs["privileged"] = self._rows(self.privileged, obs)
        for leaf in self.images:
            inputs[f"image:{leaf.key}"] = _part(obs, leaf).reshape(-1, *leaf.shape)
        return inputs

    @torch.no_grad()
    def update_normalizers(self, obs: Tree[Tensor], weights: Tensor) -> None:
        """Merge a rollout's observations (T, N, ...) where `weights` (T, N) is not 0."""
        for leaf in self.layout.leaves:
            if leaf.key in self._norm_of:
                self._norm_of[leaf.key].update(_part(obs, leaf), weights)

    def _rows(self, leaves: list[Leaf], obs: Tree[Tensor]) -> Tensor:
        columns = [_columns(leaf, self._leaf(leaf, _part(obs, leaf))) for leaf in leaves]
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def _leaf(self, leaf: Leaf, values: Tensor) -> Tensor:
        if len(values.shape) != 1 + len(leaf.shape):
            values = values.reshape(-1, *leaf.shape)
        if leaf.key in self._norm_of:
            return self._norm_of[leaf.key].normalize(values)
        return values


def _norm_name(index: int, leaf: Leaf) -> str:
    # ModuleDict refuses dots and the names of its own methods; the index keeps names apart
    return f"{index}_{(leaf.key or 'value').replace('.', '_')}"


def _part(tree: Tree[Tensor], leaf: Leaf) -> Tensor:
    return tree[leaf.key] if isinstance(tree, dict) else tree


def _width(leaf: Leaf) -> int:
    return sum(leaf.num_choices) or math.prod(leaf.shape)


def _columns(leaf: Leaf, values: Tensor) -> Tensor:
    """One leaf's rows as (B, width) floats."""
    if leaf.num_choices:
        start = torch.as_tensor(leaf.start, device=values.device)
        values = (values - start).reshape(len(values), -1)
        return torch.cat([one_hot(values[:, i], n) for i, n in enumerate(leaf.num_choices)], 1)
    return values.reshape(len(values), -1).to(torch.float32)


def one_hot(values: Tensor, num_choices: int) -> Tensor:
    """(B,) integers as (B, num_choices) floats; torch's own reads the values back."""
    choices = torch.arange(num_choices, device=values.device)
    return (values.unsqueeze(-1) == choices).to(torch.float32)


# ----------------------------------------------------------------------------------- encoders


class ImageEncoder(nn.Module):
    """Features of a uint8 image, (H, W, C) or (C, H, W): the smaller end is taken for channels.

    `nature` is the network of Mnih et al. 2015 (doi 10.1038/nature14236, Methods); `small`, two
    3x3 layers, also takes the place of `nature` where a side has fewer than 36 pixels.
    """

    def __init__(self, shape: tuple[int, int, int], kind: str) -> None:
        super().__init__()
        self.channels_last = shape[2] < shape[0]
        height, width, channels = shape if self.channels_last else (shape[1], shape[2], shape[0])
        if kind == "nature" and min(height, width) >= SMALL_IMAGE:
            plan, self.size = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)), 512
        else:
            plan, self.size = ((16, 3, 1, 1), (32, 3, 2, 1)), 128
        layers: list[nn.Module] = []
        for filters, kernel, stride, padding in plan:
            layers += [nn.Conv2d(channels, filters, kernel, stride, padding), nn.ReLU()]
            height = (height + 2 * padding - kernel) // stride + 1
            width = (width + 2 * padding - kernel) // stride + 1
            channels = filters
        layers += [nn.Flatten(), nn.Linear(channels * height * width, self.size), nn.ReLU()]
        self.layers = orthogonal(nn.Sequential(*layers), HIDDEN_GAIN)

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) uint8 to (B, size)."""
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        return self.layers(images.to(torch.float32) / 255.0)


class Encoder(nn.Module):
    """Prepared inputs to features: vectors as they are, each image through its own network."""

    def __init__(self, preparation: Preparation, kind: str) -> None:
        super().__init__()
        self.actor_size = preparation.vector_size
        self.critic_size = preparation.privileged_size
        self._actor_parts = ["vector"] if preparation.vector else []
        self._critic_parts = ["privileged"] if preparation.privileged else []
        self.image_encoders = nn.ModuleList()
        self._encoder_of: dict[str, int] = {}
        for i, leaf in enumerate(preparation.images):
            encoder = ImageEncoder(leaf.shape, kind)  # type: ignore[arg-type]
            self.image_encoders.append(encoder)
            name = f"image:{leaf.key}"
            self._encoder_of[name] = i
            if preparation.hidden_from_actor[leaf.key]:
                self._critic_parts.append(name)
                self.critic_size += encoder.size
            else:
                self._actor_parts.append(name)
                self.actor_size += encoder.size

    def actor(self, inputs: Inputs) -> Tensor:
        """(B, actor_size): what the actor sees."""
        return self._join(self._actor_parts, inputs)

    def critic(self, inputs: Inputs) -> Tensor | None:
        """(B, critic_size): what only the critic sees; None when there is nothing."""
        return self._join(self._critic_parts, inputs) if self._critic_parts else None

    def _join(self, parts: list[str], inputs: Inputs) -> Tensor:
        features = [
            self.image_encoders[self._encoder_of[name]](inputs[name])
            if name in self._encoder_of
            else inputs[name]
            for name in parts
        ]
        return features[0] if len(features) == 1 else torch.cat(features, 1)


# ------------------------------------------------------------------------------------- memory


class Memory(nn.Module):
    """A GRU or LSTM whose state starts from zero wherever an episode starts.

    The state is one tensor (N, state_size): a GRU's hidden vector, or an LSTM's hidden and cell
    vectors side by side.
    """

    def __init__(self, kind: str, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.is_lstm = kind == "lstm"
        self.state_size = 2 * size if self.is_lstm else size
        cell = nn.LSTMCell(inputs, size) if self.is_lstm else nn.GRUCell(inputs, size)
        self.cell = orthogonal(cell, 1.0)

    def forward(self, features: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            features: (T, N, inputs).
            state: (N, state_size) before the first step.
            start: (T, N) bool, True where the row is its episode's first.

        Returns:
            (T, N, size) outputs and the (N, state_size) state after the last step.
        """
        keep = (~start).to(features.dtype).unsqueeze(-1)
        outputs = []
        for t in range(len(features)):
            state = state * keep[t]
            if self.is_lstm:
                hidden, cell = self.cell(features[t], state.chunk(2, -1))
                state = torch.cat((hidden, cell), -1)
            else:
                hidden = state = self.cell(features[t], state)
            outputs.append(hidden)
        return torch.stack(outputs), state


# ------------------------------------------------------------------------------------- towers


@dataclass
class _Work:
    """Arrays of one pass through the towers, (2, B, width) per hidden layer."""

    hidden: list[Tensor]
    """Outputs of the activation."""
    scratch: list[Tensor]
    """silu: inputs of the activation; elu: its exponential."""
    grad: list[Tensor]
    """Gradients with respect to `hidden`."""

    @classmethod
    def allocate(cls, x: Tensor, widths: tuple[int, ...]) -> _Work:
        def arrays() -> list[Tensor]:
            return [x.new_empty(2, x.shape[1], width) for width in widths]

        return cls(arrays(), arrays(), arrays())


class Towers(nn.Module):
    """Two MLPs of the same widths, the actor's and the critic's, computed as a batch of two.

    `forward` takes part in autograd (as one node). `run` and `backprop` are the same computation
    without autograd, in arrays that are used again: a learner that knows the gradient with respect
    to the outputs gets the parameters' gradients in half the time.

    Parameters are `weight_i` (2, inputs, width) and `bias_i` (2, 1, width), actor first;
    `actor_weight` (width, outputs), `actor_bias`, `critic_weight` (width, 1), `critic_bias`.

    Args:
        inputs: width of the critic's input.
        actor_inputs: leading columns that the actor sees. The others are zeroed for it, and so are
            their weights, for good: their gradient is zero.
        hidden: width of each hidden layer; () leaves two linear heads.
        activation: tanh, relu, elu or silu.
        outputs: number of the actor's outputs.
    """

    columns: Tensor

    def __init__(
        self,
        inputs: int,
        actor_inputs: int,
        hidden: tuple[int, ...],
        activation: str,
        outputs: int,
    ) -> None:
        super().__init__()
        if activation not in _FORWARD:
            raise UserError(f"unknown activation {activation!r}: use one of {', '.join(_FORWARD)}")
        self.hidden = tuple(hidden)
        self.activation = activation
        self.actor_inputs = actor_inputs
        self.asymmetric = actor_inputs != inputs
        columns = torch.zeros(inputs)
        columns[:actor_inputs] = 1.0
        self.register_buffer("columns", columns, persistent=False)
        width = inputs
        for i, size in enumerate(self.hidden):
            weight = nn.Parameter(torch.empty(2, width, size))
            for half in weight.data:
                nn.init.orthogonal_(half, HIDDEN_GAIN)
            if i == 0:
                weight.data[0, actor_inputs:] = 0.0
            self.register_parameter(f"weight_{i}", weight)
            self.register_parameter(f"bias_{i}", nn.Parameter(torch.zeros(2, 1, size)))
            width = size
        self.width = width
        self.actor_weight = nn.Parameter(torch.empty(width, outputs))
        self.actor_bias = nn.Parameter(torch.zeros(outputs))
        self.critic_weight = nn.Parameter(torch.empty(width, 1))
        self.critic_bias = nn.Parameter(torch.zeros(1))
        nn.init.orthogonal_(self.actor_weight, ACTOR_GAIN)
        nn.init.orthogonal_(self.critic_weight, CRITIC_GAIN)
        if not self.hidden:
            self.actor_weight.data[actor_inputs:] = 0.0
        self._params = tuple(self.parameters())  # Module.parameters() walks the tree at every call
        self._kept: dict[Any, _Work] = {}
        self._last: tuple[Tensor, _Work] | None = None
        self._views: tuple[int, list[tuple[Tensor, Tensor]]] = (0, [])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute (B, outputs) of the actor, (B,) values, and the actor's (B, width) last layer.

        The last layer comes without gradient: gSDE treats it as a constant.
        """
        if torch.is_grad_enabled():
            return _TowersFunction.apply(self._pair(x), self.activation, *self._params)
        pair = self._pair(x)
        work = _Work.allocate(pair, self.hidden)
        return _forward(pair, self._params, self.activation, work)

    def actor(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The actor alone on (B, actor_inputs), without gradient: its outputs and last layer."""
        views = self._actor_views()
        function = _PLAIN[self.activation]
        for weight, bias in views[:-1]:
            x = function(torch.addmm(bias, x, weight))
        weight, bias = views[-1]
        return torch.addmm(bias, x, weight), x

    def run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, without autograd, in arrays that the next `run` overwrites."""
        pair = self._pair(x)
        key = (len(x), x.device, x.dtype)
        work = self._kept.get(key)
        if work is None:
            self._kept = {key: _Work.allocate(pair, self.hidden)}  # minibatches have one size
            work = self._kept[key]
        self._last = (pair, work)
        return _forward(pair, self._params, self.activation, work)

    def backprop(self, d_actor: Tensor, d_values: Tensor) -> None:
        """Write each parameter's gradient into its `.grad`, given (B, outputs) and (B,) gradients.

        It belongs to the last `run`, and overwrites.
        """
        assert self._last is not None, "run comes first"
        pair, work = self._last
        grads = [parameter.grad for parameter in self._params]
        _backward(pair, self._params, self.activation, work, d_actor, d_values, grads)

    def _pair(self, x: Tensor) -> Tensor:
        if self.asymmetric:
            return torch.stack((x * self.columns, x))
        return x.unsqueeze(0).expand(2, -1, -1)

    def _actor_views(self) -> list[tuple[Tensor, Tensor]]:
        """The actor's halves; indexing anew in each step would cost as much as multiplying."""
        pointer = self.actor_weight.data_ptr()  # changes when an optimiser flattens the parameters
        if self._views[0] != pointer:
            params = self._params[:-4]
            views = [
                (weight.detach()[0], bias.detach()[0, 0])
                for weight, bias in zip(params[0::2], params[1::2], strict=True)
            ]
            views.append((self.actor_weight.detach(), self.actor_bias.detach()))
            views[0] = (views[0][0][: self.actor_inputs], views[0][1])
            self._views = (pointer, views)
        return self._views[1]

    def __getstate__(self) -> dict[str, Any]:
        # arrays of past passes and views of parameters do not belong to a copy
        return {**self.__dict__, "_kept": {}, "_last": None, "_views": (0, [])}


_LOG2_E = 1.0 / math.log(2.0)
_MINUS_ONE = torch.tensor(-1.0)
_PLAIN = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": nn.functional.elu,
    "silu": nn.functional.silu,
}


def _tanh(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, _: Tensor) -> None:
    # tanh(z) = 2 sigmoid(2 z) - 1: torch's sigmoid is vectorised on CPUs and three times as fast
    torch.baddbmm(bias, x, weight, beta=2, alpha=2, out=out)
    torch.add(_MINUS_ONE, torch.sigmoid(out, out=out), alpha=2, out=out)


def _relu(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, _: Tensor) -> None:
    torch.baddbmm(bias, x, weight, out=out).clamp_min_(0)


def _elu(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, scratch: Tensor) -> None:
    # max(z, exp(min(z, 0)) - 1), because torch's elu calls a scalar exponential on CPUs
    torch.baddbmm(bias, x, weight, out=out)
    torch.clamp_max(out, 0, out=scratch).mul_(_LOG2_E).exp2_().sub_(1)
    torch.maximum(out, scratch, out=out)


def _silu(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, scratch: Tensor) -> None:
    torch.baddbmm(bias, x, weight, out=scratch)
    torch.mul(scratch, torch.sigmoid(scratch, out=out), out=out)


_FORWARD = {"tanh": _tanh, "relu": _relu, "elu": _elu, "silu": _silu}


def _undo(activation: str, d: Tensor, out: Tensor, scratch: Tensor) -> None:
    """Turn the gradient of an activation's output into that of its input, in place."""
    aten = torch.ops.aten
    if activation == "tanh":
        aten.tanh_backward.grad_input(d, out, grad_input=d)
    elif activation == "relu":
        aten.threshold_backward.grad_input(d, out, 0.0, grad_input=d)
    elif activation == "elu":
        aten.elu_backward.grad_input(d, 1.0, 1.0, 1.0, True, out, grad_input=d)
    else:
        aten.silu_backward.grad_input(d, scratch, grad_input=d)


@torch.no_grad()
def _forward(
    x: Tensor, params: tuple[Tensor, ...], activation: str, work: _Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn x (2, B, inputs) into the actor's outputs, the values, the actor's last layer."""
    layer = _FORWARD[activation]
    for i, (out, scratch) in enumerate(zip(work.hidden, work.scratch, strict=True)):
        layer(x, params[2 * i], params[2 * i + 1], out, scratch)
        x = out
    actor_weight, actor_bias, critic_weight, critic_bias = params[-4:]
    actor, critic = x.unbind(0)
    values = torch.addmm(critic_bias, critic, critic_weight)
    return torch.addmm(actor_bias, actor, actor_weight), values.squeeze(1), actor


@torch.no_grad()
def _backward(
    x: Tensor,
    params: tuple[Tensor, ...],
    activation: str,
    work: _Work,
    d_actor: Tensor,
    d_values: Tensor,
    grads: list[Any],
) -> None:
    """Write gradients of every parameter; `work` holds the forward pass."""
    d_values = d_values.unsqueeze(1)
    last = work.hidden[-1] if work.hidden else x
    actor, critic = last.unbind(0)
    torch.mm(actor.t(), d_actor, out=grads[-4])
    torch.sum(d_actor, 0, out=grads[-3])
    torch.mm(critic.t(), d_values, out=grads[-2])
    torch.sum(d_values, 0, out=grads[-1])
    if not work.hidden:
        return
    d_last_actor, d_last_critic = work.grad[-1].unbind(0)
    torch.mm(d_actor, params[-4].t(), out=d_last_actor)
    torch.mul(d_values, params[-2].t(), out=d_last_critic)
    for i in reversed(range(len(work.hidden))):
        d = work.grad[i]
        _undo(activation, d, work.hidden[i], work.scratch[i])
        below = work.hidden[i - 1] if i else x
        torch.bmm(below.transpose(1, 2), d, out=grads[2 * i])
        torch.sum(d, 1, keepdim=True, out=grads[2 * i + 1])
        if i:
            torch.bmm(d, params[2 * i].transpose(1, 2), out=work.grad[i - 1])


class _TowersFunction(torch.autograd.Function):
    """`_forward` and `_backward` as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, activation: str, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        widths = tuple(bias.shape[-1] for bias in params[1:-4:2])
        ctx.work = _Work.allocate(x, widths)
        ctx.activation = activation
        ctx.save_for_backward(x, *params)
        outputs, values, last = _forward(x, params, activation, ctx.work)
        last = last.clone()
        ctx.mark_non_differentiable(last)
        return outputs, values, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_actor: Tensor, d_values: Tensor, _: Tensor) -> tuple[Any, ...]:
        x, *params = ctx.saved_tensors
        grads = [torch.empty_like(parameter) for parameter in params]
        _backward(x, tuple(params), ctx.activation, ctx.work, d_actor, d_values, grads)
        d_x = None
        if ctx.needs_input_grad[0]:
            if ctx.work.hidden:
                d_x = torch.bmm(ctx.work.grad[0], params[0].transpose(1, 2))
            else:
                d_critic = d_values.unsqueeze(1) * params[-2].t()
                d_x = torch.stack((d_actor @ params[-4].t(), d_critic))
        return d_x, None, *grads
