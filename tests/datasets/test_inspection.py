import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diveparse.datasets.dives import DIVING48, DIVING48_TRAIN_COUNTS, DIVING48_V1_TRAIN_COUNTS
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.inspection import LOG_FILE, check_files, read_log, read_splits, report

WriteVideo = Callable[..., Path]
TRAIN = {f"train_{source:05d}_{clip:05d}": 10 * source + clip for source in range(2) for clip in range(2)}
TEST = {"test__00000_00000": 3, "test__00000_00001": 7}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> list[Path]:
    """One video a clip, no two alike."""
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{k}.mp4", num_frames=30 + k, rate_hz=25) for k in range(len(TRAIN) + len(TEST))]


@pytest.fixture
def root(tmp_path: Path, videos: list[Path]) -> Path:
    """A sound data set of six clips, to be spoilt."""
    (tmp_path / "rgb").mkdir()
    for name, video in zip([*TRAIN, *TEST], videos, strict=True):
        (tmp_path / "rgb" / f"{name}.mp4").write_bytes(video.read_bytes())
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps([dive.vocab for dive in DIVING48]))
    write_split(tmp_path, "train", TRAIN)
    write_split(tmp_path, "test", TEST)
    return tmp_path


def write_split(root: Path, split: str, labels: dict[str, int]) -> None:
    entries = [{"vid_name": name, "label": label} for name, label in labels.items()]
    (root / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))


def inspect(root: Path) -> dict[str, Any]:
    splits = read_splits(root)
    list(check_files(root, [record for split in splits.values() for record in split], num_workers=1))
    return report(root, splits)


def video_of(root: Path, name: str) -> Path:
    return root / "rgb" / f"{name}.mp4"


def test_a_sound_data_set_is_fit_and_counted(root: Path) -> None:
    found = inspect(root)
    assert found["fit"]
    assert found["errors"] == found["warnings"] == []
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["clips"], train["found"], train["sources"], train["frame_rates_hz"]) == (4, 4, 2, {"25": 4})
    assert (test["clips"], test["sources"], test["clips_per_class"][3], test["clips_per_class"][7]) == (2, 1, 1, 1)
    assert "30 (101A)" in found["classes_without_clips"]
    assert len(found["classes_without_clips"]) == 48 - 6
    json.dumps(found, allow_nan=False)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = random.Random(0).randbytes(400)
    path.write_bytes(content)


