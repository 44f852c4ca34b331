"""Losses as pure functions of a batch, and the gradients that follow from them: PPO's, then SAC's.

Everything is (B,). `weights` are 1 where a row counts and 0 where it does not (an inactive slot, a
row that fills up the last minibatch); every mean divides by their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlgym.agents.peers import ALONE, Peers, total


def weighted_mean(values: Tensor, weights: Tensor, peers: Peers = ALONE) -> Tensor:
    """Sum of values times weights over the sum of weights; 0 when nothing has weight."""
    parts = (values * weights).sum(), weights.sum()
    if peers.size > 1:
        parts = peers.mean(torch.stack(parts)).unbind()
    return parts[0] / parts[1].clamp(min=1e-8)


def shares(weights: Tensor, peers: Peers = ALONE) -> Tensor:
    """Each row's part of a mean over the last axis; over all processes they add up to `size`."""
    count = peers.mean(weights.sum(-1, keepdim=True))
    return weights / count.clamp(min=1e-8)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip: float | Tensor,
) -> Tensor:
    """Clipped surrogate, negated (PPO, equation 7); everything (B,)."""
    ratio = torch.exp(log_probs - old_log_probs)
    bound = torch.as_tensor(clip)
    clipped = ratio.clamp(1.0 - bound, 1.0 + bound)
    return -weighted_mean(torch.min(ratio * advantages, clipped * advantages), weights)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    weights: Tensor,
    clip: float | None = None,
) -> Tensor:
    """Squared error; with `clip`, the larger of it and that of the clipped value.

    The clipped form is OpenAI baselines' (ppo2/model.py): a value that moved further than `clip`
    from the rollout's gains nothing more from it.
    """
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.max(error, (near - returns).square())
    return weighted_mean(error, weights)


def approximate_kl(
    log_probs: Tensor, old_log_probs: Tensor, weights: Tensor, peers: Peers = ALONE
) -> Tensor:
    """E[(r - 1) - log r], never negative (Schulman 2020, joschu.net/blog/kl-approx.html)."""
    log_ratio = log_probs - old_log_probs
    return weighted_mean(torch.expm1(log_ratio) - log_ratio, weights, peers)


def explained_variance(values: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns); NaN when the returns do not vary."""

    def variance(x: Tensor) -> Tensor:
        return weighted_mean((x - weighted_mean(x, weights)).square(), weights)

    spread = variance(returns)
    return torch.where(spread > 0, 1.0 - variance(returns - values) / spread, torch.nan)


def standardize(advantages: Tensor, weights: Tensor, peers: Peers = ALONE) -> Tensor:
    """Zero mean and unit (unbiased) deviation over each row's weighted entries; both (k, m).

    With `peers`, a row's entries are those of all processes.
    """
    count = total(weights.sum(1), peers)
    mean = total(torch.linalg.vecdot(advantages, weights), peers) / count.clamp(min=1.0)
    centred = advantages - mean.unsqueeze(1)
    squares = total(torch.linalg.vecdot(centred * centred, weights), peers)
    variance = squares / (count - 1.0).clamp(min=1.0)
    return centred / (variance.sqrt() + 1e-8).unsqueeze(1)


def log_prob_gradient(
    log_probs: Tensor, old_log_probs: Tensor, slope: Tensor, sign: Tensor, limit: Tensor
) -> Tensor:
    """Gradient of `policy_loss` with respect to `log_probs`.

    It is slope * ratio, and zero where clipping won: where the ratio has passed 1 + clip with a
    positive advantage, or 1 - clip with a negative one. With sign = sign(advantage) both cases
    read sign * ratio > limit = sign + clip.

    Args:
        log_probs: (B,).
        old_log_probs: (B,).
        slope: (B,) -advantage * weight / sum of weights.
        sign: (B,) the advantage's sign.
        limit: (B,) sign + clip.
    """
    ratio = (log_probs - old_log_probs).exp_()
    free = sign * ratio <= limit
    return ratio.mul_(slope).mul_(free)


def value_gradient(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor,
    slope: Tensor,
    clip: float | None,
) -> Tensor:
    """Gradient of `value_loss` with respect to `values`; slope (B,) = 2 * weight / sum of them."""
    error = values - returns
    if clip is not None and old_values is not None:
        moved = values - old_values
        near = old_values + moved.clamp(-clip, clip) - returns
        # `near` differs from `error` by rounding where nothing was clipped, hence the second test
        free = (error.square() >= near.square()) | (moved.abs() <= clip)
        error = torch.where(free, error, 0.0)
    return error * slope


# --------------------------------------------------------------------------- soft actor-critic
# Means are sums over rows times `share` (B,), from `shares`.


def soft_target(
    rewards: Tensor, discounts: Tensor, next_q: Tensor, next_log_probs: Tensor, temperature: Tensor
) -> Tensor:
    """What the critics should say (SAC, arXiv 1812.05905, equations 2 and 3); everything (B,).

    Args:
        rewards: sum of n discounted rewards.
        discounts: gamma^n, 0 where the episode terminated.
        next_q: the target critics' value of the policy's action in the state after.
        next_log_probs: that action's log-probability.
        temperature: () weight of the entropy.
    """
    return rewards + discounts * (next_q - temperature * next_log_probs)


def critic_loss(q: Tensor, targets: Tensor, share: Tensor) -> Tensor:
    """Half the squared error, added up over critics (equation 5); q (critics, B), else (B,)."""
    return 0.5 * ((q - targets).square().sum(0) * share).sum()


def actor_loss(q: Tensor, log_probs: Tensor, share: Tensor, temperature: Tensor) -> Tensor:
    """What the policy gives up in value against what it keeps in entropy (equation 7)."""
    return ((temperature * log_probs - q) * share).sum()


def temperature_loss(
    log_temperature: Tensor, log_probs: Tensor, target_entropy: Tensor | float, share: Tensor
) -> Tensor:
    """Raise the temperature while the entropy is below its target, in logs.

    Equation 18 of the paper with log(temperature) in place of the temperature, as its authors' code
    and stable-baselines3 have it: both have the same sign and root. It is linear, so that its value
    at 1 is its gradient everywhere.
    """
    return -log_temperature * ((log_probs + target_entropy) * share).sum()


# -------------------------------------------------------------------------- behaviour cloning


def box_cloning_loss(actions: Tensor, shown: Tensor, weights: Tensor) -> Tensor:
    """Mean squared distance from what a demonstrator did; actions and shown are (B, D)."""
    return weighted_mean((actions - shown).square().mean(-1), weights)


def choice_cloning_loss(log_probs: Tensor, shown: Tensor, weights: Tensor) -> Tensor:
    """Negative log-probability of what a demonstrator chose.

    Args:
        log_probs: (B, M), components side by side.
        shown: (B, M), 1 where the demonstrator chose, else 0.
        weights: (B,).
    """
    return -weighted_mean((log_probs * shown).sum(-1), weights)
