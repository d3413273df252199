from __future__ import annotations

from math import inf, isnan, nan

import numpy as np
import pytest
from scipy import stats

from diveparse.engine.evidence.trainings import (
    ALPHA,
    DECISIVE,
    POWER,
    Difference,
    Gains,
    Spread,
    combined,
    difference_over_trainings,
    limit_of,
    pooled_spread,
    power_of,
    trainings_needed,
    two_way_bootstrap,
)


def some_gains(num_trainings: int = 12, num_sources: int = 30, seed: int = 0) -> Gains:
    """Differences of trainings on sources of very different sizes; every training and source has its own level."""
    rng = np.random.default_rng(seed)
    num_clips = rng.integers(1, 20, num_sources)
    level = rng.normal(size=(num_trainings, 1)) + 2 * rng.normal(size=num_sources)
    return Gains((level + rng.normal(size=level.shape)) * num_clips, num_clips)


def test_the_error_over_sources_agrees_with_a_plain_bootstrap_of_sources():
    gains = some_gains(num_sources=60)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = rng.integers(0, gains.num_sources, gains.num_sources)
        means.append(gains.totals[:, drawn].sum() / gains.num_clips[drawn].sum() / gains.num_trainings)
    assert np.sqrt(gains.source_variance) == pytest.approx(np.std(means), rel=0.1)


def test_the_error_over_sources_of_equal_size_is_that_of_a_mean():
    gains = Gains(np.array([[3.0, 6.0, 0.0], [3.0, 0.0, 0.0]]), np.array([3, 3, 3]))
    expected = np.var([1.0, 1.0, 0.0], ddof=1) / 3  # of each source over both trainings
    assert gains.source_variance == pytest.approx(expected)
    assert gains.by_training.tolist() == [1.0, pytest.approx(1 / 3)]


def test_what_all_trainings_share_on_a_source_is_not_in_the_spread_over_trainings():
    gains = some_gains()
    shift = np.random.default_rng(5).normal(size=gains.num_sources) * gains.num_clips
    spreads = [pooled_spread(each.by_training[None]) for each in (gains, Gains(gains.totals + shift, gains.num_clips))]
    assert spreads[0].variance == pytest.approx(spreads[1].variance)


def test_the_difference_is_a_t_test_of_the_trainings_where_sources_add_nothing():
    values = np.random.default_rng(2).normal(0.02, 0.02, size=40)
    found = difference_over_trainings(values.mean(), pooled_spread(values[None]), 40, 0.0, 200)
    statistic = float(stats.ttest_1samp(values, 0.0).statistic)
    assert found.standard_error == pytest.approx(values.mean() / statistic)
    assert found.df == pytest.approx(39 - 2)
    assert found.p_different == pytest.approx(2 * stats.t.sf(abs(statistic), 37))
    interval = found.interval()
    half = stats.t.isf(0.025, 37) * found.standard_error
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half))


@pytest.mark.parametrize(("df", "counted"), [(2, 1.0), (4, 2.0), (11, 9.0)])
def test_degrees_of_freedom_are_satterthwaites_with_two_less(df: int, counted: float) -> None:
    found = combined(0.0, [(3.0, df), (1.0, 234)], limit="")
    assert found.standard_error == 2.0
    assert found.df == pytest.approx(16 / (9 / counted + 1 / 232))


def test_a_part_of_the_error_can_be_taken_off():
    assert combined(0.0, [(3.0, 10), (2.0, 10)], limit="", less=1.0).standard_error == 2.0


def test_equivalence_is_the_larger_of_two_one_sided_tests():
    found = Difference(0.004, 0.003, 20.0)
    sides = [stats.t.sf((0.01 - 0.004) / 0.003, 20), stats.t.sf((0.01 + 0.004) / 0.003, 20)]
    assert found.p_within(0.01) == pytest.approx(max(sides))
    assert Difference(-0.004, 0.003, 20.0).p_within(0.01) == pytest.approx(max(sides))
    assert Difference(0.01, 0.003, 20.0).p_within(0.01) == pytest.approx(0.5)


def test_a_difference_without_any_spread_is_certain_and_no_difference_is_not():
    assert Difference(np.float64(0.1), np.float64(0.0), inf).p_different == 0
    assert Difference(np.float64(0.0), np.float64(0.0), inf).p_different == 1


