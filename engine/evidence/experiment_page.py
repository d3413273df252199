"""The page of an experiment: its question, its arms, their comparison and its curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tabulate import tabulate

from diveparse.configs import CurveConfig, ExperimentConfig
from diveparse.engine.evaluation.predictions import load_predictions
from diveparse.engine.evidence.comparison import Report, Run, compare_groups, load_run
from diveparse.engine.evidence.experiment import Cell, cell_elsewhere
from diveparse.engine.evidence.figures import curve_figure, figure_image
from diveparse.engine.evidence.report import (
    NOTES,
    class_table,
    figures,
    interval_text,
    probabilities_of,
    report_text,
    tidy_table,
)
from diveparse.engine.evidence.statistics import accuracy_over_sources
from diveparse.engine.evidence.unseen import choose_kept_share, generalised, penalty_that_keeps
from diveparse.engine.run import RunFolder


def write_experiment(path: Path, experiment: ExperimentConfig, cells: list[Cell], out: Path) -> Path:
    """Compare the cells of an experiment, and write `out/NAME.md`, `NAME.csv`, `NAME-classes.csv` and `NAME/*.png`.

    Returns: the page. Raises: ValueError saying why the cells cannot be compared.
    """
    arms: dict[str, dict[int, Run]] = {}
    for cell in cells:
        arms.setdefault(cell.arm, {})[cell.config.seed] = load_run(cell.run, cell.split)
    held_out = sorted({number for cell in cells for number in cell.config.data.unseen_dives})
    report = compare_groups(arms, [(first, second) for first, second in experiment.pairs], held_out)
    folder = out / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    plots = {name: figure for name, figure in figures(report) if name in ("top1", "reliability")}
    if experiment.curve is not None:
        plots["curve"] = draw_curve(experiment.curve, report, held_out)
    for name, figure in plots.items():
        Image.fromarray(figure_image(figure)).save(folder / f"{name}.png", optimize=True)
    unseen = [unseen_table(path, experiment, arms)] if experiment.stacking else []
    commands = f"`python tools/experiment.py {path}`"
    page = [
        f"# {path.stem.capitalize()}: {experiment.question}",
        f"{commands}, over `{experiment.config}`{experiment.common and f' with `{experiment.common}`'}; seeds "
        f"{', '.join(map(str, experiment.seeds))}.",
        "\n".join(f"- {arm}: `{options_of_arm}`" for arm, options_of_arm in experiment.arms.items()),
        report_text(report).strip(),
        *unseen,
        NOTES,
        *(f"![{name}]({path.stem}/{name}.png)" for name in plots),
    ]
    (out / f"{path.stem}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    tidy_table(report).to_csv(out / f"{path.stem}.csv", index=False, float_format="%.5g")
    if report.pairs:
        class_table(report).to_csv(out / f"{path.stem}-classes.csv", index=False, float_format="%.5g")
    return out / f"{path.stem}.md"


def draw_curve(curve: CurveConfig, report: Report, held_out: list[str]) -> Figure:
    """Each arm of each series at its value: its top-1 over all seeds, on all clips or on those of held-out dives."""
    first = next(iter(next(iter(report.arms.values())).values())).predictions
    rows = first["true_number"].isin(held_out).to_numpy() if curve.unseen_alone else np.ones(len(first), bool)
    sources = first["source"][rows].tolist()
    series = {
        name: [
            accuracy_over_sources(np.stack([run.correct[rows] for run in report.arms[arm].values()]), sources)
            for arm in arms
        ]
        for name, arms in curve.series.items()
    }
    clips = f"{len(sources):,} clips of dives held out; " if curve.unseen_alone else ""
    return curve_figure(curve.axis, curve.values, series, clips + report.caption)


def unseen_table(path: Path, experiment: ExperimentConfig, arms: dict[str, dict[int, Run]]) -> str:
    """Generalised zero-shot accuracy of the arms that did not see some dives, without and with stacking."""
    rows = []
    for arm, name in experiment.stacking.items():
        answers, penalties, shares = [], [], []
        for seed, run in arms[arm].items():
            unseen = run.config.data.unseen_dives
            predictions, dive_set = load_predictions(probabilities_of(run))
            answers.append(predictions)
            development = cell_elsewhere(path, name, seed)
            beyond = [number for number in development.config.data.unseen_dives if number not in unseen]
            chosen_on = load_predictions(RunFolder(development.run).evaluation("val").probabilities)
            share = choose_kept_share(*chosen_on, unseen=beyond, ignored=unseen)
            own = load_predictions(RunFolder(run.folder).evaluation("val").probabilities)
            penalties.append(penalty_that_keeps(share, *own, unseen))
            shares.append(share)
        kept = f" + stacking, to keep {', '.join(f'{share:.2f}' for share in shares)}"
        for stacking, values in (("", [0.0] * len(penalties)), (kept, penalties)):
            scores = generalised(answers, dive_set, unseen, values)
            cells = [
                f"{each.value:.3f} ({interval_text(each, '')})"
                for each in (scores.seen, scores.unseen, scores.harmonic)
            ]
            told = ", ".join(f"{value:.2f}" for value in values)
            rows.append([arm + stacking, told, *cells, f"{scores.unseen_alone:.3f}"])
    headers = ["arm", "penalty of each seed, nats", "seen", "unseen", "harmonic mean", "among the unseen alone"]
    about = (
        f"Right answers among all dives, on clips of dives that training saw and on clips of the {len(unseen)} that it "
        f"did not ({', '.join(unseen)}), with 95 % intervals over sources. The share of their accuracy on "
        f"seen dives that models with stacking keep was chosen on validation clips, by arms that did not see "
        f"{', '.join(beyond)} either; the penalty that keeps it, on each model's own validation clips."
    )
    return f"{about}\n\n{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}"
