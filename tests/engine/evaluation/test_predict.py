from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig, Config, DataConfig, Dives, HeadConfig, HeadKind
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.engine.evaluation.predict import dives_to_answer_with, predict, read_clip
from diveparse.models.classifier import DiveClassifier, build_classifier

CLIP = ClipConfig(num_frames=4, image_size=16)
TEMPERATURES = {"dive": 0.1, "takeoff": 0.2, "somersault": 0.5, "twist": 2.0, "position": 4.0}


def build_model(kind: HeadKind = HeadKind.JOINT, seed: int = 0) -> DiveClassifier:
    torch.manual_seed(seed)
    backbone = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    cfg = Config(
        name="tiny", arm="x", data=DataConfig(root="."), clip=CLIP, backbone=backbone, head=HeadConfig(kind=kind)
    )
    model = build_classifier(cfg, DIVING48)
    model.temperatures = TEMPERATURES
    return model.eval()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of noise at 25 a second."""
    path = tmp_path_factory.mktemp("videos") / "dive.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    write_h264(path, map(Picture, frames), rate_hz=Fraction(25), options=x264_options(23))
    return path


def test_a_video_is_read_exactly_as_a_test_reads_it(video):
    clips = ClipDataset([ClipRecord(video, "dive", "source", 0)], CLIP, training=False, seed=0)
    assert torch.equal(read_clip(video, CLIP), clips[0]["clip"][0])


def test_an_answer_is_the_calibrated_distribution_of_the_model(video):
    model = build_model()
    answer = predict(model, video, 10)
    clips = read_clip(video, CLIP)[None]
    with torch.no_grad():
        uncalibrated = model.dive_log_probs(clips)[0]
        attributes = model.attribute_log_probs(clips)
    best, probabilities = int(uncalibrated.argmax()), (uncalibrated / TEMPERATURES["dive"]).softmax(-1)
    assert probabilities[best] > 1.1 * uncalibrated[best].exp()
    assert answer.number == DIVING48[best].number
    assert answer.name == DIVING48[best].name
    assert answer.difficulty == DIVING48[best].difficulty(10)
    assert answer.probability == pytest.approx(float(probabilities[best]))
    assert [dive.probability for dive in answer.candidates] == pytest.approx(
        probabilities.sort(descending=True).values[:5].tolist()
    )
    for attribute in ATTRIBUTES:
        slot = int(attributes[attribute].argmax())
        probability = float((attributes[attribute][0] / TEMPERATURES[attribute]).softmax(-1)[slot])
        assert asdict(answer.attributes[attribute]) == {
            "value": DIVING48.value_names[attribute][slot],
            "probability": pytest.approx(probability),
        }


def test_independent_heads_may_answer_with_no_number(video):
    for seed in range(20):
        answer = predict(build_model(HeadKind.INDEPENDENT, seed), video, 10)
        if answer.number is None:
            break
    assert answer.number is answer.name is answer.difficulty is None
    assert answer.probability == 0
    assert answer.candidates[0].number in DIVING48


def test_a_window_is_read_as_if_it_were_the_whole_video(video):
    whole = read_clip(video, ClipConfig(num_frames=8, image_size=16), (0.0, 0.32))
    assert torch.equal(read_clip(video, CLIP, (0.16, 0.32)), whole[4:])


@pytest.mark.parametrize("window_s", [(0.3, 0.2), (0.0, 9.0), (-1.0, 0.2), (0.2, float("nan"))])
def test_a_window_outside_the_video_is_refused(window_s, video):
    with pytest.raises(ValueError, match=r"dive\.mp4: expected start and end in order within its 0\.480 s, got "):
        read_clip(video, CLIP, window_s)


def test_a_structured_model_answers_with_dives_that_it_never_saw(video):
    model = build_model()
    listed = dives_to_answer_with(model, Dives.WORLD_AQUATICS)
    assert listed == WORLD_AQUATICS.expressible(DIVING48.values)
    assert len(listed) > len(DIVING48)
    answer = predict(model, video, 10, listed)
    with torch.no_grad():
        log_probs = model.dive_log_probs(read_clip(video, CLIP)[None], listed)[0]
    assert answer.number == listed[int(log_probs.argmax())].number
    # the temperature of the dives holds for others, too
    assert answer.probability == pytest.approx(float((log_probs / TEMPERATURES["dive"]).softmax(-1).max()))


def test_a_flat_model_cannot_answer_with_dives_that_it_never_saw():
    with pytest.raises(ValueError, match="a flat head answers only with its own 48 dives of Diving48"):
        dives_to_answer_with(build_model(HeadKind.FLAT), Dives.WORLD_AQUATICS)
