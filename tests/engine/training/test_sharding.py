"""Checkpoints of a sharded model: what they hold, and what they refuse. test_distributed.py trains with them."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from diveparse.engine.training.sharding import (
    METADATA,
    load_shards,
    options_of,
    restore_options,
    save_shards,
    sharded_tensors,
)


def toy() -> tuple[nn.Module, torch.optim.AdamW]:
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])


def test_weights_states_and_rates_come_back(tmp_path: Path) -> None:
    (model, optimizer), (other, other_optimizer) = toy(), toy()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.05
    saved = sharded_tensors(model, optimizer, None)
    save_shards(tmp_path / "shards", saved)
    loaded = sharded_tensors(other, other_optimizer, None)  # of an optimiser that has not begun
    load_shards(tmp_path / "shards", loaded)
    restore_options(other_optimizer, options_of(optimizer))
    assert saved.keys() == loaded.keys()
    assert {"model.weight", "optimizer.bias.exp_avg", "optimizer.bias.step"} <= saved.keys()
    assert all(torch.equal(values, loaded[name]) for name, values in saved.items())
    assert torch.equal(other.weight, model.weight)
    assert [group["lr"] for group in other_optimizer.param_groups] == [0.1, 0.05]


def test_options_of_another_number_of_groups_are_refused() -> None:
    _, optimizer = toy()
    with pytest.raises(ValueError, match="shorter"):
        restore_options(optimizer, options_of(optimizer)[:1])


class Code:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


def test_code_in_the_metadata_is_not_run(tmp_path: Path) -> None:
    model, optimizer = toy()
    tensors = sharded_tensors(model, optimizer, None)
    save_shards(tmp_path / "shards", tensors)
    (tmp_path / "shards" / METADATA).write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"shards: .*which no checkpoint does"):
        load_shards(tmp_path / "shards", tensors)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["cut metadata", "no metadata", "cut shard", "no shard", "other metadata"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    model, optimizer = toy()
    tensors = sharded_tensors(model, optimizer, None)
    save_shards(tmp_path / "shards", tensors)
    metadata, (shard,) = tmp_path / "shards" / METADATA, (tmp_path / "shards").glob("*.distcp")
    file = shard if "shard" in damage else metadata
    if damage.startswith("no"):
        file.unlink()
    elif damage == "other metadata":
        file.write_bytes(pickle.dumps({"a": 1}))
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((ValueError, OSError)):
        load_shards(tmp_path / "shards", tensors)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    model, optimizer = toy()
    save_shards(tmp_path / "shards", sharded_tensors(model, optimizer, None))
    with pytest.raises(ValueError, match="shards: "):
        load_shards(tmp_path / "shards", {"model.weight": torch.zeros(5, 3)})
    with pytest.raises(ValueError, match="shards: "):
        load_shards(tmp_path / "shards", {"model.other": torch.zeros(2, 3)})
