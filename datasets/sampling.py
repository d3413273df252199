"""The times at which a clip takes its frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sample_frame_times(
    duration_s: float, num_frames: int, *, generator: torch.Generator | None = None, view: tuple[int, int] = (0, 1)
) -> Tensor:
    """Pick one time in each of `num_frames` equal segments, so that a clip covers the whole dive at any frame rate.

    generator: for training. It draws one random place, which is used in every segment. So the times stay evenly spaced:
    how far a body turns from one frame to the next distinguishes a fast dive from a slow one.
    view: (i, n), without a generator: the i-th of n clips whose times are evenly shifted within the segments. (0, 1)
    takes the middle of each segment.
    Returns: (num_frames,) float64 seconds, ascending, inside [0, duration_s).
    Raises: ValueError if duration_s or num_frames is not positive, or the view is not one of n.
    Source: one frame per equal segment, after TSN (Wang et al. 2016), which draws a place for each segment.
    """
    view_index, num_views = view
    if not 0 < duration_s < math.inf:
        raise ValueError(f"duration_s must be > 0 s and finite, got {duration_s}")
    if num_frames <= 0:
        raise ValueError(f"num_frames must be > 0, got {num_frames}")
    if not 0 <= view_index < num_views:
        raise ValueError(f"view must be (i, n) with 0 <= i < n, got {view}")
    if generator is None:
        offsets = torch.full((num_frames,), (view_index + 0.5) / num_views, dtype=torch.float64)
    else:
        # in single precision, the place stays below 1 even after the additions below: the last time is before the end
        offsets = torch.rand(1, generator=generator, dtype=torch.float32).double().expand(num_frames)
    return (torch.arange(num_frames, dtype=torch.float64) + offsets) * (duration_s / num_frames)
