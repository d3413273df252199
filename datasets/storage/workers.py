"""Worker processes that start quickly, cleanly and end with their main process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")


def worker_context(module: str) -> ForkServerContext:
    """The context to start workers with: copies of a clean server process that has `module` loaded already.

    Forking a process that already runs threads (torch's, TensorBoard's, CUDA's) can hang, and starting each worker from
    nothing takes seconds. Workers ignore Ctrl-C, which reaches a whole terminal: the main process sees to their end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    if threading.current_thread() is threading.main_thread():  # no other can change what a signal does
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def worker_pool(num_workers: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """Workers that functions of `module` are mapped over. What is left to do when the body ends in an error is not."""
    pool = ProcessPoolExecutor(num_workers, worker_context(module), end_with_main_process)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)  # by default an interrupted `map` may still wait for all that it was given
        raise
    finally:
        pool.shutdown()


def end_with_main_process(*_: object) -> None:
    """In a worker: do not outlive a main process that was killed. The server, which forked the worker, does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    sys.excepthook = _complain


def _complain(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A main process that leaves while it is handed a batch breaks the connection; it says itself why it leaves."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def without_worker_traceback(batches: Iterator[Item]) -> Iterator[Item]:
    """Give a worker's complaint about a file as it was raised: torch wraps it into the worker's whole traceback."""
    try:
        yield from batches
    except ValueError as error:
        if not str(error).startswith("Caught "):
            raise
        last_line = str(error).strip().splitlines()[-1]
        raise ValueError(last_line.partition(": ")[2]) from error
