from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.heads import DiveScores, Head, build_head
from diveparse.heads.recombine import INVALID, slot_table

EMBED_DIM = 12
FROM_CONSTRAINED_ON = [kind for kind in HeadKind if kind is not HeadKind.INDEPENDENT]
STRUCTURED = [kind for kind in FROM_CONSTRAINED_ON if kind is not HeadKind.FLAT]
SUBSET = DiveSet.from_numbers([DIVING48[label].number for label in (40, 3, 17, 0)], "four of them")
UNSEEN = DiveSet.from_numbers(["5251B", "104C", "105A"], "unseen")  # made of values that occur in Diving48
EXPRESSIBLE = WORLD_AQUATICS.expressible(DIVING48.values)


def make_head(kind: HeadKind) -> Head:
    """A head in double precision, with weights large enough that its answers differ from clip to clip."""
    head = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


@pytest.fixture
def features() -> Tensor:
    return torch.randn(5, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", HeadKind)
def test_every_answer_and_the_loss_come_from_one_pass_through_each_linear_layer(
    kind: HeadKind, features: Tensor
) -> None:
    head = make_head(kind)
    calls: Counter[str] = Counter()
    linears = {name: module for name, module in head.named_modules() if isinstance(module, nn.Linear)}
    for name, linear in linears.items():
        linear.register_forward_hook(lambda *_, name=name: calls.update([name]))
    scores = head(features)
    head.loss(scores, torch.arange(5))
    for dive_set in (None, SUBSET):
        answers = (scores.log_probs, scores.marginals, scores.argmax, scores.spelt, scores.entropy, scores.scores)
        for answer in answers:
            answer(dive_set)
    scores.own_log_probs()
    assert calls == dict.fromkeys(linears, 1)


@pytest.mark.parametrize("kind", FROM_CONSTRAINED_ON)
@pytest.mark.parametrize("dive_set", [DIVING48, SUBSET], ids=lambda dive_set: dive_set.name)
def test_a_marginal_is_the_sum_over_the_dives_that_take_the_value(
    kind: HeadKind, dive_set: DiveSet, features: Tensor
) -> None:
    assert_marginals_are_sums(make_head(kind)(features), dive_set)


@pytest.mark.parametrize("kind", STRUCTURED)
@pytest.mark.parametrize("dive_set", [UNSEEN, EXPRESSIBLE], ids=lambda dive_set: dive_set.name)
def test_marginals_follow_another_set_of_dives(kind: HeadKind, dive_set: DiveSet, features: Tensor) -> None:
    assert_marginals_are_sums(make_head(kind)(features), dive_set)


def assert_marginals_are_sums(scores: DiveScores, dive_set: DiveSet) -> None:
    probabilities, marginals = scores.log_probs(dive_set).exp().tolist(), scores.marginals(dive_set)
    assert {name: each.shape[1] for name, each in marginals.items()} == {
        name: len(values) for name, values in dive_set.values.items()
    }
    for clip, row in enumerate(probabilities):
        for name, values in dive_set.values.items():
            for place, value in enumerate(values):
                expected = sum(
                    p for dive, p in zip(dive_set, row, strict=True) if dive.attribute_values()[name] == value
                )
                assert marginals[name][clip, place].exp().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", STRUCTURED)
def test_a_flat_and_a_structured_head_with_equal_dive_probabilities_have_equal_marginals(
    kind: HeadKind, features: Tensor
) -> None:
    structured = make_head(kind)(features)
    flat = DiveScores(DIVING48, slot_table(DIVING48), dives=structured.log_probs())
    for name in ATTRIBUTES:
        torch.testing.assert_close(flat.marginals()[name], structured.marginals()[name])


@pytest.mark.parametrize("kind", STRUCTURED)
def test_the_heads_own_answers_stay_beside_the_marginals(kind: HeadKind, features: Tensor) -> None:
    scores = make_head(kind)(features)
    for name, own in scores.own_log_probs().items():
        torch.testing.assert_close(own, own.log_softmax(-1))
        assert not torch.allclose(own, scores.marginals()[name])
    best = {name: own.argmax(-1).tolist() for name, own in scores.own_log_probs().items()}
    for clip, label in enumerate(scores.spelt().tolist()):
        spelt = {name: DIVING48.values[name][best[name][clip]] for name in ATTRIBUTES}
        labels = [label for label, dive in enumerate(DIVING48) if dive.attribute_values() == spelt]
        assert [label] == (labels or [INVALID])


def test_independent_heads_answer_with_their_own_softmaxes(features: Tensor) -> None:
    scores = make_head(HeadKind.INDEPENDENT)(features)
    own = scores.own_log_probs()
    for name in ATTRIBUTES:
        assert torch.equal(scores.marginals()[name], own[name])
        places = [DIVING48.values[name].index(value) for value in UNSEEN.values[name]]
        assert torch.equal(scores.marginals(UNSEEN)[name], own[name][:, places])
    assert torch.equal(scores.argmax(), scores.spelt())


@pytest.mark.parametrize("kind", HeadKind)
def test_entropy_is_that_of_the_distribution_over_dives(kind: HeadKind, features: Tensor) -> None:
    scores = make_head(kind)(features)
    for entropy, row in zip(scores.entropy(SUBSET).tolist(), scores.log_probs(SUBSET).tolist(), strict=True):
        assert entropy == pytest.approx(-sum(math.exp(log_p) * log_p for log_p in row))


@pytest.mark.parametrize("kind", HeadKind)
def test_a_temperature_divides_the_log_probabilities_of_any_set(kind: HeadKind, features: Tensor) -> None:
    scores = make_head(kind)(features)
    for dive_set in (DIVING48, SUBSET):
        expected = (scores.log_probs(dive_set) / 1.7).log_softmax(-1)
        torch.testing.assert_close(scores.tempered(1.7).log_probs(dive_set), expected)
    assert torch.equal(scores.tempered(1.7).argmax(), scores.argmax())
    assert torch.equal(scores.tempered(1.7).spelt(), scores.spelt())


@pytest.mark.parametrize("kind", HeadKind)
@pytest.mark.parametrize("dive_set", [DIVING48, SUBSET], ids=lambda dive_set: dive_set.name)
def test_a_penalty_is_subtracted_before_the_temperature_and_the_softmax(
    kind: HeadKind, dive_set: DiveSet, features: Tensor
) -> None:
    scores = make_head(kind)(features)
    dives = [dive for dive in DIVING48 if dive.position.value == "pike"]
    penalised = scores.penalised(1.5, dives)
    less = scores.scores(dive_set) - 1.5 * torch.tensor([float(dive in dives) for dive in dive_set])
    torch.testing.assert_close(penalised.scores(dive_set), less)
    torch.testing.assert_close(penalised.log_probs(dive_set).exp().sum(-1), torch.ones(5).double())
    torch.testing.assert_close(penalised.tempered(2.0).log_probs(dive_set), (less / 2).log_softmax(-1))
    assert torch.equal(scores.penalised(0.0, dives).scores(dive_set), scores.scores(dive_set))


@pytest.mark.parametrize("kind", FROM_CONSTRAINED_ON)
def test_a_penalty_changes_marginals_and_the_dive_alike(kind: HeadKind, features: Tensor) -> None:
    penalised = make_head(kind)(features).penalised(3.0, [dive for dive in DIVING48 if dive.twist_half_turns])
    assert_marginals_are_sums(penalised, DIVING48)
    assert torch.equal(penalised.argmax(), penalised.log_probs().argmax(-1))


@pytest.mark.parametrize("kind", FROM_CONSTRAINED_ON)
def test_a_penalty_on_every_dive_changes_no_probability(kind: HeadKind, features: Tensor) -> None:
    scores = make_head(kind)(features)
    torch.testing.assert_close(scores.penalised(3.0, list(DIVING48)).log_probs(), scores.log_probs())
