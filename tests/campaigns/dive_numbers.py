"""Malformed dive numbers and names, and what reading one must do."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

from damage import ODD_VALUES

from diveparse.datasets.dives import ATTRIBUTES, WORLD_AQUATICS, Dive

NUM_SHOWN = 60  # characters that an error may show of a value, or of each word of a value
MAX_LINE = 500
LETTERS = "0123456789ABCDabcdEeOoIl+-. \t\n\0½²٣３𝟙Ａ\u200b\u202e\ud83e\N{COMBINING ACUTE ACCENT}"
NUMBERS = WORLD_AQUATICS.numbers
VOCAB = [dive.vocab for dive in WORLD_AQUATICS if not (dive.flying or dive.armstand)]
WORDS = sorted(set(chain.from_iterable(VOCAB)))


def malformed_number(rng: random.Random) -> Any:
    """Noise of any length, and valid numbers with a letter changed, added, removed or repeated; a few stay valid."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(ODD_VALUES)
    if kind == 1:
        return "".join(rng.choices(LETTERS, k=rng.randrange(9)))
    if kind == 2:
        return rng.choice(LETTERS) * rng.choice([100, 5000, 100_000])
    if kind == 3:
        return str(rng.randrange(10 ** rng.randrange(1, 7))) + rng.choice(LETTERS)
    return spoilt(rng.choice(NUMBERS), rng)


def malformed_vocab(rng: random.Random) -> Any:
    """Words of Diving48's vocabulary in combinations that it does not have, with letters and words that are wrong."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice([*ODD_VALUES, "Back", ("Back",) * 4, {"takeoff": "Back"}, [*range(4)], [None] * 4])
    if kind == 1:
        return rng.choices([*WORDS, "", "5som", "55som", "6som", "5Twis", "x" * 5000], k=rng.choice([3, 4, 4, 4, 4, 5]))
    if kind == 2:
        return [rng.choice([word, rng.choice(ODD_VALUES)]) for word in rng.choice(VOCAB)]
    words = list(rng.choice(VOCAB))
    number = rng.randrange(len(ATTRIBUTES))
    words[number] = spoilt(words[number], rng)
    return words


def spoilt(text: str, rng: random.Random) -> str:
    start = rng.randrange(len(text) + 1)
    piece = rng.choice([rng.choice(LETTERS), rng.choice(text), "", text, "0" * 5000])
    return rng.choice(
        [text[:start] + piece + text[start:], text[:start] + piece + text[start + 1 :], text[:start], text]
    )


def check_number(value: Any) -> str:
    return _check(Dive.from_number, value, lambda dive: dive.number)


def check_vocab(value: Any) -> str:
    return _check(Dive.from_vocab, value, lambda dive: dive.vocab)


def _check(read: Callable[[Any], Dive], value: Any, spell: Callable[[Dive], Any]) -> str:
    """ "read" or "refused". Raises: AssertionError if neither was done as it should be."""
    try:
        dive = read(value)
    except ValueError as error:
        text, start = str(error), repr(value)[:6]
        if "\n" in text or len(text) > MAX_LINE or not text.isprintable():
            raise AssertionError(f"{repr(value)[:NUM_SHOWN]}: not one short line: {text[:NUM_SHOWN]!r}") from None
        if start not in text:
            raise AssertionError(f"{repr(value)[:NUM_SHOWN]}: not shown in: {text}") from None
        return "refused"
    if spell(dive) != (list(value) if isinstance(value, tuple) else value) or Dive.from_number(dive.number) != dive:
        raise AssertionError(f"{value!r} was read as {dive.number}")
    return "read"
