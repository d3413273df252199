"""The table of dives that training never saw: each arm without and with calibrated stacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from diveparse.configs import ExperimentConfig
from diveparse.datasets.dives import DiveSet
from diveparse.engine.evaluation.predictions import Predictions, load_predictions
from diveparse.engine.evidence.experiment import Cell, cell_elsewhere
from diveparse.engine.evidence.runs import Run
from diveparse.engine.evidence.tables import estimate_text
from diveparse.engine.evidence.trainings import THESE_WEIGHTS
from diveparse.engine.evidence.unseen import choose_kept_share, generalised, penalty_that_keeps

HEADERS = ("arm", "penalty of each seed, nats", "seen", "unseen", "harmonic mean", "among the unseen alone")


@dataclass(frozen=True)
class Stacked:
    """An arm whose training did not see some dives, with what stacking takes from each of its seeds."""

    answers: list[Predictions]  # one a seed
    dive_set: DiveSet
    unseen: Sequence[str]  # numbers of dives
    beyond: Sequence[str]  # that the development models did not see either
    shares: list[float]  # of the accuracy on seen dives, to be kept
    penalties: list[float]  # in nats


def unseen_table(path: Path, experiment: ExperimentConfig, arms: Mapping[str, Mapping[int, Run]]) -> str:
    """The accuracy of the arms of `experiment.stacking`, and what it is, in Markdown. path: of the experiment."""
    rows = []
    for arm, name in experiment.stacking.items():
        stacked = stack(arms[arm], {seed: cell_elsewhere(path, name, seed) for seed in arms[arm]})
        kept = f"{arm} + stacking, to keep {', '.join(f'{share:.2f}' for share in stacked.shares)}"
        rows.append(_row(arm, stacked, [0.0] * len(stacked.penalties)))
        rows.append(_row(kept, stacked, stacked.penalties))
    about = (
        f"Accuracy among all dives, on clips of dives that training saw and on clips of the {len(stacked.unseen)} that "
        f"it did not see ({', '.join(stacked.unseen)}), with 95 % intervals over sources for {THESE_WEIGHTS}. Stacking "
        f"subtracts a penalty from the scores of all seen dives. The share of their accuracy on seen dives that models "
        f"with stacking keep was chosen on validation clips, by arms that did not see {', '.join(stacked.beyond)} "
        f"either. The penalty that keeps this share was chosen on each model's own validation clips."
    )
    return f"{about}\n\n{tabulate(rows, headers=HEADERS, tablefmt='github', disable_numparse=True)}"


def stack(runs: Mapping[int, Run], developments: Mapping[int, Cell]) -> Stacked:
    """Choose the penalty of each run. runs, developments: of one arm, by seed."""
    answers, shares, penalties = [], [], []
    for seed, run in runs.items():
        unseen, cell = run.config.data.unseen_dives, developments[seed]
        predictions, dive_set = load_predictions(run.files.probabilities)
        beyond = [number for number in cell.config.data.unseen_dives if number not in unseen]
        chosen_on = load_predictions(cell.run.evaluation("val").probabilities)
        share = choose_kept_share(*chosen_on, unseen=beyond, ignored=unseen)
        own = load_predictions(run.folder.evaluation("val").probabilities)
        answers.append(predictions)
        shares.append(share)
        penalties.append(penalty_that_keeps(share, *own, unseen))
    return Stacked(answers, dive_set, unseen, beyond, shares, penalties)


def _row(arm: str, stacked: Stacked, penalties: Sequence[float]) -> list[str]:
    scores = generalised(stacked.answers, stacked.dive_set, stacked.unseen, penalties)
    accuracies = [estimate_text(each, "") for each in (scores.seen, scores.unseen, scores.harmonic)]
    return [arm, ", ".join(f"{each:.2f}" for each in penalties), *accuracies, f"{scores.unseen_alone:.3f}"]
