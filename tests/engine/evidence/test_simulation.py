"""The false alarms of every verdict, at the variances that were measured on the pages of results."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from diveparse.engine.evidence.simulation import NUM_SOURCES, SOURCE_ERROR, SPREAD, simulated_shares
from diveparse.engine.evidence.trainings import (
    ALPHA,
    MARGINS,
    Gains,
    Spread,
    difference_over_trainings,
    pooled_spread,
)

NUM_DRAWS = 50_000
ERROR = 3 * np.sqrt(ALPHA * (1 - ALPHA) / NUM_DRAWS)  # 0.13 points: three standard errors of a simulated share
DECIDING = pytest.mark.parametrize("num_trainings", [5, 9, 12, 20])
# the whole error of the sources in all trainings alike, and as clips that arms disagree on suggest
ERRORS = pytest.mark.parametrize(("source_error", "own_error"), [(0.0046, 0.0), (0.0031, 0.0057)], ids=["all", "part"])

shares_of = partial(simulated_shares, num_draws=NUM_DRAWS)


@DECIDING
@ERRORS
def test_equal_arms_are_called_different_in_one_percent_of_cases_at_most(num_trainings, source_error, own_error):
    shares = shares_of(num_trainings, 0.0, source_error=source_error, own_error=own_error)
    assert shares.different <= ALPHA + ERROR
    assert shares.different >= 0.7 * ALPHA


@DECIDING
@ERRORS
@pytest.mark.parametrize("margin", [*MARGINS, -MARGINS[0]])
def test_arms_that_differ_by_the_margin_are_called_equivalent_in_one_percent_of_cases_at_most(
    num_trainings, source_error, own_error, margin
):
    shares = shares_of(num_trainings, margin, source_error=source_error, own_error=own_error)
    assert shares.within[MARGINS.index(abs(margin))] <= ALPHA + ERROR


@DECIDING
def test_arms_that_differ_by_two_points_are_hardly_ever_called_equivalent_within_one(num_trainings):
    assert shares_of(num_trainings, 0.02).within[0] <= 0.001


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.1])
def test_three_trainings_have_no_verdict(truth):
    shares = shares_of(3, truth)
    assert (shares.different, *shares.within) == (0, 0, 0)


@pytest.mark.parametrize(("num_trainings", "expected"), [(5, 0.15), (9, 0.44), (12, 0.58), (20, 0.75)])
def test_a_difference_of_two_points_is_found_as_often_as_method_md_tells(num_trainings, expected):
    assert shares_of(num_trainings, 0.02).different == pytest.approx(expected, abs=0.01)


@DECIDING
def test_the_spread_of_other_pairs_would_call_a_pair_that_varies_more_different_too_often(num_trainings):
    num_draws, rng = 10_000, np.random.default_rng(num_trainings)
    sizes = SPREAD * np.array([1.5, 1, 1, 1, 1, 1])[:, None]
    differences = sizes * rng.normal(size=(num_draws, 6, num_trainings))
    value = differences[:, 0].mean(axis=-1) + SOURCE_ERROR * rng.normal(size=num_draws)
    shares = []
    for variances, df in ((differences[:, :1], num_trainings - 1), (differences, 6 * (num_trainings - 1))):
        spread = Spread(variances.var(axis=-1, ddof=1).mean(axis=-1), df)
        found = difference_over_trainings(value, spread, num_trainings, SOURCE_ERROR**2, NUM_SOURCES)
        shares.append(np.mean(found.p_different < ALPHA))
    own, pooled = shares
    assert own <= ALPHA + 3 * np.sqrt(ALPHA / num_draws)
    assert pooled >= 0.025


def test_equal_arms_are_as_rarely_called_different_from_clips_on():
    """The same through sources of different sizes and clips, most of whose own chance counts twice."""
    rng, p_values = np.random.default_rng(0), []
    for _ in range(1500):
        num_clips = rng.integers(1, 12, 40)
        of_source, of_training = rng.normal(0, 0.5, 40), rng.normal(0, 0.3, (8, 1))
        chance = 1 / (1 + np.exp(-(of_source + of_training)))  # the same for both arms in expectation
        totals = rng.binomial(num_clips, chance) - rng.binomial(num_clips, 1 / (1 + np.exp(-of_source)), (8, 40))
        gains = Gains(totals.astype(np.float64), num_clips)
        p_values.append(gains.difference(pooled_spread(gains.by_training[None])).p_different)
    found = np.array(p_values)
    assert np.mean(found < 0.01) <= 0.015
    assert 0.015 <= np.mean(found < 0.05) <= 0.055
