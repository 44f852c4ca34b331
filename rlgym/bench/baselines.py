"""Stable-Baselines3 with the tuned settings of rl-baselines3-zoo: what we compare with.

Settings: github.com/DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml and sac.yml at commit 00128b5d.
What those files do not name has SB3's default.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from rlgym.config import PPOConfig, load_preset

Act = Callable[[Any], Any]
"""One observation of the world -> one deterministic action."""
VecKind = Literal["dummy", "subproc"]


@dataclass(frozen=True)
class ZooSettings:
    """One entry of the zoo's ppo.yml or sac.yml."""

    total_steps: int
    """Environment steps of the whole run; linear schedules end here."""
    num_envs: int = 1
    """Worlds stepped side by side."""
    normalize: bool = False
    """Whether observations and rewards are normalised (VecNormalize)."""
    linear: tuple[str, ...] = ()
    """Those of `algo` that fall linearly to zero."""
    algo: dict[str, Any] = field(default_factory=dict)
    """Arguments of `stable_baselines3.PPO` or `SAC`."""
    network: dict[str, Any] = field(default_factory=dict)
    """Its `policy_kwargs`."""
    reward_scale: float = 1.0
    """Factor of the rewards that the learner sees; reported returns are unscaled."""


_BULLET_PPO = {
    "n_steps": 512,
    "batch_size": 128,
    "n_epochs": 20,
    "gamma": 0.99,
    "gae_lambda": 0.9,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "learning_rate": 3e-5,
    "clip_range": 0.4,
    "use_sde": True,
    "sde_sample_freq": 4,
}
_BULLET_NETWORK = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": torch.nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
_BULLET_SAC = {
    "learning_rate": 7.3e-4,
    "buffer_size": 300_000,
    "batch_size": 256,
    "ent_coef": "auto",
    "gamma": 0.98,
    "tau": 0.02,
    "train_freq": 8,
    "gradient_steps": 8,
    "learning_starts": 10_000,
    "use_sde": True,
}
_BULLET_SAC_NETWORK = {"log_std_init": -3, "net_arch": [400, 300]}
ZOO: dict[str, ZooSettings] = {
    "CartPole-v1": ZooSettings(
        total_steps=100_000,
        num_envs=8,
        linear=("learning_rate", "clip_range"),
        algo={
            "n_steps": 32,
            "batch_size": 256,
            "n_epochs": 20,
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
        },
    ),
    "HopperBulletEnv-v0": ZooSettings(
        total_steps=2_000_000,
        num_envs=16,
        normalize=True,
        linear=("clip_range",),
        algo=_BULLET_PPO,
        network=_BULLET_NETWORK,
    ),
    "HalfCheetahBulletEnv-v0": ZooSettings(
        total_steps=2_000_000,
        num_envs=16,
        normalize=True,
        algo=_BULLET_PPO,
        network=_BULLET_NETWORK,
    ),
}
"""World, without the package that registers it -> the zoo's settings of PPO."""
ZOO_SAC: dict[str, ZooSettings] = {
    "Pendulum-v1": ZooSettings(total_steps=20_000, algo={"learning_rate": 1e-3}),
    # the zoo's are those of HalfCheetah-v3, the same body with older bindings of its engine
    "HalfCheetah-v5": ZooSettings(total_steps=1_000_000, algo={"learning_starts": 10_000}),
    "HalfCheetahBulletEnv-v0": ZooSettings(
        total_steps=1_000_000, algo=_BULLET_SAC, network=_BULLET_SAC_NETWORK
    ),
    "HopperBulletEnv-v0": ZooSettings(
        total_steps=1_000_000,
        linear=("learning_rate",),
        algo=_BULLET_SAC,
        network=_BULLET_SAC_NETWORK,
    ),
}
"""The same of SAC."""
_CLASSES: dict[str, type[PPO] | type[SAC]] = {"ppo": PPO, "sac": SAC}


def settings_of(env_id: str, algo: str = "ppo") -> ZooSettings:
    """Return the zoo's settings of a world; "package:World-v0" is looked up as "World-v0"."""
    return (ZOO_SAC if algo == "sac" else ZOO)[env_id.rpartition(":")[2]]


def settings_of_preset(name: str) -> ZooSettings:
    """Return what makes SB3's PPO train with the settings of one of our PPO presets.

    Raises:
        ValueError: when the preset has something that this does not translate.
    """
    config = load_preset(name)
    algo, network = config.algo, config.network
    if not isinstance(algo, PPOConfig) or network.std != "global" or network.normalize_obs:
        raise ValueError(f"{name} is no preset that SB3's PPO can be given")
    activations = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU}
    schedules = (("learning_rate", algo.learning_rate_schedule), ("clip_range", algo.clip_schedule))
    return ZooSettings(
        total_steps=config.total_steps,
        num_envs=config.num_envs,
        linear=tuple(argument for argument, schedule in schedules if schedule == "linear"),
        algo={
            "n_steps": algo.num_steps,
            "batch_size": algo.minibatch_size,
            "n_epochs": algo.epochs,
            "gamma": algo.gamma,
            "gae_lambda": algo.gae_lambda,
            "learning_rate": algo.learning_rate,
            "clip_range": algo.clip,
            "ent_coef": algo.entropy_coef,
            "vf_coef": algo.value_coef,
            "max_grad_norm": algo.max_grad_norm,
        },
        network={
            "activation_fn": activations[network.activation],
            "net_arch": list(network.hidden),
        },
        reward_scale=config.wrappers.reward_scale,
    )


