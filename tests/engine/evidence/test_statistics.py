from itertools import product
from math import comb, isnan, nan

import numpy as np
import pytest

from diveparse.engine.evidence.statistics import (
    Estimate,
    accuracy_over_sources,
    compare_weights,
    holm,
    mcnemar,
    mean_over_sources,
    sign_flip_p_value,
    spread_over_seeds,
)


def clips_of_sources(num_sources=8, seed=0):
    """Values that differ between sources, and sources of very different sizes."""
    rng = np.random.default_rng(seed)
    sources = [f"source{k}" for k in range(num_sources) for _ in range(int(rng.integers(1, 12)))]
    level = {name: rng.random() for name in dict.fromkeys(sources)}  # a set has another order in each process
    return np.array([rng.random() < level[name] for name in sources]), sources


def disagreements(num_only_first, num_only_second, num_agreed=7):
    first = np.array([True] * num_only_first + [False] * num_only_second + [True] * num_agreed)
    second = np.array([False] * num_only_first + [True] * num_only_second + [True] * num_agreed)
    return first, second


@pytest.mark.parametrize(("b", "c"), [(0, 1), (3, 3), (1, 9), (12, 4), (0, 20), (30, 41)])
def test_mcnemar_agrees_with_a_sum_of_binomials(b, c):
    test = mcnemar(*disagreements(b, c))
    expected = min(1.0, 2 * sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))
    assert test.p_value == pytest.approx(expected, rel=1e-9)
    assert (test.num_only_first, test.num_only_second) == (b, c)
    assert test.difference == pytest.approx((c - b) / (b + c + 7))


def test_mcnemar_of_arms_that_agree_everywhere_is_certain_of_nothing():
    assert mcnemar(*disagreements(0, 0)).p_value == 1.0


def test_mcnemar_does_not_care_which_arm_comes_first():
    first, second = disagreements(4, 11)
    assert mcnemar(first, second).p_value == mcnemar(second, first).p_value


def test_interval_over_sources_agrees_with_a_plain_loop_that_draws_sources():
    values, sources = clips_of_sources()
    names = sorted(set(sources))
    clips_of = {name: [float(v) for v, s in zip(values, sources, strict=True) if s == name] for name in names}
    rng = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        drawn = [value for k in rng.integers(0, len(names), len(names)) for value in clips_of[names[k]]]
        means.append(sum(drawn) / len(drawn))
    estimate = mean_over_sources(values, sources)
    assert estimate.value == pytest.approx(values.mean())
    assert [estimate.low, estimate.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.015)


def test_interval_is_the_same_for_the_same_seed_and_for_any_order_of_clips():
    values, sources = clips_of_sources()
    order = np.random.default_rng(3).permutation(len(values))
    estimate = mean_over_sources(values, sources)
    assert estimate == mean_over_sources(values, sources)
    assert vars(estimate) == pytest.approx(vars(mean_over_sources(values[order], [sources[k] for k in order])))


def test_interval_over_sources_is_wider_than_one_over_clips_when_sources_differ():
    sources = [f"source{k}" for k in range(10) for _ in range(20)]
    values = np.repeat(np.arange(10) % 2, 20).astype(float)  # a source is right throughout or wrong throughout
    by_source = mean_over_sources(values, sources)
    by_clip = mean_over_sources(values, [str(k) for k in range(len(values))])
    assert by_source.high - by_source.low > 3 * (by_clip.high - by_clip.low)


def test_interval_of_identical_clips_has_no_width():
    estimate = mean_over_sources(np.ones(6), list("aabbcc"))
    assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)


def test_interval_contains_the_truth_about_as_often_as_it_claims():
    rng = np.random.default_rng(0)
    sources = [f"source{k}" for k in range(40) for _ in range(5)]
    hits = 0
    for _ in range(60):
        level = np.repeat(rng.beta(3, 2, size=40), 5)  # mean 0.6
        estimate = mean_over_sources(rng.random(200) < level, sources, num_resamples=400)
        hits += estimate.low <= 0.6 <= estimate.high
    assert hits >= 51  # 57 expected; fewer than 51 of 60 has a chance below 1 %


