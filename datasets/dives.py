"""The sport: the grammar of dive numbers, the listed dives, and the sets of dives that a model can answer with.

A dive has four attributes: takeoff, somersault, twist and position. Class names, head sizes, slot indices and validity
are all derived from `dive_table.csv` by this module; no other file lists a dive.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import overload

from diveparse.configs import Dives

ATTRIBUTES = ("takeoff", "somersault", "twist", "position")
COUNTS = ("somersault", "twist")  # the attributes whose values are numbers, in half turns
HEIGHTS_M = (1, 3, 5, 7.5, 10)  # boards at 1 and 3 m, platforms at 5, 7.5 and 10 m
MAX_SOMERSAULT_HALF_TURNS = 11  # the most in any table; only groups 1 to 4 can write more than 9
MAX_TWIST_HALF_TURNS = 9  # the number has one digit for it

AttributeValue = str | int  # takeoff and position are words, somersault and twist are half turns
Values = Mapping[str, Sequence[AttributeValue]]  # for each attribute, the values that a head can answer with


class Takeoff(Enum):
    """How the diver leaves the board; the value is the digit of the dive number."""

    FORWARD = "1"
    BACK = "2"
    REVERSE = "3"
    INWARD = "4"


class Position(Enum):
    """The shape of the body in flight; the value is the letter of the dive number."""

    STRAIGHT = "A"
    PIKE = "B"
    TUCK = "C"
    FREE = "D"


# Diving48 spells counts in turns without the point: "25som" is 2.5 somersaults, 5 half turns.
_VOCAB_TAKEOFF = {takeoff.name.capitalize(): takeoff for takeoff in Takeoff}
_VOCAB_SOMERSAULT = {"Dive": 1} | {
    f"{turns // 2}{'5' * (turns % 2)}som": turns for turns in range(2, MAX_SOMERSAULT_HALF_TURNS + 1)
}
_VOCAB_TWIST = {"NoTwis": 0} | {
    f"{turns // 2}{'5' * (turns % 2)}Twis": turns for turns in range(1, MAX_TWIST_HALF_TURNS + 1)
}
_VOCAB_POSITION = {"STR": Position.STRAIGHT, "PIKE": Position.PIKE, "TUCK": Position.TUCK, "FREE": Position.FREE}
_VOCAB: tuple[Mapping[str, Takeoff | int | Position], ...] = (
    _VOCAB_TAKEOFF,
    _VOCAB_SOMERSAULT,
    _VOCAB_TWIST,
    _VOCAB_POSITION,
)


@dataclass(frozen=True)
class Dive:
    """A dive that a number can express, listed or not. Raises: ValueError if the parts do not fit together."""

    takeoff: Takeoff
    somersault_half_turns: int  # 1 is a plain dive; 0 only for the armstand dive that falls without turning, 600
    twist_half_turns: int
    position: Position
    flying: bool = False  # straight for the first half somersault, then pike or tuck
    armstand: bool = False

    def __post_init__(self) -> None:
        somersault, twist = self.somersault_half_turns, self.twist_half_turns
        if not 0 <= twist <= MAX_TWIST_HALF_TURNS:
            raise ValueError(f"twist must be 0 to {MAX_TWIST_HALF_TURNS} half turns, got {twist}")
        if somersault == 0:
            if not self.armstand or self.takeoff is not Takeoff.FORWARD or twist:
                raise ValueError("somersault of 0 half turns is for the plain armstand dive (600) only")
        else:
            # groups 5 and 6 write the somersault with one digit
            most = 9 if twist or self.armstand else MAX_SOMERSAULT_HALF_TURNS
            if not 1 <= somersault <= most:
                raise ValueError(f"somersault must be 1 to {most} half turns here, got {somersault}")
        if self.armstand and self.takeoff is Takeoff.INWARD:
            raise ValueError("takeoff from an armstand must be 1 (forward), 2 (back) or 3 (reverse), got 4 (inward)")
        if self.flying and (self.armstand or twist):
            raise ValueError("flying dives neither twist nor start from an armstand")
        if self.position is Position.FREE and not twist:
            raise ValueError("position D (free) is for twisting dives only")

    @staticmethod
    def from_number(number: str) -> Dive:
        """Read a dive number such as 107B, 5253B or 6243D.

        Raises: ValueError naming the number and the part of it that is wrong.
        """
        try:
            return _read_number(number)
        except ValueError as error:
            raise ValueError(f"dive number {shortened(number)}: {error}") from None

    @property
    def number(self) -> str:
        """The dive number; `Dive.from_number` gives the dive back."""
        takeoff, somersault, twist = self.takeoff.value, str(self.somersault_half_turns), str(self.twist_half_turns)
        if self.armstand:
            direction = takeoff if self.somersault_half_turns else "0"
            digits = "6" + direction + somersault + (twist if self.twist_half_turns else "")
        elif self.twist_half_turns:
            digits = "5" + takeoff + somersault + twist
        else:
            digits = takeoff + str(int(self.flying)) + somersault
        return digits + self.position.value

    @property
    def name(self) -> str:
        """The dive in words, such as "Back 2½ somersaults 1½ twists pike"."""
        takeoff = str(self.attribute_values()["takeoff"]) if self.somersault_half_turns else "armstand"
        somersault = _count(self.somersault_half_turns, "somersault")
        if self.somersault_half_turns == 0 or (self.somersault_half_turns == 1 and not self.armstand):
            somersault = "dive"
        twist = _count(self.twist_half_turns, "twist") if self.twist_half_turns else ""
        words = (takeoff, "flying" if self.flying else "", somersault, twist, self.position.name.lower())
        return " ".join(word for word in words if word).capitalize()

    @classmethod
    def from_vocab(cls, entry: Sequence[str]) -> Dive:
        """Read Diving48's own spelling, such as ["Back", "25som", "15Twis", "PIKE"].

        Raises: ValueError naming the entry and the part of it that is wrong.
        """
        if not isinstance(entry, (list, tuple)) or [type(word) for word in entry] != [str] * len(ATTRIBUTES):
            raise ValueError(f"vocabulary entry {shortened(entry)}: expected 4 words: {', '.join(ATTRIBUTES)}")
        for attribute, spellings, word in zip(ATTRIBUTES, _VOCAB, entry, strict=True):
            if word not in spellings:
                raise ValueError(
                    f"vocabulary entry {shortened(entry)}: {attribute} must be one of {', '.join(spellings)}, "
                    f"got {shortened(word)}"
                )
        takeoff, somersault, twist, position = entry
        try:
            return cls(
                _VOCAB_TAKEOFF[takeoff], _VOCAB_SOMERSAULT[somersault], _VOCAB_TWIST[twist], _VOCAB_POSITION[position]
            )
        except ValueError as error:
            raise ValueError(f"vocabulary entry {shortened(entry)}: {error}") from None

    @property
    def vocab(self) -> list[str]:
        """Diving48's own spelling. Raises: ValueError for flying and armstand dives, which it cannot spell."""
        if self.flying or self.armstand:
            raise ValueError(f"dive {self.number} has no spelling in Diving48's vocabulary (flying or armstand)")
        parts = (self.takeoff, self.somersault_half_turns, self.twist_half_turns, self.position)
        return [
            next(word for word, value in spellings.items() if value == part)
            for spellings, part in zip(_VOCAB, parts, strict=True)
        ]

    def attribute_values(self) -> dict[str, AttributeValue]:
        """The values of the four attributes, which together determine the dive."""
        takeoff, position = self.takeoff.name.lower(), self.position.name.lower()
        return {
            "takeoff": f"armstand {takeoff}" if self.armstand else takeoff,
            "somersault": self.somersault_half_turns,
            "twist": self.twist_half_turns,
            "position": f"flying {position}" if self.flying else position,
        }

    def difficulty(self, height_m: float) -> float | None:
        """Degree of difficulty from that height, or None where no table gives one.

        Raises: ValueError if there is no board or platform of that height.
        """
        if height_m not in HEIGHTS_M:
            raise ValueError(f"height_m must be one of {', '.join(map(str, HEIGHTS_M))}, got {height_m!r}")
        return _DIFFICULTY.get((self.number, height_m))


