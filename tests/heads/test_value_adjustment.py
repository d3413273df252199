from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, DIVING48_TRAIN_COUNTS
from diveparse.heads import JointHeads, build_head

EMBED_DIM = 12
COUNTS_OF_DIVES = torch.tensor(DIVING48_TRAIN_COUNTS)
LIKELIHOODS = [HeadKind.JOINT, HeadKind.PAIRWISE, HeadKind.RESIDUAL]


def make_head(kind: HeadKind = HeadKind.JOINT, **options: float) -> JointHeads:
    """A head in double precision that knows how often a dive occurs, with weights that do not depend on the options."""
    head = build_head(HeadConfig(kind=kind, **options), EMBED_DIM, DIVING48).double()
    assert isinstance(head, JointHeads)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    head.set_class_counts(COUNTS_OF_DIVES)
    return head


def prior_of_values() -> list[float]:
    """For each dive the sum of the log priors of its values, counted by hand with one clip more a dive."""
    total = sum(DIVING48_TRAIN_COUNTS) + len(DIVING48)
    sums = [0.0] * len(DIVING48)
    for name in ATTRIBUTES:
        values = [dive.attribute_values()[name] for dive in DIVING48]
        for label, value in enumerate(values):
            clips = sum(n + 1 for n, other in zip(DIVING48_TRAIN_COUNTS, values, strict=True) if other == value)
            sums[label] += math.log(clips / total)
    return sums


@pytest.fixture
def features() -> Tensor:
    return torch.randn(8, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 3, 5, 17, 22, 35, 40, 47])


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_score_in_training_has_the_priors_of_the_four_values(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind, value_adjustment=0.5)
    scores = head(features).scores()
    expected = scores + 0.5 * torch.tensor(prior_of_values(), dtype=torch.float64)
    torch.testing.assert_close(head.adjusted(scores), expected, rtol=0, atol=1e-5)


def test_it_adds_to_the_adjustment_on_dives(features: Tensor) -> None:
    scores = make_head()(features).scores()
    both = make_head(value_adjustment=0.5, logit_adjustment=2.0).adjusted(scores)
    of_values = make_head(value_adjustment=0.5).adjusted(scores)
    of_dives = make_head(logit_adjustment=2.0).adjusted(scores)
    torch.testing.assert_close(both - scores, (of_values - scores) + (of_dives - scores))


def test_four_biases_take_it_up_exactly(features: Tensor, labels: Tensor) -> None:
    plain, adjusted = make_head(), make_head(value_adjustment=1.0)
    with torch.no_grad():
        for name, log_priors in adjusted.value_log_priors().items():
            adjusted.linears[name].bias -= log_priors[0]
    torch.testing.assert_close(
        adjusted.loss(adjusted(features), labels)[0], plain.loss(plain(features), labels)[0], rtol=0, atol=1e-5
    )
    expected = plain(features).scores() - torch.tensor(prior_of_values(), dtype=torch.float64)
    torch.testing.assert_close(adjusted(features).log_probs(), expected.log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_answers_are_not_adjusted_and_sum_to_one(kind: HeadKind, features: Tensor) -> None:
    log_probs = make_head(kind, value_adjustment=1.0)(features).log_probs()
    assert torch.equal(log_probs, make_head(kind)(features).log_probs())
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(8, dtype=torch.float64))


def test_the_cross_entropies_beside_it_have_the_same_priors(features: Tensor, labels: Tensor) -> None:
    of_values = make_head(auxiliary_weight=1.0, value_adjustment=1.0)
    of_dives = make_head(auxiliary_weight=1.0, logit_adjustment=1.0)
    terms, expected = (head.loss(head(features), labels)[1] for head in (of_values, of_dives))
    for name in ATTRIBUTES:  # the marginals of the prior of dives
        torch.testing.assert_close(terms[name], expected[name])
    assert terms["joint"] != expected["joint"]


@pytest.mark.parametrize("kind", ["independent", "constrained", "flat"])
def test_kinds_without_a_joint_likelihood_refuse_it(kind: str) -> None:
    with pytest.raises(ValueError, match=f"head.value_adjustment=1.0 has no effect with head.kind={kind}"):
        HeadConfig(kind=HeadKind(kind), value_adjustment=1.0)


def test_it_is_a_power_from_0_on() -> None:
    with pytest.raises(ValueError, match=r"head.value_adjustment must be >= 0, got -1.0"):
        HeadConfig(value_adjustment=-1.0)
