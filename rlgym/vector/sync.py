"""Worlds stepped one after another in this process: the reference for every backend."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rlgym.errors import WorldError
from rlgym.vector.contract import VectorEnv
from rlgym.vector.crash import default_folder, episode_facts, write_report
from rlgym.vector.slot import Episode, Loss, Slot, inspect_world, step_slots


class SyncVectorEnv(VectorEnv):
    """Every world in this process; `recv` does the stepping.

    Args:
        factory: builds one world; called `num_envs` times.
        num_envs: number of slots.
        max_restarts: worlds that may raise and be replaced before the env gives up.
        crash_dir: folder for a report of each; None: "rlgym-crashes" in the folder for temporary
            files.
        kwargs: see `VectorEnv`.
    """

    backend = "sync"

    def __init__(
        self,
        factory: Callable[[], gymnasium.Env],
        num_envs: int,
        *,
        max_restarts: int = 10,
        crash_dir: str | Path | None = None,
        info_keys: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        """Build the worlds."""
        probe = factory()  # not kept: it has been reset once, which the other worlds have not
        traits = inspect_world(probe)
        probe.close()
        super().__init__(traits, num_envs, info_keys=info_keys, **kwargs)
        self.factory = factory
        self.max_restarts = max_restarts
        self.crash_dir = Path(crash_dir) if crash_dir is not None else default_folder()
        self.crash_reports: list[str] = []
        self._started = False
        self._slots = [
            Slot(factory, i, self.obs_layout, self.action_layout, traits, self.info_keys)
            for i in range(num_envs)
        ]

    def _reset_slots(self, seeds: list[int | None], options: dict[str, Any] | None) -> None:
        for row, seed in enumerate(seeds):
            self._begin_slot(row, seed, options)
        self._started = True

    def _begin_slot(self, row: int, seed: int | None, options: dict[str, Any] | None) -> None:
        loss = self._slots[row].begin(seed, options, self.arrays, row, self._started)
        if loss is not None:
            self._count(loss)

    def _send(self, group: int) -> None:
        pass  # the actions are in place; the worlds step when they are asked for

    def _recv(self, group: int) -> None:
        rows = self._slices[group]
        for loss in step_slots(self._slots[rows], self.arrays, rows.start):
            self._count(loss)

    def _count(self, loss: Loss) -> None:
        self.health["world_errors"] += 1
        self.health["lost_slots"] += 1
        what = f"world {loss.slot} raised {loss.reason}"
        facts = {"world": getattr(self.factory, "name", repr(self.factory)), "what": what}
        facts |= {"health": self.health, "traceback": loss.traceback}
        report = write_report(self.crash_dir, {**facts, "episode": episode_facts(loss.episode)})
        self.crash_reports.append(report)
        print(f"rlgym: {what}; its episode ends as truncated; report: {report}", file=sys.stderr)
        if self.health["world_errors"] > self.max_restarts:
            raise WorldError(
                f"worlds raised {self.health['world_errors']} times, more than max_restarts="
                f"{self.max_restarts}; the last: {loss.reason}; report: {report}"
            )

    def _mark(self) -> None:
        for slot in self._slots:
            slot.mark()

    def _records(self, timeout: float | None) -> list[Episode | None]:
        return [slot.record(at_mark=True) for slot in self._slots]

    def _episode(self, slot: int, ended: bool) -> Episode | None:
        return self._slots[slot].ended if ended else self._slots[slot].record()

    def _replay(self, episodes: list[Episode | None], fresh_seeds: list[int]) -> np.ndarray:
        done = np.zeros(self.num_envs, np.bool_)
        for row, (slot, episode) in enumerate(zip(self._slots, episodes, strict=True)):
            done[row] = episode is not None and slot.replay(episode, self.arrays, row)
            if not done[row]:
                self._restart_slot(row, fresh_seeds[row])
        self._started = True
        return done

    def _restart_slot(self, row: int, seed: int) -> None:
        self._begin_slot(row, seed, None)

    def render_slot(self, row: int) -> Any:
        """Frame of the world in slot `row` (its render_mode must be "rgb_array")."""
        return self._slots[row].world.render()

    def _close(self) -> None:
        for slot in self._slots:
            slot.close()
