import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diveparse.configs import CurveConfig, save_config
from diveparse.engine.evidence import report, report_figures
from diveparse.engine.evidence.comparison import compare_groups
from diveparse.engine.evidence.experiment import read_cells
from diveparse.engine.evidence.experiment_page import draw_curve, write_experiment
from diveparse.engine.evidence.runs import ALL_SCORES

ARMS = {"flat": "head.kind=flat", "joint": "head.kind=joint"}
TINY = Path("experiments/tiny.yaml")
CAPTION = "test split: 24 clips of 4 sources, 24 dives; rendered dives, not Diving48"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, write_run):
    """The working folder: an experiment of two arms that have been tested."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("{name: base, arm: base, data: {root: data}}")
    write_experiment_file(pairs=[["flat", "joint"]])
    for arm in ARMS:
        write_run(Path("runs/tiny"), arm)
    return tmp_path


def write_experiment_file(**options):
    TINY.parent.mkdir(exist_ok=True)
    content = {"question": "Does it help?", "config": "base.yaml", "seeds": [0], "arms": ARMS, **options}
    TINY.write_text(json.dumps(content))  # which is YAML too


def write_page():
    experiment, cells = read_cells(TINY)
    return write_experiment(TINY, experiment, cells, Path("results")).read_text(encoding="utf-8")


def metrics_of(arm):
    return json.loads(Path(f"runs/tiny/{arm}/seed-0/metrics.json").read_text())


def test_the_page_holds_the_question_the_command_the_arms_the_caption_and_the_figures():
    page = write_page()
    lines = page.splitlines()
    assert lines[0] == "# Tiny: Does it help?"
    assert "`diveparse experiment experiments/tiny.yaml`, over `base.yaml`; seeds 0." in lines
    assert {"- flat: `head.kind=flat`", "- joint: `head.kind=joint`", CAPTION} <= set(lines)
    assert "- options that differ between joint and flat: arm (joint, flat)" in lines
    assert report.NOTES in page
    plots = {path.name for path in Path("results/tiny").iterdir()}
    assert plots == {"top1.png", "reliability.png"}
    for plot in plots:
        assert f"({TINY.stem}/{plot})" in page
    assert page.count(".png)") == len(plots)


def test_the_page_holds_every_pair_and_its_verdicts(quick_report_figures):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in write_page().splitlines() if "|" in line]
    top1 = [metrics_of(arm)["top1"] for arm in ARMS]
    assert ["top-1", *(f"{value:.3f}" for value in top1)] in rows
    assert any((row[0], row[2:3]) == ("joint - flat", [f"{top1[1] - top1[0]:+.3f}"]) for row in rows)
    assert {row[-1] for row in rows if row[0] == "joint - flat" and "clips" in row[1]} == {"these weights only"}


def test_the_csv_file_holds_every_score_and_every_difference_with_its_caption(quick_report_figures):
    write_page()
    table = pd.read_csv("results/tiny.csv")
    assert set(table["quantity"]) == {*ALL_SCORES, "top1_difference", "nll_difference"}
    assert set(table["clips"]) == {CAPTION}
    assert set(table["versus"].dropna()) == {"flat"}
    for arm in ARMS:
        (value,) = table[(table["arm"] == arm) & (table["quantity"] == "nll") & (table["seed"] == "0")]["value"]
        assert value == pytest.approx(metrics_of(arm)["nll"], rel=1e-4)


def test_only_rendered_dives_are_called_rendered(quick_report_figures):
    for arm in ARMS:
        Path(f"runs/tiny/{arm}/seed-0/metrics.json").write_text(json.dumps(metrics_of(arm) | {"rendered": False}))
    page = write_page()
    assert "test split: 24 clips of 4 sources, 24 dives; clips of data" in page.splitlines()
    assert "rendered" not in page


def test_a_page_leaves_no_plot_of_an_earlier_one(quick_report_figures):
    Path("results/tiny").mkdir(parents=True)
    Path("results/tiny/older.png").touch()
    write_page()
    assert {path.name for path in Path("results/tiny").iterdir()} == {"top1.png", "reliability.png"}
    written = {path.name for path in Path("results").iterdir()}
    assert written == {"tiny", "tiny.md", "tiny.csv", "tiny-classes.csv"}


def test_an_experiment_with_a_curve_shows_it(quick_report_figures):
    write_experiment_file(curve={"axis": "clips, %", "values": [10, 100], "series": {"both": ["flat", "joint"]}})
    assert "(tiny/curve.png)" in write_page()


def test_settings_that_are_pooled_are_drawn_in_one_forest_and_many_arms_in_nothing_else(write_run, monkeypatch):
    kinds = {"flat": "flat", "joint": "joint", "flat-smooth": "flat", "joint-smooth": "joint"}
    smooth = " head.label_smoothing=0.1"
    arms = {arm: f"head.kind={kind}" + smooth * arm.endswith("smooth") for arm, kind in kinds.items()}
    write_experiment_file(arms=arms, seeds=[0, 1], pairs=[["flat", "joint"], ["flat-smooth", "joint-smooth"]])
    shutil.rmtree("runs")
    for cell in read_cells(TINY)[1]:
        save_config(cell.config, write_run(Path("runs/tiny"), cell.arm, cell.config.seed).config)
    monkeypatch.setattr(report_figures, "MAX_ARMS_DRAWN", 3)
    assert "![forest](tiny/forest.png)" in write_page()
    assert [path.name for path in Path("results/tiny").iterdir()] == ["forest.png"]


@pytest.mark.parametrize("unseen_alone", [False, True])
def test_a_curve_has_each_arm_of_a_series_at_its_value(a_run, unseen_alone):
    arms = {arm: {seed: a_run(arm, seed) for seed in (0, 1)} for arm in ("flat", "joint")}
    curve = CurveConfig(
        axis="clips, %", values=[10, 100], series={"both": ["joint", "flat"]}, unseen_alone=unseen_alone
    )
    (axes,) = draw_curve(curve, compare_groups(arms, []), held_out=["103B"]).axes
    (line,) = axes.lines
    rows = slice(1, None, 3) if unseen_alone else slice(None)  # every third clip is of 103B
    expected = [np.mean([run.correct[rows] for run in arms[arm].values()]) for arm in ("joint", "flat")]
    assert line.get_xdata().tolist() == [10, 100]
    assert line.get_ydata() == pytest.approx(expected)
    assert ("8 clips of dives held out; " in axes.get_title(loc="left")) is unseen_alone


def test_a_page_of_validation_scores_reads_nothing_of_the_test(quick_report_figures):
    for arm in ARMS:
        run = Path(f"runs/tiny/{arm}/seed-0")
        metrics = metrics_of(arm) | {"split": "val"}
        for path in (*run.glob("predictions.*"), run / "metrics.json"):
            shutil.move(path, path.with_name(f"validation_{path.name}"))
        (run / "validation_metrics.json").write_text(json.dumps(metrics))
    write_experiment_file(pairs=[["flat", "joint"]], split="val")
    assert CAPTION.replace("test", "val") in write_page()


def test_cells_that_have_not_been_tested_cannot_be_compared():
    Path("runs/tiny/joint/seed-0/metrics.json").unlink()
    with pytest.raises(ValueError, match=r"has no metrics\.json; test it first"):
        write_page()
    shutil.rmtree("runs/tiny/joint/seed-0")
    with pytest.raises(ValueError, match=r"^runs/tiny/joint/seed-0: no such run folder$"):
        write_page()
    assert not Path("results").exists()
