from dataclasses import replace
from itertools import islice

import pytest
import torch

from diveparse.configs import TrainConfig, load_config
from diveparse.datasets.clip_dataset import ClipDataset, EpochSampler
from diveparse.datasets.diving48 import read_split
from diveparse.engine.batches import (
    MicroBatches,
    build_clips,
    evaluation_batches,
    require_batch_memory,
    training_batches,
    without_worker_traceback,
)


@pytest.fixture
def clips(tiny_experiment, tiny_root):
    cfg = load_config(tiny_experiment, [])
    return ClipDataset(read_split(tiny_root, "train")[:22], cfg.clip, training=True, seed=0)


def test_an_update_is_cut_into_its_batches_in_order():
    parts = list(islice(MicroBatches(EpochSampler(22, 8, seed=0), 4), 8))
    whole = list(islice(EpochSampler(22, 8, seed=0), 4))
    assert [parts[i] + parts[i + 1] for i in range(0, 8, 2)] == whole


def test_an_epoch_is_a_whole_number_of_updates():
    epochs = [epoch for part in islice(MicroBatches(EpochSampler(22, 8, seed=0), 4), 8) for epoch, _ in part]
    assert epochs == [0] * 16 + [1] * 16  # 22 clips make two updates of eight


@pytest.mark.parametrize("first_update", [1, 2, 3])
def test_starting_later_gives_the_rest_of_the_same_batches(clips, first_update):
    cfg = TrainConfig(batch_size=4, accumulation_steps=2)
    whole = list(islice(training_batches(clips, cfg, 0, first_update=0, num_workers=0), 10))
    rest = list(
        islice(training_batches(clips, cfg, 0, first_update=first_update, num_workers=0), 10 - 2 * first_update)
    )
    for expected, got in zip(whole[2 * first_update :], rest, strict=True):
        assert got["index"].tolist() == expected["index"].tolist()
        assert torch.equal(got["inputs"], expected["inputs"])


def test_loading_draws_on_no_random_numbers_of_the_model(clips):
    state = torch.get_rng_state()
    list(islice(training_batches(clips, TrainConfig(batch_size=4), 0, first_update=0, num_workers=0), 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_sees_every_clip_once_in_order(tiny_experiment, tiny_root):
    cfg = load_config(tiny_experiment, [])
    clips = ClipDataset(read_split(tiny_root, "test"), cfg.clip, training=False, seed=0)
    batches = evaluation_batches(clips, batch_size=5, num_workers=0)
    assert len(batches) == 3
    for _ in range(2):  # validation goes over them after every epoch
        assert [len(batch["label"]) for batch in batches] == [5, 5, 2]
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(12))


def test_a_workers_complaint_comes_without_its_traceback():
    def failing():
        yield {"index": torch.tensor([0])}
        raise ValueError(
            "Caught VideoError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "x.py", line 1, in f\ndiveparse.datasets.video.VideoError: a/b.mp4: truncated: no frames\n'
        )

    batches = without_worker_traceback(failing())
    next(batches)
    with pytest.raises(ValueError, match=r"^a/b\.mp4: truncated: no frames$"):
        next(batches)


def test_a_complaint_of_the_main_process_comes_as_it_is():
    def failing():
        yield {}
        raise ValueError("a/b.mp4: truncated")

    with pytest.raises(ValueError, match=r"^a/b\.mp4: truncated$"):
        list(without_worker_traceback(failing()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_clip_is_named_once_counted_and_left_out(tiny_experiment, tiny_root, tmp_path, caplog, num_workers):
    cfg = load_config(tiny_experiment, ["data.damaged=skip", "data.cache=false"])
    records = read_split(tiny_root, "train")[:6]
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(records[2].path.read_bytes()[:700])
    records[2] = replace(records[2], path=damaged)
    batches = training_batches(
        build_clips(cfg, records, training=True), TrainConfig(batch_size=3), 0, first_update=0, num_workers=num_workers
    )
    two_epochs = list(islice(batches, 4))
    assert [len(batch["label"]) for batch in two_epochs] == [3] * 4
    assert sum(int(batch["num_damaged"]) for batch in two_epochs) == 2
    assert 2 not in torch.cat([batch["index"] for batch in two_epochs])
    assert caplog.text.count("skipped a damaged clip") == 1
    assert str(damaged) in caplog.text

    tested = evaluation_batches(build_clips(cfg, records, training=False), batch_size=1, num_workers=num_workers)
    assert torch.cat([batch["index"] for batch in tested]).tolist() == [0, 1, 3, 4, 5]


def test_a_batch_larger_than_the_memory_is_refused_naming_its_options() -> None:
    require_batch_memory(8, 24, 224, "train")
    expected = r"from train\.batch_size, clip\.num_frames=4096 and clip\.image_size=8192, need \d+ GB"
    with pytest.raises(ValueError, match=expected):
        require_batch_memory(100, 4096, 8192, "train")
