"""Prepare data: check a data set and make its cache, render a labelled one, or render one clip of any dive."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from diveparse.commands.cli import add_command
from diveparse.configs import DataConfig, Dives
from diveparse.datasets.archives import find_archives, unpack
from diveparse.datasets.cache import (
    DEFAULTS,
    NUM_SAMPLE_CLIPS,
    CacheKind,
    CacheSettings,
    build_cache,
    cache_folder,
    chosen_settings,
    estimated_bytes,
    read_index,
)
from diveparse.datasets.clips import read_clips
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DIVE_SETS, DIVING48_TEST_COUNTS, DIVING48_TRAIN_COUNTS, Dive
from diveparse.datasets.inspection import REPORT_FILE, check_files, read_splits, report
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.sets import (
    TRAIN_COUNTS,
    ClassCounts,
    RenderSettings,
    Sources,
    render_data_set,
    write_clip,
)
from diveparse.datasets.shards import Shard, find_shards, splits_of_shards, unpack_shards
from diveparse.datasets.storage.atomic import write_json
from diveparse.datasets.storage.disk import free_bytes, in_bytes, naming_full_disk, require_space
from diveparse.datasets.storage.lock import locked

if TYPE_CHECKING:
    from diveparse.commands.cli import Subparsers

NUM_SHOWN = 10  # of the clips that cannot be read
CONTINUES = "the same command goes on where it was"
EXAMPLES = """\
examples:
  %(prog)s diving48 data/diving48
  %(prog)s clips my_clips.csv --column dive_number=action_type --cache training
  %(prog)s synthetic --out data/demo --train-clips 1500 --test-clips 300 --height 120
  %(prog)s synthetic --out data/finediving --dives finediving --test-counts balanced --train-clips 150 --test-clips 104
  %(prog)s rehearsal --out data/rehearsal --scale 0.04
  %(prog)s dive 626C --out 626C.mp4
  %(prog)s sheet 101B 5253B 626C --out sheet.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_checks(commands)
    add_data_sets(commands)
    add_pictures(commands)


def run(args: argparse.Namespace) -> int:
    return int(args.action(args))


def add_data_sets(commands: Subparsers) -> None:
    """The commands that render a data set."""
    synthetic = add_command(commands, "synthetic", "render labelled dives as H.264 clips in Diving48's layout")
    synthetic.add_argument("--train-clips", type=int, required=True, help="long-tailed like the real training split")
    synthetic.add_argument("--test-clips", type=int, required=True)
    synthetic.add_argument(
        "--test-counts",
        choices=[counts.value for counts in ClassCounts],
        default=ClassCounts.DIVING48.value,
        help="test clips in proportion to the V2 test split, or the same number of every class with training clips",
    )
    synthetic.add_argument("--clips-per-source", type=int, default=12, help="(12)")
    synthetic.add_argument(
        "--dives",
        choices=[dives.value for dives in TRAIN_COUNTS],
        default=Dives.DIVING48.value,
        help="whose dives; those of another set than Diving48 are listed in DIR/clips.csv, with balanced test counts",
    )
    rehearsal = add_command(commands, "rehearsal", "render clips in the shape of the real Diving48, to rehearse on")
    rehearsal.add_argument("--scale", type=float, default=0.04, help="share of the real 16,997 clips (0.04)")
    for command, action in ((synthetic, render_set), (rehearsal, render_rehearsal)):
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="continues what is there already")
        add_rendering(command, height=480)
        add_workers(command)
        command.set_defaults(action=action, if_stopped=CONTINUES)


def add_pictures(commands: Subparsers) -> None:
    """The commands that render one file."""
    dive = add_command(commands, "dive", "render one clip of any dive number")
    dive.add_argument("number", metavar="NUMBER", help="such as 5253B")
    dive.add_argument("--out", type=Path, required=True, metavar="FILE.mp4")
    add_rendering(dive, height=480)
    dive.set_defaults(action=render_dive)
    sheet = add_command(commands, "sheet", "draw dives as rows of frames in one picture")
    sheet.add_argument("numbers", nargs="+", metavar="NUMBER", help="such as 5253B; each is one row")
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    sheet.add_argument("--frames", type=int, default=12, help="in a row (12)")
    add_rendering(sheet, height=120)
    sheet.set_defaults(action=contact_sheet)


def add_checks(commands: Subparsers) -> None:
    """The commands that check a data set and make its caches."""
    diving48 = add_command(commands, "diving48", "check a download of Diving48, report, and make its cache")
    diving48.add_argument("root", type=Path, metavar="ROOT", help="with rgb/, its .tar or parquet shards; V2 JSONs")
    diving48.set_defaults(action=check_data_set)
    clips = add_command(commands, "clips", "check a CSV of clips, and make its cache")
    clips.add_argument("root", type=Path, metavar="FILE.csv", help="with the columns that datasets/clips.py describes")
    clips.add_argument(
        "--column", action="append", default=[], metavar="NAME=OWN", help="the file's own name for a column; repeatable"
    )
    clips.add_argument("--dives", choices=[dives.value for dives in Dives], help="the dives that labels count in")
    clips.set_defaults(action=check_clips)
    for command in (diving48, clips):
        add_workers(command)
        command.add_argument(
            "--cache",
            choices=["both", "none", *(kind.value for kind in CacheKind)],
            default="both",
            help="which copies to make, which training and evaluation read much faster than the videos (both)",
        )
        for kind, default in DEFAULTS.items():
            usual = f"(unchanged, or {default.num_frames}); another number makes the cache again"
            command.add_argument(f"--{kind.value}-frames", type=int, help=f"per clip in that cache {usual}")
            usual = f"(unchanged, or {default.short_side}); another number makes the cache again"
            command.add_argument(f"--{kind.value}-side", type=int, help=f"shorter side of its frames, pixels {usual}")
        command.set_defaults(if_stopped=CONTINUES)


