"""The sizes of a backbone: read off the shapes of weights, and checked before anything of such a size is built."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diveparse.configs import BackboneConfig, StemKind
from diveparse.configs.bounds import require
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.datasets.storage.memory import require_memory
from diveparse.models.weights.files import described, shape_of
from diveparse.models.weights.published import KERNEL, SavedBackbone

BLOCK_NAME = re.compile(r"blocks\.(\d{1,10})\.")
FAIR_HEAD_DIM = 64  # channels of one head, in all that FAIR's code builds
MIN_SHARE_HELD = 0.25  # of the numbers of a backbone; weights that hold fewer claim sizes that they do not have

logger = logging.getLogger(__name__)


def read_sizes(saved: SavedBackbone) -> tuple[BackboneConfig, int, int]:
    """The sizes that the shapes of the weights tell. Returns: config, frame count, picture size in pixels.

    Raises: ValueError listing what is missing, if these are no weights of a TimeSformer, or naming a size that no
    backbone has.
    """
    state, origin = saved.state, saved.origin
    is_conv = any(name.startswith("patch_embed.net.") for name in state)
    needed = {"class_token": 3, "space_embed": 3, "time_embed": 3, "blocks.0.mlp.fc1.weight": 2}  # name -> axes
    if not is_conv:
        needed[KERNEL] = 2
    missing = [name for name, num_axes in needed.items() if name not in state or state[name].ndim != num_axes]
    if missing:
        raise ValueError(f"{origin}: not the weights of a TimeSformer: no {', '.join(missing)} in {described(state)}")
    try:
        cfg = _config_of(saved, is_conv)
        num_frames, num_places = state["time_embed"].shape[1], state["space_embed"].shape[1]
        require(num_frames > 0, "clip.num_frames", "> 0", num_frames)
        require(num_places > 1, "space_embed", "a class token and one patch or more", shape_of(state["space_embed"]))
        image_size = cfg.patch_size * math.isqrt(num_places - 1)
        require_held(state, cfg, num_frames=num_frames, image_size=image_size)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return cfg, num_frames, image_size


def _config_of(saved: SavedBackbone, is_conv: bool) -> BackboneConfig:
    """Raises: ValueError for sizes that no backbone has."""
    state = saved.state
    embed_dim, hidden_dim = state["class_token"].shape[2], len(state["blocks.0.mlp.fc1.weight"])
    require(embed_dim > 0, "backbone.embed_dim", "> 0", embed_dim)
    mlp_ratio = hidden_dim / embed_dim
    if int(embed_dim * mlp_ratio) != hidden_dim:  # rounded down
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)
    if is_conv:  # the first convolution strides by 4, the last by 1, those between by 2
        num_convs = sum(name.startswith("patch_embed.net.") and tensor.ndim == 4 for name, tensor in state.items())
        require(2 <= num_convs < 16, "patch_embed.net", "2 to 15 convolutions", num_convs)
        patch_size = 4 << (num_convs - 2)
    else:
        patch_size = math.isqrt(state[KERNEL].shape[1] // NUM_CHANNELS)
    numbers = {int(match[1]) for match in map(BLOCK_NAME.match, state) if match}
    cfg = BackboneConfig(
        stem=StemKind.CONV if is_conv else StemKind.PATCH,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=1 + max(numbers),
        num_heads=_num_heads(saved, embed_dim),
        mlp_ratio=mlp_ratio,
    )
    absent = [number for number in range(cfg.depth) if number not in numbers]
    if absent:
        raise ValueError(f"holds weights of block {cfg.depth - 1}, but none of block {absent[0]}")
    return cfg


def _num_heads(saved: SavedBackbone, embed_dim: int) -> int:
    if saved.num_heads is not None:
        require(type(saved.num_heads) is int, "backbone.num_heads", "a whole number", saved.num_heads)
        return saved.num_heads
    if embed_dim % FAIR_HEAD_DIM != 0:
        raise ValueError(
            f"has no num_heads, and embed_dim={embed_dim} is no multiple of {FAIR_HEAD_DIM}, the width of "
            "every head in FAIR's code; name it in backbone.weights of a config, and set backbone.num_heads there"
        )
    num_heads = embed_dim // FAIR_HEAD_DIM
    logger.info("%s: num_heads=%d, as every head of FAIR's code is %d wide", saved.origin, num_heads, FAIR_HEAD_DIM)
    return num_heads


def require_held(state: Mapping[str, Tensor], cfg: BackboneConfig, *, num_frames: int, image_size: int) -> None:
    """Refuse weights far fewer than a backbone of such a size has, before it is built to be compared with them.

    Raises: ValueError with both numbers.
    """
    held = sum(tensor.numel() for tensor in state.values())
    least = least_num_weights(cfg, num_frames=num_frames, image_size=image_size)
    if held < MIN_SHARE_HELD * least:
        raise ValueError(
            f"the file of weights does not fit a backbone with {_sizes(cfg)}, {num_frames} frames of {image_size} "
            f"pixels: {held:,} numbers instead of {least:,} or more"
        )


def require_buildable(cfg: BackboneConfig, *, num_frames: int, image_size: int) -> None:
    """Refuse a backbone larger than the memory. Raises: ValueError with its sizes and the memory that there is."""
    num_bytes = torch.float32.itemsize * least_num_weights(cfg, num_frames=num_frames, image_size=image_size)
    require_memory(num_bytes, f"weights of {_sizes(cfg)}, with {num_frames} frames of {image_size} pixels,")


def least_num_weights(cfg: BackboneConfig, *, num_frames: int, image_size: int) -> int:
    """How many numbers a backbone holds, without its stem, its norms and its biases: 99 % of a large one."""
    places = (image_size // cfg.patch_size) ** 2 + num_frames
    matrices = 9 * cfg.embed_dim + 2 * int(cfg.embed_dim * cfg.mlp_ratio)  # two attentions, `time_proj` and the MLP
    return cfg.embed_dim * (places + cfg.depth * matrices)


def _sizes(cfg: BackboneConfig) -> str:
    return f"backbone.depth={cfg.depth}, backbone.embed_dim={cfg.embed_dim} and backbone.mlp_ratio={cfg.mlp_ratio:g}"
