"""Measure speed and memory beside peers, in one run: `loading` reads frames of videos with several readers, `backbone`
runs several TimeSformers, and `memory` says what an update of a large one takes.

Peers come with `pip install -e '.[bench]'`; one that is not installed is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, replace
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

from diveparse.configs import BackboneConfig, ClipConfig
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
from diveparse.datasets.storage.atomic import write_json
from diveparse.datasets.transforms import cut_square, decode_size
from diveparse.datasets.video import probe, read_frames
from diveparse.datasets.video.orientation import is_flipped, upright_pixels, upright_size
from diveparse.datasets.video.writer import Picture, write_h264
from diveparse.engine.benchmark.backbone import (
    BUILDERS,
    COMPILED,
    GPU_BATCH_SIZE,
    OURS,
    PRECISIONS,
    SETTINGS,
    Measurement,
    Setting,
    in_a_fresh_process,
    is_installed,
    measure_backbone,
    memory_kib,
    one_core,
    peak_of_training,
    reset_peak,
)
from diveparse.engine.environment import describe_environment

Reader = Callable[[Path, Tensor, tuple[int, int]], Tensor]
CACHES = {f"{OURS}, {kind.value} cache": kind for kind in CacheKind}
CACHED_FRAMES, CACHED_SIDE = 48, 256  # as tools/prepare.py makes the training cache
EPILOG = """\
examples:
  python tools/benchmark.py loading data/diving48/rgb/*_00000.mp4 --repeats 9
  python tools/benchmark.py loading data/diving48/rgb/*_00000.mp4 --height 720
  python tools/benchmark.py backbone --sizes small base --repeats 9 --json backbone.json
  python tools/benchmark.py memory --frames 24 --batch-size 2 --recomputed 12
"""


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
    backbone = commands.add_parser("backbone", help="forward and backward, on one core and on a GPU, beside its peers")
    backbone.add_argument("--sizes", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="(all three)")
    backbone.add_argument("--repeats", type=int, default=9, help="of every model, in rotated order (9)")
    backbone.add_argument("--json", type=Path, metavar="FILE", help="write every time that was measured")
    memory = commands.add_parser(
        "memory", help="of an update of ViT-B/16 by AdamW, in fp32 on the CPU and bf16 on a GPU"
    )
    memory.add_argument("--frames", type=int, default=24, help="of a clip (24)")
    memory.add_argument("--size", type=int, default=224, help="height and width, pixels (224)")
    memory.add_argument("--batch-size", type=int, default=2, help="clips in a forward pass (2)")
    memory.add_argument("--recomputed", type=int, default=12, help="backbone.num_recomputed_blocks, of 12 (12)")
    args = parser.parse_args(argv)
    try:
        for name in ("frames", "size", "repeats", "batch_size"):
            if getattr(args, name, 1) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
        {"loading": run_loading, "backbone": run_backbone, "memory": run_memory}[args.command](args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_loading(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        videos = list(dict.fromkeys(args.videos))
        if args.height:
            targets = [Path(folder) / f"{number}-{video.stem}.mp4" for number, video in enumerate(videos)]
            for video, target in zip(videos, targets, strict=True):
                reencode(video, target, args.height)
            videos = targets
        print(measure_loading(videos, args.frames, (args.size, args.size), args.repeats, Path(folder)))


def run_backbone(args: argparse.Namespace) -> None:
    measured: list[dict[str, Any]] = []
    if args.json:
        write_json(args.json, measured)  # now, so that a path that cannot be written is told before hours of measuring
    devices = [torch.device("cuda")] if torch.cuda.is_available() else []
    devices.append(torch.device("cpu"))  # last, since it takes longest
    for device in devices:
        for size in args.sizes:
            setting = SETTINGS[size] if device.type == "cpu" else replace(SETTINGS[size], batch_size=GPU_BATCH_SIZE)
            try:
                measurements, peak = measure_backbone(setting, args.repeats, device)
            except torch.OutOfMemoryError as error:
                raise ValueError(f"{size}: {device} has too little memory for {setting}") from error
            where = "one core, fp32" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}, bf16"
            print(f"{where}, {args.repeats} repeats: {setting}\n\n{backbone_table(measurements, setting)}\n")
            print(f"a product of two large matrices: {peak / 1e9:.1f} GFLOP/s\n", flush=True)
            about = {"size": size, "setting": str(setting), "where": where, "peak_flops_per_s": peak}
            measured.append(about | {"measurements": [asdict(each) for each in measurements]})
            if args.json:
                write_json(args.json, {"environment": describe_environment(seed=0), "measured": measured})
    missing = [name for name, (_, package) in BUILDERS.items() if not is_installed(package)]
    print("memory: the peak of what lives at once, where what is freed is given back at the same moment")
    print(f"not installed: {', '.join(missing) or 'none'}; on a GPU: {'measured' if devices[1:] else 'not measured'}")


def backbone_table(measurements: list[Measurement], setting: Setting) -> str:
    own_memory = {each.task: each.memory for each in measurements if each.model == OURS}
    rows = []
    for each in measurements:
        milliseconds = 1000 * np.array(each.times_s)
        memory, own = each.memory, own_memory[each.task]
        _, package = BUILDERS[each.model.removesuffix(COMPILED)]
        rows.append(
            [
                each.task,
                f"{each.model} ({package} {importlib.metadata.version(package)})",
                f"{setting.batch_size / np.median(each.times_s):.2f}",
                f"{np.median(milliseconds):.1f} ({milliseconds.min():.1f} to {milliseconds.max():.1f})",
                f"{np.median(each.ratios):.2f} ({min(each.ratios):.2f} to {max(each.ratios):.2f})",
                f"{each.num_flops / 1e9:.1f}",
                f"{each.share_of_peak:.0%}",
                "-" if memory is None else f"{memory / 2**20:.0f}",
                "-" if not memory or own is None else f"{own / memory:.2f}",
            ]
        )
    headers = [
        "task",
        "model",
        "clips a second",
        "ms: median (range)",
        f"time / {OURS}'s",
        "GFLOP",
        "share of peak",
        "memory, MiB",
        f"{OURS}'s memory / it",
    ]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def run_memory(args: argparse.Namespace) -> None:
    setting = Setting(BackboneConfig(num_recomputed_blocks=args.recomputed), args.frames, args.size, args.batch_size)
    for device in ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]:
        peak = peak_of_training(setting, torch.device(device)) / 2**30
        about = f"{setting}, {args.recomputed} blocks recomputed: an update by AdamW in {PRECISIONS[device].value}"
        print(f"{about} on {device} takes {peak:.2f} GiB", flush=True)


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
    seconds = np.zeros((num_repeats, len(names)))
    with one_core():
        for name in names:  # imports and file caches
            read_all(read[name], times_s, size)
        for repeat in tqdm(range(num_repeats), desc="reading", unit="repeat"):
            for k in range(len(names)):
                column = (repeat + k) % len(names)
                begun = time.perf_counter()
                read_all(read[names[column]], times_s, size)
                seconds[repeat, column] = time.perf_counter() - begun
    peers = [name for name in names if name in READERS]
    extra = {
        name: max(in_a_fresh_process(extra_memory_mib, name, video, times_s[video], size) for video in videos)
        for name in peers
    }
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


def read_all(read: Reader, times_s: dict[Path, Tensor], size: tuple[int, int]) -> None:
    for video, times in times_s.items():
        frames = read(video, times, size)
        if frames.shape != (len(times), 3, *size):
            raise ValueError(f"{video}: {read} gave {tuple(frames.shape)} instead of {(len(times), 3, *size)}")


def extra_memory_mib(name: str, video: Path, times_s: Tensor, size: tuple[int, int]) -> float:
    """How far the process's memory rises while it reads one video, above what its imports took (Linux)."""
    read, _, module = READERS[name]
    importlib.import_module(module)
    reset_peak()
    before = memory_kib("VmRSS")
    read(video, times_s, size)
    return (memory_kib("VmHWM") - before) / 1024


if __name__ == "__main__":
    sys.exit(main())
