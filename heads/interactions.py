"""Joint heads that learn how their four answers go together: in pairs, then dive by dive.

With the scores of single attributes a dive's score is a log-linear model of first order, with the pairs of second, and
with a score for each dive of the highest: the flat softmax is that last term alone. What is added starts at zero, so
that a head begins as the simpler one, and a penalty keeps it small.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.heads.attributes import JointHeads
from diveparse.heads.head import Correction, detached
from diveparse.heads.scores import PAIRS, DiveScores


class PairwiseHeads(JointHeads):
    """Joint, plus a score for how well each value of an attribute goes with each of another in the clip."""

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        sizes = [len(dive_set.values[name]) for name in ATTRIBUTES]
        self.pairs = nn.ModuleList(Correction(embed_dim, sizes[a] * sizes[b]) for a, b in PAIRS)

    def forward(self, features: Tensor) -> DiveScores:
        shared = as_one(features)
        return replace(super().forward(features), pairs=tuple(linear(shared) for linear in self.pairs))

    def loss(self, scores: DiveScores, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `JointHeads.loss`, plus `correction_penalty` times the mean square of what is added to the scores."""
        total, terms = super().loss(scores, targets)
        square = scores.corrections().square().mean()
        return total + self.cfg.correction_penalty * square, terms | detached({"correction": square})


class ResidualHeads(PairwiseHeads):
    """Pairwise, plus a score of its own for each dive of the set; a dive of another set has none."""

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        self.residual = Correction(embed_dim, len(dive_set))

    def forward(self, features: Tensor) -> DiveScores:
        return replace(super().forward(features), dives=self.residual(as_one(features)))


def as_one(features: Tensor) -> Tensor:
    """One feature for what concerns several attributes: the mean of theirs. Returns: (batch, embed_dim)."""
    return features if features.ndim == 2 else features.mean(dim=1)
