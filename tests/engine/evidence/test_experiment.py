import json
import multiprocessing
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from diveparse.configs import Config, DataConfig, HeadKind
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.evidence.experiment import (
    Cell,
    fill_feature_caches,
    missing_cells,
    missing_origins,
    prospects,
    read_cells,
    require_stackable,
    run_cells,
)
from diveparse.engine.training.loop import train
from diveparse.models import save_backbone
from diveparse.models.build import build_backbone

BASE = """\
name: base
arm: base
data: {root: clips.csv, num_workers: 0, val_fraction: 0.4}
clip: {num_frames: 4, image_size: 32}
backbone: {embed_dim: 16, depth: 2, num_heads: 2}
train: {num_epochs: 1, batch_size: 4, learning_rate: 3.0e-3}
test: {batch_size: 5}
"""
ARMS = {"flat": "head.kind=flat", "joint": "head.kind=joint"}
TINY = Path("experiments/tiny.yaml")
LOST = "data.root=nowhere.csv"


class Done(NamedTuple):
    """A folder whose experiment has been run, and how that went."""

    folder: Path
    ended: dict[str, bool]  # by arm
    num_running: int  # processes, once all had ended


def write_experiment_file(path: Path, arms: dict[str, str], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"question": "Does it help?", "config": "base.yaml", "seeds": [0], "arms": arms, **options}
    path.write_text(json.dumps(content))  # which is YAML too
    return path


