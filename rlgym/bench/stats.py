"""Interquartile mean and stratified bootstrap (Agarwal et al. 2021, arXiv 2108.13264).

A handful of seeds says little by its mean, which one lucky run moves, and nothing without an
interval. The paper's answer for few runs: the mean of the middle half, and percentiles of what
the same statistic gives when the runs are drawn again with replacement.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = Sequence[Sequence[float]]
"""One sequence of scores per world: a stratum."""


def interquartile_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the middle half along the last axis.

    A quarter of the values, rounded down, is cut from either end: of five values the middle
    three remain, of three all of them.

    Args:
        scores: values, shape (..., n), n >= 1.

    Returns:
        Means, shape (...).
    """
    ordered = np.sort(scores, axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def bootstrap_interval(
    scores: Scores,
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = interquartile_mean,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic over all runs of all worlds.

    Runs are drawn with replacement within their own world (stratum), so that every sample has
    as many runs of each world as the data; the statistic is taken over all of them.

    Args:
        scores: one sequence of run scores per world; scale them alike before mixing worlds.
        confidence: share of the samples inside the interval.
        samples: number of bootstrap samples.
        seed: seed of the draws.
        statistic: maps (samples, runs) to (samples,).

    Returns:
        Lower and upper end.

    Raises:
        ValueError: when a world has no runs.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for stratum in scores:
        runs = np.asarray(stratum, dtype=np.float64)
        if not runs.size:
            raise ValueError("a world without runs has no interval: run at least one seed of it")
        drawn.append(runs[generator.integers(runs.size, size=(samples, runs.size))])
    values = statistic(np.concatenate(drawn, axis=1))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line through points (x, y).

    Raises:
        ValueError: with fewer than two different x.
    """
    dx = np.asarray(x, dtype=np.float64) - np.mean(x)
    if not np.any(dx):
        raise ValueError("a slope needs two different x: sample more often")
    return float(dx @ (np.asarray(y, dtype=np.float64) - np.mean(y)) / (dx @ dx))
