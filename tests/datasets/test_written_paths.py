import csv
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from diveparse.datasets.clips import read_clips
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.written_paths import same_on_some_disk

COMPOSED, DECOMPOSED = "Zoë Größe é.mp4", unicodedata.normalize("NFD", "Zoë Größe é.mp4")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def read(folder: Path, *paths: str | Path) -> Sequence[ClipRecord]:
    """The clips of a CSV that lists these paths. The videos may be empty: only rows with a window open them."""
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "dive_number"), *((path, "107B") for path in paths)])
    return read_clips(folder / "clips.csv", {}, None).splits["train"]


def problem_of(folder: Path, *paths: str | Path) -> str:
    """What is wrong with the last row: one line."""
    with pytest.raises(ValueError, match="rows cannot be used") as caught:
        read(folder, *paths)
    heading, line = str(caught.value).splitlines()
    assert heading == f"{folder / 'clips.csv'}: 1 of {len(paths)} rows cannot be used"
    start = f"  line {len(paths) + 1}: "
    assert line.startswith(start)
    return line.removeprefix(start)


@pytest.mark.parametrize(
    "name", ["a b.mp4", "a,b;c'\"#%?.mp4", "跳水.mp4", "\U0001f3ca.mp4", "-.mp4", "x" * 251 + ".mp4"]
)
def test_a_video_of_any_name_is_found(name: str, tmp_path: Path) -> None:
    video = touch(tmp_path / name)
    (clip,) = read(tmp_path, name)
    assert (clip.path, clip.name) == (video, name)


def test_a_path_of_many_letters_is_found(tmp_path: Path) -> None:
    written = "/".join(["a folder with a name of forty letters ..."] * 8 + ["final.mp4"])
    assert len(written) > 300
    video = touch(tmp_path / written)
    assert read(tmp_path, written)[0].path == video


def test_a_name_that_is_too_long_for_a_disk_is_one_line(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    problem = problem_of(tmp_path, "a.mp4", "é" * 130 + ".mp4")
    assert problem.startswith(f"there is no video {tmp_path}/éé")
    assert "File name too long" in problem
    assert problem.endswith("264 in the longest name)")
    assert len(problem) < 350


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    assert "File name too long" in problem_of(tmp_path, "a/" * 3000 + "a.mp4")


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        (f"{COMPOSED}/{COMPOSED}", f"{COMPOSED}/{DECOMPOSED}"),
        (f"{DECOMPOSED}/{COMPOSED}", f"{COMPOSED}/{DECOMPOSED}"),
    ],
    ids=["stored by macOS", "written on macOS", "one of two", "each the other way"],
)
def test_accents_may_be_spelt_in_either_way(written: str, stored: str, tmp_path: Path) -> None:
    video = touch(tmp_path / stored)
    (clip,) = read(tmp_path, written)
    assert clip.path.samefile(video)
    assert clip.name == written


def test_the_spelling_as_written_comes_first(tmp_path: Path) -> None:
    videos = [touch(tmp_path / name) for name in (COMPOSED, DECOMPOSED)]
    if videos[0].samefile(videos[1]):
        pytest.skip("the disk ignores how accents are spelt")
    assert [clip.path.name for clip in read(tmp_path, COMPOSED, DECOMPOSED)] == [COMPOSED, DECOMPOSED]


def test_an_accent_in_two_letters_may_be_too_long_where_one_letter_is_not(tmp_path: Path) -> None:
    assert problem_of(tmp_path, "é" * 125 + ".mp4").startswith("there is no video")


def test_one_video_under_two_spellings_is_listed_twice(tmp_path: Path) -> None:
    touch(tmp_path / DECOMPOSED)
    assert problem_of(tmp_path, COMPOSED, DECOMPOSED) == f"clip {DECOMPOSED} is listed in line 2 already; remove one"


