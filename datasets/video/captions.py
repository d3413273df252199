"""Writing words over the frames of a video: a copy to be watched, with what was said about the dive on the picture."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, starmap
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.video.orientation import is_flipped, quarter_turns, upright_pixels, upright_size
from diveparse.datasets.video.reader import VideoError, open_stream
from diveparse.datasets.video.writer import Picture, write_h264

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own has no ½
LETTERS_PER_SIDE = 24  # heights of a letter in the shorter side of a picture
SMALLEST_LETTERS_PX = 10
SMALLEST_SIDE_PX = 320  # smaller pictures are enlarged, so that words on them can be read
BAND_OPACITY = 0.6
RUN_UP_S = 10.0  # decoded before what is wanted, so that a keyframe lies in it
ENCODING = {"preset": "veryfast", "crf": "18", "bf": "0"}  # no B-frames, so that packets come in the order of frames


def write_captioned(
    source: Path, target: Path, lines: Sequence[str], *, start_s: float = 0.0, end_s: float = math.inf
) -> None:
    """Copy what is on screen from start_s to end_s, in seconds from the first frame shown, under a band of words.

    The copy is H.264 in MP4, upright and silent. It begins with its first frame, and from then on each frame comes when
    it comes in the source, also where the rate varies. A picture with a side below SMALLEST_SIDE_PX is enlarged by a
    whole number; an odd side gets one more row or column, since H.264 needs even ones. Memory holds a few frames only.
    lines: the words, a line each; what is too long for the picture is broken.
    Raises: VideoError if the source cannot be read; ValueError if the target exists or cannot be written.
    """
    if target.exists():
        raise ValueError(f"{target}: is there already, and is not written over")
    survey = _survey(source)
    frames = tqdm(
        _frames_on_screen(source, survey, start_s, end_s),
        desc=f"writing {target.name}",
        total=bisect_left(survey.shown_s, end_s) - bisect_right(survey.shown_s, start_s) + 1,
        unit="frame",
        leave=False,
        delay=1,
    )
    with written_atomically(target) as temporary:
        try:
            _encode(frames, survey, temporary, lines)
        except av.FFmpegError as error:  # the source's own are VideoErrors already
            raise ValueError(f"{target}: cannot be written: {error.strerror}") from error


def draw_band(lines: Sequence[str], height: int, width: int) -> NDArray[np.uint8]:
    """White words on a dark, see-through band; the letters shrink until half of the picture is left free.

    height, width: of the picture. Returns: (band height, width, 4) RGBA, to lie on the lowest rows of the picture.
    """
    for size in range(max(SMALLEST_LETTERS_PX, min(height, width) // LETTERS_PER_SIDE), SMALLEST_LETTERS_PX - 1, -1):
        font = ImageFont.truetype(str(FONT), size)
        margin, line_height = size // 2, round(1.3 * size)
        broken = [part for line in lines for part in _broken(line, font, width - 2 * margin)]
        band_height = len(broken) * line_height + 2 * margin
        if band_height <= height / 2:
            break
    band = Image.new("RGBA", (width, min(band_height, height)), (0, 0, 0, round(255 * BAND_OPACITY)))
    draw = ImageDraw.Draw(band)
    for row, part in enumerate(broken):
        draw.text((margin, margin + row * line_height), part, font=font, fill="white")
    return np.asarray(band)


def _broken(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The line in parts that are at most `width` pixels wide, unless a single word is wider."""
    parts: list[str] = []
    for word in line.split(" "):  # a no-break space is none
        if parts and font.getlength(f"{parts[-1]} {word}") <= width:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


@dataclass(frozen=True)
class _Survey:
    """What a file tells before it is decoded. Ticks are those of its video stream, from the first frame shown."""

    tick_s: Fraction
    first_pts: int | None  # None in AVI, which keeps no times: its frames are evenly spaced as they come out
    shown_s: list[float]  # when each frame comes on screen, ascending
    rate_hz: Fraction  # the mean, where it varies
    pixel_aspect: Fraction  # width to height of a pixel as stored


