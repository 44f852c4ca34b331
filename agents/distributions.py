"""Action distributions in closed form: sample, mode, log-probability, entropy, gradients.

A distribution maps a row of network outputs ("params") to actions. It samples from noise that was
drawn beforehand, so that a step draws nothing, and it never builds a torch.distributions object:
on small batches those cost more than the network.

Actions are stored raw: Gaussian ones before clipping or squashing, discrete ones in the space's
own values (from `start`). `to_world` gives what the world is told. Masks are bool, True = allowed;
a row that allows nothing is taken to allow everything, because it must not become NaN.

Every class here has the members of `Distribution`.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.functional import softplus

from rlgym.agents.gaussian import Gaussian, StateDependentNoise
from rlgym.config import NetworkConfig
from rlgym.errors import SpaceError
from rlgym.spaces import Layout, Leaf, Tree

FORBIDDEN = -1e8
"""Logit of a choice that a mask forbids: its probability is 0, and 0 * log 0 stays 0."""


class Distribution(Protocol):
    """What every distribution offers; B is the batch size."""

    num_params: int
    """Width of the network's output."""
    noise_size: int
    """Width of the noise of one action."""
    mask_size: int
    """Flags of its action mask; 0 for continuous actions."""
    latent_size: int
    """Columns after `num_params` that hold the actor's last layer (gSDE); else 0."""

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        """Noise for (*lead) actions, (*lead, noise_size), on the generator's device."""
        ...

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None) -> Tree[Tensor]:
        """Raw actions (B, *shape)."""
        ...

    def mode(self, params: Tensor, mask: Tensor | None) -> Tree[Tensor]:
        """Most probable raw actions (B, *shape); of a continuous action it is the mean."""
        ...

    def log_prob_entropy(
        self, params: Tensor, actions: Tree[Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(B,) log-probability of raw actions, and (B,) entropy in nats; autograd works."""
        ...

    def to_world(self, actions: Tree[Tensor]) -> Tree[Tensor]:
        """What the world is told."""
        ...

    def std(self) -> Tensor | None:
        """Mean standard deviation where it is a parameter, for the log; else None."""
        ...


def make_distribution(layout: Layout, cfg: NetworkConfig, latent_size: int) -> Any:
    """Choose the distribution of an action space: a `Distribution` that is also an nn.Module.

    Args:
        layout: leaves of the action space.
        cfg: `std`, `squash`, `log_std_init` for Box leaves.
        latent_size: width of the actor's last layer, which gSDE builds its noise from.

    Raises:
        SpaceError: for a Box of integers, and for a squashed Box without bounds.
    """
    parts = [_leaf_distribution(leaf, cfg, latent_size) for leaf in layout.leaves]
    if layout.single:
        return parts[0]
    return Joint([leaf.key for leaf in layout.leaves], parts)


def _leaf_distribution(leaf: Leaf, cfg: NetworkConfig, latent_size: int) -> Any:
    if isinstance(leaf.space, spaces.Discrete):
        return Categorical(leaf)
    if isinstance(leaf.space, spaces.MultiDiscrete):
        return MultiCategorical(leaf)
    if isinstance(leaf.space, spaces.MultiBinary):
        return Bernoulli(leaf)
    if leaf.dtype.kind != "f":
        raise SpaceError(
            f"action {leaf.key or 'space'!r} is a Box of {leaf.dtype}: use Discrete or "
            "MultiDiscrete for whole numbers, or a Box of float32"
        )
    if cfg.std == "gsde":
        return StateDependentNoise(leaf, cfg, latent_size)
    return Gaussian(leaf, cfg)


def allow(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Put forbidden choices' logits to `FORBIDDEN`; both (B, choices)."""
    if mask is None:
        return logits
    allowed = mask | ~mask.any(-1, keepdim=True)
    return torch.where(allowed, logits, FORBIDDEN)


def _gumbel(*shape: int, generator: torch.Generator) -> Tensor:
    # argmax(logits + Gumbel noise) is a sample of softmax(logits) (Maddison et al. 2014, 1411.0030)
    uniform = torch.rand(*shape, generator=generator, device=generator.device)
    # a 0 would make minus infinity of it, which even a forbidden choice outdoes
    uniform.clamp_(min=torch.finfo(uniform.dtype).tiny)
    return -torch.log(-torch.log(uniform))


# ----------------------------------------------------------------------------------- discrete


class Categorical(nn.Module):
    """One choice of n (Discrete)."""

    latent_size = 0
    has_closed_form = True

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.num_params = self.noise_size = self.mask_size = leaf.num_choices[0]
        self.start = int(leaf.start)

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        return _gumbel(*lead, self.noise_size, generator=generator)

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mode(allow(params, mask) + noise)

    def mode(self, params: Tensor, mask: Tensor | None = None) -> Tensor:
        actions = allow(params, mask).argmax(-1)
        return actions + self.start if self.start else actions

    def log_prob_entropy(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(allow(params, mask), -1)
        chosen = (actions - self.start).unsqueeze(-1)
        return log_p.gather(-1, chosen).squeeze(-1), -(log_p.exp() * log_p).sum(-1)

    def evaluate(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Log-probabilities (B,), and what `pull_back` needs."""
        log_p = torch.log_softmax(allow(params, mask), -1)
        chosen = actions.unsqueeze(-1)
        if self.start:
            chosen = chosen - self.start
        return log_p.gather(-1, chosen).squeeze(-1), (log_p, chosen)

    def pull_back(self, saved: Any, d_log_probs: Tensor, d_entropy: Tensor | None) -> Tensor:
        """Gradient with respect to the logits, given those of log-probabilities and entropy.

        d log p(a) / d logit_j = [j = a] - p_j;  d H / d logit_j = -p_j (log p_j + H).
        """
        log_p, chosen = saved
        p = log_p.exp()
        d = d_log_probs.unsqueeze(-1)
        d_params = (p * -d).scatter_add_(-1, chosen, d)
        if d_entropy is not None:
            entropy = -(p * log_p).sum(-1, keepdim=True)
            d_params.sub_(p * (log_p + entropy) * d_entropy.unsqueeze(-1))
        return d_params

    def to_world(self, actions: Tensor) -> Tensor:
        return actions

    def std(self) -> None:
        return None


class MultiCategorical(nn.Module):
    """Independent choices (MultiDiscrete of any shape)."""

    latent_size = 0
    start: Tensor

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.sizes = list(leaf.num_choices)
        self.num_params = self.noise_size = self.mask_size = sum(self.sizes)
        self.shape = leaf.shape
        self.register_buffer("start", torch.as_tensor(leaf.start).reshape(-1), persistent=False)

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        return _gumbel(*lead, self.noise_size, generator=generator)

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._argmax(torch.cat(self._split(params, mask), -1) + noise)

    def mode(self, params: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._argmax(torch.cat(self._split(params, mask), -1))

    def log_prob_entropy(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        chosen = actions.reshape(len(params), -1) - self.start
        log_prob = entropy = 0.0
        for i, logits in enumerate(self._split(params, mask)):
            log_p = torch.log_softmax(logits, -1)
            log_prob = log_prob + log_p.gather(-1, chosen[:, i : i + 1]).squeeze(-1)
            entropy = entropy - (log_p.exp() * log_p).sum(-1)
        return log_prob, entropy  # type: ignore[return-value]

    def to_world(self, actions: Tensor) -> Tensor:
        return actions

    def std(self) -> None:
        return None

    def _split(self, params: Tensor, mask: Tensor | None) -> list[Tensor]:
        logits = params.split(self.sizes, -1)
        if mask is None:
            return list(logits)
        masks = mask.split(self.sizes, -1)
        return [allow(part, flags) for part, flags in zip(logits, masks, strict=True)]

    def _argmax(self, scores: Tensor) -> Tensor:
        actions = torch.stack([part.argmax(-1) for part in scores.split(self.sizes, -1)], -1)
        return (actions + self.start).reshape(-1, *self.shape)


class Bernoulli(nn.Module):
    """Independent switches (MultiBinary); logits of being on."""

    latent_size = 0
    mask_size = 0

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self.num_params = self.noise_size = math.prod(leaf.shape)
        self.shape = leaf.shape

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        size = (*lead, self.noise_size)
        uniform = torch.rand(size, generator=generator, device=generator.device)
        return uniform.log() - torch.log1p(-uniform)  # logistic: [logit + noise > 0] is a sample

    def sample(self, params: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mode(params + noise)

    def mode(self, params: Tensor, mask: Tensor | None = None) -> Tensor:
        return (params > 0).to(torch.int8).reshape(-1, *self.shape)

    def log_prob_entropy(
        self, params: Tensor, actions: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        on = actions.reshape(len(params), -1).to(params.dtype)
        total = softplus(params)
        return (on * params - total).sum(-1), (total - params.sigmoid() * params).sum(-1)

    def to_world(self, actions: Tensor) -> Tensor:
        return actions

    def std(self) -> None:
        return None


# -------------------------------------------------------------------------------------- mixed


class Joint(nn.Module):
    """Independent parts for a Dict or Tuple of actions; log-probabilities and entropies add up.

    Params, noise and mask hold the parts' columns in leaf order; gSDE's last layer comes last and
    is shared.
    """

    def __init__(self, keys: list[str], parts: list[Any]) -> None:
        super().__init__()
        self.keys = keys
        self.parts: Any = nn.ModuleList(parts)
        self.num_params = sum(part.num_params for part in parts)
        self.noise_size = sum(part.noise_size for part in parts)
        self.mask_size = sum(part.mask_size for part in parts)
        self.latent_size = max(part.latent_size for part in parts)
        self.every = max(getattr(part, "every", 1) for part in parts)

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        return torch.cat([part.noise(*lead, generator=generator) for part in self.parts], -1)

    def sample(
        self, params: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        noises = noise.split([part.noise_size for part in self.parts], -1)
        return {
            key: part.sample(own, drawn, flags)
            for (key, part, own, flags), drawn in zip(
                self._split(params, mask), noises, strict=True
            )
        }

    def mode(self, params: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return {key: part.mode(own, flags) for key, part, own, flags in self._split(params, mask)}

    def log_prob_entropy(
        self, params: Tensor, actions: dict[str, Tensor], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        pairs = [
            part.log_prob_entropy(own, actions[key], flags)
            for key, part, own, flags in self._split(params, mask)
        ]
        log_probs, entropies = zip(*pairs, strict=True)
        return torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0)

    def to_world(self, actions: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: part.to_world(actions[key])
            for key, part in zip(self.keys, self.parts, strict=True)
        }

    def std(self) -> Tensor | None:
        stds = [part.std() for part in self.parts]
        stds = [std for std in stds if std is not None]
        return torch.stack(stds).mean() if stds else None

    def _split(
        self, params: Tensor, mask: Tensor | None
    ) -> list[tuple[str, Any, Tensor, Tensor | None]]:
        own = params[:, : self.num_params].split([part.num_params for part in self.parts], -1)
        latent = params[:, self.num_params :]
        flags: tuple[Tensor | None, ...] = (None,) * len(self.parts)
        if mask is not None:
            flags = mask.split([part.mask_size for part in self.parts], -1)
        return [
            (key, part, torch.cat((columns, latent), -1) if part.latent_size else columns, allowed)
            for key, part, columns, allowed in zip(self.keys, self.parts, own, flags, strict=True)
        ]
