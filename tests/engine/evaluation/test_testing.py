import contextlib
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.storage.lock import InUseError, locked
from diveparse.engine.evaluation.predictions import load_predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.testing import DESCRIPTION, evaluate_run, scores_of
from diveparse.engine.run import RunFolder


@pytest.fixture(scope="module")
def tested(tiny_run, tmp_path_factory):
    """A copy of the tiny run that has been tested."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("tested") / "run")
    evaluate_run(folder, [], split="test")
    return RunFolder(folder)


def test_metrics_begin_with_what_was_tested_and_end_with_the_scores(tested):
    names = list(json.loads(tested.evaluation().metrics.read_text()))
    assert names[: len(DESCRIPTION)] == list(DESCRIPTION)  # all that an experiment's answers keep beside predictions
    assert names[len(DESCRIPTION)] == "num_clips"
    assert names[-2:] == ["nll_calibrated", "ece_calibrated"]


def test_the_scores_are_those_of_the_predictions_that_are_written(tested):
    files = tested.evaluation()
    metrics = json.loads(files.metrics.read_text())
    predictions, dive_set = load_predictions(files.probabilities)
    assert metrics["top1"] == (predictions.decoded_labels == predictions.labels).mean()
    assert list(metrics["num_train_clips"]) == list(dive_set.numbers)


def test_a_score_that_is_infinite_is_none(tested):
    predictions, _ = load_predictions(tested.evaluation().probabilities)
    impossible = predictions.dive_log_probs.copy()
    impossible[0, predictions.labels[0]] = -math.inf
    counts = dict.fromkeys(DIVING48.numbers, 1)
    scores = scores_of(replace(predictions, dive_log_probs=impossible), DIVING48, counts, temperature=1.0)
    assert (scores["nll"], scores["nll_calibrated"]) == (None, None)
    assert np.isfinite(scores["brier"])


def test_a_run_that_is_being_written_is_not_tested(tested):
    before = sorted(tested.path.iterdir())
    with locked(tested.path, "training"), pytest.raises(InUseError, match=f"{tested} is in use: training by process "):
        evaluate_run(tested.path, [], split="test", again=True)
    assert sorted(tested.path.iterdir()) == before


def test_predictions_on_a_full_disk_are_one_line_with_what_they_need(tested, small_disk):
    predictions, dive_set = load_predictions(tested.evaluation().probabilities)
    with contextlib.suppress(OSError):
        (small_disk / "filling").write_bytes(bytes(10**6))
    for save in (save_predictions, write_predictions):
        with pytest.raises(DiskFullError, match=rf"^{small_disk}/new: no space left on the disk \(.*0 bytes free\); "):
            save(small_disk / "new", predictions, dive_set)
    assert [path.name for path in small_disk.iterdir()] == ["filling"]