def _survey(path: Path) -> _Survey:
    with open_stream(path) as (file, stream):
        # an edit list can hide frames that others need
        shown = [packet.pts for packet in file.demux(stream) if packet.size and not packet.is_discard]
        rate_hz, tick_s, first_pts = stream.average_rate or Fraction(25), stream.time_base, None
        if file.format.name == "avi":
            tick_s, ticks = 1 / rate_hz, list(range(len(shown)))
        else:
            pts = sorted(each for each in shown if each is not None)
            if not pts or tick_s is None:
                raise VideoError(f"{path}: the frames have no times")
            first_pts, ticks = pts[0], [each - pts[0] for each in pts]
        shown_s = [_seconds(each, tick_s) for each in ticks]
        return _Survey(tick_s, first_pts, shown_s, rate_hz, stream.sample_aspect_ratio or Fraction(1))


def _seconds(ticks: int, tick_s: Fraction) -> float:
    return ticks * tick_s.numerator / tick_s.denominator


def _frames_on_screen(path: Path, survey: _Survey, start_s: float, end_s: float) -> Iterator[tuple[int, VideoFrame]]:
    """(ticks, frame) from the last frame that is shown at or before start_s to the last one before end_s."""
    frames = _decode(path, survey, start_s - RUN_UP_S)
    last = next(frames, None)
    if last is None or _seconds(last[0], survey.tick_s) > start_s:  # seeking led too far
        frames = _decode(path, survey, 0.0)
        last = next(frames, None)
    if last is None:
        raise VideoError(f"{path}: the file holds no frame that can be shown")
    for following in frames:
        time_s = _seconds(following[0], survey.tick_s)
        if time_s >= end_s:
            break
        if time_s > start_s:
            yield last
        last = following
    yield last


def _decode(path: Path, survey: _Survey, from_s: float) -> Iterator[tuple[int, VideoFrame]]:
    """(ticks, frame), ascending, from a keyframe before from_s on, as well as the file's index leads there."""
    with open_stream(path) as (file, stream):
        if from_s > 0 and survey.first_pts is not None:
            file.seek(survey.first_pts + int(from_s / survey.tick_s), stream=stream)
        last = -1
        for number, frame in enumerate(file.decode(stream)):
            if survey.first_pts is None:
                ticks = number
            elif frame.pts is None:
                raise VideoError(f"{path}: the frames have no times")
            else:
                ticks = frame.pts - survey.first_pts
            if ticks > last:  # of two frames at one time, the second is never on screen
                yield ticks, frame
                last = ticks


def _encode(frames: Iterable[tuple[int, VideoFrame]], survey: _Survey, path: Path, lines: Sequence[str]) -> None:
    """Draw on each frame and write it. frames: one or more, as `_frames_on_screen` gives them."""
    frames = iter(frames)
    first_ticks, first = next(frames)
    size, flipped = upright_size(first), is_flipped(first)
    scale = -(-SMALLEST_SIDE_PX // min(size))
    height, width = (side * scale + side * scale % 2 for side in size)
    band = draw_band(lines, height, width)
    opacity = band[..., 3:] / np.float32(255)
    words = band[..., :3] * opacity

    def captioned(ticks: int, frame: VideoFrame) -> Picture:
        pixels = upright_pixels(frame, size, flipped=flipped).repeat(scale, axis=0).repeat(scale, axis=1)
        pixels = np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
        pixels[-len(band) :] = np.rint(pixels[-len(band) :] * (1 - opacity) + words)
        return Picture(pixels, ticks - first_ticks, frame.duration)

    aspect = survey.pixel_aspect
    write_h264(
        path,
        starmap(captioned, chain([(first_ticks, first)], frames)),
        rate_hz=survey.rate_hz,
        options=ENCODING,
        tick_s=survey.tick_s,
        pixel_aspect=1 / aspect if quarter_turns(first) % 2 else aspect,
        is_bt709=True,
    )
