"""What no run can have: values out of range, and settings that contradict each other."""

from collections.abc import Callable
from typing import Any

from rlgym.config import CloneConfig, SACConfig, TrainConfig, is_scene
from rlgym.errors import ConfigError

SHORTEST_ROLLOUT = 16
"""Steps that an actor's rollout must have: sending one takes as long as some steps."""

_RULES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        (
            *("num_envs", "num_workers", "num_groups", "total_steps", "torch_threads"),
            *("algo.num_steps", "algo.minibatch_size", "algo.epochs", "network.recurrent_size"),
            *("network.gsde_every", "wrappers.frame_stack", "eval.episodes", "checkpoint.keep"),
            *("algo.buffer_size", "algo.batch_size", "algo.n_step", "algo.num_critics"),
            *("algo.actor_every", "clone.batch_size", "clone.sequence", "collect.actors"),
        ),
    ),
    (
        "above 0",
        lambda value: value > 0,
        (
            *("timeout", "time_limit", "algo.learning_rate", "algo.clip", "algo.value_clip"),
            *("algo.max_grad_norm", "algo.target_kl", "algo.adam_eps", "network.obs_clip"),
            *("wrappers.clip_reward", "algo.buffer_memory", "algo.updates_per_step", "algo.tau"),
            *("algo.critic_learning_rate", "algo.temperature", "algo.initial_temperature"),
            *("clone.learning_rate", "collect.cpus", "collect.patience"),
        ),
    ),
    (
        "0 or more",
        lambda value: value >= 0,
        (
            *("seed", "max_restarts", "eval.every", "eval.seed", "checkpoint.every"),
            *("algo.value_coef", "algo.entropy_coef", "algo.symmetry_coef", "algo.learning_starts"),
            *("clone.steps", "clone.coef"),
        ),
    ),
    (
        "from 0 to 1",
        lambda value: 0 <= value <= 1,
        (
            *("algo.gamma", "algo.gae_lambda", "algo.hindsight", "algo.priority_exponent"),
            "algo.importance_exponent",
        ),
    ),
    ("below 2**63", lambda value: value < 2**63, ("seed", "eval.seed")),
    ("at most 1", lambda value: value <= 1, ("algo.tau",)),
    ("widths of at least 1", lambda value: all(width >= 1 for width in value), ("network.hidden",)),
)


def check(config: TrainConfig) -> None:
    """Refuse a value that no run can have.

    Raises:
        ConfigError: names the setting, what it must be and what it is.
    """
    for sentence, allowed, paths in _RULES:
        for path in paths:
            if path == "num_envs" and config.num_envs == 0 and is_scene(config.env_id):
                continue
            value: Any = config
            for name in path.split("."):
                value = getattr(value, name, None)  # another algorithm has other settings
            if value is not None and not allowed(value):
                raise ConfigError(f"{path} must be {sentence}, it is {value!r}")
    _check_clone(config.clone)
    if isinstance(config.algo, SACConfig):
        _check_sac(config, config.algo)
    if config.collect.ray is not None:
        _check_actors(config)


def _check_actors(config: TrainConfig) -> None:
    """Refuse what actors cannot share, or what would have them send every step."""
    actors = config.collect.actors
    if is_scene(config.env_id):
        raise ConfigError("collect.ray is for worlds by the number, not for a scene: leave it out")
    if config.num_envs % actors:
        raise ConfigError(
            f"{config.num_envs} worlds do not divide among {actors} actors: set num_envs to "
            f"{-(-config.num_envs // actors) * actors}"
        )
    if config.algo.num_steps < SHORTEST_ROLLOUT:
        raise ConfigError(
            f"algo.num_steps is {config.algo.num_steps}, and actors send whole rollouts: set it "
            f"to {SHORTEST_ROLLOUT} or more"
        )


def _check_clone(clone: CloneConfig) -> None:
    """Refuse half of what cloning needs."""
    wanted = clone.steps or clone.coef
    if wanted and clone.demonstrations is None:
        raise ConfigError("clone.steps and clone.coef need clone.demonstrations: name the file")
    if clone.demonstrations is not None and not wanted:
        raise ConfigError(
            "clone.demonstrations would not be used: set clone.steps, for example to 1000, or "
            "clone.coef, for example to 0.1"
        )


def _check_sac(config: TrainConfig, algo: SACConfig) -> None:
    """Refuse what SAC cannot be built from."""
    network = config.network
    if network.recurrent != "none":
        raise ConfigError(
            f"network.recurrent is '{network.recurrent}', and SAC has no memory: set it to none, "
            "or stack observations with wrappers.frame_stack"
        )
    if network.std == "global":
        raise ConfigError(
            "network.std is 'global', and SAC's deviation follows the state: "
            "set it to state, or to gsde"
        )
    if not network.squash:
        raise ConfigError(
            "network.squash is false, and SAC bounds its actions by tanh: set it to true"
        )
    if algo.demonstrations is not None and config.wrappers.normalize_reward:
        raise ConfigError(
            "algo.demonstrations have no running deviation by which wrappers.normalize_reward "
            "divides: set one of the two to its default, or wrappers.reward_scale instead"
        )
    least = config.num_envs * max(2 * algo.num_steps, algo.n_step)
    if algo.buffer_size < least:
        raise ConfigError(
            f"algo.buffer_size is {algo.buffer_size}, and {config.num_envs} worlds with "
            f"algo.num_steps {algo.num_steps} and algo.n_step {algo.n_step} need {least}"
        )