def add_rendering(command: argparse.ArgumentParser, height: int) -> None:
    command.add_argument("--height", type=int, default=height, help=f"pixels; pictures are 4:3 ({height})")
    command.add_argument(
        "--difficulty", type=float, default=1.0, help="of camera, light and crowd, from 0 (plain) to 1 (1)"
    )
    command.add_argument("--seed", type=int, default=0, help="(0)")


def add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")


def check_data_set(args: argparse.Namespace) -> int:
    """Unpack what is still packed, play every file, print and write the findings. Returns: the exit code."""
    shards = find_shards(args.root)
    splits = {} if shards else read_splits(args.root)
    with locked(args.root, "prepare"):
        return check_folder(args, splits or splits_of_shards(args.root, shards), shards)


def check_folder(args: argparse.Namespace, splits: dict[str, list[ClipRecord]], shards: list[Shard]) -> int:
    for archive in find_archives(args.root):
        follow(unpack(archive, args.root), unit="B", unit_scale=True, desc=f"unpacking {archive.name}")
    if shards:
        follow(unpack_shards(shards, args.root), unit="clip", desc=f"unpacking {len(shards)} shards")
    records = [record for split in splits.values() for record in split]
    follow(check_files(args.root, records, args.workers), unit="file", desc="playing")
    found = report(args.root, splits)
    write_json(args.root / REPORT_FILE, found)
    print(in_words(found))
    # training can go on without files that cannot be played, but not with whatever else makes a data set unfit
    if len(found["errors"]) == bool(found["unplayable"]):
        make_caches(args, splits["train"], records)
    return 0 if found["fit"] else 1


def check_clips(args: argparse.Namespace) -> int:
    """Check every row of a CSV of clips and make its cache. Returns: the exit code."""
    columns = dict(column.split("=", 1) for column in args.column if "=" in column)
    if len(columns) < len(args.column):
        raise ValueError(f"--column must look like path=video, each name once, got {' '.join(args.column)}")
    clips = read_clips(args.root, columns, DIVE_SETS[Dives(args.dives)] if args.dives else None)
    counts = ", ".join(f"{len(records)} {split}" for split, records in clips.splits.items())
    print(f"{args.root}: {counts} clips of {len(clips.dive_set)} dives; every row is well-formed")
    records = [record for split in clips.splits.values() for record in split]
    if args.cache == "none":
        return 0
    with locked(open_data_set(DataConfig(root=str(args.root))).cache_root, "prepare"):
        return 1 if make_caches(args, clips.splits.get("train", []), records) else 0


def make_caches(args: argparse.Namespace, train: list[ClipRecord], records: list[ClipRecord]) -> int:
    """Training reads its own clips; evaluation all, since validation is drawn from the training clips.

    Returns: how many clips could not be read.
    """
    damaged, root = 0, open_data_set(DataConfig(root=str(args.root))).cache_root
    for kind, clips in ((CacheKind.TRAINING, train), (CacheKind.EVALUATION, records)):
        if args.cache in ("both", kind.value) and clips:
            num_frames, short_side = getattr(args, f"{kind.value}_frames"), getattr(args, f"{kind.value}_side")
            settings = chosen_settings(root, kind, num_frames, short_side)
            damaged += make_cache(root, settings, clips, args.workers)
    return damaged


def make_cache(root: Path, settings: CacheSettings, clips: list[ClipRecord], num_workers: int) -> int:
    """Make one cache and print its estimated size as soon as there is one.

    Returns: how many clips could not be read. Raises: DiskFullError if there is not enough space for the cache.
    """
    folder = cache_folder(root, settings.kind)
    progress = build_cache(root, settings, clips, num_workers)
    num_before, total = next(progress)
    size_is_printed = num_before == total
    with tqdm(initial=num_before, total=total, unit="clip", desc=f"making {folder}") as bar:
        for done, _ in progress:
            bar.update(done - bar.n)
            if not size_is_printed and done >= min(total, num_before + NUM_SAMPLE_CLIPS):
                size_is_printed = True
                num_bytes = estimated_bytes(folder, clips)
                bar.write(f"{folder}: estimated {in_bytes(num_bytes)}; {in_bytes(free_bytes(folder))} are free")
                what = f"caching {total - done} more clips (--cache leaves a cache out)"
                require_space(folder, round(num_bytes * (total - done) / total), what)
    entries = read_index(folder)
    damaged = [problem for clip in clips if (problem := entries[clip.name].problem)]
    for problem in damaged[:NUM_SHOWN]:
        print(f"error: not in the cache: {problem}", file=sys.stderr)
    if len(damaged) > NUM_SHOWN:
        print(f"error: and {len(damaged) - NUM_SHOWN} more", file=sys.stderr)
    size = in_bytes(estimated_bytes(folder, clips))
    print(f"{folder}: {total - len(damaged)} of {total} clips, {size}")
    return len(damaged)


