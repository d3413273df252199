"""Worker processes that start quickly and cleanly, and end when their main process ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import synchronize
from traceback import walk_tb
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext  # Windows has only one of them

Item = TypeVar("Item")
WORKER_SERVER = "diveparse.datasets.storage.worker_server"


def worker_context(module: str) -> ForkServerContext | SpawnContext:
    """The context to start workers with: forks of a clean server process that has already imported `module`.

    Forking a process that runs threads (of torch, TensorBoard or CUDA) can hang, and starting each worker from nothing
    takes seconds, as it does on Windows, which has no other way. Workers ignore Ctrl-C, which a terminal sends to every
    process: the main process ends them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER_SERVER, module])
    if threading.current_thread() is threading.main_thread():  # only this thread may set signal handlers
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def worker_pool(num_workers: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of workers for functions of `module`. If the body raises an error, jobs that wait are cancelled.

    Raises: ValueError if a worker dies, in place of what each job that waits for it would raise.
    """
    pool = ProcessPoolExecutor(num_workers, worker_context(module), end_with_main_process)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed, perhaps because memory ran out; start again with fewer workers"
        ) from error
    except BaseException:
        pool.shutdown(cancel_futures=True)  # else an interrupted `map` may still wait for all its jobs
        raise
    finally:
        pool.shutdown()


def end_with_main_process(*_: object) -> None:
    """In a worker: exit when the main process dies, even if killed, and on nothing else, such as Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where there is no server to inherit it from
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    sys.excepthook = print_error


def print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print an error, unless the main process has ended, which has printed the reason.

    Then a connection is broken, or a worker that has just started lacks a semaphore.
    """
    if not issubclass(kind, (ConnectionError, EOFError)) and not _lacks_semaphore(error):
        sys.__excepthook__(kind, error, traceback)


def _lacks_semaphore(error: BaseException) -> bool:
    if not isinstance(error, FileNotFoundError) or error.filename is not None:
        return False
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1:] == [synchronize.__file__]


def without_worker_traceback(batches: Iterator[Item]) -> Iterator[Item]:
    """Raise a worker's ValueError with its own message alone, without the traceback that torch puts around it."""
    try:
        yield from batches
    except ValueError as error:
        if not str(error).startswith("Caught "):
            raise
        last_line = str(error).strip().splitlines()[-1]
        raise ValueError(last_line.partition(": ")[2]) from error
