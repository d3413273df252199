import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diveparse.configs import ClipConfig
from diveparse.datasets.cache import (
    CacheKind,
    CacheSettings,
    build_cache,
    cache_folder,
    chosen_settings,
    encode,
    estimated_bytes,
    file_name,
    open_cache,
    read_index,
)
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.video import VideoError, probe, read_frames

TRAINING = CacheSettings(CacheKind.TRAINING, num_frames=16, short_side=48)
EVALUATION = CacheSettings(CacheKind.EVALUATION, num_frames=4, short_side=32)
CLIP = ClipConfig(num_frames=4, image_size=32, color_jitter=0.0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    """Three videos of other lengths, rates and sizes."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", num_frames=40, rate_hz=25, height=96, width=128)
    write_video(root / "b.mp4", num_frames=61, rate_hz=60, height=48, width=64)
    write_video(root / "c.mp4", times_s=[0, 0.1, 0.15, 0.4, 0.5, 0.6, 0.9, 1.0], height=96, width=72)
    return root


@pytest.fixture
def root(videos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(videos, tmp_path / "data"))


def records_of(root: Path) -> list[ClipRecord]:
    return [
        ClipRecord(root / "a.mp4", "sourceaaaaa_00001", "a", 1),
        ClipRecord(root / "b.mp4", "clips/b.mp4@0.2-0.9", "b", 2, 0.2, 0.9),
        ClipRecord(root / "c.mp4", "c", "c", 3),
    ]


def build(root: Path, settings: CacheSettings, records: list[ClipRecord]) -> list[tuple[int, int]]:
    return list(build_cache(root, settings, records, num_workers=1))


def opened(root: Path, settings: CacheSettings, records: list[ClipRecord]):
    cache = open_cache(root, settings.kind, records, CLIP)
    assert cache is not None
    return cache


def test_a_training_cache_gives_frames_of_the_moments_that_were_asked_for(root: Path) -> None:
    records = records_of(root)
    build(root, TRAINING, records)
    cache = opened(root, TRAINING, records)
    for record in records:
        duration_s = record.duration_s(cache.info(record))
        assert cache.info(record) == probe(record.path)
        times_s = sample_frame_times(duration_s, 5, generator=torch.Generator().manual_seed(7))
        segments = (times_s / duration_s * 16).floor()
        kept_s = record.start_s + (segments + 0.5) * duration_s / 16
        assert (kept_s - record.start_s - times_s).abs().max() <= duration_s / 32  # half a kept frame at most
        expected = read_frames(record.path, kept_s, (48, 64))
        found = cache.read_frames(record, times_s, duration_s, (48, 64))
        assert (found.float() - expected.float()).abs().mean() < 6  # of 255: what H.264 changes


def test_a_training_cache_keeps_the_order_and_every_one_of_its_frames(root: Path) -> None:
    records = records_of(root)[:1]
    build(root, TRAINING, records)
    cache = opened(root, TRAINING, records)
    duration_s = probe(records[0].path).duration_s
    times_s = sample_frame_times(duration_s, 16)
    originals = read_frames(records[0].path, times_s, (48, 64)).float()
    kept = cache.read_frames(records[0], times_s, duration_s, (48, 64)).float()
    distances = (kept[:, None] - originals[None]).abs().mean((2, 3, 4))  # (kept, originals)
    assert distances.argmin(1).tolist() == list(range(16))


def test_an_evaluation_cache_gives_the_very_frames_of_the_videos(root: Path) -> None:
    records = records_of(root)
    build(root, EVALUATION, records)
    plain = ClipDataset(records, CLIP, training=False, seed=0)
    cached = ClipDataset(records, CLIP, training=False, seed=0, cache=opened(root, EVALUATION, records))
    for index in range(len(records)):
        a, b = plain[index], cached[index]
        assert a["label"] == b["label"]
        assert a["clip"].shape == b["clip"].shape
        assert (a["clip"] - b["clip"]).abs().mean() < 0.05  # of a standard deviation of pixels: what JPEG changes


def test_training_clips_from_the_cache_are_those_of_the_videos(root: Path) -> None:
    records = records_of(root)
    settings = replace(TRAINING, num_frames=48)
    build(root, settings, records)
    plain = ClipDataset(records, CLIP, training=True, seed=3)
    cached = ClipDataset(records, CLIP, training=True, seed=3, cache=opened(root, settings, records))
    for epoch in range(3):
        for index in range(len(records)):
            a, b = plain[epoch, index], cached[epoch, index]
            assert (a["label"], a["index"]) == (b["label"], b["index"])
            distance = (a["clip"] - b["clip"]).abs().mean()  # small: the same crop, flip and moments
            assert distance < 0.25
            assert (a["clip"] - b["clip"].flip(-1)).abs().mean() > 2 * distance


@pytest.mark.parametrize("settings", [TRAINING, EVALUATION])
def test_building_goes_on_where_it_was_and_makes_again_what_is_not_whole(root: Path, settings: CacheSettings) -> None:
    records = records_of(root)
    assert build(root, settings, records[:1]) == [(0, 1), (1, 1)]
    folder = cache_folder(root, settings.kind)
    first = folder / file_name(records[0].name, settings.kind)
    before = first.stat().st_mtime_ns
    with (folder / "index.jsonl").open("a") as index:
        index.write('\n{"name": "clips/b.mp4@0')  # where a kill cuts a line short
    assert build(root, settings, records)[0] == (1, 3)
    assert first.stat().st_mtime_ns == before
    first.write_bytes(first.read_bytes()[:-1])
    assert build(root, settings, records)[0] == (2, 3)
    first.unlink()
    assert build(root, settings, records)[0] == (2, 3)
    assert build(root, settings, records) == [(3, 3)]
    opened(root, settings, records)


def test_other_settings_or_another_video_make_a_cache_stale(
    root: Path, write_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    records = records_of(root)
    build(root, TRAINING, records)
    write_video(records[0].path, num_frames=12, height=96, width=128)
    assert open_cache(root, CacheKind.TRAINING, records, CLIP) is None
    assert "holds 2 of 3 clips" in caplog.text
    assert build(root, TRAINING, records)[0] == (2, 3)
    moved = [*records[:1], replace(records[1], end_s=0.8), records[2]]
    assert open_cache(root, CacheKind.TRAINING, moved, CLIP) is None
    assert build(root, replace(TRAINING, short_side=32), records)[0] == (0, 3)


def test_a_cache_is_used_only_where_it_suits(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    records = records_of(root)
    assert open_cache(root, CacheKind.TRAINING, records, CLIP) is None
    assert not caplog.text  # where there is no cache, there is nothing to log
    build(root, TRAINING, records)
    build(root, EVALUATION, records)
    assert open_cache(root, CacheKind.TRAINING, records, CLIP) is not None
    assert "3 clips are read from the cache" in caplog.text
    for clip_cfg in (replace(CLIP, image_size=64), replace(CLIP, num_frames=17), replace(CLIP, num_frames=5)):
        assert open_cache(root, CacheKind.TRAINING, records, clip_cfg) is None
    assert open_cache(root, CacheKind.EVALUATION, records, CLIP) is not None
    assert open_cache(root, CacheKind.EVALUATION, records, CLIP, num_temporal_views=2) is None
    for clip_cfg in (replace(CLIP, image_size=16), replace(CLIP, num_frames=3)):
        assert open_cache(root, CacheKind.EVALUATION, records, clip_cfg) is None
    assert caplog.text.count("is not used") == 6


@pytest.mark.parametrize("settings", [TRAINING, EVALUATION])
@pytest.mark.parametrize("where", [10, -10])
def test_a_damaged_file_of_a_cache_is_noticed(root: Path, settings: CacheSettings, where: int) -> None:
    records = records_of(root)
    build(root, settings, records)
    cache = opened(root, settings, records)
    path = cache.folder / file_name(records[0].name, settings.kind)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    dataset = ClipDataset(records, CLIP, training=False, seed=0, cache=cache, skip_damaged=True)
    with pytest.raises(ValueError, match=f"{path.name}: damaged") as raised:
        dataset[0]
    assert not isinstance(raised.value, VideoError)  # no damaged clip, which might be skipped
    path.unlink()
    with pytest.raises(ValueError, match="not there"):
        dataset[0]


def test_a_cache_that_is_made_anew_under_its_reader_gives_no_frames_of_other_sizes(root: Path) -> None:
    records = records_of(root)
    build(root, EVALUATION, records)
    cache = opened(root, EVALUATION, records)
    build(root, replace(EVALUATION, short_side=48), records)
    with pytest.raises(ValueError, match="damaged, or made anew after it was opened"):
        ClipDataset(records, CLIP, training=False, seed=0, cache=cache)[0]


def test_a_video_that_cannot_be_read_stays_in_the_cache_as_its_reason(root: Path) -> None:
    records = records_of(root)
    records[0].path.write_bytes(records[0].path.read_bytes()[:800])
    build(root, TRAINING, records)
    cache = opened(root, TRAINING, records)
    with pytest.raises(VideoError, match=r"a\.mp4"):
        cache.info(records[0])
    assert build(root, TRAINING, records)[0] == (2, 3)  # it is tried again


def test_settings_that_are_no_settings_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = records_of(root)[:1]
    build(root, TRAINING, records)
    path = cache_folder(root, CacheKind.TRAINING) / "settings.json"
    for content in ("{", "[]", '{"kind": "other", "num_frames": 1, "short_side": 16, "format": 2}', '{"format": 2}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"settings\.json: not the settings of a cache"):
            open_cache(root, CacheKind.TRAINING, records, CLIP)
    path.write_text(json.dumps(TRAINING.plain() | {"format": 0}))  # of an earlier version
    caplog.clear()
    assert open_cache(root, CacheKind.TRAINING, records, CLIP) is None
    assert "of another version" in caplog.text
    with pytest.raises(ValueError, match="num_frames of a cache must be at least 1, got 0"):
        CacheSettings(CacheKind.TRAINING, 0, 256)


def test_the_estimated_size_of_a_finished_cache_is_that_of_its_files(root: Path) -> None:
    records = records_of(root)
    build(root, TRAINING, records)
    folder = cache_folder(root, CacheKind.TRAINING)
    assert estimated_bytes(folder, records) == sum(path.stat().st_size for path in folder.glob("*.mp4"))
    assert len(read_index(folder)) == 3


def test_a_cache_keeps_the_numbers_it_was_made_with_unless_others_are_given(root: Path) -> None:
    usual = chosen_settings(root, CacheKind.TRAINING, None, None)
    assert (usual.num_frames, usual.short_side) == (48, 256)
    build(root, TRAINING, records_of(root)[:1])
    assert chosen_settings(root, CacheKind.TRAINING, None, None) == TRAINING
    assert chosen_settings(root, CacheKind.TRAINING, 24, None) == replace(TRAINING, num_frames=24)
    assert chosen_settings(root, CacheKind.TRAINING, None, 64) == replace(TRAINING, short_side=64)
    with pytest.raises(ValueError, match="short_side of a cache must be at least 16, got 0"):
        chosen_settings(root, CacheKind.TRAINING, None, 0)


def test_a_small_video_is_not_enlarged(root: Path) -> None:
    records = records_of(root)
    build(root, replace(TRAINING, short_side=64), records)
    folder = cache_folder(root, CacheKind.TRAINING)
    sizes = [probe(folder / file_name(record.name, CacheKind.TRAINING)) for record in records]
    assert [(info.height, info.width) for info in sizes] == [(64, 86), (48, 64), (86, 64)]


def test_encoded_frames_stand_for_equal_parts_of_the_clip(tmp_path: Path) -> None:
    frames = torch.arange(0, 240, 20, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 32, 48)
    encode(frames, 1.7, tmp_path / "clip.mp4")
    info = probe(tmp_path / "clip.mp4")
    assert (info.num_frames, info.duration_s) == (12, pytest.approx(1.7, abs=1e-3))
    for share in (0.01, 0.99):  # early and late in each twelfth
        found = read_frames(tmp_path / "clip.mp4", (torch.arange(12) + share) * 1.7 / 12)
        assert (found.float() - frames.float()).abs().max() < 6


def test_a_cache_that_is_made_again_leaves_files_of_others_alone(root: Path) -> None:
    records = records_of(root)
    build(root, TRAINING, records)
    folder = cache_folder(root, CacheKind.TRAINING)
    for name in (".DS_Store", "._c.mp4", "note.txt"):
        (folder / name).write_text("mine")
    (folder / "old.mp4.partial").touch()
    build(root, replace(TRAINING, num_frames=8), records[:1])
    ours = {file_name(records[0].name, CacheKind.TRAINING), "index.jsonl", "settings.json"}
    assert {path.name for path in folder.iterdir()} == {".DS_Store", "._c.mp4", "note.txt", *ours}


def test_a_cache_on_a_full_disk_is_one_line_and_goes_on_once_there_is_space(videos: Path, small_disk: Path) -> None:
    records, filling = records_of(videos), small_disk / "filling"
    with contextlib.suppress(OSError):
        filling.write_bytes(bytes(10**6))
    with filling.open("r+b") as file:
        file.truncate(filling.stat().st_size - 8192)  # room for the settings and a part of a clip
    with pytest.raises(DiskFullError, match=rf"^{small_disk}/\S+: no space left on the disk \(.* free\); nothing "):
        build(small_disk, TRAINING, records)
    filling.unlink()
    assert build(small_disk, TRAINING, records)[-1] == (3, 3)
    opened(small_disk, TRAINING, records)


def test_a_cache_may_lie_on_another_disk_behind_a_link(root: Path, tmp_path: Path, small_disk: Path) -> None:
    records = records_of(root)
    (tmp_path / "cache").symlink_to(small_disk)
    for settings in (TRAINING, EVALUATION):
        build(tmp_path / "cache", settings, records)
        cache = opened(tmp_path / "cache", settings, records)
        assert {path.name for path in (small_disk / settings.kind.value).iterdir()} == {
            *("index.jsonl", "settings.json"),
            *(file_name(record.name, settings.kind) for record in records),
        }
        assert cache.folder.parent.is_symlink()


def test_clips_of_a_csv_that_differ_in_case_only_have_files_of_their_own_on_any_disk() -> None:
    names = {file_name(name, CacheKind.TRAINING).casefold() for name in ("Clip.mp4", "clip.MP4", "clip.mp4")}
    assert len(names) == 3
