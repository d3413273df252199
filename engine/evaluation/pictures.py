"""Pictures of one run: confusion, class counts and clips.

Figures are made through matplotlib's object interface, so they need no display and leave no global state behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD

INK = "#1f4e79"  # of plots with one colour
NUM_COUNTED_CLASSES = 12  # a matrix of up to so many classes has room for its counts as text


def confusion_figure(matrix: npt.NDArray[np.int64], names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix. A row is a true class, coloured by its shares; a row without clips stays grey.

    matrix: (num_classes, num_classes) counts of clips, rows true, columns predicted; names: of classes, in order.
    """
    _require_one_name_each(matrix, names)
    num_clips = matrix.sum(axis=1, keepdims=True)  # (num_classes, 1)
    shares = np.divide(matrix, num_clips, out=np.full(matrix.shape, np.nan), where=num_clips > 0)
    side = max(4.5, 2.5 + 0.17 * len(names))
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.88")
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class's clips")
    font_size = 7.0 if len(names) > NUM_COUNTED_CLASSES else 9.0
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font_size)
    axes.set_yticks(range(len(names)), names, fontsize=font_size)
    axes.set_xticks(np.arange(len(names)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names)) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if len(names) <= NUM_COUNTED_CLASSES:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=ink, fontsize=font_size)
    return figure


def class_count_figure(counts: npt.NDArray[np.int64], names: Sequence[str], title: str = "") -> Figure:
    """Draw the number of clips of each class, the most frequent first, so that the long tail shows.

    counts: (num_classes,); names: of classes, in the same order.
    """
    _require_one_name_each(counts, names)
    order = np.argsort(-counts, kind="stable")
    figure = Figure(figsize=(max(5.0, 1.5 + 0.21 * len(names)), 4.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(range(len(names)), counts[order], color=INK, width=0.8)
    axes.bar_label(bars, rotation=90, fontsize=7, padding=2)
    axes.set_xticks(range(len(names)), [names[label] for label in order], rotation=90, fontsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.margins(y=0.15)
    axes.set(ylabel="clips", title=title or f"{counts.sum():,} clips, {(counts > 0).sum()} classes with clips")
    clear_spines(axes)
    return figure


def clip_strip(clip: Tensor) -> npt.NDArray[np.uint8]:
    """Lay a clip's frames side by side, in time from left to right.

    clip: (time, channel, height, width); uint8 pixels, or floats as the transforms give them (normalised).
    Returns: uint8 (channel, height, time * width), as TensorBoard's `add_image` takes it.
    """
    frames = clip.detach().cpu().numpy()
    if clip.is_floating_point():
        mean, std = np.reshape(PIXEL_MEAN, (-1, 1, 1)), np.reshape(PIXEL_STD, (-1, 1, 1))
        frames = np.clip(np.round(255 * (frames * std + mean)), 0, 255).astype(np.uint8)
    return rearrange(frames, "t c h w -> c h (t w)")


def clear_spines(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _require_one_name_each(classes: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    if any(size != len(names) for size in classes.shape):
        raise ValueError(f"{len(names)} names need as many classes, got an array of shape {classes.shape}")
