"""What SAC needs of an action space: bounded samples, their log-probabilities, expectations.

Actions are stored as the critics take them: Box ones squashed to [-1, 1], before they are stretched
to the world's bounds; discrete ones as the space's own integers.

Box actions are sampled and the critics are asked about the sample. Of discrete ones nothing is
sampled: the critics give a value for every choice and the expectation is exact (Christodoulou
2019, arXiv 1910.07207). Where a space has both, the critics take the continuous part as an input
and give values for the choices (Delalleau et al. 2019, arXiv 1912.11077, section 3.2).

Several choices at once (MultiDiscrete, MultiBinary, Dict) have too many combinations to list:
Q is the sum of one term per choice, as in Sunehag et al. 2017 (arXiv 1706.05296, section 3). What
two choices are worth only together is not represented, unless the observation shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlgym.agents.distributions import Bernoulli, Joint, allow
from rlgym.agents.networks import one_hot
from rlgym.config import NetworkConfig
from rlgym.errors import SpaceError, UserError
from rlgym.spaces import Layout, Leaf, Tree

ENTROPY_SHARE = 0.98
"""Target entropy of a choice, as a share of the largest (Christodoulou 2019, section 5)."""


@dataclass
class Draw:
    """What a policy would do in B states."""

    continuous: Tensor
    """(B, D) sampled actions in [-1, 1]; D may be 0."""
    probs: Tensor | None
    """(B, M) probability of each choice, components side by side; None without choices."""
    log_prob: Tensor
    """(B,) log-probability of the sample, plus the choices' expected log-probability."""


def check_settings(layout: Layout, cfg: NetworkConfig) -> None:
    """Refuse what SAC cannot do.

    Raises:
        UserError: names the setting and the fix.
    """
    if cfg.recurrent != "none":
        raise UserError(
            f"network.recurrent is {cfg.recurrent!r} and SAC has no memory: set "
            "--network.recurrent none, or train with --algo ppo"
        )
    boxes = [leaf for leaf in layout.leaves if leaf.dtype.kind == "f"]
    if boxes and cfg.std == "global":
        raise UserError(
            "network.std is 'global' and SAC's standard deviation depends on the state: "
            "set --network.std state (or gsde)"
        )
    if boxes and not cfg.squash:
        raise UserError(
            "network.squash is false and SAC's actions are squashed to their bounds: "
            "set --network.squash true"
        )
    for leaf in boxes:
        if not leaf.space.is_bounded("both"):  # type: ignore[attr-defined]
            raise SpaceError(
                f"action {leaf.key or 'space'!r} has no bounds and SAC squashes actions to them: "
                "give the world's action space finite bounds, or train with --algo ppo"
            )


