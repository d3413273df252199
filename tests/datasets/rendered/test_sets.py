from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diveparse.configs import DataConfig
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DIVING48, DIVING48_TRAIN_COUNTS, FINEDIVING, FINEDIVING_TRAIN_COUNTS
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.records import is_rendered
from diveparse.datasets.rendered import sets
from diveparse.datasets.rendered.clip import RenderedClip, Split
from diveparse.datasets.rendered.motion import JOINT, JOINTS
from diveparse.datasets.rendered.sets import (
    ClassCounts,
    RenderSettings,
    Sources,
    claim_folder,
    class_counts,
    plan_clips,
    render_data_set,
)
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.video import probe

# of the fixture `small_set`
SMALL = RenderSettings(num_train_clips=47, num_test_clips=47, height=48, test_counts=ClassCounts.BALANCED.value)


def test_a_rendered_set_reads_back_as_diving48(small_set: Path) -> None:
    train, test = read_split(small_set, "train"), read_split(small_set, "test")
    assert len(train) == len(test) == 47
    assert not {record.source for record in train} & {record.source for record in test}
    row = json.loads((small_set / "Diving48_V2_train.json").read_text())[0]
    assert set(row) == {"vid_name", "label", "start_frame", "end_frame"}
    info = probe(small_set / "rgb" / f"{row['vid_name']}.mp4")
    assert (info.width, info.height, info.codec) == (64, 48, "h264")
    assert info.num_frames == row["end_frame"]


def test_the_truth_beside_a_file_turns_as_often_as_its_number(small_set: Path) -> None:
    for record in read_split(small_set, "test")[::5]:
        with np.load(small_set / "truth" / f"{record.name}.npz", allow_pickle=False) as truth:
            assert truth["joint_names"].tolist() == list(JOINTS)
            joints, flying = truth["joints_px"], truth["phase"] == 1
        trunk = (joints[:, JOINT["neck"]] - joints[:, JOINT["pelvis"]])[flying]
        angle = np.unwrap(np.arctan2(trunk[:, 0], -trunk[:, 1]))
        dive = DIVING48[record.label]
        assert abs(abs(angle[-1] - angle[0]) / np.pi - dive.somersault_half_turns) < 0.7, dive.number


def test_rendering_again_gives_the_same_bytes_and_only_what_is_missing(small_set: Path) -> None:
    files = sorted((small_set / "rgb").iterdir())
    before = files[0].read_bytes()
    files[0].unlink()
    kept = files[1].stat().st_mtime_ns
    for _ in render_data_set(small_set, SMALL, num_workers=1):
        pass
    assert files[0].read_bytes() == before
    assert files[1].stat().st_mtime_ns == kept


def test_other_settings_do_not_mix_into_a_folder(small_set: Path) -> None:
    with pytest.raises(ValueError, match=r"seed=0, now 7"):
        next(iter(render_data_set(small_set, replace(SMALL, seed=7), num_workers=1)))


def test_a_folder_of_files_that_were_not_rendered_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    real = tmp_path / "Diving48_V2_train.json"
    real.write_text("hours of download")
    with pytest.raises(ValueError, match=rf"{tmp_path} holds files but no rendered.json.*choose a new or empty folder"):
        next(render_data_set(tmp_path, SMALL, num_workers=1))
    assert list(tmp_path.iterdir()) == [real]
    assert real.read_text() == "hours of download"


def test_a_claim_that_was_killed_half_way_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "rendered.json.partial").write_text('{"num_tr')
    claim_folder(tmp_path, SMALL)
    claim_folder(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["rendered.json"]


def test_too_few_clips_are_refused_before_the_folder_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few"):
        next(render_data_set(tmp_path / "set", replace(SMALL, num_train_clips=3), num_workers=1))
    assert not (tmp_path / "set").exists()


def test_training_clips_follow_the_long_tail() -> None:
    settings = RenderSettings(num_train_clips=1500, num_test_clips=300)
    labels = [label for _, label, _ in plan_clips(settings, Split.TRAIN)]
    counts = np.bincount(labels, minlength=len(DIVING48))
    assert counts.sum() == 1500
    assert counts[30] == 0  # 101A has no clip in V2
    np.testing.assert_allclose(counts, np.array(DIVING48_TRAIN_COUNTS) * 1500 / sum(DIVING48_TRAIN_COUNTS), atol=1)


def test_class_counts_leave_no_live_class_out_and_keep_the_total() -> None:
    assert class_counts([1000, 1, 0, 1], 5) == [3, 1, 0, 1]
    with pytest.raises(ValueError, match="too few"):
        class_counts([5, 5, 5], 2)


def test_boards_suit_their_dives() -> None:
    for source, label, _ in plan_clips(RenderSettings(num_train_clips=500, num_test_clips=50), Split.TRAIN):
        assert source.has_board_for(DIVING48[label])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("height", 100), ("num_train_clips", 0), ("seed", -1)),
        *(("difficulty", -0.1), ("difficulty", 1.1), ("difficulty", float("nan"))),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {value}$"):
        replace(SMALL, **{name: value})


