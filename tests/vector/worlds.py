"""Worlds for the tests of worker processes; torch-free, because workers import this module."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlgym.envs.toy.counter import Counter


class Talker(gymnasium.Env):
    """Prints to every stream, reads its input, and tells what its process imported."""

    observation_space = spaces.Box(0, 9, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        print("built", flush=True)
        os.write(1, b"\xff\x00\x01" * 100)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        print("reset", options, file=sys.__stdout__, flush=True)
        self.gift = float((options or {}).get("gift", (0,))[0])
        return np.array([self.gift, "torch" in sys.modules], np.float32), {}

    def step(self, action: int) -> Any:
        os.write(1, b"\x00\xff")
        subprocess.run([sys.executable, "-Sc", "print('child')"], check=True)
        empty = sys.stdin.read() == ""
        return np.array([self.gift, empty], np.float32), 1.0, False, False, {}

    def render(self) -> np.ndarray:
        return np.full((2, 3, 3), 7, np.uint8)


class Doomed(Counter):
    """A Counter that does `act` (such as "kill@step") while there is a file with characters in it.

    It takes one character first, so that as many worlds are doomed as there are; a step must be
    the one numbered `at` of its life, a step or a reset must be of the slot with that seed.
    """

    def __init__(self, act: str = "", at: int = 3, fuse: str = "", seed: int = 0) -> None:
        super().__init__(length=100)
        self.act, self.at, self.fuse, self.doomed_seed = act, at, Path(fuse), seed
        self.life = 0
        self._happen("build")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed, options=options)
        if self.seed == self.doomed_seed:
            self._happen("reset")
        return result

    def step(self, action: int) -> Any:
        self.life += 1
        if self.life == self.at and self.seed == self.doomed_seed:
            self._happen("step")
        return super().step(action)

    def _happen(self, when: str) -> None:
        verb, _, moment = self.act.partition("@")
        if moment != when or not self.fuse.exists():
            return
        fuses = self.fuse.read_text()[1:]
        self.fuse.write_text(fuses) if fuses else self.fuse.unlink()
        if verb == "raise":
            raise RuntimeError("the arm came off")
        if verb == "exit":
            os._exit(7)
        if verb == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if verb == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if verb == "leave":
            sys.exit("enough")
        while verb == "loop":
            pass


class Parent(Counter):
    """A Counter with a child process of its own, whose id is its observation's first number."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float64)

    def __init__(self) -> None:
        super().__init__(length=1000)
        self.child = subprocess.Popen([sys.executable, "-Sc", "import time; time.sleep(600)"])

    def _observe(self) -> np.ndarray:
        return np.array([self.child.pid], np.float64)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()


class Sleeper(Counter):
    """A Counter whose steps sleep, or hang in C and let no other thread run."""

    def __init__(self, seconds: float, stuck: bool = False) -> None:
        super().__init__(length=1000)
        self.seconds, self.stuck = seconds, stuck

    def step(self, action: int) -> Any:
        if self.stuck:
            sum(itertools.repeat(1, 10**15))
        time.sleep(self.seconds)
        return super().step(action)


class SlowToBuild(Counter):
    """A Counter whose second world cannot be built while the third takes for ever."""

    def __init__(self, fuse: str) -> None:
        super().__init__()
        with open(fuse, "ab", buffering=0) as file:
            file.write(b"x")
            number = file.tell()
        if number == 3:  # the fixture's character, the probe's and this
            raise RuntimeError("the arm came off")
        if number > 3:
            time.sleep(600)
