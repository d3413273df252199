"""Bounds of numeric options, written beside their defaults and checked when a section is built.

Every number has two bounds and is finite. The upper one is far above what anybody trains with: beyond it a value is a
slip of the hand, and would end in a crash, a full memory or weights that are not numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

BOUNDS = "bounds"  # the key in a field's metadata
INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


@dataclass(frozen=True)
class Bounds:
    """What a number must be: `is_low_enough` and `is_high_enough`, each with its words for an error."""

    is_high_enough: Callable[[float], bool]
    lower: str
    is_low_enough: Callable[[float], bool]
    upper: str


def positive(default: float, at_most: float) -> Any:
    """An option that must be above 0."""
    return field(
        default=default, metadata={BOUNDS: Bounds(lambda x: x > 0, "> 0", lambda x: x <= at_most, f"<= {at_most:g}")}
    )


def non_negative(default: float, at_most: float) -> Any:
    """An option that must be 0 or more."""
    return field(
        default=default, metadata={BOUNDS: Bounds(lambda x: x >= 0, ">= 0", lambda x: x <= at_most, f"<= {at_most:g}")}
    )


def within(default: float, interval: str) -> Any:
    """An option that must lie in an interval such as "[0, 1)"; a round bracket leaves the end out."""
    match = INTERVAL.fullmatch(interval)
    assert match is not None, interval
    low, high = float(match[2]), float(match[3])
    above = (lambda x: x > low) if match[1] == "(" else (lambda x: x >= low)
    below = (lambda x: x < high) if match[4] == ")" else (lambda x: x <= high)
    return field(default=default, metadata={BOUNDS: Bounds(above, f"in {interval}", below, f"in {interval}")})


def check_numbers(section: Any, prefix: str = "") -> None:
    """Check every number of a section. prefix: "train." and the like.

    Raises: ValueError naming the first option outside its bounds, what was expected and what was got.
    """
    for each in fields(section):
        bounds = each.metadata.get(BOUNDS)
        if bounds is not None:
            value = getattr(section, each.name)
            if value is None:  # of an option that may be left out, which the schema's types decide
                continue
            require(bounds.is_high_enough(value), prefix + each.name, bounds.lower, value)  # nan is not, either
            require(bounds.is_low_enough(value) and math.isfinite(value), prefix + each.name, bounds.upper, value)


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Refuse an impossible value. Raises: ValueError naming the option, what was expected and what was got."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def refuse_unused(section: Any, prefix: str, name: str, is_used: bool, where: str) -> None:
    """Refuse an option that was changed from its default and has no effect. Raises: ValueError naming it."""
    value, default = getattr(section, name), next(each.default for each in fields(section) if each.name == name)
    if not is_used and value != default:
        shown = value.value if isinstance(value, Enum) else value
        raise ValueError(f"{prefix}.{name}={shown!r} has no effect {where}; leave it out")
