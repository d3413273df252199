"""What one packet can prove about itself, and how its bytes are searched for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

MAX_UNITS = 1000  # NAL units or the like in one packet; what holds more proves nothing
NO_HEADERS: frozenset[bytes] = frozenset()


class Evidence(NamedTuple):
    """What one packet proves. Without evidence, a file is decoded from the start, which is always right."""

    is_frame: bool  # exactly one whole frame, which is shown
    is_hidden: bool = False  # a frame that is never shown, as VP8 has
    can_start: bool = False  # what is shown from here on refers to nothing before
    is_disposable: bool = False  # no other frame refers to it, unless one of a higher layer
    refers_ahead: bool = False  # it may refer to a frame that is shown after it
    layer: int = 0  # temporal layer, of HEVC
    headers: frozenset[bytes] = NO_HEADERS  # parameters that it gives to the decoder for the frames from here on


NO_EVIDENCE = Evidence(is_frame=False)


class Examiner(NamedTuple):
    """Reads the evidence of a stream's packets. headers: the parameters that stand outside of the packets."""

    read: Callable[[bytes, bool], Evidence]  # of a packet's bytes, and whether the container calls it a keyframe
    headers: frozenset[bytes] = NO_HEADERS

    def __call__(self, data: bytes, is_keyframe: bool) -> Evidence:
        try:
            return self.read(data, is_keyframe)
        except (IndexError, ValueError):  # the packet ends too early
            return NO_EVIDENCE


def positions(data: bytes, pattern: bytes) -> Iterator[int]:
    """Where a pattern stands. Raises: ValueError if it stands at more than MAX_UNITS places."""
    at, found = data.find(pattern), 0
    while at >= 0:
        found += 1
        if found > MAX_UNITS:
            raise ValueError("too many start codes")
        yield at
        at = data.find(pattern, at + len(pattern))
