"""The gradient of one PPO minibatch, in two ways: through autograd, and written out.

Both are called with a minibatch's rows and fill the optimiser's gradient. They share the formulas
of `losses` for the slopes of log-probabilities, entropies and values; what differs is how these are
brought back to the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlgym.agents.losses import log_prob_gradient, shares, value_gradient
from rlgym.agents.optimizer import FlatAdam
from rlgym.agents.peers import ALONE, Peers
from rlgym.agents.policy import ActorCritic
from rlgym.config import PPOConfig

Symmetry = Callable[[Any, Any], tuple[Any, Any]]
"""`symmetry(obs, actions) -> (obs, actions)` mirrors batches of each; either may be None."""


class WrittenOut:
    """Two towers on vectors. Autograd is asked for the distribution alone, or not at all.

    Attributes:
        without_autograd: not at all, so that an update may run in inference mode.
        peers: processes that learn together.
    """

    def __init__(self, policy: ActorCritic, cfg: PPOConfig) -> None:
        self.policy = policy
        self.cfg = cfg
        self.peers: Peers = ALONE
        self.without_autograd = getattr(policy.distribution, "has_closed_form", False)

    def __call__(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Fill the optimiser's gradient; returns (B,) log-probabilities and values."""
        inputs, distribution = batch["inputs"], self.policy.distribution
        x = inputs["vector"]
        if "privileged" in inputs:
            x = torch.cat((x, inputs["privileged"]), 1)
        params, values, last = self.policy.towers.run(x)
        if self.without_autograd:
            log_probs, saved = distribution.evaluate(params, batch["actions"], batch["mask"])
            d_log_probs, d_entropy, d_values = _slopes(batch, log_probs, values, self.cfg)
            d_params = distribution.pull_back(saved, d_log_probs, d_entropy)
        else:
            size = params.shape[1]
            if distribution.latent_size:
                params = torch.cat((params, last), 1)
            log_probs, d_params, d_values = self._through_distribution(batch, params, values)
            d_params = d_params[:, :size]
        self.policy.towers.backprop(d_params, d_values)
        return log_probs, values

    def _through_distribution(
        self, batch: dict[str, Any], params: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Autograd for the distribution alone: log-probabilities, d params, d values."""
        distribution = self.policy.distribution
        own = list(distribution.parameters())
        with torch.enable_grad():
            params.requires_grad_()
            log_probs, entropy = distribution.log_prob_entropy(
                params, batch["actions"], batch["mask"]
            )
        d_log_probs, d_entropy, d_values = _slopes(batch, log_probs.detach(), values, self.cfg)
        d_entropy = torch.zeros_like(d_log_probs) if d_entropy is None else d_entropy
        d_params, *d_own = torch.autograd.grad(
            (log_probs, entropy), (params, *own), (d_log_probs, d_entropy)
        )
        for parameter, gradient in zip(own, d_own, strict=True):
            parameter.grad.copy_(gradient)
        return log_probs.detach(), d_params, d_values


class Autograd:
    """Any policy: images, memory, own networks, and the mirror loss.

    Args:
        symmetry: mirrors observations and actions, where there is a mirror loss.
    """

    def __init__(
        self,
        policy: ActorCritic,
        cfg: PPOConfig,
        optimizer: FlatAdam,
        symmetry: Symmetry | None,
    ) -> None:
        self.policy = policy
        self.cfg = cfg
        self.optimizer = optimizer
        self.symmetry = symmetry
        self.peers: Peers = ALONE
        self.without_autograd = False

    def __call__(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See `WrittenOut`."""
        policy = self.policy
        with torch.enable_grad():
            params, values, _ = policy(batch["inputs"], batch.get("state"), batch.get("start"))
            log_probs, entropy = policy.distribution.log_prob_entropy(
                params, batch["actions"], batch["mask"]
            )
            outputs = [log_probs, values, entropy]
            if self.symmetry is not None:
                outputs.append(self._mirror_loss(batch, params, self.symmetry))
        log_probs, values = log_probs.detach(), values.detach()
        d_log_probs, d_entropy, d_values = _slopes(batch, log_probs, values, self.cfg)
        seeds = [d_log_probs, d_values, d_entropy]
        if d_entropy is None:
            seeds[2] = torch.zeros_like(d_log_probs)
        if self.symmetry is not None:
            seeds.append(torch.full_like(outputs[3], self.cfg.symmetry_coef))
        grads = torch.autograd.grad(
            outputs, self.optimizer.parameters, seeds, allow_unused=True, materialize_grads=True
        )
        self.optimizer.gather(grads)
        return log_probs, values

    def _mirror_loss(self, batch: dict[str, Any], params: Tensor, symmetry: Symmetry) -> Tensor:
        """Squared distance between the mirrored state's action and the action's mirror image."""
        distribution = self.policy.distribution
        mirrored_params = self.policy(batch["mirrored"])[0]
        _, target = symmetry(None, distribution.mode(params.detach(), None))
        mirrored = distribution.mode(mirrored_params, None)
        keys = mirrored if isinstance(mirrored, dict) else [""]
        loss = params.new_zeros(())
        for key in keys:
            ours, theirs = (mirrored[key], target[key]) if key else (mirrored, target)
            gap = (ours - theirs).square().flatten(1).mean(1)
            loss = loss + (gap * shares(batch["weights"], self.peers)).sum()
        return loss


def _slopes(
    batch: dict[str, Any], log_probs: Tensor, values: Tensor, cfg: PPOConfig
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradient of the loss with respect to log-probabilities, entropies and values."""
    d_log_probs = log_prob_gradient(
        log_probs, batch["log_probs"], batch["slope"], batch["sign"], batch["limit"]
    )
    d_values = value_gradient(
        values, batch.get("values"), batch["returns"], batch["value_slope"], cfg.value_clip
    )
    return d_log_probs, batch.get("entropy_slope"), d_values
