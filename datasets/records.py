"""One labelled clip of a data set, of whichever kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from diveparse.datasets.video import VideoInfo

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{5}")  # Diving48's names: the source video, the clip's number in it
RENDERED_FILE = "rendered.json"  # marks a folder as rendered, so that no number from it passes for a Diving48 number


@dataclass(frozen=True)
class ClipRecord:
    """Where a clip lies and what it shows."""

    path: Path
    name: str  # unique in the data set
    source: str  # the video that the clip was cut from; no source may be on both sides of a split
    label: int  # the dive's place in the data set's `dive_set`
    start_s: float = 0.0  # of the clip within the video
    end_s: float | None = None  # None: the video's end

    def duration_s(self, info: VideoInfo) -> float:
        """How long the clip is, in seconds. info: that of its video."""
        return (info.duration_s if self.end_s is None else self.end_s) - self.start_s


def file_stem(name: str) -> str:
    """A file name, without suffix, for what is computed from a clip: its own name, or a digest of any other name.

    Only names in Diving48's form are kept; of two that differ only in case, diving48.py refuses one. Others may differ
    only in case, or hold a folder.
    """
    return name if NAME_PATTERN.fullmatch(name) else sha256(name.encode()).hexdigest()


def is_rendered(videos: Iterable[Path]) -> bool:
    """Whether any of the videos lies in a rendered data set."""
    folders = {folder for video in videos for folder in video.absolute().parents[:2]}  # rgb/ and the data set's own
    return any((folder / RENDERED_FILE).is_file() for folder in folders)


def clips_in_a_line(records: Sequence[ClipRecord]) -> str:
    """How many clips there are, and a digest of their names, labels and order, to recognise them by."""
    digest = sha256("\n".join(f"{record.name} {record.label}" for record in records).encode())
    return f"{len(records)} clips, {digest.hexdigest()[:12]}"
