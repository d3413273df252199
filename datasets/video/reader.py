"""Reading video files with PyAV: what a file holds, and what is on screen at given times.

Times are presentation times in seconds from the first frame shown, so variable frame rates, reordered frames and edit
lists need no special care. A file is demultiplexed to its end first, which is cheap: its packets say when each frame is
shown. Then only what the wanted frames need is decoded, from the keyframe before each, without the frames that no other
refers to; and only the wanted frames are converted to pixels. The result is that of decoding everything, bit for bit.

A file may come from anyone, so there are bounds to what it can make the reader do: FORMATS, none of which refers to
other files; MAX_PIXELS of a picture; MAX_FRAMES, MAX_PACKETS and MAX_EXPANSION; and what an MP4 file may claim before
it is opened (`mp4_claims`). What is beyond them is refused with a `VideoError`, as is what is damaged or cut short.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from diveparse.datasets.video.claims import ExcessiveClaimError, refuse_excessive_claims
from diveparse.datasets.video.orientation import is_flipped, quarter_turns, upright_size

FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,gif"  # MP4 is read by FFmpeg's mov, WebM by its matroska
MAX_PIXELS = 8192 * 4320  # of 8K cinema; a decoder can hold some twenty such frames
MAX_FRAMES = 1_000_000
MAX_PACKETS = 4 * MAX_FRAMES  # of all streams
MAX_EXPANSION = 10  # how many times a file's size its packets may take, where they are compressed or shown again
# A file that ends this much before its header says has lost its end; a few milliseconds are how containers round.
MISSING_END_S = 0.1
# Packets are kept from the first pass up to this many bytes; those of longer videos are read again where needed.
MAX_HELD_BYTES = 64 * 2**20
PACKET_OVERHEAD_BYTES = 512  # what a packet takes beside its data


class VideoError(ValueError):
    """A file cannot be read as a video. The message starts with its path."""


@dataclass(frozen=True)
class VideoInfo:
    duration_s: float  # from the first frame shown to the end of the last
    num_frames: int
    frame_rate_hz: float  # the mean, where the rate varies
    width: int  # as shown, after rotation
    height: int
    codec: str


def probe(path: Path | str) -> VideoInfo:
    """Go through a video file to its end, decoding one frame only.

    Raises: VideoError if the file is missing, empty, damaged or truncated, or holds no video.
    """
    with _open(path) as video:
        _, first_frame = next(video.frames([0.0]))
        return video.info(first_frame)


def play(path: Path | str) -> VideoInfo:
    """Decode every frame of a video file, to know that it is sound.

    Raises: VideoError as `probe`, or if any frame cannot be decoded.
    """
    with _open(path) as video:
        first_frame = None
        for frame in video.all_frames():
            first_frame = first_frame or frame
        if first_frame is None:
            raise VideoError(f"{path}: the file holds no frame that can be shown")
        return video.info(first_frame)


def read_frames(path: Path | str, times_s: Sequence[float] | Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """What is on screen at each time: the last frame that is shown at or before it.

    times_s: seconds from the first frame shown, in any order, from 0 to the duration. size: (height, width) to resize
    to while converting; None keeps the size as shown.
    Returns: (len(times_s), 3, height, width) uint8, RGB.
    Raises: VideoError as `probe`, or if a frame on the way cannot be decoded; ValueError if a time is not in the video.
    """
    times = [float(time_s) for time_s in times_s]
    if not times or not all(0 <= time_s < math.inf for time_s in times):
        raise ValueError(f"{path}: expected one time or more, each 0 s or later, got {times}")
    if size is not None and min(size) <= 0:
        raise ValueError(f"size must be (height, width) of 1 pixel or more, got {size}")
    with _open(path) as video:
        if max(times) > video.duration_s:
            end_s = f"{video.duration_s:.3f} s"
            raise ValueError(f"{path}: expected times up to the end at {end_s}, got {max(times):.3f} s")
        canvas = _Canvas(len(times), size)
        for index, frame in video.frames(times):
            canvas.draw(index, frame)
    return torch.from_numpy(canvas.pixels)


@contextmanager
def _open(path: Path | str) -> Iterator[_Video]:
    path = Path(path)
    with open_stream(path) as (file, stream):
        yield _Video(path, file, stream)


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its video, and name the file in whatever goes wrong with it until it is closed again.

    Raises: VideoError if it is missing, empty or none of FORMATS, holds no video, or claims more than the bounds above.
    """
    try:
        if not path.exists():
            raise VideoError(f"{path}: there is no such file")
        if not path.is_file():
            raise VideoError(f"{path}: expected a video file, got a folder or a device")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes)")
        with _open_container(path) as file:
            yield file, _video_stream(path, file)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video: {error.strerror}") from error


