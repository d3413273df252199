"""The training loop: batch, forward, loss, check, update, log, evaluate, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from diveparse.configs import Config, HeadKind, Sharding, TrainConfig
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.records import ClipRecord, clips_in_a_line
from diveparse.datasets.splits import expected_dives, scored_dives, training_clips
from diveparse.datasets.storage.atomic import write_json
from diveparse.datasets.storage.lock import locked
from diveparse.engine import distributed, termination
from diveparse.engine.batches import (
    ClipLoader,
    build_clips,
    cached_or_read,
    evaluation_batches,
    training_batches,
)
from diveparse.engine.device import choose_device, require_trainable, seed_everything, seed_own_noise
from diveparse.engine.evaluation.calibration import fit_temperature, split_validation
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.metrics import compute_metrics
from diveparse.engine.evaluation.predictions import Predictions
from diveparse.engine.evaluation.stacking import default_penalty
from diveparse.engine.evaluation.tensorboard import flat_metrics, log_confusion
from diveparse.engine.events import flush
from diveparse.engine.run import RunFolder, open_run, record_environment
from diveparse.engine.training import sharding
from diveparse.engine.training.checkpoint import (
    Learner,
    require_space_for_run,
    resume_from_checkpoint,
    save_checkpoint,
)
from diveparse.engine.training.mixing import build_mixing
from diveparse.engine.training.optim import build_optimizer, build_schedule
from diveparse.engine.training.progress import Progress, Totals
from diveparse.engine.training.tensorboard import log_scalars, log_start, open_writer
from diveparse.engine.training.update import LossOfBatch, update
from diveparse.models.build import with_own_sizes
from diveparse.models.classifier import DiveClassifier, build_classifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The clips of a training, and the dives that their labels count in."""

    records: list[ClipRecord]
    val_records: list[ClipRecord]
    dive_set: DiveSet
    clips: ClipDataset
    val_clips: ClipDataset
    num_train_clips: Tensor  # (num_dives,)
    scored: DiveSet  # what a test ranges over: the same dives, and those that training was told to hold out
    unseen: list[str]  # numbers of its dives without a training clip; none where no clip is expected to show one

    @property
    def splits_from_cache(self) -> list[str]:
        return [name for name, clips in (("train", self.clips), ("val", self.val_clips)) if clips.cache is not None]


def train(cfg: Config, *, resume: bool = False) -> Path:
    """Train one arm into its run folder, and return the folder. With `resume`, go on after the newest checkpoint:
    weights, metrics and TensorBoard series are then, to the bit, those of a run that never stopped.

    Raises: ValueError for what a user can get wrong; NonFiniteError, before the weights change, naming the clips.
    """
    device = choose_device()
    with ExitStack() as stack:
        if not distributed.is_first():
            stack.enter_context(distributed.joined(device))  # and not handle SIGTERM while it waits to join
        stack.enter_context(termination.handled())
        require_trainable(cfg.train, device)
        own_batch_size = distributed.require_even(cfg.train.batch_size, "train.batch_size")
        if (cfg.train.mixup_alpha or cfg.train.cutmix_alpha) and own_batch_size < 2:
            raise ValueError(
                f"train.batch_size={cfg.train.batch_size} leaves one clip to each process, and mixing takes two or more"
            )
        if cfg.train.shard is Sharding.FULL and not distributed.is_launched():
            raise ValueError("train.shard=full needs processes that torchrun started; use none for one by itself")
        cfg = with_own_sizes(cfg)
        run = RunFolder.of(cfg)
        data = open_training_data(cfg, run.splits_from_cache() if resume else None)
        num_updates = count_updates(len(data.records), cfg.train) * cfg.train.num_epochs
        seed_everything(cfg.seed, device)
        model = build_classifier(cfg, data.dive_set)
        is_sharded = cfg.train.shard is Sharding.FULL
        if not is_sharded:  # else each process gets its part alone
            model = model.to(device)
        model.head.set_class_counts(data.num_train_clips)
        learner = build_learner(model, cfg.train, num_updates)
        seed_own_noise(cfg.seed)
        if distributed.is_first():
            if not run.trained.is_file():
                require_space_for_run(run, learner)
            # not before: a config that cannot be trained leaves no folder behind
            stack.enter_context(locked(run.path, "training"))
            open_run(cfg, resume=resume)
            stack.enter_context(distributed.joined(device))
        if is_sharded:
            learner = build_learner(model, cfg.train, num_updates, shards_on=device)
        train_into_folder(cfg, run, learner, data)
    return run.path


