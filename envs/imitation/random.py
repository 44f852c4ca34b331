"""Random numbers as pure functions of a seed, a counter and a name: no generator, no state.

Each draw hashes its three integers with SplitMix64's finalizer (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators"), so a batch draws for all its slots at once, each slot
depends on its own seed only, and a run that resumes needs to remember counters alone. Integers wrap
in 64 bits with numpy and with torch alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from rlgym.envs.imitation.arrays import Array, constant, namespace

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, odd: 2^64 over the golden ratio
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
_UNIT = 2.0**-24  # as many bits as a float32 holds, so that numpy and torch draw the same


def as_seeds(numbers: Iterable[int]) -> np.ndarray:
    """Return seeds of any size as int64; those from 2^62 on begin anew at 0."""
    return np.array([int(number) % (1 << 62) for number in numbers], np.int64)


def uniform(seed: Array, counter: Array, which: int | Sequence[int]) -> Array:
    """Draw from [0, 1).

    Args:
        seed: (B,) int64, of each slot.
        counter: (B,) int64, of the episode or step that is drawn for.
        which: what is drawn; several give several numbers.

    Returns:
        (B,) floats, or (B, len(which)), in steps of 2^-24: float64 of numpy, float32 of torch.
    """
    mixed = _mix(_mix(seed * _GOLDEN + counter) + counter * _GOLDEN)
    if isinstance(which, int):
        bits = _mix(mixed + _wrapped(which))
    else:
        bits = _mix(mixed[:, None] + constant(tuple(_wrapped(one) for one in which), seed))
    return ((bits >> 40) & 0xFFFFFF) * _UNIT


def normal(seed: Array, counter: Array, which: Sequence[int]) -> Array:
    """Draw from the standard normal distribution, (B, len(which)) (Box and Muller 1958)."""
    xp = namespace(seed)
    radius = uniform(seed, counter, which)
    angle = uniform(seed, counter, [-1 - one for one in which])
    return xp.sqrt(-2.0 * xp.log(1.0 - radius)) * xp.cos(2.0 * math.pi * angle)


def _mix(x: Array) -> Array:
    """SplitMix64's finalizer on int64; the masks make the arithmetic shifts logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _wrapped(which: int) -> int:
    """`which * _GOLDEN` as a signed 64-bit integer."""
    product = (which + 1) * _GOLDEN & 0xFFFFFFFFFFFFFFFF
    return product - (1 << 64) if product >> 63 else product
