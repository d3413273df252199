from dataclasses import replace

import numpy as np
import pytest

from diveparse.configs import HeadConfig, HeadKind
from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.pairs import NLL, TOP1, Effect, pair_arms
from diveparse.engine.evidence.statistics import Estimate


def test_the_effect_on_each_dive_is_listed_with_its_training_clips(a_run):
    (pair,) = compare_runs([a_run("flat", accuracy=0.2), a_run("joint", accuracy=0.9)]).pairs
    classes = pair.classes.set_index("number")
    assert classes["training_clips"].to_dict() == {"101B": 200, "103B": 50, "203C": 3}
    assert (classes["test_clips"] == 8).all()
    assert (classes["difference"] * classes["test_clips"]).sum() / 24 == pytest.approx(pair.comparison.difference.value)


def test_an_arm_that_cannot_name_a_dive_is_compared_by_accuracy_alone(a_run):
    other = a_run("joint")
    unable = replace(other, predictions=other.predictions.assign(log_prob_true=-np.inf))
    (pair,) = compare_runs([a_run("flat"), unable]).pairs
    assert {effect.quantity for effect in pair.effects} == {"top-1"}


def test_a_pair_of_arms_names_the_options_that_differ_and_no_others(a_run):
    flat = a_run("flat", 3, trained={"head": HeadConfig(kind=HeadKind.FLAT)})
    joint = a_run("joint", 3, trained={"head": HeadConfig(kind=HeadKind.JOINT)})
    assert compare_runs([flat, joint]).pairs[0].differing == ["arm (joint, flat)", "head.kind (joint, flat)"]


def test_arms_that_share_no_seed_cannot_be_paired(a_run):
    arms = {"flat": {0: a_run("flat")}, "joint": {1: a_run("joint", 1)}}
    with pytest.raises(ValueError, match=r"flat \(seeds \[0\]\) and joint \(seeds \[1\]\) share no seed"):
        pair_arms(arms, "flat", "joint")


def test_dives_held_out_are_a_group_of_their_own(a_run):
    arms = {arm: {0: a_run(arm)} for arm in ("flat", "joint")}
    groups = [effect.group for effect in pair_arms(arms, "flat", "joint", held_out=["203C"]).effects]
    assert groups == ["all", "many", "medium", "few", "held out"] * 2


@pytest.mark.parametrize(
    ("quantity", "difference", "by_seed", "p_holm", "expected"),
    [
        (TOP1, Estimate(0.05, 0.03, 0.07), (0.04, 0.06), 0.001, "higher"),
        (TOP1, Estimate(-0.05, -0.07, -0.03), (-0.04, -0.06), 0.001, "lower"),
        (TOP1, Estimate(0.05, 0.03, 0.07), (-0.01, 0.11), 0.001, "higher, but not with every seed"),
        (TOP1, Estimate(0.0, -0.01, 0.01), (-0.01, 0.01), 0.7, "equivalent (±2 points)"),
        (NLL, Estimate(0.0, -0.01, 0.01), (0.0, 0.0), 0.7, "equivalent (±0.02 nats)"),
        (NLL, Estimate(0.0, -0.1, 0.1), (-0.1, 0.1), 0.7, "inconclusive"),
    ],
)
def test_a_verdict_is_one_of_four_and_marks_seeds_that_disagree(quantity, difference, by_seed, p_holm, expected):
    effect = Effect(quantity, "all", 24, 3, difference, by_seed, p_value=p_holm / 2, p_holm=p_holm)
    assert effect.verdict == expected
