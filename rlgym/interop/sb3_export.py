"""Policies of ours as models of Stable-Baselines3, which can be saved and trained there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import (
    is_image_space,
    is_image_space_channels_first,
)
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecNormalize,
    VecTransposeImage,
)
from torch import nn

from rlgym.agents.distributions import Joint
from rlgym.agents.gaussian import StateDependentNoise
from rlgym.agents.normalize import EPSILON
from rlgym.agents.policy import ActorCritic
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import PPOConfig, SACConfig
from rlgym.errors import SpaceError, UserError
from rlgym.interop import sb3_actor_critic, sb3_soft
from rlgym.interop.sb3 import to_sb3
from rlgym.interop.sb3_models import ACTIVATIONS, check_starts
from rlgym.interop.sb3_normalize import normalized
from rlgym.interop.sb3_parameters import IMAGE_SIZE
from rlgym.settings import short
from rlgym.spaces import Layout
from rlgym.training.loaded import LoadedPolicy, load_policy
from rlgym.vector.contract import VectorEnv


def to_model(run_or_policy: Any, env: Any, device: str) -> BaseAlgorithm:
    """Build the model; see `sb3_models.to_sb3_model`."""
    if isinstance(run_or_policy, str | Path):
        run_or_policy = load_policy(run_or_policy)
    loaded = run_or_policy if isinstance(run_or_policy, LoadedPolicy) else None
    policy = run_or_policy if loaded is None else loaded.policy
    algo = None if loaded is None or loaded.config is None else loaded.config.algo
    kind: Any  # PPO or SAC
    settings: dict[str, Any]
    if isinstance(policy, ActorCritic):
        sb3_actor_critic.check_writable(policy)
        tensors = sb3_actor_critic.write_actor_critic(policy)
        kind, settings = PPO, _ppo_settings(algo)
    elif isinstance(policy, SoftPolicy):
        sb3_soft.check_writable(policy)
        tensors, kind = sb3_soft.write_soft(policy), SAC
        # SB3's "auto", which it can only work out with a world at hand
        settings = {"target_entropy": -float(policy.actions.size)} | _sac_settings(algo)
    else:
        raise UserError(f"{type(policy).__name__} is neither a run's folder nor a policy of ours")
    _check_spaces(policy)
    settings |= {"policy_kwargs": _policy_kwargs(policy), "device": device}
    settings["use_sde"] = isinstance(policy.distribution, StateDependentNoise)
    name = "MultiInputPolicy" if not policy.obs_layout.single else "MlpPolicy"
    if policy.preparation.images and policy.obs_layout.single:
        name = "CnnPolicy"
    if env is None:
        model = _without_env(kind, name, policy, settings)
    else:
        model = kind(name, _vec_env(env, policy), **settings)
    model.policy.load_state_dict(tensors)
    model.num_timesteps = 0 if loaded is None else loaded.step
    return model


def _without_env(kind: Any, name: str, policy: Any, settings: dict[str, Any]) -> BaseAlgorithm:
    """Build a model as SB3's own `load` does: spaces first, then the networks."""
    if len(policy.obs_norm):
        raise UserError(
            "this policy normalises observations, which SB3 does around the world: pass the world, "
            "to_sb3_model(run, env)"
        )
    model = kind(name, None, _init_setup_model=False, **settings)
    model.observation_space = _channels_first(policy.obs_layout.space)
    model.action_space = policy.action_layout.space
    model.n_envs = 1
    model._setup_model()
    return model


def _vec_env(env: Any, policy: Any) -> VecEnv:
    """The world as SB3 wants it, normalised as the policy does.

    Raises:
        SpaceError: it has other spaces than the policy.
    """
    if isinstance(env, VectorEnv):
        env = to_sb3(env)
    elif isinstance(env, gymnasium.Env):
        own = env
        env = DummyVecEnv([lambda: own])
    if not isinstance(env, VecEnv):
        raise UserError(
            f"env is a {type(env).__name__}: give a vector env of rlgym.make_vec, a VecEnv, or a "
            "gymnasium.Env"
        )
    layouts = ("observations", policy.obs_layout), ("actions", policy.action_layout)
    for (what, layout), space in zip(
        layouts, (env.observation_space, env.action_space), strict=True
    ):
        found = Layout(space)
        shapes = [
            [(leaf.key, leaf.shape, leaf.num_choices) for leaf in side.leaves]
            for side in (layout, found)
        ]
        if shapes[0] != shapes[1]:
            raise SpaceError(
                f"the world has the {what} {short(space)} and the policy {short(layout.space)}: "
                "give the world that it was trained in, wrappers included"
            )
    return _normalized(env, policy) if len(policy.obs_norm) else env


