"""What TensorBoard shows of a comparison: its tables and figures, and the runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.configs import flat_options
from diveparse.engine.events import open_events
from diveparse.engine.evidence.arms import INDIFFERENT
from diveparse.engine.evidence.comparison import Report
from diveparse.engine.evidence.report_figures import file_name
from diveparse.engine.evidence.runs import ALL_SCORES, Run

CURVES = {"val/top1": "validation top-1", "val/nll": "validation NLL", "train/loss": "training loss"}


def log_comparison(folder: Path, report: Report, text: str, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Show the tables and the figures, lay the curves of all runs over each other, and list the runs under HPARAMS.

    images: by name, uint8 (height, width, 3).
    """
    with open_events(folder) as writer:
        writer.add_text(f"{report.split}/comparison", text)
        for name, pixels in images.items():
            writer.add_image(f"{report.split}/{name}", pixels, dataformats="HWC")
        writer.add_custom_scalars({"arms and seeds": {title: ["Multiline", [tag]] for tag, title in CURVES.items()}})
    values = {run.folder: flat_options(run.config) for _, _, run in report.runs}
    differing = [
        name
        for name in next(iter(values.values()))
        if name not in INDIFFERENT and len({str(each[name]) for each in values.values()}) > 1
    ]
    for arm, seed, run in report.runs:
        shown: dict[str, str | int] = {"arm": arm, "seed": seed}
        shown |= {name: str(values[run.folder][name]) for name in differing}
        _log_run(folder / file_name(f"{arm}-seed-{seed}"), run, shown)


def _log_run(folder: Path, run: Run, shown: dict[str, str | int]) -> None:
    """Copy a run's curves into a folder of its own, which gives it a colour, with its scores and some options."""
    with open_events(folder) as writer:
        scores = {f"{run.split}/{name}": run.scores[name] for name in ALL_SCORES if np.isfinite(run.scores[name])}
        writer.add_hparams(shown, scores, run_name=".")
        events = EventAccumulator(str(run.folder)).Reload()
        for tag in sorted(CURVES.keys() & set(events.Tags()["scalars"])):
            for point in events.Scalars(tag):
                writer.add_scalar(tag, point.value, point.step, walltime=point.wall_time)
