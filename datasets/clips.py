"""Anybody's labelled clips: a CSV file with one row per clip, labelled by a dive number.

Two columns are required: `path`, a video, absolute or relative to the folder of the CSV, and `dive_number`. Others are
optional: `start` and `end`, in seconds, of a clip within a longer video; `split`, which is train (the default), val or
test; and `source`, the recording or event that a clip was cut from (by default, its video, by whichever path). A file
with other column names is read through a mapping from these names to its own, or to patterns of its own such as
"{video}/{clip}.mp4". Paths may have been written on another system, see written_paths.py.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diveparse.datasets.dives import Dive, DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.video import probe
from diveparse.datasets.written_paths import find_video, same_on_some_disk

COLUMNS = ("path", "dive_number", "start", "end", "split", "source")
REQUIRED = ("path", "dive_number")
SPLITS = ("train", "val", "test")
FIELD = re.compile(r"\{([^{}]+)\}")
NUM_PROBLEMS_SHOWN = 50


class BadRowsError(ValueError):
    """Some rows of a file cannot be used. The message names the file, then has a line for each of those rows."""


@dataclass(frozen=True)
class LabelledClips:
    """The content of a file of clips."""

    splits: dict[str, list[ClipRecord]]  # only splits that have clips; clips are in the order of the file
    dive_set: DiveSet


class ClipTable:
    """A CSV file of clips as a data set (see data_set.py). The whole file is read and checked, once, on first use."""

    def __init__(self, path: Path, columns: Mapping[str, str], dive_set: DiveSet | None) -> None:
        """columns, dive_set: as for `read_clips`."""
        self.path, self.columns, self._dive_set = path, columns, dive_set
        self.name, self.cache_root = str(path), path.with_suffix(".cache")

    @cached_property
    def _clips(self) -> LabelledClips:
        return read_clips(self.path, self.columns, self._dive_set)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._clips.splits)

    @property
    def dive_set(self) -> DiveSet:
        return self._dive_set or self._clips.dive_set

    def records(self, split: str) -> list[ClipRecord]:
        if split not in self._clips.splits:
            raise ValueError(f"{self.path}: no row has the split {split}")
        return self._clips.splits[split]


def read_clips(path: Path, columns: Mapping[str, str], dive_set: DiveSet | None) -> LabelledClips:
    """Read a whole file and check every row.

    columns: the file's own names for those of COLUMNS, where they differ. dive_set: the dives that labels count in;
    None takes the dives in the file, ordered by number.
    Raises: ValueError naming the file, if it is missing, not a CSV or lacks a column; BadRowsError with all bad rows.
    """
    rows = _read_rows(path, columns)
    problems: dict[int, str] = {}
    dives: dict[int, Dive] = {}
    clips: dict[int, tuple[Path, str, float, float | None]] = {}
    lines: dict[str, list[int]] = {}  # of each clip's name, without what some disks ignore
    durations_s: dict[Path, float] = {}
    for line, row in rows.items():
        try:
            dives[line] = _read_dive(row["dive_number"], dive_set)
            clips[line] = _read_window(row, path.parent, durations_s)
            if row["split"] not in ("", *SPLITS):
                raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {row['split']!r}")
            for first in (others := lines.setdefault(same_on_some_disk(clips[line][1]), [])):
                if clips[first][1] == clips[line][1] or clips[first][0].samefile(clips[line][0]):
                    raise ValueError(f"clip {clips[line][1]} is listed in line {first} already; remove one")
            others.append(line)
        except ValueError as error:
            problems[line] = str(error)
    if problems:
        shown = [f"  line {line}: {problem}" for line, problem in list(problems.items())[:NUM_PROBLEMS_SHOWN]]
        more = [f"  and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        heading = f"{path}: {len(problems)} of {len(rows)} rows cannot be used"
        raise BadRowsError("\n".join([heading, *shown, *more]))
    dive_set = dive_set or DiveSet(tuple(sorted(set(dives.values()), key=lambda dive: dive.number)), path.stem)
    splits: dict[str, list[ClipRecord]] = {}
    sources: dict[Path, str] = {}  # of each video, by its path without links
    for line, (video, name, start_s, end_s) in clips.items():
        source = rows[line]["source"] or sources.setdefault(video.resolve(), str(video))
        record = ClipRecord(video, name, source, dive_set.label_of(dives[line]), start_s, end_s)
        splits.setdefault(rows[line]["split"] or "train", []).append(record)
    return LabelledClips(splits, dive_set)


def _read_rows(path: Path, columns: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """The rows by line number, each a value for every name of COLUMNS; "" if the file has no such column."""
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise ValueError(f"data.columns must map {', '.join(COLUMNS)}, got {', '.join(unknown)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected a CSV of clips")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            patterns = _patterns(path, reader.fieldnames or [], columns)
            rows = {}
            for row in reader:
                if None in row or None in row.values():
                    num_columns = len(reader.fieldnames or [])
                    raise ValueError(
                        f"{path}: line {reader.line_num}: expected {num_columns} values, as in the heading"
                    )
                rows[reader.line_num] = {name: _fill(pattern, row).strip() for name, pattern in patterns.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected one row or more below the heading")
    return rows


def _patterns(path: Path, fields: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """For each of COLUMNS, a pattern of the file's own columns, such as "{path}"; "" if there is none."""
    patterns = {}
    for name in COLUMNS:
        written = columns.get(name, name)
        pattern = written if FIELD.search(written) else f"{{{written}}}"
        missing = [field for field in FIELD.findall(pattern) if field not in fields]
        if missing and (name in columns or name in REQUIRED):
            raise ValueError(f"{path}: no column {missing[0]!r} for {name}; the file has {', '.join(fields) or 'none'}")
        patterns[name] = "" if missing else pattern
    return patterns


def _fill(pattern: str, row: dict[str, str]) -> str:
    return FIELD.sub(lambda field: row[field[1]], pattern)


def _read_dive(number: str, dive_set: DiveSet | None) -> Dive:
    dive = Dive.from_number(number)
    if dive_set is not None:
        dive_set.label_of(dive)  # raises if the dive is not in the set
    return dive


def _read_window(
    row: dict[str, str], folder: Path, durations_s: dict[Path, float]
) -> tuple[Path, str, float, float | None]:
    """(video, name of the clip, start, end), with the start and end checked against the duration of the video."""
    if not row["path"]:
        raise ValueError("path is empty")
    video, written = find_video(row["path"], folder)
    start_s = _read_seconds(row["start"], "start") or 0.0
    end_s = _read_seconds(row["end"], "end")
    if not row["start"] and not row["end"]:
        return video, written, 0.0, None
    if video not in durations_s:
        durations_s[video] = probe(video).duration_s
    duration_s = durations_s[video]
    if not start_s < (duration_s if end_s is None else end_s) <= duration_s:
        raise ValueError(
            f"start and end must be in order and within the {duration_s:.3f} s of {video}, got {row['start'] or 0} and "
            f"{row['end'] or 'none'}"
        )
    return video, f"{written}@{start_s:g}-{'end' if end_s is None else format(end_s, 'g')}", start_s, end_s


def _read_seconds(written: str, name: str) -> float | None:
    if not written:
        return None
    try:
        seconds = float(written)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be seconds, 0 or more, got {written!r}")
    return seconds
