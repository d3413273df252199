"""The baseline: one softmax over the dives of the set, as if their names had nothing in common."""

from __future__ import annotations

from torch import Tensor

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import DiveSet
from diveparse.heads.head import Head, Readout, detached
from diveparse.heads.scores import DiveScores


class FlatHead(Head):
    """One linear layer. It answers with its own dives alone; attributes are marginals, as for every head."""

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        self.linear = Readout(embed_dim, len(dive_set))

    def forward(self, features: Tensor) -> DiveScores:
        logits = self.linear(features if features.ndim == 2 else features.squeeze(1))  # one query
        return DiveScores(self.dive_set, self.slots, dives=logits)

    def expressible(self, dive_set: DiveSet) -> DiveSet:
        kept = tuple(dive for dive in dive_set if dive in self.dive_set)
        if not kept:
            raise ValueError(
                f"a flat head of {self.dive_set.name} has no dive of {dive_set.name}; use a structured model"
            )
        return dive_set if len(kept) == len(dive_set) else DiveSet(kept, f"{dive_set.name} (known)")

    def loss(self, scores: DiveScores, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.likelihood_loss(scores, targets)
        return loss, detached({"flat": loss})
