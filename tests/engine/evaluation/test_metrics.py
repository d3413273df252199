import math
from dataclasses import replace

import numpy as np
import pytest

from diveparse.datasets.dives import ATTRIBUTES, DIVING48, HEIGHTS_M, Dive, DiveSet
from diveparse.engine.evaluation.metrics import (
    area_under_risk_coverage,
    calibrated_metrics,
    calibration_error,
    compute_metrics,
    confusion_matrix,
    count_errors,
    difficulty_error,
    reliability,
)
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.heads.recombine import INVALID

DIVES = DiveSet.from_numbers(["101B", "103B", "103C", "201B", "203C", "5132D", "5331D"], "seven dives")


def log_softmax(scores):
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)


def random_predictions(num_clips=60, seed=0, dive_set=DIVES):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(dive_set) - 1, num_clips)  # the last dive has no clips
    scores = rng.normal(size=(num_clips, len(dive_set))) + 2 * np.eye(len(dive_set))[labels]
    named = rng.integers(-1, len(dive_set), num_clips)
    return Predictions(
        clips=[f"clip{k}" for k in range(num_clips)],
        sources=[f"source{k % 5}" for k in range(num_clips)],
        labels=labels,
        dive_log_probs=log_softmax(scores),
        attribute_log_probs={a: log_softmax(rng.normal(size=(num_clips, len(dive_set.values[a])))) for a in ATTRIBUTES},
        spelt_labels=named,
        decoded_labels=np.where(rng.random(num_clips) < 0.2, INVALID, scores.argmax(axis=1)),
    )


def test_metrics_agree_with_counting_clip_by_clip():
    p = random_predictions()
    metrics = compute_metrics(p, DIVES)
    n = len(p)
    rank = [sum(other > row[truth] for other in row) for row, truth in zip(p.dive_log_probs, p.labels, strict=True)]
    by_class = {}
    for truth, answer in zip(p.labels, p.decoded_labels, strict=True):
        by_class.setdefault(int(truth), []).append(truth == answer)
    assert metrics["num_clips"] == n
    assert metrics["top1"] == sum(p.labels == p.decoded_labels) / n
    assert metrics["top5"] == sum(r < 5 for r in rank) / n
    assert metrics["mean_class_accuracy"] == pytest.approx(np.mean([np.mean(hits) for hits in by_class.values()]))
    assert metrics["num_classes_scored"] == len(by_class) == len(DIVES) - 1
    assert metrics["invalid_rate"] == sum(p.spelt_labels == INVALID) / n
    expected_nll = -sum(float(row[t]) for row, t in zip(p.dive_log_probs, p.labels, strict=True)) / n
    assert metrics["nll"] == pytest.approx(expected_nll, rel=1e-6)


def test_attribute_accuracy_compares_values_not_slots_by_hand():
    p = random_predictions()
    for attribute, accuracy in compute_metrics(p, DIVES)["attribute_accuracy"].items():
        hits = 0
        for row, label in zip(p.attribute_log_probs[attribute], p.labels, strict=True):
            hits += DIVES.values[attribute][int(row.argmax())] == DIVES[int(label)].attribute_values()[attribute]
        assert accuracy == pytest.approx(hits / len(p))


def test_metrics_do_not_depend_on_the_order_of_clips():
    p = random_predictions()
    order = np.random.default_rng(1).permutation(len(p))
    shuffled = Predictions(
        clips=[p.clips[k] for k in order],
        sources=[p.sources[k] for k in order],
        labels=p.labels[order],
        dive_log_probs=p.dive_log_probs[order],
        attribute_log_probs={a: rows[order] for a, rows in p.attribute_log_probs.items()},
        spelt_labels=p.spelt_labels[order],
        decoded_labels=p.decoded_labels[order],
    )
    counts = np.array([200, 101, 100, 20, 19, 1, 0])
    before, after = compute_metrics(p, DIVES, counts), compute_metrics(shuffled, DIVES, counts)
    for name in ("attribute_accuracy", "wrong_attributes"):
        assert before.pop(name) == pytest.approx(after.pop(name))
    for name in ("groups", "by_training", "attribute_confusions"):
        assert before.pop(name) == after.pop(name)
    assert before == pytest.approx(after)


def test_dives_fall_into_groups_by_their_training_clips():
    p, counts = random_predictions(), np.array([200, 101, 100, 20, 19, 1, 0])
    expected = {"many": (0, 1), "medium": (2, 3), "few": (4, 5), "unseen": ()}  # the last dive has no clips
    groups = compute_metrics(p, DIVES, counts)["groups"]
    for name, labels in expected.items():
        rows = np.isin(p.labels, labels)
        assert (groups[name]["num_clips"], groups[name]["num_classes"]) == (rows.sum(), len(labels))
        if rows.any():
            assert groups[name]["accuracy"] == pytest.approx((p.decoded_labels == p.labels)[rows].mean())
        else:
            assert groups[name]["accuracy"] is None
    assert compute_metrics(p, DIVES)["groups"] == {}