def _read_number(number: str) -> Dive:
    if not isinstance(number, str) or not number[:-1].isascii() or not number[:-1].isdigit():
        raise ValueError("expected digits and then one letter, such as 107B, 5253B or 6243D")
    digits, letter = number[:-1], number[-1]
    group, rest = digits[0], digits[1:]
    if group not in "123456":
        raise ValueError(f"group, the first digit, must be 1 to 6, got {group}")
    if letter not in {position.value for position in Position}:
        raise ValueError(f"position must be A (straight), B (pike), C (tuck) or D (free), got {letter!r}")
    if len(digits) not in ((4,) if group == "5" else (3, 4)):
        raise ValueError(f"group {group} has {'4' if group == '5' else '3 or 4'} digits, got {len(digits)}")
    if group == "5":  # twisting: takeoff, somersault, twist
        takeoff, flying, somersault, twist = rest[0], "0", rest[1], rest[2]
    elif group == "6":  # armstand: direction, somersault and, where there is one, twist
        takeoff, flying, somersault, twist = rest[0], "0", rest[1], rest[2:] or "0"
        if rest == "00":  # the plain armstand dive falls forward
            takeoff = Takeoff.FORWARD.value
    else:  # the group is the takeoff: flying, somersault
        takeoff, flying, somersault, twist = group, rest[0], rest[1:], "0"
    most = 3 if group == "6" else 4  # there is no inward armstand
    if not 1 <= int(takeoff) <= most:
        raise ValueError(f"takeoff, the second digit of group {group}, must be 1 to {most}, got {takeoff}")
    if flying not in "01":
        raise ValueError(f"second digit of group {group} must be 0, or 1 for a flying dive, got {flying}")
    dive = Dive(Takeoff(takeoff), int(somersault), int(twist), Position(letter), flying == "1", group == "6")
    if dive.number != number:  # it has a superfluous 0
        raise ValueError(f"{dive.name} is written {dive.number}")
    return dive


