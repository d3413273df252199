import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from diveparse.commands.cli import main
from diveparse.commands.compare import common_folder
from diveparse.configs import Config, DataConfig, HeadConfig, HeadKind, save_config
from diveparse.datasets.dives import ATTRIBUTES, DIVING48
from diveparse.datasets.storage.lock import LOCK_FILE, locked
from diveparse.engine.evaluation.metrics import calibrated_metrics, compute_metrics
from diveparse.engine.evaluation.predictions import Predictions, save_predictions, write_predictions
from diveparse.engine.evidence import report
from diveparse.engine.evidence.runs import ALL_SCORES
from diveparse.heads.recombine import INVALID

NUM_CLIPS = 40


def write_run(folder, arm, seed, *, skill, split="test", num_clips=NUM_CLIPS):
    """A tested run whose model gives the truth an advantage of `skill` over noise; every run has the same clips."""
    labels = np.random.default_rng(0).integers(0, len(DIVING48), num_clips)
    rng = np.random.default_rng([seed, len(arm)])
    scores = rng.normal(size=(num_clips, len(DIVING48))) + skill * np.eye(len(DIVING48))[labels]
    log_probs = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    answers = scores.argmax(axis=1)
    predictions = Predictions(
        clips=[f"SOURCE{k % 6:05d}_{k:05d}" for k in range(num_clips)],
        sources=[f"SOURCE{k % 6:05d}" for k in range(num_clips)],
        labels=labels,
        dive_log_probs=log_probs,
        attribute_log_probs={
            a: rng.normal(size=(num_clips, len(DIVING48.values[a]))).astype(np.float32) for a in ATTRIBUTES
        },
        spelt_labels=np.where(rng.random(num_clips) < 0.1, INVALID, answers),
        decoded_labels=answers,
    )
    folder = folder / arm / f"seed-{seed}"
    folder.mkdir(parents=True)
    head = HeadConfig(kind=HeadKind.FLAT if arm == "flat" else HeadKind.JOINT)
    cfg = Config(name="demo", arm=arm, seed=seed, data=DataConfig(root="data/demo"), head=head)
    save_config(cfg, folder / "config.yaml")
    about = {"split": split, "num_views": 1, "data_root": "data/demo", "rendered": True}
    about |= {"from_cache": False, "trained_from_cache": False}
    about |= {"num_train_clips": {dive.number: 10 * label for label, dive in enumerate(DIVING48)}}
    metrics = {**about, **compute_metrics(predictions, DIVING48), **calibrated_metrics(predictions, temperature=1.5)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_predictions(folder / "predictions.csv", predictions, DIVING48)
    save_predictions(folder / "predictions.safetensors", predictions, DIVING48)
    with SummaryWriter(str(folder)) as writer:
        for number in (10, 20):
            writer.add_scalar("val/top1", skill / 10 + number / 100, number)
    return folder


def write_two_arms(folder):
    return [write_run(folder, "flat", 0, skill=1), write_run(folder, "structured", 0, skill=6)]


@pytest.fixture
def two_arms(tmp_path):
    return write_two_arms(tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of two arms that have been compared, and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["compare", *map(str, write_two_arms(folder))]) == 0
    return folder, printed.getvalue()


def test_compare_prints_one_table_of_the_scores_and_the_paired_difference(compared):
    folder, printed = compared
    metrics = [json.loads((folder / arm / "seed-0" / "metrics.json").read_text()) for arm in ("flat", "structured")]
    # of rows with the same name the first
    rows = {line.split("|")[1].strip(): line for line in reversed(printed.splitlines()) if line.startswith("|")}
    assert "rendered dives, not Diving48" in printed
    assert [f"{m['top1']:.3f}" in rows["top-1"] for m in metrics] == [True, True]
    for name, value in {
        "mean class accuracy": metrics[1]["mean_class_accuracy"],
        "twist": metrics[1]["attribute_accuracy"]["twist"],
        "invalid before decoding": metrics[1]["invalid_rate"],
        "NLL (nats)": metrics[1]["nll"],
        "calibration error": metrics[1]["ece"],
        "calibration error, calibrated": metrics[1]["ece_calibrated"],
    }.items():
        assert f"{value:.3f}" in rows[name]
    assert f"{metrics[1]['top1'] - metrics[0]['top1']:+.3f}" in rows["structured - flat"]
    assert "these weights only" in rows["structured - flat"]


def test_compare_shows_which_options_differ_between_the_arms(compared):
    folder, printed = compared
    line = "- options that differ between structured and flat: arm (structured, flat), head.kind (joint, flat)"
    assert line in printed.splitlines()
    assert line in (folder / "comparison.md").read_text(encoding="utf-8").splitlines()


def test_compare_writes_a_page_a_table_plots_and_tensorboard_images_where_the_runs_lie(compared):
    folder, _ = compared
    page = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "rendered dives, not Diving48" in page
    plots = {path.stem for path in (folder / "comparison").glob("*.png")}
    per_arm = {f"confusion-{arm}" for arm in ("flat", "structured")}
    assert plots == {"top1", "attributes", "classes-structured-flat", "reliability", *per_arm}
    assert all(f"(comparison/{plot}.png)" in page for plot in plots)
    events = EventAccumulator(str(folder / "comparison")).Reload()
    assert set(events.Tags()["images"]) == {f"test/{plot}" for plot in plots}


def test_tensorboard_lays_the_validation_curves_over_each_other_and_lists_the_runs(compared):
    folder, _ = compared
    events = EventAccumulator(str(folder / "comparison")).Reload()
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {
        "validation top-1": ["val/top1"],
        "validation NLL": ["val/nll"],
        "training loss": ["train/loss"],
    }
    for arm, skill in (("flat", 1), ("structured", 6)):
        run = EventAccumulator(str(folder / "comparison" / f"{arm}-seed-0")).Reload()
        assert [(point.step, point.value) for point in run.Scalars("val/top1")] == [
            (number, pytest.approx(skill / 10 + number / 100)) for number in (10, 20)
        ]
        assert "_hparams_/session_start_info" in run.summary_metadata
        top1 = json.loads((folder / arm / "seed-0" / "metrics.json").read_text())["top1"]
        assert run.Scalars("test/top1")[0].value == pytest.approx(top1)


def test_the_tidy_table_holds_every_score_with_its_caption(compared):
    folder, _ = compared
    table = pd.read_csv(folder / "comparison.csv")
    assert table["clips"].str.contains("rendered dives, not Diving48").all()
    assert set(table["quantity"]) == {*ALL_SCORES, "top1_difference", "nll_difference"}
    rows = (table["quantity"] == "top1_difference") & (table["seed"] == "all") & (table["group"] == "all")
    overall = table[rows].iloc[0]
    arms = ("flat", "structured")
    assert (overall["versus"], overall["arm"]) == arms
    flat, structured = (json.loads((folder / arm / "seed-0" / "metrics.json").read_text()) for arm in arms)
    assert overall["value"] == pytest.approx(structured["top1"] - flat["top1"])
    assert overall["weights_low"] > 0  # the structured model is much better
    assert overall["weights_sources_p"] < 0.05
    assert overall["verdict"] == "these weights only"
    assert np.isnan(overall["low"])  # one training has no spread


def test_the_table_of_dives_holds_the_effect_on_each(compared):
    folder, _ = compared
    table = pd.read_csv(folder / "classes.csv")
    assert set(table["first"]) == {"flat"}
    assert table["test_clips"].sum() == NUM_CLIPS
    np.testing.assert_allclose(table["difference"], table["accuracy_second"] - table["accuracy_first"])
    assert (table["training_clips"] == [10 * DIVING48.label_of(number) for number in table["number"]]).all()


def test_several_seeds_show_their_spread_and_a_row_each(tmp_path, quick_report_figures, capsys):
    runs = [write_run(tmp_path, arm, seed, skill=3) for arm in ("flat", "structured") for seed in (0, 1)]
    assert main(["compare", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    values = [json.loads((run / "metrics.json").read_text())["top1"] for run in runs[:2]]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in printed
    assert all(row in printed for row in ("flat, seed 0", "flat, seed 1", "flat, mean"))


def test_comparing_into_a_folder_leaves_nothing_of_an_earlier_comparison_there(two_arms, tmp_path):
    out = tmp_path / "elsewhere"
    (out / "comparison").mkdir(parents=True)
    for stale in ("confusion-older.png", "events.out.tfevents.1.older"):
        (out / "comparison" / stale).touch()
    assert main(["compare", str(two_arms[0]), "--out", str(out)]) == 0
    assert {path.stem for path in (out / "comparison").glob("*.png")} == {
        "top1",
        "attributes",
        "confusion-flat",
        "reliability",
    }
    assert len(list((out / "comparison").glob("events*"))) == 1


def refusal(capsys, runs):
    """The one line with which compare refuses."""
    assert main(["compare", *map(str, runs)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def test_compare_refuses_runs_on_different_clips(two_arms, tmp_path, capsys):
    other = write_run(tmp_path, "joint", 0, skill=3, num_clips=NUM_CLIPS + 2)
    assert "2 clips are in only one of them" in refusal(capsys, [two_arms[0], other])


def test_compare_refuses_a_validation_score_beside_a_test_score(two_arms, tmp_path, capsys):
    other = write_run(tmp_path, "joint", 0, skill=3, split="validation")
    assert "tested on different splits, test and validation" in refusal(capsys, [two_arms[0], other])


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_compare_asks_for_the_test_that_a_run_lacks(two_arms, capsys, name):
    (two_arms[1] / name).unlink()
    assert f"has no {name}; test it first: diveparse test {two_arms[1]}" in refusal(capsys, two_arms)


def test_compare_refuses_metrics_that_are_not_of_the_predictions_beside_them(two_arms, capsys):
    (two_arms[1] / "predictions.csv").write_bytes((two_arms[0] / "predictions.csv").read_bytes())
    assert "they are of different tests" in refusal(capsys, two_arms)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a whole JSON file"),
        ("[]", "expected names and values, got list"),
        (
            '{"attribute_accuracy": {}}',
            "lacks split, num_views, data_root, rendered, from_cache, trained_from_cache",
        ),
    ],
)
def test_compare_names_a_metrics_file_that_is_no_good(two_arms, capsys, content, reason):
    path = two_arms[1] / "metrics.json"
    path.write_text(content)
    line = refusal(capsys, two_arms)
    assert str(path) in line
    assert reason in line


def test_a_folder_that_is_not_there_is_refused_by_name(capsys, tmp_path):
    assert refusal(capsys, [tmp_path / "nothing"]) == f"error: {tmp_path / 'nothing'}: no such run folder\n"


def test_two_comparisons_into_one_folder_do_not_write_at_the_same_time(two_arms, tmp_path, capsys):
    out = tmp_path / "out"
    with locked(out, "comparing"):
        line = refusal(capsys, [*two_arms, "--out", out])
        assert line.startswith(f"error: {out} is in use: comparing by process {os.getpid()} on ")
        assert [path.name for path in out.iterdir()] == [LOCK_FILE]
    assert not out.exists()


def test_a_comparison_holds_the_lock_while_it_writes_and_leaves_none(two_arms, tmp_path, monkeypatch):
    out, held = tmp_path / "out", []

    def figures_of(_):
        held.append((out / LOCK_FILE).is_file())
        yield "top1", Figure(figsize=(1, 1))

    monkeypatch.setattr(report, "figures", figures_of)
    assert main(["compare", *map(str, two_arms), "--out", str(out)]) == 0
    assert held == [True]
    assert not (out / LOCK_FILE).exists()


def test_runs_on_several_drives_need_a_folder_to_write_to(monkeypatch):
    def no_common_folder(_):
        raise ValueError("Paths don't have the same drive")  # as on Windows

    monkeypatch.setattr(os.path, "commonpath", no_common_folder)
    with pytest.raises(ValueError, match="no folder holds all of a, b; give one by --out"):
        common_folder([Path("a"), Path("b")])


def test_runs_on_another_drive_than_the_working_folder_are_compared_there(tmp_path, monkeypatch):
    def no_way(_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")  # as on Windows

    monkeypatch.setattr(os.path, "relpath", no_way)
    assert common_folder([tmp_path / "a", tmp_path / "b"]) == tmp_path
