import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diveparse.configs import save_config
from diveparse.datasets.dives import DIVING48
from diveparse.engine.evaluation.predictions import load_predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.testing import scores_of
from diveparse.engine.evidence.answers import answers_path, read_answers, restore_runs, write_answers
from diveparse.engine.evidence.comparison import compare_groups
from diveparse.engine.evidence.experiment import Cell, read_cells
from diveparse.engine.evidence.runs import SCORES, load_run

TINY = Path("experiments/tiny.yaml")
ARMS = {"flat": "head.kind=flat", "joint": "head.kind=joint"}
RESULTS = Path("results")


@pytest.fixture(autouse=True)
def cells(tmp_path, monkeypatch, write_run):
    """Two tested arms with two seeds each, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("{name: base, arm: base, data: {root: data}}")
    TINY.parent.mkdir()
    TINY.write_text(json.dumps({"question": "?", "config": "base.yaml", "seeds": [0, 1], "arms": ARMS}))
    _, cells = read_cells(TINY)
    for cell in cells:
        run = write_run(Path("runs/tiny"), cell.arm, cell.config.seed)
        save_config(cell.config, run.config)
        metrics = json.loads(run.evaluation().metrics.read_text())
        run.evaluation().metrics.write_text(json.dumps(metrics | {"temperature": 1.5, "clipped_share": [0.5, 0.25]}))
    return cells


def written(cells: list[Cell]) -> Path:
    path = answers_path(RESULTS, "tiny")
    write_answers(path, cells)
    return path


def test_what_is_read_back_is_what_was_answered_but_for_rounding(cells):
    answers = read_answers(written(cells))
    assert [(each.run["arm"], each.run["seed"]) for each in answers] == [(c.arm, c.config.seed) for c in cells]
    for cell, each in zip(cells, answers, strict=True):
        own, dive_set = load_predictions(cell.run.evaluation().probabilities)
        assert each.dive_set == dive_set
        assert (each.predictions.clips, each.predictions.sources) == (own.clips, own.sources)
        found, is_fine = each.predictions.dive_log_probs, own.dive_log_probs > -3.9
        assert 0 < is_fine.sum() < is_fine.size
        np.testing.assert_allclose(found[is_fine], own.dive_log_probs[is_fine], atol=0.02)
        np.testing.assert_allclose(found, own.dive_log_probs, atol=0.08)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-2)
        for name in ("labels", "spelt_labels", "decoded_labels"):
            assert np.array_equal(getattr(each.predictions, name), getattr(own, name))
        for name, log_probs in own.attribute_log_probs.items():
            restored = each.predictions.attribute_log_probs[name]
            assert np.array_equal(restored.argmax(axis=1), log_probs.argmax(axis=1))


def test_restored_runs_give_the_same_tables_as_far_as_they_are_printed(cells):
    before = {(cell.arm, cell.config.seed): load_run(cell.run.path) for cell in cells}
    for run in before.values():  # the scores of the fixture are not those of its attributes
        own, dive_set = load_predictions(run.files.probabilities)
        run.scores.update(scores_of(own, dive_set, run.num_train_clips, 1.5))
    written(cells)
    shutil.rmtree("runs")
    assert restore_runs(cells, RESULTS) == len(cells)
    assert restore_runs(cells, RESULTS) == 0
    after = {(cell.arm, cell.config.seed): load_run(cell.run.path) for cell in cells}
    for key, run in after.items():
        assert run.scores["top1"] == before[key].scores["top1"]
        assert run.scores["nll"] == pytest.approx(before[key].scores["nll"], rel=1e-7)
        for name in ("top5", "nll_calibrated", "brier", "ece", "ece_calibrated", "mean_class_accuracy"):
            assert run.scores[name] == pytest.approx(before[key].scores[name], abs=3e-3), name
        assert run.clipped_share == (0.5, 0.25)
        assert run.config == before[key].config
        assert set(run.scores) == set(SCORES)

    def differences(runs):
        arms = {arm: {seed: runs[arm, seed] for seed in (0, 1)} for arm in ARMS}
        return [
            float(effect.gains.by_training.mean())
            for effect in compare_groups(arms, [("flat", "joint")]).pairs[0].effects
        ]

    assert differences(after) == pytest.approx(differences(before), abs=1e-7)


def test_a_dive_that_a_model_cannot_name_stays_impossible(cells):
    files = cells[0].run.evaluation()
    predictions, dive_set = load_predictions(files.probabilities)
    log_probs = predictions.dive_log_probs.copy()
    log_probs[:, 47] = -np.inf
    log_probs[:, 46] = -1e5  # lower than half precision goes
    save_predictions(files.probabilities, replace(predictions, dive_log_probs=log_probs), dive_set)
    found = read_answers(written(cells))[0].predictions.dive_log_probs
    assert np.isneginf(found[:, 47]).all()
    assert np.isfinite(found[:, 46]).all()


def test_clips_and_dives_that_runs_share_are_kept_once_and_nothing_is_pickled(cells):
    path = written(cells)
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        assert all(file[name].dtype != object for name in file.files)
    assert len(about["tests"]) == 1
    assert len(about["runs"]) == len(cells)
    again = path.read_bytes()
    assert written(cells).read_bytes() == again


def test_a_file_that_is_missing_damaged_or_lacks_a_run_is_refused_by_name(cells):
    path = answers_path(RESULTS, "tiny")
    with pytest.raises(ValueError, match=r"^results/tiny\.answers\.npz: no such file"):
        read_answers(path)
    content = written(cells[:1]).read_bytes()
    shutil.rmtree("runs")
    with pytest.raises(ValueError, match=r"^results/tiny\.answers\.npz: lacks arm joint with seed 0, tested on test$"):
        restore_runs(cells, RESULTS)
    for damaged in (content[: len(content) // 2], b"", b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^results/tiny\.answers\.npz: not the answers of an experiment: "):
            read_answers(path)


def test_own_answers_of_independent_heads_are_kept_where_the_marginals_are_others(cells):
    files = cells[0].run.evaluation()
    predictions, dive_set = load_predictions(files.probabilities)
    twist = np.log(np.eye(len(DIVING48.values["twist"]), dtype=np.float32)[np.arange(24) % 8].clip(1e-9))
    changed = replace(predictions, attribute_log_probs=predictions.attribute_log_probs | {"twist": twist})
    save_predictions(files.probabilities, changed, dive_set)
    write_predictions(files.predictions, changed, dive_set)
    found = read_answers(written(cells))[0].predictions.attribute_log_probs["twist"]
    assert found.argmax(axis=1).tolist() == (np.arange(24) % 8).tolist()
    assert np.isfinite(found).all()
