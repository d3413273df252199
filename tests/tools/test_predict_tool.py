import csv
import json
import runpy
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig, Config, DataConfig, HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS
from diveparse.datasets.diving48 import ClipDataset, ClipRecord
from diveparse.models.classifier import DiveClassifier, build_classifier

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "predict.py"))
main, predict, read_clip, in_words = (TOOL[name] for name in ("main", "predict", "read_clip", "in_words"))
CLIP = ClipConfig(num_frames=4, image_size=16)


def save_model(folder, kind=HeadKind.JOINT, seed=0):
    torch.manual_seed(seed)
    backbone = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    cfg = Config(
        name="tiny", arm="x", data=DataConfig(root="."), clip=CLIP, backbone=backbone, head=HeadConfig(kind=kind)
    )
    build_classifier(cfg, DIVING48).save(folder)
    return folder


def write_video(path, seed=0, num_frames=12):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
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
        probabilities = model.dive_log_probs(clips)[0].exp()
        attributes = model.attribute_log_probs(clips)
    best = int(probabilities.argmax())
    assert answer["number"] == DIVING48[best].number
    assert answer["name"] == DIVING48[best].name
    assert answer["difficulty"] == DIVING48[best].difficulty(10)
    assert answer["probability"] == pytest.approx(float(probabilities[best]))
    assert [dive["probability"] for dive in answer["candidates"]] == pytest.approx(
        probabilities.sort(descending=True).values[:5].tolist()
    )
    for attribute in ATTRIBUTES:
        slot = int(attributes[attribute].argmax())
        assert answer["attributes"][attribute]["value"] == DIVING48.value_names[attribute][slot]


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
    assert answer["probability"] == pytest.approx(float(log_probs.max().exp()))


def test_a_flat_model_says_that_it_knows_no_other_dives(tmp_path, video, capsys):
    save_model(tmp_path, HeadKind.FLAT)
    assert main([str(tmp_path), str(video), "--dives", "world-aquatics"]) == 1
    assert "a flat head answers only with its own 48 dives of Diving48" in capsys.readouterr().err