def _open_container(path: Path) -> InputContainer:
    try:
        refuse_excessive_claims(path)
        options = {
            "protocol_whitelist": "file",
            "format_whitelist": FORMATS,
            "max_pixels": str(MAX_PIXELS),  # some frames are decoded on opening
            "ignore_chapters": "1",  # their titles can take any memory
        }
        # an absolute path cannot be taken for a URL
        return av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except ExcessiveClaimError as error:
        raise VideoError(f"{path}: {error}") from error
    except av.ArgumentError as error:
        raise VideoError(f"{path}: cannot be read as one of {FORMATS}") from error


def _video_stream(path: Path, file: InputContainer) -> VideoStream:
    # the cover picture of an audio file is a video stream too
    streams = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: the file holds no video stream (audio only?)")
    codec = streams[0].codec_context
    if codec is None:
        raise VideoError(f"{path}: there is no decoder for this kind of video")
    if not 0 < codec.width * codec.height <= MAX_PIXELS:
        got = f"{codec.width}x{codec.height}" if codec.width else "none that could be decoded"
        raise VideoError(f"{path}: expected a picture of 1 to {MAX_PIXELS} pixels, got {got}")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # the size can change on the way
    codec.thread_count = 1  # worker processes share the cores, one file each
    return streams[0]


class _PacketInfo(NamedTuple):
    pts: int | None  # in the stream's ticks
    dts: int | None
    is_keyframe: bool
    is_shown: bool  # an edit list can hide a frame that others need


