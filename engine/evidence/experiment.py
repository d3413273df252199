"""An experiment: every arm trained and tested with every seed, in processes side by side."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from diveparse.configs import (
    Config,
    ExperimentConfig,
    HeadKind,
    LabelNoise,
    build_config,
    differing_options,
    find_config,
    load_config,
    plain_values,
)
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.splits import evaluation_clips, scored_dives, training_clips
from diveparse.datasets.storage.disk import space_problem
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.datasets.storage.workers import end_with_main_process, worker_context
from diveparse.engine.batches import build_clips, cached_or_read
from diveparse.engine.device import seed_everything
from diveparse.engine.evaluation.testing import TEST_OPTIONS, evaluate_run, read_out
from diveparse.engine.evidence.simulation import NUM_SOURCES, SOURCE_ERROR, SPREAD
from diveparse.engine.evidence.trainings import ALPHA, DECISIVE, MIN_SOURCES, MIN_TRAININGS, limit_of, power_of
from diveparse.engine.run import RunFolder
from diveparse.engine.training.loop import train
from diveparse.models.build import with_own_sizes
from diveparse.models.classifier import build_classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    A readout trains nothing: it tests the model of another cell on other data, and its run holds no model. Its config
    is that of the other cell's training, under its own name and arm.
    """

    arm: str
    config: Config
    split: str
    origin: Cell | None = None  # of a readout, the cell whose model is tested
    test_options: tuple[str, ...] = ()  # of a readout, `key=value` each

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def test_config(self) -> Config:
        """The config with the options of the test, which name other data than those of the training."""
        if not self.test_options:
            return self.config
        return build_config(plain_values(asdict(self.config)), list(self.test_options), self.run.config)

    @property
    def log(self) -> Path:
        """It lies beside the arm's folder: a run's folder is empty before the run, and beside it only runs may lie."""
        arm = self.run.path.parent
        return arm.with_name(f"{arm.name}-{self.run.path.name}.log")

    @property
    def splits(self) -> list[str]:
        """The splits to evaluate on; the cell is done after the last one.

        A model that sees no clip of some dives is evaluated on validation too, where its penalty is chosen.
        """
        data = self.config.data
        needs_penalty = data.unseen_dives and not data.num_shots and self.origin is None
        return list(dict.fromkeys((["val"] if needs_penalty else []) + [self.split]))

    @property
    def metrics(self) -> Path:
        return self.run.evaluation(self.split).metrics


def read_cells(path: Path) -> tuple[ExperimentConfig, list[Cell]]:
    """Read an experiment and its cells, seed by seed; with a grid, those of every setting of every arm.

    Raises: ValueError naming the file and what is wrong with it.
    """
    experiment = load_config(path, [], ExperimentConfig)
    if experiment.grid:
        arms = {setting.name: f"{experiment.arms[setting.arm]} {setting.options}" for setting in settings(experiment)}
        return experiment, _cells(path, replace(experiment, arms=arms, grid={}))
    return experiment, _cells(path, experiment)


def _cells(path: Path, experiment: ExperimentConfig) -> list[Cell]:
    first = {arm: _cell(path, experiment, arm, experiment.seeds[0]) for arm in experiment.arms}  # reading it takes long
    return [_with_seed(path, experiment, first[arm], seed) for seed in experiment.seeds for arm in experiment.arms]


def _with_seed(path: Path, experiment: ExperimentConfig, cell: Cell, seed: int) -> Cell:
    """The same arm with another seed. Raises: ValueError if another experiment trains it, and not with this seed."""
    options = experiment.arms[cell.arm].split()
    if options and "=" not in options[0]:
        _arm_elsewhere(path, options[0], seed)
    origin = cell.origin and replace(cell.origin, config=replace(cell.origin.config, seed=seed))
    return replace(cell, config=replace(cell.config, seed=seed), origin=origin)


@dataclass(frozen=True)
class Setting:
    """An arm at one point of an experiment's grid."""

    arm: str
    values: tuple[float | None, ...]  # in the order of the grid's options
    options: str  # `key=value` each

    @property
    def name(self) -> str:
        """The arm of its cells, such as flat-0.0008-10-none."""
        return "-".join([self.arm, *("none" if value is None else f"{value:g}" for value in self.values)])


def settings(experiment: ExperimentConfig) -> list[Setting]:
    """Every arm at every point of the grid, so that all arms get the same trials."""
    return [
        Setting(arm, values, " ".join(map(_option, experiment.grid, values)))
        for arm in experiment.arms
        for values in product(*experiment.grid.values())
    ]


def _option(name: str, value: float | None) -> str:
    return f"{name}={'null' if value is None else value}"


def cell_elsewhere(path: Path, name: str, seed: int) -> Cell:
    """The cell that the experiment of `path` names as EXPERIMENT/ARM.

    Raises: ValueError if no such experiment lies beside it, or that one has no such cell.
    """
    return _cell(*_arm_elsewhere(path, name, seed), seed)


