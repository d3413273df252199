"""Dives that training never saw: how often they are named when every dive may be the answer.

A model favours the dives that it was trained on. Calibrated stacking subtracts a constant, the penalty, from the scores
of all dives that were seen. A higher penalty names more unseen dives and fewer seen ones. The share of accuracy on seen
dives to keep is chosen where other dives were held out, so that the dives of the final score take no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diveparse.datasets.dives import DiveSet
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.evaluation.stacking import penalties_to_try, stacked_answers
from diveparse.engine.evidence.statistics import Estimate, interval_over_sources


@dataclass(frozen=True)
class Generalised:
    """Accuracy among all dives, on clips of seen dives, on clips of unseen dives, and the harmonic mean of both."""

    seen: Estimate
    unseen: Estimate
    harmonic: Estimate
    unseen_alone: float  # accuracy on clips of unseen dives where only the unseen dives may be the answer


def choose_kept_share(
    predictions: Predictions, dive_set: DiveSet, unseen: Sequence[str], ignored: Sequence[str]
) -> float:
    """The share of its accuracy on seen dives that a model should keep, for the highest harmonic mean on these clips.

    The clips are to choose nothing else, such as validation clips. A share transfers to another model better than nats:
    the more dives a model was trained on, the further its scores lie apart.
    unseen: dives that this model's training did not see; ignored: dives that are left out, as clips and as answers.
    Raises: ValueError if the clips are not of both seen and unseen dives, or no seen dive is named rightly.
    """
    kept = np.array([number not in ignored for number in dive_set.numbers])
    rows = kept[predictions.labels]
    log_probs = predictions.dive_log_probs[rows][:, kept]
    labels = (np.cumsum(kept) - 1)[predictions.labels[rows]]
    is_unseen = np.array([number in unseen for number in dive_set.numbers])[kept]
    of_unseen = is_unseen[labels]
    if of_unseen.all() or not of_unseen.any():
        raise ValueError("a share to keep is chosen on clips of both seen and unseen dives, got only one kind")
    penalties = penalties_to_try(log_probs, is_unseen)
    correct = np.stack([stacked_answers(log_probs, is_unseen, penalty) == labels for penalty in penalties])
    seen, of_others = correct[:, ~of_unseen].mean(axis=1), correct[:, of_unseen].mean(axis=1)
    if seen[0] == 0:
        raise ValueError("no clip of a seen dive is named rightly, so there is no accuracy to keep a share of")
    return min(1.0, float(seen[harmonic_mean(seen, of_others).argmax()] / seen[0]))


def generalised(
    seeds: Sequence[Predictions], dive_set: DiveSet, unseen: Sequence[str], penalties: Sequence[float]
) -> Generalised:
    """Score an arm whose training did not see some dives. seeds: its predictions; penalties: one a seed, in nats.

    Intervals hold these models fixed and resample whole sources, see `statistics.interval_over_sources`.
    """
    is_unseen = np.array([number in unseen for number in dive_set.numbers])
    labels, of_unseen = seeds[0].labels, is_unseen[seeds[0].labels]
    answers = [
        stacked_answers(each.dive_log_probs, is_unseen, penalty) for each, penalty in zip(seeds, penalties, strict=True)
    ]
    correct = np.mean([answer == labels for answer in answers], axis=0)  # (num_clips,)
    alone = [stacked_answers(each.dive_log_probs, is_unseen, np.inf) == labels for each in seeds]
    _, source_of_clip = np.unique(np.asarray(seeds[0].sources), return_inverse=True)
    totals = [  # four of (num_sources,): right and all clips of seen dives, right and all clips of unseen dives
        np.bincount(source_of_clip, weights=weights)
        for weights in (correct * ~of_unseen, ~of_unseen, correct * of_unseen, of_unseen)
    ]
    return Generalised(
        seen=_over_sources(totals[:2], _share),
        unseen=_over_sources(totals[2:], _share),
        harmonic=_over_sources(totals, _harmonic_mean_of_shares),
        unseen_alone=float(np.mean([each[of_unseen].mean() for each in alone])),
    )


def area_under_curve(predictions: Predictions, dive_set: DiveSet, unseen: Sequence[str]) -> float:
    """The area under the accuracy on seen dives over that on unseen ones, for penalties from minus to plus infinity.

    A clip is named as a seen dive where the penalty is below the lead of its best seen dive over its best unseen one.
    Source: Chao et al., ECCV 2016, section 4, "AUSUC".
    """
    is_unseen = np.array([number in unseen for number in dive_set.numbers])
    log_probs, labels, of_unseen = predictions.dive_log_probs, predictions.labels, is_unseen[predictions.labels]
    of_best_seen, of_best_unseen = (
        stacked_answers(log_probs, free, np.inf) == labels for free in (~is_unseen, is_unseen)
    )
    lead = log_probs[:, ~is_unseen].max(axis=1) - log_probs[:, is_unseen].max(axis=1)
    edges = np.concatenate([np.unique(lead), [np.inf]])  # between two of them nothing changes
    seen = (of_best_seen[~of_unseen] & (lead[~of_unseen] >= edges[:, None])).mean(axis=1)
    unseen_named = (of_best_unseen[of_unseen] & (lead[of_unseen] < edges[:, None])).mean(axis=1)
    return float(np.trapezoid(seen, unseen_named))


def harmonic_mean(seen: Any, unseen: Any) -> Any:
    """The harmonic mean of two arrays of accuracies; 0 where either is 0."""
    total = seen + unseen
    return np.divide(2 * seen * unseen, total, out=np.zeros_like(total), where=total > 0)


def _over_sources(totals: Sequence[npt.NDArray[Any]], statistic: Callable[..., Any]) -> Estimate:
    low, high = interval_over_sources(statistic, totals)
    return Estimate(float(statistic(*totals, axis=-1)), low, high)


def _share(num_right: Any, num_clips: Any, axis: int) -> Any:
    return num_right.sum(axis=axis) / np.maximum(num_clips.sum(axis=axis), 1)


def _harmonic_mean_of_shares(right_seen: Any, num_seen: Any, right_unseen: Any, num_unseen: Any, axis: int) -> Any:
    shares = (_share(right_seen, num_seen, axis), _share(right_unseen, num_unseen, axis))
    return harmonic_mean(*(np.asarray(share) for share in shares))
