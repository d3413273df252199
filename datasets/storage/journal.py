"""A log of finished jobs, one line of JSON each, that survives a kill: a job in it need not be done again."""

from __future__ import annotations

import json
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from diveparse.datasets.storage.disk import naming_full_disk
from diveparse.datasets.storage.json_file import parse_json
from diveparse.datasets.storage.plain import from_plain


class Entry(Protocol):
    """A dataclass of plain values with a name. The last entry of a name replaces earlier ones."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...


EntryKind = TypeVar("EntryKind", bound=Entry)


def append(path: Path, entry: Entry) -> None:
    """Add an entry. It starts a new line, in case a kill or a full disk cut the last line short."""
    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(asdict(entry)))


def read(path: Path, kind: type[EntryKind]) -> dict[str, EntryKind]:
    """The newest entry of each name; empty without a file. A line that is not an entry of this kind is skipped."""
    entries = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = from_plain(kind, parse_json(line))
        except ValueError:
            continue
        entries[entry.name] = entry
    return entries
