from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from diveparse.datasets.storage.plain import from_plain


@dataclass
class Inner:
    rates: dict[str, float] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)


@dataclass
class Outer:
    name: str
    count: int
    share: float = 0.0
    end: float | None = None
    info: dict[str, Any] | None = None
    inner: Inner = field(default_factory=Inner)


def test_what_asdict_gave_comes_back() -> None:
    for value in (Outer("a", 1), Outer("b", 2, 0.5, 3, {"x": [1]}, Inner({"y": 2.5}, [1.0, 2]))):
        assert from_plain(Outer, asdict(value)) == value


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": ["a"]}, r"name of Outer must be <class 'str'>, got \"\['a'\]\""),
        ({"count": "1"}, "count of Outer must be"),
        ({"count": 1.5}, "count of Outer must be"),
        ({"count": True}, "count of Outer must be"),
        ({"share": None}, "share of Outer must be"),
        ({"end": "x"}, "end of Outer must be"),
        ({"inner": 3}, "expected the fields of Inner, got int"),
        ({"inner": {"rates": {"y": "fast"}}}, "rates of Inner must be"),
        ({"inner": {"norms": 1.0}}, "norms of Inner must be"),
        ({"inner": {"norms": ["a"]}}, "norms of Inner must be"),
        ({"other": 3}, "other of Outer must be left out"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_plain(Outer, asdict(Outer("a", 1)) | change)


@pytest.mark.parametrize("values", [None, [], 3, {}, {"name": "a"}])
def test_what_lacks_its_fields_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="Outer"):
        from_plain(Outer, values)
