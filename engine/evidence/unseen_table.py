"""The table of dives that training never saw: each arm without a penalty on seen dives and with a calibrated one.

Arms of one experiment hold out other dives each, a draw. How much of its accuracy on seen dives an arm is to keep is
chosen by arms of the other draws, on their validation clips of dives that they did not see and that this arm did see.
So no dive that an arm is scored on as unseen takes part in the choice.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax
from tabulate import tabulate

from diveparse.configs import ExperimentConfig, flat_options
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.engine.evaluation.predictions import Predictions, load_predictions
from diveparse.engine.evaluation.stacking import penalty_that_keeps
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.statistics import spread_over_seeds
from diveparse.engine.evidence.tables import estimate_text
from diveparse.engine.evidence.trainings import THESE_WEIGHTS
from diveparse.engine.evidence.unseen import Generalised, area_under_curve, choose_kept_share, generalised

ACCURACY_HEADERS = ("arm", "penalty, nats", "seen", "unseen", "harmonic mean")
CURVE_HEADERS = ("arm", "unseen dives", "share to keep", "among the unseen alone", "area under the curve")
NOT_OF_A_FAMILY = ("name", "arm", "seed", "data.unseen_dives")  # of the options
ABOUT = f"""\
Training saw no clip of the unseen dives. *Seen* and *unseen* are accuracies among all dives, on clips of dives of
either kind; the *harmonic mean* is that of the two. Each arm has a row without a penalty and one with it. The penalty
is subtracted from the scores of all dives that training saw. It is the highest that keeps a share of the accuracy on
the seen dives among each model's own validation clips. That share is chosen by the other arms named for the arm, on
validation clips of dives that they did not see and the arm did. It is the one with the highest harmonic mean there,
averaged over these arms and their seeds. So no dive that is unseen to an arm takes part in its choice.

