"""Diving48's layout on disk: `rgb/<name>.mp4`, two splits `Diving48_V2_<split>.json`, and `Diving48_vocab.json`.

Rendered dives are laid out the same way. Everything random about a training clip is a function of (seed, epoch, index),
and the order of the clips one of (seed, epoch), so that training resumes without any state of the loader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from diveparse.configs import ClipConfig, FrameOrder
from diveparse.datasets.dives import DIVING48, DiveSet
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.seeding import stream_seed
from diveparse.datasets.transforms import (
    SPATIAL_VIEWS,
    decode_size,
    eval_transform,
    random_area_share,
    train_transform,
)
from diveparse.datasets.video import VideoInfo, probe, read_frames

SPLITS = ("train", "test")
AUGMENTATION, EPOCH_ORDER = 0, 1  # what a random stream is for
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{5}")  # the source video, and the number of the clip in it


@dataclass(frozen=True)
class ClipRecord:
    path: Path
    name: str
    source: str  # the video that the clip was cut from; no source may be on two sides of a split
    label: int
    start_s: float = 0.0  # of the clip within the video
    end_s: float | None = None  # None: the video's end


class ClipItem(TypedDict):
    clip: Tensor
    label: int
    index: int  # of the clip's record


def read_split(root: Path, split: str, dive_set: DiveSet = DIVING48) -> list[ClipRecord]:
    """Read one split ("train" or "test") and check it against the vocabulary file and the videos on disk.

    Raises: ValueError as `read_annotations`, or naming videos that are not there.
    """
    records = read_annotations(root, split, dive_set)
    names = {record.name for record in records}
    folder = root / "rgb"
    missing = sorted(names - ({file.stem for file in folder.glob("*.mp4")} if folder.is_dir() else set()))
    if missing:
        listed = ", ".join(f"{name}.mp4" for name in missing[:10]) + (", …" if len(missing) > 10 else "")
        of = f"of the {len(records)} videos of Diving48_V2_{split}.json"
        raise ValueError(f"{folder}: {len(missing)} {of} are missing: {listed}")
    return records


def read_annotations(root: Path, split: str, dive_set: DiveSet = DIVING48) -> list[ClipRecord]:
    """Read one split and check it against the vocabulary file, whether or not the videos are there.

    Raises: ValueError naming the file and what is wrong with it: missing, not JSON, a vocabulary that is not that of
    `dive_set`, an entry without a proper name or label, a name that occurs twice.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    _check_vocab(root / "Diving48_vocab.json", dive_set)
    path = root / f"Diving48_V2_{split}.json"
    entries = _read_json_list(path)
    records = [_read_entry(f"{path}: entry {i}", entry, root, len(dive_set)) for i, entry in enumerate(entries)]
    names = {record.name for record in records}
    if len(names) < len(records):
        twice = next(record.name for i, record in enumerate(records) if record.name in {r.name for r in records[:i]})
        raise ValueError(f"{path}: clip {twice} is listed twice")
    return records


def _read_json_list(path: Path) -> list[object]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected a folder in Diving48's layout")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path}: not a JSON file: {error}") from None
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


class ClipDataset(Dataset[ClipItem]):
    """Clips of the records, transformed.

    Training: the key is (epoch, index), as `EpochSampler` yields it, and the item's clip (time, 3, height, width).
    Evaluation: the key is the index, and the clip (views, time, 3, height, width); `views` counts the (temporal,
    spatial) ones, spatial running fastest.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        clip_cfg: ClipConfig,
        *,
        training: bool,
        seed: int,
        views: tuple[int, int] = (1, 1),
    ) -> None:
        self.records, self.clip_cfg, self.training, self.seed, self.views = records, clip_cfg, training, seed, views
        self.train_transform = train_transform(clip_cfg)
        self.eval_transforms = [eval_transform(clip_cfg, position) for position in SPATIAL_VIEWS[views[1]]]
        self._infos: dict[Path, VideoInfo] = {}  # what was probed in this process; a worker meets a clip every epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> ClipItem:
        """Raises: VideoError naming the clip's file if it cannot be read."""
        if self.training != isinstance(key, tuple):
            raise TypeError(f"key must be {'(epoch, index)' if self.training else 'an index'}, got {key!r}")
        parts = key if isinstance(key, tuple) else (key,)
        index = parts[-1]
        # the transforms draw from torch's default generator, which the rest of the process must not see move
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(self.seed, AUGMENTATION, *parts))
            clip = self._train_clip(self.records[index]) if self.training else self._eval_clip(self.records[index])
        return {"clip": clip, "label": self.records[index].label, "index": index}

    def _train_clip(self, record: ClipRecord) -> Tensor:
        info, duration_s = self._probe(record)
        times_s = sample_frame_times(duration_s, self.clip_cfg.num_frames, generator=torch.default_generator)
        size = decode_size(info, self.clip_cfg, area_share=random_area_share(self.clip_cfg))
        return self._ordered(self.train_transform(read_frames(record.path, record.start_s + times_s, size)))

    def _eval_clip(self, record: ClipRecord) -> Tensor:
        (info, duration_s), num_frames, num_temporal = self._probe(record), self.clip_cfg.num_frames, self.views[0]
        views = [(i, num_temporal) for i in range(num_temporal)]
        times_s = torch.cat([sample_frame_times(duration_s, num_frames, view=view) for view in views])
        frames = read_frames(record.path, record.start_s + times_s, decode_size(info, self.clip_cfg))
        clips = [self._ordered(clip) for clip in frames.split(num_frames)]
        return torch.stack([transform(clip) for clip in clips for transform in self.eval_transforms])

    def _probe(self, record: ClipRecord) -> tuple[VideoInfo, float]:
        """The clip's video, and how long the clip is in seconds."""
        if record.path not in self._infos:
            self._infos[record.path] = probe(record.path)
        info = self._infos[record.path]
        return info, (info.duration_s if record.end_s is None else record.end_s) - record.start_s

    def _ordered(self, clip: Tensor) -> Tensor:
        return clip[torch.randperm(len(clip))] if self.clip_cfg.order is FrameOrder.SHUFFLED else clip


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) without end, from any step on: resuming needs the number of the step and nothing else.

    Each epoch visits every clip once in an order that depends on (seed, epoch) only, less the last, short batch.
    """

    def __init__(self, num_clips: int, batch_size: int, seed: int, start_step: int = 0) -> None:
        """Raises: ValueError if there are fewer clips than one batch takes."""
        if not 0 < batch_size <= num_clips:
            raise ValueError(f"batch_size must be 1 to {num_clips}, the number of clips, got {batch_size}")
        self.num_clips, self.batch_size, self.seed, self.start_step = num_clips, batch_size, seed, start_step

    @property
    def steps_per_epoch(self) -> int:
        return self.num_clips // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, EPOCH_ORDER, epoch))
            order = torch.randperm(self.num_clips, generator=generator).tolist()
            for step in range(first_step, self.steps_per_epoch):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                yield [(epoch, index) for index in batch]
            epoch, first_step = epoch + 1, 0
