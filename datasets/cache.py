"""Copies of clips that are read many times faster than their videos.

The caches of a data set are two folders in its `cache_root`. Each has one file per clip, an `index.jsonl` with one
entry per clip, and `settings.json`:

- `training/`: 48 frames, evenly spaced over the clip, with a short side of 256 pixels, as H.264 that decodes fast: a
  keyframe every eight frames, and no frame refers to any second frame. This leaves room to vary times and crops.
- `evaluation/`: exactly the frames that an evaluation reads, at its times and its size, as packed JPEG pictures.

An entry identifies the video that a clip was made from, and holds the checksum of the clip's file. So reading a damaged
file raises an error, and a clip whose video or settings have changed is made again.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save_file
from torch import Tensor

from diveparse.configs import ClipConfig
from diveparse.datasets.records import ClipRecord, file_stem
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.storage import journal
from diveparse.datasets.storage.atomic import TEMPORARY_SUFFIX, write_json, written_atomically
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.json_file import read_json
from diveparse.datasets.storage.plain import from_plain
from diveparse.datasets.storage.workers import worker_pool
from diveparse.datasets.video import VideoError, VideoInfo, probe, read_frames
from diveparse.datasets.video.writer import Picture, write_h264, x264_options

SETTINGS_FILE, INDEX_FILE = "settings.json", "index.jsonl"
FORMAT = 2  # of the files; to be raised when they are made in another way, so that older ones are made again
TICKS_PER_S = 90_000
# no other frame refers to every second one, so a reader can skip it
X264 = x264_options(20, "keyint=8", "bframes=1", "b-adapt=0")
JPEG_QUALITY = 90
MAKE_AGAIN = "delete it and run diveparse prepare again, or set data.cache=false"  # the remedy for a damaged file
NUM_SAMPLE_CLIPS = 24  # once so many are made, `estimated_bytes` is accurate

logger = logging.getLogger(__name__)


class CacheKind(Enum):
    TRAINING = "training"
    EVALUATION = "evaluation"


SUFFIXES = {CacheKind.TRAINING: ".mp4", CacheKind.EVALUATION: ".safetensors"}


@dataclass(frozen=True)
class CacheSettings:
    """Which frames a cache keeps of each clip, and at which size."""

    kind: CacheKind
    num_frames: int
    short_side: int  # pixels

    def __post_init__(self) -> None:
        for name, least in (("num_frames", 1), ("short_side", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a cache must be at least {least}, got {getattr(self, name)}")

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value, "format": FORMAT}

    def misfit(self, clip_cfg: ClipConfig, num_temporal_views: int) -> str | None:
        """The reason why clips of this config cannot be read from such a cache; None if they can."""
        if self.kind is CacheKind.TRAINING:
            if clip_cfg.image_size > self.short_side:
                return f"its pictures have a short side of {self.short_side} pixels, less than {clip_cfg.image_size}"
            if self.num_frames % clip_cfg.num_frames:  # the times of a clip would not be evenly spaced
                return f"{clip_cfg.num_frames} frames cannot be taken evenly from its {self.num_frames}"
        elif (clip_cfg.num_frames, clip_cfg.image_size) != (self.num_frames, self.short_side) or num_temporal_views > 1:
            return f"it has one view of exactly {self.num_frames} frames with a short side of {self.short_side} pixels"
        return None


@dataclass(frozen=True)
class CacheEntry:
    """A line of the index: the video and the file of one clip. `problem` is set if the video cannot be read."""

    name: str
    video_bytes: int
    video_modified_ns: int
    start_s: float
    end_s: float | None
    problem: str | None = None
    num_bytes: int = 0
    crc32: int = 0
    info: dict[str, Any] | None = None  # a VideoInfo, of the video

    def is_made_from(self, record: ClipRecord) -> bool:
        """Whether neither the video nor the clip's place in it has changed. Raises: OSError if the video is missing."""
        status = record.path.stat()
        now = (status.st_size, status.st_mtime_ns, record.start_s, record.end_s)
        return now == (self.video_bytes, self.video_modified_ns, self.start_s, self.end_s)


DEFAULTS = {
    CacheKind.TRAINING: CacheSettings(CacheKind.TRAINING, num_frames=48, short_side=256),
    CacheKind.EVALUATION: CacheSettings(CacheKind.EVALUATION, num_frames=24, short_side=224),
}


def cache_folder(root: Path, kind: CacheKind) -> Path:
    """The folder of one cache. root: the data set's `cache_root`."""
    return root / kind.value


