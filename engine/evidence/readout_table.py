"""The table of models that are tested on other dives than those of their training: which of them they name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tabulate import tabulate

from diveparse.engine.evidence.runs import Run

HEADERS = ("arm", "dives of the test", "number of dives", "clips", "top-1 there, %")
ABOUT = """\
These models were trained in another experiment, on other clips, and answer here among all dives of the test. A dive is
*trained* if training had a clip of it. Of the others, a model can name those that it has all attribute values of, or a
class of its own. Each accuracy is the mean over the trainings."""


def is_read_out(run: Run) -> bool:
    return run.model_of is not None


def readout_table(arms: Mapping[str, Mapping[int, Run]]) -> str:
    """The accuracy of each arm that is read out, by what its training makes of the dives, in Markdown.

    arms: arm -> seed -> run.
    """
    rows = [
        [arm, *row]
        for arm, runs in arms.items()
        if all(map(is_read_out, runs.values()))
        for row in _rows(list(runs.values()))
    ]
    table = tabulate(rows, headers=HEADERS, tablefmt="github", floatfmt=".1f", missingval="-")
    return "\n\n".join(["**Models of other dives**", table, _missing(arms), ABOUT])


def _rows(runs: list[Run]) -> list[list[object]]:
    """A row for each kind of dive: the kind, dives, clips, top-1."""
    first = runs[0]
    numbers = first.predictions["true_number"].to_numpy(dtype=str)
    is_trained = np.array([first.num_train_clips.get(number, 0) > 0 for number in numbers])
    is_named = ~np.isin(numbers, first.not_expressible)
    kinds = {
        "trained": is_trained,
        "not trained, can be named": ~is_trained & is_named,
        "cannot be named": ~is_named,
        "all": np.ones(len(numbers), bool),
    }
    correct = np.stack([run.correct for run in runs])  # (num_seeds, num_clips)
    return [
        [kind, len(set(numbers[clips])), int(clips.sum()), 100 * correct[:, clips].mean() if clips.any() else None]
        for kind, clips in kinds.items()
    ]


def _missing(arms: Mapping[str, Mapping[int, Run]]) -> str:
    """Which dives each arm cannot name."""
    lines = []
    for arm, runs in arms.items():
        first = next(iter(runs.values()))
        if is_read_out(first):
            lines.append(f"- {arm} cannot name: {', '.join(first.not_expressible) or 'none'}")
    return "\n".join(lines)
