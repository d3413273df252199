import csv
import itertools
import json
import pickle
import re
from contextlib import suppress
from pathlib import Path

import pytest

from diveparse.datasets.dives import (
    ATTRIBUTES,
    DIVING48,
    DIVING48_TEST_COUNTS,
    DIVING48_TRAIN_COUNTS,
    FINEDIVING,
    FINEDIVING_TRAIN_COUNTS,
    WORLD_AQUATICS,
    Dive,
    DiveSet,
    Position,
    Takeoff,
)

LISTED = [*WORLD_AQUATICS, *DIVING48]


def every_dive_of_the_grammar() -> list[Dive]:
    dives = []
    for parts in itertools.product(Takeoff, range(-1, 13), range(-1, 11), Position, (False, True), (False, True)):
        with suppress(ValueError):
            dives.append(Dive(*parts))
    return dives


def test_every_number_of_every_table_survives_the_round_trip() -> None:
    for dive in LISTED:
        assert Dive.from_number(dive.number) == dive


def test_every_dive_that_can_be_made_has_a_number_of_its_own_that_reads_back() -> None:
    dives = every_dive_of_the_grammar()
    assert [Dive.from_number(dive.number) for dive in dives] == dives
    assert len({dive.number for dive in dives}) == len({dive.name for dive in dives}) == len(dives)
    assert set(LISTED) <= set(dives)


def test_every_readable_number_is_the_number_of_its_dive() -> None:
    letters = "ABCDE"
    for num_digits in (3, 4):
        for digits in itertools.product("0123456789", repeat=num_digits):
            for letter in letters:
                number = "".join(digits) + letter
                try:
                    dive = Dive.from_number(number)
                except ValueError:
                    continue
                assert dive.number == number


def test_a_number_is_taken_apart_by_the_rules() -> None:
    assert Dive.from_number("5253B") == Dive(Takeoff.BACK, 5, 3, Position.PIKE)
    assert Dive.from_number("113C") == Dive(Takeoff.FORWARD, 3, 0, Position.TUCK, flying=True)
    assert Dive.from_number("626C") == Dive(Takeoff.BACK, 6, 0, Position.TUCK, armstand=True)
    assert Dive.from_number("6243D") == Dive(Takeoff.BACK, 4, 3, Position.FREE, armstand=True)
    assert Dive.from_number("600A") == Dive(Takeoff.FORWARD, 0, 0, Position.STRAIGHT, armstand=True)
    assert Dive.from_number("1011C") == Dive(Takeoff.FORWARD, 11, 0, Position.TUCK)


