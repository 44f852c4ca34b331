"""Several MLPs of the same widths computed as one batched network: SAC's critics, and its actor.

On a CPU a small network costs by the operation, not by the flop, and on an accelerator by the
launch: each layer of all members is one `baddbmm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlgym.agents.towers import _FORWARD, _PLAIN, _undo
from rlgym.errors import UserError


class _Work:
    """Arrays of one pass, (members, B, width) per hidden layer.

    Attributes:
        hidden: outputs of the activation.
        scratch: silu's inputs, or elu's exponential.
        grad: gradients with respect to `hidden`, then to the activation's inputs.
    """

    def __init__(self, x: Tensor, widths: tuple[int, ...]) -> None:
        def arrays() -> list[Tensor]:
            return [x.new_empty(x.shape[0], x.shape[1], width) for width in widths]

        self.hidden, self.scratch, self.grad = arrays(), arrays(), arrays()


class Ensemble(nn.Module):
    """`members` MLPs of the same sizes, each with its own parameters.

    `forward` is for autograd. `run`, `backprop` and `input_gradient` are the same computation
    without it, in arrays that are used again; they do not know layer normalisation.

    Parameters are `weight_i` (members, inputs, width) and `bias_i` (members, 1, width); with
    `layer_norm` also `scale_i` and `shift_i` (members, 1, width), applied before the activation;
    then `head_weight` (members, outputs, width), stored as nn.Linear does because narrow products
    are up to ten times faster that way, and `head_bias` (members, 1, outputs). They start uniform
    in +-1/sqrt(inputs), torch's own choice for nn.Linear.

    Args:
        members: number of MLPs.
        inputs: width of the input.
        hidden: width of each hidden layer; () leaves a linear map.
        activation: tanh, relu, elu or silu.
        outputs: width of each member's output.
        layer_norm: normalise each hidden layer (Ba et al. 2016, arXiv 1607.06450), which keeps
            critics from diverging where they are updated often (Hiraoka et al. 2022, 2110.02034).
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: tuple[int, ...],
        activation: str,
        outputs: int,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in _FORWARD:
            raise UserError(f"unknown activation {activation!r}: use one of {', '.join(_FORWARD)}")
        if members < 1:
            raise UserError(f"num_critics is {members}: give at least 1 with --algo.num-critics")
        self.members = members
        self.hidden = tuple(hidden)
        self.activation = activation
        self.layer_norm = layer_norm
        width = inputs
        for i, size in enumerate(self.hidden):
            self._add(f"weight_{i}", (members, width, size), width)
            self._add(f"bias_{i}", (members, 1, size), width)
            if layer_norm:
                self.register_parameter(f"scale_{i}", nn.Parameter(torch.ones(members, 1, size)))
                self.register_parameter(f"shift_{i}", nn.Parameter(torch.zeros(members, 1, size)))
            width = size
        self.width = width
        self._add("head_weight", (members, outputs, width), width)
        self._add("head_bias", (members, 1, outputs), width)
        per_layer = 4 if layer_norm else 2
        params = tuple(self.parameters())  # Module.parameters() walks the tree at every call
        self._layers = [
            params[i * per_layer : (i + 1) * per_layer] for i in range(len(self.hidden))
        ]
        self._head_weight, self._head_bias = params[-2:]
        self._kept: dict[Any, _Work] = {}
        self._last: tuple[Tensor, _Work] | None = None
        self._views: tuple[int, list[tuple[Tensor, Tensor]]] = (0, [])

    def _add(self, name: str, shape: tuple[int, ...], fan_in: int) -> None:
        bound = 1.0 / math.sqrt(fan_in)
        self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run every member.

        Args:
            x: (B, inputs), the same for all, or (members, B, inputs).

        Returns:
            (members, B, outputs), and the last hidden layer (members, B, width).
        """
        function = _PLAIN[self.activation]
        x = self._batched(x)
        for weight, bias, *norm in self._layers:
            x = torch.baddbmm(bias, x, weight)
            if norm:
                x = nn.functional.layer_norm(x, x.shape[-1:]) * norm[0] + norm[1]
            x = function(x)
        return torch.baddbmm(self._head_bias, x, self._head_weight.mT), x

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first member alone on (B, inputs), without gradient: its output and last layer."""
        if self.layer_norm:
            outputs, last = self(x)
            return outputs[0], last[0]
        function = _PLAIN[self.activation]
        views = self._first_views()
        for weight, bias in views[:-1]:
            x = function(torch.addmm(bias, x, weight))
        weight, bias = views[-1]
        return torch.addmm(bias, x, weight), x

    # ------------------------------------------------------------------------ without autograd

    def run(self, x: Tensor) -> Tensor:
        """As `forward`, without autograd, in arrays that the next `run` overwrites."""
        x = self._batched(x)
        # arrays made in inference mode can only be written there
        key = (x.shape[1], x.device, x.dtype, torch.is_inference_mode_enabled())
        work = self._kept.get(key)
        if work is None:
            self._kept = {key: _Work(x, self.hidden)}  # batches have one size
            work = self._kept[key]
        self._last = (x, work)
        layer = _FORWARD[self.activation]
        for (weight, bias), out, scratch in zip(
            self._layers, work.hidden, work.scratch, strict=True
        ):
            layer(x, weight, bias, out, scratch)
            x = out
        return torch.baddbmm(self._head_bias, x, self._head_weight.mT)

    def backprop(self, d_outputs: Tensor) -> None:
        """Write each parameter's gradient into its `.grad`; it belongs to the last `run`.

        Args:
            d_outputs: (members, R, outputs) gradients of the first R rows; the others have none.
        """
        assert self._last is not None, "run comes first"
        x, work = self._last
        rows = d_outputs.shape[1]
        below = [x, *work.hidden]
        top = below[-1][:, :rows]
        torch.bmm(d_outputs.mT, top, out=self._head_weight.grad)
        torch.sum(d_outputs, 1, keepdim=True, out=self._head_bias.grad)
        for i, d in self._descend(d_outputs, work):
            weight, bias = self._layers[i]
            torch.bmm(below[i][:, :rows].mT, d, out=weight.grad)
            torch.sum(d, 1, keepdim=True, out=bias.grad)

    def input_gradient(self, d_outputs: Tensor, begin: int = 0) -> Tensor:
        """Gradient with respect to the input's columns from `begin` on; parameters get none.

        Args:
            d_outputs: (members, B, outputs); it belongs to the last `run`.
            begin: first column.

        Returns:
            (members, B, inputs - begin).
        """
        assert self._last is not None, "run comes first"
        _, work = self._last
        if not self.hidden:
            return torch.bmm(d_outputs, self._head_weight[:, :, begin:])
        *_, (_, d) = self._descend(d_outputs, work)
        return torch.bmm(d, self._layers[0][0][:, begin:].mT)

    def _descend(self, d_outputs: Tensor, work: _Work) -> Iterator[tuple[int, Tensor]]:
        """Yield each layer's number and the gradient of its activation's input, last first."""
        rows, d = d_outputs.shape[1], d_outputs
        above: Tensor = self._head_weight
        for i in reversed(range(len(self.hidden))):
            d_next = work.grad[i][:, :rows]
            torch.bmm(d, above, out=d_next)
            _undo(self.activation, d_next, work.hidden[i][:, :rows], work.scratch[i][:, :rows])
            d = d_next
            yield i, d
            above = self._layers[i][0].mT

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == 3 else x.unsqueeze(0).expand(self.members, -1, -1)

    def _first_views(self) -> list[tuple[Tensor, Tensor]]:
        """The first member's parameters; indexing anew in each step costs as much as it saves."""
        pointer = self._head_weight.data_ptr()  # changes when an optimiser flattens the parameters
        if self._views[0] != pointer:
            views = [(layer[0].detach()[0], layer[1].detach()[0, 0]) for layer in self._layers]
            views.append((self._head_weight.detach()[0].t(), self._head_bias.detach()[0, 0]))
            self._views = (pointer, views)
        return self._views[1]

    def __getstate__(self) -> dict[str, Any]:
        # arrays of past passes and views of parameters do not belong to a copy
        return {**self.__dict__, "_kept": {}, "_last": None, "_views": (0, [])}
