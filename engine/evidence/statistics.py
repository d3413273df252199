"""Intervals and tests that hold the trained models fixed: with sources, or clips, as the unit of chance.

The clips of a source share their venue, camera and divers, so they are not independent draws, and an interval that
resamples clips is too narrow. Nothing here says what another training would give: see `trainings.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

NUM_RESAMPLES = 10_000
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic over clips, and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """The clips on which two arms disagree, and the exact two-sided p-value of the split between them."""

    num_clips: int
    num_only_first: int  # clips that only the first arm has right
    num_only_second: int
    p_value: float

    @property
    def difference(self) -> float:
        """Accuracy of the second arm less that of the first."""
        return (self.num_only_second - self.num_only_first) / self.num_clips


@dataclass(frozen=True)
class FixedWeights:
    """The second arm's models against the first's, as they were trained. It says nothing about another training."""

    difference: Estimate  # the interval resamples sources
    tests: tuple[McNemar, ...]  # one a training
    p_value: float  # over sources, all trainings together, see `sign_flip_p_value`; nan where there is one source


def accuracy_over_sources(correct: npt.NDArray[np.bool_], sources: Sequence[str], *, seed: int = 0) -> Estimate:
    """Share of correct answers of one arm. correct: (num_seeds, num_clips); sources: the source of each clip."""
    return mean_over_sources(correct.mean(axis=0), sources, seed=seed)


def compare_weights(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], sources: Sequence[str], *, seed: int = 0
) -> FixedWeights:
    """Compare the trained models of two arms clip by clip.

    first, second: (num_trainings, num_clips), the same trainings and clips in the same order.
    """
    gain = second.mean(axis=0) - first.mean(axis=0)  # (num_clips,)
    return FixedWeights(
        difference=mean_over_sources(gain, sources, seed=seed),
        tests=tuple(mcnemar(*pair) for pair in zip(first, second, strict=True)),
        p_value=sign_flip_p_value(gain, sources, seed=seed),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, each raised so that it bounds the chance of any false alarm among all of them.

    Those that are nan tested nothing: they stay so and do not count.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected = np.array(p_values, dtype=np.float64)
    order = np.argsort(corrected)[: np.isfinite(corrected).sum()]  # nan comes last
    # not statsmodels' multipletests, which collects garbage at every call: half a second once torch is loaded
    raised = corrected[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(p_value) for p_value in corrected]


def mean_over_sources(
    values: npt.NDArray[np.floating[Any]],
    sources: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = CONFIDENCE_LEVEL,
    seed: int = 0,
) -> Estimate:
    """Mean of one value a clip, with an interval that resamples whole sources, see `interval_over_sources`.

    For a difference between arms, give each clip's difference: both arms then meet the same resampled clips.
    values: (num_clips,); sources: the source of each clip.
    """
    _, source_of_clip, num_clips = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    totals = np.bincount(source_of_clip, weights=values)  # (num_sources,)
    low, high = interval_over_sources(
        _mean_of_sums, (totals, num_clips), num_resamples=num_resamples, level=level, seed=seed
    )
    return Estimate(float(np.mean(values)), low, high)


def interval_over_sources(
    statistic: Callable[..., Any],
    totals: Sequence[npt.NDArray[Any]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = CONFIDENCE_LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The ends of the percentile interval of a bootstrap that draws whole sources, or twice nan if there is one.

    Each resample draws as many sources as there are, with replacement, the same for all totals.
    statistic: takes the drawn totals, (…, num_sources) each, and `axis`, the axis of the sources.
    totals: one or more of (num_sources,), such as the number of clips of each source.
    """
    if len(totals[0]) < 2:
        return math.nan, math.nan
    interval = stats.bootstrap(
        tuple(totals),
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=num_resamples,
        confidence_level=level,
        batch=1000,  # bounds the memory to 1000 * num_sources
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of two arms on the same clips. first, second: (num_clips,).

    If neither arm is better, each clip that only one of them has right is a fair coin. The test takes clips as
    independent, which the interval over sources does not: report both.
    """
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    disagreements = only_first + only_second
    p_value = float(stats.binomtest(only_first, disagreements).pvalue) if disagreements else 1.0
    return McNemar(len(first), only_first, only_second, p_value)


def sign_flip_p_value(
    values: npt.NDArray[np.floating[Any]],
    sources: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "neither arm is better": how often random signs, one a source, give as large a mean.

    If neither arm is better, all differences of a source might as well have the other sign. The clips of a source may
    depend on each other in any way. With few sources every choice of signs is taken once; one source tests nothing.
    values: (num_clips,) differences between the arms; sources: the source of each clip.
    """
    _, source_of_clip = np.unique(np.asarray(sources), return_inverse=True)
    totals = np.bincount(source_of_clip, weights=values)  # (num_sources,)
    if len(totals) < 2:
        return math.nan
    tested = stats.permutation_test(
        (totals,),
        _sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=1000,  # bounds the memory to 1000 * num_sources
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def spread_over_seeds(values: Sequence[float]) -> float | None:
    """Sample standard deviation over seeds, or None where there is one seed or a value is infinite."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None


def _sum(totals: Any, axis: int) -> Any:
    return totals.sum(axis=axis)


def _mean_of_sums(totals: Any, num_clips: Any, axis: int) -> Any:
    return totals.sum(axis=axis) / num_clips.sum(axis=axis)
