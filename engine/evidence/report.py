"""What a comparison looks like: a page, tables, plots, and all of it in TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from tabulate import tabulate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from diveparse.configs import options
from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.evaluation.metrics import GROUPS, confusion_matrix, reliability
from diveparse.engine.evaluation.pictures import confusion_figure
from diveparse.engine.evaluation.predictions import load_predictions
from diveparse.engine.evidence.comparison import INDIFFERENT, SCORES, Report, Run
from diveparse.engine.evidence.figures import (
    accuracy_figure,
    attribute_figure,
    effect_figure,
    figure_image,
    reliability_figure,
)
from diveparse.engine.evidence.statistics import (
    CONFIDENCE_LEVEL,
    DECISIVE_P_VALUE,
    MARGIN,
    Estimate,
    spread_over_seeds,
)
from diveparse.engine.run import RunFolder
from diveparse.heads.recombine import INVALID

ROW_NAMES = {"mean_class_accuracy": "mean class accuracy", "top1": "top-1", "top5": "top-5"} | {
    "invalid_rate": "invalid before decoding",
    "nll": "NLL (nats)",
    "nll_calibrated": "NLL, calibrated",
    "brier": "Brier score",
    "ece": "calibration error",
    "ece_calibrated": "calibration error, calibrated",
}
NUM_COLUMNS = 4  # of arms, beyond which a table is turned
CURVES = {"val/top1": "validation top-1", "val/nll": "validation NLL", "train/loss": "training loss"}
NOTES = (
    f"""\
