"""A comparison of several arms: their accuracies and the corrected differences between pairs of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from diveparse.engine.evidence.arms import group_by_arm, require_comparable
from diveparse.engine.evidence.pairs import ArmPair, Effect, pair_arms
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.settings import Pool, pool_settings
from diveparse.engine.evidence.statistics import Estimate, accuracy_over_sources
from diveparse.engine.evidence.trainings import MIN_TRAININGS, Spread, pooled_spread
from diveparse.engine.evidence.verdicts import judge


@dataclass(frozen=True)
class Report:
    """The arms, in the order in which their runs were given, and the differences between them."""

    split: str
    caption: str  # the split, its size, and whether its dives are rendered
    arms: dict[str, dict[int, Run]]  # arm -> seed -> run
    accuracies: dict[str, Estimate]  # top-1 of each arm's trained models, with an interval over sources
    pairs: list[ArmPair]
    pools: list[Pool]  # of pairs that differ in the same options

    @property
    def runs(self) -> Iterator[tuple[str, int, Run]]:
        """Every run with its arm and seed."""
        return ((arm, seed, run) for arm, by_seed in self.arms.items() for seed, run in by_seed.items())

    def scores_of(self, arm: str, score: str) -> list[float]:
        """One score of an arm, seed by seed. score: one of ALL_SCORES."""
        return [run.scores[score] for run in self.arms[arm].values()]


def compare_runs(runs: list[Run]) -> Report:
    """Group runs into arms and compare each arm with each earlier one.

    Raises: ValueError with the reason why the runs cannot be compared.
    """
    require_comparable(runs)  # before they are grouped, since its reasons are the more telling
    arms = group_by_arm(runs)
    return compare_groups(arms, list(combinations(arms, 2)))


def compare_groups(arms: dict[str, dict[int, Run]], pairs: Sequence[tuple[str, str]]) -> Report:
    """Compare pairs of arms, (first, second).

    arms: arm -> seed -> run.
    Raises: ValueError with the reason why the runs cannot be compared.
    """
    runs = [run for by_seed in arms.values() for run in by_seed.values()]
    require_comparable(runs)
    sources = runs[0].predictions["source"].tolist()
    judged = _judged_together([pair_arms(arms, first, second) for first, second in pairs])
    return Report(
        split=runs[0].split,
        caption=_caption(runs[0]),
        arms=arms,
        accuracies={arm: accuracy_over_sources(_correct(by_seed.values()), sources) for arm, by_seed in arms.items()},
        pairs=judged,
        pools=pool_settings(judged),
    )


def _judged_together(pairs: list[ArmPair]) -> list[ArmPair]:
    """The same with spreads and p-values over all pairs, for each quantity and group of dives by itself."""
    families: dict[tuple[str, str], list[tuple[ArmPair, Effect]]] = {}
    for pair in pairs:
        for effect in pair.effects:
            families.setdefault((effect.quantity, effect.group), []).append((pair, effect))
    judged: dict[int, Effect] = {}
    for (quantity, _), members in families.items():
        spreads = _spreads(members)
        differences = [effect.gains.difference(spread) for (_, effect), spread in zip(members, spreads, strict=True)]
        for (_, effect), spread, each in zip(members, spreads, judge(quantity, differences), strict=True):
            judged[id(effect)] = replace(effect, spread=spread, judged=each)
    return [replace(pair, effects=[judged[id(effect)] for effect in pair.effects]) for pair in pairs]


def _spreads(members: Sequence[tuple[ArmPair, Effect]]) -> list[Spread]:
    """Of each pair its own spread, and under MIN_TRAININGS the pooled one, over the seeds that all pairs have.

    A verdict rests on the pair's own. With the pooled one, a pair that varies half as much again as the others is
    called different in 3 to 4 % of cases instead of 1, as a test shows, and 20 trainings gain nothing by it.
    """
    seeds = set.intersection(*(set(pair.seeds) for pair, _ in members))
    shared = [effect.gains.by_training[np.isin(pair.seeds, list(seeds))] for pair, effect in members]
    pooled = pooled_spread(np.stack(shared))
    return [effect.spread if effect.gains.num_trainings >= MIN_TRAININGS else pooled for _, effect in members]


def _correct(runs: Iterable[Run]) -> npt.NDArray[np.bool_]:
    return np.stack([run.correct for run in runs])  # (num_seeds, num_clips)


def _caption(run: Run) -> str:
    """What was tested, and on what, so that no number on rendered dives passes for one on real ones."""
    num_sources = run.predictions["source"].nunique()
    size = f"{len(run.predictions):,} clips of {num_sources} sources, {run.num_classes_scored} dives"
    origin = "rendered dives, not Diving48" if run.rendered else f"clips of {run.data_root}"
    return f"{run.split} split: {size}; {origin}"
