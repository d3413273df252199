from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, DIVING48_TRAIN_COUNTS
from diveparse.heads import DiveScores, JointHeads, build_head
from diveparse.heads.recombine import score, slot_table

EMBED_DIM = 12


def make_head(share: float, **options: float) -> JointHeads:
    head = build_head(HeadConfig(factor_dropout=share, **options), EMBED_DIM, DIVING48).double()
    assert isinstance(head, JointHeads)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return head


def random_features(num_clips: int) -> Tensor:
    return torch.randn(num_clips, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dropped_of(head: JointHeads, features: Tensor) -> Tensor:
    """Which attributes lost their score. Returns: (batch, num_attributes) bool."""
    values = head.without_some_factors(head(features)).values
    assert list(values) == list(ATTRIBUTES)
    return torch.stack([(each == 0).all(-1) for each in values.values()], dim=1)


def test_each_attribute_is_left_out_as_often_and_never_two_at_once() -> None:
    torch.manual_seed(0)
    dropped = dropped_of(make_head(0.4), random_features(4000))
    assert dropped.sum(1).max() == 1
    assert dropped.double().mean(0).tolist() == pytest.approx([0.1] * 4, abs=0.02)


def test_the_likelihood_is_that_of_the_terms_that_are_left() -> None:
    head, features, labels = make_head(0.7), random_features(8), torch.arange(8)
    torch.manual_seed(3)
    kept = ~dropped_of(head, features)
    assert not kept.all()
    torch.manual_seed(3)
    loss, terms = head.loss(head(features), labels)
    values = head(features).own_log_probs()
    left = {name: each * kept[:, k, None] for k, (name, each) in enumerate(values.items())}
    log_probs = score(left, slot_table(DIVING48)).log_softmax(-1)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(loss, F.nll_loss(log_probs, labels))
    assert list(terms) == ["joint"]


def test_an_attribute_that_is_left_out_learns_nothing_and_the_others_do() -> None:
    head = make_head(0.7)
    torch.manual_seed(3)
    values = {name: each.detach().requires_grad_() for name, each in head(random_features(8)).values.items()}
    scores = head.without_some_factors(DiveScores(head.dive_set, head.slots, values))
    head.likelihood_loss(scores, torch.arange(8)).backward()
    torch.manual_seed(3)
    dropped = dropped_of(head, random_features(8))
    for k, each in enumerate(values.values()):
        assert each.grad is not None
        assert torch.equal(each.grad.any(-1), ~dropped[:, k])


def test_clips_draw_anew_in_every_update() -> None:
    head, features = make_head(0.7), random_features(32)
    torch.manual_seed(0)
    assert not torch.equal(dropped_of(head, features), dropped_of(head, features))


def test_nothing_is_left_out_in_a_test_or_without_the_option() -> None:
    features, labels = random_features(32), torch.arange(32)
    plain = make_head(0.0)
    expected = plain.loss(plain(features), labels)[0]
    tested = make_head(0.7).eval()
    assert torch.equal(tested.loss(tested(features), labels)[0], expected)
    assert not dropped_of(plain, features).any()
    state = torch.get_rng_state()
    plain.loss(plain(features), labels)
    assert torch.equal(torch.get_rng_state(), state)  # other arms draw the same augmentations as before


def test_answers_in_training_have_all_four() -> None:
    features = random_features(32)
    assert torch.equal(make_head(0.7)(features).log_probs(), make_head(0.0)(features).log_probs())


def test_the_cross_entropies_beside_it_lose_nothing() -> None:
    features, labels = random_features(32), torch.arange(32)
    head, plain = make_head(0.7, auxiliary_weight=1.0), make_head(0.0, auxiliary_weight=1.0)
    terms, expected = head.loss(head(features), labels)[1], plain.loss(plain(features), labels)[1]
    for name in ATTRIBUTES:
        assert torch.equal(terms[name], expected[name])
    assert terms["joint"] != expected["joint"]


def test_it_takes_mixed_labels_and_class_counts() -> None:
    head, features, labels = make_head(0.7), random_features(8), torch.arange(8)
    head.set_class_counts(torch.tensor(DIVING48_TRAIN_COUNTS))
    losses = []
    for targets in (labels, F.one_hot(labels, len(DIVING48)).double()):
        torch.manual_seed(3)
        losses.append(head.loss(head(features), targets)[0])
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("kind", [kind for kind in HeadKind if kind is not HeadKind.JOINT])
def test_other_kinds_refuse_it(kind: HeadKind) -> None:
    with pytest.raises(ValueError, match=f"head.factor_dropout=0.2 has no effect with head.kind={kind.value}"):
        HeadConfig(kind=kind, factor_dropout=0.2)


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_it_is_a_share_below_1(share: float) -> None:
    with pytest.raises(ValueError, match=rf"head.factor_dropout must be in \[0, 1\), got {share}"):
        HeadConfig(factor_dropout=share)
