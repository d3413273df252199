from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS
from diveparse.heads import JointHeads, PairwiseHeads, build_head
from diveparse.heads.fold import folded
from diveparse.heads.interactions import LowRankPairs
from diveparse.heads.scores import PAIRS

EMBED_DIM, RANK = 12, 3
CORRECTED = [HeadKind.PAIRWISE, HeadKind.RESIDUAL]


def make_head(kind: HeadKind, *, new: bool = False, rank: int = RANK) -> PairwiseHeads:
    """new: as training begins; else with weights large enough that answers differ from clip to clip."""
    torch.manual_seed(0)
    head = build_head(HeadConfig(kind=kind, pair_rank=rank), EMBED_DIM, DIVING48).double()
    assert isinstance(head, PairwiseHeads)
    if not new:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter)
    return head


def pairs_of(head: PairwiseHeads) -> LowRankPairs:
    assert head.low_rank_pairs is not None
    return head.low_rank_pairs


@pytest.fixture
def features() -> Tensor:
    return torch.randn(6, EMBED_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", CORRECTED)
def test_the_score_of_a_pair_is_the_weighed_product_of_its_factors(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    layers, tables = pairs_of(head), head(features).pairs
    weights = layers.weights(features)
    for (a, b), table in zip(PAIRS, tables, strict=True):
        num_first, num_second = (len(DIVING48.values[ATTRIBUTES[k]]) for k in (a, b))
        assert table.shape == (6, num_first * num_second)
        for u, v in ((0, 0), (num_first - 1, 1), (1, num_second - 1)):
            expected = sum(weights[:, k] * layers.factors[a][u, k] * layers.factors[b][v, k] for k in range(RANK))
            torch.testing.assert_close(table[:, u * num_second + v], expected)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_tables_of_pairs_have_the_rank(rank: int, features: Tensor) -> None:
    for (a, _), table in zip(PAIRS, make_head(HeadKind.PAIRWISE, rank=rank)(features).pairs, strict=True):
        num_first = len(DIVING48.values[ATTRIBUTES[a]])
        for matrix in table.unflatten(1, (num_first, -1)):
            assert torch.linalg.matrix_rank(matrix) == min(rank, *matrix.shape)


@pytest.mark.parametrize("kind", CORRECTED)
def test_a_new_head_is_the_joint_one_and_its_weights_learn_at_once(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind, new=True)
    joint = build_head(HeadConfig(), EMBED_DIM, DIVING48).double()
    assert isinstance(joint, JointHeads)
    joint.linears.load_state_dict(head.linears.state_dict())
    torch.testing.assert_close(head(features).log_probs(), joint(features).log_probs())
    assert not head(features).corrections().any()
    head.loss(head(features), torch.arange(6))[0].backward()
    assert pairs_of(head).weights.weight.grad.all(dim=1).all()


@pytest.mark.parametrize("kind", CORRECTED)
def test_every_parameter_gets_a_gradient(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    head.loss(head(features), torch.arange(6))[0].backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("rank", [1, 16])
def test_a_new_product_of_factors_has_variance_one(rank: int) -> None:
    torch.manual_seed(0)
    factors = LowRankPairs(EMBED_DIM, [200] * 4, rank).factors
    assert (factors[0] @ factors[1].T).var().item() == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("kind", CORRECTED)
def test_probabilities_sum_to_one_and_the_head_is_one_linear_layer(kind: HeadKind, features: Tensor) -> None:
    head = make_head(kind)
    for dive_set in (DIVING48, WORLD_AQUATICS.expressible(DIVING48.values)):
        log_probs = head(features).log_probs(dive_set)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(6, dtype=torch.float64))
        layer = folded(head, EMBED_DIM, dive_set).double()
        torch.testing.assert_close(layer(features).log_softmax(-1), log_probs, rtol=0, atol=1e-4)


def test_it_is_much_smaller_than_the_tables_of_all_pairs() -> None:
    def num_parameters(rank: int) -> int:
        head = build_head(HeadConfig(kind=HeadKind.PAIRWISE, pair_rank=rank), EMBED_DIM, DIVING48)
        assert isinstance(head, PairwiseHeads)
        layers = head.low_rank_pairs or head.pairs
        return sum(parameter.numel() for parameter in layers.parameters())

    num_values = sum(map(len, DIVING48.values.values()))
    assert num_parameters(4) == 4 * (num_values + EMBED_DIM + 1) < num_parameters(0) / 10


@pytest.mark.parametrize("kind", ["joint", "constrained", "flat"])
def test_kinds_without_pairs_refuse_a_rank(kind: str) -> None:
    with pytest.raises(ValueError, match=f"head.pair_rank=4 has no effect with head.kind={kind}"):
        HeadConfig(kind=HeadKind(kind), pair_rank=4)


def test_a_rank_is_a_number_from_0_on() -> None:
    with pytest.raises(ValueError, match=r"head.pair_rank must be in \[0, 1024\], got -1"):
        HeadConfig(kind=HeadKind.PAIRWISE, pair_rank=-1)