*Among the unseen alone* is the accuracy where only unseen dives may be the answer. The *area under the curve* is that
of the accuracy on seen dives over the accuracy on unseen ones, for all penalties from minus to plus infinity (Chao et
al., ECCV 2016). A row of an arm is the mean over its seeds, with 95 % intervals over sources for {THESE_WEIGHTS}, or
with the standard deviation over seeds. The other rows are arms that differ in their unseen dives alone: mean ±
standard deviation over these draws."""


@dataclass(frozen=True)
class Stacked:
    """An arm whose training did not see some dives, with the penalty of each of its seeds."""

    unseen: Sequence[str]  # numbers of dives
    share: float  # of the accuracy on seen dives, to be kept
    penalties: list[float]  # in nats, one a seed
    without: Generalised
    with_penalty: Generalised
    areas: list[float]  # one a seed


def stack_arms(experiment: ExperimentConfig, arms: Mapping[str, Mapping[int, Run]]) -> dict[str, Stacked]:
    """The arms of `experiment.stacking`, each with penalties that the arms named for it choose."""
    return {
        arm: stack(arms[arm], [run for other in others for run in arms[other].values()])
        for arm, others in experiment.stacking.items()
    }


def unseen_rows(stacked: Mapping[str, Stacked], arms: Mapping[str, Mapping[int, Run]]) -> list[dict[str, object]]:
    """Rows for the table of `tidy.tidy_table`: what a draw reaches, under the name of its family.

    Its seed is the draw's arm, and so a mean over seeds is one over draws.
    """
    return [
        {"arm": name, "seed": arm, "quantity": quantity, "value": value}
        for name, members in families({arm: arms[arm] for arm in stacked}).items()
        for arm in members
        for quantity, value in _scores_of(stacked[arm]).items()
    ]


def _scores_of(draw: Stacked) -> dict[str, float]:
    return {
        "seen": draw.with_penalty.seen.value,
        "unseen": draw.with_penalty.unseen.value,
        "harmonic_mean": draw.with_penalty.harmonic.value,
        "seen_without_penalty": draw.without.seen.value,
        "unseen_without_penalty": draw.without.unseen.value,
        "harmonic_mean_without_penalty": draw.without.harmonic.value,
        "unseen_alone": draw.without.unseen_alone,
        "area": float(np.mean(draw.areas)),
        "kept_share": draw.share,
    }


def unseen_table(stacked: Mapping[str, Stacked], arms: Mapping[str, Mapping[int, Run]]) -> str:
    """The accuracy of arms on dives that they saw and did not see, in Markdown."""
    accuracies, curves = [], []
    for arm, each in stacked.items():
        for penalties, scores in (([0.0], each.without), (each.penalties, each.with_penalty)):
            estimates = (scores.seen, scores.unseen, scores.harmonic)
            accuracies.append([arm, _mean_and_spread(penalties, 2), *(estimate_text(value, "") for value in estimates)])
        alone, area = f"{each.without.unseen_alone:.3f}", _mean_and_spread(each.areas)
        curves.append([arm, ", ".join(each.unseen), f"{each.share:.3f}", alone, area])
    for name, members in families({arm: arms[arm] for arm in stacked}).items():
        draws = [stacked[arm] for arm in members]
        for penalties, scored in (
            ([0.0], [each.without for each in draws]),
            ([float(np.mean(each.penalties)) for each in draws], [each.with_penalty for each in draws]),
        ):
            values = zip(*((each.seen.value, each.unseen.value, each.harmonic.value) for each in scored), strict=True)
            accuracies.append([_family(name, draws), _mean_and_spread(penalties, 2), *map(_mean_and_spread, values)])
        shares, alone, areas = (
            _mean_and_spread(values)
            for values in (
                [each.share for each in draws],
                [each.without.unseen_alone for each in draws],
                [float(np.mean(each.areas)) for each in draws],
            )
        )
        curves.append([_family(name, draws), "", shares, alone, areas])
    return "\n\n".join(
        [
            "**Dives that training never saw**",
            tabulate(accuracies, headers=ACCURACY_HEADERS, tablefmt="github", disable_numparse=True),
            tabulate(curves, headers=CURVE_HEADERS, tablefmt="github", disable_numparse=True),
            ABOUT,
        ]
    )


def stack(runs: Mapping[int, Run], others: Iterable[Run]) -> Stacked:
    """Choose the penalty of each run of an arm, and score the arm. runs: by seed; others: of arms of other draws."""
    unseen = next(iter(runs.values())).config.data.unseen_dives
    share = float(np.mean([kept_share(run, unseen) for run in others]))
    penalties = [penalty_that_keeps(share, *answers_of(run, "val"), unseen) for run in runs.values()]
    answers = [answers_of(run, run.split) for run in runs.values()]
    predictions, dive_set = [each for each, _ in answers], answers[0][1]
    return Stacked(
        unseen=unseen,
        share=share,
        penalties=penalties,
        without=generalised(predictions, dive_set, unseen, [0.0] * len(predictions)),
        with_penalty=generalised(predictions, dive_set, unseen, penalties),
        areas=[area_under_curve(each, dive_set, unseen) for each in predictions],
    )


def kept_share(run: Run, ignored: Sequence[str]) -> float:
    """What a run of another draw chooses, on its validation clips, without the dives that the arm did not see.

    Raises: ValueError naming the run, if its clips choose nothing.
    """
    unseen = [number for number in run.config.data.unseen_dives if number not in ignored]
    try:
        return choose_kept_share(*answers_of(run, "val"), unseen=unseen, ignored=ignored)
    except ValueError as error:
        raise ValueError(f"{run.folder}: {error}") from error


def answers_of(run: Run, split: str) -> tuple[Predictions, DiveSet]:
    """The answers of a test, with the model's own penalty added back to the dives that it was subtracted from."""
    files = run.folder.evaluation(split)
    predictions, dive_set = load_predictions(files.probabilities)
    metrics = read_json_object(files.metrics)
    penalty = np.float32(metrics.get("unseen_penalty", 0.0))  # a test of an earlier version had none
    if not penalty:
        return predictions, dive_set
    is_penalised = [metrics["num_train_clips"][number] > 0 for number in dive_set.numbers]
    scores = predictions.dive_log_probs + penalty * np.array(is_penalised)
    return replace(predictions, dive_log_probs=log_softmax(scores, axis=1)), dive_set


def families(arms: Mapping[str, Mapping[int, Run]]) -> dict[str, list[str]]:
    """Arms that differ in their unseen dives alone, two or more, by what their names begin with."""
    members: dict[str, list[str]] = {}
    for arm, runs in arms.items():
        options = flat_options(next(iter(runs.values())).config)
        kind = repr(sorted((name, value) for name, value in options.items() if name not in NOT_OF_A_FAMILY))
        members.setdefault(kind, []).append(arm)
    groups = [group for group in members.values() if len(group) > 1]
    shared = [os.path.commonprefix(group).rstrip("-_") for group in groups]  # noqa: RUF071  # letters are meant
    return {name or ", ".join(group): group for name, group in zip(shared, groups, strict=True)}


def _family(name: str, draws: Sequence[Stacked]) -> str:
    return f"**{name}**, {len(draws)} draws"


def _mean_and_spread(values: Sequence[float], num_digits: int = 3) -> str:
    spread = spread_over_seeds(values)
    return f"{np.mean(values):.{num_digits}f}" + ("" if spread is None else f" ± {spread:.{num_digits}f}")