def _normalized(env: VecEnv, policy: Any) -> VecNormalize:
    """Wrap the world with the policy's statistics, which go on being updated in training."""
    leaves, norms = normalized(policy.obs_layout), list(policy.obs_norm.values())
    keys = None if policy.obs_layout.single else [leaf.key for leaf in leaves]
    wrapped = VecNormalize(
        env, norm_reward=False, clip_obs=norms[0].clip, epsilon=EPSILON, norm_obs_keys=keys
    )
    for leaf, norm in zip(leaves, norms, strict=True):
        rms: Any = wrapped.obs_rms[leaf.key] if isinstance(wrapped.obs_rms, dict) else None
        rms = wrapped.obs_rms if rms is None else rms
        rms.mean = norm.mean.numpy(force=True).astype(np.float64).copy()
        rms.var = norm.var.numpy(force=True).astype(np.float64).copy()
        rms.count = float(norm.count)
    return wrapped


def _check_spaces(policy: Any) -> None:
    """Refuse spaces that SB3 does not know.

    Raises:
        SpaceError: names the space.
    """
    obs, actions = policy.obs_layout, policy.action_layout
    check_starts(obs, actions)
    if isinstance(policy.distribution, Joint):
        raise SpaceError("SB3 knows no actions of several parts: it needs one Box or Discrete")
    nested = any(len(leaf.path) > 1 for leaf in obs.leaves)
    if nested or isinstance(obs.space, spaces.Tuple):
        raise SpaceError("SB3 knows no nested observations and no Tuple: it needs a flat Dict")
    for leaf in obs.leaves:
        if leaf.is_image != is_image_space(leaf.space):
            raise SpaceError(
                f"{leaf.key or 'the observation'!r} is an image to one library only: SB3 wants "
                "uint8 from 0 to 255"
            )


def _channels_first(space: gymnasium.Space) -> gymnasium.Space:
    """What SB3 makes of a world's space: it turns images to (C, H, W)."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, _channels_first(part)) for key, part in space.spaces.items()])
    if not is_image_space(space) or is_image_space_channels_first(space):  # type: ignore[arg-type]
        return space
    return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]


def _policy_kwargs(policy: Any) -> dict[str, Any]:
    soft = isinstance(policy, SoftPolicy)
    layers = policy.actor.layers if soft else policy.towers
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    hidden = list(layers.hidden)
    kwargs: dict[str, Any] = {
        "net_arch": {"pi": hidden, "qf" if soft else "vf": hidden},
        "activation_fn": getattr(nn, names[layers.activation]),
    }
    gsde = isinstance(policy.distribution, StateDependentNoise)
    if soft:
        kwargs["n_critics"] = policy.critics.layers.members
        kwargs |= {"clip_mean": 0.0} if gsde else {}
    elif gsde:
        kwargs["squash_output"] = policy.distribution.squash
    if policy.preparation.images and not policy.obs_layout.single:
        kwargs["features_extractor_kwargs"] = {"cnn_output_dim": IMAGE_SIZE}
    return kwargs


def _ppo_settings(algo: Any) -> dict[str, Any]:
    if not isinstance(algo, PPOConfig):
        return {}
    return {
        "learning_rate": algo.learning_rate,
        "n_steps": algo.num_steps,
        "batch_size": algo.minibatch_size,
        "n_epochs": algo.epochs,
        "gamma": algo.gamma,
        "gae_lambda": algo.gae_lambda,
        "clip_range": algo.clip,
        "clip_range_vf": algo.value_clip,
        "normalize_advantage": algo.normalize_advantages,
        "ent_coef": algo.entropy_coef,
        "vf_coef": algo.value_coef,
        "max_grad_norm": algo.max_grad_norm,
        "target_kl": algo.target_kl,
    }


def _sac_settings(algo: Any) -> dict[str, Any]:
    if not isinstance(algo, SACConfig):
        return {}
    learned = f"auto_{algo.initial_temperature}"
    settings = {
        "learning_rate": algo.learning_rate,
        "buffer_size": algo.buffer_size,
        "learning_starts": algo.learning_starts,
        "batch_size": algo.batch_size,
        "tau": algo.tau,
        "gamma": algo.gamma,
        "ent_coef": learned if algo.temperature is None else algo.temperature,
    }
    return (
        settings
        if algo.target_entropy is None
        else settings | {"target_entropy": algo.target_entropy}
    )
