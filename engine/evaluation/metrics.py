"""Every score of a report, computed by one pure function from a model's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diveparse.datasets.dives import ATTRIBUTES, HEIGHTS_M, DiveSet
from diveparse.engine.evaluation.calibration import mean_nll, tempered
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.heads.recombine import INVALID

NUM_CALIBRATION_BINS = 15

# groups of dives: name -> least number of training clips, largest first. Source: Liu et al., "Large-scale long-tailed
# recognition in an open world", CVPR 2019; `unseen`, for dives without training clips, is added
GROUPS = {"many": 101, "medium": 20, "few": 1, "unseen": 0}


def compute_metrics(
    predictions: Predictions, dive_set: DiveSet, num_train_clips: npt.NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Score one split's predictions, which are over `dive_set`.

    num_train_clips: (num_dives,), how many clips of each dive the model was trained on, for `groups`.

    Returns fractions of 1, apart from counts, the nll and the Brier score:
        num_clips: clips scored.
        top1: share of clips whose decoded number is the true one; a number that is no dive of the set is wrong.
        top5: share of clips whose true dive is among the five most probable (ties go to the lower label).
        mean_class_accuracy: mean over the dives that have clips of top1 within each dive.
        num_classes_scored: how many dives have clips.
        attribute_accuracy: for each attribute, share of clips where its most probable value is the true one.
        invalid_rate: share of clips where the four own argmaxes of the head spell no dive of the set, before decoding.
        nll: mean of -log p(true dive), in nats.
        brier: mean squared distance of the distribution over dives from the truth, between 0 and 2.
        ece: expected calibration error of the most probable dive, see `calibration_error`.
        aurc: area under the risk-coverage curve, see `area_under_risk_coverage`.
        somersault_error, twist_error: mean distance of the most probable count from the true one, in half turns.
        difficulty_error: see `difficulty_error`.
        groups: for each of GROUPS the accuracy on clips of its dives (None where it has no clips), and the numbers of
            clips and dives. Empty without `num_train_clips`.
        by_training: the same of the dives that had a training clip, and of those that had none.
        wrong_attributes: see `wrong_attributes`.
        attribute_confusions: for each attribute the counts of clips by true value (rows) and most probable value.
    Raises: ValueError if there are no clips, or an attribute has other values than in `dive_set`.
    """
    if len(predictions) == 0:
        raise ValueError("metrics need at least one clip, got none")
    labels, log_probs = predictions.labels, predictions.dive_log_probs
    most_probable = np.argsort(-log_probs, axis=1, kind="stable")[:, :5]  # (num_clips, 5)
    correct = predictions.decoded_labels == labels
    class_accuracy = per_class_accuracy(labels, correct, len(dive_set))
    return {
        "num_clips": len(predictions),
        "top1": float(correct.mean()),
        "top5": float((most_probable == labels[:, None]).any(axis=1).mean()),
        "mean_class_accuracy": float(np.nanmean(class_accuracy)),
        "num_classes_scored": int((~np.isnan(class_accuracy)).sum()),
        "attribute_accuracy": attribute_accuracy(predictions, dive_set),
        "invalid_rate": float((predictions.spelt_labels == INVALID).mean()),
        "nll": mean_nll(log_probs, labels),
        "brier": brier_score(log_probs, labels),
        "ece": calibration_error(np.exp(log_probs.max(axis=1)), most_probable[:, 0] == labels),
        "aurc": area_under_risk_coverage(np.exp(log_probs.max(axis=1)), correct),
        **count_errors(predictions, dive_set),
        "difficulty_error": difficulty_error(predictions, dive_set),
        "groups": {} if num_train_clips is None else group_accuracy(labels, correct, num_train_clips),
        "by_training": {} if num_train_clips is None else accuracy_by_training(labels, correct, num_train_clips),
        "wrong_attributes": wrong_attributes(predictions, dive_set),
        "attribute_confusions": {
            attribute: confusion_matrix(truth, answers, len(dive_set.values[attribute])).tolist()
            for attribute, (truth, answers) in attribute_answers(predictions, dive_set).items()
        },
    }


