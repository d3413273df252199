"""The backbone that a config describes; the one place to add another."""

from __future__ import annotations

from diveparse.configs import BackboneConfig
from diveparse.models.timesformer import TimeSformer
from diveparse.models.weights.sources import read_source


def build_backbone(cfg: BackboneConfig, *, num_frames: int, image_size: int) -> TimeSformer:
    """A backbone with fresh weights."""
    return TimeSformer(cfg, num_frames=num_frames, image_size=image_size)


def load_backbone(source: str, cfg: BackboneConfig, *, num_frames: int, image_size: int) -> TimeSformer:
    """A backbone with saved weights, in place of `cfg.weights`.

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
