import json
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    TimesformerForVideoClassification,
    pipeline,
)
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import load_video

from diveparse.configs import HeadKind, Pooling, StemKind
from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS
from diveparse.datasets.transforms import eval_transform
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.engine.export.huggingface import export_huggingface
from diveparse.models.classifier import DiveClassifier

OTHER_DIVES = WORLD_AQUATICS.expressible(DIVING48.values)
NOT_IN_TRANSFORMERS = [
    ({"stem": StemKind.CONV}, "backbone.stem=conv, and the format has patch alone"),
    ({"pooling": Pooling.QUERIES}, "head.pooling=queries, and the format has class_token alone"),
    ({"pooling": Pooling.MEAN}, "head.pooling=mean, and the format has class_token alone"),
]


def calibrated(model, clips, dive_set=None):
    with torch.no_grad():
        return model.calibrated_scores(clips).log_probs(dive_set)


def logits_of(folder, clips):
    model, report = AutoModelForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, TimesformerForVideoClassification)
    assert not any(report.values())  # no weight is missing, left over or of another shape
    with torch.no_grad():
        return model.eval()(pixel_values=clips).logits


@pytest.mark.parametrize("kind", HeadKind)
def test_transformers_gives_the_calibrated_log_probabilities_of_every_head(kind, make_model, clips, tmp_path):
    model = make_model(kind)
    assert export_huggingface(model, DIVING48, tmp_path / "out", Path("run"))
    log_probs = logits_of(tmp_path / "out", clips).log_softmax(-1)
    torch.testing.assert_close(log_probs, calibrated(model, clips), rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(label): dive.number for label, dive in enumerate(DIVING48)}
    assert config["label2id"]["5253B"] == 5


@pytest.mark.parametrize("kind", [kind for kind in HeadKind if kind is not HeadKind.FLAT])
def test_a_structured_head_is_exported_over_dives_that_it_was_not_trained_on(kind, make_model, clips, tmp_path):
    model = make_model(kind)
    export_huggingface(model, OTHER_DIVES, tmp_path, Path("run"))
    log_probs = logits_of(tmp_path, clips).log_softmax(-1)
    assert log_probs.shape == (3, 164)
    torch.testing.assert_close(log_probs, calibrated(model, clips, OTHER_DIVES), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dive_set", [DIVING48, OTHER_DIVES], ids=["own", "others"])
def test_what_is_loaded_again_answers_alike(dive_set, make_model, clips, tmp_path):
    model = make_model()
    export_huggingface(model, dive_set, tmp_path, Path("run"))
    again = DiveClassifier.load(tmp_path)
    assert again.dive_set == dive_set
    torch.testing.assert_close(calibrated(again, clips), calibrated(model, clips, dive_set), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "reason"), NOT_IN_TRANSFORMERS, ids=["conv", "queries", "mean"])
def test_what_transformers_cannot_compute_is_named_and_keeps_our_format(
    options, reason, make_model, clips, tmp_path, caplog
):
    model = make_model(**options)
    with caplog.at_level(logging.INFO):
        assert not export_huggingface(model, DIVING48, tmp_path, Path("run"))
    assert caplog.messages == [f"exported in the format of diveparse, since transformers has none for it: {reason}"]
    assert reason in (tmp_path / "README.md").read_text()
    again = DiveClassifier.load(tmp_path)
    assert again.temperature == model.temperature
    torch.testing.assert_close(calibrated(again, clips), calibrated(model, clips), rtol=0, atol=1e-5)


def test_our_format_takes_no_other_dives(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"^run: only a model in the format of transformers takes other dives, and"):
        export_huggingface(make_model(stem=StemKind.CONV), OTHER_DIVES, tmp_path / "out", Path("run"))
    assert not (tmp_path / "out").exists()


def test_the_answer_of_independent_heads_is_said_to_be_a_dive_that_exists(make_model, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        export_huggingface(make_model(HeadKind.INDEPENDENT), DIVING48, tmp_path, Path("run"))
    assert "names the best dive that exists" in caplog.text
    assert "spell no dive that exists" in (tmp_path / "README.md").read_text()


@pytest.fixture
def exported(make_model, tmp_path):
    model = make_model()
    export_huggingface(model, DIVING48, tmp_path / "exported", Path("run"))
    return model, tmp_path / "exported"


def test_the_processors_of_transformers_make_the_same_clips(exported):
    model, folder = exported
    frames = torch.randint(256, (4, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected = eval_transform(model.clip_config)(frames)[None]
    of_videos = AutoVideoProcessor.from_pretrained(folder)
    assert type(of_videos).__name__ == "TimesformerVideoProcessor"
    found = of_videos(frames, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found = AutoImageProcessor.from_pretrained(folder)(list(frames), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_processor_of_videos_takes_evenly_spaced_frames(exported):
    _, folder = exported
    processor = AutoVideoProcessor.from_pretrained(folder)
    video = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 16, 16)
    clip = processor(video, return_tensors="pt")["pixel_values"]
    expected = processor(video[[0, 2, 4, 6]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip, expected)


def fetch_with_pyav(_, paths, sample_indices_fn):
    """As the processors read videos, with another of their own readers: torchcodec needs an installation of FFmpeg."""
    return list(zip(*[load_video(path, sample_indices_fn=sample_indices_fn) for path in paths], strict=True))


def test_the_pipeline_of_transformers_gives_the_same_log_probabilities(exported, tmp_path, monkeypatch):
    """On a video with as many frames as the model sees, of its size, so that frames and pictures are the same."""
    monkeypatch.setattr(BaseVideoProcessor, "fetch_videos", fetch_with_pyav)
    model, folder = exported
    video = tmp_path / "dive.mp4"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    write_h264(video, map(Picture, pixels), rate_hz=Fraction(25), options=x264_options(1))
    answers = pipeline("video-classification", model=str(folder))(str(video), top_k=48)
    clip = AutoVideoProcessor.from_pretrained(folder)([str(video)], return_tensors="pt")["pixel_values"]
    expected = calibrated(model, clip)[0]
    found = torch.tensor([{each["label"]: each["score"] for each in answers}[dive.number] for dive in DIVING48]).log()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
