"""Calibrated stacking: dives that training saw no clip of get a fair chance against those that it saw.

A model favours the dives that it was trained on. A constant, the penalty, is subtracted from the scores of all of them.
Which penalty is right needs clips of dives that training did not see, and validation has none. So a model takes the
highest penalty that keeps a share of its accuracy on validation clips, and the share comes from other models.
Source: Chao et al., "An empirical study and analysis of generalized zero-shot learning for object recognition in the
wild", ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diveparse.datasets.dives import DiveSet
from diveparse.engine.evaluation.predictions import Predictions

# The share of its accuracy that a model keeps by default: the mean of the shares that the draws of the experiment
# `unseen` choose for each other, on validation clips ("share to keep" on its page).
KEPT_SHARE = 0.905


def stacked_answers(
    log_probs: npt.NDArray[Any], unseen: npt.NDArray[np.bool_], penalty: float
) -> npt.NDArray[np.int64]:
    """The best dive once `penalty`, in nats, is subtracted from every seen dive.

    log_probs: (num_clips, num_dives); unseen: (num_dives,). Returns: (num_clips,) labels.

    Source: Chao et al., equation 3.
    """
    return (log_probs - np.where(unseen, 0.0, penalty)).argmax(axis=1)


def default_penalty(predictions: Predictions, dive_set: DiveSet, unseen: Sequence[str]) -> float:
    """The highest penalty that keeps KEPT_SHARE of the accuracy on clips of seen dives; 0 where there is none to keep.

    predictions: without any penalty, for validation clips; unseen: numbers of the dives without a training clip.
    """
    is_unseen = np.array([number in unseen for number in dive_set.numbers])
    seen = predictions.at(~is_unseen[predictions.labels])
    is_right = stacked_answers(seen.dive_log_probs, is_unseen, 0.0) == seen.labels
    return penalty_that_keeps(KEPT_SHARE, seen, dive_set, unseen) if is_right.any() else 0.0


def penalty_that_keeps(share: float, predictions: Predictions, dive_set: DiveSet, unseen: Sequence[str]) -> float:
    """The highest penalty that keeps this share of the accuracy on clips of seen dives, such as validation clips.

    Clips of unseen dives are not used. Raises: ValueError if there are no clips of seen dives.
    """
    is_unseen = np.array([number in unseen for number in dive_set.numbers])
    seen = predictions.at(~is_unseen[predictions.labels])
    if len(seen) == 0:
        raise ValueError("a penalty is chosen on clips of seen dives, got none")
    penalties = penalties_to_try(seen.dive_log_probs, is_unseen)
    correct = np.stack([stacked_answers(seen.dive_log_probs, is_unseen, each) == seen.labels for each in penalties])
    accuracy = correct.mean(axis=1)
    return float(penalties[accuracy >= share * accuracy[0]].max())


def penalties_to_try(log_probs: npt.NDArray[Any], unseen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """No penalty, then one for each set of answers that a penalty can lead to.

    The answer to a clip changes only where its best unseen dive overtakes its best seen one.
    """
    lead = (log_probs[:, ~unseen].max(axis=1) - log_probs[:, unseen].max(axis=1)).astype(np.float64)
    edges = np.unique(np.concatenate([[0.0], lead[lead > 0]]))
    return np.concatenate([[0.0], (edges[:-1] + edges[1:]) / 2, edges[-1:] + 1])
