"""The whole idea in one go: render dives, train a flat and a structured arm side by side, test, compare, predict.

What is already done is not done again; `rm -r data/demo runs/demo` starts over.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).parent
DATA, RUNS = Path("data/demo"), Path("runs/demo")
ARMS = {"flat": "head.kind=flat", "structured": "head.kind=joint"}
# seed 0 is the data that settings were chosen on
CLIPS = ["--train-clips", "1500", "--test-clips", "282", "--test-counts", "balanced", "--height", "120", "--seed", "1"]


def main() -> int:
    began = time.monotonic()
    runs = {arm: RUNS / arm / "seed-0" for arm in ARMS}
    try:
        say("1/5  Rendering labelled dives as H.264 clips, in the layout of Diving48")
        run("prepare.py", "synthetic", "--out", DATA, *CLIPS)
        say("2/5  Training both arms side by side, one core each (the bar is the structured arm's)")
        side_by_side({arm: ("train.py", "configs/demo.yaml", f"arm={arm}", ARMS[arm], "--resume") for arm in ARMS})
        say("3/5  Testing both once, on clips of sources that training never saw")
        untested = [arm for arm in ARMS if not (runs[arm] / "metrics.json").exists()]
        side_by_side({arm: ("test.py", runs[arm]) for arm in untested})
        say("4/5  Comparing them")
        run("compare.py", *runs.values())
        say("5/5  Reading one clip")
        run("predict.py", runs["structured"], sorted((DATA / "rgb").glob("*.mp4"))[0])
    except subprocess.CalledProcessError as error:
        print(f"error: this step failed: {' '.join(map(str, error.cmd[1:]))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: make demo goes on from here", file=sys.stderr)
        return 130
    say(f"Done in {(time.monotonic() - began) / 60:.1f} minutes. Look at the curves: make tensorboard (logs in {RUNS})")
    return 0


def say(line: str) -> None:
    print(f"\n{line}", flush=True)


def command(tool: str, *args: object) -> list[str]:
    return [sys.executable, str(TOOLS / tool), *map(str, args)]


def run(tool: str, *args: object) -> None:
    subprocess.run(command(tool, *args), check=True)


def side_by_side(jobs: dict[str, tuple[object, ...]]) -> None:
    """Run one job an arm at the same time, each on one thread: two cores do more so than with both on each job in turn.

    Raises: CalledProcessError of the first arm that failed, once both have ended.
    """
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = {}
    for arm, job in jobs.items():
        shown = None if arm == list(ARMS)[-1] else subprocess.DEVNULL  # two bars cannot share a line
        children[arm] = subprocess.Popen(command(*map(str, job)), env=one_thread, stderr=shown)
    try:
        codes = {arm: child.wait() for arm, child in children.items()}
    finally:
        for child in children.values():
            child.terminate()
    for arm, code in codes.items():
        if code:
            raise subprocess.CalledProcessError(code, command(*map(str, jobs[arm])))


if __name__ == "__main__":
    sys.exit(main())
