from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.heads import FlatHead, Head, JointHeads, build_head
from diveparse.heads.recombine import score, slot_table

EMBED_DIM = 12
STRUCTURED = [HeadKind.INDEPENDENT, HeadKind.CONSTRAINED, HeadKind.JOINT]
SUBSET = DiveSet.from_numbers([DIVING48[label].number for label in (40, 3, 17)], "three of them")
# no classes of Diving48, but made of values that occur in it
UNSEEN = DiveSet.from_numbers(["5251B", "104C", "105A"], "unseen")


def make_head(kind: HeadKind, dive_set: DiveSet = DIVING48, **options: float) -> Head:
    """A head with weights large enough that its answers differ from clip to clip."""
    head = build_head(HeadConfig(kind=kind, **options), EMBED_DIM, dive_set)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def loss_of(head: Head, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return head.loss(head(features), targets)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(16, EMBED_DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(len(DIVING48), (16,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", HeadKind)
def test_every_distribution_sums_to_one(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    dive_log_probs = head(features).log_probs()
    assert dive_log_probs.shape == (16, 48)
    torch.testing.assert_close(dive_log_probs.exp().sum(-1), torch.ones(16))
    for attribute_log_probs in (head(features).own_log_probs(), head(features).marginals()):
        assert list(attribute_log_probs) == list(ATTRIBUTES)
        for name, log_probs in attribute_log_probs.items():
            assert log_probs.shape == (16, len(DIVING48.values[name]))
            torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(16))


@pytest.mark.parametrize("kind", HeadKind)
def test_every_parameter_gets_a_gradient(kind: HeadKind, features: Tensor, labels: Tensor) -> None:
    head = make_head(kind)
    loss, _ = loss_of(head, features, labels)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, options) for kind in HeadKind for options in ({}, {"label_smoothing": 0.1}, {"logit_adjustment": 1.0})]
    + [
        (HeadKind.CONSTRAINED, {"ordinal_weight": 2.0}),
        (HeadKind.JOINT, {"ordinal_weight": 2.0, "auxiliary_weight": 1.0}),
    ],
)
def test_certain_probabilities_are_labels(
    kind: HeadKind, options: dict[str, float], features: Tensor, labels: Tensor
) -> None:
    head = make_head(kind, **options)
    head.set_class_counts(torch.arange(len(DIVING48)))
    loss, terms = loss_of(head, features, labels)
    soft_loss, soft_terms = loss_of(head, features, F.one_hot(labels, len(DIVING48)).float())
    torch.testing.assert_close(soft_loss, loss)
    torch.testing.assert_close(soft_terms, terms)


@pytest.mark.parametrize("kind", HeadKind)
def test_the_loss_of_mixed_labels_is_the_mixture_of_their_losses(
    kind: HeadKind, features: Tensor, labels: Tensor
) -> None:
    head = make_head(kind, label_smoothing=0.1)
    others = labels.roll(1)
    shares = 0.3 * F.one_hot(labels, len(DIVING48)) + 0.7 * F.one_hot(others, len(DIVING48))
    expected = 0.3 * loss_of(head, features, labels)[0] + 0.7 * loss_of(head, features, others)[0]
    torch.testing.assert_close(loss_of(head, features, shares)[0], expected)


@pytest.mark.parametrize("kind", HeadKind)
def test_descending_the_loss_teaches_a_handful_of_clips(kind: HeadKind, features: Tensor, labels: Tensor) -> None:
    head = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48)
    features, labels = features[:6], labels[:6]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss_of(head, features, labels)[0].backward()
        optimizer.step()
    scores = head(features)
    assert torch.equal(scores.argmax(), labels)
    for name, row in zip(ATTRIBUTES, slot_table(DIVING48), strict=True):
        assert torch.equal(scores.marginals()[name].argmax(-1), row[labels])


def test_flat_loss_is_minus_the_log_probability_of_the_label(features: Tensor, labels: Tensor) -> None:
    head = make_head(HeadKind.FLAT)
    loss, terms = loss_of(head, features, labels)
    torch.testing.assert_close(loss, F.nll_loss(head(features).log_probs(), labels))
    assert terms == {"flat": loss.detach()}


@pytest.mark.parametrize("kind", [HeadKind.INDEPENDENT, HeadKind.CONSTRAINED])
def test_loss_without_a_joint_term_is_the_score_of_the_label(kind: HeadKind, features: Tensor, labels: Tensor) -> None:
    head = make_head(kind)
    loss, terms = loss_of(head, features, labels)
    independent = score(head(features).own_log_probs(), slot_table(DIVING48))  # (batch, num_dives)
    torch.testing.assert_close(loss, F.nll_loss(independent, labels))
    assert tuple(terms) == ATTRIBUTES
    torch.testing.assert_close(sum(terms.values()), loss.detach())


