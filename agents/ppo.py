"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).

One update evaluates the rollout with the policy that made it, estimates advantages, and takes
clipped steps on minibatches. Nothing is read back from the device on the way, except once per
epoch when `target_kl` may stop the epochs early; metrics stay tensors.

The gradient of the loss with respect to log-probabilities and values is a short formula (see
`losses`), so autograd is only asked for what comes before them, and not even for that when the
policy is two towers on vectors: there the whole backward pass is written out (`ppo_gradients`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlgym.agents.cloning import Cloning
from rlgym.agents.learner_state import parts_of
from rlgym.agents.losses import (
    approximate_kl,
    explained_variance,
    policy_loss,
    shares,
    standardize,
    value_loss,
    weighted_mean,
)
from rlgym.agents.optimizer import FlatAdam
from rlgym.agents.peers import ALONE, Peers
from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo_gradients import Autograd, Symmetry, WrittenOut
from rlgym.agents.rows import cut_rows, map_rows
from rlgym.config import PPOConfig
from rlgym.device import GraphedFn, Mode
from rlgym.errors import UserError
from rlgym.spaces import Tree

KL_STOP = 1.5
"""An update's epochs stop when the KL passes this many times `target_kl` (SB3's rule)."""
LEARNING_RATE_RANGE = (1e-5, 1e-2)
"""Bounds of the KL-adaptive learning rate (rsl_rl's)."""


class PPO:
    """The learner: a policy, its optimiser and `update`.

    Args:
        policy: on its device already; its parameters become views of one flat vector.
        cfg: hyperparameters.
        total_steps: environment steps of the run; kept for the record, schedules use `progress`.
        symmetry: mirrors observations and actions for the mirror loss (Abdolhosseini et al. 2019,
            doi 10.1145/3359566.3360070, section 4.2); needed when `cfg.symmetry_coef` is not 0.
        mode: whether updates are recorded and replayed, see `rlgym.device.GraphedFn`.

    Raises:
        UserError: for settings that contradict each other.
    """

    def __init__(
        self,
        policy: ActorCritic,
        cfg: PPOConfig,
        total_steps: int = 0,
        symmetry: Symmetry | None = None,
        mode: Mode = "auto",
    ) -> None:
        for name in ("num_steps", "minibatch_size", "epochs", "max_grad_norm"):
            if not getattr(cfg, name) > 0:
                raise UserError(
                    f"{name} is {getattr(cfg, name)}: make it more than 0 with "
                    f"--algo.{name.replace('_', '-')}"
                )
        if cfg.learning_rate_schedule == "kl" and cfg.target_kl is None:
            raise UserError("learning_rate_schedule kl needs --algo.target-kl, for example 0.01")
        if cfg.symmetry_coef and symmetry is None:
            raise UserError("symmetry_coef needs a symmetry hook: pass symmetry=, or set it to 0")
        if cfg.symmetry_coef and not _all_boxes(policy):
            raise UserError("the mirror loss compares means: it needs Box actions only")
        self.policy = policy
        self.cfg = cfg
        self.mode: Mode = mode
        self.total_steps = total_steps
        self.peers: Peers = ALONE
        self.cloning: Cloning | None = None
        self.symmetry = symmetry if cfg.symmetry_coef else None
        self.optimizer = FlatAdam(policy.parameters(), cfg.learning_rate, cfg.adam_eps)
        self.n_updates = torch.zeros((), dtype=torch.int64)
        self.clip = torch.full((), cfg.clip, device=policy.device)
        self._learning: dict[Any, GraphedFn] = {}
        self.way: Autograd | WrittenOut = (
            WrittenOut(policy, cfg)
            if policy.is_plain() and self.symmetry is None
            else Autograd(policy, cfg, self.optimizer, self.symmetry)
        )
        self.may_stop = cfg.target_kl is not None and cfg.learning_rate_schedule != "kl"

    def update(self, buffer: Any, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Improve the policy from one rollout.

        Args:
            buffer: a filled `rlgym.rollout.buffer.RolloutBuffer`.
            progress: fraction of the run that is done, 0 to 1; schedules follow it.
            generator: shuffles the minibatches; its state is all the randomness there is.

        Returns:
            Scalars by name, as tensors: SB3's "train/*" and "health/skipped_updates".
        """
        self._follow_schedules(progress)
        key = (id(buffer), buffer.all_active, id(generator))
        if key not in self._learning:
            self._learning[key] = GraphedFn(
                lambda orders: self._learn(buffer, orders, generator),
                self.policy.device,
                self.mode,
                name="PPO's update",
                obstacle=self._obstacle(),
            )
        learn = self._learning[key]
        metrics, epochs = learn(self._orders(buffer, generator))
        if learn.mode == "graph":  # what a replay returns, the next one overwrites
            metrics = {name: value.clone() for name, value in metrics.items()}
        self.n_updates += epochs
        return {**metrics, "train/n_updates": self.n_updates.clone()}

    def _obstacle(self) -> str:
        """What keeps an update from being recorded once and replayed."""
        if self.may_stop:
            return "target_kl is looked at after each epoch"
        if self.cloning is not None:
            return "demonstrations are drawn between the gradient steps"
        return "processes exchange gradients" if self.peers.size > 1 else ""

    def _learn(
        self, buffer: Any, orders: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], int]:
        # inference mode spares each operation autograd's bookkeeping: a tenth of a small minibatch
        fast = self.way.without_autograd and self.cloning is None
        with torch.inference_mode() if fast else torch.no_grad():
            return self._update(buffer, orders, generator)

    def _update(
        self, buffer: Any, orders: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], int]:
        """One update, given each epoch's order of rows; metrics, and how many epochs it took."""
        cfg = self.cfg
        rows, entropy = self._rows(buffer)
        seen: list[dict[str, Tensor]] = []
        norms: list[Tensor] = []
        cloning: list[Tensor] = []
        before = self.optimizer.steps.clone()
        held = torch.zeros((), device=before.device)
        stop: Tensor | None = None
        if self.may_stop:
            stop = torch.zeros((), dtype=torch.bool, device=before.device)
        epochs = 0
        for epoch_rows, minibatches in self._epochs(rows, orders):
            outcomes = []
            for batch in map(self._time_major, minibatches):
                log_probs, values = self.way(batch)
                if self.cloning is not None:
                    cloning.append(self.cloning.add_gradient(generator))
                if stop is not None:
                    kl = approximate_kl(log_probs, batch["log_probs"], batch["weights"], self.peers)
                    stop = stop | (kl > KL_STOP * cfg.target_kl)  # type: ignore[operator]
                    held += stop
                norms.append(self.optimizer.step(cfg.max_grad_norm, stop))
                outcomes.append((log_probs, values))
            epochs += 1
            seen.append(_joined(epoch_rows, outcomes))
            if stop is not None and bool(stop):  # the one read per epoch
                break
        metrics = self._metrics(rows, seen, entropy, norms)
        skipped = len(norms) - (self.optimizer.steps - before) - held
        metrics["health/skipped_updates"] = skipped
        if cloning:
            metrics["train/clone_loss"] = torch.stack(cloning).mean()
        if cfg.learning_rate_schedule == "kl":
            self._adapt_learning_rate(_kl(seen[-1], self.peers))
        self.policy.update_normalizer(buffer)
        return metrics, epochs

    # ---------------------------------------------------------------------------- one update

    def _follow_schedules(self, progress: float) -> None:
        cfg = self.cfg
        left = max(0.0, 1.0 - progress)
        # constant ones too: a run may have been resumed with another rate
        if cfg.learning_rate_schedule != "kl":
            share = left if cfg.learning_rate_schedule == "linear" else 1.0
            self.optimizer.learning_rate.fill_(cfg.learning_rate * share)
        self.clip.fill_(cfg.clip * (left if cfg.clip_schedule == "linear" else 1.0))
        if self.cloning is not None:
            self.cloning.follow(progress)

    @torch.no_grad()
    def _rows(self, buffer: Any) -> tuple[dict[str, Any], Tensor]:
        """Everything that minibatches are cut from, and the rollout policy's entropy.

        Rows are transitions (T * N, ...); with memory they are whole sequences (N, T, ...).
        """
        policy = self.policy
        steps, num_envs = buffer.rewards.shape
        state, start = buffer.initial_state, buffer.episode_start
        inputs = policy.preparation(buffer.obs)
        actions, mask = _flat(buffer.actions), _flat(buffer.action_mask)
        params, values, state = self._in_chunks(inputs, state, start)
        log_probs, entropy = policy.distribution.log_prob_entropy(params, actions, mask)
        last = policy.values(buffer.last_obs, state, buffer.last_start)
        values = values.view(steps, num_envs)
        advantages, returns = buffer.advantages(values, last, self.cfg.gamma, self.cfg.gae_lambda)
        weights = buffer.active.to(torch.float32).view(-1)
        rows: dict[str, Any] = {
            "inputs": inputs,
            "actions": actions,
            "mask": mask,
            "log_probs": log_probs,
            "values": values.view(-1),
            "advantages": advantages.reshape(-1),
            "returns": returns.reshape(-1),
            "weights": weights,
        }
        if self.symmetry is not None:
            mirrored, _ = self.symmetry(buffer.obs, None)
            rows["mirrored"] = policy.preparation(mirrored)
        if policy.memory is not None:
            rows = map_rows(lambda x: x.view(steps, num_envs, *x.shape[1:]).transpose(0, 1), rows)
            rows["start"] = start.transpose(0, 1)
            rows["state"] = buffer.initial_state
        return rows, weighted_mean(entropy, weights)

    def _in_chunks(
        self, inputs: dict[str, Tensor], state: Tensor | None, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The policy over the whole rollout; images in pieces, because their features are large."""
        policy = self.policy
        if policy.memory is not None or policy.is_plain():
            return policy(inputs, state, start)
        size = max(self.cfg.minibatch_size, 1024)
        pieces = zip(*(x.split(size) for x in inputs.values()), strict=True)
        parts = [policy(dict(zip(inputs, piece, strict=True))) for piece in pieces]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), None

    def _orders(self, buffer: Any, generator: torch.Generator) -> Tensor:
        """(epochs, rows) int64, each epoch's order; no columns where one minibatch holds all rows.

        A rollout that is one minibatch is not shuffled: the order of a sum does not matter.
        """
        steps, num_envs = buffer.rewards.shape
        memory = self.policy.memory is not None
        total, per_row = (num_envs, steps) if memory else (steps * num_envs, 1)
        if total * per_row <= self.cfg.minibatch_size:
            return torch.empty(self.cfg.epochs, 0, dtype=torch.int64, device=buffer.rewards.device)
        orders = [
            torch.randperm(total, generator=generator, device=generator.device)
            for _ in range(self.cfg.epochs)
        ]
        return torch.stack(orders).to(buffer.rewards.device)

    def _epochs(
        self, rows: dict[str, Any], orders: Tensor
    ) -> Iterator[tuple[dict[str, Any], Iterator[dict[str, Any]]]]:
        """Per epoch: its shuffled rows, and its minibatches, all of one size.

        The last minibatch is filled up with rows of weight 0.
        """
        total = len(rows["weights"])
        per_row = rows["weights"][0].numel()
        size = min(total, max(1, self.cfg.minibatch_size // per_row))
        count = -(-total // size)
        if count == 1:
            rows = self._with_slopes(dict(rows), 1)
            for _ in range(self.cfg.epochs):
                yield rows, iter([rows])
            return
        late = {name: rows.pop(name) for name in _HEAVY if name in rows and self._is_heavy()}
        for order in orders.unbind(0):
            fill = count * size - total
            order = torch.cat((order, order[:fill])) if fill else order
            shuffled = map_rows(lambda x: x.index_select(0, order), rows)  # noqa: B023 - used at once
            shuffled["weights"][total:] = 0.0
            shuffled = self._with_slopes(shuffled, count)
            yield shuffled, self._cut(shuffled, late, order, size)

    def _cut(
        self, shuffled: dict[str, Any], late: dict[str, Any], order: Tensor, size: int
    ) -> Iterator[dict[str, Any]]:
        unused = {"advantages"}  # cutting costs, and the slopes say the rest
        if self.cfg.value_clip is None:
            unused.add("values")
        if not self.may_stop and self.symmetry is None:
            unused.add("weights")
        needed = {name: part for name, part in shuffled.items() if name not in unused}
        for batch, chosen in zip(cut_rows(needed, size), order.split(size), strict=False):
            for name, values in late.items():
                batch[name] = map_rows(lambda x: x.index_select(0, chosen), values)  # noqa: B023
            yield batch

    def _is_heavy(self) -> bool:
        # a shuffled copy of every image would double the rollout's memory
        return bool(self.policy.preparation.images)

    def _with_slopes(self, rows: dict[str, Any], count: int) -> dict[str, Any]:
        """Add what the gradient formulas take, for `count` minibatches at once."""
        cfg = self.cfg
        weights = rows["weights"].reshape(count, -1)
        shape = rows["weights"].shape
        advantages = rows["advantages"].reshape(count, -1)
        if cfg.normalize_advantages and advantages.shape[1] > 1:
            advantages = standardize(advantages, weights, self.peers)
        share = shares(weights, self.peers)
        sign = advantages.sign()
        rows["advantages"] = advantages.view(shape)
        rows["sign"] = sign.view(shape)
        rows["limit"] = (sign + self.clip).view(shape)
        rows["slope"] = (-advantages * share).view(shape)
        rows["value_slope"] = (share * (2.0 * cfg.value_coef)).view(shape)
        if cfg.entropy_coef:
            rows["entropy_slope"] = (share * -cfg.entropy_coef).view(shape)
        return rows

    def _metrics(
        self,
        rows: dict[str, Any],
        seen: list[dict[str, Tensor]],
        entropy: Tensor,
        norms: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses over all minibatches as they were met; the KL, as SB3's, over the last epoch."""
        cfg = self.cfg
        joined = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
        weights, old, new = joined["weights"], joined["old_log_probs"], joined["log_probs"]
        surrogate = policy_loss(new, old, joined["advantages"], weights, self.clip)
        error = value_loss(
            joined["values"], joined["old_values"], joined["returns"], weights, cfg.value_clip
        )
        moved = ((torch.exp(new - old) - 1.0).abs() > self.clip).to(torch.float32)
        metrics = {
            "train/policy_gradient_loss": surrogate,
            "train/value_loss": error,
            "train/entropy_loss": -entropy,
            "train/loss": surrogate + cfg.value_coef * error - cfg.entropy_coef * entropy,
            "train/approx_kl": _kl(seen[-1]),
            "train/clip_fraction": weighted_mean(moved, weights),
            "train/explained_variance": explained_variance(
                rows["values"].flatten(), rows["returns"].flatten(), rows["weights"].flatten()
            ),
            "train/grad_norm": torch.stack(norms).mean(),
            "train/learning_rate": self.optimizer.learning_rate.clone(),
            "train/clip_range": self.clip.clone(),
        }
        std = self.policy.distribution.std()
        return metrics if std is None else {**metrics, "train/std": std}

    def _adapt_learning_rate(self, kl: Tensor) -> None:
        """Aim at `target_kl` (rsl_rl's rule): / 1.5 above twice of it, * 1.5 below half."""
        target = self.cfg.target_kl
        rate = self.optimizer.learning_rate
        slower = torch.where(kl > 2.0 * target, rate / 1.5, rate)  # type: ignore[operator]
        faster = torch.where(kl < 0.5 * target, rate * 1.5, slower)  # type: ignore[operator]
        rate.copy_(faster.clamp(*LEARNING_RATE_RANGE))

    # ------------------------------------------------------------------------- one minibatch

    def _time_major(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turn sequences (n, T, ...) into the time-major rows (T * n, ...) that a policy takes."""
        if self.policy.memory is None:
            return batch
        rest = {name: part for name, part in batch.items() if name not in ("state", "start")}
        rows = map_rows(lambda x: x.transpose(0, 1).flatten(0, 1), rest)
        return {**rows, "state": batch["state"], "start": batch["start"].transpose(0, 1)}

    # -------------------------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on, by name; copies."""
        model = {f"model.{k}": v.detach().clone() for k, v in self.policy.state_dict().items()}
        optimizer = {f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()}
        return {**model, **optimizer, "n_updates": self.n_updates.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave, bit for bit.

        Raises:
            CheckpointError: when names or shapes differ; the first difference is named.
        """
        parts = parts_of(state, self.state_dict())
        self.policy.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.n_updates.copy_(state["n_updates"])


_HEAVY = ("inputs", "mirrored")


def _joined(rows: dict[str, Any], outcomes: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """One epoch's rows as the minibatches met them, flat."""
    size = len(rows["weights"]) // len(outcomes)

    def met(name: str) -> Tensor:
        values = rows[name]
        if values.dim() == 1:
            return values
        # sequences: minibatches run over time first
        return torch.cat([part.transpose(0, 1).flatten() for part in values.split(size)])

    return {
        "log_probs": torch.cat([log_probs for log_probs, _ in outcomes]),
        "values": torch.cat([values for _, values in outcomes]),
        "old_log_probs": met("log_probs"),
        "old_values": met("values"),
        "returns": met("returns"),
        "advantages": met("advantages"),
        "weights": met("weights"),
    }


def _kl(epoch: dict[str, Tensor], peers: Peers = ALONE) -> Tensor:
    return approximate_kl(epoch["log_probs"], epoch["old_log_probs"], epoch["weights"], peers)


def _flat(tree: Tree[Tensor] | None) -> Any:
    return None if tree is None else map_rows(lambda x: x.flatten(0, 1), tree)


def _all_boxes(policy: ActorCritic) -> bool:
    return all(leaf.dtype.kind == "f" for leaf in policy.action_layout.leaves)
