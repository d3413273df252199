"""Test a trained run: one pass over a split, and the files that it writes into the run folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from diveparse.configs import Config, load_config
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.records import ClipRecord, is_rendered
from diveparse.datasets.splits import evaluation_clips, scored_dives
from diveparse.datasets.storage.atomic import write_json, written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.datasets.storage.lock import locked, require_unlocked
from diveparse.engine.batches import build_clips, cached_or_read, evaluation_batches
from diveparse.engine.device import choose_device
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.metrics import calibrated_metrics, compute_metrics, confusion_matrix
from diveparse.engine.evaluation.predictions import Predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.tensorboard import log_test
from diveparse.engine.run import EvaluationFiles, RunFolder
from diveparse.models.classifier import DiveClassifier

RESULT_BYTES = 10**6  # of the files of a test, without their log-probabilities
# what metrics.json says of a run beside its scores; the scores follow from the predictions and these
DESCRIPTION = (
    "split",
    "name",
    "arm",
    "seed",
    "num_views",
    "data_root",
    "rendered",
    "from_cache",
    "trained_from_cache",
    "skipped_clips",
    "model_update",
    "num_updates",
    "clipped_share",
    "median_grad_norm",
    "num_train_clips",
    "temperature",
    "unseen_penalty",
)
TEST_OPTIONS = ("data.root", "data.num_workers", "data.cache", "data.damaged", "test.", "clip.order")  # in a test


def evaluate_run(folder: Path, overrides: list[str], *, split: str, again: bool = False) -> dict[str, Any]:
    """Evaluate a run's best model on its "test" or "val" split, write predictions and scores, return the scores.

    Nothing is fitted or chosen here. The files are metrics.json, confusion.csv, predictions.safetensors and
    predictions.csv. Their names begin with validation_ for "val", and with shuffled_ where clip.order=shuffled turns
    the evaluation of a run trained in order into its control.
    Raises: ValueError if training has not ended, an option is not for testing, or the metrics already exist;
    InUseError while another process trains or tests the run.
    """
    run = RunFolder(folder)
    require_unlocked(folder)
    cfg, files = read_test_config(run, overrides, split)
    with locked(folder, "testing"):
        require_first(files, again=again)
        model = DiveClassifier.load(run.model).to(choose_device())
        dive_set = scored_dives(cfg.data, model.dive_set)
        about_training = {
            "trained_from_cache": "train" in (run.splits_from_cache() or ()),
            **describe_training(run, dive_set),
        }
        records = evaluation_clips(cfg.data, split, cfg.seed, dive_set)
        return score_split(run, cfg, files, model, records, dive_set, about_training, split=split)


def require_first(files: EvaluationFiles, *, again: bool) -> None:
    """Raises: ValueError if the split was evaluated already, unless it should be `again`."""
    if files.metrics.exists() and not again:
        raise ValueError(f"{files.metrics} already exists, and a test is read once; add --again to replace it")


def score_split(
    run: RunFolder,
    cfg: Config,
    files: EvaluationFiles,
    model: DiveClassifier,
    records: Sequence[ClipRecord],
    dive_set: DiveSet,
    about_training: dict[str, Any],
    *,
    split: str,
) -> dict[str, Any]:
    """Evaluate a model on the clips of a split, in the dives of a set, and write its files. Returns: the scores."""
    require_space(run.path, RESULT_BYTES + 8 * len(records) * len(dive_set), f"a test of {len(records)} clips")
    views = (cfg.test.num_temporal_views, cfg.test.num_spatial_views)
    clips = build_clips(cfg, records, training=False, views=views, processor=model.processor)
    inputs = cached_or_read(clips, model, cfg)
    batches = evaluation_batches(inputs, batch_size=cfg.test.batch_size, num_workers=cfg.data.num_workers)
    bar = tqdm(batches, desc=f"testing {cfg.arm} on {split}")
    predictions = evaluate(model, bar, records, cfg.train.precision, dive_set)
    about = {
        **describe_test(cfg, split, records, predictions, from_cache=clips.cache is not None),
        **about_training,
        "temperature": model.temperature,
        "unseen_penalty": model.unseen_penalty,
    }
    about = {name: about[name] for name in DESCRIPTION}
    scores = scores_of(predictions, dive_set, about["num_train_clips"], model.temperature)
    save_predictions(files.probabilities, predictions, dive_set)
    write_predictions(files.predictions, predictions, dive_set)
    write_confusion(files.confusion, predictions, dive_set)
    if not files.prefix:
        log_test(run, cfg, scores, predictions, dive_set, about["num_updates"])
    metrics = {**about, **scores}
    write_json(files.metrics, metrics)  # the last file, so that a split without it counts as not tested
    return metrics


def describe_test(
    cfg: Config,
    split: str,
    records: Sequence[ClipRecord],
    predictions: Predictions,
    *,
    from_cache: bool,
) -> dict[str, Any]:
    """What was tested, and on what data, which need not be the data of the training."""
    return {
        "split": split,
        "name": cfg.name,
        "arm": cfg.arm,
        "seed": cfg.seed,
        "num_views": cfg.test.num_temporal_views * cfg.test.num_spatial_views,
        "data_root": cfg.data.root,
        "rendered": is_rendered(record.path for record in records),
        "from_cache": from_cache,
        "skipped_clips": sorted({record.name for record in records} - set(predictions.clips)),
    }


def describe_training(run: RunFolder, dive_set: DiveSet) -> dict[str, Any]:
    """How the model was trained, and on how many clips of each dive of the set."""
    trained = read_json_object(run.trained)
    return {
        "model_update": read_json_object(run.best_update)["update"],
        "num_updates": trained["num_updates"],
        **{name: trained.get(name, []) for name in ("clipped_share", "median_grad_norm")},  # of each epoch
        "num_train_clips": {number: trained["num_train_clips"].get(number, 0) for number in dive_set.numbers},
    }


def scores_of(
    predictions: Predictions, dive_set: DiveSet, num_train_clips: dict[str, int], temperature: float
) -> dict[str, Any]:
    """The metrics before and after calibration. A score is None where it is infinite, since JSON has no infinity.

    num_train_clips: by dive number, in the order of `dive_set`, or empty where they are not known; temperature: fitted
    on validation.
    """
    counts = np.array(list(num_train_clips.values())) if num_train_clips else None
    scores = compute_metrics(predictions, dive_set, counts)
    scores |= calibrated_metrics(predictions, temperature)
    return {name: None if score == math.inf else score for name, score in scores.items()}


def write_confusion(path: Path, predictions: Predictions, dive_set: DiveSet) -> None:
    """Write how many clips of each dive (rows) were given each dive (columns) or an invalid answer (last column)."""
    matrix = confusion_matrix(predictions.labels, predictions.decoded_labels, len(dive_set))
    table = pd.DataFrame(matrix, columns=dive_set.numbers, index=pd.Index(dive_set.numbers, name="true_number"))
    table["invalid"] = np.bincount(predictions.labels, minlength=len(dive_set)) - matrix.sum(axis=1)
    with written_atomically(path) as temporary:
        table.to_csv(temporary, lineterminator="\n")


def read_test_config(run: RunFolder, overrides: list[str], split: str) -> tuple[Config, EvaluationFiles]:
    """The run's config with the overrides, and the files that the evaluation writes.

    Raises: ValueError if training has not ended, or an override is not for testing.
    """
    if not run.config.is_file() or not run.model.is_dir():
        raise ValueError(f"{run} holds no trained model; expected a run folder of `diveparse train`")
    if not run.trained.is_file():
        raise ValueError(
            f"{run} has not been trained to its end, {run.num_updates_done()} updates are done; "
            f"go on with: diveparse train {run.config} --resume"
        )
    for override in overrides:
        if not override.startswith(TEST_OPTIONS):
            raise ValueError(f"testing can change {', '.join(TEST_OPTIONS)} only, got {override!r}")
    cfg = load_config(run.config, overrides)
    is_own_order = cfg.clip.order is load_config(run.config, []).clip.order
    return cfg, run.evaluation(split, control="" if is_own_order else cfg.clip.order.value)
