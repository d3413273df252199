"""The whole idea in one go: render dives, train a flat and a structured arm side by side, test, compare, predict.

`--rehearsal SCALE` does the same at the shape of the real Diving48: 640 x 480, the real names, sources, frame rates and
long tail, checked and cached by prepare.py; SCALE is the share of the real 16,997 clips. What is already done is not
done again; `rm -r data/demo runs/demo`, or `rm -r data/rehearsal runs/rehearsal`, starts over.
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

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split

TOOLS = Path(__file__).parent
ARMS = {"flat": "head.kind=flat", "structured": "head.kind=joint"}
# settings were chosen on the validation clips of seed 0; the test clips of this seed took part in no choice
CLIPS = ["--train-clips", "1500", "--test-clips", "282", "--test-counts", "balanced", "--height", "120", "--seed", "3"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rehearsal", type=float, metavar="SCALE", help="at the shape of the real data set, such as 0.04"
    )
    scale = parser.parse_args(argv).rehearsal
    name = "demo" if scale is None else "rehearsal"
    data = Path("data") / name
    runs = {arm: Path("runs") / name / arm / "seed-0" for arm in ARMS}
    began = time.monotonic()
    try:
        say("1/5  Rendering labelled dives as H.264 clips, in the layout of Diving48")
        if scale is None:
            run("prepare.py", "synthetic", "--out", data, *CLIPS)
        else:
            run("prepare.py", "rehearsal", "--out", data, "--scale", scale)
            run("prepare.py", "diving48", data, "--evaluation-side", "64")
        say("2/5  Training both arms side by side, one core each (the bar is the structured arm's)")
        config = f"configs/{name}.yaml"
        side_by_side({arm: ("train.py", config, f"arm={arm}", ARMS[arm], "--resume") for arm in ARMS})
        say("3/5  Testing both once, on clips of sources that training never saw")
        untested = [arm for arm in ARMS if not (runs[arm] / "metrics.json").exists()]
        side_by_side({arm: ("test.py", runs[arm]) for arm in untested})
        say("4/5  Comparing them")
        run("compare.py", *runs.values())
        unseen = read_split(data, "test")[0]
        say(f"5/5  Reading one test clip, which shows {DIVING48[unseen.label].number}")
        run("predict.py", runs["structured"], unseen.path)
    except subprocess.CalledProcessError as error:
        print(f"error: this step failed: {' '.join(map(str, error.cmd[1:]))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    minutes = (time.monotonic() - began) / 60
    say(f"Done in {minutes:.1f} minutes. Look at the curves: make tensorboard (logs in runs/{name})")
    return 0


def say(line: str) -> None:
    print(f"\n{line}", flush=True)


def command(tool: str, *args: object) -> list[str]:
    return [sys.executable, str(TOOLS / tool), *map(str, args)]


def run(tool: str, *args: object) -> None:
    subprocess.run(command(tool, *args), check=True)


def side_by_side(jobs: Mapping[str, tuple[object, ...]]) -> None:
    """Run one job an arm at the same time, each on one thread: two cores do more so than with both on each job in turn.

    The last arm's progress is shown, since two bars cannot share a line; of the others, what they say when they fail.
    Raises: CalledProcessError of an arm that failed, at once; the others are stopped, and can go on later.
    """
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    running: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as opened:
        errors = {arm: opened.enter_context(tempfile.TemporaryFile()) for arm in list(jobs)[:-1]}
        try:
            for arm, job in jobs.items():
                running[arm] = subprocess.Popen(command(*map(str, job)), env=one_thread, stderr=errors.get(arm))
            while running:
                time.sleep(0.2)
                for arm in [arm for arm, child in running.items() if child.poll() is not None]:
                    code = running.pop(arm).returncode
                    if code and arm in errors:
                        errors[arm].seek(0)
                        print(*errors[arm].read().decode().splitlines()[-1:], file=sys.stderr)
                    if code:
                        raise subprocess.CalledProcessError(code, command(*map(str, jobs[arm])))
        finally:
            for child in running.values():
                child.terminate()
                child.wait()


if __name__ == "__main__":
    sys.exit(main())
