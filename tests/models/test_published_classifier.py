"""Published classifiers as flat models, against `transformers` itself, on small random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.video_processing_utils import BaseVideoProcessor

from diveparse.configs import Dives
from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.video import probe, read_frames
from diveparse.engine.evaluation.predict import dives_to_answer_with, predict, read_clip
from diveparse.models import DiveClassifier
from diveparse.models.weights import hub

CLOSE = {"rtol": 0, "atol": 1e-4}  # nats
FAMILIES = ("timesformer", "videomae", "vivit", "vjepa2", "videoprism_vision_model")


@pytest.fixture(scope="module")
def video(tiny_root: Path) -> Path:
    return sorted((tiny_root / "rgb").glob("*.mp4"))[0]


def frames_of(video: Path) -> Tensor:
    """The four frames that a model of four is shown, at their own size."""
    return read_frames(video, sample_frame_times(probe(video).duration_s, 4))


@torch.no_grad()
def our_log_probs(folder: Path, video: Path) -> Tensor:
    model = DiveClassifier.from_pretrained(folder)
    log_probs: Tensor = model.dive_log_probs(read_clip(video, model.clip_config, processor=model.processor)[None])
    return log_probs[0]


def in_our_order(by_label: Sequence[float] | Tensor) -> Tensor:
    """Of a model with the labels of `tiny_published`, Diving48's in reverse."""
    return torch.as_tensor(by_label).flip(0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_log_probabilities_are_those_of_the_model_and_its_processor_called_by_hand(
    family: str, tiny_published: dict[str, tuple[Path, Any]], video: Path
) -> None:
    folder, whole = tiny_published[family]
    processor = transformers.AutoVideoProcessor.from_pretrained(folder)
    pixels = processor([frames_of(video)], do_sample_frames=False, return_tensors="pt")[processor.model_input_names[0]]
    assert tuple(pixels.shape) == (1, 4, 3, 48, 48)
    expected = in_our_order(whole(pixels).logits.flatten().log_softmax(-1))
    assert expected.std() > 0.01
    torch.testing.assert_close(our_log_probs(folder, video), expected, **CLOSE)


@pytest.mark.parametrize("family", ["timesformer", "videomae", "vivit"])  # it takes no V-JEPA 2
def test_log_probabilities_are_those_of_the_pipeline_on_the_same_frames(
    family: str, tiny_published: dict[str, tuple[Path, Any]], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_: Any, paths: list[str], sample_indices_fn: Callable[..., Any]) -> Any:
        return [frames_of(Path(path)) for path in paths], [None for _ in paths]

    monkeypatch.setattr(BaseVideoProcessor, "fetch_videos", fetch)
    folder = tiny_published[family][0]
    answers = transformers.pipeline("video-classification", model=str(folder))(str(video), top_k=48)
    scores = {answer["label"]: answer["score"] for answer in answers}
    expected = torch.tensor([scores[str(dive.vocab)] for dive in DIVING48]).log()
    torch.testing.assert_close(our_log_probs(folder, video), expected, **CLOSE)


def test_it_answers_as_every_classifier_does(tiny_published: dict[str, tuple[Path, Any]], video: Path) -> None:
    model = DiveClassifier.from_pretrained(str(tiny_published["vjepa2"][0]))
    assert model.dive_set is DIVING48
    assert model.temperature == 1
    assert not model.training
    answer = predict(model, video, height_m=10)
    best = int(our_log_probs(tiny_published["vjepa2"][0], video).argmax())
    assert (answer.number, answer.name) == (DIVING48[best].number, DIVING48[best].name)
    clips = read_clip(video, model.clip_config, processor=model.processor)[None].repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        for attribute, log_probs in model.attribute_log_probs(clips).items():
            torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2))
            slot = int(log_probs[0].argmax())
            assert answer.attributes[attribute].value == DIVING48.value_names[attribute][slot]
        one, both = model(clips[:1]).log_probs(), model(clips, num_views=2).log_probs()
    torch.testing.assert_close(both, one)
    assert set(answer.attributes) == set(ATTRIBUTES)
    assert dives_to_answer_with(model, Dives.DIVING48) == DIVING48
    with pytest.raises(ValueError, match="a flat head answers only with its own 48 dives"):
        dives_to_answer_with(model, Dives.WORLD_AQUATICS)


@pytest.fixture
def own_folder(tiny_published: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_published["videomae"][0], tmp_path / "published"))


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DiveClassifier.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def with_labels(folder: Path, labels: Sequence[str]) -> None:
    edited(
        folder / "config.json", id2label=dict(enumerate(labels)), label2id={name: n for n, name in enumerate(labels)}
    )


