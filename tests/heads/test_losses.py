from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, COUNTS, DIVING48, DIVING48_TRAIN_COUNTS
from diveparse.heads import AttributeHeads, FlatHead, Head, JointHeads, build_head
from diveparse.heads.losses import UncertaintyWeighting, class_log_prior, earth_mover_distance

EMBED_DIM = 12
STRUCTURED = [kind for kind in HeadKind if kind is not HeadKind.FLAT]
CLASS_COUNTS = torch.tensor(DIVING48_TRAIN_COUNTS)
CROSS_ENTROPIES = {"uncertainty_weighting": True, "ordinal_weight": 0.5}
AUXILIARY = {"auxiliary_weight": 0.7}
OWN_OPTIONS: dict[HeadKind, dict[str, Any]] = {  # every option that changes the loss of a kind
    HeadKind.INDEPENDENT: CROSS_ENTROPIES,
    HeadKind.CONSTRAINED: CROSS_ENTROPIES,
    HeadKind.JOINT: CROSS_ENTROPIES | AUXILIARY,
    HeadKind.PAIRWISE: CROSS_ENTROPIES | AUXILIARY | {"correction_penalty": 0.1},
    HeadKind.RESIDUAL: CROSS_ENTROPIES | AUXILIARY | {"correction_penalty": 0.1},
    HeadKind.FLAT: {},
}
HALF_TURNS = [DIVING48.values[name] for name in COUNTS] + [(0, 1, 5), (2, 9)]


