import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from diveparse.commands import __main__
from diveparse.commands.cli import main
from diveparse.commands.predict import caption, copies_in, in_words, videos_in
from diveparse.configs import HeadKind, load_config
from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.datasets.video import probe
from diveparse.engine.evaluation.predict import Answer, AttributeAnswer, Candidate, predict
from diveparse.models.classifier import DiveClassifier, build_classifier


@pytest.fixture
def videos(tiny_root: Path, tmp_path: Path) -> list[Path]:
    """Two videos of eight frames, at 25 a second."""
    folder = tmp_path / "videos"
    folder.mkdir()
    sources = sorted((tiny_root / "rgb").iterdir())[:2]
    return [Path(shutil.copy(source, folder / name)) for source, name in zip(sources, ("a.MP4", "b.mp4"), strict=True)]


def predict_with(run: Path, video: Path, height_m: float = 10) -> Answer:
    return predict(DiveClassifier.load(run), video, height_m)


def an_answer(number: str | None) -> Answer:
    candidate = Candidate("5243D", "some dive", None, 0.5)
    attributes = {name: AttributeAnswer(f"some {name}", 0.9) for name in ATTRIBUTES}
    return Answer("dive.mp4", 10, number, "some dive", None, 0.5, [candidate], attributes)


def test_the_printout_names_the_dive_its_difficulty_the_runners_up_and_the_attributes(tiny_run, videos, capsys):
    assert main(["predict", str(tiny_run), str(videos[0]), "--height-m", "7.5"]) == 0
    printed = capsys.readouterr().out
    answer = predict_with(tiny_run, videos[0], 7.5)
    assert printed.startswith(f"{videos[0]}: {answer.number}  {answer.name}\n")
    assert "difficulty (7.5 m)" in printed
    for dive in answer.candidates:
        assert f"{dive.number} " in printed
        assert f"{dive.probability:.3f}" in printed
    assert all(best.value in printed for best in answer.attributes.values())


def test_a_dive_without_a_difficulty_is_called_not_listed():
    assert "not listed" in in_words(an_answer("5243D"))


def test_attributes_that_spell_no_dive_are_called_no_valid_dive():
    expected = "dive.mp4: no valid dive (some takeoff, some somersault, some twist, some position)"
    assert in_words(an_answer(None)).splitlines()[0] == expected


def test_json_is_one_object_per_video(tiny_run, videos, capsys):
    assert main(["predict", str(tiny_run), *map(str, videos), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["video"] for answer in answers] == list(map(str, videos))
    assert answers[0] == asdict(predict_with(tiny_run, videos[0]))


def test_a_bad_video_gets_one_line_and_the_others_their_answers(tiny_run, videos, tmp_path, capsys):
    empty, missing = tmp_path / "empty.mp4", tmp_path / "missing.mp4"
    empty.touch()
    assert main(["predict", str(tiny_run), str(empty), str(videos[0]), str(missing)]) == 1
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith(f"error: {path}: ") for line, path in zip(errors, (empty, missing), strict=True))
    assert printed.out.startswith(f"{videos[0]}: ")


def test_a_run_without_a_model_is_one_clear_line(tmp_path, videos, capsys):
    assert main(["predict", str(tmp_path / "nothing"), str(videos[0])]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path / 'nothing'}: ")
    assert printed.err.count("\n") == 1


def test_a_height_without_a_board_is_refused(tiny_run, videos, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(tiny_run), str(videos[0]), "--height-m", "4"])
    assert "invalid choice: 4.0 (choose from 1, 3, 5, 7.5, 10)" in capsys.readouterr().err


