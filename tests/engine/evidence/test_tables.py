import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.tables import page_tables
from diveparse.engine.evidence.tidy import read_tidy_table, tidy_table

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
ARMS = ("flat", "joint", "pairwise", "residual", "constrained", "independent")


@lru_cache
def report_of(a_run, num_arms, seeds=(0, 1)):
    return compare_runs([a_run(arm, seed) for arm in ARMS[:num_arms] for seed in seeds])


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.mark.parametrize("num_arms", [1, 2, 6])
def test_no_table_has_more_than_six_columns(a_run, num_arms):
    tables = page_tables(tidy_table(report_of(a_run, num_arms)))
    assert max(len(row) for table in tables for row in rows_of(table)) <= 6
    assert len(tables) == (1 if num_arms < 6 else 3) + (3 if num_arms > 1 else 0)


@pytest.mark.parametrize("num_arms", [2, 6])
def test_the_tables_of_a_csv_file_are_those_of_the_report_that_it_was_written_from(a_run, tmp_path, num_arms):
    table = tidy_table(report_of(a_run, num_arms))
    table.to_csv(tmp_path / "table.csv", index=False)
    assert page_tables(read_tidy_table(tmp_path / "table.csv")) == page_tables(table)


@pytest.mark.parametrize("num_arms", [2, 6])
def test_every_score_of_every_arm_is_shown_with_its_spread(a_run, num_arms):
    report = report_of(a_run, num_arms)
    tables = [rows_of(table) for table in page_tables(tidy_table(report))]
    if num_arms == 2:
        tables[0] = [list(row) for row in zip(*tables[0][:1], *tables[0][2:], strict=True)]
    shown = {row[0]: row[1:] for row in tables[0] if row[0] in ARMS}
    for arm in report.arms:
        values = report.scores_of(arm, "top1")
        estimate = report.accuracies[arm]
        assert shown[arm][:3] == [
            "0, 1",
            f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}",
            f"{estimate.low:.3f} to {estimate.high:.3f}",
        ]


def test_one_seed_is_one_row_with_its_interval(a_run):
    report = report_of(a_run, 2, seeds=(0,))
    rows = rows_of(page_tables(tidy_table(report))[1])
    (test,), difference = report.pairs[0].comparison.tests, report.pairs[0].comparison.difference
    assert [row[0] for row in rows[2:]] == ["joint - flat"]
    assert rows[2][1:3] == [f"{difference.value:+.3f}", f"{difference.low:+.3f} to {difference.high:+.3f}"]
    assert rows[2][3:] == [str(test.num_only_second), str(test.num_only_first), f"{test.p_value:.2g}"]


def test_several_seeds_are_a_row_each_and_one_over_all(a_run):
    rows = rows_of(page_tables(tidy_table(report_of(a_run, 2)))[1])
    assert [row[0] for row in rows[2:]] == [f"joint - flat, {which}" for which in ("seed 0", "seed 1", "all seeds")]


def test_effects_have_their_group_and_their_verdict(a_run):
    report = report_of(a_run, 2)
    top1, nll = (rows_of(table) for table in page_tables(tidy_table(report))[2:])
    assert (top1[0][0], nll[0][0]) == ("top-1, over sources", "NLL, over sources")
    effects = [effect for effect in report.pairs[0].effects if effect.quantity == "top-1"]
    assert [row[-1] for row in top1[2:]] == [effect.verdict for effect in effects]
    assert top1[2][1] == "all: 3 dives, 24 clips"
    assert top1[3][1] == "many: 1 dive, 8 clips"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_a_page_of_results_holds_the_tables_of_its_csv_file(path):
    """To the last digit but one: some pages were rounded once, from more digits than their CSV file has."""
    shown = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    tables = page_tables(read_tidy_table(path.with_suffix(".csv")))
    expected = [line for table in tables for line in table.splitlines()]
    number = r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?"
    for line, other in zip(shown, expected, strict=False):
        assert re.sub(number, "#", line) == re.sub(number, "#", other)
        numbers = [[float(each) for each in re.findall(number, text)] for text in (line, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1.1e-3)
    assert len(shown) >= len(expected)
    assert max(line.count("|") for line in shown) <= 7
