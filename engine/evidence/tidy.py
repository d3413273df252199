"""Every number of a comparison as tidy tables, one number or one dive a row: what the CSV files hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from diveparse.engine.evidence.comparison import Report
from diveparse.engine.evidence.pairs import EVERY_CLIP, NLL, TOP1, ArmPair
from diveparse.engine.evidence.runs import SCORES

QUANTITIES = {TOP1: "top1_difference", NLL: "nll_difference"}
ALL_SEEDS = "all"
COLUMNS = (
    "arm",
    "versus",  # the other arm, of a difference
    "seed",  # or ALL_SEEDS
    "quantity",  # one of SCORES or of QUANTITIES
    "group",  # of dives, of a difference
    "num_clips",  # of the group
    "num_dives",
    "value",
    "low",  # the ends of the interval over sources
    "high",
    "p",  # over sources
    "p_holm",
    "mcnemar_p",
    "clips_won",
    "clips_lost",
    "verdict",
    "clips",  # the caption: what was tested
)
COUNTS = dict.fromkeys(("num_clips", "num_dives", "clips_won", "clips_lost"), "Int64")  # missing in other rows


def tidy_table(report: Report) -> pd.DataFrame:
    """Every number of the report. Its columns are COLUMNS."""
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "quantity": score, "value": run.scores[score]}
        for arm, seed, run in report.runs
        for score in SCORES
    ]
    for arm, estimate in report.accuracies.items():
        rows.append({"arm": arm, "seed": ALL_SEEDS, "quantity": "top1", **vars(estimate)})
    for pair in report.pairs:
        rows += _differences(pair)
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(clips=report.caption).astype(COUNTS)


def read_tidy_table(path: Path) -> pd.DataFrame:
    """Read the CSV file of a tidy table."""
    return pd.read_csv(path, dtype={"arm": str, "versus": str, "seed": str}).astype(COUNTS)


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
        for seed, value, test in zip(pair.seeds, effect.by_seed, pair.comparison.tests, strict=True):
            counts = {"clips_won": test.num_only_second, "clips_lost": test.num_only_first, "mcnemar_p": test.p_value}
            yield {**about, "seed": seed, "value": value, **(counts if is_overall else {})}
        tested = {"p": effect.p_value, "p_holm": effect.p_holm, "verdict": effect.verdict}
        if is_overall:
            tested["mcnemar_p"] = pair.comparison.mcnemar_p_value
        yield {**about, "seed": ALL_SEEDS, **vars(effect.difference), **tested}


def class_table(report: Report) -> pd.DataFrame:
    """A row a pair of arms and dive: both arms' share of right answers over all seeds, and the difference."""
    tables = [
        pair.classes.rename(columns={"first": "accuracy_first", "second": "accuracy_second"}).assign(
            first=pair.first, second=pair.second
        )
        for pair in report.pairs
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
