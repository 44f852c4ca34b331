"""Scenes with two behaviours: one game between two teams, and one between two kinds of agents."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlgym.envs.unity.standin.agents import Population, SceneOptions, Sensor
from rlgym.envs.unity.standin.channels import Channels


class Ring:
    """Pairs that push each other along a line, each with its breath; shared by both sides."""

    def __init__(self, num_pairs: int) -> None:
        """Stand in the middle, out of no breath."""
        self.place = np.zeros(num_pairs)
        self.breath = np.ones((num_pairs, 2))
        self.force = np.zeros((num_pairs, 2))
        self.moved = 0

    def push(self) -> None:
        """One frame: force counts as far as there is breath, and costs it."""
        strength = self.force * self.breath
        self.place += 0.1 * (strength[:, 0] - strength[:, 1])
        self.breath = np.clip(self.breath + 0.02 - 0.1 * self.force**2, 0, 1)


class Pusher(Population):
    """One side of the ring: 1 for pushing the other out, -1 for being pushed out, 0 for a draw.

    Observation, as seen from the own side: how far the other is pushed back, own breath, its breath
    (3). Action: force, -1 = none, 1 = all (1). A draw is interrupted after 200 frames.
    """

    sensors = (Sensor("VectorSensor_size3", (3,)),)
    continuous = 1
    max_frames = 200

    def __init__(self, ring: Ring, team: int, channels: Channels, rng: np.random.Generator) -> None:
        """Take a side of the ring; team 0 pushes upwards."""
        super().__init__(len(ring.place), channels, rng)
        self.behavior = f"Pusher?team={team}"
        self.ring, self.team = ring, team
        self.sign = 1 - 2 * team

    def reset(self, rows: np.ndarray) -> None:
        """Back to the middle, with somewhat uneven breath."""
        self.ring.place[rows] = 0
        self.ring.breath[rows, self.team] = self.rng.uniform(0.5, 1, len(rows))

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Set the force; the ring moves once both have."""
        self.ring.force[:, self.team] = (np.clip(continuous[:, 0], -1, 1) + 1) / 2
        if self.team == 1:
            self.ring.push()

    def settle(self) -> None:
        """Who is out loses."""
        self.done[:] = np.abs(self.ring.place) > 1
        self.reward[:] = np.where(self.done, np.sign(self.ring.place) * self.sign, 0)

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Place and breaths, (k, 3)."""
        own, other = self.ring.breath[rows, self.team], self.ring.breath[rows, 1 - self.team]
        return [np.stack([self.ring.place[rows] * self.sign, own, other], 1).astype(np.float32)]


def duel(options: SceneOptions, channels: Channels, rng: np.random.Generator) -> list[Any]:
    """Two teams of one behaviour, for self-play."""
    ring = Ring(options.agents or 4)
    return [Pusher(ring, team, channels, rng) for team in (0, 1)]


class Chase:
    """Pairs on a square of side 2 without walls; shared by hunters and prey."""

    def __init__(self, num_pairs: int) -> None:
        """`places` are (pair, hunter or prey, xy)."""
        self.places = np.zeros((num_pairs, 2, 2))

    def distance(self) -> np.ndarray:
        """Between the two of each pair, (N,)."""
        return np.linalg.norm(self.places[:, 0] - self.places[:, 1], axis=1)


class Hunter(Population):
    """Catches its prey: 1 when nearer than 0.15, -0.01 a frame; moves by a vector (2)."""

    behavior = "Hunter?team=0"
    sensors = (Sensor("VectorSensor_size4", (4,)),)
    continuous = 2
    max_frames = 100

    def __init__(self, chase: Chase, channels: Channels, rng: np.random.Generator) -> None:
        """Share the square with the prey."""
        super().__init__(len(chase.places), channels, rng)
        self.chase = chase

    def reset(self, rows: np.ndarray) -> None:
        """Anywhere on the square's left half."""
        self.chase.places[rows, 0] = self.rng.uniform((-1, -1), (0, 1), (len(rows), 2))

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Run."""
        move = self.chase.places[:, 0] + 0.08 * np.clip(continuous, -1, 1)
        self.chase.places[:, 0] = np.clip(move, -1, 1)

    def settle(self) -> None:
        """Caught or not."""
        self.done[:] = self.chase.distance() < 0.15
        self.reward[:] = np.where(self.done, 1.0, -0.01)

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Own place, and the way to the prey, (k, 4)."""
        own, other = self.chase.places[rows, 0], self.chase.places[rows, 1]
        return [np.concatenate([own, other - own], 1).astype(np.float32)]


class Prey(Population):
    """Flees: 0.01 a frame, -1 when caught; stands or moves in one of four directions (5)."""

    behavior = "Prey?team=1"
    sensors = (Sensor("VectorSensor_size2", (2,)),)
    branches = (5,)
    max_frames = 100
    moves = 0.05 * np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])

    def __init__(self, chase: Chase, channels: Channels, rng: np.random.Generator) -> None:
        """Share the square with the hunters."""
        super().__init__(len(chase.places), channels, rng)
        self.chase = chase

    def reset(self, rows: np.ndarray) -> None:
        """Anywhere on the square's right half."""
        self.chase.places[rows, 1] = self.rng.uniform((0.2, -1), (1, 1), (len(rows), 2))

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Flee."""
        move = self.chase.places[:, 1] + self.moves[discrete[:, 0]]
        self.chase.places[:, 1] = np.clip(move, -1, 1)

    def settle(self) -> None:
        """Caught or not."""
        self.done[:] = self.chase.distance() < 0.15
        self.reward[:] = np.where(self.done, -1.0, 0.01)

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """The way to the hunter, (k, 2)."""
        return [(self.chase.places[rows, 0] - self.chase.places[rows, 1]).astype(np.float32)]


def roles(options: SceneOptions, channels: Channels, rng: np.random.Generator) -> list[Any]:
    """Two behaviours with spaces of their own."""
    chase = Chase(options.agents or 4)
    return [Hunter(chase, channels, rng), Prey(chase, channels, rng)]
