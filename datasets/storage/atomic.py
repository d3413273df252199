"""Replacing a file as a whole: whenever the process dies, the old file or the new one is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diveparse.datasets.storage.disk import naming_full_disk

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def written_atomically(path: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It replaces `path` once the block ends without an error.

    The content reaches the disk before the name does, so a crash never leaves half a file. A `*.partial` that an
    earlier crash left is overwritten. num_bytes: of the content, where known, for the error of a full disk.
    Raises: DiskFullError if there is no space; the old file is then still there.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with naming_full_disk(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
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
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