@pytest.mark.parametrize(
    ("number", "part"),
    [
        ("", "digits and then one letter"),
        ("B", "digits and then one letter"),
        ("5253", "position must be"),
        ("10 B", "digits and then one letter"),
        ("¹05B", "digits and then one letter"),
        ("105BB", "digits and then one letter"),
        (105, "digits and then one letter"),
        (None, "digits and then one letter"),
        ("005B", "group, the first digit, must be 1 to 6, got 0"),
        ("705B", "group, the first digit, must be 1 to 6, got 7"),
        ("105E", "position must be .* got 'E'"),
        ("105b", "position must be .* got 'b'"),
        ("10B", "group 1 has 3 or 4 digits, got 2"),
        ("10511B", "group 1 has 3 or 4 digits, got 5"),
        ("515B", "group 5 has 4 digits, got 3"),
        ("62431D", "group 6 has 3 or 4 digits, got 5"),
        ("125B", "second digit of group 1 must be 0, or 1 for a flying dive, got 2"),
        ("100A", "somersault of 0 half turns"),
        ("1012C", "somersault must be 1 to 11 half turns here, got 12"),
        ("1005B", "is written 105B"),
        ("5051D", "takeoff, the second digit of group 5, must be 1 to 4, got 0"),
        ("5551D", "takeoff, the second digit of group 5, must be 1 to 4, got 5"),
        ("5101D", "somersault of 0 half turns"),
        ("5150B", "is written 105B"),
        ("643B", "takeoff, the second digit of group 6, must be 1 to 3, got 4"),
        ("601A", "takeoff, the second digit of group 6, must be 1 to 3, got 0"),
        ("610A", "is written 600A"),
        ("620A", "somersault of 0 half turns"),
        ("6240B", "is written 624B"),
        ("105D", r"position D \(free\) is for twisting dives only"),
        ("624D", r"position D \(free\) is for twisting dives only"),
    ],
)
def test_a_malformed_number_is_refused_with_the_part_that_is_wrong(number: str, part: str) -> None:
    with pytest.raises(ValueError, match=part) as caught:
        Dive.from_number(number)
    assert repr(number) in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((Takeoff.FORWARD, 12, 0, Position.TUCK), "somersault must be 1 to 11"),
        ((Takeoff.FORWARD, 10, 1, Position.TUCK), "somersault must be 1 to 9"),
        ((Takeoff.FORWARD, 3, 10, Position.FREE), "twist must be 0 to 9"),
        ((Takeoff.FORWARD, 3, -1, Position.FREE), "twist must be 0 to 9"),
        ((Takeoff.FORWARD, 3, 1, Position.PIKE, True), "flying dives neither twist"),
        ((Takeoff.FORWARD, 3, 0, Position.PIKE, True, True), "flying dives neither twist nor start from an armstand"),
        ((Takeoff.INWARD, 3, 0, Position.PIKE, False, True), "got 4"),
    ],
)
def test_parts_that_no_number_can_hold_are_refused(parts: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dive(*parts)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        ("5253B", "Back 2½ somersaults 1½ twists pike"),
        ("101A", "Forward dive straight"),
        ("102B", "Forward 1 somersault pike"),
        ("5211A", "Back dive ½ twist straight"),
        ("5132D", "Forward 1½ somersaults 1 twist free"),
        ("113C", "Forward flying 1½ somersaults tuck"),
        ("600A", "Armstand dive straight"),
        ("611A", "Armstand forward ½ somersault straight"),
        ("6243D", "Armstand back 2 somersaults 1½ twists free"),
        ("1011C", "Forward 5½ somersaults tuck"),
    ],
)
def test_a_dive_is_named_in_words(number: str, name: str) -> None:
    assert Dive.from_number(number).name == name


def test_the_vocabulary_of_the_48_survives_the_round_trip() -> None:
    assert [Dive.from_vocab(dive.vocab) for dive in DIVING48] == list(DIVING48)
    assert DIVING48[5].vocab == ["Back", "25som", "15Twis", "PIKE"]
    assert DIVING48[30].vocab == ["Forward", "Dive", "NoTwis", "STR"]


def test_the_vocabulary_is_the_published_one(shared_data: Path) -> None:
    published = json.loads((shared_data / "annotations" / "diving48_vocab.json").read_text())
    assert [dive.vocab for dive in DIVING48] == published


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["Sideways", "25som", "15Twis", "PIKE"], "takeoff must be one of Forward, Back.* got 'Sideways'"),
        (["Back", "25 som", "15Twis", "PIKE"], "somersault must be one of Dive, 1som.* got '25 som'"),
        (["Back", "25som", "15twis", "PIKE"], "twist must be one of NoTwis, 05Twis.* got '15twis'"),
        (["Back", "25som", "15Twis", "B"], "position must be one of STR, PIKE.* got 'B'"),
        (["Back", "25som", "NoTwis", "FREE"], "for twisting dives only"),
        (["Back", "25som", "15Twis"], "expected 4 words"),
        (["Back", 5, "15Twis", "PIKE"], "expected 4 words"),
        ("Back", "expected 4 words"),
        (None, "expected 4 words"),
    ],
)
def test_a_malformed_vocabulary_entry_is_refused_with_the_part_that_is_wrong(entry: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Dive.from_vocab(entry)
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("5" * 100_000, "'555555555555...5555555555555': position must be"),
        ("\n" * 100_000, r"'\n\n\n\n\n\n...n\n\n\n\n\n\n': expected digits"),
        ([1] * 2000, "[1, 1, 1, 1, 1, 1, ...]: expected digits"),
    ],
    ids=["digits", "lines", "list"],
)
def test_a_huge_number_is_shown_in_one_short_line(value: object, shown: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"dive number {shown}")) as caught:
        Dive.from_number(value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    "entry", [["Back", "25som", "x" * 5000, "PIKE"], "x" * 5000, [[1] * 2000]], ids=["word", "text", "list"]
)
def test_a_huge_vocabulary_entry_is_shown_in_one_short_line(entry: object) -> None:
    with pytest.raises(ValueError, match=r"vocabulary entry .*\.\.\.") as caught:
        Dive.from_vocab(entry)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("number", ["113B", "626C"])
