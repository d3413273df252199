"""Decoding all of a video from its first packet on: slow, and right by definition.

`survey` learns once for a file which frames that gives and when, and remembers it in this process, since decoding only
what is wanted has to agree with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from diveparse.datasets.video.container import VideoError, demux, open_stream
from diveparse.datasets.video.plan import Plan
from diveparse.datasets.video.timeline import Clocks, Timeline, timeline_of

MAX_REMEMBERED_FRAMES = 4_000_000  # of all files, in 32 MB


@dataclass(frozen=True)
class Survey:
    """timeline: of the frames that are whole, up to the first damage."""

    timeline: Timeline
    agrees: bool  # whether the frames are those that the packets promise, at their times
    loss: str | None  # what the file lacks at its end
    damage: str | None  # why the frames after the timeline cannot be read


class CutEndError(VideoError):
    """The last packet is not whole."""


def decode_packet(path: Path, stream: VideoStream, packet: Packet | None, number: int) -> list[VideoFrame]:
    """The frames that come out as a packet goes in; None ends the stream. number: of the packet, for errors.

    Raises: VideoError if the packet cannot be decoded.
    """
    try:
        return list(stream.decode(packet))
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be decoded near frame {number}: {error.strerror}") from error


def every_frame(path: Path, num_packets: int) -> Iterator[VideoFrame]:
    """The frames of a video in the order in which they are shown, decoded one after the other.

    num_packets: how many the video has.
    Raises: VideoError, after all frames before it, if a packet cannot be decoded; CutEndError if it is the last.
    """
    with open_stream(path) as (file, stream):
        number, error = 0, None
        for number, packet in enumerate(demux(file, stream)):
            try:
                if packet.is_corrupt and number + 1 == num_packets:
                    raise VideoError(f"{path}: truncated in frame {number}")
                yield from decode_packet(path, stream, packet, number)
            except VideoError as caught:
                error = caught
                break
        yield from decode_packet(path, stream, None, number)
        if error is not None:
            raise CutEndError(str(error)) if number + 1 == num_packets else error


def frames_at(path: Path, num_packets: int, wanted: set[int]) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) of the wanted frames, by decoding everything before them."""
    last = max(wanted)
    for number, frame in enumerate(every_frame(path, num_packets)):
        if number in wanted:
            yield number, frame
        if number == last:
            return
    raise VideoError(f"{path}: changed while it was read")


_surveys: OrderedDict[tuple[str, int, int], Survey] = OrderedDict()


def survey(path: Path, plan: Plan, *, again: bool = False) -> Survey:
    """Decode everything once, or remember what that gave. again: decode it now, to know that it is sound.

    Raises: VideoError if no frame is shown.
    """
    return (None if again else remembered(path)) or _remember(path, _survey(path, plan))


def remembered(path: Path) -> Survey | None:
    return _surveys.get(_key(path))


def distrust(path: Path, found: Survey) -> Survey:
    """Remember that a file's packets do not lead to its frames, even if all of them together promise the right ones."""
    return _remember(path, replace(found, agrees=False))


def _remember(path: Path, found: Survey) -> Survey:
    _surveys[_key(path)] = found
    while len(_surveys) > 1 and sum(len(each.timeline.starts) for each in _surveys.values()) > MAX_REMEMBERED_FRAMES:
        _surveys.popitem(last=False)
    return found


def _key(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def _survey(path: Path, plan: Plan) -> Survey:
    frames: list[Clocks] = []
    num_damaged, loss, damage = 0, None, None
    try:
        for frame in every_frame(path, len(plan.index.packets)):
            if frame.is_corrupt:
                num_damaged += 1
            elif num_damaged:
                damage = f"{path}: damaged near frame {len(frames)}"
                break
            else:
                frames.append(Clocks(frame.pts, frame.dts, frame.duration or 0))
        if num_damaged and damage is None:
            loss = f"damaged from frame {len(frames)} to its end"
    except CutEndError as error:
        loss, damage = f"truncated in frame {len(frames)}", None if frames else str(error)
    except VideoError as error:
        damage = str(error)
    if not frames:
        raise VideoError(damage or f"{path}: {loss or 'the file holds no frame that can be shown'}")
    timeline = timeline_of(frames, plan.tick_s, plan.rate_hz, is_resettable=plan.is_resettable)
    agrees = [frame.pts for frame in frames] == plan.pts and timeline.starts == plan.timeline.starts
    return Survey(plan.timeline if agrees else timeline, agrees, loss, damage)
