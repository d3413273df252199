from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerModel,
    VideoMAEImageProcessor,
)

from diveparse.configs import BackboneConfig, StemKind
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.models import TimeSformer, load_backbone, save_huggingface
from diveparse.models.weights import huggingface

CFG = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
SIZES = {"num_frames": 4, "image_size": 16}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def randomise(module: nn.Module) -> None:
    """Every tensor another, none zero, so that one that went to the wrong place would be seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))


def peer_classifier(**sizes: Any) -> TimesformerForVideoClassification:
    sizes = {
        "image_size": 16,
        "patch_size": 8,
        "num_frames": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_labels": 5,
    } | sizes
    peer = TimesformerForVideoClassification(TimesformerConfig(**sizes)).eval()
    randomise(peer)
    return peer


def random_pixels(num_frames: int = 4, image_size: int = 16) -> Tensor:
    """Pixels in [0, 1] of two clips, (2, num_frames, 3, image_size, image_size)."""
    return torch.rand(2, num_frames, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def normalised(pixels: Tensor, mean: Any = PIXEL_MEAN, std: Any = PIXEL_STD) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


@torch.no_grad()
def peer_features(peer: nn.Module, clips: Tensor) -> Tensor:
    return getattr(peer, "timesformer", peer)(clips).last_hidden_state[:, 0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    peer_classifier().save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(
    ("num_frames", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "hidden_dim"),
    [(4, 16, 8, 16, 2, 2, 64), (1, 16, 8, 12, 1, 3, 37), (6, 48, 16, 24, 3, 4, 48)],
)
@torch.no_grad()
def test_features_are_those_of_the_published_model(
    num_frames: int,
    image_size: int,
    patch_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    hidden_dim: int,
    qkv_bias: bool,
    tmp_path: Path,
) -> None:
    peer = peer_classifier(
        num_frames=num_frames,
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=embed_dim,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=hidden_dim,
        qkv_bias=qkv_bias,
    )
    peer.save_pretrained(tmp_path)
    clips = normalised(random_pixels(num_frames, image_size))
    backbone = TimeSformer.from_pretrained(tmp_path)
    torch.testing.assert_close(backbone(clips), peer_features(peer, clips), rtol=1e-5, atol=1e-5)
    again = load_backbone(str(tmp_path), backbone.config, num_frames=num_frames, image_size=image_size)
    assert torch.equal(again(clips), backbone(clips))


def test_the_older_pickled_file_is_read_too(folder: Path) -> None:
    expected = TimeSformer.from_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    clips = normalised(random_pixels())
    assert torch.equal(TimeSformer.from_pretrained(folder)(clips), expected(clips))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin is there"):
        TimeSformer.from_pretrained(folder)


@torch.no_grad()
def test_clips_normalised_as_here_give_what_its_own_normalisation_gave(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VideoMAEImageProcessor(image_mean=IMAGENET[0], image_std=IMAGENET[1]).save_pretrained(folder)
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        backbone = TimeSformer.from_pretrained(folder)
    expected = peer_features(peer_classifier(), normalised(random_pixels(), *IMAGENET))
    torch.testing.assert_close(backbone(normalised(random_pixels())), expected, rtol=1e-5, atol=1e-5)
    assert "the patch embedding takes over the change from pixels of mean (0.45, 0.45, 0.45)" in caplog.text
    assert "to mean (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225)" in caplog.text


def test_what_is_left_out_or_taken_for_granted_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peer_classifier(qkv_bias=False, num_hidden_layers=1).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        TimeSformer.from_pretrained(tmp_path)
    assert "left out the head of another task: classifier.bias (5,), classifier.weight (5, 16)" in caplog.text
    assert "set to zero: blocks.0." in caplog.text
    assert "attn.qkv.bias (48,)" in caplog.text
    assert "no pixel statistics; pixels are taken as normalised as here" in caplog.text


def test_other_sizes_are_resized_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        backbone = TimeSformer.from_pretrained(folder, num_frames=6, image_size=32, drop_path_rate=0.1)
    assert backbone(normalised(random_pixels(6, 32))).shape == (2, 16)
    assert "resized space_embed from (1, 5, 16) to (1, 17, 16)" in caplog.text
    assert "resized time_embed from (1, 4, 16) to (1, 6, 16)" in caplog.text
    assert backbone.config == replace(CFG, drop_path_rate=0.1)
    assert not backbone.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_type": "joint_space_time"}, "attention_type='joint_space_time' instead of 'divided_space_time'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12 instead of 1e-06"),
        ({"hidden_act": "relu"}, "hidden_act='relu' instead of 'gelu'"),
        ({"model_type": "videomae"}, "model_type='videomae' instead of 'timesformer'"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3, but the weights have 2"),
        ({"image_size": [16, 16], "num_frames": 8}, r"image_size=\[16, 16\], but the weights have 16; num_frames=8"),
        ({"num_attention_heads": 3}, r"backbone\.num_heads must be a divisor of backbone\.embed_dim=16, got 3"),
    ],
)
def test_a_configuration_that_this_backbone_cannot_follow_is_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(ValueError, match=rf"{folder.name}.*{message}"):
        TimeSformer.from_pretrained(folder)


def test_weights_that_do_not_fit_are_listed_with_names_and_shapes(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["timesformer.pooler.weight"] = torch.zeros(2, 3)
    del state["timesformer.encoder.layer.1.temporal_dense.bias"]
    state["timesformer.layernorm.weight"] = torch.zeros(15)
    save_file(state, folder / "model.safetensors")
    for load in (lambda: TimeSformer.from_pretrained(folder), lambda: load_backbone(str(folder), CFG, **SIZES)):
        with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.time_proj\.bias \(16,\)") as refused:
            load()
        assert "1 unexpected: pooler.weight (2, 3)" in str(refused.value)
        assert "1 of another shape: norm.weight (15,) instead of (16,)" in str(refused.value)


def test_a_run_of_other_sizes_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="made with num_heads=2, but the config has 4"):
        load_backbone(str(folder), replace(CFG, num_heads=4), **SIZES)
    with pytest.raises(ValueError, match=r"missing: blocks\.2\..* and \d+ more"):
        load_backbone(str(folder), replace(CFG, depth=3), **SIZES)
    with pytest.raises(ValueError, match=r"missing: patch_embed\.net.*unexpected: patch_embed\.proj"):
        load_backbone(str(folder), replace(CFG, stem=StemKind.CONV), **SIZES)


def test_a_tensor_that_comes_twice_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["layernorm.bias"] = state["timesformer.layernorm.bias"] + 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"two tensors for norm\.bias"):
        TimeSformer.from_pretrained(folder)


@pytest.mark.parametrize(
    "change", [{"rescale_factor": 1.0}, {"do_normalize": False}, {"image_mean": 0.5}, {"image_std": ["a", "b", "c"]}]
)
def test_a_preparation_of_pixels_that_cannot_be_taken_over_is_refused(change: dict[str, Any], folder: Path) -> None:
    VideoMAEImageProcessor(image_mean=IMAGENET[0], image_std=IMAGENET[1]).save_pretrained(folder)
    edit(folder / "preprocessor_config.json", **change)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: expected pixels scaled by 1/255"):
        TimeSformer.from_pretrained(folder)


def test_impossible_pixel_statistics_are_refused(folder: Path) -> None:
    VideoMAEImageProcessor(image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"expected 3 means and positive standard deviations, got mean \(0\.5,\)"):
        TimeSformer.from_pretrained(folder)


def test_a_damaged_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: not a whole JSON file"):
        TimeSformer.from_pretrained(folder)
    (folder / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: expected names and values, got list"):
        TimeSformer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("num_frames", "image_size", "sizes"),
    [(4, 16, {}), (3, 32, {"patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3, "mlp_ratio": 2.5})],
)
@torch.no_grad()
def test_an_exported_backbone_is_the_same_in_transformers_and_back_here(
    num_frames: int, image_size: int, sizes: dict[str, Any], tmp_path: Path
) -> None:
    backbone = TimeSformer(replace(CFG, **sizes), num_frames=num_frames, image_size=image_size).eval()
    randomise(backbone)
    save_huggingface(tmp_path, backbone)
    frames = (random_pixels(num_frames, image_size)[0] * 255).to(torch.uint8)
    clip = normalised(frames[None] / 255)
    peer, loading = TimesformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())  # none missing, unexpected or mismatched
    torch.testing.assert_close(peer_features(peer, clip), backbone(clip), rtol=1e-5, atol=1e-5)
    prepared = AutoImageProcessor.from_pretrained(tmp_path)(list(frames), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, clip)
    again = TimeSformer.from_pretrained(tmp_path)
    assert torch.equal(again(clip), backbone(clip))
    assert again.config == backbone.config


def test_a_stem_that_the_format_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    backbone = TimeSformer(replace(CFG, stem=StemKind.CONV), **SIZES)
    with pytest.raises(ValueError, match=r"no backbone\.stem=conv, only patch"):
        save_huggingface(tmp_path / "export", backbone)
    assert not (tmp_path / "export").exists()


def test_a_hub_id_is_fetched_its_configuration_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(repo_id: str, names: list[str]) -> Path:
        assert repo_id == "owner/name-k400"
        asked.append(names)
        return folder

    monkeypatch.setattr(huggingface, "fetched", fetch)
    expected = TimeSformer.from_pretrained(folder)
    clips = normalised(random_pixels())
    assert torch.equal(TimeSformer.from_pretrained("owner/name-k400")(clips), expected(clips))
    assert asked == [["config.json", *huggingface.PREPROCESSOR_FILES], ["model.safetensors"]]
    edit(folder / "config.json", model_type="vit")
    with pytest.raises(ValueError, match="model_type='vit'"):
        TimeSformer.from_pretrained("owner/name-k400")
    assert len(asked) == 3
