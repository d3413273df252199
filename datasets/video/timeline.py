"""When each frame of a video comes on screen.

The frames and their order are those of FFmpeg's own decoder, from the file's first packet to its last. Each frame has
two clocks: its presentation time and the decoding time at which it came out. The rule for the times is this:

- The clock is the presentation time, unless the decoding time has fewer faults. A fault is a frame that lacks the time,
  or whose time is not after that of the frame before. (So FFmpeg's best-effort timestamp chooses, frame by frame.)
- A frame without a time comes when the frame before ends; at the start, so that it ends when the frame after comes.
- Where the clock goes back and stays back, a second recording begins: it comes when the frame before ends. Where only
  one frame is out of order, it comes halfway between its neighbours.
- In MPEG transport and program streams, whose clock may be reset, a jump ahead by more than MAX_JUMP_S is closed too.
- Time 0 is the first frame that is shown. The last frame stays for the duration that the file gives it, or for as long
  as the frame before.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

MAX_JUMP_S = 10  # as the ffmpeg command has it
DEFAULT_RATE_HZ = 25  # of a file that gives neither durations nor a rate


class Clocks(NamedTuple):
    """A decoded frame's times, in ticks; None where it has none."""

    pts: int | None
    dts: int | None
    duration: int  # 0 where it is unknown


@dataclass(frozen=True)
class Timeline:
    """starts: when each frame comes on screen, ascending, in ticks from the first. end: of the last, in ticks."""

    tick_s: Fraction
    starts: array[int]
    end: int

    @cached_property
    def starts_s(self) -> list[float]:
        return [self.seconds(ticks) for ticks in self.starts]

    @property
    def duration_s(self) -> float:
        return self.seconds(self.end)

    def seconds(self, ticks: int) -> float:
        return ticks * self.tick_s.numerator / self.tick_s.denominator

    def on_screen(self, time_s: float) -> int:
        """The number of the frame on screen at a time: the last one that comes at or before it."""
        return max(0, bisect_right(self.starts_s, time_s) - 1)


def usual_duration(rate_hz: Fraction | None, tick_s: Fraction) -> int:
    """Of a frame, in ticks, where nothing better is known."""
    return max(1, round(1 / (rate_hz or DEFAULT_RATE_HZ) / tick_s))


def timeline_of(
    frames: Sequence[Clocks], tick_s: Fraction, rate_hz: Fraction | None, *, is_resettable: bool
) -> Timeline:
    """By the rule above. frames: in the decoder's order, one or more. is_resettable: whether jumps ahead are closed."""
    usual = usual_duration(rate_hz, tick_s)
    durations = [frame.duration or usual for frame in frames]
    times = _better_clock(frames)
    for number in reversed(range(_num_leading_gaps(times))):
        times[number] = (times[number + 1] or 0) - durations[number]
    starts = array("q", [0])
    offset = -(times[0] or 0)
    for number in range(1, len(frames)):
        end, time = starts[-1] + durations[number - 1], times[number]
        if time is None:
            starts.append(end)
            continue
        following = times[number + 1] if number + 1 < len(frames) else None
        if time + offset < starts[-1]:
            if following is not None and following + offset > starts[-1]:
                starts.append((starts[-1] + following + offset) // 2)
                continue
            offset = end - time
        elif is_resettable and time + offset - end > MAX_JUMP_S / tick_s:
            offset = end - time
        starts.append(time + offset)
    stay = frames[-1].duration or (starts[-1] - starts[-2] if len(starts) > 1 else 0) or usual
    return Timeline(tick_s, starts, starts[-1] + stay)


def _better_clock(frames: Sequence[Clocks]) -> list[int | None]:
    pts, dts = [frame.pts for frame in frames], [frame.dts for frame in frames]
    # the frames that come out after the last packet have no decoding time
    num_fed = max((number for number, time in enumerate(dts, start=1) if time is not None), default=0)
    return dts if num_fed and _num_faults(dts[:num_fed]) < _num_faults(pts[:num_fed]) else pts


def _num_faults(times: Sequence[int | None]) -> int:
    known = [time for time in times if time is not None]
    return len(times) - len(known) + sum(a >= b for a, b in pairwise(known))


def _num_leading_gaps(times: Sequence[int | None]) -> int:
    """How many frames come before the first that has a time; 0 if none has."""
    return next((number for number, time in enumerate(times) if time is not None), 0)
