"""Size and speed of the encoders of `transformers`, of the sizes in which they are published, with random weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from diveparse.configs import BackboneConfig, BackboneKind
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.models.build_encoder import build_encoder
from diveparse.models.weights.encoders import FAMILIES, IMAGENET_PIXELS, SavedEncoder, parse_config
from diveparse.models.weights.published import PixelStatistics

# what differs from the defaults of `transformers`, which are the base sizes but for V-JEPA 2's, the ViT-L
PUBLISHED: dict[str, Mapping[str, Any]] = {
    "timesformer": {},
    "videomae": {},
    "vivit": {},
    "vjepa2": {"frames_per_clip": 32},  # as the published models of Diving48
    "videoprism_vision_model": {},
}


@dataclass(frozen=True)
class EncoderMeasurement:
    """An encoder, and how long a clip takes."""

    family: str
    num_frames: int
    image_size: int  # pixels
    num_parameters: int
    num_tokens: int  # of a clip, the class token included
    cache_bytes: int  # of a clip in the feature cache: one view, one layer
    times_s: list[float]  # of the forward pass of one clip, one a repeat


def measure_encoder(model_type: str, repeats: int, num_threads: int) -> EncoderMeasurement:
    """Run one clip forward in fp32 on the CPU, once to warm up and then `repeats` times."""
    config = parse_config({"model_type": model_type, **PUBLISHED[model_type]}, model_type)
    pixels = PixelStatistics(*(tuple(values) for values in IMAGENET_PIXELS.values()))
    saved = SavedEncoder(model_type, config, pixels)
    cfg = BackboneConfig(kind=BackboneKind.TRANSFORMERS, weights=model_type)
    torch.manual_seed(0)
    encoder = build_encoder(saved, cfg, num_frames=saved.num_frames, image_size=saved.image_size).eval()
    clip = torch.randn(1, saved.num_frames, NUM_CHANNELS, saved.image_size, saved.image_size)
    times_s = []
    with threads(num_threads), torch.no_grad():
        for _ in range(1 + repeats):
            begun = time.perf_counter()
            tokens = encoder.tokens(clip)
            times_s.append(time.perf_counter() - begun)
    return EncoderMeasurement(
        FAMILIES[model_type].name,
        saved.num_frames,
        saved.image_size,
        sum(parameter.numel() for parameter in encoder.parameters()),
        tokens.shape[1],
        tokens.numel() * torch.float16.itemsize,
        times_s[1:],
    )


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
