"""Intervals and tests of a difference between arms: paired on the same clips, with sources as the unit of chance.

The clips of a source share their venue, camera and divers, so they are not independent draws, and an interval that
resamples clips is too narrow. All of it holds the trained models fixed: how much another seed changes them is a
separate number, the spread over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.multitest import multipletests

NUM_RESAMPLES = 10_000
CONFIDENCE_LEVEL = 0.95
ALPHA = 0.01
MARGIN = 0.02  # of equivalence: of accuracy, or of nats


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
class Comparison:
    """The second arm against the first. The difference is positive where the second is better."""

    difference: Estimate
    tests: tuple[McNemar, ...]  # one a seed
    mcnemar_p_value: float  # over all seeds, see `combined_p_value`
    p_value: float  # over all seeds and over sources, see `sign_flip_p_value`

    @property
    def num_clips(self) -> int:
        return self.tests[0].num_clips


def accuracy_over_sources(correct: npt.NDArray[np.bool_], sources: Sequence[str], *, seed: int = 0) -> Estimate:
    """Share of correct answers of one arm. correct: (num_seeds, num_clips); sources: the source of each clip."""
    return mean_over_sources(correct.mean(axis=0), sources, seed=seed)


def compare_arms(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], sources: Sequence[str], *, seed: int = 0
) -> Comparison:
    """Compare two arms clip by clip and seed by seed.

    first, second: (num_seeds, num_clips), the same seeds and clips in the same order.
    Raises: ValueError if they cannot be paired, or come from fewer than two sources.
    """
    if first.shape != second.shape:
        raise ValueError(f"two arms must have the same seeds and clips, got {first.shape} and {second.shape}")
    gain = second.mean(axis=0) - first.mean(axis=0)  # (num_clips,)
    tests = tuple(mcnemar(first[k], second[k]) for k in range(len(first)))
    return Comparison(
        difference=mean_over_sources(gain, sources, seed=seed),
        tests=tests,
        mcnemar_p_value=combined_p_value([test.p_value for test in tests]),
        p_value=sign_flip_p_value(gain, sources, seed=seed),
    )


def verdict(difference: Estimate, p_value: float, margin: float = MARGIN) -> str:
    """higher, lower, equivalent or inconclusive. p_value: corrected for the number of comparisons."""
    if p_value < ALPHA:
        return "higher" if difference.value > 0 else "lower"
    if -margin < difference.low and difference.high < margin:
        return "equivalent"
    return "inconclusive"


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, each raised so that it bounds the chance of any false alarm among all of them.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    if not p_values:
        return []
    corrected: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return corrected


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
    Raises: ValueError if there are fewer than two sources.
    """
    names, source_of_clip, num_clips = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"an interval over sources needs at least two sources, got {len(names)}: {', '.join(names)}")
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
    """The ends of the percentile interval of a bootstrap that draws whole sources.

    Each resample draws as many sources as there are, with replacement, the same for all totals.
    statistic: takes the drawn totals, (…, num_sources) each, and `axis`, the axis of the sources.
    totals: one or more of (num_sources,), such as the number of clips of each source.
    """
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


def combined_p_value(p_values: Sequence[float]) -> float:
    """One p-value over several seeds: twice the mean of their p-values. A single p-value stays as it is.

    Seeds are tested on the same clips, so their tests depend on each other and their clips must not be pooled. Twice
    the mean is valid under any dependence. Source: Vovk and Wang 2020, Combining p-values via averaging.
    """
    return float(p_values[0]) if len(p_values) == 1 else min(1.0, 2 * float(np.mean(p_values)))


def sign_flip_p_value(
    values: npt.NDArray[np.floating[Any]],
    sources: Sequence[str],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "neither arm is better": how often random signs, one a source, give as large a mean.

    If neither arm is better, all differences of a source might as well have the other sign. The clips of a source may
    depend on each other in any way. With few sources every choice of signs is taken once.
    values: (num_clips,) differences between the arms; sources: the source of each clip.
    """
    _, source_of_clip = np.unique(np.asarray(sources), return_inverse=True)
    totals = np.bincount(source_of_clip, weights=values)  # (num_sources,)
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
