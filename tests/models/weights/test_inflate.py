from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from einops import repeat
from safetensors.torch import save_file
from timm.layers import QuickGELU, SwiGLU
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from diveparse.configs import BackboneConfig
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.models import TimeSformer, load_backbone


def image_model(**sizes: Any) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5} | sizes
    vit = VisionTransformer(**sizes).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))
    return vit


def normalised(pixels: Tensor, mean: Any = PIXEL_MEAN, std: Any = PIXEL_STD) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


def random_images(size: int) -> Tensor:
    """Pixels in [0, 1], (2, 3, size, size)."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def still_clips(images: Tensor, num_frames: int) -> Tensor:
    return repeat(normalised(images), "b c h w -> b t c h w", t=num_frames)


@pytest.mark.parametrize("statistics", [None, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
@pytest.mark.parametrize(
    ("num_frames", "sizes"),
    [
        (1, {}),
        (4, {"qkv_bias": False}),
        (3, {"img_size": 48, "patch_size": 16, "embed_dim": 24, "num_heads": 4, "depth": 3, "mlp_ratio": 2.5}),
    ],
)
@torch.no_grad()
def test_a_still_clip_has_the_features_of_its_picture_in_the_image_model(
    num_frames: int, sizes: dict[str, Any], statistics: tuple[Any, Any] | None
) -> None:
    vit = image_model(**sizes)
    if statistics is not None:
        vit.pretrained_cfg = {"architecture": "vit_tiny", "mean": statistics[0], "std": statistics[1]}
    images = random_images(vit.patch_embed.img_size[0])
    seen = normalised(images) if statistics is None else normalised(images, *statistics)
    backbone = TimeSformer.from_pretrained(vit, num_frames=num_frames)
    expected = vit.forward_features(seen)[:, 0]
    torch.testing.assert_close(backbone(still_clips(images, num_frames)), expected, rtol=1e-5, atol=1e-5)


def test_time_starts_as_space_and_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    vit = image_model()
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        backbone = TimeSformer.from_pretrained(vit, num_frames=3)
    state = backbone.state_dict()
    for block in range(2):
        for name in ("norm.weight", "norm.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"):
            assert torch.equal(state[f"blocks.{block}.time_{name}"], state[f"blocks.{block}.space_{name}"])
        assert not state[f"blocks.{block}.time_proj.weight"].any()
    assert state["time_embed"].shape == (1, 3, 16)
    assert not state["time_embed"].any()
    assert "time attention starts as space attention" in caplog.text
    assert "left out the head of another task: head.weight (5, 16), head.bias (5,)" in caplog.text
    assert "no pixel statistics" in caplog.text


def test_other_picture_sizes_are_resized_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        backbone = TimeSformer.from_pretrained(image_model(), num_frames=2, image_size=32)
    assert backbone(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 16)
    assert "resized space_embed from (1, 5, 16) to (1, 17, 16)" in caplog.text


class Longer(VisionTransformer):
    """A subclass may compute anything."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_values": 0.1}, r"unexpected: blocks\.0\.ls1\.gamma \(16,\)"),
        ({"qk_norm": True}, r"unexpected: blocks\.0\.attn\.q_norm\.weight \(8,\)"),
        ({"scale_attn_norm": True}, r"unexpected: blocks\.0\.attn\.norm\.weight \(16,\)"),
        ({"pre_norm": True}, r"unexpected: norm_pre\.weight \(16,\)"),
        ({"reg_tokens": 4}, r"unexpected: reg_token \(1, 4, 16\).*space_embed \(1, 9, 16\) instead of \(1, 5, 16\)"),
        ({"no_embed_class": True}, r"of another shape: space_embed \(1, 4, 16\) instead of \(1, 5, 16\)"),
        ({"class_token": False, "global_pool": "avg"}, "missing: class_token"),
        ({"global_pool": "avg"}, r"missing: norm\.weight \(16,\).*unexpected: fc_norm\.weight \(16,\)"),
        ({"pos_embed": "none"}, "missing: space_embed"),
        ({"mlp_layer": SwiGLU}, r"blocks\.0\.mlp is a SwiGLU instead of a Mlp"),
        ({"act_layer": QuickGELU}, r"blocks\.0\.mlp\.act is a QuickGELU instead of a GELU"),
        ({"act_layer": partial(nn.GELU, approximate="tanh")}, r"blocks\.0\.mlp\.act is a GELU instead of"),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-5)}, r"blocks\.0\.norm1 has eps=1e-05 instead of 1e-06"),
        ({"norm_layer": nn.RMSNorm}, r"missing: blocks\.0\.time_norm\.bias"),
        ({"block_fn": ResPostBlock}, r"blocks\.0 is a ResPostBlock instead of a Block"),
        ({"in_chans": 1}, r"patch_embed\.proj\.weight \(16, 1, 8, 8\) instead of \(16, 192\)"),
        ({"img_size": (16, 32)}, "patch_embed makes 2 x 4 patches instead of a square of them"),
    ],
)
def test_what_this_backbone_does_not_do_is_refused(change: dict[str, Any], message: str, monkeypatch: Any) -> None:
    vit = image_model(**change)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: vit)
    cfg = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(ValueError, match=rf"^timm/odd: .*{message}"):
        load_backbone("timm/odd", cfg, num_frames=2, image_size=16)
    with pytest.raises(ValueError, match="timm "):
        TimeSformer.from_pretrained(vit, num_frames=2)


def test_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a timm VisionTransformer, got a Linear"):
        TimeSformer.from_pretrained(nn.Linear(2, 2), num_frames=2)
    with pytest.raises(ValueError, match="expected a timm VisionTransformer, got a Longer"):
        TimeSformer.from_pretrained(Longer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2), num_frames=2)
    with pytest.raises(ValueError, match="an image model has no frame count; give num_frames"):
        TimeSformer.from_pretrained(image_model())


@torch.no_grad()
def test_a_pretrained_model_is_found_by_name(tmp_path: Path) -> None:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 5, "input_size": [3, 16, 16]}
    vit = image_model(**sizes)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": sizes, "pretrained_cfg": half}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    backbone = TimeSformer.from_pretrained(f"timm/local-dir:{tmp_path}", num_frames=2)
    expected = vit.forward_features(normalised(random_images(16), half["mean"], half["std"]))[:, 0]
    torch.testing.assert_close(backbone(still_clips(random_images(16), 2)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_base_patch17_224", r"Unknown model \(vit_base_patch17_224\)"),
        ("vit_tiny_patch16_224.nope", r"Invalid pretrained tag \(nope\)"),
        ("owner/name", "has no source prefix"),
    ],
)
def test_a_name_that_timm_lacks_is_one_line(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^timm/{name}: timm does not give it \(.*\): .*{reason}.*$"):
        TimeSformer.from_pretrained(f"timm/{name}", num_frames=2)
