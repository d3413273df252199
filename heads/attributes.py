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
from diveparse.heads.losses import UncertaintyWeighting, attribute_targets, earth_mover_distance
from diveparse.heads.recombine import marginals
from diveparse.heads.scores import DiveScores, IndependentScores


class AttributeHeads(Head):
    """Independent: four cross-entropies, four argmaxes. May name a dive that does not exist."""

    num_queries = len(ATTRIBUTES)

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__(embed_dim, dive_set, cfg)
        self.linears = nn.ModuleDict({name: Readout(embed_dim, len(dive_set.values[name])) for name in ATTRIBUTES})
        self.weights = UncertaintyWeighting(ATTRIBUTES) if cfg.uncertainty_weighting else None

    def forward(self, features: Tensor) -> DiveScores:
        return IndependentScores(self.dive_set, self.slots, self.value_log_probs(features))

    def value_log_probs(self, features: Tensor) -> dict[str, Tensor]:
        """The softmax of each attribute by itself. Returns: {attribute: (batch, num_values)}."""
        own = [features] * len(ATTRIBUTES) if features.ndim == 2 else features.unbind(dim=1)
        return {name: self.normalised(self.linears[name](own[k])) for k, name in enumerate(ATTRIBUTES)}

    def normalised(self, logits: Tensor) -> Tensor:
        """The log-softmax of one attribute's logits. logits, result: (batch, num_values)."""
        return logits.log_softmax(-1)

    def expressible(self, dive_set: DiveSet) -> DiveSet:
        return dive_set.expressible(self.dive_set.values)

    def loss(self, scores: DiveScores, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of four cross-entropies: -log p(dive | clip), normalised over all products of values."""
        return self.attribute_loss(scores, targets)

    def attribute_loss(self, scores: DiveScores, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The four cross-entropies, summed or by uncertainty weighting, plus the distance of the counts; and the terms.

        Log-probabilities are logits that are normalised already.
        """
        own_targets = attribute_targets(targets, self.slots)
        logits = dict(scores.values)
        if adjustment := self.cfg.logit_adjustment:  # the prior of an attribute is its own
            priors = self.value_log_priors()
            logits = {name: each + adjustment * priors[name] for name, each in logits.items()}
        entropies = {
            name: F.cross_entropy(logits[name], own_targets[name], label_smoothing=self.cfg.label_smoothing)
            for name in ATTRIBUTES
        }
        total = torch.stack(list(entropies.values())).sum() if self.weights is None else self.weights(entropies)
        if not self.cfg.ordinal_weight:
            return total, detached(entropies)
        distances = self.count_distances(scores, own_targets)
        total = total + self.cfg.ordinal_weight * torch.stack(list(distances.values())).sum()
        return total, detached(entropies | distances)

    def value_log_priors(self) -> dict[str, Tensor]:
        """log p(value) from the training clips. Returns: {attribute: (1, num_values)}."""
        return marginals(self.log_prior.unsqueeze(0), self.slots, self.dive_set.values)

    def count_distances(self, scores: DiveScores, own_targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The earth mover's distance of somersault and twist from the truth, by the name of the term."""
        return {
            f"{name}_distance": earth_mover_distance(
                scores.values[name], own_targets[name], [int(value) for value in self.dive_set.values[name]]
            )
            for name in COUNTS
        }


class ConstrainedHeads(AttributeHeads):
    """Constrained: trained as four independent heads, decoded by the best dive that exists."""

    def forward(self, features: Tensor) -> DiveScores:
        return DiveScores(self.dive_set, self.slots, self.value_log_probs(features))


class JointHeads(ConstrainedHeads):
    """Joint: trained on the likelihood normalised over the dives that exist; the default structured arm.

    The likelihood leaves open how probable a value is where no dive of the set contrasts it with another, so that the
    heads' own softmaxes mean little; the marginals are the answer about an attribute. With `auxiliary_weight`, four
    cross-entropies beside the likelihood tie the heads' own answers down. docs/RESULTS.md compares both.
    """

    def normalised(self, logits: Tensor) -> Tensor:
        """The same; without cross-entropies of the attributes no gradient goes through the normaliser.

        It cancels in the likelihood. Rounding would leave a trace of it in the gradient of values that no training clip
        shows, and Adam would scale that up to whole steps.
        """
        if self.cfg.auxiliary_weight:
            return super().normalised(logits)
        return logits - logits.detach().logsumexp(-1, keepdim=True)

    def loss(self, scores: DiveScores, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-log p(dive | clip) over the dives with training clips, plus `auxiliary_weight` times what the independent
        heads are trained on."""
        joint = self.likelihood_loss(scores, targets)
        if not self.cfg.auxiliary_weight:
            return joint, detached({"joint": joint})
        auxiliary, terms = self.attribute_loss(scores, targets)
        return joint + self.cfg.auxiliary_weight * auxiliary, detached({"joint": joint}) | terms