@pytest.mark.parametrize(
    ("num_trainings", "num_sources", "expected"),
    [
        (1, 235, "these weights only"),
        (4, 235, "these weights only"),
        (4, 1, "these weights only"),
        (5, 1, "this source only"),
        (5, 2, ""),
        (20, 235, ""),
    ],
)
def test_few_trainings_or_one_source_limit_what_can_be_said(num_trainings, num_sources, expected):
    assert limit_of(num_trainings, num_sources) == expected
    found = difference_over_trainings(0.9, Spread(1e-6, 50), num_trainings, 1e-6, num_sources)
    assert isnan(found.p_different) is bool(expected)
    assert isnan(found.p_within(0.01)) is bool(expected)


def test_one_training_and_one_source_have_no_interval():
    for gains in (some_gains(num_trainings=1), some_gains(num_sources=1)):
        interval = gains.difference(pooled_spread(gains.by_training[None])).interval()
        assert interval.value == pytest.approx(gains.by_training.mean())
        assert isnan(interval.low)
        assert isnan(interval.high)


def test_the_spread_of_one_pair_is_its_variance():
    values = np.array([0.01, 0.03, 0.08])
    assert vars(pooled_spread(values[None])) == pytest.approx({"variance": values.var(ddof=1), "df": 2})


def test_pairs_that_share_an_arm_have_fewer_degrees_of_freedom_than_pairs_that_do_not():
    rng = np.random.default_rng(0)
    arms = rng.normal(size=(7, 5000))
    apart = pooled_spread(arms[1:])
    shared = pooled_spread((arms[1:] - arms[0]) / np.sqrt(2))
    assert apart.variance == pytest.approx(1, rel=0.05)
    assert shared.variance == pytest.approx(1, rel=0.05)
    assert apart.df == pytest.approx(6 * 4999, rel=0.05)
    assert shared.df == pytest.approx(36 / (6 + 30 / 4) * 4999, rel=0.05)  # 30 correlations of a half


def test_the_bootstrap_agrees_with_a_plain_loop_over_drawn_trainings_and_sources():
    gains = some_gains()
    rng = np.random.default_rng(3)
    means = []
    for _ in range(4000):
        trainings = rng.integers(0, gains.num_trainings, gains.num_trainings)
        sources = rng.integers(0, gains.num_sources, gains.num_sources)
        totals = gains.totals[np.ix_(trainings, sources)]
        means.append(totals.sum() / gains.num_clips[sources].sum() / gains.num_trainings)
    estimate = two_way_bootstrap(gains)
    assert estimate is not None
    assert [estimate.low, estimate.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.08)
    assert estimate.value == pytest.approx(gains.by_training.mean())
    assert estimate == two_way_bootstrap(gains)


def test_few_trainings_and_one_source_are_not_resampled():
    assert two_way_bootstrap(some_gains(num_trainings=9)) is None
    assert two_way_bootstrap(some_gains(num_sources=1)) is None


def test_power_agrees_with_a_simulation_and_needs_enough_trainings():
    variance, source_variance, num_trainings = 0.0174**2, 0.0046**2, 12
    rng, num_draws = np.random.default_rng(0), 20_000
    value = DECISIVE + np.sqrt(variance / num_trainings + source_variance) * rng.standard_normal(num_draws)
    drawn = Spread(variance * rng.chisquare(11, num_draws) / 11, 11)
    found = difference_over_trainings(value, drawn, num_trainings, source_variance, 235)
    share = np.mean((found.p_different < ALPHA) & (value > 0))
    assert power_of(num_trainings, variance, source_variance, 235) == pytest.approx(share, abs=0.02)
    assert power_of(4, variance, source_variance, 235) == 0


def test_the_trainings_that_are_needed_are_the_fewest_that_have_the_power():
    needed = trainings_needed(0.0174**2, 0.0033**2, 470)
    assert needed == 16
    assert power_of(16, 0.0174**2, 0.0033**2, 470) >= POWER > power_of(15, 0.0174**2, 0.0033**2, 470)


def test_no_number_of_trainings_makes_up_for_too_few_sources():
    assert trainings_needed(0.0174**2, 0.02**2, 235) == inf
    assert trainings_needed(0.0174**2, 0.0, 1) == inf
    assert isnan(trainings_needed(nan, 0.0, 235))
