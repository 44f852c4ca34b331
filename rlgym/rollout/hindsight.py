"""Hindsight: a transition is also learned from as if a goal reached later had been the goal.

Andrychowicz et al. 2017 (arXiv 1707.01495), section 3.3, strategy "future", with one later row per
drawn transition. Goals are replaced when a batch is drawn, so nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgym.errors import UserError
from rlgym.spaces import Layout

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"

ComputeReward = Callable[[np.ndarray, np.ndarray, Any], Any]
"""`compute_reward(achieved (K, G), desired (K, G), info) -> (K,)`: a goal world's own function."""


@dataclass(frozen=True)
class Hindsight:
    """Which share of transitions gets another goal, and what that makes of the reward."""

    share: float
    """Chance of each drawn transition, 0 to 1; 0.8 is the paper's (four relabelled to one)."""
    compute_reward: ComputeReward
    """The world's own; called once per batch, on the host, with `info` = {}."""

    def check(self, obs_layout: Layout) -> None:
        """Make sure that the observations hold goals.

        Raises:
            UserError: they do not, or the two goals differ in shape.
        """
        shapes = {leaf.key: leaf.shape for leaf in obs_layout.leaves}
        missing = [key for key in (ACHIEVED, DESIRED) if key not in shapes]
        if missing:
            raise UserError(
                "hindsight needs a goal world, and the observation has no "
                f"{' and no '.join(missing)}: pass --algo.hindsight 0"
            )
        if shapes[ACHIEVED] != shapes[DESIRED]:
            raise UserError(
                f"{ACHIEVED} has shape {list(shapes[ACHIEVED])} and {DESIRED} "
                f"{list(shapes[DESIRED])}, so one cannot replace the other: pass --algo.hindsight 0"
            )

    def rewards(self, achieved: Tensor, desired: Tensor) -> Tensor:
        """Rewards of steps that reached `achieved` when `desired` was the goal.

        Args:
            achieved: (n, B, *goal).
            desired: (B, *goal).

        Returns:
            (n, B) float32 on the same device.

        Raises:
            UserError: the world's function takes one goal at a time.
        """
        n, B = achieved.shape[:2]
        reached = achieved.flatten(0, 1).numpy(force=True)
        wanted = desired.expand(achieved.shape).flatten(0, 1).numpy(force=True)
        found = np.asarray(self.compute_reward(reached, wanted, {}), np.float32)
        if found.shape != (n * B,):
            raise UserError(
                f"compute_reward gave shape {list(found.shape)} for {n * B} goals: make it work on "
                "batches (sums over the last axis only), or pass --algo.hindsight 0"
            )
        return torch.from_numpy(found).view(n, B).to(achieved.device)


def rows_left(flags: np.ndarray, final: int) -> np.ndarray:
    """Count, for each row of one slot in order of time, the rows to the end of its episode.

    Args:
        flags: (K,) of the rows from the oldest to the newest.
        final: the flag of a row that holds an episode's last observation.

    Returns:
        (K,) int32: distance to the episode's final row (0 there); 0 in the episode in progress.
    """
    ends = np.flatnonzero(flags == final)
    rows = np.arange(len(flags))
    following = np.searchsorted(ends, rows)
    padded = np.append(ends, 0)
    return np.where(following < len(ends), padded[following] - rows, 0).astype(np.int32)
