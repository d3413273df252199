import csv
import json
import runpy
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig, Config, DataConfig, HeadConfig, HeadKind
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.video import probe
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.models.classifier import DiveClassifier, build_classifier

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "predict.py"))
main, predict, read_clip, in_words, caption, videos_in = (
    TOOL[name] for name in ("main", "predict", "read_clip", "in_words", "caption", "videos_in")
)
CLIP = ClipConfig(num_frames=4, image_size=16)
TEMPERATURES = {"dive": 0.1, "takeoff": 0.2, "somersault": 0.5, "twist": 2.0, "position": 4.0}


def save_model(folder, kind=HeadKind.JOINT, seed=0):
    torch.manual_seed(seed)
    backbone = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    cfg = Config(
        name="tiny", arm="x", data=DataConfig(root="."), clip=CLIP, backbone=backbone, head=HeadConfig(kind=kind)
    )
    model = build_classifier(cfg, DIVING48)
    model.temperatures = TEMPERATURES
    model.save(folder)
    return folder


def write_video(path, seed=0, num_frames=12):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 48, 64, 3), dtype=np.uint8)
    write_h264(path, map(Picture, frames), rate_hz=Fraction(25), options=x264_options(23))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder that keeps its model where training puts it."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "dive.mp4")


def test_predict_reads_a_video_exactly_as_a_test_does(video):
    clips = ClipDataset([ClipRecord(video, "dive", "source", 0)], CLIP, training=False, seed=0)
    assert torch.equal(read_clip(video, CLIP), clips[0]["clip"][0])


def test_an_answer_is_what_the_model_says(run, video):
    model = DiveClassifier.load(run)
    answer = predict(model, video, 10)
    clips = read_clip(video, CLIP)[None]
    with torch.no_grad():
        uncalibrated = model.dive_log_probs(clips)[0]
        attributes = model.attribute_log_probs(clips)
    best, probabilities = int(uncalibrated.argmax()), (uncalibrated / TEMPERATURES["dive"]).softmax(-1)
    assert probabilities[best] > 1.1 * uncalibrated[best].exp()
    assert answer["number"] == DIVING48[best].number
    assert answer["name"] == DIVING48[best].name
    assert answer["difficulty"] == DIVING48[best].difficulty(10)
    assert answer["probability"] == pytest.approx(float(probabilities[best]))
    assert [dive["probability"] for dive in answer["candidates"]] == pytest.approx(
        probabilities.sort(descending=True).values[:5].tolist()
    )
    for attribute in ATTRIBUTES:
        slot = int(attributes[attribute].argmax())
        probability = float((attributes[attribute][0] / TEMPERATURES[attribute]).softmax(-1)[slot])
        assert answer["attributes"][attribute] == {
            "value": DIVING48.value_names[attribute][slot],
            "probability": pytest.approx(probability),
        }


def test_the_printout_names_the_dive_its_difficulty_the_runners_up_and_the_attributes(run, video, capsys):
    assert main([str(run), str(video), "--height-m", "7.5"]) == 0
    printed = capsys.readouterr().out
    answer = predict(DiveClassifier.load(run), video, 7.5)
    assert printed.startswith(f"{video}: {answer['number']}  {answer['name']}\n")
    assert "difficulty (7.5 m)" in printed
    for dive in answer["candidates"]:
        assert f"{dive['number']} " in printed
        assert f"{dive['probability']:.3f}" in printed
    assert all(best["value"] in printed for best in answer["attributes"].values())


def an_answer(number):
    described = {"number": number, "name": "some dive", "difficulty": None, "probability": 0.5}
    attributes = {a: {"value": f"some {a}", "probability": 0.9} for a in ATTRIBUTES}
    return {"video": "dive.mp4", "height_m": 10, **described, "candidates": [described], "attributes": attributes}


def test_a_dive_without_a_difficulty_is_called_not_listed():
    assert "not listed" in in_words(an_answer("5243D"))


def test_attributes_that_spell_no_dive_are_said_to_be_no_valid_dive():
    expected = "dive.mp4: no valid dive (some takeoff, some somersault, some twist, some position)"
    assert in_words(an_answer(None) | {"candidates": [an_answer("5243D")]}).splitlines()[0] == expected


def test_independent_heads_may_answer_with_no_number(tmp_path, video):
    for seed in range(20):
        model = DiveClassifier.load(save_model(tmp_path / str(seed), HeadKind.INDEPENDENT, seed))
        answer = predict(model, video, 10)
        if answer["number"] is None:
            break
    assert answer["number"] is None
    assert answer["probability"] == 0
    assert answer["candidates"][0]["number"] in DIVING48


def test_json_is_one_object_a_video(run, video, tmp_path, capsys):
    other = write_video(tmp_path / "other.mp4", seed=1)
    assert main([str(run), str(video), str(other), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["video"] for answer in answers] == [str(video), str(other)]
    assert answers[0] == predict(DiveClassifier.load(run), video, 10)


def test_a_bad_video_gets_one_line_and_the_others_their_answers(run, video, tmp_path, capsys):
    empty, missing = tmp_path / "empty.mp4", tmp_path / "missing.mp4"
    empty.touch()
    assert main([str(run), str(empty), str(video), str(missing)]) == 1
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith(f"error: {path}: ") for line, path in zip(errors, (empty, missing), strict=True))
    assert printed.out.startswith(f"{video}: ")


def test_a_run_without_a_model_is_one_clear_line(tmp_path, video, capsys):
    assert main([str(tmp_path / "nothing"), str(video)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path / 'nothing'}: ")
    assert printed.err.count("\n") == 1


def test_a_height_without_a_board_is_refused(run, video, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(run), str(video), "--height-m", "4"])
    assert "invalid choice: 4.0 (choose from 1, 3, 5, 7.5, 10)" in capsys.readouterr().err


