from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from diveparse.datasets.dives import ATTRIBUTES, DIVING48, WORLD_AQUATICS, DiveSet
from diveparse.heads.recombine import INVALID, decode, marginals, normalise, score, slot_table, spelt_labels

SMALL = DiveSet.from_numbers(["101B", "103C", "203B", "5132D", "5231D", "612B"], "small")
SETS = [SMALL, DIVING48, WORLD_AQUATICS]


def random_log_probs(dive_set: DiveSet, batch: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (2 * torch.randn(batch, len(values), generator=generator, dtype=torch.float64)).log_softmax(-1)
        for name, values in dive_set.values.items()
    }


def enumerate_combinations(
    dive_set: DiveSet, log_probs: dict[str, Tensor], clip: int
) -> dict[tuple[object, ...], float]:
    """Every combination of four values, dives or not, with its probability: plain Python, no tensors."""
    choices = [
        [(value, math.exp(log_prob)) for value, log_prob in zip(values, log_probs[name][clip].tolist(), strict=True)]
        for name, values in dive_set.values.items()
    ]
    return {
        tuple(value for value, _ in combination): math.prod(p for _, p in combination)
        for combination in itertools.product(*choices)
    }


def combination_of(dive_set: DiveSet, label: int) -> tuple[object, ...]:
    values = dive_set[label].attribute_values()
    return tuple(values[name] for name in ATTRIBUTES)


@pytest.mark.parametrize("dive_set", SETS, ids=lambda dive_set: dive_set.name)
def test_recombination_equals_enumerating_every_combination(dive_set: DiveSet) -> None:
    log_probs, slots = random_log_probs(dive_set), slot_table(dive_set)
    scores = score(log_probs, slots)
    dive_log_probs, answers, named = normalise(scores), decode(scores), spelt_labels(log_probs, slots)
    for clip in range(len(scores)):
        combinations = enumerate_combinations(dive_set, log_probs, clip)
        assert sum(combinations.values()) == pytest.approx(1)
        of_dives = [combinations[combination_of(dive_set, label)] for label in range(len(dive_set))]
        assert scores[clip].exp().tolist() == pytest.approx(of_dives, rel=1e-9)
        assert dive_log_probs[clip].exp().tolist() == pytest.approx([p / sum(of_dives) for p in of_dives], rel=1e-9)
        assert answers[clip] == max(range(len(dive_set)), key=of_dives.__getitem__)
        best = max(combinations, key=combinations.__getitem__)
        spelt = [label for label in range(len(dive_set)) if combination_of(dive_set, label) == best]
        assert named[clip] == (spelt[0] if spelt else INVALID)


@pytest.mark.parametrize("dive_set", SETS, ids=lambda dive_set: dive_set.name)
def test_heads_that_are_sure_of_a_dive_name_it(dive_set: DiveSet) -> None:
    slots = slot_table(dive_set)
    log_probs = {
        name: torch.full((len(dive_set), len(dive_set.values[name])), -50.0).scatter(1, row[:, None], 0.0)
        for name, row in zip(ATTRIBUTES, slots, strict=True)
    }
    labels = torch.arange(len(dive_set))
    assert torch.equal(spelt_labels(log_probs, slots), labels)
    assert torch.equal(decode(score(log_probs, slots)), labels)


def test_a_combination_that_is_no_dive_has_no_label() -> None:
    dive_set = DiveSet.from_numbers(["101B", "103C"])
    log_probs = {name: torch.zeros(1, len(values)) for name, values in dive_set.values.items()}
    log_probs["somersault"] = torch.tensor([[0.0, 1.0]])  # 3 half turns, but pike, which is listed first
    assert spelt_labels(log_probs, slot_table(dive_set)).tolist() == [INVALID]


@pytest.mark.parametrize("dive_set", SETS, ids=lambda dive_set: dive_set.name)
def test_marginals_equal_summing_the_dives_that_take_a_value(dive_set: DiveSet) -> None:
    dive_log_probs = torch.randn(3, len(dive_set), dtype=torch.float64).log_softmax(-1)
    found = marginals(dive_log_probs, slot_table(dive_set), dive_set.values)
    for name, values in dive_set.values.items():
        assert found[name].shape == (3, len(values))
        for clip, (slot, value) in itertools.product(range(3), enumerate(values)):
            labels = [label for label, dive in enumerate(dive_set) if dive.attribute_values()[name] == value]
            brute_force = sum(math.exp(dive_log_probs[clip, label]) for label in labels)
            assert math.exp(found[name][clip, slot]) == pytest.approx(brute_force, rel=1e-9)


def test_scores_far_below_what_a_float_can_exponentiate_still_normalise() -> None:
    dive_log_probs = normalise(torch.tensor([[-500.0, -501.0, -2000.0]]))
    assert dive_log_probs.exp().sum().item() == pytest.approx(1)
    assert (dive_log_probs[0, 0] - dive_log_probs[0, 2]).item() == pytest.approx(1500)


def test_slots_over_another_set_point_at_the_values_of_the_heads() -> None:
    other = DiveSet.from_numbers(["203C", "101C"])
    slots = slot_table(other, SMALL.values)
    for label, dive in enumerate(other):
        for name, row in zip(ATTRIBUTES, slots, strict=True):
            assert SMALL.values[name][row[label]] == dive.attribute_values()[name]
