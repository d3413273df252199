"""The tables of a page, in Markdown with at most six columns, from a comparison's tidy table or its CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from tabulate import tabulate

from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.evidence.pairs import EVERY_CLIP
from diveparse.engine.evidence.runs import BY_TRAINING, CLIPPED_SHARE
from diveparse.engine.evidence.statistics import Estimate, spread_over_seeds
from diveparse.engine.evidence.tidy import ALL_SEEDS, POOLED, QUANTITIES
from diveparse.engine.evidence.trainings import MIN_TRAININGS, THESE_WEIGHTS
from diveparse.engine.evidence.verdicts import TOP1, UNDECIDED

INTERVAL = "95 % over sources"
SEEDS = "seeds"
SCORE_ROWS = (  # one table each where arms are rows: no more than five beside the arm
    (SEEDS, "top1", INTERVAL, "top5", "mean_class_accuracy"),
    (*ATTRIBUTES, "invalid_rate"),
    ("nll", "nll_calibrated", "brier", "ece", "ece_calibrated"),
    ("aurc", "somersault_error", "twist_error", "difficulty_error"),
    (*BY_TRAINING, CLIPPED_SHARE),
)
ROW_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
    "invalid_rate": "invalid before decoding",
    "nll": "NLL (nats)",
    "nll_calibrated": "NLL, calibrated",
    "brier": "Brier score",
    "ece": "calibration error",
    "ece_calibrated": "calibration error, calibrated",
    "aurc": "area under risk-coverage",
    "somersault_error": "error in half somersaults",
    "twist_error": "error in half twists",
    "difficulty_error": "error in difficulty",
    "trained": "top-1, dives with a training clip",
    "untrained": "top-1, dives without one",
    CLIPPED_SHARE: "share of updates clipped",
}
NUM_ARM_COLUMNS = 5  # beside the names of the scores; more arms are rows


def page_tables(table: pd.DataFrame) -> list[str]:
    """Every table that a page shows of a `tidy.tidy_table`."""
    table = table.assign(seed=table["seed"].astype(str))
    tables = list(score_tables(table))
    if table["versus"].notna().any():
        tables += [*effect_tables(table), *error_table(table), *pool_tables(table), *weights_tables(table)]
    return tables


def score_tables(table: pd.DataFrame) -> Iterator[str]:
    """The scores of each arm, over several seeds the mean ± standard deviation.

    One table with arms as columns, or where there are many arms, several tables with arms as rows.
    """
    scores = table[table["versus"].isna()]
    arms = list(dict.fromkeys(scores["arm"]))
    columns = {arm: _arm_column(scores[scores["arm"] == arm]) for arm in arms}
    if len(arms) <= NUM_ARM_COLUMNS:
        names = [name for group in SCORE_ROWS for name in group]
        yield _markdown(
            [[ROW_NAMES.get(name, name), *(columns[arm][name] for arm in arms)] for name in names], ["", *arms]
        )
        return
    for group in SCORE_ROWS:
        yield _markdown(
            [[arm, *(columns[arm][name] for name in group)] for arm in arms],
            ["", *(ROW_NAMES.get(name, name) for name in group)],
        )


def _arm_column(scores: pd.DataFrame) -> dict[str, str]:
    """What a table shows of one arm's scores, by the names of SCORE_ROWS."""
    by_seed, overall = scores[scores["seed"] != ALL_SEEDS], scores[scores["seed"] == ALL_SEEDS].iloc[0]
    cells = {name: mean_and_spread(rows["value"].tolist()) for name, rows in by_seed.groupby("quantity")}
    return {str(name): cell for name, cell in cells.items()} | {
        SEEDS: seeds_text(list(dict.fromkeys(by_seed["seed"].astype(int)))),
        INTERVAL: interval_text(estimate_of(overall), ""),
    }


def seeds_text(seeds: Sequence[int]) -> str:
    """The seeds, and of many in a row the ends."""
    is_row = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if is_row and len(seeds) > 3 else ", ".join(map(str, seeds))


def effect_tables(table: pd.DataFrame) -> Iterator[str]:
    """The differences over trainings and their verdicts: a table a quantity, a row a pair of arms and group."""
    for quantity, name in QUANTITIES.items():
        rows = [
            [
                pair_name,
                _members(row["group"], row["num_dives"], row["num_clips"]),
                estimate_text(estimate_of(row), "+"),
                f"{row['higher']} of {row['trainings']}",
                _p_text(row["p_holm"]),
                _verdict(row),
            ]
            for pair_name, pair in _pairs(table[(table["quantity"] == name) & (table["seed"] == ALL_SEEDS)])
            for _, row in pair.iterrows()
        ]
        if rows:
            headers = ["dives", "difference, 95 %", "higher in", "p (Holm)", "verdict"]
            yield _markdown(rows, [f"{quantity}, over trainings", *headers])


