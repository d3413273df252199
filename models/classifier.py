"""The whole model: a clip in, a distribution over dives out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from einops import reduce
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from diveparse.configs import (
    BackboneConfig,
    ClipConfig,
    Config,
    HeadConfig,
    HeadKind,
    Pooling,
    convert_older_options,
    plain_values,
)
from diveparse.datasets.dives import DIVE_SETS, Dive, DiveSet
from diveparse.datasets.storage.atomic import write_json
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.heads import Head, build_head
from diveparse.heads.pooling import build_pooling
from diveparse.heads.scores import DiveScores
from diveparse.models.backbone import Backbone, ClipFormat
from diveparse.models.build import build_backbone, saved_backbone, starting_backbone
from diveparse.models.weights.huggingface import (
    is_huggingface,
    is_published,
    read_huggingface,
    read_huggingface_classifier,
)
from diveparse.models.weights.sizes import read_sizes
from diveparse.models.weights.sources import (
    MODEL_FILE,
    NUM_HEADS,
    load_state,
    model_folder,
    read_weights,
    write_weights,
)

MODEL_CONFIG = "config.json"
Section = TypeVar("Section")


@dataclass
class ModelConfig:
    """The sections of the run's `Config` that a saved model is built from."""

    backbone: BackboneConfig
    clip: ClipConfig
    head: HeadConfig