class _Video:
    """An open file whose packets have all been seen: it knows when which frame is shown, before it decodes any."""

    def __init__(self, path: Path, file: InputContainer, stream: VideoStream) -> None:
        self.path, self.file, self.stream = path, file, stream
        self.decoder: CodecContext = self.stream.codec_context
        self.tick_s = self.stream.time_base or Fraction(1)
        # AVI keeps no presentation times: its frames are evenly spaced in the order in which they come out
        self.is_avi = file.format.name == "avi"
        self.packets: list[_PacketInfo] = []
        self.held: list[Packet] | None = []  # the packets themselves, while they are small
        self.spans: dict[int, tuple[int, int]] = {}  # of each stream, its first start and last end in its own ticks
        self._see_packets()
        self._refuse_missing_end()
        self.first_pts, end = self.spans[self.stream.index]
        self.duration_s = float((end - self.first_pts) * self.tick_s)
        if self.duration_s <= 0:
            raise VideoError(f"{path}: expected a duration above 0 s, got {self.duration_s} s")
        self.shown_s = self._times_shown()

    def _see_packets(self) -> None:
        num_bytes, num_held_bytes, max_bytes = 0, 0, MAX_EXPANSION * self.file.size
        for number, packet in enumerate(self._demux()):
            is_video = packet.stream_index == self.stream.index
            num_bytes += packet.size
            if num_bytes > max_bytes or number == MAX_PACKETS:
                limits = f"{MAX_PACKETS} packets of {max_bytes} bytes"
                raise VideoError(f"{self.path}: expected at most {limits}, got more")
            if packet.pts is not None and not packet.is_discard:
                end = packet.pts + (packet.duration or 0)
                first, last = self.spans.get(packet.stream_index, (packet.pts, end))
                self.spans[packet.stream_index] = min(first, packet.pts), max(last, end)
            if not is_video or packet.size == 0:  # demuxing ends with an empty one
                continue
            if packet.is_corrupt:
                raise VideoError(f"{self.path}: truncated or damaged in frame {len(self.packets)}")
            if len(self.packets) == MAX_FRAMES:
                raise VideoError(f"{self.path}: expected at most {MAX_FRAMES} frames")
            self.packets.append(_PacketInfo(packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard))
            num_held_bytes += packet.size + PACKET_OVERHEAD_BYTES
            if num_held_bytes > MAX_HELD_BYTES:
                self.held = None
            if self.held is not None:
                self.held.append(packet)
        if not self.packets or self.stream.index not in self.spans:
            raise VideoError(f"{self.path}: the file holds no frame that can be shown")

    def _demux(self, *streams: VideoStream) -> Iterator[Packet]:
        # PyAV ends with an empty packet for each stream, and fails at one that turned up on the way (in MPEG-TS)
        with suppress(IndexError):
            yield from self.file.demux(*streams)

    def _refuse_missing_end(self) -> None:
        tick_s = {stream.index: stream.time_base or Fraction(1) for stream in self.file.streams}
        spans_s = [(first * tick_s[index], end * tick_s[index]) for index, (first, end) in self.spans.items()]
        end_s = max(end for _, end in spans_s) - min([Fraction(0), *(first for first, _ in spans_s)])
        promised_s = (self.file.duration or 0) / av.time_base
        if promised_s - end_s > MISSING_END_S:
            raise VideoError(f"{self.path}: truncated, it ends at {float(end_s):.2f} s of {promised_s:.2f} s")
        # MP4 promises a number of frames too, but counts those that an edit list cuts away
        if self.is_avi and self.stream.frames > len(self.packets):
            raise VideoError(f"{self.path}: truncated, it ends at frame {len(self.packets)} of {self.stream.frames}")

    def _times_shown(self) -> list[float]:
        """When each frame comes on screen, ascending; (num_frames,) seconds from the first."""
        shown = [packet for packet in self.packets if packet.is_shown]
        rate_hz = self.stream.average_rate
        if self.is_avi and rate_hz:
            return [index * rate_hz.denominator / rate_hz.numerator for index in range(len(shown))]
        if any(packet.pts is None for packet in shown):
            raise VideoError(f"{self.path}: the frames have no times")
        return [self._seconds(pts) for pts in sorted(packet.pts for packet in shown if packet.pts is not None)]

    def _seconds(self, pts: int) -> float:
        return (pts - self.first_pts) * self.tick_s.numerator / self.tick_s.denominator

    def info(self, frame: VideoFrame) -> VideoInfo:
        """frame: any, since only decoded frames know how the picture is turned."""
        height, width = upright_size(frame)
        num_frames, codec = len(self.shown_s), self.decoder.name
        return VideoInfo(self.duration_s, num_frames, num_frames / self.duration_s, width, height, codec)

    def all_frames(self) -> Iterator[VideoFrame]:
        return self._decode(range(len(self.packets)))

    def frames(self, times_s: Sequence[float]) -> Iterator[tuple[int, VideoFrame]]:
        """(index of a time, the frame on screen at it) for every time, in an order of its own."""
        waiting: dict[float, list[int]] = {}  # by the moment at which the wanted frame comes on screen
        for index, time_s in enumerate(times_s):
            waiting.setdefault(self.shown_s[bisect_right(self.shown_s, time_s) - 1], []).append(index)
        if not self.is_avi:
            for frame in self._decode_wanted(set(waiting)):
                if frame.pts is not None:
                    for index in waiting.pop(self._seconds(frame.pts), ()):
                        yield index, frame
        if waiting:
            # What is on screen is known only after decoding everything where packets may show nothing (AVI, VP8), and
            # where no keyframe stands for itself.
            yield from self._frames_the_long_way(times_s, {index for group in waiting.values() for index in group})

    def _frames_the_long_way(self, times_s: Sequence[float], wanted: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        waiting = sorted(wanted, key=times_s.__getitem__, reverse=True)  # the earliest stands last
        shown = None
        for number, frame in enumerate(self.all_frames()):
            if frame.pts is None and not self.is_avi:
                raise VideoError(f"{self.path}: the frames have no times")
            start_s = self.shown_s[min(number, len(self.shown_s) - 1)] if self.is_avi else self._seconds(frame.pts or 0)
            while shown is not None and waiting and times_s[waiting[-1]] < start_s:
                yield waiting.pop(), shown
            if not waiting:
                return
            shown = frame
        if shown is None:
            raise VideoError(f"{self.path}: the file holds no frame that can be shown")
        for index in waiting:  # the last frame stays to the end
            yield index, shown

    def _decode_wanted(self, starts_s: set[float]) -> Iterator[VideoFrame]:
        """Decode what the frames shown from these moments on need: from the keyframe before each up to itself."""
        wanted: set[int] = set()
        runs: list[range] = []
        keyframes: list[tuple[float, int]] = []  # (pts, number), both ascending
        for number, packet in enumerate(self.packets):
            if packet.is_keyframe:
                pts = -math.inf if packet.pts is None else packet.pts
                while keyframes and keyframes[-1][0] >= pts:
                    keyframes.pop()  # whatever could start there can start here
                keyframes.append((pts, number))
            if packet.pts is None or not packet.is_shown or self._seconds(packet.pts) not in starts_s:
                continue
            wanted.add(number)
            # frames that are shown before the keyframe that they follow refer to what was before it
            before = bisect_right(keyframes, (packet.pts, number))
            first = keyframes[before - 1][1] if before else 0
            while runs and first < runs[-1].stop:
                first = min(first, runs.pop().start)
            runs.append(range(first, number + 1))
        for run in runs:
            keyframe_pts, is_checked = self.packets[run.start].pts, run.start == 0
            for frame in self._decode(run, wanted):
                if not is_checked and frame.pts is not None and keyframe_pts is not None and frame.pts >= keyframe_pts:
                    if frame.pts > keyframe_pts or frame.pict_type != PictureType.I:
                        return  # H.264 can refresh its picture stripe by stripe, and calls that a keyframe too
                    is_checked = True
                yield frame

    def _decode(self, run: range, wanted: set[int] | None = None) -> Iterator[VideoFrame]:
        """The frames of a run of packets, as they come out; of those that no other frame refers to, only the wanted."""
        if self.decoder.is_open:
            self.decoder.flush_buffers()  # whatever the last run left
        for number, packet in zip(run, self._read_packets(run), strict=False):
            self.decoder.skip_frame = "DEFAULT" if wanted is None or number in wanted else "NONREF"
            yield from self._decode_packet(packet, number)
        yield from self._decode_packet(None, run.stop - 1)

    def _decode_packet(self, packet: Packet | None, number: int) -> list[VideoFrame]:
        try:
            frames = self.stream.decode(packet)
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot be decoded near frame {number}: {error.strerror}") from error
        if any(frame.is_corrupt for frame in frames):
            raise VideoError(f"{self.path}: damaged near frame {number}")
        return frames

    def _read_packets(self, run: range) -> Iterator[Packet]:
        """The packets from the run's first on, in the file's order."""
        if self.held is not None:
            yield from self.held[run.start : run.stop]
            return
        first = self.packets[run.start]
        start = first.pts if first.dts is None else first.dts
        if start is None:
            raise VideoError(f"{self.path}: the frames have no times, and the file is too large to keep in memory")
        self.file.seek(start, stream=self.stream)
        found = False
        for packet in self._demux(self.stream):
            found = found or packet.pts == first.pts  # after seeking, Matroska gives other decoding times
            if found and packet.size > 0:
                yield packet
        if not found:
            raise VideoError(f"{self.path}: cannot be played from frame {run.start} on")


class _Canvas:
    """The pixels (num_times, 3, height, width) that frames are drawn on, upright; by default of the first's size."""

    def __init__(self, num_times: int, size: tuple[int, int] | None) -> None:
        self.num_times, self.size = num_times, size
        self.reformatter = VideoReformatter()
        self.is_flipped = False
        self.last: tuple[int, VideoFrame] | None = None

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        assert self.size is not None  # known when the first frame is drawn
        return np.empty((self.num_times, 3, *self.size), np.uint8)

    def draw(self, index: int, frame: VideoFrame) -> None:
        if self.last is not None and self.last[1] is frame:  # one frame can be on screen at several of the times
            self.pixels[index] = self.pixels[self.last[0]]
            return
        self.size = self.size or upright_size(frame)
        if self.last is None:  # asked for once only: PyAV keeps a frame in memory that was asked
            self.is_flipped = is_flipped(frame)
        turns = quarter_turns(frame)
        height, width = self.size[::-1] if turns % 2 else self.size
        as_stored = np.rot90(self.pixels[index], -turns, axes=(1, 2))  # a view
        if self.is_flipped:
            as_stored = as_stored[:, ::-1]
        if (height, width) == (frame.height, frame.width):
            as_stored[:] = frame.to_ndarray(format="rgb24", threads=1).transpose(2, 0, 1)
        else:
            # Planes need half the time that packed pixels take, but only when swscale resizes: its short cut for pixels
            # of the same size leaves the last columns of planes unwritten.
            planar = self.reformatter.reformat(frame, width, height, "gbrp", interpolation="BILINEAR", threads=1)
            for channel, plane in zip((1, 2, 0), planar.planes, strict=True):  # green, blue, red
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
                as_stored[channel] = rows[:, :width]
        self.last = index, frame