def make_head(kind: HeadKind, **options: float) -> Head:
    """A head in double precision, with weights large enough that its answers differ from clip to clip."""
    head = build_head(HeadConfig(kind=kind, **options), EMBED_DIM, DIVING48).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "log_variances" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def cross_entropy_by_hand(logits: Tensor, targets: Tensor, smoothing: float) -> float:
    """The mean of -log p(target), of which `smoothing` is shared out among all classes."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_normaliser = math.log(sum(map(math.exp, row)))
        log_probs = [logit - log_normaliser for logit in row]
        total -= (1 - smoothing) * log_probs[target] + smoothing * sum(log_probs) / len(log_probs)
    return total / len(targets)


def loss_by_hand(head: Head, features: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> float:
    """Every cross-entropy of a head, smoothed and adjusted by the class counts as its config asks, and no penalty.

    Dives without a clip are no answers of the likelihood.
    """
    adjustment, smoothing = head.cfg.logit_adjustment, head.cfg.label_smoothing
    prior = [1.0] * len(DIVING48) if counts is None else [(n + 1) / (sum(counts) + len(counts)) for n in counts]
    of_dives = torch.tensor([adjustment * math.log(p) for p in prior])
    trained = [label for label, n in enumerate(counts or [1] * len(DIVING48)) if n]
    logits = (head(features).scores() + of_dives)[:, trained]
    places = torch.tensor([trained.index(label) for label in labels.tolist()])
    if isinstance(head, FlatHead):
        return cross_entropy_by_hand(logits, places, smoothing)
    assert isinstance(head, AttributeHeads)
    auxiliary = 0.0
    for name, log_probs in head(features).own_log_probs().items():
        values = DIVING48.values[name]
        of_values = dict.fromkeys(values, 0.0)
        for dive, p in zip(DIVING48, prior, strict=True):
            of_values[dive.attribute_values()[name]] += p
        shift = torch.tensor([adjustment * math.log(of_values[value]) for value in values])
        targets = torch.tensor([values.index(DIVING48[label].attribute_values()[name]) for label in labels.tolist()])
        auxiliary += cross_entropy_by_hand(log_probs + shift, targets, smoothing)
    if not isinstance(head, JointHeads):
        return auxiliary
    joint = cross_entropy_by_hand(logits, places, smoothing)
    return joint + head.cfg.auxiliary_weight * auxiliary


def likelihoods_of(kind: HeadKind) -> dict[str, Any]:
    """Options by which a loss is its cross-entropies alone, the auxiliary ones with their weight."""
    own = OWN_OPTIONS[kind]
    return {
        name: 0.0 if name == "correction_penalty" else value
        for name, value in own.items()
        if name not in CROSS_ENTROPIES
    }


def loss_of(head: Head, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return head.loss(head(features), targets)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(8, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(len(DIVING48), (8,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("values", HALF_TURNS, ids=str)
def test_the_earth_mover_distance_equals_comparing_at_every_half_turn(values: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(7, len(values), generator=generator, dtype=torch.float64)).log_softmax(-1)
    targets = torch.randint(len(values), (7,), generator=generator)
    total = 0.0
    for row, target in zip(log_probs.exp().tolist(), targets.tolist(), strict=True):
        for half_turns in range(values[0], values[-1]):  # is it at most this many? p against the truth
            answer = sum(p for value, p in zip(values, row, strict=True) if value <= half_turns)
            total += (answer - (values[target] <= half_turns)) ** 2 / (values[-1] - values[0])
    assert earth_mover_distance(log_probs, targets, values).item() == pytest.approx(total / 7, rel=1e-9)


@pytest.mark.parametrize("values", HALF_TURNS, ids=str)
def test_a_certain_answer_is_as_far_off_as_its_value(values: tuple[int, ...]) -> None:
    certain = torch.eye(len(values)).log()
    for target, truth in enumerate(values):
        for row, answer in zip(certain, values, strict=True):
            distance = earth_mover_distance(row[None], torch.tensor([target]), values).item()
            assert distance == pytest.approx(abs(answer - truth) / (values[-1] - values[0]), abs=1e-6)
    assert earth_mover_distance(certain, torch.arange(len(values)), values) == 0
    assert earth_mover_distance(certain[-1:], torch.tensor([0]), values) == pytest.approx(1)


def test_doubt_between_near_values_costs_less_than_between_far_ones() -> None:
    values, target = DIVING48.values["somersault"], torch.tensor([1])
    doubts = torch.eye(len(values))[2:]
    doubts[:, 1] = 1  # between the truth and one that is further and further from it
    distances = [earth_mover_distance((row / 2).log()[None], target, values).item() for row in doubts]
    assert distances == sorted(set(distances))


def test_an_attribute_of_a_single_value_is_never_wrong() -> None:
    logits = torch.randn(5, 1, requires_grad=True)
    distance = earth_mover_distance(logits.log_softmax(-1), torch.zeros(5, dtype=torch.long), [3])
    distance.backward()
    assert distance == 0
    assert torch.equal(logits.grad, torch.zeros(5, 1))


def test_the_prior_sums_to_one_and_gives_every_dive_one_clip_more() -> None:
    counts = [0, 7, 1, 90]
    log_prior = class_log_prior(torch.tensor(counts))
    assert log_prior.exp().tolist() == pytest.approx([1 / 102, 8 / 102, 2 / 102, 91 / 102])
    assert class_log_prior(CLASS_COUNTS).exp().sum().item() == pytest.approx(1)
    assert log_prior.dtype == torch.float32
    assert log_prior.isfinite().all()


@pytest.mark.parametrize("kind", HeadKind)
@pytest.mark.parametrize("adjustment", [1.0, 0.5])
def test_adjusted_logits_are_raised_by_the_log_prior_of_their_class(
    kind: HeadKind, adjustment: float, features: Tensor, labels: Tensor
) -> None:
    head = make_head(kind, logit_adjustment=adjustment, **likelihoods_of(kind))
    head.set_class_counts(CLASS_COUNTS)
    loss, _ = loss_of(head, features, labels)
    assert loss.item() == pytest.approx(loss_by_hand(head, features, labels, DIVING48_TRAIN_COUNTS), rel=1e-6)
    assert loss.item() != pytest.approx(loss_by_hand(head, features, labels), rel=1e-3)


@pytest.mark.parametrize("kind", HeadKind)
def test_answers_are_not_adjusted(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind, logit_adjustment=1.0)

    def answers() -> list[Tensor]:
        single = [head(features).log_probs(), head(features).argmax(), head(features).spelt()]
        return [*single, *head(features).own_log_probs().values()]

    before = answers()
    head.set_class_counts(CLASS_COUNTS)
    assert all(torch.equal(now, then) for now, then in zip(answers(), before, strict=True))


@pytest.mark.parametrize("kind", HeadKind)
def test_class_counts_change_nothing_unless_logits_are_to_be_adjusted_or_a_dive_has_no_clip(
    kind: HeadKind, features: Tensor, labels: Tensor
) -> None:
    head = make_head(kind)
    before, _ = loss_of(head, features, labels)
    head.set_class_counts(CLASS_COUNTS.clamp(min=1))
    assert torch.equal(loss_of(head, features, labels)[0], before)


LIKELIHOODS = [HeadKind.JOINT, HeadKind.PAIRWISE, HeadKind.RESIDUAL, HeadKind.FLAT]


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_likelihood_is_normalised_over_the_dives_that_have_a_training_clip(
    kind: HeadKind, smoothing: float, features: Tensor, labels: Tensor
) -> None:
    options = {"correction_penalty": 0.0} if kind in (HeadKind.PAIRWISE, HeadKind.RESIDUAL) else {}
    head = make_head(kind, label_smoothing=smoothing, **options)
    counts = torch.zeros(len(DIVING48), dtype=torch.long)
    counts[labels] = 3
    head.set_class_counts(counts)
    trained = sorted(set(labels.tolist()))
    places = torch.tensor([trained.index(label) for label in labels.tolist()])
    expected = cross_entropy_by_hand(head(features).scores()[:, trained], places, smoothing)
    loss, _ = loss_of(head, features, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    soft = torch.nn.functional.one_hot(labels, len(DIVING48)).double()
    torch.testing.assert_close(loss_of(head, features, soft)[0], loss)


@pytest.mark.parametrize("kind", [HeadKind.RESIDUAL, HeadKind.FLAT])
def test_training_does_not_push_down_a_dive_without_a_clip_and_a_test_offers_it(
    kind: HeadKind, features: Tensor, labels: Tensor
) -> None:
    head = make_head(kind)
    head.set_class_counts(CLASS_COUNTS)
    (untrained,) = (CLASS_COUNTS == 0).nonzero().flatten().tolist()
    own_row = head.linear if isinstance(head, FlatHead) else head.residual
    before = own_row.bias[untrained].item()
    head.cfg.correction_penalty = 0.0
    loss_of(head, features, labels)[0].backward()
    assert own_row.bias.grad[untrained] == 0
    assert own_row.bias.grad.count_nonzero() == len(DIVING48) - 1
    assert head(features).log_probs().shape == (len(labels), len(DIVING48))
    assert head(features).log_probs().isfinite().all()
    assert own_row.bias[untrained].item() == before


def test_without_any_training_clip_there_is_nothing_to_normalise_over() -> None:
    with pytest.raises(ValueError, match="no dive of Diving48 has a training clip"):
        make_head(HeadKind.JOINT).set_class_counts(torch.zeros(48, dtype=torch.long))


def test_counts_that_are_all_alike_leave_a_flat_loss_as_it_was(features: Tensor, labels: Tensor) -> None:
    head = make_head(HeadKind.FLAT, logit_adjustment=1.0)
    head.set_class_counts(torch.full((48,), 30))
    plain, _ = loss_of(make_head(HeadKind.FLAT), features, labels)
    torch.testing.assert_close(loss_of(head, features, labels)[0], plain)


def test_class_counts_are_not_saved_with_a_head() -> None:
    head = make_head(HeadKind.JOINT, logit_adjustment=1.0)
    names = set(head.state_dict())
    head.set_class_counts(CLASS_COUNTS)
    assert set(head.state_dict()) == names == {name for name, _ in head.named_parameters()}


@pytest.mark.parametrize("kind", HeadKind)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_cross_entropy_is_smoothed(kind: HeadKind, smoothing: float, features: Tensor, labels: Tensor) -> None:
    head = make_head(kind, label_smoothing=smoothing, **likelihoods_of(kind))
    loss, _ = loss_of(head, features, labels)
    assert loss.item() == pytest.approx(loss_by_hand(head, features, labels), rel=1e-9)


@pytest.mark.parametrize("kind", STRUCTURED)
def test_the_distance_of_both_counts_joins_the_attribute_losses(
    kind: HeadKind, features: Tensor, labels: Tensor
) -> None:
    plain, plain_terms = loss_of(make_head(kind, **likelihoods_of(kind)), features, labels)
    head = make_head(kind, ordinal_weight=3.0, **likelihoods_of(kind))
    loss, terms = loss_of(head, features, labels)
    log_probs = head(features).own_log_probs()
    distances = {}
    for name in COUNTS:
        values = DIVING48.values[name]
        targets = torch.tensor([values.index(DIVING48[label].attribute_values()[name]) for label in labels.tolist()])
        distances[f"{name}_distance"] = earth_mover_distance(log_probs[name], targets, values).detach()
    share = 1.0 if kind in (HeadKind.INDEPENDENT, HeadKind.CONSTRAINED) else 0.7
    torch.testing.assert_close(loss, plain + share * 3 * sum(distances.values()))
    torch.testing.assert_close(terms, plain_terms | distances)
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("kind", STRUCTURED)
def test_uncertainty_weighting_starts_as_the_plain_sum(kind: HeadKind, features: Tensor, labels: Tensor) -> None:
    weight = {"auxiliary_weight": 1.0} if "auxiliary_weight" in OWN_OPTIONS[kind] else {}
    plain, plain_terms = loss_of(make_head(kind, **weight), features, labels)
    head = make_head(kind, uncertainty_weighting=True, **weight)
    loss, terms = loss_of(head, features, labels)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(terms, plain_terms)  # as they are, not as they are weighed
    loss.backward()
    assert isinstance(head, AttributeHeads)
    assert head.weights is not None
    for name in ATTRIBUTES:
        torch.testing.assert_close(head.weights.log_variances[name].grad, 0.5 - terms[name])


def test_uncertainty_weighting_divides_each_loss_by_its_own_variance() -> None:
    weights = UncertaintyWeighting(["one", "other"])
    log_variances = {"one": -0.5, "other": 1.25}
    with torch.no_grad():
        for name, value in log_variances.items():
            weights.log_variances[name].fill_(value)
    losses = {"other": 3.0, "one": 0.25}
    expected = sum(losses[name] / math.exp(s) + s / 2 for name, s in log_variances.items())
    weighted = weights({name: torch.tensor(loss) for name, loss in losses.items()})
    assert weighted.item() == pytest.approx(expected)


def test_descending_uncertainty_weighting_finds_the_variance_of_each_loss() -> None:
    weights, losses = UncertaintyWeighting(["one", "other"]), {"one": torch.tensor(0.25), "other": torch.tensor(2.0)}
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        weights(losses).backward()
        optimizer.step()
    for name, loss in losses.items():  # where exp(-s) loss + s / 2 is least
        assert weights.log_variances[name].exp().item() == pytest.approx(2 * loss.item(), rel=0.01)


@pytest.mark.parametrize("kind", HeadKind)
@pytest.mark.parametrize("own_features", [False, True])
def test_every_head_takes_all_its_options_together(
    kind: HeadKind, own_features: bool, features: Tensor, labels: Tensor
) -> None:
    cfg = HeadConfig(kind=kind, label_smoothing=0.1, logit_adjustment=1.0, **OWN_OPTIONS[kind])
    head = build_head(cfg, EMBED_DIM, DIVING48)
    head.set_class_counts(CLASS_COUNTS)
    features = features.float()
    if own_features:
        features = features.unsqueeze(1) + torch.arange(head.num_queries)[:, None]
    loss_of(head, features, labels)[0].backward()
    without_gradient = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert without_gradient == []


def test_the_joint_likelihood_leaves_values_that_no_training_clip_shows_exactly_as_they_are(
    features: Tensor, labels: Tensor
) -> None:
    head = build_head(HeadConfig(kind=HeadKind.JOINT), EMBED_DIM, DIVING48)
    counts = torch.zeros(len(DIVING48), dtype=torch.long)
    counts[labels] = 1
    head.set_class_counts(counts)
    loss_of(head, features.float(), labels)[0].backward()
    assert isinstance(head, JointHeads)
    for row, name in zip(head.slots, ATTRIBUTES, strict=True):
        shown = set(row[labels].tolist())
        gradient = head.linears[name].weight.grad
        for value in range(len(gradient)):
            assert bool(gradient[value].any()) is (value in shown)  # rounding alone would move the others, by Adam