def train_into_folder(cfg: Config, run: RunFolder, learner: Learner, data: TrainingData) -> None:
    """Go on after the newest checkpoint of a run, if it has any, to the end of the training."""
    updates_per_epoch = count_updates(len(data.records), cfg.train)
    num_updates = updates_per_epoch * cfg.train.num_epochs
    resume_from_checkpoint(run, learner)
    distributed.require_same(learner.progress.num_updates, f"{run}: updates done", "all must see the same run folder")
    if not sharding.is_sharded(learner.model):
        learner.loss_of_batch = distributed.data_parallel(learner.loss_of_batch)
    device = next(learner.model.parameters()).device
    logger.info("%s: %d of %d updates done, on %s", run, learner.progress.num_updates, num_updates, device.type)
    if distributed.world_size() > 1:
        logger.info("an update takes %d clips, of %d processes", clips_per_update(cfg.train), distributed.world_size())
    if learner.progress.num_epochs < cfg.train.num_epochs:
        with recorded(cfg, run, learner.progress.num_updates, data) as writer:
            train_epochs(cfg, run, learner, data, updates_per_epoch, writer)
    if distributed.is_first():  # also where nothing was left to do: a kill may have come just before it
        write_trained(run, learner.progress, data)


@contextmanager
def recorded(cfg: Config, run: RunFolder, num_updates: int, data: TrainingData) -> Iterator[SummaryWriter | None]:
    """Describe the environment of a run that goes on after `num_updates` updates, and open its TensorBoard log; None in
    processes other than the first."""
    if not distributed.is_first():
        yield None
        return
    run.trained.unlink(missing_ok=True)  # there where the run had ended and now has more epochs
    splits = {"train": data.records, "val": data.val_records}
    clips = {split: clips_in_a_line(records) for split, records in splits.items()}
    record_environment(run, cfg.seed, data.splits_from_cache, clips)
    with open_writer(run.path, num_updates) as writer:
        yield writer


def write_trained(run: RunFolder, progress: Progress, data: TrainingData) -> None:
    """Mark a run as ended, with what a test reports of its training."""
    counts = dict(zip(data.dive_set.numbers, data.num_train_clips.tolist(), strict=True))
    gradients = {"clipped_share": progress.clipped_share, "median_grad_norm": progress.median_grad_norm}
    write_json(run.trained, {"num_updates": progress.num_updates, "num_train_clips": counts, **gradients})


def open_training_data(cfg: Config, splits_from_cache: Sequence[str] | None) -> TrainingData:
    """splits_from_cache: the splits that a resumed run read from the cache, and goes on to; None for a new run."""
    records, val_records, dive_set = training_clips(cfg.data, cfg.seed)
    clips, val_clips = (
        build_clips(
            cfg,
            split_records,
            training=split == "train",
            from_cache=None if splits_from_cache is None else split in splits_from_cache,
        )
        for split, split_records in (("train", records), ("val", val_records))
    )
    labels = torch.tensor([record.label for record in records])
    num_train_clips = torch.bincount(labels, minlength=len(dive_set))
    scored = scored_dives(cfg.data, dive_set)
    trained = {dive.number for dive, count in zip(dive_set, num_train_clips.tolist(), strict=True) if count}
    unseen = [number for number in scored.numbers if number not in trained]
    if not expected_dives(cfg.data) & set(unseen):
        unseen = []
    return TrainingData(records, val_records, dive_set, clips, val_clips, num_train_clips, scored, unseen)


