"""Encoding H.264 in MP4: the one place where the project writes video files."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

# With AVX-512, x264 chooses differently from one encoding of the same pictures to the next, so that a folder which is
# finished after a kill would differ from an undisturbed one. From SSE4.2 to AVX2 the bytes are always the same.
REPEATABLE = ("asm=SSE4.2",) if platform.machine() in {"x86_64", "AMD64"} else ()


class Picture(NamedTuple):
    """A picture of a video. Times are in ticks; without them, the pictures follow one another evenly."""

    pixels: NDArray[np.uint8]  # (height, width, 3) RGB, both sides even
    start: int | None = None  # when it comes on screen
    duration: int | None = None  # how long it stays


def x264_options(crf: int, *params: str) -> dict[str, str]:
    """Options of libx264 for pictures that are decoded more often than encoded, and that give the same bytes each time.

    crf: x264's quality, lower is better. params: further options of x264 itself, each as NAME=VALUE.
    """
    return {
        "preset": "veryfast",
        "tune": "fastdecode",
        "crf": str(crf),
        "threads": "1",
        "x264-params": ":".join((*params, *REPEATABLE)),
    }


def write_h264(
    path: Path,
    pictures: Iterable[Picture],
    *,
    rate_hz: Fraction,
    options: Mapping[str, str],
    tick_s: Fraction | None = None,
    pixel_aspect: Fraction | None = None,
    is_bt709: bool = False,
) -> None:
    """Encode pictures of one size, one after the other, so that memory holds few of them.

    rate_hz: pictures a second; the mean, where the rate varies. options: of libx264. tick_s: the unit of the pictures'
    times. pixel_aspect: width to height of a pixel, where it is not square. is_bt709: convert by the matrix of HD video
    and mark the file so; otherwise swscale's default (BT.601) is used and the file is not marked.
    Raises: ValueError without any picture; av.FFmpegError if the file cannot be written.
    """
    # an absolute path cannot be taken for a URL
    with av.open(str(path.absolute()), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=rate_hz, options=dict(options))
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        if tick_s is not None:
            context.time_base = tick_s
        if pixel_aspect is not None:
            context.sample_aspect_ratio = pixel_aspect
        if is_bt709:
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        durations: dict[int | None, int] = {}  # in ticks, of the pictures inside the encoder, by their starts

        def write(packets: list[Packet]) -> None:
            for packet in packets:
                packet.duration = durations.pop(packet.pts, 0) or packet.duration
                file.mux(packet)

        num_pictures = 0
        for num_pictures, picture in enumerate(pictures, start=1):  # looked at after the loop
            if num_pictures == 1:
                stream.height, stream.width = picture.pixels.shape[:2]
            frame = _frame(picture, tick_s, is_bt709=is_bt709)
            if picture.start is not None and picture.duration:
                durations[picture.start] = picture.duration
            write(stream.encode(frame))
        if not num_pictures:
            raise ValueError(f"{path}: expected one picture or more to encode, got none")
        write(stream.encode(None))


def _frame(picture: Picture, tick_s: Fraction | None, *, is_bt709: bool) -> VideoFrame:
    frame = VideoFrame.from_ndarray(picture.pixels, format="rgb24")
    if is_bt709:
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    if picture.start is not None:
        frame.pts, frame.time_base = picture.start, tick_s
    if picture.duration is not None:
        frame.duration = picture.duration
    return frame
