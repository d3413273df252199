import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diveparse.configs import ClipConfig, FrameOrder
from diveparse.datasets import clip_dataset
from diveparse.datasets.clip_dataset import ClipDataset, EpochSampler
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.storage.workers import worker_context
from diveparse.datasets.video import VideoError

CLIP = ClipConfig(num_frames=4, image_size=16)
ENTRIES = [
    {"vid_name": f"source_{source:04d}_{clip:05d}", "label": 10 * source + clip, "start_frame": 0, "end_frame": 29}
    for source in range(2)
    for clip in range(3)
]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[ClipRecord]:
    folder = tmp_path_factory.mktemp("rgb")
    records = []
    for label, rate_hz in enumerate((25, 30, 60)):
        name = f"source_0000_{label:05d}"
        path = write_video(folder / f"{name}.mp4", rate_hz=rate_hz)
        records.append(ClipRecord(path, name, name[:11], label))
    return records


def test_a_training_item_depends_on_seed_epoch_and_index_only(records: list[ClipRecord]) -> None:
    dataset = ClipDataset(records, CLIP, training=True, seed=3)
    keys = [(epoch, index) for epoch in range(2) for index in range(3)]
    items = {key: dataset[key]["clip"] for key in keys}
    shuffled_keys = random.Random(0).sample(keys, len(keys))
    another = ClipDataset(records, CLIP, training=True, seed=3)
    for key in shuffled_keys:
        torch.rand(5)  # whatever else draws random numbers
        assert torch.equal(another[key]["clip"], items[key])
    for key in keys:
        assert not torch.equal(ClipDataset(records, CLIP, training=True, seed=4)[key]["clip"], items[key])
    assert len({clip.numpy().tobytes() for clip in items.values()}) == len(keys)


