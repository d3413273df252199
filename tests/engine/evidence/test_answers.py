import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diveparse.configs import save_config
from diveparse.datasets.dives import DIVING48
from diveparse.engine.evaluation.predictions import load_predictions, save_predictions, write_predictions
from diveparse.engine.evidence.answers import answers_path, read_answers, restore_runs, write_answers
from diveparse.engine.evidence.comparison import compare_groups
from diveparse.engine.evidence.experiment import Cell, read_cells
from diveparse.engine.evidence.runs import ALL_SCORES, load_run

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


def test_what_is_read_back_is_what_was_answered_but_for_dives_that_no_table_asks_for(cells):
    answers = read_answers(written(cells))
    assert [(each.run["arm"], each.run["seed"]) for each in answers] == [(c.arm, c.config.seed) for c in cells]
    for cell, each in zip(cells, answers, strict=True):
        own, dive_set = load_predictions(cell.run.evaluation().probabilities)
        assert each.dive_set == dive_set
        assert (each.predictions.clips, each.predictions.sources) == (own.clips, own.sources)
        found, every_clip = each.predictions.dive_log_probs, np.arange(len(own))
        best = own.dive_log_probs.argmax(axis=1)
        assert 0 < (best != own.labels).sum() < len(own)
        for rows in (own.labels, best):
            np.testing.assert_allclose(found[every_clip, rows], own.dive_log_probs[every_clip, rows], rtol=1e-3)
        assert np.array_equal(found.argmax(axis=1), best)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=2e-3)
        for name in ("labels", "spelt_labels", "decoded_labels"):
            assert np.array_equal(getattr(each.predictions, name), getattr(own, name))
        for name, log_probs in own.attribute_log_probs.items():
            restored = each.predictions.attribute_log_probs[name]
            assert np.array_equal(restored.argmax(axis=1), log_probs.argmax(axis=1))


def test_all_dives_are_kept_where_a_penalty_is_chosen(cells):
    cells = [
        replace(cell, config=replace(cell.config, data=replace(cell.config.data, unseen_dives=["101B"])))
        for cell in cells
    ]
    for cell in cells:
        for end in ("metrics", "predictions", "probabilities"):
            shutil.copy(getattr(cell.run.evaluation("test"), end), getattr(cell.run.evaluation("val"), end))
    for each in read_answers(written(cells)):
        cell = next(cell for cell in cells if (cell.arm, cell.config.seed) == (each.run["arm"], each.run["seed"]))
        own, _ = load_predictions(cell.run.evaluation(each.run["split"]).probabilities)
        found, is_fine = each.predictions.dive_log_probs, own.dive_log_probs > -3.9
        assert 0 < is_fine.sum() < is_fine.size
        np.testing.assert_allclose(found[is_fine], own.dive_log_probs[is_fine], atol=0.02)
        np.testing.assert_allclose(found, own.dive_log_probs, atol=0.08)


def test_restored_runs_give_the_same_scores_and_tables(cells):
    before = {(cell.arm, cell.config.seed): load_run(cell.run.path) for cell in cells}
    written(cells)
    shutil.rmtree("runs")
    assert restore_runs(cells, RESULTS) == len(cells)
    assert restore_runs(cells, RESULTS) == 0
    after = {(cell.arm, cell.config.seed): load_run(cell.run.path) for cell in cells}
    for key, run in after.items():
        assert run.scores == pytest.approx(before[key].scores, abs=0, nan_ok=True)
        assert run.clipped_share == (0.5, 0.25)
        assert run.config == before[key].config
        assert set(run.scores) == set(ALL_SCORES)
        np.testing.assert_allclose(run.nll, before[key].nll, rtol=1e-3)

    def differences(runs):
        arms = {arm: {seed: runs[arm, seed] for seed in (0, 1)} for arm in ARMS}
        effects = compare_groups(arms, [("flat", "joint")]).pairs[0].effects
        return {(e.quantity, e.group): float(e.gains.by_training.mean()) for e in effects}

    found, expected = differences(after), differences(before)
    assert {key: found[key] for key in found if key[0] == "top-1"} == {
        k: v for k, v in expected.items() if k[0] == "top-1"
    }
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_dive_that_a_model_cannot_name_is_not_the_named_one(cells):
    files = cells[0].run.evaluation()
    predictions, dive_set = load_predictions(files.probabilities)
    log_probs = predictions.dive_log_probs.copy()
    log_probs[predictions.labels == 3, 3] = -np.inf
    log_probs[predictions.labels == 4, 4] = -1e5  # lower than half precision goes
    save_predictions(files.probabilities, replace(predictions, dive_log_probs=log_probs), dive_set)
    found = read_answers(written(cells))[0].predictions
    of_truth = found.dive_log_probs[np.arange(len(found)), found.labels]
    assert np.isneginf(of_truth[np.isin(found.labels, (3, 4))]).all()
    assert np.isfinite(of_truth[~np.isin(found.labels, (3, 4))]).all()


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