def write_folder(folder: Path, tiny_root: Path) -> None:
    """Everything that the experiment reads. A CSV of the tiny clips has four dives, whose figures are drawn quickly."""
    rows = ["path,dive_number,split,source"]
    for split in ("train", "test"):
        for record in read_split(tiny_root, split):
            rows.append(f"{record.path},{DIVING48[record.label].number},{split},{record.source}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    (folder / "base.yaml").write_text(BASE)
    write_experiment_file(folder / TINY, ARMS, pairs=[["flat", "joint"]])


@pytest.fixture(scope="module")
def done(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The tiny experiment, with a third arm whose data are not there."""
    folder = tmp_path_factory.mktemp("experiment")
    write_folder(folder, tiny_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cells = cells_of(write_experiment_file(folder / TINY, {**ARMS, "lost": LOST}))
        assert missing_cells(cells) == cells
        ended = {cell.arm: well for cell, well in run_cells(cells, 2)}
    write_experiment_file(folder / TINY, ARMS, pairs=[["flat", "joint"]])
    return Done(folder, ended, len(multiprocessing.active_children()))


@pytest.fixture
def folder(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change, as the working folder."""
    copy = Path(shutil.copytree(done.folder, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def new_folder(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One in which nothing has been run, as the working folder."""
    write_folder(tmp_path, tiny_root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells_of(path: Path) -> list[Cell]:
    return read_cells(path)[1]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_cell_is_trained_and_tested_side_by_side_and_logged(done):
    assert done.ended == {"flat": True, "joint": True, "lost": False}
    assert done.num_running == 0
    for arm in ARMS:
        run = done.folder / "runs" / "tiny" / arm / "seed-0"
        assert json.loads((run / "metrics.json").read_text())["arm"] == arm
        assert (run / "predictions.csv").is_file()
        log = (done.folder / "runs" / "tiny" / f"{arm}-seed-0.log").read_text(encoding="utf-8")
        assert f"{arm}, epoch 1/1: loss " in log
        assert "Traceback" not in log


def test_a_second_run_does_nothing(folder):
    before = contents(folder)
    missing = missing_cells(cells_of(TINY))
    assert missing == []
    assert list(run_cells(missing, 2)) == []
    assert contents(folder) == before


def test_a_cell_that_fails_is_reported_with_the_reason_in_its_log(folder):
    log = Path("runs/tiny/lost-seed-0.log").read_text(encoding="utf-8")
    assert "Traceback" in log
    assert log.strip().endswith("ValueError: nowhere.csv: there is no such file; expected a CSV of clips")
    assert not Path("runs/tiny/lost/seed-0").exists()
    (missing,) = missing_cells(cells_of(write_experiment_file(TINY, {**ARMS, "lost": LOST})))
    assert missing.arm == "lost"


def test_a_run_folder_that_was_removed_is_the_only_cell_that_is_missing(folder):
    shutil.rmtree("runs/tiny/joint/seed-0")
    (missing,) = missing_cells(cells_of(TINY))
    assert (missing.arm, str(missing.run)) == ("joint", "runs/tiny/joint/seed-0")


def test_a_run_that_was_trained_but_not_tested_is_missing(folder):
    Path("runs/tiny/flat/seed-0/metrics.json").unlink()
    assert [cell.arm for cell in missing_cells(cells_of(TINY))] == ["flat"]


def test_a_new_seed_and_a_new_arm_are_all_that_is_missing(folder):
    write_experiment_file(TINY, {**ARMS, "pairwise": "head.kind=pairwise"}, seeds=[0, 1])
    missing = [(cell.arm, cell.config.seed) for cell in missing_cells(cells_of(TINY))]
    assert missing == [("pairwise", 0), ("flat", 1), ("joint", 1), ("pairwise", 1)]


def test_a_run_of_other_options_is_refused_in_one_line_that_names_them(folder):
    write_experiment_file(TINY, {**ARMS, "joint": "head.kind=joint train.learning_rate=0.5"})
    reason = (
        r"^runs/tiny/joint/seed-0 was trained with other options: train\.learning_rate: 0\.003 before, 0\.5 now; "
        r"remove it to train it anew$"
    )
    with pytest.raises(ValueError, match=reason):
        missing_cells(cells_of(TINY))


@pytest.mark.parametrize(
    ("seeds", "sources", "expected"),
    [
        ([0, 1], None, "trainings of each arm: 2; sources in the test split: 3; nothing will be decided about arms"),
        ([0, 1], None, "which takes 5 trainings and 2 sources or more: the page will be about these weights only"),
        (
            list(range(12)),
            None,
            "trainings of each arm: 12; sources in the test split: 3; .* a power of 0.0[0-9] at p < 0.01",
        ),
        (
            list(range(12)),
            "pool",
            "trainings of each arm: 12; sources in the test split: 1; .*: the page will be about this source only",
        ),
    ],
    ids=["few-trainings", "what-it-takes", "power", "one-source"],
)
def test_what_an_experiment_can_decide_is_known_before_it_trains(new_folder, seeds, sources, expected):
    if sources is not None:
        rows = [line.split(",") for line in Path("clips.csv").read_text().splitlines()]
        rows = [[*row[:3], sources if row[2] == "test" else row[3]] for row in rows]
        Path("clips.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    experiment, cells = read_cells(write_experiment_file(TINY, ARMS, seeds=seeds, pairs=[["flat", "joint"]]))
    assert re.search(expected, prospects(experiment, cells))


def test_what_an_experiment_can_decide_is_refused_where_its_clips_are_not_there(new_folder):
    experiment, cells = read_cells(write_experiment_file(TINY, {"lost": LOST}))
    with pytest.raises(ValueError, match=r"^nowhere\.csv: there is no such file"):
        prospects(experiment, cells)


def test_processes_end_when_nobody_waits_for_them_any_longer(new_folder):
    write_experiment_file(TINY, {"long": "head.kind=flat train.num_epochs=100000", "lost": LOST})
    ending = run_cells(cells_of(TINY), 2)
    cell, well = next(ending)
    assert (cell.arm, well) == ("lost", False)
    assert len(multiprocessing.active_children()) == 1
    ending.close()  # type: ignore[attr-defined]  # it is a generator
    assert multiprocessing.active_children() == []
    assert not Path("runs/tiny/long/seed-0/metrics.json").exists()


def test_a_cell_has_the_options_of_the_file_then_the_common_ones_then_its_arms(new_folder):
    arms = {"flat": "head.kind=flat", "slow": "head.kind=joint train.learning_rate=0.1", "plain": ""}
    write_experiment_file(TINY, arms, seeds=[4, 2], common="train.learning_rate=0.2 train.num_epochs=3", split="val")
    experiment, cells = read_cells(TINY)
    assert experiment.question == "Does it help?"
    assert [(cell.config.seed, cell.arm) for cell in cells] == [(seed, arm) for seed in (4, 2) for arm in arms]
    rates = {cell.arm: cell.config.train.learning_rate for cell in cells}
    assert rates == {"flat": 0.2, "slow": 0.1, "plain": 0.2}
    assert {cell.config.train.num_epochs for cell in cells} == {3}
    assert {cell.config.train.batch_size for cell in cells} == {4}
    assert cells[0].config.head.kind is HeadKind.FLAT
    assert str(cells[0].run) == "runs/tiny/flat/seed-4"
    assert cells[0].log == Path("runs/tiny/flat-seed-4.log")
    assert cells[0].metrics == Path("runs/tiny/flat/seed-4/validation_metrics.json")


def test_an_arm_of_another_experiment_uses_the_run_that_is_there(folder):
    again = write_experiment_file(
        TINY.with_name("again.yaml"),
        {"plain": "tiny/flat", "structured": "tiny/joint"},
        pairs=[["plain", "structured"]],
    )
    cells = cells_of(again)
    assert [(cell.arm, str(cell.run)) for cell in cells] == [
        ("plain", "runs/tiny/flat/seed-0"),
        ("structured", "runs/tiny/joint/seed-0"),
    ]
    assert missing_cells(cells) == []
    assert {path.name for path in Path("runs").iterdir()} == {"tiny"}


def test_an_arm_of_another_experiment_is_scored_on_the_split_of_the_one_that_asks(folder):
    again = write_experiment_file(TINY.with_name("again.yaml"), {"plain": "tiny/flat"}, split="val")
    (cell,) = cells_of(again)
    assert cell.split == "val"
    assert missing_cells([cell]) == [cell]


READOUT = "tiny/joint data.root=other.csv data.dives=world-aquatics"


def write_readout(arms: dict[str, str]) -> list[Cell]:
    """Cells of an experiment of two arms, which tests models of the tiny one on a CSV without its training clips."""
    rows = Path("clips.csv").read_text().splitlines()
    Path("other.csv").write_text("\n".join(row.replace("5253B", "626C") for row in rows if ",train," not in row) + "\n")
    return cells_of(write_experiment_file(TINY.with_name("again.yaml"), arms))


def test_an_arm_of_another_experiment_is_tested_on_other_data_into_a_run_of_its_own(folder):
    before = contents(Path("runs/tiny"))
    (cell,) = cells = write_readout({"of-others": READOUT})
    assert missing_cells(cells) == cells
    assert (cell.arm, str(cell.run), cell.splits) == ("of-others", "runs/again/of-others/seed-0", ["test"])
    assert (cell.config.data.root, cell.test_config.data.root) == ("clips.csv", "other.csv")
    assert [well for _, well in run_cells(cells, 1)] == [True]
    metrics = json.loads(cell.metrics.read_text())
    assert (metrics["model_of"], metrics["data_root"], metrics["num_clips"]) == (
        "runs/tiny/joint/seed-0",
        "other.csv",
        12,
    )
    assert contents(Path("runs/tiny")) == before
    assert missing_cells(cells) == []
    moved = cells_of(write_experiment_file(TINY.with_name("again.yaml"), {"of-others": "tiny/joint data.root=x.csv"}))
    with pytest.raises(ValueError, match=r"^runs/again/of-others/seed-0 was tested on other data than x\.csv"):
        missing_cells(moved)


def test_a_model_that_is_gone_is_not_tested_elsewhere(folder):
    cells = write_readout({"of-others": READOUT})
    shutil.rmtree("runs/tiny/joint/seed-0/model")
    reason = "arm of-others needs the model of runs/tiny/joint/seed-0, which is gone; remove it to train it anew"
    with pytest.raises(ValueError, match=f"^{reason}$"):
        missing_cells(cells)


def test_a_model_that_was_never_trained_is_missing_once_for_all_that_test_it(folder):
    cells = write_readout({"of-others": READOUT, "again": READOUT, "flat": READOUT.replace("joint", "flat")})
    assert missing_origins(cells) == []
    shutil.rmtree("runs/tiny/joint/seed-0")
    (origin,) = missing_origins(missing_cells(cells))
    assert str(origin.run) == "runs/tiny/joint/seed-0"


def test_features_of_the_test_alone_are_cached_for_a_model_that_is_tested_elsewhere(new_folder):
    write_frozen_experiment(new_folder, split="test")
    fill_feature_caches(write_readout({"of-others": READOUT}))
    assert [len(list(folder.iterdir())) for folder in Path("other.cache").iterdir()] == [12]


@pytest.mark.parametrize(
    ("arms", "options", "reason"),
    [
        ({"plain": "tiny/flat train.num_epochs=2"}, {}, "arms.plain: a test can change data.root, data.dives"),
        ({"plain": "tiny/flat data.dives=all"}, {}, "data.dives"),
        ({"plain": "tiny/residual"}, {}, "has no arm 'residual' of seed 0"),
        ({"plain": "tiny/flat"}, {"seeds": [0, 3]}, "has no arm 'flat' of seed 3"),
        ({"plain": "tiny"}, {}, "has no arm '' of seed 0"),
        ({"plain": "elsewhere/flat"}, {}, "elsewhere: no such config file"),
        ({"plain": "head.kind=softmax"}, {}, "head.kind"),
        ({"plain": "head.knid=flat"}, {}, "head.knid"),
        ({"plain": ""}, {"config": "nowhere.yaml"}, "nowhere.yaml: no such config file"),
        ({"plain": ""}, {"pairs": [["plain", "flat"]]}, "pairs must be two names of arms each"),
        ({"plain": ""}, {"seeds": []}, "seeds must be one or more"),
        ({"plain": ""}, {"split": "train"}, "split must be val or test"),
        ({"not/plain": ""}, {}, "arms must be a plain folder name"),
    ],
)
def test_an_experiment_that_cannot_be_run_is_refused_in_one_line(new_folder, arms, options, reason):
    path = write_experiment_file(TINY.with_name("again.yaml"), arms, **options)
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        read_cells(path)
    assert len(str(refusal.value).splitlines()) == 1


def write_frozen_experiment(folder: Path, split: str) -> list[Cell]:
    """Cells of two heads that train on cached views of the same frozen blocks."""
    write_experiment_file(TINY, ARMS)
    cfg = cells_of(TINY)[0].config
    backbone = build_backbone(cfg.backbone, num_frames=cfg.clip.num_frames, image_size=cfg.clip.image_size)
    save_backbone(folder / "backbone.safetensors", backbone)
    frozen = "backbone.num_frozen_blocks=1 train.num_cached_views=2 backbone.weights=backbone.safetensors"
    return cells_of(write_experiment_file(TINY, ARMS, common=frozen, split=split))


def times_of_writing(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_features_that_cells_share_are_cached_before_they_run(new_folder, quick_training_figures):
    cells = write_frozen_experiment(new_folder, split="test")
    fill_feature_caches(cells)
    folders = sorted(len(list(folder.iterdir())) for folder in Path("clips.cache").iterdir())
    assert folders == [24, 16 + 12]  # training, and validation and test: whichever head is to read them
    before = times_of_writing(Path("clips.cache"))
    run = train(cells[0].config)
    assert evaluate_run(run, [], split="test")["num_clips"] == 12
    fill_feature_caches(cells)
    assert times_of_writing(Path("clips.cache")) == before


def test_nothing_of_the_test_split_is_cached_where_the_cells_are_scored_on_validation(new_folder):
    fill_feature_caches(write_frozen_experiment(new_folder, split="val"))
    assert sorted(len(list(folder.iterdir())) for folder in Path("clips.cache").iterdir()) == [16, 24]


def test_a_cell_with_unseen_dives_is_scored_on_validation_first():
    plain, unseen = Config(name="a", arm="b"), Config(name="a", arm="b", data=DataConfig(unseen_dives=["205C"]))
    assert Cell("b", plain, "test").splits == ["test"]
    assert Cell("b", unseen, "test").splits == ["val", "test"]
    assert Cell("b", unseen, "val").splits == ["val"]


def test_a_cell_whose_unseen_dives_have_shots_needs_no_validation():
    data = DataConfig(unseen_dives=["205C"], num_shots=1)
    assert Cell("b", Config(name="a", arm="b", data=data), "test").splits == ["test"]


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        (
            {"a": "data.unseen_dives=[205B]", "b": ""},
            "stacking: b must have data.unseen_dives, data.num_shots=0 and a structured head",
        ),
        (
            {"a": "data.unseen_dives=[205B] head.kind=flat", "b": "data.unseen_dives=[101B]"},
            "stacking: a must have data.unseen_dives, data.num_shots=0 and a structured head",
        ),
        (
            {"a": "data.unseen_dives=[205B] data.num_shots=1", "b": "data.unseen_dives=[101B]"},
            "stacking: a must have data.unseen_dives, data.num_shots=0 and a structured head",
        ),
        (
            {"a": "data.unseen_dives=[205B,101B]", "b": "data.unseen_dives=[101B]"},
            "stacking.a: b must have a dive in data.unseen_dives that it lacks",
        ),
    ],
)
def test_arms_that_choose_no_share_are_refused_before_anything_is_trained(new_folder, arms, reason):
    write_experiment_file(TINY, arms, stacking={"a": ["b"]})
    with pytest.raises(ValueError, match=re.escape(f"{TINY}: {reason}")):
        require_stackable(TINY, *read_cells(TINY))


def test_arms_of_other_draws_choose_a_share(new_folder):
    write_experiment_file(
        TINY, {"a": "data.unseen_dives=[205B]", "b": "data.unseen_dives=[101B]"}, stacking={"a": ["b"], "b": ["a"]}
    )
    require_stackable(TINY, *read_cells(TINY))


@pytest.mark.parametrize("others", [[], ["a"], ["b", "b"], ["elsewhere/b"]])
def test_a_share_is_chosen_by_other_arms_of_the_experiment(new_folder, others):
    write_experiment_file(TINY, {"a": "", "b": ""}, stacking={"a": others})
    with pytest.raises(ValueError, match=r"stacking\.a must be one or more other arms, each once, got"):
        read_cells(TINY)
