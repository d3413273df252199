"""Finding files by paths that people wrote down on other systems."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PureWindowsPath

NUM_LETTERS_SHOWN = 200


def find_video(written: str, folder: Path) -> tuple[Path, str]:
    """The file of a path, and the path with / between its folders, on every system the same.

    A file of exactly that name comes first. Otherwise the backslashes of Windows stand between folders, and accents may
    be spelt in either way: macOS may store one as a letter of its own (NFD), where others use one letter (NFC).
    folder: that the path is relative to. Raises: ValueError with the reason why there is no such file.
    """
    spelt = written.replace("\\", "/")
    if os.sep == "/" and _is_file(folder / written):
        return folder / written, written
    path = folder / spelt
    for found in (path, *([] if spelt.isascii() else [_spelt_as_on_disk(path)])):
        if _is_file(found):
            return found, spelt
    shown = str(path)[:NUM_LETTERS_SHOWN]
    if os.sep == "/" and PureWindowsPath(written).drive:
        raise ValueError(
            f"there is no video {written[:NUM_LETTERS_SHOWN]}: a path of Windows with a drive; expected a path relative"
            f" to {folder.absolute()}, such as 2024/final.mp4, or one that begins with /"
        )
    if path.is_symlink():
        raise ValueError(f"there is no video {shown}: it is a link to {path.readlink()}, which leads to no file")
    raise ValueError(f"there is no video {shown}")


def same_on_some_disk(name: str) -> str:
    """Equal for two names that are one file on a disk that ignores case, or the way in which accents are spelt."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _is_file(path: Path) -> bool:
    """Raises: ValueError if the system cannot look for it."""
    try:
        return path.is_file()
    except OSError as error:
        longest = max(len(os.fsencode(part)) for part in path.parts)
        sizes = f" ({len(os.fsencode(path))} bytes, {longest} in the longest name)"
        raise ValueError(f"there is no video {str(path)[:NUM_LETTERS_SHOWN]}…: {error.strerror}{sizes}") from error


def _spelt_as_on_disk(path: Path) -> Path:
    """Unlike Path's, `exists` of os.path is also false for a spelling that is too long for a name."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        found = next((found / form for form in forms if os.path.exists(found / form)), found / part)  # noqa: PTH110
    return found
