"""One writer at a time: a lock file in a folder, which goes stale by itself when its process has ended.

On the same machine, a lock is stale as soon as its process is gone, also where another process has its number since.
On any other machine that shares the disk, it is stale once its heartbeat is missing for STALE_S.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from diveparse.datasets.storage.atomic import make_folder
from diveparse.datasets.storage.disk import naming_full_disk

LOCK_FILE = ".diveparse-lock"  # hidden, so that it is foreign to everything that looks through a folder
HEARTBEAT_S, STALE_S = 20.0, 180.0
PROC = Path("/proc")  # of Linux; without it, only the heartbeat tells whether a process is alive


class InUseError(ValueError):
    """Another process writes to the folder."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    work: str  # what it does, such as "training"
    pid: int
    host: str
    since: str
    machine: str  # one boot of one system, in which a process number means one process at a time
    started: str  # when the process did, in the system's own ticks; "" where the system does not tell

    @classmethod
    def this_process(cls, work: str) -> Holder:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(work, os.getpid(), socket.gethostname(), since, _machine(), _start_of(os.getpid()) or "")

    def __str__(self) -> str:
        return f"{self.work} by process {self.pid} on {self.host} since {self.since}"

    def is_running(self) -> bool | None:
        """Whether the process lives; None if that cannot be told from here."""
        if not self.started or self.machine != _machine():
            return None
        return _start_of(self.pid) == self.started


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of a folder until the block ends.

    A folder that does not exist is made, and removed if it is still empty then. work: what this process does there, as
    a noun. Raises: InUseError if another process holds the lock.
    """
    is_new = not folder.exists()
    with naming_full_disk(folder):
        make_folder(folder)
    path, content = folder / LOCK_FILE, json.dumps(asdict(Holder.this_process(work)))
    _take(path, content)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        if _read(path) == content:  # else somebody removed it by hand, and it may be another's now
            path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):  # it holds files
                folder.rmdir()


def require_unlocked(folder: Path) -> None:
    """Raises: InUseError if a process is writing to the folder."""
    path = folder / LOCK_FILE
    content = _read(path)
    if content is not None and not _is_stale(path, content):
        raise InUseError(_in_use(path, content))


def _take(path: Path, content: str) -> None:
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _remove_stale(path)
            continue
        try:
            with naming_full_disk(path), os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
            return
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _remove_stale(path: Path) -> None:
    """Raises: InUseError if the lock is not stale."""
    content = _read(path)
    if content is None:  # released meanwhile
        return
    if not _is_stale(path, content):
        raise InUseError(_in_use(path, content))
    # of several processes that find the lock stale, one moves it away; whoever comes late may move the new lock
    moved = path.with_name(f"{path.name}-{os.getpid()}")
    with suppress(FileNotFoundError):
        os.replace(path, moved)  # noqa: PTH105  # Path.replace is for content that must survive a kill
        if _read(moved) == content:
            moved.unlink()
        else:
            os.replace(moved, path)  # noqa: PTH105


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _holder(content: str) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None  # cut short, by a kill or because it is being written


def _is_stale(path: Path, content: str) -> bool:
    holder = _holder(content)
    running = holder.is_running() if holder else None
    if running is not None:
        return not running
    try:
        return _now_on_disk_of(path) - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return True


def _now_on_disk_of(path: Path) -> float:
    """The time by the clock that stamps files there, which on a network disk is another machine's."""
    probe = path.with_name(f"{path.name}-time-{os.getpid()}")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now
    except OSError:  # it may not be written to
        return time.time()


def _in_use(path: Path, content: str) -> str:
    holder = _holder(content)
    who = str(holder) if holder else "an unknown process"
    return (
        f"{path.parent} is in use: {who}; wait until that has ended, or stop it"
        f" (after a crash of another machine, wait {STALE_S / 60:.0f} minutes, or delete {path})"
    )


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        with suppress(OSError):  # a network disk may come back
            os.utime(path)


def _machine() -> str:
    """Names the running system and, in a container, its own numbering of processes."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"  # noqa: PTH115  # no path
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str | None:
    """When a live process of this machine started; None if there is none, or the system does not tell."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
