import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diveparse.configs import ClipConfig, FrameOrder
from diveparse.datasets.dives import DIVING48, DiveSet
from diveparse.datasets.diving48 import ClipDataset, ClipRecord, EpochSampler, read_split
from diveparse.datasets.video import VideoError

CLIP = ClipConfig(num_frames=4, image_size=16)
ENTRIES = [
    {"vid_name": f"source_{source:04d}_{clip:05d}", "label": 10 * source + clip, "start_frame": 0, "end_frame": 29}
    for source in range(2)
    for clip in range(3)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole data set of six clips whose videos are empty files."""
    root = tmp_path_factory.mktemp("diving48")
    (root / "rgb").mkdir()
    for entry in ENTRIES:
        (root / "rgb" / f"{entry['vid_name']}.mp4").touch()
    write_json(root / "Diving48_vocab.json", [dive.vocab for dive in DIVING48])
    write_json(root / "Diving48_V2_train.json", ENTRIES)
    write_json(root / "Diving48_V2_test.json", ENTRIES[:1])
    return root


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def copied_root(root: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    (tmp_path / "rgb").mkdir()
    for path in root.rglob("*.*"):
        (tmp_path / path.relative_to(root)).write_bytes(path.read_bytes())
    return tmp_path


def test_read_split_gives_one_record_an_entry(root: Path) -> None:
    records = read_split(root, "train")
    assert records[4] == ClipRecord(
        root / "rgb" / "source_0001_00001.mp4", "source_0001_00001", source="source_0001", label=11
    )
    assert [record.name for record in records] == [entry["vid_name"] for entry in ENTRIES]
    assert len(read_split(root, "test")) == 1


def test_read_split_knows_only_its_splits(root: Path) -> None:
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        read_split(root, "val")


@pytest.mark.parametrize("name", ["Diving48_vocab.json", "Diving48_V2_train.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"[1, 2", "not a JSON file"),
        (b"\xff\xfe\xfa", "not a JSON file"),
        (b"{}", r"expected a list of one entry or more, got \{\}"),
        (b"[]", r"expected a list of one entry or more, got \[\]"),
    ],
)
def test_read_split_names_the_file_that_cannot_be_read(
    name: str, content: bytes | None, message: str, copied_root: Path
) -> None:
    path = copied_root / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_split(copied_root, "train")
    assert str(caught.value).startswith(f"{path}: ")


def test_read_split_refuses_another_vocabulary(copied_root: Path) -> None:
    path = copied_root / "Diving48_vocab.json"
    vocab = [dive.vocab for dive in DIVING48]
    write_json(path, vocab[:-1])
    with pytest.raises(ValueError, match="expected the 48 classes of Diving48, got 47"):
        read_split(copied_root, "train")
    write_json(path, [vocab[1], vocab[0], *vocab[2:]])
    with pytest.raises(ValueError, match=r"class 0 of Diving48 must be \['Back', '15som', '05Twis', 'FREE'\], got"):
        read_split(copied_root, "train")


def test_read_split_checks_labels_against_the_dive_set_it_is_given(copied_root: Path) -> None:
    two = DiveSet.from_numbers(["107B", "5253B"], "mine")
    write_json(copied_root / "Diving48_vocab.json", [dive.vocab for dive in two])
    with pytest.raises(ValueError, match=r"\(source_0000_00002\): label must be a whole number from 0 to 1, got 2"):
        read_split(copied_root, "train", two)
    assert read_split(copied_root, "test", two)[0].label == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 48}, r"\(source_0000_00001\): label must be a whole number from 0 to 47, got 48"),
        ({"label": -1}, "label must be .* got -1"),
        ({"label": "3"}, "label must be .* got '3'"),
        ({"label": 3.0}, r"label must be .* got 3\.0"),
        ({"label": True}, "label must be .* got True"),
        ({"label": None}, "label must be .* got None"),
        ({"vid_name": "short_00000"}, "vid_name must be .* got 'short_00000'"),
        ({"vid_name": "../../../etc/passwd"}, "vid_name must be"),
        ({"vid_name": 7}, "vid_name must be .* got 7"),
    ],
)
def test_read_split_names_the_entry_that_is_wrong(change: dict[str, Any], message: str, copied_root: Path) -> None:
    path = copied_root / "Diving48_V2_train.json"
    write_json(path, [ENTRIES[0], ENTRIES[1] | change])
    with pytest.raises(ValueError, match=message) as caught:
        read_split(copied_root, "train")
    assert str(caught.value).startswith(f"{path}: entry 1")


@pytest.mark.parametrize("entry", [7, "source_0000_00001", ["source_0000_00001", 3], {"vid_name": "x"}, None])
def test_read_split_refuses_an_entry_of_another_form(entry: object, copied_root: Path) -> None:
    write_json(copied_root / "Diving48_V2_train.json", [ENTRIES[0], entry])
    with pytest.raises(ValueError, match="entry 1: expected an object with vid_name and label"):
        read_split(copied_root, "train")


def test_read_split_refuses_a_clip_that_is_listed_twice(copied_root: Path) -> None:
    write_json(copied_root / "Diving48_V2_train.json", [*ENTRIES, ENTRIES[2]])
    with pytest.raises(ValueError, match="clip source_0000_00002 is listed twice"):
        read_split(copied_root, "train")


def test_read_split_counts_all_missing_videos_and_names_ten(copied_root: Path) -> None:
    entries = [{"vid_name": f"source_0009_{i:05d}", "label": 0} for i in range(12)]
    write_json(copied_root / "Diving48_V2_train.json", [*ENTRIES, *entries])
    with pytest.raises(ValueError, match=r"12 of the 18 videos of Diving48_V2_train\.json are missing") as caught:
        read_split(copied_root, "train")
    listed = [f"source_0009_{i:05d}.mp4" for i in range(10)]
    assert str(caught.value).endswith(", ".join(listed) + ", …")


def test_read_split_says_so_if_there_is_no_video_folder(copied_root: Path) -> None:
    for path in (copied_root / "rgb").iterdir():
        path.unlink()
    (copied_root / "rgb").rmdir()
    with pytest.raises(ValueError, match="6 of the 6 videos"):
        read_split(copied_root, "train")


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
        loader = DataLoader(dataset, batch_sampler=EpochSampler(3, 2, seed=0), num_workers=num_workers)
        batches.append([(batch["index"].tolist(), batch["clip"]) for batch in islice(loader, 4)])
    for (indices, clips), (worker_indices, worker_clips) in zip(*batches, strict=True):
        assert indices == worker_indices
        assert torch.equal(clips, worker_clips)


@pytest.mark.parametrize(("num_clips", "batch_size"), [(7, 2), (6, 3), (5, 5), (4, 1)])
def test_sampling_goes_on_from_any_step_as_if_it_had_never_stopped(num_clips: int, batch_size: int) -> None:
    whole = list(islice(EpochSampler(num_clips, batch_size, seed=1), 20))
    for start_step in range(15):
        rest = islice(EpochSampler(num_clips, batch_size, seed=1, start_step=start_step), 20 - start_step)
        assert list(rest) == whole[start_step:]


def test_an_epoch_visits_clips_once_and_drops_the_short_batch() -> None:
    sampler = EpochSampler(7, 2, seed=0)
    assert sampler.steps_per_epoch == 3
    orders = []
    for epoch in range(50):
        batches = list(islice(EpochSampler(7, 2, seed=0, start_step=3 * epoch), 3))
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
