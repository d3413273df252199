"""Dives by the names that others give them: the labels of a published classifier."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

from diveparse.datasets.dives import (
    ATTRIBUTES,
    DIVE_SETS,
    MAX_SOMERSAULT_HALF_TURNS,
    MAX_TWIST_HALF_TURNS,
    Dive,
    DiveSet,
    Position,
    Takeoff,
)

WORD = re.compile(r"[A-Za-z0-9]+")
NUM_LABELS_SHOWN = 20


def dives_of_labels(labels: Sequence[str], origin: str) -> DiveSet:
    """The dives that labels name, in the order of the labels.

    A label is four words of Diving48's vocabulary, also as the text of a list of them; or a dive number; or a dive in
    words, as `Dive.name` has it.
    Raises: ValueError naming the origin and the labels that are none of these, or a dive that two labels name.
    """
    dives = [dive_of_label(label) for label in labels]
    others = [repr(label) for label, dive in zip(labels, dives, strict=True) if dive is None]
    if others:
        more = len(others) - NUM_LABELS_SHOWN
        listed = ", ".join(others[:NUM_LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(
            f"{origin}: {len(others)} of its {len(labels)} labels are no dives; expected such as "
            f"\"['Back', '25som', '15Twis', 'PIKE']\", '5253B' or 'Back 2½ somersaults 1½ twists pike', got {listed}"
        )
    return DiveSet(tuple(dive for dive in dives if dive is not None), f"labels of {origin}")


def in_known_order(labelled: DiveSet) -> DiveSet:
    """The set that this project has of the same dives, in its own order; the given one where it has none."""
    return next((known for known in DIVE_SETS.values() if set(known) == set(labelled)), labelled)


def dive_of_label(label: str) -> Dive | None:
    """The dive that a label names; None where it is none."""
    readings: tuple[Callable[[str], Dive], ...] = (_in_vocabulary, Dive.from_number, _in_words)
    for read in readings:
        try:
            return read(label.strip())
        except (KeyError, ValueError):
            continue
    return None


def _in_vocabulary(label: str) -> Dive:
    """Raises: ValueError for other than four words of the vocabulary, whatever stands between them."""
    words = WORD.findall(label)
    if len(words) != len(ATTRIBUTES):
        raise ValueError(f"expected {len(ATTRIBUTES)} words, got {len(words)}")
    return Dive.from_vocab(words)


def _in_words(label: str) -> Dive:
    """Raises: KeyError for what is no name of a dive."""
    return _dives_by_name()[" ".join(label.lower().split())]


@cache
def _dives_by_name() -> dict[str, Dive]:
    """Every dive that a number can express, by its name in lower case."""
    named = {}
    counts = product(range(MAX_SOMERSAULT_HALF_TURNS + 1), range(MAX_TWIST_HALF_TURNS + 1))
    styles = ((False, False), (True, False), (False, True))  # flying, armstand
    for (somersault, twist), takeoff, position, (flying, armstand) in product(counts, Takeoff, Position, styles):
        try:
            dive = Dive(takeoff, somersault, twist, position, flying, armstand)
        except ValueError:
            continue
        named[dive.name.lower()] = dive
    return named
