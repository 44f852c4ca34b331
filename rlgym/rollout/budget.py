"""What a replay buffer takes, said before it is allocated."""

from __future__ import annotations

import torch

from rlgym.device import free_memory
from rlgym.errors import UserError
from rlgym.spaces import Layout

GIB = 2**30
SHARE = 0.75
"""Share of the free memory that a buffer may take unless its budget is given."""


def ring_rows(capacity: int, num_envs: int) -> int:
    """Rows per slot: its share of the capacity, and the open row."""
    return max(-(-capacity // num_envs), 2) + 1


def row_bytes(
    obs_layout: Layout, action_layout: Layout, mask_size: int, prioritized: bool, hindsight: bool
) -> int:
    """Bytes of one row, its reward and flags included."""
    values = obs_layout.nbytes() + action_layout.nbytes() + mask_size + 8
    return values + 5 * prioritized + 4 * hindsight


def check_memory(
    capacity: int, num_envs: int, row: int, device: torch.device, memory: float | None
) -> None:
    """Refuse a buffer that does not fit.

    Args:
        capacity: transitions over all slots.
        num_envs: slots.
        row: bytes of a row.
        device: where the rows are to live.
        memory: GiB that they may take; None = three quarters of what is free, where that is known.

    Raises:
        UserError: the message names a capacity that fits.
    """
    free = free_memory(device) if memory is None else None
    if memory is not None:
        allowed, why = memory * GIB, f"--algo.buffer-memory allows {memory:g} GiB"
    elif free is not None:
        allowed = SHARE * free
        why = f"{_gib(allowed)}, three quarters of what is free, may be used"
    else:
        return
    needed = ring_rows(capacity, num_envs) * num_envs * row
    if needed <= allowed:
        return
    fits = max(int(allowed / row) - 2 * num_envs, 1)
    fits -= fits % 10 ** max(len(str(fits)) - 2, 0)
    raise UserError(
        f"a buffer of {capacity:,} transitions takes {_gib(needed)} and {why}: "
        f"pass --algo.buffer-size {fits}"
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= 0.1 * GIB else f"{count / GIB:.3g} GiB"
