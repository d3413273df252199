"""A campaign against full disks: each command on a disk that has too little space, by a random number of bytes.

    python tests/campaigns/full_disks.py --seed 0 --count 100 --time-limit 3600

Needs Linux and the right to mount a disk, which the root user has, or `unshare --map-root-user --mount`: a limit on the
size of files is not the same. A disk in memory holds the inputs and all that a command writes, and is made so small
that between none and all of what an undisturbed run needs is free. The command must end with exit code 1 within 20 s of
its usual time, in one line that names a path of the disk and says to free some space. Then the disk is made larger,
and the same command, with --resume where the line says so, must end well, with the files of an undisturbed run. Prints
how many cases of each kind ended in which way; those for which the space was enough do not count as full. Exit code 1
if a case ended in any way but these two.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outcomes import Counts, report
from tqdm import tqdm
from workshop import SLOW_S, Command, Ended, content, differences, error_lines, prepare_to_mount, write_inputs

OUTCOMES = ("full", "enough", "different", "failed", "unclear", "traceback", "hang")
PAGE_BYTES = 4096
LARGE_BYTES = 2**28


@dataclass(frozen=True)
class Work:
    """A command that needs space. {} in its arguments is the disk.

    first: commands that come before it, with enough space. output: the file on the disk that its output goes to.
    copies: the folder that has to be moved before the command can start again, as its line says.
    """

    arguments: str
    first: tuple[str, ...] = ()
    output: str | None = None
    copies: str | None = None
    num_errors: int = 1  # lines, at most


TRAINED, FLAT = "train {}/tiny.yaml", "train {}/tiny.yaml arm=flat head.kind=flat"
RUN, FLAT_RUN = "{}/runs/tiny/joint/seed-0", "{}/runs/tiny/flat/seed-0"
TESTED = (TRAINED, f"test {RUN}", FLAT, f"test {FLAT_RUN}")
VIDEOS = " ".join(f"{{}}/rgb/tinysourc{source:02d}_{number:05d}.mp4" for source in (6, 7) for number in range(4))
SIZES = "--training-frames 16 --training-side 48 --evaluation-frames 4 --evaluation-side 32"
SYNTHETIC = "prepare synthetic --out {}/set --train-clips 47 --test-clips 47 --test-counts balanced --height 48"
WORKS = {
    "train": Work(TRAINED),
    "train, feature cache": Work("train {}/cached.yaml"),
    "pretrain": Work("pretrain {}/pretraining.yaml"),
    "test": Work(f"test {RUN}", (TRAINED,)),
    "prepare clips": Work(f"prepare clips {{}}/clips.csv --workers 2 {SIZES}"),
    "prepare diving48": Work(f"prepare diving48 {{}} --workers 2 {SIZES}"),
    "prepare synthetic": Work(f"{SYNTHETIC} --workers 2"),
    "predict --csv": Work(f"predict {RUN} {VIDEOS} --csv", (TRAINED,), output="answers.csv"),
    "predict --save-video": Work(f"predict {RUN} {VIDEOS} --save-video {{}}/copies", (TRAINED,), copies="copies"),
    "compare": Work(f"compare {RUN} {FLAT_RUN} --out {{}}/compared", TESTED),
    "experiment": Work("experiment {}/both.yaml --jobs 2 --out {}/results", num_errors=4),
}


@dataclass
class Disk:
    """A disk in memory. Its size can be changed while it holds files."""

    folder: Path

    def num_used_bytes(self) -> int:
        return shutil.disk_usage(self.folder).used

    def resize(self, num_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(self.folder)], check=True)

    def begin(self, files: Path) -> None:
        """Hold these files, with their times, and nothing else."""
        self.resize(LARGE_BYTES)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(files, self.folder, dirs_exist_ok=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LARGE_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass
class Bench:
    """Where commands run: the disk, and a folder of another disk with their output and the inputs of each work."""

    disk: Disk
    scratch: Path
    made: dict[tuple[str, ...], Path] = field(init=False)  # the files that come from the inputs and these commands

    def __post_init__(self) -> None:
        self.made = {(): self.scratch / "inputs"}

    def run(self, arguments: str, *, limit_s: float = 600, output: str | None = None, resume: bool = False) -> Ended:
        words = [word.replace("{}", str(self.disk.folder)) for word in arguments.split()]
        path = None if output is None else self.disk.folder / output
        running = Command([*words, *(["--resume"] if resume else [])], self.scratch, output=path)
        ended = running.end(limit_s)
        left = running.left_behind()
        return Ended(None, ended.output, f"left {left}", ended.length_s) if left else ended

    def inputs(self, first: tuple[str, ...]) -> Path:
        """A folder with what the commands that come first write, made once."""
        if first not in self.made:
            self.disk.begin(self.inputs(first[:-1]))
            self.require_well(first[-1], self.run(first[-1]))
            self.made[first] = self.scratch / f"inputs-{len(self.made)}"
            shutil.copytree(self.disk.folder, self.made[first])
        return self.made[first]

    def require_well(self, arguments: str, ended: Ended) -> None:
        """Raises: RuntimeError if a command does not end well with enough space: the campaign would prove nothing."""
        if ended.code != 0:
            raise RuntimeError(f"{arguments}: exit code {ended.code}: {ended.errors[-1000:]}")


@dataclass
class Undisturbed:
    length_s: float
    num_bytes: int  # that it has written
    content: dict[str, Any]


def run_undisturbed(bench: Bench, work: Work) -> Undisturbed:
    bench.disk.begin(bench.inputs(work.first))
    before = bench.disk.num_used_bytes()
    ended = bench.run(work.arguments, output=work.output)
    bench.require_well(work.arguments, ended)
    return Undisturbed(ended.length_s, bench.disk.num_used_bytes() - before, content(bench.disk.folder))


def case(bench: Bench, work: Work, undisturbed: Undisturbed, num_free_bytes: int) -> tuple[str, str]:
    """Returns: (one of OUTCOMES, what to show if it is a failure)."""
    disk = bench.disk
    disk.begin(bench.inputs(work.first))
    disk.resize(disk.num_used_bytes() + num_free_bytes)
    limit_s = 3 * undisturbed.length_s + SLOW_S
    ended = bench.run(work.arguments, limit_s=limit_s, output=work.output)
    lines = error_lines(ended)
    if ended.code is None:
        return "hang", f"more than {limit_s:.0f} s: {ended.errors[-200:]}"
    if ended.has_traceback:
        return "traceback", ended.errors.strip().splitlines()[-1][-300:]
    outcome = "enough" if ended.code == 0 else "full"
    if outcome == "full":
        if problem := unclear(lines, work, disk.folder):
            return "unclear", f"{problem}: {' | '.join(lines)}"
        disk.resize(LARGE_BYTES)
        if work.copies is not None:
            shutil.rmtree(disk.folder / work.copies, ignore_errors=True)
        resume = "--resume" in lines[-1]
        ended = bench.run(work.arguments, limit_s=limit_s, output=work.output, resume=resume)
        if ended.code != 0:
            return "failed", f"exit code {ended.code} with space: {(error_lines(ended) or [ended.errors[-200:]])[-1]}"
    other = differences(content(disk.folder), undisturbed.content)
    return ("different", f"{outcome}, and then: {'; '.join(other[:5])}") if other else (outcome, "")


def unclear(lines: list[str], work: Work, disk: Path) -> str | None:
    """What is wrong with the error of a full disk, if anything."""
    if not 1 <= len(lines) <= work.num_errors:
        return f"{len(lines)} lines"
    if not any(str(disk) in line or (work.output and "standard output" in line) for line in lines):
        return "no path"
    return None if any("free some space" in line for line in lines) else "not how to go on"


def campaign(names: list[str], seed: int, count: int, time_limit_s: float) -> tuple[Counts, list[str]]:
    """Returns: how many cases of each kind of work ended how, and a line for each that failed."""
    counts: Counts = Counter()
    found, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, mounted(Path(scratch) / "disk") as disk:
        bench, undisturbed = Bench(disk, Path(scratch)), dict[str, Undisturbed]()
        write_inputs(disk.folder)
        shutil.copytree(disk.folder, bench.made[()])
        for number in tqdm(range(count), unit="case", mininterval=5):
            if time.monotonic() - begun > time_limit_s:
                break
            name = names[number % len(names)]
            if name not in undisturbed:
                undisturbed[name] = run_undisturbed(bench, WORKS[name])
            share = random.Random(f"{name} {seed} {number}").uniform(0, 1.05)
            num_free_bytes = round(share * undisturbed[name].num_bytes / PAGE_BYTES) * PAGE_BYTES
            outcome, text = case(bench, WORKS[name], undisturbed[name], num_free_bytes)
            counts[name, outcome] += 1
            if text:
                found.append(f"{outcome}: {name}, number {number}, {num_free_bytes} bytes free: {text}")
                tqdm.write(found[-1])
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="of cases")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds")
    parser.add_argument("--only", default="", help="the commands that begin so, such as prepare")
    args = parser.parse_args()
    prepare_to_mount()
    logging.disable()  # TensorBoard's reader tells of every resumption
    names = [name for name in WORKS if name.startswith(args.only)]
    counts, found = campaign(names, args.seed, args.count, args.time_limit)
    return report("command", names, OUTCOMES, counts, found)


if __name__ == "__main__":
    sys.exit(main())
