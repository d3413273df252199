"""Measure speed and memory beside peers, in one run: `loading` reads frames of videos with several readers.

Peers come with `pip install -e '.[bench]'`; one that is not installed is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import multiprocessing
import os
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from tabulate import tabulate
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
from diveparse.datasets.diving48 import ClipRecord
from diveparse.datasets.orientation import is_flipped, upright_pixels, upright_size
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.transforms import cut_square, decode_size
from diveparse.datasets.video import probe, read_frames

Reader = Callable[[Path, Tensor, tuple[int, int]], Tensor]
OURS = "diveparse"
CACHES = {f"{OURS}, {kind.value} cache": kind for kind in CacheKind}
CACHED_FRAMES, CACHED_SIDE = 48, 256  # as tools/prepare.py makes the training cache
EPILOG = """\
examples:
  python tools/benchmark.py loading data/diving48/rgb/*_00000.mp4 --repeats 9
  python tools/benchmark.py loading data/diving48/rgb/*_00000.mp4 --height 720
"""


def read_with_torchcodec(path: Path, times_s: Tensor, size: tuple[int, int]) -> Tensor:
    resize = importlib.import_module("torchcodec.transforms").Resize(size)
    video_decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
    decoder = video_decoder(str(path), num_ffmpeg_threads=1, transforms=[resize])
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    loading = commands.add_parser("loading", help="frames of videos, on one core, beside torchcodec, decord and OpenCV")
    loading.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    loading.add_argument("--frames", type=int, default=24, help="evenly timed over each video (24)")
    loading.add_argument("--size", type=int, default=224, help="height and width of what is read, pixels (224)")
    loading.add_argument("--repeats", type=int, default=9, help="of every reader, in rotated order (9)")
    loading.add_argument(
        "--height", type=int, help="re-encode the videos at this height first, x264's medium preset and long GOPs"
    )
    args = parser.parse_args(argv)
    try:
        if min(args.frames, args.size, args.repeats) < 1:
            raise ValueError("frames, size and repeats must be at least 1")
        with tempfile.TemporaryDirectory() as folder:
            videos = list(dict.fromkeys(args.videos))
            if args.height:
                targets = [Path(folder) / f"{number}-{video.stem}.mp4" for number, video in enumerate(videos)]
                for video, target in zip(videos, targets, strict=True):
                    reencode(video, target, args.height)
                videos = targets
            print(measure_loading(videos, args.frames, (args.size, args.size), args.repeats, Path(folder)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def reencode(video: Path, target: Path, height: int) -> None:
    """Write the whole video at another height (a multiple of 2), in its proportions and at its mean frame rate."""
    if height < 2 or height % 2:
        raise ValueError(f"height must be a multiple of 2, got {height}")
    info = probe(video)
    width = 2 * round(info.width * height / info.height / 2)
    with av.open(str(target), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(info.frame_rate_hz).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        times_s = (torch.arange(info.num_frames) + 0.5) * (info.duration_s / info.num_frames)
        for picture in read_frames(video, times_s, (height, width)).permute(0, 2, 3, 1).contiguous().numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


def read_from_cache(root: Path, kind: CacheKind, path: Path, times_s: Tensor, size: tuple[int, int]) -> Tensor:
    """As training and evaluation read. The evaluation cache holds pictures in the video's proportions; their middle."""
    cache = opened(cache_folder(root, kind))
    record = as_clip(path)
    info = cache.info(record)
    if kind is CacheKind.TRAINING:
        return cache.read_frames(record, times_s, info.duration_s, size)
    kept_size = decode_size(info, ClipConfig(num_frames=len(times_s), image_size=size[0]))
    return cut_square(cache.read_frames(record, times_s, info.duration_s, kept_size), size=size[0], position=0.5)


@lru_cache
def opened(folder: Path) -> ClipCache:
    settings = read_settings(folder)
    assert settings is not None  # it has just been made
    return ClipCache(folder, settings, read_index(folder))


def as_clip(video: Path) -> ClipRecord:
    return ClipRecord(video, str(video.absolute()), source="", label=0)


def measure_loading(videos: list[Path], num_frames: int, size: tuple[int, int], num_repeats: int, scratch: Path) -> str:
    """Time and memory of every installed reader, and of both caches, as a table. scratch: a folder for the caches.

    A repeat reads all videos with every reader, each time beginning with another, on one core; the ratio is the median
    of the repeats' own ratios. Memory is what reading one video adds to a fresh process at its peak; the largest.
    """
    times_s = {video: sample_frame_times(probe(video).duration_s, num_frames) for video in videos}
    read = {name: reader for name, (reader, package, _) in READERS.items() if is_installed(package)}
    for name, kind in CACHES.items():
        fixed = CacheSettings(CacheKind.EVALUATION, num_frames, short_side=size[0])
        settings = DEFAULTS[kind] if kind is CacheKind.TRAINING else fixed
        list(build_cache(scratch, settings, [as_clip(video) for video in videos], num_workers=1))
        read[name] = partial(read_from_cache, scratch, kind)
    names = list(read)
    if sys.platform != "linux":
        raise ValueError("measuring on one core, and memory, needs Linux")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    seconds = np.zeros((num_repeats, len(names)))
    for name in names:  # imports and file caches
        read_all(read[name], times_s, size)
    for repeat in tqdm(range(num_repeats), desc="reading", unit="repeat"):
        for k in range(len(names)):
            column = (repeat + k) % len(names)
            begun = time.perf_counter()
            read_all(read[names[column]], times_s, size)
            seconds[repeat, column] = time.perf_counter() - begun
    os.sched_setaffinity(0, cores)  # memory needs no core of its own
    peers = [name for name in names if name in READERS]
    extra = {name: max(in_a_fresh_process(name, video, times_s[video], size) for video in videos) for name in peers}
    memory = {name: f"{mib:.1f}" for name, mib in extra.items()}
    rows = []
    for column, name in enumerate(names):
        ratio = np.median(seconds[:, column] / seconds[:, 0])
        milliseconds = 1000 * seconds[:, column] / len(videos)
        spread = f"{np.median(milliseconds):.1f} ({milliseconds.min():.1f} to {milliseconds.max():.1f})"
        package = READERS[name][1] if name in READERS else "av"
        about_reader = f"{name} ({package} {importlib.metadata.version(package)})"
        rows.append([about_reader, spread, f"{ratio:.2f}", memory.get(name, "-")])
    headers = ["reader", "ms a clip: median (range)", f"time / {OURS}'s", "extra memory, MiB"]
    missing = [name for name in READERS if name not in read]
    note = f"\n\nnot installed: {', '.join(missing)}" if missing else ""
    about = f"{len(videos)} videos, {num_frames} frames of {size[0]} x {size[1]}, {num_repeats} repeats, one core"
    num_equal = sum(equals_full_decode(video, times) for video, times in times_s.items())
    note += f"\n\n{OURS} gives what decoding every frame gives, bit for bit, on {num_equal} of {len(videos)} videos"
    return f"{about}\n\n{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}{note}"


def equals_full_decode(video: Path, times_s: Tensor) -> bool:
    """Whether the frames, in their own size, are those that PyAV gives when it decodes everything."""
    with av.open(str(video)) as file:
        frames = list(file.decode(video=0))
    shown_s = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]
    size, flipped = upright_size(frames[0]), is_flipped(frames[0])
    shown = [frames[bisect_right(shown_s, time_s) - 1] for time_s in times_s.tolist()]
    wanted = [upright_pixels(frame, size, flipped=flipped) for frame in shown]
    return torch.equal(read_frames(video, times_s), torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2))


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def read_all(read: Reader, times_s: dict[Path, Tensor], size: tuple[int, int]) -> None:
    for video, times in times_s.items():
        frames = read(video, times, size)
        if frames.shape != (len(times), 3, *size):
            raise ValueError(f"{video}: {read} gave {tuple(frames.shape)} instead of {(len(times), 3, *size)}")


def in_a_fresh_process(*job: Any) -> float:
    """What `extra_memory_mib` gives for the job, in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(extra_memory_mib, *job).result()


def extra_memory_mib(name: str, video: Path, times_s: Tensor, size: tuple[int, int]) -> float:
    """How far the process's memory rises while it reads one video, above what its imports took (Linux)."""
    read, _, module = READERS[name]
    importlib.import_module(module)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here on
    before = memory_kib("VmRSS")
    read(video, times_s, size)
    return (memory_kib("VmHWM") - before) / 1024


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
