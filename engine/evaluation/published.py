"""Test a published classifier: its run folder holds what a test writes, and no model, which stays where it lies."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from diveparse.configs import (
    BackboneKind,
    Config,
    FrameOrder,
    HeadKind,
    build_config,
    load_config,
    save_config,
)
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.splits import evaluation_clips
from diveparse.datasets.storage.atomic import write_json, written_atomically
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.datasets.storage.lock import require_unlocked
from diveparse.engine import distributed
from diveparse.engine.device import choose_device
from diveparse.engine.environment import describe_environment
from diveparse.engine.evaluation.testing import require_first, score_split, shared_test
from diveparse.engine.run import RunFolder
from diveparse.models.classifier import DiveClassifier
from diveparse.models.weights.huggingface import is_published

NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.+-]+")
OPTIONS = (
    *("name=", "arm=", "seed=", "runs_dir=", "test.", "clip.order="),
    *("data.root=", "data.columns", "data.dives=", "data.num_workers=", "data.damaged="),
)

logger = logging.getLogger(__name__)


def is_published_test(path: Path) -> bool:
    """Whether a path means a published classifier: its folder, OWNER/NAME on the hub, or the run of a test of one."""
    return RunFolder(path).published.is_file() or is_published(path)


def evaluate_published(
    source: Path, overrides: list[str], *, split: str, again: bool = False
) -> tuple[RunFolder, dict[str, Any]]:
    """Evaluate a published classifier on a split. Returns: its run folder and the scores.

    source: its folder, OWNER/NAME on the hub, or the run of an earlier test. The run is `runs_dir/name/arm/seed-K` as
    that of a training, by default runs/NAME/flat/seed-0. Frames come from the videos at their own size, since its own
    processor resizes them.
    Raises: ValueError if an option is not for this, the run holds something else, the metrics already exist, or there
    is no such classifier.
    """
    cfg = read_published_config(source, overrides)
    run = RunFolder.of(cfg)
    files = run.evaluation(split, control="" if cfg.clip.order is FrameOrder.TIME else cfg.clip.order.value)
    if distributed.is_first():
        _require_own(run, cfg)
        require_unlocked(run.path)
    with shared_test(run.path, lambda: require_first(files, again=again)):
        model = DiveClassifier.from_pretrained(str(cfg.backbone.weights)).to(choose_device())
        cfg = replace(
            cfg,
            clip=replace(model.clip_config, order=cfg.clip.order),
            head=model.config.head,
        )
        dive_set = open_data_set(cfg.data, model.dive_set).dive_set
        records = evaluation_clips(cfg.data, split, cfg.seed, dive_set)
        about_training = about_no_training(count_train_clips(cfg, dive_set))
        if distributed.is_first():
            write_published(run, cfg, model)
        return run, score_split(run, cfg, files, model, records, dive_set, about_training, split=split)


def read_published_config(source: Path, overrides: list[str]) -> Config:
    """The options of a test of a published classifier; sizes are left to it."""
    for override in overrides:
        if not override.startswith(OPTIONS):
            listed = ", ".join(option.rstrip("=") for option in OPTIONS)
            raise ValueError(f"a test of a published model can set {listed} only, got {override!r}")
    run = RunFolder(source)
    if run.published.is_file():
        cfg = load_config(run.config, overrides)
        if (other := RunFolder.of(cfg)).path.resolve() != source.resolve():
            raise ValueError(f"{run}: is the test that its config.yaml places at {other}; test it from there")
    else:
        name = NOT_IN_A_NAME.sub("-", source.name if source.name else source.resolve().name).strip("-.")
        options = {
            "name": name or "published",
            "arm": "flat",
            "data": {"cache": False},
            "backbone": {"kind": BackboneKind.TRANSFORMERS.value, "weights": source.as_posix()},
            "head": {"kind": HeadKind.FLAT.value},
        }
        cfg = build_config(options, overrides, source)
    if cfg.test.num_spatial_views != 1:
        raise ValueError(
            f"{source}: test.num_spatial_views must be 1, since its own processor cuts one square, "
            f"got {cfg.test.num_spatial_views}"
        )
    return cfg


def count_train_clips(cfg: Config, dive_set: DiveSet) -> dict[str, int]:
    """The training clips that the data set has of each dive, by number; empty, and logged, where there are none.

    A published classifier does not say what it was trained on. These counts divide the dives of the test into frequent
    and rare ones.
    """
    data_set = open_data_set(cfg.data, dive_set)
    try:
        counts = Counter(record.label for record in data_set.records("train"))
    except ValueError as error:  # a folder with the test clips alone is enough for a test
        logger.warning("dives are not divided into frequent and rare ones, without training clips: %s", error)
        return {}
    return {number: counts[label] for label, number in enumerate(dive_set.numbers)}


def about_no_training(num_train_clips: dict[str, int]) -> dict[str, Any]:
    """What metrics.json says of the training of a model that was not trained here."""
    return {
        "trained_from_cache": None,
        "model_update": 0,
        "num_updates": 0,
        "clipped_share": [],
        "median_grad_norm": [],
        "num_train_clips": num_train_clips,
        "model_of": None,
    }


def write_published(run: RunFolder, cfg: Config, model: DiveClassifier) -> None:
    write_json(run.published, {"weights": cfg.backbone.weights, **model.backbone.origin()})
    with written_atomically(run.config) as temporary:
        save_config(replace(cfg, clip=replace(cfg.clip, order=FrameOrder.TIME)), temporary)
    write_json(run.environment, describe_environment(cfg.seed))


def _require_own(run: RunFolder, cfg: Config) -> None:
    """Raises: ValueError if the folder holds something else than an earlier test of the same classifier."""
    others = [path.name for path in own_paths(run.path)]
    if not others:
        return
    other_name = "choose another one with name=NAME"
    if not run.published.is_file():
        raise ValueError(f"{run} holds files but no test of a published model: {', '.join(others[:5])}; {other_name}")
    earlier = read_json_object(run.published).get("weights")
    if earlier != cfg.backbone.weights:
        raise ValueError(f"{run} holds the test of {earlier}, not of {cfg.backbone.weights}; {other_name}")