def group_of(num_train_clips: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    """The name of the group of GROUPS that each dive falls into. num_train_clips: (num_dives,)."""
    names, least = list(GROUPS), np.array(list(GROUPS.values()))
    return np.array(names)[(num_train_clips[:, None] >= least).argmax(axis=1)]


def group_accuracy(
    labels: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_], num_train_clips: npt.NDArray[np.int64]
) -> dict[str, dict[str, float | int | None]]:
    """The `groups` of `compute_metrics`. labels, correct: (num_clips,); num_train_clips: (num_dives,)."""
    return _accuracy_of(list(GROUPS), group_of(num_train_clips), labels, correct)


def accuracy_by_training(
    labels: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_], num_train_clips: npt.NDArray[np.int64]
) -> dict[str, dict[str, float | int | None]]:
    """The `by_training` of `compute_metrics`. labels, correct: (num_clips,); num_train_clips: (num_dives,)."""
    groups = np.where(num_train_clips > 0, "trained", "untrained")
    return _accuracy_of(["trained", "untrained"], groups, labels, correct)


def _accuracy_of(
    names: Sequence[str],
    groups: npt.NDArray[np.str_],
    labels: npt.NDArray[np.int64],
    correct: npt.NDArray[np.bool_],
) -> dict[str, dict[str, float | int | None]]:
    """For each name the accuracy on clips of its dives. groups: (num_dives,) names."""
    scores: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        rows = groups[labels] == name
        accuracy = float(correct[rows].mean()) if rows.any() else None
        num_dives = len(np.unique(labels[rows]))
        scores[name] = {"accuracy": accuracy, "num_clips": int(rows.sum()), "num_classes": num_dives}
    return scores


def brier_score(log_probs: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]) -> float:
    """Source: Brier 1950, "Verification of forecasts expressed in terms of probability"."""
    errors = np.exp(log_probs.astype(np.float64))
    errors[np.arange(len(labels)), labels] -= 1
    return float(np.square(errors).sum(axis=1).mean())


def area_under_risk_coverage(confidence: npt.NDArray[np.floating[Any]], correct: npt.NDArray[np.bool_]) -> float:
    """Mean share of wrong answers among the k surest clips, over all k: 0 is best. Ties keep the order of the clips.

    Source: Geifman, Uziel and El-Yaniv 2019, "Bias-reduced uncertainty estimation for deep neural classifiers", AURC.
    """
    wrong = ~correct[np.argsort(-confidence, kind="stable")]
    return float((wrong.cumsum() / np.arange(1, len(wrong) + 1)).mean())


def count_errors(predictions: Predictions, dive_set: DiveSet) -> dict[str, float]:
    """The `somersault_error` and `twist_error` of `compute_metrics`."""
    answers = attribute_answers(predictions, dive_set)
    errors = {}
    for attribute in ("somersault", "twist"):
        truth, answer = (np.array(dive_set.values[attribute])[slots] for slots in answers[attribute])
        errors[f"{attribute}_error"] = float(np.abs(answer - truth).mean())
    return errors


def difficulty_error(predictions: Predictions, dive_set: DiveSet) -> float | None:
    """Mean distance of the named dive's degree of difficulty from the true dive's, over the heights that give both.

    Clips whose answer is no dive, or has no height in common with the true one, are left out; None where all are.
    """
    given = [[dive.difficulty(height_m) for height_m in HEIGHTS_M] for dive in dive_set]
    degrees = np.array(given, dtype=np.float64)  # (num_dives, num_heights), nan where the tables have none
    rows = predictions.decoded_labels != INVALID
    distances = np.abs(degrees[predictions.decoded_labels[rows]] - degrees[predictions.labels[rows]])
    known = distances[~np.isnan(distances).all(axis=1)]
    return float(np.nanmean(known, axis=1).mean()) if len(known) else None


def wrong_attributes(predictions: Predictions, dive_set: DiveSet) -> dict[str, float | None]:
    """Which attributes of wrongly named dives are wrong.

    Returns, as shares of the clips that are given a wrong dive (None where there are no such clips): for each attribute
    those with a wrong value, and for "1" to "4" those with so many wrong values at once. Clips whose answer is no dive
    are left out.
    """
    rows = (predictions.decoded_labels != predictions.labels) & (predictions.decoded_labels != INVALID)
    slots = np.array([dive_set.slots()[attribute] for attribute in ATTRIBUTES])  # (num_attributes, num_dives)
    wrong = slots[:, predictions.labels[rows]] != slots[:, predictions.decoded_labels[rows]]
    at_once = wrong.sum(axis=0)
    shares = {attribute: wrong[k] for k, attribute in enumerate(ATTRIBUTES)}
    shares |= {str(number): at_once == number for number in range(1, len(ATTRIBUTES) + 1)}
    return {name: float(share.mean()) if rows.any() else None for name, share in shares.items()}


