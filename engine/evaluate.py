"""What a model says about every clip of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from diveparse.configs import Precision
from diveparse.datasets.dives import ATTRIBUTES
from diveparse.datasets.diving48 import ClipRecord
from diveparse.engine.device import autocast
from diveparse.engine.predictions import Predictions
from diveparse.models.classifier import ClassifierOutputs, DiveClassifier


@torch.no_grad()
def evaluate(
    model: DiveClassifier,
    batches: Iterable[dict[str, Tensor]],
    records: Sequence[ClipRecord],
    precision: Precision = Precision.FP32,
) -> Predictions:
    """Collect a model's answers; nothing is written, and the model returns to the mode it was in.

    batches: dicts of "clip" (batch, views, time, channel, height, width) and "index" (batch,), which points into
    `records`. The features of a clip's views are averaged before the head reads them.
    Each clip counts once, in the order of `batches`, whatever the size of the last batch.
    Raises: ValueError if there are no batches, or a clip's answer is not a number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    indices: list[int] = []
    answers: list[ClassifierOutputs] = []
    try:
        for batch in batches:
            clips = batch["clip"].to(device, non_blocking=True)
            with autocast(precision, device):
                features = model.features(rearrange(clips, "b v t c h w -> (b v) t c h w"))
            features = rearrange(features.float(), "(b v) d -> b v d", b=len(clips)).mean(dim=1)
            indices += batch["index"].tolist()
            answers.append(model.read_out(features))
    finally:
        model.train(was_training)
    if not indices:
        raise ValueError("evaluation needs at least one clip, got none")
    clips_seen = [records[index] for index in indices]
    dive_log_probs = _joined(each.dive_log_probs for each in answers)
    _require_finite(dive_log_probs, clips_seen)
    return Predictions(
        clips=[record.name for record in clips_seen],
        sources=[record.source for record in clips_seen],
        labels=np.array([record.label for record in clips_seen]),
        dive_log_probs=dive_log_probs,
        attribute_log_probs={name: _joined(each.attribute_log_probs[name] for each in answers) for name in ATTRIBUTES},
        named_labels=_joined(each.named_labels for each in answers),
        decoded_labels=_joined(each.decoded_labels for each in answers),
    )


def _joined(batches: Iterable[Tensor]) -> npt.NDArray[Any]:
    """One array of a row a clip."""
    return torch.cat(list(batches)).cpu().numpy()


def _require_finite(dive_log_probs: npt.NDArray[np.float32], clips: list[ClipRecord]) -> None:
    unusable = np.isnan(dive_log_probs).any(axis=1)
    if unusable.any():
        names = [clips[row].name for row in np.flatnonzero(unusable)]
        raise ValueError(f"the model's answer is not a number for {len(names)} clips: {', '.join(names[:10])}")
