"""Event files of TensorBoard. A thread of its library writes them; what fails there is raised here, with a name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from diveparse.datasets.storage.atomic import sync
from diveparse.datasets.storage.disk import naming_full_disk, space_problem
from diveparse.datasets.storage.foreign import own_paths

EVENT_FILES = "events.out.tfevents.*"


@contextmanager
def open_events(folder: Path, purge_step: int | None = None) -> Iterator[SummaryWriter]:
    """A writer of a new event file in a folder. purge_step: points of earlier files from this step on are dropped.

    Raises: DiskFullError if there is no space, when the file is opened, flushed or closed.
    """
    with naming_full_disk(folder / EVENT_FILES), _without_threads_traceback():
        writer = SummaryWriter(str(folder), purge_step=purge_step)
        try:
            yield writer
        except BaseException:
            with suppress(OSError):  # the error of the block is the first, and the one to be seen
                writer.close()
            raise
        writer.close()


def flush(writer: SummaryWriter) -> None:
    """Put every point on the disk."""
    writer.flush()
    sync(own_paths(Path(writer.log_dir), EVENT_FILES)[-1])  # the newest is this writer's


@contextmanager
def _without_threads_traceback() -> Iterator[None]:
    """The thread of a writer raises what the next call to the writer raises again; it need not print it too."""
    before = threading.excepthook

    def print_others(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or space_problem(args.exc_value) is None:
            before(args)

    threading.excepthook = print_others
    try:
        yield
    finally:
        threading.excepthook = before
