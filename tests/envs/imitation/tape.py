"""What a recorded graph does, on the CPU: the same operations on the same memory, without Python.

An accelerator's graph knows addresses only. State that a step gives a new tensor, a number that
Python computes, a constant that is copied from the host: all stay what they were when the graph was
recorded. A `Tape` makes that visible where there is no accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape:
    """Call `fn` once; from then on, repeat what it did to its inputs' and its state's memory."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.inputs: list[torch.Tensor] = []
        self.outputs: Any = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self.calls:
            for ours, given in zip(self.inputs, inputs, strict=True):
                ours.copy_(given)
            for function, args, kwargs, out in self.calls:
                _put(out, function(*args, **kwargs))
            return self.outputs
        self.inputs = [tensor.clone() for tensor in inputs]
        with _Recorder(self.calls):
            self.outputs = self.fn(*self.inputs)
        return self.outputs


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def _put(recorded: Any, new: Any) -> None:
    """Write results to where they were; views, and what was written in place, are there already."""
    for old, value in zip(tree_leaves(recorded), tree_leaves(new), strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != value.data_ptr():
            old.copy_(value)
