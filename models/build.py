"""The backbone that a config describes; the one place to add another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from diveparse.configs import BackboneConfig, BackboneKind, ClipConfig, Config
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.models.backbone import Backbone
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.sizes import require_held
from diveparse.models.weights.sources import read_source

# what needs `transformers` is imported where it is used: that takes seconds


def with_own_sizes(cfg: Config) -> Config:
    """`cfg` with the encoder's own frame count and picture size where it leaves them to the encoder.

    Raises: ValueError naming the encoder if there is none, or it cannot take clips of the sizes that are given.
    """
    if cfg.backbone.kind is BackboneKind.TIMESFORMER:
        return cfg
    from diveparse.models.weights.encoders import read_encoder

    encoder, _ = read_encoder(str(cfg.backbone.weights))
    num_frames, image_size = cfg.clip.num_frames or encoder.num_frames, cfg.clip.image_size or encoder.image_size
    encoder.require_clips(num_frames=num_frames, image_size=image_size)
    return replace(cfg, clip=replace(cfg.clip, num_frames=num_frames, image_size=image_size))


def starting_backbone(cfg: BackboneConfig, clip: ClipConfig) -> Backbone:
    """The backbone of a training before its first update.

    Raises: ValueError if the weights that the config names are missing or do not fit.
    """
    if cfg.kind is BackboneKind.TRANSFORMERS:
        from diveparse.models.build_encoder import load_encoder

        return load_encoder(cfg, num_frames=clip.num_frames, image_size=clip.image_size)
    if cfg.weights is None:
        return build_backbone(cfg, num_frames=clip.num_frames, image_size=clip.image_size)
    return load_backbone(cfg.weights, cfg, num_frames=clip.num_frames, image_size=clip.image_size)


def saved_backbone(cfg: BackboneConfig, clip: ClipConfig, path: Path, state: Mapping[str, Tensor]) -> Backbone:
    """The backbone of a saved model, to be given its weights. path: of the model's config.json; state: the weights.

    Raises: ValueError if the sizes do not fit together, or there are far more weights than in `state`.
    """
    sizes = {"num_frames": clip.num_frames, "image_size": clip.image_size}
    if cfg.kind is BackboneKind.TRANSFORMERS:
        from diveparse.models.build_encoder import build_encoder
        from diveparse.models.weights.encoders import described_encoder

        encoder = described_encoder(read_json_object(path).get("encoder"), "encoder")
        num_held = sum(tensor.numel() for tensor in state.values())
        return build_encoder(encoder, cfg, **sizes, num_held=num_held)
    require_held(state, cfg, **sizes)
    return build_backbone(cfg, **sizes)


def build_backbone(cfg: BackboneConfig, *, num_frames: int, image_size: int) -> TimeSformer:
    """A TimeSformer with fresh weights."""
    return TimeSformer(cfg, num_frames=num_frames, image_size=image_size)


def load_backbone(source: str, cfg: BackboneConfig, *, num_frames: int, image_size: int) -> TimeSformer:
    """A TimeSformer with saved weights, in place of `cfg.weights`.

    source: as for `read_source`. Position and time embeddings are resized, which is logged, where the picture
    size or frame count is another.
    Raises: ValueError naming the source if there is none, it is damaged, or other sizes were built into it.
    """
    saved = read_source(source, num_frames)
    if saved.num_heads not in (None, cfg.num_heads):
        raise ValueError(
            f"{source}: made with num_heads={saved.num_heads}, but the config has {cfg.num_heads}; "
            f"set backbone.num_heads={saved.num_heads}"
        )
    return build_backbone(cfg, num_frames=num_frames, image_size=image_size).load_saved(saved)
