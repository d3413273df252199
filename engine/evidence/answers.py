"""The answers of every tested run of an experiment in one small file, `NAME.answers.npz`.

It holds what a repository can keep: of each run its options, its environment, how it was tested and, for each clip, the
dive that it named, the log-probability of the truth, and those of all dives in half precision. Those under -4, 2 %, are
rounded to an eighth, which takes half the space. From the file alone the run folders can be put back as far as a
comparison reads them, and so every table and page written again. What follows from names and truths is the same, such
as top-1, NLL and differences; calibration and Brier scores differ by the rounding. Nothing in the file is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.storage.atomic import write_json, write_text, written_atomically
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.engine.evaluation.predictions import Predictions, load_predictions, save_predictions, write_predictions
from diveparse.engine.evaluation.testing import DESCRIPTION, scores_of, write_confusion
from diveparse.engine.evidence.experiment import Cell
from diveparse.heads.recombine import marginals, slot_table

FORMAT = 1
ABOUT = "about"  # the array with a JSON text: clips and dives of each test, and what is known of each run
LOWEST = -30.0  # what stands for an even lower log-probability
FINE = -4.0  # log-probabilities under this are rounded to 1 / COARSE_STEPS
COARSE_STEPS = 8


@dataclass(frozen=True)
class Answers:
    """One run's answers for one split, as the file holds them."""

    run: dict[str, Any]  # arm, seed, split, config, environment, metrics
    predictions: Predictions
    dive_set: DiveSet


def answers_path(folder: Path, experiment: str) -> Path:
    return folder / f"{experiment}.answers.npz"


