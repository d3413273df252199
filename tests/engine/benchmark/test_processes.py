from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig
from diveparse.engine.benchmark.processes import WORKS, measure_work, measure_workers, works

CLIP = ClipConfig(num_frames=2, image_size=16)
TINY = works(BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2), CLIP, (2, 2, 2, 2))


def test_two_processes_take_turns_with_one_and_halve_its_batch() -> None:
    scaling = measure_work(replace(TINY[2], num_passes=1), num_repeats=2)
    assert (scaling.name, scaling.batch_size) == ("the last block, on stored tokens", 32)
    assert len(scaling.of_one) == len(scaling.of_two) == 2
    assert min(scaling.of_one + scaling.of_two) > 0
    assert scaling.ratios == [two / one for one, two in zip(scaling.of_one, scaling.of_two, strict=True)]


@pytest.mark.parametrize(("work", "trained"), list(zip(TINY, (0, 0, 1, 2), strict=True)))
def test_every_work_trains_the_blocks_that_it_says(work, trained) -> None:
    loss_of_batch, batch = work.build(), work.batch(4)
    loss, _, _ = loss_of_batch(batch, precision=None, mix=None)
    loss.backward()
    backbone = loss_of_batch.model.backbone
    assert sum(any(p.grad is not None for p in block.parameters()) for block in backbone.blocks) == trained
    assert all(p.grad is not None for p in loss_of_batch.parameters() if p.requires_grad)


def test_the_work_is_shared_evenly() -> None:
    assert all(work.batch_size % 2 == 0 for work in WORKS)


def test_loading_is_timed_with_one_worker_and_with_two(tmp_path: Path) -> None:
    scaling = measure_workers(tmp_path, 1, CLIP, num_batches=2, size=(24, 32))
    assert len(scaling.of_one) == len(scaling.of_two) == 1
    assert torch.tensor([scaling.of_one, scaling.of_two]).min() > 0
