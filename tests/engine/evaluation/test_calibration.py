import json
import math

import numpy as np
import pytest
from scipy.special import log_softmax

from diveparse.configs import load_config
from diveparse.engine.evaluation.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    fit_temperature,
    mean_nll,
    split_validation,
    tempered,
)
from diveparse.engine.evaluation.predictions import load_predictions
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.training.loop import train
from diveparse.models.classifier import DiveClassifier


def calibrated_answers(num_clips=4000, num_answers=6, seed=0):
    """Log-probabilities, and truths drawn from the very distributions that they describe."""
    rng = np.random.default_rng(seed)
    log_probs = log_softmax(2 * rng.normal(size=(num_clips, num_answers)), axis=1)
    return log_probs, (log_probs + rng.gumbel(size=log_probs.shape)).argmax(axis=1)


@pytest.mark.parametrize("planted", [0.2, 0.5, 1.0, 3.0, 10.0])
def test_a_planted_temperature_is_found(planted):
    log_probs, targets = calibrated_answers()
    overconfident = tempered(log_probs, 1 / planted).astype(np.float32)
    assert fit_temperature(overconfident, targets) == pytest.approx(planted, rel=0.05)


def test_the_truth_never_becomes_less_likely_on_the_clips_fitted_on():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        log_probs = log_softmax(rng.uniform(0, 8) * rng.normal(size=(rng.integers(1, 40), 5)), axis=1)
        targets = rng.integers(0, 5, len(log_probs))
        fitted = mean_nll(tempered(log_probs, fit_temperature(log_probs, targets)), targets)
        assert fitted <= mean_nll(tempered(log_probs, 1.0), targets)


def test_the_temperature_found_is_the_best_of_many():
    log_probs, targets = calibrated_answers(num_clips=50, seed=1)
    best = mean_nll(tempered(log_probs, fit_temperature(log_probs, targets)), targets)
    others = [mean_nll(tempered(log_probs, t), targets) for t in np.geomspace(LOWEST_TEMPERATURE, 20, 500)]
    assert best == pytest.approx(min(others), abs=1e-6)


@pytest.mark.parametrize("temperature", [LOWEST_TEMPERATURE, 0.5, 2.0, HIGHEST_TEMPERATURE])
def test_tempering_keeps_the_order_and_sums_to_one(temperature):
    log_probs, _ = calibrated_answers(num_clips=100)
    cooled = tempered(log_probs, temperature)
    assert np.array_equal(np.argsort(cooled, axis=1), np.argsort(log_probs, axis=1))
    np.testing.assert_allclose(np.exp(cooled).sum(axis=1), 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("log_probs", "targets"),
    [
        (np.full((4, 5), -math.log(5)), [0, 1, 2, 3]),  # constant
        (log_softmax(1e6 * np.eye(5, dtype=np.float32), axis=1), [0, 1, 2, 3, 4]),  # certain, and always right
        (log_softmax(np.eye(5, dtype=np.float32), axis=1), [0, 1, 2, 3, 4]),  # unsure, and always right
        (np.zeros((3, 1)), [0, 0, 0]),  # one answer only
        (np.log([[0.5, 0.5, 1e-300]]), [1]),  # one clip
    ],
)
def test_where_the_clips_do_not_tell_the_temperature_stays_one(log_probs, targets):
    assert fit_temperature(log_probs, np.array(targets)) == 1.0


def test_a_model_that_is_certain_and_wrong_gets_the_highest_temperature():
    log_probs = log_softmax(1e6 * np.eye(5, dtype=np.float32), axis=1)
    assert fit_temperature(log_probs, np.array([1, 2, 3, 4, 0])) == pytest.approx(HIGHEST_TEMPERATURE, rel=1e-3)


def test_a_truth_held_impossible_leaves_the_temperature_at_one():
    with np.errstate(divide="ignore"):
        log_probs = np.log([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
    assert fit_temperature(log_probs, np.array([2, 0])) == 1.0


def test_whole_sources_about_half_the_clips_each_choose_the_epoch_and_fit_the_temperature():
    sources = ["b"] * 4 + ["a"] * 7 + ["c"] * 4 + ["d"]
    chooses, fits = split_validation(sources)
    assert {source for source, own in zip(sources, chooses, strict=True) if own} == {"a", "d"}
    assert np.array_equal(fits, ~chooses)
    shuffled = np.random.default_rng(0).permutation(len(sources))
    again, _ = split_validation([sources[row] for row in shuffled])
    assert np.array_equal(again, chooses[shuffled])


def test_a_single_source_does_both():
    for mask in split_validation(["a", "a"]):
        assert mask.tolist() == [True, True]


def test_training_fits_the_kept_model_on_validation_and_testing_scores_it_with_that(
    tiny_experiment, quick_training_figures
):
    run = train(load_config(tiny_experiment, ["train.num_epochs=1"]))
    metrics = evaluate_run(run, [], split="val")
    predictions, _ = load_predictions(run / "validation_predictions.safetensors")
    temperature = DiveClassifier.load(run).temperature
    _, fits = split_validation(predictions.sources)
    expected = fit_temperature(predictions.dive_log_probs[fits], predictions.labels[fits])
    assert temperature == pytest.approx(expected, rel=1e-3)
    assert metrics["temperature"] == temperature
    assert temperature != 1.0
    calibrated = tempered(predictions.dive_log_probs, temperature)
    assert metrics["nll_calibrated"] == pytest.approx(mean_nll(calibrated, predictions.labels), rel=1e-4)
    assert metrics["nll_calibrated"] < metrics["nll"]
    assert json.loads((run / "validation_metrics.json").read_text()) == metrics
