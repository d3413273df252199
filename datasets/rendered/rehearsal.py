"""The shape of the real Diving48, for rendered clips: its sources by name, size and frame rate.

`diving48_sources.csv` counts the clips of each of the 84 source videos and gives their frame rate, after the container
values of all 18,404 clips that the vpd project published (Hong et al., "Video pose distillation", ICCV 2021). These
values do not include the split. The sources marked as test are our choice: whole sources at 25 and 30 frames a second,
which hold the same share of the clips as the real test split.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.rendered.clip import Source, Split

SOURCES_FILE = Path(__file__).parent / "diving48_sources.csv"


def real_sources(seed: int, split: Split, difficulty: float) -> list[tuple[Source, int]]:
    """Rendered stand-ins for the sources of one split, each with the number of clips that the real one has."""
    with SOURCES_FILE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split.name.lower()]
    sources = []
    for number, row in enumerate(rows):
        drawn = Source.draw(seed, split, number, difficulty)
        source = replace(drawn, name=row["source"], frame_rate_hz=int(row["frame_rate_hz"]))
        sources.append((source, int(row["num_clips"])))
    return sources


def assign(labels: Sequence[int], sources: Sequence[tuple[Source, int]]) -> list[tuple[Source, int, int]]:
    """Give each clip a source that has a board for its dive, and each source about its share of the clips.

    Returns: (source, label, number of the clip within the source), in the order of `labels`.
    Raises: ValueError naming a dive that no source has a board for.
    """
    able = {
        label: [index for index, (source, _) in enumerate(sources) if source.has_board_for(DIVING48[label])]
        for label in set(labels)
    }
    for label in able:
        if not able[label]:
            number = DIVING48[label].number
            raise ValueError(f"none of the {len(sources)} sources has a board for {number}; choose another seed")
    used = [0] * len(sources)
    plan = []
    for label in labels:
        emptiest = min(able[label], key=lambda index: (used[index] + 1) / sources[index][1])
        plan.append((sources[emptiest][0], label, used[emptiest]))
        used[emptiest] += 1
    return plan
