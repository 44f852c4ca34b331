"""SAC's policy: an actor, its critics and their slow copies, for any space of the contract.

Acting has the members of `ActorCritic`, so that collectors, evaluation and robots need not know
which of the two they hold. A `NetworkConfig` with `num_critics` and `layer_norm` rebuilds it.

**Your own network.** `SoftPolicy.build(..., network=Net)` takes an `nn.Module` as described in
`rlgym.agents.policy`: observations in, features out (or a pair, the actor's and the critics').
The actor and the critics get one each, built from the class or copied from the instance. The
actor's head follows its features directly; the critics see features and actions together, through
the hidden layers of the config.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rlgym.agents.critics import Ensemble
from rlgym.agents.distributions import make_distribution
from rlgym.agents.networks import Encoder, Inputs, Preparation, seeded
from rlgym.agents.policy import HeldNoise
from rlgym.agents.soft_actions import SoftActions, check_settings
from rlgym.config import NetworkConfig
from rlgym.errors import UserError
from rlgym.spaces import Layout, Tree, map_tree


class Features(nn.Module):
    """Prepared observations to the features of one side: the actor's, or the critics'.

    Args:
        preparation: what prepares the observations.
        cfg: `cnn`.
        side: 0 for the actor, which does not see what is privileged; 1 for critics.
        network: a user's own network.
    """

    def __init__(
        self, preparation: Preparation, cfg: NetworkConfig, side: int, network: nn.Module | None
    ) -> None:
        super().__init__()
        self.side = side
        self.single = preparation.layout.single
        self.network = network
        self.encoder = Encoder(preparation, cfg.cnn) if network is None else None
        if self.encoder is None:
            self.size = _width_of(self, preparation)
        else:
            self.size = self.encoder.actor_size + (self.encoder.critic_size if side else 0)

    def forward(self, inputs: Inputs) -> Tensor:
        """(B, size)."""
        if self.encoder is None:
            features = self.network(inputs[""] if self.single else inputs)  # type: ignore[misc]
            return features[self.side] if isinstance(features, tuple) else features
        seen = self.encoder.actor(inputs)
        hidden = self.encoder.critic(inputs) if self.side else None
        return seen if hidden is None else torch.cat((seen, hidden), 1)


class Branch(nn.Module):
    """Features, then the layers of one or more networks.

    Args:
        features: what comes first.
        members, hidden, outputs, layer_norm: of the `Ensemble`.
        extra: width of what is joined to the features (the critics' actions).
    """

    def __init__(
        self,
        features: Features,
        members: int,
        hidden: tuple[int, ...],
        activation: str,
        outputs: int,
        layer_norm: bool = False,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        inputs = features.size + extra
        self.layers = Ensemble(members, inputs, hidden, activation, outputs, layer_norm)

    def forward(self, inputs: Inputs, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(members, B, outputs) and the last layers (members, B, width), with autograd."""
        features = self.features(inputs)
        if extra is not None and extra.shape[1]:
            features = torch.cat((features, extra), 1)
        return self.layers(features)


class SoftPolicy(nn.Module):
    """A squashed Gaussian (or categorical) actor with critics, for any observation space.

    Args:
        obs_layout: leaves of the observation space.
        action_layout: leaves of the action space; Box leaves need bounds.
        cfg: sizes and kinds.
        network: a user's own network; see this file's first lines.
        num_critics: critics, the lowest of which counts.
        layer_norm: layer normalisation in the critics.

    Attributes:
        actions: the action space as SAC sees it.
        actor: gives the distribution's parameters.
        critics: give Q, (num_critics, B, 1), or one value per choice.
        target: slow copy of the critics; it has no gradient.
        obs_norm: `RunningMeanStd` per Box leaf; empty without `normalize_obs`.
        random: take uniformly random actions instead of the actor's, as a run begins.
        state_shape: None; SAC has no memory.

    Raises:
        UserError: for settings and spaces that SAC cannot take; the message names the fix.
    """

    state_shape = None

    def __init__(
        self,
        obs_layout: Layout,
        action_layout: Layout,
        cfg: NetworkConfig,
        network: nn.Module | type[nn.Module] | None = None,
        num_critics: int = 2,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        check_settings(action_layout, cfg)
        self.obs_layout = obs_layout
        self.action_layout = action_layout
        self.random = False
        self.has_own_network = network is not None
        self.preparation = Preparation(obs_layout, cfg, as_leaves=network is not None)
        actor, critic = (
            Features(self.preparation, cfg, side, _own(network, obs_layout)) for side in (0, 1)
        )
        hidden = tuple(cfg.hidden)
        actor_hidden = () if network is not None else hidden
        last = actor_hidden[-1] if actor_hidden else actor.size
        self.distribution: Any = make_distribution(action_layout, cfg, last)
        self.actions = SoftActions(action_layout, self.distribution)
        outputs = self.distribution.num_params
        self.actor = Branch(actor, 1, actor_hidden, cfg.activation, outputs)
        self.critics = Branch(
            critic,
            num_critics,
            hidden,
            cfg.activation,
            max(self.actions.choices, 1),
            layer_norm,
            self.actions.size,
        )
        self.target = copy.deepcopy(self.critics).requires_grad_(False)

    @classmethod
    def build(
        cls,
        obs_layout: Layout,
        action_layout: Layout,
        cfg: NetworkConfig,
        seed: int | torch.Generator = 0,
        network: nn.Module | type[nn.Module] | None = None,
        num_critics: int = 2,
        layer_norm: bool = False,
    ) -> SoftPolicy:
        """Build with weights that depend on `seed` alone; the global generator is left as it was.

        Raises:
            UserError: for spaces or settings that do not fit; the message names the fix.
        """
        with seeded(seed):
            return cls(obs_layout, action_layout, cfg, network, num_critics, layer_norm)

    # --------------------------------------------------------------------------------- acting

    def noise(
        self, num_steps: int, num_envs: int, generator: torch.Generator
    ) -> Tensor | HeldNoise:
        """Noise of a whole rollout, (T, N, K); index it as `noise[t, rows]`.

        State-dependent noise is held for `gsde_every` steps, but not from one rollout to the next.
        """
        every = getattr(self.distribution, "every", 1)
        blocks = -(-num_steps // every)
        noise = self.distribution.noise(blocks, num_envs, generator=generator).to(self.device)
        return noise if every == 1 else HeldNoise(noise, every, num_steps)

    def act(
        self,
        obs: Tree[Tensor],
        noise: Tensor | None = None,
        state: Tensor | None = None,
        start: Tensor | None = None,
        mask: Tensor | None = None,
        deterministic: bool = False,
    ) -> tuple[Tree[Tensor], Tree[Tensor], None]:
        """Choose actions for a batch of observations.

        Args:
            obs: tree of (B, ...).
            noise: (B, K) from `noise`; None takes the mode.
            state: None; here so that both kinds of policies are called in one way.
            start: not used either.
            mask: (B, mask_size) bool, True = allowed.
            deterministic: take the mode whatever the noise.

        Returns:
            Actions for the world; actions to store, as the critics take them; None.
        """
        if torch.is_grad_enabled():  # a collector has turned it off, once for all its steps
            with torch.no_grad():
                return self.act(obs, noise, state, start, mask, deterministic)
        if deterministic or noise is None:
            stored = self.actions.mode(self._params(obs), mask)
        elif self.random:
            stored = self.actions.random(noise, mask)
        else:
            stored = self.actions.sample(self._params(obs), noise, mask)
        return self.actions.to_world(stored), stored, None

    def to_world(self, stored: Tree[Tensor]) -> Tree[Tensor]:
        """What the world is told for stored actions."""
        return self.actions.to_world(stored)

    def scale_action(self, world: Tree[Tensor]) -> Tree[Tensor]:
        """Stored actions for what a world was told, on any device: the inverse of `to_world`."""
        return self.actions.to_stored(map_tree(lambda x: x.to(self.device), world))

    def initial_state(self, num_envs: int) -> None:
        """None: there is no memory."""
        return None

    # ------------------------------------------------------------------------------- learning

    def forward(self, inputs: Inputs) -> Tensor:
        """Distribution parameters (B, num_params + latent_size) of prepared rows, with autograd.

        State-dependent noise learns its features too, as in Raffin et al. 2020, section 3.1.
        """
        outputs, last = self.actor(inputs)
        if self.distribution.latent_size:
            return torch.cat((outputs[0], last[0]), 1)
        return outputs[0]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.actor.parameters()).device

    @property
    def obs_norm(self) -> nn.ModuleDict:
        """Normalisers by leaf; empty without `normalize_obs`."""
        return self.preparation.obs_norm

    def update_normalizer(self, buffer: Any) -> None:
        """Merge a rollout's active observations; once per rollout, after the learner's update."""
        if len(self.obs_norm):
            self.preparation.update_normalizers(buffer.obs, buffer.active)

    def is_plain(self) -> bool:
        """Whether gradients can be written out: vectors in, Box actions out, no layer norm."""
        return (
            type(self).forward is SoftPolicy.forward
            and not self.has_own_network
            and not self.preparation.images
            and self.actions.choices == 0
            and not self.critics.layers.layer_norm
        )

    # ------------------------------------------------------------------------------- details

    def _params(self, obs: Tree[Tensor]) -> Tensor:
        """As `forward`, from raw observations and without gradient."""
        inputs = self.preparation.forward(obs)
        if type(self).forward is not SoftPolicy.forward:
            return self(inputs)
        outputs, last = self.actor.layers.first(self.actor.features.forward(inputs))
        return torch.cat((outputs, last), 1) if self.distribution.latent_size else outputs


def _own(network: nn.Module | type[nn.Module] | None, layout: Layout) -> nn.Module | None:
    if network is None:
        return None
    return network(layout) if inspect.isclass(network) else copy.deepcopy(network)


@torch.no_grad()
def _width_of(features: Features, preparation: Preparation) -> int:
    """Features that a user's own network gives, found by trying it on two rows of zeros."""
    zeros = preparation.layout.alloc(2)
    obs = (
        {key: torch.from_numpy(array) for key, array in zeros.items()}
        if isinstance(zeros, dict)
        else torch.from_numpy(zeros)
    )
    rows = features(preparation(obs))
    if rows.dim() != 2 or len(rows) != 2:
        raise UserError(
            f"{type(features.network).__name__} turned 2 observations into features of shape "
            f"{list(rows.shape)}: return (batch, features), or a pair of them"
        )
    return rows.shape[1]
