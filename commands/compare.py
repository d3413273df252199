"""Compare the arms of tested runs on the same clips: one table, paired statistics, plots and TensorBoard images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  %(prog)s runs/demo/flat/seed-0 runs/demo/structured/seed-0
  %(prog)s runs/demo/flat/seed-* runs/demo/structured/seed-* --out runs/demo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run that `diveparse test` has tested")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the folder of all the runs)")


def run(args: argparse.Namespace) -> int:
    from diveparse.datasets.storage.lock import locked, require_unlocked
    from diveparse.engine.evidence.comparison import compare_runs
    from diveparse.engine.evidence.report import report_text, write_report
    from diveparse.engine.evidence.runs import load_run

    out = args.out or common_folder(args.runs)
    require_unlocked(out)
    report = compare_runs([load_run(run) for run in args.runs])
    text = report_text(report)
    with locked(out, "comparing"):
        print(f"\n{text}")
        write_report(out, report, text)
    print(f"written to {out}: comparison.md, .csv, classes.csv, and comparison/ with the plots, also for TensorBoard")
    return 0


def common_folder(runs: Sequence[Path]) -> Path:
    """The lowest folder with all the runs below it, as seen from the working folder.

    Raises: ValueError if there is none, since the runs lie on several drives of Windows.
    """
    try:
        folder = os.path.commonpath([run.resolve().parent for run in runs])
    except ValueError:
        raise ValueError(f"no folder holds all of {', '.join(map(str, runs))}; give one by --out") from None
    try:
        return Path(os.path.relpath(folder))
    except ValueError:  # of a working folder on another drive
        return Path(folder)
