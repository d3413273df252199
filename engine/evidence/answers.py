"""The answers of every tested run of an experiment in one small file, `NAME.answers.npz`.

It holds what a repository can keep: of each run its options, its environment and its scores, and for each clip the dive
that it named, the most probable dive, the most probable values, and the log-probabilities of that dive and of the truth
in half precision. From the file alone the run folders can be put back as far as a comparison reads them, and so every
table and page written again. Log-probabilities of the other dives are kept only where a penalty on unseen dives is
chosen and judged, rounded to an eighth under -4, 2 %; elsewhere a restored run shares what is left among them equally.
Nothing in the file is pickled.
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
from diveparse.engine.evaluation.testing import write_confusion
from diveparse.engine.evidence.experiment import Cell
from diveparse.heads.recombine import marginals, slot_table

FORMAT = 2
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
            kept = _answers_of(predictions, dive_set)
            if len(cell.splits) > 1:  # one of them is for choosing a penalty, which takes all dives
                kept["log_probs"] = _coarse(predictions.dive_log_probs)
            arrays |= {f"{number}.{name}": array for name, array in kept.items()}
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
    return {
        "arm": cell.config.arm,
        "seed": cell.config.seed,
        "split": split,
        "config": run.config.read_text(encoding="utf-8"),
        "environment": read_json_object(run.environment) if run.environment.is_file() else {},
        "metrics": read_json_object(run.evaluation(split).metrics),
    }


def _answers_of(predictions: Predictions, dive_set: DiveSet) -> dict[str, npt.NDArray[Any]]:
    """Labels and values are kept as their distance from the truth, which is mostly 0 and so takes little space."""
    labels, log_probs, every_clip = predictions.labels, predictions.dive_log_probs, np.arange(len(predictions))
    best = log_probs.argmax(axis=1)
    values = np.stack([predictions.attribute_log_probs[name].argmax(axis=1) for name in ATTRIBUTES])
    with np.errstate(over="ignore"):  # what half precision cannot hold is as good as impossible
        of_truth, of_best = (log_probs[every_clip, rows].astype("<f2") for rows in (labels, best))
    return {
        "of_truth": of_truth,
        "of_best": of_best,
        "best": (best - labels).astype("<i2"),
        "decoded": (predictions.decoded_labels - labels).astype("<i2"),
        "spelt": (predictions.spelt_labels - labels).astype("<i2"),
        "values": (values - _slots(dive_set)[:, labels]).astype(np.int8),
    }


def _slots(dive_set: DiveSet) -> npt.NDArray[np.int64]:
    """(num_attributes, num_dives), the value of each attribute of each dive."""
    return np.array([dive_set.slots()[name] for name in ATTRIBUTES])


def _coarse(log_probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    coarse = np.where(log_probs < FINE, np.round(log_probs * COARSE_STEPS) / COARSE_STEPS, log_probs)
    return np.where(np.isfinite(log_probs), coarse.clip(min=LOWEST), log_probs).astype("<f2")


def _answers(run: dict[str, Any], test: dict[str, Any], file: Any, number: int) -> Answers:
    dive_set = DiveSet.from_numbers(test["dives"]["numbers"], test["dives"]["name"])
    labels = np.array(test["labels"])
    kept = {name: file[f"{number}.{name}"] for name in ("of_truth", "of_best", "best", "decoded", "spelt", "values")}
    if f"{number}.log_probs" in file:
        log_probs = log_softmax(file[f"{number}.log_probs"].astype(np.float64), axis=1).astype(np.float32)
    else:
        log_probs = _spread(labels, kept["best"] + labels, kept["of_truth"], kept["of_best"], len(dive_set))
    values = kept["values"].astype(np.int64) + _slots(dive_set)[:, labels]
    predictions = Predictions(
        clips=test["clips"],
        sources=test["sources"],
        labels=labels,
        dive_log_probs=log_probs,
        attribute_log_probs=_attribute_log_probs(log_probs, values, dive_set),
        spelt_labels=kept["spelt"] + labels,
        decoded_labels=kept["decoded"] + labels,
    )
    return Answers(run, predictions, dive_set)


def _spread(
    labels: npt.NDArray[np.int64],
    best: npt.NDArray[np.int64],
    of_truth: npt.NDArray[np.float16],
    of_best: npt.NDArray[np.float16],
    num_dives: int,
) -> npt.NDArray[np.float32]:
    """Log-probabilities where only those of two dives are known, which may be one: the others share the rest."""
    is_right = best == labels
    known = np.exp(of_best.astype(np.float64)) + np.where(is_right, 0, np.exp(of_truth.astype(np.float64)))
    share = (1 - known).clip(min=np.exp(LOWEST)) / (num_dives - np.where(is_right, 1, 2)).clip(min=1)
    log_probs = np.repeat(np.log(share)[:, None], num_dives, axis=1)
    every_clip = np.arange(len(labels))
    # the best dive stays the best where the others would share more than it has
    log_probs = np.minimum(log_probs, of_best[:, None].astype(np.float64) - np.spacing(np.float32(1)))
    log_probs[every_clip, labels] = of_truth
    log_probs[every_clip, best] = of_best
    return log_probs.astype(np.float32)


def _attribute_log_probs(
    log_probs: npt.NDArray[np.float32], values: npt.NDArray[np.int64], dive_set: DiveSet
) -> dict[str, npt.NDArray[np.float32]]:
    """The marginals; where the model's own most probable value is another, as of independent heads, that one is sure.

    values: (num_attributes, num_clips), the most probable one.
    """
    found = {}
    by_name = marginals(torch.from_numpy(log_probs), slot_table(dive_set), dive_set.values)
    for (name, marginal), answers in zip(by_name.items(), values, strict=True):
        each = marginal.numpy()
        certain = np.log(np.eye(each.shape[1], dtype=np.float32)[answers].clip(min=np.finfo(np.float32).tiny))
        found[name] = np.where((each.argmax(axis=1) == answers)[:, None], each, certain)
    return found


def _restore(cell: Cell, split: str, answers: Answers, origin: Path) -> None:
    files = cell.run.evaluation(split)
    write_text(cell.run.config, answers.run["config"])
    write_json(cell.run.environment, answers.run["environment"])
    save_predictions(files.probabilities, answers.predictions, answers.dive_set)
    write_predictions(files.predictions, answers.predictions, answers.dive_set)
    write_confusion(files.confusion, answers.predictions, answers.dive_set)
    write_json(files.metrics, {**answers.run["metrics"], "restored_from": str(origin)})
