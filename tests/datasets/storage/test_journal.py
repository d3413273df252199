from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from diveparse.datasets.storage import journal


@dataclass(frozen=True)
class Done:
    name: str
    num_frames: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    for entry in (Done("a", 1), Done("b", 2), Done("a", 3)):
        journal.append(path, entry)
    return path


def test_the_newest_entry_of_a_name_counts(path: Path) -> None:
    assert journal.read(path, Done) == {"a": Done("a", 3), "b": Done("b", 2)}


def test_an_entry_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    journal.append(tmp_path / "journal.jsonl", Done("a", 1))
    assert journal.read(tmp_path / "journal.jsonl", Done) == {"a": Done("a", 1)}


def test_no_file_has_no_entries(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "journal.jsonl", Done) == {}


def test_a_line_cut_short_anywhere_loses_that_entry_alone(path: Path) -> None:
    content = path.read_bytes()
    for cut in range(1, len(content.splitlines()[-1]) - 1):
        path.write_bytes(content[:-cut])
        journal.append(path, Done("c", 4))
        assert journal.read(path, Done) == {"a": Done("a", 1), "b": Done("b", 2), "c": Done("c", 4)}


@pytest.mark.parametrize("line", ["[]", "3", '{"name": "b"}', '{"name": "b", "num_frames": 3, "more": 1}'])
def test_a_line_that_is_no_such_entry_is_left_out(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + line)
    assert journal.read(path, Done) == {"a": Done("a", 3), "b": Done("b", 2)}


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b'{"name": ["a"], "num_frames": 1}', b'{"name": "a", "num_frames": "1"}', b"[" * 9999]
)
def test_a_line_that_is_no_entry_is_skipped(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(line + b'\n{"name": "b", "num_frames": 2}\n')
    assert journal.read(path, Done) == {"b": Done("b", 2)}
