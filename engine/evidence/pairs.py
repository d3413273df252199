"""Two arms, paired clip by clip and seed by seed: their differences on all clips and on groups of dives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from diveparse.engine.evaluation.metrics import GROUPS, group_of
from diveparse.engine.evidence.arms import differing_values
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.statistics import Estimate, FixedWeights, compare_weights
from diveparse.engine.evidence.trainings import (
    Gains,
    Spread,
    pooled_spread,
    trainings_needed,
    two_way_bootstrap,
)
from diveparse.engine.evidence.verdicts import NLL, TOP1, Judged, judge

EVERY_CLIP, HELD_OUT = "all", "held out"  # beside the groups of dives


@dataclass(frozen=True)
class Effect:
    """The difference between two arms in one quantity, over some clips."""

    quantity: str  # TOP1 or NLL
    group: str  # EVERY_CLIP, HELD_OUT, or the name of one of GROUPS: dives with so many training clips
    num_classes: int
    gains: Gains
    spread: Spread  # over trainings: of this pair, or under MIN_TRAININGS of all pairs of the report
    judged: Judged  # corrected for all comparisons of this quantity and group in the report

    @property
    def num_clips(self) -> int:
        return int(self.gains.num_clips.sum())

    @property
    def num_higher(self) -> int:
        """Trainings in which the second arm has more."""
        return int((self.gains.by_training > 0).sum())

    @cached_property
    def resampled(self) -> Estimate | None:
        """The difference with the interval of `two_way_bootstrap`."""
        return two_way_bootstrap(self.gains)

    @cached_property
    def still_needed(self) -> float:
        """Trainings of each arm that are missing to find a difference of DECISIVE; inf where more would not help."""
        needed = trainings_needed(float(self.spread.variance), self.gains.source_variance, self.gains.num_sources)
        return needed if np.isnan(needed) else max(0.0, needed - self.gains.num_trainings)


@dataclass(frozen=True)
class ArmPair:
    """Two arms on the same clips, over the seeds that both have."""

    first: str
    second: str
    seeds: tuple[int, ...]
    differing: list[str]  # the options, each with the second's value and the first's
    weights: FixedWeights
    effects: list[Effect]
    classes: pd.DataFrame  # a row a dive: number, training_clips, test_clips, both arms' accuracy and the difference

    @property
    def name(self) -> str:
        return f"{self.second} - {self.first}"

    def overall(self, quantity: str) -> Effect | None:
        """The effect on all clips, or None where an arm cannot name one of the dives and has no likelihood."""
        chosen = (effect for effect in self.effects if (effect.quantity, effect.group) == (quantity, EVERY_CLIP))
        return next(chosen, None)


def pair_arms(arms: Mapping[str, Mapping[int, Run]], first: str, second: str) -> ArmPair:
    """Compare two of the arms, each effect by itself: `comparison.py` judges all pairs of a report together.

    Dives that `data.unseen_dives` of either arm names are a group of their own beside those of GROUPS.
    Raises: ValueError if the arms share no seed.
    """
    seeds = tuple(sorted(arms[first].keys() & arms[second].keys()))
    if not seeds:
        raise ValueError(
            f"arms {first} (seeds {sorted(arms[first])}) and {second} (seeds {sorted(arms[second])}) share no seed; "
            "arms are compared seed by seed"
        )
    firsts, seconds = ([arms[arm][seed] for seed in seeds] for arm in (first, second))
    corrects = [np.stack([run.correct for run in runs]) for runs in (firsts, seconds)]  # each (num_seeds, num_clips)
    # counts of the first seed; where the arms differ in them, of the arm that had more clips
    counts = max((firsts[0].num_train_clips, seconds[0].num_train_clips), key=lambda clips: sum(clips.values()))
    clips = firsts[0].predictions[["true_number", "source"]]
    held_out = sorted({number for run in (firsts[0], seconds[0]) for number in run.config.data.unseen_dives})
    return ArmPair(
        first,
        second,
        seeds,
        differing=differing_values(seconds[0].config, firsts[0].config),
        weights=compare_weights(corrects[0], corrects[1], clips["source"].tolist()),
        effects=list(_effects(firsts, seconds, clips, counts, held_out)),
        classes=_class_accuracies(corrects[0], corrects[1], clips, counts),
    )


def _effects(
    firsts: Sequence[Run],
    seconds: Sequence[Run],
    clips: pd.DataFrame,
    counts: Mapping[str, int],
    held_out: Sequence[str],
) -> Iterator[Effect]:
    """Every quantity on every group of dives that has clips."""
    numbers, sources = (clips[column].to_numpy(dtype=str) for column in ("true_number", "source"))
    groups = group_of(np.array([counts.get(number, 0) for number in numbers]))  # (num_clips,)
    members = {EVERY_CLIP: np.ones(len(numbers), bool), **{group: groups == group for group in GROUPS}}
    members[HELD_OUT] = np.isin(numbers, held_out)
    for quantity, gains in _gains(firsts, seconds).items():
        for group, rows in members.items():
            if rows.any():
                of_group = _by_source(gains[:, rows], sources[rows])
                spread = pooled_spread(of_group.by_training[None])
                (judged,) = judge(quantity, [of_group.difference(spread)])
                yield Effect(quantity, group, len(set(numbers[rows])), of_group, spread, judged)


def _gains(firsts: Sequence[Run], seconds: Sequence[Run]) -> dict[str, npt.NDArray[np.float64]]:
    """The second arm less the first, by quantity, each (num_seeds, num_clips)."""
    pairs = list(zip(firsts, seconds, strict=True))
    gains = {TOP1: np.stack([second.correct.astype(np.float64) - first.correct for first, second in pairs])}
    if all(np.isfinite(run.nll).all() for run in (*firsts, *seconds)):  # else an arm cannot name one of the dives
        gains[NLL] = np.stack([second.nll - first.nll for first, second in pairs])
    return gains


def _by_source(gains: npt.NDArray[np.float64], sources: npt.NDArray[np.str_]) -> Gains:
    """gains: (num_seeds, num_clips) of a group; sources: (num_clips,)."""
    _, source_of_clip, num_clips = np.unique(sources, return_inverse=True, return_counts=True)
    return Gains(np.stack([np.bincount(source_of_clip, weights=each) for each in gains]), num_clips)


def _class_accuracies(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], clips: pd.DataFrame, counts: Mapping[str, int]
) -> pd.DataFrame:
    """The `ArmPair.classes` of two arms' correct answers, each (num_seeds, num_clips)."""
    by_clip = pd.DataFrame(
        {"number": clips["true_number"], "first": first.mean(axis=0), "second": second.mean(axis=0), "test_clips": 1}
    )
    classes = by_clip.groupby("number").agg({"test_clips": "sum", "first": "mean", "second": "mean"}).reset_index()
    classes.insert(1, "training_clips", [counts.get(number, 0) for number in classes["number"]])
    classes["difference"] = classes["second"] - classes["first"]
    return classes
