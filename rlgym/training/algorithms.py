"""What on-policy and off-policy runs do not share: how their parts are built, and their loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlgym.agents.policy import ActorCritic
from rlgym.agents.ppo import PPO
from rlgym.agents.sac import SAC
from rlgym.agents.soft_policy import SoftPolicy
from rlgym.config import (
    NetworkConfig,
    PPOConfig,
    SACConfig,
    TrainConfig,
    WrapperConfig,
    load_config,
)
from rlgym.errors import CheckpointError, ConfigError, UserError
from rlgym.registry import WorldFactory, make
from rlgym.rollout.buffer import RolloutBuffer
from rlgym.rollout.hindsight import ComputeReward, Hindsight
from rlgym.rollout.priorities import Prioritized
from rlgym.rollout.replay import ReplayBuffer
from rlgym.settings import suggest
from rlgym.spaces import Layout
from rlgym.training import off_policy, on_policy
from rlgym.training.cloning import doubts, read_demonstrations
from rlgym.vector.contract import VectorEnv

if TYPE_CHECKING:
    from rlgym.training.session import Run


class OnPolicy:
    """PPO's kind: learns from each rollout, then overwrites it.

    Args:
        algo: its settings.
    """

    name = "ppo"
    learn: Callable[[Run], None] = staticmethod(on_policy.learn)

    def __init__(self, algo: PPOConfig) -> None:
        self.algo = algo

    def policy(
        self, obs: Layout, actions: Layout, cfg: NetworkConfig, seed: int, network: Any = None
    ) -> ActorCritic:
        """Build from settings, around the user's own network, or take the user's policy."""
        if isinstance(network, ActorCritic):
            return network
        return ActorCritic.build(obs, actions, cfg, seed=seed, network=network)

    def policy_settings(self) -> dict[str, Any]:
        """What a checkpoint must say, besides the network's settings, to build the policy again."""
        return {"algo": self.name}

    def learner(self, policy: Any, total_steps: int, hooks: list[Any]) -> PPO:
        """Build what changes the policy."""
        mirrors = [hook.symmetry for hook in hooks if hasattr(hook, "symmetry")]
        return PPO(policy, self.algo, total_steps, *mirrors[:1])

    def buffer(self, env: VectorEnv, policy: Any, device: torch.device) -> RolloutBuffer:
        """Build what the collector fills."""
        layouts = env.obs_layout, env.action_layout
        steps, slots = self.algo.num_steps, env.num_envs
        return RolloutBuffer(steps, slots, *layouts, device, env.mask_size, policy.state_shape)

    def replay(self, *_: Any) -> None:
        """There is none: a rollout is learned from once."""

    def prepare(self, run: Run) -> list[str]:
        """Nothing is known before the first step of a new run."""
        return []


class OffPolicy:
    """SAC's kind: keeps what happened, and learns from draws of all of it.

    Args:
        algo: its settings.
    """

    name = "sac"
    learn: Callable[[Run], None] = staticmethod(off_policy.learn)

    def __init__(self, algo: SACConfig) -> None:
        self.algo = algo

    def policy(
        self, obs: Layout, actions: Layout, cfg: NetworkConfig, seed: int, network: Any = None
    ) -> SoftPolicy:
        """Build from settings, around the user's own network, or take the user's policy."""
        if isinstance(network, SoftPolicy):
            return network
        critics = {"num_critics": self.algo.num_critics, "layer_norm": self.algo.layer_norm}
        return SoftPolicy.build(obs, actions, cfg, seed=seed, network=network, **critics)

    def policy_settings(self) -> dict[str, Any]:
        """What a checkpoint must say, besides the network's settings, to build the policy again."""
        algo = self.algo
        return {"algo": self.name, "num_critics": algo.num_critics, "layer_norm": algo.layer_norm}

    def learner(self, policy: Any, total_steps: int, hooks: list[Any]) -> SAC:
        """Build what changes the policy."""
        return SAC(policy, self.algo, total_steps)

    def buffer(self, env: VectorEnv, policy: Any, device: torch.device) -> RolloutBuffer:
        """Build what the collector fills, and the replay buffer takes over."""
        layouts = env.obs_layout, env.action_layout
        steps, slots = self.algo.num_steps, env.num_envs
        return RolloutBuffer(steps, slots, *layouts, device, env.mask_size, keep_finals=True)

    def replay(
        self,
        env: VectorEnv,
        device: torch.device,
        config: TrainConfig,
        world: WorldFactory | None,
    ) -> ReplayBuffer:
        """Build what keeps the transitions.

        Raises:
            UserError: it does not fit into the memory, or the world has no goals for hindsight.
        """
        algo, hindsight, prioritized = self.algo, None, None
        if algo.hindsight:
            hindsight = Hindsight(algo.hindsight, goal_reward(config, world))
        if algo.prioritized:
            prioritized = Prioritized(algo.priority_exponent, algo.importance_exponent)
        return ReplayBuffer(
            algo.buffer_size,
            env.num_envs,
            env.obs_layout,
            env.action_layout,
            device,
            gamma=algo.gamma,
            n_step=algo.n_step,
            mask_size=env.mask_size,
            memory=algo.buffer_memory,
            prioritized=prioritized,
            hindsight=hindsight,
        )

    def prepare(self, run: Run) -> list[str]:
        """Put the demonstrations, if there are any, into a new run's replay buffer.

        Returns:
            What came of it, to be shown.

        Raises:
            UserError: they do not fit the world, or its wrappers.
        """
        path, replay = self.algo.demonstrations, run.replay
        if path is None or replay is None:
            return []
        found = read_demonstrations(path, run.env.obs_layout, run.env.action_layout)
        wrappers = run.config.wrappers
        if found.stored:
            _require_same_rewards(Path(path), wrappers)
        else:
            found.rewards = _wrapped_rewards(found.rewards, wrappers)
        replay.add_demonstrations(found, run.policy.scale_action)
        notes = [doubts(path, found, run.env.action_layout)]
        if replay.size != found.size:
            notes.append(f"of {found.size:,} steps in {path} the buffer holds {replay.size:,}")
        return notes