def in_words(found: dict[str, Any]) -> str:
    rows = [
        [
            split,
            f"{about['found']} of {about['clips']}",
            about["sources"],
            ", ".join(f"{count} at {rate}" for rate, count in about["frame_rates_hz"].items()),
            f"{about['classes_off_the_known_counts']} of {len(about['clips_per_class'])}",
        ]
        for split, about in found["splits"].items()
    ]
    headers = ["split", "clips found", "sources", "frame rates (Hz)", "classes off V2's counts"]
    lines = [tabulate(rows, headers=headers, tablefmt="plain"), ""]
    lines += [f"classes without a clip (V2 has none of 30): {', '.join(found['classes_without_clips']) or 'none'}"]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    lines += [f"error: {error}" for error in found["errors"]]
    kind = "rendered dives, not Diving48; " if found["rendered"] else ""
    verdict = "fit to train on" if found["fit"] else "NOT fit to train on"
    return "\n".join([*lines, f"{found['root']}: {kind}{verdict}; all of it is in {REPORT_FILE}"])


def follow(progress: Iterator[tuple[int, int]], **bar_options: Any) -> None:
    """Show a bar for an iterator of (done, in all)."""
    done, total = next(progress)  # what is wrong from the start shows before there is a bar
    with tqdm(initial=done, total=total, **bar_options) as bar:
        for done, _ in progress:
            bar.update(done - bar.n)


def render_set(args: argparse.Namespace) -> int:
    settings = RenderSettings(
        num_train_clips=args.train_clips,
        num_test_clips=args.test_clips,
        height=args.height,
        difficulty=args.difficulty,
        clips_per_source=args.clips_per_source,
        test_counts=args.test_counts,
        seed=args.seed,
        dives=args.dives,
    )
    return render(args, settings)


def render_rehearsal(args: argparse.Namespace) -> int:
    """As many clips of each class and source as `scale` of the real data set has, under the real sources' names."""
    settings = RenderSettings(
        num_train_clips=round(args.scale * sum(DIVING48_TRAIN_COUNTS)),
        num_test_clips=round(args.scale * sum(DIVING48_TEST_COUNTS)),
        height=args.height,
        difficulty=args.difficulty,
        seed=args.seed,
        sources=Sources.DIVING48.value,
    )
    return render(args, settings)


def render(args: argparse.Namespace, settings: RenderSettings) -> int:
    with locked(args.out, "rendering"):
        follow(render_data_set(args.out, settings, args.workers), unit="clip", desc="rendering")
    print(f"{args.out}: {settings.num_train_clips} training and {settings.num_test_clips} test clips, rendered")
    return 0


def clip_of(number: str, seed: int, difficulty: float) -> RenderedClip:
    """A clip of a source whose board the dive can be done from."""
    dive = Dive.from_number(number)
    sources = (Source.draw(seed, Split.TRAIN, index, difficulty) for index in range(1000))
    return RenderedClip(next(source for source in sources if source.has_board_for(dive)), dive, 0, difficulty)


def render_dive(args: argparse.Namespace) -> int:
    size = checked_picture_size(args)
    clip = clip_of(args.number, args.seed, args.difficulty)
    write_clip(clip, size, args.out)
    print(f"{args.out}: {clip.dive.number}, {clip.dive.name}, from {clip.source.board_height_m:g} m")
    return 0


def contact_sheet(args: argparse.Namespace) -> int:
    if args.frames < 1:
        raise ValueError(f"frames must be at least 1, got {args.frames}")
    size = checked_picture_size(args)
    rows = []
    for index, number in enumerate(args.numbers):
        clip = clip_of(number, args.seed + index, args.difficulty)
        times = (np.arange(args.frames) + 0.5) / args.frames * clip.duration_s
        frames, _, _ = clip.draw(times, size)
        rows.append(np.concatenate(list(frames), axis=1))
    with naming_full_disk(args.out):
        Image.fromarray(np.concatenate(rows)).save(args.out)
    print(f"{args.out}: {', '.join(args.numbers)}, top to bottom")
    return 0


def checked_picture_size(args: argparse.Namespace) -> tuple[int, int]:
    """Of one picture without a data set. Raises: ValueError for an option that a data set would refuse too, or an
    --out in a folder that does not exist."""
    if not args.out.parent.is_dir():
        raise ValueError(f"the folder {args.out.parent} of --out does not exist")
    checked = RenderSettings(
        num_train_clips=1, num_test_clips=1, height=args.height, difficulty=args.difficulty, seed=args.seed
    )
    return checked.size