def _arm_elsewhere(path: Path, name: str, seed: int) -> tuple[Path, ExperimentConfig, str]:
    """The file of the other experiment, the experiment and its arm. Raises: ValueError as `cell_elsewhere` does."""
    experiment, _, arm = name.partition("/")
    beside = path.with_stem(experiment)
    other_path = beside if beside.is_file() else Path(experiment)  # or one that ships with the package
    file = find_config(other_path, ExperimentConfig)
    others = _read_experiment(file, file.stat().st_mtime_ns)
    if arm not in others.arms or seed not in others.seeds:
        raise ValueError(f"{path} names {name}, but {other_path} has no arm {arm!r} of seed {seed}")
    return other_path, others, arm


@cache
def _read_experiment(path: Path, _: int) -> ExperimentConfig:
    """An experiment that others name once an arm and a seed. _: the time of its last change."""
    return load_config(path, [], ExperimentConfig)


def _cell(path: Path, experiment: ExperimentConfig, arm: str, seed: int) -> Cell:
    options = experiment.arms[arm].split()
    if options and "=" not in options[0]:  # the arm is trained in another experiment
        elsewhere = cell_elsewhere(path, options[0], seed)
        if len(options) > 1:
            return _readout(path, experiment, arm, elsewhere, options[1:])
        return replace(elsewhere, arm=arm, split=experiment.split)
    overrides = [*experiment.common.split(), *options, f"name={path.stem}", f"arm={arm}", f"seed={seed}"]
    return Cell(arm, load_config(Path(experiment.config), overrides), experiment.split)


def _readout(path: Path, experiment: ExperimentConfig, arm: str, elsewhere: Cell, options: list[str]) -> Cell:
    """The test of a model of another experiment with other options of the test.

    Raises: ValueError naming an option that is none of a test, or if the model is itself read out there.
    """
    for option in options:
        if not option.startswith(TEST_OPTIONS):
            raise ValueError(f"{path}: arms.{arm}: a test can change {', '.join(TEST_OPTIONS)} only, got {option!r}")
    if elsewhere.origin is not None:
        raise ValueError(
            f"{path}: arms.{arm}: {elsewhere.run} is not trained but read out; name the arm that is trained"
        )
    cell = Cell(arm, replace(elsewhere.config, name=path.stem, arm=arm), experiment.split, elsewhere, tuple(options))
    _ = cell.test_config  # raises for values that an option cannot take
    return cell


def require_stackable(path: Path, experiment: ExperimentConfig, cells: list[Cell]) -> None:
    """Raises: ValueError if an arm of `experiment.stacking` cannot name unseen dives, or other arms choose nothing."""
    configs = {cell.arm: cell.config for cell in cells}
    unseen = {arm: set() if config.data.num_shots else set(config.data.unseen_dives) for arm, config in configs.items()}
    for arm, others in experiment.stacking.items():
        for each in (arm, *others):
            if not unseen[each] or configs[each].head.kind is HeadKind.FLAT:
                expected = "data.unseen_dives, data.num_shots=0 and a structured head"
                raise ValueError(f"{path}: stacking: {each} must have {expected}")
        for other in others:
            if unseen[other] <= unseen[arm]:
                raise ValueError(f"{path}: stacking.{arm}: {other} must have a dive in data.unseen_dives that it lacks")


def prospects(experiment: ExperimentConfig, cells: list[Cell]) -> str:
    """What the comparison will be able to decide, in one line, before anything is trained.

    Raises: ValueError if the clips of the first cell cannot be read.
    """
    data, num_trainings = cells[0].test_config.data, len(experiment.seeds)
    clips = evaluation_clips(data, experiment.split, cells[0].config.seed, open_data_set(data).dive_set)
    num_sources = len({clip.source for clip in clips})
    size = f"trainings of each arm: {num_trainings}; sources in the {experiment.split} split: {num_sources}"
    limit = limit_of(num_trainings, num_sources)
    if limit:
        needed = f"takes {MIN_TRAININGS} trainings and {MIN_SOURCES} sources or more"
        return f"{size}; nothing will be decided about arms, which {needed}: the page will be about {limit}"
    power = power_of(num_trainings, SPREAD**2, SOURCE_ERROR**2 * NUM_SOURCES / num_sources, num_sources)
    return (
        f"{size}; a difference of {100 * DECISIVE:g} points will be found with a power of {power:.2f} at p < {ALPHA}, "
        f"if trainings differ as much as in docs/method.md"
    )


def missing_cells(cells: list[Cell]) -> list[Cell]:
    """The cells that have not been tested.

    Raises: ValueError if one was trained or read out with other options than it has now, or if the model that is to be
    read out is gone.
    """
    missing = []
    for cell in cells:
        _require_same_options(cell)
        if not cell.metrics.is_file():
            if cell.origin is not None:
                _require_same_options(cell.origin)
                _require_model(cell, cell.origin)
            missing.append(cell)
        elif cell.origin is not None and read_json_object(cell.metrics)["data_root"] != cell.test_config.data.root:
            raise ValueError(f"{cell.run} was tested on other data than {cell.test_config.data.root}; remove it")
    return missing


