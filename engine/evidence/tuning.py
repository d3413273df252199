"""The outcome of a tuning experiment: the setting of each arm that does best on validation, and whether it lies on an
edge of the grid, where the best setting may lie outside of what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from diveparse.configs import ExperimentConfig
from diveparse.datasets.storage.atomic import write_text
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.engine.evidence.experiment import Cell, Setting, settings

NUM_SHOWN = 5  # settings of each arm on the page; the CSV file has all


@dataclass(frozen=True)
class Trial:
    """A setting over all seeds, on the validation clips of each."""

    setting: Setting
    top1: float  # means over seeds
    nll: float  # nats
    clipped_share: float  # of all updates; nan if it was not recorded
    spread: float  # standard deviation of top-1 over seeds; nan of one


def write_tuning(path: Path, experiment: ExperimentConfig, cells: Sequence[Cell], out: Path) -> Path:
    """Write `out/NAME.md`, and every trial of every seed into `out/NAME.csv`. path: of the experiment.

    Reads validation scores alone. Returns: the page. Raises: ValueError naming a file of a cell that is missing.
    """
    table = trial_table(experiment, cells)
    trials = summarise(experiment, table)
    lines = [
        f"# {path.stem.capitalize()}: {experiment.question}",
        f"`diveparse experiment {path}`, over `{experiment.config}`; seeds {', '.join(map(str, experiment.seeds))}.",
        f"{len(trials) // len(experiment.arms)} settings for each arm. Scores are means over seeds on validation; no "
        "test clip was read. The best setting has the highest top-1, and the lower NLL breaks ties.",
        _markdown(experiment, [best_of(trials, arm) for arm in experiment.arms]),
        "\n".join(f"- {warning}" for warning in warnings(experiment, trials)) or "No best setting lies on an edge.",
    ]
    for arm in experiment.arms:
        lines += [f"## {arm}", _markdown(experiment, ranked(trials, arm)[:NUM_SHOWN])]
    write_text(out / f"{path.stem}.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.7g"))
    write_text(out / f"{path.stem}.md", "\n\n".join(lines) + "\n")
    return out / f"{path.stem}.md"


def trial_table(experiment: ExperimentConfig, cells: Sequence[Cell]) -> pd.DataFrame:
    """A row a cell: arm, the values of its options, seed, top1, nll, clipped_share."""
    by_name = {setting.name: setting for setting in settings(experiment)}
    rows = []
    for cell in cells:
        setting, metrics = by_name[cell.arm], read_json_object(cell.metrics)
        shares = metrics.get("clipped_share") or [np.nan]
        rows.append(
            {
                "arm": setting.arm,
                **{name: _shown(value) for name, value in zip(experiment.grid, setting.values, strict=True)},
                "seed": cell.config.seed,
                "top1": metrics["top1"],
                "nll": np.inf if metrics["nll"] is None else metrics["nll"],
                "clipped_share": float(np.mean(shares)),
                "setting": setting.name,
            }
        )
    return pd.DataFrame(rows)


def summarise(experiment: ExperimentConfig, table: pd.DataFrame) -> list[Trial]:
    """Each setting over its seeds. table: of `trial_table`."""
    trials = []
    for setting in settings(experiment):
        rows = table[table["setting"] == setting.name]
        means = rows[["top1", "nll", "clipped_share"]].mean()
        trials.append(Trial(setting, means["top1"], means["nll"], means["clipped_share"], rows["top1"].std()))
    return trials


def ranked(trials: Sequence[Trial], arm: str) -> list[Trial]:
    """The trials of an arm, best first."""
    return sorted((trial for trial in trials if trial.setting.arm == arm), key=lambda each: (-each.top1, each.nll))


def best_of(trials: Sequence[Trial], arm: str) -> Trial:
    return ranked(trials, arm)[0]


def warnings(experiment: ExperimentConfig, trials: Sequence[Trial]) -> list[str]:
    """One line for each option in which an arm's best setting lies on an edge of the grid."""
    lines = []
    for arm in experiment.arms:
        best = best_of(trials, arm)
        for (name, values), value in zip(experiment.grid.items(), best.setting.values, strict=True):
            if edge := edge_of(values, value):
                lines.append(f"**On an edge**: {arm} does best with {name}={_shown(value)}, the {edge}; try beyond it")
    return lines


def edge_of(values: Sequence[float | None], best: float | None) -> str | None:
    """Which edge of the tried values the best one is, or None inside. Nothing lies beyond null, which is no limit."""
    numbers = [value for value in values if value is not None]
    if best is None:
        return None
    if best == min(numbers):
        return "smallest that was tried"
    return "largest that was tried" if best == max(numbers) and None not in values else None


def _markdown(experiment: ExperimentConfig, trials: Sequence[Trial]) -> str:
    rows = [
        [
            trial.setting.arm,
            *(_shown(value) for value in trial.setting.values),
            f"{trial.top1:.3f}" + ("" if np.isnan(trial.spread) else f" ± {trial.spread:.3f}"),
            f"{trial.nll:.3f}",
            "" if np.isnan(trial.clipped_share) else f"{100 * trial.clipped_share:.0f} %",
        ]
        for trial in trials
    ]
    names = [name.removeprefix("train.") for name in experiment.grid]
    headers = ["arm", *names, "top-1", "NLL (nats)", "clipped updates"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
