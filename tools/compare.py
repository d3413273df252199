"""Compare the arms of tested runs on the same clips: one table, paired statistics, plots and TensorBoard images."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.report import report_text, write_report
from diveparse.engine.evidence.runs import load_run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder that tools/test.py has tested")
    parser.add_argument("--out", type=Path, help="where to write (default: the folder that all the runs lie in)")
    args = parser.parse_args(argv)
    try:
        out = args.out or Path(os.path.relpath(os.path.commonpath([run.resolve().parent for run in args.runs])))
        report = compare_runs([load_run(run) for run in args.runs])
        text = report_text(report)
        print(f"\n{text}")
        write_report(out, report, text)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"written to {out}: comparison.md, .csv, classes.csv, and comparison/ with the plots, also for TensorBoard")
    return 0


if __name__ == "__main__":
    sys.exit(main())
