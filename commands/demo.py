"""The whole idea in one go: render dives, train a flat and a structured arm side by side, test, compare, predict.

--rehearsal SCALE does the same in the shape of the real Diving48: 640 x 480, the real names, sources, frame rates and
long tail, checked and cached by `diveparse prepare`; SCALE is the share of the real 16,997 clips. Steps that are done
are not done again. To start over, remove data/demo and runs/demo, or data/rehearsal and runs/rehearsal.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

CLI = Path(__file__).with_name("__main__.py")
ARMS = {"flat": "head.kind=flat", "structured": "head.kind=joint"}
# settings were chosen on the validation clips of seed 0; the test clips of this seed took part in no choice
CLIPS = ["--train-clips", "1500", "--test-clips", "282", "--test-counts", "balanced", "--height", "120", "--seed", "3"]
ONE_TRAINING = (
    "One training of each arm decides nothing about the arms: docs/RESULTS.md compares many trainings of each."
)
EXAMPLES = """\
examples:
  %(prog)s
  %(prog)s --rehearsal 0.04
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rehearsal", type=float, metavar="SCALE", help="in the shape of the real data set, such as 0.04"
    )
    parser.set_defaults(if_stopped="the same command goes on from here")


def run(args: argparse.Namespace) -> int:
    name = "demo" if args.rehearsal is None else "rehearsal"
    start_s = time.monotonic()
    try:
        reading = run_steps(name, Path("data") / name, args.rehearsal)
    except subprocess.CalledProcessError as error:
        raise ValueError(f"this step failed: diveparse {' '.join(error.cmd[2:])}") from error
    minutes = (time.monotonic() - start_s) / 60
    announce(f"Done in {minutes:.1f} minutes. Look at the curves: tensorboard --logdir runs/{name}")
    print(ONE_TRAINING)
    print(reading)
    return 0


def run_steps(name: str, data: Path, scale: float | None) -> str:
    """Returns: whether the structured arm read one test clip rightly, in a sentence.

    Raises: CalledProcessError of the step that failed.
    """
    from diveparse.commands.predict import in_words, opened_model
    from diveparse.datasets.dives import DIVING48, HEIGHTS_M
    from diveparse.datasets.diving48 import read_split
    from diveparse.engine.evaluation.predict import predict
    from diveparse.engine.run import RunFolder

    runs = {arm: Path("runs") / name / arm / "seed-0" for arm in ARMS}
    announce("1/5  Rendering labelled dives as H.264 clips, in the layout of Diving48")
    if scale is None:
        run_command("prepare", "synthetic", "--out", data, *CLIPS)
    else:
        run_command("prepare", "rehearsal", "--out", data, "--scale", scale)
        run_command("prepare", "diving48", data, "--evaluation-side", "64")
    announce("2/5  Training both arms side by side, one core each (the bar is the structured arm's)")
    run_side_by_side({arm: ("train", name, f"arm={arm}", ARMS[arm], "--resume") for arm in ARMS})
    announce("3/5  Testing both once, on clips of sources that training never saw")
    untested = [arm for arm in ARMS if not RunFolder(runs[arm]).evaluation().metrics.exists()]
    run_side_by_side({arm: ("test", runs[arm]) for arm in untested})
    announce("4/5  Comparing them")
    run_command("compare", *runs.values())
    clip = read_split(data, "test")[0]
    announce("5/5  Reading one test clip")
    model, dive_set = opened_model(runs["structured"], None)
    answer = predict(model, clip.path, HEIGHTS_M[-1], dive_set)
    print(in_words(answer))
    return reading_of(answer.number, DIVING48[clip.label].number, clip.path)


def reading_of(named: str | None, true: str, path: Path) -> str:
    """Whether a clip was read rightly. named: the dive number of the answer, or None where it is no dive."""
    if named == true:
        return f"{path} was read rightly: it shows {true}."
    return f"{path} was read wrongly: it shows {true}, and the answer is {named or 'no dive'}."


def announce(line: str) -> None:
    print(f"\n{line}", flush=True)


def command_line(*arguments: object) -> list[str]:
    """A command in a process of its own. By its file, since -m would put the working folder on the import path."""
    return [sys.executable, str(CLI), *map(str, arguments)]


def run_command(*arguments: object) -> None:
    subprocess.run(command_line(*arguments), check=True)


def run_side_by_side(jobs: Mapping[str, tuple[object, ...]]) -> None:
    """Run one command per arm at the same time, each on one thread: faster than one after the other on both cores.

    The progress of the last arm is shown, since two bars cannot share a line. Of the others, only the last line of an
    error is shown.
    Raises: CalledProcessError of an arm that failed, at once; the others are stopped, and can go on later.
    """
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    running: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as opened:
        errors = {arm: opened.enter_context(tempfile.TemporaryFile()) for arm in list(jobs)[:-1]}
        try:
            for arm, job in jobs.items():
                running[arm] = subprocess.Popen(command_line(*job), env=one_thread, stderr=errors.get(arm))
            while running:
                time.sleep(0.2)
                for arm in [arm for arm, child in running.items() if child.poll() is not None]:
                    code = running.pop(arm).returncode
                    if code and arm in errors:
                        errors[arm].seek(0)
                        print(*errors[arm].read().decode().splitlines()[-1:], file=sys.stderr)
                    if code:
                        raise subprocess.CalledProcessError(code, command_line(*jobs[arm]))
        finally:
            for child in running.values():
                child.terminate()
                child.wait()