def test_reading_an_item_leaves_the_random_state_of_the_process_alone(records: list[ClipRecord]) -> None:
    state = torch.get_rng_state()
    ClipDataset(records, CLIP, training=True, seed=0)[0, 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_items_have_the_stated_shapes(records: list[ClipRecord]) -> None:
    item = ClipDataset(records, CLIP, training=True, seed=0)[5, 2]
    assert (item["clip"].shape, item["clip"].dtype) == ((4, 3, 16, 16), torch.float32)
    assert (item["label"], item["index"]) == (2, 2)
    item = ClipDataset(records, CLIP, training=False, seed=0, views=(2, 3))[1]
    assert item["clip"].shape == (6, 4, 3, 16, 16)
    assert (item["label"], item["index"]) == (1, 1)


def test_views_run_through_places_first_and_times_second(records: list[ClipRecord]) -> None:
    def views(temporal: int, spatial: int) -> Tensor:
        return ClipDataset(records, CLIP, training=False, seed=0, views=(temporal, spatial))[0]["clip"]

    assert torch.equal(views(2, 3)[[1, 4]], views(2, 1))
    assert torch.equal(views(3, 1)[1], views(1, 1)[0])
    assert not torch.equal(views(2, 1)[0], views(2, 1)[1])


def test_evaluation_items_never_change(records: list[ClipRecord]) -> None:
    for order in FrameOrder:
        cfg = ClipConfig(num_frames=4, image_size=16, order=order)
        first, again = (ClipDataset(records, cfg, training=False, seed=0)[1]["clip"] for _ in range(2))
        assert torch.equal(first, again)


@pytest.mark.parametrize("training", [True, False])
def test_a_clip_of_one_frame_repeats_that_frame(training: bool, records: list[ClipRecord]) -> None:
    def clip(only_frame: int | None) -> Tensor:
        cfg = ClipConfig(num_frames=8, image_size=16, only_frame=only_frame)
        return ClipDataset(records, cfg, training=training, seed=0)[(0, 1) if training else 1]["clip"].reshape(8, -1)

    assert torch.equal(clip(5), clip(None)[[5] * 8])


@pytest.mark.parametrize("training", [True, False])
def test_shuffled_clips_hold_the_same_frames_in_another_order(training: bool, records: list[ClipRecord]) -> None:
    orders = set()
    for index in range(3):
        clips = {}
        for order in FrameOrder:
            cfg = ClipConfig(num_frames=8, image_size=16, order=order)
            dataset = ClipDataset(records, cfg, training=training, seed=0)
            clips[order] = dataset[(0, index) if training else index]["clip"].reshape(8, -1)
        distances = torch.cdist(clips[FrameOrder.SHUFFLED], clips[FrameOrder.TIME])
        nearest = distances.argmin(1)
        assert torch.equal(clips[FrameOrder.SHUFFLED], clips[FrameOrder.TIME][nearest])
        assert sorted(nearest.tolist()) == list(range(8))
        assert nearest.tolist() != list(range(8))
        orders.add(tuple(nearest.tolist()))
    assert len(orders) == 3


def test_a_key_of_the_wrong_kind_is_refused(records: list[ClipRecord]) -> None:
    with pytest.raises(TypeError, match=r"key must be \(epoch, index\), got 1"):
        ClipDataset(records, CLIP, training=True, seed=0)[1]
    with pytest.raises(TypeError, match=r"key must be an index, got \(0, 1\)"):
        ClipDataset(records, CLIP, training=False, seed=0)[0, 1]


def test_a_video_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    record = ClipRecord(tmp_path / "gone.mp4", "gone", "gone", 0)
    with pytest.raises(VideoError, match=r"gone\.mp4: there is no such file"):
        ClipDataset([record], CLIP, training=False, seed=0)[0]


def test_batches_are_the_same_with_and_without_workers(records: list[ClipRecord]) -> None:
    dataset = ClipDataset(records, CLIP, training=True, seed=0)
    batches = []
    for num_workers in (0, 2):
        loader = DataLoader(
            dataset,
            batch_sampler=EpochSampler(3, 2, seed=0),
            num_workers=num_workers,
            multiprocessing_context=worker_context(clip_dataset.__name__) if num_workers else None,
        )
        batches.append([(batch["index"].tolist(), batch["clip"]) for batch in islice(loader, 4)])
    for (indices, clips), (worker_indices, worker_clips) in zip(*batches, strict=True):
        assert indices == worker_indices
        assert torch.equal(clips, worker_clips)


@pytest.mark.parametrize(("num_clips", "batch_size"), [(7, 2), (6, 3), (5, 5), (4, 1)])
def test_sampling_goes_on_from_any_batch_as_if_it_had_never_stopped(num_clips: int, batch_size: int) -> None:
    whole = list(islice(EpochSampler(num_clips, batch_size, seed=1), 20))
    for start_batch in range(15):
        rest = islice(EpochSampler(num_clips, batch_size, seed=1, start_batch=start_batch), 20 - start_batch)
        assert list(rest) == whole[start_batch:]


def test_an_epoch_visits_clips_once_and_drops_the_short_batch() -> None:
    sampler = EpochSampler(7, 2, seed=0)
    assert sampler.batches_per_epoch == 3
    orders = []
    for epoch in range(50):
        batches = list(islice(EpochSampler(7, 2, seed=0, start_batch=3 * epoch), 3))
        assert {len(batch) for batch in batches} == {2}
        assert {key[0] for batch in batches for key in batch} == {epoch}
        orders.append(tuple(key[1] for batch in batches for key in batch))
        assert len(set(orders[-1])) == 6
    assert len(set(orders)) > 45
    assert {index for order in orders for index in order} == set(range(7))


def test_the_order_depends_on_the_seed() -> None:
    assert next(iter(EpochSampler(1000, 50, seed=0))) != next(iter(EpochSampler(1000, 50, seed=1)))


@pytest.mark.parametrize("batch_size", [0, 8])
def test_a_batch_larger_than_the_data_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be 1 to 7, the number of clips, got {batch_size}"):
        EpochSampler(7, batch_size, seed=0)


UNEVEN_LABELS = [7 if index % 10 == 3 else 2 for index in range(100)]  # 90 clips of one dive, 10 of another


def test_a_balanced_epoch_draws_every_dive_about_as_often() -> None:
    sampler = EpochSampler(100, 10, seed=0, labels=UNEVEN_LABELS)
    drawn = Counter(index for batch in islice(sampler, 400 * 10) for _, index in batch)
    assert sum(drawn.values()) == 400 * 100
    of_dives = Counter()
    for index, count in drawn.items():
        of_dives[UNEVEN_LABELS[index]] += count
    assert of_dives == {2: pytest.approx(20_000, rel=0.03), 7: pytest.approx(20_000, rel=0.03)}
    for index, label in enumerate(UNEVEN_LABELS):  # and every clip of a dive as often as its others
        assert drawn[index] == pytest.approx(20_000 / UNEVEN_LABELS.count(label), rel=0.35)


def test_without_labels_every_clip_is_drawn_as_often_whatever_its_dive() -> None:
    drawn = Counter(index for batch in islice(EpochSampler(100, 10, seed=0), 7 * 10) for _, index in batch)
    assert drawn == dict.fromkeys(range(100), 7)


@pytest.mark.parametrize("batch_size", [7, 10, 100])
def test_batches_of_balanced_epochs_are_full_and_of_one_epoch(batch_size: int) -> None:
    sampler = EpochSampler(100, batch_size, seed=0, labels=UNEVEN_LABELS)
    assert sampler.batches_per_epoch == 100 // batch_size
    for number, batch in enumerate(islice(sampler, 3 * sampler.batches_per_epoch)):
        assert len(batch) == batch_size
        assert {epoch for epoch, _ in batch} == {number // sampler.batches_per_epoch}


def test_balanced_sampling_goes_on_from_any_batch_and_depends_on_the_seed() -> None:
    whole = list(islice(EpochSampler(100, 30, seed=1, labels=UNEVEN_LABELS), 12))
    for start_batch in range(10):
        rest = islice(EpochSampler(100, 30, seed=1, start_batch=start_batch, labels=UNEVEN_LABELS), 12 - start_batch)
        assert list(rest) == whole[start_batch:]
    assert list(islice(EpochSampler(100, 30, seed=2, labels=UNEVEN_LABELS), 12)) != whole
    assert [index for _, index in whole[0]] != [index for _, index in whole[3]]  # each epoch draws anew


@pytest.fixture
def one_is_damaged(records: list[ClipRecord], tmp_path: Path) -> list[ClipRecord]:
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(records[1].path.read_bytes()[:900])
    return [records[0], replace(records[1], path=damaged), *records[2:]]


def test_a_damaged_clip_stops_unless_it_is_to_be_skipped(one_is_damaged: list[ClipRecord]) -> None:
    for training, key in ((True, (0, 1)), (False, 1)):
        with pytest.raises(VideoError, match=r"damaged\.mp4"):
            ClipDataset(one_is_damaged, CLIP, training=training, seed=0)[key]


def test_in_training_the_clip_after_a_damaged_one_stands_in_for_it(one_is_damaged: list[ClipRecord]) -> None:
    clips = ClipDataset(one_is_damaged, CLIP, training=True, seed=0, skip_damaged=True)
    item = clips[3, 1]
    assert (item["index"], item["label"]) == (2, one_is_damaged[2].label)
    assert "damaged.mp4" in item["problem"]
    assert item["clip"].std() > 0.1  # no black frames
    assert torch.equal(item["clip"], clips[3, 1]["clip"])
    assert clips[3, 2]["problem"] == ""
    nothing = ClipDataset([one_is_damaged[1]] * 2, CLIP, training=True, seed=0, skip_damaged=True)
    with pytest.raises(VideoError, match=r"damaged\.mp4.*; nor can any other of the 2 clips be read"):
        nothing[0, 0]


def test_in_evaluation_a_damaged_clip_is_marked(one_is_damaged: list[ClipRecord]) -> None:
    clips = ClipDataset(one_is_damaged, CLIP, training=False, seed=0, views=(2, 3), skip_damaged=True)
    assert "damaged.mp4" in clips[1]["problem"]
    assert clips[1]["clip"].shape == clips[0]["clip"].shape


@pytest.fixture
def changing(records: list[ClipRecord], tmp_path: Path) -> ClipRecord:
    """A clip of 0.5 to 0.9 s whose video the tests replace after it has been read once."""
    video = tmp_path / "changing.mp4"
    video.write_bytes(records[1].path.read_bytes())
    return ClipRecord(video, "changing", "changing", 1, 0.5, 0.9)


@pytest.mark.parametrize("change", ["shorter", "gone", "damaged"])
def test_a_video_that_becomes_shorter_or_goes_in_mid_run_is_a_damaged_clip(
    change: str, records: list[ClipRecord], changing: ClipRecord, write_video: Callable[..., Path]
) -> None:
    clips = ClipDataset([changing, records[2]], CLIP, training=True, seed=0, skip_damaged=True)
    strict = ClipDataset([changing], CLIP, training=False, seed=0)
    assert clips[0, 0]["problem"] == ""
    assert strict[0]["problem"] == ""
    if change == "shorter":
        write_video(changing.path, num_frames=10, rate_hz=30)
    elif change == "gone":
        changing.path.unlink()
    else:
        changing.path.write_bytes(changing.path.read_bytes()[:900])
    item = clips[1, 0]
    assert (item["index"], item["label"]) == (1, records[2].label)
    expected = "ends at 0.333 s, before the clip changing does" if change == "shorter" else str(changing.path)
    assert expected in item["problem"]
    with pytest.raises(VideoError, match="ends at" if change == "shorter" else r"changing\.mp4"):
        strict[0]


def test_a_whole_video_that_is_replaced_in_mid_run_is_read_as_it_is_now(
    records: list[ClipRecord], changing: ClipRecord, write_video: Callable[..., Path]
) -> None:
    whole = replace(changing, start_s=0.0, end_s=None)
    clips = ClipDataset([whole], CLIP, training=False, seed=0)
    before = clips[0]["clip"]
    write_video(whole.path, num_frames=12, rate_hz=30)
    now = clips[0]["clip"]
    assert torch.equal(now, ClipDataset([whole], CLIP, training=False, seed=0)[0]["clip"])
    assert not torch.equal(now, before)
