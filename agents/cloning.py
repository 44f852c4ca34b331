"""Behaviour cloning: learning what a demonstrator did, before and beside learning from rewards.

Of a continuous action the policy's mean comes nearer to what was shown, measured in half ranges of
the action; its deviation is left alone, so that exploration goes on. Of a choice the probability of
what was chosen rises. Both are plain supervised learning (Pomerleau 1991, doi
10.1162/neco.1991.3.1.88); beside the rewards its weight falls, so that in the end the rewards alone
count and the policy may become better than its teacher.

PPO and SAC, vectors and pictures, all kinds of actions, with and without memory. A policy with
memory learns from sequences whose first state is zero, also where one begins within an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlgym.agents.distributions import Bernoulli, Joint, allow
from rlgym.agents.losses import box_cloning_loss, choice_cloning_loss
from rlgym.agents.networks import from_zero, one_hot
from rlgym.agents.optimizer import FlatAdam
from rlgym.agents.policy import ActorCritic
from rlgym.agents.rows import map_rows
from rlgym.config import CloneConfig
from rlgym.errors import UserError
from rlgym.rollout.demonstrations import Demonstrations
from rlgym.rollout.ring import FINAL
from rlgym.spaces import Leaf


class Cloning:
    """Demonstrations on the learner's device, and the loss that a policy has on them.

    Args:
        policy: an `ActorCritic` or a `SoftPolicy`, on its device.
        optimizer: the one that holds the actor's parameters.
        shown: what the demonstrator saw and did.
        cfg: settings.

    Attributes:
        size: steps that were shown.
        coef: weight of the loss beside the learner's own.

    Raises:
        UserError: nothing was shown.
    """

    def __init__(
        self, policy: Any, optimizer: FlatAdam, shown: Demonstrations, cfg: CloneConfig
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.cfg = cfg
        self.size = shown.size
        self.coef = cfg.coef
        if not self.size:
            raise UserError("the demonstrations hold no whole step: record at least two steps")
        device = policy.device
        self.has_memory = getattr(policy, "memory", None) is not None
        self.has_towers = isinstance(policy, ActorCritic) and policy.is_plain()
        self.obs = map_rows(lambda x: x.to(device), shown.obs)
        mask = None if shown.mask is None else shown.mask.to(device)
        self.targets = _targets(policy, shown, mask, device)
        self.weights = torch.from_numpy((shown.flags < FINAL).astype(np.float32)).to(device)
        length = cfg.sequence if self.has_memory else 1
        self.sequences = torch.from_numpy(_sequences(shown, length)).to(device)
        """(S, T) rows of each sequence; its end is filled up with a row that has no weight."""

    def follow(self, progress: float) -> None:
        """Let the weight of the loss follow its schedule; progress goes from 0 to 1."""
        left = max(0.0, 1.0 - progress) if self.cfg.schedule == "linear" else 1.0
        self.coef = self.cfg.coef * left

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss on a random batch, (); with autograd where gradients are enabled."""
        return self._loss(self._draw(generator))

    def _draw(self, generator: torch.Generator) -> Tensor:
        """Rows of random sequences, (T, n)."""
        count, length = self.sequences.shape
        number = max(1, self.cfg.batch_size // length)
        drawn = torch.randint(count, (number,), generator=generator, device=generator.device)
        return self.sequences[drawn.to(self.sequences.device)].t()

    def _loss(self, rows: Tensor) -> Tensor:
        """The loss on sequences of rows, (T, n)."""
        flat = rows.reshape(-1)
        start = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
        start[0] = True
        inputs = self.policy.preparation(map_rows(lambda x: x[flat], self.obs))
        if self.has_memory:
            params = self.policy(inputs, None, start)[0]
        else:
            params = self.policy(inputs)
            params = params[0] if isinstance(params, tuple) else params
        return self._loss_of(params, flat)

    def _loss_of(self, params: Tensor, rows: Tensor) -> Tensor:
        """The loss of what a policy's network says of some rows, ()."""
        weights = self.weights[rows]
        losses = [target.loss(params, rows, weights) for target in self.targets]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def add_gradient(self, generator: torch.Generator, coef: float | None = None) -> Tensor:
        """Add the loss's gradient times `coef` to the optimiser's; returns the loss, ().

        Args:
            generator: draws the batch.
            coef: weight of the loss; None takes the attribute.
        """
        rows = self._draw(generator)
        if self.has_towers:
            return self._written_out(rows[0], self.coef if coef is None else coef)
        with torch.enable_grad():
            loss = self._loss(rows)
            grads = torch.autograd.grad(
                loss, self.optimizer.parameters, allow_unused=True, materialize_grads=True
            )
        self.optimizer.add(grads, self.coef if coef is None else coef)
        return loss.detach()

    @torch.no_grad()
    def _written_out(self, rows: Tensor, coef: float) -> Tensor:
        """`add_gradient` for two towers on vectors, with autograd for their outputs alone."""
        towers, grad = self.policy.towers, self.optimizer.grad
        inputs = self.policy.preparation(map_rows(lambda x: x[rows], self.obs))
        x = inputs["vector"]
        if "privileged" in inputs:
            x = torch.cat((x, inputs["privileged"]), 1)
        params, values, _ = towers.run(x)
        params = params.requires_grad_()
        with torch.enable_grad():
            loss = self._loss_of(params, rows)
        (d_params,) = torch.autograd.grad(loss, params)
        others = grad.clone()
        grad.zero_()
        towers.backprop(d_params.mul_(coef), torch.zeros_like(values))
        grad.add_(others)
        return loss.detach()

    def pretrain(self, generator: torch.Generator) -> tuple[float, float]:
        """Take `cfg.steps` gradient steps on the demonstrations alone.

        The normaliser sees what was shown first. The optimiser is left as new.

        Returns:
            The loss over the first tenth of the steps, and over the last.
        """
        optimizer, rate = self.optimizer, self.optimizer.learning_rate.clone()
        optimizer.learning_rate.fill_(self.cfg.learning_rate)
        losses = []
        for _ in range(self.cfg.steps):
            optimizer.grad.zero_()
            losses.append(self.add_gradient(generator, coef=1.0))
            optimizer.step(None)
        optimizer.forget()
        optimizer.learning_rate.copy_(rate)
        tenth = max(1, len(losses) // 10)
        first, last = torch.stack(losses[:tenth]).mean(), torch.stack(losses[-tenth:]).mean()
        return float(first), float(last)

    def normalize(self) -> None:
        """Let a new policy's normaliser see what was shown, as if it had been a rollout."""
        self.policy.preparation.update_normalizers(self.obs, self.weights)


# ------------------------------------------------------------------------------------- targets


@dataclass
class _Target:
    """What was shown of one leaf of the action space, and where the policy says its own."""

    distribution: Any
    columns: slice
    """Of the distribution's parameters."""
    shown: Tensor
    """(K, D): a box in half ranges around its middle; choices as ones and zeros."""
    sizes: tuple[int, ...] = ()
    """Of each choice; () for a box and for switches."""
    mask: Tensor | None = None
    """(K, choices) bool; what was chosen is allowed."""
    span: tuple[Tensor, Tensor] | None = None
    """Middle and half range of a box that is not squashed."""

    def loss(self, params: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """The loss on some rows, ()."""
        own, shown = params[:, self.columns], self.shown[rows]
        if isinstance(self.distribution, Bernoulli):
            log_probs = torch.cat((logsigmoid(own), logsigmoid(-own)), 1)
            return choice_cloning_loss(log_probs, torch.cat((shown, 1.0 - shown), 1), weights)
        if not self.sizes:
            return box_cloning_loss(self._half_ranges(own), shown, weights)
        flags = None if self.mask is None else self.mask[rows].split(self.sizes, 1)
        log_probs = [
            torch.log_softmax(allow(logits, None if flags is None else flags[k]), 1)
            for k, logits in enumerate(own.split(self.sizes, 1))
        ]
        return choice_cloning_loss(torch.cat(log_probs, 1), shown, weights)

    def _half_ranges(self, mean: Tensor) -> Tensor:
        """The policy's mean in half ranges around the middle."""
        if self.span is None:
            return mean.tanh()
        middle, half = self.span
        return (mean - middle) / half


def _targets(
    policy: Any, shown: Demonstrations, mask: Tensor | None, device: torch.device
) -> list[_Target]:
    distribution = policy.distribution
    parts = distribution.parts if isinstance(distribution, Joint) else [distribution]
    found, at, mask_at = [], 0, 0
    for leaf, part in zip(policy.action_layout.leaves, parts, strict=True):
        actions: Any = shown.actions[leaf.key] if isinstance(shown.actions, dict) else shown.actions
        flat = actions.reshape(len(actions), -1).to(device)
        if leaf.dtype.kind == "f":
            size = flat.shape[1]
            middle, half = span = _span(part)
            flat = flat if shown.stored else (flat - middle) / half
            columns = slice(at, at + size)
            target = _Target(part, columns, flat.float(), span=None if part.squash else span)
        else:
            target = _choices(leaf, part, flat, at)
            size = part.mask_size
            if mask is not None and size:
                own = mask[:, mask_at : mask_at + size]
                # people choose what a mask forbids, where nothing holds them to it
                target.mask = own | (target.shown > 0)
            mask_at += size
        found.append(target)
        at += part.num_params
    return found


def _choices(leaf: Leaf, part: Any, actions: Tensor, at: int) -> _Target:
    columns = slice(at, at + part.num_params)
    if isinstance(part, Bernoulli):
        return _Target(part, columns, actions.to(torch.float32))
    values = from_zero(leaf, actions)
    shown = torch.cat([one_hot(values[:, i], n) for i, n in enumerate(leaf.num_choices)], 1)
    return _Target(part, columns, shown, leaf.num_choices)


def _span(distribution: Any) -> tuple[Tensor, Tensor]:
    """Middle and half range of each value of a box; 0 and 1 where it has no bounds."""
    low, high = distribution.bounds.low.reshape(-1), distribution.bounds.high.reshape(-1)
    bounded = torch.isfinite(low) & torch.isfinite(high) & (high > low)
    middle = torch.where(bounded, 0.5 * (low + high), 0.0)
    return middle, torch.where(bounded, 0.5 * (high - low), 1.0)


def _sequences(shown: Demonstrations, length: int) -> np.ndarray:
    """Cut each episode into sequences of at most `length` steps; (S, length) rows."""
    found = []
    for first, last in shown.episodes():
        for begin in range(first, last - 1, length):  # the last row is no step
            rows = np.arange(begin, begin + length)
            found.append(np.minimum(rows, last - 1))
    return np.stack(found)
