"""Image transformers of timm, inflated to video: what the paper's own training started from."""

from __future__ import annotations

import logging
import re
from typing import cast

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from diveparse.models.weights.files import shortened
from diveparse.models.weights.published import (
    IMAGE_NAMES,
    LAYER_NORM_EPS,
    PixelStatistics,
    SavedBackbone,
    in_own_names,
    in_own_pixels,
    with_zero_qkv_biases,
)

logger = logging.getLogger(__name__)


def open_timm(name: str) -> nn.Module:
    """timm's pretrained model of that name, e.g. vit_base_patch16_224.augreg_in21k; or "local-dir:FOLDER".

    Raises: ValueError if timm has no such model or cannot fetch its weights.
    """
    try:
        return timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:  # no such name or tag; no connection; a name like a path
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"timm/{name}: timm does not give it (no such pretrained model, or offline; "
            f"timm/local-dir:FOLDER reads one from a folder): {reason}"
        ) from error


def inflate_timm(model: nn.Module, num_frames: int | None, origin: str | None = None) -> SavedBackbone:
    """Turn an image transformer into a backbone with the same features of a still clip.

    Time attention and its norm start as copies of those of space; the temporal projection and the time embeddings
    start at zero. The head is left out. Pixel statistics are those of `model.pretrained_cfg`, where it has some.

    Raises: ValueError if `num_frames` is None, or listing the layers that this backbone does not have.
    Source: `load_pretrained` in timesformer/models/helpers.py of FAIR's code.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    origin = origin or f"timm {cfg.get('architecture', type(model).__name__)}"
    if num_frames is None:
        raise ValueError(f"{origin}: an image model has no frame count; give num_frames")
    vit = _with_same_layers(model, origin)
    state = in_own_names(vit.state_dict(), IMAGE_NAMES, "", "head.", origin)
    for name, tensor in list(state.items()):
        if re.match(r"blocks\.\d+\.space_", name):
            state[name.replace(".space_", ".time_")] = tensor
    for block in range(len(vit.blocks)):
        state[f"blocks.{block}.time_proj.weight"] = torch.zeros(vit.embed_dim, vit.embed_dim)
        state[f"blocks.{block}.time_proj.bias"] = torch.zeros(vit.embed_dim)
    state["time_embed"] = torch.zeros(1, num_frames, vit.embed_dim)
    logger.info("%s: time attention starts as space attention, its projection and the time embeddings at zero", origin)
    attn = cast(Attention, vit.get_submodule("blocks.0.attn"))
    if attn.qkv.bias is None:
        state = with_zero_qkv_biases(state, origin)
    pixels = PixelStatistics(tuple(cfg["mean"]), tuple(cfg["std"])) if {"mean", "std"} <= cfg.keys() else None
    return SavedBackbone(origin, in_own_pixels(state, pixels, origin), attn.num_heads)


def _with_same_layers(vit: nn.Module, origin: str) -> VisionTransformer:
    """`vit` itself, unless something differs that names and shapes do not show. Raises: ValueError listing it."""
    if type(vit) is not VisionTransformer:
        raise ValueError(f"{origin}: expected a timm VisionTransformer, got a {type(vit).__name__}")
    kinds: dict[str, type[nn.Module]] = {"patch_embed": PatchEmbed}
    for block in range(len(vit.blocks)):
        kinds |= {f"blocks.{block}": Block, f"blocks.{block}.attn": Attention, f"blocks.{block}.mlp": Mlp}
    x = torch.linspace(-4, 4, 81)
    others = []
    for name, layer in vit.named_modules():
        if name in kinds and type(layer) is not kinds[name]:
            others.append(f"{name} is a {type(layer).__name__} instead of a {kinds[name].__name__}")
        if isinstance(layer, nn.LayerNorm) and layer.eps != LAYER_NORM_EPS:
            others.append(f"{name} has eps={layer.eps} instead of {LAYER_NORM_EPS}")
        if name.endswith("mlp.act") and not torch.allclose(layer(x), F.gelu(x), rtol=0, atol=1e-6):
            others.append(f"{name} is a {type(layer).__name__} instead of a GELU")
    height, width = vit.patch_embed.grid_size
    if height != width:
        others.append(f"patch_embed makes {height} x {width} patches instead of a square of them")
    if others:
        raise ValueError(f"{origin}: differs from this backbone: {shortened(others)}")
    return vit
