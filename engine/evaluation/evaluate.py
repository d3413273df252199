"""A model's answers about every clip of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diveparse.configs import Precision
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.engine.device import autocast
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.heads.recombine import INVALID
from diveparse.heads.scores import DiveScores
from diveparse.models.classifier import DiveClassifier


@torch.no_grad()
def evaluate(
    model: DiveClassifier,
    batches: Iterable[dict[str, Tensor]],
    records: Sequence[ClipRecord],
    precision: Precision = Precision.FP32,
    dive_set: DiveSet | None = None,
) -> Predictions:
    """Collect a model's answers, with its penalty and without its temperature.

    Nothing is written, and the model returns to the mode it was in.

    batches: dicts of "inputs" (batch, views, ...), clips or their frozen tokens, and "index" (batch,), which points
    into `records`. The features of a clip's views are averaged before the head reads them. Each clip counts once, in
    the order of `batches`, whatever the size of the last batch.
    dive_set: what the labels count in and the answers range over, by default the model's own; a dive of it that the
    model cannot express has probability 0, and so has an attribute value that only such dives have.
    Raises: ValueError if there are no batches, or a clip's answer is not a number.
    """
    dive_set = dive_set or model.dive_set
    known = model.head.expressible(dive_set)
    was_training = model.training
    model.eval()
    indices: list[int] = []
    answers: list[_Answers] = []
    try:
        for batch in batches:
            indices += batch["index"].tolist()
            answers.append(_answers(model.penalised(_scores(model, batch["inputs"], precision)), known))
    finally:
        model.train(was_training)
    if not indices:
        raise ValueError("evaluation needs at least one clip, got none")
    clips_seen = [records[index] for index in indices]
    columns = np.array([dive_set.label_of(dive) for dive in known])
    dive_log_probs = np.full((len(indices), len(dive_set)), -np.inf, np.float32)
    dive_log_probs[:, columns] = _joined(each.dive_log_probs for each in answers)
    _require_finite(dive_log_probs, clips_seen)
    spelt, decoded = (_joined(getattr(each, name) for each in answers) for name in ("spelt", "decoded"))
    return Predictions(
        clips=[record.name for record in clips_seen],
        sources=[record.source for record in clips_seen],
        labels=np.array([record.label for record in clips_seen]),
        dive_log_probs=dive_log_probs,
        attribute_log_probs={
            name: _over_values(_joined(each.marginals[name] for each in answers), known, dive_set, name)
            for name in ATTRIBUTES
        },
        spelt_labels=np.where(spelt == INVALID, INVALID, columns[spelt]),
        decoded_labels=np.where(decoded == INVALID, INVALID, columns[decoded]),
    )


@dataclass(frozen=True)
class _Answers:
    """The answers for one batch, over the dives that the model can express."""

    dive_log_probs: Tensor  # (batch, num_dives)
    marginals: dict[str, Tensor]  # attribute -> (batch, num_values)
    spelt: Tensor  # (batch,)
    decoded: Tensor  # (batch,)


def _answers(scores: DiveScores, known: DiveSet) -> _Answers:
    return _Answers(scores.log_probs(known), scores.marginals(known), scores.spelt(known), scores.argmax(known))


def _scores(model: DiveClassifier, inputs: Tensor, precision: Precision) -> DiveScores:
    """inputs: (batch, views, ...), on any device."""
    device = next(model.parameters()).device
    with autocast(precision, device):
        scores: DiveScores = model(inputs.flatten(0, 1).to(device, non_blocking=True), num_views=inputs.shape[1])
        return scores


def _joined(batches: Iterable[Tensor]) -> npt.NDArray[Any]:
    """One array of a row a clip."""
    return torch.cat(list(batches)).cpu().numpy()


def _over_values(
    marginals: npt.NDArray[np.float32], known: DiveSet, dive_set: DiveSet, attribute: str
) -> npt.NDArray[np.float32]:
    """Marginals over the values of the whole set; a value that no known dive has gets probability 0.

    marginals: (num_clips, values of `known`). Returns: (num_clips, values of `dive_set`).
    """
    values = dive_set.values[attribute]
    whole = np.full((len(marginals), len(values)), -np.inf, np.float32)
    whole[:, [values.index(value) for value in known.values[attribute]]] = marginals
    return whole


def _require_finite(dive_log_probs: npt.NDArray[np.float32], clips: list[ClipRecord]) -> None:
    unusable = np.isnan(dive_log_probs).any(axis=1)
    if unusable.any():
        names = [clips[row].name for row in np.flatnonzero(unusable)]
        raise ValueError(f"the model's answer is not a number for {len(names)} clips: {', '.join(names[:10])}")