class DiveClassifier(nn.Module):
    """A backbone and a head: `scores = model(clips)` is a distribution over dives for every clip.

    temperature: what the scores are to be divided by so that their probabilities are calibrated, fitted on validation
    (engine/evaluation/calibration.py); 1 until then. The model does not apply it: `model(clips).tempered(temperature)`
    does. `head.num_train_clips` is kept beside it: which dives were trained.
    pooling, processor: of a published classifier, its own: what makes one feature of the tokens, in place of
    `config.head.pooling`; and what makes clips of uint8 frames (time, 3, height, width), in place of
    datasets/transforms.py.
    unseen_penalty: what is to be subtracted from the scores of the trained dives, in nats, so that a dive without a
    training clip is named where it should be (engine/evaluation/stacking.py). The model does not apply it either:
    `penalised` and `calibrated_scores` do.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        config: ModelConfig,
        *,
        pooling: nn.Module | None = None,
        processor: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if config.head.pooling is Pooling.CLASS_TOKEN:
            backbone.require_class_token()
        if backbone.clip_format != (wanted := ClipFormat(config.clip.num_frames, config.clip.image_size)):
            raise ValueError(f"the backbone takes clips of {backbone.clip_format}, but the config makes {wanted}")
        self.backbone = backbone
        self.pooling = pooling or build_pooling(
            config.head.pooling,
            embed_dim=backbone.embed_dim,
            num_heads=backbone.num_heads,
            num_queries=head.num_queries,
            has_class_token=backbone.has_class_token,
        )
        self.head = head
        self.config = config
        self.processor = processor
        self.temperature = 1.0
        self.unseen_penalty = 0.0

    @property
    def dive_set(self) -> DiveSet:
        return self.head.dive_set

    @property
    def clip_config(self) -> ClipConfig:
        return self.config.clip

    def forward(self, inputs: Tensor, *, num_views: int = 1) -> DiveScores:
        """The one way through the model, in training, evaluation and prediction.

        inputs: clips (batch, time, channel, height, width), normalised, or what `Backbone.frozen_tokens` made of them.
        num_views: this many inputs in a row show one clip; the head reads the mean of their features.
        """
        features = self.features(inputs).float()  # the head's log-probabilities need the whole range of fp32
        if num_views > 1:
            features = reduce(features, "(b v) ... -> b ...", "mean", v=num_views)
        with without_autocast(features.device):
            scores: DiveScores = self.head(features)
            return scores

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads. Returns: (batch, embed_dim), or (batch, num_queries, embed_dim) with a query each."""
        features: Tensor = self.backbone(inputs) if self.pooling is None else self.pooling(self.backbone.tokens(inputs))
        return features

    def dive_log_probs(self, clips: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """log p(dive | clip), uncalibrated, over a set of dives, by default the model's own.

        Returns: (batch, num_dives); each row's exp sums to 1.
        Raises: ValueError naming a dive of `dive_set` that the head cannot express.
        """
        return self(clips).log_probs(dive_set)

    def attribute_log_probs(self, clips: Tensor) -> dict[str, Tensor]:
        """log p(value | clip), uncalibrated: the marginals of the same distribution.

        Returns: {attribute: (batch, num_values)}, values in the order of `dive_set.values`.
        """
        return self(clips).marginals()

    def calibrated_scores(self, clips: Tensor) -> DiveScores:
        """The distribution over dives of each clip, with the model's penalty and temperature. clips: on any device."""
        scores: DiveScores = self(clips.to(next(self.parameters()).device))
        return self.penalised(scores).tempered(self.temperature)

    def penalised(self, scores: DiveScores) -> DiveScores:
        """The model's own scores with its penalty subtracted from those of the dives that it was trained on."""
        return scores.penalised(self.unseen_penalty, self.trained_dives)

    @property
    def trained_dives(self) -> frozenset[Dive]:
        """The dives that had a training clip: of a model that does not know how many they had, all of its own."""
        counts = self.head.num_train_clips or [1] * len(self.dive_set)
        return frozenset(dive for dive, count in zip(self.dive_set, counts, strict=True) if count)

    def save(self, folder: Path | str, state: dict[str, Tensor] | None = None) -> None:
        """Write model.safetensors and config.json into a folder, each whole or not at all.

        state: the weights as a whole, of a model that holds a part of them only.
        Raises: ValueError for a published classifier, whose own files hold it.
        """
        folder = Path(folder)
        if self.processor is not None:
            raise ValueError(f"{folder}: {self.config.backbone.weights} is published; copy its own files instead")
        content = plain_values(asdict(self.config)) | {
            "dives": {
                "name": self.dive_set.name,
                "numbers": self.dive_set.numbers,
                "num_train_clips": self.head.num_train_clips,
            },
            "temperature": self.temperature,
            "unseen_penalty": self.unseen_penalty,
            **self.backbone.description(),
        }
        write_json(folder / MODEL_CONFIG, content)
        # the weights last: a folder counts as a model once they are there
        write_weights(folder / MODEL_FILE, state or self.state_dict(), {NUM_HEADS: str(self.backbone.num_heads)})

    @classmethod
    def from_pretrained(cls, source: Path | str) -> DiveClassifier:
        """A published video classifier whose labels are dives, of a folder or of OWNER/NAME on the HuggingFace hub;
        or what `load` reads. In evaluation mode.

        Raises: ValueError naming the source, one line, if it is none of these.
        """
        if not is_published(Path(source)):
            return cls.load(source)
        from diveparse.models.published_classifier import load_published  # imports `transformers`: that takes seconds

        parts = load_published(Path(source).as_posix())
        sizes = parts.backbone.clip_format
        clip = ClipConfig(num_frames=sizes.num_frames, image_size=sizes.image_size)
        config = ModelConfig(parts.backbone.config, clip, parts.head.cfg)
        return cls(parts.backbone, parts.head, config, pooling=parts.pooling, processor=parts.processor).eval()

    @classmethod
    def load(cls, run_or_folder: Path | str) -> DiveClassifier:
        """Read what `save` wrote, from the folder itself or from a run that keeps it in `model`. In evaluation mode.

        Or a folder with a `TimesformerForVideoClassification` whose labels are dive numbers: it is a flat model.
        Raises: ValueError naming the file that is missing or damaged, or the weights that do not fit, with shapes.
        """
        folder = model_folder(Path(run_or_folder))
        if is_huggingface(folder):
            return cls(*_read_huggingface(folder)).eval()
        config, dive_set, num_train_clips, temperature, unseen_penalty = _read_config(folder / MODEL_CONFIG)
        state, _ = read_weights(folder / MODEL_FILE)
        try:
            backbone = saved_backbone(config.backbone, config.clip, folder / MODEL_CONFIG, state)
            model = cls(backbone, build_head(config.head, backbone.embed_dim, dive_set), config)
        except ValueError as error:  # of sizes that do not fit together, or not into the memory
            raise ValueError(f"{folder / MODEL_CONFIG}: {error}") from error
        if num_train_clips is not None:
            model.head.set_class_counts(num_train_clips)
        model.temperature, model.unseen_penalty = temperature, unseen_penalty
        load_state(model, state, folder / MODEL_FILE)
        return model.eval()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def build_classifier(cfg: Config, dive_set: DiveSet) -> DiveClassifier:
    """The model that a config describes, its backbone with the weights that the config names.

    Raises: ValueError if those weights are missing or do not fit.
    """
    backbone = starting_backbone(cfg.backbone, cfg.clip)
    head = build_head(cfg.head, backbone.embed_dim, dive_set)
    return DiveClassifier(backbone, head, ModelConfig(cfg.backbone, cfg.clip, cfg.head))


def _read_huggingface(folder: Path) -> tuple[Backbone, Head, ModelConfig]:
    """A flat model of the folder of a `TimesformerForVideoClassification`, with its logits as they are."""
    saved, last = read_huggingface(folder), read_huggingface_classifier(folder)
    backbone_cfg, num_frames, image_size = read_sizes(saved)
    config = ModelConfig(
        backbone_cfg, ClipConfig(num_frames=num_frames, image_size=image_size), HeadConfig(kind=HeadKind.FLAT)
    )
    labels = DiveSet.from_numbers(last.labels, f"{folder}: id2label")
    try:
        backbone = build_backbone(backbone_cfg, num_frames=num_frames, image_size=image_size).load_saved(saved)
    except ValueError as error:  # of sizes that do not fit together, or not into the memory
        raise ValueError(f"{folder}: {error}") from error
    head = build_head(config.head, backbone.embed_dim, next((s for s in DIVE_SETS.values() if s == labels), labels))
    load_state(head, {"linear.weight": last.weight, "linear.bias": last.bias}, folder)
    return backbone, head, config


def _read_config(path: Path) -> tuple[ModelConfig, DiveSet, Tensor | None, float, float]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it lies beside {MODEL_FILE} in a whole model folder")
    content = read_json_object(path)
    try:
        content = convert_older_options(content, path)
        config = ModelConfig(
            backbone=_section(BackboneConfig, content["backbone"]),
            clip=_section(ClipConfig, content["clip"]),
            head=_section(HeadConfig, content["head"]),
        )
        dive_set = DiveSet.from_numbers(content["dives"]["numbers"], content["dives"]["name"])
        num_train_clips = _num_train_clips(content["dives"], len(dive_set))
        return config, dive_set, num_train_clips, _temperature(content), _unseen_penalty(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a model's configuration (backbone, clip, head, dives): {error!r}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # of json, of the checks of a section, of a dive number
        raise ValueError(f"{path}: {error}") from error


def _num_train_clips(dives: dict[str, Any], num_dives: int) -> Tensor | None:
    """(num_dives,), or None for a model of an earlier version, or one that was not trained here."""
    counts = dives.get("num_train_clips")
    if counts is None:
        return None
    are_counts = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    if not are_counts or len(counts) != num_dives or not any(counts):
        expected = f"null or {num_dives} numbers of clips, one a dive and one above 0 at least"
        raise ValueError(f"dives.num_train_clips must be {expected}, got {str(counts)[:60]}")
    return torch.tensor(counts)


def _temperature(content: dict[str, Any]) -> float:
    """A model of an earlier version has one for the dives and one for each attribute; the first is the same."""
    value = content["temperatures"]["dive"] if "temperatures" in content else content.get("temperature")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:  # nor is nan
        raise ValueError(f"temperature must be above 0 and finite, got {value!r}; set it to 1.0 for no calibration")
    return float(value)


def _unseen_penalty(content: dict[str, Any]) -> float:
    """0 for a model of an earlier version."""
    value = content.get("unseen_penalty", 0.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:  # nor is nan
        raise ValueError(f"unseen_penalty must be finite and at least 0, got {value!r}; set it to 0.0 for none")
    return float(value)


def _section(schema: type[Section], values: dict[str, Any]) -> Section:
    """The values as a dataclass, with its own checks and those of OmegaConf for names and types."""
    return cast(Section, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))
