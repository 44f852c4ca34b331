"""The way between worlds on the host and a policy on an accelerator: copies that nobody waits for.

Observations are put into page-locked memory and cross on a stream of their own while the host goes
on; the policy's stream waits for them, the host does not. Actions come back into page-locked
memory, and the host waits for those alone: meanwhile the other group's worlds simulate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlgym.device import pin
from rlgym.spaces import Tree, map_tree, tree_items


class Transfer:
    """Copies of one collector, for each of its groups.

    On a CPU, where it serves tests, the same copies are made and there is nothing to wait for.

    Args:
        device: the policy's.
        num_groups: groups of worlds that overlap.
    """

    def __init__(self, device: torch.device, num_groups: int) -> None:
        self.device = device
        self._staged: list[dict[str, Tensor]] = [{} for _ in range(num_groups)]
        self._fetched: list[Tree[Tensor] | None] = [None] * num_groups
        self._clocks: list[tuple[Any, Any]] = []
        self._used = 0
        self._is_async = device.type != "cpu"
        self._stream = torch.Stream(device=device) if self._is_async else None

    def bring(self, group: int, name: str, target: Tree[Tensor], source: Tree[Tensor]) -> None:
        """Copy a group's rows to the device; `wait` before they are read there.

        The rows of the group's last step must have been used, as they have when its actions came.

        Args:
            group: of the worlds.
            name: of what is copied; each has page-locked memory of its own.
            target: tree of (n, ...), on the device.
            source: tree of (n, ...), on the host; may be overwritten from now on.
        """
        staged = self._staged[group]
        sources = dict(tree_items(source))
        for key, rows in tree_items(target):
            place = f"{name}:{key}"
            if place not in staged:
                staged[place] = pin(torch.empty_like(sources[key]), self.device)
            staged[place].copy_(sources[key])
            if self._stream is None:
                rows.copy_(staged[place])
                continue
            with self._stream:
                rows.copy_(staged[place], non_blocking=True)

    def wait(self) -> None:
        """Let what comes next on the device see what was brought; the host does not wait."""
        if self._stream is not None:
            self._now().wait_stream(self._stream)

    def fetch(self, group: int, tree: Tree[Tensor]) -> Tree[Tensor]:
        """The same tree on the host, once it is there; overwritten by the group's next one."""
        kept = self._fetched[group]
        if kept is None:
            kept = map_tree(
                lambda t: pin(torch.empty(t.shape, dtype=t.dtype), self.device),  # a host's
                tree,
            )
            self._fetched[group] = kept
        map_tree(lambda target, source: target.copy_(source, non_blocking=True), kept, tree)
        if self._is_async:
            done = torch.Event(device=self.device)
            done.record(self._now())
            done.synchronize()
        return kept

    def _now(self) -> Any:
        """The stream that the policy computes on; the device need not be the process's own one."""
        return torch.accelerator.current_stream(self.device)

    # ------------------------------------------------------------------ the device's time
    def begin(self) -> None:
        """Note that the device begins to compute actions."""
        if not self._is_async:
            return
        if self._used == len(self._clocks):
            self._clocks.append(
                (
                    torch.Event(device=self.device, enable_timing=True),
                    torch.Event(device=self.device, enable_timing=True),
                )
            )
        self._clocks[self._used][0].record(self._now())

    def end(self) -> None:
        """Note that it has them; between `begin` and `end` it is busy."""
        if self._is_async:
            self._clocks[self._used][1].record(self._now())
            self._used += 1

    def busy(self) -> float:
        """Seconds that the device was busy since the last call; call it when all is done."""
        used, self._used = self._used, 0
        return sum(begin.elapsed_time(end) for begin, end in self._clocks[:used]) / 1000.0