class ClipCache:
    """An open cache. It has the frames of the same clips, at the same times and in the same order, as the videos."""

    def __init__(self, folder: Path, settings: CacheSettings, entries: Mapping[str, CacheEntry]) -> None:
        self.folder, self.settings, self.entries = folder, settings, entries

    def info(self, record: ClipRecord) -> VideoInfo:
        """The facts of the clip's video. Raises: the VideoError that it gave when the cache was made."""
        entry = self.entries[record.name]
        if entry.info is None:
            raise VideoError(f"{entry.problem} (when the cache was made); mend it and run diveparse prepare again")
        try:
            return from_plain(VideoInfo, entry.info)
        except ValueError as error:
            raise ValueError(f"{self.folder / INDEX_FILE}: damaged at {record.name}: {error}; {MAKE_AGAIN}") from error

    def read_frames(self, record: ClipRecord, times_s: Tensor, duration_s: float, size: tuple[int, int]) -> Tensor:
        """As `video.read_frames`, but `times_s` count from the start of the clip. duration_s: that of the clip.

        A training cache gives the nearest of the frames that it keeps, at most duration_s / num_frames / 2 away.
        Returns: (len(times_s), 3, *size) uint8.
        Raises: ValueError naming a file that is missing or damaged.
        """
        path = self.folder / file_name(record.name, self.settings.kind)
        content = self._verified(path, self.entries[record.name])
        if self.settings.kind is CacheKind.TRAINING:
            segment_s = duration_s / self.settings.num_frames
            middles = (times_s / segment_s).floor().clamp(max=self.settings.num_frames - 1) + 0.5
            return read_frames(path, middles * segment_s, size)
        frames = unpack_pictures(content)
        assert frames.shape == (len(times_s), 3, *size)  # `misfit` was None
        return frames

    def _verified(self, path: Path, entry: CacheEntry) -> bytes:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path}: not there, though {INDEX_FILE} listed it; {MAKE_AGAIN}") from None
        if (len(content), zlib.crc32(content)) != (entry.num_bytes, entry.crc32):
            raise ValueError(f"{path}: damaged, or made anew after it was opened: another checksum; {MAKE_AGAIN}")
        return content


def open_cache(
    root: Path, kind: CacheKind, records: Sequence[ClipRecord], clip_cfg: ClipConfig, num_temporal_views: int = 1
) -> ClipCache | None:
    """The cache of this kind, if it exists, suits the config and has all these clips of unchanged videos; else None.

    root: the data set's `cache_root`. The log names the cache that is used, or the reason why an existing one is not.
    Raises: ValueError naming a file of the cache that is damaged.
    """
    folder = cache_folder(root, kind)
    settings = read_settings(folder)
    if settings is None:
        return None
    reason = settings.misfit(clip_cfg, num_temporal_views)
    if reason is None:
        entries = read_index(folder)
        num_fresh = sum(r.name in entries and entries[r.name].is_made_from(r) for r in records)
        if num_fresh == len(records):
            logger.info("%d clips are read from the cache %s", len(records), folder)
            return ClipCache(folder, settings, entries)
        reason = (
            f"it holds {num_fresh} of {len(records)} clips of unchanged videos; run diveparse prepare to complete it"
        )
    logger.warning("the cache %s is not used: %s", folder, reason)
    return None