class _BoxPart:
    """A Box leaf: a Gaussian (or state-dependent noise) through tanh."""

    choices = 0

    def __init__(self, leaf: Leaf, distribution: Any) -> None:
        self.distribution = distribution
        self.shape = leaf.shape
        self.size = math.prod(leaf.shape)

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
        return self.distribution.sample(params, noise).tanh_()

    def mode(self, params: Tensor, mask: Tensor | None) -> Tensor:
        return self.distribution.mode(params).tanh()

    def random(self, noise: Tensor, mask: Tensor | None) -> Tensor:
        # the normal's own distribution function makes normal noise uniform
        return torch.erf(noise[:, : self.size] * math.sqrt(0.5)).view(-1, *self.shape)

    def to_world(self, stored: Tensor) -> Tensor:
        bounds = self.distribution.bounds
        # rounding may overshoot, hence the clamp
        world = torch.lerp(bounds.low, bounds.high, 0.5 * stored + 0.5)
        return torch.clamp(world, bounds.low, bounds.high)

    def to_stored(self, world: Tensor) -> Tensor:
        bounds = self.distribution.bounds
        span = (bounds.high - bounds.low).clamp(min=torch.finfo(torch.float32).tiny)
        return (2.0 * (world - bounds.low) / span - 1.0).clamp(-1.0, 1.0)

    def draw(self, params: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.distribution.sample(params, noise)
        return raw.tanh().flatten(1), self.distribution.log_prob(params, raw)


class _ChoicePart:
    """A Discrete, MultiDiscrete or MultiBinary leaf: one or more choices."""

    size = 0

    def __init__(self, leaf: Leaf, distribution: Any) -> None:
        self.distribution = distribution
        self.is_binary = isinstance(distribution, Bernoulli)
        self.sizes = list(leaf.num_choices) or [2] * distribution.num_params
        self.choices = sum(self.sizes)

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None) -> Tensor:
        return self.distribution.sample(params, noise, mask)

    def mode(self, params: Tensor, mask: Tensor | None) -> Tensor:
        return self.distribution.mode(params, mask)

    def random(self, noise: Tensor, mask: Tensor | None) -> Tensor:
        return self.distribution.sample(torch.zeros_like(noise), noise, mask)

    def to_world(self, stored: Tensor) -> Tensor:
        return stored

    def to_stored(self, world: Tensor) -> Tensor:
        return world

    def log_probs(self, params: Tensor, mask: Tensor | None) -> Tensor:
        """(B, choices); forbidden ones are about -1e8, so that their probability is 0."""
        if self.is_binary:  # logit of being on, against 0 for off
            params = torch.stack((torch.zeros_like(params), params), -1).flatten(1)
        logits = params.split(self.sizes, -1)
        flags: Any = [None] * len(logits)
        if mask is not None and not self.is_binary:
            flags = mask.split(self.sizes, -1)
        parts = [
            torch.log_softmax(allow(own, allowed), -1)
            for own, allowed in zip(logits, flags, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def chosen(self, actions: Tensor) -> Tensor:
        """(B, choices): 1 where stored actions chose, else 0."""
        start = 0 if self.is_binary else self.distribution.start
        values = actions.reshape(len(actions), -1) - start
        return torch.cat([one_hot(values[:, i], n) for i, n in enumerate(self.sizes)], -1)

    def largest_entropy(self, mask: Tensor | None) -> Tensor | float:
        """Entropy of uniform choices, () or with a mask (B,)."""
        if mask is None or self.is_binary:
            return sum(math.log(n) for n in self.sizes)
        counts = [flags.sum(-1) for flags in mask.split(self.sizes, -1)]
        # a row that allows nothing is taken to allow everything
        whole = [torch.where(c == 0, n, c) for c, n in zip(counts, self.sizes, strict=True)]
        return torch.stack(whole).to(torch.float32).log().sum(0)


class SoftActions:
    """The action space as SAC sees it, around a distribution of `agents.distributions`.

    Args:
        layout: leaves of the action space.
        distribution: what `make_distribution` gave for it; its parameters are the actor's.

    Attributes:
        size: D, continuous numbers in one action.
        choices: M, choices summed over all discrete components; 0 without.
        components: number of discrete components.
    """

    def __init__(self, layout: Layout, distribution: Any) -> None:
        self.layout = layout
        self.distribution = distribution
        own = distribution.parts if isinstance(distribution, Joint) else [distribution]
        self.parts: list[Any] = [
            (_BoxPart if leaf.dtype.kind == "f" else _ChoicePart)(leaf, part)
            for leaf, part in zip(layout.leaves, own, strict=True)
        ]
        self.keys = [leaf.key for leaf in layout.leaves]
        self.size = sum(part.size for part in self.parts)
        self.choices = sum(part.choices for part in self.parts)
        self.components = sum(len(part.sizes) for part in self.parts if part.choices)

    # --------------------------------------------------------------------------------- acting

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None) -> Tree[Tensor]:
        """Stored actions (B, *shape); noise (B, noise_size) as the distribution's `noise` gives."""
        if self.layout.single:
            return self.parts[0].sample(params, noise, mask)
        noises = noise.split([part.distribution.noise_size for part in self.parts], -1)
        split = self._split(params, mask)
        return self._tree(
            [
                part.sample(own, drawn, flags)
                for (part, own, flags), drawn in zip(split, noises, strict=True)
            ]
        )

    def mode(self, params: Tensor, mask: Tensor | None) -> Tree[Tensor]:
        """Stored actions of the mode (of a Box: of the mean)."""
        return self._tree([part.mode(own, flags) for part, own, flags in self._split(params, mask)])

    def random(self, noise: Tensor, mask: Tensor | None) -> Tree[Tensor]:
        """Uniformly random stored actions from the same noise."""
        if self.layout.single:
            return self.parts[0].random(noise, mask)
        noises = noise.split([part.distribution.noise_size for part in self.parts], -1)
        split = zip(self.parts, noises, self._masks(mask), strict=True)
        return self._tree([part.random(drawn, flags) for part, drawn, flags in split])

    def to_world(self, stored: Tree[Tensor]) -> Tree[Tensor]:
        """What the world is told."""
        return self._each("to_world", stored)

    def to_stored(self, world: Tree[Tensor]) -> Tree[Tensor]:
        """The inverse of `to_world`; what lies outside the bounds is clipped to them."""
        return self._each("to_stored", world)

    # ------------------------------------------------------------------------------- learning

    def learner_noise(self, rows: int, generator: torch.Generator) -> list[Tensor]:
        """Noise of each Box part for `rows` states; state-dependent noise has one row for all."""
        return [
            part.distribution.noise(
                1 if part.distribution.latent_size else rows, generator=generator
            )
            for part in self.parts
            if part.size
        ]

    def draw(self, params: Tensor, noises: list[Tensor], mask: Tensor | None) -> Draw:
        """Sample what is continuous, list what is discrete; with autograd."""
        continuous, probs, log_probs = [], [], []
        remaining = iter(noises)
        for part, own, flags in self._split(params, mask):
            if part.size:
                action, log_prob = part.draw(own, next(remaining))
                continuous.append(action)
                log_probs.append(log_prob)
            else:
                each = part.log_probs(own, flags)
                probs.append(each.exp())
                log_probs.append((probs[-1] * each).sum(-1))
        return Draw(
            torch.cat(continuous, -1) if continuous else params[:, :0],
            torch.cat(probs, -1) if probs else None,
            torch.stack(log_probs).sum(0),
        )

    def columns(self, actions: Tree[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Stored actions as the critics' input (B, D) and the choices made (B, M) or None."""
        tree: Any = actions
        if self.layout.single and self.size:
            return tree.flatten(1), None
        leaves: list[Tensor] = [tree] if self.layout.single else [tree[key] for key in self.keys]
        pairs = list(zip(self.parts, leaves, strict=True))
        continuous = [leaf.flatten(1) for part, leaf in pairs if part.size]
        chosen = [part.chosen(leaf) for part, leaf in pairs if part.choices]
        empty = torch.zeros(len(leaves[0]), 0, device=leaves[0].device)
        return (
            torch.cat(continuous, -1) if continuous else empty,
            torch.cat(chosen, -1) if chosen else None,
        )

    def expected_q(self, q: Tensor, draw: Draw) -> Tensor:
        """Lowest critic's value of what the policy does, (B,).

        Args:
            q: (critics, B, max(M, 1)).
            draw: the policy's actions; its `continuous` was the critics' input.
        """
        if draw.probs is None:
            return q.squeeze(-1).min(0).values
        if self.components == 1:  # as published: the lower value of each choice
            return (q.min(0).values * draw.probs).sum(-1)
        # how critics divide a sum between its terms is arbitrary, so only totals can be compared
        return (q * draw.probs).sum(-1).min(0).values

    def taken_q(self, q: Tensor, chosen: Tensor | None) -> Tensor:
        """Each critic's value of actions that were taken, (critics, B); `chosen` from `columns`."""
        return q.squeeze(-1) if chosen is None else (q * chosen).sum(-1)

    def target_entropy(self, mask: Tensor | None) -> Tensor | float:
        """Nats, () or with a mask (B,): -D, and 0.98 log n for each choice among n allowed ones."""
        total: Tensor | float = -float(self.size)
        for part, flags in zip(self.parts, self._masks(mask), strict=True):
            if part.choices:
                total = total + ENTROPY_SHARE * part.largest_entropy(flags)
        return total

    # -------------------------------------------------------------------------------- details

    def _split(
        self, params: Tensor, mask: Tensor | None
    ) -> list[tuple[Any, Tensor, Tensor | None]]:
        """Each part with its own columns; state-dependent noise also takes the last layer."""
        if len(self.parts) == 1:
            return [(self.parts[0], params, mask)]
        sizes = [part.distribution.num_params for part in self.parts]
        columns = params[:, : sum(sizes)].split(sizes, -1)
        latent = params[:, sum(sizes) :]
        return [
            (part, torch.cat((own, latent), 1) if part.distribution.latent_size else own, flags)
            for part, own, flags in zip(self.parts, columns, self._masks(mask), strict=True)
        ]

    def _masks(self, mask: Tensor | None) -> list[Tensor | None]:
        if mask is None:
            return [None] * len(self.parts)
        return list(mask.split([part.distribution.mask_size for part in self.parts], -1))

    def _tree(self, leaves: list[Tensor]) -> Tree[Tensor]:
        return leaves[0] if self.layout.single else dict(zip(self.keys, leaves, strict=True))

    def _each(self, name: str, actions: Tree[Tensor]) -> Tree[Tensor]:
        if self.layout.single:
            return getattr(self.parts[0], name)(actions)
        return {
            key: getattr(part, name)(actions[key])  # type: ignore[index]
            for key, part in zip(self.keys, self.parts, strict=True)
        }
