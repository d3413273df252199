"""Run experiments: train and test every arm with every seed, then compare them and write the page of results."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diveparse.engine.evidence.experiment import Cell

EXAMPLES = """\
examples:
  %(prog)s ladder
  %(prog)s ladder long_tail --jobs 2
  %(prog)s my_experiment.yaml --out results

An experiment trains one cell for each arm and each seed, in a process of its own that writes to
runs/EXPERIMENT/ARM-seed-K.log. Cells that are done are not run again. So the same command continues an experiment that
was stopped, and trains a cell again whose run folder was removed. The page, its table and its plots go to docs/results,
and so do the answers of all runs in NAME.answers.npz. From that file alone --from-answers writes the page again: it
puts back run folders that are not there, without their models.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiments",
        nargs="+",
        type=Path,
        metavar="EXPERIMENT",
        help="a YAML file, or the name of an experiment such as ladder",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time (default: one a core)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("docs/results"), help="for the pages (default: docs/results)"
    )
    parser.add_argument(
        "--from-answers", action="store_true", help="train nothing: take runs that are missing from NAME.answers.npz"
    )
    parser.set_defaults(if_stopped="the same command goes on")


def run(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    for path in args.experiments:
        run_experiment(path, args.jobs, args.out, from_answers=args.from_answers)
    return 0


def run_experiment(path: Path, num_jobs: int, out: Path, *, from_answers: bool = False) -> None:
    """Raises: ValueError if a cell failed, or the experiment cannot be run."""
    from diveparse.engine.evidence.answers import answers_path, restore_runs, write_answers
    from diveparse.engine.evidence.experiment import (
        missing_cells,
        missing_origins,
        prospects,
        read_cells,
        require_stackable,
    )
    from diveparse.engine.evidence.experiment_page import write_experiment
    from diveparse.engine.evidence.tuning import write_tuning

    experiment, cells = read_cells(path)
    require_stackable(path, experiment, cells)
    if from_answers:
        print(f"{path}: {restore_runs(cells, out)} of {len(cells)} cells were put back from answers")
    missing, start_s = missing_cells(cells), time.monotonic()
    print(f"{path}: {len(cells) - len(missing)} of {len(cells)} cells are done")
    if missing and experiment.pairs:
        print(f"{path}: {prospects(experiment, cells)}", flush=True)
    if origins := missing_origins(missing):
        print(f"{path}: {len(origins)} models of other experiments are trained first", flush=True)
        run_all(path, origins, num_jobs)
        missing = missing_cells(cells)
    run_all(path, missing, num_jobs)
    if missing:
        print(f"{path}: {len(missing)} cells took {(time.monotonic() - start_s) / 60:.0f} minutes")
    if experiment.grid:
        print(f"written: {write_tuning(path, experiment, cells, out)}")
        return
    own = [cell for cell in cells if cell.config.name == path.stem]
    if own and not from_answers:
        write_answers(answers_path(out, path.stem), own)
    if experiment.split == "val" and len(experiment.seeds) > 1:
        print(f"{path}: no page, since each seed is validated on sources of its own")
    else:
        print(f"written: {write_experiment(path, experiment, cells, out)}")


def run_all(path: Path, cells: list[Cell], num_jobs: int) -> None:
    """Run cells of an experiment under a progress bar. Raises: ValueError if one failed."""
    from tqdm import tqdm

    from diveparse.engine.evidence.experiment import fill_feature_caches, run_cells

    fill_feature_caches(cells)
    failed = []
    for cell, well in tqdm(
        run_cells(cells, num_jobs), total=len(cells), unit="cell", mininterval=0.1, disable=not cells
    ):
        if not well:
            failed.append(cell)
            tqdm.write(f"failed: {cell.run}, see {cell.log}")
    if failed:
        raise ValueError(f"{path}: {len(failed)} of {len(cells)} cells failed; read their logs, named above")
