"""The interface of every head, so that all heads are compared on the same quantities."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diveparse.configs import HeadConfig
from diveparse.datasets.dives import DiveSet
from diveparse.heads.losses import class_log_prior
from diveparse.heads.recombine import INVALID, slot_table
from diveparse.heads.scores import DiveScores


class Head(nn.Module, ABC):
    """Turns a clip's features into a distribution over dives: `scores = head(features)`.

    A head with several queries, `num_queries` of them, may be given a feature for each; see `heads/pooling.py`.
    A new head subclasses this, fills in the three abstract methods, and gets a kind in `configs/schema.py` and a line
    in `build_head`.
    """

    num_queries = 1
    slots: Tensor
    log_prior: Tensor
    trained_labels: Tensor
    trained_places: Tensor

    def __init__(self, embed_dim: int, dive_set: DiveSet, cfg: HeadConfig) -> None:
        super().__init__()
        self.dive_set = dive_set  # labels are labels of this set
        self.cfg = cfg
        # which value each dive takes from each attribute; derived from the set, so not saved
        self.register_buffer("slots", slot_table(dive_set), persistent=False)
        self.num_train_clips: list[int] | None = None  # of each dive, once it is known
        # what follows from it; see `set_class_counts`
        self.register_buffer("log_prior", torch.zeros(len(dive_set)), persistent=False)
        self.register_buffer("trained_labels", torch.arange(len(dive_set)), persistent=False)
        self.register_buffer("trained_places", torch.arange(len(dive_set)), persistent=False)

    def set_class_counts(self, num_clips: Tensor) -> None:
        """Take in the number of training clips of each dive, (num_dives,): for the prior of `logit_adjustment`, and for
        the dives that the likelihood is normalised over in training.

        Raises: ValueError if no dive has a clip.
        """
        is_trained = num_clips > 0
        if not is_trained.any():
            raise ValueError(f"no dive of {self.dive_set.name} has a training clip")
        device = self.slots.device
        self.num_train_clips = num_clips.tolist()
        self.log_prior = class_log_prior(num_clips).to(device)
        self.trained_labels = is_trained.nonzero().squeeze(1).to(device)
        self.trained_places = (is_trained.cumsum(0) - 1).masked_fill(~is_trained, INVALID).to(device)

    def likelihood_loss(self, scores: DiveScores, targets: Tensor) -> Tensor:
        """-log p(dive | clip), normalised over the dives that have training clips, averaged over the clips.

        A dive without one would only ever be pushed down, and could then hardly be named in a test, which offers it.
        targets: as for `loss`, of dives that have training clips.
        """
        logits = self.adjusted(scores.scores())
        if len(self.trained_labels) < len(self.dive_set):
            logits = logits[:, self.trained_labels]
            targets = self.trained_places[targets] if targets.ndim == 1 else targets[:, self.trained_labels]
        return F.cross_entropy(logits, targets, label_smoothing=self.cfg.label_smoothing)

    def adjusted(self, scores: Tensor) -> Tensor:
        """Scores of the head's dives as training sees them: a frequent dive has a head start that it need not learn.

        Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10.
        """
        return scores + self.cfg.logit_adjustment * self.log_prior

    @abstractmethod
    def forward(self, features: Tensor) -> DiveScores:
        """Every layer runs once. features: (batch, embed_dim) or (batch, num_queries, embed_dim)."""

    @abstractmethod
    def loss(self, scores: DiveScores, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, in nats and averaged over the clips, and its terms by name, detached, to be logged.

        targets: (batch,) labels of `dive_set`, or (batch, num_dives) probabilities, as of clips that were mixed.
        """

    @abstractmethod
    def expressible(self, dive_set: DiveSet) -> DiveSet:
        """The dives of a set that the head can answer with. Raises: ValueError if there is none."""


class Readout(nn.Linear):
    """The linear layer from features to logits; it starts small, so that a new head favours no answer."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class Correction(nn.Linear):
    """A linear layer that adds to logits; it starts at zero, so that a new head is the simpler one that it extends."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}
