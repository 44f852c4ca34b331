"""The gradients of one SAC step, in two ways: through autograd, and written out.

Both have the same three parts, called in this order, with an optimiser's step after each; `share`
(B,) is each row's part of a mean:

    log_probs = way.begin(batch, noises, with_actor)    the actor, on both observations
    q, error = way.critic_gradient(temperature)
    loss = way.actor_gradient(temperature)              with the critics' new parameters
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlgym.agents.gaussian import LOG_STD_RANGE, Gaussian
from rlgym.agents.losses import actor_loss, critic_loss, shares, soft_target
from rlgym.agents.optimizer import FlatAdam
from rlgym.agents.peers import ALONE, Peers
from rlgym.agents.soft_actions import Draw
from rlgym.agents.soft_policy import SoftPolicy

_LOG_2 = math.log(2.0)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Autograd:
    """Any policy: images, choices, state-dependent noise, layer normalisation, own networks."""

    def __init__(self, policy: SoftPolicy, actor: FlatAdam, critics: FlatAdam) -> None:
        self.policy = policy
        self.actor_optimizer = actor
        self.critic_optimizer = critics
        self.without_autograd = False
        self.peers: Peers = ALONE

    def begin(self, batch: Any, noises: list[Tensor], with_actor: bool) -> Tensor | None:
        """Act in the batch's observations, and in those that followed.

        Args:
            batch: a `rlgym.rollout.replay.Batch` of B transitions.
            noises: from `SoftActions.learner_noise`, for 2 B rows with the actor, else for B.
            with_actor: whether the actor will be improved; False leaves its part out.

        Returns:
            (B,) log-probabilities of what the actor does now (expected ones, of choices).
        """
        policy, rows = self.policy, len(batch.rewards)
        self.batch = batch
        self.share = shares(batch.weights, self.peers)
        self.inputs = policy.preparation(batch.obs)
        self.next_inputs = policy.preparation(batch.next_obs)
        with torch.no_grad():
            later = [noise[-rows:] for noise in noises]
            self.next_draw = policy.actions.draw(policy(self.next_inputs), later, batch.next_mask)
        if not with_actor:
            return None
        with torch.enable_grad():
            now = [noise[:rows] for noise in noises]
            self.draw: Draw = policy.actions.draw(policy(self.inputs), now, batch.mask)
        return self.draw.log_prob.detach()

    def critic_gradient(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the critics' gradient; returns Q of the batch's actions and its error, (E, B)."""
        policy, batch = self.policy, self.batch
        with torch.no_grad():
            q, _ = policy.target(self.next_inputs, self.next_draw.continuous)
            q = policy.actions.expected_q(q, self.next_draw)
            targets = soft_target(
                batch.rewards, batch.discounts, q, self.next_draw.log_prob, temperature
            )
        continuous, chosen = policy.actions.columns(batch.actions)
        with torch.enable_grad():
            q, _ = policy.critics(self.inputs, continuous)
            q = policy.actions.taken_q(q, chosen)
            loss = critic_loss(q, targets, self.share)
        self._fill(self.critic_optimizer, loss)
        q = q.detach()
        return q, q - targets

    def actor_gradient(self, temperature: Tensor) -> Tensor:
        """Fill the actor's gradient; returns its loss, ()."""
        policy = self.policy
        with torch.enable_grad():
            q, _ = policy.critics(self.inputs, self.draw.continuous)
            q = policy.actions.expected_q(q, self.draw)
            loss = actor_loss(q, self.draw.log_prob, self.share, temperature)
        self._fill(self.actor_optimizer, loss)
        del self.draw  # it holds autograd's graph, and this step's memory
        return loss.detach()

    @staticmethod
    def _fill(optimizer: FlatAdam, loss: Tensor) -> None:
        grads = torch.autograd.grad(
            loss, optimizer.parameters, allow_unused=True, materialize_grads=True
        )
        optimizer.gather(grads)


class _CriticInput:
    """An array (B, vector + privileged + actions), the same for all critics, and views of it."""

    def __init__(self, like: Tensor, sizes: tuple[int, int, int], members: int) -> None:
        array = like.new_empty(len(like), sum(sizes))
        self.vector, self.privileged, self.actions = array.split(sizes, 1)
        self.all = array.expand(members, -1, -1)