def error_table(table: pd.DataFrame) -> Iterator[str]:
    """What makes up the error of each difference in top-1 on all clips, and its interval by resampling."""
    chosen = (table["quantity"] == QUANTITIES[TOP1]) & (table["group"] == EVERY_CLIP) & (table["seed"] == ALL_SEEDS)
    rows = [
        [
            name,
            f"{row['spread']:.3f}",
            f"{row['source_error']:.3f}",
            f"{row['df']:.0f}",
            interval_text(estimate_of(row), "+"),
            interval_text(Estimate(row["value"], row["low_resampled"], row["high_resampled"]), "+"),
        ]
        for name, pair in _pairs(table[chosen & table["low"].notna()])
        for _, row in pair.iterrows()
    ]
    if rows:
        headers = ["sd over trainings", "error over sources", "df", "95 %, t", "95 %, resampled"]
        yield _markdown(rows, ["top-1, all clips", *headers])


def pool_tables(table: pd.DataFrame) -> Iterator[str]:
    """The differences over several settings: a table a quantity, a row for pairs that differ in the same options."""
    for quantity, name in POOLED.items():
        rows = [
            [
                row["group"],
                ", ".join(f"{second} - {first}" for second, first in zip(*_names(row), strict=True)),
                estimate_text(estimate_of(row), "+"),
                f"{row['higher']} of {row['trainings']}",
                _p_text(row["p_holm"]),
                str(row["verdict"]),
            ]
            for _, row in table[table["quantity"] == name].iterrows()
        ]
        if rows:
            headers = ["settings", "difference, 95 %", "higher in", "p (Holm)", "verdict"]
            yield _markdown(rows, [f"{quantity}, pooled over settings", *headers])


def _names(row: pd.Series) -> tuple[list[str], list[str]]:
    return row["arm"].split(", "), row["versus"].split(", ")


def weights_tables(table: pd.DataFrame) -> Iterator[str]:
    """Top-1 of pairs with too few trainings for a verdict: what holds for these trained models, and for no others."""
    rows = []
    for name, pair in _pairs(table[(table["quantity"] == QUANTITIES[TOP1]) & (table["group"] == EVERY_CLIP)]):
        by_seed, overall = pair[pair["seed"] != ALL_SEEDS], pair[pair["seed"] == ALL_SEEDS].iloc[0]
        if len(by_seed) >= MIN_TRAININGS and not np.isnan(overall["source_error"]):
            continue
        fixed = [interval_text(Estimate(overall["value"], overall["weights_low"], overall["weights_high"]), "+")]
        fixed.append(_p_text(overall["weights_sources_p"]))
        for _, row in by_seed.iterrows():
            counts = f"{row['weights_clips_won']} to {row['weights_clips_lost']}"
            tested = [f"{row['value']:+.3f}", counts, _p_text(row["weights_mcnemar_p"])]
            rows.append([f"{name}, seed {row['seed']}", *tested, *(fixed if len(by_seed) == 1 else ["", ""])])
        if len(by_seed) > 1:
            rows.append([f"{name}, mean", f"{overall['value']:+.3f}", "", "", *fixed])
    if rows:
        headers = ["difference", "clips won, lost", "McNemar p", INTERVAL, "p over sources"]
        yield _markdown(rows, [f"{THESE_WEIGHTS}: top-1", *headers])


def _verdict(row: pd.Series) -> str:
    """The verdict, and where nothing is decided the trainings that a decision still takes."""
    if row["verdict"] not in (UNDECIDED, THESE_WEIGHTS) or not row["still_needed"] > 0:
        return str(row["verdict"])
    more = "more sources" if np.isinf(row["still_needed"]) else f"{row['still_needed']:.0f} more"
    return f"{row['verdict']} ({more})"


def _members(group: str, num_dives: int, num_clips: int) -> str:
    return f"{group}: {num_dives} dive{'s' if num_dives != 1 else ''}, {num_clips:,} clips"


def _pairs(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each pair of arms under its name, "second - first"."""
    for (second, first), rows in table.groupby(["arm", "versus"], sort=False):
        yield f"{second} - {first}", rows


def estimate_text(estimate: Estimate, sign: str) -> str:
    """The value, and its interval where there is one. sign: as in a format, "+" or nothing."""
    interval = interval_text(estimate, sign)
    return f"{estimate.value:{sign}.3f}" + (f" ({interval})" if interval else "")


def _p_text(p_value: float) -> str:
    return "" if np.isnan(p_value) else f"{p_value:.2g}"


def estimate_of(row: pd.Series) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def interval_text(estimate: Estimate, sign: str) -> str:
    """The ends, or nothing where there is no interval. sign: as in a format, "+" or nothing."""
    if np.isnan(estimate.low):
        return ""
    return f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean over seeds, and ± their standard deviation where there are several; nothing of those that are nan."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return ""
    spread = spread_over_seeds(values)
    return f"{np.mean(values):.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
