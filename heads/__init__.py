"""The heads: what turns a clip's features into dives."""

from __future__ import annotations

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import DiveSet
from diveparse.heads.attributes import AttributeHeads, ConstrainedHeads, JointHeads
from diveparse.heads.flat import FlatHead
from diveparse.heads.head import Head
from diveparse.heads.interactions import PairwiseHeads, ResidualHeads
from diveparse.heads.scores import DiveScores

__all__ = [
    "AttributeHeads",
    "ConstrainedHeads",
    "DiveScores",
    "FlatHead",
    "Head",
    "JointHeads",
    "PairwiseHeads",
    "ResidualHeads",
    "build_head",
]

HEADS: dict[HeadKind, type[Head]] = {
    HeadKind.INDEPENDENT: AttributeHeads,
    HeadKind.CONSTRAINED: ConstrainedHeads,
    HeadKind.JOINT: JointHeads,
    HeadKind.PAIRWISE: PairwiseHeads,
    HeadKind.RESIDUAL: ResidualHeads,
    HeadKind.FLAT: FlatHead,
}


def build_head(cfg: HeadConfig, embed_dim: int, dive_set: DiveSet) -> Head:
    """The head of a config, over features of width `embed_dim`; it answers with the dives of a set."""
    return HEADS[cfg.kind](embed_dim, dive_set, cfg)
