import json
from pathlib import Path

import pandas as pd
import pytest

from diveparse.configs import ExperimentConfig
from diveparse.engine.evidence.experiment import read_cells
from diveparse.engine.evidence.tuning import edge_of, write_tuning

RATES, LIMITS = [0.1, 0.2, 0.4], [1, 5, None]
ARMS = {"flat": "head.kind=flat", "joint": "head.kind=joint"}
TUNING = Path("experiments/tuning.yaml")


def write_experiment_file(**options):
    grid = {"train.learning_rate": RATES, "train.max_grad_norm": LIMITS}
    content = {"question": "Which?", "config": "base.yaml", "seeds": [0, 1], "split": "val", "arms": ARMS, "grid": grid}
    TUNING.parent.mkdir(exist_ok=True)
    TUNING.write_text(json.dumps(content | options))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("{name: base, arm: base, data: {root: data}}")
    write_experiment_file()


def score(cells, best):
    """Every cell gets 0.5, but for the best setting of each arm. best: arm -> (rate, limit)."""
    for cell in cells:
        arm, train = cell.arm.split("-")[0], cell.config.train
        is_best = (train.learning_rate, train.max_grad_norm) == best[arm]
        top1 = (0.9 if is_best else 0.5) + 0.02 * cell.config.seed
        cell.run.path.mkdir(parents=True)
        cell.metrics.write_text(json.dumps({"top1": top1, "nll": 1 - top1, "clipped_share": [0.5, 0.7]}))


def test_every_arm_gets_every_setting_with_every_seed_and_no_test():
    _, cells = read_cells(TUNING)
    assert len(cells) == len(ARMS) * len(RATES) * len(LIMITS) * 2
    for arm in ARMS:
        own = [cell for cell in cells if cell.arm.startswith(f"{arm}-")]
        trained = [(each.config.train.learning_rate, each.config.train.max_grad_norm) for each in own]
        assert sorted(trained, key=str) == sorted([(r, n) for r in RATES for n in LIMITS for _ in range(2)], key=str)
        assert {each.config.head.kind.value for each in own} == {arm}
    assert {split for cell in cells for split in cell.splits} == {"val"}
    assert str(cells[2].run) == "runs/tuning/flat-0.1-none/seed-0"
    assert len({cell.run for cell in cells}) == len(cells)


def test_the_page_names_the_best_setting_of_each_arm_and_warns_of_edges():
    experiment, cells = read_cells(TUNING)
    score(cells, {"flat": (0.4, 5.0), "joint": (0.2, None)})
    page = write_tuning(TUNING, experiment, cells, Path("results")).read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert rows[2:4] == [
        ["flat", "0.4", "5", "0.910 ± 0.014", "0.090", "60 %"],
        ["joint", "0.2", "none", "0.910 ± 0.014", "0.090", "60 %"],
    ]
    edges = [line for line in page.splitlines() if "On an edge" in line]
    assert edges == [
        "- **On an edge**: flat does best with train.learning_rate=0.4, the largest that was tried; try beyond it"
    ]
    assert "9 settings for each arm" in page
    table = pd.read_csv("results/tuning.csv", keep_default_na=False)
    assert len(table) == len(cells)
    assert set(table["train.max_grad_norm"]) == {"1", "5", "none"}


def test_an_optimum_inside_the_grid_is_no_reason_to_warn():
    experiment, cells = read_cells(TUNING)
    score(cells, dict.fromkeys(ARMS, (0.2, 5.0)))
    page = write_tuning(TUNING, experiment, cells, Path("results")).read_text()
    assert "No best setting lies on an edge." in page
    assert "On an edge" not in page


@pytest.mark.parametrize(
    ("best", "edge"),
    [(1, "smallest that was tried"), (5, None), (None, None)],
    ids=str,
)
def test_nothing_lies_beyond_no_limit(best, edge):
    assert edge_of([1, 5, None], best) == edge
    assert edge_of([1, 3, 5], 5) == "largest that was tried"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": "test"}, "split must be val with a grid"),
        ({"pairs": [["flat", "joint"]]}, "grid must be without pairs, stacking and curve"),
        ({"grid": {"train.learning_rate": [0.1]}}, r"grid\.train\.learning_rate must be two values or more"),
    ],
    ids=["test", "pairs", "one value"],
)
def test_a_grid_that_makes_no_sense_is_refused(options, complaint):
    write_experiment_file(**options)
    with pytest.raises(ValueError, match=complaint):
        read_cells(TUNING)


def test_a_grid_is_no_part_of_other_experiments():
    assert ExperimentConfig(question="?", config="x", arms={"a": ""}).grid == {}
