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
from diveparse.engine.evidence.statistics import Estimate, accuracy_over_sources, holm


@dataclass(frozen=True)
class Report:
    """The arms, in the order in which their runs were given, and the differences between them."""

    split: str
    caption: str  # the split, its size, and whether its dives are rendered
    arms: dict[str, dict[int, Run]]  # arm -> seed -> run
    accuracies: dict[str, Estimate]  # top-1 of each arm over its seeds
    pairs: list[ArmPair]

    @property
    def runs(self) -> Iterator[tuple[str, int, Run]]:
        """Every run with its arm and seed."""
        return ((arm, seed, run) for arm, by_seed in self.arms.items() for seed, run in by_seed.items())

    def scores_of(self, arm: str, score: str) -> list[float]:
        """One score of an arm, seed by seed. score: one of SCORES."""
        return [run.scores[score] for run in self.arms[arm].values()]


def compare_runs(runs: list[Run]) -> Report:
    """Group runs into arms and compare each arm with each earlier one.

    Raises: ValueError with the reason why the runs cannot be compared.
    """
    require_comparable(runs)  # before they are grouped, since its reasons are the more telling
    arms = group_by_arm(runs)
    return compare_groups(arms, list(combinations(arms, 2)))


def compare_groups(
    arms: dict[str, dict[int, Run]], pairs: Sequence[tuple[str, str]], held_out: Sequence[str] = ()
) -> Report:
    """Compare pairs of arms, (first, second).

    arms: arm -> seed -> run; held_out: numbers of dives that form a group of their own beside those of GROUPS.
    Raises: ValueError with the reason why the runs cannot be compared.
    """
    runs = [run for by_seed in arms.values() for run in by_seed.values()]
    require_comparable(runs)
    sources = runs[0].predictions["source"].tolist()
    return Report(
        split=runs[0].split,
        caption=_caption(runs[0]),
        arms=arms,
        accuracies={arm: accuracy_over_sources(_correct(by_seed.values()), sources) for arm, by_seed in arms.items()},
        pairs=_corrected([pair_arms(arms, first, second, held_out) for first, second in pairs]),
    )


def _corrected(pairs: list[ArmPair]) -> list[ArmPair]:
    """The same with Holm's correction: over all pairs, for each quantity and group by itself."""
    members: dict[tuple[str, str], list[Effect]] = {}
    for pair in pairs:
        for effect in pair.effects:
            members.setdefault((effect.quantity, effect.group), []).append(effect)
    p_holm = {
        id(effect): p_value
        for effects in members.values()
        for effect, p_value in zip(effects, holm([effect.p_value for effect in effects]), strict=True)
    }
    return [
        replace(pair, effects=[replace(effect, p_holm=p_holm[id(effect)]) for effect in pair.effects]) for pair in pairs
    ]


def _correct(runs: Iterable[Run]) -> npt.NDArray[np.bool_]:
    return np.stack([run.correct for run in runs])  # (num_seeds, num_clips)


def _caption(run: Run) -> str:
    """What was tested, and on what, so that no number on rendered dives passes for one on real ones."""
    num_sources = run.predictions["source"].nunique()
    size = f"{len(run.predictions):,} clips of {num_sources} sources, {run.num_classes_scored} dives"
    origin = "rendered dives, not Diving48" if run.rendered else f"clips of {run.data_root}"
    return f"{run.split} split: {size}; {origin}"
