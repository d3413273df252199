"""An encoder of `transformers` as a backbone: from its files or the hub, or to be given a saved model's weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.utils import logging as their_logging

from diveparse.configs import BackboneConfig
from diveparse.models.backbone import ClipFormat
from diveparse.models.transformers_encoder import ENCODERS, UNUSED, TransformersEncoder
from diveparse.models.weights.encoders import UNREADABLE, SavedEncoder, read_encoder, weights_folder
from diveparse.models.weights.files import require_finite, shortened
from diveparse.models.weights.sizes import MIN_SHARE_HELD

logger = logging.getLogger(__name__)


def load_encoder(cfg: BackboneConfig, *, num_frames: int, image_size: int) -> TransformersEncoder:
    """The encoder that `cfg.weights` names, a folder or a model on the hub; its head is left out, which is logged.

    Raises: ValueError naming the source if there is none, it is damaged, holds no safetensors, or lacks weights.
    """
    source = str(cfg.weights)
    saved, folder = read_encoder(source)
    saved.require_clips(num_frames=num_frames, image_size=image_size)
    clip_format = ClipFormat(num_frames, image_size)
    folder = weights_folder(source, folder)
    model = load_model(_model_class(saved.config), saved, folder, clip_format, unused=UNUSED)
    return ENCODERS[saved.config.model_type](saved, cfg, model, clip_format)


def build_encoder(
    saved: SavedEncoder, cfg: BackboneConfig, *, num_frames: int, image_size: int, num_held: int | None = None
) -> TransformersEncoder:
    """An encoder with fresh weights. num_held: how many weights there are to replace them.

    Raises: ValueError if it cannot be built, or there are far fewer weights than it has.
    """
    saved.require_clips(num_frames=num_frames, image_size=image_size)
    clip_format = ClipFormat(num_frames, image_size)

    def build() -> TransformersEncoder:
        config = _config_for(saved, clip_format)
        return ENCODERS[config.model_type](saved, cfg, _model_class(config)(config), clip_format)

    try:
        if num_held is not None:
            with torch.device("meta"):  # sizes without memory
                num_weights = sum(parameter.numel() for parameter in build().parameters())
            if num_held < MIN_SHARE_HELD * num_weights:
                raise ValueError(f"the weights are {num_held:,} numbers, but the encoder has {num_weights:,}")
        return build()
    except UNREADABLE as error:
        raise ValueError(f"{saved.origin}: {' '.join(str(error).split())}") from error


def _model_class(config: PreTrainedConfig) -> Any:
    return MODEL_MAPPING[type(config)]


def _config_for(saved: SavedEncoder, clip_format: ClipFormat) -> PreTrainedConfig:
    """A copy of the encoder's configuration to build it from: without parts that are not used, with fused attention."""
    config = copy.deepcopy(saved.config)
    if config.model_type == "vjepa2":
        # its rotations count places by these; no shape depends on them
        config.frames_per_clip, config.crop_size = clip_format.num_frames, clip_format.image_size
        config.pred_num_hidden_layers = 0
    config._attn_implementation = "sdpa" if _model_class(config)._supports_sdpa else "eager"
    return config


def load_model(
    model_class: Any, saved: SavedEncoder, folder: Path, clip_format: ClipFormat, *, unused: Sequence[str]
) -> nn.Module:
    """A model of `transformers` with the weights in a folder. unused: modules whose weights may be missing.

    Raises: ValueError naming the source if the weights are damaged, missing or of other shapes.
    """
    config = _config_for(saved, clip_format)
    try:
        with without_their_messages():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation=config._attn_implementation,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError, *UNREADABLE) as error:
        raise ValueError(f"{saved.origin}: the weights cannot be read: {' '.join(str(error).split())}") from error
    prefixes = tuple(f"{name}." for name in unused)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(prefixes))
    if missing:
        raise ValueError(f"{saved.origin}: {len(missing)} weights are missing: {shortened(missing)}")
    others = sorted(name for name in report["unexpected_keys"] if not name.startswith(prefixes))
    if others:
        logger.info("%s: left out what is not the encoder's: %s", saved.origin, shortened(others))
    require_finite(model.state_dict(), saved.origin)
    loaded: nn.Module = model
    return loaded


@contextmanager
def without_their_messages() -> Iterator[None]:
    """Their progress bar and their table of weights, of which ours is the one line that matters."""
    verbosity, has_bar = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(verbosity)
        if has_bar:
            their_logging.enable_progress_bar()
