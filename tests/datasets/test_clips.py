import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from diveparse.configs import ClipConfig
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.clips import read_clips
from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS, Dive
from diveparse.datasets.video import read_frames

WriteVideo = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> Path:
    """Two videos of 1.2 s, one of them in a folder."""
    folder = tmp_path_factory.mktemp("club")
    (folder / "meet").mkdir()
    for name in ("a.mp4", "meet/b.mp4"):
        write_video(folder / name, num_frames=30)
    return folder


def write_csv(path: Path, *rows: Sequence[object]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_clips_are_read_with_their_splits_sources_and_windows(folder: Path) -> None:
    path = write_csv(
        folder / "clips.csv",
        ("path", "dive_number", "start", "end", "split", "source", "judge"),
        ("a.mp4", "5253B", "", "", "train", "club night", "x"),
        ("a.mp4", "626C", "0.2", "0.6", "test", "club night", "y"),
        (folder / "meet" / "b.mp4", "107B", "0.5", "", "", "", "z"),
    )
    clips = read_clips(path, {}, None)
    assert clips.dive_set.numbers == ("107B", "5253B", "626C")
    assert clips.dive_set.name == "clips"
    (a, b), (window,) = clips.splits["train"], clips.splits["test"]
    assert (a.path, a.source, a.label, a.start_s, a.end_s) == (folder / "a.mp4", "club night", 1, 0.0, None)
    assert (b.path, b.source, b.start_s, b.end_s) == (folder / "meet/b.mp4", str(folder / "meet/b.mp4"), 0.5, None)
    assert (window.label, window.start_s, window.end_s) == (2, 0.2, 0.6)
    assert len({a.name, b.name, window.name}) == 3


def test_labels_count_in_the_dives_that_the_user_names(folder: Path) -> None:
    path = write_csv(folder / "clips.csv", ("path", "dive_number"), ("a.mp4", "5253B"))
    assert read_clips(path, {}, WORLD_AQUATICS).splits["train"][0].label == WORLD_AQUATICS.label_of("5253B")
    path = write_csv(folder / "clips.csv", ("path", "dive_number"), ("a.mp4", "626C"))
    with pytest.raises(ValueError, match=r"line 2: dive 626C .* is not one of the 48 dives of Diving48"):
        read_clips(path, {}, DIVING48)


def test_every_bad_row_is_listed_at_once_with_its_line(folder: Path) -> None:
    path = write_csv(
        folder / "clips.csv",
        ("path", "dive_number", "start", "end", "split"),
        ("a.mp4", "107B", "", "", ""),
        ("a.mp4", "107E", "", "", ""),
        ("nowhere.mp4", "107B", "", "", ""),
        ("a.mp4", "107B", "soon", "", ""),
        ("a.mp4", "107B", "-1", "", ""),
        ("a.mp4", "107B", "0.5", "0.4", ""),
        ("a.mp4", "107B", "0", "9", ""),
        ("a.mp4", "107B", "nan", "", ""),
        ("a.mp4", "107B", "", "", "dev"),
        ("a.mp4", "107B", "", "", ""),
        ("", "107B", "", "", ""),
    )
    with pytest.raises(ValueError, match="rows cannot be used") as caught:
        read_clips(path, {}, None)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{path}: 10 of 11 rows cannot be used"
    assert [line.split(":")[0].strip() for line in lines] == [f"line {number}" for number in range(3, 13)]
    expected = [
        "107E",
        "there is no video",
        "start must be seconds, 0 or more, got 'soon'",
        "start must be seconds, 0 or more, got '-1'",
        "got 0.5 and 0.4",
        "within the 1.200 s of",
        "got 'nan'",
        "split must be one of train, val, test, got 'dev'",
        "clip a.mp4 is listed in line 2 already",
        "path is empty",
    ]
    for line, part in zip(lines, expected, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'path' for path; the file has none"),
        (b"path,dive_number\n", "expected one row or more"),
        (b"path,number\na.mp4,107B\n", "no column 'dive_number' for dive_number; the file has path, number"),
        (b"path,dive_number\na.mp4\n", "line 2: expected 2 values"),
        (b"path,dive_number\na.mp4,107B,x\n", "line 2: expected 2 values"),
        (b"path,dive_number\n\xff\xfe,107B\n", "not a CSV file in UTF-8"),
        (b'path,dive_number\n"a.mp4,107B\n', "not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_clips_is_refused(content: bytes, message: str, folder: Path) -> None:
    path = folder / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_clips(path, {}, None)
    assert str(caught.value).startswith(f"{path}: ")


def test_other_names_and_patterns_of_columns_are_mapped(folder: Path) -> None:
    path = write_csv(folder / "other.csv", ("event", "file", "code"), ("meet", "b", "107B"))
    columns = {"path": "{event}/{file}.mp4", "dive_number": "code", "source": "event"}
    (record,) = read_clips(path, columns, None).splits["train"]
    assert (record.path, record.source) == (folder / "meet/b.mp4", "meet")
    with pytest.raises(ValueError, match="no column 'clip' for path; the file has event, file, code"):
        read_clips(path, {**columns, "path": "{clip}.mp4"}, None)
    with pytest.raises(ValueError, match=r"data\.columns must map path, .*, got number"):
        read_clips(path, {"number": "code"}, None)


def test_a_value_in_braces_is_not_read_as_a_pattern(folder: Path) -> None:
    path = write_csv(folder / "clips.csv", ("path", "dive_number", "source"), ("a.mp4", "107B", "{path}"))
    assert read_clips(path, {}, None).splits["train"][0].source == "{path}"


def test_a_window_gives_the_frames_of_that_part_of_the_video(folder: Path) -> None:
    path = write_csv(folder / "clips.csv", ("path", "dive_number", "start", "end"), ("a.mp4", "107B", "0.4", "0.8"))
    records = read_clips(path, {}, None).splits["train"]
    clip_cfg = ClipConfig(num_frames=4, image_size=48, flip=False, color_jitter=0, crop_scale_min=1)
    clip = ClipDataset(records, clip_cfg, training=False, seed=0)[0]["clip"][0]
    whole = read_frames(records[0].path, [0.45, 0.55, 0.65, 0.75], size=(48, 64))
    expected = whole[..., 8:56].float()
    correlation = torch.corrcoef(torch.stack([clip.flatten(), expected.flatten()]))[0, 1]
    brightness = clip.mean((1, 2, 3)).argsort()
    assert correlation > 0.99
    assert torch.equal(brightness, expected.mean((1, 2, 3)).argsort())
    training = ClipDataset(records, clip_cfg, training=True, seed=0)
    drawn = [training[0, 0]["clip"], training[1, 0]["clip"]]
    assert not torch.equal(*drawn)


def test_finediving_loads_through_a_mapping(shared_data: Path, tmp_path: Path, folder: Path) -> None:
    listing = shared_data / "annotations" / "finediving_dives.csv"
    path = tmp_path / "finediving.csv"
    path.write_bytes(listing.read_bytes())
    with listing.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # the annotation comes without videos
        video = tmp_path / row["video"] / f"{row['clip']}.mp4"
        video.parent.mkdir(exist_ok=True)
        video.symlink_to(folder / "a.mp4")
    columns = {"path": "{video}/{clip}.mp4", "dive_number": "action_type", "source": "video"}
    clips = read_clips(path, columns, None)
    assert len(clips.dive_set) == 52
    assert any(dive.armstand for dive in clips.dive_set)
    assert {split: len(records) for split, records in clips.splits.items()} == {
        split: sum(row["split"] == split for row in rows) for split in ("train", "test")
    }
    sample = random.Random(0).sample(clips.splits["test"], 20)
    written = {f"{row['video']}/{row['clip']}.mp4": row["action_type"] for row in rows}
    for record in sample:
        assert clips.dive_set[record.label] == Dive.from_number(written[record.name])
