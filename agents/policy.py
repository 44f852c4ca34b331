"""The actor-critic: observations in; actions, log-probabilities and values out.

Built in: `Preparation` (normalise, one-hot), `Encoder` (images), optionally a `Memory`, then two
`Towers` and a distribution, all from a `NetworkConfig`.

**Your own network.** `ActorCritic.build(..., network=Net)` takes an `nn.Module` in place of
everything between observations and heads. Pass a class (called with the observation `Layout`) or a
ready instance. Its `forward` receives the batch as a tree, as the world gives it: a tensor
(B, *shape), or a flat dict of them; Box leaves that are not images are normalised when
`normalize_obs` is set. It returns features (B, F), or a pair (actor's, critic's). The lab adds the
heads, whose sizes follow from the action space, and trains all of it.

    class Net(nn.Module):
        def __init__(self, layout):
            super().__init__()
            width = layout.leaves[0].shape[0]
            self.body = nn.Sequential(nn.Linear(width, 32), nn.ReLU())

        def forward(self, obs):
            return self.body(obs)

For more than that (own heads, attention over memory), subclass `ActorCritic`, override
`forward(inputs, state, start) -> (params, values, state)` and hand an instance to `PPO`; a policy
that does so is trained through autograd.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rlgym.agents.distributions import make_distribution
from rlgym.agents.networks import Encoder, Inputs, Memory, Preparation, orthogonal, seeded
from rlgym.agents.towers import ACTOR_GAIN, CRITIC_GAIN, Towers
from rlgym.config import NetworkConfig
from rlgym.errors import UserError
from rlgym.spaces import Layout, Tree


class HeldNoise:
    """Noise (T, N, K) that stays the same for `every` steps, without T copies of it.

    It is indexed like the tensor: `noise[t, rows]`.
    """

    def __init__(self, blocks: Tensor, every: int, num_steps: int) -> None:
        self.blocks = blocks
        self.every = every
        self.shape = (num_steps, *blocks.shape[1:])

    def __getitem__(self, index: Any) -> Tensor:
        t, *rest = index if isinstance(index, tuple) else (index,)
        return self.blocks[(t // self.every, *rest)]

    def __len__(self) -> int:
        return self.shape[0]


class ActorCritic(nn.Module):
    """A policy and a value function for any observation and action space.

    Trees of observations have leading axes (B, ...), or (T, N, ...) where a recurrent policy is
    evaluated over time. Recurrent states are one tensor (N, state_size).

    Args:
        obs_layout: leaves of the observation space.
        action_layout: leaves of the action space.
        cfg: sizes and kinds.
        network: a user's own network; see this file's first lines.

    Attributes:
        distribution: see `rlgym.agents.distributions`.
        obs_norm: `RunningMeanStd` per Box leaf; empty without `normalize_obs`.
        state_shape: (state_size,) of a recurrent policy, else None; what `RolloutBuffer` takes.
    """

    def __init__(
        self,
        obs_layout: Layout,
        action_layout: Layout,
        cfg: NetworkConfig,
        network: nn.Module | type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if network is not None and cfg.recurrent != "none":
            raise UserError(
                f"network.recurrent is {cfg.recurrent!r} with a network of your own: keep the "
                "memory out (none), or subclass ActorCritic and override forward"
            )
        self.obs_layout = obs_layout
        self.action_layout = action_layout
        self.preparation = Preparation(obs_layout, cfg, as_leaves=network is not None)
        self.encoder: Encoder | None = None
        self.memory: Memory | None = None
        self.network: nn.Module | None = None
        if network is None:
            self._build_towers(cfg)
        else:
            self._build_heads(cfg, network)
        self.state_shape = None if self.memory is None else (self.memory.state_size,)

    def _build_towers(self, cfg: NetworkConfig) -> None:
        self.encoder = Encoder(self.preparation, cfg.cnn)
        size = self.encoder.actor_size
        if cfg.recurrent != "none":
            self.memory = Memory(cfg.recurrent, size, cfg.recurrent_size)
            size = self.memory.size
        last = cfg.hidden[-1] if cfg.hidden else size + self.encoder.critic_size
        self.distribution: Any = make_distribution(self.action_layout, cfg, last)
        self.towers = Towers(
            size + self.encoder.critic_size,
            size,
            tuple(cfg.hidden),
            cfg.activation,
            self.distribution.num_params,
        )

    def _build_heads(self, cfg: NetworkConfig, network: nn.Module | type[nn.Module]) -> None:
        self.network = network(self.obs_layout) if inspect.isclass(network) else network
        with torch.no_grad():
            zeros = self.obs_layout.alloc(2)
            inputs = self.preparation(_tensors(zeros))
            actor, critic = self._features(inputs)
        if actor.dim() != 2 or critic.dim() != 2 or len(actor) != 2 or len(critic) != 2:
            raise UserError(
                f"{type(self.network).__name__} turned 2 observations into features of shape "
                f"{list(actor.shape)}: return (batch, features), or a pair of them"
            )
        self.distribution = make_distribution(self.action_layout, cfg, actor.shape[1])
        self.actor_head = nn.Linear(actor.shape[1], self.distribution.num_params)
        self.critic_head = nn.Linear(critic.shape[1], 1)
        orthogonal(self.actor_head, ACTOR_GAIN)
        orthogonal(self.critic_head, CRITIC_GAIN)

    @classmethod
    def build(
        cls,
        obs_layout: Layout,
        action_layout: Layout,
        cfg: NetworkConfig,
        seed: int | torch.Generator = 0,
        network: nn.Module | type[nn.Module] | None = None,
    ) -> ActorCritic:
        """Build with weights that depend on `seed` alone; the global generator is left as it was.

        Raises:
            UserError: for spaces or settings that do not fit; the message names the fix.
        """
        with seeded(seed):
            return cls(obs_layout, action_layout, cfg, network)

    # --------------------------------------------------------------------------------- acting

    def noise(
        self, num_steps: int, num_envs: int, generator: torch.Generator
    ) -> Tensor | HeldNoise:
        """Noise of a whole rollout, (T, N, K); index it as `noise[t, rows]`."""
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
    ) -> tuple[Tree[Tensor], Tree[Tensor], Tensor | None]:
        """Choose actions for a batch of observations.

        Args:
            obs: tree of (B, ...).
            noise: (B, K) from `noise`; None takes the mode.
            state: (B, state_size) recurrent state; None starts from zero.
            start: (B,) bool, True where an episode starts; None means nowhere.
            mask: (B, mask_size) bool, True = allowed.
            deterministic: take the mode whatever the noise.

        Returns:
            Actions for the world, raw actions to store, and the next recurrent state (or None).
        """
        if torch.is_grad_enabled():  # a collector has turned it off, once for all its steps
            with torch.no_grad():
                return self.act(obs, noise, state, start, mask, deterministic)
        params, state = self._actor(self.preparation.forward(obs), state, start)
        if deterministic or noise is None:
            raw = self.distribution.mode(params, mask)
        else:
            raw = self.distribution.sample(params, noise, mask)
        return self.distribution.to_world(raw), raw, state

    def to_world(self, raw: Tree[Tensor]) -> Tree[Tensor]:
        """What the world is told for raw actions: clipped, or squashed to the bounds."""
        return self.distribution.to_world(raw)

    def initial_state(self, num_envs: int) -> Tensor | None:
        """Zeros (N, state_size), or None without memory."""
        if self.memory is None:
            return None
        return torch.zeros(num_envs, self.memory.state_size, device=self.device)

    # ------------------------------------------------------------------------------- learning

    def evaluate(
        self,
        obs: Tree[Tensor],
        actions: Tree[Tensor],
        mask: Tensor | None = None,
        state: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of raw actions, entropies and values, with autograd.

        Leading axes are (B,), or (T, N) with `state` (N, state_size) and `start` (T, N); the
        results have them too.
        """
        lead = self._lead(obs)
        rows = [leaf.shape for leaf in self.action_layout.leaves]
        if self.action_layout.single:
            actions = actions.reshape(-1, *rows[0])  # type: ignore[union-attr]
        else:
            keys = [leaf.key for leaf in self.action_layout.leaves]
            actions = {
                key: actions[key].reshape(-1, *shape)  # type: ignore[index]
                for key, shape in zip(keys, rows, strict=True)
            }
        mask = None if mask is None else mask.reshape(-1, mask.shape[-1])
        start = self._starts(start, lead)
        params, values, _ = self(self.preparation(obs), state, start)
        log_probs, entropy = self.distribution.log_prob_entropy(params, actions, mask)
        return log_probs.view(lead), entropy.view(lead), values.view(lead)

    @torch.no_grad()
    def values(
        self, obs: Tree[Tensor], state: Tensor | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Values with the leading axes of `obs`, without gradient."""
        lead = self._lead(obs)
        return self(self.preparation(obs), state, self._starts(start, lead))[1].view(lead)

    def forward(
        self, inputs: Inputs, state: Tensor | None = None, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the networks on prepared rows.

        Args:
            inputs: what `preparation` returns; rows (B,), or (T * N,) time-major with memory.
            state: (N, state_size) before the first row; None is zeros.
            start: (T, N) or (N,) bool, needed with memory: its shape says what the rows are.

        Returns:
            Distribution parameters (B, num_params + latent_size), values (B,), next state.
        """
        if self.network is not None:
            actor, critic = self._features(inputs)
            params = self._with_latent(self.actor_head(actor), actor.detach())
            return params, self.critic_head(critic).squeeze(1), None
        assert self.encoder is not None
        features, state = self._remember(self.encoder.actor(inputs), state, start)
        critic = self.encoder.critic(inputs)
        if critic is not None:
            features = torch.cat((features, critic), 1)
        outputs, values, last = self.towers(features)
        return self._with_latent(outputs, last), values, state

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def obs_norm(self) -> nn.ModuleDict:
        """Normalisers by leaf; empty without `normalize_obs`."""
        return self.preparation.obs_norm

    def update_normalizer(self, buffer: Any) -> None:
        """Merge a rollout's active observations; once, after the learner's update."""
        if len(self.obs_norm):
            self.preparation.update_normalizers(buffer.obs, buffer.active)

    def is_plain(self) -> bool:
        """Whether the towers alone stand between prepared vectors and the heads."""
        return (
            type(self).forward is ActorCritic.forward
            and self.network is None
            and self.memory is None
            and not self.preparation.images
        )

    # ------------------------------------------------------------------------------- details

    def _actor(
        self, inputs: Inputs, state: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Distribution parameters without the critic's work, where the towers allow it."""
        if type(self).forward is not ActorCritic.forward or self.network is not None:
            params, _, state = self(inputs, state, start)
            return params, state
        assert self.encoder is not None
        features, state = self._remember(self.encoder.actor(inputs), state, start)
        outputs, last = self.towers.actor(features)
        return self._with_latent(outputs, last), state

    def _features(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        obs = inputs[""] if self.obs_layout.single else inputs
        features = self.network(obs)  # type: ignore[misc]
        return features if isinstance(features, tuple) else (features, features)

    def _remember(
        self, features: Tensor, state: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.memory is None:
            return features, None
        if start is None:
            start = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        start = start.view(-1, start.shape[-1])
        if state is None:
            state = features.new_zeros(start.shape[1], self.memory.state_size)
        outputs, state = self.memory(features.view(*start.shape, -1), state, start)
        return outputs.flatten(0, 1), state

    def _with_latent(self, outputs: Tensor, last: Tensor) -> Tensor:
        return torch.cat((outputs, last), 1) if self.distribution.latent_size else outputs

    def _lead(self, obs: Tree[Tensor]) -> torch.Size:
        leaf = self.obs_layout.leaves[0]
        values = obs if self.obs_layout.single else obs[leaf.key]  # type: ignore[index]
        return values.shape[: values.dim() - len(leaf.shape)]  # type: ignore[union-attr]

    def _starts(self, start: Tensor | None, lead: torch.Size) -> Tensor | None:
        if start is None and self.memory is not None:
            start = torch.zeros(lead, dtype=torch.bool, device=self.device)
        return start


def _tensors(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: torch.from_numpy(array) for key, array in tree.items()}
    return torch.from_numpy(tree)