def test_a_csv_of_windows_finds_its_videos_and_names_the_clips_as_elsewhere(tmp_path: Path) -> None:
    video = touch(tmp_path / "2024" / "finals" / "a.mp4")
    (clip,) = read(tmp_path, r"2024\finals\a.mp4")
    assert (clip.path, clip.name, clip.source) == (video, "2024/finals/a.mp4", str(video))
    assert read(tmp_path, r"2024\finals/a.mp4") == read(tmp_path, "2024/finals/a.mp4") == [clip]
    problem = problem_of(tmp_path, r"2024\finals\a.mp4", "2024/finals/a.mp4")
    assert problem == "clip 2024/finals/a.mp4 is listed in line 2 already; remove one"


def test_a_name_with_a_backslash_comes_before_a_folder(tmp_path: Path) -> None:
    literal, other = touch(tmp_path / r"2024\a.mp4"), touch(tmp_path / "2024" / "a.mp4")
    assert [clip.path for clip in read(tmp_path, r"2024\a.mp4", "2024/a.mp4")] == [literal, other]


@pytest.mark.parametrize("written", [r"C:\clips\x.mp4", "C:/x.mp4", "d:x.mp4", r"\\server\share\x.mp4"])
def test_a_path_with_a_drive_is_one_line_with_what_was_expected(written: str, tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    assert problem_of(tmp_path, "a.mp4", written) == (
        f"there is no video {written}: a path of Windows with a drive; expected a path relative to {tmp_path}, such as "
        "2024/final.mp4, or one that begins with /"
    )


def test_a_file_with_the_name_of_a_drive_is_found(tmp_path: Path) -> None:
    video = touch(tmp_path / "C:" / "x.mp4")
    assert read(tmp_path, "C:/x.mp4")[0].path == video


def test_links_to_videos_and_folders_are_followed_and_share_the_source(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("real/a.mp4")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    clips = read(tmp_path, "b.mp4", "real/a.mp4", "linked/a.mp4")
    assert [clip.name for clip in clips] == ["b.mp4", "real/a.mp4", "linked/a.mp4"]
    assert {clip.source for clip in clips} == {str(tmp_path / "b.mp4")}  # so none is held out while another trains


@pytest.mark.parametrize("target", ["nowhere.mp4", "link.mp4"], ids=["dangling", "circle"])
def test_a_link_that_leads_to_no_file_is_one_line(target: str, tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / "link.mp4").symlink_to(target)
    problem = problem_of(tmp_path, "a.mp4", "link.mp4")
    assert problem == f"there is no video {tmp_path}/link.mp4: it is a link to {target}, which leads to no file"


def test_a_circle_of_folders_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert problem_of(tmp_path, "x/a.mp4") == f"there is no video {tmp_path}/x/a.mp4"


def test_names_that_differ_in_case_only_are_two_clips_where_they_are_two_files(tmp_path: Path) -> None:
    videos = [touch(tmp_path / name) for name in ("Clip.mp4", "clip.MP4")]
    if videos[0].samefile(videos[1]):
        pytest.skip("the disk ignores case")
    clips = read(tmp_path, "Clip.mp4", "clip.MP4")
    assert len({clip.source for clip in clips}) == 2


def test_names_that_differ_in_case_only_are_one_clip_where_they_are_one_file(tmp_path: Path) -> None:
    touch(tmp_path / "Clip.mp4")
    if not (tmp_path / "clip.MP4").exists():  # a disk that respects case: two names of one file are the same to us
        (tmp_path / "clip.MP4").hardlink_to(tmp_path / "Clip.mp4")
    assert problem_of(tmp_path, "Clip.mp4", "clip.MP4") == "clip clip.MP4 is listed in line 2 already; remove one"


@pytest.mark.parametrize("other", ["CLIP é.mp4", "clip E\u0301.MP4"], ids=["case", "case and accents"])
def test_names_are_compared_as_such_disks_do(other: str) -> None:
    assert same_on_some_disk("clip é.mp4") == same_on_some_disk(other)
    assert same_on_some_disk("clip e.mp4") != same_on_some_disk(other)
