from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from diveparse.datasets.video.writer import REPEATABLE

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TICKS_PER_S = 90_000


def draw_frame(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth picture with a bar whose place tells the frame's index, (height, width, 3) RGB."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 40)], axis=-1).astype(np.uint8)
    left = index * 5 % width
    picture[height // 4 : height // 2, left : left + 5] = (250, 250, 250)
    return picture


def repeatable(codec: str, options: dict[str, str]) -> dict[str, str]:
    """The same options, and those that make x264 give the same bytes for the same pictures each time."""
    if codec != "libx264":
        return options
    return {**options, "x264-params": ":".join(filter(None, (options.get("x264-params"), *REPEATABLE)))}


def write_video(
    path: Path,
    *,
    num_frames: int = 30,
    rate_hz: Fraction | int = 25,
    times_s: Sequence[float] | None = None,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    flipped: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode `draw_frame`s. times_s, one a frame, makes the frame rate vary.

    rotation: degrees counter-clockwise by which it is turned when shown. flipped: whether it is then put upside down.
    """
    with av.open(str(path), "w", options=container_options or {}) as file:
        stream = file.add_stream(codec, rate=rate_hz, options=repeatable(codec, options or {}))
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if rotation or flipped:
            stream.set_display_rotation(rotation, vflip=flipped)
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        for index in range(num_frames if times_s is None else len(times_s)):
            frame = av.VideoFrame.from_ndarray(draw_frame(index, height, width), format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(times_s[index] * TICKS_PER_S), Fraction(1, TICKS_PER_S)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="session", name="write_video")
def write_video_fixture() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def shared_data() -> Path:
    """Real files for development. The suite is complete without them."""
    if not SHARED.is_dir():
        pytest.skip(f"no real files in {SHARED}")
    return SHARED