def _count(half_turns: int, noun: str) -> str:
    """5, "somersault" -> "2½ somersaults"; up to one turn is singular."""
    number = str(half_turns // 2 or "") + "½" * (half_turns % 2)
    return f"{number or 'no'} {noun}{'s' if half_turns > 2 else ''}"


def _value_name(attribute: str, value: AttributeValue) -> str:
    return _count(int(value), attribute) if attribute in ("somersault", "twist") else str(value)


def _natural_order(attribute: str, values: Iterable[AttributeValue]) -> tuple[AttributeValue, ...]:
    """Counts ascending; takeoffs and positions in the order of the dive number, armstand and flying ones last."""
    if attribute in ("somersault", "twist"):
        return tuple(sorted(values))
    prefix, names = ("armstand", Takeoff) if attribute == "takeoff" else ("flying", Position)
    plain = [name.lower() for name in names.__members__]
    return tuple(value for value in (*plain, *(f"{prefix} {name}" for name in plain)) if value in set(values))


@dataclass(frozen=True)
class DiveSet(Sequence[Dive]):
    """An ordered set of dives; the label of a dive is its place in the set. Two sets are equal if they have the same
    dives in the same order, whatever their names.

    Raises: ValueError if it is empty or has a dive twice.
    """

    dives: tuple[Dive, ...]
    name: str = field(default="dives", compare=False)

    def __post_init__(self) -> None:
        if not self.dives:
            raise ValueError(f"{self.name}: expected at least one dive")
        if len(self._labels) < len(self.dives):
            twice = next(dive for label, dive in enumerate(self.dives) if self._labels[dive] != label)
            raise ValueError(f"{self.name}: dive {twice.number} is listed twice; remove one")

    @classmethod
    def from_numbers(cls, numbers: Iterable[str], name: str = "dives") -> DiveSet:
        """Raises: ValueError naming the set and the first number that is malformed or listed twice."""
        try:
            dives = tuple(Dive.from_number(number) for number in numbers)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return cls(dives, name)

    @cached_property
    def _labels(self) -> dict[Dive, int]:
        return {dive: label for label, dive in enumerate(self.dives)}

    def __len__(self) -> int:
        return len(self.dives)

    @overload
    def __getitem__(self, key: int | str) -> Dive: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[Dive, ...]: ...

    def __getitem__(self, key: int | str | slice) -> Dive | tuple[Dive, ...]:
        """The dive with a label, or with a number that is in the set."""
        return self.dives[self.label_of(key) if isinstance(key, str) else key]

    def __iter__(self) -> Iterator[Dive]:
        return iter(self.dives)

    def __contains__(self, dive: object) -> bool:
        """Whether a dive, or the dive with a number, is in the set. Raises: ValueError if the number is malformed."""
        return (Dive.from_number(dive) if isinstance(dive, str) else dive) in self._labels

    def label_of(self, dive: Dive | str) -> int:
        """Raises: ValueError if the number is malformed or the dive is not in the set."""
        dive = Dive.from_number(dive) if isinstance(dive, str) else dive
        if dive not in self._labels:
            raise ValueError(f"dive {dive.number} ({dive.name}) is not one of the {len(self)} dives of {self.name}")
        return self._labels[dive]

    @property
    def numbers(self) -> tuple[str, ...]:
        return tuple(dive.number for dive in self)

    @cached_property
    def values(self) -> dict[str, tuple[AttributeValue, ...]]:
        """For each attribute, the values that occur, in natural order: the outputs of a head."""
        return {a: _natural_order(a, {dive.attribute_values()[a] for dive in self}) for a in ATTRIBUTES}

    @cached_property
    def value_names(self) -> dict[str, tuple[str, ...]]:
        """`values` in words, such as "2½ somersaults" or "flying pike"."""
        return {a: tuple(_value_name(a, value) for value in values) for a, values in self.values.items()}

    def slots(self, values: Values | None = None) -> dict[str, tuple[int, ...]]:
        """For each attribute, one index per dive into `values[attribute]` (by default, the values of this set).

        Raises: ValueError naming the first dive with a value that is not among them.
        """
        indices = {a: {value: i for i, value in enumerate((values or self.values)[a])} for a in ATTRIBUTES}
        for dive in self:
            for a, value in dive.attribute_values().items():
                if value not in indices[a]:
                    known = ", ".join(_value_name(a, known) for known in indices[a])
                    raise ValueError(
                        f"{self.name}: dive {dive.number} needs the {a} {_value_name(a, value)!r}, but the head has "
                        f"only {known}"
                    )
        return {a: tuple(indices[a][dive.attribute_values()[a]] for dive in self) for a in ATTRIBUTES}

    def expressible(self, values: Values) -> DiveSet:
        """The dives whose attribute values are all among these. Raises: ValueError if there is none."""
        kept = tuple(d for d in self if all(value in values[a] for a, value in d.attribute_values().items()))
        return DiveSet(kept, f"{self.name} (expressible)")


def _read_table() -> list[dict[str, str]]:
    with (Path(__file__).parent / "dive_table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


_ROWS = _read_table()
_DIVING48_ROWS = sorted((row for row in _ROWS if row["diving48_label"]), key=lambda row: int(row["diving48_label"]))
_DIFFICULTY = {
    (row["number"], height): float(row[f"dd_{height}m"])
    for row in _ROWS
    for height in HEIGHTS_M
    if row[f"dd_{height}m"]
}

DIVING48 = DiveSet.from_numbers((row["number"] for row in _DIVING48_ROWS), "Diving48")
DIVING48_TRAIN_COUNTS = tuple(int(row["diving48_train"]) for row in _DIVING48_ROWS)  # V2 clips of each class
DIVING48_TEST_COUNTS = tuple(int(row["diving48_test"]) for row in _DIVING48_ROWS)
DIVING48_V1_TRAIN_COUNTS = tuple(int(row["diving48_v1_train"]) for row in _DIVING48_ROWS)  # to recognise V1
WORLD_AQUATICS = DiveSet.from_numbers(
    (row["number"] for row in _ROWS if "1" in (row["fina_2017_2021"], row["usa_2026"])), "World Aquatics"
)
# in the order of their numbers, as the labels of a CSV file that holds all of them
_FINEDIVING_ROWS = sorted((row for row in _ROWS if row["finediving_train"]), key=lambda row: row["number"])
FINEDIVING = DiveSet.from_numbers((row["number"] for row in _FINEDIVING_ROWS), "FineDiving")
FINEDIVING_TRAIN_COUNTS = tuple(int(row["finediving_train"]) for row in _FINEDIVING_ROWS)
# what a config or a command can name
DIVE_SETS = {Dives.DIVING48: DIVING48, Dives.WORLD_AQUATICS: WORLD_AQUATICS, Dives.FINEDIVING: FINEDIVING}
