"""Measure speed and memory beside peers, in one run: `loading` reads frames of videos with several readers, `backbone`
runs several TimeSformers, `encoders` the video encoders of transformers, and `memory` reports what an update of a large
TimeSformer takes. `scaling` estimates what training on many GPUs costs, and measures two processes beside one.

Peers come with `pip install 'diveparse[bench]'`. One that is not installed is left out, and named below the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from diveparse.commands.cli import add_command

if TYPE_CHECKING:
    from diveparse.engine.benchmark.backbone import Measurement, Setting
    from diveparse.engine.benchmark.loading import ReaderMeasurement
    from diveparse.engine.benchmark.processes import Scaling
    from diveparse.engine.benchmark.scaling import Assumptions

EXAMPLES = """\
examples:
  %(prog)s loading data/diving48/rgb/*_00000.mp4 --repeats 9
  %(prog)s loading data/diving48/rgb/*_00000.mp4 --height 720
  %(prog)s backbone --sizes small base --repeats 9 --json backbone.json
  %(prog)s encoders --encoders videomae vivit --repeats 3
  %(prog)s memory --frames 24 --batch-size 2 --checkpointed 12
  %(prog)s scaling --batch-size 8 --network 400
  %(prog)s scaling --measure --repeats 9
"""
SIZES = ("small", "base", "base-24")
ENCODERS = ("timesformer", "videomae", "vivit", "vjepa2", "videoprism_vision_model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    loading = add_command(
        commands, "loading", "read frames of videos on one core, beside torchcodec, decord and OpenCV"
    )
    loading.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="any video file")
    loading.add_argument("--frames", type=int, default=24, help="evenly spaced over each video (24)")
    loading.add_argument("--size", type=int, default=224, help="height and width of the frames, pixels (224)")
    loading.add_argument("--repeats", type=int, default=9, help="of every reader, in rotated order (9)")
    loading.add_argument(
        "--height", type=int, help="re-encode the videos at this height first, x264's medium preset and long GOPs"
    )
    loading.set_defaults(action=run_loading)
    backbone = add_command(commands, "backbone", "run forward and backward, on one core and on a GPU, beside its peers")
    backbone.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="(all three)")
    backbone.add_argument("--repeats", type=int, default=9, help="of every model, in rotated order (9)")
    backbone.add_argument("--json", type=Path, metavar="FILE", help="write every time that was measured")
    backbone.set_defaults(action=run_backbone)
    encoders = add_command(
        commands, "encoders", "size and speed of the video encoders of transformers, with random weights"
    )
    encoders.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="(all five)")
    encoders.add_argument("--repeats", type=int, default=3, help="of one clip, after one to warm up (3)")
    encoders.add_argument("--threads", type=int, default=2, help="that torch computes with (2)")
    encoders.set_defaults(action=run_encoders)
    memory = add_command(
        commands, "memory", "measure the memory of an update of ViT-B/16 by AdamW, on the CPU and on a GPU"
    )
    memory.add_argument("--frames", type=int, default=24, help="of a clip (24)")
    memory.add_argument("--size", type=int, default=224, help="height and width, pixels (224)")
    memory.add_argument("--batch-size", type=int, default=2, help="clips in a forward pass (2)")
    memory.add_argument(
        "--checkpointed", type=int, default=12, help="blocks under activation checkpointing, of 12 (12)"
    )
    memory.set_defaults(action=run_memory)
    scaling = add_command(
        commands, "scaling", "estimate what training on 1 to 512 GPUs costs: exchange, loading and memory, on paper"
    )
    scaling.add_argument("--batch-size", type=int, default=4, help="clips of one GPU in an update (4)")
    scaling.add_argument(
        "--teraflops", type=float, default=395.6, help="TFLOP/s that a GPU sustains (395.6: 40 %% of an H100's peak)"
    )
    scaling.add_argument("--nvlink", type=float, default=450, help="GB/s between the GPUs of a node (450)")
    scaling.add_argument("--network", type=float, default=50, help="GB/s of a node to the next (50: 400 Gbit/s)")
    scaling.add_argument(
        "--clips-per-worker", type=float, default=28, help="clips of 24 frames that a loader worker reads a second (28)"
    )
    scaling.add_argument(
        "--measure", action="store_true", help="instead, measure two processes beside one on this machine's CPU"
    )
    scaling.add_argument("--repeats", type=int, default=5, help="of every pair with --measure (5)")
    scaling.set_defaults(action=run_scaling)


def run(args: argparse.Namespace) -> int:
    for name in ("frames", "size", "repeats", "batch_size", "threads"):
        if getattr(args, name, 1) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for name in ("teraflops", "nvlink", "network", "clips_per_worker"):
        if not 0 < getattr(args, name, 1) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be more than 0, got {getattr(args, name)}")
    args.action(args)
    return 0


def run_loading(args: argparse.Namespace) -> None:
    from diveparse.engine.benchmark.loading import OURS, equals_full_decode, frame_times, measure_loading, reencode

    with tempfile.TemporaryDirectory() as folder:
        videos = list(dict.fromkeys(args.videos))
        if args.height:
            copies = [Path(folder) / f"{number}-{video.stem}.mp4" for number, video in enumerate(videos)]
            for video, copy in zip(videos, copies, strict=True):
                reencode(video, copy, args.height)
            videos = copies
        times_s = frame_times(videos, args.frames)
        measurements = measure_loading(times_s, (args.size, args.size), args.repeats, Path(folder))
        num_equal = sum(equals_full_decode(video, times) for video, times in times_s.items())
    size = f"{args.size} x {args.size}"
    print(f"{len(videos)} videos, {args.frames} frames of {size}, {args.repeats} repeats, one core\n")
    print(loading_table(measurements, len(videos)))
    print(f"\n{OURS} gives what decoding every frame gives, bit for bit, on {num_equal} of {len(videos)} videos")


def loading_table(measurements: list[ReaderMeasurement], num_videos: int) -> str:
    from diveparse.engine.benchmark.loading import OURS, READERS

    rows = []
    for each in measurements:
        milliseconds = 1000 * np.array(each.times_s) / num_videos
        rows.append(
            [
                f"{each.reader} ({each.package} {importlib.metadata.version(each.package)})",
                median_and_range(milliseconds, ".1f"),
                f"{each.ratio:.2f}",
                "-" if each.extra_memory_mib is None else f"{each.extra_memory_mib:.1f}",
            ]
        )
    headers = ["reader", "ms a clip: median (range)", f"time / {OURS}'s", "extra memory, MiB"]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    missing = READERS.keys() - {each.reader for each in measurements}
    return table + (f"\n\nnot installed: {', '.join(sorted(missing))}" if missing else "")


def run_backbone(args: argparse.Namespace) -> None:
    import torch

    from diveparse.datasets.storage.atomic import write_json
    from diveparse.engine.benchmark.backbone import BUILDERS, GPU_BATCH_SIZE, SETTINGS, measure_backbone
    from diveparse.engine.benchmark.measure import is_installed
    from diveparse.engine.environment import describe_environment

    measured: list[dict[str, Any]] = []
    if args.json:
        write_json(args.json, measured)  # at once, so that a path that cannot be written fails before hours of work
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
    print("memory: the peak of tensors alive at once, where freed memory is given back at the same moment")
    print(f"not installed: {', '.join(missing) or 'none'}; on a GPU: {'measured' if devices[1:] else 'not measured'}")


def backbone_table(measurements: list[Measurement], setting: Setting) -> str:
    from diveparse.engine.benchmark.backbone import BUILDERS, COMPILED, OURS

    own_memory = {each.task: each.memory for each in measurements if each.model == OURS}
    rows = []
    for each in measurements:
        memory, own = each.memory, own_memory[each.task]
        _, package = BUILDERS[each.model.removesuffix(COMPILED)]
        rows.append(
            [
                each.task,
                f"{each.model} ({package} {importlib.metadata.version(package)})",
                f"{setting.batch_size / np.median(each.times_s):.2f}",
                median_and_range(1000 * np.array(each.times_s), ".1f"),
                median_and_range(np.array(each.ratios), ".2f"),
                f"{each.num_flops / 1e9:.1f}",
                f"{each.share_of_peak:.0%}",
                "-" if memory is None else f"{memory / 2**20:.0f}",
                "-" if not memory or own is None else f"{own / memory:.2f}",
            ]
        )
    headers = ["task", "model", "clips a second", "ms: median (range)", f"time / {OURS}'s", "GFLOP", "share of peak"]
    headers += ["memory, MiB", f"{OURS}'s memory / it"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def run_encoders(args: argparse.Namespace) -> None:
    from diveparse.engine.benchmark.encoders import measure_encoder

    rows = []
    for name in args.encoders:
        each = measure_encoder(name, args.repeats, args.threads)
        rows.append(
            [
                each.family,
                f"{each.num_frames} of {each.image_size} x {each.image_size}",
                f"{each.num_parameters / 1e6:.1f} M",
                f"{each.num_tokens:,}",
                f"{each.cache_bytes / 1e6:.2f} MB",
                f"{1 / np.median(each.times_s):.3f}",
            ]
        )
    headers = ["encoder", "frames", "parameters", "tokens", "feature cache a clip", "clips a second"]
    print(f"forward in fp32, {args.threads} threads, the median of {args.repeats} repeats of one clip\n")
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


def run_memory(args: argparse.Namespace) -> None:
    import torch

    from diveparse.configs import BackboneConfig
    from diveparse.engine.benchmark.backbone import PRECISIONS, Setting, peak_of_training

    setting = Setting(
        BackboneConfig(num_checkpointed_blocks=args.checkpointed), args.frames, args.size, args.batch_size
    )
    for device in ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]:
        peak = peak_of_training(setting, torch.device(device)) / 2**30
        about = f"{setting}, {args.checkpointed} blocks checkpointed: an update by AdamW in {PRECISIONS[device].value}"
        print(f"{about} on {device} takes {peak:.2f} GiB", flush=True)


def run_scaling(args: argparse.Namespace) -> None:
    if args.measure:
        measure_scaling(args.repeats)
        return
    from diveparse.engine.benchmark.scaling import Assumptions

    assumed = Assumptions(1e12 * args.teraflops, 1e9 * args.nvlink, 1e9 * args.network, args.clips_per_worker)
    print(
        f"estimated, not measured; assumed: {args.teraflops:g} TFLOP/s a GPU, {args.nvlink:g} GB/s within a node, "
        f"{args.network:g} GB/s between nodes,\n{args.batch_size} clips a GPU and update, all blocks trained, "
        f"{args.clips_per_worker:g} clips of 24 frames a loader worker and second\n"
    )
    print("\n\n".join(scaling_tables(args.batch_size, assumed)))


def scaling_tables(batch_size: int, assumed: Assumptions) -> list[str]:
    """Of a clip, of an update, and of all GPUs."""
    from diveparse.engine.benchmark.scaling import MODELS, NUMS_GPUS, Estimate

    clips, updates, machines = [], [], []
    for name, sizes in MODELS.items():
        one = Estimate(sizes, 1, batch_size, assumed)
        about = [f"{sizes.num_parameters / 1e6:.1f} M", f"{one.flops_per_clip / 1e12:.2f}"]
        clips.append([name, *about, f"{one.clips_per_s:.0f}", f"{1000 * one.compute_s:.1f}"])
        for num_gpus in NUMS_GPUS:
            each = Estimate(sizes, num_gpus, batch_size, assumed)
            times_s = (each.exchange_s, each.update_s, each.overlapped_update_s)
            updates.append(
                [
                    name,
                    str(num_gpus),
                    f"{each.exchanged_bytes / 1e9:.2f}",
                    *(f"{1000 * time_s:.1f}" for time_s in times_s),
                ]
            )
            states = (each.state_bytes, each.sharded_state_bytes)
            machines.append(
                [name, str(num_gpus), f"{each.clips_per_s:,.0f}", f"{each.num_workers:,}"]
                + [f"{num_bytes / 1e9:.3f}" for num_bytes in states]
            )
    headers = [
        [
            "model",
            "parameters",
            "TFLOP a clip, forward and backward (estimated)",
            "clips a second and GPU (estimated)",
            "ms of an update's compute (estimated)",
        ],
        [
            "model",
            "GPUs",
            "GB exchanged a process and update (estimated)",
            "ms of exchange (estimated)",
            "ms of an update (estimated)",
            "the same with overlap, at best (estimated)",
        ],
        [
            "model",
            "GPUs",
            "clips a second, at most (estimated)",
            "loader workers (estimated)",
            "GB of state a GPU (estimated)",
            "the same fully sharded (estimated)",
        ],
    ]
    return [
        tabulate(rows, headers=names, tablefmt="github", disable_numparse=True)
        for rows, names in zip((clips, updates, machines), headers, strict=True)
    ]


def measure_scaling(repeats: int) -> None:
    from diveparse.configs import ClipConfig
    from diveparse.engine.benchmark.processes import NUM_LOADED, WORKS, measure_work, measure_workers

    measured = [measure_work(work, repeats) for work in WORKS]
    with tempfile.TemporaryDirectory() as folder:
        measured.append(measure_workers(Path(folder), repeats, ClipConfig(num_frames=24, image_size=224), NUM_LOADED))
    print(f"one thread a process, gloo, {os.cpu_count()} cores, {repeats} repeats of each in turns\n")
    print(processes_table(measured))


def processes_table(measured: list[Scaling]) -> str:
    rows = [
        [
            each.name,
            str(each.batch_size),
            f"{np.median(each.of_one):.1f}",
            f"{np.median(each.of_two):.1f}",
            median_and_range(np.array(each.ratios), ".2f"),
        ]
        for each in measured
    ]
    headers = ["what", "batch", "clips a second, one process or worker", "of two", "two / one: median (range)"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def median_and_range(values: np.ndarray[Any, np.dtype[Any]], form: str) -> str:
    return f"{np.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"