def train_epochs(
    cfg: Config,
    run: RunFolder,
    learner: Learner,
    data: TrainingData,
    updates_per_epoch: int,
    writer: SummaryWriter | None,
) -> None:
    """From where `learner` stands to the last epoch: update, log, evaluate, save.

    writer: of the first process alone.
    Raises: SystemExit, in all processes and after a checkpoint, if SIGTERM came to one.
    """
    progress, num_workers = learner.progress, cfg.data.num_workers
    inputs, val_inputs = (cached_or_read(clips, learner.model, cfg) for clips in (data.clips, data.val_clips))
    mix = build_mixing(cfg.train, len(data.dive_set))
    batches = training_batches(inputs, cfg.train, cfg.seed, first_update=progress.num_updates, num_workers=num_workers)
    val_batches = evaluation_batches(val_inputs, batch_size=cfg.test.batch_size, num_workers=num_workers)
    if len(sources := {record.source for record in data.val_records}) == 1:
        logger.info("validation has one source, %s: its clips both choose the epoch and fit the temperature", *sources)
    if writer and progress.num_updates == 0:
        log_start(writer, cfg, data.dive_set, {"train": data.records, "val": data.val_records}, data.clips)
    batches = termination.endless_batches(batches, cfg.train.accumulation_steps)
    with termination.deferred():
        try:
            for epoch in range(progress.num_epochs, cfg.train.num_epochs):
                last_update = updates_per_epoch * (epoch + 1)
                for _ in update_bar(epoch, cfg.train.num_epochs, progress.num_updates, updates_per_epoch):
                    state = update(learner, batches, data.records, cfg.train, mix)
                    if progress.num_updates % cfg.train.log_every == 0:
                        if writer:
                            log_scalars(writer, "train", progress.window.scalars() | state, progress.num_updates)
                        progress.window = Totals()
                    if progress.num_updates % cfg.train.checkpoint_every == 0 and progress.num_updates < last_update:
                        save(run, learner, writer)
                validate(epoch, cfg, run, learner, val_batches, data, writer)
                progress.end_epoch()
                save(run, learner, writer)
        except termination.TerminationError:
            save(run, learner, writer, has_to_validate=progress.has_to_validate(updates_per_epoch))
            distributed.wait_for_all()  # `torchrun` ends the others as soon as one has ended
            raise SystemExit(termination.TERMINATED) from None


def save(run: RunFolder, learner: Learner, writer: SummaryWriter | None, *, has_to_validate: bool = False) -> None:
    """Write a checkpoint, and before it every point up to it: they will not be logged again."""
    if writer:
        flush(writer)
    save_checkpoint(run, learner, has_to_validate=has_to_validate)


def update_bar(epoch: int, num_epochs: int, num_updates: int, updates_per_epoch: int) -> Iterator[int]:
    """A progress bar over the updates of an epoch that are left."""
    return iter(
        tqdm(
            range(num_updates, updates_per_epoch * (epoch + 1)),
            desc=f"epoch {epoch + 1}/{num_epochs}",
            initial=num_updates - updates_per_epoch * epoch,
            total=updates_per_epoch,
            unit="update",
            leave=False,
            mininterval=1,
        )
    )


def validate(
    epoch: int,
    cfg: Config,
    run: RunFolder,
    learner: Learner,
    val_batches: ClipLoader,
    data: TrainingData,
    writer: SummaryWriter | None,
) -> None:
    """Evaluate on validation, and keep the model, with its temperature and penalty, if it is the best so far.

    What is logged is of all validation clips. Some sources choose the model, the others fit temperature and penalty.
    """
    start, progress, kept = time.perf_counter(), learner.progress, learner.kept_model
    kept.unseen_penalty = 0.0  # that of an earlier epoch, which no answer here should have
    is_sharded = sharding.is_sharded(kept)  # then no process may leave out a batch that another one looks at
    termination.raise_if_asked()
    batches = termination.batches_of_split(val_batches, can_stop_early=not is_sharded)
    bar = tqdm(batches, desc="validation", total=len(val_batches), leave=False)
    predictions = evaluate(
        kept,
        bar,
        data.val_records,
        cfg.train.precision,
        batch_size=cfg.test.batch_size,
        same_number_of_batches=is_sharded,
    )
    termination.raise_if_asked()
    metrics = compute_metrics(predictions, data.dive_set, data.num_train_clips.numpy())
    if writer:
        log_scalars(writer, "val", flat_metrics(metrics), progress.num_updates)
        log_scalars(writer, "train_epoch", progress.epoch.scalars(), progress.num_updates)
    log_epoch(epoch, cfg, progress.epoch, metrics, time.perf_counter() - start)
    chooses, fits = split_validation(predictions.sources)
    if progress.is_best(compute_metrics(predictions.at(chooses), data.dive_set)):
        kept.temperature = fit_temperature(predictions.dive_log_probs[fits], predictions.labels[fits])
        kept.unseen_penalty = fit_penalty(cfg, kept, val_batches, data, predictions, fits)
        state = sharding.full_state(kept)
        if writer is None:
            return
        kept.save(run.model, state)
        write_json(run.best_update, {"update": progress.num_updates})
        if cfg.pictures:
            log_confusion(writer, "val", predictions, data.dive_set, progress.num_updates)


