"""Verdicts about arms: p-values of a family of comparisons, corrected together, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diveparse.engine.evidence.statistics import holm
from diveparse.engine.evidence.trainings import ALPHA, MARGINS, Difference

TOP1, NLL = "top-1", "NLL"
MARGIN_NAMES = {
    TOP1: tuple(f"±{100 * margin:g} points" for margin in MARGINS),
    NLL: tuple(f"±{margin:g} nats" for margin in MARGINS),
}
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Judged:
    """A difference with its p-values, corrected for its family."""

    quantity: str  # TOP1 or NLL
    difference: Difference
    p_different: float
    p_within: tuple[float, ...]  # one for each of MARGINS

    @property
    def verdict(self) -> str:
        """higher, lower or equivalent, with the smallest margin that holds; or undecided; or what limits it.

        A difference may be certain and small: "higher (within ±1 points)".
        """
        if self.difference.limit:
            return self.difference.limit
        names = zip(MARGIN_NAMES[self.quantity], self.p_within, strict=True)
        margin = next((name for name, p_value in names if p_value < ALPHA), None)
        if self.p_different < ALPHA:
            side = "higher" if self.difference.value > 0 else "lower"
            return f"{side} (within {margin})" if margin else side
        return f"equivalent ({margin})" if margin else UNDECIDED


def judge(quantity: str, differences: Sequence[Difference]) -> list[Judged]:
    """Judge a family of comparisons.

    Holm's correction takes each question over the family by itself: "is there a difference?" and "is it below the
    margin?". For one comparison at most one of the two can be answered falsely: no difference is below any margin.
    """
    different = holm([difference.p_different for difference in differences])
    within = [holm([difference.p_within(margin) for difference in differences]) for margin in MARGINS]
    return [
        Judged(quantity, difference, p_different, tuple(p_within))
        for difference, p_different, *p_within in zip(differences, different, *within, strict=True)
    ]