Intervals are {CONFIDENCE_LEVEL:.0%} percentile bootstrap intervals that resample whole sources, the trained models held
fixed. ± is the standard deviation over seeds. In a row "a - b", clips won are those that only a names rightly and clips
lost those that only b does. McNemar's test on them is exact and two-sided and takes clips as independent, which the
interval does not; over several seeds its p-value is twice the mean of theirs. The p-value over sources flips the signs
of whole sources, all seeds together, and is corrected after Holm for the pairs that are compared on the same quantity
and group. A difference is called higher or lower where that is below {DECISIVE_P_VALUE}, one that does not matter where
its interval lies within ±{MARGIN}, and undecided else; all of that is about the models as they were trained, and
"not with every seed" says that other seeds may well turn it. Dives are grouped by their training clips:
"""
    + ", ".join(f"{name} (at least {least})" if least else f"{name} (none)" for name, least in GROUPS.items())
    + "."
)


def report_text(report: Report) -> str:
    """All that a terminal shows."""
    parts = [report.caption, score_table(report)]
    if report.pairs:
        parts += [difference_table(report), effect_table(report), option_lines(report)]
    return "\n\n".join(parts) + "\n"


def score_table(report: Report) -> str:
    """One column an arm, one row a score; over several seeds the mean ± standard deviation. Many arms are rows."""
    rows = [["seeds", *(", ".join(str(seed) for seed in by_seed) for by_seed in report.arms.values())]]
    for score in SCORES:
        cells = [_mean_and_spread(report.scores_of(arm, score)) for arm in report.arms]
        rows.append([ROW_NAMES.get(score, score), *cells])
        if score == "top1":
            rows.append(["95 % interval", *(interval_text(estimate, "") for estimate in report.accuracies.values())])
    table = [["", *report.arms], *rows]
    if len(report.arms) > NUM_COLUMNS:
        table = [list(row) for row in zip(*table, strict=True)]
    return tabulate(table, headers="firstrow", tablefmt="github", disable_numparse=True)


def difference_table(report: Report) -> str:
    """One row a pair of arms and seed, and one over all seeds where there are several."""
    rows = []
    for pair in report.pairs:
        estimate = pair.comparison.difference
        interval = [f"{estimate.value:+.3f}", interval_text(estimate, "+")]
        for seed, test in zip(pair.seeds, pair.comparison.tests, strict=True):
            counts = [str(test.num_only_second), str(test.num_only_first), f"{test.p_value:.2g}"]
            if len(pair.seeds) == 1:
                rows.append([pair.name, *interval, *counts])
            else:
                rows.append([f"{pair.name}, seed {seed}", f"{test.difference:+.3f}", "", *counts])
        if len(pair.seeds) > 1:
            rows.append([f"{pair.name}, all seeds", *interval, "", "", f"{pair.comparison.mcnemar_p_value:.2g}"])
    headers = ["top-1, paired", "difference", "95 % interval", "clips won", "clips lost", "McNemar p"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def effect_table(report: Report) -> str:
    """One row a pair of arms, quantity and group of dives, with what may be said of it."""
    rows = [
        [
            pair.name,
            effect.quantity,
            effect.group,
            f"{effect.num_clips:,} of {effect.num_classes} dives",
            f"{effect.difference.value:+.3f}",
            interval_text(effect.difference, "+"),
            ", ".join(f"{difference:+.3f}" for difference in effect.by_seed),
            f"{effect.p_value:.2g}",
            f"{effect.p_holm:.2g}",
            effect.verdict,
        ]
        for pair in report.pairs
        for effect in pair.effects
    ]
    headers = [
        "over sources",
        "",
        "dives",
        "clips",
        "difference",
        "95 % interval",
        "by seed",
        "p",
        "p (Holm)",
        "verdict",
    ]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def option_lines(report: Report) -> str:
    """One line a pair of arms, so that a reader sees what a difference may be owed to."""
    return "\n".join(
        f"- options that differ between {pair.second} and {pair.first}: {', '.join(pair.differing)}"
        for pair in report.pairs
    )


def tidy_table(report: Report) -> pd.DataFrame:
    """Every number of the report, one a row. `versus`, `group` and the p-values are of differences between arms."""
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "quantity": score, "value": run.scores[score]}
        for arm, by_seed in report.arms.items()
        for seed, run in by_seed.items()
        for score in SCORES
    ]
    for arm, estimate in report.accuracies.items():
        rows.append({"arm": arm, "seed": "all", "quantity": "top1", **vars(estimate)})
    for pair in report.pairs:
        key = {"arm": pair.second, "versus": pair.first}
        for seed, test in zip(pair.seeds, pair.comparison.tests, strict=True):
            value = {"value": test.difference, "mcnemar_p": test.p_value}
            rows.append({**key, "quantity": "top1_difference", "seed": seed, "group": "all", **value})
        for effect in pair.effects:
            quantity = {"top-1": "top1_difference", "NLL": "nll_difference"}[effect.quantity]
            tested = {"p": effect.p_value, "p_holm": effect.p_holm, "verdict": effect.verdict}
            if (quantity, effect.group) == ("top1_difference", "all"):
                tested["mcnemar_p"] = pair.comparison.mcnemar_p_value
            about = {"quantity": quantity, "seed": "all", "group": effect.group}
            rows.append({**key, **about, **vars(effect.difference), **tested})
    columns = ["arm", "versus", "seed", "quantity", "group", "value", "low", "high", "p", "p_holm", "mcnemar_p"]
    return pd.DataFrame(rows, columns=[*columns, "verdict"]).assign(clips=report.caption)


def class_table(report: Report) -> pd.DataFrame:
    """A row a pair of arms and dive: both arms' share of right answers over all seeds, and the difference."""
    tables = [
        pair.classes.rename(columns={"first": "accuracy_first", "second": "accuracy_second"}).assign(
            first=pair.first, second=pair.second
        )
        for pair in report.pairs
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield each plot under the name of its file."""
    top1 = {arm: report.scores_of(arm, "top1") for arm in report.arms}
    differences = {pair.name: pair.comparison.difference for pair in report.pairs}
    yield "top1", accuracy_figure(report.accuracies, top1, differences, report.caption)
    attributes = {arm: {a: float(np.mean(report.scores_of(arm, a))) for a in ATTRIBUTES} for arm in report.arms}
    yield "attributes", attribute_figure(attributes, report.caption)
    for pair in report.pairs:
        if set(pair.classes["training_clips"]) != {0}:
            classes, name = pair.classes, _file_name(f"classes-{pair.second}-{pair.first}")
            yield (
                name,
                effect_figure(
                    classes["training_clips"].tolist(), classes["difference"].tolist(), pair.name, report.caption
                ),
            )
    answers = {arm: pd.concat([run.predictions for run in runs.values()]) for arm, runs in report.arms.items()}
    columns = ["true_number", "predicted_number"]
    _, dive_set = load_predictions(probabilities_of(next(iter(next(iter(report.arms.values())).values()))))
    numbers = dive_set.numbers  # in the order of its table
    label_of = {number: label for label, number in enumerate(numbers)} | {"": INVALID}
    for arm, table in answers.items():
        labels, predicted = (table[column].map(label_of).to_numpy() for column in columns)
        matrix = confusion_matrix(labels, predicted, len(numbers))
        title = f"{arm}, seeds {', '.join(map(str, report.arms[arm]))}\n{report.caption}"
        yield _file_name(f"confusion-{arm}"), confusion_figure(matrix, numbers, title)
    bins = {arm: [_bins(run) for run in runs.values()] for arm, runs in report.arms.items()}
    yield "reliability", reliability_figure(bins, report.caption)


def write_report(out: Path, report: Report, text: str) -> None:
    """Write comparison.md, comparison.csv and classes.csv, and into comparison/ the plots, as PNG and for TensorBoard.

    There the validation scores of all runs lie over each other under the custom layout, and HPARAMS lists the runs.
    """
    folder = out / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.rglob("events.out.tfevents.*"), *folder.glob("*.png")):
        stale.unlink()  # an earlier comparison's pictures would show beside these
    links = []
    with SummaryWriter(str(folder)) as writer:
        writer.add_text(f"{report.split}/comparison", text)
        for name, figure in figures(report):
            pixels = figure_image(figure)
            Image.fromarray(pixels).save(folder / f"{name}.png")
            writer.add_image(f"{report.split}/{name}", pixels, dataformats="HWC")
            links.append(f"![{name}](comparison/{name}.png)")
        writer.add_custom_scalars({"arms and seeds": {title: ["Multiline", [tag]] for tag, title in CURVES.items()}})
    show_runs(folder, report)
    folders = [f"- `{run.folder}`" for by_seed in report.arms.values() for run in by_seed.values()]
    page = [f"# Comparison of {', '.join(report.arms)}", text, NOTES, *links, "Runs:", "\n".join(folders)]
    (out / "comparison.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    tidy_table(report).to_csv(out / "comparison.csv", index=False)
    if report.pairs:
        class_table(report).to_csv(out / "classes.csv", index=False)


def show_runs(folder: Path, report: Report) -> None:
    """Give each run a folder, and so a colour, of its own: its curves, which the custom layout lays over those of the
    others, and on the HPARAMS page its scores beside the options that differ between the runs."""
    runs = {(arm, seed): run for arm, by_seed in report.arms.items() for seed, run in by_seed.items()}
    values = {key: options(run.config) for key, run in runs.items()}
    differing = [
        name
        for name in next(iter(values.values()))
        if name not in INDIFFERENT and len({str(each[name]) for each in values.values()}) > 1
    ]
    for (arm, seed), run in runs.items():
        own = folder / _file_name(f"{arm}-seed-{seed}")
        with SummaryWriter(str(own)) as writer:
            shown = {"arm": arm, "seed": seed, **{name: str(values[arm, seed][name]) for name in differing}}
            scores = {f"{report.split}/{name}": run.scores[name] for name in SCORES if np.isfinite(run.scores[name])}
            writer.add_hparams(shown, scores, run_name=".")
            events = EventAccumulator(str(run.folder)).Reload()
            for tag in sorted(CURVES.keys() & set(events.Tags()["scalars"])):
                for point in events.Scalars(tag):
                    writer.add_scalar(tag, point.value, point.step, walltime=point.wall_time)


def _bins(run: Run) -> dict[str, np.ndarray]:
    predictions, _ = load_predictions(probabilities_of(run))
    return reliability(predictions.dive_log_probs, predictions.labels)


def probabilities_of(run: Run) -> Path:
    return RunFolder(run.folder).evaluation(run.split).probabilities


def _file_name(title: str) -> str:
    return title.replace("/", "-").replace(" ", "-")


def _mean_and_spread(values: list[float]) -> str:
    spread = spread_over_seeds(values)
    return f"{np.mean(values):.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def interval_text(estimate: Estimate, sign: str) -> str:
    return f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"