def test_a_classifier_whose_labels_are_no_dives_is_refused_with_them(own_folder: Path) -> None:
    with_labels(own_folder, ["abseiling", *DIVING48.numbers[1:]])
    assert_refused(own_folder, "1 of its 48 labels are no dives; .*got 'abseiling'$")
    with_labels(own_folder, DIVING48.numbers[1:])
    assert_refused(own_folder, "the weights cannot be read: ")  # there are 48 rows


def test_a_set_of_dives_of_its_own_keeps_the_order_of_its_labels(own_folder: Path) -> None:
    numbers = ("626C", *DIVING48.numbers[1:])
    with_labels(own_folder, numbers)
    assert DiveClassifier.from_pretrained(own_folder).dive_set.numbers == numbers


def test_a_classifier_that_does_not_choose_one_label_is_refused(own_folder: Path) -> None:
    edited(own_folder / "config.json", problem_type="multi_label_classification")
    assert_refused(own_folder, "expected a classifier that chooses one label, got multi_label_classification")


def test_an_encoder_without_a_last_layer_is_refused(own_folder: Path, tiny_published: dict[str, Any]) -> None:
    tiny_published["videomae"][1].base_model.save_pretrained(own_folder)
    with_labels(own_folder, DIVING48.numbers)
    assert_refused(own_folder, "4 weights are missing: classifier.bias, classifier.weight, fc_norm.bias")


def test_a_videomae_that_reads_one_patch_is_refused(own_folder: Path) -> None:
    edited(own_folder / "config.json", use_mean_pooling=False)
    assert_refused(own_folder, "use_mean_pooling|weights are missing: videomae.layernorm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"crop_size": {"height": 32, "width": 32}},
            r"makes clips of .* = \(4, 3, 32, 32\), but the model takes \(4, 3, 48",
        ),
        ({"do_center_crop": False}, r"makes clips of .*, but the model takes \(4, 3, 48, 48\)"),
        ({"image_std": [0.5, 0.0, 0.5]}, "preprocessor_config.json: expected 3 means and positive standard deviations"),
        ({"image_mean": "grey"}, "preprocessor_config.json: expected image_mean, image_std and rescale_factor, got"),
        ({"size": "large"}, "its processor cannot be used: "),
        ({"image_processor_type": "NoneSuchImageProcessor"}, None),
    ],
    ids=["other size", "no crop", "no deviation", "no numbers", "no size", "unknown class"],
)
def test_a_processor_that_does_not_fit_is_one_line(
    own_folder: Path, changes: dict[str, Any], message: str | None
) -> None:
    edited(own_folder / "preprocessor_config.json", **changes)
    if message is None:  # the class is then that of the model's family
        assert DiveClassifier.from_pretrained(own_folder).processor is not None
    else:
        assert_refused(own_folder, message)


def test_a_folder_without_a_processor_is_refused(own_folder: Path) -> None:
    (own_folder / "preprocessor_config.json").unlink()
    assert_refused(own_folder, "holds no processor, so that nothing says how its clips are resized and cut; expected")


def test_a_processor_that_changes_colours_is_found_out(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = transformers.VideoMAEVideoProcessor.rescale_and_normalize

    def with_gamma(self: Any, images: Tensor, do_rescale: bool, *arguments: Any) -> Tensor:
        changed = (255 * (images / 255) ** 0.5).to(images.dtype) if do_rescale else images
        return usual(self, changed, do_rescale, *arguments)

    monkeypatch.setattr(transformers.VideoMAEVideoProcessor, "rescale_and_normalize", with_gamma)
    assert_refused(own_folder, "its processor does more to pixels than to rescale and normalise them: they differ by")


def test_no_code_of_a_folder_is_run(own_folder: Path, tmp_path: Path) -> None:
    (own_folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass EvilVideoProcessor: pass\n")
    edited(own_folder / "preprocessor_config.json", auto_map={"AutoVideoProcessor": "evil.EvilVideoProcessor"})
    edited(own_folder / "config.json", auto_map={"AutoModelForVideoClassification": "evil.Model"})
    DiveClassifier.from_pretrained(own_folder)
    assert not (tmp_path / "ran").exists()


def test_it_is_not_written_anew(own_folder: Path, tmp_path: Path) -> None:
    model = DiveClassifier.from_pretrained(own_folder)
    with pytest.raises(ValueError, match="is published; copy its own files instead"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_hub_id_without_internet_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub.HfApi, "model_info", refuse)
    with pytest.raises(ValueError, match=r"^nobody/dives-nowhere: no such path, and the HuggingFace hub") as error:
        DiveClassifier.from_pretrained("nobody/dives-nowhere")
    assert "\n" not in str(error.value)


def test_a_folder_of_this_project_is_loaded_as_before(tiny_run: Path) -> None:
    model = DiveClassifier.from_pretrained(tiny_run)
    assert model.processor is None
    with pytest.raises(ValueError, match="no such folder; expected a run folder or a model folder"):
        DiveClassifier.from_pretrained(tiny_run / "nothing")
