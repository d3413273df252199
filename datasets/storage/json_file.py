"""JSON files of anybody: read in one place, so that damage and malice end in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20  # the largest of ours, the annotations of a data set, have a few


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises: ValueError naming the file if it is no JSON, or too large or too deep to be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: expected a JSON file of at most {MAX_BYTES / 2**20:.0f} MiB, got a larger one")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding too
        raise ValueError(f"{path}: not a whole JSON file: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """As `read_json`, of names and values. Raises: ValueError naming the file if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected names and values, got {type(content).__name__}")
    return content


def parse_json(text: str) -> Any:
    """Raises: ValueError if the text is no JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
