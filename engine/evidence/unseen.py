"""Dives that training never saw: how often they are named when every dive may be the answer.

A model that was trained on some dives favours them over those it was not. Calibrated stacking takes a constant from
the scores of all that were seen. How much of the seen dives to give up for it is chosen where other dives were held
out, so that none of the dives that count has a say in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from diveparse.datasets.dives import DiveSet
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.evidence.statistics import CONFIDENCE_LEVEL, NUM_RESAMPLES, Estimate


@dataclass(frozen=True)
class Generalised:
    """Right answers among all dives: of clips of dives that were seen, of the others, and the harmonic mean."""

    seen: Estimate
    unseen: Estimate
    harmonic: Estimate
    unseen_alone: float  # where only the unseen dives may be the answer


def stacked_answers(
    log_probs: npt.NDArray[Any], unseen: npt.NDArray[np.bool_], penalty: float
) -> npt.NDArray[np.int64]:
    """The best dive once `penalty`, in nats, is taken from every one that was seen. unseen: (num_dives,).

    Source: Chao et al., "An empirical study and analysis of generalized zero-shot learning for object recognition in
    the wild", ECCV 2016, equation 3.
    """
    return (log_probs - np.where(unseen, 0.0, penalty)).argmax(axis=1)


def choose_kept_share(
    predictions: Predictions, dive_set: DiveSet, unseen: Sequence[str], ignored: Sequence[str]
) -> float:
    """How much of its accuracy on seen dives a model should keep, for the highest harmonic mean on these clips.

    They are to choose nothing else, such as those of validation. A share says more of another model than nats do:
    the more dives a model was trained on, the further its scores lie apart.
    unseen: the dives that this model's training did not see; ignored: those that are not to be looked at, neither as
    clips nor as answers.
    Raises: ValueError if there are not both clips of seen dives and of unseen ones, or no seen dive is named rightly.
    """
    kept = np.array([number not in ignored for number in dive_set.numbers])
    rows = kept[predictions.labels]
    log_probs = predictions.dive_log_probs[rows][:, kept]
    labels = (np.cumsum(kept) - 1)[predictions.labels[rows]]
    is_unseen = np.array([number in unseen for number in dive_set.numbers])[kept]
    of_unseen = is_unseen[labels]
    if of_unseen.all() or not of_unseen.any():
        raise ValueError("a penalty is chosen on clips of seen and of unseen dives, but only one kind is there")
    penalties = _penalties(log_probs, is_unseen)
    correct = np.stack([stacked_answers(log_probs, is_unseen, penalty) == labels for penalty in penalties])
    seen, of_others = correct[:, ~of_unseen].mean(axis=1), correct[:, of_unseen].mean(axis=1)
    if seen[0] == 0:
        raise ValueError("a share of the accuracy on seen dives cannot be kept where none is named rightly")
    return min(1.0, float(seen[harmonic_mean(seen, of_others).argmax()] / seen[0]))


def penalty_that_keeps(share: float, predictions: Predictions, dive_set: DiveSet, unseen: Sequence[str]) -> float:
    """The highest penalty that leaves this share of the accuracy on clips of seen dives, such as those of validation.

    Clips of unseen dives have no say in it. Raises: ValueError if there are no others.
    """
    is_unseen = np.array([number in unseen for number in dive_set.numbers])
    seen = predictions.at(~is_unseen[predictions.labels])
    if len(seen) == 0:
        raise ValueError(
            "a penalty that keeps a share of the seen dives is chosen on clips of these, and there is none"
        )
    penalties = _penalties(seen.dive_log_probs, is_unseen)
    correct = np.stack([stacked_answers(seen.dive_log_probs, is_unseen, each) == seen.labels for each in penalties])
    accuracy = correct.mean(axis=1)
    return float(penalties[accuracy >= share * accuracy[0]].max())


def _penalties(log_probs: npt.NDArray[Any], unseen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """None, then one for each set of answers that a penalty can lead to: a clip's changes only where its best unseen
    dive overtakes its best seen one."""
    lead = (log_probs[:, ~unseen].max(axis=1) - log_probs[:, unseen].max(axis=1)).astype(np.float64)
    edges = np.unique(np.concatenate([[0.0], lead[lead > 0]]))
    return np.concatenate([[0.0], (edges[:-1] + edges[1:]) / 2, edges[-1:] + 1])


def generalised(
    seeds: Sequence[Predictions], dive_set: DiveSet, unseen: Sequence[str], penalties: Sequence[float]
) -> Generalised:
    """Score an arm whose training did not see some dives, over its seeds, each with its penalty.

    Intervals resample whole sources, as those of `statistics.mean_over_sources`.
    """
    is_unseen = np.array([number in unseen for number in dive_set.numbers])
    labels, of_unseen = seeds[0].labels, is_unseen[seeds[0].labels]
    answers = [
        stacked_answers(each.dive_log_probs, is_unseen, penalty) for each, penalty in zip(seeds, penalties, strict=True)
    ]
    correct = np.mean([answer == labels for answer in answers], axis=0)  # (num_clips,)
    alone = [stacked_answers(each.dive_log_probs, is_unseen, np.inf) == labels for each in seeds]
    _, source_of_clip = np.unique(np.asarray(seeds[0].sources), return_inverse=True)
    totals: list[npt.NDArray[np.float64]] = [  # four of (num_sources,)
        np.bincount(source_of_clip, weights=weights).astype(np.float64)
        for weights in (correct * ~of_unseen, ~of_unseen, correct * of_unseen, of_unseen)
    ]
    return Generalised(
        seen=_over_sources(totals, "seen"),
        unseen=_over_sources(totals, "unseen"),
        harmonic=_over_sources(totals, "harmonic"),
        unseen_alone=float(np.mean([each[of_unseen].mean() for each in alone])),
    )


def harmonic_mean(seen: Any, unseen: Any) -> Any:
    """Of two arrays of accuracies; 0 where either is."""
    total = seen + unseen
    return np.divide(2 * seen * unseen, total, out=np.zeros_like(total), where=total > 0)


def _over_sources(totals: list[npt.NDArray[np.float64]], score: str) -> Estimate:
    """One of the scores of `Generalised`, with the interval of a bootstrap over sources."""
    interval = stats.bootstrap(
        totals,
        partial(_scored, score=score),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE_LEVEL,
        batch=1000,  # bounds the memory to 1000 * num_sources
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(float(_scored(*totals, axis=-1, score=score)), float(interval.low), float(interval.high))


def _scored(right_seen: Any, num_seen: Any, right_unseen: Any, num_unseen: Any, *, axis: int, score: str) -> Any:
    seen = right_seen.sum(axis=axis) / np.maximum(num_seen.sum(axis=axis), 1)
    unseen = right_unseen.sum(axis=axis) / np.maximum(num_unseen.sum(axis=axis), 1)
    return {"seen": seen, "unseen": unseen, "harmonic": harmonic_mean(np.asarray(seen), np.asarray(unseen))}[score]