def fit_penalty(
    cfg: Config,
    kept: DiveClassifier,
    val_batches: ClipLoader,
    data: TrainingData,
    predictions: Predictions,
    fits: npt.NDArray[np.bool_],
) -> float:
    """What the model is to take from the dives that it was trained on. predictions: for all validation clips.

    Flat and independent heads take nothing: the one has no use for it, and the other names the best four values.
    """
    if not data.unseen or cfg.head.kind in (HeadKind.FLAT, HeadKind.INDEPENDENT):
        return 0.0
    if data.scored != data.dive_set:  # the same clips, among more dives
        labels = [data.scored.label_of(dive) for dive in data.dive_set]
        records = [replace(record, label=labels[record.label]) for record in data.val_records]
        predictions = evaluate(
            kept,
            val_batches,
            records,
            cfg.train.precision,
            data.scored,
            batch_size=cfg.test.batch_size,
            same_number_of_batches=sharding.is_sharded(kept),
        )
    return default_penalty(predictions.at(fits), data.scored, data.unseen)


def build_learner(
    model: DiveClassifier, cfg: TrainConfig, num_updates: int, *, shards_on: torch.device | None = None
) -> Learner:
    """shards_on: the device for this process's parts of a model that is sharded; None for one that is not."""
    # its warm-up reduces the weight of the initial values in a short training; 0.999 is reached after 10,000 updates
    average = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True, warmup_power=3 / 4) if cfg.ema_decay else None
    if shards_on is not None:
        for each in (model,) if average is None else (model, average.module):
            sharding.shard(each, shards_on, cfg.precision)
    head = model.head if model.pooling is None else nn.ModuleList([model.pooling, model.head])
    optimizer = build_optimizer(model.backbone, head, cfg)
    schedule = build_schedule(optimizer, cfg, num_updates)
    if cfg.compile:  # as a whole: blocks differ in how many paths they drop, and too many kinds are not compiled
        model.features = torch.compile(model.features)  # type: ignore[method-assign]
    return Learner(model, optimizer, schedule, Progress(), LossOfBatch(model), average)


def count_updates(num_clips: int, cfg: TrainConfig) -> int:
    """Updates in an epoch. Raises: ValueError if the clips do not fill one."""
    needed = clips_per_update(cfg)
    if num_clips < needed:
        raise ValueError(
            f"an update takes train.batch_size x train.accumulation_steps = {needed} clips, "
            f"but only {num_clips} are left for training"
        )
    return num_clips // needed


def clips_per_update(cfg: TrainConfig) -> int:
    """Of all processes together."""
    return cfg.batch_size * cfg.accumulation_steps


def log_epoch(epoch: int, cfg: Config, totals: Totals, metrics: dict[str, Any], validation_s: float) -> None:
    """One line an epoch; the arm's name comes first, since arms that train side by side write to the same terminal."""
    scalars = totals.scalars()
    damaged = f", {totals.num_damaged} damaged clips skipped" if totals.num_damaged else ""
    logger.info(
        "%s, epoch %d/%d: loss %.3f, train top-1 %.3f, val top-1 %.3f, val nll %.3f, waited for data %.1f %%, %.0f s%s",
        cfg.arm,
        epoch + 1,
        cfg.train.num_epochs,
        scalars["loss"],
        scalars["accuracy"],
        metrics["top1"],
        metrics["nll"],
        100 * scalars["data_wait_share"],
        totals.total_s + validation_s,
        damaged,
    )
