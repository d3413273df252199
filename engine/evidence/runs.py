"""Tested runs, as their folders hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diveparse.configs import Config, load_config
from diveparse.datasets.dives import ATTRIBUTES
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.datasets.storage.lock import require_unlocked
from diveparse.engine.evaluation.predictions import read_predictions
from diveparse.engine.run import EvaluationFiles, RunFolder

SCORES = (
    "top1",
    "top5",
    "mean_class_accuracy",
    *ATTRIBUTES,
    "invalid_rate",
    "nll",
    "nll_calibrated",
    "brier",
    "ece",
    "ece_calibrated",
    "aurc",
    "somersault_error",
    "twist_error",
)
BY_TRAINING = ("trained", "untrained")  # top-1 on the dives that had a training clip, and on those that had none
CLIPPED_SHARE = "clipped_share"  # of all updates
DIFFICULTY_ERROR = "difficulty_error"
ALL_SCORES = (*SCORES, DIFFICULTY_ERROR, *BY_TRAINING, CLIPPED_SHARE)
TESTED_ON = ("data_root", "rendered", "from_cache", "trained_from_cache")


@dataclass(frozen=True)
class Run:
    """A tested run: how it was trained and tested, its scores and its predictions."""

    folder: RunFolder
    config: Config
    split: str
    num_views: int
    data_root: str  # of the test, which need not be that of the training
    rendered: bool  # whether the dives of the test are rendered
    from_cache: bool  # whether the clips of the test were read from the cache, not from their videos
    trained_from_cache: bool | None  # None of a published model, which was not trained here
    num_classes_scored: int
    scores: dict[str, float]  # one for each of ALL_SCORES; nan where it is not known
    num_train_clips: dict[str, int]  # by dive number
    predictions: pd.DataFrame  # sorted by clip, so that runs pair row by row
    clipped_share: tuple[float, ...] = ()  # of the updates of each epoch; none of a run of an earlier version
    median_grad_norm: tuple[float, ...] = ()  # of the updates of each epoch, before clipping
    model_of: str | None = None  # the run whose model was tested, where it is another's
    not_expressible: tuple[str, ...] = ()  # numbers of the dives of the test that the model cannot name

    @property
    def files(self) -> EvaluationFiles:
        return self.folder.evaluation(self.split)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(num_clips,) whether the predicted number is the true one."""
        return (self.predictions["predicted_number"] == self.predictions["true_number"]).to_numpy(dtype=bool)

    @property
    def nll(self) -> npt.NDArray[np.float64]:
        """(num_clips,) -log p(true dive), in nats and uncalibrated."""
        return -self.predictions["log_prob_true"].to_numpy(dtype=np.float64)


def load_run(path: Path, split: str = "test") -> Run:
    """Read a run that has been tested on a split, "test" or "val". path: its folder.

    Raises: ValueError naming the file that is missing or wrong, and the remedy; InUseError while a process writes it.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder")
    require_unlocked(path)
    folder = RunFolder(path)
    files = folder.evaluation(split)
    if not folder.config.is_file():
        raise ValueError(f"{folder} has no {folder.config.name}; give a run folder that `diveparse train` wrote")
    for file in (files.metrics, files.predictions):
        if not file.is_file():
            raise ValueError(f"{folder} has no {file.name}; test it first: diveparse test {folder}")
    metrics = _read_metrics(files.metrics)
    run = Run(
        folder=folder,
        config=load_config(folder.config, []),
        split=str(metrics["split"]),
        num_views=int(metrics["num_views"]),
        data_root=str(metrics["data_root"]),
        rendered=bool(metrics["rendered"]),
        from_cache=bool(metrics["from_cache"]),
        trained_from_cache=None if (cached := metrics["trained_from_cache"]) is None else bool(cached),
        num_classes_scored=int(metrics["num_classes_scored"]),
        scores=_read_scores(metrics),
        num_train_clips=metrics["num_train_clips"],
        predictions=read_predictions(files.predictions).sort_values("clip", ignore_index=True),
        clipped_share=tuple(metrics.get("clipped_share", ())),
        median_grad_norm=tuple(metrics.get("median_grad_norm", ())),
        model_of=metrics.get("model_of"),
        not_expressible=tuple(metrics.get("not_expressible", ())),
    )
    _require_one_test(run)
    return run


def _require_one_test(run: Run) -> None:
    """Raises: ValueError if the metrics are not those of the predictions beside them."""
    accuracy, metrics, predictions = float(run.correct.mean()), run.files.metrics.name, run.files.predictions.name
    if abs(accuracy - run.scores["top1"]) > 1e-6:
        raise ValueError(
            f"{run.folder}: {predictions} has a top-1 of {accuracy:.6f} and {metrics} {run.scores['top1']:.6f}; "
            f"they are of different tests, so test again: diveparse test {run.folder} --again"
        )


def _read_metrics(path: Path) -> dict[str, Any]:
    metrics = read_json_object(path)
    attributes = metrics.get("attribute_accuracy")
    if not isinstance(attributes, dict):
        raise ValueError(f"{path}: has no attribute_accuracy; `diveparse test` writes it")
    expected = (
        "split",
        "num_views",
        *TESTED_ON,
        "num_classes_scored",
        "num_train_clips",
        "by_training",
        DIFFICULTY_ERROR,
        *SCORES,
    )
    missing = [name for name in expected if name not in metrics | attributes]
    if missing:
        again = f"diveparse test {path.parent} --again"
        raise ValueError(f"{path}: lacks {', '.join(missing)}; test again: {again}")
    return metrics


def _read_scores(metrics: dict[str, Any]) -> dict[str, float]:
    scores = {name: _number((metrics | metrics["attribute_accuracy"])[name]) for name in SCORES}
    for name in BY_TRAINING:
        accuracy = metrics["by_training"].get(name, {}).get("accuracy")
        scores[name] = math.nan if accuracy is None else float(accuracy)
    clipped, distance = metrics.get(CLIPPED_SHARE, ()), metrics[DIFFICULTY_ERROR]
    scores[DIFFICULTY_ERROR] = math.nan if distance is None else float(distance)
    return scores | {CLIPPED_SHARE: float(np.mean(clipped)) if clipped else math.nan}


def _number(score: float | None) -> float:
    return math.inf if score is None else float(score)  # JSON has no infinity
