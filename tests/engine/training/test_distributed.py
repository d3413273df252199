"""Several processes train, test and fill caches together, and come to what one process comes to."""

import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.configs import PretrainConfig, load_config, run_folder
from diveparse.datasets.storage.lock import locked
from diveparse.engine import distributed
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.termination import TERMINATED
from diveparse.engine.training.loop import train
from diveparse.engine.training.pretrain import pretrain
from diveparse.models.build import load_backbone

TRAIN = """
from diveparse.engine.training import loop
loop.train(load_config(Path({experiment!r}), {overrides!r}), resume=True)
"""
# by the command, which turns what happens into one line and an exit code
COMMAND = """
from diveparse.commands.__main__ import main
raise SystemExit(main({arguments!r}))
"""
# in its `update`-th update, one process is sent a signal
SIGNAL = """
from torch.optim.optimizer import register_optimizer_step_pre_hook
num_updates = 0
def send(*_):
    global num_updates
    num_updates += 1
    if num_updates == {update} and os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.{name})
register_optimizer_step_pre_hook(send)
"""
RunTogether = Callable[..., Any]  # of tests/engine/conftest.py
QUICK = ["pictures=false", "backbone.drop_path_rate=0"]


def training(experiment: Path, *overrides: str) -> str:
    return TRAIN.format(experiment=str(experiment), overrides=[*QUICK, *overrides])


def command(*arguments: object) -> str:
    return COMMAND.format(arguments=[str(argument) for argument in arguments])


def signalled(name: str, *, rank: int, update: int) -> str:
    return SIGNAL.format(name=name, rank=rank, update=update)


def folder_of(experiment: Path, *overrides: str) -> Path:
    return run_folder(load_config(experiment, [*QUICK, *overrides]))


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = run.glob("checkpoints/update-*/model.safetensors")
    return load_file(file)


def curves(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    timings = ("clips_per_second", "data_wait_share")
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(timings)]
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in tags}


def assert_same_to_rounding(run: Path, other: Path) -> None:
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=0, atol=1e-4)
    drawn = curves(run)
    assert drawn.keys() == curves(other).keys()
    for tag, points in curves(other).items():
        assert points == pytest.approx(drawn[tag], abs=1e-4), tag


@pytest.mark.parametrize(("number", "overrides"), [(2, []), (4, ["train.ema_decay=0.9", "train.class_balanced=true"])])
def test_any_number_of_processes_trains_what_one_does(
    number: int, overrides: list[str], tiny_experiment: Path, noiseless_run: Path, run_together: RunTogether
) -> None:
    one = noiseless_run
    if overrides:
        one = train(load_config(tiny_experiment, [*QUICK, "arm=alone", *overrides]))
    ended = run_together(number, training(tiny_experiment, *overrides))
    assert ended.exit_codes == [0] * number, ended.outputs
    assert_same_to_rounding(folder_of(tiny_experiment, *overrides), one)


def test_a_sharded_model_trains_as_a_whole_one_does(tiny_experiment: Path, run_together: RunTogether) -> None:
    averaged = "train.ema_decay=0.9"
    alone = train(load_config(tiny_experiment, [*QUICK, averaged, "arm=alone"]))
    sharded = (averaged, "train.shard=full")
    script = command("train", tiny_experiment, *QUICK, *sharded, "--resume")
    stopped = run_together(2, signalled("SIGTERM", rank=1, update=3) + script)
    assert stopped.exit_codes == [TERMINATED] * 2, stopped.outputs
    (shards,) = folder_of(tiny_experiment, *sharded).glob("checkpoints/update-*/shards")
    assert len(list(shards.glob("*.distcp"))) == 2
    ended = run_together(4, script)
    assert ended.exit_codes == [0] * 4, ended.outputs
    run = folder_of(tiny_experiment, *sharded)
    whole, parts = (load_file(each / "model" / "model.safetensors") for each in (alone, run))
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        torch.testing.assert_close(values, parts[name], rtol=0, atol=1e-4)
    drawn = curves(alone)
    for tag, points in curves(run).items():
        assert points == pytest.approx(drawn[tag], abs=1e-4), tag


def test_processes_of_a_sharded_model_may_have_different_numbers_of_batches_to_validate(
    tiny_experiment: Path, run_together: RunTogether
) -> None:
    uneven = ["train.batch_size=6", "train.accumulation_steps=1", "train.num_epochs=1", "test.batch_size=2"]  # 2, 2, 1
    alone = train(load_config(tiny_experiment, [*QUICK, *uneven, "arm=alone"]))
    ended = run_together(3, training(tiny_experiment, *uneven, "train.shard=full"))
    assert ended.exit_codes == [0] * 3, ended.outputs
    drawn = curves(folder_of(tiny_experiment, *uneven, "train.shard=full"))
    for tag, points in curves(alone).items():
        assert drawn[tag] == pytest.approx(points, abs=1e-4), tag


