"""Run an experiment: train and test every arm with every seed, then compare them and write the page of results."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

EPILOG = """\
examples:
  python tools/experiment.py configs/experiments/ladder.yaml
  python tools/experiment.py configs/experiments/*.yaml --jobs 2

What is done is not done again, so that a run that was stopped, or a cell whose folder was removed, goes on with the
same command. Each cell trains in a process of its own and says what it does in runs/EXPERIMENT/ARM-seed-K.log. The
page, its table and its plots go to docs/results.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", type=Path, metavar="EXPERIMENT", help="YAML of configs/experiments/")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time (default: one a core)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="for the pages (default: docs/results)")
    args = parser.parse_args(argv)

    # imported here, so that --help is quick
    from tqdm import tqdm

    from diveparse.engine.evidence.experiment import (
        development_cells,
        missing_cells,
        read_cells,
        run_cells,
        store_inputs,
    )
    from diveparse.engine.evidence.experiment_page import write_experiment

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("diveparse").setLevel(logging.INFO)
    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
        for path in args.experiments:
            experiment, cells = read_cells(path)
            needed = cells + development_cells(path, experiment)
            missing, failed, begun = missing_cells(needed), [], time.monotonic()
            print(f"{path}: {len(needed) - len(missing)} of {len(needed)} cells are done")
            store_inputs(missing)
            done = run_cells(missing, args.jobs)
            bar = tqdm(done, total=len(missing), unit="cell", mininterval=0.1, disable=not missing)
            for cell, well in bar:
                if not well:
                    failed.append(cell)
                    tqdm.write(f"failed: {cell.run}, see {cell.log}")
            if failed:
                raise ValueError(f"{path}: {len(failed)} of {len(missing)} cells failed; their logs say why")
            if missing:
                print(f"{path}: {len(missing)} cells took {(time.monotonic() - begun) / 60:.0f} minutes")
            if experiment.split == "val" and len(experiment.seeds) > 1:
                print(f"{path}: no page, since each seed is validated on sources of its own")
            else:
                print(f"written: {write_experiment(path, experiment, cells, args.out)}")
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
