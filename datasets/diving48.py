"""Diving48's layout on disk: `rgb/<name>.mp4`, two splits `Diving48_V2_<split>.json`, and `Diving48_vocab.json`.

Rendered data sets have the same layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diveparse.datasets.dives import DIVING48, DiveSet
from diveparse.datasets.records import NAME_PATTERN, ClipRecord
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.json_file import read_json
from diveparse.datasets.written_paths import same_on_some_disk

SPLITS = ("train", "test")


class Diving48Folder:
    """A folder in Diving48's layout as a data set (see data_set.py). Each split is read from its own file."""

    splits = SPLITS
    dive_set = DIVING48

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name, self.cache_root = str(root), root / "cache"

    def records(self, split: str) -> list[ClipRecord]:
        return read_split(self.root, split)


def annotation_file(root: Path, split: str) -> Path:
    return root / f"Diving48_V2_{split}.json"


def vocabulary_file(root: Path) -> Path:
    return root / "Diving48_vocab.json"


def read_split(root: Path, split: str, dive_set: DiveSet = DIVING48) -> list[ClipRecord]:
    """Read one split ("train" or "test") and check it against the vocabulary file and the videos on disk.

    Raises: ValueError as for `read_annotations`, or naming videos that are missing.
    """
    records = read_annotations(root, split, dive_set)
    names = {record.name for record in records}
    folder = root / "rgb"
    missing = sorted(names - {file.stem for file in own_paths(folder, "*.mp4")})
    if missing:
        listed = ", ".join(f"{name}.mp4" for name in missing[:10]) + (", …" if len(missing) > 10 else "")
        of = f"of the {len(records)} videos of {annotation_file(root, split).name}"
        raise ValueError(f"{folder}: {len(missing)} {of} are missing: {listed}")
    return records


def read_annotations(root: Path, split: str, dive_set: DiveSet = DIVING48) -> list[ClipRecord]:
    """Read one split and check it against the vocabulary file, whether or not the videos exist.

    Raises: ValueError naming the file and its fault: it is missing or not JSON, its vocabulary is not `dive_set`, an
    entry has no proper name or label, or a name occurs twice, upper and lower case being the same.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    _check_vocab(vocabulary_file(root), dive_set)
    path = annotation_file(root, split)
    entries = _read_json_list(path)
    records = [_read_entry(f"{path}: entry {i}", entry, root, len(dive_set)) for i, entry in enumerate(entries)]
    names = {record.name for record in records}
    if len(names) < len(records):
        twice = next(record.name for i, record in enumerate(records) if record.name in {r.name for r in records[:i]})
        raise ValueError(f"{path}: clip {twice} is listed twice")
    require_distinct_files(path, names)
    return records


def require_distinct_files(path: Path, names: Iterable[str]) -> None:
    """path: what lists the clips. Raises: ValueError naming two whose files are one on a disk that ignores case."""
    first: dict[str, str] = {}
    for name in sorted(names):
        if (other := first.setdefault(same_on_some_disk(name), name)) != name:
            raise ValueError(
                f"{path}: clips {other} and {name} differ in case only, and many disks would keep one file for both; "
                "rename one, with its video"
            )


def _read_json_list(path: Path) -> list[object]:
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file; give a folder in Diving48's layout, or render one (prepare synthetic)"
        )
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a list of one entry or more, got {str(content)[:60]}")
    return content


def _check_vocab(path: Path, dive_set: DiveSet) -> None:
    found, expected = _read_json_list(path), [dive.vocab for dive in dive_set]
    if len(found) != len(expected):
        raise ValueError(f"{path}: expected the {len(expected)} classes of {dive_set.name}, got {len(found)}")
    for label, (entry, vocab) in enumerate(zip(found, expected, strict=True)):
        if entry != vocab:
            raise ValueError(f"{path}: class {label} of {dive_set.name} must be {vocab}, got {entry}")


def _read_entry(where: str, entry: object, root: Path, num_classes: int) -> ClipRecord:
    if not isinstance(entry, dict) or not {"vid_name", "label"} <= entry.keys():
        raise ValueError(f"{where}: expected an object with vid_name and label, got {str(entry)[:60]}")
    name, label = entry["vid_name"], entry["label"]
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{where}: vid_name must be 11 characters of the source, _ and 5 digits, got {name!r}")
    if type(label) is not int or not 0 <= label < num_classes:  # true and false are int too
        raise ValueError(f"{where} ({name}): label must be a whole number from 0 to {num_classes - 1}, got {label!r}")
    return ClipRecord(root / "rgb" / f"{name}.mp4", name, name[:11], label)
