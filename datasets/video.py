"""Reading video files with PyAV: what a file holds, and what is on screen at given times.

Times are presentation times in seconds from the first frame shown, so variable frame rates, reordered frames and edit
lists need no special care. A file is played once, forward; only the frames asked for are converted to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

# Limits on what a header may claim, so that a hostile file cannot take all memory or time.
MAX_PIXELS = 8192 * 8192
MAX_FRAMES = 1_000_000
# A file that ends this much before its header says has lost its end; a few milliseconds are how containers round.
MISSING_END_S = 0.1


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
        return video.info(next((frame for _, frame in video.frames()), None))


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
    waiting = sorted(range(len(times)), key=times.__getitem__, reverse=True)  # the earliest stands last
    with _open(path) as video:
        canvas, shown = _Canvas(len(times), size), None
        for time_s, frame in video.frames():
            while shown is not None and waiting and times[waiting[-1]] < time_s:
                canvas.draw(waiting.pop(), shown)
            if not waiting:
                break
            shown = frame
        info = video.info(shown)
        assert shown is not None  # `info` refuses a file without frames
        if max(times) > info.duration_s:
            raise ValueError(f"{path}: expected times up to the end at {info.duration_s:.3f} s, got {max(times):.3f} s")
        for index in waiting:  # the last frame stays to the end
            canvas.draw(index, shown)
    return torch.from_numpy(canvas.pixels)


@contextmanager
def _open(path: Path | str) -> Iterator[_PlayedVideo]:
    """Open a file and name it in whatever goes wrong with it until it is closed again."""
    path = Path(path)
    try:
        if not path.exists():
            raise VideoError(f"{path}: there is no such file")
        if not path.is_file():
            raise VideoError(f"{path}: expected a video file, got a folder or a device")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes)")
        # An absolute path cannot be taken for a URL, and what a playlist points to stays on this machine.
        with av.open(str(path.absolute()), options={"protocol_whitelist": "file"}, metadata_errors="replace") as file:
            yield _PlayedVideo(path, file)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video: {error.strerror}") from error


def _video_stream(path: Path, file: InputContainer) -> VideoStream:
    # the cover picture of an audio file is a video stream too
    streams = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: the file holds no video stream (audio only?)")
    codec = streams[0].codec_context
    if codec is None:
        raise VideoError(f"{path}: there is no decoder for this kind of video")
    if not 0 < codec.width * codec.height <= MAX_PIXELS:
        raise VideoError(f"{path}: expected a picture of 1 to {MAX_PIXELS} pixels, got {codec.width}x{codec.height}")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # the size can change on the way
    codec.thread_count = 1  # worker processes share the cores, one file each
    return streams[0]


class _PlayedVideo:
    """One pass through an open file: frames for as long as the caller takes them, then what its packets said."""

    def __init__(self, path: Path, file: InputContainer) -> None:
        self.path, self.file, self.stream = path, file, _video_stream(path, file)
        self.packets = self._demux()
        self.num_packets = self.num_frames = 0
        self.spans: dict[int, tuple[int, int]] = {}  # of each stream, its first start and last end in its own ticks
        self.tick_s = {stream.index: stream.time_base or Fraction(1) for stream in file.streams}
        # AVI keeps no presentation times: its frames are evenly spaced in the order in which they come out
        self.is_avi = file.format.name == "avi"

    def _demux(self) -> Iterator[Packet]:
        for packet in self.file.demux():
            is_video = packet.stream_index == self.stream.index
            if packet.pts is not None and not packet.is_discard:  # an edit list hides what is to be discarded
                end = packet.pts + (packet.duration or 0)
                first, last = self.spans.get(packet.stream_index, (packet.pts, end))
                self.spans[packet.stream_index] = min(first, packet.pts), max(last, end)
                self.num_frames += is_video
            if is_video:
                if packet.is_corrupt:
                    raise VideoError(f"{self.path}: truncated or damaged in frame {self.num_packets}")
                self.num_packets += packet.size > 0  # the last one is empty and flushes the decoder
                if self.num_packets > MAX_FRAMES:
                    raise VideoError(f"{self.path}: expected at most {MAX_FRAMES} frames")
                yield packet

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """The frames in the order in which they are shown, each with its seconds from the first."""
        first_pts, tick_s, rate_hz = None, self.tick_s[self.stream.index], self.stream.average_rate
        for index, frame in enumerate(frame for packet in self.packets for frame in packet.decode()):
            if frame.is_corrupt:
                raise VideoError(f"{self.path}: damaged in frame {index}")
            if self.is_avi and rate_hz:
                yield float(index / rate_hz), frame
            elif frame.pts is None:
                raise VideoError(f"{self.path}: the frames have no times")
            else:
                first_pts = frame.pts if first_pts is None else first_pts
                yield (frame.pts - first_pts) * tick_s.numerator / tick_s.denominator, frame

    def info(self, frame: VideoFrame | None) -> VideoInfo:
        """Go on to the end and sum up. frame: any decoded frame, since only frames know how the picture is turned."""
        for _ in self.packets:
            pass
        if frame is None or self.stream.index not in self.spans:
            raise VideoError(f"{self.path}: the file holds no frame that can be shown")
        self._refuse_missing_end()
        first, end = self.spans[self.stream.index]
        duration_s = (end - first) * self.tick_s[self.stream.index]
        if duration_s <= 0:
            raise VideoError(f"{self.path}: expected a duration above 0 s, got {float(duration_s)} s")
        height, width = _upright_size(frame)
        codec = self.stream.codec_context.name
        return VideoInfo(float(duration_s), self.num_frames, float(self.num_frames / duration_s), width, height, codec)

    def _refuse_missing_end(self) -> None:
        spans_s = [(first * self.tick_s[index], end * self.tick_s[index]) for index, (first, end) in self.spans.items()]
        end_s = max(end for _, end in spans_s) - min([Fraction(0), *(first for first, _ in spans_s)])
        promised_s = (self.file.duration or 0) / av.time_base
        if promised_s - end_s > MISSING_END_S:
            raise VideoError(f"{self.path}: truncated, it ends at {float(end_s):.2f} s of {promised_s:.2f} s")
        # MP4 promises a number of frames too, but counts those that an edit list cuts away
        if self.is_avi and self.stream.frames > self.num_packets:
            raise VideoError(f"{self.path}: truncated, it ends at frame {self.num_packets} of {self.stream.frames}")


def _quarter_turns(frame: VideoFrame) -> int:
    """How often to turn the picture counter-clockwise by 90 degrees so that it stands upright."""
    return round(frame.rotation / 90) % 4


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)


class _Canvas:
    """The pixels (num_times, 3, height, width) that frames are drawn on, upright; by default of the first's size."""

    def __init__(self, num_times: int, size: tuple[int, int] | None) -> None:
        self.num_times, self.size = num_times, size
        self.reformatter = VideoReformatter()
        self.last: tuple[int, VideoFrame] | None = None

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        assert self.size is not None  # known when the first frame is drawn
        return np.empty((self.num_times, 3, *self.size), np.uint8)

    def draw(self, index: int, frame: VideoFrame) -> None:
        if self.last is not None and self.last[1] is frame:  # one frame can be on screen at several of the times
            self.pixels[index] = self.pixels[self.last[0]]
            return
        self.size = self.size or _upright_size(frame)
        turns = _quarter_turns(frame)
        height, width = self.size[::-1] if turns % 2 else self.size
        as_stored = np.rot90(self.pixels[index], -turns, axes=(1, 2))  # a view
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