def test_a_folder_is_read_video_by_video_into_a_table(run, tmp_path, capsys):
    for name in ("b.mp4", "a.MP4"):
        write_video(tmp_path / "c.mp4").rename(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert main([str(run), str(tmp_path), "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["video"] for row in rows] == [str(tmp_path / "a.MP4"), str(tmp_path / "b.mp4")]
    answer = predict(DiveClassifier.load(run), tmp_path / "b.mp4", 10)
    assert rows[1]["number"] == answer["number"]
    assert float(rows[1]["probability"]) == pytest.approx(answer["probability"])
    assert rows[1]["twist"] == answer["attributes"]["twist"]["value"]


def test_a_folder_without_videos_is_refused(run, tmp_path, capsys):
    assert main([str(run), str(tmp_path)]) == 1
    assert f"error: {tmp_path}: holds no video" in capsys.readouterr().err


def test_a_window_is_read_as_if_it_were_the_whole_video(video):
    whole = read_clip(video, ClipConfig(num_frames=8, image_size=16), (0.0, 0.32))
    assert torch.equal(read_clip(video, CLIP, (0.16, 0.32)), whole[4:])


@pytest.mark.parametrize("window", [("0.3", "0.2"), ("0", "9"), ("-1", "0.2"), ("0.2", "nan")])
def test_a_window_outside_the_video_is_refused(window, run, video, capsys):
    assert main([str(run), str(video), f"--start={window[0]}", f"--end={window[1]}"]) == 1
    assert "dive.mp4: expected start and end in order within its 0.480 s" in capsys.readouterr().err


def test_a_structured_model_answers_with_dives_that_it_never_saw(run, video, capsys):
    assert main([str(run), str(video), "--dives", "world-aquatics", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    model = DiveClassifier.load(run)
    listed = WORLD_AQUATICS.expressible(DIVING48.values)
    assert len(listed) > len(DIVING48)
    with torch.no_grad():
        log_probs = model.dive_log_probs(read_clip(video, CLIP)[None], listed)[0]
    assert answer["number"] == listed[int(log_probs.argmax())].number
    # the temperature of the dives holds for others, too
    assert answer["probability"] == pytest.approx(float((log_probs / TEMPERATURES["dive"]).softmax(-1).max()))


def test_a_flat_model_says_once_that_it_knows_no_other_dives(tmp_path, video, capsys):
    save_model(tmp_path, HeadKind.FLAT)
    assert main([str(tmp_path), str(video), str(video), "missing.mp4", "--dives", "world-aquatics", "--csv"]) == 1
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
        ("none.mp4", ["none.mp4"]),  # no pattern; reading it will say what is wrong
    ],
)
def test_a_pattern_stands_for_the_files_that_it_matches_but_a_file_of_its_name_comes_first(pattern, expected, season):
    assert videos_in(str(season / pattern)) == [season / name for name in expected]


def test_a_pattern_may_be_relative(season, monkeypatch):
    monkeypatch.chdir(season)
    assert videos_in("heat/*.mp4") == [Path("heat/a.mp4")]


def test_a_pattern_that_matches_nothing_is_refused(run, video, season, capsys):
    assert main([str(run), str(video), str(season / "z*.mp4")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {season / 'z*.mp4'}: no file matches this pattern\n"


def test_the_answer_is_drawn_over_a_copy_of_each_video(run, tmp_path, capsys):
    videos = [write_video(tmp_path / "dive.mp4", seed=1), write_video(tmp_path / "other.mov", seed=2)]
    folder = tmp_path / "new" / "captioned"
    assert main([str(run), *map(str, videos), "--save-video", str(folder), "--json"]) == 0
    assert [json.loads(line)["video"] for line in capsys.readouterr().out.splitlines()] == [str(v) for v in videos]
    assert sorted(path.name for path in folder.iterdir()) == ["dive.mp4", "other.mp4"]
    assert [probe(path).num_frames for path in folder.iterdir()] == [12, 12]


def test_a_copy_holds_the_window_only(run, video, tmp_path):
    assert main([str(run), str(video), "--start", "0.08", "--end", "0.2", "--save-video", str(tmp_path)]) == 0
    assert probe(tmp_path / "dive.mp4").num_frames == 3  # on screen from 0.08, 0.12 and 0.16 s on


def test_no_file_is_written_over_by_a_copy(run, tmp_path, capsys):
    source = write_video(tmp_path / "dive.mp4")
    before = source.read_bytes()
    assert main([str(run), str(source), "--save-video", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {source}: is there already, and is not written over\n")
    assert source.read_bytes() == before


def test_two_videos_of_the_same_name_are_not_copied_into_one_file(run, tmp_path, capsys):
    videos = [tmp_path / "heat" / "dive.mp4", tmp_path / "final" / "dive.mov"]
    assert main([str(run), *map(str, videos), "--save-video", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{tmp_path / 'out' / 'dive.mp4'}: would be the copy of {videos[0]} and of {videos[1]}" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_caption_says_the_dive_and_the_attributes_with_their_probabilities():
    assert [line.replace("\u00a0", " ") for line in caption(an_answer("5253B"))] == [
        "5253B  some dive, probability 0.50",
        "some takeoff 0.90, some somersault 0.90, some twist 0.90, some position 0.90",
    ]
    assert caption(an_answer(None))[0] == "no valid dive (some takeoff, some somersault, some twist, some position)"
