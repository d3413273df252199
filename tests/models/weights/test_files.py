from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from diveparse.models import TimeSformer
from diveparse.models.weights.files import MAX_HEADER_BYTES, read_checkpoint, read_weights, require_finite


def test_a_header_too_long_for_any_weights_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(8 + MAX_HEADER_BYTES + 1)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: not a whole safetensors file of weights: expected a header of"
    ):
        read_weights(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    ],
    ids=["meta", "sparse", "quantised"],
)
def test_tensors_without_plain_values_are_refused_by_name(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.pyth"
    torch.save({"model_state": {"blocks.0.norm1.bias": tensor}}, path)
    with pytest.raises(ValueError, match=r"model\.pyth: ") as error:
        read_checkpoint(path, "model_state")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=r"there: weights are infinite or not a number in norm\.weight$"):
        require_finite({"norm.weight": torch.tensor([1.0, value]), "norm.bias": torch.zeros(2)}, "there")


def test_a_block_of_a_billion_is_refused_without_building_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pyth"
    tensors = {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, 5, 64),
        "time_embed": (1, 2, 64),
        "blocks.0.mlp.fc1.weight": (256, 64),
    }
    state = {f"model.{name}": torch.zeros(shape) for name, shape in tensors.items()}
    state |= {"model.patch_embed.proj.weight": torch.zeros(64, 3, 8, 8), "model.patch_embed.proj.bias": torch.zeros(64)}
    torch.save({"model_state": state | {"model.blocks.1000000000.mlp.fc1.weight": torch.zeros(256, 64)}}, path)
    with pytest.raises(ValueError, match=r"model\.pyth: backbone.depth must be <= 1024, got 1000000001"):
        TimeSformer.from_pretrained(path)


def test_a_compressed_checkpoint_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    torch.save({"model_state": {"a": torch.zeros(2**20)}}, tmp_path / "whole.pyth")
    with zipfile.ZipFile(tmp_path / "whole.pyth") as whole, zipfile.ZipFile(tmp_path / "bomb.pyth", "w", 8) as bomb:
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry), 8)
    with pytest.raises(ValueError, match=r"bomb\.pyth: refused to read this checkpoint: it expands to 0\.00419 GB"):
        read_checkpoint(tmp_path / "bomb.pyth", "model_state")


def test_a_shape_beyond_64_bits_is_refused_by_name(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        read_weights(path)
