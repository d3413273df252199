from __future__ import annotations

from pathlib import Path

import pytest

from diveparse.datasets.storage.json_file import parse_json, read_json, read_json_object


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="open"),
        pytest.param(b'{"a": 1', id="cut short"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[" * 100_000, id="deep lists"),
        pytest.param(b'{"a":' * 100_000, id="deep objects"),
        pytest.param(b"[" + b"1" * 10_000 + b"]", id="a number of 10,000 digits"),
        b"[18446744073709551616]",
        b"[1e999]",
        b"[NaN]",
        b"[-Infinity]",
    ],
)
def test_what_is_no_json_is_one_line_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: not a whole JSON file: ") as error:
        read_json(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_an_object_is_names_and_values(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    assert read_json(path) == parse_json(content)
    with pytest.raises(ValueError, match=r"config\.json: expected names and values, got (list|int|NoneType|str)$"):
        read_json_object(path)
