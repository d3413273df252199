"""One labelled clip of a data set, of whichever kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diveparse.datasets.video import VideoInfo

RENDERED_FILE = "rendered.json"  # marks a folder as rendered, so that no number from it passes for a Diving48 number


@dataclass(frozen=True)
class ClipRecord:
    path: Path
    name: str
    source: str  # the video that the clip was cut from; no source may be on two sides of a split
    label: int
    start_s: float = 0.0  # of the clip within the video
    end_s: float | None = None  # None: the video's end

    def duration_s(self, info: VideoInfo) -> float:
        """How long the clip is. info: of its video."""
        return (info.duration_s if self.end_s is None else self.end_s) - self.start_s


def is_rendered(videos: Iterable[Path]) -> bool:
    """Whether any video lies in a rendered data set, so that no number on it passes for one on real dives."""
    folders = {folder for video in videos for folder in video.absolute().parents[:2]}  # rgb/ and the data set's own
    return any((folder / RENDERED_FILE).is_file() for folder in folders)
