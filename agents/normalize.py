"""The only normaliser: running mean and variance, frozen between updates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlgym.agents.peers import ALONE, Peers, total
from rlgym.device import has_float64

EPSILON = 1e-8
"""Added to the variance before the root, so that a constant input stays finite."""


class RunningMeanStd(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch.

    The merge is the parallel algorithm of Chan, Golub and LeVeque (1979, "Updating formulae and a
    pairwise algorithm for computing sample variances", equations 2.1a and 2.1b): adding the
    batches of a rollout one by one or all at once gives the same statistics.

    Everything is a buffer, so the state_dict carries it. The accumulators are float64, because a
    count of 1e8 swallows small float32 contributions. Where a device has no float64 they stay on
    the CPU, and each `update` brings its batch there. `shift` and `scale` are the float32 numbers
    that `normalize` uses, and they only change in `update`.

    With `peers`, each batch is that of all processes, and all keep the same statistics.

    Args:
        shape: shape of one value, without the batch axis.
        clip: bound of a normalised value, in standard deviations.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...] = (), clip: float = 10.0) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.clip = clip
        self.peers: Peers = ALONE
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMeanStd:
        """What `to`, `cpu` and `cuda` come down to; accumulators go only where float64 exists."""
        if has_float64(fn(self.shift).device):
            return super()._apply(fn, recurse)
        return super()._apply(lambda t: t.cpu() if t.dtype == torch.float64 else fn(t), recurse)

    @torch.no_grad()
    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Merge a batch.

        Args:
            values: (..., *shape), any number of leading axes.
            weights: (...) 1 for a row that counts, 0 for one that does not; None counts all.
        """
        # in two steps: one would convert before it copies, on a device that may have no float64
        rows = values.reshape(-1, *self.shape).to(self.mean.device).to(self.mean.dtype)
        if weights is None:
            weight = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
        else:
            weight = weights.reshape(-1).to(rows.device).to(rows.dtype)
        count = total(weight.sum(), self.peers)
        weight = weight.view(-1, *([1] * len(self.shape)))
        divisor = count.clamp(min=1.0)
        mean = total((rows * weight).sum(0), self.peers) / divisor
        var = total(((rows - mean).square() * weight).sum(0), self.peers) / divisor

        seen_rows = (self.count + count).clamp(min=1.0)
        delta = mean - self.mean
        # Before the first batch `count` is 0, so the initial variance of one has no weight. A batch
        # without a counted row leaves everything as it was.
        merged = (
            self.var * self.count + var * count
        ) + delta.square() * self.count * count / seen_rows
        seen = (self.count + count) > 0
        self.var.copy_(torch.where(seen, merged / seen_rows, self.var))
        self.mean.add_(delta * count / seen_rows)
        self.count.add_(count)
        self.shift.copy_(self.mean.float())
        self.scale.copy_((self.var + EPSILON).rsqrt().float())

    def normalize(self, values: Tensor) -> Tensor:
        """Centre, scale and clip; same shape, float32."""
        return ((values - self.shift) * self.scale).clamp_(-self.clip, self.clip)

    def rescale(self, values: Tensor) -> Tensor:
        """Scale and clip without centring, as rewards need it."""
        return (values * self.scale).clamp_(-self.clip, self.clip)
