"""The tables of a page, in Markdown with at most six columns, from a comparison's tidy table or its CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from tabulate import tabulate

from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.evidence.pairs import EVERY_CLIP, NLL, TOP1
from diveparse.engine.evidence.statistics import Estimate, spread_over_seeds
from diveparse.engine.evidence.tidy import ALL_SEEDS, QUANTITIES

INTERVAL = "95 % interval"
SEEDS = "seeds"
SCORE_ROWS = (  # one table each where arms are rows: no more than five beside the arm
    (SEEDS, "top1", INTERVAL, "top5", "mean_class_accuracy"),
    (*ATTRIBUTES, "invalid_rate"),
    ("nll", "nll_calibrated", "brier", "ece", "ece_calibrated"),
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
}
NUM_ARM_COLUMNS = 5  # beside the names of the scores; more arms are rows


def page_tables(table: pd.DataFrame) -> list[str]:
    """Every table that a page shows of a `tidy.tidy_table`."""
    table = table.assign(seed=table["seed"].astype(str))
    tables = list(score_tables(table))
    if table["versus"].notna().any():
        tables += [difference_table(table), *effect_tables(table)]
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
        SEEDS: ", ".join(dict.fromkeys(by_seed["seed"])),
        INTERVAL: interval_text(estimate_of(overall), ""),
    }


def difference_table(table: pd.DataFrame) -> str:
    """Top-1 of pairs of arms: one row a seed, and one over all seeds where there are several."""
    rows = []
    for name, pair in _pairs(table[(table["quantity"] == QUANTITIES[TOP1]) & (table["group"] == EVERY_CLIP)]):
        by_seed, overall = pair[pair["seed"] != ALL_SEEDS], pair[pair["seed"] == ALL_SEEDS].iloc[0]
        difference = [f"{overall['value']:+.3f}", interval_text(estimate_of(overall), "+")]
        for _, row in by_seed.iterrows():
            tested = [f"{row['clips_won']:.0f}", f"{row['clips_lost']:.0f}", f"{row['mcnemar_p']:.2g}"]
            if len(by_seed) == 1:
                rows.append([name, *difference, *tested])
            else:
                rows.append([f"{name}, seed {row['seed']}", f"{row['value']:+.3f}", "", *tested])
        if len(by_seed) > 1:
            rows.append([f"{name}, all seeds", *difference, "", "", f"{overall['mcnemar_p']:.2g}"])
    return _markdown(rows, ["top-1, paired", "difference", INTERVAL, "clips won", "clips lost", "McNemar p"])


def effect_tables(table: pd.DataFrame) -> Iterator[str]:
    """The differences over sources and their verdicts: one table a quantity, one row a pair of arms and group."""
    for quantity in (TOP1, NLL):
        chosen = table[(table["quantity"] == QUANTITIES[quantity]) & (table["seed"] == ALL_SEEDS)]
        rows = [
            [
                name,
                _members(row["group"], row["num_dives"], row["num_clips"]),
                f"{row['value']:+.3f}",
                interval_text(estimate_of(row), "+"),
                f"{row['p_holm']:.2g}",
                row["verdict"],
            ]
            for name, pair in _pairs(chosen)
            for _, row in pair.iterrows()
        ]
        if rows:
            yield _markdown(rows, [f"{quantity}, over sources", "dives", "difference", INTERVAL, "p (Holm)", "verdict"])


def _members(group: str, num_dives: int, num_clips: int) -> str:
    return f"{group}: {num_dives} dive{'s' if num_dives != 1 else ''}, {num_clips:,} clips"


def _pairs(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each pair of arms under its name, "second - first"."""
    for (second, first), rows in table.groupby(["arm", "versus"], sort=False):
        yield f"{second} - {first}", rows


def estimate_of(row: pd.Series) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def interval_text(estimate: Estimate, sign: str) -> str:
    """sign: as in a format, "+" or nothing."""
    return f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean over seeds, and ± their standard deviation where there are several."""
    spread = spread_over_seeds(values)
    return f"{np.mean(values):.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
