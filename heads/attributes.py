"""Four heads, one for each attribute of a dive, and three ways to make one dive number of their answers.

Each class is the one before it with one thing changed: what is decoded, then what is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import ATTRIBUTES, COUNTS, DiveSet
from diveparse.heads.head import Head, Readout, detached
from diveparse.heads.losses import LearnedWeights, attribute_targets, earth_mover_distance
from diveparse.heads.recombine import decode, marginals, named_labels, normalise, score, slot_table


class AttributeHeads(Head):
    """Independent: four cross-entropies, four argmaxes. May name a dive that does not exist."""

    num_queries = len(ATTRIBUTES)

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        self.linears = nn.ModuleDict({name: Readout(embed_dim, len(dive_set.values[name])) for name in ATTRIBUTES})
        self.weights = LearnedWeights(ATTRIBUTES) if cfg.learned_weights else None

    def attribute_log_probs(self, features: Tensor) -> dict[str, Tensor]:
        own = [features] * len(ATTRIBUTES) if features.ndim == 2 else features.unbind(dim=1)
        return {name: self.linears[name](own[k]).log_softmax(-1) for k, name in enumerate(ATTRIBUTES)}

    def scores(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """What a dive of a set is worth, before it is normalised. Returns: (batch, num_dives)."""
        return score(self.attribute_log_probs(features), self._slots_of(dive_set))

    def dive_log_probs(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """As `Head.dive_log_probs`; another set may hold any dive whose four values occur in the head's own set."""
        return normalise(self.scores(features, dive_set))

    def named_labels(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        return named_labels(self.attribute_log_probs(features), self._slots_of(dive_set))

    def decode(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """The four best values and nothing else. Returns: (batch,) labels, -1 where they spell no dive of the set."""
        return self.named_labels(features, dive_set)

    def expressible(self, dive_set: DiveSet) -> DiveSet:
        return dive_set.expressible(self.dive_set.values)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of four cross-entropies: -log p(dive | clip) if the attributes were independent."""
        return self._attribute_loss(self.attribute_log_probs(features), labels)

    def _attribute_loss(
        self, attribute_log_probs: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The four cross-entropies, weighed alike or as was learned, and the distance of the counts; and the terms."""
        targets = attribute_targets(labels, self.slots)
        logits = attribute_log_probs  # log-probabilities are logits that are normalised already
        if self.cfg.logit_adjustment:  # as `Head.adjusted` does, by what the prior says on each attribute
            priors = marginals(self.log_prior.unsqueeze(0), self.slots)
            logits = {name: each + self.cfg.logit_adjustment * priors[name] for name, each in logits.items()}
        entropies = {
            name: F.cross_entropy(logits[name], targets[name], label_smoothing=self.cfg.label_smoothing)
            for name in ATTRIBUTES
        }
        total = torch.stack(list(entropies.values())).sum() if self.weights is None else self.weights(entropies)
        if not self.cfg.ordinal_weight:
            return total, detached(entropies)
        distances = {
            f"{name}_distance": earth_mover_distance(
                attribute_log_probs[name], targets[name], [int(value) for value in self.dive_set.values[name]]
            )
            for name in COUNTS
        }
        total = total + self.cfg.ordinal_weight * torch.stack(list(distances.values())).sum()
        return total, detached(entropies | distances)

    def _slots_of(self, dive_set: DiveSet | None) -> Tensor:
        if dive_set is None or dive_set == self.dive_set:
            return self.slots
        return slot_table(dive_set, self.dive_set.values).to(self.slots.device)


class ConstrainedHeads(AttributeHeads):
    """Constrained: trained as four independent heads, decoded by the best dive that exists."""

    def decode(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        return decode(self.dive_log_probs(features, dive_set))


class JointHeads(ConstrainedHeads):
    """Joint: trained on the likelihood normalised over the dives that exist, the four cross-entropies beside it.

    The joint term alone leaves open how probable a value is where no dive of the set contrasts it with another; the
    cross-entropies tie it down, so that each head answers its own question. The number itself is named better without
    them (`auxiliary_weight=0`), of dives that were never seen too: docs/RESULTS.md.
    """

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-log p(dive | clip) over the set, plus `auxiliary_weight` times what the independent heads are trained on.

        Both are likelihoods of the same dive in nats; the first is the second plus the log of the probability that
        the independent heads leave on the set as a whole.
        """
        auxiliary, terms = self._attribute_loss(self.attribute_log_probs(features), labels)
        scores = self.adjusted(self.scores(features))
        joint = F.cross_entropy(scores, labels, label_smoothing=self.cfg.label_smoothing)
        return joint + self.cfg.auxiliary_weight * auxiliary, detached({"joint": joint}) | terms
