"""Test a trained run on its test split, once, and write metrics.json and predictions.csv into the run folder."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

EPILOG = """\
examples:
  python tools/test.py runs/demo/flat/seed-0
  python tools/test.py runs/demo/flat/seed-0 test.num_temporal_views=3 test.num_spatial_views=3
  python tools/test.py runs/demo/flat/seed-0 --split val

The test split is for the end; choose on validation (--split val writes validation_metrics.json and
validation_predictions.csv). data.root, data.num_workers, data.cache, data.damaged, test.* and clip.order can be
overridden, the rest is the run's own. With clip.order=shuffled, the control that destroys the order of the frames, the
files' names begin with shuffled_.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder that tools/train.py wrote")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options that override the run's")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="what to test on (default: test)")
    parser.add_argument("--again", action="store_true", help="test although metrics.json is there, and replace it")
    args = parser.parse_intermixed_args(argv)

    # imported here, since data workers import this file again and need none of it; --help is quick, too
    from diveparse.datasets.clips import BadRowsError
    from diveparse.engine.evaluation.testing import evaluate_run

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("diveparse").setLevel(logging.INFO)
    try:
        metrics = evaluate_run(args.run, args.overrides, split=args.split, again=args.again)
    except KeyboardInterrupt:
        print("stopped before the metrics were written", file=sys.stderr)
        return 130
    except BadRowsError as error:
        print(f"error: {error}", file=sys.stderr)  # a line for each row
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    scores = {"top-1": metrics["top1"], **metrics["attribute_accuracy"]}
    told = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    print(f"{args.run}, {metrics['num_clips']} {args.split} clips: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
