"""Published classifiers through the commands: answers about videos, a test that is a run, a comparison with it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diveparse.commands.cli import main
from diveparse.configs import HeadKind, Pooling, load_config
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.engine.evaluation.predictions import read_predictions
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.report import report_text
from diveparse.engine.evidence.runs import load_run
from diveparse.engine.run import RunFolder
from diveparse.engine.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_training_figures", "quick_report_figures")

PROBE = """\
name: probe
arm: structured
runs_dir: {runs}
data: {{root: {root}, num_workers: 0, val_fraction: 0.2, cache: false}}
backbone: {{kind: transformers, weights: {encoder}, num_frozen_blocks: 3}}
head: {{pooling: queries}}
train: {{num_epochs: 1, batch_size: 4}}
"""


@pytest.fixture
def published(tiny_published: dict[str, tuple[Path, Any]]) -> Path:
    return tiny_published["vjepa2"][0]


@pytest.fixture
def test(published: Path, tiny_root: Path, tmp_path: Path) -> Callable[..., int]:
    """`diveparse test` of the published model, with more arguments; runs lie in tmp_path / "runs"."""
    options = [f"data.root={tiny_root}", "data.num_workers=0", f"runs_dir={tmp_path / 'runs'}"]
    return lambda *more: main(["test", str(published), *options, *more])


def test_a_video_is_answered_with_a_dive_and_its_attributes(
    published: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((tiny_root / "rgb").glob("*.mp4"))
    assert main(["predict", str(published), str(video), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    dive = DIVING48[answer["number"]]
    assert (answer["name"], answer["difficulty"]) == (dive.name, dive.difficulty(10))
    assert 0 < answer["probability"] < 1
    assert list(answer["attributes"]) == ["takeoff", "somersault", "twist", "position"]


def test_a_test_is_a_run_that_is_compared_with_structured_heads_on_the_same_encoder(
    test: Callable[..., int], published: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert test() == 0
    folder = tmp_path / "runs" / "vjepa2" / "flat" / "seed-0"
    assert f"{folder}, 12 test clips: top-1 " in capsys.readouterr().out
    cfg = load_config(folder / "config.yaml", [])
    assert (cfg.head.kind, cfg.head.pooling, cfg.clip.num_frames) == (HeadKind.FLAT, Pooling.QUERIES, 4)
    metrics = json.loads((folder / "metrics.json").read_text())
    counts = metrics["num_train_clips"]
    assert (metrics["temperature"], metrics["from_cache"], metrics["trained_from_cache"]) == (1.0, False, None)
    assert sum(counts.values()) == len(read_split(tiny_root, "train"))
    assert json.loads((folder / "published.json").read_text()) == {
        "weights": str(published),
        "model_type": "vjepa2",
        "commit": None,
    }

    path = tmp_path / "probe.yaml"
    path.write_text(PROBE.format(runs=tmp_path / "runs", root=tiny_root, encoder=published))
    structured = train(load_config(path, []))
    evaluate_run(structured, [], split="test")
    text = report_text(compare_runs([load_run(folder), load_run(structured)]))
    assert "options that differ between structured and flat: " in text


def test_a_test_is_read_once_and_of_one_model(
    test: Callable[..., int], published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "mine" / "flat" / "seed-0"
    assert test("name=mine") == 0
    before = (run / "predictions.csv").read_bytes()
    capsys.readouterr()
    assert test("name=mine") == 1
    assert "a test is read once; add --again to replace it" in capsys.readouterr().err
    assert main(["test", str(run), "--again"]) == 0  # of the run itself
    assert (run / "predictions.csv").read_bytes() == before
    assert test("name=mine", "clip.order=shuffled") == 0
    assert (run / "shuffled_metrics.json").is_file()
    assert load_config(run / "config.yaml", []).clip.order.value == "time"
    assert test("name=mine", "test.num_temporal_views=2", "--again") == 0
    assert load_run(run).num_views == 2

    other = Path(shutil.copytree(published, tmp_path / "other"))
    options = [f"runs_dir={tmp_path / 'runs'}", "data.root=x"]
    assert main(["test", str(other), *options, "name=mine", "--again"]) == 1
    assert f"{run} holds the test of {published}, not of {other}; choose another one with name=" in last_error(capsys)
    RunFolder(run).published.unlink()
    assert main(["test", str(other), *options, "name=mine", "--again"]) == 1
    assert f"{run} holds files but no test of a published model: " in last_error(capsys)


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (
            "train.batch_size=2",
            "a test of a published model can set name, arm, seed, runs_dir, test., clip.order, data.",
        ),
        ("data.cache=true", "a test of a published model can set"),
        (
            "test.num_spatial_views=3",
            "test.num_spatial_views must be 1, since its own processor cuts one square, got 3",
        ),
        ("data.root=/nowhere", "/nowhere"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_no_run(
    test: Callable[..., int], option: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert test(option) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert complaint in line
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_test_clips_alone_are_enough_and_their_dives_then_fall_in_no_groups(
    test: Callable[..., int], tiny_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "alone"
    (root / "rgb").mkdir(parents=True)
    names = [f"rgb/{record.name}.mp4" for record in read_split(tiny_root, "test")]
    for name in ("Diving48_vocab.json", "Diving48_V2_test.json", *names):
        (root / name).symlink_to(tiny_root / name)
    with caplog.at_level(logging.WARNING):
        assert test(f"data.root={root}") == 0
    assert "dives are not divided into frequent and rare ones, without training clips: " in caplog.text
    folder = tmp_path / "runs" / "vjepa2" / "flat" / "seed-0"
    assert json.loads((folder / "metrics.json").read_text())["groups"] == {}
    assert len(read_predictions(folder / "predictions.csv")) == 12
    assert load_run(folder).num_train_clips == {}


def test_a_name_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(tmp_path)]) == 1
    assert "holds no trained model; expected a run folder of `diveparse train`" in last_error(capsys)
