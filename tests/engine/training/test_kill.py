"""A run that the kernel kills (SIGKILL: no handler, no clean-up) goes on as if nothing had happened."""

import multiprocessing
import random
import signal
from pathlib import Path

import pytest

from diveparse.configs import load_config, run_folder

NEVER = 0
# Runs in a process of its own. Drawing 48 x 48 cells would take longer than training the tiny model.
CHILD = """
import os, signal
from pathlib import Path
from matplotlib.figure import Figure
from diveparse.configs import load_config
from diveparse.engine.evaluation import tensorboard as evaluation_tensorboard
from diveparse.engine.training import tensorboard as training_tensorboard
from diveparse.engine.training import loop

evaluation_tensorboard.confusion_figure = lambda *_, **__: Figure(figsize=(1, 1))
training_tensorboard.class_count_figure = evaluation_tensorboard.confusion_figure
num_calls = 0

def deadly(function):
    def call(*arguments, **options):
        global num_calls
        num_calls += 1
        if num_calls == {deadly_call}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

os.fsync, Path.rename, Path.replace = deadly(os.fsync), deadly(Path.rename), deadly(Path.replace)
loop.train(load_config(Path({experiment!r}), []), resume=True)
"""


def start(experiment: Path, deadly_call: int = NEVER) -> multiprocessing.Process:
    """Train in a process of its own, which kills itself at its `deadly_call`-th call that writes to the disk."""
    context = multiprocessing.get_context("forkserver")  # forking this process, with torch's threads, could hang
    script = CHILD.format(experiment=str(experiment), deadly_call=deadly_call)
    process = context.Process(target=exec, args=(script, {}))
    process.start()
    return process


@pytest.fixture
def whole(tiny_experiment: Path) -> Path:
    """The folder of the same run, never stopped."""
    experiment = tiny_experiment.with_name("whole.yaml")
    experiment.write_text(tiny_experiment.read_text().replace("name: tiny", "name: whole"))
    process = start(experiment)
    process.join()
    assert process.exitcode == 0
    return run_folder(load_config(experiment, []))


def test_killed_while_writing_each_file_in_turn_a_run_comes_out_the_same(tiny_experiment, whole, assert_same_run):
    # the config and the environment, each write of the first checkpoint, the best model and the second one, to the end
    for deadly_call in (1, 2, 5, 4, 5, 6, 7, 8, 9, 4, 5, 6, 9, 11, 14, NEVER):
        process = start(tiny_experiment, deadly_call)
        process.join()
        assert process.exitcode == (0 if deadly_call == NEVER else -signal.SIGKILL)
    assert_same_run(run_folder(load_config(tiny_experiment, [])), whole)


def test_killed_at_random_moments_a_run_comes_out_the_same(tiny_experiment, whole, assert_same_run):
    moments = random.Random(0)
    for attempt in range(1, 30):
        process = start(tiny_experiment)
        process.join(timeout=moments.uniform(0, 0.1 * 1.5**attempt))  # ever longer, however slow the machine is
        process.kill()  # does nothing to a process that is done
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert attempt > 2
    assert_same_run(run_folder(load_config(tiny_experiment, [])), whole)
