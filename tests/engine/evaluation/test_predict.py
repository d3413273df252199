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
TEMPERATURE = 0.1


def build_model(kind: HeadKind = HeadKind.JOINT, seed: int = 0) -> DiveClassifier:
    torch.manual_seed(seed)
    backbone = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    cfg = Config(
        name="tiny", arm="x", data=DataConfig(root="."), clip=CLIP, backbone=backbone, head=HeadConfig(kind=kind)
    )
    model = build_classifier(cfg, DIVING48)
    model.temperature = TEMPERATURE
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
    best, probabilities = int(uncalibrated.argmax()), (uncalibrated / TEMPERATURE).softmax(-1)
    assert probabilities[best] > 1.1 * uncalibrated[best].exp()
    assert answer.number == DIVING48[best].number
    assert answer.name == DIVING48[best].name
    assert answer.difficulty == DIVING48[best].difficulty(10)
    assert answer.probability == pytest.approx(float(probabilities[best]), rel=1e-4)
    assert [dive.probability for dive in answer.candidates] == pytest.approx(
        probabilities.sort(descending=True).values[:5].tolist(), rel=1e-4
    )
    for attribute in ATTRIBUTES:  # marginals of the same calibrated distribution
        of_values = dict.fromkeys(DIVING48.values[attribute], 0.0)
        for dive, probability in zip(DIVING48, probabilities.tolist(), strict=True):
            of_values[dive.attribute_values()[attribute]] += probability
        slot = max(range(len(of_values)), key=list(of_values.values()).__getitem__)
        assert asdict(answer.attributes[attribute]) == {
            "value": DIVING48.value_names[attribute][slot],
            "probability": pytest.approx(list(of_values.values())[slot], rel=1e-4),
        }


@pytest.mark.parametrize("kind", [kind for kind in HeadKind if kind is not HeadKind.INDEPENDENT])
def test_an_attribute_is_at_least_as_probable_as_each_dive_that_has_it(kind, video):
    answer = predict(build_model(kind), video, 10)
    for candidate in answer.candidates:
        values = DIVING48[candidate.number].attribute_values()
        for attribute in ATTRIBUTES:
            name = DIVING48.value_names[attribute][DIVING48.values[attribute].index(values[attribute])]
            best = answer.attributes[attribute]
            assert best.value != name or best.probability >= candidate.probability - 1e-6


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
    # the temperature holds for other dives, too
    assert answer.probability == pytest.approx(float((log_probs / TEMPERATURE).softmax(-1).max()), rel=1e-4)


def test_a_flat_model_cannot_answer_with_dives_that_it_never_saw():
    with pytest.raises(ValueError, match="a flat head answers only with its own 48 dives of Diving48"):
        dives_to_answer_with(build_model(HeadKind.FLAT), Dives.WORLD_AQUATICS)
