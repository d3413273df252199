from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, HeadKind, Precision
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.metrics import compute_metrics
from diveparse.heads.recombine import INVALID
from diveparse.models.classifier import DiveClassifier, build_classifier

NUM_CLIPS = 7
RECORDS = [ClipRecord(Path(f"{i}.mp4"), f"clip{i}", f"source{i % 3}", i % 5) for i in range(NUM_CLIPS)]


def tiny_model(kind: HeadKind = HeadKind.JOINT, dive_set: DiveSet = DIVING48) -> DiveClassifier:
    torch.manual_seed(0)
    cfg = Config(
        clip=ClipConfig(num_frames=2, image_size=16),
        backbone=BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.5),
        head=HeadConfig(kind=kind),
    )
    model = build_classifier(cfg, dive_set)
    with torch.no_grad():
        for parameter in model.parameters():  # away from a start at which every clip looks the same
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batches(batch_size: int, num_views: int = 1) -> Iterator[dict[str, Any]]:
    clips = torch.randn(NUM_CLIPS, num_views, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for first in range(0, NUM_CLIPS, batch_size):
        index = torch.arange(first, min(first + batch_size, NUM_CLIPS))
        labels = torch.tensor([RECORDS[i].label for i in index])
        yield {"inputs": clips[index], "label": labels, "index": index}


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
    scores = model(next(batches(100))["inputs"][:, 0])
    np.testing.assert_allclose(got.dive_log_probs, scores.log_probs().detach(), rtol=1e-5, atol=1e-5)
    assert got.spelt_labels.tolist() == scores.spelt().tolist()
    assert got.decoded_labels.tolist() == scores.argmax().tolist()
    for name in ATTRIBUTES:
        expected = scores.marginals()[name].detach()
        np.testing.assert_allclose(got.attribute_log_probs[name], expected, rtol=1e-5, atol=1e-5)


def test_a_clips_views_count_as_the_mean_of_their_features():
    model = tiny_model().eval()
    got = evaluate(model, batches(3, num_views=2), RECORDS)
    clips = next(batches(100, num_views=2))["inputs"]
    features = (model.features(clips[:, 0]) + model.features(clips[:, 1])) / 2
    expected = model.head(features).log_probs().detach()
    np.testing.assert_allclose(got.dive_log_probs, expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_views_does_not_matter():
    model = tiny_model()
    flipped = ({**batch, "inputs": batch["inputs"].flip(1)} for batch in batches(3, num_views=3))
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
    poisoned[1]["inputs"][1] = float("nan")
    with pytest.raises(ValueError, match="not a number for 1 clips: clip4"):
        evaluate(model, poisoned, RECORDS)


def test_no_clips_are_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate(tiny_model(), iter(()), RECORDS)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_run_trained_in_any_precision_evaluates_on_the_cpu(precision):
    expected = evaluate(tiny_model(), batches(3), RECORDS).dive_log_probs
    assert np.array_equal(evaluate(tiny_model(), batches(3), RECORDS, precision).dive_log_probs, expected)


KNOWN = DiveSet.from_numbers(("305C", "101B", "5132D", "203B", "403B"), "known")
STRANGER, COMBINED = "107B", "303B"  # seven half somersaults are in no dive of KNOWN; 303B is of 305C and 203B
BIGGER = DiveSet.from_numbers((STRANGER, "403B", "5132D", COMBINED, "101B", "305C", "203B"), "bigger")


def positions(numbers: tuple[str, ...]) -> list[int]:
    return [BIGGER.label_of(number) for number in numbers]


def test_a_flat_model_gives_a_dive_that_it_cannot_name_no_probability_and_the_others_what_it_always_does():
    model = tiny_model(HeadKind.FLAT, KNOWN)
    own, got = evaluate(model, batches(3), RECORDS), evaluate(model, batches(3), RECORDS, dive_set=BIGGER)
    assert got.dive_log_probs.shape == (NUM_CLIPS, len(BIGGER))
    assert np.isneginf(got.dive_log_probs[:, positions((STRANGER, COMBINED))]).all()
    np.testing.assert_allclose(
        got.dive_log_probs[:, positions(KNOWN.numbers)], own.dive_log_probs, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(np.exp(got.dive_log_probs).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in HeadKind if kind is not HeadKind.FLAT])
def test_attribute_heads_give_every_dive_made_of_their_values_some_probability_and_no_other(kind):
    model = tiny_model(kind, KNOWN)
    got = evaluate(model, batches(3), RECORDS, dive_set=BIGGER)
    expressible = positions((*KNOWN.numbers, COMBINED))
    assert np.isfinite(got.dive_log_probs[:, expressible]).all()
    assert np.isneginf(got.dive_log_probs[:, BIGGER.label_of(STRANGER)]).all()
    np.testing.assert_allclose(np.exp(got.dive_log_probs).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", list(HeadKind))
def test_answers_over_a_bigger_set_are_labels_of_that_set(kind):
    model = tiny_model(kind, KNOWN)
    own, got = evaluate(model, batches(3), RECORDS), evaluate(model, batches(3), RECORDS, dive_set=BIGGER)
    assert got.labels.tolist() == [record.label for record in RECORDS]  # which count in the bigger set already
    if kind is not HeadKind.INDEPENDENT:  # whose answer is its four best values
        assert got.decoded_labels.tolist() == got.dive_log_probs.argmax(axis=1).tolist()
    for before, now in zip(own.spelt_labels, got.spelt_labels, strict=True):
        if before != INVALID:
            assert BIGGER[int(now)] == KNOWN[int(before)]
        else:  # now there may be such a dive, but only the one that KNOWN lacks
            assert now in (INVALID, BIGGER.label_of(COMBINED))


@pytest.mark.parametrize("kind", list(HeadKind))
def test_a_value_that_only_strange_dives_have_has_no_probability_and_the_others_keep_theirs(kind):
    model = tiny_model(kind, KNOWN)
    known = model.head.expressible(BIGGER)
    within, got = (evaluate(model, batches(3), RECORDS, dive_set=dives) for dives in (known, BIGGER))
    for name in ATTRIBUTES:
        values = got.attribute_log_probs[name]
        assert values.shape == (NUM_CLIPS, len(BIGGER.values[name]))
        places = [BIGGER.values[name].index(value) for value in known.values[name]]
        np.testing.assert_allclose(values[:, places], within.attribute_log_probs[name], rtol=1e-5, atol=1e-5)
    strange = BIGGER.values["somersault"].index(7)
    assert np.isneginf(got.attribute_log_probs["somersault"][:, strange]).all()
    assert compute_metrics(got, BIGGER)["num_clips"] == NUM_CLIPS


def test_four_values_that_spell_a_dive_of_the_bigger_set_alone_name_it():
    model = tiny_model(HeadKind.JOINT, KNOWN)
    with torch.no_grad():
        for attribute, value in BIGGER[COMBINED].attribute_values().items():
            model.head.linears[attribute].weight.zero_()
            model.head.linears[attribute].bias.copy_(
                5.0 * torch.tensor([known == value for known in KNOWN.values[attribute]])
            )
    assert (evaluate(model, batches(3), RECORDS).spelt_labels == INVALID).all()
    got = evaluate(model, batches(3), RECORDS, dive_set=BIGGER)
    assert set(got.spelt_labels) == set(got.decoded_labels) == {BIGGER.label_of(COMBINED)}


@pytest.mark.parametrize("kind", [HeadKind.FLAT, HeadKind.JOINT])
def test_the_models_own_set_is_what_it_is_read_out_over_by_default(kind):
    model = tiny_model(kind, KNOWN)
    own, named = evaluate(model, batches(3), RECORDS), evaluate(model, batches(3), RECORDS, dive_set=KNOWN)
    assert np.array_equal(own.dive_log_probs, named.dive_log_probs)
    assert np.array_equal(own.decoded_labels, named.decoded_labels)


@pytest.mark.parametrize("kind", [HeadKind.FLAT, HeadKind.JOINT])
def test_a_model_of_diving48_can_be_read_out_over_all_that_the_rules_list(kind):
    model = tiny_model(kind)
    got = evaluate(model, batches(3), RECORDS, dive_set=WORLD_AQUATICS)
    known = np.isfinite(got.dive_log_probs).all(axis=0)
    expressible = model.head.expressible(WORLD_AQUATICS)
    assert [WORLD_AQUATICS[int(label)] for label in np.flatnonzero(known)] == list(expressible)
    assert known[got.decoded_labels].all()


def test_a_set_of_dives_without_any_of_the_models_own_is_refused():
    with pytest.raises(ValueError, match="a flat head of known has no dive of strangers"):
        evaluate(
            tiny_model(HeadKind.FLAT, KNOWN), batches(3), RECORDS, dive_set=DiveSet.from_numbers(["107B"], "strangers")
        )
