"""One change of an arm in several settings: pairs of arms that differ in the same options, pooled.

Such as joint against flat at each share of the training clips. Settings and seeds are random effects, and crossed: one
seed draws the same validation sources in all settings, and may move all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diveparse.engine.evidence.pairs import ArmPair
from diveparse.engine.evidence.trainings import Difference, Floats, Gains, combined, limit_of
from diveparse.engine.evidence.verdicts import NLL, TOP1, Judged, judge

NOT_OF_A_SETTING = ("arm", "name")  # of the options that differ


@dataclass(frozen=True)
class Pool:
    """The mean difference over several settings, in one quantity and on all clips."""

    pairs: list[ArmPair]
    options: str  # that differ in every pair
    seeds: tuple[int, ...]  # that all pairs have
    gains: Gains  # averaged over the settings
    num_higher: int  # trainings in which the second arm has more, of all settings
    judged: Judged  # corrected for all pools of this quantity in the report

    @property
    def num_trainings(self) -> int:
        """Paired trainings of all settings."""
        return len(self.pairs) * len(self.seeds)


def pool_settings(pairs: Sequence[ArmPair]) -> list[Pool]:
    """Pool pairs that differ in the same options, over the seeds that they share, which must be two or more."""
    groups: dict[str, list[ArmPair]] = {}
    for pair in pairs:
        options = [option for option in pair.differing if option.split(" ")[0] not in NOT_OF_A_SETTING]
        groups.setdefault(", ".join(options), []).append(pair)
    shared = [
        (options, members, tuple(sorted(set.intersection(*(set(pair.seeds) for pair in members)))))
        for options, members in groups.items()
        if options and len(members) > 1
    ]
    return [pool for quantity in (TOP1, NLL) for pool in _pool(quantity, [each for each in shared if len(each[2]) > 1])]


def _pool(quantity: str, groups: Sequence[tuple[str, list[ArmPair], tuple[int, ...]]]) -> list[Pool]:
    """groups: options, pairs that differ in them, and seeds that these pairs share."""
    found, differences = [], []
    for options, pairs, seeds in groups:
        effects = [pair.overall(quantity) for pair in pairs]
        of_settings = [
            effect.gains.totals[np.isin(pair.seeds, seeds)]
            for pair, effect in zip(pairs, effects, strict=True)
            if effect is not None
        ]
        if effects[0] is None or len(of_settings) < len(pairs):
            continue
        totals, num_clips = np.stack(of_settings), effects[0].gains.num_clips  # (num_settings, num_seeds, num_sources)
        gains = Gains(totals.mean(axis=0), num_clips)
        by_setting = totals.sum(axis=2) / num_clips.sum()
        found.append((pairs, options, seeds, gains, int((by_setting > 0).sum())))
        differences.append(over_settings(by_setting, gains.source_variance, gains.num_sources))
    return [Pool(*about, judged) for about, judged in zip(found, judge(quantity, differences), strict=True)]


def over_settings(differences: npt.NDArray[np.float64], source_variance: Floats, num_sources: int) -> Difference:
    """The mean over settings and seeds, with the variance of the mean that settings, seeds and sources add.

    differences: (..., num_settings, num_seeds); source_variance: squared standard error of their mean over sources.

    With settings alone as a random effect this is the mixed model `difference ~ 1`. Every setting has the same seeds,
    so the maximum of its restricted likelihood has the closed form below. A test compares it with MixedLM of
    statsmodels, whose search may stop short of it where the variance of settings is 0. The variances of the two models,
    one with settings and one with seeds, add, less what both contain.
    Source: Cameron, Gelbach and Miller, "Robust inference with multiway clustering", 2011, equation 2.3.
    """
    num_settings, num_seeds = differences.shape[-2:]
    num_all = num_settings * num_seeds
    alone = differences.var(axis=(-2, -1), ddof=1) / num_all
    parts: list[tuple[Floats, Floats]] = [(source_variance, num_sources - 1)]
    for axis, number in ((-1, num_settings), (-2, num_seeds)):
        between = differences.mean(axis=axis).var(axis=-1, ddof=1) / number
        # a model whose random effect is estimated as 0 has one variance, over all trainings
        parts.append((np.maximum(between, alone), np.where(between > alone, number - 1.0, num_all - 1.0)))
    return combined(differences.mean(axis=(-2, -1)), parts, limit_of(num_seeds, num_sources), less=alone)
