"""Figures of arms side by side, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from diveparse.datasets.storage.atomic import written_atomically
from diveparse.engine.evaluation.pictures import INK, clear_spines
from diveparse.engine.evidence.statistics import Estimate

ARM_COLORS = colormaps["tab10"].colors  # type: ignore[attr-defined]  # the stubs lack ListedColormap.colors


def figure_image(figure: Figure) -> npt.NDArray[np.uint8]:
    """The pixels of a figure, for a file and for TensorBoard alike. Returns: uint8 (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def write_png(path: Path, pixels: npt.NDArray[np.uint8], *, optimize: bool = False) -> None:
    """Write pixels, uint8 (height, width, 3), whole or not at all. optimize: search longer for a smaller file."""
    with written_atomically(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", optimize=optimize)


def accuracy_figure(
    accuracies: Mapping[str, Estimate],
    seed_accuracies: Mapping[str, Sequence[float]],
    differences: Mapping[str, Estimate],
    caption: str,
) -> Figure:
    """Draw each arm's top-1 with its interval and its seeds as dots, and below the paired differences against zero.

    accuracies, seed_accuracies: by arm; differences: by the name of the pair. An interval of nan is not drawn.
    """
    num_rows = [len(rows) for rows in (accuracies, differences) if rows]
    figure = Figure(figsize=(7.0, 0.4 + 0.75 * len(num_rows) + 0.45 * sum(num_rows)), dpi=130, layout="constrained")
    panels = figure.subplots(len(num_rows), 1, height_ratios=[rows + 0.6 for rows in num_rows], squeeze=False)[:, 0]
    arm_axes = panels[0]
    for row, (arm, estimate) in enumerate(accuracies.items()):
        _draw_interval(arm_axes, row, estimate, color=ARM_COLORS[row % len(ARM_COLORS)], text=f"{estimate.value:.3f}")
        seeds = seed_accuracies[arm]
        arm_axes.plot(seeds, [row + 0.22] * len(seeds), "o", markersize=3, color="0.45")
    arm_axes.set(xlim=(0, 1), xlabel="top-1 (bar: 95 % over sources, these weights; grey dots: seeds)")
    arm_axes.set_title(caption, fontsize=9, loc="left", color="0.3")
    _list_rows(arm_axes, list(accuracies))
    for difference_axes in panels[1:]:
        for row, estimate in enumerate(differences.values()):
            _draw_interval(difference_axes, row, estimate, color="black", text=f"{estimate.value:+.3f}")
        difference_axes.axvline(0, color="0.6", linewidth=1, linestyle="--")
        difference_axes.set(xlabel="difference in top-1, paired (bar: 95 % over trainings and sources)")
        _list_rows(difference_axes, list(differences))
    return figure


def forest_figure(differences: Mapping[str, Estimate], pooled: Mapping[str, Estimate], caption: str) -> Figure:
    """Draw the differences of several settings against zero, and below them those that pool settings.

    differences: by the name of the pair; pooled: by what it pools. An interval of nan is not drawn.
    """
    figure = Figure(figsize=(8.0, 1.0 + 0.36 * (len(differences) + len(pooled))), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for row, (estimates, color) in enumerate([(differences, "black"), (pooled, INK)]):
        for place, estimate in enumerate(estimates.values(), start=row * len(differences)):
            _draw_interval(axes, place, estimate, color=color, text=f"{estimate.value:+.3f}")
    axes.axvline(0, color="0.6", linewidth=1, linestyle="--")
    figure.supxlabel("difference in top-1, paired (bar: 95 % over trainings and sources)", fontsize=10)
    figure.suptitle(caption, fontsize=9, color="0.3")
    _list_rows(axes, [*differences, *pooled])
    return figure


def attribute_figure(accuracies: Mapping[str, Mapping[str, float]], caption: str) -> Figure:
    """Draw the accuracy of each attribute as a group of bars, one an arm. accuracies: arm -> attribute -> share."""
    attributes = list(next(iter(accuracies.values())))
    width = 0.8 / len(accuracies)
    figure = Figure(figsize=(7.0, 3.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for column, (arm, accuracy) in enumerate(accuracies.items()):
        offset = (column - (len(accuracies) - 1) / 2) * width
        bars = axes.bar(
            np.arange(len(attributes)) + offset,
            [accuracy[attribute] for attribute in attributes],
            width=0.92 * width,
            label=arm,
            color=ARM_COLORS[column % len(ARM_COLORS)],
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8 if len(accuracies) <= 3 else 6, padding=2)
    axes.set_xticks(range(len(attributes)), attributes)
    axes.set(ylim=(0, 1.08), ylabel="share of clips with the right value")
    axes.set_title(caption, fontsize=9, loc="left", color="0.3")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    clear_spines(axes)
    return figure


def effect_figure(training_clips: Sequence[int], differences: Sequence[float], versus: str, caption: str) -> Figure:
    """Draw the gain of one arm on each dive over the dive's training clips. differences: of accuracy, one a dive."""
    figure = Figure(figsize=(7.0, 3.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="0.6", linewidth=1, linestyle="--")
    axes.plot(np.maximum(training_clips, 0.5), differences, "o", color=INK, alpha=0.7)  # a logarithmic axis has no 0
    axes.set_xscale("log")
    axes.set(xlabel="training clips of the dive (none at the left edge)", ylabel=f"accuracy, {versus}")
    axes.set_title(caption, fontsize=9, loc="left", color="0.3")
    clear_spines(axes)
    return figure


def reliability_figure(arms: Mapping[str, Sequence[Mapping[str, npt.NDArray[np.float64]]]], caption: str) -> Figure:
    """Draw accuracy over confidence and the clips of each bin: a panel an arm, a line a seed.

    arms: by arm, the `metrics.reliability` of each seed.
    """
    figure = Figure(figsize=(max(4.6, 2.6 * len(arms)), 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(arms), height_ratios=[3, 1], sharex=True, sharey="row", squeeze=False)
    for (axes, counts), (arm, seeds) in zip(panels.T, arms.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        for color, bins in zip(ARM_COLORS * len(seeds), seeds, strict=False):
            filled = bins["num_clips"] > 0
            axes.plot(bins["confidence"][filled], bins["accuracy"][filled], "o-", color=color, markersize=3)
            counts.stairs(bins["num_clips"], np.linspace(0, 1, len(filled) + 1), color=color)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_title(arm, fontsize=9)
        for each in (axes, counts):
            clear_spines(each)
    panels[0, 0].set(ylabel="share that is right")
    panels[1, 0].set(ylabel="clips")
    figure.suptitle(caption, fontsize=9, color="0.3")
    figure.supxlabel("probability of the most probable dive, uncalibrated", fontsize=9)
    return figure


def curve_figure(axis: str, values: Sequence[float], series: Mapping[str, Sequence[Estimate]], caption: str) -> Figure:
    """Draw top-1 along an axis: a line with its interval for each of `series`, which hold one estimate a value."""
    figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for color, (name, estimates) in zip(ARM_COLORS, series.items(), strict=False):
        means, lows, highs = ([getattr(estimate, end) for estimate in estimates] for end in ("value", "low", "high"))
        axes.plot(values, means, "o-", color=color, label=name)
        axes.fill_between(values, lows, highs, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel=axis, ylabel="top-1 (band: 95 % over sources, these weights)", ylim=(0, 1))
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_title(caption, fontsize=9, loc="left", color="0.3")
    axes.legend(frameon=False)
    clear_spines(axes)
    return figure


def _draw_interval(axes: Axes, row: int, estimate: Estimate, *, color: Any, text: str) -> None:
    axes.plot([estimate.low, estimate.high], [row, row], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot(estimate.value, row, "o", color=color, markersize=7)
    axes.annotate(text, (estimate.value, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)


def _list_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first row on top
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    clear_spines(axes)
