"""The pixels that frames are drawn on: upright, resized and converted to RGB in one step."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from diveparse.datasets.video.orientation import is_flipped, quarter_turns, upright_size


class Canvas:
    """(num_times, 3, height, width) uint8 RGB, of which `draw` fills one picture at a time.

    size: (height, width) as shown; None for that of the first frame. first: the video's first frame, where it is known.
    """

    def __init__(self, num_times: int, size: tuple[int, int] | None, first: VideoFrame) -> None:
        self.pixels: NDArray[np.uint8] = np.empty((num_times, 3, *(size or upright_size(first))), np.uint8)
        self._reformatter = VideoReformatter()
        self._is_flipped = is_flipped(first)  # asked for once only: PyAV keeps a frame in memory that was asked
        self._last: tuple[int, VideoFrame] | None = None

    def draw(self, index: int, frame: VideoFrame) -> None:
        """Draw what is on screen at time number `index`."""
        if self._last is not None and self._last[1] is frame:  # one frame can be on screen at several of the times
            self.pixels[index] = self.pixels[self._last[0]]
            return
        turns = quarter_turns(frame)
        size = self.pixels.shape[2:]
        height, width = size[::-1] if turns % 2 else size
        as_stored = np.rot90(self.pixels[index], -turns, axes=(1, 2))  # a view
        if self._is_flipped:
            as_stored = as_stored[:, ::-1]
        if (height, width) == (frame.height, frame.width):
            as_stored[:] = frame.to_ndarray(format="rgb24", threads=1).transpose(2, 0, 1)
        else:
            # Planes need half the time that packed pixels take, but only when swscale resizes: its short cut for pixels
            # of the same size leaves the last columns of planes unwritten.
            planar = self._reformatter.reformat(frame, width, height, "gbrp", interpolation="BILINEAR", threads=1)
            for channel, plane in zip((1, 2, 0), planar.planes, strict=True):  # green, blue, red
                rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
                as_stored[channel] = rows[:, :width]
        self._last = index, frame
