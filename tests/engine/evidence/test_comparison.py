from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diveparse.configs import Config, DataConfig, HeadConfig, HeadKind, TrainConfig
from diveparse.engine.evidence.comparison import SCORES, Run, compare_groups, compare_runs, group_by_arm
from diveparse.engine.evidence.statistics import holm

NUM_CLIPS = 24


def a_run(arm, seed=0, *, accuracy=0.5, name="demo", trained=None, tested=None, **columns):
    """trained: sections of its config; tested: fields of `Run` that say how it was tested."""
    hit = np.random.default_rng([seed, len(arm)]).random(NUM_CLIPS) < accuracy
    table = pd.DataFrame(
        {
            "clip": [f"clip{k:02d}" for k in range(NUM_CLIPS)],
            "source": [f"source{k % 4}" for k in range(NUM_CLIPS)],
            "true_number": ["101B", "103B", "203C"] * (NUM_CLIPS // 3),
        }
        | columns
    )
    table["predicted_number"] = table["true_number"].where(hit, "407C")
    table["log_prob_true"] = np.where(hit, -0.1, -2.0)
    config = Config(name=name, arm=arm, seed=seed, **{"data": DataConfig(root="data")} | (trained or {}))
    scores = dict.fromkeys(SCORES, 0.5) | {"top1": float(hit.mean())}
    how = (
        {"split": "test", "num_views": 1, "data_root": "data", "rendered": True}
        | {"from_cache": False, "trained_from_cache": True}
        | (tested or {})
    )
    folder = Path(f"runs/{name}/{arm}/seed-{seed}")
    num_train_clips = {"101B": 200, "103B": 50, "203C": 3}
    about = {"num_classes_scored": 3, "num_train_clips": num_train_clips, "scores": scores}
    return Run(folder, config, **how, **about, predictions=table)


def test_arms_are_compared_with_each_earlier_one_over_the_seeds_that_both_have():
    flat = [a_run("flat", seed, accuracy=0.3) for seed in (0, 1, 2)]
    joint = [a_run("joint", seed, accuracy=0.9) for seed in (2, 0)]
    report = compare_runs([*flat, *joint])
    (pair,) = report.pairs
    assert (pair.name, pair.seeds) == ("joint - flat", (0, 2))
    paired = [(joint[1], flat[0]), (joint[0], flat[2])]
    expected = np.mean([second.correct.mean() - first.correct.mean() for second, first in paired])
    assert pair.comparison.difference.value == pytest.approx(expected)
    assert report.accuracies["flat"].value == pytest.approx(np.mean([run.correct.mean() for run in flat]))
    assert report.scores_of("joint", "top1") == [joint[1].scores["top1"], joint[0].scores["top1"]]


def test_effects_are_told_for_every_group_of_dives_and_corrected_for_all_pairs_of_it():
    runs = [a_run("flat", accuracy=0.2), a_run("joint", accuracy=0.9), a_run("constrained", accuracy=0.5)]
    report = compare_runs(runs)
    for pair in report.pairs:
        first, second = report.arms[pair.first][0], report.arms[pair.second][0]
        numbers = first.predictions["true_number"].to_numpy()
        groups = {"all": ["101B", "103B", "203C"], "many": ["101B"], "medium": ["103B"], "few": ["203C"]}
        by_name = {(effect.quantity, effect.group): effect for effect in pair.effects}
        assert set(by_name) == {(quantity, group) for quantity in ("top-1", "NLL") for group in groups}
        for group, members in groups.items():
            rows = np.isin(numbers, members)
            effect = by_name["top-1", group]
            assert (effect.num_clips, effect.num_classes) == (rows.sum(), len(members))
            gain = second.correct[rows].mean() - first.correct[rows].mean()
            assert effect.difference.value == pytest.approx(gain)
            assert by_name["NLL", group].difference.value == pytest.approx(-1.9 * gain)
            family = [
                effect.p_value
                for other in report.pairs
                for effect in other.effects
                if (effect.quantity, effect.group) == ("top-1", group)
            ]
            assert effect.p_holm == pytest.approx(holm(family)[report.pairs.index(pair)])


def test_the_effect_on_each_dive_is_listed_with_its_training_clips():
    (pair,) = compare_runs([a_run("flat", accuracy=0.2), a_run("joint", accuracy=0.9)]).pairs
    classes = pair.classes.set_index("number")
    assert classes["training_clips"].to_dict() == {"101B": 200, "103B": 50, "203C": 3}
    assert (classes["test_clips"] == NUM_CLIPS // 3).all()
    assert (classes["difference"] * classes["test_clips"]).sum() / NUM_CLIPS == pytest.approx(
        pair.comparison.difference.value
    )


def test_an_arm_that_cannot_name_a_dive_is_compared_by_accuracy_alone():
    other = a_run("joint")
    unable = replace(other, predictions=other.predictions.assign(log_prob_true=-np.inf))
    (pair,) = compare_runs([a_run("flat"), unable]).pairs
    assert {effect.quantity for effect in pair.effects} == {"top-1"}


def test_only_the_pairs_that_are_asked_for_are_compared():
    arms = {arm: {0: a_run(arm)} for arm in ("flat", "joint", "constrained")}
    report = compare_groups(arms, [("flat", "constrained")])
    assert [pair.name for pair in report.pairs] == ["constrained - flat"]
    assert list(report.accuracies) == list(arms)


def test_every_two_of_three_arms_are_compared():
    report = compare_runs([a_run("flat"), a_run("joint"), a_run("constrained")])
    assert [pair.name for pair in report.pairs] == ["joint - flat", "constrained - flat", "constrained - joint"]


def test_arms_of_several_experiments_carry_the_experiments_name():
    assert list(group_by_arm([a_run("flat"), a_run("flat", name="longer")])) == ["demo/flat", "longer/flat"]


OTHER_TRUTHS = ["101B", "103B", "107B"] + ["101B", "103B", "203C"] * (NUM_CLIPS // 3 - 1)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (a_run("joint", tested={"split": "validation"}), "tested on different splits, test and validation"),
        (a_run("joint", tested={"num_views": 3}), "tested with different numbers of views, 1 and 3"),
        (a_run("joint", tested={"from_cache": True}), "only one was tested from the cache"),
        (a_run("joint", tested={"trained_from_cache": False}), "only one was trained from the cache"),
        (a_run("joint", tested={"data_root": "elsewhere"}), "tested on different data, .*/data and .*/elsewhere"),
        (a_run("joint", tested={"rendered": False}), "metrics.json differ in `rendered`, True and False"),
        (
            a_run("joint", trained={"data": DataConfig(root="data", val_fraction=0.3)}),
            "different data.val_fraction, 0.15 and 0.3",
        ),
        (a_run("joint", clip=[f"clip{k:02d}" for k in range(1, 25)]), "2 clips are in only one .*, such as clip00"),
        (a_run("joint", true_number=OTHER_TRUTHS), "1 clips have different truths, such as clip02: 203C, 107B"),
        (a_run("joint", source=["one"] * 12 + ["two"] * 12), "have different sources, such as clip00: source0, one"),
        (a_run("flat"), "both arm flat with seed 0"),
        (a_run("joint", seed=1), r"flat \(seeds \[0\]\) and joint \(seeds \[1\]\) share no seed"),
    ],
)
def test_runs_that_did_not_answer_the_same_question_are_refused_with_the_reason(other, reason):
    with pytest.raises(ValueError, match=reason):
        compare_runs([a_run("flat"), other])


def test_the_same_data_root_spelt_in_two_ways_is_the_same():
    compare_runs([a_run("flat"), a_run("joint", tested={"data_root": "./data/../data"})])


def test_the_caption_says_what_the_runs_were_tested_on_whatever_they_were_trained_on():
    for rendered, origin in ((True, "rendered dives, not Diving48"), (False, "clips of real/diving48")):
        tested = {"data_root": "real/diving48", "rendered": rendered}
        report = compare_runs([a_run("flat", tested=tested, trained={"data": DataConfig(root="data/rendered")})])
        assert report.caption == f"test split: 24 clips of 4 sources, 3 dives; {origin}"


def test_runs_of_one_arm_that_were_trained_differently_are_refused_naming_the_option():
    other = a_run("flat", 1, trained={"train": TrainConfig(num_epochs=7, learning_rate=0.5)})
    reason = r"^runs/demo/flat/seed-0 and runs/demo/flat/seed-1 are both arm flat, .* different train.num_epochs \("
    with pytest.raises(ValueError, match=reason + r"\d+, 7\), train.learning_rate \([^,]*, 0\.5\)$"):
        compare_runs([a_run("flat"), other])


def test_seeds_of_one_arm_may_lie_elsewhere_and_be_loaded_by_more_workers():
    elsewhere = {"runs_dir": "elsewhere", "data": DataConfig(root="./data", num_workers=7)}
    assert list(group_by_arm([a_run("flat"), a_run("flat", 1, trained=elsewhere)])["flat"]) == [0, 1]


def test_a_pair_of_arms_names_the_options_that_differ_and_no_others():
    flat = a_run("flat", 3, trained={"head": HeadConfig(kind=HeadKind.FLAT)})
    joint = a_run("joint", 3, trained={"head": HeadConfig(kind=HeadKind.JOINT)})
    assert compare_runs([flat, joint]).pairs[0].differing == ["arm (joint, flat)", "head.kind (joint, flat)"]


def test_an_invalid_answer_is_a_wrong_one():
    run = a_run("independent", accuracy=1.0)
    invalid = run.predictions.assign(predicted_number="")
    assert run.correct.all()
    assert not replace(run, predictions=invalid).correct.any()
