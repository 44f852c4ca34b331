"""Distributions of Box actions: independent Gaussians and state-dependent exploration.

With `squash`, the raw action x stands for tanh(x) stretched to the bounds; log-probability and
entropy are those of tanh(x), in (-1, 1). Else raw actions have the world's units and are clipped
to the bounds on their way there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.functional import softplus

from rlgym.config import NetworkConfig
from rlgym.device import constant
from rlgym.errors import SpaceError, UserError
from rlgym.spaces import Leaf

LOG_STD_RANGE = (-20.0, 2.0)
"""Bounds of a log standard deviation that a network gives (Haarnoja et al. 2018, 1801.01290)."""
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_nodes, _weights = np.polynomial.hermite_e.hermegauss(16)
_NODES, _WEIGHTS = tuple(_nodes.tolist()), tuple((_weights / _weights.sum()).tolist())


class _Bounds(nn.Module):
    """A Box's bounds, and the way from raw actions to them."""

    low: Tensor
    high: Tensor

    def __init__(self, leaf: Leaf, squash: bool) -> None:
        super().__init__()
        assert isinstance(leaf.space, spaces.Box)
        low = np.asarray(leaf.space.low, np.float32)
        high = np.asarray(leaf.space.high, np.float32)
        if squash and not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise SpaceError(
                f"action {leaf.key or 'space'!r} has no bounds to squash to: "
                "set --network.squash false, or give the world's action space bounds"
            )
        self.squash = squash
        self.bounded = bool(np.isfinite(low).any() or np.isfinite(high).any())
        self.register_buffer("low", torch.as_tensor(low), persistent=False)
        self.register_buffer("high", torch.as_tensor(high), persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        if not self.bounded:
            return actions
        if self.squash:  # rounding may overshoot, hence the clamp below
            actions = self.low + (actions.tanh() + 1.0) * (0.5 * (self.high - self.low))
        return torch.clamp(actions, self.low, self.high)


def log_tanh_slope(x: Tensor) -> Tensor:
    """log(1 - tanh(x)^2), stable for large |x|: 2 (log 2 - x - softplus(-2 x))."""
    return 2.0 * (math.log(2.0) - x - softplus(-2.0 * x))


def squashed_entropy(mean: Tensor, std: Tensor) -> Tensor:
    """What squashing adds to a Gaussian's entropy: E[log(1 - tanh(x)^2)], elementwise.

    There is no closed form; sixteen Gauss-Hermite nodes give it within 0.02 nats for any mean and
    std up to 3, without noise and with a gradient.
    """
    nodes = constant(_NODES, mean.dtype, mean.device)
    weights = constant(_WEIGHTS, mean.dtype, mean.device)
    x = mean.unsqueeze(-1) + std.unsqueeze(-1) * nodes
    return (log_tanh_slope(x) * weights).sum(-1)


class Gaussian(nn.Module):
    """Independent normal variables for a Box of any shape.

    The standard deviation is one learned vector ("global") or a second half of the network's
    output ("state").
    """

    latent_size = 0
    mask_size = 0

    def __init__(self, leaf: Leaf, cfg: NetworkConfig) -> None:
        super().__init__()
        self.bounds = _Bounds(leaf, cfg.squash)
        self.squash = cfg.squash
        self.shape = leaf.shape
        self.noise_size = math.prod(leaf.shape)
        self.log_std_init = cfg.log_std_init
        self.is_global = cfg.std == "global"
        self.num_params = self.noise_size if self.is_global else 2 * self.noise_size
        if self.is_global:
            self.log_std = nn.Parameter(torch.full((self.noise_size,), float(cfg.log_std_init)))

    @property
    def has_closed_form(self) -> bool:
        """Whether `evaluate` and `pull_back` cover this one."""
        return self.is_global and not self.squash

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        size = (*lead, self.noise_size)
        return torch.randn(size, generator=generator, device=generator.device)

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, log_std = self._mean_log_std(params)
        return (mean + log_std.exp() * noise).reshape(-1, *self.shape)

    def mode(self, params: Tensor, mask: Tensor | None = None) -> Tensor:
        return params[:, : self.noise_size].reshape(-1, *self.shape)

    def log_prob_entropy(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mean, log_std = self._mean_log_std(params)
        entropy = (log_std + (0.5 + _LOG_SQRT_2PI)).expand_as(mean)
        if self.squash:
            entropy = entropy + squashed_entropy(mean, log_std.exp().expand_as(mean))
        return self.log_prob(params, actions), entropy.sum(-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """(B,) log-probability of raw actions alone; autograd works."""
        mean, log_std = self._mean_log_std(params)
        raw = actions.reshape(mean.shape)
        log_prob = -0.5 * ((raw - mean) * torch.exp(-log_std)).square() - log_std - _LOG_SQRT_2PI
        return (log_prob - log_tanh_slope(raw) if self.squash else log_prob).sum(-1)

    def evaluate(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Log-probabilities (B,), and what `pull_back` needs; global std, not squashed."""
        inverse = torch.exp(-self.log_std.detach())
        z = (actions.reshape(params.shape) - params).mul_(inverse)
        square = z.square()
        constant = self.log_std.detach().sum() + self.noise_size * _LOG_SQRT_2PI
        return square.sum(-1).mul_(-0.5).sub_(constant), (z, square, inverse)

    def pull_back(self, saved: Any, d_log_probs: Tensor, d_entropy: Tensor | None) -> Tensor:
        """Gradient with respect to the means; writes that of `log_std` into its `.grad`.

        d log p / d mean = z / std;  d log p / d log_std = z^2 - 1;  d H / d log_std = 1.
        """
        z, square, inverse = saved
        grad = torch.mv(square.sub_(1.0).t(), d_log_probs, out=self.log_std.grad)
        if d_entropy is not None:
            grad.add_(d_entropy.sum())
        return z.mul_(inverse).mul_(d_log_probs.unsqueeze(-1))

    def to_world(self, actions: Tensor) -> Tensor:
        return self.bounds(actions)

    def std(self) -> Tensor | None:
        return self.log_std.detach().exp().mean() if self.is_global else None

    def _mean_log_std(self, params: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_global:
            return params, self.log_std
        mean, log_std = params.chunk(2, -1)
        return mean, (log_std + self.log_std_init).clamp(*LOG_STD_RANGE)


class StateDependentNoise(nn.Module):
    """Generalised state-dependent exploration (Raffin et al. 2020, arXiv 2005.05719, section 3).

    The noise of an action is a matrix times the actor's last layer, and the matrix is held for
    `gsde_every` steps: the robot moves smoothly instead of shaking. As in the paper's code, the
    last layer is a constant for the variance (`learn_features=False`), and params are
    [mean | last layer].
    """

    mask_size = 0
    epsilon = 1e-6

    def __init__(self, leaf: Leaf, cfg: NetworkConfig, latent_size: int) -> None:
        super().__init__()
        self.bounds = _Bounds(leaf, cfg.squash)
        self.squash = cfg.squash
        self.shape = leaf.shape
        self.num_params = math.prod(leaf.shape)
        self.latent_size = latent_size
        self.noise_size = latent_size * self.num_params
        self.every = cfg.gsde_every
        if self.every < 1:
            raise UserError(f"gsde_every is {self.every}: hold the matrix for at least one step")
        size = (latent_size, self.num_params)
        self.log_std = nn.Parameter(torch.full(size, float(cfg.log_std_init)))

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        size = (*lead, self.noise_size)
        return torch.randn(size, generator=generator, device=generator.device)

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, latent = params.split((self.num_params, self.latent_size), -1)
        matrix = noise.reshape(-1, self.latent_size, self.num_params) * self.log_std.exp()
        if len(matrix) == 1:  # the same for all rows
            return (mean + latent @ matrix[0]).reshape(-1, *self.shape)
        return (mean + (latent.unsqueeze(1) @ matrix).squeeze(1)).reshape(-1, *self.shape)

    def mode(self, params: Tensor, mask: Tensor | None = None) -> Tensor:
        return params[:, : self.num_params].reshape(-1, *self.shape)

    def log_prob_entropy(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mean, variance = self._mean_variance(params)
        entropy = 0.5 * variance.log() + (0.5 + _LOG_SQRT_2PI)
        if self.squash:
            entropy = entropy + squashed_entropy(mean, variance.sqrt())
        return self._log_prob(mean, variance, actions), entropy.sum(-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """(B,) log-probability of raw actions alone; autograd works."""
        return self._log_prob(*self._mean_variance(params), actions)

    def to_world(self, actions: Tensor) -> Tensor:
        return self.bounds(actions)

    def std(self) -> Tensor:
        return self.log_std.detach().exp().mean()

    def _mean_variance(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, latent = params.split((self.num_params, self.latent_size), -1)
        return mean, latent.square() @ self.log_std.exp().square() + self.epsilon

    def _log_prob(self, mean: Tensor, variance: Tensor, actions: Tensor) -> Tensor:
        raw = actions.reshape(mean.shape)
        log_prob = -0.5 * ((raw - mean).square() / variance + variance.log()) - _LOG_SQRT_2PI
        return (log_prob - log_tanh_slope(raw) if self.squash else log_prob).sum(-1)
