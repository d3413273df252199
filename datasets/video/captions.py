"""Captioned copies of videos: the same frames at the same times, with lines of text on a band at the bottom."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from diveparse.datasets.storage.atomic import written_atomically
from diveparse.datasets.video.container import MAX_PIXELS, VideoError
from diveparse.datasets.video.orientation import is_flipped, quarter_turns, upright_pixels, upright_size
from diveparse.datasets.video.reader import Video, watch
from diveparse.datasets.video.timeline import DEFAULT_RATE_HZ
from diveparse.datasets.video.writer import Picture, write_h264

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own has no ½
LETTERS_PER_SIDE = 24  # heights of a letter in the shorter side of a picture
SMALLEST_LETTERS_PX = 10
SMALLEST_SIDE_PX = 320  # smaller pictures are enlarged, so that words on them can be read
BAND_OPACITY = 0.6
ENCODING = {"preset": "veryfast", "crf": "18", "bf": "0"}  # no B-frames, so that packets come in the order of frames


def write_captioned(
    source: Path, target: Path, lines: Sequence[str], *, start_s: float = 0.0, end_s: float = math.inf
) -> None:
    """Copy what is on screen from start_s to end_s, in seconds from the first frame shown, with a caption on it.

    The copy is H.264 in MP4, upright and silent. It starts with its first frame, and each frame stays for as long as in
    the source, also where the rate varies. A picture with a side below SMALLEST_SIDE_PX is enlarged by a whole number;
    an odd side gets one more row or column, since H.264 needs even sides. Memory holds a few frames only.
    lines: of text; a line that is too long for the picture is broken.
    Raises: VideoError if the source cannot be read; ValueError if the target exists or cannot be written.
    """
    if target.exists():
        raise ValueError(f"{target} already exists; choose another name, or delete it")
    with written_atomically(target) as temporary:
        try:
            watch(source, lambda video: _encode(video, temporary, target.name, lines, start_s, end_s))
        except av.FFmpegError as error:  # errors of the source are VideoErrors already
            raise ValueError(f"{target}: cannot be written: {error.strerror}") from error


def draw_band(lines: Sequence[str], height: int, width: int) -> NDArray[np.uint8]:
    """White text on a dark, translucent band. The letters shrink until at least half of the picture stays free.

    height, width: of the picture. Returns: (band height, width, 4) RGBA, for the lowest rows of the picture.
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
    """Break a line into parts of at most `width` pixels; a single word may be wider."""
    parts: list[str] = []
    for word in line.split(" "):  # not at a no-break space
        if parts and font.getlength(f"{parts[-1]} {word}") <= width:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


def _encode(video: Video, path: Path, name: str, lines: Sequence[str], start_s: float, end_s: float) -> None:
    """Draw on each frame and write it. Raises: DisagreementError, after which it can be tried again."""
    timeline = video.timeline
    video.require(min(end_s, video.duration_s))
    starts, ends = timeline.starts, [*timeline.starts[1:], timeline.end]
    first = timeline.on_screen(max(0.0, start_s))
    numbers = range(first, max(first + 1, bisect_left(timeline.starts_s, end_s)))
    frames = video.frames(set(numbers))
    frames = iter(tqdm(frames, desc=f"writing {name}", total=len(numbers), unit="frame", leave=False, delay=1))
    number, frame = next(frames)
    draw, aspect = _Caption(video.path, frame, lines), video.plan.pixel_aspect
    pictures = (
        Picture(draw(frame), starts[number] - starts[first], ends[number] - starts[number])
        for number, frame in chain([(number, frame)], frames)
        if ends[number] > starts[number]  # of two frames at one time, only the last is on screen
    )
    write_h264(
        path,
        pictures,
        rate_hz=video.plan.rate_hz or Fraction(DEFAULT_RATE_HZ),
        options=ENCODING,
        tick_s=timeline.tick_s,
        pixel_aspect=1 / aspect if quarter_turns(frame) % 2 else aspect,
        is_bt709=True,
    )


class _Caption:
    """Draws frames upright and enlarged, with a band of text on each. All have the size of the first.

    Raises: VideoError if that is more than MAX_PIXELS.
    """

    def __init__(self, path: Path, first: VideoFrame, lines: Sequence[str]) -> None:
        self._size, self._is_flipped = upright_size(first), is_flipped(first)
        self._scale = -(-SMALLEST_SIDE_PX // min(self._size))
        self._height, self._width = (side * self._scale + side * self._scale % 2 for side in self._size)
        if self._height * self._width > MAX_PIXELS:
            got = f"{self._width}x{self._height}"
            raise VideoError(f"{path}: a captioned copy would have {got} pixels; at most {MAX_PIXELS} can be written")
        band = draw_band(lines, self._height, self._width)
        self._opacity = band[..., 3:] / np.float32(255)
        self._words = band[..., :3] * self._opacity

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Returns: (height, width, 3) RGB."""
        pixels = upright_pixels(frame, self._size, flipped=self._is_flipped)
        pixels = pixels.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        missing = ((0, self._height - pixels.shape[0]), (0, self._width - pixels.shape[1]), (0, 0))
        pixels = np.pad(pixels, missing, mode="edge")
        pixels[-len(self._words) :] = np.rint(pixels[-len(self._words) :] * (1 - self._opacity) + self._words)
        return pixels
