"""Counter-based draws: against SplitMix64 in Python's own integers, and their statistics."""

import numpy as np
import pytest
import torch

from rlgym.envs.imitation.random import normal, uniform

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
COUNT = 20_000


def mix(z: int) -> int:
    """SplitMix64's finalizer, from the paper."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def by_hand(seed: int, counter: int, which: int) -> float:
    inner = mix((seed * GOLDEN + counter) & MASK)
    mixed = mix((inner + counter * GOLDEN) & MASK)
    return (mix((mixed + (which + 1) * GOLDEN) & MASK) >> 40) * 2.0**-24


@pytest.mark.parametrize("which", [0, 7, -3])
def test_numbers_are_those_of_the_paper(which):
    seed = np.array([0, 1, -1, 2**62, -(2**63)], np.int64)
    counter = np.array([0, 5, 1 << 24, -1, 2**63 - 1], np.int64)
    expected = [by_hand(int(s), int(c), which) for s, c in zip(seed, counter, strict=True)]
    assert uniform(seed, counter, which).tolist() == expected
    assert uniform(seed, counter, (9, which))[:, 1].tolist() == expected


def test_torch_draws_the_same():
    seed = np.arange(-100, 156, dtype=np.int64)
    counter = np.arange(256, dtype=np.int64) << 24
    ours = uniform(seed, counter, (0, 1, 2))
    theirs = uniform(torch.from_numpy(seed), torch.from_numpy(counter), (0, 1, 2))
    assert np.array_equal(theirs.double().numpy(), ours)
    bell = normal(seed, counter, range(5))
    other = normal(torch.from_numpy(seed), torch.from_numpy(counter), range(5))
    assert np.allclose(bell, other.numpy(), atol=1e-4)


def test_a_slot_does_not_depend_on_its_neighbours():
    seed, counter = np.arange(64, dtype=np.int64), np.full(64, 3, np.int64)
    alone = uniform(seed[5:6], counter[5:6], (0, 1))
    assert np.array_equal(alone[0], uniform(seed, counter, (0, 1))[5])


@pytest.mark.parametrize("axis", ["seed", "counter", "which"])
def test_neighbours_are_independent_and_uniform(axis):
    run, still = np.arange(COUNT, dtype=np.int64), np.full(COUNT, 11, np.int64)
    if axis == "which":
        draws = uniform(still[:1], still[:1], range(COUNT))[0]
    else:
        draws = uniform(run, still, 0) if axis == "seed" else uniform(still, run, 0)
    counts = np.histogram(draws, 20, (0.0, 1.0))[0]
    chi_squared = ((counts - COUNT / 20) ** 2 / (COUNT / 20)).sum()
    assert chi_squared < 43.8  # 19 degrees of freedom, 1 in 1000
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 3.3 / np.sqrt(COUNT)
    assert len(np.unique(draws)) > COUNT - 60  # of 2^24 numbers; 12 repeats are expected


def test_normal_draws_have_a_normal_distribution():
    seed = np.arange(COUNT, dtype=np.int64)
    draws = normal(seed, seed * 0, (0, 1))
    assert np.isfinite(draws).all()
    assert np.abs(draws.mean(0)).max() < 3.3 / np.sqrt(COUNT)
    assert np.abs(draws.std(0) - 1.0).max() < 3.3 / np.sqrt(2 * COUNT)
    assert abs((np.abs(draws) > 1.96).mean() - 0.05) < 0.004
    assert abs(np.corrcoef(draws.T)[0, 1]) < 3.3 / np.sqrt(COUNT)
