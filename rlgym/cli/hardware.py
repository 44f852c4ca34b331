"""What hardware was found, what a run uses of it, and why not more: a part of `rlgym doctor`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rlgym.vector.check.trial import Finding, Severity

TPU_NODES = ("/dev/accel0", "/dev/vfio/0")
"""One of them is there on a machine with a TPU."""


@dataclass(frozen=True)
class Hardware:
    """All that the answers below depend on."""

    devices: dict[str, str]
    """Torch's devices, best first, "cpu" last -> what each is called."""
    built_for: str
    """"CUDA 12.8", "ROCm 6.4" or "CPUs": what torch was built for."""
    driver: bool = False
    """An NVIDIA driver is installed."""
    hidden: str | None = None
    """CUDA_VISIBLE_DEVICES, where it is set."""
    tpu: bool = False
    """The system has what a TPU shows itself by."""
    packages: frozenset[str] = frozenset()
    """Which of `PACKAGES` are installed."""
    cores: tuple[int, int] = (1, 1)
    """Processors that this process may use, and that the machine has."""


PACKAGES = ("mujoco-warp", "torch-tpu", "ray")


def look() -> Hardware:
    """Look at this machine; imports torch, and starts nothing on a device."""
    import torch

    from rlgym.device import available, describe

    built = "CPUs"
    if torch.version.cuda:
        built = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        built = f"ROCm {torch.version.hip}"
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return Hardware(
        devices={name: describe(torch.device(name)) for name in available()},
        built_for=built,
        driver=shutil.which("nvidia-smi") is not None,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
        tpu=any(Path(node).exists() for node in TPU_NODES),
        packages=frozenset(name for name in PACKAGES if _installed(name)),
        cores=(usable, total),
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def used(found: Hardware) -> dict[str, str]:
    """What a run uses as long as nobody says otherwise, by its part."""
    best, *_ = found.devices
    cores = f"{found.cores[0]} cores"
    learner = f"cpu, {cores}"
    if best != "cpu":
        learner = f"{best} (small networks beside host worlds: cpu)"
    told = {"learner": learner, "host worlds": cores}
    told["tensor worlds"] = "cpu" if best == "cpu" else f"{best} from 1024 worlds on, else cpu"
    gpu = best.startswith("cuda")
    told["imitation"] = "engine mujoco on the cores" + (
        f", engine warp on {best}" if gpu and "mujoco-warp" in found.packages else ""
    )
    told["updates and rollouts"] = "recorded as graphs" if gpu else "run as they are"
    return told


def why_not_more(found: Hardware) -> list[Finding]:
    """What lies idle or is absent, and what to do about it; "warning" where something is wrong."""
    best, *others = found.devices
    gpus = [name for name in found.devices if name.startswith("cuda")]
    told: list[tuple[Severity, str]] = []
    if best == "cpu":
        told.append(_no_accelerator(found))
    elif not gpus:
        text = f"{best.partition(':')[0]} has no graphs, and engine warp wants an NVIDIA GPU"
        told.append(("note", f"{text}: updates run as they are, imitation on engine mujoco"))
    if gpus and "mujoco-warp" not in found.packages:
        text = "engine warp would simulate robots on the GPU"
        told.append(("note", f"{text}: pip install 'rlgym-lab[gpu]' (400 MB on disk)"))
    if len(others) > 1 and best != "cpu":
        count = len(found.devices) - 1
        text = f"a run uses one of {count} accelerators"
        told.append(("note", f"{text}: torchrun --nproc-per-node {count}, see docs/scaling.md"))
    if found.tpu and not best.startswith("tpu"):
        text = "this machine seems to have a TPU, which torch does not see"
        told.append(("note", f"{text}: torch-tpu and libtpu bring it (we have not tried one)"))
    usable, total = found.cores
    if usable < total:
        text = f"this process may use {usable} of {total} cores"
        told.append(("note", f"{text}: its affinity mask (taskset, a job scheduler) says so"))
    return [Finding(severity, "hardware", text) for severity, text in told]


def _no_accelerator(found: Hardware) -> tuple[Severity, str]:
    """Why there is only a CPU."""
    if not found.driver:
        return "note", "no accelerator was found: worlds and learner share the cores"
    if found.built_for == "CPUs":
        fix = "install the CUDA build (pytorch.org/get-started)"
        return "warning", f"torch is built for CPUs, beside an NVIDIA driver: {fix}"
    if found.hidden is not None:
        fix = "unset it, or give the GPU's number"
        return "warning", f"CUDA_VISIBLE_DEVICES={found.hidden!r} hides the GPU: {fix}"
    fix = "see what nvidia-smi says, and update the driver"
    return "warning", f"torch ({found.built_for}) cannot use the GPU of the NVIDIA driver: {fix}"
