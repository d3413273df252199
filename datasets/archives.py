"""The videos of a tar file, unpacked within bounds: whatever an archive claims, it fills neither memory nor disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from diveparse.datasets.records import NAME_PATTERN
from diveparse.datasets.storage.atomic import make_folder, written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.foreign import own_paths

# by the first bytes of a file
OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)  # no links, devices or files with holes
MAX_EXPANSION = 20  # videos hardly shrink when they are compressed
MAX_NUM_MEMBERS = 200_000
MAX_READ_BYTES = 2**20  # at once: a long name, or a piece of a file
SPARE_BYTES = 2**28  # of the disk, which unpacking leaves free
POINTER_START = b"version https://git-lfs."  # of what git leaves in place of a large file


class ArchiveError(ValueError):
    """An archive that is whole, and is not unpacked."""


def find_archives(root: Path) -> list[Path]:
    return sorted([*own_paths(root, "*.tar"), *own_paths(root, "*.tar.gz")])


def require_content(path: Path) -> None:
    """Raises: ValueError if git has left a pointer in place of the file."""
    with path.open("rb") as file:
        if file.read(len(POINTER_START)) == POINTER_START:
            raise ValueError(
                f"{path}: a pointer of Git LFS and not the file itself; get it with `git lfs pull` or `hf download`"
            )


def unpack(archive: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Unpack the videos of a tar file into `rgb/`. Yields: (bytes read, bytes in all).

    Only plain files with the name of a clip are unpacked, from any folder of the archive; those that `rgb/` already
    has are skipped. What a damaged archive gave is removed: which of its videos are damaged cannot be told.
    Raises: ValueError if the archive is damaged or has no such file, or if it expands to far more than videos do;
    DiskFullError if the disk has no space for the next video.
    """
    require_content(archive)
    num_bytes, num_members, num_videos = archive.stat().st_size, 0, 0
    written: list[Path] = []
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_unpacked(file), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or else it keeps them all in memory
                num_members += 1
                _require_bounds(archive, member, num_bytes, num_members)
                if _is_clip(member):
                    num_videos += 1
                    written += _write(tar, member, root / "rgb" / Path(member.name).name)
                yield file.tell(), num_bytes
            _require_whole(archive, cast(_Unpacked, tar.fileobj), num_bytes)
    except ArchiveError:
        raise
    except DAMAGED as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise ValueError(f"{archive}: not a whole tar file: {error}; download it again") from error
    if not num_videos:
        raise ValueError(f"{archive}: holds no video named as a clip, such as _8Vy3dlHg2w_00000.mp4")


class _Unpacked:
    """The bytes of an archive without its compression, for `tarfile`, which reads as much at once as a header claims.

    Raises: tarfile.ReadError for whatever is wrong with the compressed bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.tell, self.seekable = file.tell, file.seekable

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a name or a header claims {num_bytes} bytes")
        return cast(bytes, self._checked(self.file.read, num_bytes))

    def seek(self, position: int) -> int:
        return cast(int, self._checked(self.file.seek, position))

    def _checked(self, action: Callable[[int], object], argument: int) -> object:
        try:
            return action(argument)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise tarfile.ReadError(str(error)) from error


def _unpacked(file: IO[bytes]) -> Any:
    start = file.read(max(map(len, OPENERS)))
    file.seek(0)
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    return _Unpacked(file if opener is None else opener(file))


def _require_bounds(archive: Path, member: tarfile.TarInfo, num_bytes: int, num_members: int) -> None:
    """num_bytes: of the archive. num_members: up to this one."""
    if num_members > MAX_NUM_MEMBERS:
        raise ArchiveError(f"{archive}: expected at most {MAX_NUM_MEMBERS} files in it, got more; unpack it by hand")
    if member.size < 0:
        raise tarfile.ReadError(f"{member.name[:80]!r} claims {member.size} bytes")
    # counted over all that comes before, too
    require_expansion(archive, num_bytes, member.offset_data + member.size)


def require_expansion(archive: Path, num_bytes: int, num_unpacked: int) -> None:
    if num_unpacked > MAX_EXPANSION * num_bytes + MAX_READ_BYTES:
        raise ArchiveError(
            f"{archive}: expands to {num_unpacked / 1e9:,.3f} GB or more, over {MAX_EXPANSION} times its size, as "
            "videos never do; unpack it by hand if it is to be trusted"
        )


def _require_whole(archive: Path, unpacked: _Unpacked, num_bytes: int) -> None:
    """Read on to the end of a compressed file, where its checksum is. Raises: tarfile.ReadError if it is another."""
    while unpacked.read(MAX_READ_BYTES):
        require_expansion(archive, num_bytes, unpacked.tell())


def _is_clip(member: tarfile.TarInfo) -> bool:
    name = Path(member.name)
    is_plain = member.type in PLAIN_FILES and not member.issparse()
    return is_plain and name.suffix == ".mp4" and NAME_PATTERN.fullmatch(name.stem) is not None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> list[Path]:
    """Returns: the path, if it was not there. Raises: DiskFullError if the disk has no space for it."""
    if path.is_file() and path.stat().st_size == member.size:
        return []
    make_folder(path.parent)
    require_space(path.parent, member.size + SPARE_BYTES, f"unpacking {path.name}")
    content = tar.extractfile(member)
    assert content is not None  # as for every regular file
    with written_atomically(path) as temporary, temporary.open("wb") as target:
        shutil.copyfileobj(content, target)
    return [path]
