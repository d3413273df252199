import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from diveparse.commands.cli import main
from diveparse.configs import save_config
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.engine.evidence import answers, experiment

ROOT = Path(__file__).resolve().parents[2]
TINY = "experiments/tiny.yaml"
BASE = """\
name: base
arm: base
data: {root: clips.csv, num_workers: 0, val_fraction: 0.2}
clip: {num_frames: 4, image_size: 32}
backbone: {embed_dim: 16, depth: 2, num_heads: 2}
train: {num_epochs: 1, batch_size: 4, learning_rate: 3.0e-3}
test: {batch_size: 5}
"""


@pytest.fixture(autouse=True)
def folder(tiny_root, tmp_path, monkeypatch, quick_report_figures):
    """The working folder, with an experiment of two arms. A CSV of the tiny clips has four dives, not Diving48's."""
    monkeypatch.chdir(tmp_path)
    rows = ["path,dive_number,split,source"]
    for split in ("train", "test"):
        for record in read_split(tiny_root, split):
            rows.append(f"{record.path},{DIVING48[record.label].number},{split},{record.source}")
    Path("clips.csv").write_text("\n".join(rows) + "\n")
    Path("base.yaml").write_text(BASE)
    Path("experiments").mkdir()
    write_arms({"flat": "head.kind=flat", "joint": "head.kind=joint"})
    return tmp_path


def write_arms(arms, path=TINY):
    pairs = [list(arms)] if len(arms) == 2 else []
    content = {"question": "Does it help?", "config": "base.yaml", "seeds": [0], "arms": arms, "pairs": pairs}
    Path(path).write_text(json.dumps(content))  # which is YAML too


