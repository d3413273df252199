"""Opening a video file, within bounds.

A file may come from anyone, so there are bounds to what it can make FFmpeg do: FORMATS, none of which refers to other
files; MAX_PIXELS of a picture; and what an MP4 file may claim before it is opened (`claims.py`). A file beyond them is
refused with a `VideoError`. The bounds on what a file holds are in `index.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from diveparse.datasets.video.claims import ExcessiveClaimError, refuse_excessive_claims

FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,gif"  # MP4 is read by FFmpeg's mov, WebM by its matroska
MAX_PIXELS = 8192 * 4320  # of 8K cinema; a decoder can hold some twenty such frames


class VideoError(ValueError):
    """A file cannot be read as a video. The message starts with its path."""


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file at its video: the track that FFmpeg itself would choose, and no cover picture.

    Raises: VideoError if the file is missing or empty, is no video of FORMATS, or is beyond the bounds; and in place of
    any error of FFmpeg or of the disk until it is closed.
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


def demux(file: InputContainer, *streams: VideoStream) -> Iterator[Packet]:
    """The packets of a file, without the empty ones that PyAV ends with."""
    # PyAV fails at the end if a stream turned up on the way, as in MPEG-TS
    with suppress(IndexError):
        yield from (packet for packet in file.demux(*streams) if packet.size)


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
    best = file.streams.best("video")
    stream = next((stream for stream in streams if stream is best), streams[0])
    codec = stream.codec_context
    if codec is None:
        raise VideoError(f"{path}: there is no decoder for this kind of video")
    if not 0 < codec.width * codec.height <= MAX_PIXELS:
        got = f"{codec.width}x{codec.height}" if codec.width else "none that could be decoded"
        raise VideoError(f"{path}: expected a picture of 1 to {MAX_PIXELS} pixels, got {got}")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # the size can change on the way
    codec.thread_count = 1  # worker processes share the cores, one file each
    return stream
