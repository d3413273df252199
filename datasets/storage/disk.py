"""Disks without space: found out before long work, and one clear line where a write fails for lack of it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "too large for one file of the disk, or for a limit of the shell",
}
# what libraries raise without an error number: safetensors names it in words; torch's writer and NumPy only count
OS_ERROR = re.compile(r"\(os error (\d+)\)")
WRITTEN_IN_PART = re.compile(
    r"PytorchStreamWriter failed writing file|unexpected pos \d+ vs \d+|\d+ requested and \d+ written"
)


class DiskFullError(OSError):
    """A file cannot be written for lack of space, or it is clear before work begins that it will not be."""


def space_problem(error: BaseException) -> str | None:
    """What is lacking, in words, if an error or one that caused it was raised because a disk is, or would be, full."""
    errors: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in errors:
        errors.append(link)
        link = link.__cause__ or link.__context__
    for each in errors:
        found = OS_ERROR.search(str(each))
        number = int(found[1]) if found else getattr(each, "errno", None)
        if number in NO_SPACE:
            return NO_SPACE[number]
    is_full = any(isinstance(each, DiskFullError) or WRITTEN_IN_PART.search(str(each)) for each in errors)
    return NO_SPACE[errno.ENOSPC] if is_full else None


@contextmanager
def naming_full_disk(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Raise a failure of the block to write for lack of space as a DiskFullError of one line.

    path: what is written; num_bytes: how many bytes that needs, where known.
    """
    try:
        yield
    except Exception as error:
        problem = None if isinstance(error, DiskFullError) else space_problem(error)
        if problem is None:
            raise
        free = f"{in_bytes(free_bytes(path))} free"
        sizes = free if num_bytes is None else f"{in_bytes(num_bytes)} needed, {free}"
        raise DiskFullError(
            f"{path}: {problem} ({sizes}); nothing that was there before is lost; free some space"
        ) from error


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse work whose files do not fit. folder: for the files, whether or not it exists.

    what: the subject of the error's sentence. Raises: DiskFullError.
    """
    free = free_bytes(folder)
    if num_bytes > free:
        raise DiskFullError(
            f"{folder}: {what} needs about {in_bytes(num_bytes)} and {in_bytes(free)} are free; free some space"
        )


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a path, which need not exist."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def in_bytes(num_bytes: int) -> str:
    """A number of bytes in the largest unit that leaves it above 1, such as "1.23 GB"."""
    power = min(4, (len(str(num_bytes)) - 1) // 3)
    value = num_bytes / 1000**power
    return f"{value:.{0 if value >= 100 else 1}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}".replace(".0 ", " ")
