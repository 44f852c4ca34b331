"""What a scene of the stand-in is made of: agents of one behaviour, and what they sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlgym.envs.unity.standin.channels import Channels

# Unity's DimensionProperty
NONE, TRANSLATED, VARIABLE = 1, 2, 4


@dataclass(frozen=True)
class Sensor:
    """One observation of an agent."""

    name: str
    """Unity's sensor name."""
    shape: tuple[int, ...]
    """(size,), (most entities, size), or an image's shape in the order that is sent."""
    kind: Literal["floats", "png"] = "floats"
    """Packed floats, or PNG images of three channels each, one after another."""
    dimensions: tuple[int, ...] = (NONE,)
    """Unity's DimensionProperty of each axis."""
    goal: bool = False
    """The observation says which goal counts (Unity's goal signal)."""
    mapping: tuple[int, ...] = ()
    """Output channel of each channel of the PNGs, -1 = unused; () leaves it out."""


class Population:
    """Agents of one behaviour, stepped together; a scene has one or several of these.

    A subclass fills the class attributes and implements `reset`, `act` and `observe`. A frame is
    one FixedUpdate of Unity's, 0.02 s.

    Attributes:
        reward, group_reward: (N,) float32 that `act` leaves.
        done, interrupted: (N,) bool that `act` leaves; interrupted counts where done.
        offsets: (N,) frame within the period at which an agent asks for a decision.
        groups: (N,) group id, 0 = none.
        parameters: what Python set over the side channel.
        stats: what is reported to Python.
    """

    behavior: str = ""
    sensors: tuple[Sensor, ...] = ()
    continuous: int = 0
    branches: tuple[int, ...] = ()
    period: int = 1
    """Frames between two decisions of an agent; 0 = never asks."""
    max_frames: int = 0
    """Frames after which an episode is interrupted; 0 = never."""
    adds_rewards: bool = True
    """Rewards between decisions add up (AddReward), or the last one stands (SetReward)."""
    shuffled: bool = False
    """The questions of one message come in any order."""

    def __init__(self, num_agents: int, channels: Channels, rng: np.random.Generator) -> None:
        """Make `num_agents` agents; `reset` places them."""
        self.num_agents = num_agents
        self.channels = channels
        self.rng = rng
        self.reward = np.zeros(num_agents, np.float32)
        self.group_reward = np.zeros(num_agents, np.float32)
        self.done = np.zeros(num_agents, bool)
        self.interrupted = np.zeros(num_agents, bool)
        self.offsets = np.zeros(num_agents, np.int64)
        self.groups = np.zeros(num_agents, np.int32)

    def reset(self, rows: np.ndarray) -> None:
        """Begin an episode for the agents `rows`, (k,) int."""
        raise NotImplementedError  # pragma: contract

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Live one frame with every agent's present action, writing the rewards and the ends.

        Args:
            continuous: (N, continuous) float32.
            discrete: (N, len(branches)) int32.
        """
        raise NotImplementedError  # pragma: contract

    def settle(self) -> None:
        """After every population has acted: write what depends on the others."""

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """One array per sensor: (k, *shape) float32, or (k, H, W, channels) uint8 for a PNG."""
        raise NotImplementedError  # pragma: contract

    def forbidden(self, rows: np.ndarray) -> np.ndarray | None:
        """(k, sum of branches) bool, True = must not be taken; None = all may be."""
        return None


Scene = Callable[["SceneOptions", Channels, np.random.Generator], list[Population]]


@dataclass(frozen=True)
class SceneOptions:
    """What the command line may say of a scene; None leaves it at the scene's own value."""

    agents: int | None = None
    """Agents of each behaviour."""
    obs: int | None = None
    """Size of the vector observation, where the scene leaves it open."""
    continuous: int | None = None
    """Continuous actions, where the scene leaves them open."""
    branches: tuple[int, ...] | None = None
    """Discrete branches, where the scene leaves them open."""
    period: int | None = None
    """Frames between decisions."""
    max_steps: int | None = None
    """Decisions until an episode is interrupted."""
    layout: Literal["hwc", "chw"] = "hwc"
    """Order of an image's axes in its declared shape."""
    image: int = 84
    """Height and width of images, pixels."""
    stack: int = 1
    """Images stacked along the channels."""
    gray: bool = False
    """One channel per image instead of three."""
    compressed: bool = True
    """Images as PNG; else as floats."""
