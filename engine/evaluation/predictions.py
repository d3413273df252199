"""A model's predictions for the clips of a split: in memory, whole in predictions.safetensors, and as a table."""

from __future__ import annotations

import json
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diveparse.datasets.dives import ATTRIBUTES, COUNTS, DiveSet
from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.storage.json_file import parse_json
from diveparse.heads.recombine import INVALID

ATTRIBUTE_PREFIX = "attribute."
FLOAT_COLUMNS = ("log_prob_true", "confidence")
COLUMNS = (
    "clip",
    "source",
    "true_number",
    "predicted_number",
    "log_prob_true",
    "confidence",
    "top5",
    *ATTRIBUTES,
    "spelt_number",
)


# names that older files have in place of `spelt_labels` and `spelt_number`
OLDER_TENSOR, OLDER_COLUMN = "named_labels", "named_number"


@dataclass(frozen=True)
class Predictions:
    """One entry a clip; a label is an index into the DiveSet that the predictions are over."""

    clips: list[str]
    sources: list[str]
    labels: npt.NDArray[np.int64]  # (num_clips,) the truth
    dive_log_probs: npt.NDArray[np.float32]  # (num_clips, num_dives), every row's exp sums to 1
    attribute_log_probs: dict[str, npt.NDArray[np.float32]]  # attribute -> (num_clips, num_values)
    spelt_labels: npt.NDArray[np.int64]  # (num_clips,) the dive that the head's four own argmaxes spell, or INVALID
    decoded_labels: npt.NDArray[np.int64]  # (num_clips,) the dive that the model names, or INVALID

    def __post_init__(self) -> None:
        columns: dict[str, Sized] = {
            "sources": self.sources,
            "labels": self.labels,
            "dive_log_probs": self.dive_log_probs,
            "spelt_labels": self.spelt_labels,
            "decoded_labels": self.decoded_labels,
            **self.attribute_log_probs,
        }
        for name, column in columns.items():
            if len(column) != len(self.clips):
                raise ValueError(f"{name} must have {len(self.clips)} entries, one a clip, got {len(column)}")

    def __len__(self) -> int:
        return len(self.clips)

    def at(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Predictions:
        """The predictions of some clips only, or in another order. rows: indices, or a mask."""
        return Predictions(
            clips=np.asarray(self.clips)[rows].tolist(),
            sources=np.asarray(self.sources)[rows].tolist(),
            labels=self.labels[rows],
            dive_log_probs=self.dive_log_probs[rows],
            attribute_log_probs={name: values[rows] for name, values in self.attribute_log_probs.items()},
            spelt_labels=self.spelt_labels[rows],
            decoded_labels=self.decoded_labels[rows],
        )


def save_predictions(path: Path, predictions: Predictions, dive_set: DiveSet) -> None:
    """Write everything as tensors, all or nothing. Clips, sources and dives are JSON in the file's metadata."""
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "labels": predictions.labels,
        "dive_log_probs": predictions.dive_log_probs,
        "spelt_labels": predictions.spelt_labels,
        "decoded_labels": predictions.decoded_labels,
        **{ATTRIBUTE_PREFIX + name: values for name, values in predictions.attribute_log_probs.items()},
    }
    texts = {"clips": predictions.clips, "sources": predictions.sources, "dives": dive_set.numbers}
    metadata = {name: json.dumps(values) for name, values in texts.items()}
    with written_atomically(path, sum(values.nbytes for values in tensors.values())) as temporary:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, temporary, metadata)


