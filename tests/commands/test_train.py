import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diveparse.commands import __main__
from diveparse.commands.cli import main
from diveparse.configs import load_config, run_folder
from diveparse.engine.run import RunFolder

pytestmark = pytest.mark.usefixtures("quick_training_figures")


def test_an_epoch_is_one_line_with_its_arm_losses_accuracies_waiting_and_time(tiny_experiment, capsys, caplog):
    assert main(["train", str(tiny_experiment), "train.num_epochs=1"]) == 0
    (line,) = [message for message in caplog.messages if message.startswith("joint, epoch")]
    number = r"\d+\.\d{3}"
    scores = f"loss {number}, train top-1 {number}, val top-1 {number}, val nll {number}"
    assert re.fullmatch(rf"joint, epoch 1/1: {scores}, waited for data \d+\.\d %, \d+ s", line)
    captured = capsys.readouterr()
    assert "epoch 1/1" in captured.err  # the progress bar
    assert f"diveparse test {run_folder(load_config(tiny_experiment, []))}" in captured.out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train.bach_size=2"], "train.bach_size: Key 'bach_size' not in 'TrainConfig'. Did you mean: 'batch_size'?"),
        (["data.root=/nowhere"], "/nowhere"),
        (["head.kind=softmax"], "head.kind"),
        (["backbone.weights=/nowhere"], "/nowhere"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_1(tiny_experiment, capsys, arguments, complaint):
    assert main(["train", str(tiny_experiment), *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert complaint in line


def test_an_unreadable_clip_is_one_line_that_names_it_even_from_a_worker(tiny_experiment, tiny_root, tmp_path, capsys):
    root = tmp_path / "damaged"
    (root / "rgb").mkdir(parents=True)
    for path in tiny_root.glob("*.json"):
        (root / path.name).symlink_to(path)
    for path in (tiny_root / "rgb").iterdir():
        (root / "rgb" / path.name).write_bytes(path.read_bytes()[:100])
    for num_workers in (0, 1):
        overrides = [f"data.root={root}", f"data.num_workers={num_workers}", f"arm=workers{num_workers}"]
        assert main(["train", str(tiny_experiment), *overrides]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert ".mp4" in line
        assert "Traceback" not in line


def test_options_and_overrides_may_come_in_any_order(tiny_experiment, capsys):
    assert main(["train", str(tiny_experiment), "train.num_epochs=1", "--resume", "arm=other"]) == 0
    assert (run_folder(load_config(tiny_experiment, ["arm=other"])) / "model").is_dir()


def start_training(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, __main__.__file__, "train", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has them ignore Ctrl-C, and that would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def children_of(group: int) -> list[int]:
    """Live processes of a session, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(session) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_an_interrupted_training_takes_its_workers_along_and_leaves_a_run_to_resume(tiny_experiment):
    arguments = [tiny_experiment, "data.num_workers=2", "train.num_epochs=40", "train.log_every=999"]
    run = run_folder(load_config(tiny_experiment, []))
    process = start_training(*arguments)
    while RunFolder(run).newest_checkpoint() is None and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C does, to the workers too
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "--resume goes on" in errors
    assert RunFolder(run).newest_checkpoint() is not None
    deadline = time.monotonic() + 30
    while children_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children_of(process.pid)
