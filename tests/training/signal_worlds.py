"""Worlds that hang at one step of one slot, for the tests of signals."""

from __future__ import annotations

import hashlib
import time

from rlgym.envs.toy.counter import Counter


class Hanging(Counter):
    """A Counter whose slot `slot_seed` hangs at step `at_step` of its life.

    Args:
        how: "sleep" hangs where Python can be interrupted, "c" in one long C call, "swallow" in
            code that swallows every exception.
        at_step: step of the world's life; 0 never hangs.
        step_seconds: as in Counter.
    """

    def __init__(self, how: str = "sleep", at_step: int = 0, step_seconds: float = 0.0) -> None:
        super().__init__(step_seconds=step_seconds)
        self.how, self.at_step, self.life = how, at_step, 0

    def step(self, action):
        self.life += 1
        if self.life == self.at_step:
            if self.how == "sleep":
                time.sleep(1000)
            elif self.how == "c":  # releases the interpreter's lock, and does not return
                hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2**31 - 1)
            else:
                while True:
                    try:
                        time.sleep(1000)
                    except BaseException:
                        continue
        return super().step(action)
