from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diveparse.configs import DataConfig, Dives
from diveparse.datasets.dives import WORLD_AQUATICS
from diveparse.datasets.diving48 import ClipRecord
from diveparse.datasets.rendered_set import is_rendered
from diveparse.datasets.splits import evaluation_clips, split_by_source, training_clips


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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_sources", "num_clips"), [(2, 20), (5, 50), (30, 600)])
def test_no_source_is_on_both_sides_and_no_clip_is_lost(num_sources: int, num_clips: int, seed: int) -> None:
    records = make_records(num_sources, num_clips, num_classes=6, seed=seed)
    train, val = split_by_source(records, 0.2, seed)
    assert train
    assert val
    assert not {record.source for record in train} & {record.source for record in val}
    assert train == [record for record in records if record in set(train)]
    assert val == [record for record in records if record not in set(train)]


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
