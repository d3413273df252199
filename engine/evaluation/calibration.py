"""Temperature scaling: calibrated probabilities, by one number fitted on validation.

The scores of the dives are divided by a temperature: above 1 the model becomes less sure, below 1 surer. The order of
the dives stays. The attributes' probabilities are marginals of the tempered distribution.
Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def split_validation(sources: Sequence[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which validation clips choose the epoch, and which fit the temperature.

    Whole sources, about half the clips each: from the largest source down, each goes where there are fewer clips. A
    model chosen on some clips is surer of them than of others, so that they would fit too low a temperature. Of a
    single source, all clips do both.
    sources: of each clip. Returns: two masks, (num_clips,).
    """
    by_size = sorted(Counter(sources).items(), key=lambda item: (-item[1], item[0]))
    if len(by_size) == 1:
        everything = np.ones(len(sources), bool)
        return everything, everything
    choosing, num_choosing, num_fitting = set(), 0, 0
    for source, num_clips in by_size:
        if num_choosing <= num_fitting:
            choosing.add(source)
            num_choosing += num_clips
        else:
            num_fitting += num_clips
    chooses = np.array([source in choosing for source in sources])
    return chooses, ~chooses


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
