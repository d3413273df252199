"""Test a trained run: one pass over a split, and the files that it writes into the run folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from diveparse.configs import Config, load_config, save_config
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.records import ClipRecord, is_rendered
from diveparse.datasets.splits import evaluation_clips, scored_dives
from diveparse.datasets.storage.atomic import write_json, written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.datasets.storage.lock import locked, require_unlocked
from diveparse.engine import distributed
from diveparse.engine.batches import build_clips, cached_or_read, evaluation_batches
from diveparse.engine.device import choose_device
from diveparse.engine.environment import describe_environment
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
    "model_of",  # the run whose model was tested, where it is another run's
    "not_expressible",  # dives of the test that the model cannot name, whatever the clip
)
# in a test; with data.dives, a CSV's clips may show other dives than those of the training
TEST_OPTIONS = ("data.root", "data.dives", "data.num_workers", "data.cache", "data.damaged", "test.", "clip.order")

logger = logging.getLogger(__name__)


def evaluate_run(folder: Path, overrides: list[str], *, split: str, again: bool = False) -> dict[str, Any]:
    """Evaluate a run's best model on its "test" or "val" split, write predictions and scores, return the scores.

    Nothing is fitted or chosen here. The files are metrics.json, confusion.csv, predictions.safetensors and
    predictions.csv. Their names begin with validation_ for "val", and with shuffled_ where clip.order=shuffled turns
    the evaluation of a run trained in order into its control.
    Raises: ValueError if training has not ended, an option is not for testing, or the metrics already exist;
    InUseError while another process trains or tests the run.
    """
    run = RunFolder(folder)
    if distributed.is_first():
        require_unlocked(folder)
    cfg, files = read_test_config(run, overrides, split)
    with shared_test(folder, lambda: require_first(files, again=again)):
        return _score(run, cfg, files, run, split=split)


@contextmanager
def shared_test(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a run that is tested. Under `torchrun` the first process holds it for all; it alone checks, and
    the others wait for it."""
    device = choose_device()
    if not distributed.is_first():
        with distributed.joined(device):
            yield
        return
    with locked(folder, "testing"):
        check()
        with distributed.joined(device):
            yield


def read_out(trained: RunFolder, cfg: Config, overrides: list[str], *, split: str) -> dict[str, Any]:
    """Evaluate a trained run's best model on other data, into a run of its own that holds no model.

    cfg: the options of the training, with the name and arm of the run that the files go to; overrides: those of the
    test, as for `evaluate_run`.
    Raises: ValueError as `evaluate_run` does, or if the folder holds another run; InUseError while a process trains or
    tests one of the two.
    """
    run = RunFolder.of(cfg)
    require_unlocked(trained.path)
    require_unlocked(run.path)
    tested, _ = read_test_config(trained, overrides, split)
    if run.config.is_file() and not run.readout.is_file():
        raise ValueError(f"{run} holds another run; remove it to test the model of {trained} there")
    with locked(run.path, "testing"):
        write_json(run.readout, {"model_of": str(trained)})
        with written_atomically(run.config) as temporary:
            save_config(cfg, temporary)
        write_json(run.environment, describe_environment(cfg.seed))
        named = replace(tested, name=cfg.name, arm=cfg.arm)
        return _score(run, named, run.evaluation(split), trained, split=split)


def _score(run: RunFolder, cfg: Config, files: EvaluationFiles, trained: RunFolder, *, split: str) -> dict[str, Any]:
    """Evaluate the model of a run, `trained`, and write the files into a run, which may be another."""
    model = DiveClassifier.load(trained.model).to(choose_device())
    dive_set = scored_dives(cfg.data, model.dive_set)
    about_training = {
        "trained_from_cache": "train" in (trained.splits_from_cache() or ()),
        **describe_training(trained, dive_set),
        "model_of": None if trained == run else str(trained),
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
    predictions = evaluate(model, bar, records, cfg.train.precision, dive_set, batch_size=cfg.test.batch_size)
    about = {
        **describe_test(cfg, split, records, predictions, from_cache=clips.cache is not None),
        **about_training,
        "temperature": model.temperature,
        "unseen_penalty": model.unseen_penalty,
        "not_expressible": unnameable(model, dive_set),
    }
    about = {name: about[name] for name in DESCRIPTION}
    scores = scores_of(predictions, dive_set, about["num_train_clips"], model.temperature)
    if not distributed.is_first():
        return {**about, **scores}
    save_predictions(files.probabilities, predictions, dive_set)
    write_predictions(files.predictions, predictions, dive_set)
    write_confusion(files.confusion, predictions, dive_set)
    if not files.prefix:
        log_test(run, cfg, scores, predictions, dive_set, about["num_updates"])
    metrics = {**about, **scores}
    write_json(files.metrics, metrics)  # the last file, so that a split without it counts as not tested
    return metrics


def unnameable(model: DiveClassifier, dive_set: DiveSet) -> list[str]:
    """The numbers of the dives that the model cannot name; logged where there are any."""
    known = model.head.expressible(dive_set)
    missing = [dive.number for dive in dive_set if dive not in known]
    if missing:
        listed = ", ".join(missing)
        logger.warning("the model can name %d of %d dives, and not %s", len(known), len(dive_set), listed)
    return missing


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
