"""What a run is made of: frozen dataclasses, each field with its meaning and unit under it.

A YAML config is a saved dataclass: nested mappings with the fields' names, `algo` with the
algorithm's `name` beside its fields. Presets are such files in `rlgym.configs`. Files, flags and
keyword arguments all pass through `merge`, so a mistake reads the same wherever it was made.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import yaml

from rlgym.errors import ConfigError
from rlgym.plain_yaml import read_yaml
from rlgym.settings import change, plain, short, suggest

Config = TypeVar("Config")
Schedule = Literal["constant", "linear"]


@dataclass(frozen=True)
class NetworkConfig:
    """Encoders, torso and heads of an actor-critic."""

    hidden: tuple[int, ...] = (64, 64)
    """Width of each hidden layer of the actor and of the critic."""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """Activation after each hidden layer."""
    cnn: Literal["nature", "small"] = "nature"
    """Encoder of uint8 images: Nature DQN's three layers, or a small one for under 36 pixels."""
    recurrent: Literal["none", "gru", "lstm"] = "none"
    """Memory between the encoder and the heads; its state is reset where an episode starts."""
    recurrent_size: int = 128
    """Width of the recurrent state."""
    normalize_obs: bool = False
    """Normalise float observations by running mean and variance, frozen between updates."""
    obs_clip: float = 10.0
    """Bound of a normalised observation, in standard deviations."""
    std: Literal["global", "state", "gsde"] = "global"
    """Gaussian scale: one learned vector, a head of the network, or state-dependent exploration."""
    log_std_init: float = 0.0
    """Initial log standard deviation of Gaussian actions, in units of the raw action."""
    gsde_every: int = 64
    """Steps between two draws of the exploration matrix (only with std="gsde")."""
    squash: bool = False
    """Map Gaussian actions through tanh to the bounds (else they are clipped to them)."""
    privileged: tuple[str, ...] = ("privileged",)
    """Keys of a dict observation that only the critic sees."""


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347)."""

    num_steps: int = 2048
    """Steps per world and update; one update uses num_steps * num_envs transitions."""
    minibatch_size: int = 64
    """Transitions per gradient step (recurrent: rounded to whole sequences)."""
    epochs: int = 10
    """Passes over the rollout per update."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Decay of the generalised advantage estimator."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    learning_rate_schedule: Literal["constant", "linear", "kl"] = "constant"
    """constant, linear to zero over total_steps, or adapted to `target_kl` after each update."""
    clip: float = 0.2
    """Bound of the probability ratio's distance from one."""
    clip_schedule: Schedule = "constant"
    """Schedule of `clip` over total_steps."""
    value_clip: float | None = None
    """Bound of the value's change per update; None leaves it free."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    normalize_advantages: bool = True
    """Give each minibatch's advantages zero mean and unit variance."""
    max_grad_norm: float = 0.5
    """Bound of the gradient's global L2 norm."""
    target_kl: float | None = None
    """Stop an update when its KL passes 1.5 times this ("kl" schedule: the KL aimed at)."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    symmetry_coef: float = 0.0
    """Weight of the mirror loss; needs a `symmetry` hook."""


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905)."""

    num_steps: int = 1
    """Steps per world between two turns of the learner."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer keeps, over all worlds."""
    buffer_memory: float | None = None
    """GiB that the replay buffer may take; None = three quarters of what is free."""
    learning_starts: int = 1000
    """Environment steps with uniformly random actions before the first gradient step."""
    updates_per_step: float = 1.0
    """Gradient steps per environment step, over all worlds."""
    batch_size: int = 256
    """Transitions per gradient step."""
    gamma: float = 0.99
    """Discount per step."""
    n_step: int = 1
    """Rewards summed before the critic's own estimate is taken."""
    tau: float = 0.005
    """Share by which the target critics move to the critics at each gradient step."""
    learning_rate: float = 3e-4
    """Adam's step size at the start, of actor and temperature (and of the critics, see next)."""
    critic_learning_rate: float | None = None
    """Adam's step size of the critics; None = `learning_rate`."""
    learning_rate_schedule: Schedule = "constant"
    """Schedule of the step sizes over total_steps."""
    temperature: float | None = None
    """Weight of the entropy; None = learned, so that the entropy stays near `target_entropy`."""
    initial_temperature: float = 1.0
    """Where a learned temperature starts."""
    target_entropy: float | None = None
    """Nats; None = minus the number of continuous actions, 0.98 log n per choice among n."""
    num_critics: int = 2
    """Critics; the lowest of their targets counts."""
    layer_norm: bool = False
    """Layer normalisation in the critics, before each activation."""
    actor_every: int = 1
    """Gradient steps of the critics per gradient step of the actor and the temperature."""
    max_grad_norm: float | None = None
    """Bound of each gradient's global L2 norm; None = unbounded."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    prioritized: bool = False
    """Draw transitions by the size of their last error (Schaul et al. 2016, arXiv 1511.05952)."""
    priority_exponent: float = 0.6
    """How much the error counts, 0 to 1; 0 draws uniformly (only with prioritized)."""
    importance_exponent: float = 0.4
    """How much of the drawing's bias is weighed away, 0 to 1 (only with prioritized)."""
    hindsight: float = 0.0
    """Share of transitions whose goal is replaced by a later achieved one (goal worlds only)."""
    overlap: bool = False
    """Let worlds (of backend process) step while the learner updates, from one iteration before."""
    demonstrations: str | None = None
    """File of transitions, or a run with a replay buffer, put into the buffer at the start."""

    def updates_due(self, env_steps: int) -> int:
        """Gradient steps that so many environment steps of a run make due."""
        return int(self.updates_per_step * max(env_steps - self.learning_starts, 0))


