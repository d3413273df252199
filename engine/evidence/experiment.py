"""An experiment: every arm trained and tested with every seed, side by side, going on where it was stopped."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from diveparse.configs import Config, ExperimentConfig, differing_options, load_config, run_folder
from diveparse.datasets.splits import evaluation_clips, scored_dives, training_clips
from diveparse.datasets.storage.workers import end_with_main_process, worker_context
from diveparse.engine.batches import build_clips, stored
from diveparse.engine.device import seed_everything
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.run import RunFolder
from diveparse.engine.training.loop import train
from diveparse.models.classifier import build_classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One arm with one seed."""

    arm: str
    config: Config
    split: str

    @property
    def run(self) -> Path:
        return run_folder(self.config)

    @property
    def log(self) -> Path:
        """Not in the run folder, which holds nothing before it is begun, nor beside it, where runs are looked for."""
        return self.run.parent.with_name(f"{self.run.parent.name}-{self.run.name}.log")

    @property
    def splits(self) -> list[str]:
        """What it is scored on; the last one says that it is done. A model that is to name dives that it never saw has
        its share of seen ones looked up on validation, see engine/unseen.py."""
        return list(dict.fromkeys((["val"] if self.config.data.unseen_dives else []) + [self.split]))

    @property
    def metrics(self) -> Path:
        return RunFolder(self.run).evaluation(self.split).metrics


def read_cells(path: Path) -> tuple[ExperimentConfig, list[Cell]]:
    """Read an experiment and what it consists of, arm by arm.

    Raises: ValueError naming the file and what is wrong with it.
    """
    experiment = load_config(path, [], ExperimentConfig)
    return experiment, [_cell(path, experiment, arm, seed) for seed in experiment.seeds for arm in experiment.arms]


def cell_elsewhere(path: Path, name: str, seed: int) -> Cell:
    """The cell that an experiment, of `path`, names as EXPERIMENT/ARM.

    Raises: ValueError if there is no such experiment beside it, or no such cell in that.
    """
    experiment, _, arm = name.partition("/")
    other_path = path.with_stem(experiment)  # a file beside it, or a name as it is one
    others = load_config(other_path, [], ExperimentConfig)
    if arm not in others.arms or seed not in others.seeds:
        raise ValueError(f"{path} names {name}, but {other_path} has no arm {arm!r} of seed {seed}")
    return _cell(other_path, others, arm, seed)


def _cell(path: Path, experiment: ExperimentConfig, arm: str, seed: int) -> Cell:
    options = experiment.arms[arm].split()
    if len(options) == 1 and "=" not in options[0]:  # trained in another experiment, beside this one
        return replace(cell_elsewhere(path, options[0], seed), arm=arm, split=experiment.split)
    overrides = [*experiment.common.split(), *options, f"name={path.stem}", f"arm={arm}", f"seed={seed}"]
    return Cell(arm, load_config(Path(experiment.config), overrides), experiment.split)


def development_cells(path: Path, experiment: ExperimentConfig) -> list[Cell]:
    """The cells of other experiments that say how much of the seen dives this one's arms are to give up."""
    return [cell_elsewhere(path, name, seed) for name in experiment.stacking.values() for seed in experiment.seeds]


def missing_cells(cells: list[Cell]) -> list[Cell]:
    """Those that have not been tested. Raises: ValueError if one has been, with other options than it has now."""
    missing = []
    for cell in cells:
        config = RunFolder(cell.run).config
        if config.is_file():
            differing = differing_options(load_config(config, []), cell.config)
            if differing:
                raise ValueError(
                    f"{cell.run} was trained with other options: {'; '.join(differing)}; remove it to train it anew"
                )
        if not cell.metrics.is_file():
            missing.append(cell)
    return missing


def store_inputs(cells: list[Cell]) -> None:
    """Store what cells have in common before they run side by side, since two of them must not write one file."""
    for cell in cells:
        cfg = cell.config
        if cfg.train.num_stored_views:
            seed_everything(cfg.seed, torch.device("cpu"))
            train_records, val_records, dive_set = training_clips(cfg.data, cfg.seed)
            splits = [(train_records, True), (val_records, False)]
            scored = scored_dives(cfg.data, dive_set)
            splits += [(evaluation_clips(cfg.data, split, cfg.seed, scored), False) for split in cell.splits]
            model = build_classifier(cfg, dive_set)
            for records, training in splits:
                stored(build_clips(cfg, records, training=training), model, cfg)


def run_cells(cells: list[Cell], num_jobs: int) -> Iterator[tuple[Cell, bool]]:
    """Train and test cells in processes of their own, `num_jobs` at a time; yields each as it ends, and whether well.

    What a cell says goes to its log. All processes end with this one.
    """
    context = worker_context(__name__)
    waiting, running = list(reversed(cells)), dict[int, tuple[ForkServerProcess, Cell]]()
    num_threads = max(1, (os.cpu_count() or 1) // num_jobs)
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                cell = waiting.pop()
                process = context.Process(target=_run_cell, args=(cell, num_threads))
                process.start()
                running[process.sentinel] = (process, cell)
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)  # not one of the other things that can be waited for
                process, cell = running.pop(sentinel)
                process.join()
                yield cell, process.exitcode == 0
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _run_cell(cell: Cell, num_threads: int) -> None:
    end_with_main_process()
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # as `choose_device` takes it
    torch.set_num_threads(num_threads)
    log = cell.log
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        logging.basicConfig(stream=file, format="%(message)s")
        logging.getLogger("diveparse").setLevel(logging.INFO)
        try:
            run = train(cell.config, resume=True)
            for split in cell.splits:
                evaluate_run(run, [], split=split, again=split != cell.split)
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
