"""A recorded graph for the CPU: what CUDA does to a captured function, so that it can be tested.

While a function is recorded, each operation is noted with the very tensors it took and gave; a
replay runs the operations on them again, and Python not at all. So whatever Python decided, counted
or read during the recording is frozen, as in a CUDA graph; reading a value, drawing random numbers
and bringing numbers from the host are refused, as there.
"""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

recording: list["Tape"] = []
"""The tape that runs, while one does."""
REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "randperm", "rand", "normal_")
REFUSED += ("uniform_", "multinomial", "bernoulli_", "randint", "random_", "exponential_")


class Tape(TorchDispatchMode):
    """Notes operations."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in REFUSED:
            raise RuntimeError(f"{name} is not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.notes.append((func, args, kwargs or {}, out))
        return out


def record(fn, device):
    """In place of `rlgym.device.record`: runs `fn` once, which is the first replay."""
    tape = Tape()
    with tape, _nothing_from_the_host():
        recording.append(tape)
        try:
            outputs = fn()
        finally:
            recording.clear()
    fresh = [True]

    def replay():
        if fresh:
            fresh.clear()
            return
        with torch.inference_mode():
            for func, args, kwargs, out in tape.notes:
                again = func(*args, **kwargs)
                for kept, new in zip(_tensors(out), _tensors(again), strict=True):
                    if kept.data_ptr() != new.data_ptr() and kept.numel():
                        kept.copy_(new)

    return replay, outputs


@contextlib.contextmanager
def _nothing_from_the_host():
    def refusing(name):
        make = getattr(torch, name)

        def checked(data, *args, **kwargs):
            if not isinstance(data, torch.Tensor):
                raise RuntimeError(f"torch.{name} copies from the host, which capturing refuses")
            return make(data, *args, **kwargs)

        return mock.patch.object(torch, name, checked)

    with contextlib.ExitStack() as stack:
        for name in ("tensor", "as_tensor", "from_numpy"):
            stack.enter_context(refusing(name))
        yield


def with_graphs(monkeypatch):
    """Let the CPU have graphs for a test; returns the names of what was recorded."""
    recorded = []

    def noted(fn, device):
        replay, outputs = record(fn, device)
        recorded.append(replay)
        return replay, outputs

    monkeypatch.setattr("rlgym.device.has_graphs", lambda device: True)
    monkeypatch.setattr("rlgym.device.aside", lambda fn, device: fn)
    monkeypatch.setattr("rlgym.device.record", noted)
    return recorded


def _tensors(out):
    if isinstance(out, torch.Tensor):
        return [out]
    return [x for part in out for x in _tensors(part)] if isinstance(out, (list, tuple)) else []
