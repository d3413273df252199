"""Clips as tensors, and the order in which training reads them.

Everything random about a training clip is a function of (seed, epoch, index), and the order of the clips is a function
of (seed, epoch). So training resumes without any state of the loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from diveparse.configs import ClipConfig, FrameOrder
from diveparse.datasets.cache import ClipCache
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.storage.seeding import stream_seed
from diveparse.datasets.transforms import (
    SPATIAL_VIEWS,
    decode_size,
    eval_transform,
    random_area_share,
    train_transform,
)
from diveparse.datasets.video import VideoError, VideoInfo, probe, read_frames

AUGMENTATION, EPOCH_ORDER = 0, 1  # keys of the random streams


FileVersion: TypeAlias = tuple[int, int] | None


def file_version(path: Path) -> FileVersion:
    """What changes with the content of a file: its size and the time of its last change; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class ClipItem(TypedDict):
    clip: Tensor
    label: int
    index: int  # of the clip's record
    problem: str  # why the clip that was asked for cannot be read; "" if it can


class ClipDataset(Dataset[ClipItem]):
    """The clips of some records, augmented for training or cut into views for evaluation.

    Training: the key is (epoch, index), as from `EpochSampler`; an item's clip is (time, 3, height, width).
    Evaluation: the key is the index; an item's clip is (views, time, 3, height, width). `views` is the number of
    temporal and of spatial views; the spatial index runs fastest.
    cache: read instead of the videos. skip_damaged: for a clip that cannot be read, training gets the next one in
    `records`, and evaluation a blank one, which must not be counted; `problem` then names the file and the reason.
    processor: for evaluation, makes the one spatial view of uint8 frames at their own size, (time, 3, height, width),
    in place of the transforms of this project.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        clip_cfg: ClipConfig,
        *,
        training: bool,
        seed: int,
        views: tuple[int, int] = (1, 1),
        cache: ClipCache | None = None,
        skip_damaged: bool = False,
        processor: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.processor = processor
        self.records, self.clip_cfg, self.training, self.seed, self.views = records, clip_cfg, training, seed, views
        self.cache, self.skip_damaged = cache, skip_damaged
        self.train_transform = train_transform(clip_cfg)
        of_views = [eval_transform(clip_cfg, position) for position in SPATIAL_VIEWS[views[1]]]
        self.eval_transforms = of_views if processor is None else [processor]
        # those probed in this process, each with the file's size and time; a worker reads a clip once per epoch
        self._infos: dict[Path, tuple[FileVersion, VideoInfo]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> ClipItem:
        """Raises: VideoError naming the file of a clip that cannot be read; with `skip_damaged`, only if no other clip
        can be read in its place. TypeError for a key of the other purpose."""
        if self.training != isinstance(key, tuple):
            raise TypeError(f"key must be {'(epoch, index)' if self.training else 'an index'}, got {key!r}")
        parts = key if isinstance(key, tuple) else (key,)
        index, problem = parts[-1], ""
        # the transforms draw from torch's default generator, whose state must not change for the rest of the process
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(self.seed, AUGMENTATION, *parts))
            try:
                clip = self._read(index)
            except VideoError as error:
                if not self.skip_damaged:
                    raise
                problem = str(error)
                index, clip = self._replacement(index, error)
        return {"clip": clip, "label": self.records[index].label, "index": index, "problem": problem}

    def _read(self, index: int) -> Tensor:
        return self._train_clip(self.records[index]) if self.training else self._eval_clip(self.records[index])

    def _replacement(self, index: int, error: VideoError) -> tuple[int, Tensor]:
        """(index, clip) of the clip that replaces a damaged one."""
        if not self.training:
            size = self.clip_cfg.image_size
            return index, torch.zeros(self.views[0] * self.views[1], self.clip_cfg.num_frames, 3, size, size)
        for distance in range(1, len(self.records)):
            other = (index + distance) % len(self.records)
            try:
                return other, self._read(other)
            except VideoError:
                continue
        raise VideoError(f"{error}; nor can any other of the {len(self.records)} clips be read")

    def _train_clip(self, record: ClipRecord) -> Tensor:
        info, duration_s = self._probe(record)
        times_s = sample_frame_times(duration_s, self.clip_cfg.num_frames, generator=torch.default_generator)
        size = decode_size(info, self.clip_cfg, area_share=random_area_share(self.clip_cfg))
        return self._ordered(self.train_transform(self._read_frames(record, times_s, duration_s, size)))

    def _eval_clip(self, record: ClipRecord) -> Tensor:
        (info, duration_s), num_frames, num_temporal = self._probe(record), self.clip_cfg.num_frames, self.views[0]
        views = [(i, num_temporal) for i in range(num_temporal)]
        times_s = torch.cat([sample_frame_times(duration_s, num_frames, view=view) for view in views])
        size = decode_size(info, self.clip_cfg) if self.processor is None else (info.height, info.width)
        frames = self._read_frames(record, times_s, duration_s, size)
        clips = [self._ordered(clip) for clip in frames.split(num_frames)]
        return torch.stack([transform(clip) for clip in clips for transform in self.eval_transforms])

    def _probe(self, record: ClipRecord) -> tuple[VideoInfo, float]:
        """The facts of the clip's video as it is now, and the duration of the clip in seconds."""
        if self.cache is not None:
            info = self.cache.info(record)
            return info, record.duration_s(info)
        version, known = file_version(record.path), self._infos.get(record.path)
        if known is None or known[0] != version:
            known = self._infos[record.path] = version, probe(record.path)
        info = known[1]
        if (record.end_s is not None and record.end_s > info.duration_s) or record.start_s >= info.duration_s:
            raise VideoError(f"{record.path}: ends at {info.duration_s:.3f} s, before the clip {record.name} does")
        return info, record.duration_s(info)

    def _read_frames(self, record: ClipRecord, times_s: Tensor, duration_s: float, size: tuple[int, int]) -> Tensor:
        """The frames of a clip at times counted from its start, (len(times_s), 3, *size) uint8."""
        if self.cache is not None:
            return self.cache.read_frames(record, times_s, duration_s, size)
        try:
            return read_frames(record.path, record.start_s + times_s, size)
        except ValueError as error:
            if isinstance(error, VideoError) or file_version(record.path) == self._infos[record.path][0]:
                raise
            raise VideoError(f"{record.path}: was replaced while it was read: {error}") from error

    def _ordered(self, clip: Tensor) -> Tensor:
        """The clip, or what a control experiment leaves of it."""
        if self.clip_cfg.only_frame is not None:
            return clip[[self.clip_cfg.only_frame] * len(clip)]
        return clip[torch.randperm(len(clip))] if self.clip_cfg.order is FrameOrder.SHUFFLED else clip


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index), from any batch on: to resume, the number of the next batch is enough.

    Each epoch visits every clip once, in an order that depends on (seed, epoch) only; a last, short batch is dropped.
    With the `labels` of the clips, epochs are class-balanced instead: clips are drawn with replacement, such that every
    label is equally likely.
    """

    def __init__(
        self, num_clips: int, batch_size: int, seed: int, start_batch: int = 0, labels: Sequence[int] | None = None
    ) -> None:
        """Raises: ValueError if there are fewer clips than one batch takes."""
        if not 0 < batch_size <= num_clips:
            raise ValueError(f"batch_size must be 1 to {num_clips}, the number of clips, got {batch_size}")
        self.num_clips, self.batch_size, self.seed, self.start_batch = num_clips, batch_size, seed, start_batch
        # 1 / number of clips that share its label
        self.weights = (
            None if labels is None else torch.bincount(torch.tensor(labels)).double().reciprocal()[list(labels)]
        )

    @property
    def batches_per_epoch(self) -> int:
        return self.num_clips // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first_batch = divmod(self.start_batch, self.batches_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, EPOCH_ORDER, epoch))
            order = self._order(generator)
            for number in range(first_batch, self.batches_per_epoch):
                batch = order[number * self.batch_size : (number + 1) * self.batch_size]
                yield [(epoch, index) for index in batch]
            epoch, first_batch = epoch + 1, 0

    def _order(self, generator: torch.Generator) -> list[int]:
        if self.weights is None:
            return torch.randperm(self.num_clips, generator=generator).tolist()
        return torch.multinomial(self.weights, self.num_clips, replacement=True, generator=generator).tolist()
