"""The display matrix of a decoded frame: how to turn and flip the picture so that it stands upright."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray


def quarter_turns(frame: VideoFrame) -> int:
    """How many turns of 90 degrees counter-clockwise put the picture upright."""
    return round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 180 else 0  # a matrix of zeros has no angle


def is_flipped(frame: VideoFrame) -> bool:
    """Whether the picture must be flipped upside down before it is turned."""
    with suppress(KeyError, ValueError):  # without a display matrix, or beside side data that PyAV does not know
        data = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]  # PyAV's hints lack it
        matrix = np.frombuffer(memoryview(data), np.int32).reshape(3, 3)
        return bool(np.linalg.det(matrix[:2, :2]) < 0)
    return False


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """(height, width) of the picture after it was turned."""
    return (frame.width, frame.height) if quarter_turns(frame) % 2 else (frame.height, frame.width)


def upright_pixels(frame: VideoFrame, size: tuple[int, int], *, flipped: bool) -> NDArray[np.uint8]:
    """RGB pixels (height, width, 3), resized where the size changes on the way. size: (height, width), upright."""
    turns = quarter_turns(frame)
    height, width = size[::-1] if turns % 2 else size
    pixels = frame.to_ndarray(format="rgb24", height=height, width=width)
    return np.rot90(pixels[::-1] if flipped else pixels, turns)
