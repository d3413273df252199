"""The whole model: a clip in, a distribution over dives out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, plain_values
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.storage.atomic import write_json
from diveparse.heads import Head, build_head
from diveparse.heads.pooling import build_pooling
from diveparse.models.build import build_backbone, load_backbone
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.sources import (
    MODEL_FILE,
    NUM_HEADS,
    load_state,
    model_folder,
    read_weights,
    write_weights,
)

CONFIG_FILE = "config.json"
DIVE = "dive"  # beside the attributes' names: the distribution over dives
Section = TypeVar("Section")


@dataclass
class ModelConfig:
    """What a saved model needs to be built again: the sections of the run's `Config` that shape it."""

    backbone: BackboneConfig
    clip: ClipConfig
    head: HeadConfig


@dataclass(frozen=True)
class ClassifierOutputs:
    """Everything that the model says about a batch of clips."""

    dive_log_probs: Tensor  # (batch, num_dives), every row's exp sums to 1
    attribute_log_probs: dict[str, Tensor]  # attribute -> (batch, num_values), values as dive_set.values
    named_labels: Tensor  # (batch,) before any decoding by validity; -1 where the attributes spell no dive of the set
    decoded_labels: Tensor  # (batch,) the model's answer; -1 where it spells no dive of the set


class DiveClassifier(nn.Module):
    """A backbone and a head; clips are (batch, time, channel, height, width), normalised, of the backbone's size.

    temperatures: by which the log-probabilities of DIVE, over whichever set of dives, and of each attribute are to be
    divided, and then normalised again, to be calibrated; see `engine/calibration.py`. All are 1 until they are fitted.
    The model does not apply them: whatever it answers, here and in `ClassifierOutputs`, is uncalibrated.
    """

    def __init__(self, backbone: TimeSformer, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        sizes = (backbone.embed_dim, config.backbone.num_heads, head.num_queries)
        self.pooling = build_pooling(config.head.pooling, *sizes)
        self.head = head
        self.config = config
        self.temperatures = dict.fromkeys((DIVE, *ATTRIBUTES), 1.0)

    @property
    def dive_set(self) -> DiveSet:
        return self.head.dive_set

    def forward(self, clips: Tensor) -> Tensor:
        return self.dive_log_probs(clips)

    def features(self, clips: Tensor) -> Tensor:
        """What the head reads. Returns: (batch, embed_dim), or (batch, num_queries, embed_dim) with a query each."""
        return self.backbone(clips) if self.pooling is None else self.pooling(self.backbone.tokens(clips))

    def features_of_frozen(self, frozen_tokens: Tensor) -> Tensor:
        """As `features`, from what `TimeSformer.frozen_tokens` gives of the clips."""
        if self.pooling is None:
            return self.backbone.class_feature(frozen_tokens)
        features: Tensor = self.pooling(self.backbone.token_features(frozen_tokens))
        return features

    def dive_log_probs(self, clips: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """log p(dive | clip) over a set of dives, by default the model's own.

        Returns: (batch, num_dives); each row's exp sums to 1.
        Raises: ValueError naming a dive of `dive_set` that the head cannot express.
        """
        return self.head.dive_log_probs(self.features(clips), dive_set)

    def attribute_log_probs(self, clips: Tensor) -> dict[str, Tensor]:
        """log p(value | clip). Returns: {attribute: (batch, num_values)}, values in the order of `dive_set.values`."""
        return self.head.attribute_log_probs(self.features(clips))

    def outputs(self, clips: Tensor) -> ClassifierOutputs:
        """All answers from one pass through the backbone."""
        return self.read_out(self.features(clips))

    def read_out(self, features: Tensor, dive_set: DiveSet | None = None) -> ClassifierOutputs:
        """All that the head says about features, over a set of dives, by default the model's own.

        Raises: ValueError naming a dive of `dive_set` that the head cannot express.
        """
        return ClassifierOutputs(
            dive_log_probs=self.head.dive_log_probs(features, dive_set),
            attribute_log_probs=self.head.attribute_log_probs(features),
            named_labels=self.head.named_labels(features, dive_set),
            decoded_labels=self.head.decode(features, dive_set),
        )

    def loss(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The head's loss, in nats and averaged over clips, and its terms by name. labels: as for `Head.loss`."""
        return self.head.loss(self.features(clips), labels)

    def save(self, folder: Path | str) -> None:
        """Write model.safetensors and config.json into a folder, each whole or not at all."""
        folder = Path(folder)
        content = plain_values(asdict(self.config)) | {
            "dives": {"name": self.dive_set.name, "numbers": self.dive_set.numbers},
            "temperatures": self.temperatures,
        }
        write_json(folder / CONFIG_FILE, content)
        # the weights last: a folder counts as a model once they are there
        write_weights(folder / MODEL_FILE, self.state_dict(), {NUM_HEADS: str(self.config.backbone.num_heads)})

    @classmethod
    def load(cls, run_or_folder: Path | str) -> DiveClassifier:
        """Read what `save` wrote, from the folder itself or from a run that keeps it in `model`. In evaluation mode.

        Raises: ValueError naming the file that is missing or damaged, or the weights that do not fit, with shapes.
        """
        folder = model_folder(Path(run_or_folder))
        config, dive_set, temperatures = _read_config(folder / CONFIG_FILE)
        backbone = build_backbone(config.backbone, num_frames=config.clip.num_frames, image_size=config.clip.image_size)
        model = cls(backbone, build_head(config.head, backbone.embed_dim, dive_set), config)
        model.temperatures = temperatures
        state, _ = read_weights(folder / MODEL_FILE)
        load_state(model, state, folder / MODEL_FILE)
        return model.eval()


def build_classifier(cfg: Config, dive_set: DiveSet) -> DiveClassifier:
    """The model that a config describes, its backbone with the weights that the config names.

    Raises: ValueError if those weights are missing or do not fit.
    """
    sizes = {"num_frames": cfg.clip.num_frames, "image_size": cfg.clip.image_size}
    if cfg.backbone.weights is None:
        backbone = build_backbone(cfg.backbone, **sizes)
    else:
        backbone = load_backbone(cfg.backbone.weights, cfg.backbone, **sizes)
    head = build_head(cfg.head, backbone.embed_dim, dive_set)
    return DiveClassifier(backbone, head, ModelConfig(cfg.backbone, cfg.clip, cfg.head))


def _read_config(path: Path) -> tuple[ModelConfig, DiveSet, dict[str, float]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it lies beside {MODEL_FILE} in a whole model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = ModelConfig(
            backbone=_section(BackboneConfig, content["backbone"]),
            clip=_section(ClipConfig, content["clip"]),
            head=_section(HeadConfig, content["head"]),
        )
        dive_set = DiveSet.from_numbers(content["dives"]["numbers"], content["dives"]["name"])
        return config, dive_set, _checked_temperatures(content.get("temperatures"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a model's configuration (backbone, clip, head, dives): {error!r}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # of json, of the checks of a section, of a dive number
        raise ValueError(f"{path}: {error}") from error


def _checked_temperatures(values: Any) -> dict[str, float]:
    names = (DIVE, *ATTRIBUTES)
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(
            f"expected temperatures of {', '.join(names)}, got {values}; train the model again, or give each 1.0 to "
            "leave it uncalibrated"
        )
    for name, value in values.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:  # nor is nan
            raise ValueError(f"expected temperatures.{name} above 0 and finite, got {value!r}")
    return {name: float(values[name]) for name in names}


def _section(schema: type[Section], values: dict[str, Any]) -> Section:
    """The values as a dataclass, with its own checks and those of OmegaConf for names and types."""
    return cast(Section, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))
