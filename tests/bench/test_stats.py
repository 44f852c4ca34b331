"""Interquartile mean, bootstrap interval and slope against numbers worked by hand."""

import numpy as np
import pytest

from rlgym.bench.stats import bootstrap_interval, interquartile_mean, slope


def test_interquartile_mean_of_five_cuts_one_from_either_end():
    # sorted: -100, 1, 2, 3, 1000 -> (1 + 2 + 3) / 3
    assert interquartile_mean(np.array([3.0, 1000.0, 1.0, -100.0, 2.0])) == pytest.approx(2.0)


def test_interquartile_mean_of_eight_cuts_two_from_either_end():
    values = np.array([0.0, 0.0, 4.0, 5.0, 6.0, 9.0, 100.0, 100.0])
    assert interquartile_mean(values) == pytest.approx((4 + 5 + 6 + 9) / 4)


def test_interquartile_mean_of_three_is_their_mean():
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == pytest.approx(3.0)


def test_interquartile_mean_works_along_the_last_axis():
    rows = np.array([[0.0, 1.0, 2.0, 9.0], [8.0, 8.0, 8.0, 8.0]])
    np.testing.assert_allclose(interquartile_mean(rows), [1.5, 8.0])


def test_interval_of_equal_runs_is_a_point():
    assert bootstrap_interval([[7.0] * 5]) == (7.0, 7.0)


def test_interval_of_the_mean_is_that_of_the_binomial():
    # The mean of 100 draws from 50 zeros and 50 ones is Binomial(100, 1/2) / 100: 95 % lie
    # between 0.40 and 0.60, the 2.5 % and 97.5 % quantiles of that distribution.
    scores = [0.0] * 50 + [1.0] * 50
    low, high = bootstrap_interval([scores], statistic=lambda x: x.mean(-1), samples=20_000)
    assert (low, high) == pytest.approx((0.40, 0.60), abs=0.011)


def test_runs_are_drawn_within_their_own_world():
    # Every sample has two runs of either world, so the mean of all four cannot vary.
    low, high = bootstrap_interval([[0.0, 0.0], [10.0, 10.0]], statistic=lambda x: x.mean(-1))
    assert (low, high) == (5.0, 5.0)


def test_interval_is_the_same_each_time_and_widens_with_confidence():
    scores = [[1.0, 5.0, 2.0, 8.0, 3.0]]
    narrow = bootstrap_interval(scores, confidence=0.5)
    assert narrow == bootstrap_interval(scores, confidence=0.5)
    wide = bootstrap_interval(scores, confidence=0.95)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_world_without_runs_has_no_interval():
    with pytest.raises(ValueError, match="at least one seed"):
        bootstrap_interval([[1.0], []])


def test_slope_of_a_line_and_of_points_by_hand():
    assert slope([0, 1, 2], [5, 8, 11]) == pytest.approx(3.0)
    # mean x 1, mean y 2: (-1 * -1 + 0 * -1 + 1 * 2) / (1 + 0 + 1) = 1.5
    assert slope([0, 1, 2], [1, 1, 4]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="two different x"):
        slope([1, 1], [0, 1])
