import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from diveparse.commands.benchmark import ENCODERS, SIZES, scaling_tables
from diveparse.commands.cli import main
from diveparse.configs import BackboneConfig
from diveparse.engine.benchmark import backbone as speed
from diveparse.engine.benchmark import encoders, processes, scaling

TINY = speed.Setting(BackboneConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2), 2, 16, 2)


@pytest.mark.usefixtures("measured_in_this_process")
def test_loading_measures_every_installed_reader_and_names_the_others(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((tiny_root / "rgb").iterdir())
    assert (
        main(
            ["benchmark", "loading", str(video), *["--frames", "4", "--size", "32", "--repeats", "2", "--height", "96"]]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "1 videos, 4 frames of 32 x 32, 2 repeats, one core" in out
    for reader in ("diveparse", "diveparse, training cache", "diveparse, evaluation cache"):
        assert f"| {reader} (av " in out
    assert "bit for bit, on 1 of 1 videos" in out
    for peer in ("torchcodec", "decord", "opencv"):
        assert f"| {peer} (" in out or peer in out.partition("not installed:")[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere.mp4",), "nowhere.mp4: there is no such file"),
        (("x.mp4", "--repeats", 0), "--repeats must be at least 1, got 0"),
        (("x.mp4", "--height", 3), "height must be a multiple of 2, got 3"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    args: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "loading", *map(str, args)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("measured_in_this_process")
def test_backbones_are_shown_in_one_table_and_every_time_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(speed.SETTINGS, "small", TINY)
    path = tmp_path / "backbone.json"
    assert main(["benchmark", "backbone", "--sizes", "small", "--repeats", "2", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "2 repeats: width 16, depth 1, 2 heads, 2 frames of 16 x 16, patches of 8, batches of 2" in out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert ["forward", f"HuggingFace (transformers {version('transformers')})"] in [row[:2] for row in rows]
    assert [row[4] for row in rows if row[1].startswith("diveparse ")] == ["1.00 (1.00 to 1.00)"] * 2
    (measured, *_) = json.loads(path.read_text())["measured"]
    assert len(measured["measurements"][0]["times_s"]) == 2


def test_encoders_are_shown_with_their_sizes_and_their_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for family in ("videomae", "vivit"):
        small = {"num_frames": 4, "image_size": 32, "hidden_size": 32, "num_attention_heads": 2}
        monkeypatch.setitem(encoders.PUBLISHED, family, small | {"num_hidden_layers": 1, "intermediate_size": 64})
    assert main(["benchmark", "encoders", "--encoders", "videomae", "vivit", "--threads", "1", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "forward in fp32, 1 threads, the median of 1 repeats of one clip" in out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["VideoMAE", "ViViT"]
    assert [row[1:2] + row[3:4] for row in rows[2:]] == [["4 of 32 x 32", "8"], ["4 of 32 x 32", "9"]]
    assert all(float(row[5]) > 0 for row in rows[2:])


def test_the_memory_of_an_update_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[speed.Setting] = []

    def peak_of_training(setting: speed.Setting, device: torch.device) -> int:
        asked.append(setting)
        return 3 * 2**29

    monkeypatch.setattr(speed, "peak_of_training", peak_of_training)
    assert main(["benchmark", "memory", "--frames", "16", "--batch-size", "3", "--checkpointed", "5"]) == 0
    assert "in fp32 on cpu takes 1.50 GiB" in capsys.readouterr().out
    assert (asked[0].num_frames, asked[0].batch_size, asked[0].backbone.num_checkpointed_blocks) == (16, 3, 5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("backbone", "--repeats", "0"), "--repeats must be at least 1, got 0"),
        (("encoders", "--threads", "0"), "--threads must be at least 1, got 0"),
        (("memory", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("memory", "--checkpointed", "13"), "num_checkpointed_blocks must be between 0 and the 12 blocks"),
    ],
)
def test_what_no_backbone_can_do_is_one_line(
    args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *args]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_the_sizes_to_choose_from_are_those_of_the_benchmark() -> None:
    assert list(speed.SETTINGS) == list(SIZES)
    assert list(encoders.PUBLISHED) == list(ENCODERS)


def rows_of(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]


def test_scaling_is_estimated_from_the_speeds_that_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--batch-size",
        "2",
        "--teraflops",
        "100",
        "--network",
        "25",
        "--nvlink",
        "100",
        "--clips-per-worker",
        "10",
    ]
    assert main(["benchmark", "scaling", *options]) == 0
    out = capsys.readouterr().out
    assert "100 TFLOP/s a GPU, 100 GB/s within a node, 25 GB/s between nodes,\n2 clips a GPU" in out
    rows = rows_of(out)
    assert ["ViT-B/16, 8 frames of 224²", "121.3 M", "1.07", "93", "21.4"] in rows
    assert ["ViT-B/16, 8 frames of 224²", "64", "0.95", "38.2", "59.6", "45.3"] in rows
    assert ["ViT-B/16, 24 frames of 224²", "8", "253", "26", "1.940", "0.243"] in rows
    for header in (row for row in rows if row[0] == "model"):
        assert len(header) <= 6
        assert all(cell in ("model", "GPUs", "parameters") or "(estimated)" in cell for cell in header)


def test_scaling_is_measured_in_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(name: str) -> processes.Scaling:
        return processes.Scaling(name, 4, [10.0, 12.0, 8.0], [15.0, 15.0, 16.0])

    monkeypatch.setattr(processes, "measure_work", lambda work, _: measured(work.name))
    monkeypatch.setattr(processes, "measure_workers", lambda *_: measured("loading"))
    assert main(["benchmark", "scaling", "--measure", "--repeats", "3"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows[2:]] == [*(work.name for work in processes.WORKS), "loading"]
    assert all(row[1:] == ["4", "10.0", "15.0", "1.50 (1.25 to 2.00)"] for row in rows[2:])


@pytest.mark.parametrize("option", ["--teraflops", "--nvlink", "--network", "--clips-per-worker"])
def test_a_speed_of_nothing_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "scaling", option, "0"]) == 1
    assert capsys.readouterr().err == f"error: {option} must be more than 0, got 0.0\n"


def test_the_defaults_of_scaling_are_its_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "scaling"]) == 0
    assert "\n\n".join(scaling_tables(scaling.DEFAULT_BATCH_SIZE, scaling.Assumptions())) in capsys.readouterr().out
