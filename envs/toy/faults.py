"""Worlds that misbehave on demand: they crash, exit, freeze, lie, go NaN, or cannot be replayed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlgym.envs.toy.counter import Counter

FAULTS = ("crash", "exit", "freeze", "nan", "nan_reward")
LIES = ("outside", "shape", "dtype", "missing", "reward", "flag")


class Faulty(Counter):
    """A Counter to which something happens at one step of its life.

    Args:
        fault: "crash" raises, "exit" ends the process without a word, "freeze" sleeps forever,
            "nan" and "nan_reward" put NaN into the observation or the reward.
        at_step: the step of the world's life (1 = first, counted over episodes) that misbehaves.
        only_seed: misbehave only in a slot that was reset with this seed; None: in every slot.
        once_file: a path; the world misbehaves only while there is no such file, and makes it
            just before.
        length: as in Counter.
    """

    def __init__(
        self,
        fault: str = "crash",
        at_step: int = 3,
        only_seed: int | None = None,
        once_file: str | None = None,
        length: int = 5,
    ) -> None:
        """Remember what is to happen and when."""
        super().__init__(length)
        if fault not in FAULTS:
            raise ValueError(f"fault is {fault!r}: use one of {', '.join(FAULTS)}")
        self.fault, self.at_step, self.only_seed = fault, at_step, only_seed
        self.once_file = Path(once_file) if once_file else None
        self.life = 0

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Step as a Counter does, or misbehave."""
        self.life += 1
        due = self._is_due()
        if due and self.fault == "crash":
            raise RuntimeError(f"this world was told to crash at step {self.at_step}")
        if due and self.fault == "exit":
            os._exit(13)
        if due and self.fault == "freeze":
            while True:
                time.sleep(60)
        obs, reward, terminated, truncated, info = super().step(action)
        if due and self.fault == "nan":
            obs[1] = np.nan
        if due and self.fault == "nan_reward":
            reward = float("nan")
        return obs, reward, terminated, truncated, info

    def _is_due(self) -> bool:
        if self.life != self.at_step or self.only_seed not in (None, self.seed):
            return False
        if self.once_file is None:
            return True
        try:
            self.once_file.touch(exist_ok=False)  # of several processes one succeeds
        except FileExistsError:
            return False
        return True


class Liar(Counter):
    """A Counter whose step returns something that its declared spaces do not allow.

    Args:
        lie: "outside" (beyond the bounds), "shape" (one value too many), "dtype" (words instead
            of numbers), "missing" (None for an observation), "reward" (an array of two), "flag"
            (a number as `terminated`).
        at_step: the step of each episode from which on it lies; 0: already in `reset`.
        length: as in Counter.
    """

    def __init__(self, lie: str = "shape", at_step: int = 1, length: int = 5) -> None:
        """Remember the lie."""
        super().__init__(length)
        if lie not in LIES:
            raise ValueError(f"lie is {lie!r}: use one of {', '.join(LIES)}")
        self.lie, self.at_step = lie, at_step

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict]:
        """Reset as a Counter does, perhaps with a lie."""
        obs, info = super().reset(seed=seed, options=options)
        return self._distort(obs), info

    def step(self, action: int) -> tuple[Any, Any, Any, bool, dict]:
        """Step as a Counter does, perhaps with a lie."""
        obs, reward, terminated, truncated, info = super().step(action)
        lies = self.t >= self.at_step
        return (
            self._distort(obs),
            np.array([reward, reward]) if lies and self.lie == "reward" else reward,
            2.5 if lies and self.lie == "flag" else terminated,
            truncated,
            info,
        )

    def _distort(self, obs: np.ndarray) -> Any:
        if self.t < self.at_step:
            return obs
        if self.lie == "outside":
            return obs + np.float32(1e5)
        if self.lie == "shape":
            return np.append(obs, np.float32(0))
        if self.lie == "dtype":
            return ["zero"] * obs.size
        if self.lie == "missing":
            return None
        return obs


class Unreplayable(Counter):
    """A Counter with noise from a generator that no seed reaches: it cannot be replayed."""

    def __init__(self, length: int = 5) -> None:
        """Take entropy from the operating system."""
        super().__init__(length)
        self._hidden = np.random.default_rng()

    def _observe(self) -> np.ndarray:
        obs = super()._observe()
        obs[1] += self._hidden.random()
        return obs
