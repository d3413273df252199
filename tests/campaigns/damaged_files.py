"""A campaign against all that people hand in: videos, weights, JSON, annotations, archives, checkpoints, dive numbers.

    python tests/campaigns/damaged_files.py --seed 0 --count 5000 --time-limit 600
    python tests/campaigns/damaged_files.py --seed 0 --count 100 --only numbers

Sound files are written once, then damaged at random: bits, bytes and pieces of any file; values, names and types in
JSON, in a header of safetensors and in a pickled state. Each is read in a process that may be killed. It must be read,
or refused in one line that names the file. A turn of the numbers is 1,000 malformed dive numbers or names, and they are
counted singly: each must be read as a dive that is spelt so, or refused in one short line that shows it. Prints how
many of each kind were read, refused, refused without a name, crashed, or took over 20 s, and how to see each of the
last three again. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import lzma
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av.logging
import torch
from damage import altered_json, altered_pickle, altered_safetensors, altered_tar, damaged, packed
from dive_numbers import check_number, check_vocab, malformed_number, malformed_vocab
from outcomes import Counts, report
from sound_files import CLIPS, VIDEO_KINDS, new_learner, write_sound_files
from tqdm import tqdm

from diveparse.configs import ClipConfig
from diveparse.datasets import cache
from diveparse.datasets.archives import unpack
from diveparse.datasets.clips import BadRowsError, read_clips
from diveparse.datasets.diving48 import read_annotations
from diveparse.datasets.inspection import read_log
from diveparse.datasets.video import VideoError, probe, read_frames
from diveparse.engine.run import RunFolder, record_environment
from diveparse.engine.training.checkpoint import resume_from_checkpoint
from diveparse.models import DiveClassifier, TimeSformer

SLOW_S = 20
MEMORY_BYTES = 16 * 2**30  # of the address space of the process that reads
OUTCOMES = ("read", "refused", "unnamed", "crashed", "slow")
NUMBERS_PER_TURN = 1000


@dataclass(frozen=True)
class Target:
    """A file of a folder that is damaged, and how the project reads it. structured: a second way to damage it.

    refusals: the errors that may refuse it.
    """

    file: str
    read: Callable[[Path], object]
    structured: Callable[[bytes, random.Random], bytes] | None = None
    refusals: tuple[type[Exception], ...] = (ValueError, OSError)


def read_cache(folder: Path) -> None:
    kind = cache.CacheKind.EVALUATION
    settings = cache.read_settings(folder / kind.value)
    entries = cache.read_index(folder / kind.value)
    records = read_clips(folder / "clips.csv", {}, None).splits["train"]
    if settings is not None:
        opened = cache.ClipCache(folder / kind.value, settings, entries)
        for record in records:
            if record.name in entries:
                opened.info(record)
        cache.open_cache(folder, kind, records, ClipConfig(4, 16))


def read_run(folder: Path) -> None:
    RunFolder(folder).splits_from_cache()
    record_environment(RunFolder(folder), seed=0, clips=CLIPS)


def read_checkpoint(folder: Path) -> None:
    resume_from_checkpoint(RunFolder(folder), new_learner())


def read_backbone(name: str) -> Callable[[Path], object]:
    return lambda folder: TimeSformer.from_pretrained(folder / name)


def read_model(folder: Path) -> None:
    DiveClassifier.load(folder / "model")


def read_training_split(folder: Path) -> None:
    read_annotations(folder, "train")


def read_video(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        duration_s = probe(folder / name).duration_s
        for times_s in ([0.0], [0.7 * duration_s], [0.2 * duration_s, 0.95 * duration_s]):
            read_frames(folder / name, times_s)

    return read


def unpack_all(name: str) -> Callable[[Path], object]:
    return lambda folder: list(unpack(folder / name, folder))


CHECKPOINT = "checkpoints/update-00000003"
IN_GZIP, IN_XZ = packed(gzip.compress, gzip.decompress), packed(lzma.compress, lzma.decompress)
TARGETS = {
    "weights, ours": Target("own.safetensors", read_backbone("own.safetensors"), altered_safetensors),
    "weights, HuggingFace": Target("hub/model.safetensors", read_backbone("hub"), altered_safetensors),
    "weights, FAIR": Target("fair.pyth", read_backbone("fair.pyth"), altered_pickle),
    "weights, a classifier": Target("model/model.safetensors", read_model, altered_safetensors),
    "JSON, a classifier": Target("model/config.json", read_model, altered_json),
    "JSON, HuggingFace": Target("hub/config.json", read_backbone("hub"), altered_json),
    "JSON, pixels": Target("hub/preprocessor_config.json", read_backbone("hub"), altered_json),
    "JSON, a cache's settings": Target("evaluation/settings.json", read_cache, altered_json),
    "JSON, a cache's index": Target("evaluation/index.jsonl", read_cache),
    "JSON, a check's log": Target("inspection.jsonl", read_log),
    "JSON, a run": Target("environment.json", read_run, altered_json),
    "annotations, Diving48": Target("Diving48_V2_train.json", read_training_split, altered_json),
    "annotations, vocabulary": Target("Diving48_vocab.json", read_training_split, altered_json),
    "annotations, CSV": Target("clips.csv", lambda folder: read_clips(folder / "clips.csv", {}, None)),
    "archive, tar": Target("videos.tar", unpack_all("videos.tar"), altered_tar),
    "archive, gzip": Target("videos.tar.gz", unpack_all("videos.tar.gz"), IN_GZIP),
    "archive, xz": Target("videos.tar.xz", unpack_all("videos.tar.xz"), IN_XZ),
    "checkpoint, state": Target(f"{CHECKPOINT}/state.pt", read_checkpoint, altered_pickle),
    "checkpoint, weights": Target(f"{CHECKPOINT}/model.safetensors", read_checkpoint, altered_safetensors),
    **{
        f"video, {suffix}": Target(f"dive.{suffix}", read_video(f"dive.{suffix}"), refusals=(VideoError,))
        for suffix in VIDEO_KINDS
    },
}
NUMBERS = {
    "numbers": (malformed_number, check_number),
    "numbers, Diving48's names": (malformed_vocab, check_vocab),
}
KINDS = (*TARGETS, *NUMBERS)


def damage_one(folder: Path, target: Target, rng: random.Random) -> Path:
    """Overwrite the file of a target with a damaged one."""
    path = folder / target.file
    content = path.read_bytes()
    how = target.structured if target.structured is not None and rng.random() < 0.6 else damaged
    path.write_bytes(how(content, rng))
    return path


def outcome_of(folder: Path, target: Target, path: Path) -> tuple[str, str]:
    """(one of OUTCOMES, what to show of it)."""
    try:
        target.read(folder)
    except target.refusals as error:
        text = str(error)
        is_line = "\n" not in text or isinstance(error, BadRowsError)
        is_named = str(path) in text or str(path.parent) in text
        return ("refused", "") if is_line and is_named else ("unnamed", f"{type(error).__name__}: {text[:300]}")
    except BaseException as error:  # whatever else it is, it is a traceback to whoever handed the file in
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "crashed", f"{type(error).__name__}: {str(error)[:200]} in {Path(where.filename).name}:{where.lineno}"
    return "read", ""


def outcomes_of_numbers(name: str, rng: random.Random) -> tuple[Counter[str], str]:
    """(how many numbers had each of OUTCOMES, what to show of the first that is neither read nor refused)."""
    counts: Counter[str] = Counter()
    first, (malformed, check) = "", NUMBERS[name]
    for _ in range(NUMBERS_PER_TURN):
        value = malformed(rng)
        try:
            counts[check(value)] += 1
        except AssertionError as error:
            counts["unnamed"] += 1
            first = first or str(error)
        except Exception as error:
            counts["crashed"] += 1
            first = first or f"{repr(value)[:100]}: {type(error).__name__}: {str(error)[:200]}"
    return counts, first


def serve(connection: Connection, sound: Path) -> None:
    """In a process of its own: damage and read the files that are asked for."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    while (case := connection.recv()) is not None:
        name, number = case
        if name in NUMBERS:
            connection.send(outcomes_of_numbers(name, random.Random(f"{name} {number}")))
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "data"
            shutil.copytree(sound, folder)
            path = damage_one(folder, TARGETS[name], random.Random(f"{name} {number}"))
            outcome, text = outcome_of(folder, TARGETS[name], path)
            connection.send((Counter([outcome]), text))


