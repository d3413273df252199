import numpy as np
import pytest

from diveparse.configs import DataConfig
from diveparse.engine.evidence.comparison import compare_groups, compare_runs
from diveparse.engine.evidence.statistics import holm
from diveparse.engine.evidence.trainings import pooled_spread
from diveparse.engine.evidence.verdicts import TOP1


def test_arms_are_compared_with_each_earlier_one_over_the_seeds_that_both_have(a_run):
    flat = [a_run("flat", seed, accuracy=0.3) for seed in (0, 1, 2)]
    joint = [a_run("joint", seed, accuracy=0.9) for seed in (2, 0)]
    report = compare_runs([*flat, *joint])
    (pair,) = report.pairs
    assert (pair.name, pair.seeds) == ("joint - flat", (0, 2))
    paired = [(joint[1], flat[0]), (joint[0], flat[2])]
    expected = np.mean([second.correct.mean() - first.correct.mean() for second, first in paired])
    assert pair.overall(TOP1).judged.difference.value == pytest.approx(expected)
    assert pair.weights.difference.value == pytest.approx(expected)
    assert report.accuracies["flat"].value == pytest.approx(np.mean([run.correct.mean() for run in flat]))
    assert report.scores_of("joint", "top1") == [joint[1].scores["top1"], joint[0].scores["top1"]]


def test_every_group_of_dives_has_an_effect_corrected_for_all_pairs_of_the_group(a_run):
    accuracies = {"flat": 0.2, "joint": 0.9, "constrained": 0.5}
    runs = [a_run(arm, seed, accuracy=accuracy) for arm, accuracy in accuracies.items() for seed in range(5)]
    report = compare_runs(runs)
    for pair in report.pairs:
        firsts, seconds = (
            np.stack([run.correct for run in report.arms[arm].values()]) for arm in (pair.first, pair.second)
        )
        numbers = runs[0].predictions["true_number"].to_numpy()
        groups = {"all": ["101B", "103B", "203C"], "many": ["101B"], "medium": ["103B"], "few": ["203C"]}
        by_name = {(effect.quantity, effect.group): effect for effect in pair.effects}
        assert set(by_name) == {(quantity, group) for quantity in ("top-1", "NLL") for group in groups}
        for group, members in groups.items():
            rows = np.isin(numbers, members)
            effect = by_name["top-1", group]
            assert (effect.num_clips, effect.num_classes) == (rows.sum(), len(members))
            gain = seconds[:, rows].mean() - firsts[:, rows].mean()
            assert effect.judged.difference.value == pytest.approx(gain)
            assert by_name["NLL", group].judged.difference.value == pytest.approx(-1.9 * gain)
            family = [
                effect.judged.difference.p_different
                for other in report.pairs
                for effect in other.effects
                if (effect.quantity, effect.group) == ("top-1", group)
            ]
            assert effect.judged.p_different == pytest.approx(holm(family)[report.pairs.index(pair)])


ARMS = ("flat", "joint", "constrained")


def test_a_verdict_rests_on_the_spread_of_its_own_pair(a_run):
    report = compare_runs([a_run(arm, seed) for arm in ARMS for seed in range(5)])
    for pair in report.pairs:
        effect = pair.overall(TOP1)
        assert effect.spread.variance == pytest.approx(effect.gains.by_training.var(ddof=1))
        assert effect.spread.df == pytest.approx(4)


def test_under_five_trainings_all_pairs_share_a_spread_and_have_no_verdict(a_run):
    report = compare_runs([a_run(arm, seed, accuracy=len(arm) / 12) for arm in ARMS for seed in range(3)])
    effects = [pair.overall(TOP1) for pair in report.pairs]
    expected = pooled_spread(np.stack([effect.gains.by_training for effect in effects]))
    assert {effect.spread for effect in effects} == {expected}
    assert {effect.judged.verdict for effect in effects} == {"these weights only"}
    assert all(np.isnan(effect.judged.p_different) for effect in effects)
    assert all(np.isfinite(effect.judged.difference.interval().low) for effect in effects)


def test_clips_of_one_source_are_compared_without_a_verdict(a_run):
    report = compare_runs([a_run(arm, seed, source=["pool"] * 24) for arm in ARMS for seed in range(5)])
    effects = [effect for pair in report.pairs for effect in pair.effects]
    assert {effect.judged.verdict for effect in effects} == {"this source only"}
    assert all(len(pair.weights.tests) == 5 for pair in report.pairs)


def test_only_the_pairs_that_are_asked_for_are_compared(a_run):
    arms = {arm: {0: a_run(arm)} for arm in ("flat", "joint", "constrained")}
    report = compare_groups(arms, [("flat", "constrained")])
    assert [pair.name for pair in report.pairs] == ["constrained - flat"]
    assert list(report.accuracies) == list(arms)


def test_every_two_of_three_arms_are_compared(a_run):
    report = compare_runs([a_run("flat"), a_run("joint"), a_run("constrained")])
    assert [pair.name for pair in report.pairs] == ["joint - flat", "constrained - flat", "constrained - joint"]


def test_the_caption_names_what_the_runs_were_tested_on_whatever_they_were_trained_on(a_run):
    for rendered, origin in ((True, "rendered dives, not Diving48"), (False, "clips of real/diving48")):
        tested = {"data_root": "real/diving48", "rendered": rendered}
        report = compare_runs([a_run("flat", tested=tested, trained={"data": DataConfig(root="data/rendered")})])
        assert report.caption == f"test split: 24 clips of 4 sources, 3 dives; {origin}"
