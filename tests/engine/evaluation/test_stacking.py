from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.evaluation.stacking import KEPT_SHARE, default_penalty, stacked_answers
from diveparse.heads import build_head

DIVES = DiveSet.from_numbers(["101B", "103B", "105B", "201B", "203B", "205B", "301B", "303B", "305B"])
UNSEEN = ["203B"]
IS_UNSEEN = np.array([number in UNSEEN for number in DIVES.numbers])
LABELS = torch.arange(360) % len(DIVES)


@cache
def toy_predictions() -> Predictions:
    """Answers of a joint head that was trained without 203B, on features that are a noisy sum of their values'."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = build_head(HeadConfig(), 12, DIVES)
    of_values = [torch.randn(len(DIVES.values[name]), 12, generator=generator) for name in ATTRIBUTES]
    features = sum(values[head.slots[row, LABELS]] for row, values in enumerate(of_values))
    features = features + 1.5 * torch.randn(features.shape, generator=generator)
    trained = torch.from_numpy(~IS_UNSEEN)[LABELS]
    head.set_class_counts(torch.bincount(LABELS[trained], minlength=len(DIVES)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    for _ in range(60):
        loss, _ = head.loss(head(features[trained]), LABELS[trained])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        scores = head(features)
    return Predictions(
        clips=[f"clip{k:03d}" for k in range(len(LABELS))],
        sources=[f"source{k % 9}" for k in range(len(LABELS))],
        labels=LABELS.numpy(),
        dive_log_probs=scores.log_probs().numpy(),
        attribute_log_probs={name: each.numpy() for name, each in scores.marginals().items()},
        spelt_labels=scores.spelt().numpy(),
        decoded_labels=scores.argmax().numpy(),
    )


def test_a_dive_without_clips_is_named_more_often_and_the_share_of_the_others_is_kept() -> None:
    predictions = toy_predictions()
    of_seen = ~IS_UNSEEN[predictions.labels]
    penalty = default_penalty(predictions.at(of_seen), DIVES, UNSEEN)  # as on validation, which has none of its clips
    without, with_it = (stacked_answers(predictions.dive_log_probs, IS_UNSEEN, each) for each in (0.0, penalty))
    seen, kept = (np.mean((each == predictions.labels)[of_seen]) for each in (without, with_it))
    named, named_with_it = (np.mean((each == predictions.labels)[~of_seen]) for each in (without, with_it))
    assert penalty > 0
    assert KEPT_SHARE * seen <= kept < seen
    assert named_with_it > named + 0.1


def test_there_is_no_penalty_where_no_accuracy_on_seen_dives_is_to_be_kept() -> None:
    predictions = toy_predictions()
    of_seen = ~IS_UNSEEN[predictions.labels]
    wrong = predictions.decoded_labels != predictions.labels
    assert default_penalty(predictions.at(of_seen), DIVES, UNSEEN) > 0
    assert default_penalty(predictions.at(of_seen & wrong), DIVES, UNSEEN) == 0
    assert default_penalty(predictions.at(~of_seen), DIVES, UNSEEN) == 0


@pytest.mark.parametrize("penalty", [0.3, 2.0])
def test_a_distribution_with_a_penalty_names_what_stacking_names(penalty: float) -> None:
    head = build_head(HeadConfig(), 12, DIVES)
    scores = head(torch.randn(50, 12, generator=torch.Generator().manual_seed(2)) * 20)
    trained = [dive for dive in DIVES if dive.number not in UNSEEN]
    expected = stacked_answers(scores.log_probs().detach().numpy(), IS_UNSEEN, penalty)
    assert scores.penalised(penalty, trained).argmax().tolist() == expected.tolist()