def reliability(
    log_probs: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64], num_bins: int = NUM_CALIBRATION_BINS
) -> dict[str, npt.NDArray[np.float64]]:
    """The bins of `calibration_error`. Returns: num_clips, confidence and accuracy of each bin, nan where empty."""
    confidence, correct = np.exp(log_probs.max(axis=1)), log_probs.argmax(axis=1) == labels
    bins = calibration_bins(confidence, num_bins)
    num_clips = np.bincount(bins, minlength=num_bins).astype(np.float64)
    means = {
        name: np.divide(
            np.bincount(bins, weights=values, minlength=num_bins),
            num_clips,
            out=np.full(num_bins, np.nan),
            where=num_clips > 0,
        )
        for name, values in (("confidence", confidence), ("accuracy", correct))
    }
    return {"num_clips": num_clips, **means}


def calibrated_metrics(predictions: Predictions, temperature: float) -> dict[str, float]:
    """nll_calibrated and ece_calibrated: the nll and ece of `compute_metrics` at the model's temperature.

    The temperature was fitted on validation clips, so only other clips can judge it.
    """
    log_probs, labels = tempered(predictions.dive_log_probs, temperature), predictions.labels
    return {
        "nll_calibrated": mean_nll(log_probs, labels),
        "ece_calibrated": calibration_error(np.exp(log_probs.max(axis=1)), log_probs.argmax(axis=1) == labels),
    }


def per_class_accuracy(
    labels: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_], num_classes: int
) -> npt.NDArray[np.float64]:
    """Share of correct clips within each class. Returns: (num_classes,), nan where a class has no clips."""
    num_clips = np.bincount(labels, minlength=num_classes)
    num_correct = np.bincount(labels, weights=correct, minlength=num_classes)
    return np.divide(num_correct, num_clips, out=np.full(num_classes, np.nan), where=num_clips > 0)


def attribute_accuracy(predictions: Predictions, dive_set: DiveSet) -> dict[str, float]:
    """Share of clips where each attribute's most probable value is the true one."""
    answers = attribute_answers(predictions, dive_set)
    return {attribute: float((answer == truth).mean()) for attribute, (truth, answer) in answers.items()}


def attribute_answers(
    predictions: Predictions, dive_set: DiveSet
) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """For each attribute the true and the most probable value of every clip, as indices into `dive_set.values`."""
    slots = dive_set.slots()
    answers = {}
    for attribute in ATTRIBUTES:
        log_probs = predictions.attribute_log_probs[attribute]  # (num_clips, num_values)
        num_values = len(dive_set.values[attribute])
        if log_probs.shape[1] != num_values:
            raise ValueError(f"{attribute} has {num_values} values in {dive_set.name}, got {log_probs.shape[1]}")
        answers[attribute] = (np.asarray(slots[attribute])[predictions.labels], log_probs.argmax(axis=1))
    return answers


def calibration_error(
    confidence: npt.NDArray[np.floating[Any]], correct: npt.NDArray[np.bool_], num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Expected calibration error: mean |accuracy - confidence| of equal-width bins, weighted by their clips.

    Bin k of `num_bins` holds the confidences in (k / num_bins, (k + 1) / num_bins]; empty bins weigh nothing.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
    """
    bins = calibration_bins(confidence, num_bins)
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_bins(confidence: npt.NDArray[np.floating[Any]], num_bins: int) -> npt.NDArray[np.int64]:
    """The bin of each confidence, as `calibration_error` describes them."""
    # only inner edges, so that a confidence rounded to just above 1 stays in the last bin
    return np.digitize(confidence, np.linspace(0, 1, num_bins + 1)[1:-1], right=True)


def confusion_matrix(
    labels: npt.NDArray[np.int64], predicted_labels: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.int64]:
    """Count the clips of each true class (rows) by the class they were given (columns); invalid answers are left out.

    Returns: (num_classes, num_classes); a row sums to the class's clips less its invalid answers.
    """
    valid = predicted_labels != INVALID
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (labels[valid], predicted_labels[valid]), 1)
    return matrix
