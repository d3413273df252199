"""One update of the weights: forward, loss, backward, check, step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from torch import Tensor, nn

from diveparse.configs import Precision, TrainConfig
from diveparse.datasets.records import ClipRecord
from diveparse.engine import distributed
from diveparse.engine.batches import Batch
from diveparse.engine.device import autocast
from diveparse.engine.training import sharding
from diveparse.engine.training.checkpoint import Learner
from diveparse.engine.training.mixing import Mixing
from diveparse.engine.training.optim import clipping_limit
from diveparse.engine.training.progress import Totals
from diveparse.models.classifier import DiveClassifier


class NonFiniteError(ValueError):
    """A loss or a gradient is infinite or not a number."""


def update(
    learner: Learner,
    batches: Iterator[Batch],
    records: Sequence[ClipRecord],
    cfg: TrainConfig,
    mix: Mixing | None = None,
) -> dict[str, float]:
    """One update of the weights from `accumulation_steps` batches, counted in `learner.progress`.

    batches: of this process. The gradient and all that is counted are those of the clips of all processes.
    Returns: the learning rate that it used and the norm of the gradient before clipping.
    """
    progress, own = learner.progress, Totals()
    names: list[str] = []
    suspects: list[str] = []  # the clips of a batch whose loss is not finite
    start = time.perf_counter()
    for number in range(cfg.accumulation_steps):
        asked = time.perf_counter()
        batch = next(batches)
        own.wait_s += time.perf_counter() - asked
        names += [records[index].name for index in batch["index"]]
        is_last = number == cfg.accumulation_steps - 1
        with nullcontext() if is_last else without_exchange(learner):
            loss, terms, num_correct = learner.loss_of_batch(batch, cfg.precision, mix)
            (loss / cfg.accumulation_steps).backward()
        own.add_clips(len(batch["index"]), num_correct, int(batch["num_damaged"]), terms)
        suspects += [] if math.isfinite(terms["loss"]) else names[-len(batch["index"]) :]
    everywhere = over_all_processes(own)
    if not math.isfinite(everywhere.losses["loss"]):  # before the update, so that the weights stay usable
        fail_together("loss", everywhere.losses["loss"], progress.num_updates + 1, suspects)
    limit = clipping_limit(cfg)
    trained = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    grad_norm = sharding.whole(nn.utils.clip_grad_norm_(trained, limit))
    if not torch.isfinite(grad_norm):
        fail_together("gradient's norm", grad_norm.item(), progress.num_updates + 1, names)
    learning_rate = float(learner.schedule.get_last_lr()[0])
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.schedule.step()
    progress.num_updates += 1
    if learner.average is not None:
        learner.average.update(learner.model, step=progress.num_updates)
    everywhere.add_gradient(grad_norm.item(), limit)
    everywhere.total_s = time.perf_counter() - start
    for totals in (progress.window, progress.epoch):
        totals.add(everywhere)
    return {"learning_rate": learning_rate, "grad_norm": grad_norm.item()}


def without_exchange(learner: Learner) -> AbstractContextManager[None]:
    """As `distributed.without_exchange`, also of a sharded model."""
    if sharding.is_sharded(learner.model):
        return sharding.without_exchange(learner.model)
    return distributed.without_exchange(learner.loss_of_batch)


def over_all_processes(own: Totals) -> Totals:
    """The totals of an update over all processes; of their waiting times, the mean."""
    counts = torch.tensor([own.num_clips, own.num_correct, own.num_damaged, own.wait_s, *own.losses.values()]).double()
    num_clips, num_correct, num_damaged, wait_s, *losses = distributed.gathered(counts).sum(0).tolist()
    return Totals(
        num_clips=int(num_clips),
        num_correct=int(num_correct),
        num_damaged=int(num_damaged),
        wait_s=wait_s / distributed.world_size(),
        losses=dict(zip(own.losses, losses, strict=True)),
    )


def fail_together(what: str, value: float, update: int, suspects: Sequence[str]) -> NoReturn:
    """End every process. suspects: clips of this one. Raises: NonFiniteError, in the first process alone."""
    names = distributed.gathered_texts(suspects)
    if not distributed.is_first():
        raise SystemExit(1)
    raise NonFiniteError(non_finite(what, value, update, names))


def compute_loss(
    model: DiveClassifier, batch: Batch, precision: Precision, mix: Mixing | None = None
) -> tuple[Tensor, dict[str, float], int]:
    """One pass over a batch. Returns: the loss; it and its terms as numbers, named for TensorBoard; the number of clips
    that are right, where a mixed clip is right with the dive that it shows more of."""
    device = next(model.parameters()).device
    inputs, labels = (batch[name].to(device, non_blocking=True) for name in ("inputs", "label"))
    targets = labels
    if mix is not None:
        inputs, targets = mix(inputs, labels)
        labels = targets.argmax(dim=-1)
    with autocast(precision, device):
        scores = model(inputs)
    loss, terms = model.head.loss(scores, targets)
    with torch.no_grad():
        num_correct = int((scores.argmax() == labels).sum())
    return loss, {"loss": loss.item(), **{f"loss_{name}": term.item() for name, term in terms.items()}}, num_correct


class LossOfBatch(nn.Module):
    """`compute_loss` of a model as a module, which DistributedDataParallel can go around."""

    def __init__(self, model: DiveClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, precision: Precision, mix: Mixing | None) -> tuple[Tensor, dict[str, float], int]:
        return compute_loss(self.model, batch, precision, mix)


def non_finite(what: str, value: float, update: int, names: Sequence[str]) -> str:
    return (
        f"the {what} is {value} in update {update}; the weights are as the update before left them. "
        f"Clips: {', '.join(names)}. A lower train.learning_rate or another train.precision may help"
    )
