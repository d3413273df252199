"""What every head answers, so that a comparison between heads can ask them all the same question."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from diveparse.datasets.dives import DiveSet
from diveparse.heads.recombine import decode


class Head(nn.Module, ABC):
    """Turns a clip's features (batch, embed_dim) into log-probabilities of dives.

    A new head subclasses this, fills in the four abstract methods, and gets a kind in `configs/schema.py` and a line in
    `build_head`; nothing else needs to know about it.
    """

    def __init__(self, dive_set: DiveSet) -> None:
        super().__init__()
        self.dive_set = dive_set  # labels are labels of this set

    @abstractmethod
    def dive_log_probs(self, features: Tensor, dive_set: DiveSet | None = None) -> Tensor:
        """log p(dive | clip) over a set of dives, by default the head's own.

        Returns: (batch, num_dives); each row's exp sums to 1.
        Raises: ValueError naming a dive of `dive_set` that this head cannot express.
        """

    @abstractmethod
    def attribute_log_probs(self, features: Tensor) -> dict[str, Tensor]:
        """log p(value | clip) for each attribute. Returns: {name: (batch, num_values)}, values as `dive_set.values`."""

    @abstractmethod
    def named_labels(self, features: Tensor) -> Tensor:
        """What the head names before anything knows which dives exist. Returns: (batch,), -1 where no such dive."""

    @abstractmethod
    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, in nats and averaged over the clips, and its terms by name, detached, to be logged.

        labels: (batch,) labels of `dive_set`.
        """

    def decode(self, features: Tensor) -> Tensor:
        """The head's answer: the most probable dive. Returns: (batch,) labels of `dive_set`."""
        return decode(self.dive_log_probs(features))


class Readout(nn.Linear):
    """The linear layer from features to logits; it starts small, so that a new head favours no answer."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
