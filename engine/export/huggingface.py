"""A trained model as a folder for `transformers`, or in this project's own format where it cannot be one."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from diveparse.configs import HeadKind, Pooling
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.storage.atomic import write_text
from diveparse.engine.export.card import model_card
from diveparse.heads.fold import folded
from diveparse.models.classifier import DiveClassifier
from diveparse.models.weights.huggingface import SavedClassifier

CARD_FILE = "README.md"  # what the hub shows of a model

logger = logging.getLogger(__name__)


def export_huggingface(model: DiveClassifier, dive_set: DiveSet, folder: Path, run: Path) -> bool:
    """Write a model and its card. Returns: whether `transformers` can load it without code of this project.

    A TimeSformer with patches for a stem and a head on the class token becomes a `TimesformerForVideoClassification`,
    whatever the head: its last layer has a row for each dive of the set, with penalty and temperature in it. Any other
    model is written as `DiveClassifier.save` does, with a line in the log that says why.
    run: where the model comes from; what its files record goes into the card.
    Raises: ValueError if the model would be in the own format, but with other dives than its own.
    """
    reasons = reasons_not_to_fold(model)
    if reasons and dive_set != model.dive_set:
        raise ValueError(
            f"{run}: only a model in the format of transformers takes other dives, and this one cannot be in it: "
            f"{'; '.join(reasons)}; export it without --dives, and give --dives to diveparse predict"
        )
    write_text(folder / CARD_FILE, model_card(model, dive_set, run, reasons=reasons))
    if reasons:
        logger.info("exported in the format of diveparse, since transformers has none for it: %s", "; ".join(reasons))
        model.save(folder)
        return False
    if model.config.head.kind is HeadKind.INDEPENDENT:
        logger.info("the exported model names the best dive that exists, also where four independent heads spell none")
    layer = folded(model.head, model.backbone.embed_dim, dive_set, model.temperature)
    is_trained = torch.tensor([dive in model.trained_dives for dive in dive_set])
    layer.bias.data -= model.unseen_penalty / model.temperature * is_trained
    model.backbone.save_in_transformers(folder, SavedClassifier(layer.weight, layer.bias, dive_set.numbers))
    return True


def reasons_not_to_fold(model: DiveClassifier) -> list[str]:
    """What of a model no classifier of `transformers` computes; nothing where it can be one."""
    reasons = filter(None, [model.backbone.why_not_in_transformers()])
    if (pooling := model.config.head.pooling) is Pooling.CLASS_TOKEN:
        return list(reasons)
    return [*reasons, f"head.pooling={pooling.value}, and the format has {Pooling.CLASS_TOKEN.value} alone"]
