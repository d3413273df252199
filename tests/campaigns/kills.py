"""A campaign against sudden death: SIGKILL at random moments of trainings and of preparing, and then on to the end.

    python tests/campaigns/kills.py --seed 0 --count 100 --time-limit 3600

Needs Linux and its root user, or `unshare --map-root-user --mount`: each command gets a /dev/shm of its own, so that
what it leaves there can be told from what others put there. Every command is a real process with workers. It is killed
one to three times, at moments spread over what an undisturbed run takes from its first file to its end, and then goes
on as its message says. All files must then be those of the undisturbed run, to the bit, and no other; TensorBoard's
points too. No process and no shared memory may be left. Prints how many cases of each kind ended in which way. A moment
that came before anything was written is counted as early, one after the end as late, and neither as a kill. Exit code 1
if a case ended in any way but equal.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outcomes import Counts, report
from tqdm import tqdm
from workshop import SLOW_S, Command, Ended, content, differences, prepare_to_mount, write_inputs

OUTCOMES = ("kills", "early", "late", "equal", "different", "failed", "traceback", "hang", "left behind")
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Work:
    """A command that is killed. {} in its arguments is the folder that it reads and writes."""

    arguments: str
    goes_on: str = ""  # an argument more after a kill
    code: int = 0  # of a run to the end

    def command(self, folder: Path, *, again: bool = False) -> list[str]:
        words = self.arguments.split() + ([self.goes_on] if again and self.goes_on else [])
        return [word.replace("{}", str(folder)) for word in words]


SYNTHETIC = "prepare synthetic --out {}/set --train-clips 47 --test-clips 47 --test-counts balanced --height 48"
SIZES = "--training-frames 16 --training-side 48 --evaluation-frames 4 --evaluation-side 32"
WORKS = {
    "training": Work("train {}/tiny.yaml", "--resume"),
    "training, feature cache": Work("train {}/cached.yaml", "--resume"),
    "pretraining": Work("pretrain {}/pretraining.yaml", "--resume"),
    "preparing, clips": Work(f"prepare clips {{}}/clips.csv --workers 2 {SIZES}"),
    "preparing, diving48": Work(f"prepare diving48 {{}} --workers 2 {SIZES}"),
    "preparing, synthetic": Work(f"{SYNTHETIC} --workers 2"),
}


@dataclass
class Arena:
    """Where commands run, one at a time: `folder` with their files, `shm` with their shared memory, and their output.

    sound: the inputs, which each case begins with.
    """

    scratch: Path
    shm: Path
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.scratch / "case"
        write_inputs(self.folder)
        self.folder.rename(self.scratch / "sound")

    def begin(self) -> None:
        """Put the inputs, with the times of their files, where the last case was."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.scratch / "sound", self.folder)
        for path in self.shm.iterdir():
            path.unlink()

    def start(self, command: list[str]) -> Command:
        inside = f'mount --bind {self.shm} {SHARED_MEMORY} && exec "$@"'
        return Command(command, self.scratch, prefix=("unshare", "--mount", "sh", "-c", inside, "sh"))

    def stamps(self) -> dict[Path, tuple[int, int]]:
        """The size of each file and the time of its last change, in ns; a feature cache bears its videos' times."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {path: (path.stat().st_size, path.stat().st_ctime_ns) for path in paths}

    def shared_memory(self) -> list[str]:
        return [str(path.name) for path in self.shm.iterdir()]


@dataclass
class Undisturbed:
    first_write_s: float  # from its start
    length_s: float
    content: dict[str, Any]


def run_undisturbed(arena: Arena, work: Work) -> Undisturbed:
    """Raises: RuntimeError if it does not end well, so that the campaign would prove nothing."""
    arena.begin()
    before, start_ns = arena.stamps(), time.time_ns()
    running = arena.start(work.command(arena.folder))
    ended = running.end(limit_s=600)
    left = running.left_behind() + arena.shared_memory()
    if ended.code != work.code or left:
        raise RuntimeError(f"{work.arguments}: exit code {ended.code}, left {left}: {ended.errors[-1000:]}")
    first_ns = min(changed_ns for path, (_, changed_ns) in arena.stamps().items() if path not in before)
    return Undisturbed((first_ns - start_ns) / 1e9, ended.length_s, content(arena.folder))


def case(arena: Arena, work: Work, undisturbed: Undisturbed, rng: random.Random) -> tuple[Counter[str], str]:
    """Kill a command one to three times, then let it end. Returns: counts of OUTCOMES, and what to show of it."""
    arena.begin()
    counts: Counter[str] = Counter()
    for _ in range(rng.choice([1, 1, 2, 3])):
        moment, before = rng.uniform(undisturbed.first_write_s, undisturbed.length_s), arena.stamps()
        running = arena.start(work.command(arena.folder, again=bool(counts)))
        time.sleep(moment)
        is_late = running.process.poll() is not None
        running.process.kill()
        ended = running.end(limit_s=SLOW_S)
        outcome = what_is_wrong(arena, running, ended)  # waits for its workers, which may still write
        counts["late" if is_late else "early" if arena.stamps() == before else "kills"] += 1
        if outcome:
            return counts + Counter([outcome[0]]), f"after a kill at {moment:.2f} s: {outcome[1]}"
        if is_late:  # the machine has less to do than when the undisturbed run was timed
            undisturbed.length_s = min(undisturbed.length_s, ended.length_s)
            break
    else:
        running = arena.start(work.command(arena.folder, again=True))
        ended = running.end(limit_s=3 * undisturbed.length_s + SLOW_S)
        if outcome := what_is_wrong(arena, running, ended):
            return counts + Counter([outcome[0]]), outcome[1]
    if not counts["kills"]:  # it proves nothing
        return counts, ""
    if ended.code != work.code:
        return counts + Counter(["failed"]), f"exit code {ended.code}: {last_line(ended.errors)}"
    other = differences(content(arena.folder), undisturbed.content)
    return counts + Counter(["different" if other else "equal"]), "; ".join(other[:5])


def what_is_wrong(arena: Arena, running: Command, ended: Ended) -> tuple[str, str] | None:
    """(an outcome, what to show of it), if a command hung, printed a traceback or left anything."""
    processes = running.left_behind()
    if ended.code is None or processes:
        return "hang", f"still running: {processes or 'the command'}"
    if ended.has_traceback:
        return "traceback", last_line(ended.errors)
    if shared := arena.shared_memory():
        return "left behind", f"in {SHARED_MEMORY}: {', '.join(shared)}"
    return None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][-300:]


def campaign(names: list[str], seed: int, count: int, time_limit_s: float) -> tuple[Counts, list[str]]:
    """Returns: how many cases of each kind of work ended how, and a line for each that did not end equal."""
    counts: Counts = Counter()
    found, begun = [], time.monotonic()
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory(prefix="kills-", dir=SHARED_MEMORY) as shm,
    ):
        arena = Arena(Path(scratch), Path(shm))
        undisturbed = dict[str, Undisturbed]()
        for number in tqdm(range(count), unit="case", mininterval=5):
            if time.monotonic() - begun > time_limit_s:
                break
            name = names[number % len(names)]
            work = WORKS[name]
            if name not in undisturbed:
                undisturbed[name] = run_undisturbed(arena, work)
            outcomes, text = case(arena, work, undisturbed[name], random.Random(f"{name} {seed} {number}"))
            counts.update({(name, outcome): times for outcome, times in outcomes.items()})
            if text:
                found.append(f"{', '.join(outcomes)}: {name}, number {number}: {text}")
                tqdm.write(found[-1])
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="of cases, each of one to three kills")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds")
    parser.add_argument("--only", default="", help="the kinds whose names begin so, such as preparing")
    args = parser.parse_args()
    prepare_to_mount()
    logging.disable()  # TensorBoard's reader tells of every resumption
    names = [name for name in WORKS if name.startswith(args.only)]
    counts, found = campaign(names, args.seed, args.count, args.time_limit)
    return report("work", names, OUTCOMES, counts, found)


if __name__ == "__main__":
    sys.exit(main())
