from pathlib import Path

import pytest

from diveparse.configs import ExperimentConfig, load_config
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, DIVING48_TRAIN_COUNTS
from diveparse.datasets.held_out import HELD_OUT, choose_held_out
from diveparse.datasets.splits import without_dives

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiments"
LIVE = {dive for dive, count in zip(DIVING48, DIVING48_TRAIN_COUNTS, strict=True) if count}


def test_the_dives_that_the_rule_chose_stay_these() -> None:
    """A change here would let pretraining see dives that published experiments call unseen."""
    numbers = "5152B 5255B 301B 401B 107C 206C 307C 407C 5231D 5333D 5154B 205B 5353B 405B 205C 101B 203B 303B"
    assert [dive.number for dive in HELD_OUT] == numbers.split()


def test_eighteen_live_dives_of_every_takeoff_and_position_are_held_out() -> None:
    assert len(set(HELD_OUT)) == len(HELD_OUT) == 18
    assert LIVE.issuperset(HELD_OUT)
    assert {dive.takeoff for dive in HELD_OUT} == {dive.takeoff for dive in LIVE}
    assert {dive.position for dive in HELD_OUT} == {dive.position for dive in LIVE}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_at_least_half_of_the_dives_with_each_value_stay(attribute: str) -> None:
    values = [dive.attribute_values()[attribute] for dive in LIVE]
    held_out = [dive.attribute_values()[attribute] for dive in HELD_OUT]
    assert [value for value in values if 2 * held_out.count(value) > values.count(value)] == []


def test_the_rule_gives_the_same_dives_again() -> None:
    assert choose_held_out() == HELD_OUT


@pytest.mark.parametrize("name", ["unseen", "few_shot"])
def test_experiments_call_only_such_dives_unseen(name: str) -> None:
    experiment = load_config(EXPERIMENTS / f"{name}.yaml", [], ExperimentConfig)
    options = " ".join([experiment.common, *experiment.arms.values()]).split()
    draws = {option.partition("=")[2] for option in options if option.startswith("data.unseen_dives=")}
    assert draws
    for draw in draws:
        numbers = draw.strip("[]").split(",")
        assert {dive.number for dive in HELD_OUT}.issuperset(numbers)
        assert len(without_dives(DIVING48, numbers)) == len(DIVING48) - len(numbers)
