from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, HeadKind, StemKind
from diveparse.datasets.dives import DIVING48
from diveparse.models import TimeSformer, build_classifier, load_backbone, save_backbone

CFG = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
CLIPS = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone() -> TimeSformer:
    torch.manual_seed(0)
    backbone = TimeSformer(CFG, num_frames=4, image_size=16).eval()
    torch.nn.init.normal_(backbone.time_embed, std=0.3)
    return backbone


def test_a_backbone_saved_and_loaded_is_bit_equal(backbone: TimeSformer, tmp_path: Path) -> None:
    save_backbone(tmp_path / "w.safetensors", backbone)
    loaded = load_backbone(str(tmp_path / "w.safetensors"), CFG, num_frames=4, image_size=16)
    assert torch.equal(loaded(CLIPS), backbone(CLIPS))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(backbone: TimeSformer, tmp_path: Path) -> None:
    save_backbone(tmp_path / "full.safetensors", backbone)
    save_backbone(tmp_path / "half.safetensors", backbone, dtype=torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * (tmp_path / "full.safetensors").stat().st_size
    loaded = load_backbone(str(tmp_path / "half.safetensors"), CFG, num_frames=4, image_size=16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(CLIPS), backbone(CLIPS), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("as_run", [False, True])
def test_a_classifier_gives_its_backbone_whatever_its_head(as_run: bool, tmp_path: Path) -> None:
    cfg = Config(name="n", arm="a", backbone=CFG, clip=ClipConfig(4, 16), head=HeadConfig(HeadKind.FLAT))
    trained = build_classifier(cfg, DIVING48).eval()
    trained.save(tmp_path / "model")
    cfg.head = HeadConfig(HeadKind.JOINT)
    cfg.backbone = replace(CFG, weights=str(tmp_path if as_run else tmp_path / "model"))
    assert torch.equal(build_classifier(cfg, DIVING48).eval().features(CLIPS), trained.features(CLIPS))


def test_other_frame_counts_and_picture_sizes_are_resized_and_logged(
    backbone: TimeSformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_backbone(tmp_path / "w.safetensors", backbone)
    with caplog.at_level(logging.INFO, logger="diveparse.models.weights.sources"):
        loaded = load_backbone(str(tmp_path / "w.safetensors"), CFG, num_frames=8, image_size=32)
    assert loaded(torch.zeros(1, 8, 3, 32, 32)).shape == (1, 16)
    assert "resized space_embed from (1, 5, 16) to (1, 17, 16)" in caplog.text
    assert "resized time_embed from (1, 4, 16) to (1, 8, 16)" in caplog.text
    for name, weights in backbone.state_dict().items():
        assert name in ("space_embed", "time_embed") or torch.equal(loaded.state_dict()[name], weights)


def test_the_same_sizes_are_loaded_without_a_word(
    backbone: TimeSformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_backbone(tmp_path / "w.safetensors", backbone)
    with caplog.at_level(logging.INFO, logger="diveparse.models.weights.sources"):
        load_backbone(str(tmp_path / "w.safetensors"), CFG, num_frames=4, image_size=16)
    assert caplog.text == ""


def test_weights_of_other_sizes_are_refused_with_names_and_shapes(backbone: TimeSformer, tmp_path: Path) -> None:
    save_backbone(tmp_path / "w.safetensors", backbone)
    source = str(tmp_path / "w.safetensors")
    deeper = BackboneConfig(patch_size=8, embed_dim=16, depth=3, num_heads=2)
    with pytest.raises(ValueError, match=r"missing: blocks\.2\.time_norm\.weight \(16,\), .* and \d+ more"):
        load_backbone(source, deeper, num_frames=4, image_size=16)
    shallower = BackboneConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=r"unexpected: blocks\.1\."):
        load_backbone(source, shallower, num_frames=4, image_size=16)
    wider = BackboneConfig(patch_size=8, embed_dim=32, depth=2, num_heads=2)
    with pytest.raises(ValueError, match=r"of another shape: class_token \(1, 1, 16\) instead of \(1, 1, 32\)"):
        load_backbone(source, wider, num_frames=4, image_size=16)
    more_heads = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=4)
    with pytest.raises(ValueError, match="made with num_heads=2, but the config has 4"):
        load_backbone(source, more_heads, num_frames=4, image_size=16)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors: no such weights file"):
        load_backbone(str(tmp_path / "nowhere.safetensors"), CFG, num_frames=4, image_size=16)
    with pytest.raises(ValueError, match="nowhere: no such folder or file; expected one with weights, kinematics"):
        load_backbone(str(tmp_path / "nowhere"), CFG, num_frames=4, image_size=16)
    with pytest.raises(ValueError, match=r"holds no model: neither model\.safetensors nor model/model\.safetensors"):
        load_backbone(str(tmp_path), CFG, num_frames=4, image_size=16)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.bin: not a file of weights .* expected \.safetensors or \.pyth"):
        load_backbone(str(tmp_path / "weights.bin"), CFG, num_frames=4, image_size=16)


def test_a_path_that_exists_is_a_path_whatever_else_its_name_could_mean(
    backbone: TimeSformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("owner/name", "timm/vit_tiny_patch16_224"):
        save_backbone(Path(folder, "model.safetensors"), backbone)
        loaded = load_backbone(folder, CFG, num_frames=4, image_size=16)
        assert torch.equal(loaded(CLIPS), backbone(CLIPS))


def test_a_safetensors_file_of_another_project_is_refused(backbone: TimeSformer, tmp_path: Path) -> None:
    save_file(backbone.state_dict(), tmp_path / "w.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"w\.safetensors: not written by this project: .* lack num_heads"):
        load_backbone(str(tmp_path / "w.safetensors"), CFG, num_frames=4, image_size=16)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"stem": StemKind.CONV},
        {"stem": StemKind.CONV, "patch_size": 4},
        {"stem": StemKind.CONV, "patch_size": 16, "embed_dim": 24, "num_heads": 3, "depth": 1},
        {"embed_dim": 12, "num_heads": 1, "mlp_ratio": 1.55},
    ],
)
def test_files_of_this_project_hold_their_own_sizes(sizes: dict[str, Any], tmp_path: Path) -> None:
    backbone = TimeSformer(replace(CFG, **sizes), num_frames=4, image_size=16).eval()
    save_backbone(tmp_path / "w.safetensors", backbone)
    loaded = TimeSformer.from_pretrained(tmp_path / "w.safetensors")
    assert torch.equal(loaded(CLIPS), backbone(CLIPS))
    hidden_dims = [int(cfg.embed_dim * cfg.mlp_ratio) for cfg in (loaded.config, backbone.config)]
    assert hidden_dims[0] == hidden_dims[1]
    assert replace(loaded.config, mlp_ratio=backbone.config.mlp_ratio) == backbone.config


def test_a_run_gives_its_backbone_without_a_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = Config(name="n", arm="a", backbone=CFG, clip=ClipConfig(4, 16), head=HeadConfig(HeadKind.FLAT))
    trained = build_classifier(cfg, DIVING48).eval()
    trained.save(tmp_path / "model")
    with caplog.at_level(logging.INFO, logger="diveparse.models.weights.sources"):
        loaded = TimeSformer.from_pretrained(tmp_path)
    assert torch.equal(loaded(CLIPS), trained.features(CLIPS))
    assert not loaded.training
    assert "took the backbone, left out the head: head." in caplog.text


def test_positions_are_resized_only_if_they_are_a_square(backbone: TimeSformer, tmp_path: Path) -> None:
    state = backbone.state_dict() | {"space_embed": torch.zeros(1, 8, 16)}
    save_file(state, tmp_path / "w.safetensors", {"num_heads": "2"})
    with pytest.raises(ValueError, match=r"space_embed \(1, 8, 16\) instead of \(1, 5, 16\)"):
        load_backbone(str(tmp_path / "w.safetensors"), CFG, num_frames=4, image_size=16)


def test_loading_keeps_frozen_blocks_frozen(backbone: TimeSformer, tmp_path: Path) -> None:
    save_backbone(tmp_path / "w.safetensors", backbone)
    frozen = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, num_frozen_blocks=1)
    loaded = load_backbone(str(tmp_path / "w.safetensors"), frozen, num_frames=4, image_size=16)
    assert not loaded.class_token.requires_grad
    assert not any(parameter.requires_grad for parameter in loaded.blocks[0].parameters())
    assert all(parameter.requires_grad for parameter in loaded.blocks[1].parameters())
