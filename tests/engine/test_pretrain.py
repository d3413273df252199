from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig, PretrainConfig, TrainConfig
from diveparse.engine.pretrain import normalise, pretrain, relight
from diveparse.models.weights import load_backbone


def tiny(runs_dir: Path, num_epochs: int) -> PretrainConfig:
    return PretrainConfig(
        name="tiny",
        runs_dir=str(runs_dir),
        clips_per_epoch=4,
        num_easy_clips=4,
        num_workers=0,
        clip=ClipConfig(num_frames=4, image_size=32),
        backbone=BackboneConfig(embed_dim=16, depth=2, num_heads=2),
        train=TrainConfig(num_epochs=num_epochs, batch_size=2, log_every=1),
    )


def test_pretraining_writes_a_backbone_that_loads(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, num_epochs=1)
    path = pretrain(cfg, resume=False)
    backbone = load_backbone(str(path), cfg.backbone, num_frames=4, image_size=32)
    assert torch.isfinite(backbone(torch.randn(1, 4, 3, 32, 32))).all()
    assert any(block.time_proj.weight.abs().max() > 0 for block in backbone.blocks)


def test_resumed_pretraining_goes_on_with_the_clips_that_follow(tmp_path: Path) -> None:
    cfg = tiny(tmp_path / "whole", num_epochs=2)
    whole = pretrain(cfg, resume=False).read_bytes()
    (tmp_path / "parts" / "tiny").mkdir(parents=True)
    state = torch.load(tmp_path / "whole" / "tiny" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    stopped = tiny(tmp_path / "parts", num_epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diveparse.engine.pretrain.tqdm", lambda steps, **_: list(steps)[:2])
        pretrain(stopped, resume=False)
    assert pretrain(stopped, resume=True).read_bytes() == whole


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny/checkpoint.pt: no checkpoint to resume from"):
        pretrain(tiny(tmp_path, num_epochs=1), resume=True)


def test_relighting_changes_all_frames_of_a_clip_alike() -> None:
    clips = torch.full((2, 3, 3, 4, 4), 128, dtype=torch.uint8)
    relit = relight(clips, 0.2, torch.Generator().manual_seed(0))
    assert (relit == relit[:, :1, :, :1, :1]).all()
    assert (relit[0] != relit[1]).all()
    unchanged = relight(clips, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(unchanged, clips.float() / 255)
    assert normalise(unchanged).abs().max() < 1
