"""From decoded frames to the backbone's input.

A picture is resized once, while its pixels are converted (to `decode_size`), and a square is cut from it. torchvision's
v2 transforms draw their random numbers once for a tensor (time, channel, height, width), so all frames of a clip are
cropped, flipped and coloured alike. Random numbers come from torch's default generator.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms import v2

from diveparse.configs import ClipConfig
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.video import VideoInfo

# By the number of spatial views: where on the long side their squares lie, from 0 (left or top) to 1 (right or bottom)
SPATIAL_VIEWS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}
MEAN_COLOR = [255 * mean for mean in PIXEL_MEAN]
MEASURING = ("AutoContrast", "Contrast", "Equalize")  # operations that depend on the brightness of the whole picture


def decode_size(info: VideoInfo, clip_cfg: ClipConfig, *, area_share: float = 1.0) -> tuple[int, int]:
    """The (height, width) to decode to, so that a square of `image_size` covers `area_share` of the largest square.

    The picture keeps its proportions: a pike must not look like a tuck.
    """
    short_side = clip_cfg.image_size / area_share**0.5
    scale = short_side / min(info.height, info.width)
    return max(round(info.height * scale), clip_cfg.image_size), max(round(info.width * scale), clip_cfg.image_size)


def random_area_share(clip_cfg: ClipConfig) -> float:
    """The share of the largest square that a training crop keeps, drawn uniformly from `crop_scale_min` to 1."""
    return 1 - (1 - clip_cfg.crop_scale_min) * torch.rand(()).item()


class ClipRandAugment(v2.RandAugment):
    """Two random operations on colours or geometry, the same two at the same strength for every frame.

    torchvision draws once for a clip, uint8 (time, 3, height, width), but some operations measure each frame by itself.
    Here they measure the clip as a whole, so that its brightness does not flicker.
    Source: Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", 2020.
    """

    def __init__(self, magnitude: int) -> None:
        super().__init__(2, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=MEAN_COLOR)

    def _apply_image_or_video_transform(self, image: Tensor, transform_id: str, *args: Any, **kwargs: Any) -> Tensor:
        apply = super()._apply_image_or_video_transform
        if transform_id not in MEASURING:
            return apply(image, transform_id, *args, **kwargs)
        one_picture = rearrange(image, "t c h w -> c (t h) w")
        return rearrange(apply(one_picture, transform_id, *args, **kwargs), "c (t h) w -> t c h w", t=len(image))


def train_transform(clip_cfg: ClipConfig) -> v2.Compose:
    """uint8 (time, 3, height, width) -> float (time, 3, image_size, image_size): a random square, flipped and coloured.

    A flip mirrors diver and board together, and no dive number depends on left and right, so the label stays true. It
    also does under the random operations, which turn a picture by 1 degree, shear it by 1 % and shift it by 1.5 % per
    unit of magnitude. A vertical flip or a right-angle turn would change the dive.
    """
    jitter = clip_cfg.color_jitter
    operations = [ClipRandAugment(clip_cfg.rand_augment_magnitude)] if clip_cfg.rand_augment_magnitude > 0 else []
    # one box for all frames, in the mean colour; Zhong et al., "Random erasing data augmentation", AAAI 2020
    erasing = [v2.RandomErasing(clip_cfg.erasing_probability)] if clip_cfg.erasing_probability > 0 else []
    return v2.Compose(
        [
            v2.RandomCrop(clip_cfg.image_size),
            v2.RandomHorizontalFlip(0.5 if clip_cfg.flip else 0.0),
            *operations,
            v2.ToDtype(torch.float32, scale=True),
            v2.ColorJitter(jitter, jitter, jitter),  # without hue, six times as slow; faster on floats
            v2.Normalize(PIXEL_MEAN, PIXEL_STD),
            *erasing,
        ]
    )


def eval_transform(clip_cfg: ClipConfig, position: float = 0.5) -> v2.Compose:
    """uint8 (time, 3, height, width) -> float (time, 3, image_size, image_size): a square at one of SPATIAL_VIEWS."""
    crop = partial(cut_square, size=clip_cfg.image_size, position=position)  # a partial can be sent to worker processes
    return v2.Compose([crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(PIXEL_MEAN, PIXEL_STD)])


def cut_square(frames: Tensor, *, size: int, position: float) -> Tensor:
    """The square at `position`, from 0 at the left or top to 1. frames: (…, height, width) -> (…, size, size)."""
    top, left = (round((side - size) * position) for side in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]
