"""The one seam between data sets and the rest: what every kind of data set offers, and which kind a config names.

A new kind needs one file with a class that offers what `DataSet` lists, and one line in `open_data_set`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from diveparse.configs import DataConfig
from diveparse.datasets.clips import ClipTable
from diveparse.datasets.dives import DIVE_SETS, DiveSet
from diveparse.datasets.diving48 import Diving48Folder
from diveparse.datasets.records import ClipRecord


class DataSet(Protocol):
    """Labelled clips, whatever their layout on disk. Opening one reads nothing; each member reads what it needs."""

    @property
    def name(self) -> str:
        """What messages call the data set: the path of its file or folder."""

    @property
    def cache_root(self) -> Path:
        """The folder for everything that is computed from the clips: training/, evaluation/ and the feature cache."""

    @property
    def splits(self) -> Collection[str]:
        """Those of "train", "val" and "test" that it names; without "val", validation is held out of "train"."""

    @property
    def dive_set(self) -> DiveSet:
        """The dives that labels count in."""

    def records(self, split: str) -> list[ClipRecord]:
        """The clips of one split, in the order of the annotations.

        Raises: ValueError if the annotations cannot be used or name no such clips.
        """


def open_data_set(data: DataConfig, dive_set: DiveSet | None = None) -> DataSet:
    """The data set at `data.root`, of the kind that the path has.

    dive_set: the dives that labels should count in, where the kind leaves that open; by default, those of the data set.
    Raises: ValueError for an option of another kind.
    """
    root = Path(data.root)
    if root.suffix.lower() == ".csv":
        return ClipTable(root, data.columns, dive_set or (DIVE_SETS[data.dives] if data.dives else None))
    if data.columns or data.dives:
        raise ValueError(f"data.columns and data.dives are for a CSV of clips, but data.root is {data.root}; drop them")
    return Diving48Folder(root)
