import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.commands.cli import main
from diveparse.configs import load_config, run_folder
from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.engine.evaluation.predictions import read_predictions
from diveparse.engine.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_training_figures")

METRICS = {"split", "num_clips", "top1", "top5", "mean_class_accuracy", "num_classes_scored", "attribute_accuracy"}


@pytest.fixture
def run(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "tiny" / "joint" / "seed-0"))


def names(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith("events")}


def test_the_test_split_is_predicted_and_scored_in_the_run_folder(run, tiny_root, capsys):
    assert main(["test", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert {*METRICS, "invalid_rate", "nll", "ece"} <= set(metrics)
    assert set(metrics["attribute_accuracy"]) == set(ATTRIBUTES)
    records = read_split(tiny_root, "test")
    assert (metrics["split"], metrics["num_clips"], metrics["num_classes_scored"]) == ("test", len(records), 4)
    table = read_predictions(run / "predictions.csv")
    assert table["clip"].tolist() == [record.name for record in records]
    assert table.true_number.tolist() == [DIVING48[record.label].number for record in records]
    assert metrics["top1"] == pytest.approx((table.predicted_number == table.true_number).mean())
    assert metrics["nll"] == pytest.approx(-table.log_prob_true.mean())
    confusion = pd.read_csv(run / "confusion.csv", index_col="true_number")
    assert confusion.columns.tolist() == [*DIVING48.numbers, "invalid"]
    assert confusion.sum(axis=1).to_dict() == {
        number: (table.true_number == number).sum() for number in DIVING48.numbers
    }
    for true_number, predicted_number in zip(table.true_number, table.predicted_number, strict=True):
        assert confusion.loc[true_number, predicted_number] > 0
    assert np.trace(confusion.to_numpy()) == (table.predicted_number == table.true_number).sum()
    assert f"{len(records)} test clips: top-1 {metrics['top1']:.3f}" in capsys.readouterr().out


def test_a_second_test_is_refused_unless_asked_for_again(run, capsys):
    assert main(["test", str(run)]) == 0
    before = (run / "metrics.json").read_bytes()
    (run / "predictions.csv").write_text("kept")
    assert main(["test", str(run)]) == 1
    assert "a test is read once; add --again to replace it" in capsys.readouterr().err
    assert (run / "predictions.csv").read_text() == "kept"
    assert main(["test", str(run), "--again"]) == 0
    assert (run / "metrics.json").read_bytes() == before
    assert len(read_predictions(run / "predictions.csv")) == 12


def test_validation_has_its_own_files_and_leaves_the_test_untouched(run, tiny_root):
    assert main(["test", str(run), "--split", "val"]) == 0
    assert names(run) >= {"validation_metrics.json", "validation_predictions.csv"}
    assert not (run / "metrics.json").exists()
    assert json.loads((run / "validation_metrics.json").read_text())["split"] == "val"
    val_sources = set(read_predictions(run / "validation_predictions.csv").source)
    assert len(val_sources) == 1
    assert val_sources < {record.source for record in read_split(tiny_root, "train")}


def test_validation_scores_the_kept_model_as_training_did(run):
    assert main(["test", str(run), "--split", "val"]) == 0
    metrics = json.loads((run / "validation_metrics.json").read_text())
    events = EventAccumulator(str(run)).Reload()
    for name in ("top1", "top5", "nll", "ece", "invalid_rate", "mean_class_accuracy"):
        assert metrics[name] == pytest.approx(events.Scalars(f"val/{name}")[-1].value, rel=1e-5)


def test_shuffled_frames_are_a_control_with_its_own_files(run):
    assert main(["test", str(run), "clip.order=shuffled"]) == 0
    assert {"shuffled_metrics.json", "shuffled_predictions.csv"} <= names(run)
    assert not (run / "metrics.json").exists()


def test_more_views_are_averaged_and_counted(run):
    assert main(["test", str(run), "test.num_temporal_views=2", "test.num_spatial_views=3", "test.batch_size=2"]) == 0
    assert json.loads((run / "metrics.json").read_text())["num_views"] == 6
    one_view = read_predictions(run / "predictions.csv").log_prob_true
    assert main(["test", str(run), "--again"]) == 0
    assert not np.array_equal(read_predictions(run / "predictions.csv").log_prob_true, one_view)


def test_the_final_metrics_lie_in_the_runs_own_tensorboard_log_beside_the_options(run):
    before = {path for path in run.rglob("*") if path.is_dir()}
    assert main(["test", str(run)]) == 0
    assert {path for path in run.rglob("*") if path.is_dir()} == before  # no stray runs
    events = EventAccumulator(str(run)).Reload()
    metrics = json.loads((run / "metrics.json").read_text())
    (point,) = events.Scalars("test/top1")
    assert point.value == pytest.approx(metrics["top1"])
    assert events.Scalars("test/accuracy_twist")[0].value == pytest.approx(metrics["attribute_accuracy"]["twist"])
    assert "test/confusion" in events.Tags()["images"]
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["train.batch_size=2"],
            "testing can change data.root, data.dives, data.num_workers, data.cache, data.damaged, test., clip.or",
        ),
        (["clip.num_frames=2"], "testing can change"),
        (["test.num_spatial_views=2"], "test.num_spatial_views must be 1 or 3"),
        (["data.root=/nowhere"], "/nowhere"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_writes_nothing(run, capsys, arguments, complaint):
    before = names(run)
    assert main(["test", str(run), *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert names(run) == before


@pytest.mark.parametrize("rendered", [True, False])
def test_the_metrics_hold_what_was_tested_on_and_whether_it_was_rendered(run, tiny_root, tmp_path, rendered):
    other = tmp_path / "other"  # than it was trained on
    other.mkdir()
    for path in tiny_root.iterdir():
        (other / path.name).symlink_to(path)
    if rendered:
        (other / "rendered.json").write_text("{}")
    assert main(["test", str(run), f"data.root={other}"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["data_root"], metrics["rendered"]) == (str(other), rendered)


def test_a_damaged_clip_is_one_line_that_names_it_even_from_a_worker(run, tiny_root, tmp_path, capsys):
    root = tmp_path / "damaged"
    (root / "rgb").mkdir(parents=True)
    for path in (*tiny_root.glob("*.json"), *tiny_root.glob("rgb/*")):
        (root / path.relative_to(tiny_root)).symlink_to(path)
    damaged = root / "rgb" / f"{read_split(root, 'test')[3].name}.mp4"
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[:100])
    for num_workers in (0, 1):
        assert main(["test", str(run), f"data.root={root}", f"data.num_workers={num_workers}"]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(f"error: {damaged}: ")
        assert "Traceback" not in line
    assert not (run / "metrics.json").exists()


def test_a_folder_without_a_trained_model_is_refused(tmp_path, capsys):
    assert main(["test", str(tmp_path)]) == 1
    assert "holds no trained model" in capsys.readouterr().err


def test_a_run_whose_training_has_not_ended_is_refused_with_how_to_go_on(
    tiny_experiment, interrupted_in_update, capsys
):
    cfg = load_config(tiny_experiment, [])
    with interrupted_in_update(5), pytest.raises(KeyboardInterrupt):
        train(cfg)
    run = run_folder(cfg)
    assert (run / "model").is_dir()
    before = names(run)
    for split in ("test", "val"):
        assert main(["test", str(run), "--split", split]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{run} has not been trained to its end, 4 updates are done" in line
        assert f"diveparse train {run / 'config.yaml'} --resume" in line
    assert names(run) == before
    assert train(load_config(run / "config.yaml", []), resume=True) == run
    assert main(["test", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_updates"] == 8
    assert metrics["model_update"] in (4, 8)


def test_a_damaged_model_is_refused_by_name(run, capsys):
    (run / "model" / "model.safetensors").write_bytes(b"half")
    assert main(["test", str(run)]) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_anybodys_clips_are_trained_on_and_tested(tiny_experiment, tiny_root, tmp_path, capsys):
    """A club's CSV, whose first kind of dive is an armstand dive."""
    first = read_split(tiny_root, "train")[0].label
    rows = ["file,dive,part,day"]
    for split in ("train", "test"):
        for record in read_split(tiny_root, split):
            number = "626C" if record.label == first else DIVING48[record.label].number
            rows.append(f"{record.path},{number},{split},{record.source}")
    table = tmp_path / "club.csv"
    table.write_text("\n".join(rows) + "\n")
    columns = "data.columns={path: file, dive_number: dive, split: part, source: day}"
    run = train(load_config(tiny_experiment, ["train.num_epochs=1", f"data.root={table}", columns]))
    assert main(["test", str(run)]) == 0
    predictions = read_predictions(run / "predictions.csv")
    assert len(predictions) == len(read_split(tiny_root, "test"))
    assert "626C" in set(predictions.true_number)
    known = {row.split(",")[1] for row in rows[1:] if row.split(",")[2] == "train"}
    assert set(predictions.predicted_number) <= known
    assert json.loads((run / "metrics.json").read_text())["data_root"] == str(table)
    capsys.readouterr()

    table.write_text(table.read_text().replace(f",{rows[-1].split(',')[1]},test", ",5355B,test"))
    assert main(["test", str(run), "--again"]) == 1
    heading, *lines = capsys.readouterr().err.splitlines()
    assert heading.startswith(f"error: {table}: ")
    assert lines
    assert all(line.startswith("  line ") and "dive 5355B" in line for line in lines)
