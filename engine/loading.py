"""Batches for training and for evaluation, decoded by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diveparse.configs import TrainConfig
from diveparse.datasets.diving48 import ClipDataset, EpochSampler

Batch = dict[str, Tensor]  # "clip", "label" and "index", each with one entry a clip


class ClipLoader(DataLoader[Any]):
    """A DataLoader that gives a worker's complaint about a file as it was raised."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch promises its own private iterator
        return without_worker_traceback(super().__iter__())


class MicroBatches:
    """The sampler's batches, one an update, cut into the parts that one forward pass takes."""

    def __init__(self, updates: EpochSampler, batch_size: int) -> None:
        self.updates = updates
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for update in self.updates:
            for first in range(0, len(update), self.batch_size):
                yield update[first : first + self.batch_size]


def training_batches(
    clips: ClipDataset, cfg: TrainConfig, seed: int, *, start_step: int, num_workers: int
) -> Iterator[Batch]:
    """Every batch of the training from update `start_step` on, epoch after epoch without a pause in between.

    An epoch is a whole number of updates, each of `accumulation_steps` batches; what does not fill one is left out.
    """
    updates = EpochSampler(len(clips), cfg.batch_size * cfg.accumulation_steps, seed, start_step)
    parts = MicroBatches(updates, cfg.batch_size)
    return iter(ClipLoader(clips, batch_sampler=parts, **_worker_options(num_workers)))


def evaluation_batches(clips: ClipDataset, *, batch_size: int, num_workers: int) -> ClipLoader:
    """Every clip once, in order, as often as asked; the last batch may be short."""
    return ClipLoader(clips, batch_size=batch_size, shuffle=False, **_worker_options(num_workers))


def without_worker_traceback(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Give a worker's complaint about a file as it was raised: torch wraps it into the worker's whole traceback."""
    try:
        yield from batches
    except ValueError as error:
        if not str(error).startswith("Caught "):
            raise
        last_line = str(error).strip().splitlines()[-1]
        raise ValueError(last_line.partition(": ")[2]) from error


def _worker_options(num_workers: int) -> dict[str, Any]:
    """What both loaders share. Their own generator keeps them from drawing on the one that the model's noise uses."""
    shared: dict[str, Any] = {"generator": torch.Generator(), "pin_memory": torch.cuda.is_available()}
    if num_workers == 0:
        return shared
    # Workers start from a clean server process that has this module loaded: forking a process that already runs threads
    # (torch's, TensorBoard's, CUDA's) can hang, and starting each worker from nothing takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    options = {"num_workers": num_workers, "multiprocessing_context": context, "worker_init_fn": end_with_main_process}
    return shared | options


def end_with_main_process(worker: int) -> None:
    """Keep a worker from outliving a main process that was killed.

    torch's own watch looks at the process that forked the worker: the server, which in turn waits for its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