def test_dives_are_told_apart_by_whether_they_had_a_training_clip():
    p, counts = random_predictions(), np.array([200, 0, 100, 20, 0, 1, 0])
    by_training = compute_metrics(p, DIVES, counts)["by_training"]
    for name, labels in {"trained": [0, 2, 3, 5], "untrained": [1, 4]}.items():  # the last dive has no clips
        rows = np.isin(p.labels, labels)
        accuracy = pytest.approx((p.decoded_labels == p.labels)[rows].mean())
        assert by_training[name] == {"accuracy": accuracy, "num_clips": rows.sum(), "num_classes": len(labels)}
    assert compute_metrics(p, DIVES)["by_training"] == {}


def test_brier_is_the_squared_distance_from_the_truth():
    p = random_predictions()
    expected = np.mean(
        [
            sum((np.exp(row[dive]) - (dive == label)) ** 2 for dive in range(len(DIVES)))
            for row, label in zip(p.dive_log_probs, p.labels, strict=True)
        ]
    )
    assert compute_metrics(p, DIVES)["brier"] == pytest.approx(expected)


def test_what_was_wrong_where_the_number_was():
    labels = np.array([0, 0, 0, 3, 5, 5])
    decoded = np.array([0, 1, INVALID, 0, 6, 0])  # right; 103B for 101B; no dive; 101B for 201B; 5331D for 5132D; 101B
    p = random_predictions(num_clips=6)
    shares = compute_metrics(replace(p, labels=labels, decoded_labels=decoded), DIVES)["wrong_attributes"]
    expected = np.zeros((4, 4))
    for row, (true, named) in enumerate([(0, 1), (3, 0), (5, 6), (5, 0)]):
        values = [DIVES[label].attribute_values() for label in (true, named)]
        expected[row] = [values[0][name] != values[1][name] for name in ATTRIBUTES]
    assert [shares[name] for name in ATTRIBUTES] == pytest.approx(expected.mean(axis=0))
    at_once = expected.sum(axis=1)
    assert [shares[str(number)] for number in (1, 2, 3, 4)] == pytest.approx(
        [(at_once == n).mean() for n in (1, 2, 3, 4)]
    )
    perfect = compute_metrics(replace(p, labels=labels, decoded_labels=labels), DIVES)["wrong_attributes"]
    assert set(perfect.values()) == {None}


def test_attribute_confusions_count_every_clip_by_its_true_value():
    p = random_predictions()
    metrics = compute_metrics(p, DIVES)
    for attribute, matrix in metrics["attribute_confusions"].items():
        assert np.sum(matrix) == len(p)
        assert np.trace(matrix) / len(p) == pytest.approx(metrics["attribute_accuracy"][attribute])
        truth = np.bincount(np.array(DIVES.slots()[attribute])[p.labels], minlength=len(DIVES.values[attribute]))
        assert np.sum(matrix, axis=1).tolist() == truth.tolist()


def test_reliability_bins_add_up_to_the_calibration_error():
    p = random_predictions()
    bins = reliability(p.dive_log_probs, p.labels)
    assert bins["num_clips"].sum() == len(p)
    gaps = bins["num_clips"] * np.abs(bins["accuracy"] - bins["confidence"])
    assert np.nansum(gaps) / len(p) == pytest.approx(compute_metrics(p, DIVES)["ece"])


def test_a_perfect_and_certain_model_scores_one_and_zero():
    labels = np.arange(len(DIVING48))
    certain = np.log(np.where(np.eye(len(DIVING48)) == 1, 1.0, 1e-30)).astype(np.float32)
    slots = DIVING48.slots()
    predictions = Predictions(
        clips=[str(k) for k in labels],
        sources=["s"] * len(labels),
        labels=labels,
        dive_log_probs=certain,
        attribute_log_probs={
            a: np.log(np.eye(len(DIVING48.values[a]), dtype=np.float32)[list(slots[a])] + 1e-30) for a in ATTRIBUTES
        },
        spelt_labels=labels,
        decoded_labels=labels,
    )
    metrics = compute_metrics(predictions, DIVING48)
    assert [metrics[k] for k in ("top1", "top5", "mean_class_accuracy")] == [1, 1, 1]
    assert set(metrics["attribute_accuracy"].values()) == {1.0}
    assert [metrics[k] for k in ("invalid_rate", "nll", "ece")] == pytest.approx([0, 0, 0], abs=1e-6)


