"""Backbones that others trained, brought under this project's names, shapes and pixel statistics.

FAIR's checkpoints are read here; huggingface.py and inflate.py beside it read other formats with the same tools.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from diveparse.configs import BackboneConfig
from diveparse.datasets.constants import NUM_CHANNELS, PIXEL_MEAN, PIXEL_STD
from diveparse.models.weights.files import described, read_checkpoint

# d embed_dim, c channel, p and q rows and columns of a patch, pq both in one axis

KERNEL, KERNEL_BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
MODEL_STATE = "model_state"  # where FAIR's checkpoints keep the weights
LAYER_NORM_EPS = 1e-6  # of every TimeSformer's layer norms

# theirs -> ours; `*` counts the blocks
IMAGE_NAMES = {  # of timm's image transformers, which FAIR's code extends
    "cls_token": "class_token",
    "pos_embed": "space_embed",
    "patch_embed.proj": "patch_embed.proj",
    "blocks.*.norm1": "blocks.*.space_norm",
    "blocks.*.attn.qkv": "blocks.*.space_attn.qkv",
    "blocks.*.attn.proj": "blocks.*.space_attn.proj",
    "blocks.*.norm2": "blocks.*.mlp_norm",
    "blocks.*.mlp.fc1": "blocks.*.mlp.fc1",
    "blocks.*.mlp.fc2": "blocks.*.mlp.fc2",
    "norm": "norm",
}
FAIR_NAMES = IMAGE_NAMES | {
    "time_embed": "time_embed",
    "blocks.*.temporal_norm1": "blocks.*.time_norm",
    "blocks.*.temporal_attn.qkv": "blocks.*.time_attn.qkv",
    "blocks.*.temporal_attn.proj": "blocks.*.time_attn.proj",
    "blocks.*.temporal_fc": "blocks.*.time_proj",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedBackbone:
    """The weights of a backbone under this project's names; what has no such name keeps its own."""

    origin: str  # the path, hub id or model that they come from, for messages
    state: dict[str, Tensor]
    num_heads: int | None  # the one size that no shape shows; None where the source lacks it


class SizedBackbone(Protocol):
    """A backbone that can be written: its sizes, and its tensors by name."""

    config: BackboneConfig
    num_frames: int
    image_size: int

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class PixelStatistics:
    """What pixels in [0, 1] are normalised with, a channel each: (pixel - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"mean {self.mean} and standard deviation {self.std}"


OWN_PIXELS = PixelStatistics(PIXEL_MEAN, PIXEL_STD)
FAIR_PIXELS = PixelStatistics((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))  # DATA.MEAN and DATA.STD of FAIR's code


def read_fair(path: Path) -> SavedBackbone:
    """The backbone of a checkpoint that FAIR's code wrote, its head left out.

    Raises: ValueError naming the file if there is none, it is damaged, or it pickles anything but plain data.
    Source: https://github.com/facebookresearch/TimeSformer, timesformer/models/vit.py and utils/checkpoint.py.
    """
    origin = str(path)
    state = in_own_names(read_checkpoint(path, MODEL_STATE), FAIR_NAMES, "model.", "model.head.", origin)
    return SavedBackbone(origin, in_own_pixels(state, FAIR_PIXELS, origin), num_heads=None)


def in_own_names(
    state: Mapping[str, Tensor], names: Mapping[str, str], prefix: str, head: str, origin: str
) -> dict[str, Tensor]:
    """Rename every tensor in `names`; the rest keeps its name, under which it is refused later.

    The kernel of the patch embedding becomes the matrix it is, and what starts with `head` is left out, which is
    logged. Raises: ValueError if two tensors would get the same name.
    """
    left_out = {name: tensor for name, tensor in state.items() if name.startswith(head)}
    if left_out:
        logger.info("%s: left out the head of another task: %s", origin, described(left_out))
    own: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own_name = renamed(name.removeprefix(prefix), names)
        if own_name in own:
            raise ValueError(f"{origin}: two tensors for {own_name}, one of them {described({name: tensor})}")
        if name not in left_out:
            own[own_name] = tensor.cpu()
    kernel = own.get(KERNEL)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] == NUM_CHANNELS:
        own[KERNEL] = rearrange(kernel, "d c p q -> d (c p q)")
    return own


def renamed(name: str, names: Mapping[str, str]) -> str:
    """What `names` makes of a tensor's name, or the name itself if that is not among them."""
    number = re.search(r"\.(\d+)\.", name)
    general = name if number is None else name.replace(number[0], ".*.", 1)
    stem = general.removesuffix(".weight").removesuffix(".bias")
    if stem not in names:
        return name
    new_name = names[stem] + general.removeprefix(stem)
    return new_name if number is None else new_name.replace("*", number[1])


def in_own_pixels(state: Mapping[str, Tensor], pixels: PixelStatistics | None, origin: str) -> dict[str, Tensor]:
    """Let the patch embedding take clips normalised as here, and answer what it did to its own pixels.

    Exact: it is linear, no border is padded, and one normalisation is an affine map of the other, channel by channel.
    None, for unknown statistics, changes nothing, which is logged. Raises: ValueError for impossible statistics.
    """
    state = dict(state)
    if pixels is None:
        logger.info("%s: no pixel statistics; pixels are taken as normalised as here, with %s", origin, OWN_PIXELS)
        return state
    if not len(pixels.mean) == len(pixels.std) == NUM_CHANNELS or min(pixels.std) <= 0:
        raise ValueError(f"{origin}: expected {NUM_CHANNELS} means and positive standard deviations, got {pixels}")
    kernel, bias = state.get(KERNEL), state.get(KERNEL_BIAS)
    if kernel is None or bias is None or kernel.ndim != 2 or kernel.shape[1] % NUM_CHANNELS or len(bias) != len(kernel):
        return state  # no TimeSformer's; refused later, by name and shape
    if pixels == OWN_PIXELS:
        return state
    own_mean, own_std, mean, std = (
        torch.tensor(values, dtype=torch.float64) for values in (PIXEL_MEAN, PIXEL_STD, pixels.mean, pixels.std)
    )
    gain, offset = own_std / std, (own_mean - mean) / std  # theirs = ours * gain + offset
    kernel = rearrange(kernel.double(), "d (c pq) -> d c pq", c=NUM_CHANNELS)
    shift = einsum(reduce(kernel, "d c pq -> d c", "sum"), offset, "d c, c -> d")
    state[KERNEL] = rearrange(einsum(kernel, gain, "d c pq, c -> d c pq"), "d c pq -> d (c pq)").float()
    state[KERNEL_BIAS] = (bias.double() + shift).float()
    logger.info("%s: the patch embedding takes over the change from pixels of %s to %s", origin, OWN_PIXELS, pixels)
    return state


def with_zero_qkv_biases(state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """`state` with biases of zero, which change nothing, where queries, keys and values have none; logged."""
    weights = {name: tensor for name, tensor in state.items() if name.endswith("attn.qkv.weight")}
    zeros = {name.removesuffix("weight") + "bias": tensor.new_zeros(len(tensor)) for name, tensor in weights.items()}
    logger.info("%s: trained without biases of queries, keys and values; set to zero: %s", origin, described(zeros))
    return dict(state) | zeros
