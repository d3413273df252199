"""The run folder: its config and its environment, and who may write into it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from diveparse.configs import Config, Schema, differing_options, load_config, run_folder, save_config
from diveparse.datasets.storage.atomic import TEMPORARY_SUFFIX, write_json, written_atomically
from diveparse.engine.environment import describe_environment

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
TRAINED = "trained.json"  # only of a run that has ended: how many updates that took, and clips of each dive
MODEL_UPDATE = "model/update.json"  # how many of them are behind the model that is kept, the best on validation

# options of which a run can go on with another value: which clips are sound and who reads them is no part of the recipe
CHANGEABLE = ("data.damaged:", "data.num_workers:", "num_workers:")
STEP_FOLDER = re.compile(r"step-(\d+)")

logger = logging.getLogger(__name__)


def open_run(cfg: Schema, *, resume: bool) -> Path:
    """Begin a run's folder, or with `resume` go on in it; where there is nothing to resume, the run begins.

    Raises: ValueError if a run is there already and is not to be resumed, or was begun with other options.
    """
    folder = run_folder(cfg)
    config = folder / CONFIG
    if config.is_file():
        if not resume:
            names = "name, arm or seed" if isinstance(cfg, Config) else "name"
            raise ValueError(f"{folder} already holds a run: add --resume to go on with it, or change {names}")
        differing = differing_options(load_config(config, [], type(cfg)), cfg)
        changed = [line for line in differing if line.startswith(CHANGEABLE)]
        if changed:
            logger.info("going on with other options: %s", "; ".join(changed))
        differing = [line for line in differing if line not in changed]
        if differing:
            raise ValueError(
                f"{folder} was begun with other options and cannot go on with these: {'; '.join(differing)}"
            )
    else:
        # the config is the first file of a run, so anything else in a folder without one is not ours to write over
        strangers = [path.name for path in folder.glob("*") if path.name != CONFIG + TEMPORARY_SUFFIX]
        if strangers:
            raise ValueError(
                f"{folder} holds files but no {CONFIG}, so it is no run: {', '.join(sorted(strangers)[:5])}"
            )
        with written_atomically(config) as temporary:
            save_config(cfg, temporary)
    return folder


def splits_from_cache(run: Path) -> list[str]:
    """The splits of a run that has begun whose clips were read from the cache when it began."""
    return list(json.loads((run / ENVIRONMENT).read_text(encoding="utf-8")).get("from_cache", ()))


def record_environment(run: Path, seed: int, from_cache: Sequence[str] = ()) -> None:
    """Describe what begins a run; add to it what resumes one, and say what has changed since.

    from_cache: the splits whose clips are read from the cache instead of the videos.
    """
    path, now = run / ENVIRONMENT, {**describe_environment(seed), "from_cache": list(from_cache)}
    if not path.is_file():
        write_json(path, now)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in ("commit", "python", "versions", "machine") if begun.get(name) != now[name]]
    if changed:
        logger.warning("not what the run began with: %s; it may not repeat to the bit", ", ".join(changed))
    write_json(path, {**begun, "resumed": [*begun.get("resumed", []), now]})


def newest_checkpoint(run: Path) -> Path | None:
    """The whole checkpoint with the most updates, or None where there is none yet."""
    found = [path for path in (run / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def count_updates_done(run: Path) -> int:
    """Updates behind the newest checkpoint, 0 where there is none."""
    folder = newest_checkpoint(run)
    return int(folder.name.removeprefix("step-")) if folder else 0
