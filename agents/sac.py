"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905).

One gradient step, in the order of stable-baselines3's: the temperature, the critics, the actor, the
critics' slow copy. Nothing is read back from the device; metrics stay tensors.

For vectors and Box actions the whole backward pass is written out (`soft_updates.WrittenOut`);
for everything else autograd does it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rlgym.agents.cloning import Cloning
from rlgym.agents.learner_state import parts_of
from rlgym.agents.losses import temperature_loss
from rlgym.agents.optimizer import FlatAdam, flatten
from rlgym.agents.peers import ALONE, Peers
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.agents.soft_updates import Autograd, WrittenOut
from rlgym.config import SACConfig
from rlgym.device import GraphedFn, Mode
from rlgym.errors import UserError


class SAC:
    """The learner: a policy, its optimisers and `update`.

    Args:
        policy: on its device already; its parameters become views of flat vectors.
        cfg: hyperparameters.
        total_steps: environment steps of the run; kept for the record, schedules use `progress`.
        mode: whether steps are recorded and replayed, see `rlgym.device.GraphedFn`.

    Attributes:
        log_temperature: () log of the entropy's weight.
        updates: gradient steps done.
        cloning: what was demonstrated, to be imitated beside; None without.

    Raises:
        UserError: for settings that contradict each other.
    """

    def __init__(
        self, policy: SoftPolicy, cfg: SACConfig, total_steps: int = 0, mode: Mode = "auto"
    ) -> None:
        _check(policy, cfg)
        self.policy = policy
        self.cfg = cfg
        self.mode: Mode = mode
        self.total_steps = total_steps
        self.peers: Peers = ALONE
        self.cloning: Cloning | None = None
        self.updates = 0
        self._learning: dict[Any, GraphedFn] = {}
        self._rates = (
            cfg.learning_rate,
            cfg.learning_rate if cfg.critic_learning_rate is None else cfg.critic_learning_rate,
            cfg.learning_rate,
        )
        start = cfg.initial_temperature if cfg.temperature is None else cfg.temperature
        start = math.log(start) if start > 0.0 else -math.inf
        self.log_temperature = nn.Parameter(torch.full((), start, device=policy.device))
        self._one = torch.ones((), device=policy.device)
        actor = [*policy.actor.parameters(), *policy.distribution.parameters()]
        groups = (actor, policy.critics.parameters(), [self.log_temperature])
        self.actor_optimizer, self.critic_optimizer, self.temperature_optimizer = (
            FlatAdam(group, rate, cfg.adam_eps)
            for group, rate in zip(groups, self._rates, strict=True)
        )
        self._target = flatten(list(policy.target.parameters()))
        self.way: Autograd | WrittenOut = (
            WrittenOut(policy)
            if policy.is_plain()
            else Autograd(policy, self.actor_optimizer, self.critic_optimizer)
        )

    def update(
        self, replay: Any, count: int, progress: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Take `count` gradient steps, each on a batch of its own.

        Args:
            replay: gives batches, `replay.sample(batch_size, generator)`; with `cfg.prioritized`
                it also takes `replay.set_priorities(index, errors)`.
            count: gradient steps.
            progress: fraction of the run that is done, 0 to 1; schedules follow it.
            generator: draws the batches and the policy's noise, nothing else is random.

        Returns:
            Scalars by name, as tensors: means over the steps under SB3's names "train/*", and
            "health/skipped_updates", steps whose gradient was not finite.
        """
        self._follow_schedules(progress)
        before = self._steps_taken()
        due = 0
        seen: dict[str, list[Tensor]] = {}
        for _ in range(count):
            with_actor = self.updates % self.cfg.actor_every == 0
            due += 2 if with_actor else 1
            with torch.no_grad():
                batch = replay.sample(self.cfg.batch_size, generator)
            metrics, error = self.step(batch, generator, with_actor)
            if self.cfg.prioritized:
                with torch.no_grad():
                    size = error.abs().mean(0)
                    replay.set_priorities(batch.index, torch.where(size < torch.inf, size, 0.0))
            for name, value in metrics.items():
                seen.setdefault(name, []).append(value)
        metrics = {f"train/{name}": _mean(values) for name, values in seen.items()}
        metrics["train/learning_rate"] = self.actor_optimizer.learning_rate.clone()
        metrics["train/n_updates"] = torch.tensor(self.updates)
        metrics["health/skipped_updates"] = due - (self._steps_taken() - before)
        return metrics

    def step(
        self, batch: Any, generator: torch.Generator, with_actor: bool = True
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Take one gradient step; without autograd where the policy allows it.

        Returns:
            Scalars of this step, and the critics' errors (num_critics, B).
        """
        key = (with_actor, id(generator))
        if key not in self._learning:
            self._learning[key] = GraphedFn(
                lambda batch, noises: self._learn(batch, noises, generator, with_actor),
                self.policy.device,
                self.mode,
                name="SAC's update",
                obstacle=self._obstacle(),
            )
        learn = self._learning[key]
        rows = len(batch.rewards) * (2 if with_actor else 1)
        metrics, error = learn(batch, self.policy.actions.learner_noise(rows, generator))
        self.updates += 1
        if learn.mode == "graph":  # what a replay returns, the next one overwrites
            metrics = {name: value.clone() for name, value in metrics.items()}
        return metrics, error

    def _obstacle(self) -> str:
        """What keeps a step from being recorded once and replayed."""
        if self.cloning is not None:
            return "demonstrations are drawn between the gradient steps"
        return "processes exchange gradients" if self.peers.size > 1 else ""

    def _learn(
        self, batch: Any, noises: list[Tensor], generator: torch.Generator, with_actor: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        # inference mode spares each operation autograd's bookkeeping
        fast = self.way.without_autograd and self.cloning is None
        with torch.inference_mode() if fast else torch.no_grad():
            return self._step(batch, noises, generator, with_actor)

    def _step(
        self, batch: Any, noises: list[Tensor], generator: torch.Generator, with_actor: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        cfg, way = self.cfg, self.way
        temperature = self.log_temperature.detach().exp()
        metrics = {"ent_coef": temperature}

        log_probs = way.begin(batch, noises, with_actor)
        if log_probs is not None and cfg.temperature is None:
            metrics["ent_coef_loss"] = self._temperature_step(log_probs, batch)
        q, error = way.critic_gradient(temperature)
        self.critic_optimizer.step(cfg.max_grad_norm)
        metrics["critic_loss"] = torch.mv(error.square(), way.share).sum() * 0.5
        metrics["q_mean"] = torch.mv(q, way.share).mean()
        if with_actor:
            metrics["actor_loss"] = way.actor_gradient(temperature)
            if self.cloning is not None:
                metrics["clone_loss"] = self.cloning.add_gradient(generator)
            self.actor_optimizer.step(cfg.max_grad_norm)
        self._target.lerp_(self.critic_optimizer.flat, cfg.tau)
        return metrics, error

    def _temperature_step(self, log_probs: Tensor, batch: Any) -> Tensor:
        target = self.cfg.target_entropy
        if target is None:
            target = self.policy.actions.target_entropy(batch.mask)
        slope = temperature_loss(self._one, log_probs, target, self.way.share)
        self.temperature_optimizer.grad.copy_(slope)
        loss = slope.mul_(self.log_temperature.detach())
        self.temperature_optimizer.step(None)
        return loss

    def _follow_schedules(self, progress: float) -> None:
        linear = self.cfg.learning_rate_schedule == "linear"
        share = max(0.0, 1.0 - progress) if linear else 1.0
        # a constant one too: a run may have been resumed with another rate
        for optimizer, rate in zip(self._optimizers().values(), self._rates, strict=True):
            optimizer.learning_rate.fill_(rate * share)
        if self.cloning is not None:
            self.cloning.follow(progress)

    def _steps_taken(self) -> Tensor:
        return self.critic_optimizer.steps + self.actor_optimizer.steps

    def _optimizers(self) -> dict[str, FlatAdam]:
        return {
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "temperature_optimizer": self.temperature_optimizer,
        }

    # -------------------------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, by name; copies."""
        state = {f"model.{k}": v.detach().clone() for k, v in self.policy.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            state |= {f"{name}.{k}": v for k, v in optimizer.state_dict().items()}
        state["log_temperature"] = self.log_temperature.detach().clone()
        state["n_updates"] = torch.tensor(self.updates)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave, bit for bit.

        Raises:
            CheckpointError: when names or shapes differ; the first difference is named.
        """
        parts = parts_of(state, self.state_dict())
        self.policy.load_state_dict(parts["model"])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(parts[name])
        if self.cfg.temperature is None:  # a fixed one may have changed on the way
            with torch.no_grad():
                self.log_temperature.copy_(state["log_temperature"])
        self.updates = int(state["n_updates"])


def _mean(values: list[Tensor]) -> Tensor:
    # small operations count where one call is one step; a copy can be written to, unlike a tensor
    # that was made in inference mode
    return values[0].clone() if len(values) == 1 else torch.stack(values).mean()


def _check(policy: SoftPolicy, cfg: SACConfig) -> None:
    for name in ("batch_size", "actor_every", "initial_temperature", "tau"):
        if not getattr(cfg, name) > 0:
            raise UserError(
                f"{name} is {getattr(cfg, name)}: make it more than 0 with "
                f"--algo.{name.replace('_', '-')}"
            )
    every = getattr(policy.distribution, "every", 1)
    if every > 1 and cfg.num_steps == 1:
        raise UserError(
            f"network.gsde_every is {every}, but noise is drawn anew every num_steps = 1: pass "
            "--algo.num-steps 8 or more, or --network.gsde-every 1"
        )