def test_guessing_uniformly_costs_the_log_of_the_number_of_dives():
    p = random_predictions()
    uniform = Predictions(**{**vars(p), "dive_log_probs": np.full_like(p.dive_log_probs, -math.log(len(DIVES)))})
    assert compute_metrics(uniform, DIVES)["nll"] == pytest.approx(math.log(len(DIVES)))


def test_calibrated_scores_are_those_of_the_distribution_divided_by_the_temperature():
    p = random_predictions()
    calibrated = Predictions(**{**vars(p), "dive_log_probs": log_softmax(p.dive_log_probs / 2.5)})
    expected = {f"{name}_calibrated": compute_metrics(calibrated, DIVES)[name] for name in ("nll", "ece")}
    assert calibrated_metrics(p, 2.5) == pytest.approx(expected, rel=1e-5)
    before = compute_metrics(p, DIVES)
    assert list(calibrated_metrics(p, 1.0).values()) == pytest.approx([before["nll"], before["ece"]], rel=1e-5)


def test_calibration_error_agrees_with_a_computation_by_hand():
    confidence = np.array([0.55, 0.60, 0.95, 1.00, 0.50])
    correct = np.array([True, False, True, True, False])
    # ten bins: (0.4, 0.5] is off by 0.5; (0.5, 0.6] by |1 - 1.15| over two clips; (0.9, 1.0] by |2 - 1.95| over two
    assert calibration_error(confidence, correct, num_bins=10) == pytest.approx((0.5 + 0.15 + 0.05) / 5)


def test_calibration_error_keeps_a_confidence_rounded_above_one():
    confidence = np.array([np.float32(1.0000001)])
    assert calibration_error(confidence, np.array([True])) == pytest.approx(0, abs=1e-6)


def test_confusion_matrix_counts_true_rows_and_leaves_invalid_answers_out():
    matrix = confusion_matrix(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, INVALID, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_metrics_refuse_an_empty_split():
    with pytest.raises(ValueError, match="at least one clip"):
        compute_metrics(random_predictions(num_clips=0), DIVES)


def test_metrics_refuse_attributes_of_another_set():
    p = random_predictions()
    wrong = {**p.attribute_log_probs, "twist": p.attribute_log_probs["twist"][:, :-1]}
    with pytest.raises(ValueError, match="twist has 3 values in seven dives, got 2"):
        compute_metrics(Predictions(**{**vars(p), "attribute_log_probs": wrong}), DIVES)


def test_area_under_risk_coverage_by_hand():
    confidence, correct = np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False])
    # surest first: right, wrong, right, wrong
    assert area_under_risk_coverage(confidence, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert area_under_risk_coverage(confidence, np.ones(4, bool)) == 0
    assert area_under_risk_coverage(np.full(2, 0.5), np.array([False, True])) == pytest.approx((1 + 1 / 2) / 2)


def answered(numbers, truths):
    """Predictions that name `numbers`, None for an answer that spells no dive, with values as of those numbers."""
    labels = np.array([DIVING48.label_of(number) for number in truths])
    named = [DIVING48.label_of(number or truth) for number, truth in zip(numbers, truths, strict=True)]
    slots = DIVING48.slots()
    return Predictions(
        clips=[f"clip{k}" for k in range(len(labels))],
        sources=["source"] * len(labels),
        labels=labels,
        dive_log_probs=np.log(np.full((len(labels), len(DIVING48)), 1 / len(DIVING48), np.float32)),
        attribute_log_probs={
            name: np.log(np.eye(len(values))[np.array(slots[name])[named]].clip(1e-6))
            for name, values in DIVING48.values.items()
        },
        spelt_labels=np.array(named),
        decoded_labels=np.where([number is None for number in numbers], INVALID, named),
    )


def test_count_errors_are_in_half_turns():
    predictions = answered(["105B", "5231D", "203C"], ["107B", "5235D", "203C"])
    assert count_errors(predictions, DIVING48) == pytest.approx({"somersault_error": 2 / 3, "twist_error": 4 / 3})


def test_difficulty_error_is_over_the_heights_that_give_both():
    def degrees(number):
        return {height_m: Dive.from_number(number).difficulty(height_m) for height_m in HEIGHTS_M}

    expected = []
    for named, true in (("105B", "107B"), ("203C", "203C")):
        both = zip(degrees(named).values(), degrees(true).values(), strict=True)
        expected.append(np.mean([abs(one - other) for one, other in both if one is not None and other is not None]))
    predictions = answered(["105B", "203C", None], ["107B", "203C", "101B"])
    assert expected[0] > 0.3
    assert difficulty_error(predictions, DIVING48) == pytest.approx(np.mean(expected))
    assert difficulty_error(answered([None], ["101B"]), DIVING48) is None
