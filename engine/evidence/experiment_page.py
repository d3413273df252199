"""The page of an experiment: its question, its arms, their comparison and its curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from diveparse.configs import CurveConfig, ExperimentConfig
from diveparse.datasets.storage.atomic import write_text
from diveparse.datasets.storage.foreign import own_paths
from diveparse.engine.evidence.comparison import Report, compare_groups
from diveparse.engine.evidence.experiment import Cell
from diveparse.engine.evidence.figures import curve_figure, figure_image, write_png
from diveparse.engine.evidence.readout_table import is_read_out, readout_table
from diveparse.engine.evidence.report import NOTES, report_text
from diveparse.engine.evidence.report_figures import page_figures
from diveparse.engine.evidence.runs import Run, load_run
from diveparse.engine.evidence.statistics import accuracy_over_sources
from diveparse.engine.evidence.tidy import class_table, tidy_table
from diveparse.engine.evidence.unseen_table import stack_arms, unseen_rows, unseen_table


def write_experiment(path: Path, experiment: ExperimentConfig, cells: list[Cell], out: Path) -> Path:
    """Compare the cells of an experiment, and write `out/NAME.md`, `NAME.csv`, `NAME-classes.csv` and `NAME/*.png`.

    Returns: the page. Raises: ValueError with the reason why the cells cannot be compared.
    """
    arms: dict[str, dict[int, Run]] = {}
    for cell in cells:
        arms.setdefault(cell.arm, {})[cell.config.seed] = load_run(cell.run.path, cell.split)
    report = compare_groups(arms, [(first, second) for first, second in experiment.pairs])
    stacked = stack_arms(experiment, arms)
    plots = dict(page_figures(report))
    if experiment.curve is not None:
        held_out = sorted({number for cell in cells for number in cell.config.data.unseen_dives})
        plots["curve"] = draw_curve(experiment.curve, report, held_out)
    _save(plots, out / path.stem)
    page = [
        *_introduction(path, experiment),
        report_text(report).strip(),
        *([unseen_table(stacked, arms)] if stacked else []),
        *([readout_table(arms)] if any(is_read_out(run) for _, _, run in report.runs) else []),
        NOTES,
        *(f"![{name}]({path.stem}/{name}.png)" for name in plots),
    ]
    write_text(out / f"{path.stem}.md", "\n\n".join(page) + "\n")
    form: dict[str, Any] = {"index": False, "lineterminator": "\n", "float_format": "%.7g"}
    table = pd.concat([tidy_table(report), pd.DataFrame(unseen_rows(stacked, arms))])
    write_text(out / f"{path.stem}.csv", table.to_csv(**form))
    if report.pairs:
        write_text(out / f"{path.stem}-classes.csv", class_table(report).to_csv(**form))
    return out / f"{path.stem}.md"


def _introduction(path: Path, experiment: ExperimentConfig) -> list[str]:
    """The question, the command and the arms."""
    common = f" with `{experiment.common}`" if experiment.common else ""
    seeds = ", ".join(map(str, experiment.seeds))
    return [
        f"# {path.stem.capitalize()}: {experiment.question}",
        f"`diveparse experiment {path}`, over `{experiment.config}`{common}; seeds {seeds}.",
        "\n".join(f"- {arm}: `{options}`" for arm, options in experiment.arms.items()),
    ]


def _save(plots: dict[str, Figure], folder: Path) -> None:
    """Write the plots in place of those of an earlier page."""
    for name, figure in plots.items():
        write_png(folder / f"{name}.png", figure_image(figure), optimize=True)
    for stale in own_paths(folder, "*.png"):
        if stale.stem not in plots:
            stale.unlink()


def draw_curve(curve: CurveConfig, report: Report, held_out: Sequence[str]) -> Figure:
    """Each arm of each series at its value: its top-1 over all seeds, on all clips or on those of held-out dives."""
    _, _, any_run = next(report.runs)
    clips = any_run.predictions
    rows = clips["true_number"].isin(held_out).to_numpy() if curve.unseen_alone else np.ones(len(clips), bool)
    sources = clips["source"][rows].tolist()
    series = {
        name: [
            accuracy_over_sources(np.stack([run.correct[rows] for run in report.arms[arm].values()]), sources)
            for arm in arms
        ]
        for name, arms in curve.series.items()
    }
    about = f"{len(sources):,} clips of dives held out; " if curve.unseen_alone else ""
    return curve_figure(curve.axis, curve.values, series, about + report.caption)
