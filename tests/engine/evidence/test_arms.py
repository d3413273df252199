import pytest

from diveparse.configs import DataConfig, TrainConfig
from diveparse.engine.evidence.arms import group_by_arm
from diveparse.engine.evidence.comparison import compare_runs


def test_arms_of_several_experiments_carry_the_experiments_name(a_run):
    assert list(group_by_arm([a_run("flat"), a_run("flat", name="longer")])) == ["demo/flat", "longer/flat"]


OTHER_TRUTHS = ["101B", "103B", "107B"] + ["101B", "103B", "203C"] * 7


@pytest.mark.parametrize(
    ("arm", "different", "reason"),
    [
        ("joint", {"tested": {"split": "validation"}}, "tested on different splits, test and validation"),
        ("joint", {"tested": {"num_views": 3}}, "tested with different numbers of views, 1 and 3"),
        ("joint", {"tested": {"from_cache": True}}, "only one was tested from the cache"),
        ("joint", {"tested": {"trained_from_cache": False}}, "only one was trained from the cache"),
        ("joint", {"tested": {"data_root": "elsewhere"}}, "tested on different data, .*/data and .*/elsewhere"),
        ("joint", {"tested": {"rendered": False}}, "metrics.json differ in `rendered`, True and False"),
        (
            "joint",
            {"trained": {"data": DataConfig(root="data", val_fraction=0.3)}},
            "different data.val_fraction, 0.15 and 0.3",
        ),
        ("joint", {"clip": [f"clip{k:02d}" for k in range(1, 25)]}, "2 clips are in only one .*, such as clip00"),
        ("joint", {"true_number": OTHER_TRUTHS}, "1 clips have different truths, such as clip02: 203C, 107B"),
        ("joint", {"source": ["one"] * 12 + ["two"] * 12}, "have different sources, such as clip00: source0, one"),
        ("flat", {}, "both arm flat with seed 0"),
    ],
)
def test_runs_that_were_tested_differently_are_refused_with_the_reason(a_run, arm, different, reason):
    with pytest.raises(ValueError, match=reason):
        compare_runs([a_run("flat"), a_run(arm, **different)])


def test_the_same_data_root_spelt_in_two_ways_is_the_same(a_run):
    compare_runs([a_run("flat"), a_run("joint", tested={"data_root": "./data/../data"})])


def test_runs_of_one_arm_that_were_trained_differently_are_refused_naming_the_option(a_run):
    other = a_run("flat", 1, trained={"train": TrainConfig(num_epochs=7, learning_rate=0.5)})
    reason = r"^runs/demo/flat/seed-0 and runs/demo/flat/seed-1 are both arm flat, .* different train.num_epochs \("
    with pytest.raises(ValueError, match=reason + r"\d+, 7\), train.learning_rate \([^,]*, 0\.5\)$"):
        compare_runs([a_run("flat"), other])


def test_seeds_of_one_arm_may_lie_elsewhere_and_be_loaded_by_more_workers(a_run):
    elsewhere = {"runs_dir": "elsewhere", "data": DataConfig(root="./data", num_workers=7)}
    assert list(group_by_arm([a_run("flat"), a_run("flat", 1, trained=elsewhere)])["flat"]) == [0, 1]