@dataclass(frozen=True)
class CloneConfig:
    """Behaviour cloning: the policy learns what was demonstrated, beside what is rewarded."""

    demonstrations: str | None = None
    """File of transitions (.npz, .safetensors, Unity's .demo), a folder of .demo files, or a SAC
    run."""
    steps: int = 0
    """Gradient steps on the demonstrations alone, before the first step in a world."""
    coef: float = 0.0
    """Weight of the cloning loss beside the algorithm's own; 0 leaves it out."""
    schedule: Schedule = "linear"
    """Schedule of `coef` over total_steps: linear to zero, or constant."""
    batch_size: int = 128
    """Demonstrated steps per gradient step."""
    learning_rate: float = 1e-3
    """Adam's step size for `steps`."""
    sequence: int = 32
    """Steps in a row that a policy with memory learns from."""


@dataclass(frozen=True)
class WrapperConfig:
    """Changes made to the batch between the worlds and the learner."""

    reward_scale: float = 1.0
    """Factor applied to each reward before the learner sees it; logged returns stay unscaled."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the discounted return."""
    clip_reward: float | None = None
    """Bound of a (scaled) reward's magnitude."""
    frame_stack: int = 1
    """Latest observations joined along an image's channels, any other array's last axis."""
    nan_guard: Literal["off", "halt", "skip"] = "halt"
    """On a non-finite observation or reward: stop with a replayable dump, or drop the episode."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training, on worlds of its own."""

    every: int = 0
    """Environment steps between two evaluations; 0 evaluates only at the end."""
    episodes: int = 10
    """Episodes per evaluation."""
    deterministic: bool = True
    """Take the distribution's mode instead of a sample."""
    seed: int = 10_000
    """Seed of the first evaluation world; the same episodes each time."""
    env: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the evaluation worlds that differ from those that train."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving."""

    every: int = 50_000
    """Environment steps between two checkpoints; the end of the run is always saved."""
    keep: int = 3
    """Latest checkpoints kept, besides the best."""


