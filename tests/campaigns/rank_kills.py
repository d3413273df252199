"""A campaign against the death of one process among several: SIGKILL of a random rank at a random moment.

    python tests/campaigns/rank_kills.py --seed 0 --count 30 --time-limit 1800

Two processes train one model. One is killed, or both are, one to three times in a case. The other must end by itself,
with one line and within 20 seconds; where the two had not met yet, after SIGTERM, which `torchrun` would send. Then two
processes go on. All files must be those of two processes that were never disturbed, to the bit, and no other;
TensorBoard's points too. Prints how many cases of each kind ended in which way. A moment after the end is counted as
late. Exit code 1 if a case ended in any way but equal.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from outcomes import Counts, report
from tqdm import tqdm
from workshop import SLOW_S, Command, Ended, content, differences, error_lines, write_inputs

WORLD_SIZE = 2
SHARE_OF_BOTH = 0.2  # of the kills
ENDS = (
    1,
    -signal.SIGTERM,
    -signal.SIGKILL,
    0,
)  # exit codes; 0 of one that had passed the end when the other was killed
OUTCOMES = ("kills", "late", "equal", "different", "failed", "traceback", "hang")
WORKS = {
    "data parallel": "train {}/tiny.yaml --resume",
    "sharded": "train {}/tiny.yaml train.shard=full --resume",
    "feature cache": "train {}/cached.yaml --resume",
    "pretraining": "pretrain {}/pretraining.yaml --resume",
}


def start(work: str, folder: Path, scratch: Path) -> list[Command]:
    """The processes of a run, in the order of ranks."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    commands = []
    for rank in range(WORLD_SIZE):
        (own := scratch / str(rank)).mkdir(exist_ok=True)
        environment = {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE)},
            **{"LOCAL_WORLD_SIZE": str(WORLD_SIZE), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
            "TORCHELASTIC_RUN_ID": "campaign",
        }
        arguments = [word.replace("{}", str(folder)) for word in work.split()]
        commands.append(Command(arguments, own, environment=environment))
    return commands


def end_all(commands: list[Command], limit_s: float) -> list[Ended]:
    end = time.monotonic() + limit_s
    return [command.end(max(end - time.monotonic(), 0.1)) for command in commands]


def ends(command: Command, limit_s: float) -> bool:
    """Whether it ends by itself in time."""
    try:
        command.process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def begin(folder: Path, sound: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)


def case(
    work: str, folder: Path, scratch: Path, undisturbed: tuple[float, dict[str, Any]], rng: random.Random
) -> tuple[Counter[str], str]:
    """Kill a rank one to three times, then let the run end. Returns: counts of OUTCOMES, and what to show of it."""
    length_s, expected = undisturbed
    counts: Counter[str] = Counter()
    for _ in range(rng.choice([1, 1, 2, 3])):
        moment, rank = rng.uniform(0.2, 1) * length_s, rng.randrange(WORLD_SIZE)
        commands = start(work, folder, scratch)
        time.sleep(moment)
        is_late = any(command.process.poll() is not None for command in commands)
        commands[rank].process.kill()
        if rng.random() < SHARE_OF_BOTH:
            commands[1 - rank].process.kill()
        elif not ends(commands[1 - rank], SLOW_S):
            commands[1 - rank].process.terminate()
        ended = end_all(commands, SLOW_S)
        counts["late" if is_late else "kills"] += 1
        other = ended[1 - rank]
        if other.code is None:
            return counts + Counter(["hang"]), f"rank {rank} killed at {moment:.2f} s: the other did not end"
        if other.has_traceback:
            return counts + Counter(["traceback"]), other.errors[-300:]
        if not is_late and (other.code not in ENDS or (other.code == 1 and len(error_lines(other)) != 1)):
            return counts + Counter(["failed"]), f"exit code {other.code} of the other: {other.errors[-300:]}"
    ended = end_all(start(work, folder, scratch), 3 * length_s + SLOW_S)
    if any(each.code != 0 for each in ended):
        return counts + Counter(["failed"]), "; ".join(f"exit code {each.code}: {each.errors[-300:]}" for each in ended)
    found = differences(content(folder), expected)
    return counts + Counter(["different" if found else "equal"]), "; ".join(found[:5])


def campaign(names: list[str], seed: int, count: int, time_limit_s: float) -> tuple[Counts, list[str]]:
    """Returns: how many cases of each kind of work ended how, and a line for each that did not end equal."""
    counts: Counts = Counter()
    found, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        scratch, folder, sound = Path(root), Path(root) / "case", Path(root) / "sound"
        write_inputs(folder)
        folder.rename(sound)
        undisturbed = dict[str, tuple[float, dict[str, Any]]]()
        for number in tqdm(range(count), unit="case", mininterval=5):
            if time.monotonic() - begun > time_limit_s:
                break
            name = names[number % len(names)]
            if name not in undisturbed:
                begin(folder, sound)
                ended = end_all(start(WORKS[name], folder, scratch), 600)
                if any(each.code != 0 for each in ended):
                    raise RuntimeError(f"{name}: {[each.errors[-1000:] for each in ended]}")
                undisturbed[name] = (max(each.length_s for each in ended), content(folder))
            begin(folder, sound)
            rng = random.Random(f"{name} {seed} {number}")
            outcomes, text = case(WORKS[name], folder, scratch, undisturbed[name], rng)
            counts.update({(name, outcome): times for outcome, times in outcomes.items()})
            if text:
                found.append(f"{', '.join(outcomes)}: {name}, number {number}: {text}")
                tqdm.write(found[-1])
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30, help="of cases, each of one to three kills")
    parser.add_argument("--time-limit", type=float, default=1800, help="seconds")
    parser.add_argument("--only", default="", help="the kinds whose names begin so, such as sharded")
    args = parser.parse_args()
    logging.disable()  # TensorBoard's reader tells of every resumption
    names = [name for name in WORKS if name.startswith(args.only)]
    counts, found = campaign(names, args.seed, args.count, args.time_limit)
    return report("work", names, OUTCOMES, counts, found)


if __name__ == "__main__":
    sys.exit(main())
