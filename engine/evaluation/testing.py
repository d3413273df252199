"""Testing a trained run: one pass over a split, and what it leaves in the run folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from diveparse.configs import Config, load_config
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.records import is_rendered
from diveparse.datasets.splits import evaluation_clips, scored_dives
from diveparse.datasets.storage.atomic import write_json, written_atomically
from diveparse.engine.batches import build_clips, cached_or_read, evaluation_batches
from diveparse.engine.device import choose_device
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.metrics import calibrated_metrics, compute_metrics, confusion_matrix
from diveparse.engine.evaluation.predictions import Predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.tensorboard import log_test
from diveparse.engine.run import EvaluationFiles, RunFolder, read_json
from diveparse.models.classifier import DiveClassifier

# by testing; the rest is the run's own
CHANGEABLE = ("data.root", "data.num_workers", "data.cache", "data.damaged", "test.", "clip.order")


def evaluate_run(folder: Path, overrides: list[str], *, split: str, again: bool = False) -> dict[str, Any]:
    """Evaluate a run's best model on its "test" or "val" split, write what it predicted and scored, return the scores.

    Nothing is fitted or chosen here. The files are metrics.json, confusion.csv, predictions.safetensors and
    predictions.csv; for "val" their names begin with validation_, and with shuffled_ where clip.order=shuffled makes it
    the control of a run trained in order.
    Raises: ValueError if training has not ended, an option is not for testing, or the metrics are there already.
    """
    run = RunFolder(folder)
    cfg, files = read_test_config(run, overrides, split)
    if files.metrics.exists() and not again:
        raise ValueError(f"{files.metrics} already exists, and a test is read once; add --again to replace it")
    model = DiveClassifier.load(run.model).to(choose_device())
    trained = read_json(run.trained)
    num_updates = trained["num_updates"]
    model_update = read_json(run.best_update)["update"]
    dive_set = scored_dives(cfg.data, model.dive_set)
    records = evaluation_clips(cfg.data, split, cfg.seed, dive_set)
    views = (cfg.test.num_temporal_views, cfg.test.num_spatial_views)
    clips = build_clips(cfg, records, training=False, views=views)
    inputs = cached_or_read(clips, model, cfg)
    batches = evaluation_batches(inputs, batch_size=cfg.test.batch_size, num_workers=cfg.data.num_workers)
    bar = tqdm(batches, desc=f"testing {cfg.arm} on {split}")
    predictions = evaluate(model, bar, records, cfg.train.precision, dive_set)
    about = {"split": split, "name": cfg.name, "arm": cfg.arm, "seed": cfg.seed, "num_views": views[0] * views[1]}
    about |= {
        "data_root": cfg.data.root,
        "rendered": is_rendered(record.path for record in records),
        "from_cache": clips.cache is not None,
        "trained_from_cache": "train" in (run.splits_from_cache() or ()),
        "skipped_clips": sorted({record.name for record in records} - set(predictions.clips)),
    }  # of this test, not of training
    about |= {"model_update": model_update, "num_updates": num_updates}
    num_train_clips = {number: trained["num_train_clips"].get(number, 0) for number in dive_set.numbers}
    about["num_train_clips"] = num_train_clips
    scores = compute_metrics(predictions, dive_set, np.array(list(num_train_clips.values())))
    scores |= calibrated_metrics(predictions, model.temperature)
    scores = {name: None if score == math.inf else score for name, score in scores.items()}  # JSON has no infinity
    save_predictions(files.probabilities, predictions, dive_set)
    write_predictions(files.predictions, predictions, dive_set)
    write_confusion(files.confusion, predictions, dive_set)
    if not files.prefix:
        log_test(run.path, cfg, scores, predictions, dive_set, num_updates)
    metrics = {**about, **scores}
    write_json(files.metrics, metrics)  # the last, since it says that the split has been tested
    return metrics


def write_confusion(path: Path, predictions: Predictions, dive_set: DiveSet) -> None:
    """Write how many clips of each dive, a row, were given each dive, a column, and how many an invalid answer."""
    matrix = confusion_matrix(predictions.labels, predictions.decoded_labels, len(dive_set))
    table = pd.DataFrame(matrix, columns=dive_set.numbers, index=pd.Index(dive_set.numbers, name="true_number"))
    table["invalid"] = np.bincount(predictions.labels, minlength=len(dive_set)) - matrix.sum(axis=1)
    with written_atomically(path) as temporary:
        table.to_csv(temporary)


def read_test_config(run: RunFolder, overrides: list[str], split: str) -> tuple[Config, EvaluationFiles]:
    """The run's config with what testing may change, and the files that the evaluation writes.

    Raises: ValueError if training has not ended, or an override is not for testing.
    """
    if not run.config.is_file() or not run.model.is_dir():
        raise ValueError(f"{run} holds no trained model; expected a run folder of tools/train.py")
    if not run.trained.is_file():
        raise ValueError(
            f"{run} has not been trained to its end, {run.num_updates_done()} updates are done; "
            f"go on with: python tools/train.py {run.config} --resume"
        )
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise ValueError(f"testing can change {', '.join(CHANGEABLE)} only, got {override!r}")
    cfg = load_config(run.config, overrides)
    is_own_order = cfg.clip.order is load_config(run.config, []).clip.order
    return cfg, run.evaluation(split, control="" if is_own_order else cfg.clip.order.value)
