from functools import lru_cache

import numpy as np
import pytest

from diveparse.configs import ClipConfig, HeadConfig, HeadKind
from diveparse.engine.evidence.comparison import compare_groups, compare_runs
from diveparse.engine.evidence.tables import page_tables, seeds_text
from diveparse.engine.evidence.tidy import tidy_table

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
    assert len(tables) == (1 if num_arms < 6 else 5) + (4 if num_arms > 1 else 0)


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


def table_of(report, title):
    """The rows of the table whose first header begins so, without its headers."""
    (rows,) = [rows for rows in map(rows_of, page_tables(tidy_table(report))) if rows[0][0].startswith(title)]
    return rows[2:]


def titles_of(report):
    return [rows_of(table)[0][0] for table in page_tables(tidy_table(report))]


def test_one_training_is_compared_as_weights_in_a_table_of_that_name(a_run):
    report = report_of(a_run, 2, seeds=(0,))
    weights = report.pairs[0].weights
    (test,), difference = weights.tests, weights.difference
    (row,) = table_of(report, "these weights only: top-1")
    assert row == [
        "joint - flat, seed 0",
        f"{difference.value:+.3f}",
        f"{test.num_only_second} to {test.num_only_first}",
        f"{test.p_value:.2g}",
        f"{difference.low:+.3f} to {difference.high:+.3f}",
        f"{weights.p_value:.2g}",
    ]
    for row in table_of(report, "top-1, over trainings"):
        assert (row[2].count("to"), row[4], row[5]) == (0, "", "these weights only")


def test_few_trainings_are_a_row_each_and_one_over_all(a_run):
    rows = table_of(report_of(a_run, 2), "these weights only")
    assert [row[0] for row in rows] == [f"joint - flat, {which}" for which in ("seed 0", "seed 1", "mean")]
    assert [bool(row[3]) for row in rows] == [True, True, False]
    assert [bool(row[5]) for row in rows] == [False, False, True]


def test_enough_trainings_have_verdicts_and_nothing_about_their_weights(a_run):
    report = report_of(a_run, 2, seeds=tuple(range(10)))
    assert titles_of(report)[1:] == ["top-1, over trainings", "NLL, over trainings", "top-1, all clips"]
    effects = [effect for effect in report.pairs[0].effects if effect.quantity == "top-1"]
    rows = table_of(report, "top-1, over trainings")
    for row, effect in zip(rows, effects, strict=True):
        interval = effect.judged.difference.interval()
        assert row[2] == f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        assert row[3] == f"{effect.num_higher} of 10"
        assert row[4] == f"{effect.judged.p_different:.2g}"
        assert row[5].startswith(effect.judged.verdict)
    assert rows[0][1] == "all: 3 dives, 24 clips"
    assert rows[1][1] == "many: 1 dive, 8 clips"


def test_the_parts_of_the_error_stand_beside_both_intervals(a_run):
    report = report_of(a_run, 2, seeds=tuple(range(10)))
    effect = report.pairs[0].effects[0]
    (row,) = table_of(report, "top-1, all clips")
    spread, source_error = np.sqrt([effect.spread.variance, effect.gains.source_variance])
    assert row[1:3] == [f"{spread:.3f}", f"{source_error:.3f}"]
    assert row[5] == f"{effect.resampled.low:+.3f} to {effect.resampled.high:+.3f}"
    (row,) = table_of(report_of(a_run, 2), "top-1, all clips")
    assert row[5] == ""


@pytest.mark.parametrize(
    ("verdict", "still_needed", "expected"),
    [
        ("undecided", 9.0, "undecided (9 more)"),
        ("undecided", np.inf, "undecided (more sources)"),
        ("undecided", 0.0, "undecided"),
        ("these weights only", 13.0, "these weights only (13 more)"),
        ("these weights only", np.nan, "these weights only"),
        ("higher", 9.0, "higher"),
    ],
)
def test_only_what_is_undecided_asks_for_more(a_run, verdict, still_needed, expected):
    table = tidy_table(report_of(a_run, 2)).assign(still_needed=still_needed)
    table["verdict"] = table["verdict"].where(table["verdict"].isna(), verdict)
    shown = {rows_of(each)[2][-1] for each in page_tables(table) if rows_of(each)[0][-1] == "verdict"}
    assert shown == {expected}


def test_one_source_shows_mcnemars_test_for_any_number_of_trainings(a_run):
    report = compare_runs([a_run(arm, seed, source=["pool"] * 24) for arm in ("flat", "joint") for seed in range(5)])
    rows = table_of(report, "these weights only")
    assert [bool(row[3]) for row in rows] == [True] * 5 + [False]
    assert {row[4] for row in rows} == {""}
    assert {row[5] for row in table_of(report, "top-1, over trainings")} == {"this source only"}
    assert "top-1, all clips" not in titles_of(report)


def test_pooled_settings_have_a_table_of_their_own(a_run):
    arms = {
        f"{kind}-{frames}": {
            seed: a_run(
                f"{kind}-{frames}",
                seed,
                trained={"head": HeadConfig(kind=HeadKind(kind)), "clip": ClipConfig(num_frames=frames)},
            )
            for seed in range(5)
        }
        for kind in ("flat", "joint")
        for frames in (8, 16)
    }
    report = compare_groups(arms, [("flat-8", "joint-8"), ("flat-16", "joint-16")])
    (row,) = table_of(report, "top-1, pooled over settings")
    (pool, _) = report.pools
    assert row[:2] == ["head.kind (joint, flat)", "joint-8 - flat-8, joint-16 - flat-16"]
    assert row[3:] == [f"{pool.num_higher} of 10", f"{pool.judged.p_different:.2g}", pool.judged.verdict]


@pytest.mark.parametrize(
    ("seeds", "expected"), [([0], "0"), ([0, 1, 2], "0, 1, 2"), ([3, 4, 5, 6], "3 to 6"), ([0, 1, 2, 9], "0, 1, 2, 9")]
)
def test_many_seeds_in_a_row_are_shown_by_their_ends(seeds, expected):
    assert seeds_text(seeds) == expected
