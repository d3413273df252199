from __future__ import annotations

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TimesformerConfig, TimesformerModel

from diveparse.configs import BackboneConfig
from diveparse.models import TimeSformer, load_backbone
from diveparse.models.weights.published import KERNEL, KERNEL_BIAS, OWN_PIXELS, PixelStatistics, in_own_pixels

CFG = BackboneConfig(patch_size=8, embed_dim=128, depth=2, num_heads=2, mlp_ratio=2)
SIZES = {"num_frames": 3, "image_size": 16}
CLIPS = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def peer_model() -> TimesformerModel:
    """The same network in `transformers`, which has been compared with FAIR's code when it was added there."""
    peer = TimesformerModel(
        TimesformerConfig(
            image_size=16,
            patch_size=8,
            num_frames=3,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=256,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.1 * torch.randn(parameter.shape, generator=generator))
    return peer


def fair_state(peer: TimesformerModel) -> OrderedDict[str, Tensor]:
    """Under the names of FAIR's code, with the head that its checkpoints have."""
    renames = (
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.time_embeddings", "time_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer.", "blocks."),
        (".temporal_attention.attention.qkv", ".temporal_attn.qkv"),
        (".temporal_attention.output.dense", ".temporal_attn.proj"),
        (".temporal_dense", ".temporal_fc"),
        (".temporal_layernorm", ".temporal_norm1"),
        (".attention.attention.qkv", ".attn.qkv"),
        (".attention.output.dense", ".attn.proj"),
        (".layernorm_before", ".norm1"),
        (".layernorm_after", ".norm2"),
        (".intermediate.dense", ".mlp.fc1"),
        (".output.dense", ".mlp.fc2"),
        ("layernorm.", "norm."),
    )
    state = OrderedDict()
    for name, tensor in peer.state_dict().items():
        for theirs, fairs in renames:
            name = name.replace(theirs, fairs)
        state[f"model.{name}"] = tensor
    return OrderedDict(state, **{"model.head.weight": torch.zeros(7, 128), "model.head.bias": torch.zeros(7)})


def write_checkpoint(path: Path, **content: Any) -> str:
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.005, "params": [0]}]}
    torch.save({"epoch": 14, "optimizer_state": optimizer, "cfg": "TRAIN:\n  DATASET: kinetics\n"} | content, path)
    return str(path)


