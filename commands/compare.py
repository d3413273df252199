"""Compare the arms of tested runs on the same clips: one table, paired statistics, plots and TensorBoard images."""

from __future__ import annotations

import argparse
import os
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
    from diveparse.engine.evidence.comparison import compare_runs
    from diveparse.engine.evidence.report import report_text, write_report
    from diveparse.engine.evidence.runs import load_run

    out = args.out or Path(os.path.relpath(os.path.commonpath([run.resolve().parent for run in args.runs])))
    report = compare_runs([load_run(run) for run in args.runs])
    text = report_text(report)
    print(f"\n{text}")
    write_report(out, report, text)
    print(f"written to {out}: comparison.md, .csv, classes.csv, and comparison/ with the plots, also for TensorBoard")
    return 0
