import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diveparse.configs import Config, DataConfig, save_config
from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.engine.evaluation.metrics import calibrated_metrics, compute_metrics
from diveparse.engine.evaluation.predictions import Predictions, save_predictions, write_predictions
from diveparse.engine.evidence.runs import ALL_SCORES, Run
from diveparse.engine.run import RunFolder

NUM_CLIPS = 24


def make_run(arm, seed=0, *, accuracy=0.5, name="demo", trained=None, tested=None, **columns):
    """trained: sections of its config; tested: the fields of `Run` about its test."""
    hit = np.random.default_rng([seed, len(arm)]).random(NUM_CLIPS) < accuracy
    table = pd.DataFrame(
        {
            "clip": [f"clip{k:02d}" for k in range(NUM_CLIPS)],
            "source": [f"source{k % 4}" for k in range(NUM_CLIPS)],
            "true_number": ["101B", "103B", "203C"] * (NUM_CLIPS // 3),
        }
        | columns
    )
    table["predicted_number"] = table["true_number"].where(hit, "407C")
    table["log_prob_true"] = np.where(hit, -0.1, -2.0)
    config = Config(name=name, arm=arm, seed=seed, **{"data": DataConfig(root="data")} | (trained or {}))
    scores = dict.fromkeys(ALL_SCORES, 0.5) | {"top1": float(hit.mean())}
    how = (
        {"split": "test", "num_views": 1, "data_root": "data", "rendered": True}
        | {"from_cache": False, "trained_from_cache": True}
        | (tested or {})
    )
    folder = RunFolder(Path(f"runs/{name}/{arm}/seed-{seed}"))
    num_train_clips = {"101B": 200, "103B": 50, "203C": 3}
    about = {"num_classes_scored": 3, "num_train_clips": num_train_clips, "scores": scores}
    return Run(folder, config, **how, **about, predictions=table)


@pytest.fixture(scope="session")
def a_run():
    """A function that makes tested runs: `NUM_CLIPS` clips of four sources and three dives."""
    return make_run


def write_tested_run(folder, arm="flat", seed=0):
    """A run folder as a test leaves it, with 24 clips from four sources and a model that is often right."""
    rng = np.random.default_rng([seed, len(arm)])
    labels = np.arange(NUM_CLIPS) % len(DIVING48)
    scores = rng.normal(size=(NUM_CLIPS, len(DIVING48))) + 3 * np.eye(len(DIVING48))[labels]
    predictions = Predictions(
        clips=[f"clip{k:02d}" for k in range(NUM_CLIPS)],
        sources=[f"source{k % 4}" for k in range(NUM_CLIPS)],
        labels=labels,
        dive_log_probs=(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32),
        attribute_log_probs={a: np.zeros((NUM_CLIPS, len(DIVING48.values[a])), np.float32) for a in ATTRIBUTES},
        spelt_labels=scores.argmax(axis=1),
        decoded_labels=scores.argmax(axis=1),
    )
    run = RunFolder(folder / arm / f"seed-{seed}")
    run.path.mkdir(parents=True)
    save_config(Config(name="demo", arm=arm, seed=seed, data=DataConfig(root="data")), run.config)
    about = {"split": "test", "num_views": 1, "data_root": "data", "rendered": True}
    about |= {"from_cache": False, "trained_from_cache": False}
    about |= {"num_train_clips": {dive.number: 10 * label for label, dive in enumerate(DIVING48)}}
    metrics = {**about, **compute_metrics(predictions, DIVING48), **calibrated_metrics(predictions, temperature=1.5)}
    files = run.evaluation()
    files.metrics.write_text(json.dumps(metrics))
    write_predictions(files.predictions, predictions, DIVING48)
    save_predictions(files.probabilities, predictions, DIVING48)
    return run


@pytest.fixture(scope="session")
def write_run():
    """A function that writes a tested run into FOLDER/ARM/seed-K."""
    return write_tested_run


@pytest.fixture
def tested(tmp_path):
    """The folder of a run that has been tested."""
    return write_tested_run(tmp_path)