FIRST, SECOND = list(TRAIN)[:2]
TEST_CLIP = next(iter(TEST))
SPOILT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda root: video_of(root, FIRST).unlink(), "errors", f"1 clips are missing: {FIRST}"),
    "truncated": (
        lambda root: video_of(root, FIRST).write_bytes(video_of(root, FIRST).read_bytes()[:1500]),
        "errors",
        f"1 files cannot be played: {FIRST}",
    ),
    "damaged inside": (lambda root: spoil(video_of(root, FIRST)), "errors", f"1 files cannot be played: {FIRST}"),
    "a source on both sides": (
        lambda root: write_split(root, "test", {**TEST, "train_00001_00009": 1}),
        "errors",
        "1 sources are in both training and test: train_00001",
    ),
    "a clip on both sides": (
        lambda root: write_split(root, "test", {**TEST, FIRST: 0}),
        "errors",
        f"1 clips are in both training and test: {FIRST}",
    ),
    "a file on both sides": (
        lambda root: video_of(root, TEST_CLIP).write_bytes(video_of(root, FIRST).read_bytes()),
        "errors",
        "1 files are in both training and test under two names",
    ),
    "class 30": (
        lambda root: write_split(root, "train", {**TRAIN, FIRST: 30}),
        "errors",
        r"the first ones (V1), not V2: class 30 (101A) has 1 clips",
    ),
    "twice": (
        lambda root: video_of(root, SECOND).write_bytes(video_of(root, FIRST).read_bytes()),
        "warnings",
        "1 files are there under two names",
    ),
    "a stranger": (
        lambda root: video_of(root, "nobody_0000_00000").write_bytes(b"x"),
        "warnings",
        "1 videos are in neither split: nobody_0000_00000",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_is_found_and_named(kind: str, root: Path) -> None:
    wrong, level, message = SPOILT[kind]
    wrong(root)
    found = inspect(root)
    assert any(message in line for line in found[level]), found["errors"] + found["warnings"]
    assert found["fit"] == (level == "warnings")


def test_short_clips_are_named(root: Path, write_video: WriteVideo) -> None:
    write_video(video_of(root, FIRST), num_frames=24)
    assert inspect(root)["warnings"] == [f"1 clips are shorter than 25 frames: {FIRST}"]


def test_a_clip_that_lacks_its_end_is_fit_and_its_loss_is_named(root: Path, write_video: WriteVideo) -> None:
    path = write_video(video_of(root, FIRST), num_frames=100, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    found = inspect(root)
    assert found["fit"]
    assert list(found["losses"]) == [FIRST]
    assert found["warnings"] == [f"1 files lack their end: {FIRST}: {found['losses'][FIRST]}"]
    assert found["losses"][FIRST].startswith("truncated")


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_labels_of_v1_are_recognised_by_their_counts(share: float, root: Path) -> None:
    def labels(counts: tuple[int, ...]) -> dict[str, int]:
        drawn = random.Random(0).choices(range(48), [0 if k == 30 else n for k, n in enumerate(counts)], k=12_000)
        return {f"source_{k % 40:04d}_{k:05d}": label for k, label in enumerate(drawn[: round(share * 12_000)])}

    for counts, is_v1 in ((DIVING48_V1_TRAIN_COUNTS, True), (DIVING48_TRAIN_COUNTS, False)):
        write_split(root, "train", labels(counts))
        recognised = any("V1" in error for error in report(root, read_splits(root))["errors"])
        assert recognised == (is_v1 and share == 1.0)  # 2,400 clips are too few; V2 is never taken for V1


def test_a_folder_with_the_files_of_v1_is_refused_with_the_reason(root: Path) -> None:
    (root / "Diving48_V2_train.json").rename(root / "Diving48_train.json")
    with pytest.raises(ValueError, match=r"Diving48_train\.json holds the first labels \(V1\), .* get Diving48_V2"):
        read_splits(root)


def test_what_was_played_is_not_played_again_until_it_changes(root: Path) -> None:
    inspect(root)
    log = root / LOG_FILE
    lines = log.read_text().strip().splitlines()
    assert len(lines) == 6
    inspect(root)
    assert log.read_text().strip().splitlines() == lines
    spoil(video_of(root, FIRST))
    assert not inspect(root)["fit"]
    assert len(log.read_text().strip().splitlines()) == 7


def test_a_line_that_a_kill_cut_short_is_played_again(root: Path) -> None:
    inspect(root)
    log = root / LOG_FILE
    content = log.read_bytes()
    log.write_bytes(content[: len(content) - 40])
    assert len(read_log(root)) == 5
    assert inspect(root)["fit"]
    assert len(read_log(root)) == 6


def test_a_killed_check_goes_on_and_loses_nothing(root: Path) -> None:
    program = f"""
from pathlib import Path
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.inspection import check_files, read_splits
root = Path({str(root)!r})
if __name__ == "__main__":
    list(check_files(root, [record for split in read_splits(root).values() for record in split], 1))
"""
    script = root / "check.py"
    script.write_text(program)
    child = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    while not (root / LOG_FILE).is_file() and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = read_log(root)
    assert inspect(root)["fit"]
    assert {name: read_log(root)[name] for name in before} == before


def test_foreign_files_beside_videos_are_neither_played_nor_counted(root: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", *(f"._{clip}.mp4" for clip in TRAIN), "train_00000_00000.mp4~"):
        (root / "rgb" / name).write_text("foreign")
    found = inspect(root)
    assert found["errors"] == found["warnings"] == found["in_neither_split"] == []


def test_a_foreign_file_does_not_stand_in_for_a_missing_video(root: Path) -> None:
    video = video_of(root, "test__00000_00001")
    video.rename(video.with_name(f"._{video.name}"))
    with pytest.raises(ValueError, match=r"1 of the 2 videos of Diving48_V2_test\.json are missing: test__00000_00001"):
        read_split(root, "test")
