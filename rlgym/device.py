"""The only file that names accelerators: which device a person means, and what it can do."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlgym.errors import DeviceError

Mode = Literal["auto", "graph", "compile", "eager"]
Precision = Literal["highest", "high", "medium"]
"""Torch's names for how float32 matrix products are computed."""
WARM_UP = 3
"""Calls of a `GraphedFn` that run as they are before one is captured: libraries set themselves up
in the first, and allocate for good."""
KNOWN = ("cpu", "cuda", "mps", "xpu", "tpu")


def available() -> list[str]:
    """Devices of this machine, best first; "cpu" is always the last.

    The first is the accelerator that this process has taken, where it is one of several.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None:
        return ["cpu"]
    taken, count = torch.accelerator.current_device_index(), torch.accelerator.device_count()
    numbers = sorted(range(count), key=lambda number: number != taken)
    return [*(f"{accelerator.type}:{number}" for number in numbers), "cpu"]


def resolve(device: torch.device | str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1", "mps", "xpu" or "tpu" into a device that is there.

    An accelerator comes with its number: libraries look it up by that, and "cuda" and "cuda:0" are
    not equal to torch. Without one it is the one that this process has taken.

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
    fitting = [there for there in found if name in (there, there.partition(":")[0])]
    if not fitting:
        raise DeviceError(f"device {name!r} is not there: this machine has {', '.join(found)}")
    return torch.device(fitting[0])


def constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(Nested) tuples of numbers as a tensor on `device`; made once and shared, do not write there.

    What is recorded cannot copy from the host, so it takes its constants from here.
    """
    if torch.compiler.is_compiling():  # a tracer's tensor must not be kept
        return torch.tensor(values, dtype=dtype, device=device)
    return _constant(values, dtype, device)


@functools.cache  # for good: a recorded graph knows where they are
def _constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else autograd could not use it later
        return torch.tensor(values, dtype=dtype, device=device)


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Tell whether a device computes in double precision; Apple's and some of Intel's do not."""
    try:
        torch.ones((), dtype=torch.float64, device=device).add_(1.0)
    except (RuntimeError, TypeError):
        return False
    return True


@contextlib.contextmanager
def arithmetic(threads: int, precision: Precision | None) -> Iterator[None]:
    """Compute with so many threads and so precise matrix products; afterwards as before."""
    threads_before = torch.get_num_threads()
    before = None if precision is None else torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        if before is not None:
            torch.set_float32_matmul_precision(before)


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` is done; nothing to do on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def has_graphs(device: torch.device) -> bool:
    """Tell whether operations on `device` can be recorded once and launched again as one."""
    return device.type == "cuda" and torch.cuda.is_available()


def describe(device: torch.device) -> str:
    """What a person calls the device: its name and memory where it tells them."""
    if device.type == "cuda" and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    return str(device)


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


class GraphedFn:
    """A function of tensors that is launched as one recorded graph instead of run again.

    `fn` must do the same operations on the same memory each time: static shapes, nothing read back,
    no generator, no Python state that changes. Then a call copies its inputs to where the recorded
    one had them, and replays. Outputs are overwritten by the next call.

    The first `WARM_UP` calls run as they are, the next is recorded; where nothing can be recorded,
    all run as they are. Whatever is in the way is said once, on stderr.

    Args:
        fn: takes and returns tensors nested in dicts, lists, tuples and dataclasses.
        device: where they live.
        mode: "auto" records where the device can; "graph" also says where it cannot; "compile" is
            `torch.compile`; "eager" calls `fn`.
        name: what to call it in a message.
        obstacle: why `fn` cannot be recorded, known beforehand; "" where it can.

    Attributes:
        mode: what is done: "graph", "compile" or "eager".
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        device: torch.device,
        mode: Mode = "auto",
        name: str = "",
        obstacle: str = "",
    ) -> None:
        self.fn = fn
        self.device = device
        self.name = name or getattr(fn, "__name__", "a function")
        self._calls = 0
        self._first: Callable[..., Any] | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Any = None
        self._replay: Callable[[], None] | None = None
        if mode == "compile":
            self.fn = torch.compile(fn, dynamic=False)
        wanted = mode == "graph" or (mode == "auto" and has_graphs(device))
        if wanted and not has_graphs(device):
            obstacle = f"{device.type} has no graphs"
        self.mode: Mode = "graph" if wanted and not obstacle else "eager"
        if mode == "compile":
            self.mode = "compile"
        if wanted and obstacle:
            self._say(obstacle)

    def __call__(self, *inputs: Any) -> Any:
        """Do what `fn(*inputs)` does."""
        if self._replay is not None:
            for ours, given in zip(self._inputs, list(_leaves(inputs)), strict=True):
                ours.copy_(given, non_blocking=True)
            self._replay()
            return self._outputs
        if self.mode != "graph":
            return self.fn(*inputs)
        self._calls += 1
        if self._calls <= WARM_UP:
            self._first = self._first or aside(self.fn, self.device)
            return self._first(*inputs)
        with torch.inference_mode(False):  # else a call outside that mode could not write to them
            copies = _copied(inputs)
        self._inputs = list(_leaves(copies))
        try:
            self._replay, self._outputs = record(lambda: self.fn(*copies), self.device)
        except (RuntimeError, NotImplementedError) as error:
            # CUDA tells last that the recording is void, and why before that
            self._say(str(error.__context__ or error).partition("\n")[0])
            self.mode = "eager"
            return self.fn(*inputs)
        self._replay()
        return self._outputs

    def _say(self, why: str) -> None:
        print(f"rlgym: {self.name} is not a graph, it runs as it is: {why}", file=sys.stderr)


def record(fn: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Record what `fn` launches, without running it; returns what replays it, and its outputs."""
    gc.collect()  # a graph that is freed during the recording of another would break it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        here = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                outputs = fn()
        except BaseException:
            torch.cuda.set_stream(here)  # torch stays on its own where a recording breaks
            _BROKEN.append(graph)
            raise
    return graph.replay, outputs


_BROKEN: list[Any] = []
"""Graphs whose recording broke: the allocator may ask them for as long as the process lives."""


def aside(fn: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`fn` on a stream of its own, as what will be recorded must first be run."""
    stream = torch.cuda.Stream(device)

    def run(*inputs: Any) -> Any:
        with torch.cuda.device(device):
            here = torch.cuda.current_stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                outputs = fn(*inputs)
            here.wait_stream(stream)
        return outputs

    return run


def _leaves(nested: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, in one order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from _leaves(value)
    elif isinstance(nested, list | tuple):
        for value in nested:
            yield from _leaves(value)
    elif dataclasses.is_dataclass(nested):
        for item in dataclasses.fields(nested):
            yield from _leaves(getattr(nested, item.name))


def _copied(nested: Any) -> Any:
    """Nested containers with copies of their tensors."""
    if isinstance(nested, Tensor):
        return nested.clone()
    if isinstance(nested, dict):
        return {key: _copied(value) for key, value in nested.items()}
    if isinstance(nested, list | tuple):
        return type(nested)(_copied(value) for value in nested)
    if dataclasses.is_dataclass(nested) and not isinstance(nested, type):
        changes = {f.name: _copied(getattr(nested, f.name)) for f in dataclasses.fields(nested)}
        return dataclasses.replace(nested, **changes)
    return nested
