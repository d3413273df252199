"""Read the dive number off video files: number, name, difficulty, probability, the runners-up and each attribute."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from diveparse.configs import ClipConfig
from diveparse.datasets.dives import ATTRIBUTES, HEIGHTS_M, Dive
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.transforms import decode_size, eval_transform
from diveparse.datasets.video import probe, read_frames
from diveparse.engine.device import choose_device
from diveparse.heads.recombine import INVALID
from diveparse.models.classifier import DiveClassifier

NUM_CANDIDATES = 5
EPILOG = """\
examples:
  python tools/predict.py runs/demo/structured/seed-0 data/demo/rgb/*_00000.mp4
  python tools/predict.py runs/demo/structured/seed-0 dive.mp4 --height-m 3 --json
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a trained run, or a folder with a saved model")
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="a video of one dive")
    parser.add_argument(
        "--height-m", type=float, choices=HEIGHTS_M, default=10, help="board or platform, for the difficulty (10)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a video instead of text")
    args = parser.parse_args(argv)
    try:
        model = DiveClassifier.load(args.run).to(choose_device())
    except (ValueError, OSError) as error:
        return _complain(error)
    exit_code = 0
    for video in args.videos:
        try:
            answer = predict(model, video, args.height_m)
        except (ValueError, OSError) as error:
            exit_code = _complain(error)
        else:
            print(json.dumps(answer, ensure_ascii=False) if args.json else in_words(answer), flush=True)
    return exit_code


@torch.no_grad()
def predict(model: DiveClassifier, video: Path, height_m: float) -> dict[str, Any]:
    """All that the model says about one video, as plain values. See `in_words` for what it looks like.

    "number" is None where the answer spells no dive of the model's set, which only independent heads can do.
    Raises: VideoError naming the video if it cannot be read.
    """
    device = next(model.parameters()).device
    outputs = model.outputs(read_clip(video, model.config.clip)[None].to(device))  # a batch of one
    log_probs, label = outputs.dive_log_probs[0].cpu(), int(outputs.decoded_labels[0])
    candidates = [
        {**describe(model.dive_set[int(k)], height_m), "probability": float(log_probs[k].exp())}
        for k in log_probs.argsort(descending=True, stable=True)[:NUM_CANDIDATES]
    ]
    answer = {"number": None, "name": None, "difficulty": None, "probability": 0.0}
    if label != INVALID:
        answer = {**describe(model.dive_set[label], height_m), "probability": float(log_probs[label].exp())}
    attributes = {}
    for attribute in ATTRIBUTES:
        probability, slot = outputs.attribute_log_probs[attribute][0].exp().max(dim=0)
        value = model.dive_set.value_names[attribute][int(slot)]
        attributes[attribute] = {"value": value, "probability": float(probability)}
    return {"video": str(video), "height_m": height_m, **answer, "candidates": candidates, "attributes": attributes}


def read_clip(video: Path, clip_cfg: ClipConfig) -> Tensor:
    """Read a video as a test does: frames evenly over all of it, the middle square.

    Returns: (time, 3, image_size, image_size), normalised.
    """
    info = probe(video)
    times_s = sample_frame_times(info.duration_s, clip_cfg.num_frames)
    return eval_transform(clip_cfg)(read_frames(video, times_s, decode_size(info, clip_cfg)))


def describe(dive: Dive, height_m: float) -> dict[str, Any]:
    return {"number": dive.number, "name": dive.name, "difficulty": dive.difficulty(height_m)}


def in_words(answer: dict[str, Any]) -> str:
    """An answer of `predict` as a heading and two aligned tables, the candidates and the attributes."""
    attributes = answer["attributes"]
    spelt = ", ".join(most_probable["value"] for most_probable in attributes.values())
    heading = f"no valid dive ({spelt})" if answer["number"] is None else f"{answer['number']}  {answer['name']}"
    candidates = [
        [dive["number"], dive["name"], dive["difficulty"] or "not listed", f"{dive['probability']:.3f}"]
        for dive in answer["candidates"]
    ]
    headers = ["number", "name", f"difficulty ({answer['height_m']:g} m)", "probability"]
    tables = [
        _table(candidates, headers=headers, colalign=("left", "left", "right", "right")),
        _table([[name, best["value"], f"{best['probability']:.3f}"] for name, best in attributes.items()]),
    ]
    return "\n\n".join([f"{answer['video']}: {heading}", *(indent(table, "    ") for table in tables)]) + "\n"


def _table(rows: list[list[Any]], **options: Any) -> str:
    return tabulate(rows, tablefmt="plain", disable_numparse=True, **options)


def _complain(error: Exception) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
