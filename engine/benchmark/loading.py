"""Speed and memory of reading the frames of a clip, beside other readers, side by side in one run."""

from __future__ import annotations

import importlib
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diveparse.configs import ClipConfig
from diveparse.datasets.cache import (
    DEFAULTS,
    CacheKind,
    CacheSettings,
    ClipCache,
    build_cache,
    cache_folder,
    read_index,
    read_settings,
)
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.transforms import cut_square, decode_size
from diveparse.datasets.video import probe, read_frames
from diveparse.datasets.video.orientation import is_flipped, upright_pixels, upright_size
from diveparse.datasets.video.writer import Picture, write_h264
from diveparse.engine.benchmark.measure import in_a_fresh_process, is_installed, memory_kib, one_core, reset_peak

OURS = "diveparse"
# (video, times in seconds, (height, width)) -> frames, (num_frames, 3, height, width) uint8
Reader = Callable[[Path, Tensor, tuple[int, int]], Tensor]
CACHES = {f"{OURS}, {kind.value} cache": kind for kind in CacheKind}


@dataclass(frozen=True)
class ReaderMeasurement:
    """One reader of all videos. Times are in seconds, one per repeat."""

    reader: str
    package: str
    times_s: list[float]
    ratio: float  # of its time to that of this project's reader; the median over the repeats
    extra_memory_mib: float | None  # None where it is not measured


def read_with_torchcodec(path: Path, times_s: Tensor, size: tuple[int, int]) -> Tensor:
    resize = importlib.import_module("torchcodec.transforms").Resize(size)
    video_decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
    try:
        decoder = video_decoder(str(path), num_ffmpeg_threads=1, transforms=[resize])
    except RuntimeError as error:
        if "libtorchcodec" not in str(error):
            raise
        raise ValueError("torchcodec finds no FFmpeg libraries: install FFmpeg, or uninstall torchcodec") from error
    frames: Tensor = decoder.get_frames_played_at((times_s + decoder.metadata.begin_stream_seconds).tolist()).data
    return frames


def read_with_decord(path: Path, times_s: Tensor, size: tuple[int, int]) -> Tensor:
    decord = importlib.import_module("decord")
    video = decord.VideoReader(str(path), width=size[1], height=size[0], num_threads=1)
    numbers = (times_s * video.get_avg_fps()).long().clamp(max=len(video) - 1)
    return torch.from_numpy(video.get_batch(numbers.tolist()).asnumpy()).permute(0, 3, 1, 2)


def read_with_opencv(path: Path, times_s: Tensor, size: tuple[int, int]) -> Tensor:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = (times_s * video.get(cv2.CAP_PROP_FPS)).long().tolist()
    frames, number = [], -1
    for want in wanted:
        while number < want and video.grab():
            number += 1
        _, frame = video.retrieve()
        frames.append(cv2.cvtColor(cv2.resize(frame, size[::-1]), cv2.COLOR_BGR2RGB))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


READERS: dict[str, tuple[Reader, str, str]] = {  # each with the package it needs and the module that it imports
    OURS: (read_frames, "av", "av"),
    "torchcodec": (read_with_torchcodec, "torchcodec", "torchcodec.decoders"),
    "decord": (read_with_decord, "decord", "decord"),
    "opencv": (read_with_opencv, "opencv-python-headless", "cv2"),
}


def measure_loading(
    times_s: dict[Path, Tensor], size: tuple[int, int], num_repeats: int, scratch: Path
) -> list[ReaderMeasurement]:
    """Time and memory of every installed reader, and of both caches.

    times_s: of the frames to read, by video. scratch: a folder for the caches.
    A repeat reads all videos with every reader, each time beginning with another, on one core. Memory is what reading
    one video adds to a fresh process at its peak; the largest over the videos.
    """
    read = {name: reader for name, (reader, package, _) in READERS.items() if is_installed(package)}
    read |= cached_readers(times_s, size, scratch)
    names = list(read)
    seconds = np.zeros((num_repeats, len(names)))
    with one_core():
        for name in names:  # imports and file caches
            read_all(read[name], times_s, size)
        for repeat in tqdm(range(num_repeats), desc="reading", unit="repeat"):
            for k in range(len(names)):
                column = (repeat + k) % len(names)
                start_s = time.perf_counter()
                read_all(read[names[column]], times_s, size)
                seconds[repeat, column] = time.perf_counter() - start_s
    return [
        ReaderMeasurement(
            reader=name,
            package=READERS[name][1] if name in READERS else "av",
            times_s=seconds[:, column].tolist(),
            ratio=float(np.median(seconds[:, column] / seconds[:, 0])),
            extra_memory_mib=extra_memory_mib(name, times_s, size) if name in READERS else None,
        )
        for column, name in enumerate(names)
    ]


