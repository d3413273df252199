import numpy as np
import pytest

from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.runs import ALL_SCORES
from diveparse.engine.evidence.tidy import COLUMNS, class_table, tidy_table


@pytest.fixture(scope="module")
def report(a_run):
    return compare_runs([a_run(arm, seed) for arm in ("flat", "joint") for seed in range(10)])


def test_the_tidy_table_holds_every_score_of_every_run(report):
    table = tidy_table(report)
    assert tuple(table.columns) == COLUMNS
    assert set(table["clips"]) == {report.caption}
    scores = table[table["versus"].isna() & (table["seed"] != "all")]
    for _, row in scores.iterrows():
        assert row["value"] == report.arms[row["arm"]][row["seed"]].scores[row["quantity"]]
    assert len(scores) == 20 * len(ALL_SCORES)


def test_the_tidy_table_holds_every_effect_over_all_seeds_and_by_seed(report):
    table, (pair,) = tidy_table(report), report.pairs
    differences = table[table["versus"].notna()]
    assert len(differences) == 11 * len(pair.effects)
    for effect in pair.effects:
        quantity = {"top-1": "top1_difference", "NLL": "nll_difference"}[effect.quantity]
        rows = differences[(differences["quantity"] == quantity) & (differences["group"] == effect.group)]
        rows = rows.set_index("seed")
        assert (rows["num_clips"] == effect.num_clips).all()
        assert (rows["num_dives"] == effect.num_classes).all()
        assert rows.loc[list(range(10)), "value"].tolist() == effect.gains.by_training.tolist()
        overall, judged, resampled = rows.loc["all"], effect.judged, effect.resampled
        assert tuple(overall[["value", "low", "high"]]) == tuple(vars(judged.difference.interval()).values())
        assert tuple(overall[["trainings", "higher", "df"]]) == (10, effect.num_higher, judged.difference.df)
        assert overall["spread"] ** 2 == pytest.approx(effect.spread.variance)
        assert overall["source_error"] ** 2 == pytest.approx(effect.gains.source_variance)
        assert tuple(overall[["p_holm", "p_within_0.01", "p_within_0.02"]]) == (judged.p_different, *judged.p_within)
        assert tuple(overall[["low_resampled", "high_resampled"]]) == (resampled.low, resampled.high)
        assert tuple(overall[["still_needed", "verdict"]]) == (effect.still_needed, judged.verdict)


def test_what_holds_for_these_weights_has_columns_of_that_name_and_stands_with_top1_on_all_clips(report):
    table, (pair,) = tidy_table(report), report.pairs
    rows = table[table["weights_low"].notna()]
    assert len(rows) == 1
    row, weights = rows.iloc[0], pair.weights
    assert (row["quantity"], row["group"], row["seed"]) == ("top1_difference", "all", "all")
    assert tuple(row[["weights_low", "weights_high", "weights_sources_p"]]) == (
        weights.difference.low,
        weights.difference.high,
        weights.p_value,
    )


def test_clips_won_and_lost_stand_beside_the_difference_of_each_seed(report):
    table, (pair,) = tidy_table(report), report.pairs
    rows = table[table["weights_clips_won"].notna()]
    assert rows["seed"].tolist() == list(range(10))
    for (_, row), test in zip(rows.iterrows(), pair.weights.tests, strict=True):
        assert (row["weights_clips_won"], row["weights_clips_lost"]) == (test.num_only_second, test.num_only_first)
        assert row["value"] == (row["weights_clips_won"] - row["weights_clips_lost"]) / 24


def test_the_class_table_names_both_arms(report):
    table = class_table(report)
    assert (set(table["first"]), set(table["second"])) == ({"flat"}, {"joint"})
    np.testing.assert_allclose(table["difference"], table["accuracy_second"] - table["accuracy_first"])


def test_a_single_arm_has_no_class_table(a_run):
    assert class_table(compare_runs([a_run("flat")])).empty
