from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import COUNTS, DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.heads import JointHeads, build_head
from diveparse.heads.fold import folded
from diveparse.heads.ordinal import CumulativeReadout

EMBED_DIM = 12
LIKELIHOODS = [HeadKind.JOINT, HeadKind.PAIRWISE, HeadKind.RESIDUAL]
SMALL = DiveSet.from_numbers(["102B", "103B", "104B", "105B", "202B", "203C", "204C", "205C"], "small")


def make_head(kind: HeadKind = HeadKind.JOINT, dive_set: DiveSet = DIVING48, *, cumulative: bool = True) -> JointHeads:
    torch.manual_seed(0)
    head = build_head(HeadConfig(kind=kind, cumulative_counts=cumulative), EMBED_DIM, dive_set).double()
    assert isinstance(head, JointHeads)
    return head


@pytest.fixture
def features() -> Tensor:
    return torch.randn(8, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_logit_is_the_sum_of_the_increments_up_to_its_value(features: Tensor) -> None:
    readout = CumulativeReadout(EMBED_DIM, 5).double()
    torch.nn.init.normal_(readout.bias, generator=torch.Generator().manual_seed(2))
    logits = readout(features)
    assert logits.shape == (8, 5)
    for clip, feature in enumerate(features):
        total = 0.0
        assert logits[clip, 0] == 0
        for k in range(4):
            total += (readout.weight[k] @ feature + readout.bias[k]).item()
            assert logits[clip, k + 1].item() == pytest.approx(total, abs=1e-12)


def test_a_single_value_is_certain(features: Tensor) -> None:
    assert torch.equal(CumulativeReadout(EMBED_DIM, 1).double()(features), torch.zeros(8, 1, dtype=torch.float64))


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_both_counts_and_nothing_else_are_cumulative(kind: HeadKind) -> None:
    for name, linear in make_head(kind).linears.items():
        assert isinstance(linear, CumulativeReadout) is (name in COUNTS)
        assert linear.out_features == len(DIVING48.values[name]) - (name in COUNTS)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_probabilities_sum_to_one_also_over_other_dives(kind: HeadKind, features: Tensor) -> None:
    scores = make_head(kind)(features)
    for dive_set in (DIVING48, WORLD_AQUATICS.expressible(DIVING48.values)):
        sums = scores.log_probs(dive_set).exp().sum(-1)
        torch.testing.assert_close(sums, torch.ones(8, dtype=torch.float64))


def test_every_distribution_of_plain_rows_is_one_of_increments(features: Tensor) -> None:
    plain, head = make_head(cumulative=False), make_head()
    with torch.no_grad():
        for name, linear in head.linears.items():
            for part in ("weight", "bias"):
                rows = getattr(plain.linears[name], part)
                getattr(linear, part).copy_(rows.diff(dim=0) if name in COUNTS else rows)
    torch.testing.assert_close(head(features).log_probs(), plain(features).log_probs())
    layer = folded(head, EMBED_DIM, DIVING48)
    torch.testing.assert_close(layer(features.float()).log_softmax(-1).double(), plain(features).log_probs())


def test_one_clip_teaches_every_increment_up_to_its_count(features: Tensor) -> None:
    label = next(k for k, dive in enumerate(DIVING48) if dive.somersault_half_turns == 5)
    head = make_head()
    gradients = {}
    for kind, each in (("cumulative", head), ("plain", make_head(cumulative=False))):
        scores = each(features[:1]).scores()
        (gradients[kind],) = torch.autograd.grad(scores[0, label], each.linears["somersault"].bias)
    place = DIVING48.values["somersault"].index(5)
    assert gradients["cumulative"].nonzero().flatten().tolist() == list(range(place))
    assert gradients["plain"].nonzero().flatten().tolist() == [place]


@pytest.mark.parametrize("cumulative", [True, False])
def test_a_count_without_a_clip_comes_to_lie_between_its_neighbours(cumulative: bool, features: Tensor) -> None:
    head = make_head(dive_set=SMALL, cumulative=cumulative)
    torch.nn.init.zeros_(head.linears["somersault"].weight)
    head.set_class_counts(torch.tensor([1, 0, 1, 1, 1, 0, 1, 1]))  # none with three half turns
    labels = torch.tensor([0, 2, 3, 4, 6, 7, 3, 7])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        head.loss(head(features), labels)[0].backward()
        optimizer.step()
    low, middle, high, _ = head(features).values["somersault"].unbind(-1)
    assert (high - low).abs().min() > 0
    assert torch.allclose(middle, (low + high) / 2) is cumulative


@pytest.mark.parametrize("kind", ["independent", "constrained", "flat"])
def test_kinds_without_a_joint_likelihood_refuse_it(kind: str) -> None:
    refused = f"head.cumulative_counts=True has no effect with head.kind={kind}"
    with pytest.raises(ValueError, match=refused):
        HeadConfig(kind=HeadKind(kind), cumulative_counts=True)


def test_a_new_head_is_as_unsure_as_a_plain_one(features: Tensor) -> None:
    for cumulative in (True, False):
        entropy = make_head(cumulative=cumulative)(features).entropy()
        assert (entropy > 0.95 * math.log(len(DIVING48))).all()
