import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diveparse.configs import DataConfig, Dives, LabelNoise
from diveparse.datasets.dives import DIVING48, FINEDIVING, WORLD_AQUATICS, DiveSet
from diveparse.datasets.records import ClipRecord, is_rendered
from diveparse.datasets.splits import (
    evaluation_clips,
    expected_dives,
    scored_dives,
    split_by_source,
    training_clips,
    with_label_noise,
    without_dives,
)


def make_records(num_sources: int, num_clips: int, num_classes: int, seed: int = 0) -> list[ClipRecord]:
    """Sources of very different sizes, each with its favourite classes."""
    rng = np.random.default_rng(seed)
    favourites = rng.dirichlet(np.full(num_classes, 0.3), num_sources)
    sources = rng.choice(num_sources, num_clips, p=rng.dirichlet(np.ones(num_sources)))
    sources[:num_sources] = np.arange(num_sources)
    records = []
    for i, source in enumerate(sources):
        name = f"source{source:05d}_{i:05d}"
        records.append(ClipRecord(Path(name), name, name[:11], int(rng.multinomial(1, favourites[source]).argmax())))
    return records


@pytest.mark.parametrize(("num_sources", "num_clips"), [(2, 20), (5, 50), (30, 600)])
def test_no_source_is_on_both_sides_and_no_clip_is_lost(num_sources: int, num_clips: int) -> None:
    for seed in range(5):
        records = make_records(num_sources, num_clips, num_classes=6, seed=seed)
        train, val = split_by_source(records, 0.2, seed)
        assert train
        assert val
        assert not {record.source for record in train} & {record.source for record in val}
        kept = set(train)
        assert train == [record for record in records if record in kept]
        assert val == [record for record in records if record not in kept]


@pytest.mark.parametrize("val_fraction", [0.1, 0.25, 0.5])
def test_validation_gets_its_share_of_the_clips_and_of_every_class(val_fraction: float) -> None:
    records = make_records(60, 3000, num_classes=10)
    _, val = split_by_source(records, val_fraction, seed=0)
    assert len(val) / len(records) == pytest.approx(val_fraction, abs=0.02)
    total, held_out = (Counter(record.label for record in side) for side in (records, val))
    for label, count in total.items():
        assert held_out[label] / count == pytest.approx(val_fraction, abs=0.1)


def test_the_split_is_better_than_nearly_every_random_choice_of_sources() -> None:
    records = make_records(20, 500, num_classes=8)

    def imbalance(side: list[ClipRecord]) -> float:
        total, held_out = (Counter(record.label for record in clips) for clips in (records, side))
        return sum(abs(held_out[label] - 0.2 * count) for label, count in total.items())

    rng = np.random.default_rng(0)
    sources = sorted({record.source for record in records})
    chosen = [set(np.array(sources)[rng.random(len(sources)) < 0.2]) for _ in range(300)]
    random_choices = [imbalance([r for r in records if r.source in c]) for c in chosen]
    assert imbalance(split_by_source(records, 0.2, seed=0)[1]) <= np.quantile(random_choices, 0.01)


def test_a_class_that_only_one_source_has_stays_in_training() -> None:
    records = make_records(10, 200, num_classes=4)
    rare = ClipRecord(Path("rare"), "source00003_99999", "source00003", 7)
    for seed in range(5):
        assert rare in split_by_source([*records, rare], 0.3, seed)[0]


def test_the_split_depends_on_nothing_but_its_arguments() -> None:
    records = make_records(30, 600, num_classes=6)
    assert split_by_source(records, 0.2, seed=3) == split_by_source(records, 0.2, seed=3)