def test_a_run_goes_on_with_another_number_of_processes(
    tiny_experiment: Path, noiseless_run: Path, run_together: RunTogether
) -> None:
    script = command("train", tiny_experiment, *QUICK, "--resume")
    for number, update in ((1, 3), (2, 2)):
        ended = run_together(number, signalled("SIGTERM", rank=number - 1, update=update) + script)
        assert ended.exit_codes == [TERMINATED] * number, ended.outputs
        assert (
            ended.outputs[0].splitlines()[-1]
            == "stopped: the same command with --resume goes on from the last checkpoint"
        )
        assert not ended.outputs[1:] or "stopped" not in ended.outputs[1]
    assert list(weights(folder_of(tiny_experiment)))
    train(load_config(tiny_experiment, QUICK), resume=True)
    assert_same_to_rounding(folder_of(tiny_experiment), noiseless_run)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_process_is_killed_the_other_ends_and_both_go_on_to_the_same_bits(
    rank: int, tiny_experiment: Path, run_together: RunTogether, assert_same_run: Callable[[Path, Path], None]
) -> None:
    """With dropped paths, whose random numbers each process has of its own."""
    noisy = "backbone.drop_path_rate=0.1"
    whole = run_together(2, training(tiny_experiment, noisy, "arm=whole"))
    assert whole.exit_codes == [0, 0], whole.outputs
    script = command(
        "train", tiny_experiment, *QUICK, noisy, "arm=whole", f"runs_dir={tiny_experiment.parent}/again", "--resume"
    )
    killed = run_together(2, signalled("SIGKILL", rank=rank, update=4) + script)
    assert killed.exit_codes[rank] == -signal.SIGKILL
    assert killed.exit_codes[1 - rank] == 1
    prefix = "" if rank else "process 1: "
    assert killed.outputs[1 - rank].splitlines()[-1].startswith(f"error: {prefix}another process of this run has ended")
    ended = run_together(2, script)
    assert ended.exit_codes == [0, 0], ended.outputs
    again = tiny_experiment.parent / "again" / "tiny" / "whole" / "seed-0"
    assert_same_run(again, folder_of(tiny_experiment, noisy, "arm=whole"))


def test_a_pretraining_is_the_same_on_any_number_of_processes(tmp_path: Path, run_together: RunTogether) -> None:
    sizes = "clip.num_frames=4 clip.image_size=32 backbone.embed_dim=16 backbone.depth=2 backbone.num_heads=2"
    options = [*sizes.split(), "clips_per_epoch=4", "num_workers=0", "train.batch_size=4", "train.num_epochs=3"]
    config = tmp_path / "tiny.yaml"
    config.write_text(f"name: alone\nruns_dir: {tmp_path / 'runs'}\n")
    alone = load_backbone(
        str(pretrain(load_config(config, options, PretrainConfig), resume=False)),
        load_config(config, options, PretrainConfig).backbone,
        num_frames=4,
        image_size=32,
    ).state_dict()
    script = command("pretrain", config, *options, "name=together", "--resume")
    stopped = run_together(2, signalled("SIGTERM", rank=1, update=2) + script)
    assert stopped.exit_codes == [TERMINATED] * 2, stopped.outputs
    ended = run_together(4, script)
    assert ended.exit_codes == [0] * 4, ended.outputs
    together = load_file(tmp_path / "runs" / "together" / "backbone.safetensors")
    for name, values in alone.items():
        torch.testing.assert_close(values, together[name].float(), rtol=0, atol=2e-3)  # kept in half precision


def test_every_number_of_processes_gives_the_same_predictions(
    tiny_experiment: Path, noiseless_run: Path, run_together: RunTogether
) -> None:
    runs = {
        number: tiny_experiment.parent / "runs" / "tiny" / f"tested-{number}" / "seed-0" for number in (1, 2, 3, 13)
    }
    for run in runs.values():
        shutil.copytree(noiseless_run, run)
    evaluate_run(runs[1], [], split="test")
    expected = load_file(runs[1] / "predictions.safetensors")
    for number in (2, 3, 13):  # of twelve clips, so that one has nothing to do
        ended = run_together(number, command("test", runs[number]))
        assert ended.exit_codes == [0] * number, ended.outputs
        assert "12 test clips" in ended.outputs[0]
        tested = load_file(runs[number] / "predictions.safetensors")
        assert all(torch.equal(values, tested[name]) for name, values in expected.items())
        rows = [(run / "predictions.csv").read_text() for run in (runs[1], runs[number])]
        assert rows[0] == rows[1]


