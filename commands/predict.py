"""Read the dive number off video files: number, name, difficulty, probability, the runners-up and each attribute.

Probabilities are calibrated with a temperature that was fitted on validation clips; those of a published model of
transformers, whose labels must be dives, are its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from glob import escape, glob
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from diveparse.commands import interrupt
from diveparse.commands.cli import print_error
from diveparse.configs import Dives
from diveparse.datasets.dives import ATTRIBUTES, HEIGHTS_M, DiveSet
from diveparse.datasets.storage.atomic import make_folder
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.storage.foreign import is_foreign, own_paths
from diveparse.datasets.written_paths import same_on_some_disk

if TYPE_CHECKING:
    from diveparse.engine.evaluation.predict import Answer, DiveReader

VIDEO_SUFFIXES = (
    *(".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
COPIES_STAY = (
    "the answers and copies so far are complete; move the copies, or choose another --save-video, and start the same "
    "command again"
)
NO_BREAK_SPACE = "\u00a0"
CSV_COLUMNS = ("video", "number", "name", "height_m", "difficulty", "probability", *ATTRIBUTES)
EXAMPLES = """\
examples:
  %(prog)s runs/demo/structured/seed-0 data/demo/rgb/*_00000.mp4
  %(prog)s runs/demo/structured/seed-0 dive.mp4 --height-m 3 --json
  %(prog)s runs/demo/structured/seed-0 final.mp4 --start 61.2 --end 65
  %(prog)s runs/demo/structured/seed-0 clips/ --dives world-aquatics --csv > answers.csv
  %(prog)s runs/demo/structured/seed-0 'season/**/*.mp4' --save-video captioned/
  %(prog)s facebook/vjepa2-vitl-fpc32-256-diving48 dive.mp4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a trained run, a folder with a saved or published model, OWNER/NAME on the hub, or an ONNX file",
    )
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="a video of one dive, a folder of them, or a quoted pattern: * any name, ** any folders, ? [abc] a letter",
    )
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="where the dive starts, in seconds (0)")
    parser.add_argument("--end", type=float, metavar="S", help="where the dive ends, in seconds (the video's end)")
    parser.add_argument(
        "--dives",
        choices=[dives.value for dives in Dives],
        help="answer with these dives instead of those that the model was trained on",
    )
    parser.add_argument(
        "--height-m", type=float, choices=HEIGHTS_M, default=10, help="board or platform, for the difficulty (10)"
    )
    parser.add_argument(
        "--save-video", type=Path, metavar="DIR", help="write each video, with the answer over its frames, to DIR"
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print one JSON object per video instead of text")
    formats.add_argument("--csv", action="store_true", help="print one row per video instead of text")
    parser.set_defaults(
        if_stopped="the answers so far are complete; the same command starts again from the beginning", log_to="stderr"
    )


def run(args: argparse.Namespace) -> int:
    """Print the answer for each video as soon as it is there, and write the copies with captions."""
    from diveparse.engine.evaluation.predict import predict

    videos = [video for name in args.videos for video in videos_in(name)]
    copies = {}
    if args.save_video:
        copies = copies_in(args.save_video, videos)
        interrupt.if_stopped = COPIES_STAY
    model, dive_set = opened_model(args.run, Dives(args.dives) if args.dives else None)
    if args.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerow(CSV_COLUMNS)
    exit_code = 0
    for video in videos:
        try:
            answer = predict(model, video, args.height_m, dive_set, (args.start, args.end))
        except (ValueError, OSError) as error:  # the other videos can still be read
            print_error(error)
            exit_code = 1
            continue
        print_answer(answer, args)
        try:
            if video in copies:
                write_copy(video, copies[video], answer, args)
        except DiskFullError:  # the other copies would not fit either
            raise
        except (ValueError, OSError) as error:
            print_error(error)
            exit_code = 1
    return exit_code


def opened_model(path: Path, dives: Dives | None) -> tuple[DiveReader, DiveSet]:
    """The model of a run, a folder, an ONNX file or the hub, and the dives to answer with.

    Raises: ValueError if there is no such model, or it cannot answer with other dives.
    """
    from diveparse.engine.device import choose_device
    from diveparse.engine.evaluation.predict import dives_to_answer_with
    from diveparse.models.classifier import DiveClassifier
    from diveparse.models.onnx_classifier import SUFFIX, OnnxClassifier

    if path.suffix == SUFFIX and not path.is_dir():
        exported = OnnxClassifier(path)
        if dives is not None:
            raise ValueError(f"{path}: has the dives that it was exported with; export its run again with --dives")
        return exported, exported.dive_set
    model = DiveClassifier.from_pretrained(path).to(choose_device())
    return model, dives_to_answer_with(model, dives) if dives else model.dive_set


def videos_in(name: str) -> list[Path]:
    """The video itself, those of a folder, or those that a pattern matches, if no file has the pattern for its name.

    Raises: ValueError if a folder holds no video, or a pattern matches no file.
    """
    path = Path(name)
    if not path.exists() and any(letter in name for letter in "*?["):
        matches = [Path(match) for match in sorted(set(matches_of(name)))]
        files = [match for match in matches if match.is_file() and not is_foreign(match)]
        if not files:
            raise ValueError(f"{name}: no file matches this pattern")
        return files
    if not path.is_dir():
        return [path]
    videos = [file for file in own_paths(path) if file.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise ValueError(f"{path}: the folder holds no video; expected files that end in {', '.join(VIDEO_SUFFIXES)}")
    return videos


def matches_of(pattern: str) -> Iterator[str]:
    """The paths that a pattern matches; ** enters each folder once, also where links lead back to it in a circle."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob(pattern)  # noqa: PTH207, Path's is relative only
        return
    place = parts.index("**")
    tops = glob(str(Path(*parts[:place]))) if place else [""]  # noqa: PTH207
    rest = parts[place + 1 :] or ("*",)
    for top in tops:
        for folder in folders_below(top):
            yield from matches_of(str(Path(escape(folder), *rest)))


def folders_below(top: str) -> Iterator[str]:
    """A folder and all below it but hidden ones, each once."""
    entered = {os.path.realpath(top)}
    for folder, names, _ in os.walk(top or os.curdir, followlinks=True):
        yield folder if top else os.path.relpath(folder)
        names.sort()
        for name in names.copy():
            real = os.path.realpath(Path(folder, name))
            if name.startswith(".") or real in entered:
                names.remove(name)
            entered.add(real)


def copies_in(folder: Path, videos: list[Path]) -> dict[Path, Path]:
    """For each video the file of its copy in a folder, which is made.

    Raises: ValueError if two copies would be the same file, or a file of that name exists.
    """
    copies, sources = dict[Path, Path](), dict[str, Path]()
    for video in videos:
        target = folder / f"{video.stem}.mp4"
        other = sources.setdefault(same_on_some_disk(target.name), video)
        if other != video or video in copies:
            raise ValueError(f"{target} would be the copy of {other} and of {video}; rename one of them")
        if target.exists():
            raise ValueError(f"{target} already exists; move it, or choose another --save-video")
        copies[video] = target
    make_folder(folder)
    return copies


def print_answer(answer: Answer, args: argparse.Namespace) -> None:
    if args.csv:
        row = asdict(answer) | {name: best.value for name, best in answer.attributes.items()}
        csv.writer(sys.stdout, lineterminator="\n").writerow([row[column] for column in CSV_COLUMNS])
    else:
        print(json.dumps(asdict(answer), ensure_ascii=False) if args.json else in_words(answer))
    sys.stdout.flush()


def in_words(answer: Answer) -> str:
    """An answer as a heading and two aligned tables, the candidates and the attributes."""
    candidates = [
        [dive.number, dive.name, dive.difficulty or "not listed", f"{dive.probability:.3f}"]
        for dive in answer.candidates
    ]
    headers = ["number", "name", f"difficulty ({answer.height_m:g} m)", "probability"]
    attributes = [[name, best.value, f"{best.probability:.3f}"] for name, best in answer.attributes.items()]
    tables = [
        _table(candidates, headers=headers, colalign=("left", "left", "right", "right")),
        _table(attributes),
    ]
    heading = f"{answer.video}: {number_and_name(answer)}"
    return "\n\n".join([heading, *(indent(table, "    ") for table in tables)]) + "\n"


def write_copy(video: Path, target: Path, answer: Answer, args: argparse.Namespace) -> None:
    from diveparse.datasets.video.captions import write_captioned

    end_s = math.inf if args.end is None else args.end
    write_captioned(video, target, caption(answer), start_s=args.start, end_s=end_s)


def caption(answer: Answer) -> list[str]:
    """An answer in two lines over a video: the dive and the attributes, each with its probability."""
    dive = number_and_name(answer)
    if answer.number is not None:
        dive += f", probability{NO_BREAK_SPACE}{answer.probability:.2f}"
    attributes = [f"{best.value} {best.probability:.2f}" for best in answer.attributes.values()]
    return [dive, ", ".join(each.replace(" ", NO_BREAK_SPACE) for each in attributes)]


def number_and_name(answer: Answer) -> str:
    if answer.number is None:
        return f"no valid dive ({', '.join(best.value for best in answer.attributes.values())})"
    return f"{answer.number}  {answer.name}"


def _table(rows: list[list[Any]], **options: Any) -> str:
    return tabulate(rows, tablefmt="plain", disable_numparse=True, **options)
