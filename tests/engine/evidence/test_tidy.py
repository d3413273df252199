import numpy as np
import pytest

from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.runs import SCORES
from diveparse.engine.evidence.tidy import COLUMNS, class_table, tidy_table


@pytest.fixture(scope="module")
def report(a_run):
    return compare_runs([a_run(arm, seed) for arm in ("flat", "joint") for seed in (0, 1)])


def test_the_tidy_table_holds_every_score_of_every_run(report):
    table = tidy_table(report)
    assert tuple(table.columns) == COLUMNS
    assert set(table["clips"]) == {report.caption}
    scores = table[table["versus"].isna() & (table["seed"] != "all")]
    for _, row in scores.iterrows():
        assert row["value"] == report.arms[row["arm"]][row["seed"]].scores[row["quantity"]]
    assert len(scores) == 4 * len(SCORES)


def test_the_tidy_table_holds_every_effect_over_all_seeds_and_by_seed(report):
    table, (pair,) = tidy_table(report), report.pairs
    differences = table[table["versus"].notna()]
    assert len(differences) == 3 * len(pair.effects)
    for effect in pair.effects:
        quantity = {"top-1": "top1_difference", "NLL": "nll_difference"}[effect.quantity]
        rows = differences[(differences["quantity"] == quantity) & (differences["group"] == effect.group)]
        rows = rows.set_index("seed")
        assert (rows["num_clips"] == effect.num_clips).all()
        assert (rows["num_dives"] == effect.num_classes).all()
        assert rows.loc[[0, 1], "value"].tolist() == list(effect.by_seed)
        overall = rows.loc["all"]
        assert tuple(overall[["value", "low", "high"]]) == tuple(vars(effect.difference).values())
        assert tuple(overall[["p", "p_holm", "verdict"]]) == (effect.p_value, effect.p_holm, effect.verdict)


def test_clips_won_and_lost_stand_beside_the_difference_of_each_seed(report):
    table, (pair,) = tidy_table(report), report.pairs
    rows = table[table["clips_won"].notna()]
    assert rows["seed"].tolist() == [0, 1]
    for (_, row), test in zip(rows.iterrows(), pair.comparison.tests, strict=True):
        assert (row["clips_won"], row["clips_lost"]) == (test.num_only_second, test.num_only_first)
        assert row["value"] == (row["clips_won"] - row["clips_lost"]) / 24


def test_the_class_table_names_both_arms(report):
    table = class_table(report)
    assert (set(table["first"]), set(table["second"])) == ({"flat"}, {"joint"})
    np.testing.assert_allclose(table["difference"], table["accuracy_second"] - table["accuracy_first"])


def test_a_single_arm_has_no_class_table(a_run):
    assert class_table(compare_runs([a_run("flat")])).empty