def test_processes_fill_a_feature_cache_together(
    tiny_experiment: Path, tiny_root: Path, noiseless_run: Path, run_together: RunTogether
) -> None:
    backbone = tiny_experiment.parent / "backbone"
    shutil.copytree(noiseless_run / "model", backbone)
    frozen = [f"backbone.weights={backbone}", "backbone.num_frozen_blocks=1", "train.num_cached_views=2"]
    alone = train(load_config(tiny_experiment, [*QUICK, *frozen, "arm=alone"]))
    caches = {path: path.read_bytes() for path in (tiny_root / "cache").rglob("*.npy")}
    shutil.rmtree(tiny_root / "cache")
    ended = run_together(2, training(tiny_experiment, *frozen))
    assert ended.exit_codes == [0, 0], ended.outputs
    again = {path: path.read_bytes() for path in (tiny_root / "cache").rglob("*.npy")}
    shutil.rmtree(tiny_root / "cache")
    assert caches
    assert again == caches
    assert_same_to_rounding(folder_of(tiny_experiment, *frozen), alone)


def test_a_loss_that_is_not_finite_in_one_process_is_reported_by_the_first(
    tiny_experiment: Path, run_together: RunTogether
) -> None:
    spoilt = """
from diveparse.engine.training import update
right = update.compute_loss
def wrong(model, batch, *more):
    loss, terms, num_correct = right(model, batch, *more)
    factor = float("nan") if os.environ["RANK"] == "1" else 1.0
    return loss * factor, {name: value * factor for name, value in terms.items()}, num_correct
update.compute_loss = wrong
"""
    ended = run_together(2, spoilt + command("train", tiny_experiment, *QUICK))
    assert ended.exit_codes == [1, 1]
    last = ended.outputs[0].splitlines()[-1]
    assert last.startswith(
        "error: the loss is nan in update 1; the weights are as the update before left them. Clips: tiny"
    )
    assert last.count("tinysourc") == 4  # of the second process alone, in its two batches of two
    assert "error" not in ended.outputs[1]


def test_what_a_user_got_wrong_is_one_line_of_the_first_process(
    tiny_experiment: Path, run_together: RunTogether
) -> None:
    ended = run_together(3, command("train", tiny_experiment, *QUICK), ends_others=True)
    assert ended.exit_codes == [1, None, None]
    assert ended.outputs[0] == (
        "error: train.batch_size=4 is the batch of all processes together, and 3 of them cannot share it evenly; "
        "change it or --nproc-per-node\n"
    )
    assert ended.outputs[1:] == ["", ""]
    assert not folder_of(tiny_experiment).exists()


def test_two_jobs_in_one_run_folder_are_one_too_many(tiny_experiment: Path, run_together: RunTogether) -> None:
    with locked(folder_of(tiny_experiment), "training"):
        ended = run_together(2, command("train", tiny_experiment, *QUICK), ends_others=True)
    assert ended.exit_codes == [1, None]
    assert "training" in ended.outputs[0]
    assert ended.outputs[0].startswith(f"error: {folder_of(tiny_experiment)}")
    assert len(ended.outputs[0].splitlines()) == 1


def test_a_command_that_processes_cannot_share_is_refused(run_together: RunTogether) -> None:
    ended = run_together(2, command("experiment", "ladder"))
    assert ended.exit_codes == [1, 1]
    assert ended.outputs == [
        "error: torchrun can start train, test, pretrain; start diveparse experiment without it\n",
        "",
    ]


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(distributed, "SECONDS_TO_REPORT", 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"started 3 processes on a machine with 2 GPU\(s\), and each takes one"):
        distributed.require_own_gpu()


def test_torchrun_starts_a_killed_training_again_and_it_goes_on(tiny_experiment: Path, noiseless_run: Path) -> None:
    script = tiny_experiment.with_name("job.py")
    deadly = signalled("SIGKILL", rank=1, update=4)
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\n"
        f"if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n{textwrap.indent(deadly, '    ')}"
        "from diveparse.commands.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    arguments = ["train", str(tiny_experiment), *QUICK, "--resume"]
    ended = subprocess.run([*torchrun, str(script), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "2 of 8 updates done" in ended.stdout
    assert_same_to_rounding(folder_of(tiny_experiment), noiseless_run)