def frame_times(videos: list[Path], num_frames: int) -> dict[Path, Tensor]:
    """Evenly spaced times over each video, in seconds."""
    return {video: sample_frame_times(probe(video).duration_s, num_frames) for video in videos}


def cached_readers(times_s: dict[Path, Tensor], size: tuple[int, int], scratch: Path) -> dict[str, Reader]:
    """Make both caches of the videos. Returns: a reader of each."""
    num_frames = len(next(iter(times_s.values())))
    settings = {
        CacheKind.TRAINING: DEFAULTS[CacheKind.TRAINING],
        CacheKind.EVALUATION: CacheSettings(CacheKind.EVALUATION, num_frames, short_side=size[0]),
    }
    for kind in CacheKind:
        list(build_cache(scratch, settings[kind], [as_clip(video) for video in times_s], num_workers=1))
    return {name: partial(read_from_cache, scratch, kind) for name, kind in CACHES.items()}


def read_from_cache(root: Path, kind: CacheKind, path: Path, times_s: Tensor, size: tuple[int, int]) -> Tensor:
    """As training and evaluation read. The evaluation cache holds frames in the video's proportions; their middle."""
    cache = _open_cache(cache_folder(root, kind))
    record = as_clip(path)
    info = cache.info(record)
    if kind is CacheKind.TRAINING:
        return cache.read_frames(record, times_s, info.duration_s, size)
    kept_size = decode_size(info, ClipConfig(num_frames=len(times_s), image_size=size[0]))
    return cut_square(cache.read_frames(record, times_s, info.duration_s, kept_size), size=size[0], position=0.5)


@lru_cache
def _open_cache(folder: Path) -> ClipCache:
    settings = read_settings(folder)
    assert settings is not None  # it has just been made
    return ClipCache(folder, settings, read_index(folder))


def as_clip(video: Path) -> ClipRecord:
    return ClipRecord(video, str(video.absolute()), source="", label=0)


def read_all(read: Reader, times_s: dict[Path, Tensor], size: tuple[int, int]) -> None:
    for video, times in times_s.items():
        frames = read(video, times, size)
        if frames.shape != (len(times), 3, *size):
            raise ValueError(f"{video}: {read} gave {tuple(frames.shape)} instead of {(len(times), 3, *size)}")


def extra_memory_mib(name: str, times_s: dict[Path, Tensor], size: tuple[int, int]) -> float:
    """The largest rise of memory while a reader reads one of the videos in a fresh process, without its imports."""
    return max(in_a_fresh_process(_rise_of_peak_mib, name, video, times, size) for video, times in times_s.items())


def _rise_of_peak_mib(name: str, video: Path, times_s: Tensor, size: tuple[int, int]) -> float:
    read, _, module = READERS[name]
    importlib.import_module(module)
    reset_peak()
    before = memory_kib("VmRSS")
    read(video, times_s, size)
    return (memory_kib("VmHWM") - before) / 1024


def equals_full_decode(video: Path, times_s: Tensor) -> bool:
    """Whether `read_frames` gives, at the video's own size, the frames that PyAV gives when it decodes everything."""
    with av.open(str(video)) as file:
        frames = list(file.decode(video=0))
    shown_s = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]
    size, flipped = upright_size(frames[0]), is_flipped(frames[0])
    shown = [frames[bisect_right(shown_s, time_s) - 1] for time_s in times_s.tolist()]
    wanted = [upright_pixels(frame, size, flipped=flipped) for frame in shown]
    return torch.equal(read_frames(video, times_s), torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2))


def reencode(video: Path, target: Path, height: int) -> None:
    """Write the whole video at another height (a multiple of 2), in its proportions and at its mean frame rate."""
    if height < 2 or height % 2:
        raise ValueError(f"height must be a multiple of 2, got {height}")
    info = probe(video)
    width = 2 * round(info.width * height / info.height / 2)
    times_s = (torch.arange(info.num_frames) + 0.5) * (info.duration_s / info.num_frames)
    pixels = read_frames(video, times_s, (height, width)).permute(0, 2, 3, 1).contiguous().numpy()
    rate_hz = Fraction(info.frame_rate_hz).limit_denominator(1001)
    write_h264(target, map(Picture, pixels), rate_hz=rate_hz, options={})