def test_intervals_are_those_of_version_0_1_to_the_bit():
    values, sources = clips_of_sources()
    assert mean_over_sources(values, sources) == Estimate(0.6764705882352942, 0.5, 0.7704918032786885)
    few = mean_over_sources(values / 3, sources, seed=5, num_resamples=500, level=0.9)
    assert few == Estimate(0.22549019607843135, 0.17771241830065357, 0.25338596491228066)
    many = mean_over_sources(*clips_of_sources(num_sources=40, seed=1))
    assert many == Estimate(0.6160337552742616, 0.5090050227218369, 0.7228915662650602)


def test_one_source_has_no_interval_and_no_p_value():
    estimate = mean_over_sources(np.array([0.0, 1.0, 1.0]), ["pool"] * 3)
    assert estimate.value == pytest.approx(2 / 3)
    assert isnan(estimate.low)
    assert isnan(estimate.high)
    assert isnan(sign_flip_p_value(np.ones(3), ["pool"] * 3))


def test_arms_on_one_source_are_still_compared_by_mcnemars_test():
    first, second = disagreements(1, 9)
    weights = compare_weights(first[None], second[None], ["pool"] * len(first))
    assert weights.tests == (mcnemar(first, second),)
    assert isnan(weights.p_value)


def test_paired_difference_agrees_with_a_loop_that_draws_the_same_sources_for_both_arms():
    first, sources = clips_of_sources(seed=1)
    second = first | (np.random.default_rng(2).random(len(first)) < 0.3)
    names = sorted(set(sources))
    rng = np.random.default_rng(5)
    differences = []
    for _ in range(4000):
        drawn = [names[k] for k in rng.integers(0, len(names), len(names))]
        rows = [row for name in drawn for row, source in enumerate(sources) if source == name]
        differences.append(second[rows].mean() - first[rows].mean())
    estimate = compare_weights(first[None], second[None], sources).difference
    assert estimate.value == pytest.approx(second.mean() - first.mean())
    assert [estimate.low, estimate.high] == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=0.015)


def test_swapping_the_arms_mirrors_the_comparison():
    first, sources = clips_of_sources(seed=1)
    second, _ = clips_of_sources(seed=1)
    second = second ^ (np.arange(len(second)) % 3 == 0)
    there, back = (
        compare_weights(first[None], second[None], sources),
        compare_weights(second[None], first[None], sources),
    )
    assert there.p_value == back.p_value
    assert [test.p_value for test in there.tests] == [test.p_value for test in back.tests]
    mirrored = (there.difference.value, there.difference.low, there.difference.high)
    assert mirrored == pytest.approx((-back.difference.value, -back.difference.high, -back.difference.low))


def test_seeds_are_averaged_within_each_clip_and_tested_one_by_one():
    first, sources = clips_of_sources()
    rng = np.random.default_rng(7)
    firsts = np.stack([first, first ^ (rng.random(len(first)) < 0.2)])
    seconds = np.stack([first | (rng.random(len(first)) < 0.4) for _ in range(2)])
    comparison = compare_weights(firsts, seconds, sources)
    assert comparison.difference.value == pytest.approx(seconds.mean() - firsts.mean())
    tests = [mcnemar(firsts[k], seconds[k]) for k in range(2)]
    assert list(comparison.tests) == tests
    assert comparison.p_value == sign_flip_p_value(seconds.mean(axis=0) - firsts.mean(axis=0), sources)
    assert accuracy_over_sources(seconds, sources).value == pytest.approx(seconds.mean())


def test_one_seed_has_no_spread():
    assert spread_over_seeds([0.5]) is None
    assert spread_over_seeds([0.5, float("inf")]) is None
    assert spread_over_seeds([0.4, 0.5, 0.6]) == pytest.approx(0.1)


def gains_of_sources(num_sources=8, seed=0, effect=0.0):
    """What one arm has more than another on each clip of sources of different sizes, in steps of a quarter."""
    rng = np.random.default_rng(seed)
    sources = [f"source{k:03d}" for k in range(num_sources) for _ in range(int(rng.integers(1, 12)))]
    own = {name: rng.normal() for name in dict.fromkeys(sources)}  # what the clips of a source share
    return np.array([round(4 * (effect + own[name] + rng.normal())) / 4 for name in sources]), sources


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_sources", [2, 5, 8])
def test_sign_flips_of_few_sources_agree_with_a_loop_over_every_choice_of_signs(num_sources, seed):
    values, sources = gains_of_sources(num_sources, seed)
    totals = [sum(v for v, s in zip(values, sources, strict=True) if s == name) for name in sorted(set(sources))]
    flipped = [
        sum(sign * t for sign, t in zip(signs, totals, strict=True)) for signs in product((1, -1), repeat=num_sources)
    ]
    as_large = [abs(total) >= abs(sum(totals)) for total in flipped]
    assert sign_flip_p_value(values, sources) == pytest.approx(sum(as_large) / len(flipped))


