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

from rlgym.agents.towers import ACTIVATIONS, LAYERS, undo_activation
from rlgym.errors import UserError


class _Work:
    """Arrays of one pass, (members, B, width) per hidden layer, and views of their first rows.

    Attributes:
        hidden: outputs of the activation.
        scratch: silu's inputs, or elu's exponential.
        grad: gradients with respect to `hidden`, then to the activation's inputs.
    """

    def __init__(self, x: Tensor, widths: tuple[int, ...]) -> None:
        def arrays() -> list[Tensor]:
            return [x.new_empty(x.shape[0], x.shape[1], width) for width in widths]

        self.hidden, self.scratch, self.grad = arrays(), arrays(), arrays()
        self._first: dict[int, list[tuple[Tensor, ...]]] = {}

    def first(self, rows: int) -> list[tuple[Tensor, ...]]:
        """Per layer: the first rows of `hidden`, the same transposed, of `scratch` and `grad`."""
        if rows not in self._first:  # views cost as much as small sums
            self._first[rows] = [
                (hidden[:, :rows], hidden[:, :rows].mT, scratch[:, :rows], grad[:, :rows])
                for hidden, scratch, grad in zip(self.hidden, self.scratch, self.grad, strict=True)
            ]
        return self._first[rows]


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
        if activation not in LAYERS:
            raise UserError(f"unknown activation {activation!r}: use one of {', '.join(LAYERS)}")
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
        self._views: tuple[int, list[Tensor], list[tuple[Tensor, Tensor]]] = (0, [], [])

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
        function = ACTIVATIONS[self.activation]
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
        function = ACTIVATIONS[self.activation]
        self._refresh()
        *layers, (weight, bias) = self._views[2]
        for own_weight, own_bias in layers:
            x = function(torch.addmm(own_bias, x, own_weight))
        return torch.addmm(bias, x, weight), x

    # ------------------------------------------------------------------------ without autograd

    def run(self, x: Tensor) -> Tensor:
        """As `forward`, without autograd, in arrays that the next `run` overwrites."""
        x = self._batched(x)
        # arrays made in inference mode can only be written there
        key = (x.shape[1], x.device, x.dtype, torch.is_inference_mode_enabled())
        work = self._kept.get(key)
        if work is None:
            # for good: a recorded graph knows where they are; batches have few sizes
            work = self._kept[key] = _Work(x, self.hidden)
        self._last = (x, work)
        layer = LAYERS[self.activation]
        for (weight, bias), out, scratch in zip(
            self._layers, work.hidden, work.scratch, strict=True
        ):
            layer(x, weight, bias, out, scratch)
            x = out
        return torch.baddbmm(self._head_bias, x, self._transposed()[-1])

    @property
    def last(self) -> Tensor:
        """The last `run`'s last hidden layer (members, B, width); the next one overwrites it."""
        assert self._last is not None, "run comes first"
        return self._last[1].hidden[-1] if self.hidden else self._last[0]

    def backprop(self, d_outputs: Tensor, d_last: Tensor | None = None) -> None:
        """Write each parameter's gradient into its `.grad`; it belongs to the last `run`.

        Args:
            d_outputs: (members, R, outputs) gradients of the first R rows; the others have none.
            d_last: (members, R, width) gradient of the last hidden layer besides that.
        """
        assert self._last is not None, "run comes first"
        x, work = self._last
        first = work.first(d_outputs.shape[1])
        x = x[:, : d_outputs.shape[1]]
        torch.bmm(d_outputs.mT, first[-1][0] if first else x, out=self._head_weight.grad)
        torch.sum(d_outputs, 1, keepdim=True, out=self._head_bias.grad)
        for i, d in self._descend(d_outputs, first, d_last):
            weight, bias = self._layers[i]
            torch.bmm(first[i - 1][1] if i else x.mT, d, out=weight.grad)
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
        if not self.hidden:
            return torch.bmm(d_outputs, self._head_weight[:, :, begin:])
        first = self._last[1].first(d_outputs.shape[1])
        *_, (_, d) = self._descend(d_outputs, first)
        return torch.bmm(d, self._transposed()[0][:, :, begin:])

    def _descend(
        self, d_outputs: Tensor, first: list[tuple[Tensor, ...]], d_last: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield each layer's number and the gradient of its activation's input, last first."""
        d, above, transposed = d_outputs, self._head_weight, self._transposed()
        for i in reversed(range(len(self.hidden))):
            hidden, _, scratch, grad = first[i]
            torch.bmm(d, above, out=grad)
            if d_last is not None and i == len(first) - 1:
                grad.add_(d_last)
            undo_activation(self.activation, grad, hidden, scratch)
            yield i, grad
            d, above = grad, transposed[i]

    def _transposed(self) -> list[Tensor]:
        """Every weight with its last axes swapped, the head's last."""
        self._refresh()
        return self._views[1]

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == 3 else x.unsqueeze(0).expand(self.members, -1, -1)

    def _refresh(self) -> None:
        """Make the views of parameters anew where they have moved; each costs as much as a sum."""
        pointer = self._head_weight.data_ptr()  # changes when an optimiser flattens the parameters
        if self._views[0] == pointer:
            return
        weights = [layer[0].detach() for layer in self._layers]
        head = self._head_weight.detach()
        first = [(layer[0].detach()[0], layer[1].detach()[0, 0]) for layer in self._layers]
        first.append((head[0].t(), self._head_bias.detach()[0, 0]))
        self._views = (pointer, [weight.mT for weight in (*weights, head)], first)

    def __getstate__(self) -> dict[str, Any]:
        # arrays of past passes and views of parameters do not belong to a copy
        return {**self.__dict__, "_kept": {}, "_last": None, "_views": (0, [], [])}