@pytest.mark.parametrize("auxiliary_weight", [0.0, 0.5])
def test_joint_loss_is_the_likelihood_over_the_set_plus_the_weighted_cross_entropies(
    auxiliary_weight: float, features: Tensor, labels: Tensor
) -> None:
    head = make_head(HeadKind.JOINT, auxiliary_weight=auxiliary_weight)
    loss, terms = loss_of(head, features, labels)
    joint = F.nll_loss(head(features).log_probs(), labels)
    independent = score(head(features).own_log_probs(), slot_table(DIVING48))
    torch.testing.assert_close(loss, joint + auxiliary_weight * F.nll_loss(independent, labels))
    assert set(terms) == {"joint"} | (set(ATTRIBUTES) if auxiliary_weight else set())
    assert not any(term.requires_grad for term in terms.values())
    # the two likelihoods differ by the probability that the heads leave on dives that exist
    log_mass = independent.logsumexp(-1).mean()
    torch.testing.assert_close(terms["joint"], (F.nll_loss(independent, labels) + log_mass).detach())


def test_only_the_independent_heads_may_answer_with_no_dive(features: Tensor) -> None:
    heads = {kind: make_head(kind) for kind in STRUCTURED}
    named = heads[HeadKind.INDEPENDENT](features).spelt()
    assert (named == -1).any()
    assert (named != -1).any()
    assert torch.equal(heads[HeadKind.INDEPENDENT](features).argmax(), named)
    for kind in (HeadKind.CONSTRAINED, HeadKind.JOINT):
        assert torch.equal(heads[kind](features).spelt(), named)
        decoded = heads[kind](features).argmax()
        assert (decoded != -1).all()
        assert torch.equal(decoded[named != -1], named[named != -1])  # where the argmaxes spell a dive it is the best


def test_a_flat_head_names_what_it_decodes(features: Tensor) -> None:
    head = make_head(HeadKind.FLAT)
    assert torch.equal(head(features).spelt(), head(features).argmax())


@pytest.mark.parametrize("kind", HeadKind)
def test_reading_out_over_a_subset_renormalises_its_classes(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    columns = [DIVING48.label_of(dive) for dive in SUBSET]
    expected = head(features).log_probs()[:, columns].log_softmax(-1)
    torch.testing.assert_close(head(features).log_probs(SUBSET), expected)


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_heads_read_out_over_dives_they_never_saw(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    assert not any(dive in DIVING48 for dive in UNSEEN)
    dive_log_probs = head(features).log_probs(UNSEEN)
    attributes = head(features).own_log_probs()
    for clip in range(len(features)):
        scores = [
            sum(
                attributes[name][clip, DIVING48.values[name].index(value)].item()
                for name, value in dive.attribute_values().items()
            )
            for dive in UNSEEN
        ]
        normaliser = math.log(sum(map(math.exp, scores)))
        assert dive_log_probs[clip].tolist() == pytest.approx([s - normaliser for s in scores], abs=1e-4)


def test_structured_heads_read_out_over_every_dive_that_their_values_express(features: Tensor) -> None:
    dives = WORLD_AQUATICS.expressible(DIVING48.values)
    assert len(dives) > len(DIVING48)
    dive_log_probs = make_head(HeadKind.JOINT)(features).log_probs(dives)
    torch.testing.assert_close(dive_log_probs.exp().sum(-1), torch.ones(16))


def test_a_flat_head_refuses_dives_that_are_not_its_classes(features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"3 of unseen are not among them: 5251B, 104C, 105A"):
        make_head(HeadKind.FLAT)(features).log_probs(UNSEEN)


def test_structured_heads_refuse_a_dive_that_needs_an_unknown_value(features: Tensor) -> None:
    with pytest.raises(ValueError, match="612B needs the takeoff 'armstand forward'"):
        make_head(HeadKind.JOINT)(features).log_probs(DiveSet.from_numbers(["612B"]))


@pytest.mark.parametrize("kind", HeadKind)
def test_permuting_the_batch_permutes_the_answers(kind: HeadKind, features: Tensor) -> None:
    head, order = make_head(kind), torch.randperm(16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(head(features[order]).log_probs(), head(features).log_probs()[order])
    assert torch.equal(head(features[order]).argmax(), head(features).argmax()[order])


def test_a_head_saves_its_weights_and_not_what_follows_from_its_set() -> None:
    assert set(make_head(HeadKind.FLAT).state_dict()) == {"linear.weight", "linear.bias"}
    expected = {f"linears.{name}.{part}" for name in ATTRIBUTES for part in ("weight", "bias")}
    assert set(make_head(HeadKind.JOINT).state_dict()) == expected


def test_head_sizes_follow_from_the_set() -> None:
    assert isinstance(head := make_head(HeadKind.JOINT, WORLD_AQUATICS), JointHeads)
    assert {name: linear.out_features for name, linear in head.linears.items()} == {
        name: len(values) for name, values in WORLD_AQUATICS.values.items()
    }
    assert isinstance(flat := make_head(HeadKind.FLAT, WORLD_AQUATICS), FlatHead)
    assert flat.linear.out_features == len(WORLD_AQUATICS)
