from pathlib import Path

import pandas as pd
import pytest

from diveparse.engine.evidence.results_page import results_page
from diveparse.engine.evidence.tidy import COLUMNS

DIFFERENCE = {"arm": "joint-adjusted", "versus": "flat-adjusted", "quantity": "top1_difference", "group": "all"}
OVER_TRAININGS = {"seed": "all", "value": 0.0214, "low": -0.001, "high": 0.0438, "trainings": 20, "higher": 17}
ROWS = [
    {"arm": "joint-adjusted", "seed": "0", "quantity": "top1", "value": 0.81},
    {"arm": "joint-adjusted", "seed": "1", "quantity": "top1", "value": 0.83},
    {"arm": "joint-adjusted", "seed": "all", "quantity": "top1", "value": 0.99},  # not a third training
    {**DIFFERENCE, "seed": "0", "value": 0.5},
    {**DIFFERENCE, **OVER_TRAININGS, "verdict": "higher"},
    {**DIFFERENCE, "group": "few", **OVER_TRAININGS, "value": -0.0306},
    {**DIFFERENCE, "group": "held out", **OVER_TRAININGS, "value": 0.0512},
    {"arm": "joint-adjusted", "seed": "0", "quantity": "untrained"},
    {"quantity": "top1_difference_pooled", "arm": "a, b", "versus": "c, d", **OVER_TRAININGS, "value": 0.0149},
]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    pd.DataFrame(ROWS, columns=list(COLUMNS)).to_csv(tmp_path / "tail.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("tail joint-adjusted top1", "0.820"),
        ("tail joint-adjusted top1 sd", "0.014"),
        ("tail joint-adjusted-flat-adjusted points", "+2.1"),
        ("tail joint-adjusted-flat-adjusted interval", "−0.1 to +4.4"),
        ("tail joint-adjusted-flat-adjusted ahead", "17 of 20"),
        ("tail joint-adjusted-flat-adjusted verdict", "higher"),
        ("tail joint-adjusted-flat-adjusted few points", "−3.1"),
        ("tail joint-adjusted-flat-adjusted held out points", "+5.1"),
        ("tail joint-adjusted untrained", ""),
        ("tail pooled points", "+1.5"),
    ],
)
def test_a_place_is_filled_with_the_number_of_its_row(place: str, shown: str, tables: Path) -> None:
    assert results_page(f"Top-1 {{{{{place}}}}}.\n", tables) == f"Top-1 {shown}.\n"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nothing a top1", "nothing.csv"),
        ("tail none top1", "no arm or pair 'none'"),
        ("tail joint-adjusted top9", "no top9 of joint-adjusted"),
        ("tail joint-adjusted-flat-adjusted many points", "0 rows for joint-adjusted-flat-adjusted on many"),
        ("tail joint-adjusted-flat-adjusted width", "'width'"),
        ("tail", "not enough values"),
    ],
)
def test_a_place_without_a_number_is_named(place: str, reason: str, tables: Path) -> None:
    with pytest.raises(ValueError, match=rf"^\{{\{{{place}\}}\}}: .*has no such number: .*{reason}"):
        results_page(f"{{{{{place}}}}}", tables)