def _require_same_options(cell: Cell) -> None:
    if cell.run.config.is_file():
        differing = differing_options(load_config(cell.run.config, []), cell.config)
        if differing:
            raise ValueError(
                f"{cell.run} was trained with other options: {'; '.join(differing)}; remove it to train it anew"
            )


def missing_origins(missing: Sequence[Cell]) -> list[Cell]:
    """The cells whose models these cells read out, each once, as far as they have not been trained and tested."""
    origins = {str(cell.origin.run): cell.origin for cell in missing if cell.origin is not None}
    return missing_cells(list(origins.values()))


def _require_model(cell: Cell, origin: Cell) -> None:
    if origin.metrics.is_file() and not (origin.run.trained.is_file() and origin.run.model.is_dir()):
        raise ValueError(f"arm {cell.arm} needs the model of {origin.run}, which is gone; remove it to train it anew")


def fill_feature_caches(cells: list[Cell]) -> None:
    """Fill the feature caches of all cells before they run side by side, since two cells must not write one file.

    Cells that differ in what the features do not depend on, such as their head, rate or labels, ask for the same ones;
    all seeds and shares of one setting are filled at once.
    """
    read: list[object] = []
    settings: list[tuple[object, Config, DiveSet, dict[bool, dict[str, ClipRecord]]]] = []
    for cell in cells:
        cfg = with_own_sizes(cell.test_config)
        trains, num_views = cell.origin is None, cfg.train.num_cached_views
        data = replace(cfg.data, label_noise=0.0, label_noise_kind=LabelNoise.NEIGHBOUR)
        every_clip = replace(data, train_fraction=1.0, unseen_dives=[], num_shots=0)
        about = (cfg.clip, cfg.backbone, cfg.head.pooling, num_views, every_clip)
        clips = (cfg.seed, data, cell.splits, trains)
        if not num_views or (about, clips) in read:
            continue
        read.append((about, clips))
        dive_set = open_data_set(data).dive_set
        splits: list[tuple[list[ClipRecord], bool]] = []  # and whether they are for training
        if trains:
            train_records, val_records, dive_set = training_clips(data, cfg.seed)
            splits = [(train_records, True), (val_records, False)]
        scored = scored_dives(data, dive_set)
        splits += [(evaluation_clips(data, split, cfg.seed, scored), False) for split in cell.splits]
        wanted = next((each[-1] for each in settings if each[0] == about), None)
        if wanted is None:
            wanted = {True: {}, False: {}}
            settings.append((about, cfg, dive_set, wanted))
        for records, training in splits:
            wanted[training].update({record.name: record for record in records})
    for _, cfg, dive_set, wanted in settings:
        seed_everything(cfg.seed, torch.device("cpu"))
        model = build_classifier(cfg, dive_set)
        for training, records_by_name in wanted.items():
            if records_by_name:
                records = list(records_by_name.values())
                cached_or_read(build_clips(cfg, records, training=training), model, cfg)


def run_cells(cells: list[Cell], num_jobs: int) -> Iterator[tuple[Cell, bool]]:
    """Train and test cells in processes of their own, `num_jobs` at a time. The output of a cell goes to its log.

    Yields each cell when it ends, and whether it succeeded. All processes end with this one.
    """
    context = worker_context(__name__)
    waiting, running = list(reversed(cells)), dict[int, tuple[BaseProcess, Cell]]()
    num_threads = max(1, (os.cpu_count() or 1) // num_jobs)
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                cell = waiting.pop()
                process: BaseProcess = context.Process(target=_run_cell, args=(cell, num_threads))
                process.start()
                running[process.sentinel] = (process, cell)
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)  # for mypy: `wait` takes connections and sockets too
                process, cell = running.pop(sentinel)
                process.join()
                yield cell, process.exitcode == 0
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _run_cell(cell: Cell, num_threads: int) -> None:
    end_with_main_process()
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read by `choose_device`
    torch.set_num_threads(num_threads)
    log = cell.log
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout = sys.stderr = file
        logging.basicConfig(stream=file, format="%(message)s")
        logging.getLogger("diveparse").setLevel(logging.INFO)
        try:
            if cell.origin is not None:
                read_out(cell.origin.run, cell.config, list(cell.test_options), split=cell.split)
                return
            run = train(cell.config, resume=True)
            for split in cell.splits:
                evaluate_run(run, [], split=split, again=split != cell.split)
        except Exception as error:
            with suppress(OSError):
                traceback.print_exc()
            if space_problem(error):  # the log may be on the same disk, and closing it would raise an error again
                print(f"error: {cell.run}: {error}", file=sys.__stderr__, flush=True)
                os._exit(1)
            raise SystemExit(1) from None
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
