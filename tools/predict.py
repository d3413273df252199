"""Read the dive number off video files: number, name, difficulty, probability, the runners-up and each attribute.

Probabilities are calibrated: in training, validation told how far the model is to be believed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from glob import glob
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from diveparse.configs import ClipConfig, Dives
from diveparse.datasets.dives import ATTRIBUTES, DIVE_SETS, HEIGHTS_M, Dive, DiveSet
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.transforms import decode_size, eval_transform
from diveparse.datasets.video import probe, read_frames
from diveparse.datasets.video.captions import write_captioned
from diveparse.engine.device import choose_device
from diveparse.heads.recombine import INVALID, normalise
from diveparse.models.classifier import DIVE, DiveClassifier

NUM_CANDIDATES = 5
VIDEO_SUFFIXES = (
    *(".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
NO_BREAK_SPACE = "\u00a0"
CSV_COLUMNS = ("video", "number", "name", "height_m", "difficulty", "probability", *ATTRIBUTES)
EPILOG = """\
examples:
  python tools/predict.py runs/demo/structured/seed-0 data/demo/rgb/*_00000.mp4
  python tools/predict.py runs/demo/structured/seed-0 dive.mp4 --height-m 3 --json
  python tools/predict.py runs/demo/structured/seed-0 final.mp4 --start 61.2 --end 65
  python tools/predict.py runs/demo/structured/seed-0 clips/ --dives world-aquatics --csv > answers.csv
  python tools/predict.py runs/demo/structured/seed-0 'season/**/*.mp4' --save-video captioned/
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a trained run, or a folder with a saved model")
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="a video of one dive, a folder of them, or a quoted pattern: * any name, ** any folders, ? [abc] a letter",
    )
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="of the dive in each video, seconds (0)")
    parser.add_argument("--end", type=float, metavar="S", help="of the dive in each video, seconds (the video's end)")
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
    formats.add_argument("--json", action="store_true", help="print one JSON object a video instead of text")
    formats.add_argument("--csv", action="store_true", help="print one row a video instead of text")
    args = parser.parse_args(argv)
    try:
        videos = [video for name in args.videos for video in videos_in(name)]
        targets = targets_in(args.save_video, videos) if args.save_video else {}
        model = DiveClassifier.load(args.run).to(choose_device())
        dive_set = dives_to_answer_with(model, Dives(args.dives)) if args.dives else model.dive_set
    except (ValueError, OSError) as error:
        return _complain(error)
    try:
        return answer_all(args, model, dive_set, videos, targets)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads the answers has enough of them, such as `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else leaving would try to write the rest
        return 1


def answer_all(
    args: argparse.Namespace, model: DiveClassifier, dive_set: DiveSet, videos: list[Path], targets: dict[Path, Path]
) -> int:
    """Print the answer of each video as soon as it is there, and write the copies. Returns: the exit code."""
    table = csv.DictWriter(sys.stdout, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    if args.csv:
        table.writeheader()
    exit_code = 0
    for video in videos:
        try:
            answer = predict(model, video, args.height_m, dive_set, (args.start, args.end))
        except (ValueError, OSError) as error:
            exit_code = _complain(error)
            continue
        if args.csv:
            table.writerow(answer | {name: best["value"] for name, best in answer["attributes"].items()})
        else:
            print(json.dumps(answer, ensure_ascii=False) if args.json else in_words(answer))
        sys.stdout.flush()
        try:
            if video in targets:
                end_s = math.inf if args.end is None else args.end
                write_captioned(video, targets[video], caption(answer), start_s=args.start, end_s=end_s)
        except (ValueError, OSError) as error:
            exit_code = _complain(error)
    return exit_code


def videos_in(name: str) -> list[Path]:
    """The video itself, those of a folder, or those that a pattern matches, if no file has the pattern for its name.

    Raises: ValueError if a folder holds no video, or a pattern matches no file.
    """
    path = Path(name)
    if not path.exists() and any(letter in name for letter in "*?["):
        matches = [Path(match) for match in sorted(glob(name, recursive=True))]  # noqa: PTH207, Path's is relative only
        files = [match for match in matches if match.is_file()]
        if not files:
            raise ValueError(f"{name}: no file matches this pattern")
        return files
    if not path.is_dir():
        return [path]
    videos = sorted(file for file in path.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ValueError(f"{path}: holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return videos


def targets_in(folder: Path, videos: list[Path]) -> dict[Path, Path]:
    """For each video the file in a folder, which is made, that its copy goes to.

    Raises: ValueError if two copies would be the same file, or one is there already.
    """
    sources: dict[Path, Path] = {}
    for video in videos:
        target = folder / f"{video.stem}.mp4"
        if target in sources:
            raise ValueError(f"{target}: would be the copy of {sources[target]} and of {video}")
        if target.exists():
            raise ValueError(f"{target}: is there already, and is not written over")
        sources[target] = video
    folder.mkdir(parents=True, exist_ok=True)
    return {video: target for target, video in sources.items()}


@torch.no_grad()
def dives_to_answer_with(model: DiveClassifier, dives: Dives) -> DiveSet:
    """Those dives of a list that a model has the attributes for.

    Raises: ValueError if its head cannot answer with them all the same.
    """
    dive_set = DIVE_SETS[dives].expressible(model.dive_set.values)
    blank = torch.zeros(1, model.backbone.embed_dim, device=next(model.parameters()).device)
    model.head.dive_log_probs(blank, dive_set)  # complains now, before any video is read
    return dive_set


@torch.no_grad()
def predict(
    model: DiveClassifier,
    video: Path,
    height_m: float,
    dive_set: DiveSet | None = None,
    window_s: tuple[float, float | None] = (0.0, None),
) -> dict[str, Any]:
    """All that the model says about one video, as plain values. See `in_words` for what it looks like.

    dive_set: what to answer with, by default the model's own; another must be one that its heads can express.
    window_s: start and end of the dive in the video; None is the video's end.
    Every probability is calibrated, with the same temperature for the model's own dives and others. "number" is None
    where the answer spells no dive of the model's set, which only independent heads can do; its probability is 0.
    Raises: VideoError naming the video if it cannot be read; ValueError if the window is not in it, or a head cannot
    answer with these dives.
    """
    device = next(model.parameters()).device
    features = model.features(read_clip(video, model.config.clip, window_s)[None].to(device))  # a batch of one
    outputs = model.read_out(features)
    log_probs, label = outputs.dive_log_probs[0].cpu(), int(outputs.decoded_labels[0])
    dive_set = dive_set or model.dive_set
    if dive_set != model.dive_set:
        log_probs = model.head.dive_log_probs(features, dive_set)[0].cpu()
        label = int(log_probs.argmax())
    probabilities = normalise(log_probs / model.temperatures[DIVE]).exp()
    candidates = [
        {**describe(dive_set[int(k)], height_m), "probability": float(probabilities[k])}
        for k in log_probs.argsort(descending=True, stable=True)[:NUM_CANDIDATES]
    ]
    answer = {"number": None, "name": None, "difficulty": None, "probability": 0.0}
    if label != INVALID:
        answer = {**describe(dive_set[label], height_m), "probability": float(probabilities[label])}
    attributes = {}
    for attribute in ATTRIBUTES:
        log_probs = outputs.attribute_log_probs[attribute][0]
        slot = int(log_probs.argmax())
        probability = normalise(log_probs / model.temperatures[attribute])[slot].exp()
        attributes[attribute] = {
            "value": model.dive_set.value_names[attribute][slot],
            "probability": float(probability),
        }
    return {"video": str(video), "height_m": height_m, **answer, "candidates": candidates, "attributes": attributes}


def read_clip(video: Path, clip_cfg: ClipConfig, window_s: tuple[float, float | None] = (0.0, None)) -> Tensor:
    """Read a video, or its part from window_s[0] to window_s[1], as a test does: frames evenly over it, middle square.

    Returns: (time, 3, image_size, image_size), normalised.
    """
    info = probe(video)
    start_s, end_s = window_s[0], info.duration_s if window_s[1] is None else window_s[1]
    if not 0 <= start_s < end_s <= info.duration_s:
        raise ValueError(
            f"{video}: expected start and end in order within its {info.duration_s:.3f} s, got {start_s} and {end_s}"
        )
    times_s = start_s + sample_frame_times(end_s - start_s, clip_cfg.num_frames)
    return eval_transform(clip_cfg)(read_frames(video, times_s, decode_size(info, clip_cfg)))


def describe(dive: Dive, height_m: float) -> dict[str, Any]:
    return {"number": dive.number, "name": dive.name, "difficulty": dive.difficulty(height_m)}


def in_words(answer: dict[str, Any]) -> str:
    """An answer of `predict` as a heading and two aligned tables, the candidates and the attributes."""
    candidates = [
        [dive["number"], dive["name"], dive["difficulty"] or "not listed", f"{dive['probability']:.3f}"]
        for dive in answer["candidates"]
    ]
    headers = ["number", "name", f"difficulty ({answer['height_m']:g} m)", "probability"]
    tables = [
        _table(candidates, headers=headers, colalign=("left", "left", "right", "right")),
        _table([[name, best["value"], f"{best['probability']:.3f}"] for name, best in answer["attributes"].items()]),
    ]
    heading = f"{answer['video']}: {number_and_name(answer)}"
    return "\n\n".join([heading, *(indent(table, "    ") for table in tables)]) + "\n"


def caption(answer: dict[str, Any]) -> list[str]:
    """An answer of `predict` in two lines over a video: the dive and the attributes, each with its probability."""
    dive = number_and_name(answer)
    if answer["number"] is not None:
        dive += f", probability{NO_BREAK_SPACE}{answer['probability']:.2f}"
    attributes = [f"{best['value']} {best['probability']:.2f}" for best in answer["attributes"].values()]
    return [dive, ", ".join(each.replace(" ", NO_BREAK_SPACE) for each in attributes)]


def number_and_name(answer: dict[str, Any]) -> str:
    if answer["number"] is None:
        return f"no valid dive ({', '.join(best['value'] for best in answer['attributes'].values())})"
    return f"{answer['number']}  {answer['name']}"


def _table(rows: list[list[Any]], **options: Any) -> str:
    return tabulate(rows, tablefmt="plain", disable_numparse=True, **options)


def _complain(error: Exception) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
