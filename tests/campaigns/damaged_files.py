"""A campaign against everything but videos that people hand in: weights, JSON, annotations, archives and checkpoints.

    python tests/campaigns/damaged_files.py --seed 0 --count 5000 --time-limit 600

Sound files are written once, then damaged at random: bits, bytes and pieces of any file; values, names and types in
JSON, in a header of safetensors and in a pickled state. Each is read in a process that may be killed. It must be read,
or refused in one line that names the file. Prints how many of each kind were read, refused, refused without a name,
crashed, or took over 20 s, and how to see each of the last three again. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import lzma
import random
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, TrainConfig
from diveparse.datasets import cache
from diveparse.datasets.archives import unpack
from diveparse.datasets.clips import BadRowsError, read_clips
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_annotations
from diveparse.datasets.inspection import read_log
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.engine.run import RunFolder, record_environment
from diveparse.engine.training.checkpoint import resume_from_checkpoint, save_checkpoint
from diveparse.engine.training.loop import build_learner
from diveparse.models import DiveClassifier, TimeSformer, build_classifier, save_backbone, save_huggingface

SLOW_S = 20
MEMORY_BYTES = 16 * 2**30  # of the address space of the process that reads
OUTCOMES = ("read", "refused", "unnamed", "crashed", "slow")
BACKBONE = BackboneConfig(patch_size=8, embed_dim=64, depth=2, num_heads=1)
CONFIG = Config(name="n", arm="a", backbone=BACKBONE, clip=ClipConfig(4, 16), head=HeadConfig())
CLIPS = {"train": "3 clips, abc"}
NAMES = [f"source_{source:04d}_{clip:05d}" for source in range(2) for clip in range(3)]
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31 - 1, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "0", "x" * 5000,
    "../../etc/passwd", "\x00", "\ud83e", [], {}, [[]], [1, 2, 3], {"a": 1}, [[[[[[[[]]]]]]]], list(range(2000)),
]  # fmt: skip

ODD_PIECES = [b"9" * 400, b"[" * 9000, b'"', b",", b"{", b"\xff\xfe", b"\n", b"nan", b"1e999"]
Counts: TypeAlias = "Counter[tuple[str, str]]"


@dataclass(frozen=True)
class Target:
    """A file of a folder that is damaged, and how the project reads it. structured: a second way to damage it."""

    file: str
    read: Callable[[Path], object]
    structured: Callable[[bytes, random.Random], bytes] | None = None


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits, bytes or pieces changed, removed, repeated or added."""
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        start = rng.randrange(len(spoilt) + 1) if rng.random() < 0.5 else rng.randrange(min(len(spoilt), 2048) + 1)
        end = min(len(spoilt), start + rng.choice([1, 2, 4, 8, 64, 512, 5000]))
        action = rng.randrange(7)
        if action == 0 and start < len(spoilt):
            spoilt[start] ^= 1 << rng.randrange(8)
        elif action == 1:
            spoilt[start:end] = rng.randbytes(end - start)
        elif action == 2:
            spoilt[start:end] = bytes([rng.choice([0, 255, 0x30, 0x7F])]) * (end - start)
        elif action == 3:
            del spoilt[start:end]
        elif action == 4:
            spoilt[start:start] = spoilt[start:end]
        elif action == 5:
            spoilt[start:start] = rng.choice(ODD_PIECES)
        elif rng.random() < 0.3:
            del spoilt[start:]
    return bytes(spoilt)


