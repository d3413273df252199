"""Which clips train, validate and test. Validation holds out whole sources.

Clips of one source share its venue, camera and light. With a source on both sides of the split, a model that recognises
the source scores well in validation, and far worse on the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from diveparse.configs import DataConfig, LabelNoise
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DIVE_SETS, Dive, DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.storage.seeding import stream

NUM_STARTS = 64  # random sets of sources that the search for a validation split begins with
NOISE = 3  # what a random stream is for, beside those of clip_dataset.py and feature_cache.py


def training_clips(data: DataConfig, seed: int) -> tuple[list[ClipRecord], list[ClipRecord], DiveSet]:
    """(training clips, validation clips, the dives that their labels count in).

    The validation clips are those that the data set names, else whole sources of the training clips. Training gets the
    share `data.train_fraction` of its clips, and of each of `data.unseen_dives` at most `data.num_shots` clips.
    Validation gets no clip of an unseen dive. With `data.num_shots=0` the unseen dives are left out of the dive set.
    Last, the share `data.label_noise` of the training clips gets a wrong label; validation keeps the right ones.
    Raises: ValueError if the data cannot be read, there are no training clips, or an unseen dive has an attribute value
    that no training clip of another dive has.
    """
    train, val, dive_set = _clean_training_clips(data, seed)
    return with_label_noise(train, dive_set, data.label_noise, data.label_noise_kind, seed), val, dive_set


def with_label_noise(
    records: Sequence[ClipRecord], dive_set: DiveSet, share: float, kind: LabelNoise, seed: int
) -> list[ClipRecord]:
    """The clips, of which about `share` have the label of another dive that also has clips among them.

    Each clip's draw depends on the seed and its name alone, so a smaller share is part of every larger one.
    """
    present = sorted({record.label for record in records})
    values = {label: dive_set[label].attribute_values() for label in present}
    noisy = []
    for record in records:
        rng = stream(seed, NOISE, crc32(record.name.encode()))
        others = [label for label in present if label != record.label]
        if rng.random() < share and others:
            if kind is LabelNoise.NEIGHBOUR:
                own = values[record.label].items()
                in_common = {label: len(own & values[label].items()) for label in others}
                others = [label for label in others if in_common[label] == max(in_common.values())]
            noisy.append(replace(record, label=int(rng.choice(others))))
        else:
            noisy.append(record)
    return noisy


def _clean_training_clips(data: DataConfig, seed: int) -> tuple[list[ClipRecord], list[ClipRecord], DiveSet]:
    train, val, dive_set = _whole_training_clips(data, seed)
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = set(order[: max(1, round(data.train_fraction * len(train)))].tolist())
    if not data.unseen_dives:
        return [record for row, record in enumerate(train) if row in chosen], val, dive_set
    seen = without_dives(dive_set, data.unseen_dives)
    unseen = set(range(len(dive_set))) - {dive_set.label_of(dive) for dive in seen}
    for label in unseen:
        rows = [row for row in order.tolist() if train[row].label == label]
        chosen -= set(rows[data.num_shots :])
    train = [record for row, record in enumerate(train) if row in chosen]
    _require_values_shown([dive_set[label] for label in sorted(unseen)], train, dive_set, unseen)
    val = [record for record in val if record.label not in unseen]
    if data.num_shots:
        return train, val, dive_set
    new_labels = {label: seen.label_of(dive) for label, dive in enumerate(dive_set) if label not in unseen}
    relabelled = [
        [replace(record, label=new_labels[record.label]) for record in records if record.label not in unseen]
        for records in (train, val)
    ]
    return relabelled[0], relabelled[1], seen


def _require_values_shown(
    dives: Sequence[Dive], train: Sequence[ClipRecord], dive_set: DiveSet, unseen: set[int]
) -> None:
    """Raises: ValueError naming a value of these dives that no training clip outside the labels `unseen` has."""
    others = [dive_set[label].attribute_values() for label in {record.label for record in train} - unseen]
    for dive in dives:
        for attribute, value in dive.attribute_values().items():
            if value not in {values[attribute] for values in others}:
                has = f"{dive.number} has the {attribute} {value!r}"
                raise ValueError(
                    f"data.unseen_dives: {has}, which no training clip of another dive shows; leave {dive.number} out"
                )


def without_dives(dive_set: DiveSet, numbers: Sequence[str]) -> DiveSet:
    """The set without some dives, which a model can then name only through their attribute values.

    Raises: ValueError naming a number that is not in the set, or a dive with a value that no remaining dive has.
    """
    unseen = DiveSet.from_numbers(numbers, "data.unseen_dives")
    for dive in unseen:
        dive_set.label_of(dive)  # raises if the dive is not in the set
    seen = DiveSet(tuple(dive for dive in dive_set if dive not in unseen), f"{dive_set.name} without {len(unseen)}")
    for dive in unseen:
        for attribute, value in dive.attribute_values().items():
            if value not in seen.values[attribute]:
                has = f"{dive.number} has the {attribute} {value!r}"
                raise ValueError(f"data.unseen_dives: {has}, which no dive that is left has; leave {dive.number} out")
    return seen


def scored_dives(data: DataConfig, dive_set: DiveSet) -> DiveSet:
    """The dives that a model of `dive_set` is tested on.

    Those of `data.dives` where it names a list, whatever the model was trained on; else the model's own, then the
    unseen ones, or those of a data set whose dives are fixed.
    """
    if data.dives:
        return DIVE_SETS[data.dives]
    if not data.unseen_dives:
        return dive_set
    missing = [number for number in data.unseen_dives if number not in dive_set.numbers]
    wanted = DiveSet.from_numbers([*dive_set.numbers, *missing], dive_set.name)
    return open_data_set(data, wanted).dive_set


def expected_dives(data: DataConfig) -> set[str]:
    """The numbers of the dives that clips to come may show, whether or not training has a clip of them.

    A CSV's own dives are all shown by its clips. In a fixed list, such as Diving48's, there may be a dive that no clip
    shows: it counts where a clip of another split than "test" shows it, or `data.unseen_dives` names it.
    """
    data_set = open_data_set(data)
    if data_set.dive_set not in DIVE_SETS.values():
        return set(data_set.dive_set.numbers)
    records = [record for split in data_set.splits if split != "test" for record in data_set.records(split)]
    return {data_set.dive_set[record.label].number for record in records} | set(data.unseen_dives)


def _whole_training_clips(data: DataConfig, seed: int) -> tuple[list[ClipRecord], list[ClipRecord], DiveSet]:
    data_set = open_data_set(data)
    train = data_set.records("train")
    if "val" not in data_set.splits:
        return *split_by_source(train, data.val_fraction, seed), data_set.dive_set
    val = data_set.records("val")
    shared = sorted({record.source for record in train} & {record.source for record in val})
    if shared:
        listed = ", ".join(shared[:10])
        raise ValueError(f"{data_set.name}: sources must not be in both train and val, got {listed}; move their clips")
    return train, val, data_set.dive_set


def evaluation_clips(data: DataConfig, split: str, seed: int, dive_set: DiveSet) -> list[ClipRecord]:
    """The clips of "val" or "test", with labels that count in `dive_set`, the dives that a model is scored on.

    Raises: ValueError if the data cannot be read, have no such clips, or show dives that are not in the set.
    """
    data_set = open_data_set(data, dive_set)
    if data_set.dive_set != dive_set:
        raise ValueError(
            f"{data_set.name} is labelled in the dives of {data_set.dive_set.name}, but the model in {dive_set.name}; "
            "evaluate it on a data set whose labels are its own dives"
        )
    if split != "val" or "val" in data_set.splits or "train" not in data_set.splits:
        return data_set.records(split)
    # divided with the labels of training, because their order decides ties
    own = open_data_set(data)
    names = {record.name for record in split_by_source(own.records("train"), data.val_fraction, seed)[1]}
    return [record for record in data_set.records("train") if record.name in names]


def split_by_source(
    records: Sequence[ClipRecord], val_fraction: float, seed: int
) -> tuple[list[ClipRecord], list[ClipRecord]]:
    """Divide clips into (training, validation) with no source on both sides, each side in the order of `records`.

    Validation should get `val_fraction` of each class, and training at least one clip of each class. A greedy search
    runs from NUM_STARTS random sets of validation sources: in each step, the source whose change of side lowers the
    cost most changes side, until no change lowers it. The set with the lowest cost is used.
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
    """Greedy search from one set of sources. in_val: (sources,), counts: (sources, classes). Returns: set and cost."""
    total, val_counts = counts.sum(0), counts[in_val].sum(0)
    cost = _cost(val_counts[None], total, val_fraction)[0]
    while True:
        moved = val_counts + np.where(in_val[:, None], -counts, counts)  # (sources, classes), each after one move
        costs = _cost(moved, total, val_fraction)
        best = costs.argmin()
        if not costs[best] < cost:
            return in_val, cost
        in_val[best] ^= True
        val_counts, cost = moved[best], costs[best]


def _cost(val_counts: NDArray[np.int64], total: NDArray[np.int64], val_fraction: float) -> NDArray[np.float64]:
    """The distance from the wanted counts. val_counts: (choices, classes), total: (classes,). Returns: (choices,)."""
    cost = np.abs(val_counts - val_fraction * total).sum(-1) / total.sum()
    cost += ((val_counts == total) & (total > 0)).sum(-1)  # losing a class outweighs any imbalance
    cost[(val_counts.sum(-1) == 0) | (val_counts.sum(-1) == total.sum())] = np.inf
    return cost
