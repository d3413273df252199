import contextlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diveparse.configs import load_config
from diveparse.datasets.dives import DIVING48, FINEDIVING
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.storage.lock import InUseError, locked
from diveparse.engine.evaluation.predictions import load_predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.testing import DESCRIPTION, evaluate_run, read_out, scores_of
from diveparse.engine.evidence.runs import load_run
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


@pytest.fixture
def armstand(tmp_path, tiny_root):
    """A CSV of test clips of FineDiving's dives: one of Diving48 too, one made of its values, one from an armstand."""
    videos = sorted((tiny_root / "rgb").iterdir())[:6]
    numbers = ["107B", "109B", "626C"]
    lines = [f"{video},{numbers[row % 3]},test,pool{row % 2}" for row, video in enumerate(videos)]
    path = tmp_path / "armstand.csv"
    path.write_text("\n".join(["path,dive_number,split,source", *lines]) + "\n")
    return path


def read_out_of(tiny_run, folder, armstand):
    """Test a copy of the tiny run on FineDiving's dives. Returns: the copy, the run that is written, and its scores."""
    trained = RunFolder(Path(shutil.copytree(tiny_run, folder / "trained")))
    cfg = replace(load_config(trained.config, []), runs_dir=str(folder / "runs"), name="elsewhere", arm="other")
    scores = read_out(trained, cfg, [f"data.root={armstand}", "data.dives=finediving"], split="test")
    return trained, RunFolder.of(cfg), scores


def test_a_model_is_read_out_over_other_dives_into_a_run_of_its_own(tiny_run, tmp_path, armstand):
    before = sorted(path.name for path in tiny_run.iterdir())
    trained, run, scores = read_out_of(tiny_run, tmp_path, armstand)
    assert sorted(path.name for path in trained.path.iterdir()) == before
    assert not run.model.exists()
    assert json.loads(run.readout.read_text()) == {"model_of": str(trained)}
    predictions, dive_set = load_predictions(run.evaluation().probabilities)
    assert dive_set == FINEDIVING
    assert len(predictions) == 6
    assert scores["model_of"] == str(trained)
    assert scores["not_expressible"] == [dive.number for dive in FINEDIVING if dive.armstand]
    assert (scores["arm"], scores["data_root"], scores["nll"]) == ("other", str(armstand), None)
    found = load_run(run.path)
    assert (found.model_of, len(found.not_expressible)) == (str(trained), 9)
    assert found.config.data.root == load_config(trained.config, []).data.root  # which tells what it was trained on
    assert (found.predictions["true_number"] == "626C").sum() == 2
    assert not found.predictions["predicted_number"].isin(scores["not_expressible"]).any()


def test_a_readout_overwrites_no_other_run(tiny_run, tmp_path, armstand):
    trained, run, _ = read_out_of(tiny_run, tmp_path, armstand)
    run.readout.unlink()
    with pytest.raises(ValueError, match=f"^{run} holds another run; remove it to test the model of {trained} there$"):
        read_out(trained, load_config(run.config, []), [], split="test")


def test_a_run_can_be_tested_on_other_dives_from_the_command_line(tiny_run, tmp_path, armstand):
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    scores = evaluate_run(folder, [f"data.root={armstand}", "data.dives=finediving"], split="test")
    assert (scores["model_of"], len(scores["not_expressible"])) == (None, 9)
