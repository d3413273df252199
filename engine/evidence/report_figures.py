"""Which figures a comparison is drawn as."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from diveparse.datasets.dives import ATTRIBUTES
from diveparse.engine.evaluation.metrics import confusion_matrix, reliability
from diveparse.engine.evaluation.pictures import confusion_figure
from diveparse.engine.evaluation.predictions import load_predictions
from diveparse.engine.evidence.comparison import Report
from diveparse.engine.evidence.figures import (
    accuracy_figure,
    attribute_figure,
    effect_figure,
    forest_figure,
    reliability_figure,
)
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.statistics import Estimate
from diveparse.engine.evidence.verdicts import TOP1
from diveparse.heads.recombine import INVALID

MAX_ARMS_DRAWN = 10  # side by side, in one figure
VALUES_OF_OPTION = re.compile(r" \([^)]*\)")  # as in "head.kind (joint, flat)"


def figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Yield each figure under the name of its file."""
    yield "top1", top1_of(report)
    attributes = {arm: {a: float(np.mean(report.scores_of(arm, a))) for a in ATTRIBUTES} for arm in report.arms}
    yield "attributes", attribute_figure(attributes, report.caption)
    for pair in report.pairs:
        training_clips = pair.classes["training_clips"].tolist()
        if set(training_clips) != {0}:
            gains = pair.classes["difference"].tolist()
            name = file_name(f"classes-{pair.second}-{pair.first}")
            yield name, effect_figure(training_clips, gains, pair.name, report.caption)
    yield from _confusions(report)
    yield "reliability", reliability_of(report)


def page_figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Those for the page of an experiment, of which many arms would not fit in all."""
    if len(report.arms) <= MAX_ARMS_DRAWN:
        yield "top1", top1_of(report)
        yield "reliability", reliability_of(report)
    if report.pools:
        pooled = {
            f"pooled: {VALUES_OF_OPTION.sub('', pool.options)}": pool.judged.difference.interval()
            for pool in report.pools
            if pool.judged.quantity == TOP1
        }
        yield "forest", forest_figure(_differences(report), pooled, report.caption)


def top1_of(report: Report) -> Figure:
    top1 = {arm: report.scores_of(arm, "top1") for arm in report.arms}
    return accuracy_figure(report.accuracies, top1, _differences(report), report.caption)


def reliability_of(report: Report) -> Figure:
    bins = {arm: [_bins(run) for run in runs.values()] for arm, runs in report.arms.items()}
    return reliability_figure(bins, report.caption)


def _differences(report: Report) -> dict[str, Estimate]:
    """In top-1 on all clips, by the name of the pair."""
    overall = {pair.name: pair.overall(TOP1) for pair in report.pairs}
    return {name: effect.judged.difference.interval() for name, effect in overall.items() if effect}


def file_name(title: str) -> str:
    return title.replace("/", "-").replace(" ", "-")


def _confusions(report: Report) -> Iterator[tuple[str, Figure]]:
    """Which dives each arm confuses, over all its seeds."""
    any_run = next(run for _, _, run in report.runs)
    _, dive_set = load_predictions(any_run.files.probabilities)
    label_of = {number: label for label, number in enumerate(dive_set.numbers)} | {"": INVALID}
    for arm, runs in report.arms.items():
        answers = pd.concat([run.predictions for run in runs.values()])
        labels, predicted = (answers[name].map(label_of).to_numpy() for name in ("true_number", "predicted_number"))
        matrix = confusion_matrix(labels, predicted, len(dive_set))
        title = f"{arm}, seeds {', '.join(map(str, runs))}\n{report.caption}"
        yield file_name(f"confusion-{arm}"), confusion_figure(matrix, dive_set.numbers, title)


def _bins(run: Run) -> dict[str, npt.NDArray[np.float64]]:
    predictions, _ = load_predictions(run.files.probabilities)
    return reliability(predictions.dive_log_probs, predictions.labels)
