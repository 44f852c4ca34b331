"""The Bullet engine's end of its worker processes: rows shared with them, losses made good."""

from __future__ import annotations

import time
import weakref
from typing import Any

import numpy as np

from rlgym.envs.physics.bullet_worker import RESET, STEP, plan
from rlgym.errors import WorldError
from rlgym.vector.workers import wire
from rlgym.vector.workers.link import Crew, Link, shares

START_SECONDS = 120.0
"""Time that a worker gets to import, load its robots and answer."""
MODULE = "rlgym.envs.physics.bullet_worker"


class BulletCrew:
    """Worker processes that step the worlds of one engine.

    A worker that dies or does not answer in time is replaced; its worlds stand in the default pose
    then, and `step` and `reset` tell which they are.

    Args:
        parts: what `bullet_worker.to_document` returned.
        arrays: "home" and, unless the ground is flat, "heights"; see `BulletWorld`.
        num_worlds: worlds of all workers.
        num_workers: processes; never more than worlds.
        timeout: seconds to wait for a step or a reset before a worker counts as frozen.
        max_restarts: replaced workers before the engine gives up.

    Attributes:
        arrays: of `bullet_worker.plan`.
        restarts: workers that were replaced.
        losses: one line for each of them.

    Raises:
        WorldError: a worker does not start.
    """

    def __init__(
        self,
        robot: Any,
        parts: dict[str, Any],
        arrays: dict[str, np.ndarray],
        num_worlds: int,
        num_workers: int,
        timeout: float,
        max_restarts: int,
    ) -> None:
        """Start the workers."""
        self._parts, self._sent, self._num_worlds = parts, arrays, num_worlds
        self._timeout, self._max_restarts = timeout, max_restarts
        self.restarts, self.losses = 0, []
        rows = [groups[0] for groups in shares(num_worlds, 1, num_workers)]
        # the same rows for each of the two commands
        self._links = [Link(i, [part, part], MODULE) for i, part in enumerate(rows)]
        self._crew = Crew(self._links, timeout)
        self.stop = weakref.finalize(self, self._crew.stop)
        try:
            self.arrays = self._crew.slab.allocate(plan(robot, num_worlds))
            for link in self._links:
                self._load(link)
            for link in self._links:
                self._await(link, START_SECONDS, "at its start")
        except BaseException:
            self.stop()
            raise

    def step(self) -> list[range]:
        """Simulate a control step of every world; returns the rows that were lost over it."""
        return self._run(STEP, self._links)

    def reset(self) -> list[range]:
        """Reset the worlds of `mask`; returns the rows that were lost over it.

        Those of them that were to be reset have been, by the worker that replaces the lost one.
        """
        mask = self.arrays["mask"]
        return self._run(
            RESET, [link for link in self._links if mask[slice(*link.groups[0])].any()]
        )

    def replay(self, log: np.ndarray, begun: np.ndarray) -> None:
        """Bring every world back to where it was; see `bullet_worker.Worlds.replay`.

        Raises:
            WorldError: a worker was lost over it.
        """
        for link in self._links:
            rows = slice(*link.groups[0])
            self._ask(link, {"op": "replay"}, {"log": log[:, rows], "begun": begun[rows]})
        patience = START_SECONDS + self._timeout * len(log)
        for link in self._links:
            self._await(link, patience, "while it restored episodes")

    def _run(self, command: int, links: list[Link]) -> list[range]:
        byte, lost = bytes([command]), []
        for link in links:
            link.pending[command] += 1
            link.post(byte)
        for link in links:
            while link.pending[command] > 0:
                if link.ended or not self._crew.inbox.wait_for(link):
                    self._replace(link)
                    lost.append(range(*link.groups[0]))
                    if command == RESET:
                        link.pending[command] += 1
                        link.post(byte)
        return lost

    # ------------------------------------------------------------------ starting and replacing
    def _load(self, link: Link) -> None:
        document = {"op": "load", "handle": self._crew.slab.handle, **self._parts}
        document |= {"num_worlds": self._num_worlds, "rows": list(link.groups[0])}
        self._ask(link, document, self._sent)

    def _ask(self, link: Link, document: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        deadline = time.monotonic() + START_SECONDS
        link.write(wire.pack({**document, "id": 0}, arrays), self._crew.inbox, deadline)

    def _await(self, link: Link, seconds: float, when: str) -> None:
        """Wait for the answer of a worker.

        Raises:
            WorldError: it ended, does not answer, or says what is wrong.
        """
        deadline = time.monotonic() + seconds
        while 0 not in link.answers:
            left = deadline - time.monotonic()
            if link.ended or left <= 0.0:
                phrase, trace = link.evidence(not link.ended)
                raise WorldError(
                    f"a worker of the Bullet engine {phrase} {when}: "
                    f"{_last_line(trace) or 'run with num_workers=0 to see why'}"
                )
            self._crew.inbox.pump(min(left, 1.0))
        error = link.answers.pop(0)[0].get("error")
        if error is not None:
            raise WorldError(error["message"])

    def _replace(self, link: Link) -> None:
        """Kill a worker and start another.

        Raises:
            WorldError: the budget is spent, or the new one does not start.
        """
        frozen = not link.ended
        phrase, trace = link.evidence(frozen)
        start, stop = link.groups[0]
        text = f"worker {link.number} {phrase} (worlds {start} to {stop - 1})"
        if frozen:
            text = f"{text} within {self._timeout:g} s"
        self.losses.append(text)
        self.restarts += 1
        if self.restarts > self._max_restarts:
            self.stop()
            detail = _last_line(trace)
            raise WorldError(
                f"the Bullet engine lost {self.restarts} workers and gives up, the last: {text}"
                + (f": {detail}" if detail else "")
                + ": run with num_workers=0 to see why, or raise max_restarts"
            )
        link.kill(self._crew.inbox)
        link.launch(self._crew.slab, self._crew.inbox)
        self._load(link)
        self._await(link, START_SECONDS, "at its start")


def _last_line(trace: str) -> str:
    lines = trace.strip().splitlines()
    return lines[-1].strip() if lines else ""
