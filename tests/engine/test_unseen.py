from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.engine.predictions import Predictions
from diveparse.engine.unseen import choose_penalty, generalised, harmonic_mean, stacked_answers

DIVES = DiveSet.from_numbers(["101B", "103B", "105B", "201B", "203B", "205B"])
UNSEEN = ("103B", "205B")
IS_UNSEEN = np.array([number in UNSEEN for number in DIVES.numbers])


def biased_predictions(num_clips: int = 120, seed: int = 0, bias: float = 3.0) -> Predictions:
    """Those of a model that knows something, but favours the dives that it was trained on by `bias` nats."""
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
        named_labels=scores.argmax(axis=1),
        decoded_labels=scores.argmax(axis=1),
    )


def test_a_penalty_is_taken_from_seen_dives_alone():
    log_probs = np.log([[0.6, 0.3, 0.1], [0.2, 0.1, 0.7]])
    unseen = np.array([False, True, False])
    assert stacked_answers(log_probs, unseen, 0.0).tolist() == [0, 2]
    assert stacked_answers(log_probs, unseen, 0.8).tolist() == [1, 2]  # 0.6 is ahead of 0.3 by log 2 = 0.69
    assert stacked_answers(log_probs, unseen, np.inf).tolist() == [1, 1]


def test_the_chosen_penalty_has_the_highest_harmonic_mean_of_all():
    predictions = biased_predictions()
    of_unseen = IS_UNSEEN[predictions.labels]

    def score(penalty: float) -> float:
        correct = stacked_answers(predictions.dive_log_probs, IS_UNSEEN, penalty) == predictions.labels
        return float(harmonic_mean(np.array(correct[~of_unseen].mean()), np.array(correct[of_unseen].mean())))

    chosen = choose_penalty(predictions, DIVES, UNSEEN, ignored=())
    assert score(chosen) == pytest.approx(max(score(penalty) for penalty in np.linspace(-2, 10, 4001)))
    assert score(chosen) > score(0.0)
    assert 1 < chosen < 6  # about the bias


def test_ignored_dives_have_no_say_in_the_penalty():
    predictions = biased_predictions()
    chosen = choose_penalty(predictions, DIVES, ["103B"], ignored=["205B"])
    rows = predictions.labels != DIVES.label_of("205B")
    other = predictions.dive_log_probs.copy()
    other[:, DIVES.label_of("205B")] = 9.0
    other[~rows] = 0.0
    assert choose_penalty(replace(predictions, dive_log_probs=other), DIVES, ["103B"], ignored=["205B"]) == chosen


def test_a_penalty_cannot_be_chosen_on_clips_of_one_kind():
    predictions = biased_predictions()
    for wanted in (True, False):
        rows = IS_UNSEEN[predictions.labels] == wanted
        with pytest.raises(ValueError, match="only one kind is there"):
            choose_penalty(predictions.at(rows), DIVES, UNSEEN, ignored=())


def test_generalised_scores_are_those_of_a_loop_over_clips():
    seeds, penalties = [biased_predictions(seed=0), replace(biased_predictions(seed=1))], [0.0, 2.5]
    seeds[1] = replace(seeds[1], labels=seeds[0].labels)  # the same clips; the second knows little
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
    for estimate in (scores.seen, scores.unseen, scores.harmonic):
        assert estimate.low <= estimate.value <= estimate.high


def test_a_model_that_cannot_name_unseen_dives_has_no_harmonic_mean():
    predictions = biased_predictions()
    log_probs = np.where(IS_UNSEEN, -np.inf, predictions.dive_log_probs)
    scores = generalised([replace(predictions, dive_log_probs=log_probs)], DIVES, UNSEEN, [0.0])
    assert (scores.unseen.value, scores.harmonic.value, scores.harmonic.high) == (0.0, 0.0, 0.0)
    assert scores.seen.value > 0.5
