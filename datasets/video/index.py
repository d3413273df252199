"""The packets of a video, listed by demultiplexing the file to its end, which is cheap.

There are bounds to what a file can hold: MAX_FRAMES, MAX_PACKETS and MAX_EXPANSION.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from diveparse.datasets.video.bitstream import examiner
from diveparse.datasets.video.container import VideoError, demux
from diveparse.datasets.video.evidence import NO_EVIDENCE, NO_HEADERS, Evidence, Examiner

MAX_FRAMES = 1_000_000
MAX_PACKETS = 4 * MAX_FRAMES  # of all streams
MAX_EXPANSION = 10  # how many times a file's size its packets may take, where they are compressed or shown again
# A file that ends this much before its header promises has lost its end; a few milliseconds are how containers round.
MISSING_END_S = 0.1
# Packets are kept up to this many bytes; those of longer videos are read again where needed.
MAX_HELD_BYTES = 64 * 2**20
PACKET_OVERHEAD_BYTES = 512  # what a packet takes beside its data
# side data of a packet that changes how all later ones are decoded
LASTING_SIDE_DATA = {"new_extradata", "param_change", "palette"}


class PacketInfo(NamedTuple):
    pts: int | None  # in the stream's ticks
    dts: int | None
    size: int
    is_shown: bool  # an edit list can hide a frame that others need, and some codecs have frames that are never shown
    evidence: Evidence


class Index:
    """All packets of a video stream, in the order in which they are decoded.

    Raises: VideoError if they exceed the bounds above, or if no packet is shown.
    """

    def __init__(self, path: Path, file: InputContainer, stream: VideoStream) -> None:
        self.path = path
        self.packets: list[PacketInfo] = []
        self.held: list[Packet] | None = []  # the packets themselves, while they are small
        self.is_steady = True  # no packet is damaged, or changes how the others are decoded
        self.spans: dict[int, tuple[int, int]] = {}  # of each stream, its first start and last end in its own ticks
        examine = examiner(stream.codec_context)
        self.has_evidence = examine is not None
        self.headers = examine.headers if examine else NO_HEADERS  # outside of the packets
        num_held_bytes = 0
        for packet in self._bounded_packets(file):
            pts, number = packet.pts, packet.stream_index
            if pts is not None and not packet.is_discard:
                end = pts + (packet.duration or 0)
                first, last = self.spans.get(number, (pts, end))
                self.spans[number] = pts if pts < first else first, end if end > last else last
            if number != stream.index:
                continue
            if len(self.packets) == MAX_FRAMES:
                raise VideoError(f"{path}: expected at most {MAX_FRAMES} frames")
            evidence = _evidence_of(packet, examine)
            is_shown = not packet.is_discard and not evidence.is_hidden
            self.packets.append(PacketInfo(pts, packet.dts, packet.size, is_shown, evidence))
            if packet.is_corrupt:
                self.is_steady = False
            for side_data in packet.iter_sidedata():
                if side_data.data_type in LASTING_SIDE_DATA:
                    self.is_steady = False
            num_held_bytes += packet.size + PACKET_OVERHEAD_BYTES
            if num_held_bytes > MAX_HELD_BYTES:
                self.held = None
            if self.held is not None:
                self.held.append(packet)
        if not any(packet.is_shown for packet in self.packets):
            raise VideoError(f"{path}: the file holds no frame that can be shown")
        self.has_one_size = examine is not None and examine.has_one_size
        self.loss = self._missing_end(file, stream)

    def _bounded_packets(self, file: InputContainer) -> Iterator[Packet]:
        num_bytes, max_bytes = 0, MAX_EXPANSION * file.size
        for number, packet in enumerate(demux(file)):
            num_bytes += packet.size
            if num_bytes > max_bytes or number == MAX_PACKETS:
                limits = f"{MAX_PACKETS} packets of {max_bytes} bytes"
                raise VideoError(f"{self.path}: expected at most {limits}, got more")
            yield packet

    def _missing_end(self, file: InputContainer, stream: VideoStream) -> str | None:
        """What the file lacks after its last packet, by its own header; None if nothing."""
        tick_s = {each.index: each.time_base or Fraction(1) for each in file.streams}
        spans_s = [(first * tick_s[index], end * tick_s[index]) for index, (first, end) in self.spans.items()]
        if not spans_s:
            return None
        end_s = max(end for _, end in spans_s) - min([Fraction(0), *(first for first, _ in spans_s)])
        promised_s = (file.duration or 0) / av.time_base
        if file.format.name == "avi" and stream.average_rate:
            promised_s = max(promised_s, float(stream.frames / stream.average_rate))
        if promised_s - end_s > MISSING_END_S:
            return f"truncated, it ends at {float(end_s):.2f} s of {promised_s:.2f} s"
        return None


def _evidence_of(packet: Packet, examine: Examiner | None) -> Evidence:
    try:
        return examine.read(bytes(packet), packet.is_keyframe) if examine else NO_EVIDENCE
    except (IndexError, KeyError, ValueError):  # the packet is damaged, or its parameters are not known
        return NO_EVIDENCE
