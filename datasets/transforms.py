"""From decoded frames to what the backbone sees.

The picture is resized once, while its pixels are converted (`decode_size` says to what), and a square is cut from it.
torchvision's v2 transforms draw their random numbers once for a tensor (time, channel, height, width), so all frames of
a clip are cropped, flipped and coloured alike. Random numbers come from torch's default generator.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from diveparse.configs import ClipConfig
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.video import VideoInfo

# Where along the long side the squares of a test clip lie: 0 is left or top, 1 is right or bottom.
SPATIAL_VIEWS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}


def decode_size(info: VideoInfo, clip_cfg: ClipConfig, *, area_share: float = 1.0) -> tuple[int, int]:
    """The (height, width) to decode to, so that a square of `image_size` holds `area_share` of the largest square.

    The proportions of the picture are kept: a pike must not look like a tuck.
    """
    short_side = clip_cfg.image_size / area_share**0.5
    scale = short_side / min(info.height, info.width)
    return max(round(info.height * scale), clip_cfg.image_size), max(round(info.width * scale), clip_cfg.image_size)


def random_area_share(clip_cfg: ClipConfig) -> float:
    """How much of the largest square a training crop keeps: uniform from `crop_scale_min` to 1."""
    return 1 - (1 - clip_cfg.crop_scale_min) * torch.rand(()).item()


def train_transform(clip_cfg: ClipConfig) -> v2.Compose:
    """uint8 (time, 3, height, width) -> float (time, 3, image_size, image_size): a random square, flipped and coloured.

    A flip mirrors diver and board together and a dive number knows neither left nor right, so every label is kept.
    """
    jitter = clip_cfg.color_jitter
    return v2.Compose(
        [
            v2.RandomCrop(clip_cfg.image_size),
            v2.RandomHorizontalFlip(0.5 if clip_cfg.flip else 0.0),
            v2.ToDtype(torch.float32, scale=True),
            v2.ColorJitter(jitter, jitter, jitter),  # no hue, which costs six times the rest; faster on floats
            v2.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )


def eval_transform(clip_cfg: ClipConfig, position: float = 0.5) -> v2.Compose:
    """uint8 (time, 3, height, width) -> float (time, 3, image_size, image_size): a square at one of SPATIAL_VIEWS."""
    crop = partial(cut_square, size=clip_cfg.image_size, position=position)  # a partial travels to worker processes
    return v2.Compose([crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(PIXEL_MEAN, PIXEL_STD)])


def cut_square(frames: Tensor, *, size: int, position: float) -> Tensor:
    """The square at `position`, from 0 at the left or top to 1. frames: (…, height, width) -> (…, size, size)."""
    top, left = (round((side - size) * position) for side in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]
