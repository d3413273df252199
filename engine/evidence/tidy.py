"""Every number of a comparison as tidy tables, one number or one dive a row: what the CSV files hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from diveparse.engine.evidence.comparison import Report
from diveparse.engine.evidence.pairs import EVERY_CLIP, ArmPair
from diveparse.engine.evidence.runs import ALL_SCORES
from diveparse.engine.evidence.settings import Pool
from diveparse.engine.evidence.trainings import MARGINS
from diveparse.engine.evidence.verdicts import NLL, TOP1, Judged

QUANTITIES = {TOP1: "top1_difference", NLL: "nll_difference"}
POOLED = {quantity: f"{name}_pooled" for quantity, name in QUANTITIES.items()}
ALL_SEEDS = "all"
P_WITHIN = tuple(f"p_within_{margin:g}" for margin in MARGINS)
COLUMNS = (
    "arm",
    "versus",  # the other arm, of a difference
    "seed",  # or ALL_SEEDS
    "quantity",  # one of ALL_SCORES, of QUANTITIES or of POOLED
    "group",  # of dives, of a difference; the options that differ, where settings are pooled
    "num_clips",  # of the group
    "num_dives",
    "value",
    "low",  # the ends of the 95 % interval: of a difference over trainings and sources, of a score over sources
    "high",
    "trainings",  # pairs of them
    "higher",  # trainings in which the arm has more than the other
    "spread",  # standard deviation of the difference over trainings
    "source_error",  # standard error of the difference that the choice of sources adds
    "df",  # of the t distribution of the difference
    "p_holm",  # of "no difference", corrected for all comparisons of this quantity and group
    *P_WITHIN,  # of "a difference of the margin or more", corrected alike
    "low_resampled",  # the interval of a bootstrap over trainings and sources
    "high_resampled",
    "still_needed",  # trainings of each arm that are missing to find a difference of 2 points
    "verdict",
    "weights_low",  # of these trained models alone, about no others: the interval over sources
    "weights_high",
    "weights_sources_p",  # signs of sources flipped
    "weights_mcnemar_p",
    "weights_clips_won",
    "weights_clips_lost",
    "clips",  # the caption: what was tested
)
COUNTS = dict.fromkeys(  # missing in other rows
    ("num_clips", "num_dives", "trainings", "higher", "weights_clips_won", "weights_clips_lost"), "Int64"
)


def tidy_table(report: Report) -> pd.DataFrame:
    """Every number of the report. Its columns are COLUMNS."""
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "quantity": score, "value": run.scores[score]}
        for arm, seed, run in report.runs
        for score in ALL_SCORES
    ]
    for arm, estimate in report.accuracies.items():
        rows.append({"arm": arm, "seed": ALL_SEEDS, "quantity": "top1", **vars(estimate)})
    for pair in report.pairs:
        rows += _differences(pair)
    rows += map(_pooled, report.pools)
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(clips=report.caption).astype(COUNTS)


def _differences(pair: ArmPair) -> Iterator[dict[str, object]]:
    for effect in pair.effects:
        is_overall = (effect.quantity, effect.group) == (TOP1, EVERY_CLIP)
        about = {
            "arm": pair.second,
            "versus": pair.first,
            "quantity": QUANTITIES[effect.quantity],
            "group": effect.group,
            "num_clips": effect.num_clips,
            "num_dives": effect.num_classes,
        }
        for seed, value, test in zip(pair.seeds, effect.gains.by_training, pair.weights.tests, strict=True):
            counts = {
                "weights_clips_won": test.num_only_second,
                "weights_clips_lost": test.num_only_first,
                "weights_mcnemar_p": test.p_value,
            }
            yield {**about, "seed": seed, "value": value, **(counts if is_overall else {})}
        over_trainings = {
            **_judged(effect.judged, effect.gains.source_variance),
            "trainings": effect.gains.num_trainings,
            "higher": effect.num_higher,
            "spread": math.sqrt(effect.spread.variance),
            "still_needed": effect.still_needed,
        }
        if effect.resampled is not None:
            over_trainings |= {"low_resampled": effect.resampled.low, "high_resampled": effect.resampled.high}
        if is_overall:
            fixed = pair.weights.difference
            over_trainings |= {"weights_low": fixed.low, "weights_high": fixed.high}
            over_trainings["weights_sources_p"] = pair.weights.p_value
        yield {**about, "seed": ALL_SEEDS, **over_trainings}


def _pooled(pool: Pool) -> dict[str, object]:
    return {
        "arm": ", ".join(pair.second for pair in pool.pairs),
        "versus": ", ".join(pair.first for pair in pool.pairs),
        "seed": ALL_SEEDS,
        "quantity": POOLED[pool.judged.quantity],
        "group": pool.options,
        "num_clips": int(pool.gains.num_clips.sum()),
        "trainings": pool.num_trainings,
        "higher": pool.num_higher,
        **_judged(pool.judged, pool.gains.source_variance),
    }


def _judged(judged: Judged, source_variance: float) -> dict[str, object]:
    return {
        **vars(judged.difference.interval()),
        "source_error": math.sqrt(source_variance),
        "df": judged.difference.df,
        "p_holm": judged.p_different,
        **dict(zip(P_WITHIN, judged.p_within, strict=True)),
        "verdict": judged.verdict,
    }


def class_table(report: Report) -> pd.DataFrame:
    """A row a pair of arms and dive: both arms' share of right answers over all seeds, and the difference."""
    tables = [
        pair.classes.rename(columns={"first": "accuracy_first", "second": "accuracy_second"}).assign(
            first=pair.first, second=pair.second
        )
        for pair in report.pairs
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
