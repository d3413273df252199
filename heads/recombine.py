"""From four answers to one dive, and back: score, normalise, decode, marginalise; in log space, without parameters.

The four attribute heads each give log-probabilities over their own values. Each dive of a set takes one value from each
of them, and a table of slots holds which; the score of a dive is the sum of what it takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from diveparse.datasets.dives import ATTRIBUTES, DiveSet, Values

INVALID = -1  # in place of a label: four values that make no dive of the set


def slot_table(dive_set: DiveSet, values: Values | None = None) -> Tensor:
    """Which value each dive takes from each attribute.

    values: those of the heads, where they were made for another set of dives.
    Returns: (num_attributes, num_dives) int64, rows in the order of ATTRIBUTES.
    Raises: ValueError naming the dive if one needs a value that the heads do not have.
    """
    slots = dive_set.slots(values)
    return torch.tensor([slots[attribute] for attribute in ATTRIBUTES])


def score(value_log_probs: Mapping[str, Tensor], slots: Tensor) -> Tensor:
    """log p(dive | clip) if the attributes were independent and every combination a dive.

    value_log_probs[name]: (batch, num_values); slots: (num_attributes, num_dives).
    Returns: (batch, num_dives); a row's exp sums to the share of probability that lies on dives of the set.
    """
    taken = [value_log_probs[name][:, row] for name, row in zip(ATTRIBUTES, slots, strict=True)]
    return torch.stack(taken).sum(0)


def normalise(scores: Tensor) -> Tensor:
    """Log-probabilities over the dives scored and no others. scores, result: (batch, num_dives)."""
    return scores.log_softmax(-1)  # score minus logsumexp, rounded better where scores are far from zero


def decode(scores: Tensor) -> Tensor:
    """The best dive's label. scores: (batch, num_dives), normalised or not. Returns: (batch,)."""
    return scores.argmax(-1)


def spelt_labels(value_log_probs: Mapping[str, Tensor], slots: Tensor) -> Tensor:
    """The dive that the best value of every attribute spells, whether or not there is one.

    Returns: (batch,), INVALID where no dive of the set takes these four values.
    """
    best = torch.stack([value_log_probs[name].argmax(-1) for name in ATTRIBUTES])  # (num_attributes, batch)
    spelt = (best[:, :, None] == slots[:, None, :]).all(0)  # (batch, num_dives), at most one true in a row
    return torch.where(spelt.any(-1), spelt.int().argmax(-1), INVALID)


def marginals(dive_log_probs: Tensor, slots: Tensor, values: Values) -> dict[str, Tensor]:
    """log p(value | clip): the logsumexp over the dives that take the value, as in a conditional random field.

    dive_log_probs: (batch, num_dives); slots: (num_attributes, num_dives), into `values`, each of which must be taken
    by some dive.
    Returns: for each attribute (batch, num_values).
    """
    sizes = [len(values[attribute]) for attribute in ATTRIBUTES]  # not of the slots: on a GPU a read waits for it
    takes = torch.cat([F.one_hot(row, size).T for row, size in zip(slots, sizes, strict=True)])  # (all values, dives)
    each = dive_log_probs[:, None].masked_fill(takes == 0, -torch.inf).logsumexp(-1)  # (batch, all values)
    return dict(zip(ATTRIBUTES, each.split(sizes, dim=-1), strict=True))
