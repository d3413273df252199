from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diveparse.configs import BackboneConfig, StemKind
from diveparse.models import TimeSformer
from diveparse.models.weights.sizes import least_num_weights, require_buildable

CFG = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)


def weights(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = TimeSformer(CFG, num_frames=4, image_size=16).state_dict()
    renamed = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in (state | renamed).items() if tensor is not None}


def load(folder: Path, state: dict[str, torch.Tensor], num_heads: str = "2", **sizes: Any) -> TimeSformer:
    save_file(state, folder / "w.safetensors", {"num_heads": num_heads})
    return TimeSformer.from_pretrained(folder / "w.safetensors", **sizes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"class_token": torch.zeros(1, 1, 0)}, "backbone.embed_dim must be > 0, got 0"),
        ({"space_embed": torch.zeros(1, 0, 16)}, "space_embed must be a class token and one patch or more"),
        ({"space_embed": torch.zeros(1, 1, 16)}, "space_embed must be a class token and one patch or more"),
        ({"time_embed": torch.zeros(1, 0, 16)}, "clip.num_frames must be > 0, got 0"),
        ({"blocks__0__mlp__fc1__weight": torch.zeros(0, 16)}, "backbone.mlp_ratio must be > 0, got 0.0"),
        ({"blocks__0__mlp__fc1__weight": torch.zeros(2**40, 0)}, "backbone.mlp_ratio must be <= 64"),
        ({"patch_embed__proj__weight": torch.zeros(16, 2)}, "backbone.patch_size must be > 0, got 0"),
        ({"blocks__7__norm": torch.zeros(1)}, "holds weights of block 7, but none of block 2"),
        ({"blocks__1000000000__norm": torch.zeros(1)}, "backbone.depth must be <= 1024, got 1000000001"),
        (
            {"space_embed": torch.zeros(1, 2**40, 0)},
            "the file of weights does not fit .* numbers instead of",
        ),
        (
            {"time_embed": torch.zeros(1, 2**40, 0)},
            "the file of weights does not fit .* numbers instead of",
        ),
        ({"patch_embed__net__0": torch.zeros(1)}, "patch_embed.net must be 2 to 15 convolutions, got 0"),
    ],
)
def test_sizes_that_no_backbone_has_are_refused_at_once_naming_the_file(
    changes: dict[str, torch.Tensor], complaint: str, tmp_path: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"w\.safetensors: {complaint}") as caught:
        load(tmp_path, weights(**changes))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("num_heads", ["0", "3", "9" * 5000, "-2", "²", ""])
def test_an_impossible_number_of_heads_is_refused_naming_the_file(num_heads: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w\.safetensors: "):
        load(tmp_path, weights(), num_heads)


def test_a_picture_size_that_patches_do_not_tile_is_refused_naming_the_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w\.safetensors: image_size must be a multiple of patch_size=8, got 20"):
        load(tmp_path, weights(), image_size=20)


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (torch.full((16,), torch.nan), r"weights are infinite or not a number in norm\.weight"),
        (torch.ones(16, dtype=torch.int64), r"1 of another type: norm\.weight of torch\.int64"),
        (torch.ones(16, dtype=torch.complex64), r"expected plain tensors; norm\.weight is strided complex64 on cpu"),
        (torch.ones(16).to(torch.float8_e4m3fn), r"expected plain tensors; norm\.weight is strided float8_e4m3fn"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused_by_name(
    tensor: torch.Tensor, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"w\.safetensors: .*{complaint}"):
        load(tmp_path, weights(norm__weight=tensor))


def test_a_repeated_number_does_not_pass_for_a_large_tensor(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in weights().items()}
    state["model.patch_embed.proj.weight"] = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"model_state": state}, tmp_path / "w.pyth")
    with pytest.raises(ValueError, match=r"w\.pyth: model\.patch_embed\.proj\.weight .* holds fewer numbers than its"):
        TimeSformer.from_pretrained(tmp_path / "w.pyth")


@pytest.mark.parametrize("stem", list(StemKind))
def test_the_estimate_is_a_little_less_than_what_is_built(stem: StemKind) -> None:
    cfg = BackboneConfig(stem=stem, embed_dim=384, depth=3, num_heads=6)
    built = sum(parameter.numel() for parameter in TimeSformer(cfg, num_frames=8, image_size=112).parameters())
    assert 0.85 * built < least_num_weights(cfg, num_frames=8, image_size=112) < built


@pytest.mark.parametrize(
    ("sizes", "num_frames", "image_size"),
    [
        ({"depth": 1024, "embed_dim": 16384, "num_heads": 1024}, 8, 224),
        ({"patch_size": 1, "embed_dim": 16380}, 8, 8192),
    ],
)
def test_what_no_memory_holds_is_refused_with_its_size(sizes: dict[str, int], num_frames: int, image_size: int) -> None:
    with pytest.raises(ValueError, match=r"backbone\.depth=.* need \d{4,} GB, this machine has"):
        require_buildable(BackboneConfig(**sizes), num_frames=num_frames, image_size=image_size)
