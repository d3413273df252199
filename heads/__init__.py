"""The heads: what turns a clip's features into dives."""

from __future__ import annotations

from diveparse.configs import HeadConfig, HeadKind
from diveparse.datasets.dives import DiveSet
from diveparse.heads.attributes import AttributeHeads, ConstrainedHeads, JointHeads
from diveparse.heads.flat import FlatHead
from diveparse.heads.head import Head

__all__ = ["AttributeHeads", "ConstrainedHeads", "FlatHead", "Head", "JointHeads", "build_head"]


def build_head(cfg: HeadConfig, embed_dim: int, dive_set: DiveSet) -> Head:
    """The head that a config asks for, over features of width `embed_dim`, answering with the dives of a set."""
    if cfg.kind is HeadKind.FLAT:
        return FlatHead(embed_dim, dive_set)
    if cfg.kind is HeadKind.INDEPENDENT:
        return AttributeHeads(embed_dim, dive_set)
    if cfg.kind is HeadKind.CONSTRAINED:
        return ConstrainedHeads(embed_dim, dive_set)
    if cfg.kind is HeadKind.JOINT:
        return JointHeads(embed_dim, dive_set, auxiliary_weight=cfg.auxiliary_weight)
    raise ValueError(f"head.kind must be one of {', '.join(kind.value for kind in HeadKind)}, got {cfg.kind!r}")
