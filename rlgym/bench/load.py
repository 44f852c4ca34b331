"""Was anyone else using the machine? A benchmark taken on a busy one is marked as such."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_PRESSURE = 5.0
"""Percent of the last ten seconds in which some task waited for a core, before the start."""
MAX_FOREIGN = 0.05
"""Share of all cores' time that other processes used during the benchmark."""
MAX_STOLEN = 0.02
"""Share of all cores' time that the hypervisor gave to other machines."""
MAX_LOAD = 0.5
"""Load average per core before the start, where the system tells no more than that."""


def pressure(proc: Path = Path("/proc")) -> float | None:
    """Return the percent of the last ten seconds in which some task waited for a core.

    Linux's pressure stall information (docs.kernel.org/accounting/psi.html); None elsewhere.
    """
    try:
        first = (proc / "pressure" / "cpu").read_text(encoding="ascii").splitlines()[0]
        return float(dict(word.split("=") for word in first.split()[1:])["avg10"])
    except (OSError, IndexError, KeyError, ValueError):
        return None


@dataclass(frozen=True)
class _Clock:
    """Seconds of processor time since boot: of everyone, of us, and stolen."""

    wall: float
    everyone: float
    stolen: float
    ours: float


def _clock(proc: Path) -> _Clock | None:
    try:
        words = (proc / "stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(w) / tick for w in words[:8])
    except (OSError, IndexError, ValueError, AttributeError):  # no /proc, or no sysconf (Windows)
        return None
    times = os.times()
    ours = times.user + times.system + times.children_user + times.children_system
    everyone = user + nice + system + irq + softirq
    return _Clock(time.monotonic(), everyone, steal, ours)


class LoadWatch:
    """Watches the machine from its construction until `stop`.

    On Linux two things count: the pressure before the start, and the processor time that others
    used meanwhile (what all used, less what this process and its finished children used). The
    pressure at the end is reported and does not count, since a benchmark that uses all cores
    makes it itself. Elsewhere the load average before the start counts.

    Args:
        proc: the system's process folder; tests pass a made one.
        cores: number of cores; None counts them.
    """

    def __init__(self, proc: Path = Path("/proc"), cores: int | None = None) -> None:
        self._proc = proc
        self._cores = cores or os.cpu_count() or 1
        self._pressure = pressure(proc)
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._clock = _clock(proc)

    def reasons_now(self) -> list[str]:
        """Return why the machine was busy at the start, one phrase each; empty when it was not."""
        if self._pressure is not None:
            if self._pressure > MAX_PRESSURE:
                return [f"CPU pressure was {self._pressure:.1f} % before the start"]
        elif self._load is not None and self._load / self._cores > MAX_LOAD:
            return [f"the load average was {self._load:.1f} before the start"]
        return []

    def stop(self) -> dict[str, Any]:
        """Return the verdict (`busy`), its `reasons` and the numbers behind it."""
        reasons = self.reasons_now()
        foreign = stolen = None
        end = _clock(self._proc)
        if end is not None and self._clock is not None:
            capacity = max(end.wall - self._clock.wall, 1e-3) * self._cores
            used = end.everyone - self._clock.everyone
            foreign = max(0.0, used - (end.ours - self._clock.ours)) / capacity
            stolen = (end.stolen - self._clock.stolen) / capacity
            if foreign > MAX_FOREIGN:
                reasons.append(f"other processes used {foreign:.0%} of the cores meanwhile")
            if stolen > MAX_STOLEN:
                reasons.append(f"the hypervisor took {stolen:.0%} of the cores meanwhile")
        return {
            "busy": bool(reasons),
            "reasons": reasons,
            "pressure_before": self._pressure,
            "pressure_after": pressure(self._proc),
            "load_before": self._load,
            "foreign": foreign,
            "stolen": stolen,
        }
