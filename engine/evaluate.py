"""What a model says about every clip of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from diveparse.configs import Precision
from diveparse.datasets.diving48 import ClipRecord
from diveparse.engine.device import autocast
from diveparse.engine.predictions import Predictions
from diveparse.models.classifier import DiveClassifier


@torch.no_grad()
def evaluate(
    model: DiveClassifier,
    batches: Iterable[dict[str, Tensor]],
    records: Sequence[ClipRecord],
    precision: Precision = Precision.FP32,
) -> Predictions:
    """Collect a model's answers; nothing is written, and the model returns to the mode it was in.

    batches: dicts of "clip" (batch, views, time, channel, height, width), "label" and "index" (batch,), where the index
    points into `records`. The features of a clip's views are averaged before the head reads them.
    Each clip counts once, in the order of `batches`, whatever the size of the last batch.
    Raises: ValueError if there are no batches, or a clip's answer is not a number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    indices: list[int] = []
    answers: dict[str, list[Tensor]] = {}
    try:
        for batch in batches:
            clips = batch["clip"].to(device, non_blocking=True)
            with autocast(precision, device):
                features = model.features(rearrange(clips, "b v t c h w -> (b v) t c h w"))
            features = rearrange(features.float(), "(b v) d -> b v d", b=len(clips)).mean(dim=1)
            indices += batch["index"].tolist()
            for name, answer in _answer(model, features).items():
                answers.setdefault(name, []).append(answer.cpu())
            answers.setdefault("labels", []).append(batch["label"])
    finally:
        model.train(was_training)
    if not indices:
        raise ValueError("evaluation needs at least one clip, got none")
    arrays = {name: torch.cat(parts).numpy() for name, parts in answers.items()}
    clips_seen = [records[index] for index in indices]
    _require_finite(arrays["dive_log_probs"], clips_seen)
    return Predictions(
        clips=[record.name for record in clips_seen],
        sources=[record.source for record in clips_seen],
        labels=arrays["labels"],
        dive_log_probs=arrays["dive_log_probs"],
        attribute_log_probs={name.split("/")[1]: array for name, array in arrays.items() if "/" in name},
        named_labels=arrays["named_labels"],
        decoded_labels=arrays["decoded_labels"],
    )


def _answer(model: DiveClassifier, features: Tensor) -> dict[str, Tensor]:
    """Everything that the head says about features (batch, embed_dim), each with a row a clip."""
    head = model.head
    attributes = head.attribute_log_probs(features)
    return {
        "dive_log_probs": head.dive_log_probs(features),  # (batch, num_dives)
        **{f"attribute/{name}": log_probs for name, log_probs in attributes.items()},  # (batch, num_values)
        "named_labels": head.named_labels(features),
        "decoded_labels": head.decode(features),
    }


def _require_finite(dive_log_probs: npt.NDArray[np.float32], clips: list[ClipRecord]) -> None:
    unusable = np.isnan(dive_log_probs).any(axis=1)
    if unusable.any():
        names = [clips[row].name for row in np.flatnonzero(unusable)]
        raise ValueError(f"the model's answer is not a number for {len(names)} clips: {', '.join(names[:10])}")
