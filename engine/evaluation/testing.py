"""Testing a trained run: one pass over a split, and what it leaves in the run folder."""

from __future__ import annotations

import json
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
from diveparse.engine.batches import build_clips, evaluation_batches, stored
from diveparse.engine.device import choose_device
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.metrics import calibrated_metrics, compute_metrics, confusion_matrix
from diveparse.engine.evaluation.predictions import VALIDATION_PREFIX, Predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.tensorboard import log_test
from diveparse.engine.run import CONFIG, MODEL_UPDATE, TRAINED, count_updates_done, splits_from_cache
from diveparse.models.classifier import DIVE, DiveClassifier

# by testing; the rest is the run's own
CHANGEABLE = ("data.root", "data.num_workers", "data.cache", "data.damaged", "test.", "clip.order")


def evaluate_run(run: Path, overrides: list[str], *, split: str, again: bool = False) -> dict[str, Any]:
    """Evaluate a run's best model on its "test" or "val" split, write what it predicted and scored, return the scores.

    Nothing is fitted or chosen here. The files are metrics.json, confusion.csv, predictions.safetensors and
    predictions.csv; for "val" their names begin with validation_, and with shuffled_ where clip.order=shuffled makes it
    the control of a run trained in order.
    Raises: ValueError if training has not ended, an option is not for testing, or the metrics are there already.
    """
    cfg, prefix = read_test_config(run, overrides, split)
    metrics_path = run / f"{prefix}metrics.json"
    if metrics_path.exists() and not again:
        raise ValueError(f"{metrics_path} is there already, and a test is read once; --again replaces it")
    model = DiveClassifier.load(run).to(choose_device())
    trained = json.loads((run / TRAINED).read_text(encoding="utf-8"))
    num_updates = trained["num_updates"]
    model_update = json.loads((run / MODEL_UPDATE).read_text(encoding="utf-8"))["update"]
    dive_set = scored_dives(cfg.data, model.dive_set)
    records = evaluation_clips(cfg.data, split, cfg.seed, dive_set)
    views = (cfg.test.num_temporal_views, cfg.test.num_spatial_views)
    clips = build_clips(cfg, records, training=False, views=views)
    inputs = stored(clips, model, cfg)
    batches = evaluation_batches(inputs, batch_size=cfg.test.batch_size, num_workers=cfg.data.num_workers)
    bar = tqdm(batches, desc=f"testing {cfg.arm} on {split}")
    predictions = evaluate(model, bar, records, cfg.train.precision, dive_set)
    about = {"split": split, "name": cfg.name, "arm": cfg.arm, "seed": cfg.seed, "num_views": views[0] * views[1]}
    about |= {
        "data_root": cfg.data.root,
        "rendered": is_rendered(record.path for record in records),
        "from_cache": clips.cache is not None,
        "trained_from_cache": "train" in splits_from_cache(run),
        "skipped_clips": sorted({record.name for record in records} - set(predictions.clips)),
    }  # of this test, not of training
    about |= {"model_update": model_update, "num_updates": num_updates}
    num_train_clips = {number: trained["num_train_clips"].get(number, 0) for number in dive_set.numbers}
    about["num_train_clips"] = num_train_clips
    scores = compute_metrics(predictions, dive_set, np.array(list(num_train_clips.values())))
    scores |= calibrated_metrics(predictions, model.temperatures[DIVE])
    scores = {name: None if score == math.inf else score for name, score in scores.items()}  # JSON has no infinity
    save_predictions(run / f"{prefix}predictions.safetensors", predictions, dive_set)
    write_predictions(run / f"{prefix}predictions.csv", predictions, dive_set)
    write_confusion(run / f"{prefix}confusion.csv", predictions, dive_set)
    if not prefix:
        log_test(run, cfg, scores, predictions, dive_set, num_updates)
    metrics = {**about, **scores}
    write_json(metrics_path, metrics)  # the last, since it says that the split has been tested
    return metrics


def write_confusion(path: Path, predictions: Predictions, dive_set: DiveSet) -> None:
    """Write how many clips of each dive, a row, were given each dive, a column, and how many an invalid answer."""
    matrix = confusion_matrix(predictions.labels, predictions.decoded_labels, len(dive_set))
    table = pd.DataFrame(matrix, columns=dive_set.numbers, index=pd.Index(dive_set.numbers, name="true_number"))
    table["invalid"] = np.bincount(predictions.labels, minlength=len(dive_set)) - matrix.sum(axis=1)
    with written_atomically(path) as temporary:
        table.to_csv(temporary)


def read_test_config(run: Path, overrides: list[str], split: str) -> tuple[Config, str]:
    """The run's config with what testing may change, and how the names of the files that it writes begin."""
    config = run / CONFIG
    if not config.is_file() or not (run / "model").is_dir():
        raise ValueError(f"{run} holds no trained model: tools/train.py writes {CONFIG} and model/ into a run folder")
    if not (run / TRAINED).is_file():
        raise ValueError(
            f"{run} has not been trained to its end, {count_updates_done(run)} updates are done; "
            f"go on with: python tools/train.py {config} --resume"
        )
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise ValueError(f"testing can change {', '.join(CHANGEABLE)} only, got {override!r}")
    cfg = load_config(config, overrides)
    control = "" if cfg.clip.order is load_config(config, []).clip.order else f"{cfg.clip.order.value}_"
    return cfg, control + ("" if split == "test" else VALIDATION_PREFIX)
