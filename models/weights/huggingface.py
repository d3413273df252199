"""The TimeSformer format of HuggingFace's `transformers`: read from a folder or the hub, and written for others to use.

Source: `TimesformerModel` and `TimesformerConfig` of `transformers`. Their published weights are a classifier's; the
older of them, facebook/timesformer-base-finetuned-k400 too, have no safetensors file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from diveparse.configs import BackboneConfig, StemKind
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.storage.atomic import write_json
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.models.weights.files import MODEL_FILE, read_checkpoint, read_weights, write_weights
from diveparse.models.weights.hub import HUB_ID, fetched
from diveparse.models.weights.published import (
    KERNEL,
    LAYER_NORM_EPS,
    OWN_PIXELS,
    PixelStatistics,
    SavedBackbone,
    SizedBackbone,
    in_own_names,
    in_own_pixels,
    renamed,
    with_zero_qkv_biases,
)
from diveparse.models.weights.sizes import read_sizes

CONFIG_FILE = "config.json"
PICKLED_FILE = "pytorch_model.bin"
PREPROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")  # the first that is there counts
BACKBONE_PREFIX, CLASSIFIER_PREFIX = "timesformer.", "classifier."  # of names in a classifier's file
MODEL_TYPE = "model_type"
WRITER, OURS = "written_by", "diveparse"  # in config.json, which may hold more than `transformers` reads
PIXEL_SCALE = 1 / 255

# what this backbone is, in the words of TimesformerConfig; these are its defaults too, for words that are missing
FIXED = {
    MODEL_TYPE: "timesformer",
    "attention_type": "divided_space_time",
    "hidden_act": "gelu",
    "layer_norm_eps": LAYER_NORM_EPS,
    "num_channels": NUM_CHANNELS,
}
DEFAULT_NUM_HEADS = 12  # of TimesformerConfig

# theirs -> ours; `*` counts the blocks
NAMES = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "space_embed",
    "embeddings.time_embeddings": "time_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.*.temporal_layernorm": "blocks.*.time_norm",
    "encoder.layer.*.temporal_attention.attention.qkv": "blocks.*.time_attn.qkv",
    "encoder.layer.*.temporal_attention.output.dense": "blocks.*.time_attn.proj",
    "encoder.layer.*.temporal_dense": "blocks.*.time_proj",
    "encoder.layer.*.layernorm_before": "blocks.*.space_norm",
    "encoder.layer.*.attention.attention.qkv": "blocks.*.space_attn.qkv",
    "encoder.layer.*.attention.output.dense": "blocks.*.space_attn.proj",
    "encoder.layer.*.layernorm_after": "blocks.*.mlp_norm",
    "encoder.layer.*.intermediate.dense": "blocks.*.mlp.fc1",
    "encoder.layer.*.output.dense": "blocks.*.mlp.fc2",
    "layernorm": "norm",
}


@dataclass(frozen=True)
class SavedClassifier:
    """The last layer of a `TimesformerForVideoClassification`."""

    weight: Tensor  # (num_labels, embed_dim)
    bias: Tensor  # (num_labels,)
    labels: tuple[str, ...]


def is_huggingface(folder: Path) -> bool:
    """Whether a folder's config.json names a model type, as those of `transformers` do and ours do not.

    Raises: ValueError if there is a config.json that cannot be read.
    """
    return (folder / CONFIG_FILE).is_file() and MODEL_TYPE in read_json_object(folder / CONFIG_FILE)


def is_published(path: Path) -> bool:
    """Whether a path is the folder of a model of `transformers`, or is none but could be OWNER/NAME on the hub.

    A folder that `save_huggingface` wrote is none: this project's own frames suit it better than its processor's.
    Raises: ValueError if it is a folder whose config.json cannot be read.
    """
    if not path.exists():
        return HUB_ID.fullmatch(path.as_posix()) is not None
    return is_huggingface(path) and read_json_object(path / CONFIG_FILE).get(WRITER) != OURS


def read_huggingface(folder: Path, origin: str | None = None) -> SavedBackbone:
    """The backbone of a folder that `transformers` wrote, its head left out.

    Raises: ValueError naming the file that is missing or damaged, or listing what this backbone does not do.
    """
    origin = origin or str(folder)
    config = read_config(folder)
    state = in_own_names(_read_state(folder), NAMES, BACKBONE_PREFIX, CLASSIFIER_PREFIX, origin)
    if not config.get("qkv_bias", True):
        state = with_zero_qkv_biases(state, origin)
    state = in_own_pixels(state, _read_pixels(folder), origin)
    saved = SavedBackbone(origin, state, config.get("num_attention_heads", DEFAULT_NUM_HEADS))
    _require_sizes_of(saved, config)
    return saved


def read_huggingface_classifier(folder: Path) -> SavedClassifier:
    """The last layer of a folder that holds a classifier.

    Raises: ValueError naming the file that is missing or damaged, or in which there is no such layer.
    """
    labels = read_config(folder).get("id2label")
    state = _read_state(folder)
    weight, bias = (state.get(f"{CLASSIFIER_PREFIX}{name}") for name in ("weight", "bias"))
    if weight is None or bias is None:
        raise ValueError(f"{folder}: holds a backbone but no classifier: {CLASSIFIER_PREFIX}weight or bias is missing")
    if not isinstance(labels, dict) or sorted(labels) != sorted(str(place) for place in range(len(weight))):
        raise ValueError(
            f"{folder / CONFIG_FILE}: id2label must name the {len(weight)} classes, 0 to {len(weight) - 1}"
        )
    return SavedClassifier(weight, bias, tuple(str(labels[str(place)]) for place in range(len(weight))))


def _read_state(folder: Path) -> dict[str, Tensor]:
    if (folder / MODEL_FILE).is_file():
        return read_weights(folder / MODEL_FILE)[0]
    if (folder / PICKLED_FILE).is_file():
        return read_checkpoint(folder / PICKLED_FILE)
    raise ValueError(f"{folder}: holds no weights: neither {MODEL_FILE} nor {PICKLED_FILE} is there")


def read_hub(repo_id: str) -> SavedBackbone:
    """The backbone of a model on the hub, or of the copy of it that an earlier call left on this machine.

    Raises: ValueError if neither is to be had, and as `read_huggingface` does.
    """
    folder = fetched(repo_id, [CONFIG_FILE, *PREPROCESSOR_FILES])
    read_config(folder)  # so that another kind of model is refused before its weights are fetched
    if not (fetched(repo_id, [MODEL_FILE]) / MODEL_FILE).is_file():
        fetched(repo_id, [PICKLED_FILE])
    return read_huggingface(folder, origin=repo_id)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model that computes what this backbone does.

    Raises: ValueError naming the file if there is none, or listing its options that differ.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it lies beside the weights in a HuggingFace model")
    config = read_json_object(path)
    found = {name: config.get(name, None if name == MODEL_TYPE else wanted) for name, wanted in FIXED.items()}
    others = [
        f"{name}={found[name]!r} instead of {wanted!r}" for name, wanted in FIXED.items() if found[name] != wanted
    ]
    if others:
        raise ValueError(f"{path}: another kind of model: {', '.join(others)}")
    return config


def save_huggingface(folder: Path | str, backbone: SizedBackbone, classifier: SavedClassifier | None = None) -> None:
    """Write a backbone so that `TimesformerModel.from_pretrained(folder)` gives the same features of the same clips.

    classifier: with one, `TimesformerForVideoClassification` gives its logits of these features.
    The two preprocessor files hold how to make clips of frames; `transformers` takes the one for videos where it knows
    of it. Stochastic depth, which acts in training only, is not written.
    Raises: ValueError if the backbone has a stem that the format cannot hold.
    """
    folder = Path(folder)
    cfg = backbone.config
    if cfg.stem is not StemKind.PATCH:
        raise ValueError(f"the HuggingFace format has no backbone.stem={cfg.stem.value}, only {StemKind.PATCH.value}")
    own_to_theirs = {own: theirs for theirs, own in NAMES.items()}
    state = {renamed(name, own_to_theirs): tensor for name, tensor in backbone.state_dict().items()}
    kernel = renamed(KERNEL, own_to_theirs)
    state[kernel] = rearrange(state[kernel], "d (c p q) -> d c p q", c=NUM_CHANNELS, p=cfg.patch_size)
    about: dict[str, Any] = {"architectures": ["TimesformerModel"]}
    if classifier is not None:
        state = {f"{BACKBONE_PREFIX}{name}": tensor for name, tensor in state.items()}
        state |= {f"{CLASSIFIER_PREFIX}weight": classifier.weight, f"{CLASSIFIER_PREFIX}bias": classifier.bias}
        about = {"architectures": ["TimesformerForVideoClassification"], **_label_names(classifier.labels)}
    sizes = _sizes(cfg, num_frames=backbone.num_frames, image_size=backbone.image_size)
    write_json(folder / CONFIG_FILE, FIXED | {"qkv_bias": True, WRITER: OURS} | about | sizes)
    for name, processor in zip(PREPROCESSOR_FILES, _processors(backbone), strict=True):
        write_json(folder / name, processor)
    # the weights last: a folder counts as a model once they are there
    write_weights(folder / MODEL_FILE, state, {"format": "pt"})


def _label_names(labels: Sequence[str]) -> dict[str, Any]:
    by_place = {str(place): label for place, label in enumerate(labels)}
    return {"id2label": by_place, "label2id": {label: int(place) for place, label in by_place.items()}}


def _processors(backbone: SizedBackbone) -> tuple[dict[str, Any], dict[str, Any]]:
    """What makes clips of frames, in the words of `transformers`: its processor of pictures, and that of videos."""
    size = backbone.image_size
    steps = {
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": PIXEL_SCALE,
        "do_normalize": True,
        "image_mean": OWN_PIXELS.mean,
        "image_std": OWN_PIXELS.std,
    }
    of_videos = {"do_sample_frames": True, "num_frames": backbone.num_frames}
    return (
        {"image_processor_type": "VideoMAEImageProcessor", **steps},
        {"video_processor_type": "TimesformerVideoProcessor", **of_videos, **steps},
    )


def _sizes(cfg: BackboneConfig, *, num_frames: int, image_size: int) -> dict[str, int]:
    """The sizes of a backbone in the words of TimesformerConfig."""
    return {
        "image_size": image_size,
        "patch_size": cfg.patch_size,
        "num_frames": num_frames,
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": int(cfg.embed_dim * cfg.mlp_ratio),
    }


def _require_sizes_of(saved: SavedBackbone, config: dict[str, Any]) -> None:
    cfg, num_frames, image_size = read_sizes(saved)
    sizes = _sizes(cfg, num_frames=num_frames, image_size=image_size)
    others = [
        f"{name}={config[name]}, but the weights have {size}"
        for name, size in sizes.items()
        if config.get(name, size) != size
    ]
    if others:
        raise ValueError(f"{saved.origin}: {CONFIG_FILE} and the weights disagree: {'; '.join(others)}")


def _read_pixels(folder: Path) -> PixelStatistics | None:
    """The pixel statistics of the folder; None where it has none."""
    path = next((folder / name for name in PREPROCESSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    steps = {"do_rescale": True, "rescale_factor": PIXEL_SCALE, "do_normalize": True} | read_json_object(path)
    try:
        if steps["do_rescale"] and steps["do_normalize"] and math.isclose(steps["rescale_factor"], PIXEL_SCALE):
            mean, std = (tuple(float(value) for value in steps[name]) for name in ("image_mean", "image_std"))
            return PixelStatistics(mean, std)
        problem = "other steps"
    except (KeyError, TypeError, ValueError) as error:
        problem = repr(error)
    raise ValueError(
        f"{path}: expected pixels scaled by 1/255 and normalised with image_mean and image_std, got {problem}; "
        "without this file, pixels are taken as normalised as here"
    )