def make_sb3(
    env_id: str,
    seed: int,
    *,
    algo: str = "ppo",
    settings: ZooSettings | None = None,
    vec_env: VecKind = "dummy",
    tensorboard: str | None = None,
) -> Any:
    """Build SB3's PPO or SAC as the zoo's train script does.

    Args:
        env_id: a Gymnasium id, "package:id" too.
        seed: seed of worlds, network and noise.
        algo: "ppo" or "sac".
        settings: other settings than the zoo's.
        vec_env: worlds in this process (the zoo's default) or in one process each.
        tensorboard: folder of its log; None writes none.

    Returns:
        A `stable_baselines3.PPO` or `SAC`.
    """
    settings = settings or settings_of(env_id, algo)
    kind: type[VecEnv] = DummyVecEnv if vec_env == "dummy" else SubprocVecEnv
    scale: dict[str, Any] = {}
    if settings.reward_scale != 1.0:  # outside of Monitor, which reports unscaled returns
        scale = {"wrapper_class": TransformReward}
        scale["wrapper_kwargs"] = {"func": _times(settings.reward_scale)}
    env: VecEnv = make_vec_env(
        env_id, n_envs=settings.num_envs, seed=seed, vec_env_cls=kind, **scale
    )
    if settings.normalize:
        env = VecNormalize(env, gamma=settings.algo["gamma"])
    arguments = dict(settings.algo)
    for name in settings.linear:
        arguments[name] = _linear(arguments[name])
    return _CLASSES[algo](
        "MlpPolicy",
        env,
        seed=seed,
        device="cpu",
        tensorboard_log=tensorboard,
        policy_kwargs=settings.network or None,
        **arguments,
    )


def _linear(start: float) -> Callable[[float], float]:
    """Return SB3's form of a schedule that falls from `start` to zero."""
    return lambda remaining: remaining * start


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda reward: factor * float(reward)


class StopAtMean(BaseCallback):
    """Ends SB3's training when the mean return of its last 100 episodes reaches a threshold.

    Args:
        threshold: mean return to reach.
        deadline: value of `time.perf_counter` at which to give up.
    """

    def __init__(self, threshold: float, deadline: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.deadline = deadline
        self.reached_at: float | None = None
        self.curve: list[tuple[float, float]] = []
        self._ended = False

    def _on_rollout_end(self) -> None:
        """Note the clock and the window's mean."""
        window = self.model.ep_info_buffer
        if window:
            self.curve.append((time.perf_counter(), sum(e["r"] for e in window) / len(window)))

    def _on_step(self) -> bool:
        """Return False to stop; called after each step of all worlds."""
        if self._ended:  # SB3 appends an episode to its window after this call, not before
            window = self.model.ep_info_buffer or ()
            if len(window) == 100 and sum(e["r"] for e in window) >= 100 * self.threshold:
                self.reached_at = time.perf_counter()
                return False
        self._ended = self.locals["dones"].any()
        return time.perf_counter() < self.deadline


class AfterEachStep(BaseCallback):
    """Calls a function after each step of SB3's worlds; training goes on while it returns True.

    Args:
        call: gets the number of environment steps so far.
    """

    def __init__(self, call: Callable[[int], bool]) -> None:
        super().__init__()
        self.call = call

    def _on_step(self) -> bool:
        return self.call(self.num_timesteps)


def act_of(model: Any) -> Act:
    """Return the deterministic policy of a trained model, its normaliser included and frozen."""
    normalizer = model.get_vec_normalize_env()

    def act(obs: Any) -> Any:
        seen = obs if normalizer is None else normalizer.normalize_obs(obs)
        return model.predict(seen, deterministic=True)[0]

    return act


def play(
    env_id: str,
    act: Act,
    *,
    episodes: int,
    seed: int,
    begin: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Run episodes one after another in Gymnasium's own world.

    Args:
        env_id: a Gymnasium id, "package:id" too.
        act: one observation -> one action.
        episodes: number of episodes.
        seed: seed of the first; episode i has seed + i.
        begin: called at the start of each episode, for a policy that remembers.

    Returns:
        Returns, and `info["is_success"]` at the ends as 0 or 1 (NaN where a world has none).
    """
    env = gymnasium.make(env_id)
    returns, successes = [], []
    for episode in range(episodes):
        obs, info = env.reset(seed=seed + episode)
        begin()
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, info = env.step(act(obs))
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
        successes.append(float(info.get("is_success", np.nan)))
    env.close()
    return returns, successes


def fastest(
    env_id: str, *, vec_envs: Sequence[VecKind] = ("dummy",), algo: str = "ppo"
) -> dict[str, Any]:
    """Return the torch threads (1 or 2) and the vector env with which SB3 trains faster here.

    Args:
        env_id: a world of `ZOO`, or of `ZOO_SAC`.
        vec_envs: vector envs to try.
        algo: "ppo" or "sac".

    Returns:
        "threads", "vec_env", and "steps_per_second" of every pair that was tried.
    """
    settings = settings_of(env_id, algo)
    if algo == "sac":  # its first steps are random and learn nothing
        settings = replace(settings, algo={**settings.algo, "learning_starts": 100})
        warm_up, steps = 200, 400
    else:
        warm_up = settings.num_envs * settings.algo["n_steps"]
        steps = max(warm_up, 8192)
    speed: dict[tuple[int, VecKind], float] = {}
    for vec_env in vec_envs:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = make_sb3(env_id, seed=1000, algo=algo, settings=settings, vec_env=vec_env)
            model.learn(warm_up)  # the first update pays for lazy set-up
            start = time.perf_counter()
            model.learn(steps, reset_num_timesteps=False)
            speed[threads, vec_env] = steps / (time.perf_counter() - start)
            model.env.close()
    threads, vec_env = max(speed, key=lambda pair: speed[pair])
    tried = {f"{n} thread(s), {kind}": round(rate) for (n, kind), rate in speed.items()}
    return {"threads": threads, "vec_env": vec_env, "steps_per_second": tried}
