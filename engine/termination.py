"""SIGTERM: how a cluster warns a job before it kills it. A training writes a checkpoint first, and then ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import TypeVar

from diveparse.engine import distributed

TERMINATED = 128 + signal.SIGTERM  # the exit code of shells for a command that SIGTERM ended

Batch = TypeVar("Batch")

_is_asked = False
_is_deferred = False


class TerminationError(Exception):
    """SIGTERM has come, and everything is as a checkpoint can hold it."""


@contextmanager
def handled() -> Iterator[None]:
    """Within the block SIGTERM ends the process with the exit code TERMINATED, as an exception that locks are released
    by. Within `deferred` it is only noted."""
    global _is_asked
    _is_asked = False
    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block SIGTERM is noted, for those who read batches to find."""
    global _is_deferred
    _is_deferred = True
    try:
        yield
    finally:
        _is_deferred = False


def _note(_: int, __: FrameType | None) -> None:
    global _is_asked
    _is_asked = True
    if not _is_deferred:
        raise SystemExit(TERMINATED)


def raise_if_asked() -> None:
    """Raises: TerminationError, in all processes, if SIGTERM came to one. All come here together."""
    if distributed.is_true_anywhere(_is_asked):
        raise TerminationError


def endless_batches(batches: Iterable[Batch], batches_per_update: int = 1) -> Iterator[Batch]:
    """Batches of a training, of which every process reads as many, until one of them gets SIGTERM.

    A cluster may send SIGTERM to the loader's workers too, so that their end is no error then.
    Raises: TerminationError, in all processes before the first batch of the same update. In the middle of an update,
    where the loader's workers have ended, SystemExit: the run goes on from the checkpoint before.
    """
    iterator = iter(batches)
    for number in count():
        batch = None
        try:
            batch = next(iterator)
        except RuntimeError:
            if not _is_asked:
                raise
        if number % batches_per_update == 0:
            raise_if_asked()
        if batch is None:
            raise SystemExit(TERMINATED)
        yield batch


def batches_of_split(batches: Iterable[Batch], *, can_stop_early: bool) -> Iterator[Batch]:
    """Batches of an evaluation, of which processes may read different numbers. `raise_if_asked` is to follow.

    can_stop_early: a process that gets SIGTERM reads no further after its first batch.
    """
    try:
        for batch in batches:
            yield batch
            if _is_asked and can_stop_early:
                return
    except RuntimeError:
        if not _is_asked:
            raise
