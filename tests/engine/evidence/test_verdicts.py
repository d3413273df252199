from math import nan

import pytest

from diveparse.engine.evidence.statistics import holm
from diveparse.engine.evidence.trainings import THESE_WEIGHTS, THIS_SOURCE, Difference
from diveparse.engine.evidence.verdicts import NLL, TOP1, judge


@pytest.mark.parametrize(
    ("quantity", "difference", "expected"),
    [
        (TOP1, Difference(0.05, 0.01, 20.0), "higher"),
        (TOP1, Difference(-0.05, 0.01, 20.0), "lower"),
        (TOP1, Difference(0.005, 0.001, 20.0), "higher (within ±1 points)"),
        (TOP1, Difference(-0.012, 0.002, 20.0), "lower (within ±2 points)"),
        (TOP1, Difference(0.001, 0.003, 20.0), "equivalent (±1 points)"),
        (TOP1, Difference(0.006, 0.003, 20.0), "equivalent (±2 points)"),
        (TOP1, Difference(0.001, 0.01, 20.0), "undecided"),
        (NLL, Difference(0.001, 0.003, 20.0), "equivalent (±0.01 nats)"),
        (NLL, Difference(-0.5, 0.01, 20.0), "lower"),
        (TOP1, Difference(0.5, 0.001, 20.0, THESE_WEIGHTS), "these weights only"),
        (NLL, Difference(0.0, 0.001, 20.0, THIS_SOURCE), "this source only"),
    ],
)
def test_a_verdict_names_the_side_and_the_smallest_margin_that_holds(quantity, difference, expected):
    (judged,) = judge(quantity, [difference])
    assert judged.verdict == expected


def test_every_question_is_corrected_for_the_comparisons_that_can_answer_it():
    differences = [Difference(value, 0.005, 20.0) for value in (0.02, 0.001, -0.015)]
    undecidable = Difference(0.9, 0.005, 20.0, THESE_WEIGHTS)
    judged = judge(TOP1, [*differences, undecidable])
    assert [each.p_different for each in judged] == pytest.approx(
        [*holm([each.p_different for each in differences]), nan], nan_ok=True
    )
    for column, margin in enumerate((0.01, 0.02)):
        expected = [*holm([each.p_within(margin) for each in differences]), nan]
        assert [each.p_within[column] for each in judged] == pytest.approx(expected, nan_ok=True)
    assert judged[0].p_different > differences[0].p_different
