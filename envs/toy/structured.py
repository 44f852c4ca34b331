"""Observations and actions with parts: nested dicts, tuples, and actions that mix kinds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Mixed(gymnasium.Env):
    """A dict action: "gear" is discrete, "throttle" continuous.

    The observation is a one-hot gear (3) and two throttle targets. Half of the reward is for the
    gear, the other half times 1 minus the mean distance to the targets.
    """

    observation_space = spaces.Box(-1.0, 1.0, (5,), np.float32)
    action_space = spaces.Dict(
        {"gear": spaces.Discrete(3), "throttle": spaces.Box(-1.0, 1.0, (2,), np.float32)}
    )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Draw the first target."""
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: dict[str, Any]) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Compare both parts of the action with the target."""
        miss = np.abs(np.clip(action["throttle"], -1, 1) - self._target).mean()
        reward = 0.5 * float(action["gear"] == self._gear) + 0.5 * float(1 - miss)
        return self._draw(), reward, False, False, {}

    def _draw(self) -> np.ndarray:
        self._gear = int(self.np_random.integers(3))
        self._target = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return np.concatenate([np.eye(3, dtype=np.float32)[self._gear], self._target])


class DictObs(gymnasium.Env):
    """A nested dict observation whose every part is needed.

    The action is Discrete(3). `goal/mode` says what is asked: 0, the index of the largest of
    `reading`; 1, the number of raised flags (at most 2). Reward 1 for the right answer.
    """

    observation_space = spaces.Dict(
        {
            "reading": spaces.Box(0.0, 1.0, (3,), np.float32),
            "goal": spaces.Dict({"mode": spaces.Discrete(2), "flags": spaces.MultiBinary(2)}),
        }
    )
    action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Draw the first question."""
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """Judge the answer and ask again."""
        reward = float(action == self._answer)
        return self._draw(), reward, False, False, {}

    def _draw(self) -> dict[str, Any]:
        reading = self.np_random.random(3, dtype=np.float32)
        flags = self.np_random.integers(0, 2, 2, dtype=np.int8)
        mode = int(self.np_random.integers(2))
        self._answer = int(flags.sum()) if mode else int(reading.argmax())
        return {"reading": reading, "goal": {"mode": mode, "flags": flags}}


class TupleObs(gymnasium.Env):
    """A tuple that holds a tuple and a dict; the action is a tuple too.

    Observation: (Box(2), (Discrete(3, start=1), {"bits": MultiBinary(2)})). Action: (Discrete(3,
    start=1), MultiBinary(2)), rewarded for repeating the two discrete parts, one half each.
    """

    observation_space = spaces.Tuple(
        (
            spaces.Box(-1.0, 1.0, (2,), np.float32),
            spaces.Tuple(
                (spaces.Discrete(3, start=1), spaces.Dict({"bits": spaces.MultiBinary(2)}))
            ),
        )
    )
    action_space = spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2)))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple, dict]:
        """Draw the first observation."""
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: tuple[int, np.ndarray]) -> tuple[tuple, float, bool, bool, dict]:
        """Compare the action with the observation's discrete parts."""
        same_bits = float(np.mean(np.asarray(action[1]) == self._bits))
        reward = 0.5 * float(action[0] == self._number) + 0.5 * same_bits
        return self._draw(), reward, False, False, {}

    def _draw(self) -> tuple[Any, ...]:
        noise = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self._number = int(self.np_random.integers(1, 4))
        self._bits = self.np_random.integers(0, 2, 2, dtype=np.int8)
        return noise, (self._number, {"bits": self._bits.copy()})


class Privileged(gymnasium.Env):
    """A dict observation whose "privileged" part only a critic may use.

    "hint" is a random sign, and repeating it (Discrete(2): 0 = minus, 1 = plus) earns 1. On top
    comes a bonus that is drawn once per episode and shown as "privileged": no action changes it,
    but a critic that sees it predicts the return.
    """

    observation_space = spaces.Dict(
        {
            "hint": spaces.Box(-1.0, 1.0, (1,), np.float32),
            "privileged": spaces.Box(-5.0, 5.0, (1,), np.float32),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Draw the episode's bonus and the first hint."""
        super().reset(seed=seed)
        self._bonus = self.np_random.uniform(-5, 5, 1).astype(np.float32)
        return self._draw(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """Pay for the hint and add the bonus."""
        reward = float(action == self._sign) + float(self._bonus[0])
        return self._draw(), reward, False, False, {}

    def _draw(self) -> dict[str, np.ndarray]:
        self._sign = int(self.np_random.integers(2))
        return {
            "hint": np.array([2.0 * self._sign - 1.0], np.float32),
            "privileged": self._bonus.copy(),
        }
