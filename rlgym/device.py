"""The only file that names accelerators: which device a person means, and what it can do."""

from __future__ import annotations

import functools

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
