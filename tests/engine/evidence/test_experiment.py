import json
import multiprocessing
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from matplotlib.figure import Figure

from diveparse.configs import Config, DataConfig, HeadKind
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.engine import feature_cache as engine_stored
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.evidence import experiment_page, report
from diveparse.engine.evidence.comparison import SCORES
from diveparse.engine.evidence.experiment import (
    Cell,
    development_cells,
    missing_cells,
    read_cells,
    run_cells,
    store_inputs,
)
from diveparse.engine.evidence.experiment_page import write_experiment
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


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here; what is drawn has its own tests."""
    names = ("top1", "reliability", "confusion-flat")
    monkeypatch.setattr(experiment_page, "figures", lambda _: ((name, Figure(figsize=(1, 1))) for name in names))


def cells_of(path: Path) -> list[Cell]:
    return read_cells(path)[1]


def write_page(path: Path = TINY) -> str:
    experiment, cells = read_cells(path)
    return write_experiment(path, experiment, cells, Path("results")).read_text(encoding="utf-8")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_cell_is_trained_and_tested_side_by_side_and_says_what_it_does_in_its_log(done):
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


def test_a_cell_that_fails_is_not_well_and_its_log_says_why(folder):
    log = Path("runs/tiny/lost-seed-0.log").read_text(encoding="utf-8")
    assert "Traceback" in log
    assert log.strip().endswith("ValueError: nowhere.csv: there is no such file")
    assert not Path("runs/tiny/lost/seed-0").exists()
    (missing,) = missing_cells(cells_of(write_experiment_file(TINY, {**ARMS, "lost": LOST})))
    assert missing.arm == "lost"


def test_a_run_folder_that_was_removed_is_the_only_cell_that_is_missing(folder):
    shutil.rmtree("runs/tiny/joint/seed-0")
    (missing,) = missing_cells(cells_of(TINY))
    assert (missing.arm, missing.run) == ("joint", Path("runs/tiny/joint/seed-0"))


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
    assert cells[0].run == Path("runs/tiny/flat/seed-4")
    assert cells[0].log == Path("runs/tiny/flat-seed-4.log")
    assert cells[0].metrics == Path("runs/tiny/flat/seed-4/validation_metrics.json")


def test_an_arm_of_another_experiment_uses_the_run_that_is_there(folder, quick_figures):
    again = write_experiment_file(
        TINY.with_name("again.yaml"),
        {"plain": "tiny/flat", "structured": "tiny/joint"},
        pairs=[["plain", "structured"]],
    )
    cells = cells_of(again)
    assert [(cell.arm, cell.run) for cell in cells] == [
        ("plain", Path("runs/tiny/flat/seed-0")),
        ("structured", Path("runs/tiny/joint/seed-0")),
    ]
    assert missing_cells(cells) == []
    page, own = write_page(again), write_page()
    assert "structured - plain" in page
    scores = json.loads(Path("runs/tiny/joint/seed-0/metrics.json").read_text())
    for text in (page, own):
        assert f"{scores['nll']:.3f}" in text
    assert {path.name for path in Path("runs").iterdir()} == {"tiny"}


def test_an_arm_of_another_experiment_is_scored_on_the_split_of_the_one_that_asks(folder):
    again = write_experiment_file(TINY.with_name("again.yaml"), {"plain": "tiny/flat"}, split="val")
    (cell,) = cells_of(again)
    assert cell.split == "val"
    assert missing_cells([cell]) == [cell]


@pytest.mark.parametrize(
    ("arms", "options", "reason"),
    [
        ({"plain": "tiny/residual"}, {}, "has no arm 'residual' of seed 0"),
        ({"plain": "tiny/flat"}, {"seeds": [0, 3]}, "has no arm 'flat' of seed 3"),
        ({"plain": "tiny"}, {}, "has no arm '' of seed 0"),
        ({"plain": "elsewhere/flat"}, {}, "elsewhere.yaml: no such config file"),
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


def refuse_to_store(*arguments: object) -> None:
    raise AssertionError(f"something was left to store: {arguments}")


def test_what_cells_read_in_common_is_stored_before_they_run(new_folder, quick_training_figures, monkeypatch):
    frozen = "backbone.num_frozen_blocks=1 train.num_stored_views=2"
    write_experiment_file(TINY, ARMS)
    cfg = cells_of(TINY)[0].config
    backbone = build_backbone(cfg.backbone, num_frames=cfg.clip.num_frames, image_size=cfg.clip.image_size)
    save_backbone(new_folder / "backbone.safetensors", backbone)
    write_experiment_file(TINY, ARMS, common=f"{frozen} backbone.weights=backbone.safetensors")
    cells = cells_of(TINY)
    store_inputs(cells)
    folders = sorted(len(list(folder.iterdir())) for folder in Path("clips.cache").iterdir())
    assert folders == [24, 16 + 12]  # training, and validation and test: whichever head is to read them
    monkeypatch.setattr(engine_stored, "_store", refuse_to_store)
    run = train(cells[0].config)
    assert evaluate_run(run, [], split="test")["num_clips"] == 12
    store_inputs(cells)


def test_a_cell_that_is_to_name_unseen_dives_is_scored_on_validation_first():
    plain, unseen = Config(name="a", arm="b"), Config(name="a", arm="b", data=DataConfig(unseen_dives=["205C"]))
    assert Cell("b", plain, "test").splits == ["test"]
    assert Cell("b", unseen, "test").splits == ["val", "test"]
    assert Cell("b", unseen, "val").splits == ["val"]


def test_the_cells_that_an_experiment_asks_for_advice_are_those_of_the_other(new_folder):
    write_experiment_file(TINY.with_name("development.yaml"), ARMS, seeds=[0, 1], split="val")
    write_experiment_file(TINY, ARMS, seeds=[0, 1], stacking={"joint": "development/joint"})
    experiment, cells = read_cells(TINY)
    asked = development_cells(TINY, experiment)
    assert [str(cell.run) for cell in asked] == [f"runs/development/joint/seed-{seed}" for seed in (0, 1)]
    assert {cell.split for cell in asked} == {"val"}
    assert missing_cells(cells + asked) == cells + asked


def test_nothing_of_the_test_split_is_stored_where_the_cells_are_scored_on_validation(new_folder, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("diveparse.engine.evidence.experiment.stored", lambda clips, *_: asked.append(len(clips)))
    monkeypatch.setattr("diveparse.engine.evidence.experiment.build_classifier", lambda *_: None)
    frozen = "backbone.num_frozen_blocks=1 train.num_stored_views=2 backbone.weights=backbone.safetensors"
    for split in ("val", "test"):
        write_experiment_file(TINY, {"flat": "head.kind=flat"}, common=frozen, split=split)
        store_inputs(cells_of(TINY))
    assert asked == [24, 16, 16, 24, 16, 12]  # training, its validation, what is scored


def test_the_page_holds_the_question_the_command_the_caption_every_pair_and_its_verdicts(folder):
    page = write_page()
    lines = page.splitlines()
    assert lines[0] == "# Tiny: Does it help?"
    assert "`python tools/experiment.py experiments/tiny.yaml`, over `base.yaml`; seeds 0." in lines
    assert {"- flat: `head.kind=flat`", "- joint: `head.kind=joint`"} <= set(lines)
    assert "test split: 12 clips of 3 sources, 4 dives; clips of clips.csv" in lines
    assert "rendered" not in page
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    metrics = {arm: json.loads(Path(f"runs/tiny/{arm}/seed-0/metrics.json").read_text()) for arm in ARMS}
    top1 = [f"{metrics[arm]['top1']:.3f}" for arm in ARMS]
    assert ["top-1", *top1] in rows
    verdicts = {row[-1] for row in rows if row[0] == "joint - flat" and row[1] in ("top-1", "NLL")}
    assert verdicts
    assert verdicts <= {"higher", "lower", "undecided", "no difference that matters"}
    gain = metrics["joint"]["top1"] - metrics["flat"]["top1"]
    assert any(row[:2] == ["joint - flat", f"{gain:+.3f}"] for row in rows)
    assert "- options that differ between joint and flat: arm (joint, flat), head.kind (joint, flat)" in lines
    assert report.NOTES.splitlines()[0] in lines
    plots = {path.name for path in Path("results/tiny").iterdir()}
    assert "top1.png" in plots
    for plot in plots:
        assert f"({TINY.stem}/{plot})" in page
    assert page.count(".png)") == len(plots)


def test_the_table_holds_every_score_and_every_difference_with_its_caption(folder, quick_figures):
    write_page()
    table = pd.read_csv("results/tiny.csv")
    assert set(table["quantity"]) == {*SCORES, "top1_difference", "nll_difference"}
    assert set(table["clips"]) == {"test split: 12 clips of 3 sources, 4 dives; clips of clips.csv"}
    assert set(table["versus"].dropna()) == {"flat"}
    for arm in ARMS:
        (value,) = table[(table["arm"] == arm) & (table["quantity"] == "nll") & (table["seed"] == "0")]["value"]
        metrics = json.loads(Path(f"runs/tiny/{arm}/seed-0/metrics.json").read_text())
        assert value == pytest.approx(metrics["nll"], rel=1e-4)


def test_rendered_dives_do_not_pass_for_real_ones(folder, quick_figures):
    for arm in ARMS:
        path = Path(f"runs/tiny/{arm}/seed-0/metrics.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rendered": True}))
    assert "test split: 12 clips of 3 sources, 4 dives; rendered dives, not Diving48" in write_page().splitlines()
    assert pd.read_csv("results/tiny.csv")["clips"].str.contains("rendered dives, not Diving48").all()


def test_a_page_leaves_no_plot_of_an_earlier_one(folder, quick_figures):
    Path("results/tiny").mkdir(parents=True)
    Path("results/tiny/older.png").touch()
    write_page()
    assert {path.name for path in Path("results/tiny").iterdir()} == {"top1.png", "reliability.png"}
    written = {path.name for path in Path("results").iterdir()}
    assert written == {"tiny", "tiny.md", "tiny.csv", "tiny-classes.csv"}


def test_a_curve_is_drawn_of_the_arms_along_its_axis(folder, quick_figures, monkeypatch):
    drawn: list[tuple] = []

    def spy(*arguments: object) -> Figure:
        drawn.append(arguments)
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(experiment_page, "curve_figure", spy)
    curve = {"axis": "clips, %", "values": [10, 100], "series": {"both": ["flat", "joint"], "joint": ["joint"] * 2}}
    write_experiment_file(TINY, ARMS, curve=curve)
    assert "(tiny/curve.png)" in write_page()
    ((axis, values, series, caption),) = drawn
    assert (axis, values) == ("clips, %", [10, 100])
    top1 = {arm: json.loads(Path(f"runs/tiny/{arm}/seed-0/metrics.json").read_text())["top1"] for arm in ARMS}
    assert [point.value for point in series["both"]] == pytest.approx([top1["flat"], top1["joint"]])
    assert [point.value for point in series["joint"]] == pytest.approx([top1["joint"]] * 2)
    assert caption.startswith("test split: 12 clips")


def test_a_page_of_validation_scores_reads_nothing_of_the_test(folder):
    for arm in ARMS:
        run = Path(f"runs/tiny/{arm}/seed-0")
        evaluate_run(run, [], split="val")
        for path in (*run.glob("predictions.*"), run / "metrics.json"):
            path.unlink()
    write_experiment_file(TINY, ARMS, pairs=[["flat", "joint"]], split="val")
    assert missing_cells(cells_of(TINY)) == []
    assert "val split: 16 clips of 2 sources, 4 dives; clips of clips.csv" in write_page()


def test_cells_that_have_not_been_tested_cannot_be_compared(folder):
    experiment, cells = read_cells(TINY)
    missing = [cells[0], replace(cells[1], config=replace(cells[1].config, seed=5))]
    with pytest.raises(ValueError, match=r"^runs/tiny/joint/seed-5: no such run folder$"):
        write_experiment(TINY, experiment, missing, Path("results"))
    Path("runs/tiny/joint/seed-0/metrics.json").unlink()
    with pytest.raises(ValueError, match=r"has no metrics\.json; test it first"):
        write_experiment(TINY, experiment, cells, Path("results"))
    assert not Path("results").exists()
