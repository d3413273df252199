"""The difference between two arms over paired trainings: the unit of chance is a training.

Another seed moves an arm by more than other test clips do, so a test that holds the trained models fixed answers
another question. Here the K trainings of each arm are a sample, paired by seed, data and order, and so are the test
sources. All pairs of trainings meet the same sources.

Sources: Bouthillier et al., "Accounting for variance in machine learning benchmarks", MLSys 2021; Agarwal et al., "Deep
reinforcement learning at the edge of the statistical precipice", NeurIPS 2021.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from diveparse.engine.evidence.statistics import CONFIDENCE_LEVEL, NUM_RESAMPLES, Estimate

MIN_TRAININGS = 5  # fewer decide nothing
MIN_SOURCES = 2  # one has no spread
THESE_WEIGHTS, THIS_SOURCE = "these weights only", "this source only"
MIN_RESAMPLED_TRAININGS = 10  # resamples of fewer have too narrow a spread
ALPHA = 0.01  # of "higher" and "lower", and of each of the two tests of equivalence
POWER = 0.8
MARGINS = (0.01, 0.02)  # of equivalence: of accuracy, or of nats
DECISIVE = 0.02  # the difference that a comparison should find
MAX_TRAININGS = 1000  # more are called infinitely many

Floats = Any  # a float, or an array of many comparisons at once, as in a simulation


@dataclass(frozen=True, eq=False)
class Gains:
    """What the second arm has more than the first, summed over the clips of each source."""

    totals: npt.NDArray[np.float64]  # (num_trainings, num_sources)
    num_clips: npt.NDArray[np.int64]  # (num_sources,)

    @property
    def num_trainings(self) -> int:
        return len(self.totals)

    @property
    def num_sources(self) -> int:
        return len(self.num_clips)

    @property
    def by_training(self) -> npt.NDArray[np.float64]:
        """(num_trainings,) the mean over clips."""
        return self.totals.sum(axis=1) / self.num_clips.sum()

    @property
    def source_variance(self) -> float:
        """Squared standard error, over sources, of the mean over clips and trainings; nan where there is one source.

        A source counts by its clips: the sum of squared residuals of its total, as for any ratio of two sums.
        """
        if self.num_sources < MIN_SOURCES:
            return float("nan")
        totals, num_all = self.totals.mean(axis=0), self.num_clips.sum()
        residuals = totals - self.num_clips * totals.sum() / num_all
        return float((residuals**2).sum() / num_all**2 * self.num_sources / (self.num_sources - 1))

    def difference(self, spread: Spread) -> Difference:
        value = float(self.by_training.mean())
        return difference_over_trainings(
            value, spread, self.num_trainings, self.source_variance, num_sources=self.num_sources
        )


@dataclass(frozen=True)
class Spread:
    """A variance of the difference over trainings, and its degrees of freedom."""

    variance: Floats
    df: Floats


@dataclass(frozen=True)
class Difference:
    """A difference and what is known of it: Student's t distribution about `value`."""

    value: Floats
    standard_error: Floats
    df: Floats
    limit: str = ""  # THESE_WEIGHTS or THIS_SOURCE where there are too few trainings or sources for a test

    def interval(self, level: float = CONFIDENCE_LEVEL) -> Estimate:
        half = stats.t.isf((1 - level) / 2, self.df) * self.standard_error
        return Estimate(self.value, self.value - half, self.value + half)

    @property
    def p_different(self) -> Any:
        """Two-sided p-value of "no difference"; nan where nothing can be decided."""
        return 2 * self._tail(np.abs(self.value))

    def p_within(self, margin: float) -> Any:
        """p-value of "a difference of `margin` or more": the larger of two one-sided tests.

        Source: Lakens, "Equivalence tests: a practical primer for t tests, correlations, and meta-analyses", 2017.
        """
        return self._tail(margin - np.abs(self.value))

    def _tail(self, distance: Any) -> Any:
        if self.limit:
            return np.full(np.shape(distance), np.nan)[()]
        with np.errstate(divide="ignore", invalid="ignore"):  # without any spread a distance of 0 stays undecided
            return np.nan_to_num(stats.t.sf(distance / self.standard_error, self.df), nan=0.5)


