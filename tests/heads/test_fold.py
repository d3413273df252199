from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.heads import FlatHead, Head, build_head
from diveparse.heads.fold import folded
from diveparse.heads.scores import DiveScores

EMBED_DIM = 12
SETS = {
    "own": DIVING48,
    "some of its own": DiveSet.from_numbers([DIVING48[label].number for label in (40, 3, 17)]),
    "others": WORLD_AQUATICS.expressible(DIVING48.values),
}
CASES = [(kind, name) for kind in HeadKind for name in SETS if (kind, name) != (HeadKind.FLAT, "others")]


def random_head(kind: HeadKind) -> Head:
    head = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48)
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, generator=generator)
    return head


@pytest.fixture
def features() -> Tensor:
    return torch.randn(16, EMBED_DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.value}, {name}" for kind, name in CASES])
@torch.no_grad()
def test_one_layer_has_the_tempered_distribution_of_every_head(kind: HeadKind, name: str, features: Tensor) -> None:
    head = random_head(kind)
    layer = folded(head, EMBED_DIM, SETS[name], temperature=0.7)
    expected = head(features).tempered(0.7).log_probs(SETS[name])
    torch.testing.assert_close(layer(features).log_softmax(-1), expected, rtol=0, atol=5e-5)
    assert not torch.allclose(head(features).log_probs(SETS[name]), expected, atol=1e-2)  # the temperature counts


def test_a_flat_head_cannot_be_a_layer_of_other_dives() -> None:
    with pytest.raises(ValueError, match="a flat head answers only with its own 48 dives of Diving48"):
        folded(random_head(HeadKind.FLAT), EMBED_DIM, SETS["others"])


class SquaredHead(FlatHead):
    def forward(self, features: Tensor) -> DiveScores:
        return super().forward(features**2)


def test_scores_that_are_not_affine_are_refused() -> None:
    with pytest.raises(ValueError, match="SquaredHead is no linear layer: its scores are not affine in the features"):
        folded(SquaredHead(EMBED_DIM, DIVING48, HeadConfig(kind=HeadKind.FLAT)), EMBED_DIM, DIVING48)
