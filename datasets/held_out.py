"""The dives that pretraining never draws, so that an experiment may hold any of them out of training, too.

They were chosen once, by the rule of `choose_held_out`, which looks at numbers and clip counts alone.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from itertools import cycle

from diveparse.datasets.dives import DIVING48, DIVING48_TRAIN_COUNTS, Dive, Position, Takeoff

NUM_HELD_OUT = 18
MIN_TRAIN_CLIPS = 75  # of Diving48: enough for ten clips of the dive in a training set of 2,400


def choose_held_out() -> tuple[Dive, ...]:
    """The pairs of a takeoff and a position give a dive each in turn, until there are NUM_HELD_OUT.

    A pair gives the first of its dives, in the order of the SHA-256 of their numbers, that has MIN_TRAIN_CLIPS and
    leaves each of its attribute values at least half of the dives of Diving48 that show it and have clips.
    """
    live = [dive for dive, count in zip(DIVING48, DIVING48_TRAIN_COUNTS, strict=True) if count]
    may_give = Counter(value for dive in live for value in dive.attribute_values().items())
    for value in may_give:
        may_give[value] //= 2
    enough = [dive for dive in live if DIVING48_TRAIN_COUNTS[DIVING48.label_of(dive)] >= MIN_TRAIN_CLIPS]
    waiting = sorted(enough, key=lambda dive: sha256(dive.number.encode()).digest())
    held_out: list[Dive] = []
    pairs = cycle((takeoff, position) for position in Position for takeoff in Takeoff)
    while len(held_out) < NUM_HELD_OUT:
        pair = next(pairs)
        for dive in waiting:
            values = dive.attribute_values().items()
            if (dive.takeoff, dive.position) == pair and all(may_give[value] for value in values):
                held_out.append(dive)
                waiting.remove(dive)
                may_give.subtract(values)
                break
    return tuple(held_out)


HELD_OUT = choose_held_out()
