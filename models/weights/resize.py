"""Embeddings stretched to other picture sizes and frame counts."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


def resize_space_embed(space_embed: Tensor, num_patches: int) -> Tensor:
    """Stretch position embeddings to another square grid of patches; the class token's is kept.

    space_embed: (1, 1 + old patches, embed_dim). Returns: (1, 1 + num_patches, embed_dim).
    """
    class_embed, patch_embed = space_embed[:, :1], space_embed[:, 1:]
    old_side, new_side = round(patch_embed.shape[1] ** 0.5), round(num_patches**0.5)
    grid = rearrange(patch_embed, "1 (h w) d -> 1 d h w", h=old_side)
    grid = nn.functional.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([class_embed, rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)


def resize_time_embed(time_embed: Tensor, num_frames: int) -> Tensor:
    """Stretch time embeddings to another frame count. time_embed: (1, old frames, embed_dim)."""
    line = rearrange(time_embed, "1 t d -> 1 d t")
    line = nn.functional.interpolate(line, size=num_frames, mode="linear", align_corners=False)
    return rearrange(line, "1 d t -> 1 t d")
