"""Two MLPs computed as one batch of two, with their backward pass written out.

The actor's and the critic's hidden layers have the same widths, so each layer of both is one
`baddbmm`: on a CPU a small network costs by the operation, not by the flop.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rlgym.errors import UserError

HIDDEN_GAIN = math.sqrt(2.0)
"""Gain of hidden layers' orthogonal weights (Engstrom et al. 2020, arXiv 2005.12729, table 1)."""
ACTOR_GAIN = 0.01
"""Gain of the actor's head: the first policy is nearly the same in every state."""
CRITIC_GAIN = 1.0
"""Gain of the critic's head."""
CPU_ROWS = 1024
"""Rows that a CPU evaluates at once when no gradient is asked for."""


class _Work:
    """Arrays of one pass through the towers, (2, B, width) per hidden layer, and views of them.

    Attributes:
        hidden: outputs of the activation.
        scratch: silu's inputs, or elu's exponential.
        grad: gradients with respect to `hidden`.
        hidden_t: `hidden` with the last two axes swapped; views cost as much as small sums.
        halves: actor's and critic's part of the last of `hidden`.
        grad_halves: the same of `grad`.
    """

    def __init__(self, x: Tensor, widths: tuple[int, ...]) -> None:
        def arrays() -> list[Tensor]:
            return [x.new_empty(2, x.shape[1], width) for width in widths]

        self.hidden, self.scratch, self.grad = arrays(), arrays(), arrays()
        self.hidden_t = [array.transpose(1, 2) for array in self.hidden]
        self.halves: tuple[Tensor, ...] = self.hidden[-1].unbind(0) if widths else ()
        self.grad_halves: tuple[Tensor, ...] = self.grad[-1].unbind(0) if widths else ()


class Towers(nn.Module):
    """Two MLPs of the same widths, the actor's and the critic's, computed as a batch of two.

    `forward` takes part in autograd (as one node). `run` and `backprop` are the same computation
    without autograd, in arrays that are used again: a learner that knows the gradient with respect
    to the outputs gets the parameters' gradients in half the time.

    Parameters are `weight_i` (2, inputs, width) and `bias_i` (2, 1, width), actor first;
    the heads are stored as nn.Linear does, because narrow products are faster that way:
    `actor_weight` (outputs, width), `actor_bias`, `critic_weight` (1, width), `critic_bias`.

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
        if activation not in LAYERS:
            raise UserError(f"unknown activation {activation!r}: use one of {', '.join(LAYERS)}")
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
        self.actor_weight = nn.Parameter(torch.empty(outputs, width))
        self.actor_bias = nn.Parameter(torch.zeros(outputs))
        self.critic_weight = nn.Parameter(torch.empty(1, width))
        self.critic_bias = nn.Parameter(torch.zeros(1))
        nn.init.orthogonal_(self.actor_weight, ACTOR_GAIN)
        nn.init.orthogonal_(self.critic_weight, CRITIC_GAIN)
        if not self.hidden:
            self.actor_weight.data[:, actor_inputs:] = 0.0
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
        if x.is_cpu and len(x) > CPU_ROWS:
            return self._in_pieces(x)
        pair = self._pair(x)
        work = _Work(pair, self.hidden)
        return _forward(pair, self._params, self.activation, work)

    def actor(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The actor alone on (B, actor_inputs), without gradient: its outputs and last layer."""
        views = self._actor_views()
        function = ACTIVATIONS[self.activation]
        for weight, bias in views[:-1]:
            x = function(torch.addmm(bias, x, weight))
        weight, bias = views[-1]
        return torch.addmm(bias, x, weight), x

    def run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, without autograd, in arrays that the next `run` overwrites."""
        pair = self._pair(x)
        work = self._work(pair)
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

    def _in_pieces(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` without gradient on more rows than a cache holds, in the arrays of `run`.

        Arrays of their own would cost as much as the arithmetic: fresh memory is slow.
        """
        self._last = None
        outputs = x.new_empty(len(x), self.actor_weight.shape[0])
        values, last = x.new_empty(len(x)), x.new_empty(len(x), self.width)
        whole = (part.split(CPU_ROWS) for part in (x, outputs, values, last))
        for rows, *targets in zip(*whole, strict=True):
            pair = self._pair(rows)
            whole_piece = len(rows) == CPU_ROWS  # the rest may be of any size
            work = self._work(pair) if whole_piece else _Work(pair, self.hidden)
            results = _forward(pair, self._params, self.activation, work)
            for target, result in zip(targets, results, strict=True):
                target.copy_(result)
        return outputs, values, last

    def _work(self, pair: Tensor) -> _Work:
        """Arrays for this many rows; kept, because minibatches have few sizes.

        For good: a recorded graph knows where they are.
        """
        # arrays made in inference mode can only be written there
        key = (pair.shape[1], pair.device, pair.dtype, torch.is_inference_mode_enabled())
        work = self._kept.get(key)
        if work is None:
            work = self._kept[key] = _Work(pair, self.hidden)
        return work

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
            views.append((self.actor_weight.detach().t(), self.actor_bias.detach()))
            views[0] = (views[0][0][: self.actor_inputs], views[0][1])
            self._views = (pointer, views)
        return self._views[1]

    def __getstate__(self) -> dict[str, Any]:
        # arrays of past passes and views of parameters do not belong to a copy
        return {**self.__dict__, "_kept": {}, "_last": None, "_views": (0, [])}


_LOG2_E = 1.0 / math.log(2.0)
_MINUS_ONE = torch.tensor(-1.0)
ACTIVATIONS = {
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


LAYERS = {"tanh": _tanh, "relu": _relu, "elu": _elu, "silu": _silu}
"""Activation -> one batched layer and its activation, written into given arrays."""


def undo_activation(activation: str, d: Tensor, out: Tensor, scratch: Tensor) -> None:
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


def _forward(
    x: Tensor, params: tuple[Tensor, ...], activation: str, work: _Work
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn x (2, B, inputs) into the actor's outputs, the values, the actor's last layer."""
    layer = LAYERS[activation]
    for i, (out, scratch) in enumerate(zip(work.hidden, work.scratch, strict=True)):
        layer(x, params[2 * i], params[2 * i + 1], out, scratch)
        x = out
    actor_weight, actor_bias, critic_weight, critic_bias = params[-4:]
    actor, critic = work.halves or x.unbind(0)
    values = torch.addmm(critic_bias, critic, critic_weight.t())
    return torch.addmm(actor_bias, actor, actor_weight.t()), values.squeeze(1), actor


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
    actor, critic = work.halves or x.unbind(0)
    torch.mm(d_actor.t(), actor, out=grads[-4])
    torch.sum(d_actor, 0, out=grads[-3])
    torch.mm(d_values.t(), critic, out=grads[-2])
    torch.sum(d_values, 0, out=grads[-1])
    if not work.hidden:
        return
    d_last_actor, d_last_critic = work.grad_halves
    torch.mm(d_actor, params[-4], out=d_last_actor)
    torch.mul(d_values, params[-2], out=d_last_critic)
    for i in reversed(range(len(work.hidden))):
        d = work.grad[i]
        undo_activation(activation, d, work.hidden[i], work.scratch[i])
        below = work.hidden_t[i - 1] if i else x.transpose(1, 2)
        torch.bmm(below, d, out=grads[2 * i])
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
        ctx.work = _Work(x, widths)
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
                d_critic = d_values.unsqueeze(1) * params[-2]
                d_x = torch.stack((d_actor @ params[-4], d_critic))
        return d_x, None, *grads
