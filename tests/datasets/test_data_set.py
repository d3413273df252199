import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diveparse.configs import DataConfig, Dives
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DIVING48, WORLD_AQUATICS, DiveSet

ROOT = Path(__file__).resolve().parents[2]
TWO = DiveSet.from_numbers(["626C", "107B"], "two")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "club.CSV").write_text("path,dive_number,split\na.mp4,626C,train\nb.mp4,107B,val\n")
    return tmp_path / "club.CSV"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Diving48's layout with one training clip and no annotations of test clips."""
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb" / "source_0000_00000.mp4").touch()
    (tmp_path / "Diving48_vocab.json").write_text(json.dumps([dive.vocab for dive in DIVING48]))
    entries = [{"vid_name": "source_0000_00000", "label": 7}]
    (tmp_path / "Diving48_V2_train.json").write_text(json.dumps(entries))
    return tmp_path


def test_a_csv_names_its_splits_and_dives_and_has_its_caches_beside_it(table: Path) -> None:
    data_set = open_data_set(DataConfig(root=str(table)))
    assert (data_set.name, data_set.cache_root) == (str(table), table.with_suffix(".cache"))
    assert (set(data_set.splits), data_set.dive_set.numbers) == ({"train", "val"}, ("107B", "626C"))
    assert [record.label for record in data_set.records("train")] == [1]


def test_labels_of_a_csv_count_in_the_dives_that_are_asked_for_first_by_the_call_then_by_the_config(
    table: Path,
) -> None:
    data = DataConfig(root=str(table), dives=Dives.WORLD_AQUATICS)
    assert open_data_set(data).dive_set is WORLD_AQUATICS
    data_set = open_data_set(data, TWO)
    assert data_set.dive_set is TWO
    assert [record.label for record in data_set.records("train")] == [0]


def test_a_folder_has_its_caches_in_it_and_labels_that_count_in_diving48_alone(folder: Path) -> None:
    data_set = open_data_set(DataConfig(root=str(folder)), TWO)
    assert (data_set.name, data_set.cache_root) == (str(folder), folder / "cache")
    assert (set(data_set.splits), data_set.dive_set) == ({"train", "test"}, DIVING48)


def test_training_clips_are_read_without_the_test_annotations(folder: Path) -> None:
    data_set = open_data_set(DataConfig(root=str(folder)))
    assert [record.label for record in data_set.records("train")] == [7]
    with pytest.raises(ValueError, match=r"Diving48_V2_test\.json: there is no such file"):
        data_set.records("test")


@pytest.mark.parametrize("root", ["nowhere", "nowhere.csv"])
def test_opening_a_data_set_reads_nothing(root: str) -> None:
    assert open_data_set(DataConfig(root=root)).name == root
    assert open_data_set(DataConfig(root="nowhere.csv"), TWO).dive_set is TWO


# A kind with a line for each clip: video, dive number, source and split.
THIRD_KIND = """
from pathlib import Path

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.records import ClipRecord


class LineList:
    splits, dive_set = ("train", "test"), DIVING48

    def __init__(self, path):
        self.path, self.name, self.cache_root = path, str(path), path.parent / "computed"

    def records(self, split):
        rows = [line.split() for line in self.path.read_text().splitlines()]
        return [
            ClipRecord(self.path.parent / video, video, source, self.dive_set.label_of(number))
            for video, number, source, of in rows
            if of == split
        ]
"""
ITS_LINE = "    if root.suffix == '.list': from diveparse.datasets.line_list import LineList; return LineList(root)\n"
PROGRAM = """
import sys
from diveparse.configs import ClipConfig, Config, DataConfig
from diveparse.datasets import data_set
from diveparse.datasets.cache import CacheKind, CacheSettings, build_cache
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.splits import evaluation_clips, scored_dives, training_clips
from diveparse.engine.batches import build_clips

if __name__ == "__main__":
    data = DataConfig(root=sys.argv[1], val_fraction=0.3, unseen_dives=["205B"])
    train, val, dive_set = training_clips(data, 0)
    scored = scored_dives(data, dive_set)
    assert "205B" not in dive_set and scored == DIVING48
    assert len(train) + len(val) == 12 and not {r.source for r in train} & {r.source for r in val}
    sources = [{r.source for r in clips} for clips in (val, evaluation_clips(data, "val", 0, scored))]
    assert sources[0] == sources[1]
    tested = evaluation_clips(data, "test", 0, scored)
    assert [scored[record.label].number for record in tested] == ["103B", "105B", "203B", "205B"]
    root = data_set.open_data_set(data).cache_root
    list(build_cache(root, CacheSettings(CacheKind.EVALUATION, 4, 32), tested, num_workers=1))
    clips = build_clips(Config(name="x", arm="x", data=data, clip=ClipConfig(4, 32)), tested, training=False)
    assert clips.cache is not None and clips.cache.folder == root / "evaluation"
    assert clips[0]["clip"].shape == (1, 4, 3, 32, 32)
    print(data_set.__file__)
"""


def test_a_third_kind_needs_one_new_file_and_one_line(tmp_path: Path, write_video) -> None:
    package = tmp_path / "package" / "diveparse"
    (package / "datasets").mkdir(parents=True)
    for name in ("configs", "engine", "heads", "models"):
        (package / name).symlink_to(ROOT / name)
    for path in (ROOT / "datasets").iterdir():
        (package / "datasets" / path.name).symlink_to(path)
    seam = package / "datasets" / "data_set.py"
    before = seam.read_text()
    seam.unlink()
    seam.write_text(before.replace("    if ", f"{ITS_LINE}    if ", 1))
    assert ITS_LINE in seam.read_text()
    (package / "datasets" / "line_list.py").write_text(THIRD_KIND)

    video = write_video(tmp_path / "clip.mp4", num_frames=8)
    rows = []
    for day in range(5):
        for number in ("103B", "105B", "203B", "205B"):
            (tmp_path / f"{number}_{day}.mp4").symlink_to(video)
            rows.append(f"{number}_{day}.mp4 {number} day{day} {'test' if day == 4 else 'train'}")
    (tmp_path / "clips.list").write_text("\n".join(rows))
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", tmp_path / "clips.list"],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(seam)
