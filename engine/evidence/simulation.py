"""How often the verdicts of `trainings.py` err, and how often they find a difference, by simulation.

A training is a draw from a normal distribution, and so is a source. In such a table of trainings and sources the mean,
the variance between trainings and that between sources are independent, so they are drawn as such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diveparse.engine.evidence.trainings import ALPHA, MARGINS, Spread, difference_over_trainings

SPREAD = 0.0174  # of joint-alone less flat over trainings: 12 settings of three, docs/results/*.csv
SOURCE_ERROR = 0.0046  # that NUM_SOURCES sources add to the mean of three trainings
NUM_SOURCES = 235
NUM_DRAWS = 200_000  # a share of 1 % then has a standard error of 0.02 %


@dataclass(frozen=True)
class Shares:
    """How often each verdict falls, of all comparisons, at ALPHA and before any correction for several."""

    different: float  # higher or lower
    within: tuple[float, ...]  # one for each of MARGINS


def simulated_shares(
    num_trainings: int,
    truth: float,
    *,
    source_error: float = SOURCE_ERROR,
    own_error: float = 0.0,
    num_sources: int = NUM_SOURCES,
    num_draws: int = NUM_DRAWS,
) -> Shares:
    """Verdicts on one pair of arms whose true difference is `truth`, with SPREAD over trainings.

    source_error: standard error that the sources add to all trainings alike; own_error: to each training by itself, a
    part of SPREAD. The latter counts twice in the estimated error: in that over trainings and in that over sources.
    """
    rng = np.random.default_rng(num_trainings)
    true_error = np.sqrt(SPREAD**2 / num_trainings + source_error**2)
    value = truth + true_error * rng.standard_normal(num_draws)
    df_trainings, df_sources = num_trainings - 1, num_sources - 1
    variance = SPREAD**2 * rng.chisquare(df_trainings, num_draws) / df_trainings
    over_sources = source_error**2 + own_error**2 / num_trainings
    source_variance = over_sources * rng.chisquare(df_sources, num_draws) / df_sources
    spread = Spread(variance, df_trainings)
    found = difference_over_trainings(value, spread, num_trainings, source_variance, num_sources)
    return Shares(
        different=float(np.mean(found.p_different < ALPHA)),
        within=tuple(float(np.mean(found.p_within(margin) < ALPHA)) for margin in MARGINS),
    )
