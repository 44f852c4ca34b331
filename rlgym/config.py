"""What a run is made of: frozen dataclasses, each field with its meaning and unit under it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Schedule = Literal["constant", "linear"]


@dataclass(frozen=True)
class NetworkConfig:
    """Encoders, torso and heads of an actor-critic."""

    hidden: tuple[int, ...] = (64, 64)
    """Width of each hidden layer of the actor and of the critic."""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """Activation after each hidden layer."""
    cnn: Literal["nature", "small"] = "nature"
    """Encoder of uint8 image observations: Nature DQN's three layers, or a small one for images under 36 pixels."""
    recurrent: Literal["none", "gru", "lstm"] = "none"
    """Memory between the encoder and the heads; its state is reset where an episode starts."""
    recurrent_size: int = 128
    """Width of the recurrent state."""
    normalize_obs: bool = False
    """Normalise float observations by running mean and variance, frozen between updates."""
    obs_clip: float = 10.0
    """Bound of a normalised observation, in standard deviations."""
    std: Literal["global", "state", "gsde"] = "global"
    """Gaussian scale: one learned vector, a head of the network, or generalised state-dependent exploration."""
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
    """Stop an update's epochs when the approximate KL passes 1.5 times this ("kl" schedule: the KL aimed at)."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    symmetry_coef: float = 0.0
    """Weight of the mirror loss; needs a `symmetry` hook."""


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
    """Latest observations joined along the first axis of an image, the last axis of a vector."""
    nan_guard: Literal["off", "halt", "skip"] = "halt"
    """What to do with a non-finite observation or reward: stop with a replayable dump, or drop the slot's episode."""


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


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving."""

    every: int = 50_000
    """Environment steps between two checkpoints; the end of the run is always saved."""
    keep: int = 3
    """Latest checkpoints kept, besides the best."""


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
    """Worlds stepped side by side."""
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
    algo: PPOConfig = field(default_factory=PPOConfig)
    """Hyperparameters of the algorithm."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The policy's network."""
    wrappers: WrapperConfig = field(default_factory=WrapperConfig)
    """Batch wrappers."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
