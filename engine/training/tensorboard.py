"""What TensorBoard shows. Every arm uses the same tags, `split/quantity`, over the same axis: updates done."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from diveparse.configs import Config, flat_options
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.storage.foreign import own_paths
from diveparse.engine.evaluation.pictures import class_count_figure, clip_strip
from diveparse.engine.events import EVENT_FILES, open_events

NUM_SAMPLE_CLIPS, NUM_SAMPLE_FRAMES = 4, 8  # clips shown, and frames of each


def open_writer(run: Path, num_updates: int) -> AbstractContextManager[SummaryWriter]:
    """Open the run's TensorBoard log after `num_updates` updates.

    Points of later updates, which a run that was killed may have left behind, are dropped for those to come.
    """
    move_before_now(run)
    return open_events(run, num_updates + 1 if num_updates else 0)


def move_before_now(run: Path) -> None:
    """Rename event files of this second or later ones, as they are where the clock was set back.

    A run's files are read in the order of their names, which hold the second of opening; the next must be the last.
    """
    now = int(time.time())
    for age, path in enumerate(reversed(own_paths(run, EVENT_FILES)), start=1):
        *start, second, rest = path.name.split(".", 4)
        if second.isdecimal() and int(second) > now - age:
            path.rename(path.with_name(".".join([*start, str(now - age), rest])))


def log_start(
    writer: SummaryWriter, cfg: Config, dive_set: DiveSet, splits: dict[str, list[ClipRecord]], clips: ClipDataset
) -> None:
    """Show the resolved config and, with `pictures`, how many clips each dive has in each split, and some clips as
    training sees them."""
    lines = OmegaConf.to_yaml(OmegaConf.create(flat_options(cfg))).splitlines()
    writer.add_text("config", "\n".join(f"    {line}" for line in lines), 0)  # four spaces: verbatim in Markdown
    if not cfg.pictures:
        return
    for split, records in splits.items():
        counts = np.bincount([record.label for record in records], minlength=len(dive_set))
        writer.add_figure(f"{split}/class_counts", class_count_figure(counts, dive_set.numbers), 0)
    for number in range(min(NUM_SAMPLE_CLIPS, len(clips))):
        clip = clips[0, number]["clip"]  # (time, channel, height, width)
        frames = torch.linspace(0, len(clip) - 1, min(NUM_SAMPLE_FRAMES, len(clip))).round().long()
        writer.add_image(f"train/clip_{number}", clip_strip(clip[frames]), 0)


def log_scalars(writer: SummaryWriter, split: str, scalars: dict[str, float], num_updates: int) -> None:
    for name, value in scalars.items():
        writer.add_scalar(f"{split}/{name}", value, num_updates)
