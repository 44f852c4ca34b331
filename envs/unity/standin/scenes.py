"""What the stand-in can play: small tasks, one for each thing that Unity scenes do.

Each can be learned, so that a wrong slot, mask, axis or sign shows as a score. Rewards of a task
are 1 for what is right in one step unless its docstring says otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlgym.envs.unity.standin.agents import (
    NONE,
    TRANSLATED,
    VARIABLE,
    Population,
    Scene,
    SceneOptions,
    Sensor,
)
from rlgym.envs.unity.standin.ball import Balls, StaggeredBalls
from rlgym.envs.unity.standin.channels import Channels
from rlgym.envs.unity.standin.games import duel, roles


class Grid(Population):
    """Walk to the goal that counts: moves off the board are masked, the other goal costs 1.

    Observations: own place and both goals' (6), and a goal signal that says which counts (2).
    Actions: stay, left, right, down, up. Each step costs 0.01; episodes end after 50.
    """

    behavior = "Grid?team=0"
    sensors = (
        Sensor("VectorSensor_size6", (6,)),
        Sensor("GoalSignal", (2,), goal=True),
    )
    branches = (5,)
    max_frames = 50
    size = 5
    moves = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])

    def reset(self, rows: np.ndarray) -> None:
        """Put agent and goals on three different squares."""
        if not hasattr(self, "places"):
            self.places = np.zeros((self.num_agents, 3, 2), np.int64)
            self.wanted = np.zeros(self.num_agents, np.int64)
        for row in rows:
            squares = self.rng.choice(self.size**2, 3, replace=False)
            self.places[row] = np.stack(np.divmod(squares, self.size), 1)
        self.wanted[rows] = self.rng.integers(0, 2, len(rows))

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Move; what is forbidden stays in place and is counted."""
        target = self.places[:, 0] + self.moves[discrete[:, 0]]
        outside = self._off_the_board(target)
        self.channels.count("Grid/Forbidden", int(outside.sum()))
        self.places[:, 0] = np.where(outside[:, None], self.places[:, 0], target)
        there = (self.places[:, :1] == self.places[:, 1:]).all(2)
        right = there[np.arange(self.num_agents), self.wanted]
        self.done[:] = there.any(1)
        self.reward[:] = np.where(self.done, np.where(right, 1.0, -1.0), -0.01)

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Places in [0, 1]; which goal counts, one-hot."""
        places = self.places[rows].reshape(len(rows), 6) / (self.size - 1)
        return [places.astype(np.float32), np.eye(2, dtype=np.float32)[self.wanted[rows]]]

    def forbidden(self, rows: np.ndarray) -> np.ndarray:
        """What would leave the board."""
        return self._off_the_board(self.places[rows, :1] + self.moves)

    def _off_the_board(self, places: np.ndarray) -> np.ndarray:
        return np.asarray(((places < 0) | (places >= self.size)).any(-1))


class Camera(Population):
    """See in which third of the image a bright square stands, and say so; 10 questions long.

    Observations: an image (PNG, or floats), and the share of the episode that is over (1). With a
    stack, the last image of it is the latest.
    """

    behavior = "Camera?team=0"
    branches = (3,)
    max_frames = 10

    def shape_images(self, options: SceneOptions) -> None:
        """Take the image's size, order and packing from the options."""
        colours = 1 if options.gray else 3
        size, depth = options.image, colours * options.stack
        axes, dims = (size, size, depth), (TRANSLATED, TRANSLATED, NONE)
        if options.layout == "chw":
            axes, dims = (depth, size, size), (NONE, TRANSLATED, TRANSLATED)
        # a grey PNG has three equal channels; the mapping says that their mean is one
        mapping = tuple(int(c) for c in np.arange(3 * options.stack) // (3 // colours))
        if options.stack == 1:
            mapping = ()
        image = Sensor(
            "CameraSensor",
            axes,
            kind="png" if options.compressed else "floats",
            dimensions=dims,
            mapping=mapping if options.compressed else (),
        )
        self.sensors = (image, Sensor("VectorSensor_size1", (1,)))
        self.colours, self.stack, self.size = colours, options.stack, size
        self.frames = np.zeros((self.num_agents, options.stack, size, size, 3), np.uint8)
        self.answer = np.zeros(self.num_agents, np.int64)
        self.asked = np.zeros(self.num_agents, np.int64)

    def reset(self, rows: np.ndarray) -> None:
        """Ask the first question; earlier images of a stack are black."""
        self.frames[rows] = 0
        self.asked[rows] = 0
        self._draw(rows)

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Judge the answer and ask anew."""
        self.reward[:] = discrete[:, 0] == self.answer
        self.asked += 1
        self._draw(np.arange(self.num_agents))

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """PNG: (k, H, W, 3 * stack) uint8. Floats: (k, *shape) in [0, 1]."""
        share = (self.asked[rows, None] / self.max_frames).astype(np.float32)
        image = self.frames[rows].transpose(0, 2, 3, 1, 4)  # (k, H, W, stack, 3)
        if self.sensors[0].kind == "floats":
            image = (image[..., : self.colours] / np.float32(255)).astype(np.float32)
        image = image.reshape(*image.shape[:3], -1)
        if self.sensors[0].kind == "floats" and self.sensors[0].dimensions[0] == NONE:
            image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
        return [image, share]

    def _draw(self, rows: np.ndarray) -> None:
        """A dim noisy floor, and the square somewhere in the third that is the answer."""
        third, side = self.size // 3, self.size // 6
        self.answer[rows] = self.rng.integers(0, 3, len(rows))
        self.frames[rows, :-1] = self.frames[rows, 1:]
        for row in rows:
            shades = self.rng.integers(0, 60, (6, 6, 1), dtype=np.uint8)
            spread = np.arange(self.size) * 6 // self.size
            picture = np.repeat(shades[spread][:, spread], 3, 2)
            x = self.answer[row] * third + self.rng.integers(0, third - side)
            y = self.rng.integers(0, self.size - side)
            picture[y : y + side, x : x + side] = 250 if self.colours == 1 else (250, 200, 120)
            self.frames[row, -1] = picture


class Groups(Population):
    """Groups of three: the group earns 1 where every member still there repeats its own bit.

    Observations: the bit, and the share of the episode that is over. Actions: 0 or 1. A member that
    is right earns 0.1 itself. After 10 frames the whole group ends, in one message; in its frame 5
    one member ends alone and goes on with a new id.
    """

    behavior = "Groups?team=0"
    sensors = (Sensor("VectorSensor_size2", (2,)),)
    branches = (2,)
    length = 10

    def __init__(self, num_agents: int, channels: Channels, rng: np.random.Generator) -> None:
        """Group agents by threes, from group id 1 on."""
        super().__init__(num_agents, channels, rng)
        self.groups[:] = np.arange(num_agents) // 3 + 1
        self.bit = np.zeros(num_agents, np.int64)
        self.sizes = np.bincount(self.groups)
        self.clock = np.zeros(len(self.sizes), np.int64)

    def reset(self, rows: np.ndarray) -> None:
        """Draw new bits; a group's clock starts anew when all its members do."""
        self.bit[rows] = self.rng.integers(0, 2, len(rows))
        whole = np.bincount(self.groups[rows], minlength=len(self.sizes)) == self.sizes
        self.clock[whole] = 0

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Judge members and groups."""
        right = discrete[:, 0] == self.bit
        self.reward[:] = np.where(right, 0.1, 0.0)
        self.clock += 1
        wrong = np.bincount(self.groups, weights=~right)
        self.group_reward[:] = wrong[self.groups] == 0
        clock = self.clock[self.groups]
        alone = (clock == self.length // 2) & (np.arange(self.num_agents) % 3 == 2)
        self.interrupted[:] = clock >= self.length
        self.done[:] = alone | self.interrupted
        self.bit[:] = self.rng.integers(0, 2, self.num_agents)

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """The bit to repeat, and the time."""
        parts = [self.bit[rows], self.clock[self.groups[rows]] / self.length]
        return [np.stack(parts, 1).astype(np.float32)]


class Hybrid(Population):
    """Repeat what is shown, with continuous and discrete actions at once; 20 steps long.

    Observation: two numbers in [-1, 1] and two choices, one-hot (of 3 and of 2). A step earns up to
    1: half for the numbers, a quarter for each choice.
    """

    behavior = "Hybrid?team=0"
    sensors = (Sensor("VectorSensor_size7", (7,)),)
    continuous = 2
    branches = (3, 2)
    max_frames = 20

    def reset(self, rows: np.ndarray) -> None:
        """Show the first wish."""
        if not hasattr(self, "numbers"):
            self.numbers = np.zeros((self.num_agents, 2), np.float32)
            self.choices = np.zeros((self.num_agents, 2), np.int64)
        self._wish(rows)

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Compare and wish anew."""
        near = 1 - np.abs(np.clip(continuous, -1, 1) - self.numbers).mean(1) / 2
        self.reward[:] = near / 2 + (discrete == self.choices).sum(1) / 4
        self._wish(np.arange(self.num_agents))

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """What is to be repeated, (k, 7)."""
        three, two = self.choices[rows].T
        parts = [self.numbers[rows], np.eye(3)[three], np.eye(2)[two]]
        return [np.concatenate(parts, 1).astype(np.float32)]

    def _wish(self, rows: np.ndarray) -> None:
        self.numbers[rows] = self.rng.uniform(-1, 1, (len(rows), 2))
        self.choices[rows] = self.rng.integers(0, [3, 2], (len(rows), 2))


class Buffer(Population):
    """Push towards the nearest of one to six things, a list of varying length; 20 steps long.

    Observations: a buffer sensor, rows (x, y, distance, 1) with unused rows zero, and the number of
    things (1). Action: a direction; it earns the cosine to the nearest thing's.
    """

    behavior = "Buffer?team=0"
    sensors = (
        Sensor("BufferSensor", (6, 4), dimensions=(VARIABLE, NONE)),
        Sensor("VectorSensor_size1", (1,)),
    )
    continuous = 2
    max_frames = 20

    def reset(self, rows: np.ndarray) -> None:
        """Scatter things."""
        if not hasattr(self, "things"):
            self.things = np.zeros((self.num_agents, 6, 4), np.float32)
        self._scatter(rows)

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Reward the direction and scatter anew."""
        distance = np.where(self.things[..., 3] > 0, self.things[..., 2], np.inf)
        nearest = self.things[np.arange(self.num_agents), distance.argmin(1)]
        push = continuous / np.maximum(np.linalg.norm(continuous, axis=1, keepdims=True), 1e-6)
        self.reward[:] = (push * nearest[:, :2]).sum(1) / np.maximum(nearest[:, 2], 1e-6)
        self._scatter(np.arange(self.num_agents))

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """The things, and how many there are (a sixth each)."""
        count = self.things[rows, :, 3].sum(1, keepdims=True) / np.float32(6)
        return [self.things[rows], count.astype(np.float32)]

    def _scatter(self, rows: np.ndarray) -> None:
        place = self.rng.uniform(-1, 1, (len(rows), 6, 2))
        distance = np.linalg.norm(place, axis=2, keepdims=True)
        things = np.concatenate([place, distance, np.ones_like(distance)], 2)
        used = np.arange(6) < self.rng.integers(1, 7, (len(rows), 1))
        self.things[rows] = things * used[..., None]


class Memory(Population):
    """Say, four steps later, which cue was shown first: solvable with memory only.

    Observation: the cue, one-hot of 2 (zeros after the first step), and a flag that asks.
    """

    behavior = "Memory?team=0"
    sensors = (Sensor("VectorSensor_size3", (3,)),)
    branches = (2,)
    delay = 4

    def reset(self, rows: np.ndarray) -> None:
        """Draw a cue."""
        if not hasattr(self, "cue"):
            self.cue = np.zeros(self.num_agents, np.int64)
            self.clock = np.zeros(self.num_agents, np.int64)
        self.cue[rows] = self.rng.integers(0, 2, len(rows))
        self.clock[rows] = 0

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Wait, or judge the answer and end."""
        self.done[:] = self.clock == self.delay
        self.reward[:] = self.done & (discrete[:, 0] == self.cue)
        self.clock += 1

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cue at first, question at last."""
        obs = np.eye(2)[self.cue[rows]] * (self.clock[rows] == 0)[:, None]
        asked = (self.clock[rows] == self.delay)[:, None]
        return [np.concatenate([obs, asked], 1).astype(np.float32)]


class Noise(Population):
    """Random observations of any size: for measuring, and for messages that are huge."""

    behavior = "Noise?team=0"

    def reset(self, rows: np.ndarray) -> None:
        """Nothing to place."""

    def act(self, continuous: np.ndarray, discrete: np.ndarray) -> None:
        """Earn the mean of the continuous actions, so that what arrives can be seen."""
        self.reward[:] = continuous.mean(1) if self.continuous else 0.0

    def observe(self, rows: np.ndarray) -> list[np.ndarray]:
        """Uniform in [-1, 1)."""
        shape = (len(rows), *self.sensors[0].shape)
        return [self.rng.random(shape, np.float32) * 2 - 1]


def _noise(
    options: SceneOptions, channels: Channels, rng: np.random.Generator, obs: int = 8
) -> list[Population]:
    size = obs if options.obs is None else options.obs
    population = Noise(options.agents or 12, channels, rng)
    population.sensors = (Sensor(f"VectorSensor_size{size}", (size,)),)
    population.branches = options.branches or ()
    default = 0 if options.branches else 2
    population.continuous = default if options.continuous is None else options.continuous
    return [population]


def _huge(options: SceneOptions, channels: Channels, rng: np.random.Generator) -> list[Population]:
    return _noise(options, channels, rng, obs=100_000)


def _camera(
    options: SceneOptions, channels: Channels, rng: np.random.Generator
) -> list[Population]:
    population = Camera(options.agents or 4, channels, rng)
    population.shape_images(options)
    return [population]


def _silent(
    options: SceneOptions, channels: Channels, rng: np.random.Generator
) -> list[Population]:
    """Agents without a DecisionRequester: nothing is ever asked."""
    population = Balls(options.agents or 12, channels, rng)
    population.period = population.max_frames = 0
    return [population]


def _empty(options: SceneOptions, channels: Channels, rng: np.random.Generator) -> list[Population]:
    """A scene without agents."""
    return []


def _plain(kind: type[Population], agents: int) -> Scene:
    def build(
        options: SceneOptions, channels: Channels, rng: np.random.Generator
    ) -> list[Population]:
        return [kind(options.agents or agents, channels, rng)]

    return build


SCENES: dict[str, Scene] = {
    "3dball": _plain(Balls, 12),
    "staggered": _plain(StaggeredBalls, 12),
    "grid": _plain(Grid, 9),
    "camera": _camera,
    "groups": _plain(Groups, 6),
    "hybrid": _plain(Hybrid, 8),
    "buffer": _plain(Buffer, 8),
    "memory": _plain(Memory, 8),
    "duel": duel,
    "roles": roles,
    "noise": _noise,
    "huge": _huge,
    "silent": _silent,
    "empty": _empty,
}


def build(
    name: str, options: SceneOptions, channels: Channels, rng: np.random.Generator, areas: int = 1
) -> list[Population]:
    """Make the agents of a scene, `areas` times as many as `options` or the scene say.

    Raises:
        KeyError: for a scene that is not in `SCENES`.
    """
    populations = SCENES[name](options, channels, rng)
    if areas > 1 and populations:
        more = replace(options, agents=populations[0].num_agents * areas)
        populations = SCENES[name](more, channels, rng)
    for population in populations:
        if options.period is not None and population.period:
            population.period = options.period
        if options.max_steps is not None:
            population.max_frames = options.max_steps * max(population.period, 1)
        elif options.period is not None and population.max_frames:
            steps = population.max_frames // type(population).period
            population.max_frames = steps * population.period
    return populations