def altered(value: Any, rng: random.Random) -> Any:
    """A tree of lists and dictionaries with one to three values replaced, removed, doubled or renamed."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD_VALUES)
        parent, key = rng.choice(places)
        action = rng.randrange(6)
        if action <= 2:
            parent[key] = rng.choice(ODD_VALUES)
        elif action == 3:
            del parent[key]
        elif action == 4:
            other_parent, other_key = rng.choice(places)
            try:
                parent[key] = other_parent[other_key]
            except (KeyError, IndexError):
                continue
        elif isinstance(parent, dict):
            parent[str(rng.choice(ODD_VALUES))[:50]] = parent.pop(key)
        try:
            json.dumps(value, default=str)
        except (ValueError, RecursionError):  # a circle
            return None
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), 50)))
    else:
        return []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def altered_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(altered(json.loads(content), rng)).encode()


def altered_safetensors(content: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    action = rng.randrange(5)
    if action == 0:
        header[name]["shape"] = rng.choice([[0], [2**40, 0], [2**62, 4], [-1], [], [1] * 3000, [2**64]])
    elif action == 1:
        header[name]["dtype"] = rng.choice(["F64", "F16", "I64", "BOOL", "F8_E4M3", "C64", "F4", "X", 3])
    elif action == 2:
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = rng.choice([offsets[::-1], [0, 0], [0, 2**63], [offsets[0] - 4, offsets[1]]])
    elif action == 3:
        header[name.replace(".1.", f".{rng.choice([2, 7, 10**9, 10**30])}.")] = header.pop(name)
    else:
        header = altered(header, rng)
    raw = json.dumps(header).encode()
    body = bytearray(content[8 + length :])
    if rng.random() < 0.2:
        at = 4 * rng.randrange(len(body) // 4)
        body[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), -float("inf")]))
    return struct.pack("<Q", len(raw)) + raw + bytes(body)


def altered_pickle(content: bytes, rng: random.Random) -> bytes:
    tensors = [
        torch.zeros(1).expand(2**20, 2**20), torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), torch.zeros(0),
        torch.full((3,), torch.nan), torch.zeros(2, dtype=torch.complex64), torch.zeros(64, 64, dtype=torch.int8),
    ]  # fmt: skip
    state = torch.load(io.BytesIO(content), weights_only=True)
    places = list(_places(state))
    parent, key = rng.choice(places)
    parent[key] = rng.choice(tensors) if rng.random() < 0.5 else rng.choice(ODD_VALUES)
    file = io.BytesIO()
    try:
        torch.save(altered(state, rng) if rng.random() < 0.3 else state, file)
    except (RecursionError, UnicodeEncodeError):
        return b""
    return file.getvalue()


def altered_tar(content: bytes, rng: random.Random) -> bytes:
    """Another member before the others, with a checksum that is right; and perhaps compressed."""
    info = tarfile.TarInfo(rng.choice([f"rgb/{NAMES[0]}.mp4", "../../x", "/etc/x", "a" * 90, f"{NAMES[1]}.mp4/"]))
    info.type = rng.choice([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"g", b"x", b"K", b"L", b"S", b"Z"])
    info.size = rng.choice([0, 9, 512, 2**21, 2**33, 2**40, -512, -1024])
    info.linkname = rng.choice(["", "/etc/hostname", f"{NAMES[0]}.mp4"])
    body = rng.choice([b"", bytes(512), b"30 size=99999999999999\n".ljust(512, b"\0"), rng.randbytes(1024)])
    tar = info.tobuf(tarfile.GNU_FORMAT) + body + content
    return rng.choice([bytes, gzip.compress, lzma.compress])(tar)


def packed(compress: Callable[[bytes], bytes], unpack_: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """Damage below the compression."""
    return lambda content, rng: compress(damaged(unpack_(content), rng))


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


def new_learner() -> Any:
    return build_learner(build_classifier(CONFIG, DIVING48), TrainConfig(), num_updates=10)


def read_backbone(name: str) -> Callable[[Path], object]:
    return lambda folder: TimeSformer.from_pretrained(folder / name)


def read_model(folder: Path) -> None:
    DiveClassifier.load(folder / "model")


def read_training_split(folder: Path) -> None:
    read_annotations(folder, "train")


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
}
FAIR_NAMES = {
    "space_norm": "norm1",
    "mlp_norm": "norm2",
    "space_attn": "attn",
    "time_norm": "temporal_norm1",
    "time_attn": "temporal_attn",
    "time_proj": "temporal_fc",
    "class_token": "cls_token",
    "space_embed": "pos_embed",
}


def write_sound_files(folder: Path) -> None:
    torch.manual_seed(0)
    (folder / "rgb").mkdir()
    video = folder / "rgb" / "whole.mp4"
    pixels = np.zeros((32, 32, 3), np.uint8)
    write_h264(video, [Picture(pixels)] * 30, rate_hz=Fraction(25), options=x264_options(30))
    rows = ["path,dive_number,start,end,split,source", "rgb/whole.mp4,5253B,,,,a"]
    rows += [f"rgb/whole.mp4,{number},0.{k},0.9,train,b" for k, number in enumerate(["107B", "626C", "101A"], start=1)]
    (folder / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "Diving48_vocab.json").write_text(json.dumps([list(dive.vocab) for dive in DIVING48]))
    entries = [{"vid_name": name, "label": k, "start_frame": 0, "end_frame": 30} for k, name in enumerate(NAMES)]
    (folder / "Diving48_V2_train.json").write_text(json.dumps(entries))
    check = {"num_bytes": 3, "modified_ns": 4, "sha256": "ab", "problem": None, "num_frames": 30, "duration_s": 1.2}
    (folder / "inspection.jsonl").write_text("\n".join(json.dumps({"name": name} | check) for name in NAMES))
    (folder / "environment.json").write_text(
        json.dumps({"commit": "a", "from_cache": ["train"], "resumed": [], "clips": CLIPS})
    )
    with tarfile.open(folder / "videos.tar", "w") as tar:
        for name in NAMES:
            info = tarfile.TarInfo(f"rgb/{name}.mp4")
            info.size = video.stat().st_size
            tar.addfile(info, io.BytesIO(video.read_bytes()))
    tar_bytes = (folder / "videos.tar").read_bytes()
    (folder / "videos.tar.gz").write_bytes(gzip.compress(tar_bytes))
    (folder / "videos.tar.xz").write_bytes(lzma.compress(tar_bytes))
    write_models(folder)
    records = read_clips(folder / "clips.csv", {}, None).splits["train"]
    settings = cache.CacheSettings(cache.CacheKind.EVALUATION, num_frames=4, short_side=16)
    list(cache.build_cache(folder, settings, records, num_workers=1))


def write_models(folder: Path) -> None:
    backbone = TimeSformer(BACKBONE, num_frames=4, image_size=16)
    save_backbone(folder / "own.safetensors", backbone)
    save_huggingface(folder / "hub", backbone)
    fair = {f"model.{name}": tensor for name, tensor in backbone.state_dict().items()}
    for ours, theirs in FAIR_NAMES.items():
        fair = {name.replace(ours, theirs): tensor for name, tensor in fair.items()}
    torch.save({"epoch": 3, "model_state": fair}, folder / "fair.pyth")
    learner = new_learner()
    learner.model.save(folder / "model")
    for _ in range(3):
        sum(parameter.square().sum() for parameter in learner.model.parameters()).backward()
        learner.optimizer.step()
        learner.schedule.step()
    learner.progress.num_updates = 3
    save_checkpoint(RunFolder(folder), learner)


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
    except (ValueError, OSError) as error:
        text = str(error)
        is_line = "\n" not in text or isinstance(error, BadRowsError)
        is_named = str(path) in text or str(path.parent) in text
        return ("refused", "") if is_line and is_named else ("unnamed", f"{type(error).__name__}: {text[:300]}")
    except BaseException as error:  # whatever else it is, it is a traceback to whoever handed the file in
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "crashed", f"{type(error).__name__}: {str(error)[:200]} in {Path(where.filename).name}:{where.lineno}"
    return "read", ""


def serve(connection: Connection, sound: Path) -> None:
    """In a process of its own: damage and read the files that are asked for."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    while (case := connection.recv()) is not None:
        name, number = case
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "data"
            shutil.copytree(sound, folder)
            path = damage_one(folder, TARGETS[name], random.Random(f"{name} {number}"))
            connection.send(outcome_of(folder, TARGETS[name], path))


