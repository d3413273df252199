"""Compare the arms of tested runs on the same clips: one table, paired statistics, plots and TensorBoard images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from tabulate import tabulate
from torch.utils.tensorboard import SummaryWriter

from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.comparison import SCORES, Report, compare_runs, load_run
from diveparse.engine.metrics import confusion_matrix
from diveparse.engine.plots import accuracy_figure, attribute_figure, confusion_figure, figure_image
from diveparse.engine.statistics import Estimate, spread_over_seeds
from diveparse.heads.recombine import INVALID

ROW_NAMES = {"mean_class_accuracy": "mean class accuracy", "top1": "top-1", "top5": "top-5"} | {
    "invalid_rate": "invalid before decoding",
    "nll": "NLL (nats)",
    "nll_calibrated": "NLL, calibrated",
    "ece": "calibration error",
    "ece_calibrated": "calibration error, calibrated",
}
NOTES = """\
Intervals are 95 % percentile bootstrap intervals that resample whole sources, the trained models held fixed. ± is the
standard deviation over seeds. In a row "a - b", clips won are those that only a names rightly and clips lost those that
only b does. McNemar's test on them is exact and two-sided and takes clips as independent, which the interval does not;
over several seeds its p-value is twice the mean of theirs."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder that tools/test.py has tested")
    parser.add_argument("--out", type=Path, help="where to write (default: the folder that all the runs lie in)")
    args = parser.parse_args(argv)
    try:
        out = args.out or Path(os.path.relpath(os.path.commonpath([run.resolve().parent for run in args.runs])))
        report = compare_runs([load_run(run) for run in args.runs])
        text = f"{report.caption}\n\n{score_table(report)}\n"
        if report.pairs:
            text += f"\n{difference_table(report)}\n\n{option_lines(report)}\n"
        print(f"\n{text}")
        write_report(out, report, text)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"written to {out}: comparison.md, comparison.csv, and comparison/ with the plots, also for TensorBoard")
    return 0


def score_table(report: Report) -> str:
    """One column an arm, one row a score; over several seeds the mean ± standard deviation."""
    rows = [["seeds", *(", ".join(str(seed) for seed in by_seed) for by_seed in report.arms.values())]]
    for score in SCORES:
        cells = [_mean_and_spread(report.scores_of(arm, score)) for arm in report.arms]
        rows.append([ROW_NAMES.get(score, score), *cells])
        if score == "top1":
            rows.append(["95 % interval", *(_interval(estimate, "") for estimate in report.accuracies.values())])
    return tabulate(rows, headers=["", *report.arms], tablefmt="github", disable_numparse=True)


def difference_table(report: Report) -> str:
    """One row a pair of arms and seed, and one over all seeds where there are several."""
    rows = []
    for pair in report.pairs:
        estimate = pair.comparison.difference
        interval = [f"{estimate.value:+.3f}", _interval(estimate, "+")]
        for seed, test in zip(pair.seeds, pair.comparison.tests, strict=True):
            counts = [str(test.num_only_second), str(test.num_only_first), f"{test.p_value:.2g}"]
            if len(pair.seeds) == 1:
                rows.append([pair.name, *interval, *counts])
            else:
                rows.append([f"{pair.name}, seed {seed}", f"{test.difference:+.3f}", "", *counts])
        if len(pair.seeds) > 1:
            rows.append([f"{pair.name}, all seeds", *interval, "", "", f"{pair.comparison.p_value:.2g}"])
    headers = ["top-1, paired", "difference", "95 % interval", "clips won", "clips lost", "McNemar p"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def option_lines(report: Report) -> str:
    """One line a pair of arms, so that a reader sees what a difference may be owed to."""
    return "\n".join(
        f"- options that differ between {pair.second} and {pair.first}: {', '.join(pair.differing)}"
        for pair in report.pairs
    )


def tidy_table(report: Report) -> pd.DataFrame:
    """Every number of the report, one a row. `versus` and `p_value` are empty but for differences between arms."""
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "quantity": score, "value": run.scores[score]}
        for arm, by_seed in report.arms.items()
        for seed, run in by_seed.items()
        for score in SCORES
    ]
    for arm, estimate in report.accuracies.items():
        rows.append({"arm": arm, "seed": "all", "quantity": "top1", **vars(estimate)})
    for pair in report.pairs:
        key = {"arm": pair.second, "versus": pair.first, "quantity": "top1_difference"}
        for seed, test in zip(pair.seeds, pair.comparison.tests, strict=True):
            rows.append({**key, "seed": seed, "value": test.difference, "p_value": test.p_value})
        rows.append({**key, "seed": "all", **vars(pair.comparison.difference), "p_value": pair.comparison.p_value})
    columns = ["arm", "versus", "seed", "quantity", "value", "low", "high", "p_value"]
    return pd.DataFrame(rows, columns=columns).assign(clips=report.caption)


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield each plot under the name of its file."""
    top1 = {arm: report.scores_of(arm, "top1") for arm in report.arms}
    differences = {pair.name: pair.comparison.difference for pair in report.pairs}
    yield "top1", accuracy_figure(report.accuracies, top1, differences, report.caption)
    attributes = {arm: {a: float(np.mean(report.scores_of(arm, a))) for a in ATTRIBUTES} for arm in report.arms}
    yield "attributes", attribute_figure(attributes, report.caption)
    answers = {arm: pd.concat([run.predictions for run in runs.values()]) for arm, runs in report.arms.items()}
    columns = ["true_number", "predicted_number"]
    numbers = sorted(set(pd.concat(answers)[columns].stack()) - {""})
    label_of = {number: label for label, number in enumerate(numbers)} | {"": INVALID}
    for arm, table in answers.items():
        labels, predicted = (table[column].map(label_of).to_numpy() for column in columns)
        matrix = confusion_matrix(labels, predicted, len(numbers))
        title = f"{arm}, seeds {', '.join(map(str, report.arms[arm]))}\n{report.caption}"
        yield f"confusion-{arm.replace('/', '-')}", confusion_figure(matrix, numbers, title)


def write_report(out: Path, report: Report, text: str) -> None:
    """Write comparison.md, comparison.csv, and the plots into comparison/ as PNG and as TensorBoard events."""
    folder = out / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("events.out.tfevents.*"), *folder.glob("*.png")):
        stale.unlink()  # an earlier comparison's pictures would show beside these
    links = []
    with SummaryWriter(str(folder)) as writer:
        writer.add_text(f"{report.split}/comparison", text)
        for name, figure in figures(report):
            pixels = figure_image(figure)
            Image.fromarray(pixels).save(folder / f"{name}.png")
            writer.add_image(f"{report.split}/{name}", pixels, dataformats="HWC")
            links.append(f"![{name}](comparison/{name}.png)")
    folders = [f"- `{run.folder}`" for by_seed in report.arms.values() for run in by_seed.values()]
    page = [f"# Comparison of {', '.join(report.arms)}", text, NOTES, *links, "Runs:", "\n".join(folders)]
    (out / "comparison.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    tidy_table(report).to_csv(out / "comparison.csv", index=False)


def _mean_and_spread(values: list[float]) -> str:
    spread = spread_over_seeds(values)
    return f"{np.mean(values):.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _interval(estimate: Estimate, sign: str) -> str:
    return f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


if __name__ == "__main__":
    sys.exit(main())