def test_one_source_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="two sources or more to hold one out, got 1"):
        split_by_source(make_records(1, 20, num_classes=2), 0.2, seed=0)
    with pytest.raises(ValueError, match="two sources or more to hold one out, got 0"):
        split_by_source([], 0.2, seed=0)


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_one_side_empty_is_refused(val_fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction must be between 0 and 1"):
        split_by_source(make_records(5, 50, num_classes=2), val_fraction, seed=0)


@pytest.fixture
def club(tmp_path: Path) -> Path:
    """A CSV of eight clips from four days."""
    rows = ["path,dive_number,split,source"]
    for k in range(8):
        (tmp_path / f"{k}.mp4").touch()
        rows.append(f"{k}.mp4,{('107B', '626C')[k % 2]},{'test' if k >= 6 else 'train'},day {k // 2}")
    (tmp_path / "club.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "club.csv"


def test_clips_of_a_csv_are_held_out_by_source_for_validation(club: Path) -> None:
    train, val, dive_set = training_clips(DataConfig(root=str(club), val_fraction=0.3), seed=0)
    assert dive_set.numbers == ("107B", "626C")
    assert (len(train), len(val)) == (4, 2)
    assert not {record.source for record in train} & {record.source for record in val}
    assert len(evaluation_clips(DataConfig(root=str(club)), "test", 0, dive_set)) == 2
    assert evaluation_clips(DataConfig(root=str(club), val_fraction=0.3), "val", 0, dive_set) == val


def test_a_csv_can_name_its_own_validation_clips(club: Path) -> None:
    club.write_text(
        club.read_text().replace("4.mp4,107B,train", "4.mp4,107B,val").replace("5.mp4,626C,train", "5.mp4,626C,val")
    )
    train, val, dive_set = training_clips(DataConfig(root=str(club)), seed=0)
    assert (len(train), [record.name for record in val]) == (4, ["4.mp4", "5.mp4"])
    assert evaluation_clips(DataConfig(root=str(club)), "val", 0, dive_set) == val


def test_labels_can_count_in_a_set_that_the_user_names(club: Path) -> None:
    *_, dive_set = training_clips(DataConfig(root=str(club), dives=Dives.WORLD_AQUATICS), seed=0)
    assert dive_set is WORLD_AQUATICS
    with pytest.raises(ValueError, match=r"dive 626C .* is not one of the 48 dives of Diving48"):
        training_clips(DataConfig(root=str(club), dives=Dives.DIVING48), seed=0)


def test_a_split_that_a_csv_lacks_is_refused(club: Path) -> None:
    club.write_text(club.read_text().replace(",test,", ",train,"))
    with pytest.raises(ValueError, match=r"club\.csv: no row has the split test"):
        evaluation_clips(DataConfig(root=str(club)), "test", 0, WORLD_AQUATICS)
    club.write_text(club.read_text().replace(",train,", ",test,"))
    with pytest.raises(ValueError, match=r"club\.csv: no row has the split train"):
        training_clips(DataConfig(root=str(club)), seed=0)


def test_options_of_a_csv_are_refused_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.columns and data\.dives are for a CSV of clips, but data\.root is"):
        training_clips(DataConfig(root=str(tmp_path), columns={"path": "file"}), seed=0)


def test_clips_of_a_rendered_set_are_known_wherever_their_csv_lies(club: Path) -> None:
    train, *_ = training_clips(DataConfig(root=str(club)), seed=0)
    assert not is_rendered(record.path for record in train)
    (club.parent / "rendered.json").touch()
    assert is_rendered(record.path for record in train)


def test_named_validation_clips_of_a_training_source_are_refused(club: Path) -> None:
    club.write_text(club.read_text().replace("1.mp4,626C,train", "1.mp4,626C,val"))
    with pytest.raises(ValueError, match=r"club\.csv: sources must not be in both train and val, got day 0"):
        training_clips(DataConfig(root=str(club)), seed=0)


MEET_DIVES = ("103B", "105B", "203B", "205B", "103C")  # only the last is not pike


@pytest.fixture
def meet(tmp_path: Path) -> Path:
    """A CSV of 10 days, two of them for testing, of 3 clips of each dive; the file of a clip has its dive's number."""
    rows = ["path,dive_number,split,source"]
    for day in range(10):
        for number in MEET_DIVES:
            for k in range(3):
                path = f"{number}_{day}_{k}.mp4"
                (tmp_path / path).touch()
                rows.append(f"{path},{number},{'test' if day >= 8 else 'train'},day {day}")
    (tmp_path / "meet.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "meet.csv"


def number_of(record: ClipRecord) -> str:
    return record.path.name.split("_")[0]


def require_right_labels(records: Sequence[ClipRecord], dive_set: DiveSet) -> None:
    assert [dive_set.numbers[record.label] for record in records] == [number_of(record) for record in records]


def test_a_smaller_share_of_the_training_clips_is_part_of_every_larger_one(meet: Path) -> None:
    whole, whole_val, _ = training_clips(DataConfig(root=str(meet)), seed=0)
    larger = whole
    for fraction in (0.8, 0.5, 0.25, 0.1, 0.001):
        train, val, dive_set = training_clips(DataConfig(root=str(meet), train_fraction=fraction), seed=0)
        assert len(train) == max(1, round(fraction * len(whole)))
        assert train == [record for record in larger if record in set(train)]  # in the same order
        assert val == whole_val
        assert dive_set.numbers == tuple(sorted(MEET_DIVES))
        larger = train


def test_a_share_of_the_training_clips_depends_on_the_seed_only(meet: Path) -> None:
    text = meet.read_text()
    for number in MEET_DIVES:  # so that the validation clips, and with them the whole, do not depend on it
        for k in range(3):
            text = text.replace(f"{number}_0_{k}.mp4,{number},train", f"{number}_0_{k}.mp4,{number},val")
    meet.write_text(text)
    data = DataConfig(root=str(meet), train_fraction=0.3)
    shares = [training_clips(data, seed)[0] for seed in (0, 0, 1)]
    assert shares[0] == shares[1]
    assert len(shares[0]) == len(shares[2])
    assert set(shares[0]) != set(shares[2])


@pytest.mark.parametrize("unseen", [["205B"], ["203B", "105B"]])
def test_of_unseen_dives_there_is_no_clip_and_no_label(unseen: list[str], meet: Path) -> None:
    whole = training_clips(DataConfig(root=str(meet)), seed=0)
    train, val, dive_set = training_clips(DataConfig(root=str(meet), unseen_dives=unseen), seed=0)
    assert dive_set.numbers == tuple(number for number in sorted(MEET_DIVES) if number not in unseen)
    for records, all_records in zip((train, val), whole[:2], strict=True):
        require_right_labels(records, dive_set)
        expected = [record.path for record in all_records if number_of(record) not in unseen]
        assert [record.path for record in records] == expected


def test_shots_are_all_that_training_sees_of_unseen_dives(meet: Path) -> None:
    unseen = ["203B", "105B"]
    whole = training_clips(DataConfig(root=str(meet)), seed=0)
    shots: set[ClipRecord] = set()
    for num_shots in (1, 2, 5):
        data = DataConfig(root=str(meet), unseen_dives=unseen, num_shots=num_shots)
        train, val, dive_set = training_clips(data, seed=0)
        assert dive_set == whole[2]
        require_right_labels([*train, *val], dive_set)
        counts = Counter(number_of(record) for record in train)
        assert [counts[number] for number in unseen] == [num_shots, num_shots]
        assert val == [record for record in whole[1] if number_of(record) not in unseen]
        others = [record for record in train if number_of(record) not in unseen]
        assert others == [record for record in whole[0] if number_of(record) not in unseen]
        assert shots < set(train) - set(others)  # fewer shots are part of more
        shots = set(train) - set(others)


def test_more_shots_than_there_are_clips_are_all_of_them(meet: Path) -> None:
    whole, *_ = training_clips(DataConfig(root=str(meet)), seed=0)
    train, *_ = training_clips(DataConfig(root=str(meet), unseen_dives=["205B"], num_shots=1000), seed=0)
    assert train == whole


def test_shots_of_a_share_are_shots_of_the_whole(meet: Path) -> None:
    unseen = {"unseen_dives": ["205B"], "num_shots": 4}
    whole, *_ = training_clips(DataConfig(root=str(meet), **unseen), seed=0)
    share, *_ = training_clips(DataConfig(root=str(meet), train_fraction=0.5, **unseen), seed=0)
    assert set(share) < set(whole)
    assert 1 <= sum(number_of(record) == "205B" for record in share) <= 4


def test_unseen_dives_of_a_folder_are_taken_out_of_diving48(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps([dive.vocab for dive in DIVING48]))
    for split, sources in (("train", range(6)), ("test", range(6, 8))):
        entries = [
            {"vid_name": f"source_{s:04d}_{k:05d}", "label": DIVING48.label_of(number)}
            for s in sources
            for k, number in enumerate(("105B", "203B", "205B", "301B"))
        ]
        (tmp_path / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))
        for entry in entries:
            (tmp_path / "rgb" / f"{entry['vid_name']}.mp4").touch()
    whole = training_clips(DataConfig(root=str(tmp_path)), seed=0)
    data = DataConfig(root=str(tmp_path), unseen_dives=["205B"])
    unseen = DIVING48.label_of("205B")
    train, val, dive_set = training_clips(data, seed=0)
    assert dive_set.dives == tuple(dive for dive in DIVING48 if dive.number != "205B")
    for records, all_records in zip((train, val), whole[:2], strict=True):
        expected = [(record.name, DIVING48[record.label]) for record in all_records if record.label != unseen]
        assert [(record.name, dive_set[record.label]) for record in records] == expected
    scored = scored_dives(data, dive_set)
    assert scored == DIVING48
    tested = Counter(DIVING48[record.label].number for record in evaluation_clips(data, "test", 0, scored))
    assert tested == {"105B": 2, "203B": 2, "205B": 2, "301B": 2}


@pytest.mark.parametrize("num_shots", [0, 2])
def test_a_value_of_an_unseen_dive_that_no_other_training_clip_shows_is_refused(num_shots: int, meet: Path) -> None:
    lines = meet.read_text().splitlines()
    meet.write_text("\n".join(line for line in lines if "203B" not in line or ",test," in line) + "\n")
    training_clips(DataConfig(root=str(meet), unseen_dives=["105B"], num_shots=num_shots), seed=0)
    with pytest.raises(ValueError, match="205B has the takeoff 'back', which no training clip of another dive shows"):
        training_clips(DataConfig(root=str(meet), unseen_dives=["205B"], num_shots=num_shots), seed=0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (["101B"], r"dive 101B .* is not one of the 5 dives of meet"),
        (["103C"], "data.unseen_dives: 103C has the position 'tuck', which no dive that is left has"),
        (["203B", "205B"], "data.unseen_dives: 203B has the takeoff 'back', which no dive that is left has"),
        (["105B", "205B"], "data.unseen_dives: 105B has the somersault 5, which no dive that is left has"),
        (["205"], "data.unseen_dives: dive number '205'"),
        (["205B", "205B"], "data.unseen_dives: dive 205B is listed twice"),
    ],
)
def test_unseen_dives_that_the_others_cannot_spell_are_refused(numbers: list[str], message: str, meet: Path) -> None:
    with pytest.raises(ValueError, match=message):
        without_dives(DiveSet.from_numbers(MEET_DIVES, "meet"), numbers)
    for num_shots in (0, 2):
        with pytest.raises(ValueError, match=message):
            training_clips(DataConfig(root=str(meet), unseen_dives=numbers, num_shots=num_shots), seed=0)


def test_the_dives_that_are_left_keep_their_order() -> None:
    seen = without_dives(DiveSet.from_numbers(MEET_DIVES, "meet"), ["203B", "105B"])
    assert seen.numbers == ("103B", "205B", "103C")


@pytest.mark.parametrize("num_shots", [0, 2])
def test_a_model_is_scored_on_its_dives_and_then_on_the_unseen_ones(num_shots: int, meet: Path) -> None:
    data = DataConfig(root=str(meet), unseen_dives=["203B", "105B"], num_shots=num_shots)
    *_, dive_set = training_clips(data, seed=0)
    scored = scored_dives(data, dive_set)
    assert scored.dives[: len(dive_set)] == dive_set.dives  # so that its labels mean the same
    assert scored.numbers[len(dive_set) :] == (() if num_shots else ("203B", "105B"))
    records = evaluation_clips(data, "test", 0, scored)
    assert len(records) == 30
    require_right_labels(records, scored)


def test_without_unseen_dives_a_model_is_scored_on_its_own() -> None:
    dive_set = DiveSet.from_numbers(MEET_DIVES)
    assert scored_dives(DataConfig(root="somewhere"), dive_set) is dive_set
    assert scored_dives(DataConfig(root="clips.csv"), dive_set) is dive_set


def test_a_model_is_scored_on_the_dives_of_a_named_list_whatever_it_was_trained_on() -> None:
    dive_set = DiveSet.from_numbers(MEET_DIVES)
    assert scored_dives(DataConfig(root="clips.csv", dives=Dives.FINEDIVING), dive_set) == FINEDIVING
    of_unseen = DataConfig(root="clips.csv", dives=Dives.FINEDIVING, unseen_dives=["203B"])
    assert scored_dives(of_unseen, dive_set) == FINEDIVING


def test_validation_clips_of_a_scored_model_are_of_no_training_source(meet: Path) -> None:
    data = DataConfig(root=str(meet), unseen_dives=["203B", "105B"])
    for seed in range(5):
        train, val, dive_set = training_clips(data, seed)
        records = evaluation_clips(data, "val", seed, scored_dives(data, dive_set))
        assert {record.source for record in records} == {record.source for record in val}
        assert not {record.source for record in records} & {record.source for record in train}


def test_a_split_with_ties_is_the_same_for_training_and_for_scoring(tmp_path: Path) -> None:
    numbers = ("103B", "105B", "203B", "205B")  # here a split under labels in another order is another one
    counts = [[3, 0, 0, 1], [1, 3, 0, 1], [0, 3, 1, 0], [1, 0, 0, 3], [3, 0, 2, 3], [2, 0, 0, 0], [3, 0, 2, 0]]
    rows = ["path,dive_number,source"]
    for day, row in enumerate(counts):
        for number, count in zip(numbers, row, strict=True):
            for k in range(count):
                (tmp_path / f"{number}_{day}_{k}.mp4").touch()
                rows.append(f"{number}_{day}_{k}.mp4,{number},day {day}")
    (tmp_path / "meet.csv").write_text("\n".join(rows) + "\n")
    data = DataConfig(root=str(tmp_path / "meet.csv"), unseen_dives=["105B", "203B"])
    _, val, dive_set = training_clips(data, 0)
    scored = evaluation_clips(data, "val", 0, scored_dives(data, dive_set))
    assert {record.source for record in scored} == {record.source for record in val}


def test_label_noise_changes_its_share_of_the_labels_and_a_smaller_share_is_part_of_a_larger() -> None:
    records = [ClipRecord(Path(f"{k}"), f"{k}", "s", k % 48) for k in range(2000) if k % 48 != 30]
    for kind in LabelNoise:
        changed = []
        for share in (0.05, 0.2):
            noisy = with_label_noise(records, DIVING48, share, kind, seed=1)
            pairs = list(zip(records, noisy, strict=True))
            assert all(replace(after, label=before.label) == before for before, after in pairs)
            changed.append({after for before, after in pairs if after != before})
            assert len(changed[-1]) / len(records) == pytest.approx(share, abs=0.02)
            assert 30 not in {after.label for after in noisy}  # no clip shows it
        assert changed[0] < changed[1]
    assert with_label_noise(records, DIVING48, 0.2, LabelNoise.ANY, 1) != with_label_noise(
        records, DIVING48, 0.2, LabelNoise.ANY, 2
    )
    assert with_label_noise(records, DIVING48, 0.0, LabelNoise.ANY, 1) == records


def test_a_neighbour_has_the_most_values_in_common() -> None:
    dives = DiveSet.from_numbers(["101B", "103B", "103C", "5253B"], "four")
    records = [ClipRecord(Path(f"{k}"), f"{k}", "s", k % 4) for k in range(400)]
    noisy = with_label_noise(records, dives, 0.5, LabelNoise.NEIGHBOUR, seed=0)
    turned = {(dives[a.label].number, dives[b.label].number) for a, b in zip(records, noisy, strict=True) if a != b}
    wrong = {"101B": {"103B"}, "103B": {"101B", "103C"}, "103C": {"103B"}, "5253B": {"101B", "103B"}}
    assert turned == {(right, other) for right, others in wrong.items() for other in others}


def test_clips_may_show_every_dive_of_a_csv_but_of_a_list_those_that_they_show_or_the_config_names(
    meet: Path, tmp_path: Path, tiny_root: Path
) -> None:
    assert expected_dives(DataConfig(root=str(meet))) == set(MEET_DIVES)
    meet.write_text(meet.read_text() + "new.mp4,5152B,test,day 9\n")
    (tmp_path / "new.mp4").touch()
    assert expected_dives(DataConfig(root=str(meet))) == {*MEET_DIVES, "5152B"}
    of_a_list = DataConfig(root=str(meet), dives=Dives.WORLD_AQUATICS)
    assert expected_dives(of_a_list) == set(MEET_DIVES)  # the test split alone shows the other
    named = DataConfig(root=str(meet), dives=Dives.WORLD_AQUATICS, unseen_dives=["5152B"])
    assert expected_dives(named) == {*MEET_DIVES, "5152B"}
    assert len(expected_dives(DataConfig(root=str(tiny_root)))) == 4
