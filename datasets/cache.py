"""A cache of clips, read many times faster than the videos that they come from.

Beside a data set lie two folders, each with a file a clip, an `index.jsonl` of what these hold, and `settings.json`:

- `training/`: 48 frames, evenly timed over the clip, with a short side of 256 pixels, as H.264 that decodes fast:
  keyframes every eight frames and every second frame such that no other needs it. Room for jitter in time and place.
- `evaluation/`: the very frames that an evaluation looks at, at its own times and size, as packed JPEG pictures.

A clip's entry says which video it was made from and what its file must contain to the bit: a file that is damaged is
noticed when it is read, and one whose video or settings have changed since is made again.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save_file
from torch import Tensor

from diveparse.configs import ClipConfig
from diveparse.datasets.diving48 import NAME_PATTERN
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.storage import journal
from diveparse.datasets.storage.atomic import write_json, written_atomically
from diveparse.datasets.storage.workers import worker_pool
from diveparse.datasets.video import VideoError, VideoInfo, probe, read_frames
from diveparse.datasets.video.writer import Picture, write_h264, x264_options

SETTINGS_FILE, INDEX_FILE = "settings.json", "index.jsonl"
FORMAT = 2  # of the files; a change of how they are made makes the old ones stale
TICKS_PER_S = 90_000
# every second frame is one that no other refers to, so that a reader can leave it out
X264 = x264_options(20, "keyint=8", "bframes=1", "b-adapt=0")
JPEG_QUALITY = 90
MAKE_AGAIN = "delete it and run tools/prepare.py again, or set data.cache=false"
NUM_SAMPLE_CLIPS = 24  # from whose sizes that of the whole is foretold

logger = logging.getLogger(__name__)


class CacheKind(Enum):
    TRAINING = "training"
    EVALUATION = "evaluation"


@dataclass(frozen=True)
class CacheSettings:
    """What every clip of a cache looks like."""

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
        """Why clips of this config cannot be read from such a cache; None if they can."""
        if self.kind is CacheKind.TRAINING:
            if clip_cfg.image_size > self.short_side:
                return f"it holds pictures of {self.short_side} pixels, which are too small"
            if self.num_frames % clip_cfg.num_frames:  # the times of a clip would not stay evenly apart
                return f"{clip_cfg.num_frames} frames cannot be taken evenly from the {self.num_frames} that it holds"
        elif (clip_cfg.num_frames, clip_cfg.image_size) != (self.num_frames, self.short_side) or num_temporal_views > 1:
            return f"it holds one view of exactly {self.num_frames} frames of {self.short_side} pixels"
        return None


@dataclass(frozen=True)
class CacheEntry:
    """What one clip's file holds and was made from: a line of the index. A clip that cannot be read has a `problem`."""

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
        """Whether the clip is still that of its video. Raises: OSError if the video is not there."""
        status = record.path.stat()
        now = (status.st_size, status.st_mtime_ns, record.start_s, record.end_s)
        return now == (self.video_bytes, self.video_modified_ns, self.start_s, self.end_s)


DEFAULTS = {
    CacheKind.TRAINING: CacheSettings(CacheKind.TRAINING, num_frames=48, short_side=256),
    CacheKind.EVALUATION: CacheSettings(CacheKind.EVALUATION, num_frames=24, short_side=224),
}


def cache_folder(root: Path, kind: CacheKind) -> Path:
    """Where the cache of a data set lies: in its folder, or beside the CSV of clips that `root` is."""
    return (root.with_suffix(".cache") if root.suffix.lower() == ".csv" else root / "cache") / kind.value


class ClipCache:
    """A cache that is read. It answers as the videos would: the same clips, at the same times, in the same order."""

    def __init__(self, folder: Path, settings: CacheSettings, entries: Mapping[str, CacheEntry]) -> None:
        self.folder, self.settings, self.entries = folder, settings, entries

    def info(self, record: ClipRecord) -> VideoInfo:
        """Of the clip's video. Raises: VideoError as reading the video did when the cache was made."""
        entry = self.entries[record.name]
        if entry.info is None:
            raise VideoError(f"{entry.problem} (when the cache was made; tools/prepare.py tries again)")
        return VideoInfo(**entry.info)

    def read_frames(self, record: ClipRecord, times_s: Tensor, duration_s: float, size: tuple[int, int]) -> Tensor:
        """As `video.read_frames`, but times_s count from the clip's start; duration_s: of the clip.

        A training cache gives the kept frame that is nearest, half of 1 / num_frames of the clip away at most.
        Raises: ValueError naming a file that is missing or damaged.
        """
        path = self.folder / file_name(record.name, self.settings.kind)
        content = self._verified(path, self.entries[record.name])
        if self.settings.kind is CacheKind.TRAINING:
            segment_s = duration_s / self.settings.num_frames
            middles = (times_s / segment_s).floor().clamp(max=self.settings.num_frames - 1) + 0.5
            return read_frames(path, middles * segment_s, size)
        frames = unpack_pictures(content)
        assert frames.shape == (len(times_s), 3, *size)  # `misfit` has seen to it
        return frames

    def _verified(self, path: Path, entry: CacheEntry) -> bytes:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path}: is in {INDEX_FILE} but not there; {MAKE_AGAIN}") from None
        if (len(content), zlib.crc32(content)) != (entry.num_bytes, entry.crc32):
            raise ValueError(f"{path}: damaged: not what {INDEX_FILE} says it holds; {MAKE_AGAIN}")
        return content