class WrittenOut:
    """Vectors in, Box actions out, no layer normalisation.

    The actor runs once, on the observations before and after together. Everything else is done in
    arrays that are there already. Autograd is asked for nothing where the actions are one Gaussian;
    else, as for state-dependent noise, for what lies between the actor's layers and the actions.
    """

    def __init__(self, policy: SoftPolicy) -> None:
        self.policy = policy
        distribution = policy.distribution
        self.without_autograd = isinstance(distribution, Gaussian)
        self.peers: Peers = ALONE
        self.own = list(distribution.parameters())
        self.outputs = distribution.num_params
        self.size = policy.actions.size
        self.features = policy.critics.features.size
        self.log_std_init = getattr(distribution, "log_std_init", 0.0)
        self._kept: dict[Any, tuple[_CriticInput, _CriticInput]] = {}

    def begin(self, batch: Any, noises: list[Tensor], with_actor: bool) -> Tensor | None:
        """See `Autograd.begin`."""
        policy, rows = self.policy, len(batch.rewards)
        self.batch, self.rows = batch, rows
        self.share = shares(batch.weights, self.peers)
        now = policy.preparation.forward(batch.obs)
        later = policy.preparation.forward(batch.next_obs)
        self.x, self.next_x = self._critic_inputs(now, later)
        seen = later["vector"]
        if with_actor:
            seen = torch.cat((now["vector"], seen))
        params = policy.actor.layers.run(seen)[0]
        if self.without_autograd:
            self._act(params, noises[0])
        else:
            self._draw(params, noises, with_actor)
        return self.log_prob if with_actor else None

    def _critic_inputs(
        self, now: dict[str, Tensor], later: dict[str, Tensor]
    ) -> tuple[_CriticInput, _CriticInput]:
        """The critics' inputs for both observations; the actions are filled in later."""
        x = now["vector"]
        # arrays made in inference mode can only be written there
        key = (len(x), x.device, x.dtype, torch.is_inference_mode_enabled())
        if key not in self._kept:
            sizes = (x.shape[1], self.features - x.shape[1], self.size)
            members = self.policy.critics.layers.members
            # for good: a recorded graph knows where they are; batches have few sizes
            self._kept[key] = _CriticInput(x, sizes, members), _CriticInput(x, sizes, members)
        arrays = self._kept[key]
        for array, inputs in zip(arrays, (now, later), strict=True):
            array.vector.copy_(inputs["vector"])
            if "privileged" in inputs:
                array.privileged.copy_(inputs["privileged"])
        return arrays

    def _draw(self, params: Tensor, noises: list[Tensor], with_actor: bool) -> None:
        """Sample, with a graph that begins at the actor's outputs and its last layer."""
        actions, rows = self.policy.actions, self.rows
        if self.policy.distribution.latent_size:
            params = torch.cat((params, self.policy.actor.layers.last[0]), 1)
        later = actions.draw(params[-rows:], [noise[-rows:] for noise in noises], None)
        self.next_action, self.next_log_prob = later.continuous, later.log_prob
        if with_actor:
            self.params = params[:rows].requires_grad_()
            with torch.enable_grad():
                now = actions.draw(self.params, [noise[:rows] for noise in noises], None)
            self.drawn = now.continuous, now.log_prob
            self.action, self.log_prob = now.continuous.detach(), now.log_prob.detach()

    def _act(self, params: Tensor, noise: Tensor) -> None:
        """Sample; log p = -sum(noise^2 / 2 + log std + log sqrt(2 pi) + log(1 - tanh(raw)^2))."""
        mean, log_std = params.chunk(2, 1)
        if self.log_std_init:
            log_std = log_std + self.log_std_init
        clamped = log_std.clamp(*LOG_STD_RANGE)
        spread = clamped.exp().mul_(noise)
        raw = mean + spread
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), which is stable for large |x|
        slope = torch.nn.functional.softplus(raw * -2.0).add_(raw)
        terms = torch.addcmul(clamped, noise, noise, value=0.5).sub_(slope, alpha=2.0)
        action, rows = raw.tanh_(), self.rows
        log_probs = terms.sum(1).add_(self.size * (_LOG_SQRT_2PI + 2.0 * _LOG_2)).neg_()
        self.next_action, self.next_log_prob = action[-rows:], log_probs[-rows:]
        self.action, self.log_prob = action[:rows], log_probs[:rows]
        self.spread = spread[:rows]
        self.free = log_std[:rows] == clamped[:rows]  # where the gradient passes the clamp

    def critic_gradient(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autograd.critic_gradient`."""
        policy, batch = self.policy, self.batch
        self.next_x.actions.copy_(self.next_action)
        q = policy.target.layers.run(self.next_x.all).squeeze(2).amin(0)
        targets = soft_target(batch.rewards, batch.discounts, q, self.next_log_prob, temperature)
        self.x.actions.copy_(policy.actions.columns(batch.actions)[0])
        q = policy.critics.layers.run(self.x.all).squeeze(2)
        error = q - targets
        # the loss is half the squared error, so this is its slope
        policy.critics.layers.backprop((error * self.share).unsqueeze(2))
        return q, error

    def actor_gradient(self, temperature: Tensor) -> Tensor:
        """See `Autograd.actor_gradient`."""
        policy = self.policy
        self.x.actions.copy_(self.action)
        q = policy.critics.layers.run(self.x.all).squeeze(2)
        lowest, critic = q.min(0, keepdim=True)
        d_q = torch.zeros_like(q).scatter_(0, critic, -self.share.unsqueeze(0))
        d_action = policy.critics.layers.input_gradient(d_q.unsqueeze(2), self.features).sum(0)
        d_log_prob = self.share * temperature
        if self.without_autograd:
            self._pull_back(d_action, d_log_prob.unsqueeze(1))
        else:
            d_params, *d_own = torch.autograd.grad(
                self.drawn, (self.params, *self.own), (d_action, d_log_prob)
            )
            del self.drawn, self.params  # they hold autograd's graph, and this step's memory
            for parameter, gradient in zip(self.own, d_own, strict=True):
                parameter.grad.copy_(gradient)  # type: ignore[union-attr]
            d_outputs, d_last = d_params.tensor_split((self.outputs,), 1)
            latent = d_last.unsqueeze(0) if d_last.shape[1] else None
            policy.actor.layers.backprop(d_outputs.unsqueeze(0), latent)
        return torch.dot(self.share, temperature * self.log_prob - lowest[0])

    def _pull_back(self, d_action: Tensor, d_log_prob: Tensor) -> None:
        """Turn gradients of actions (B, D) and log-probabilities (B, 1) into the actor's.

        d log p / d raw = 2 tanh(raw), d log p / d log_std = that times std * noise - 1: the noise
        is given, so the Gaussian's own exponent does not move.
        """
        action = self.action
        d_raw = d_action.addcmul_(d_action * action, action, value=-1.0)
        d_raw.addcmul_(d_log_prob, action, value=2.0)
        d_log_std = (d_raw * self.spread).sub_(d_log_prob).mul_(self.free)
        self.policy.actor.layers.backprop(torch.cat((d_raw, d_log_std), 1).unsqueeze(0))
