"""Four heads, one for each attribute of a dive, and three ways to make one dive number of their answers.

Each class is the one before it with one thing changed: what is decoded, then what is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.heads.head import Head, Readout
from diveparse.heads.recombine import decode, named_labels, normalise, score, slot_table


class AttributeHeads(Head):
    """Independent: four cross-entropies, four argmaxes. May name a dive that does not exist."""

    slots: Tensor

    def __init__(self, embed_dim: int, dive_set: DiveSet) -> None:
        super().__init__(dive_set)
        self.linears = nn.ModuleDict({name: Readout(embed_dim, len(dive_set.values[name])) for name in ATTRIBUTES})
        self.register_buffer("slots", slot_table(dive_set), persistent=False)  # derived from the set, so not saved

    def attribute_log_probs(self, features: Tensor) -> dict[str, Tensor]:
        return {name: linear(features).log_softmax(-1) for name, linear in self.linears.items()}

    def dive_log_probs(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """As `Head.dive_log_probs`; another set may hold any dive whose four values occur in the head's own set."""
        return normalise(score(self.attribute_log_probs(features), self._slots_of(dive_set)))

    def named_labels(self, features: Tensor) -> Tensor:
        return named_labels(self.attribute_log_probs(features), self.slots)

    def decode(self, features: Tensor) -> Tensor:
        """The four best values and nothing else. Returns: (batch,) labels, -1 where they spell no dive of the set."""
        return self.named_labels(features)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of four cross-entropies: -log p(dive | clip) if the attributes were independent."""
        terms = self._cross_entropies(self.attribute_log_probs(features), labels)
        return torch.stack(list(terms.values())).sum(), _detached(terms)

    def _cross_entropies(self, attribute_log_probs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        return {
            # log-probabilities are logits that are normalised already
            name: F.cross_entropy(attribute_log_probs[name], row[labels])
            for name, row in zip(ATTRIBUTES, self.slots, strict=True)
        }

    def _slots_of(self, dive_set: DiveSet | None) -> Tensor:
        if dive_set is None or dive_set == self.dive_set:
            return self.slots
        return slot_table(dive_set, self.dive_set.values).to(self.slots.device)


class ConstrainedHeads(AttributeHeads):
    """Constrained: trained as four independent heads, decoded by the best dive that exists."""

    def decode(self, features: Tensor) -> Tensor:
        return decode(self.dive_log_probs(features))


class JointHeads(ConstrainedHeads):
    """Joint: trained on the likelihood normalised over the dives that exist, the four cross-entropies beside it.

    The joint term alone leaves open how probable a value is where no dive of the set contrasts it with another; the
    cross-entropies tie it down, so that the heads can be read out over dives that were never seen.
    """

    def __init__(self, embed_dim: int, dive_set: DiveSet, *, auxiliary_weight: float = 1.0) -> None:
        super().__init__(embed_dim, dive_set)
        self.auxiliary_weight = auxiliary_weight

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-log p(dive | clip) over the set, plus `auxiliary_weight` times the sum of the four cross-entropies.

        Both are likelihoods of the same dive in nats; the first is the second plus the log of the probability that
        the independent heads leave on the set as a whole.
        """
        attribute_log_probs = self.attribute_log_probs(features)
        terms = self._cross_entropies(attribute_log_probs, labels)
        auxiliary = torch.stack(list(terms.values())).sum()
        scores = score(attribute_log_probs, self.slots)
        joint = F.cross_entropy(scores, labels)
        return joint + self.auxiliary_weight * auxiliary, _detached({"joint": joint} | terms)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}
