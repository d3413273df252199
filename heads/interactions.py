"""Joint heads that learn what their four answers have to do with each other: in pairs, then dive by dive.

With the scores of single attributes a dive's score is a log-linear model of first order, with the pairs of second, and
with a score for each dive of the highest: the flat softmax is that last term alone. What is added starts at zero, so
that a head begins as the simpler one, and is held small by a penalty, so that it says only what the simpler one cannot.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.heads.attributes import JointHeads
from diveparse.heads.head import Correction, detached

PAIRS = tuple(combinations(range(len(ATTRIBUTES)), 2))


class PairwiseHeads(JointHeads):
    """Joint, plus how well each value of an attribute goes with each of another, as the clip shows it."""

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        sizes = [len(dive_set.values[name]) for name in ATTRIBUTES]
        self.pairs = nn.ModuleList(Correction(embed_dim, sizes[a] * sizes[b]) for a, b in PAIRS)

    def scores(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        return super().scores(features, dive_set) + self.pair_scores(features, self._slots_of(dive_set))

    def pair_scores(self, features: Tensor, slots: Tensor) -> Tensor:
        """The sum of a dive's six pairs. slots: (num_attributes, num_dives). Returns: (batch, num_dives)."""
        shared = as_one(features)
        taken = []
        for (a, b), linear in zip(PAIRS, self.pairs, strict=True):
            num_values = len(self.dive_set.values[ATTRIBUTES[b]])
            taken.append(linear(shared)[:, slots[a] * num_values + slots[b]])
        return torch.stack(taken).sum(0)

    def corrections(self, features: Tensor) -> Tensor:
        """All that is added to the scores of `JointHeads` for the head's own dives. Returns: (batch, num_dives)."""
        return self.pair_scores(features, self.slots)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `JointHeads.loss`, plus `correction_penalty` times the mean square of what is added to the scores."""
        total, terms = super().loss(features, labels)
        square = self.corrections(features).square().mean()
        return total + self.cfg.correction_penalty * square, terms | detached({"correction": square})


class ResidualHeads(PairwiseHeads):
    """Pairwise, plus a score of its own for each dive of the set; a dive of another set has none."""

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        self.residual = Correction(embed_dim, len(dive_set))

    def scores(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        return super().scores(features, dive_set) + self.residual_scores(features, dive_set)

    def residual_scores(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        own = self.residual(as_one(features))
        if dive_set is None or dive_set == self.dive_set:
            return own
        padded = torch.cat([own, own.new_zeros(len(own), 1)], dim=1)  # the last column is of dives without a score
        columns = [self.dive_set.label_of(dive) if dive in self.dive_set else -1 for dive in dive_set]
        return padded[:, columns]

    def corrections(self, features: Tensor) -> Tensor:
        return super().corrections(features) + self.residual_scores(features)


def as_one(features: Tensor) -> Tensor:
    """One feature for what concerns several attributes: the mean of theirs. Returns: (batch, embed_dim)."""
    return features if features.ndim == 2 else features.mean(dim=1)