def test_a_folder_with_foreign_files_alone_is_rendered_into(tmp_path: Path) -> None:
    for name in (".DS_Store", "desktop.ini"):
        (tmp_path / name).touch()
    claim_folder(tmp_path, SMALL)
    assert (tmp_path / "rendered.json").is_file()


def test_a_set_that_does_not_fit_on_the_disk_is_refused_after_a_sample(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(small_set, tmp_path / "set"))
    last, _, number = plan_clips(SMALL, Split.TEST)[-1]
    (root / "rgb" / f"{last.clip_name(number)}.mp4").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFullError, match=rf"^{root}: rendering 1 more clips needs about \S+ kB and 1 kB are free; "):
        list(render_data_set(root, SMALL, num_workers=1))
    assert len(list((root / "rgb").iterdir())) == 93


# no clip is drawn here: what a clip looks like does not depend on the set that it belongs to
OF_FINEDIVING = replace(SMALL, num_train_clips=400, num_test_clips=104, clips_per_source=6, dives="finediving")


def test_a_set_of_finediving_follows_its_long_tail_and_has_a_balanced_test_split() -> None:
    plans = {split: plan_clips(OF_FINEDIVING, split) for split in (Split.TRAIN, Split.TEST)}
    train, test = (
        np.bincount([label for _, label, _ in plan], minlength=len(FINEDIVING)).tolist() for plan in plans.values()
    )
    assert train == class_counts(FINEDIVING_TRAIN_COUNTS, 400)
    assert min(train) == 1
    assert test == [2] * len(FINEDIVING)
    for plan in plans.values():
        for source, label, _ in plan:
            assert source.has_board_for(FINEDIVING[label])


def test_every_dive_of_finediving_can_be_drawn() -> None:
    plan = {label: (source, number) for source, label, number in plan_clips(OF_FINEDIVING, Split.TEST)}
    assert len(plan) == len(FINEDIVING)
    for label, (source, number) in plan.items():
        clip = RenderedClip(source, FINEDIVING[label], number)
        frames, joints_px, _ = clip.draw(np.array([clip.duration_s / 2]), (24, 32))
        assert frames.std() > 0
        assert np.isfinite(joints_px).all()


def test_a_set_of_other_dives_than_diving48s_is_read_back_as_a_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_nothing(clip: RenderedClip, size: tuple[int, int], video: Path, truth: Path) -> None:
        video.touch()
        truth.touch()

    monkeypatch.setattr(sets, "write_clip", write_nothing)
    monkeypatch.setattr(sets, "worker_pool", lambda *_: ThreadPoolExecutor(1))  # which sees what was replaced
    for _ in render_data_set(tmp_path, OF_FINEDIVING, num_workers=1):
        pass
    data_set = open_data_set(DataConfig(root=str(tmp_path / "clips.csv")))
    assert data_set.dive_set == FINEDIVING
    assert {path.name for path in tmp_path.iterdir()} == {"rgb", "truth", "rendered.json", "clips.csv"}
    sources = []
    for split, plan in (("train", Split.TRAIN), ("test", Split.TEST)):
        records = data_set.records(split)
        planned = plan_clips(OF_FINEDIVING, plan)
        assert [(record.source, record.label) for record in records] == [(s.name, label) for s, label, _ in planned]
        assert is_rendered(record.path for record in records)
        sources.append({record.source for record in records})
    assert not sources[0] & sources[1]


@pytest.mark.parametrize(
    ("name", "value"), [("test_counts", ClassCounts.DIVING48.value), ("sources", Sources.DIVING48.value)]
)
def test_what_is_known_of_diving48_alone_is_refused_for_other_dives(name: str, value: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^{name} must be another than diving48 with dives=finediving, got diving48$"
    ):
        replace(OF_FINEDIVING, **{name: value})
