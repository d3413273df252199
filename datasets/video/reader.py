"""Reading video files with PyAV: what a file holds, and what is on screen at given times.

Times are seconds from the first frame that is shown. The result is that of decoding the whole file with FFmpeg, bit by
bit, at the times that `timeline.py` defines. So variable rates, reordered and hidden frames, edit lists, fields, joined
recordings and cut files need no care of the caller.

It is reached faster. The packets of a file promise which frame is shown when (`plan.py`), and only what the wanted
frames need is decoded: from a packet at which decoding can start up to the frame itself, without the frames that no
other refers to. A promise is used only where the file proves it, and each frame that comes out is checked against it:
the frames of a run have to come out one for each packet, in the promised order, each with the promised time. Where
anything differs, the file is decoded from its start instead, and this is remembered for the file (`full_decode.py`).

A file that lacks its end is read up to there. The loss is logged once, and `VideoInfo.loss` names it.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from torch import Tensor, from_numpy

from diveparse.datasets.video.canvas import Canvas
from diveparse.datasets.video.container import MAX_PIXELS, VideoError, demux, open_stream
from diveparse.datasets.video.full_decode import Survey, decode_packet, distrust, frames_at, remembered, survey
from diveparse.datasets.video.index import Index
from diveparse.datasets.video.orientation import upright_size
from diveparse.datasets.video.plan import Plan, Run
from diveparse.datasets.video.timeline import Timeline

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class VideoInfo:
    duration_s: float  # from the first frame shown to the end of the last
    num_frames: int
    frame_rate_hz: float  # the mean, where the rate varies
    width: int  # as shown, after rotation
    height: int
    codec: str
    loss: str | None = None  # what the file lacks at its end, in words


class DisagreementError(Exception):
    """The frames that came out of the decoder are not those that the packets promised."""


def probe(path: Path | str) -> VideoInfo:
    """Go through a video file to its end, decoding one frame only where the packets prove the others.

    Raises: VideoError if the file is missing, empty, damaged, or holds no video.
    """
    return watch(Path(path), Video.info)


def play(path: Path | str) -> VideoInfo:
    """Decode every frame of a video file, to know that it is sound.

    Raises: VideoError as `probe`, or if a frame cannot be decoded. A damaged end is a loss.
    """
    path = Path(path)
    with open_stream(path) as (file, stream):
        plan = Plan(Index(path, file, stream), stream)
    found = survey(path, plan, again=True)
    if found.damage:
        raise VideoError(found.damage)
    return probe(path)


def read_frames(path: Path | str, times_s: Sequence[float] | Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """What is on screen at each time: the last frame that comes at or before it.

    times_s: seconds from the first frame shown, in any order, from 0 to the duration. size: (height, width) to resize
    to while converting; None keeps the size of the first frame, as shown.
    Returns: (len(times_s), 3, height, width) uint8, RGB.
    Raises: VideoError as `probe`, or if a frame on the way cannot be decoded; ValueError if a time is not in the video.
    """
    times = [float(time_s) for time_s in times_s]
    if not times or not all(0 <= time_s < math.inf for time_s in times):
        raise ValueError(f"{path}: expected one time or more, each 0 s or later, got {times}")
    if size is not None and min(size) <= 0:
        raise ValueError(f"size must be (height, width) of 1 pixel or more, got {size}")
    if size is not None and math.prod(size) > MAX_PIXELS:
        raise VideoError(f"{path}: expected a size of at most {MAX_PIXELS} pixels to resize to, got {size}")
    return from_numpy(watch(Path(path), lambda video: video.draw(times, size).pixels))


def watch(path: Path, use: Callable[[Video], Result]) -> Result:
    """Open a video and use it; once more if its frames turn out to be others than its packets promise."""
    plan = found = None
    while plan is None or found is None or found.agrees:
        disagrees = False
        with open_stream(path) as (file, stream):
            plan = plan or Plan(Index(path, file, stream), stream)
            found = found or remembered(path)
            if found.agrees if found else plan.is_proven:
                try:
                    return use(Video(path, plan, found, file, stream))
                except DisagreementError:
                    disagrees = True
        # decoded while the file is closed, since some files take much memory while they are open
        found = found or survey(path, plan)
        if disagrees:
            found = distrust(path, found)
    return use(Video(path, plan, found))


class Video:
    """A video whose packets have all been seen. Frames are counted in the order in which they are shown.

    found: what decoding all of it gave, where that was necessary. file, stream: where single frames are decoded.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        found: Survey | None,
        file: InputContainer | None = None,
        stream: VideoStream | None = None,
    ) -> None:
        self.path, self.plan = path, plan
        self._survey, self._file, self._stream = found, file, stream
        self.loss = plan.index.loss or (found.loss if found else None)  # what the file lacks at its end
        if self.loss:
            _warn_once(f"{path}: {self.loss}; what is there is read")

    @property
    def timeline(self) -> Timeline:
        return self._survey.timeline if self._survey else self.plan.timeline

    @property
    def duration_s(self) -> float:
        """Of the whole video, also where a part of it is damaged."""
        if self._survey and self._survey.damage and self.plan.pts:
            return max(self.timeline.duration_s, self.plan.timeline.duration_s)
        return self.timeline.duration_s

    def info(self) -> VideoInfo:
        """Raises: DisagreementError."""
        _, first = next(self.frames({0}))
        height, width = upright_size(first)  # only decoded frames have it
        is_damaged = self._survey is not None and self._survey.damage is not None
        num_frames = self.plan.num_shown if is_damaged else len(self.timeline.starts)
        codec = self.plan.codec
        return VideoInfo(self.duration_s, num_frames, num_frames / self.duration_s, width, height, codec, self.loss)

    def draw(self, times_s: Sequence[float], size: tuple[int, int] | None) -> Canvas:
        """What is on screen at each time. Raises: ValueError if a time is after the end; DisagreementError."""
        latest_s = max(times_s)
        promised_s = self.plan.timeline.duration_s if self.plan.pts else 0.0
        if self.duration_s < latest_s <= promised_s:
            ends = f"its frames end at {self.duration_s:.3f} s, though its packets promise {promised_s:.3f} s"
            raise VideoError(f"{self.path}: damaged: {ends}")
        if latest_s > self.duration_s:
            end_s = f"{self.duration_s:.3f} s" + (f" ({self.loss})" if self.loss else "")
            raise ValueError(f"{self.path}: expected times up to the end at {end_s}, got {latest_s:.3f} s")
        self.require(latest_s)
        wanted: dict[int, list[int]] = defaultdict(list)  # number of a frame -> where it is drawn
        for index, time_s in enumerate(times_s):
            wanted[self.timeline.on_screen(time_s)].append(index)
        # the first frame decides what time 0 is, and the size of all
        numbers = set(wanted) if self.plan.is_self_evident else {0, *wanted}
        canvas = None
        for number, frame in self.frames(numbers):
            canvas = canvas or Canvas(len(times_s), size, frame)
            for index in wanted[number]:
                canvas.draw(index, frame)
        assert canvas is not None  # every wanted frame came, or an error
        return canvas

    def require(self, time_s: float) -> None:
        """Raises: VideoError if the video is damaged before this time."""
        if self._survey and self._survey.damage and time_s >= self.timeline.duration_s:
            raise VideoError(self._survey.damage)

    def frames(self, numbers: set[int]) -> Iterator[tuple[int, VideoFrame]]:
        """(number, frame) of each of these frames, ascending. Raises: DisagreementError at any time."""
        if self._file is None or self._stream is None:
            yield from frames_at(self.path, len(self.plan.index.packets), numbers)
            return
        for run in self.plan.runs(numbers):
            if self._stream.codec_context.is_open:
                self._stream.codec_context.flush_buffers()  # whatever the last run left
            yield from checked(run, self._frames_of(run, self._file, self._stream))

    def _frames_of(self, run: Run, file: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """All frames that come out of a run's packets. Raises: VideoError at damage, if decoding began at the first."""
        is_from_start = run.packets.start == 0
        for number, packet in chain(self._packets_of(run, file, stream), [(run.packets.stop - 1, None)]):
            try:
                frames = decode_packet(self.path, stream, packet, number)
                if any(frame.is_corrupt for frame in frames):
                    raise VideoError(f"{self.path}: damaged near frame {number}")
            except VideoError:
                if is_from_start:
                    raise
                raise DisagreementError from None
            yield from frames

    def _packets_of(self, run: Run, file: InputContainer, stream: VideoStream) -> Iterator[tuple[int, Packet]]:
        """(number, packet) of those of a run that the decoder gets."""
        held = self.plan.index.held
        if held is not None:
            yield from ((number, held[number]) for number in run.fed)
            return
        fed = set(run.fed)
        numbers = iter(run.packets)
        expected = self.plan.index.packets[run.packets.start]
        start = expected.pts if expected.dts is None else expected.dts
        if start is None:
            raise DisagreementError
        file.seek(start, stream=stream)
        is_found = False
        for packet in demux(file, stream):
            is_found = is_found or (packet.pts, packet.size) == (expected.pts, expected.size)
            if not is_found:
                continue
            number = next(numbers, None)
            if number is None:
                return
            expected = self.plan.index.packets[number]
            if packet.size != expected.size:
                raise DisagreementError
            packet.pts, packet.dts = expected.pts, expected.dts  # after seeking, some formats give others
            if number in fed:
                yield number, packet
        if not is_found:
            raise DisagreementError


def checked(run: Run, frames: Iterable[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) of the wanted frames of a run, while all that comes out of the decoder is what packets promise.

    Raises: DisagreementError if it is not.
    """
    num_due = 0
    for frame in frames:
        if run.packets.start and not num_due:
            if frame.pts is not None and frame.pts < run.pts[0]:
                continue  # it refers to what was before the run
            if frame.pict_type != PictureType.I:  # H.264 can refresh its picture stripe by stripe
                raise DisagreementError
        if num_due == len(run.pts) or frame.pts != run.pts[num_due]:
            raise DisagreementError
        num_due += 1
        if frame.pts in run.wanted:
            yield run.wanted[frame.pts], frame
    if num_due < len(run.pts):
        raise DisagreementError


@lru_cache(maxsize=10_000)
def _warn_once(message: str) -> None:
    logger.warning(message)
