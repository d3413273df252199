"""Holding whole sources out for validation.

Clips of one source share its venue, camera and light. A validation split that divides a source is answered by
recognising the source, and promises far more than the test will keep.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diveparse.datasets.diving48 import ClipRecord

NUM_STARTS = 64


def split_by_source(
    records: Sequence[ClipRecord], val_fraction: float, seed: int
) -> tuple[list[ClipRecord], list[ClipRecord]]:
    """Divide clips into (training, validation) with no source on both sides, each side in the order of `records`.

    Of the sets of sources found, validation gets the one whose clips per class come nearest to `val_fraction` of each
    class, and that takes no class away from training: from random starts, the one source whose change of side helps
    most changes side until none helps.
    Raises: ValueError if there are fewer than two sources, or val_fraction is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    sources = sorted({record.source for record in records})
    if len(sources) < 2:
        raise ValueError(f"expected clips of two sources or more to hold one out, got {len(sources)}")
    rows = {source: row for row, source in enumerate(sources)}
    counts = np.zeros((len(sources), 1 + max(record.label for record in records)), np.int64)  # (sources, classes)
    for record in records:
        counts[rows[record.source], record.label] += 1

    rng = np.random.default_rng(seed)
    tried = [_improve(rng.random(len(sources)) < val_fraction, counts, val_fraction) for _ in range(NUM_STARTS)]
    in_val, _ = min(tried, key=lambda result: result[1])
    train = [record for record in records if not in_val[rows[record.source]]]
    val = [record for record in records if in_val[rows[record.source]]]
    return train, val


def _improve(
    in_val: NDArray[np.bool_], counts: NDArray[np.int64], val_fraction: float
) -> tuple[NDArray[np.bool_], float]:
    """Move one source at a time, always the one that helps most. counts: (sources, classes). Returns: set and cost."""
    total, val_counts = counts.sum(0), counts[in_val].sum(0)
    cost = _cost(val_counts[None], total, val_fraction)[0]
    while True:
        moved = val_counts + np.where(in_val[:, None], -counts, counts)  # (sources, classes), each source moved alone
        costs = _cost(moved, total, val_fraction)
        best = costs.argmin()
        if not costs[best] < cost:
            return in_val, cost
        in_val[best] ^= True
        val_counts, cost = moved[best], costs[best]


def _cost(val_counts: NDArray[np.int64], total: NDArray[np.int64], val_fraction: float) -> NDArray[np.float64]:
    """How far from the wanted counts. val_counts: (choices, classes), total: (classes,). Returns: (choices,)."""
    cost = np.abs(val_counts - val_fraction * total).sum(-1) / total.sum()
    cost += ((val_counts == total) & (total > 0)).sum(-1)  # a class that training never sees outweighs any imbalance
    cost[(val_counts.sum(-1) == 0) | (val_counts.sum(-1) == total.sum())] = np.inf
    return cost
