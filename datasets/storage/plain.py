"""Dataclasses from plain values that a file holds, each of the type that its field declares."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def from_plain(kind: type[Kind], values: object) -> Kind:
    """The dataclass that `asdict` turned into `values`, dataclasses within it included.

    Raises: ValueError naming a field that is unknown, missing or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected the fields of {kind.__name__}, got {type(values).__name__}")
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints.get(name)
        if isinstance(hint, type) and is_dataclass(hint):
            fields[name] = from_plain(hint, value)
        elif hint is None or not _is_a(value, hint):
            raise ValueError(f"{name} of {kind.__name__} must be {hint or 'left out'}, got {str(value)[:60]!r}")
        else:
            fields[name] = value
    try:
        return kind(**fields)
    except TypeError as error:  # of a field that is missing
        raise ValueError(f"{kind.__name__}: {error}") from error


def _is_a(value: object, hint: Any) -> bool:
    """hint: a type, a union of types, a list of one type, or a dictionary of names with values of one type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, each) for each in get_args(hint))
    if origin is list:
        (inner,) = get_args(hint)
        return isinstance(value, list) and all(_is_a(each, inner) for each in value)
    if origin is dict:
        _, inner = get_args(hint)
        return isinstance(value, dict) and all(type(n) is str and _is_a(v, inner) for n, v in value.items())
    if hint is Any:
        return True
    return type(value) is hint or (hint is float and type(value) is int)  # whole numbers may lose their point
