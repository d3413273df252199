"""Which frames the packets of a video promise, when, and what must be decoded to see one of them.

A plan is proven where the packets' times fit together and the evidence in their bytes (`bitstream.py`) shows that each
is one frame. So times that a tool has made up are not believed: with frames that refer ahead, the times have to differ
from the order of decoding. Without a proof, everything is decoded once (`full_decode.py`) to learn whether the packets
keep their promise.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from av.video.stream import VideoStream

from diveparse.datasets.video.index import Index
from diveparse.datasets.video.timeline import MAX_JUMP_S, Timeline, usual_duration

RESETTABLE = {"mpegts", "mpeg"}  # formats whose clock may be reset within a file


class Run(NamedTuple):
    """Packets that are decoded one after the other, from one at which a decoder may start."""

    packets: range
    fed: list[int]  # those that the decoder gets; frames that no other refers to are left out
    pts: list[int]  # of the frames that have to come out, in this order; frames before the first may come, too
    wanted: dict[int, int]  # presentation time of a wanted frame -> its number in the video


class Plan:
    """Frame `number` of the video is packet `order[number]`, and is shown at the presentation time `pts[number]`."""

    def __init__(self, index: Index, stream: VideoStream) -> None:
        self.index = index
        self.tick_s = stream.time_base or Fraction(1)
        self.is_resettable = stream.container.format.name in RESETTABLE
        self.reorders = stream.codec_context.codec.reorder
        self.codec = stream.codec_context.name
        self.pixel_aspect = stream.sample_aspect_ratio or Fraction(1)  # width to height of a pixel as stored
        self.rate_hz = stream.average_rate  # the mean; None where the file gives none
        self._end = index.spans.get(stream.index, (0, 0))[1]
        packets = index.packets
        self.order = [n for n, packet in enumerate(packets) if packet.is_shown and packet.pts is not None]
        self.order.sort(key=lambda number: packets[number].pts or 0)
        self.pts = [packets[number].pts or 0 for number in self.order]
        self.num_shown = sum(packet.is_shown for packet in packets)
        self._headers = index.headers.union(*(packet.evidence.headers for packet in index.packets))
        self.is_proven = len(self.order) == self.num_shown and self._fits()
        # whether even the first frame, which decides what time 0 is, and the size need not be looked at
        self.is_self_evident = self.is_proven and index.has_one_size

    def _fits(self) -> bool:
        """Whether the times fit together, and each packet is a frame as far as that can be known before decoding."""
        packets = self.index.packets
        if not self.index.is_steady or any(a >= b for a, b in pairwise(self.pts)):
            return False
        dts = (packet.dts for packet in packets if packet.dts is not None)
        if any(a > b for a, b in pairwise(dts)):  # two files joined, or a clock that was reset
            return False
        if self.is_resettable and any(b - a > MAX_JUMP_S / self.tick_s for a, b in pairwise(self.pts)):
            return False
        if self.index.has_evidence and not all(packets[number].evidence.is_frame for number in self.order):
            return False
        if not self.reorders:
            return all(a < b for a, b in pairwise(self.order))
        ranks = [packets[number].evidence.rank for number in self.order]
        if any(a is None or b is None or a >= b for a, b in pairwise(ranks)):
            return False
        first = packets[0]
        return self._is_complete and first.evidence.can_start and first.pts is not None and first.pts <= self.pts[0]

    @cached_property
    def timeline(self) -> Timeline:
        starts = array("q", (pts - self.pts[0] for pts in self.pts))
        end = self._end - self.pts[0]
        if end <= starts[-1]:
            stay = starts[-1] - starts[-2] if len(starts) > 1 else usual_duration(self.rate_hz, self.tick_s)
            end = starts[-1] + stay
        return Timeline(self.tick_s, starts, end)

    @cached_property
    def _starts(self) -> list[int]:
        """The packets at which decoding may start: the first, and what is independent by its own bytes."""
        if not self.index.is_steady or not self._is_complete:
            return [0]
        evidence = [packet.evidence for packet in self.index.packets]
        needed = self._headers - self.index.headers  # all that is not kept outside of the packets
        return [0, *(n for n, each in enumerate(evidence) if n and each.can_start and needed <= each.headers)]

    def runs(self, numbers: Collection[int]) -> Iterator[Run]:
        """What must be decoded for these frames: from the start before each up to itself."""
        packets = self.index.packets
        number_of = {self.order[number]: number for number in numbers}  # of packets
        starts: list[tuple[float, int]] = []  # (pts, number), both ascending
        coming = iter([*self._starts, len(packets)])
        following = next(coming)
        ranges: list[range] = []
        for number in sorted(number_of):
            while following <= number:
                pts = packets[following].pts
                start = -math.inf if pts is None else pts
                while starts and starts[-1][0] >= start:
                    starts.pop()  # whatever could start there can start here
                starts.append((start, following))
                following = next(coming)
            # frames that are shown before the start that they follow refer to what was before it
            before = bisect_right(starts, (packets[number].pts or 0, number))
            first = starts[before - 1][1] if before else 0
            while ranges and first < ranges[-1].stop:
                first = min(first, ranges.pop().start)
            ranges.append(range(first, number + 1))
        for each in ranges:
            yield self._run(each, {n: number_of[n] for n in number_of if n in each})

    def _run(self, numbers: range, wanted: dict[int, int]) -> Run:
        packets, highest = self.index.packets, self._highest_layer
        fed = [
            number
            for number in numbers
            if number in wanted
            or not (packets[number].evidence.is_disposable and packets[number].evidence.layer == highest)
            or not self._is_complete
        ]
        first = packets[numbers.start].pts if numbers.start else None
        shown = [packets[number].pts for number in fed if packets[number].is_shown]
        pts = sorted(each for each in shown if each is not None and (first is None or each >= first))
        return Run(numbers, fed, pts, {packets[n].pts or 0: number for n, number in wanted.items()})

    @cached_property
    def _is_complete(self) -> bool:
        """Whether no frame that others refer to was lost. Where one was, what is decoded depends on all before."""
        return all(packet.evidence.follows for packet in self.index.packets)

    @cached_property
    def _highest_layer(self) -> int:
        return max(packet.evidence.layer for packet in self.index.packets)
