from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, HeadKind, Precision
from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.datasets.diving48 import ClipRecord
from diveparse.engine.evaluate import evaluate
from diveparse.models.classifier import DiveClassifier, build_classifier

NUM_CLIPS = 7
RECORDS = [ClipRecord(Path(f"{i}.mp4"), f"clip{i}", f"source{i % 3}", i % 5) for i in range(NUM_CLIPS)]


def tiny_model(kind: HeadKind = HeadKind.JOINT) -> DiveClassifier:
    torch.manual_seed(0)
    cfg = Config(
        clip=ClipConfig(num_frames=2, image_size=16),
        backbone=BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5),
        head=HeadConfig(kind=kind),
    )
    model = build_classifier(cfg, DIVING48)
    with torch.no_grad():
        for parameter in model.parameters():  # away from a start at which every clip looks the same
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batches(batch_size: int, num_views: int = 1) -> Iterator[dict[str, Any]]:
    clips = torch.randn(NUM_CLIPS, num_views, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for first in range(0, NUM_CLIPS, batch_size):
        index = torch.arange(first, min(first + batch_size, NUM_CLIPS))
        labels = torch.tensor([RECORDS[i].label for i in index])
        yield {"clip": clips[index], "label": labels, "index": index}


@pytest.mark.parametrize("kind", list(HeadKind))
def test_every_clip_counts_once_whatever_the_batch_size(kind):
    model = tiny_model(kind)
    expected = evaluate(model, batches(1), RECORDS)
    assert expected.clips == [record.name for record in RECORDS]
    assert expected.sources == [record.source for record in RECORDS]
    assert expected.labels.tolist() == [record.label for record in RECORDS]
    for batch_size in (3, 7, 100):
        got = evaluate(model, batches(batch_size), RECORDS)
        assert got.clips == expected.clips
        np.testing.assert_allclose(got.dive_log_probs, expected.dive_log_probs, rtol=1e-4, atol=1e-4)
        assert got.decoded_labels.tolist() == expected.decoded_labels.tolist()


@pytest.mark.parametrize("kind", list(HeadKind))
def test_one_view_gives_what_the_model_itself_answers(kind):
    model = tiny_model(kind).eval()
    got = evaluate(model, batches(100), RECORDS)
    outputs = model.outputs(next(batches(100))["clip"][:, 0])
    np.testing.assert_allclose(got.dive_log_probs, outputs.dive_log_probs.detach(), rtol=1e-5, atol=1e-5)
    assert got.named_labels.tolist() == outputs.named_labels.tolist()
    assert got.decoded_labels.tolist() == outputs.decoded_labels.tolist()
    for name in ATTRIBUTES:
        expected = outputs.attribute_log_probs[name].detach()
        np.testing.assert_allclose(got.attribute_log_probs[name], expected, rtol=1e-5, atol=1e-5)


def test_a_clips_views_count_as_the_mean_of_their_features():
    model = tiny_model().eval()
    got = evaluate(model, batches(3, num_views=2), RECORDS)
    clips = next(batches(100, num_views=2))["clip"]
    features = (model.features(clips[:, 0]) + model.features(clips[:, 1])) / 2
    expected = model.head.dive_log_probs(features).detach()
    np.testing.assert_allclose(got.dive_log_probs, expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_views_does_not_matter():
    model = tiny_model()
    flipped = ({**batch, "clip": batch["clip"].flip(1)} for batch in batches(3, num_views=3))
    expected = evaluate(model, batches(3, num_views=3), RECORDS).dive_log_probs
    np.testing.assert_allclose(evaluate(model, flipped, RECORDS).dive_log_probs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_model_mode_and_random_numbers_as_they_were(training):
    model = tiny_model().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, batches(3), RECORDS)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_in_training_mode_answers_as_in_evaluation_mode():
    expected = evaluate(tiny_model().eval(), batches(3), RECORDS).dive_log_probs
    assert np.array_equal(evaluate(tiny_model().train(), batches(3), RECORDS).dive_log_probs, expected)


def test_the_mode_comes_back_even_when_a_clip_cannot_be_read():
    def broken() -> Iterator[dict[str, Any]]:
        yield next(batches(3))
        raise ValueError("clip3.mp4: truncated")

    model = tiny_model().train()
    with pytest.raises(ValueError, match=r"clip3\.mp4"):
        evaluate(model, broken(), RECORDS)
    assert model.training


def test_answers_that_are_no_numbers_name_their_clips():
    model = tiny_model()
    poisoned = list(batches(3))
    poisoned[1]["clip"][1] = float("nan")
    with pytest.raises(ValueError, match="not a number for 1 clips: clip4"):
        evaluate(model, poisoned, RECORDS)


def test_no_clips_are_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate(tiny_model(), iter(()), RECORDS)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_run_trained_in_any_precision_evaluates_on_the_cpu(precision):
    expected = evaluate(tiny_model(), batches(3), RECORDS).dive_log_probs
    assert np.array_equal(evaluate(tiny_model(), batches(3), RECORDS, precision).dive_log_probs, expected)
