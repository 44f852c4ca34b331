"""Balls on tilting plates: Unity's 3DBall, with enough physics that balancing must be learned.

The numbers are those of Unity's example: a cube of side 5 that turns by at most two degrees a frame
and axis up to a quaternion part of 0.25, a ball of diameter 1 dropped near its middle, a fall 2
below or 3 beside the cube's centre, +0.1 a decision, -1 for a fall, 1,000 decisions of 5 frames.
"""

from __future__ import annotations

import numpy as np

from rlgym.envs.unity.standin.agents import Population, Sensor

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

    def reset(self, rows: np.ndarray) -> None:
        """Tilt the plate by up to ten degrees and drop the ball at most 1.5 off its middle."""
        if not hasattr(self, "tilt"):
            self.tilt = np.zeros((self.num_agents, 2))  # about x, about z
            self.position = np.zeros((self.num_agents, 3))
            self.velocity = np.zeros((self.num_agents, 3))
            self.radius = np.full(self.num_agents, 0.5)
            self.fall = np.zeros(self.num_agents)
        k = len(rows)
        self.tilt[rows] = np.deg2rad(self.rng.uniform(-10, 10, (k, 2)))
        self.position[rows] = self.rng.uniform(-1.5, 1.5, (k, 3)) * (1, 0, 1) + (0, 4, 0)
        self.velocity[rows] = 0
        for row in rows:
            self.radius[row] = self.channels.parameter("scale", 1.0) / 2
            self.fall[row] = self.channels.parameter("gravity", 9.81) * FRAME

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Turn the plates, let the balls fall or roll, and see which have fallen off."""
        turn = np.clip(continuous[:, ::-1].astype(np.float64), -1, 1) * TURN
        self.tilt = np.clip(self.tilt + turn, -LIMIT, LIMIT)
        self._roll()
        place = np.abs(self.position)
        fallen = (self.position[:, 1] < -2) | (place[:, 0] > 3) | (place[:, 2] > 3)
        self.done[:] = fallen
        self.reward[:] = np.where(fallen, -1.0, 0.1)
        self.channels.count("3DBall/Falls", int(fallen.sum()))

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rotation's z and x (quaternion), the ball's offset (m) and velocity (m/s), (k, 8)."""
        sine, cosine = np.sin(self.tilt[rows] / 2), np.cos(self.tilt[rows] / 2)
        rotation = np.stack([cosine[:, 0] * sine[:, 1], sine[:, 0] * cosine[:, 1]], 1)
        parts = [rotation, self.position[rows], self.velocity[rows]]
        return [np.concatenate(parts, 1).astype(np.float32)]

    def _roll(self) -> None:
        """One frame of the balls; `fall` is what gravity adds to the speed, m/s."""
        (sx, sz), (cx, cz) = np.sin(self.tilt).T, np.cos(self.tilt).T
        up = np.stack([-sz, cz * cx, cz * sx], 1)  # the plate's own axes, in the world's
        right = np.stack([cz, sz * cx, sz * sx], 1)
        ahead = np.stack([np.zeros_like(sx), -sx, cx], 1)
        self.velocity[:, 1] -= self.fall
        self.position += self.velocity * FRAME
        gap = (self.position * up).sum(1) - HALF - self.radius
        over = np.abs((self.position * right).sum(1)) < HALF
        over &= np.abs((self.position * ahead).sum(1)) < HALF
        touching = (over & (gap <= 0) & (gap > -HALF))[:, None]
        self.position -= np.where(touching, gap[:, None] * up, 0)
        # a solid ball that rolls takes 5/7 of the pull along the plate: 2/7 goes into its spin
        along = self.fall[:, None] * (up[:, 1:2] * up - (0, 1, 0))
        self.velocity -= np.where(touching, 2 / 7 * along, 0)
        into = np.minimum((self.velocity * up).sum(1, keepdims=True), 0)
        self.velocity -= np.where(touching, into * up, 0)


class StaggeredBalls(Balls):
    """The same balls, but agent i asks at frame i mod 5 (Unity's DecisionStep), in any order."""

    shuffled = True

    def reset(self, rows: np.ndarray) -> None:
        """Give each agent its place in the period as well."""
        super().reset(rows)
        self.offsets[:] = np.arange(self.num_agents) % max(self.period, 1)
