import json
from pathlib import Path

import pytest
import torch

from diveparse.commands.cli import main

TINY_PRETRAINING = """\
name: tiny
runs_dir: {runs}
clips_per_epoch: 4
num_easy_clips: 4
num_workers: 0
clip: {{num_frames: 2, image_size: 16}}
backbone: {{embed_dim: 8, depth: 1, num_heads: 2}}
train: {{num_epochs: 2, batch_size: 2}}
"""


@pytest.fixture
def tiny_pretraining(tmp_path: Path) -> Path:
    """A config file of a pretraining into `tmp_path/runs/tiny`: two epochs of two updates."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_PRETRAINING.format(runs=tmp_path / "runs"))
    return path


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that stands on its own, without the progress bar's."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "stopped: "))]
    return line


def test_it_runs_end_to_end_and_resuming_goes_on_where_it_was_interrupted(
    tiny_pretraining, interrupted_in_update, capsys
):
    run = tiny_pretraining.parent / "runs" / "tiny"
    assert main(["pretrain", str(tiny_pretraining), "name=whole"]) == 0
    whole = run.with_name("whole")
    assert capsys.readouterr().out.splitlines()[-1] == f"weights: {whole / 'backbone.safetensors'}"

    with interrupted_in_update(4):
        assert main(["pretrain", str(tiny_pretraining)]) == 130
    assert the_line(capsys) == "stopped: the same command with --resume goes on from the last checkpoint"
    assert torch.load(run / "checkpoint.pt", weights_only=True)["num_updates"] == 2
    assert not (run / "backbone.safetensors").exists()

    assert main(["pretrain", "--resume", str(tiny_pretraining), "seed=0"]) == 0  # options and overrides in any order
    assert (run / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert len(environment["resumed"]) == 1


def test_a_run_interrupted_before_its_first_checkpoint_begins_again(tiny_pretraining, interrupted_in_update):
    with interrupted_in_update(1):
        assert main(["pretrain", str(tiny_pretraining)]) == 130
    assert main(["pretrain", str(tiny_pretraining), "--resume"]) == 0


def test_a_loss_that_is_not_finite_is_one_line_that_names_the_clips(tiny_pretraining, capsys):
    largest = ["train.learning_rate=100", "train.head_learning_rate_factor=1e6"]
    assert main(["pretrain", str(tiny_pretraining), *largest]) == 1
    line = the_line(capsys)
    assert line.startswith(("error: loss is nan, ", "error: loss is inf, "))
    assert "in update 2; " in line
    assert "items 2, 3 of MotionClips" in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train.precision=fp16"], "train.precision"),
        (["clips_per_epoch=1"], "clips_per_epoch must be at least train.batch_size=2, got 1"),
        (["backbone.weights=/nowhere"], "/nowhere"),
        (["runs_dir=/dev/null"], "/dev/null"),  # no folder: an OSError
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_1(tiny_pretraining, capsys, arguments, complaint):
    assert main(["pretrain", str(tiny_pretraining), *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not (tiny_pretraining.parent / "runs").exists()


def test_a_damaged_checkpoint_is_one_line_that_names_it(tiny_pretraining, capsys):
    assert main(["pretrain", str(tiny_pretraining), "train.num_epochs=1"]) == 0
    checkpoint = tiny_pretraining.parent / "runs" / "tiny" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert main(["pretrain", str(tiny_pretraining), "train.num_epochs=1", "--resume"]) == 1
    assert f"{checkpoint}: not a checkpoint that this run can go on from" in the_line(capsys)