@torch.no_grad()
def test_a_checkpoint_of_fair_gives_the_features_of_its_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer = peer_model()
    path = write_checkpoint(tmp_path / "fair.pyth", model_state=fair_state(peer))
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        backbone = TimeSformer.from_pretrained(path)
    torch.testing.assert_close(backbone(CLIPS), peer(CLIPS).last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    assert backbone.config == CFG
    assert "left out the head of another task: model.head.weight (7, 128), model.head.bias (7,)" in caplog.text
    assert "num_heads=2, as every head of FAIR's code is 64 wide" in caplog.text
    assert torch.equal(load_backbone(path, CFG, **SIZES)(CLIPS), backbone(CLIPS))


def test_the_number_of_heads_is_the_configs_where_a_checkpoint_of_fair_lacks_it(tmp_path: Path) -> None:
    peer = peer_model()
    path = write_checkpoint(tmp_path / "fair.pyth", model_state=fair_state(peer))
    four_heads = BackboneConfig(patch_size=8, embed_dim=128, depth=2, num_heads=4, mlp_ratio=2)
    assert load_backbone(path, four_heads, **SIZES).config.num_heads == 4
    state = fair_state(peer) | {"model.cls_token": torch.zeros(1, 1, 96)}
    with pytest.raises(ValueError, match=r"embed_dim=96 is no multiple of 64.*and set backbone.num_heads there"):
        TimeSformer.from_pretrained(write_checkpoint(tmp_path / "narrow.pyth", model_state=state))


def test_what_does_not_fit_is_listed_with_names_and_shapes(tmp_path: Path) -> None:
    state = fair_state(peer_model())
    state["model.blocks.0.temporal_gate"] = torch.zeros(3)
    del state["model.blocks.1.temporal_fc.weight"]
    state["model.patch_embed.proj.weight"] = torch.zeros(128, 1, 8, 8)
    path = write_checkpoint(tmp_path / "fair.pyth", model_state=state)
    with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.time_proj\.weight \(128, 128\)") as refused:
        load_backbone(path, CFG, **SIZES)
    assert "1 unexpected: blocks.0.temporal_gate (3,)" in str(refused.value)
    assert "patch_embed.proj.weight (128, 1, 8, 8) instead of (128, 192)" in str(refused.value)
    with pytest.raises(
        ValueError, match=r"not the weights of a TimeSformer: no patch_embed\.proj\.weight in class_token"
    ):
        TimeSformer.from_pretrained(path)


def test_a_network_without_time_is_refused(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in fair_state(peer_model()).items() if "temporal" not in name}
    path = write_checkpoint(tmp_path / "joint.pyth", model_state=state)
    with pytest.raises(ValueError, match=r"16 missing: blocks\.0\.time_norm\.weight \(128,\)"):
        TimeSformer.from_pretrained(path)


class Command:
    """Unpickled without a thought, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickled_command_is_refused_in_one_line_and_not_run(tmp_path: Path) -> None:
    path = write_checkpoint(
        tmp_path / "evil.pyth", model_state=fair_state(peer_model()), hook=Command(tmp_path / "ran")
    )
    with pytest.raises(ValueError, match=r"^.*evil\.pyth: refused to read this checkpoint: it pickles posix\.mkdir.*$"):
        TimeSformer.from_pretrained(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02}", None])
def test_a_damaged_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = Path(write_checkpoint(tmp_path / "fair.pyth", model_state=fair_state(peer_model())))
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ValueError, match=r"^.*fair\.pyth: refused to read this checkpoint: damaged: \w+$"):
        TimeSformer.from_pretrained(path)


def test_a_checkpoint_of_something_else_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a dictionary of tensors under 'model_state', got a dictionary of "):
        TimeSformer.from_pretrained(write_checkpoint(tmp_path / "other.pyth", model={}))
    with pytest.raises(ValueError, match="expected a dictionary of tensors under 'model_state'"):
        TimeSformer.from_pretrained(write_checkpoint(tmp_path / "other.pyth", model_state={"a": 3}))
    torch.save(torch.zeros(2), tmp_path / "tensor.pyth")
    with pytest.raises(ValueError, match=r"got a Tensor"):
        TimeSformer.from_pretrained(tmp_path / "tensor.pyth")
    with pytest.raises(ValueError, match=r"none\.pyth: no such weights file"):
        TimeSformer.from_pretrained(tmp_path / "none.pyth")


@pytest.mark.parametrize(
    "pixels", [PixelStatistics((0.5, 0.4, 0.3), (0.5, 0.25, 1.0)), PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))]
)
def test_a_patch_embedding_answers_its_own_pixels_whatever_the_normalisation(pixels: PixelStatistics) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 3 * 4, generator=generator), torch.randn(5, generator=generator)
    patches = torch.rand(7, 3, 4, generator=generator)  # (patch, channel, pixel), in [0, 1]
    theirs, ours = (
        ((patches - torch.tensor(stats.mean)[:, None]) / torch.tensor(stats.std)[:, None]).flatten(1)
        for stats in (pixels, OWN_PIXELS)
    )
    folded = in_own_pixels({KERNEL: weight, KERNEL_BIAS: bias}, pixels, "here")
    torch.testing.assert_close(
        ours @ folded[KERNEL].T + folded[KERNEL_BIAS], theirs @ weight.T + bias, rtol=1e-5, atol=1e-5
    )


def test_the_same_normalisation_changes_no_bit_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    state = {KERNEL: torch.randn(5, 12), KERNEL_BIAS: torch.randn(5)}
    with caplog.at_level(logging.INFO, logger="diveparse.models"):
        assert in_own_pixels(state, OWN_PIXELS, "here") == state
    assert caplog.text == ""
