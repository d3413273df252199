"""What one packet proves about itself, by its own bytes and without decoding it.

Packets are a plan of a video's frames only where each is one whole frame, shown in the order of the packets' times; and
a decoder may start only where nothing that follows refers to what was before. Containers claim both, and the claims can
be false. The first few bits of a packet prove it: see `h264.py`, `hevc.py` and `bitstream.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

MAX_UNITS = 1000  # NAL units or the like in one packet; what holds more proves nothing
NO_HEADERS: frozenset[bytes] = frozenset()


class Evidence(NamedTuple):
    """What one packet proves. Without evidence, a file is decoded from the start, which is always right."""

    is_frame: bool  # exactly one whole frame, which is shown
    is_hidden: bool = False  # a frame that is never shown, as VP8 has
    can_start: bool = False  # what is shown from here on refers to nothing before
    is_disposable: bool = False  # no other frame refers to it, unless one of a higher layer
    follows: bool = True  # no frame is missing before it that others refer to, as far as frames are numbered
    rank: tuple[int, int] | None = None  # ascends in the order in which frames are shown
    layer: int = 0  # temporal layer, of HEVC
    headers: frozenset[bytes] = NO_HEADERS  # parameters that it gives to the decoder for the frames from here on


NO_EVIDENCE = Evidence(is_frame=False)


class Examiner(Protocol):
    """Reads the evidence of a stream's packets, in the order of decoding."""

    headers: frozenset[bytes]  # parameters that stand outside of the packets

    @property
    def has_one_size(self) -> bool:
        """Whether all packets read so far are proven to give pictures of one size."""

    def read(self, data: bytes, is_keyframe: bool) -> Evidence:
        """data: of a packet. is_keyframe: whether the container calls it one.

        Raises: IndexError, KeyError or ValueError if the packet is damaged.
        """


def positions(data: bytes, pattern: bytes) -> Iterator[int]:
    """Where a pattern stands. Raises: ValueError if it stands at more than MAX_UNITS places."""
    at, found = data.find(pattern), 0
    while at >= 0:
        found += 1
        if found > MAX_UNITS:
            raise ValueError("too many start codes")
        yield at
        at = data.find(pattern, at + len(pattern))
