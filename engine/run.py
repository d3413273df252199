"""The run folder: every file of a run by its name, and who may write into it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diveparse.configs import Config, PretrainConfig, Schema, differing_options, load_config, run_folder, save_config
from diveparse.datasets.storage.atomic import TEMPORARY_SUFFIX, write_json, written_atomically
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.engine.environment import describe_environment

# a run can go on with other values of these: they change which clips can be read and by whom, not the recipe
RESUME_OPTIONS = ("data.damaged:", "data.num_workers:", "num_workers:")
CHECKPOINT_NAME = re.compile(r"update-(\d+)(-to-validate)?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationFiles:
    """The files that the evaluation of one split writes into a run folder."""

    folder: Path
    prefix: str  # start of each file name: "" for the test split

    @property
    def metrics(self) -> Path:
        """Written last, so that the split counts as evaluated once it is there."""
        return self.folder / f"{self.prefix}metrics.json"

    @property
    def predictions(self) -> Path:
        """A table with one row a clip."""
        return self.folder / f"{self.prefix}predictions.csv"

    @property
    def probabilities(self) -> Path:
        """The log-probabilities of every dive and attribute value."""
        return self.folder / f"{self.prefix}predictions.safetensors"

    @property
    def confusion(self) -> Path:
        return self.folder / f"{self.prefix}confusion.csv"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the names of its files. TensorBoard's event files lie in the folder itself."""

    path: Path

    @classmethod
    def of(cls, cfg: Config | PretrainConfig) -> RunFolder:
        """The folder of a config's run, whether or not it is there."""
        return cls(run_folder(cfg))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """Every option, resolved. The first file of a run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Commit, versions, seed and machine of the start and of each resumption."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """A folder that `DiveClassifier.load` reads: the best model on validation."""
        return self.path / "model"

    @property
    def best_update(self) -> Path:
        """How many updates the best model has had."""
        return self.model / "update.json"

    @property
    def trained(self) -> Path:
        """Only of a run that has ended: its number of updates, and the training clips of each dive."""
        return self.path / "trained.json"

    @property
    def published(self) -> Path:
        """Only of a published classifier that was tested: what it is. Such a run has no `model` and no `trained`."""
        return self.path / "published.json"

    @property
    def readout(self) -> Path:
        """Only of the test of another run's model on other data: which run's. Such a run has no `model` of its own."""
        return self.path / "readout.json"

    @property
    def backbone(self) -> Path:
        """What a pretraining run ends with."""
        return self.path / "backbone.safetensors"

    @property
    def pretraining_checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def evaluation(self, split: str = "test", *, control: str = "") -> EvaluationFiles:
        """split: "test" or "val". control: a control experiment such as "shuffled"; "" for none."""
        return EvaluationFiles(
            self.path, (f"{control}_" if control else "") + ("" if split == "test" else "validation_")
        )

    def checkpoint(self, num_updates: int, *, has_to_validate: bool = False) -> Path:
        """has_to_validate: the validation of the epoch that ended with these updates is still to come."""
        return self.checkpoints / f"update-{num_updates:08d}{'-to-validate' if has_to_validate else ''}"

    def newest_checkpoint(self) -> Path | None:
        """The whole checkpoint with the most updates, or None where there is none yet.

        Raises: ValueError if the folder holds checkpoints of an earlier version.
        """
        if older := [path for path in own_paths(self.checkpoints, "step-*") if path.is_dir()]:
            raise ValueError(
                f"{older[-1]} is of an earlier version and cannot be resumed; remove {self.path} to train anew"
            )
        found = [path for path in self.checkpoints.glob("update-*") if CHECKPOINT_NAME.fullmatch(path.name)]
        return max(filter(Path.is_dir, found), key=_age, default=None)

    def has_results(self) -> bool:
        """Whether anything is there that training the run anew would lose."""
        files = (self.model, self.trained, self.backbone, self.pretraining_checkpoint, self.evaluation().metrics)
        return self.newest_checkpoint() is not None or any(path.exists() for path in files)

    def num_updates_done(self) -> int:
        """Updates behind the newest checkpoint, 0 where there is none."""
        newest = self.newest_checkpoint()
        return 0 if newest is None else _num_updates(newest)

    def splits_from_cache(self) -> list[str] | None:
        """The splits whose clips were read from the cache when the run began; None for a run that has not begun."""
        if not self.environment.is_file():
            return None
        splits: list[str] = _read_environment(self.environment).get("from_cache", [])
        return splits


def open_run(cfg: Schema, *, resume: bool) -> RunFolder:
    """Create a run's folder, or with `resume` continue in it; where there is nothing to resume, create it.

    A run that ended before its first result, on a full disk for one, begins anew also without `resume`.
    Raises: ValueError if the folder already holds a run and `resume` is off, or a run with other options.
    """
    run = RunFolder.of(cfg)
    if run.config.is_file() and resume:
        _require_same_options(run, cfg)
        run.newest_checkpoint()  # raises for those of an earlier version
        if isinstance(cfg, Config) and run.best_update.is_file() and run.newest_checkpoint() is None:
            raise ValueError(
                f"{run} holds a trained model but no checkpoint, so it cannot be resumed; remove it to train anew"
            )
        return run
    if run.config.is_file():
        if run.has_results():
            names = "name, arm or seed" if isinstance(cfg, Config) else "name"
            raise ValueError(f"{run} already holds a run; add --resume to go on with it, or change {names}")
        run.environment.unlink(missing_ok=True)
        _write_config(run, cfg)
        return run
    # the config is the first file of a run, so whatever else lies in a folder without one is somebody else's
    others = [path.name for path in own_paths(run.path) if path.name != run.config.name + TEMPORARY_SUFFIX]
    if others:
        names = ", ".join(others[:5])
        raise ValueError(f"{run} holds files but no {run.config.name}, so it is no run: {names}; choose another name")
    _write_config(run, cfg)
    return run


def _write_config(run: RunFolder, cfg: Schema) -> None:
    with written_atomically(run.config) as temporary:
        save_config(cfg, temporary)


def _require_same_options(run: RunFolder, cfg: Schema) -> None:
    differing = differing_options(load_config(run.config, [], type(cfg)), cfg)
    changed = [line for line in differing if line.startswith(RESUME_OPTIONS)]
    if changed:
        logger.info("going on with other options: %s", "; ".join(changed))
    differing = [line for line in differing if line not in changed]
    if differing:
        raise ValueError(f"{run} has other options and cannot go on with these: {'; '.join(differing)}")


def record_environment(
    run: RunFolder, seed: int, from_cache: Sequence[str] = (), clips: Mapping[str, str] | None = None
) -> None:
    """Describe the environment of a new run; append that of a resumed one, and log what has changed since.

    from_cache: the splits whose clips are read from the cache instead of the videos. clips: a line a split, which is
    another for other clips, labels or order.
    Raises: ValueError if the run began with other clips.
    """
    now = {**describe_environment(seed), "from_cache": list(from_cache), "clips": dict(clips or {})}
    if not run.environment.is_file():
        write_json(run.environment, now)
        return
    begun = _read_environment(run.environment)
    if begun.get("clips", now["clips"]) != now["clips"]:  # an earlier version did not record them
        was, is_now = (", ".join(f"{split}: {line}" for split, line in each["clips"].items()) for each in (begun, now))
        raise ValueError(
            f"{run}: began with other clips, labels or order ({was}) than the data set has now ({is_now}); restore its "
            "annotations to go on, or train another run"
        )
    changed = [name for name in ("commit", "python", "versions", "machine") if begun.get(name) != now[name]]
    if changed:
        logger.warning("changed since the run began: %s; it may not repeat to the bit", ", ".join(changed))
    write_json(run.environment, {**begun, "resumed": [*begun.get("resumed", []), now]})


def _read_environment(path: Path) -> dict[str, Any]:
    """Raises: ValueError naming the file if it is not what `record_environment` wrote."""
    content = read_json_object(path)
    for name, kind in (("from_cache", list), ("clips", dict), ("resumed", list)):
        if name in content and not isinstance(content[name], kind):
            raise ValueError(f"{path}: damaged: {name} must be a {kind.__name__}, got {str(content[name])[:60]!r}")
    return content


def _num_updates(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _age(checkpoint: Path) -> tuple[int, bool]:
    """Rises from checkpoint to checkpoint: of two after as many updates, the validated one is newer."""
    return _num_updates(checkpoint), not checkpoint.name.endswith("-to-validate")
