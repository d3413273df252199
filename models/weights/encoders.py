"""The video encoders of HuggingFace's `transformers`, without their weights: which there are, what their files say of
frames, pictures and pixels, and what a model folder of this project keeps of that.

Source: the configurations and processors of transformers 5; its own classes read every configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from diveparse.configs.bounds import require
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.models.weights.files import MODEL_FILE
from diveparse.models.weights.hub import HUB_ID, fetched
from diveparse.models.weights.huggingface import CONFIG_FILE, MODEL_TYPE, PIXEL_SCALE, PREPROCESSOR_FILES
from diveparse.models.weights.published import PixelStatistics

PROCESSOR_FILE = "processor_config.json"  # of those that transformers 5 saves with a processor of text beside it
WEIGHT_FILES = [MODEL_FILE, "model.safetensors.index.json", "model-*.safetensors"]  # whole, or in parts with an index
IMAGENET_PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF_PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
ABOUT_OLD_HEAD = ("id2label", "label2id", "problem_type", "architectures", "dtype", "transformers_version")
MAX_DEPTH, MAX_WIDTH, MAX_TOKENS = 1024, 16384, 2**16  # VideoMAE computes its table of places number by number
UNREADABLE = (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError)  # of a value that no model has


@dataclass(frozen=True)
class Family:
    """What is alike in all encoders of one `model_type`."""

    name: str
    frames: str  # the name of the frame count in a config.json
    size: str  # and of the height and width
    can_change_frames: bool  # whether the code of `transformers` takes clips of other lengths than the config.json's
    can_change_size: bool
    steps: Mapping[str, Any] = field(
        default_factory=dict
    )  # of its processor in `transformers`, where a folder has none


FAMILIES = {
    "timesformer": Family("TimeSformer", "num_frames", "image_size", True, False, IMAGENET_PIXELS),
    "videomae": Family("VideoMAE", "num_frames", "image_size", False, False, HALF_PIXELS),
    "vivit": Family(
        "ViViT", "num_frames", "image_size", False, False, HALF_PIXELS | {"rescale_factor": 1 / 127.5, "offset": True}
    ),
    "vjepa2": Family("V-JEPA 2", "frames_per_clip", "crop_size", True, True, IMAGENET_PIXELS),
    "videoprism_vision_model": Family("VideoPrism", "num_frames", "image_size", True, True, {"do_normalize": False}),
}


@dataclass(frozen=True)
class SavedEncoder:
    """An encoder as its files describe it."""

    origin: str  # the path or hub id, for messages
    config: PreTrainedConfig
    pixels: PixelStatistics  # that its clips are normalised with
    commit: str | None = None  # on the hub; None for a folder

    @property
    def family(self) -> Family:
        return FAMILIES[self.config.model_type]

    @property
    def num_frames(self) -> int:
        return int(getattr(self.config, self.family.frames))

    @property
    def image_size(self) -> int:
        return _side(getattr(self.config, self.family.size))

    @property
    def frames_per_token(self) -> int:
        tubelet = getattr(self.config, "tubelet_size", 1)
        return int(tubelet if isinstance(tubelet, int) else tubelet[0])

    @property
    def patch_size(self) -> int:
        """Height and width of a patch, pixels."""
        config = self.config
        return _side(config.patch_size if hasattr(config, "patch_size") else list(config.tubelet_size[1:]))

    def require_clips(self, *, num_frames: int, image_size: int) -> None:
        """Raises: ValueError, one line, if the encoder cannot take clips of such a frame count and picture size."""
        family = self.family
        for option, wanted, own, can_change, unit in (
            ("clip.num_frames", num_frames, self.num_frames, family.can_change_frames, self.frames_per_token),
            ("clip.image_size", image_size, self.image_size, family.can_change_size, self.patch_size),
        ):
            if wanted != own and not can_change:
                raise ValueError(
                    f"{option} must be {own} or left out for {self.origin}, since {family.name} of transformers takes "
                    f"no other, got {wanted}"
                )
            require(wanted > 0 and wanted % unit == 0, option, f"a multiple of {unit} for {self.origin}", wanted)

    def description(self) -> dict[str, Any]:
        """What `described_encoder` reads: the content of config.json, but for the head, and the pixel statistics."""
        config = {name: value for name, value in self.config.to_diff_dict().items() if name not in ABOUT_OLD_HEAD}
        return {"config": config, "pixel_mean": list(self.pixels.mean), "pixel_std": list(self.pixels.std)}


def read_encoder(source: str) -> tuple[SavedEncoder, Path]:
    """What the files of a folder or of a model on the hub say, and the folder they are in. Weights are not fetched.

    Raises: ValueError naming the source if it is neither, or the file that is missing, damaged or of another model.
    """
    folder, commit = Path(source), None
    if not folder.is_dir():
        if folder.exists() or not HUB_ID.fullmatch(source):
            raise ValueError(
                f"{source}: no such folder; backbone.kind=transformers takes a folder with {CONFIG_FILE} and "
                f"{MODEL_FILE} as transformers writes them, or OWNER/NAME on the HuggingFace hub"
            )
        folder = fetched(source, [CONFIG_FILE, *PREPROCESSOR_FILES, PROCESSOR_FILE])
        commit = folder.name  # as huggingface_hub lays out its cache
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{source}: holds no {CONFIG_FILE}; expected what transformers wrote")
    config = parse_config(read_json_object(path), str(path))
    return SavedEncoder(source, config, _read_pixels(folder, FAMILIES[config.model_type]), commit), folder


def weights_folder(source: str, folder: Path) -> Path:
    """The folder with the weights of what `read_encoder` read, fetched where it lies on the hub.

    Raises: ValueError if there are none in safetensors files.
    """
    if not Path(source).is_dir():
        folder = fetched(source, WEIGHT_FILES)
    if not any((folder / name).is_file() for name in WEIGHT_FILES[:2]):
        raise ValueError(
            f"{source}: holds no {MODEL_FILE}; pickled weights are not read: write them as safetensors with "
            "save_pretrained of transformers first"
        )
    return folder


def described_encoder(description: object, origin: str) -> SavedEncoder:
    """What `SavedEncoder.description` gave. Raises: ValueError naming `origin` if it is anything else."""
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise ValueError(f"{origin}: expected its own config and pixel statistics, got {repr(description)[:80]}")
    config = parse_config(description["config"], origin)
    steps = {"image_mean": description.get("pixel_mean"), "image_std": description.get("pixel_std")}
    return SavedEncoder(origin, config, _pixels_of({"rescale_factor": PIXEL_SCALE} | steps, origin))


def parse_config(content: dict[str, Any], origin: str) -> PreTrainedConfig:
    """The configuration of one of FAMILIES, with the defaults of `transformers`.

    Raises: ValueError naming the origin if it is of another model, or has values that no model has.
    """
    model_type = content.get(MODEL_TYPE)
    if model_type not in FAMILIES:
        raise ValueError(
            f"{origin}: {MODEL_TYPE}={model_type!r} is no video encoder that this project reads; "
            f"expected one of {', '.join(FAMILIES)}"
        )
    if "quantization_config" in content:
        raise ValueError(f"{origin}: quantised weights are not read; give the model they were made of")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(content)
        _require_usable(SavedEncoder(origin, config, PixelStatistics((), ())))
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{origin}: not the configuration of a video encoder: {reason}") from error
    return config


def _require_usable(saved: SavedEncoder) -> None:
    """Raises: ValueError or another of UNREADABLE for sizes that no encoder has, or that this project cannot feed."""
    config = saved.config
    channels = getattr(config, "num_channels", getattr(config, "in_chans", None))
    require(channels == NUM_CHANNELS, "the number of channels", str(NUM_CHANNELS), channels)
    depths = ("num_hidden_layers", "num_spatial_layers", "num_temporal_layers")
    for name in (*depths, "hidden_size", "num_attention_heads"):
        value, most = getattr(config, name, 1), MAX_DEPTH if name in depths else MAX_WIDTH
        require(1 <= value <= most, name, f"from 1 to {most}", value)
    heads = config.num_attention_heads
    require(config.hidden_size % heads == 0, "hidden_size", f"a multiple of {heads} heads", config.hidden_size)
    for name, size, unit in (
        ("frame count", saved.num_frames, saved.frames_per_token),
        ("picture size", saved.image_size, saved.patch_size),
    ):
        require(0 < size <= MAX_WIDTH and unit > 0 and size % unit == 0, name, f"a multiple of {unit}", size)
    num_tokens = saved.num_frames // saved.frames_per_token * (saved.image_size // saved.patch_size) ** 2
    require(num_tokens <= MAX_TOKENS, "the number of tokens", f"at most {MAX_TOKENS}", num_tokens)
    if config.model_type == "timesformer":
        kind = config.attention_type
        require(kind != "space_only", "attention_type", "one that looks along time", kind)


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    """Height and width, where both are the same. Raises: ValueError where they are not."""
    sides = [size] if isinstance(size, int) else list(size)
    require(len(set(sides)) == 1, "pictures and patches", "square", size)
    return int(sides[0])


def _read_pixels(folder: Path, family: Family) -> PixelStatistics:
    """Of the processor beside the weights; of the one that `transformers` has for the family where there is none."""
    path = next((folder / name for name in reversed(PREPROCESSOR_FILES) if (folder / name).is_file()), None)
    own = {} if path is None else read_json_object(path)
    return _pixels_of({"rescale_factor": PIXEL_SCALE, **family.steps, **own}, str(path))


def _pixels_of(steps: Mapping[str, Any], origin: str) -> PixelStatistics:
    """The statistics, of pixels in [0, 1], that do what a processor does to pixels from 0 to 255 in two steps:
    `pixel * rescale_factor - offset`, where the offset is 1 or 0, then `(pixel - image_mean) / image_std`."""
    try:
        scale, offset = 255.0, 0.0
        if steps.get("do_rescale", True):
            scale, offset = 255 * float(steps["rescale_factor"]), float(bool(steps.get("offset")))
        means, stds = [0.0] * NUM_CHANNELS, [1.0] * NUM_CHANNELS
        if steps.get("do_normalize", True):
            means, stds = steps["image_mean"], steps["image_std"]
        mean = tuple((offset + float(value)) / scale for value in means)
        std = tuple(float(value) / scale for value in stds)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{origin}: expected image_mean, image_std and rescale_factor, got {error!r}") from error
    numbers = [*mean, *std]
    if not len(mean) == len(std) == NUM_CHANNELS or not all(map(math.isfinite, numbers)) or min(std) <= 0:
        raise ValueError(
            f"{origin}: expected {NUM_CHANNELS} means and positive standard deviations, got {mean} and {std}"
        )
    return PixelStatistics(mean, std)