@dataclass(frozen=True)
class CollectConfig:
    """Rollouts by Ray actors, each with worlds and a copy of the policy of its own."""

    ray: str | None = None
    """Where they run: local starts Ray here, auto or host:port joins a cluster; None uses none."""
    actors: int = 2
    """How many; they share `num_envs` equally."""
    cpus: float = 1.0
    """Cores that Ray sets aside for each."""
    patience: float = 600.0
    """Seconds to wait for one's start, or its rollout, before it counts as lost."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a run; saved as config.yaml before the first step."""

    env_id: str = "CartPole-v1"
    """World: a registered id, or "module:id" to import a package that registers it."""
    env: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the world."""
    preset: str | None = None
    """Preset that the settings started from (for the record)."""
    num_envs: int = 8
    """Worlds stepped side by side; 0 = as many as a Unity scene has agents."""
    backend: Literal["auto", "sync", "process", "device"] = "auto"
    """Where the worlds run: this process, worker processes, or the accelerator."""
    num_workers: int | None = None
    """Worker processes; None = one per core."""
    num_groups: int | None = None
    """Groups of worlds that overlap; None = 2 with worker processes."""
    timeout: float = 60.0
    """Seconds to wait for a world before its worker is replaced."""
    max_restarts: int = 10
    """Workers replaced before the run stops."""
    device: str = "auto"
    """Learner's device: auto, cpu, cuda, cuda:1, mps, xpu, tpu."""
    seed: int = 0
    """Seed of worlds, networks, noise and minibatches."""
    total_steps: int = 100_000
    """Environment steps of the whole run."""
    time_limit: float | None = None
    """Seconds of wall time after which the run ends as if it were done."""
    torch_threads: int | None = None
    """Threads for tensor operations; None chooses by network size."""
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    """Of float32 matrix products while it trains: high may round factors to TF32, medium to
    bfloat16, where the hardware is faster so; None leaves it to torch (highest)."""
    algo: PPOConfig | SACConfig = field(default_factory=PPOConfig)
    """Hyperparameters of the algorithm."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The policy's network."""
    clone: CloneConfig = field(default_factory=CloneConfig)
    """Behaviour cloning."""
    wrappers: WrapperConfig = field(default_factory=WrapperConfig)
    """Batch wrappers."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Rollouts on other machines."""


ALGOS: dict[str, type] = {"ppo": PPOConfig, "sac": SACConfig}
"""Algorithms by the name that a YAML config and `--algo` use."""

PRIVILEGED = ("args", "crash_dir", "log_folder", "once_file")
"""Arguments of worlds that name what is written to, or words for a program: not a file's to give.

By name, whatever the world: a module in front of an id leads to the same world under another."""


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as plain nested values, ready for YAML or JSON.

    Raises:
        ConfigError: a world's keyword argument is an object that a file cannot hold.
    """
    result: dict[str, Any] = {}
    for kind, known in ALGOS.items():
        if type(config) is known:
            result["name"] = kind
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        is_section = dataclasses.is_dataclass(value)
        result[item.name] = to_dict(value) if is_section else plain(value, item.name)
    return result


def default_config(env_id: str = TrainConfig.env_id, algo: str = "ppo") -> TrainConfig:
    """Return an algorithm's plain defaults for a world.

    Raises:
        ConfigError: there is no such algorithm (the nearest name is given).
    """
    if algo not in ALGOS:
        raise ConfigError(f"there is no algorithm '{algo}': {suggest(algo, ALGOS)}")
    scene = is_scene(env_id)
    if algo == "ppo":
        return TrainConfig(env_id=env_id, num_envs=0 if scene else TrainConfig.num_envs)
    network = NetworkConfig(hidden=(256, 256), activation="relu", std="state", squash=True)
    num_envs = 0 if scene else 1
    return TrainConfig(env_id=env_id, num_envs=num_envs, algo=SACConfig(), network=network)


def is_scene(env_id: str) -> bool:
    """Tell whether this is a Unity scene, whose agents are counted when it runs."""
    return env_id.startswith("unity:")


def algo_named(values: Mapping[str, Any]) -> str | None:
    """Return the name of the algorithm that settings ask for; None when they name none."""
    algo = values.get("algo")
    if isinstance(algo, Mapping):
        algo = algo.get("name")
    if isinstance(algo, str):
        return algo
    return next((name for name, kind in ALGOS.items() if type(algo) is kind), None)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Build a config from nested mappings; what is not given keeps its algorithm's default.

    Raises:
        ConfigError: an unknown key (the nearest name is given), a wrong type or value.
    """
    name, env_id = algo_named(values), values.get("env_id")
    env_id = env_id if isinstance(env_id, str) else TrainConfig.env_id
    return merge(default_config(env_id, name if name in ALGOS else "ppo"), values)


def merge(
    config: Config, changes: Mapping[str, Any], *, spell: Callable[[str], str] = str
) -> Config:
    """Return `config` with `changes` made to it; a mapping changes a section field by field.

    Args:
        config: A dataclass, usually a `TrainConfig`.
        changes: Nested mappings; a section may also be given as its dataclass.
        spell: Turns a dotted path into what the person wrote, for errors ("a.b" -> "--a.b").

    Raises:
        ConfigError: as `from_dict`.
    """
    merged = change(config, changes, ALGOS, spell)
    if isinstance(merged, TrainConfig):
        from rlgym.config_rules import check  # it knows the classes above

        check(merged)
    return merged