def test_a_folder_is_read_video_by_video_into_a_table(tiny_run, videos, capsys):
    for name in ("notes.txt", "._a.MP4", "b.mp4~", ".DS_Store"):
        (videos[0].parent / name).touch()
    assert main(["predict", str(tiny_run), str(videos[0].parent), "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["video"] for row in rows] == list(map(str, videos))
    answer = predict_with(tiny_run, videos[1])
    assert rows[1]["number"] == answer.number
    assert float(rows[1]["probability"]) == pytest.approx(answer.probability)
    assert rows[1]["twist"] == answer.attributes["twist"].value


def test_a_folder_without_videos_is_refused(tiny_run, tmp_path, capsys):
    assert main(["predict", str(tiny_run), str(tmp_path)]) == 1
    assert f"error: {tmp_path}: the folder holds no video" in capsys.readouterr().err


def test_a_window_outside_the_video_is_one_line(tiny_run, videos, capsys):
    assert main(["predict", str(tiny_run), str(videos[0]), "--start=0.2", "--end=9"]) == 1
    errors = capsys.readouterr().err
    assert errors == f"error: {videos[0]}: expected start and end in order within its 0.320 s, got 0.2 and 9.0\n"


def test_a_structured_model_answers_with_dives_that_it_never_saw(tiny_run, videos, capsys):
    assert main(["predict", str(tiny_run), str(videos[0]), "--dives", "world-aquatics", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["number"]


def test_a_flat_model_refuses_other_dives_once_and_before_any_answer(tiny_run, tmp_path, videos, capsys):
    cfg = load_config(tiny_run / "config.yaml", [f"head.kind={HeadKind.FLAT.value}"])
    build_classifier(cfg, DIVING48).save(tmp_path / "flat")
    arguments = [str(tmp_path / "flat"), *map(str, videos), "missing.mp4", "--dives", "world-aquatics", "--csv"]
    assert main(["predict", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""  # not even the heading of a table
    assert printed.err.startswith("error: a flat head answers only with its own 48 dives of Diving48")
    assert printed.err.count("\n") == 1


@pytest.fixture
def season(tmp_path):
    """Videos in folders; nobody decodes them, so they are empty."""
    for name in ("b.mp4", "a.mp4", "c.mov", "heat/a.mp4", "heat/final/d.mp4", "[x].mp4", "*.mov", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("?.mp4", ["a.mp4", "b.mp4"]),
        ("[bc].*", ["b.mp4", "c.mov"]),
        ("**/a.mp4", ["a.mp4", "heat/a.mp4"]),
        ("heat/**", ["heat/a.mp4", "heat/final/d.mp4"]),  # of what it matches, the files
        ("[x].mp4", ["[x].mp4"]),  # a file of that name
        ("*.mov", ["*.mov"]),  # likewise
        ("[[]x].m*", ["[x].mp4"]),
        ("none.mp4", ["none.mp4"]),  # no pattern; reading it is refused with the reason
    ],
)
def test_a_pattern_stands_for_the_files_that_it_matches_but_a_file_of_its_name_comes_first(pattern, expected, season):
    assert videos_in(str(season / pattern)) == [season / name for name in expected]


def test_a_pattern_may_be_relative(season, monkeypatch):
    monkeypatch.chdir(season)
    assert videos_in("heat/*.mp4") == [Path("heat/a.mp4")]


def test_a_pattern_that_matches_nothing_is_refused(tiny_run, videos, season, capsys):
    assert main(["predict", str(tiny_run), str(videos[0]), str(season / "z*.mp4")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {season / 'z*.mp4'}: no file matches this pattern\n"


def test_the_answer_is_drawn_over_a_copy_of_each_video(tiny_run, videos, tmp_path, capsys):
    folder = tmp_path / "new" / "captioned"
    assert main(["predict", str(tiny_run), *map(str, videos), "--save-video", str(folder), "--json"]) == 0
    assert [json.loads(line)["video"] for line in capsys.readouterr().out.splitlines()] == list(map(str, videos))
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b.mp4"]
    assert [probe(path).num_frames for path in folder.iterdir()] == [8, 8]


def test_a_copy_holds_the_window_only(tiny_run, videos, tmp_path):
    window = ["--start", "0.08", "--end", "0.2"]
    assert main(["predict", str(tiny_run), str(videos[0]), *window, "--save-video", str(tmp_path)]) == 0
    assert probe(tmp_path / "a.mp4").num_frames == 3  # on screen from 0.08, 0.12 and 0.16 s on


def test_no_file_is_written_over_by_a_copy(tiny_run, videos, capsys):
    source = videos[1]
    before = source.read_bytes()
    assert main(["predict", str(tiny_run), str(source), "--save-video", str(source.parent)]) == 1
    printed = capsys.readouterr()
    reason = f"error: {source} already exists; move it, or choose another --save-video\n"
    assert (printed.out, printed.err) == ("", reason)
    assert source.read_bytes() == before


def test_two_videos_of_the_same_name_are_not_copied_into_one_file(tiny_run, tmp_path, capsys):
    same = [tmp_path / "heat" / "dive.mp4", tmp_path / "final" / "dive.mov"]
    assert main(["predict", str(tiny_run), *map(str, same), "--save-video", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{tmp_path / 'out' / 'dive.mp4'} would be the copy of {same[0]} and of {same[1]}" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_caption_has_the_dive_and_the_attributes_with_their_probabilities():
    assert [line.replace("\u00a0", " ") for line in caption(an_answer("5253B"))] == [
        "5253B  some dive, probability 0.50",
        "some takeoff 0.90, some somersault 0.90, some twist 0.90, some position 0.90",
    ]
    assert caption(an_answer(None))[0] == "no valid dive (some takeoff, some somersault, some twist, some position)"


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tiny_run, videos):
    """As in `diveparse predict RUN VIDEOS --csv | head -1`."""
    reading, writing = os.pipe()
    command = [sys.executable, __main__.__file__, "predict", str(tiny_run), *map(str, videos), "--csv"]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    os.close(reading)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (1, "")


def test_a_pattern_passes_over_foreign_files(tmp_path):
    for name in ("a.mp4", "Thumbs.db", "a.mp4~"):
        (tmp_path / name).touch()
    assert videos_in(f"{tmp_path}/*") == [tmp_path / "a.mp4"]


def test_a_pattern_enters_each_folder_once_also_where_links_lead_in_circles(season, monkeypatch):
    (season / "circle").symlink_to(season)
    (season / "heat" / "circle").symlink_to(season / "heat")
    (season / "gone").symlink_to(season / "nowhere")
    (season / ".trash").mkdir()
    (season / ".trash" / "a.mp4").touch()
    expected = ["a.mp4", "heat/a.mp4"]
    assert videos_in(f"{season}/**/a.mp4") == [season / name for name in expected]
    assert videos_in(f"{season}/**/**/a.mp4") == [season / name for name in expected]
    monkeypatch.chdir(season)
    assert videos_in("**/a.mp4") == [Path(name) for name in expected]


def test_a_pattern_enters_folders_on_other_disks_through_links(season, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere [x]")
    (elsewhere / "e.mp4").touch()
    (season / "heat" / "linked [y]").symlink_to(elsewhere)
    assert videos_in(f"{season}/**/e.mp4") == [season / "heat" / "linked [y]" / "e.mp4"]


@pytest.mark.parametrize(
    "names",
    [("Dive.mp4", "dive.mov"), ("caf\u00e9.mp4", "cafe\u0301.mov")],
    ids=["upper and lower case", "accents in one letter or two"],
)
def test_copies_that_many_disks_keep_in_one_file_are_refused(names, tmp_path):
    videos = [tmp_path / name for name in names]
    with pytest.raises(ValueError, match="would be the copy of"):
        copies_in(tmp_path / "out", videos)


@pytest.mark.parametrize(
    "name",
    ["a b%03d#?'.mp4", "\U0001f3ca.mp4", "cafe\u0301.mp4", "x" * 251 + ".mp4", os.fsdecode(b"caf\xe9.mp4"), "a\nb.mp4"],
    ids=["spaces and signs", "outside of 16 bits", "an accent as a letter", "255 bytes", "no text", "two lines"],
)
@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_a_video_of_any_name_is_answered_for(name, option, tiny_run, videos, capsys):
    video = videos[0].rename(videos[0].with_name(name))
    assert main(["predict", str(tiny_run), str(video), str(videos[1]), option]) == 0
    answers = capsys.readouterr().out
    if option == "--json":
        shown = [json.loads(line)["video"] for line in answers.splitlines()]
    else:
        shown = [row["video"] for row in csv.DictReader(io.StringIO(answers, newline=""))]
    escaped = str(video).encode(errors="backslashreplace").decode() if option == "--csv" else str(video)
    assert shown == [escaped, str(videos[1])]


def test_a_full_disk_ends_the_copies_with_one_line_that_says_how_to_go_on(tiny_run, videos, small_disk, capsys):
    (small_disk / "filling").write_bytes(bytes(262_144))
    folder = small_disk / "copies"
    assert main(["predict", str(tiny_run), *map(str, videos), "--save-video", str(folder), "--csv"]) == 1
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {folder / 'a.mp4'}: no space left on the disk")
    assert line.endswith("move the copies, or choose another --save-video, and start the same command again)")
    assert len(printed.out.splitlines()) == 2  # the heading and the first video
    assert not list(folder.iterdir())
