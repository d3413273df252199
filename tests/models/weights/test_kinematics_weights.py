from __future__ import annotations

from pathlib import Path

import torch

from diveparse.configs import load_config
from diveparse.models.build import load_backbone
from diveparse.models.weights.sources import PACKAGED_KINEMATICS

DEMO = Path(__file__).resolve().parents[3] / "configs" / "demo.yaml"


def test_the_packaged_weights_fit_the_demo_and_see_a_difference_between_clips() -> None:
    cfg = load_config(DEMO, [])
    backbone = load_backbone(
        "kinematics", cfg.backbone, num_frames=cfg.clip.num_frames, image_size=cfg.clip.image_size
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        features = backbone(torch.randn(2, cfg.clip.num_frames, 3, cfg.clip.image_size, cfg.clip.image_size))
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert all(parameter.dtype is torch.float32 for parameter in backbone.parameters())
    assert max(block.time_proj.weight.abs().max() for block in backbone.blocks) > 1e-3  # trained along time


def test_the_packaged_weights_are_small_enough_to_ship() -> None:
    assert PACKAGED_KINEMATICS.stat().st_size <= 8_000_000
