"""The training loop: batch, forward, loss, check, update, log, evaluate, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.amp import GradScaler
from tqdm import tqdm

from diveparse.configs import Config, Precision, TrainConfig
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.splits import training_clips
from diveparse.datasets.storage.atomic import write_json
from diveparse.engine.batches import (
    Batch,
    build_clips,
    evaluation_batches,
    features_of,
    stored,
    training_batches,
)
from diveparse.engine.device import choose_device, require_trainable, seed_everything
from diveparse.engine.evaluation.calibration import fit_temperatures
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.metrics import compute_metrics
from diveparse.engine.evaluation.tensorboard import flat_metrics, log_confusion
from diveparse.engine.run import RunFolder, open_run, record_environment
from diveparse.engine.training.checkpoint import Learner, resume_from_checkpoint, save_checkpoint
from diveparse.engine.training.mixing import Mixing, build_mixing
from diveparse.engine.training.optim import build_optimizer, build_schedule
from diveparse.engine.training.progress import Progress, Totals
from diveparse.engine.training.tensorboard import flush, log_scalars, log_start, open_writer
from diveparse.models.classifier import DiveClassifier, build_classifier

SMALLEST_LOSS_SCALE = 1.0  # fp16 gradients that overflow even at this scale do not overflow because of it

logger = logging.getLogger(__name__)


class NonFiniteError(ValueError):
    """A loss or a gradient is infinite or not a number."""


def train(cfg: Config, *, resume: bool = False) -> Path:
    """Train one arm into its run folder, and return the folder. With `resume`, go on after the newest checkpoint: the
    weights, the metrics and the TensorBoard series come out, to the bit, as if the run had never stopped.

    Raises: ValueError for what a user can get wrong; NonFiniteError, before the weights change, naming the clips.
    """
    device = choose_device()
    require_trainable(cfg.train, device)
    records, val_records, dive_set = training_clips(cfg.data, cfg.seed)
    steps_per_epoch = count_updates(len(records), cfg.train)
    num_steps = steps_per_epoch * cfg.train.num_epochs
    seed_everything(cfg.seed, device)
    model = build_classifier(cfg, dive_set).to(device)
    num_clips = torch.bincount(torch.tensor([record.label for record in records]), minlength=len(dive_set))
    model.head.set_class_counts(num_clips)
    trained = {
        "num_updates": num_steps,
        "num_train_clips": dict(zip(dive_set.numbers, num_clips.tolist(), strict=True)),
    }
    learner = build_learner(model, cfg.train, num_steps, device)
    kept = model if learner.average is None else learner.average.module
    # a run goes on reading what it began with, cache or videos
    begun = RunFolder.of(cfg).splits_from_cache() if resume else None
    clips, val_clips = (
        build_clips(cfg, split_records, training=split == "train", from_cache=None if begun is None else split in begun)
        for split, split_records in (("train", records), ("val", val_records))
    )

    run = open_run(cfg, resume=resume)  # not before: a config that cannot be trained leaves no folder behind
    resume_from_checkpoint(run, learner)
    progress = learner.progress
    logger.info("%s: %d of %d updates done, on %s", run, progress.num_updates, num_steps, device.type)
    if progress.num_updates == num_steps:
        write_json(run.trained, trained)  # a kill may have come just before it
        return run.path
    (run.trained).unlink(missing_ok=True)  # there where the run had ended and now has more epochs
    cached = [split for split, read in (("train", clips), ("val", val_clips)) if read.cache is not None]
    record_environment(run, cfg.seed, cached)
    inputs, val_inputs = stored(clips, model, cfg), stored(val_clips, model, cfg)
    mix = build_mixing(cfg.train, len(dive_set))
    batches = training_batches(
        inputs, cfg.train, cfg.seed, start_step=progress.num_updates, num_workers=cfg.data.num_workers
    )
    val_batches = evaluation_batches(val_inputs, batch_size=cfg.test.batch_size, num_workers=cfg.data.num_workers)

    with open_writer(run.path, progress.num_updates) as writer:
        if progress.num_updates == 0:
            log_start(writer, cfg, dive_set, {"train": records, "val": val_records}, clips)
        for epoch in range(progress.num_updates // steps_per_epoch, cfg.train.num_epochs):
            last_step = steps_per_epoch * (epoch + 1)
            bar = tqdm(
                range(progress.num_updates, last_step),
                desc=f"epoch {epoch + 1}/{cfg.train.num_epochs}",
                initial=progress.num_updates % steps_per_epoch,
                total=steps_per_epoch,
                unit="update",
                leave=False,
                mininterval=1,
            )
            for _ in bar:
                state = update(model, learner, batches, records, cfg.train, mix)
                if progress.num_updates % cfg.train.log_every == 0:
                    log_scalars(writer, "train", progress.window.scalars() | state, progress.num_updates)
                    progress.window = Totals()
                if progress.num_updates % cfg.train.checkpoint_every == 0 and progress.num_updates < last_step:
                    flush(writer)  # before the checkpoint: nothing up to here will be logged again
                    save_checkpoint(run, learner)

            start = time.perf_counter()
            predictions = evaluate(
                kept, tqdm(val_batches, desc="validation", leave=False), val_records, cfg.train.precision
            )
            metrics = compute_metrics(predictions, dive_set, num_clips.numpy())
            log_scalars(writer, "val", flat_metrics(metrics), progress.num_updates)
            log_scalars(writer, "train_epoch", progress.epoch.scalars(), progress.num_updates)
            log_epoch(epoch, cfg, progress.epoch, metrics, time.perf_counter() - start)
            if progress.is_best(metrics):
                kept.temperatures = fit_temperatures(predictions, dive_set)
                kept.save(run.model)
                write_json(run.best_update, {"update": progress.num_updates})
                log_confusion(writer, "val", predictions, dive_set, progress.num_updates)
            progress.epoch = Totals()
            flush(writer)
            save_checkpoint(run, learner)
    write_json(run.trained, trained)
    return run.path


def update(
    model: DiveClassifier,
    learner: Learner,
    batches: Iterator[Batch],
    records: Sequence[ClipRecord],
    cfg: TrainConfig,
    mix: Mixing | None = None,
) -> dict[str, float]:
    """One update of the weights from `accumulation_steps` batches, counted in `learner.progress`.

    Returns: the learning rate that it used and the norm of the gradient before clipping.
    """
    scaler, progress = learner.scaler, learner.progress
    start, wait_s, names = time.perf_counter(), 0.0, []
    for _ in range(cfg.accumulation_steps):
        asked = time.perf_counter()
        batch = next(batches)
        wait_s += time.perf_counter() - asked
        names += [records[index].name for index in batch["index"]]
        loss, terms, num_correct = compute_loss(model, batch, cfg.precision, mix)
        if not torch.isfinite(loss):  # before the update, so that the weights stay usable
            raise NonFiniteError(complaint("loss", loss, progress.num_updates + 1, names[-len(batch["index"]) :]))
        scaler.scale(loss / cfg.accumulation_steps).backward()
        for totals in (progress.window, progress.epoch):
            totals.add_clips(len(batch["index"]), num_correct, int(batch["num_damaged"]), terms)
    scaler.unscale_(learner.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
    if not torch.isfinite(grad_norm) and scaler.get_scale() <= SMALLEST_LOSS_SCALE:
        raise NonFiniteError(complaint("gradient's norm", grad_norm, progress.num_updates + 1, names))
    learning_rate = float(learner.schedule.get_last_lr()[0])
    scaler.step(learner.optimizer)  # in fp16, leaves out an update whose scaled gradient overflowed
    scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.schedule.step()
    progress.num_updates += 1
    if learner.average is not None:
        learner.average.update(model, step=progress.num_updates)
    for totals in (progress.window, progress.epoch):
        totals.add_time(wait_s, time.perf_counter() - start)
    return {"learning_rate": learning_rate, "grad_norm": grad_norm.item()}


def compute_loss(
    model: DiveClassifier, batch: Batch, precision: Precision, mix: Mixing | None = None
) -> tuple[Tensor, dict[str, float], int]:
    """One pass over a batch. Returns: the loss; it and its terms as numbers, named for TensorBoard; the clips right,
    where a clip that was mixed of two is right with the one that it shows more of."""
    device = next(model.parameters()).device
    labels = batch["label"].to(device, non_blocking=True)
    if mix is None:
        features, targets = features_of(model, batch, precision), labels
    else:
        clips, targets = mix(batch["clip"].to(device, non_blocking=True), labels)
        features, labels = features_of(model, {"clip": clips}, precision), targets.argmax(dim=-1)
    loss, terms = model.head.loss(features, targets)
    with torch.no_grad():
        num_correct = int((model.head.decode(features) == labels).sum())
    return loss, {"loss": loss.item(), **{f"loss_{name}": term.item() for name, term in terms.items()}}, num_correct


def build_learner(model: DiveClassifier, cfg: TrainConfig, num_steps: int, device: torch.device) -> Learner:
    head = model.head if model.pooling is None else nn.ModuleList([model.pooling, model.head])
    optimizer = build_optimizer(model, head, cfg)
    schedule = build_schedule(optimizer, cfg, num_steps)
    scaler = GradScaler(device.type, enabled=cfg.precision is Precision.FP16)
    # its warm-up lets the average of a short training forget where it began; 0.999 is reached after 10,000 updates
    average = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True, warmup_power=3 / 4) if cfg.ema_decay else None
    if cfg.compile:  # as a whole: blocks differ in how many paths they drop, and too many kinds are not compiled
        model.features = torch.compile(model.features)  # type: ignore[method-assign]
    return Learner(model, optimizer, schedule, scaler, Progress(), average)


def count_updates(num_clips: int, cfg: TrainConfig) -> int:
    """Updates in an epoch. Raises: ValueError if the clips do not fill one."""
    clips_per_update = cfg.batch_size * cfg.accumulation_steps
    if num_clips < clips_per_update:
        raise ValueError(
            f"an update takes train.batch_size x train.accumulation_steps = {clips_per_update} clips, "
            f"but only {num_clips} are left for training"
        )
    return num_clips // clips_per_update


def complaint(what: str, value: Tensor, step: int, names: Sequence[str]) -> str:
    return (
        f"the {what} is {value.item()} in update {step}; the weights are as the update before left them. "
        f"Clips: {', '.join(names)}. A lower train.learning_rate or another train.precision may help"
    )


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
