import pytest

from diveparse.datasets.dive_labels import _dives_by_name, dive_of_label, dives_of_labels, in_known_order
from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS, Dive, DiveSet

SPELLINGS = {
    "the text of a list": lambda dive: str(dive.vocab),
    "four words": lambda dive: " ".join(dive.vocab),
    "four words, joined": lambda dive: "_".join(dive.vocab),
    "numbers": lambda dive: dive.number,
    "words": lambda dive: dive.name,
    "words in lower case": lambda dive: f" {dive.name.lower()} ",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_dive_of_diving48_is_read_in_every_spelling(spelling: str) -> None:
    labels = [SPELLINGS[spelling](dive) for dive in reversed(DIVING48)]
    labelled = dives_of_labels(labels, "folder")
    assert labelled.numbers == tuple(reversed(DIVING48.numbers))
    assert in_known_order(labelled) is DIVING48


def test_a_set_that_this_project_does_not_have_keeps_the_order_of_its_labels() -> None:
    labelled = DiveSet(DIVING48[:3][::-1])
    assert in_known_order(labelled) is labelled


def test_every_dive_that_is_listed_has_a_name_of_its_own_that_is_read() -> None:
    for dive in (*WORLD_AQUATICS, Dive.from_number("600A")):
        assert dive_of_label(dive.name) == dive
    assert len(set(_dives_by_name().values())) == len(_dives_by_name())


@pytest.mark.parametrize("label", ["abseiling", "LABEL_0", "5253E", "Back 25som 15Twis", "Back 9 somersaults pike", ""])
def test_what_is_no_dive_is_none(label: str) -> None:
    assert dive_of_label(label) is None


def test_labels_that_are_no_dives_are_listed_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^folder: 2 of its 3 labels are no dives; .*got 'abseiling', 'air drumming'$"
    ):
        dives_of_labels(["abseiling", "101B", "air drumming"], "folder")
    with pytest.raises(ValueError, match=r"'other 19' and 30 more$"):
        dives_of_labels([f"other {number}" for number in range(50)], "folder")
    with pytest.raises(ValueError, match="dive 101B is listed twice"):
        dives_of_labels(["101B", "['Forward', 'Dive', 'NoTwis', 'PIKE']"], "folder")
