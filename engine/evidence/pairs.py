"""Two arms, paired clip by clip and seed by seed: their differences on all clips and on groups of dives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diveparse.engine.evaluation.metrics import GROUPS, group_of
from diveparse.engine.evidence.arms import differing_values
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.statistics import (
    MARGIN,
    Comparison,
    Estimate,
    compare_arms,
    mean_over_sources,
    sign_flip_p_value,
    verdict,
)

EVERY_CLIP, HELD_OUT = "all", "held out"  # beside the groups of dives
TOP1, NLL = "top-1", "NLL"
MARGINS = {TOP1: f"±{100 * MARGIN:g} points", NLL: f"±{MARGIN:g} nats"}


@dataclass(frozen=True)
class Effect:
    """The difference between two arms in one quantity, over some clips."""

    quantity: str  # TOP1 or NLL
    group: str  # EVERY_CLIP, HELD_OUT, or the name of one of GROUPS: dives with so many training clips
    num_clips: int
    num_classes: int
    difference: Estimate
    by_seed: tuple[float, ...]
    p_value: float  # over sources
    p_holm: float  # the same, corrected for all comparisons of this quantity and group in the report

    @property
    def verdict(self) -> str:
        """higher, lower, equivalent (with its margin) or inconclusive, about the models as they were trained.

        A higher or lower whose sign differs between seeds is marked, since another seed may well turn it.
        """
        found = verdict(self.difference, self.p_holm)
        if found == "equivalent":
            return f"equivalent ({MARGINS[self.quantity]})"
        agree = len({np.sign(difference) for difference in self.by_seed}) == 1
        return found if agree or found == "inconclusive" else f"{found}, but not with every seed"


@dataclass(frozen=True)
class ArmPair:
    """Two arms on the same clips, over the seeds that both have."""

    first: str
    second: str
    seeds: tuple[int, ...]
    differing: list[str]  # the options, each with the second's value and the first's
    comparison: Comparison
    effects: list[Effect]
    classes: pd.DataFrame  # a row a dive: number, training_clips, test_clips, both arms' accuracy and the difference

    @property
    def name(self) -> str:
        return f"{self.second} - {self.first}"


def pair_arms(arms: Mapping[str, Mapping[int, Run]], first: str, second: str, held_out: Sequence[str] = ()) -> ArmPair:
    """Compare two of the arms, of which every `Effect.p_holm` is not corrected yet.

    held_out: numbers of dives that form a group of their own beside those of GROUPS.
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
    return ArmPair(
        first,
        second,
        seeds,
        differing=differing_values(seconds[0].config, firsts[0].config),
        comparison=compare_arms(corrects[0], corrects[1], clips["source"].tolist()),
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
    """Every quantity on every group of dives whose clips come from two sources or more."""
    numbers, sources = (clips[column].to_numpy(dtype=str) for column in ("true_number", "source"))
    groups = group_of(np.array([counts.get(number, 0) for number in numbers]))  # (num_clips,)
    members = {EVERY_CLIP: np.ones(len(numbers), bool), **{group: groups == group for group in GROUPS}}
    members[HELD_OUT] = np.isin(numbers, held_out)
    for quantity, gains in _gains(firsts, seconds).items():
        for group, rows in members.items():
            if len(set(sources[rows])) > 1:
                yield _effect(quantity, group, gains[:, rows], numbers[rows], sources[rows].tolist())


def _gains(firsts: Sequence[Run], seconds: Sequence[Run]) -> dict[str, npt.NDArray[np.float64]]:
    """The second arm less the first, by quantity, each (num_seeds, num_clips)."""
    pairs = list(zip(firsts, seconds, strict=True))
    gains = {TOP1: np.stack([second.correct.astype(np.float64) - first.correct for first, second in pairs])}
    if all(np.isfinite(run.nll).all() for run in (*firsts, *seconds)):  # else an arm cannot name one of the dives
        gains[NLL] = np.stack([second.nll - first.nll for first, second in pairs])
    return gains


def _effect(
    quantity: str, group: str, gains: npt.NDArray[np.float64], numbers: npt.NDArray[np.str_], sources: list[str]
) -> Effect:
    """gains: (num_seeds, num_clips) of the group."""
    gain = gains.mean(axis=0)
    p_value = sign_flip_p_value(gain, sources)
    return Effect(
        quantity,
        group,
        num_clips=len(numbers),
        num_classes=len(set(numbers)),
        difference=mean_over_sources(gain, sources),
        by_seed=tuple(gains.mean(axis=1).tolist()),
        p_value=p_value,
        p_holm=p_value,
    )


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
