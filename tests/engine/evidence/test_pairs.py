from dataclasses import replace

import numpy as np
import pytest

from diveparse.configs import DataConfig, HeadConfig, HeadKind
from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.pairs import pair_arms
from diveparse.engine.evidence.trainings import trainings_needed, two_way_bootstrap
from diveparse.engine.evidence.verdicts import TOP1


def test_the_effect_on_each_dive_is_listed_with_its_training_clips(a_run):
    (pair,) = compare_runs([a_run("flat", accuracy=0.2), a_run("joint", accuracy=0.9)]).pairs
    classes = pair.classes.set_index("number")
    assert classes["training_clips"].to_dict() == {"101B": 200, "103B": 50, "203C": 3}
    assert (classes["test_clips"] == 8).all()
    assert (classes["difference"] * classes["test_clips"]).sum() / 24 == pytest.approx(pair.weights.difference.value)


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
    data = DataConfig(root="data", unseen_dives=["203C"])
    arms = {arm: {0: a_run(arm, trained={"data": data})} for arm in ("flat", "joint")}
    groups = [effect.group for effect in pair_arms(arms, "flat", "joint").effects]
    assert groups == ["all", "many", "medium", "few", "held out"] * 2


def test_an_effect_sums_the_gains_of_each_training_over_the_clips_of_each_source(a_run):
    arms = {arm: {seed: a_run(arm, seed) for seed in (0, 1)} for arm in ("flat", "joint")}
    gains = pair_arms(arms, "flat", "joint").overall(TOP1).gains
    for row, seed in enumerate((0, 1)):
        gain = arms["joint"][seed].correct.astype(int) - arms["flat"][seed].correct
        assert gains.totals[row].tolist() == [gain[source::4].sum() for source in range(4)]
    assert gains.num_clips.tolist() == [6] * 4


@pytest.mark.parametrize("num_seeds", [6, 10])
def test_an_effect_tells_what_is_missing_and_is_resampled_from_ten_trainings_on(a_run, num_seeds):
    arms = {arm: {seed: a_run(arm, seed) for seed in range(num_seeds)} for arm in ("flat", "joint")}
    effect = pair_arms(arms, "flat", "joint").overall(TOP1)
    by_training = effect.gains.by_training
    assert effect.num_higher == sum(value > 0 for value in by_training)
    needed = trainings_needed(by_training.var(ddof=1), effect.gains.source_variance, 4)
    assert effect.still_needed == max(0, needed - num_seeds)
    assert effect.resampled == (two_way_bootstrap(effect.gains) if num_seeds >= 10 else None)


def test_one_training_does_not_tell_how_many_are_missing(a_run):
    arms = {arm: {0: a_run(arm)} for arm in ("flat", "joint")}
    assert np.isnan(pair_arms(arms, "flat", "joint").overall(TOP1).still_needed)