def pooled_spread(differences: npt.NDArray[np.float64]) -> Spread:
    """The mean variance of one pair of arms or several. differences: (num_pairs, num_trainings).

    Pairs that share an arm vary together, and a pair may vary more than another. Both leave fewer degrees of freedom
    than num_pairs times those of one: the trace of the covariance, squared, over the trace of its square.
    Source: Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics 1946, for the
    eigenvalues of the covariance; Box 1954 has it for correlated variances.
    """
    num_pairs, num_trainings = differences.shape
    if num_trainings < 2:
        return Spread(float("nan"), float("nan"))
    covariance = np.atleast_2d(np.cov(differences))
    trace, of_square = float(np.trace(covariance)), float((covariance**2).sum())
    df = (num_trainings - 1) * (trace**2 / of_square if of_square > 0 else 1.0)
    return Spread(trace / num_pairs, df)


def difference_over_trainings(
    value: Floats, spread: Spread, num_trainings: int, source_variance: Floats, num_sources: int
) -> Difference:
    """The mean difference of paired trainings, with SE² = s² / K + SE²(sources).

    s² is the variance of the trainings' differences, all on the same sources, so it holds no variance of the sources.
    SE²(sources) is that of the mean over the K trainings. What a source does to one training alone is in both: it
    counts twice, and the sum errs towards a larger error; `simulation.py` has by how much.
    source_variance: SE²(sources), in the square of the unit of `value`.
    """
    parts = [(spread.variance / num_trainings, spread.df), (source_variance, num_sources - 1)]
    return combined(value, parts, limit_of(num_trainings, num_sources))


def limit_of(num_trainings: int, num_sources: int) -> str:
    """What a comparison is about if it cannot be about arms, or nothing."""
    if num_trainings < MIN_TRAININGS:
        return THESE_WEIGHTS
    return THIS_SOURCE if num_sources < MIN_SOURCES else ""


def combined(value: Floats, parts: Sequence[tuple[Floats, Floats]], limit: str, *, less: Floats = 0.0) -> Difference:
    """A value whose squared standard error is a sum of estimates, each with its degrees of freedom, less `less`.

    Source: Satterthwaite 1946. His formula takes the estimates for the truth. Where one with few degrees of freedom
    comes out small, it counts too little, and a test at 1 % then errs in 1.6 % (five trainings). With two degrees of
    freedom less it errs in 1.0 %, as the simulation in the tests shows. Below four half of them are left.
    """
    variance = np.asarray(sum(part for part, _ in parts) - less)
    uncertainty: Any = sum(part**2 / np.maximum(df - 2, df / 2) for part, df in parts if np.all(df > 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(variance > 0, variance**2 / uncertainty, np.inf)[()]
    return Difference(value, np.sqrt(variance)[()], df, limit)


def two_way_bootstrap(gains: Gains, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Estimate | None:
    """The percentile interval of a bootstrap that draws trainings and sources, or None for few of either.

    Sources: Owen, "The pigeonhole bootstrap", 2007; Agarwal et al. 2021 recommend to resample trainings.
    """
    if gains.num_trainings < MIN_RESAMPLED_TRAININGS or gains.num_sources < MIN_SOURCES:
        return None
    rng, means = np.random.default_rng(seed), []
    for size in [1000] * (num_resamples // 1000):  # bounds the memory to 1000 * num_sources
        trainings, sources = (
            rng.multinomial(number, np.full(number, 1 / number), size=size)
            for number in (gains.num_trainings, gains.num_sources)
        )  # how often each is drawn: (size, num_trainings), (size, num_sources)
        totals = np.einsum("bs,bs->b", trainings @ gains.totals, sources)
        means.append(totals / gains.num_trainings / (sources @ gains.num_clips))
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Estimate(float(gains.by_training.mean()), float(low), float(high))


def power_of(num_trainings: int, variance: float, source_variance: float, num_sources: int) -> float:
    """The chance to find a difference of DECISIVE at ALPHA. variance: over trainings."""
    spread = Spread(variance, num_trainings - 1)
    found = difference_over_trainings(DECISIVE, spread, num_trainings, source_variance, num_sources)
    if found.limit:
        return 0.0
    if found.standard_error == 0:
        return 1.0
    critical, effect = stats.t.isf(ALPHA / 2, found.df), DECISIVE / found.standard_error
    return float(stats.nct.sf(critical, found.df, effect))


def trainings_needed(variance: float, source_variance: float, num_sources: int) -> float:
    """The fewest trainings with which a difference of DECISIVE is found with POWER.

    inf where more trainings do not help, as there are too few sources; nan where a variance is.
    """
    if np.isnan(variance + source_variance):
        return float("nan")
    candidates = range(MIN_TRAININGS, MAX_TRAININGS + 1)
    found = bisect_left(
        candidates, True, key=lambda number: power_of(number, variance, source_variance, num_sources) >= POWER
    )
    return float(candidates[found]) if found < len(candidates) else float("inf")