def write_answers(path: Path, cells: Sequence[Cell]) -> None:
    """Write the answers of tested cells, each for all its splits, all or nothing.

    Raises: ValueError naming a file of a run that is missing or damaged.
    """
    tests: list[dict[str, Any]] = []  # clips, sources, labels and dives, which many runs share
    runs: list[dict[str, Any]] = []
    arrays: dict[str, npt.NDArray[Any]] = {}
    for cell in cells:
        for split in cell.splits:
            predictions, dive_set = load_predictions(cell.run.evaluation(split).probabilities)
            test = _test_of(predictions, dive_set)
            if test not in tests:
                tests.append(test)
            number = len(runs)
            runs.append(_describe(cell, split) | {"test": tests.index(test)})
            arrays |= {f"{number}.{name}": array for name, array in _arrays_of(predictions).items()}
    about = json.dumps({"format": FORMAT, "tests": tests, "runs": runs})
    arrays[ABOUT] = np.frombuffer(about.encode(), np.uint8)
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_answers(path: Path) -> list[Answers]:
    """Read what `write_answers` wrote. Raises: ValueError naming the file if it is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `diveparse experiment` writes it beside the page")
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file[ABOUT].tobytes())
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, expected {FORMAT}")
            return [
                _answers(run, about["tests"][run["test"]], file, number) for number, run in enumerate(about["runs"])
            ]
    except (BadZipFile, EOFError, OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the answers of an experiment: {error}") from error


def restore_runs(cells: Sequence[Cell], folder: Path) -> int:
    """Put back the run folders of cells that are not there, as far as a comparison reads them.

    folder: of the files of answers, one for each experiment. A restored run has no model: it can be compared, not
    tested again. Returns: how many were put back.
    Raises: ValueError naming the file that is missing or damaged, or that lacks a run.
    """
    missing = [cell for cell in cells if not all(cell.run.evaluation(split).metrics.is_file() for split in cell.splits)]
    for name in sorted({cell.config.name for cell in missing}):
        path = answers_path(folder, name)
        found = {(each.run["arm"], each.run["seed"], each.run["split"]): each for each in read_answers(path)}
        for cell in missing:
            if cell.config.name == name:
                for split in cell.splits:
                    key = (cell.config.arm, cell.config.seed, split)
                    if key not in found:
                        raise ValueError(f"{path}: lacks arm {key[0]} with seed {key[1]}, tested on {split}")
                    _restore(cell, split, found[key], path)
    return len(missing)


def _test_of(predictions: Predictions, dive_set: DiveSet) -> dict[str, Any]:
    return {
        "clips": predictions.clips,
        "sources": predictions.sources,
        "labels": predictions.labels.tolist(),
        "dives": {"name": dive_set.name, "numbers": list(dive_set.numbers)},
    }


def _describe(cell: Cell, split: str) -> dict[str, Any]:
    run = cell.run
    metrics = read_json_object(run.evaluation(split).metrics)
    return {
        "arm": cell.config.arm,
        "seed": cell.config.seed,
        "split": split,
        "config": run.config.read_text(encoding="utf-8"),
        "environment": read_json_object(run.environment) if run.environment.is_file() else {},
        "metrics": {name: metrics[name] for name in DESCRIPTION if name in metrics},
    }


def _arrays_of(predictions: Predictions) -> dict[str, npt.NDArray[Any]]:
    log_probs = predictions.dive_log_probs
    coarse = np.where(log_probs < FINE, np.round(log_probs * COARSE_STEPS) / COARSE_STEPS, log_probs)
    return {
        "log_probs": np.where(np.isfinite(log_probs), coarse.clip(min=LOWEST), log_probs).astype("<f2"),
        "of_truth": log_probs[np.arange(len(predictions)), predictions.labels],
        "decoded": predictions.decoded_labels.astype(np.int16),
        "spelt": predictions.spelt_labels.astype(np.int16),
        "values": np.stack([predictions.attribute_log_probs[name].argmax(1) for name in ATTRIBUTES]).astype(np.int8),
    }


def _answers(run: dict[str, Any], test: dict[str, Any], file: Any, number: int) -> Answers:
    dive_set = DiveSet.from_numbers(test["dives"]["numbers"], test["dives"]["name"])
    log_probs = log_softmax(file[f"{number}.log_probs"].astype(np.float64), axis=1).astype(np.float32)
    labels = np.array(test["labels"])
    log_probs[np.arange(len(labels)), labels] = file[f"{number}.of_truth"]
    predictions = Predictions(
        clips=test["clips"],
        sources=test["sources"],
        labels=labels,
        dive_log_probs=log_probs,
        attribute_log_probs=_attribute_log_probs(log_probs, file[f"{number}.values"], dive_set),
        spelt_labels=file[f"{number}.spelt"].astype(np.int64),
        decoded_labels=file[f"{number}.decoded"].astype(np.int64),
    )
    return Answers(run, predictions, dive_set)


def _attribute_log_probs(
    log_probs: npt.NDArray[np.float32], values: npt.NDArray[np.int8], dive_set: DiveSet
) -> dict[str, npt.NDArray[np.float32]]:
    """The marginals; where the model's own most probable value is another, as of independent heads, that one is sure.

    values: (num_attributes, num_clips), the most probable one.
    """
    found = {}
    by_name = marginals(torch.from_numpy(log_probs), slot_table(dive_set), dive_set.values)
    for (name, marginal), answers in zip(by_name.items(), values.astype(np.int64), strict=True):
        each = marginal.numpy()
        certain = np.log(np.eye(each.shape[1], dtype=np.float32)[answers].clip(min=np.finfo(np.float32).tiny))
        found[name] = np.where((each.argmax(axis=1) == answers)[:, None], each, certain)
    return found


def _restore(cell: Cell, split: str, answers: Answers, origin: Path) -> None:
    about, files = answers.run["metrics"], cell.run.evaluation(split)
    scores = scores_of(answers.predictions, answers.dive_set, about["num_train_clips"], about["temperature"])
    write_text(cell.run.config, answers.run["config"])
    write_json(cell.run.environment, answers.run["environment"])
    save_predictions(files.probabilities, answers.predictions, answers.dive_set)
    write_predictions(files.predictions, answers.predictions, answers.dive_set)
    write_confusion(files.confusion, answers.predictions, answers.dive_set)
    write_json(files.metrics, {**about, **scores, "restored_from": str(origin)})