def test_sign_flips_of_many_sources_agree_with_a_plain_loop_that_draws_signs():
    values, sources = gains_of_sources(num_sources=40, seed=3, effect=0.25)
    totals = [sum(v for v, s in zip(values, sources, strict=True) if s == name) for name in sorted(set(sources))]
    rng = np.random.default_rng(9)
    as_large = 0
    for _ in range(4000):
        drawn = sum(total if heads else -total for total, heads in zip(totals, rng.random(40) < 0.5, strict=True))
        as_large += abs(drawn) >= abs(sum(totals))
    assert 0.02 < as_large / 4000 < 0.9
    assert sign_flip_p_value(values, sources) == pytest.approx(as_large / 4000, abs=0.04)


@pytest.mark.parametrize("num_sources", [6, 30])
def test_swapping_the_arms_leaves_the_p_value_over_sources(num_sources):
    values, sources = gains_of_sources(num_sources, seed=2)
    assert sign_flip_p_value(-values, sources) == sign_flip_p_value(values, sources)


@pytest.mark.parametrize("num_sources", [6, 30])
def test_the_order_of_the_clips_leaves_the_p_value_over_sources(num_sources):
    values, sources = gains_of_sources(num_sources, seed=2)
    order = np.random.default_rng(3).permutation(len(values))
    assert sign_flip_p_value(values[order], [sources[k] for k in order]) == sign_flip_p_value(values, sources)


def test_p_values_over_sources_of_arms_that_are_alike_are_spread_evenly():
    p_values = np.array([sign_flip_p_value(*gains_of_sources(seed=seed)) for seed in range(200)])
    for level in (0.1, 0.25, 0.5, 0.75):
        assert (p_values <= level).mean() == pytest.approx(level, abs=0.1)  # three standard deviations and more


def test_a_clear_effect_has_a_small_p_value_over_sources_and_no_effect_has_not():
    assert sign_flip_p_value(*gains_of_sources(num_sources=40, effect=1.5)) < 0.001
    assert sign_flip_p_value(*gains_of_sources(num_sources=40, effect=0.0)) > 0.05
    assert sign_flip_p_value(np.zeros(6), list("aabbcc")) == 1.0


@pytest.mark.parametrize("num_sources", [2, 4, 7])
def test_no_number_of_clips_lowers_the_p_value_below_what_the_number_of_sources_allows(num_sources):
    floor = 2 / 2**num_sources  # all signs, or none
    for num_copies in (1, 100):
        sources = [f"source{k}" for k in range(num_sources) for _ in range(num_copies)]
        assert sign_flip_p_value(np.ones(len(sources)), sources) == pytest.approx(floor)
    values = np.linspace(1, 2, num_sources * 50)
    names = [f"source{k}" for k in range(num_sources) for _ in range(50)]
    values, names = np.concatenate([values, np.repeat(values[:1], 1000)]), [*names, *names[:1] * 1000]
    assert sign_flip_p_value(values, names) == pytest.approx(floor)  # most clips are of the first source
    by_clip = mcnemar(np.zeros(len(values), bool), np.ones(len(values), bool))
    assert by_clip.p_value < 1e-6


def step_down(p_values):
    """Holm by hand: the smallest times how many there are, the next times one less, and none below an earlier one."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for step, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[k]))
        corrected[k] = largest
    return corrected


@pytest.mark.parametrize(
    "p_values",
    [
        [0.03],
        [0.01, 0.04, 0.03],
        [0.5, 0.001, 0.5, 0.02, 0.001],
        [0.9, 0.8, 1.0],
        [0.02] * 4,
        [0.0, 0.2],
        np.random.default_rng(0).random(30).tolist(),
    ],
)
def test_holms_correction_agrees_with_a_step_down_by_hand(p_values):
    assert holm(p_values) == pytest.approx(step_down(p_values))


def test_holms_correction_of_a_known_example_and_of_nothing():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_what_was_not_tested_does_not_count_in_holms_correction():
    assert holm([nan, 0.01, nan, 0.04, 0.03]) == pytest.approx([nan, 0.03, nan, 0.06, 0.06], nan_ok=True)
    assert holm([nan]) == pytest.approx([nan], nan_ok=True)
