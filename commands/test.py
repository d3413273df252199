"""Evaluate a trained run on its test split, once, and write metrics.json and predictions.csv into the run folder.

Or a published model of transformers whose labels are dives, of a folder or of the HuggingFace hub, which becomes a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  %(prog)s runs/demo/flat/seed-0
  %(prog)s runs/demo/flat/seed-0 test.num_temporal_views=3 test.num_spatial_views=3
  %(prog)s runs/demo/flat/seed-0 --split val
  %(prog)s facebook/vjepa2-vitl-fpc32-256-diving48 data.root=data/diving48

The test split is for the end. Make choices on validation: --split val writes validation_metrics.json and
validation_predictions.csv. data.root, data.dives, data.num_workers, data.cache, data.damaged, test.* and clip.order can
be overridden; all other options are those of the run. With data.dives the clips of a CSV may show dives that the model
was not trained on, and it answers among the dives of that list. clip.order=shuffled is the control that destroys the
order of the frames; it writes files whose names begin with shuffled_.

A published model is tested into runs/NAME/flat/seed-0, which `diveparse compare` takes as an arm; name, arm, seed and
runs_dir choose another folder.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run folder that `diveparse train` wrote, the folder of a published model, or OWNER/NAME on the hub",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that override those of RUN")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="what to evaluate on (default: test)")
    parser.add_argument("--again", action="store_true", help="replace a metrics.json that already exists")
    parser.set_defaults(if_stopped="no metrics were written; the same command starts again from the beginning")


def run(args: argparse.Namespace) -> int:
    from diveparse.engine.evaluation.published import evaluate_published, is_published_test
    from diveparse.engine.evaluation.testing import evaluate_run

    folder = args.run
    if is_published_test(args.run):
        run, metrics = evaluate_published(args.run, args.overrides, split=args.split, again=args.again)
        folder = run.path
    else:
        metrics = evaluate_run(args.run, args.overrides, split=args.split, again=args.again)
    scores = {"top-1": metrics["top1"], **metrics["attribute_accuracy"]}
    summary = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    print(f"{folder}, {metrics['num_clips']} {args.split} clips: {summary}")
    return 0
