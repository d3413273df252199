"""A record of what is done, a line of JSON an entry, which outlives a kill: what is in it need not be done again."""

from __future__ import annotations

import json
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO, TypeVar


class Entry(Protocol):
    """A dataclass of plain values with a name; of entries with the same name the last one counts."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...


EntryKind = TypeVar("EntryKind", bound=Entry)


def append(journal: TextIO, entry: Entry) -> None:
    """Write an entry to a file that was opened for appending. A line that a kill cut short stays a line of its own."""
    journal.write("\n" + json.dumps(asdict(entry)))
    journal.flush()


def read(path: Path, kind: type[EntryKind]) -> dict[str, EntryKind]:
    """The newest entry of each name; none if there is no file. A line that is no such entry is left out."""
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = kind(**json.loads(line))
        except (ValueError, TypeError):
            continue
        entries[entry.name] = entry
    return entries
