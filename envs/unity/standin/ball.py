"""Balls on tilting plates: Unity's 3DBall, with enough physics that balancing must be learned.

The numbers are those of Unity's example: a cube of side 5 that turns by at most two degrees a frame
and axis up to a quaternion part of 0.25, a ball of diameter 1 dropped near its middle, a fall 2
below or 3 beside the cube's centre, +0.1 a decision, -1 for a fall, 1,000 decisions of 5 frames.
"""

from __future__ import annotations

import numpy as np

from rlgym.envs.unity.standin.agents import Population, Sensor
from rlgym.envs.unity.standin.channels import Channels

FRAME = 0.02
"""Seconds of a FixedUpdate."""
HALF = 2.5
"""Half the side of the cube, m."""
TURN = np.deg2rad(2.0)
"""Most that an axis turns in one frame, rad."""
LIMIT = 2 * np.arcsin(0.25)
"""Most that an axis is tilted, rad."""


class Balls(Population):
    """One ball on one plate per agent.

    Environment parameters, read when an episode begins: `gravity` (m/s^2 downwards, 9.81) and
    `scale` (the ball's diameter, 1 m).
    """

    behavior = "3DBall?team=0"
    sensors = (Sensor("VectorSensor_size8", (8,)),)
    continuous = 2
    period = 5
    max_frames = 5000
    adds_rewards = False

    def __init__(self, num_agents: int, channels: Channels, rng: np.random.Generator) -> None:
        """All arrays have the axes first: a frame is then some forty operations on rows."""
        super().__init__(num_agents, channels, rng)
        self.tilt = np.zeros((2, num_agents))  # about x, about z, rad
        self.position = np.zeros((3, num_agents))
        self.velocity = np.zeros((3, num_agents))
        self.radius = np.zeros(num_agents)
        self.fall = np.zeros(num_agents)  # what gravity adds to the speed in a frame, m/s

    def reset(self, rows: np.ndarray) -> None:
        """Tilt the plate by up to ten degrees and drop the ball at most 1.5 off its middle."""
        k = len(rows)
        self.tilt[:, rows] = np.deg2rad(self.rng.uniform(-10, 10, (2, k)))
        x, z = self.rng.uniform(-1.5, 1.5, (2, k))
        self.position[:, rows] = x, np.full(k, 4.0), z
        self.velocity[:, rows] = 0
        for row in rows:
            self.radius[row] = self.channels.parameter("scale", 1.0) / 2
            self.fall[row] = self.channels.parameter("gravity", 9.81) * FRAME

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Turn the plates, let the balls fall or roll, and see which have fallen off."""
        turn = np.minimum(np.maximum(continuous.T[::-1], -1), 1) * TURN
        self.tilt = np.minimum(np.maximum(self.tilt + turn, -LIMIT), LIMIT)
        self._roll()
        x, y, z = self.position
        self.done[:] = (y < -2) | (np.abs(x) > 3) | (np.abs(z) > 3)
        self.reward[:] = np.where(self.done, -1.0, 0.1)
        self.channels.count("3DBall/Falls", int(np.count_nonzero(self.done)))

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rotation's z and x (quaternion), the ball's offset (m) and velocity (m/s), (k, 8)."""
        (sx, sz), (cx, cz) = np.sin(self.tilt[:, rows] / 2), np.cos(self.tilt[:, rows] / 2)
        obs = np.empty((len(rows), 8), np.float32)
        obs[:, 0], obs[:, 1] = cx * sz, sx * cz
        obs[:, 2:5], obs[:, 5:] = self.position[:, rows].T, self.velocity[:, rows].T
        return [obs]

    def _roll(self) -> None:
        """One frame of the balls."""
        (sx, sz), (cx, cz) = np.sin(self.tilt), np.cos(self.tilt)
        v = self.velocity
        v[1] -= self.fall
        self.position += v * FRAME
        x, y, z = self.position
        up = (-sz, cz * cx, cz * sx)  # of the plate, in the world's axes
        gap = x * up[0] + y * up[1] + z * up[2] - HALF - self.radius
        right, ahead = x * cz + sz * (y * cx + z * sx), z * cx - y * sx
        touching = (gap <= 0) & (gap > -HALF) & (np.abs(right) < HALF) & (np.abs(ahead) < HALF)
        if not touching.any():
            return
        gap = gap * touching
        # a solid ball that rolls takes 5/7 of the pull along the plate: 2/7 goes into its spin
        spin = 2 / 7 * self.fall * touching
        v[1] += spin
        spin *= up[1]
        into = np.minimum(v[0] * up[0] + v[1] * up[1] + v[2] * up[2] - spin, 0) * touching
        for axis in range(3):
            self.position[axis] -= gap * up[axis]
            v[axis] -= (spin + into) * up[axis]


class StaggeredBalls(Balls):
    """The same balls, but agent i asks at frame i mod 5 (Unity's DecisionStep), in any order."""

    shuffled = True

    def reset(self, rows: np.ndarray) -> None:
        """Give each agent its place in the period as well."""
        super().reset(rows)
        self.offsets[:] = np.arange(self.num_agents) % max(self.period, 1)