def save_config(config: TrainConfig, path: str | os.PathLike[str]) -> None:
    """Write the config as YAML; a reader sees the old file or the new one, never half of it."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    target = Path(path)
    staged = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, target)


def load_config(path: str | os.PathLike[str]) -> TrainConfig:
    """Read a YAML config.

    Raises:
        ConfigError: the file is absent, is not plain YAML, or holds a wrong setting.
    """
    values = read_yaml(path)
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def presets() -> list[str]:
    """Return the names of the presets, sorted."""
    files = resources.files("rlgym.configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_preset(name: str, env_id: str | None = None) -> TrainConfig:
    """Read a preset by name; `env_id` replaces its world, unless it is that without its package.

    Raises:
        ConfigError: there is no such preset (the nearest name is given).
    """
    if name not in presets():
        raise ConfigError(f"there is no preset '{name}': {suggest(name, presets())}")
    file = resources.files("rlgym.configs") / f"{name}.yaml"
    with resources.as_file(file) as path:
        config = load_config(path)
    if env_id is None or config.env_id.endswith(f":{env_id}"):
        env_id = config.env_id
    return dataclasses.replace(config, preset=name, env_id=env_id)


def starting_config(
    env_id: str | None,
    preset: str | None,
    algo: str | None,
    env: Mapping[str, Any] = MappingProxyType({}),
    tensors: bool = False,
) -> TrainConfig:
    """Return what a person's own settings change: a preset, or an algorithm's plain defaults.

    Args:
        env_id: world; None takes the preset's, or the default one.
        preset: "auto" for the one tuned for the world and the algorithm if there is one, None for
            none, or a name.
        algo: name of the algorithm; None takes the preset's, or PPO.
        env: keyword arguments of the world, by which "auto" chooses among its presets.
        tensors: whether "auto" prefers one for worlds that are tensors (see `asks_for_tensors`).

    Raises:
        ConfigError: there is no such preset or algorithm, or the preset is for another one.
    """
    if preset == "auto":
        preset = preset_for(env_id or "", algo or "ppo", env, tensors)
    if preset is None:
        return default_config(env_id or TrainConfig.env_id, algo or "ppo")
    config = load_preset(preset, env_id)
    if algo is not None and type(config.algo) is not ALGOS.get(algo):
        default_config(algo=algo)  # says so where there is no such algorithm
        raise ConfigError(f"the preset '{preset}' is not for {algo}: leave one of the two out")
    return config


def asks_for_tensors(settings: Mapping[str, Any]) -> bool:
    """Whether a person's settings mean worlds that are tensors: by backend, or an accelerator."""
    backend, device = settings.get("backend", "auto"), settings.get("device", "auto")
    return backend == "device" or (backend == "auto" and device not in ("auto", "cpu"))


def preset_for(
    env_id: str,
    algo: str = "ppo",
    env: Mapping[str, Any] = MappingProxyType({}),
    tensors: bool = False,
) -> str | None:
    """Return the name of the preset tuned for this world and algorithm, None when there is none.

    A world may have one for tensors (backend "device") beside the other; and one that is many
    worlds by its arguments may have several: the one that agrees with most of the arguments `env`
    wins, and the first by name where they agree equally.
    """
    if not isinstance(env, Mapping):
        raise ConfigError(
            f"env: {short(env)} is no keys with values: these are the world's arguments "
            "(--env.KEY VALUE), and the world itself is the first word"
        )
    best, most = None, (False, -1)
    # "package:World-v0" and "World-v0" are the same world once the package is imported.
    world = env_id.rpartition(":")[2]
    for name in presets():
        if world not in _preset_text(name):
            continue  # reading all of them as YAML takes as long as building a run
        config = load_preset(name)
        same_world = config.env_id.rpartition(":")[2] == world
        if same_world and type(config.algo) is ALGOS.get(algo):
            fits = (config.backend == "device") == tensors
            agrees = fits, sum(config.env.get(key) == value for key, value in env.items())
            if agrees > most:
                best, most = name, agrees
    return best


def _preset_text(name: str) -> str:
    return (resources.files("rlgym.configs") / f"{name}.yaml").read_text("utf-8")