def algorithm(algo: PPOConfig | SACConfig) -> OnPolicy | OffPolicy:
    """The kind of algorithm that these settings are of."""
    return OffPolicy(algo) if isinstance(algo, SACConfig) else OnPolicy(algo)


def algorithm_of(document: dict[str, Any]) -> OnPolicy | OffPolicy:
    """The kind of algorithm whose `policy_settings` a checkpoint holds.

    Raises:
        CheckpointError: there is no such algorithm.
    """
    name = document.get("algo", "ppo")  # runs from before there was another do not say it
    if name == "ppo":
        return OnPolicy(PPOConfig())
    if name != "sac":
        raise CheckpointError(f"the policy is of '{name}': {suggest(str(name), ('ppo', 'sac'))}")
    critics, layer_norm = document["num_critics"], document["layer_norm"]
    if not isinstance(critics, int) or not 1 <= critics <= 100 or not isinstance(layer_norm, bool):
        raise CheckpointError(f"the policy has {critics!r} critics, layer_norm {layer_norm!r}")
    return OffPolicy(SACConfig(num_critics=critics, layer_norm=layer_norm))


def goal_reward(config: TrainConfig, world: WorldFactory | None) -> ComputeReward:
    """A goal world's own `compute_reward`, behind what the run's wrappers do to rewards.

    Raises:
        UserError: the world has none.
        ConfigError: rewards are normalised, so that old ones have another scale; or goals stacked.
    """
    wrappers = config.wrappers
    if wrappers.normalize_reward:
        raise ConfigError(
            "algo.hindsight computes rewards anew, and wrappers.normalize_reward scales them as "
            "they come: set one of the two to its default"
        )
    if wrappers.frame_stack > 1:
        raise ConfigError(
            "algo.hindsight asks the world about one goal, and wrappers.frame_stack joins several: "
            "set one of the two to its default"
        )
    env = make(world or config.env_id, **config.env)  # stays open: the function may ask it
    compute = getattr(env.unwrapped, "compute_reward", None)
    if compute is None:
        env.close()
        raise UserError(
            f"{config.env_id} has no compute_reward(achieved, desired, info), which "
            "hindsight needs: pass --algo.hindsight 0"
        )
    return _wrapped(compute, wrappers)


def _wrapped(compute: ComputeReward, wrappers: WrapperConfig) -> ComputeReward:
    def rewards(achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        return _wrapped_rewards(compute(achieved, desired, info), wrappers)

    return rewards


def _wrapped_rewards(rewards: Any, wrappers: WrapperConfig) -> np.ndarray:
    """What the run's wrappers make of rewards that did not come through them."""
    found = np.asarray(rewards, np.float32) * np.float32(wrappers.reward_scale)
    bound = wrappers.clip_reward
    return found if bound is None else np.clip(found, -bound, bound)


def _require_same_rewards(run_dir: Path, wrappers: WrapperConfig) -> None:
    """Refuse the buffer of a run whose rewards were made another way.

    Raises:
        UserError: names the settings of that run.
    """
    if not (run_dir / "config.yaml").is_file():
        return
    theirs = load_config(run_dir / "config.yaml").wrappers
    names = ("reward_scale", "clip_reward")
    if any(getattr(theirs, name) != getattr(wrappers, name) for name in names):
        flags = (f"--wrappers.{n.replace('_', '-')} {getattr(theirs, n)}" for n in names)
        raise UserError(
            f"the rewards in the buffer of {run_dir} were scaled another way than this run's: "
            f"pass {' '.join(flags)}"
        )
