"""JSON files of anybody: read in one place, so that damage and malice end in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20  # the largest of ours, the annotations of a data set, have a few


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
    """Raises: ValueError if the text is no JSON, nested too deeply, or holds a number beyond 64 bits or none."""
    try:
        return json.loads(text, parse_int=_whole_number, parse_float=_fraction, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word}, which is no JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"a number beyond 64 bits, {digits[:30]}")
    return int(digits)


def _fraction(digits: str) -> float:
    if math.isinf(float(digits)):
        raise ValueError(f"a number beyond 64 bits, {digits[:30]}")
    return float(digits)
