"""The answer of a head: a distribution over dives, computed once, of which every question is a function.

The shape is that of torch-struct's distributions: `log_probs`, `marginals`, `argmax` and `entropy` of one object.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from diveparse.datasets.dives import ATTRIBUTES, Dive, DiveSet
from diveparse.heads.recombine import decode, marginals, normalise, score, slot_table, spelt_labels

PAIRS = tuple(combinations(range(len(ATTRIBUTES)), 2))  # of attributes, as places in ATTRIBUTES


@dataclass(frozen=True, eq=False)  # tensors have no single truth
class DiveScores:
    """A log-linear distribution over dives for each clip of a batch.

    A dive scores the sum of three parts, of which a head has one or more: a score for each of its four attribute
    values, a score for each pair of its values, and a term of the dive's own. A softmax over a set of dives makes
    probabilities of the scores. The set is the head's own, or any other whose dives the head can express: with value
    scores, every dive whose four values the head has; without them, the head's own dives alone.

    values: for each attribute log-probabilities of its values by themselves, (batch, num_values).
    pairs: one of each of PAIRS, (batch, values of the first * values of the second).
    dives: (batch, num_dives). In another set, a dive without such a term gets 0.
    penalty: what is subtracted from the score of each dive of `penalised_dives`, whatever the set, in nats.
    """

    dive_set: DiveSet
    slots: Tensor  # (num_attributes, num_dives), `slot_table` of the set
    values: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: tuple[Tensor, ...] = ()
    dives: Tensor | None = None
    penalty: float = 0.0
    penalised_dives: frozenset[Dive] = frozenset()

    def scores(self, dive_set: DiveSet | None = None) -> Tensor:
        """Scores before the softmax. Returns: (batch, num_dives).

        Raises: ValueError naming a dive of `dive_set` that the head cannot express.
        """
        total = self._sum_of_parts(dive_set)
        if not self.penalty:
            return total
        is_penalised = [dive in self.penalised_dives for dive in dive_set or self.dive_set]
        return total - self.penalty * torch.tensor(is_penalised, dtype=total.dtype, device=total.device)

    def _sum_of_parts(self, dive_set: DiveSet | None) -> Tensor:
        if not self.values:
            return self._dive_terms(dive_set)
        slots = self._slots_of(dive_set)
        total = score(self.values, slots)
        if self.pairs:
            total = total + self._pair_terms(slots)
        return total if self.dives is None else total + self._dive_terms(dive_set)

    def log_probs(self, dive_set: DiveSet | None = None) -> Tensor:
        """log p(dive | clip) over a set of dives. Returns: (batch, num_dives); each row's exp sums to 1.

        Raises: ValueError naming a dive of `dive_set` that the head cannot express.
        """
        return normalise(self.scores(dive_set))

    def marginals(self, dive_set: DiveSet | None = None) -> dict[str, Tensor]:
        """log p(value | clip): the probabilities of the dives that take the value, summed.

        Returns: for each attribute (batch, num_values), values in the order of `dive_set.values`.
        """
        other = self._other(dive_set)
        slots = self.slots if other is None else slot_table(other).to(self.slots.device)
        return marginals(self.log_probs(other), slots, (other or self.dive_set).values)

    def argmax(self, dive_set: DiveSet | None = None) -> Tensor:
        """The head's answer: the most probable dive. Returns: (batch,) labels of the set."""
        return decode(self.scores(dive_set))

    def spelt(self, dive_set: DiveSet | None = None) -> Tensor:
        """The dive that the best value of each attribute spells, each attribute by itself.

        Returns: (batch,) labels of the set, INVALID where it holds no such dive. Without value scores, the argmax.
        """
        return spelt_labels(self.values, self._slots_of(dive_set)) if self.values else self.argmax(dive_set)

    def own_log_probs(self) -> dict[str, Tensor]:
        """log p(value | clip) of each attribute head by itself, whatever dives there are; without any, the marginals.

        Returns: for each attribute (batch, num_values), values in the order of the head's `dive_set.values`.
        """
        return dict(self.values) if self.values else self.marginals()

    def entropy(self, dive_set: DiveSet | None = None) -> Tensor:
        """Entropy of the distribution over dives. Returns: (batch,) nats."""
        return torch.special.entr(self.log_probs(dive_set).exp()).sum(-1)

    def corrections(self) -> Tensor:
        """What pairs and the dives' own terms add to the scores of the values. Returns: (batch, num_dives)."""
        terms = ([self._pair_terms(self.slots)] if self.pairs else []) + ([] if self.dives is None else [self.dives])
        return torch.stack(terms).sum(0) if terms else torch.zeros_like(self.scores())

    def tempered(self, temperature: float) -> DiveScores:
        """The distribution with every score divided by `temperature`: above 1 it is less sure, below 1 surer."""
        divided = partial(torch.div, other=temperature)
        return replace(
            self,
            values={name: divided(each).log_softmax(-1) for name, each in self.values.items()},
            pairs=tuple(map(divided, self.pairs)),
            dives=None if self.dives is None else divided(self.dives),
            penalty=self.penalty / temperature,
        )

    def penalised(self, penalty: float, dives: Collection[Dive]) -> DiveScores:
        """The distribution with `penalty`, in nats, subtracted from the score of each of these dives in every set."""
        return replace(self, penalty=penalty, penalised_dives=frozenset(dives))

    def _pair_terms(self, slots: Tensor) -> Tensor:
        """The sum of each dive's six pairs. Returns: (batch, num_dives)."""
        taken = []
        for (a, b), pair in zip(PAIRS, self.pairs, strict=True):
            num_values = len(self.dive_set.values[ATTRIBUTES[b]])
            taken.append(pair[:, slots[a] * num_values + slots[b]])
        return torch.stack(taken).sum(0)

    def _dive_terms(self, dive_set: DiveSet | None) -> Tensor:
        assert self.dives is not None
        other = self._other(dive_set)
        if other is None:
            return self.dives
        missing = [dive.number for dive in other if dive not in self.dive_set]
        if missing and not self.values:
            raise ValueError(
                f"a flat head answers only with its own {len(self.dive_set)} dives of {self.dive_set.name}; "
                f"{len(missing)} of {other.name} are not among them: {', '.join(missing[:10])}"
                f"{', …' if len(missing) > 10 else ''}; use a structured model"
            )
        padded = torch.cat([self.dives, self.dives.new_zeros(len(self.dives), 1)], dim=1)  # the last column is 0
        return padded[:, [self.dive_set.label_of(dive) if dive in self.dive_set else -1 for dive in other]]

    def _slots_of(self, dive_set: DiveSet | None) -> Tensor:
        other = self._other(dive_set)
        return self.slots if other is None else slot_table(other, self.dive_set.values).to(self.slots.device)

    def _other(self, dive_set: DiveSet | None) -> DiveSet | None:
        """None where the set is the head's own."""
        return None if dive_set == self.dive_set else dive_set


@dataclass(frozen=True, eq=False)
class IndependentScores(DiveScores):
    """Four answers, each by itself, with no regard to which dives exist."""

    def marginals(self, dive_set: DiveSet | None = None) -> dict[str, Tensor]:
        """log p(value | clip) of each attribute head by itself, for the values of the set."""
        own, other = self.own_log_probs(), self._other(dive_set)
        if other is None:
            return own
        places = {name: [self.dive_set.values[name].index(v) for v in other.values[name]] for name in ATTRIBUTES}
        return {name: own[name][:, places[name]] for name in ATTRIBUTES}

    def argmax(self, dive_set: DiveSet | None = None) -> Tensor:
        """The four best values and nothing else. Returns: (batch,) labels, INVALID where they spell no dive."""
        return self.spelt(dive_set)
