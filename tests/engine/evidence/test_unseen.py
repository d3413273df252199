from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.evaluation.stacking import penalty_that_keeps, stacked_answers
from diveparse.engine.evidence.statistics import Estimate
from diveparse.engine.evidence.unseen import (
    Generalised,
    area_under_curve,
    choose_kept_share,
    generalised,
    harmonic_mean,
)

DIVES = DiveSet.from_numbers(["101B", "103B", "105B", "201B", "203B", "205B"])
UNSEEN = ("103B", "205B")
IS_UNSEEN = np.array([number in UNSEEN for number in DIVES.numbers])


def biased_predictions(num_clips: int = 120, seed: int = 0, bias: float = 3.0) -> Predictions:
    """Predictions of a model that favours the dives that it was trained on by `bias` nats."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(DIVES), size=num_clips)
    scores = rng.normal(size=(num_clips, len(DIVES))) + 4 * np.eye(len(DIVES))[labels] + bias * ~IS_UNSEEN
    log_probs = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    return Predictions(
        clips=[f"clip{k:03d}" for k in range(num_clips)],
        sources=[f"source{k % 9}" for k in range(num_clips)],
        labels=labels,
        dive_log_probs=log_probs,
        attribute_log_probs={name: np.zeros((num_clips, len(DIVES.values[name])), np.float32) for name in ATTRIBUTES},
        spelt_labels=scores.argmax(axis=1),
        decoded_labels=scores.argmax(axis=1),
    )


def test_a_penalty_is_taken_from_seen_dives_alone():
    log_probs = np.log([[0.6, 0.3, 0.1], [0.2, 0.1, 0.7]])
    unseen = np.array([False, True, False])
    assert stacked_answers(log_probs, unseen, 0.0).tolist() == [0, 2]
    assert stacked_answers(log_probs, unseen, 0.8).tolist() == [1, 2]  # 0.6 is ahead of 0.3 by log 2 = 0.69
    assert stacked_answers(log_probs, unseen, np.inf).tolist() == [1, 1]


def test_the_share_to_keep_is_that_of_the_highest_harmonic_mean():
    predictions = biased_predictions()
    of_unseen = IS_UNSEEN[predictions.labels]

    def scores(penalty: float) -> tuple[float, float]:
        correct = stacked_answers(predictions.dive_log_probs, IS_UNSEEN, penalty) == predictions.labels
        return float(correct[~of_unseen].mean()), float(correct[of_unseen].mean())

    tried = [scores(penalty) for penalty in np.linspace(0, 10, 4001)]
    best = max(tried, key=lambda each: float(harmonic_mean(np.array(each[0]), np.array(each[1]))))
    share = choose_kept_share(predictions, DIVES, UNSEEN, ignored=())
    assert share == pytest.approx(best[0] / tried[0][0])
    assert best[1] > tried[0][1]


def test_ignored_dives_do_not_change_the_share():
    predictions = biased_predictions()
    share = choose_kept_share(predictions, DIVES, ["103B"], ignored=["205B"])
    rows = predictions.labels != DIVES.label_of("205B")
    other = predictions.dive_log_probs.copy()
    other[:, DIVES.label_of("205B")] = 9.0
    other[~rows] = 0.0
    assert choose_kept_share(replace(predictions, dive_log_probs=other), DIVES, ["103B"], ignored=["205B"]) == share


def test_a_share_cannot_be_chosen_on_clips_of_one_kind():
    predictions = biased_predictions()
    for wanted in (True, False):
        rows = IS_UNSEEN[predictions.labels] == wanted
        with pytest.raises(ValueError, match="got only one kind"):
            choose_kept_share(predictions.at(rows), DIVES, UNSEEN, ignored=())


@pytest.mark.parametrize("share", [0.3, 0.75, 0.9, 1.0])
def test_the_penalty_is_the_highest_that_keeps_the_share(share: float) -> None:
    predictions = biased_predictions()
    seen = predictions.at(~IS_UNSEEN[predictions.labels])
    penalty = penalty_that_keeps(share, seen, DIVES, UNSEEN)

    def accuracy(penalty: float) -> float:
        return float((stacked_answers(seen.dive_log_probs, IS_UNSEEN, penalty) == seen.labels).mean())

    assert accuracy(penalty) >= share * accuracy(0.0)
    higher = [accuracy(value) for value in np.arange(penalty, 20, 0.001)]
    assert max(value for value in higher if value != accuracy(penalty)) < share * accuracy(0.0)


def test_nothing_is_taken_where_any_penalty_would_cost_a_clip_and_all_are_to_be_kept():
    predictions = biased_predictions()
    seen = predictions.at(~IS_UNSEEN[predictions.labels])
    right = seen.at(stacked_answers(seen.dive_log_probs, IS_UNSEEN, 0.0) == seen.labels)
    lead = right.dive_log_probs[:, ~IS_UNSEEN].max(axis=1) - right.dive_log_probs[:, IS_UNSEEN].max(axis=1)
    assert 0 <= penalty_that_keeps(1.0, right, DIVES, UNSEEN) < lead.min()


def test_no_share_can_be_kept_where_no_seen_dive_is_named_rightly():
    predictions = biased_predictions(bias=-50.0)  # no answer is a dive that was seen
    with pytest.raises(ValueError, match="no clip of a seen dive is named rightly"):
        choose_kept_share(predictions, DIVES, UNSEEN, ignored=())


def test_clips_of_unseen_dives_do_not_change_the_penalty():
    predictions = biased_predictions()
    of_seen = ~IS_UNSEEN[predictions.labels]
    penalty = penalty_that_keeps(0.8, predictions.at(of_seen), DIVES, UNSEEN)
    assert penalty_that_keeps(0.8, predictions, DIVES, UNSEEN) == penalty
    with pytest.raises(ValueError, match="clips of seen dives, got none"):
        penalty_that_keeps(0.8, predictions.at(~of_seen), DIVES, UNSEEN)


def test_generalised_scores_are_those_of_a_loop_over_clips():
    seeds, penalties = [biased_predictions(seed=0), replace(biased_predictions(seed=1))], [0.0, 2.5]
    seeds[1] = replace(seeds[1], labels=seeds[0].labels)  # the same clips; the second is often wrong
    scores = generalised(seeds, DIVES, UNSEEN, penalties)
    shares: dict[bool, list[float]] = {True: [], False: []}
    alone = []
    for each, penalty in zip(seeds, penalties, strict=True):
        for row, label in zip(each.dive_log_probs, each.labels, strict=True):
            worth = [value - (0.0 if unseen else penalty) for value, unseen in zip(row, IS_UNSEEN, strict=True)]
            shares[bool(IS_UNSEEN[label])].append(float(np.argmax(worth) == label))
            if IS_UNSEEN[label]:
                alone.append(np.flatnonzero(IS_UNSEEN)[row[IS_UNSEEN].argmax()] == label)
    seen, unseen = np.mean(shares[False]), np.mean(shares[True])
    assert scores.seen.value == pytest.approx(seen)
    assert scores.unseen.value == pytest.approx(unseen)
    assert scores.harmonic.value == pytest.approx(2 * seen * unseen / (seen + unseen))
    assert scores.unseen_alone == pytest.approx(np.mean(alone))


def test_generalised_scores_are_those_of_version_0_1_to_the_bit():
    assert generalised([biased_predictions()], DIVES, UNSEEN, [2.5]) == Generalised(
        seen=Estimate(0.9882352941176471, 0.9642857142857143, 1.0),
        unseen=Estimate(0.9428571428571428, 0.8611111111111112, 1.0),
        harmonic=Estimate(0.9650130548302872, 0.9203039406255523, 0.9947089947089947),
        unseen_alone=1.0,
    )


def test_a_model_that_cannot_name_unseen_dives_has_no_harmonic_mean():
    predictions = biased_predictions()
    log_probs = np.where(IS_UNSEEN, -np.inf, predictions.dive_log_probs)
    scores = generalised([replace(predictions, dive_log_probs=log_probs)], DIVES, UNSEEN, [0.0])
    assert (scores.unseen.value, scores.harmonic.value, scores.harmonic.high) == (0.0, 0.0, 0.0)
    assert scores.seen.value > 0.5


def test_the_area_under_the_curve_is_that_of_a_sweep_over_penalties():
    predictions = biased_predictions(num_clips=60)
    noise = np.random.default_rng(3).normal(scale=3, size=predictions.dive_log_probs.shape).astype(np.float32)
    predictions = replace(predictions, dive_log_probs=predictions.dive_log_probs + noise)
    of_unseen = IS_UNSEEN[predictions.labels]
    points = []
    for penalty in np.linspace(-20, 20, 20001):
        correct = stacked_answers(predictions.dive_log_probs, IS_UNSEEN, penalty) == predictions.labels
        points.append((float(correct[of_unseen].mean()), float(correct[~of_unseen].mean())))
    area = sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(points))
    assert area_under_curve(predictions, DIVES, UNSEEN) == pytest.approx(area)
    assert 0.2 < area < 0.9
    same_for_all = predictions.dive_log_probs + np.where(IS_UNSEEN, 0.0, 7.0).astype(np.float32)
    moved = replace(predictions, dive_log_probs=same_for_all)  # a penalty alone moves no point off the curve
    assert area_under_curve(moved, DIVES, UNSEEN) == pytest.approx(area, abs=1e-6)


def test_only_a_dive_of_the_right_kind_counts_under_the_curve():
    labels = np.array([0, 1])  # 101B, which was seen, and 103B, which was not
    log_probs = np.full((2, len(DIVES)), -9.0, np.float32)
    log_probs[0, 3], log_probs[1, 1] = -0.1, -0.1  # 201B, which is wrong, and 103B
    predictions = replace(biased_predictions(2), labels=labels, dive_log_probs=log_probs)
    assert area_under_curve(predictions, DIVES, UNSEEN) == 0.0
    log_probs[0, 0] = -0.05
    assert area_under_curve(predictions, DIVES, UNSEEN) == 1.0
