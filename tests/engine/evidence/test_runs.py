import json
import math
from dataclasses import replace

import pytest

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.storage.lock import InUseError, locked
from diveparse.engine.evidence.runs import ALL_SCORES, load_run


def change_metrics(run, change):
    path = run.evaluation().metrics
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_a_run_is_read_with_its_scores_and_its_predictions_sorted_by_clip(tested):
    lines = tested.evaluation().predictions.read_text().splitlines()
    tested.evaluation().predictions.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    run = load_run(tested.path)
    metrics = json.loads(tested.evaluation().metrics.read_text())
    assert (run.folder, run.split, run.config.arm) == (tested, "test", "flat")
    assert set(run.scores) == set(ALL_SCORES)
    assert (run.scores["nll"], run.scores["twist"]) == (metrics["nll"], metrics["attribute_accuracy"]["twist"])
    assert run.num_train_clips["101B"] == 10 * DIVING48.label_of("101B")
    assert run.predictions["clip"].is_monotonic_increasing
    assert run.correct.mean() == pytest.approx(run.scores["top1"])
    assert run.nll.mean() == pytest.approx(run.scores["nll"])


def test_a_score_without_a_value_is_infinite(tested):
    change_metrics(tested, lambda metrics: metrics | {"nll": None})
    assert load_run(tested.path).scores["nll"] == math.inf


def test_an_invalid_answer_is_a_wrong_one(a_run):
    run = a_run("independent", accuracy=1.0)
    invalid = run.predictions.assign(predicted_number="")
    assert run.correct.all()
    assert not replace(run, predictions=invalid).correct.any()


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nothing: no such run folder$"):
        load_run(tmp_path / "nothing")


def test_a_folder_without_a_config_is_refused(tested):
    tested.config.unlink()
    with pytest.raises(ValueError, match=r"has no config.yaml; give a run folder that `diveparse train` wrote$"):
        load_run(tested.path)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_the_test_that_a_run_lacks_is_named(tested, name):
    (tested.path / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}; test it first: .*{tested}$"):
        load_run(tested.path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a whole JSON file"),
        ("[]", "expected names and values, got list"),
        ("{}", "has no attribute_accuracy"),
        ('{"attribute_accuracy": {}}', "lacks split, num_views, data_root, rendered, from_cache, trained_from_cache"),
    ],
)
def test_a_damaged_metrics_file_is_named(tested, content, reason):
    tested.evaluation().metrics.write_text(content)
    with pytest.raises(ValueError, match=rf"metrics\.json: {reason}"):
        load_run(tested.path)


def test_metrics_of_another_test_than_the_predictions_beside_them_are_refused(tested):
    change_metrics(tested, lambda metrics: metrics | {"top1": metrics["top1"] + 1 / 24})
    with pytest.raises(ValueError, match=r"they are of different tests, so test again: .* --again"):
        load_run(tested.path)


def test_a_run_that_is_being_written_is_refused(tested):
    with locked(tested.path, "training"), pytest.raises(InUseError, match=f"{tested} is in use: training by process "):
        load_run(tested.path)
    load_run(tested.path)