@dataclass
class Reader:
    """A process that reads, replaced when it dies or takes too long."""

    sound: Path
    process: Any = None
    connection: Any = field(default=None)

    def outcomes(self, name: str, number: str) -> tuple[Counter[str], str]:
        """(how many had each of OUTCOMES, what to show of a failure)."""
        if self.process is None or not self.process.is_alive():
            context = get_context("fork")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.sound), daemon=True)
            self.process.start()
            other.close()
        self.connection.send((name, number))
        try:
            if self.connection.poll(SLOW_S):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            self.stop()
            return Counter(["crashed"]), "the process died"
        self.stop()
        return Counter(["slow"]), f"more than {SLOW_S} s"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def campaign(names: list[str], seed: int, count: int, time_limit_s: float) -> tuple[Counts, list[str]]:
    """Returns: how many of each kind had each outcome, and a line for each with any but read or refused."""
    counts: Counts = Counter()
    found, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder)
        write_sound_files(sound)
        for name in set(names) & TARGETS.keys():
            with tempfile.TemporaryDirectory() as scratch:
                shutil.copytree(sound, Path(scratch) / "data")
                TARGETS[name].read(Path(scratch) / "data")  # or else the campaign would prove nothing
        reader = Reader(sound)
        for number in tqdm(range(count), unit="file", mininterval=5):
            if time.monotonic() - begun > time_limit_s:
                break
            name = names[number % len(names)]
            outcomes, text = reader.outcomes(name, f"{seed} {number}")
            counts.update({(name, outcome): times for outcome, times in outcomes.items()})
            if text:
                found.append(
                    f"{', '.join(outcomes - Counter(read=10**9, refused=10**9))}: {name}, number {number}: {text}"
                )
        reader.stop()
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="of files, and of turns of numbers")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds")
    parser.add_argument("--only", default="", help="the kinds whose names begin so, such as archive")
    args = parser.parse_args()
    logging.disable()
    av.logging.set_level(None)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the process that reads is a fork of this one, and threads do not survive that
    names = [name for name in KINDS if name.startswith(args.only)]
    counts, found = campaign(names, args.seed, args.count, args.time_limit)
    return report("file", names, OUTCOMES, counts, found)


if __name__ == "__main__":
    sys.exit(main())
