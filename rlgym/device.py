"""The only file that names accelerators: which device a person means, and what it can do."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from rlgym.errors import DeviceError

KNOWN = ("cpu", "cuda", "mps", "xpu", "tpu")


def available() -> list[str]:
    """Devices of this machine, best first; "cpu" is always the last."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None:
        return ["cpu"]
    return [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())] + ["cpu"]


def resolve(device: torch.device | str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1", "mps", "xpu" or "tpu" into a device that is there.

    Raises:
        DeviceError: when it is not; the message lists what is.
    """
    found = available()
    if isinstance(device, str) and device == "auto":
        return torch.device(found[0])
    name = str(device)
    kind, _, index = name.partition(":")
    if kind not in KNOWN or (index and not index.isdigit()):
        raise DeviceError(
            f"unknown device {name!r}: use auto, {', '.join(KNOWN)}, or an index such as cuda:1"
        )
    if kind == "cpu":
        return torch.device("cpu")
    if f"{kind}:{index or 0}" not in found:
        raise DeviceError(f"device {name!r} is not there: this machine has {', '.join(found)}")
    return torch.device(name)


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Tell whether a device computes in double precision; Apple's and some of Intel's do not."""
    try:
        torch.ones((), dtype=torch.float64, device=device).add_(1.0)
    except (RuntimeError, TypeError):
        return False
    return True


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` is done; nothing to do on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Page-locked copy for fast transfers to a CUDA `device`; elsewhere the tensor itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on `device`; None when nobody says."""
    if device.type != "cpu":
        try:
            return torch.accelerator.get_memory_info(device)[0]
        except (RuntimeError, AttributeError, NotImplementedError):
            return None
    found = [size for size in (_available(), _left_to_container()) if size is not None]
    return min(found, default=None)


def _available() -> int | None:
    """Bytes that the system can give without swapping (Linux), or all it has (other POSIX)."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    if not hasattr(os, "sysconf"):
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _left_to_container() -> int | None:
    """Bytes below a container's bound (cgroup v2, then v1); file caches do not count as used."""
    for folder, limit, usage, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            used = int(Path(folder, usage).read_text("ascii"))
            caches = dict(
                line.split() for line in Path(folder, "memory.stat").read_text("ascii").splitlines()
            )
            bound = int(Path(folder, limit).read_text("ascii"))  # "max" when there is none
        except (OSError, ValueError):
            continue
        return max(bound - used + int(caches.get(cache, 0)), 0)
    return None