@dataclass
class Reader:
    """A process that reads, replaced when it dies or takes too long."""

    sound: Path
    process: Any = None
    connection: Any = field(default=None)

    def outcome(self, name: str, number: str) -> tuple[str, str]:
        if self.process is None or not self.process.is_alive():
            context = get_context("fork")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.sound), daemon=True)
            self.process.start()
            other.close()
        self.connection.send((name, number))
        try:
            if self.connection.poll(SLOW_S):
                return self.connection.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionError):
            self.stop()
            return "crashed", "the process died"
        self.stop()
        return "slow", f"more than {SLOW_S} s"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def campaign(names: list[str], seed: int, count: int, time_limit_s: float) -> tuple[Counts, list[str]]:
    """Returns: how many files of each kind had each outcome, and a line for each that is neither read nor refused."""
    counts: Counts = Counter()
    found, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder)
        write_sound_files(sound)
        for name in names:
            with tempfile.TemporaryDirectory() as scratch:
                shutil.copytree(sound, Path(scratch) / "data")
                TARGETS[name].read(Path(scratch) / "data")  # or else the campaign would prove nothing
        reader = Reader(sound)
        for number in tqdm(range(count), unit="file", mininterval=5):
            if time.monotonic() - begun > time_limit_s:
                break
            name = names[number % len(names)]
            outcome, text = reader.outcome(name, f"{seed} {number}")
            counts[name, outcome] += 1
            if outcome not in ("read", "refused"):
                found.append(f"{outcome}: {name}, number {number}: {text}")
        reader.stop()
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="of files")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds")
    parser.add_argument("--only", default="", help="the kinds whose names begin so, such as archive")
    args = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the process that reads is a fork of this one, and threads do not survive that
    names = [name for name in TARGETS if name.startswith(args.only)]
    counts, found = campaign(names, args.seed, args.count, args.time_limit)
    rows = [[name, *(counts[name, outcome] for outcome in OUTCOMES)] for name in names]
    rows.append(["all", *(sum(row[k] for row in rows) for k in range(1, len(OUTCOMES) + 1))])
    print(tabulate(rows, headers=["file", *OUTCOMES], tablefmt="plain"))
    print("\n".join(found[:50]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
