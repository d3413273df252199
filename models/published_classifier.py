"""Published video classifiers of `transformers` whose labels are dives, as flat models.

The encoder is that of `models/transformers_encoder.py`. The pooling and the last layer are the classifier's own, with
the rows of the layer in the order of this project's dives. Clips are made by the classifier's own processor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING, PreTrainedConfig

from diveparse.configs import BackboneConfig, BackboneKind, HeadConfig, HeadKind, Pooling
from diveparse.datasets.dive_labels import dives_of_labels, in_known_order
from diveparse.datasets.dives import DiveSet
from diveparse.heads import Head, build_head
from diveparse.heads.pooling import MeanOfPatches
from diveparse.models.backbone import ClipFormat
from diveparse.models.build_encoder import load_model
from diveparse.models.frame_processor import FrameProcessor, load_processor
from diveparse.models.transformers_encoder import ENCODERS, UNUSED, TransformersEncoder
from diveparse.models.weights.encoders import SavedEncoder, read_encoder, weights_folder
from diveparse.models.weights.sources import load_state

SOFTMAX = (None, "single_label_classification")  # values of problem_type for which one dive is the answer


@dataclass(frozen=True)
class PublishedClassifier:
    """The parts of a `DiveClassifier`. pooling: None for the class token."""

    backbone: TransformersEncoder
    pooling: nn.Module | None
    head: Head
    processor: FrameProcessor


class PoolingOfVideoPrism(nn.Module):
    """The query and the norm of a `VideoPrismForVideoClassification`."""

    def __init__(self, head: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.head, self.norm = head, norm

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, tokens, embed_dim). Returns: (batch, 1, embed_dim)."""
        features: Tensor = self.norm(self.head(tokens)[0])
        return features


def load_published(source: str) -> PublishedClassifier:
    """A published classifier, of a folder or of OWNER/NAME on the hub.

    Raises: ValueError naming the source if there is none, its labels are no dives, it lacks a processor or weights, or
    it is none that this project can run.
    """
    saved, folder = read_encoder(source)
    dive_set, rows = _dives_of(saved)
    processor = load_processor(saved, folder)
    saved = replace(saved, pixels=processor.pixels)
    clip_format = ClipFormat(saved.num_frames, saved.image_size)
    model_class: Any = MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING[type(saved.config)]
    unused = [f"{model_class.base_model_prefix}.{name}" for name in UNUSED]
    whole: Any = load_model(model_class, saved, weights_folder(source, folder), clip_format, unused=unused)
    kind, pooling = _pooling_of(whole, source)
    cfg = BackboneConfig(kind=BackboneKind.TRANSFORMERS, weights=source)
    backbone = ENCODERS[saved.config.model_type](saved, cfg, whole.base_model, clip_format)
    head = build_head(HeadConfig(kind=HeadKind.FLAT, pooling=kind), backbone.embed_dim, dive_set)
    layer = whole.classifier
    load_state(head, {"linear.weight": layer.weight[rows], "linear.bias": layer.bias[rows]}, source)
    return PublishedClassifier(backbone, pooling, head, processor)


def _dives_of(saved: SavedEncoder) -> tuple[DiveSet, list[int]]:
    """The dives that a classifier answers with, in this project's order, and the place of each among its labels.

    Raises: ValueError if its labels are no dives, or it does not choose one of them.
    """
    config: PreTrainedConfig = saved.config
    if config.problem_type not in SOFTMAX:
        raise ValueError(f"{saved.origin}: expected a classifier that chooses one label, got {config.problem_type}")
    labels: dict[Any, str] = dict(config.id2label or {})
    if sorted(labels) != list(range(len(labels))):
        raise ValueError(f"{saved.origin}: id2label must name the classes 0 to {len(labels) - 1}, got {sorted(labels)}")
    labelled = dives_of_labels([str(labels[place]) for place in range(len(labels))], saved.origin)
    dive_set = in_known_order(labelled)
    return dive_set, [labelled.label_of(dive) for dive in dive_set]


def _pooling_of(whole: Any, origin: str) -> tuple[Pooling, nn.Module | None]:
    """How a classifier makes one feature of its tokens, in the words of `head.pooling`; None for the class token.

    Raises: ValueError for a VideoMAE that reads one patch.
    """
    if whole.config.model_type == "vjepa2":
        return Pooling.QUERIES, whole.pooler
    if whole.config.model_type == "videoprism_vision_model":
        return Pooling.QUERIES, PoolingOfVideoPrism(whole.head, whole.head_layernorm)
    if whole.config.model_type == "videomae":
        if whole.fc_norm is None:
            raise ValueError(f"{origin}: use_mean_pooling=false, a VideoMAE that answers by one patch, is not read")
        return Pooling.MEAN, nn.Sequential(MeanOfPatches(has_class_token=False), whole.fc_norm)
    return Pooling.CLASS_TOKEN, None
