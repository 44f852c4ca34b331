"""What runs in a worker process of the Bullet engine: some of its worlds, over shared rows.

A step is the byte `STEP`, a reset of the rows in `mask` the byte `RESET`; either comes back when it
is done. Torch-free, but for robots with spherical joints.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from rlgym.envs.physics.bullet_model import (
    Build,
    Model,
    layout,
    reset_fields,
    state_fields,
    step_fields,
)
from rlgym.envs.physics.bullet_world import BulletWorld
from rlgym.envs.physics.engine import Actuation
from rlgym.envs.physics.robots import Foot, Leg, Robot
from rlgym.vector.workers import slab, wire
from rlgym.vector.workers.life import Arrays, Pipe, live

STEP, RESET = 0, 1
"""Commands: simulate a control step; reset the worlds of `mask`."""


def plan(robot: Robot, num_worlds: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Every array that the engine shares with its worlds: rows, one per world."""
    width = {"resets": reset_fields(robot), "steps": step_fields(robot)}
    width |= {"states": state_fields(robot)}
    rows = {name: (num_worlds, layout(fields)[1]) for name, fields in width.items()}
    arrays = {name: (shape, np.dtype(np.float64)) for name, shape in rows.items()}
    return arrays | {"mask": ((num_worlds,), np.dtype(np.bool_))}


class Worlds:
    """Worlds of neighbouring rows, stepped one after the other.

    Args:
        arrays: of `plan`.
        rows: numbers of the worlds.
        robot, model, actuation, build, home, heights: see `BulletWorld`.
    """

    def __init__(
        self,
        arrays: Arrays,
        rows: range,
        robot: Robot,
        model: Model,
        actuation: Actuation,
        build: Build,
        home: np.ndarray,
        heights: np.ndarray | None,
    ) -> None:
        """Build the worlds, each at `home`; their rows of `states` say so."""
        kind = BulletWorld
        if any(robot.spherical):
            from rlgym.envs.physics.bullet_balls import BallWorld  # imports torch

            kind = BallWorld
        self._resets, self._steps = arrays["resets"], arrays["steps"]
        self._states, self._mask = arrays["states"], arrays["mask"]
        self._worlds = {
            row: kind(robot, model, actuation, build, home, heights, self._states[row])
            for row in rows
        }

    def step(self) -> None:
        """Simulate a control step of every world."""
        for row, world in self._worlds.items():
            world.step(self._steps[row], self._states[row])

    def reset(self) -> None:
        """Reset the worlds of `mask`."""
        for row, world in self._worlds.items():
            if self._mask[row]:
                world.reset(self._resets[row], self._states[row])

    def replay(self, log: np.ndarray, begun: np.ndarray) -> None:
        """Reset every world to its row of `resets` and repeat what it has done since.

        Args:
            log: (T, worlds, W) rows of `steps`, the oldest first.
            begun: (worlds,) index in the log of each world's first step.
        """
        for at, (row, world) in enumerate(self._worlds.items()):
            world.reset(self._resets[row], self._states[row])
            for done in log[begun[at] :, at]:
                world.step(done, self._states[row])

    def close(self) -> None:
        """Give up all clients."""
        for world in self._worlds.values():
            world.close()


def to_document(robot: Robot, model: Model, actuation: Actuation, build: Build) -> dict[str, Any]:
    """Return what a worker must know of its worlds, as JSON can hold it."""
    parts = {"robot": robot, "model": model, "actuation": actuation, "build": build}
    return {name: asdict(part) for name, part in parts.items()}


def _robot(document: dict[str, Any]) -> Robot:
    feet = tuple(Foot(**foot) for foot in document["feet"])
    legs = tuple(Leg(**leg) for leg in document["legs"])
    return Robot(**{**document, "feet": feet, "legs": legs})


def main(config: dict[str, Any]) -> None:
    """Serve until told to close, or until the parent is gone; see `life.live`."""
    live(config, lambda pipe: Worker(pipe).serve())


class Worker:
    """The worlds of one process, and the commands that the parent gives them."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._worlds: Worlds | None = None

    def serve(self) -> None:
        """Do what the parent says until it says close, or hangs up."""
        pipe = self._pipe
        while byte := pipe.next():
            if byte[0] == wire.FRAME:
                if not pipe.obey(self):
                    break
                continue
            assert self._worlds is not None
            if byte[0] == STEP:
                self._worlds.step()
            else:
                self._worlds.reset()
            pipe.done(byte)
        if self._worlds is not None:
            self._worlds.close()

    def do_replay(self, arrays: Arrays) -> tuple[Any, Arrays]:
        """Bring the worlds back to where they were; see `Worlds.replay`."""
        assert self._worlds is not None
        self._worlds.replay(arrays["log"], arrays["begun"])
        return {}, {}

    def do_load(
        self,
        arrays: Arrays,
        handle: str,
        num_worlds: int,
        rows: list[int],
        robot: dict[str, Any],
        model: dict[str, Any],
        actuation: dict[str, Any],
        build: dict[str, Any],
    ) -> tuple[Any, Arrays]:
        """Map the shared rows and build the worlds."""
        entry = _robot(robot)
        self._worlds = Worlds(
            slab.attach(handle, plan(entry, num_worlds)),
            range(*rows),
            entry,
            Model(**model),
            Actuation(**actuation),
            Build(**build),
            arrays["home"],
            arrays.get("heights"),
        )
        return {}, {}
