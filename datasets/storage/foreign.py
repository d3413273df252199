"""Files that other programs leave in any folder. They are never read, never counted and never removed."""

from __future__ import annotations

from pathlib import Path

# of macOS, Windows and their archivers; compared in lower case
FOREIGN_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}
FOREIGN_STARTS = (".", "~$", "#")  # hidden files such as .DS_Store, ._clip.mp4 and .x.swp; open documents; autosaves
FOREIGN_ENDS = ("~",)  # backups of editors


def is_foreign(path: Path) -> bool:
    """Whether a file or folder has the name of something that another program leaves behind."""
    name = path.name
    return name.startswith(FOREIGN_STARTS) or name.endswith(FOREIGN_ENDS) or name.lower() in FOREIGN_NAMES


def own_paths(folder: Path, pattern: str = "*") -> list[Path]:
    """The paths in a folder that match a pattern, sorted, without foreign ones; none if there is no such folder."""
    return sorted(path for path in folder.glob(pattern) if not is_foreign(path))