def load_predictions(path: Path) -> tuple[Predictions, DiveSet]:
    """Read what `save_predictions` wrote, sorted by clip. Raises: ValueError naming the file if it cannot be used."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `diveparse test` writes it into a run folder")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict
        if OLDER_TENSOR in tensors:
            raise ValueError(_written_earlier(OLDER_TENSOR))
        clips, sources, numbers = (parse_json(metadata[name]) for name in ("clips", "sources", "dives"))
        predictions = Predictions(
            clips=clips,
            sources=sources,
            attribute_log_probs={name: tensors.pop(ATTRIBUTE_PREFIX + name) for name in ATTRIBUTES},
            **tensors,
        )
        return predictions.at(np.argsort(clips)), DiveSet.from_numbers(numbers)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the predictions of a test: {error}") from error


def write_predictions(path: Path, predictions: Predictions, dive_set: DiveSet) -> None:
    """Write one row a clip, in the order of the split, all or nothing.

    `confidence` is the probability of the predicted number, 0 where that is no dive of the set. Attributes are the most
    probable marginal of each attribute, so they need not spell the predicted number. An invalid number is an
    empty cell.
    """
    labels, log_probs = predictions.labels, predictions.dive_log_probs
    decoded = predictions.decoded_labels
    rows = np.arange(len(predictions))
    chosen = np.take_along_axis(log_probs, decoded.clip(min=0)[:, None], axis=1)[:, 0]
    table = pd.DataFrame(
        {
            "clip": predictions.clips,
            "source": predictions.sources,
            "true_number": _numbers(labels, dive_set),
            "predicted_number": _numbers(decoded, dive_set),
            "log_prob_true": log_probs[rows, labels],
            "confidence": np.where(decoded == INVALID, 0.0, np.exp(chosen)),
            "top5": [" ".join(_numbers(row, dive_set)) for row in np.argsort(-log_probs, axis=1, kind="stable")[:, :5]],
        }
    )
    for attribute in ATTRIBUTES:
        values = dive_set.values[attribute]
        table[attribute] = [values[slot] for slot in predictions.attribute_log_probs[attribute].argmax(axis=1)]
    table["spelt_number"] = _numbers(predictions.spelt_labels, dive_set)
    with written_atomically(path) as temporary:
        table.to_csv(temporary, index=False, columns=list(COLUMNS), float_format="%.9g", lineterminator="\n")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read predictions.csv: COLUMNS, one row a clip, dive numbers as text ("" where invalid), half turns as integers.

    Raises: ValueError naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `diveparse test` writes it into a run folder")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own parser errors are ValueErrors
        raise ValueError(f"{path}: not a CSV table: {error}") from error
    if OLDER_COLUMN in table.columns:
        raise ValueError(f"{path}: {_written_earlier(OLDER_COLUMN)}")
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{path}: holds no clips")
    repeated = table["clip"][table["clip"].duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: names the clip {repeated.iloc[0]!r} more than once")
    for column in ("clip", "source", "true_number", "top5"):
        if (table[column] == "").any():
            raise ValueError(f"{path}: column {column} is empty in row {int((table[column] == '').argmax()) + 2}")
    for column in FLOAT_COLUMNS + COUNTS:
        table[column] = _as_numbers(path, table[column], integer=column in COUNTS)
    return table[list(COLUMNS)]


def _written_earlier(name: str) -> str:
    """Attributes meant something else then, so these predictions cannot stand beside newer ones."""
    return f"{name} marks a file of an earlier version; test the run again with --again to replace it"


def _numbers(labels: npt.NDArray[np.int64], dive_set: DiveSet) -> list[str]:
    return ["" if label == INVALID else dive_set[int(label)].number for label in labels]


def _as_numbers(path: Path, column: pd.Series[str], *, integer: bool) -> pd.Series[float] | pd.Series[int]:
    numbers = pd.to_numeric(column, errors="coerce")
    numbers = numbers.where(column != "-inf", -np.inf)  # the dive is one that the model cannot name
    wrong = numbers.isna() | (numbers == np.inf) | (integer & (numbers % 1 != 0))
    if wrong.any():
        row = int(wrong.argmax())
        expected = "a whole number" if integer else "a finite number"
        raise ValueError(f"{path}: column {column.name} must be {expected}, got {column.iloc[row]!r} in row {row + 2}")
    return numbers.astype(np.int64 if integer else np.float64)
