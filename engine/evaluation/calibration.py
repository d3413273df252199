"""Temperature scaling: one number, fitted on validation, that makes a model's probabilities match its accuracy.

The model's log-probabilities are divided by a temperature and normalised again: a temperature above 1 lowers the
confidence, one below 1 raises it. The order within each distribution stays, so the most probable dive and attribute
values stay too. Each distribution has a temperature of its own, so tempered attributes are no longer sums over the
tempered dives.
Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.models.classifier import DIVE

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def fit_temperatures(predictions: Predictions, dive_set: DiveSet) -> dict[str, float]:
    """The temperatures of the dives and of each attribute, keyed as in `DiveClassifier.temperatures`.

    predictions: of validation clips, over `dive_set`; the model must not have been trained on them.
    """
    slots = dive_set.slots()
    targets = {attribute: np.asarray(slots[attribute])[predictions.labels] for attribute in ATTRIBUTES}
    return {DIVE: fit_temperature(predictions.dive_log_probs, predictions.labels)} | {
        attribute: fit_temperature(predictions.attribute_log_probs[attribute], targets[attribute])
        for attribute in ATTRIBUTES
    }


def fit_temperature(log_probs: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> float:
    """The temperature at which the truth is most likely: it minimises `mean_nll`, which has at most one minimum.

    It is 1.0 where that is no worse, and where the truth is the most probable answer for every clip: without a wrong
    answer the clips do not determine a temperature.
    log_probs: (num_clips, num_answers); targets: (num_clips,) indices of the true answers.
    """
    of_truth = np.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
    if (of_truth == log_probs.max(axis=1)).all():
        return 1.0
    fitted = minimize_scalar(
        lambda log_temperature: mean_nll(tempered(log_probs, math.exp(log_temperature)), targets),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
    )
    return math.exp(fitted.x) if fitted.fun < mean_nll(tempered(log_probs, 1.0), targets) else 1.0


def tempered(log_probs: npt.NDArray[np.floating], temperature: float) -> npt.NDArray[np.float64]:
    """log_probs, result: (num_clips, num_answers); every row's exp sums to 1."""
    return log_softmax(log_probs.astype(np.float64) / temperature, axis=1)


def mean_nll(log_probs: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> float:
    """Mean of -log p(truth), in nats."""
    return float(-np.take_along_axis(log_probs, targets[:, None], axis=1).mean(dtype=np.float64))