def open_cache(
    root: Path, kind: CacheKind, records: Sequence[ClipRecord], clip_cfg: ClipConfig, num_temporal_views: int = 1
) -> ClipCache | None:
    """The cache of a data set, if there is one that holds these clips, of these videos, as this config needs them.

    The log says which is used, and where one is there, why it is not.
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
        reason = f"it holds {num_fresh} of {len(records)} clips as their videos are now; tools/prepare.py completes it"
    logger.warning("the cache %s is not used: %s", folder, reason)
    return None


def build_cache(
    root: Path, settings: CacheSettings, records: Sequence[ClipRecord], num_workers: int
) -> Iterator[tuple[int, int]]:
    """Make whatever is not there yet; yields (clips done, clips in all).

    Clips that are spread over the whole come first, so that `foretold_bytes` is good once they are done. A second call
    goes on where the first stopped; one with other settings begins again.
    """
    folder = cache_folder(root, settings.kind)
    if read_settings(folder) != settings:
        if folder.exists():
            shutil.rmtree(folder)
        write_json(folder / SETTINGS_FILE, settings.plain())
    entries = read_index(folder)
    todo = [record for record in records if not _is_done(folder, settings.kind, entries.get(record.name), record)]
    step = max(1, len(todo) // NUM_SAMPLE_CLIPS)
    todo = todo[::step] + [record for number, record in enumerate(todo) if number % step]
    num_done = len(records) - len(todo)
    yield num_done, len(records)
    jobs = [(record, settings, folder) for record in todo]
    with worker_pool(num_workers, __name__) as pool, (folder / INDEX_FILE).open("a", encoding="utf-8") as index:
        for number, entry in enumerate(pool.map(_build_clip, jobs, chunksize=2), start=num_done + 1):
            journal.append(index, entry)
            yield number, len(records)


def foretold_bytes(folder: Path, records: Sequence[ClipRecord]) -> int:
    """How large a cache of these clips will be, from those of them that are made."""
    entries = read_index(folder)
    made = [entries[record.name] for record in records if record.name in entries]
    sizes = [entry.num_bytes for entry in made if entry.problem is None]
    return round((len(records) - len(made) + len(sizes)) * sum(sizes) / max(1, len(sizes)))


def read_settings(folder: Path) -> CacheSettings | None:
    """None if there is no cache, or one of another format. Raises: ValueError if the file is damaged."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            logger.warning("the cache %s is of another version and is not used; tools/prepare.py makes it anew", folder)
            return None
        return CacheSettings(**{**content, "kind": CacheKind(content["kind"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not the settings of a cache: {error!r}; {MAKE_AGAIN}") from None


def read_index(folder: Path) -> dict[str, CacheEntry]:
    """The newest entry of each clip, by its name."""
    return journal.read(folder / INDEX_FILE, CacheEntry)


def file_name(clip: str, kind: CacheKind) -> str:
    return file_stem(clip) + (".mp4" if kind is CacheKind.TRAINING else ".safetensors")


def file_stem(clip: str) -> str:
    """A clip's name, or its digest where it is no plain file name, such as one with a folder."""
    return clip if NAME_PATTERN.fullmatch(clip) else sha256(clip.encode()).hexdigest()


def _is_done(folder: Path, kind: CacheKind, entry: CacheEntry | None, record: ClipRecord) -> bool:
    if entry is None or entry.problem or not entry.is_made_from(record):  # what went wrong may have been mended
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
    """(height, width) in the video's proportions. H.264 needs even sides; pictures must be of the size asked for."""
    scale = settings.short_side / min(info.height, info.width)
    if settings.kind is CacheKind.EVALUATION:
        return round(info.height * scale), round(info.width * scale)
    scale = min(scale, 1.0)  # enlarging would add bytes and nothing else
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
    """Write frames, (num_frames, 3, height, width) uint8, as JPEG pictures one behind the other and where each ends."""
    pictures = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
        pictures.append(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    ends = torch.tensor([len(picture) for picture in pictures]).cumsum(0)
    save_file({"pictures": torch.cat(pictures), "ends": ends}, path)


def unpack_pictures(content: bytes) -> Tensor:
    """(num_frames, 3, height, width) uint8 of what `pack_pictures` wrote."""
    packed = load(content)
    pictures = packed["pictures"].tensor_split(packed["ends"][:-1])
    decoded = [np.asarray(Image.open(io.BytesIO(picture.numpy().tobytes()))) for picture in pictures]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
