"""The baseline: one softmax over the dives of the set, as if their names had nothing in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import DiveSet
from diveparse.heads.head import Head, Readout, detached
from diveparse.heads.recombine import decode, marginals, normalise


class FlatHead(Head):
    """One linear layer; attributes are read off by summing the classes that share a value."""

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        self.linear = Readout(embed_dim, len(dive_set))

    def logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features if features.ndim == 2 else features.squeeze(1))  # of its only query
        return logits

    def dive_log_probs(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """As `Head.dive_log_probs`; another set must be a subset, since a softmax knows no dive but its classes."""
        logits = self.logits(features)
        if dive_set is not None and dive_set != self.dive_set:
            logits = logits[:, self._columns(dive_set)]
        return normalise(logits)

    def attribute_log_probs(self, features: Tensor) -> dict[str, Tensor]:
        return marginals(self.dive_log_probs(features), self.slots)

    def named_labels(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        return decode(self.dive_log_probs(features, dive_set))

    def expressible(self, dive_set: DiveSet) -> DiveSet:
        kept = tuple(dive for dive in dive_set if dive in self.dive_set)
        if not kept:
            raise ValueError(f"a flat head of {self.dive_set.name} knows no dive of {dive_set.name}")
        return dive_set if len(kept) == len(dive_set) else DiveSet(kept, f"{dive_set.name} (known)")

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.adjusted(self.logits(features))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.cfg.label_smoothing)
        return loss, detached({"flat": loss})

    def _columns(self, dive_set: DiveSet) -> Tensor:
        missing = [dive.number for dive in dive_set if dive not in self.dive_set]
        if missing:
            raise ValueError(
                f"a flat head answers only with its own {len(self.dive_set)} dives of {self.dive_set.name}; "
                f"{len(missing)} of {dive_set.name} are not among them: {', '.join(missing[:10])}"
                f"{', …' if len(missing) > 10 else ''}"
            )
        return torch.tensor([self.dive_set.label_of(dive) for dive in dive_set], device=self.linear.weight.device)
