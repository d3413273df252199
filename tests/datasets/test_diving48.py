import json
from pathlib import Path
from typing import Any

import pytest

from diveparse.configs import ClipConfig
from diveparse.datasets.dives import DIVING48, DiveSet
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.inspection import read_splits
from diveparse.datasets.records import ClipRecord

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


def test_read_split_refuses_a_split_that_diving48_does_not_have(root: Path) -> None:
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        read_split(root, "val")


@pytest.mark.parametrize("name", ["Diving48_vocab.json", "Diving48_V2_train.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"[1, 2", "not a whole JSON file"),
        (b"\xff\xfe\xfa", "not a whole JSON file"),
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


def test_read_split_counts_every_video_as_missing_without_a_video_folder(copied_root: Path) -> None:
    for path in (copied_root / "rgb").iterdir():
        path.unlink()
    (copied_root / "rgb").rmdir()
    with pytest.raises(ValueError, match="6 of the 6 videos"):
        read_split(copied_root, "train")


def test_names_that_differ_in_case_only_are_refused(copied_root: Path) -> None:
    """A disk that ignores case would keep one file for both, in rgb/ and in a cache."""
    name = "SOURCE_0000_00002"
    (copied_root / "rgb" / f"{name}.mp4").touch()
    write_json(copied_root / "Diving48_V2_train.json", [*ENTRIES, ENTRIES[2] | {"vid_name": name}])
    with pytest.raises(ValueError, match=f"clips {name} and source_0000_00002 differ in case only, and many disks"):
        read_split(copied_root, "train")


def test_names_of_two_splits_that_differ_in_case_only_are_refused_by_prepare(copied_root: Path) -> None:
    name = "SOURCE_0000_00002"
    write_json(copied_root / "Diving48_V2_test.json", [ENTRIES[2] | {"vid_name": name}])
    with pytest.raises(ValueError, match=f"^{copied_root}: clips {name} and source_0000_00002 differ in case only"):
        read_splits(copied_root)