def build_cache(
    root: Path, settings: CacheSettings, records: Sequence[ClipRecord], num_workers: int
) -> Iterator[tuple[int, int]]:
    """Make the clips that the cache lacks. Yields: (clips done, clips in all), at the start and after each clip.

    root: the data set's `cache_root`. Clips spread evenly over the data set come first, so that `estimated_bytes` is
    accurate once NUM_SAMPLE_CLIPS are done. After a kill, a second call continues; other settings start anew.
    """
    folder = cache_folder(root, settings.kind)
    if read_settings(folder) != settings:
        _remove_files(folder)
        write_json(folder / SETTINGS_FILE, settings.plain())
    entries = read_index(folder)
    todo = [record for record in records if not _is_done(folder, settings.kind, entries.get(record.name), record)]
    step = max(1, len(todo) // NUM_SAMPLE_CLIPS)
    todo = todo[::step] + [record for number, record in enumerate(todo) if number % step]
    num_done = len(records) - len(todo)
    yield num_done, len(records)
    jobs = [(record, settings, folder) for record in todo]
    with worker_pool(num_workers, __name__) as pool:
        for number, entry in enumerate(pool.map(_build_clip, jobs, chunksize=2), start=num_done + 1):
            journal.append(folder / INDEX_FILE, entry)
            yield number, len(records)


def _remove_files(folder: Path) -> None:
    """Remove what a cache with other settings holds, and nothing else that lies there."""
    for path in own_paths(folder):
        if path.name in (SETTINGS_FILE, INDEX_FILE) or path.suffix in (*SUFFIXES.values(), TEMPORARY_SUFFIX):
            path.unlink()


def estimated_bytes(folder: Path, records: Sequence[ClipRecord]) -> int:
    """The estimated size of a cache of these clips: exact once all are made, else from the mean size of those made."""
    entries = read_index(folder)
    made = [entries[record.name] for record in records if record.name in entries]
    sizes = [entry.num_bytes for entry in made if entry.problem is None]
    return round((len(records) - len(made) + len(sizes)) * sum(sizes) / max(1, len(sizes)))


def chosen_settings(root: Path, kind: CacheKind, num_frames: int | None, short_side: int | None) -> CacheSettings:
    """What a cache is to be made with. A number that is None stays as in the cache that exists, else as in DEFAULTS.

    Raises: ValueError if a number is impossible, or the settings of the cache that exists are damaged.
    """
    settings = read_settings(cache_folder(root, kind)) or DEFAULTS[kind]
    return CacheSettings(
        kind,
        settings.num_frames if num_frames is None else num_frames,
        settings.short_side if short_side is None else short_side,
    )


def read_settings(folder: Path) -> CacheSettings | None:
    """The settings of a cache; None without a cache, or for another format. Raises: ValueError for a damaged file."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if content.pop("format") != FORMAT:
            logger.warning(
                "the cache %s is of another version and is not used; run diveparse prepare to make it again", folder
            )
            return None
        return CacheSettings(**{**content, "kind": CacheKind(content["kind"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not the settings of a cache: {error!r}; {MAKE_AGAIN}") from None


def read_index(folder: Path) -> dict[str, CacheEntry]:
    """The newest entry of each clip, by its name."""
    return journal.read(folder / INDEX_FILE, CacheEntry)


def file_name(clip: str, kind: CacheKind) -> str:
    """The name of a clip's file in a cache. clip: its name."""
    return file_stem(clip) + SUFFIXES[kind]


def _is_done(folder: Path, kind: CacheKind, entry: CacheEntry | None, record: ClipRecord) -> bool:
    if entry is None or entry.problem or not entry.is_made_from(record):  # the video may have been mended since
        return False
    path = folder / file_name(record.name, kind)
    return path.is_file() and path.stat().st_size == entry.num_bytes


def _build_clip(job: tuple[ClipRecord, CacheSettings, Path]) -> CacheEntry:
    record, settings, folder = job
    status = record.path.stat()
    made_from = (record.name, status.st_size, status.st_mtime_ns, record.start_s, record.end_s)
    try:
        info = probe(record.path)
        duration_s = record.duration_s(info)
        times_s = record.start_s + sample_frame_times(duration_s, settings.num_frames)
        frames = read_frames(record.path, times_s, _kept_size(info, settings))
    except VideoError as error:
        return CacheEntry(*made_from, problem=str(error))
    path = folder / file_name(record.name, settings.kind)
    with written_atomically(path) as temporary:
        if settings.kind is CacheKind.TRAINING:
            encode(frames, duration_s, temporary)
        else:
            pack_pictures(frames, temporary)
        content = temporary.read_bytes()
    return CacheEntry(*made_from, None, len(content), zlib.crc32(content), asdict(info))


def _kept_size(info: VideoInfo, settings: CacheSettings) -> tuple[int, int]:
    """(height, width) in the video's proportions: even for H.264, and exactly `decode_size` for an evaluation."""
    scale = settings.short_side / min(info.height, info.width)
    if settings.kind is CacheKind.EVALUATION:
        return round(info.height * scale), round(info.width * scale)
    scale = min(scale, 1.0)  # enlarging would only add bytes
    return 2 * round(info.height * scale / 2), 2 * round(info.width * scale / 2)


def encode(frames: Tensor, duration_s: float, path: Path) -> None:
    """Write frames, (num_frames, 3, height, width) uint8 with even sides, as H.264 that fills `duration_s` evenly."""
    segment_s = duration_s / len(frames)
    duration = round(segment_s * TICKS_PER_S)
    pictures = (
        Picture(pixels, round(number * segment_s * TICKS_PER_S), duration)
        for number, pixels in enumerate(frames.permute(0, 2, 3, 1).contiguous().numpy())
    )
    rate_hz = Fraction(1 / segment_s).limit_denominator(1000)
    write_h264(path, pictures, rate_hz=rate_hz, options=X264, tick_s=Fraction(1, TICKS_PER_S))


def pack_pictures(frames: Tensor, path: Path) -> None:
    """Write frames, (num_frames, 3, height, width) uint8, as JPEG pictures in one tensor, and where each ends."""
    pictures = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
        pictures.append(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    ends = torch.tensor([len(picture) for picture in pictures]).cumsum(0)
    save_file({"pictures": torch.cat(pictures), "ends": ends}, path)


def unpack_pictures(content: bytes) -> Tensor:
    """The frames that `pack_pictures` wrote, (num_frames, 3, height, width) uint8."""
    packed = load(content)
    pictures = packed["pictures"].tensor_split(packed["ends"][:-1])
    decoded = [np.asarray(Image.open(io.BytesIO(picture.numpy().tobytes()))) for picture in pictures]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
