"""Replacing a file as a whole: whenever the process dies, the old file or the new one is there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diveparse.datasets.storage.disk import naming_full_disk

TEMPORARY_SUFFIX = ".partial"
# what a system answers that cannot open or flush a folder: Windows, and some network disks
NO_FOLDER_SYNC = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def written_atomically(path: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It replaces `path` once the block ends without an error.

    The content reaches the disk before the name does, so a crash never leaves half a file. A `*.partial` that an
    earlier crash left is overwritten. num_bytes: of the content, where known, for the error of a full disk.
    Raises: DiskFullError if there is no space; the old file is then still there.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with naming_full_disk(path, num_bytes):
        make_folder(path.parent)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)  # the new name itself
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON, atomically. Raises: ValueError for a nan or an infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system


def make_folder(folder: Path) -> None:
    """Make a folder with all above it, unless it is there; it may be a link to a folder on another disk.

    Raises: ValueError naming a link on the way to a folder that is not there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        link = next((each for each in (folder, *folder.parents) if each.is_symlink() and not each.is_dir()), None)
        if link is None:
            raise
        raise ValueError(
            f"{link}: a link to the folder {link.readlink()}, which is not there; is its disk mounted?"
        ) from None


def sync(path: Path) -> None:
    """Flush a file that may be written to, or a folder's list of names, to the disk.

    A system that has no such thing for folders writes the names in its own time.
    """
    is_folder = path.is_dir()
    try:
        # Windows flushes only what is open for writing
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in NO_FOLDER_SYNC:
            raise