def test_flying_and_armstand_dives_have_no_vocabulary_entry(number: str) -> None:
    with pytest.raises(ValueError, match=f"{number} has no spelling"):
        _ = Dive.from_number(number).vocab


def test_the_table_has_the_known_difficulties() -> None:
    assert WORLD_AQUATICS["5253B"].difficulty(height_m=10) == 3.2
    assert WORLD_AQUATICS["101A"].difficulty(1) == 1.4
    assert WORLD_AQUATICS["101A"].difficulty(7.5) == 1.6
    assert Dive.from_number("5243D").difficulty(10) is None
    assert Dive.from_number("626C").difficulty(3) is None
    with pytest.raises(ValueError, match=r"height_m must be one of 1, 3, 5, 7\.5, 10, got 4"):
        DIVING48[0].difficulty(4)


def test_the_table_agrees_with_the_published_lists(shared_data: Path) -> None:
    with (shared_data / "annotations" / "dive_table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed = {row["dive_number"]: row for row in rows if "1" in (row["in_fina_2017_2021"], row["in_usa_2026"])}
    assert set(WORLD_AQUATICS.numbers) == set(listed)
    for number, row in listed.items():
        for height_m in (1, 3, 5, 7.5, 10):
            published = row[f"dd_{height_m}m"]
            assert WORLD_AQUATICS[number].difficulty(height_m) == (float(published) if published else None)
    with (shared_data / "annotations" / "diving48_class_counts.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    assert DIVING48.numbers == tuple(row["dive_number"] for row in classes)
    assert tuple(int(row["v2_train"]) for row in classes) == DIVING48_TRAIN_COUNTS
    assert tuple(int(row["v2_test"]) for row in classes) == DIVING48_TEST_COUNTS


def test_the_dives_of_finediving_are_those_of_its_annotation(shared_data: Path) -> None:
    with (shared_data / "annotations" / "finediving_dives.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert FINEDIVING.numbers == tuple(sorted({row["action_type"] for row in rows}))
    train = [row["action_type"] for row in rows if row["split"] == "train"]
    assert tuple(train.count(number) for number in FINEDIVING.numbers) == FINEDIVING_TRAIN_COUNTS


def test_the_dives_of_finediving_are_known() -> None:
    assert (len(FINEDIVING), sum(FINEDIVING_TRAIN_COUNTS)) == (52, 2_251)
    assert sum(dive.armstand for dive in FINEDIVING) == 9
    assert sum(dive in DIVING48 for dive in FINEDIVING) == 34
    assert len(FINEDIVING.expressible(DIVING48.values)) == 52 - 9


def test_the_sets_have_the_known_contents() -> None:
    assert len(DIVING48) == len(DIVING48_TRAIN_COUNTS) == len(DIVING48_TEST_COUNTS) == 48
    assert (sum(DIVING48_TRAIN_COUNTS), sum(DIVING48_TEST_COUNTS)) == (15_027, 1_970)
    assert DIVING48_TRAIN_COUNTS[30] == DIVING48_TEST_COUNTS[30] == 0
    assert DIVING48[5].number == "5253B"
    assert DIVING48.label_of("5253B") == 5
    assert "5243D" in DIVING48
    assert "5243D" not in WORLD_AQUATICS
    assert len(WORLD_AQUATICS) == 260
    assert {"1011C", "600A"} <= set(WORLD_AQUATICS.numbers)


def test_the_heads_of_the_48_have_their_known_sizes() -> None:
    assert {attribute: len(values) for attribute, values in DIVING48.values.items()} == {
        "takeoff": 4,
        "somersault": 8,
        "twist": 8,
        "position": 4,
    }
    assert DIVING48.values["takeoff"] == ("forward", "back", "reverse", "inward")
    assert DIVING48.values["somersault"] == (1, 2, 3, 4, 5, 6, 7, 9)
    assert DIVING48.value_names["somersault"][4] == "2½ somersaults"
    assert DIVING48.value_names["twist"][:3] == ("no twist", "½ twist", "1 twist")
    assert DIVING48.values["position"] == ("straight", "pike", "tuck", "free")


@pytest.mark.parametrize("dive_set", [DIVING48, WORLD_AQUATICS], ids=lambda s: s.name)
def test_slots_describe_each_dive_exactly_and_no_two_alike(dive_set: DiveSet) -> None:
    slots = dive_set.slots()
    assert tuple(slots) == tuple(dive_set.values) == ATTRIBUTES
    for label, dive in enumerate(dive_set):
        spelled = {attribute: dive_set.values[attribute][slots[attribute][label]] for attribute in ATTRIBUTES}
        assert spelled == dive.attribute_values()
    assert len(set(zip(*slots.values(), strict=True))) == len(dive_set)


def test_slots_over_the_values_of_another_head_name_the_dive_that_it_cannot_express() -> None:
    with pytest.raises(ValueError, match=r"World Aquatics: dive 108B needs the somersault '4 somersaults'"):
        WORLD_AQUATICS.slots(DIVING48.values)


def test_expressible_keeps_exactly_the_dives_whose_values_are_known() -> None:
    kept = WORLD_AQUATICS.expressible(DIVING48.values)
    kept.slots(DIVING48.values)
    for dive in WORLD_AQUATICS:
        known = all(value in DIVING48.values[a] for a, value in dive.attribute_values().items())
        assert (dive in kept) == known
    assert 48 < len(kept) < len(WORLD_AQUATICS)
    with pytest.raises(ValueError, match="at least one dive"):
        DiveSet.from_numbers(["113B"], "mine").expressible(DIVING48.values)


def test_a_set_is_a_sequence_whose_places_are_the_labels() -> None:
    dives = DiveSet.from_numbers(["107B", "5253B"], "mine")
    assert [dives.label_of(dive) for dive in dives] == [0, 1]
    assert dives[-1] == dives["5253B"] == dives[1:][0]
    assert "107B" in dives
    assert Dive.from_number("107C") not in dives
    assert dives == DiveSet.from_numbers(["107B", "5253B"], "another name")
    assert dives != DiveSet.from_numbers(["5253B", "107B"], "mine")
    assert pickle.loads(pickle.dumps(dives)) == dives


def test_a_set_names_itself_in_its_errors() -> None:
    with pytest.raises(ValueError, match="mine: dive 107B is listed twice"):
        DiveSet.from_numbers(["107B", "107C", "107B"], "mine")
    with pytest.raises(ValueError, match="mine: dive number '107X': position"):
        DiveSet.from_numbers(["107B", "107X"], "mine")
    with pytest.raises(ValueError, match="mine: expected at least one dive"):
        DiveSet.from_numbers([], "mine")
    with pytest.raises(
        ValueError, match=r"dive 107C \(Forward 3½ somersaults tuck\) is not one of the 1 dives of mine"
    ):
        DiveSet.from_numbers(["107B"], "mine").label_of("107C")