def test_an_experiment_is_run_and_written_and_not_run_again(capsys):
    assert main(["experiment", TINY, "--jobs", "2", "--out", "results"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0] == f"{TINY}: 0 of 2 cells are done"
    assert first[1].startswith(f"{TINY}: trainings of each arm: 1; sources in the test split: 3; nothing will be")
    assert first[-1] == "written: results/tiny.md"
    assert f"{TINY}: 2 cells took 0 minutes" in first
    written = {path.name for path in Path("results").iterdir()}
    assert written == {"tiny", "tiny.md", "tiny.csv", "tiny-classes.csv", "tiny.answers.npz"}
    metrics = [Path(f"runs/tiny/{arm}/seed-0/metrics.json") for arm in ("flat", "joint")]
    before = [path.stat().st_mtime_ns for path in metrics]
    page = Path("results/tiny.md").read_text(encoding="utf-8")

    assert main(["experiment", TINY, "--out", "results"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{TINY}: 2 of 2 cells are done", "written: results/tiny.md"]
    assert [path.stat().st_mtime_ns for path in metrics] == before
    assert Path("results/tiny.md").read_text(encoding="utf-8") == page

    shutil.rmtree("runs")
    assert main(["experiment", TINY, "--out", "results", "--from-answers"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{TINY}: 2 of 2 cells were put back from answers",
        f"{TINY}: 2 of 2 cells are done",
        "written: results/tiny.md",
    ]
    again = Path("results/tiny.md").read_text(encoding="utf-8")
    rounded = ("NLL, calibrated", "Brier score", "calibration error")  # in half precision, so the last digit may differ
    lines = [
        [line for line in text.splitlines() if not line.startswith(tuple(f"| {name}" for name in rounded))]
        for text in (page, again)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) < len(page.splitlines())
    assert not Path("runs/tiny/flat/seed-0/model").exists()


def refusal(capsys, *arguments):
    """The one line with which the command refuses."""
    assert main(["experiment", *arguments, "--out", "results"]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.err.splitlines()[-1:] == lines
    assert "Traceback" not in captured.err
    assert not Path("results").exists()
    return lines[0], captured.out


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_no_jobs_at_all_are_refused(capsys, jobs):
    line, _ = refusal(capsys, TINY, "--jobs", jobs)
    assert line == f"error: --jobs must be at least 1, got {jobs}"
    assert not Path("runs").exists()


def test_an_experiment_that_is_not_there_is_refused_by_name(capsys):
    line, _ = refusal(capsys, "experiments/nothing.yaml")
    assert line.startswith("error: experiments/nothing.yaml: no such config file; expected ")


@pytest.mark.parametrize(
    ("arm", "complaint"),
    [("head.kind=softmax", "head.kind"), ("other/flat", "other: no such config file"), ("tiny/joint", "'joint'")],
)
def test_an_arm_that_makes_no_sense_is_refused_in_one_line(capsys, arm, complaint):
    write_arms({"flat": "head.kind=flat"})
    write_arms({"wrong": arm}, "experiments/again.yaml")
    line, _ = refusal(capsys, "experiments/again.yaml")
    assert complaint in line
    assert not Path("runs").exists()


def test_a_cell_that_fails_is_named_with_its_log_and_ends_the_command_with_exit_code_1(capsys):
    write_arms({"lost": "data.root=nowhere.csv"})
    line, printed = refusal(capsys, TINY, "--jobs", "1")
    assert line == f"error: {TINY}: 1 of 1 cells failed; read their logs, named above"
    assert "failed: runs/tiny/lost/seed-0, see runs/tiny/lost-seed-0.log" in printed.splitlines()
    assert "nowhere.csv: there is no such file" in Path("runs/tiny/lost-seed-0.log").read_text(encoding="utf-8")


def test_seeds_that_are_validated_on_sources_of_their_own_are_not_put_on_one_page(capsys, monkeypatch):
    monkeypatch.setattr(answers, "write_answers", lambda path, cells: None)  # these have none
    content = json.loads(Path(TINY).read_text()) | {"seeds": [0, 1], "split": "val"}
    Path(TINY).write_text(json.dumps(content))
    for cell in experiment.read_cells(Path(TINY))[1]:  # all are done
        cell.run.path.mkdir(parents=True)
        save_config(cell.config, cell.run.config)
        cell.metrics.write_text("{}")
    assert main(["experiment", TINY, "--out", "results"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{TINY}: 4 of 4 cells are done",
        f"{TINY}: no page, since each seed is validated on sources of its own",
    ]
    assert not Path("results").exists()


def test_a_grid_is_tried_on_validation_alone_and_its_best_settings_are_named(capsys):
    content = json.loads(Path(TINY).read_text()) | {"split": "val", "pairs": []}
    content |= {"arms": {"flat": "head.kind=flat"}, "grid": {"train.max_grad_norm": [0.001, None]}}
    Path(TINY).write_text(json.dumps(content))
    assert main(["experiment", TINY, "--out", "results"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written: results/tiny.md"
    assert {path.name for path in Path("results").iterdir()} == {"tiny.md", "tiny.csv"}
    assert {path.name for path in Path("runs/tiny").iterdir() if path.is_dir()} == {"flat-0.001", "flat-none"}
    assert not list(Path("runs").rglob("metrics.json")) + list(Path("runs").rglob("[!v]*predictions.csv"))
    table = pd.read_csv("results/tiny.csv", keep_default_na=False)
    assert dict(zip(table["train.max_grad_norm"], table["clipped_share"], strict=True)) == {"0.001": 1.0, "none": 0.0}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "experiments").glob("*.yaml")))
def test_an_experiment_that_ships_with_the_package_is_read_by_its_name(name):
    settings, cells = experiment.read_cells(Path(name))
    num_settings = len(experiment.settings(settings)) if settings.grid else len(settings.arms)
    assert len(cells) == num_settings * len(settings.seeds)
    assert all(cell.run.path.is_relative_to("runs") for cell in cells)
    experiment.require_stackable(Path(name), settings, cells)


def test_models_of_another_experiment_are_trained_before_they_are_tested_on_other_data(capsys):
    rows = Path("clips.csv").read_text().splitlines()
    Path("other.csv").write_text("\n".join(row for row in rows if ",train," not in row) + "\n")
    other = "data.root=other.csv data.dives=diving48"
    write_arms({"plain": f"tiny/flat {other}", "structured": f"tiny/joint {other}"}, "experiments/again.yaml")
    assert main(["experiment", "experiments/again.yaml", "--jobs", "2", "--out", "results"]) == 0
    assert "experiments/again.yaml: 2 models of other experiments are trained first" in capsys.readouterr().out
    page = Path("results/again.md").read_text(encoding="utf-8")
    assert "**Models of other dives**" in page
    assert "- plain cannot name: " in page
    assert Path("runs/tiny/flat/seed-0/metrics.json").is_file()
