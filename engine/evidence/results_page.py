"""Fills in the page of all results: every number in it is read from the tables that experiments wrote.

The template is Markdown with places such as `{{ladder joint-flat points}}`. The first word is a table, `NAME.csv` of
the folder of results. The second is an arm, or two arms as `ARM-VERSUS`. What follows says which number of it:

- of an arm: a score (`top1`, `nll`, …), the mean over its trainings, and `top1 sd`, the standard deviation;
- of two arms: `points` (the difference in top-1), `interval` (its 95 % interval), `ahead` (in how many trainings),
  `verdict`, and the same after the name of a group of dives, as in `held out points`.

`{{ladder pooled points}}` and the like read the row in which all settings of an experiment are pooled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from diveparse.engine.evidence.pairs import EVERY_CLIP
from diveparse.engine.evidence.tidy import ALL_SEEDS, POOLED, QUANTITIES
from diveparse.engine.evidence.verdicts import TOP1

PLACE = re.compile(r"\{\{([^{}]+)\}\}")


def results_page(template: str, folder: Path) -> str:
    """The template with every place filled in. folder: of the tables.

    Raises: ValueError naming the place whose table, arm or number there is not.
    """
    tables: dict[str, pd.DataFrame] = {}

    def filled(place: re.Match[str]) -> str:
        name, *words = place[1].split()
        path = folder / f"{name}.csv"
        try:
            if name not in tables:
                tables[name] = pd.read_csv(path, dtype={"seed": str})
            return _number(tables[name], words)
        except (OSError, LookupError, ValueError) as error:
            raise ValueError(f"{{{{{place[1]}}}}}: {path} has no such number: {error}") from error

    return PLACE.sub(filled, template)


def _number(table: pd.DataFrame, words: list[str]) -> str:
    arms, *which = words
    if arms == "pooled":
        return _of_difference(_the(table[table["quantity"] == POOLED[TOP1]], arms), which[0])
    known = set(table["arm"]) | set(table["versus"].dropna())
    if arms in known:
        scores = table[(table["arm"] == arms) & table["versus"].isna() & (table["quantity"] == which[0])]
        values = scores[scores["seed"] != ALL_SEEDS]["value"]
        if values.empty:
            raise ValueError(f"no {which[0]} of {arms}")
        number = values.std() if which[1:] == ["sd"] else values.mean()
        return "" if np.isnan(number) else f"{number:.3f}"
    for cut in (place.start() for place in re.finditer("-", arms)):
        arm, versus = arms[:cut], arms[cut + 1 :]
        if {arm, versus} <= known:
            *words, what = which
            group = " ".join(words) or EVERY_CLIP
            rows = table[(table["arm"] == arm) & (table["versus"] == versus) & (table["group"] == group)]
            rows = rows[(rows["quantity"] == QUANTITIES[TOP1]) & (rows["seed"] == ALL_SEEDS)]
            return _of_difference(_the(rows, f"{arms} on {group}"), what)
    raise ValueError(f"no arm or pair {arms!r}, expected of {', '.join(sorted(known))}")


def _the(rows: pd.DataFrame, name: str) -> pd.Series:
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows for {name}, expected one")
    return rows.iloc[0]


def _of_difference(row: pd.Series, what: str) -> str:
    shown: dict[str, Callable[[], str]] = {
        "points": lambda: _points(row["value"]),
        "interval": lambda: f"{_points(row['low'])} to {_points(row['high'])}",
        "ahead": lambda: f"{int(row['higher'])} of {int(row['trainings'])}",
        "verdict": lambda: str(row["verdict"]),
    }
    return shown[what]()


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
