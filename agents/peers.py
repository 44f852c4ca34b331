"""What a learner asks of the processes that learn with it, and the answer of one that is alone.

Several processes compute the step that one process would take on all their rows together: every
sum over rows is taken over the processes too. The sums are kept as means over the processes, so
that shares, gradients and metrics have the same size whether there is one process or many.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Peers(Protocol):
    """Processes that hold the same parameters; `rlgym.training.distributed.Group` has it."""

    size: int
    """Number of processes, this one included."""

    def mean(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its mean over the processes, in place; returns it."""
        ...


class Alone:
    """The only process: every mean is what it was."""

    size = 1

    def mean(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


ALONE = Alone()


def total(tensor: Tensor, peers: Peers) -> Tensor:
    """The sum over all processes of a tensor that may be overwritten."""
    return tensor if peers.size == 1 else peers.mean(tensor) * peers.size
