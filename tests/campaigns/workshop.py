"""What the campaigns of kills and of full disks share: a small data set, commands as processes, what they leave."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.datasets import cache
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.inspection import LOG_FILE, read_log
from diveparse.datasets.video.writer import Picture, write_h264, x264_options
from diveparse.engine.events import EVENT_FILES
from diveparse.engine.evidence.answers import ABOUT

TOOLS = Path(__file__).resolve().parents[2] / "tools"
PROC = Path("/proc")
SLOW_S = 20  # that nothing may take longer than it should
LABELS = (0, 5, 20, 41)  # four dives that differ in every attribute
TIMES = ("wait_s", "total_s")  # in the state of a training: how long it took
TIMING_TAGS = ("clips_per_second", "data_wait_share")
CONFIG = """\
name: tiny
arm: joint
runs_dir: {folder}/runs
data: {{root: {folder}/clips.csv, num_workers: 2, val_fraction: 0.2}}
clip: {{num_frames: 4, image_size: 32}}
backbone: {{embed_dim: 16, depth: 2, num_heads: 2, drop_path_rate: 0.1}}
train: {{num_epochs: 2, batch_size: 4, learning_rate: 3.0e-3, checkpoint_every: 2, log_every: 3, ema_decay: 0.9}}
test: {{batch_size: 5}}
"""
CACHED = """\
name: cached
arm: flat
runs_dir: {folder}/runs
data: {{root: {folder}/clips.csv, num_workers: 1, val_fraction: 0.2}}
clip: {{num_frames: 4, image_size: 32}}
backbone: {{weights: kinematics, stem: conv, embed_dim: 128, depth: 4, num_heads: 4, num_frozen_blocks: 3}}
head: {{kind: flat}}
train: {{num_epochs: 3, batch_size: 4, learning_rate: 3.0e-3, checkpoint_every: 3, log_every: 3, num_cached_views: 2}}
"""
PRETRAINING = """\
name: pretraining
runs_dir: {folder}/runs
clips_per_epoch: 6
num_easy_clips: 4
num_workers: 1
clip: {{num_frames: 2, image_size: 16}}
backbone: {{embed_dim: 8, depth: 1, num_heads: 2}}
train: {{num_epochs: 4, batch_size: 2, log_every: 2}}
"""


def write_inputs(folder: Path) -> None:
    """Write 32 clips of four dives, as a CSV and in Diving48's layout, and configs of runs in the same folder."""
    (folder / "rgb").mkdir(parents=True)
    rows, annotations = ["path,dive_number,split,source"], dict[str, list[dict[str, object]]](train=[], test=[])
    for source in range(8):
        split = "train" if source < 6 else "test"
        for number, label in enumerate(LABELS):
            name = f"tinysourc{source:02d}_{number:05d}"
            write_clip(folder / "rgb" / f"{name}.mp4", source, number)
            rows.append(f"rgb/{name}.mp4,{DIVING48[label].number},{split},{source}")
            annotations[split].append({"vid_name": name, "label": label, "start_frame": 0, "end_frame": 30})
    (folder / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "Diving48_vocab.json").write_text(json.dumps([dive.vocab for dive in DIVING48]), encoding="utf-8")
    for split, entries in annotations.items():
        (folder / f"Diving48_V2_{split}.json").write_text(json.dumps(entries), encoding="utf-8")
    for name, config in (("tiny", CONFIG), ("cached", CACHED), ("pretraining", PRETRAINING)):
        (folder / f"{name}.yaml").write_text(config.format(folder=folder), encoding="utf-8")
    arms = {"flat": "head.kind=flat", "joint": "head.kind=joint"}
    experiment = {"question": "Does it help?", "config": str(folder / "tiny.yaml"), "seeds": [0], "arms": arms}
    (folder / "both.yaml").write_text(json.dumps(experiment | {"pairs": [list(arms)]}), encoding="utf-8")  # YAML too


def write_clip(path: Path, source: int, number: int) -> None:
    noise = np.random.default_rng(100 * source + number)
    color = np.array([200, 60 * number, 30])
    pixels = [(color + noise.integers(0, 40, size=(48, 64, 3))).astype(np.uint8) for _ in range(30)]
    write_h264(path, map(Picture, pixels), rate_hz=Fraction(25), options=x264_options(23))


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: None if it did not in time, and was killed; output: of both streams."""

    code: int | None
    output: str
    errors: str
    length_s: float

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output + self.errors


class Command:
    """A command in a process and a session of its own, with files for its output: a pipe would wait for its workers."""

    def __init__(
        self,
        arguments: list[str],
        scratch: Path,
        *,
        output: Path | None = None,
        prefix: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ):
        """arguments: the name of a command, and those of the command. output: where its standard output goes to.

        environment: what is added to that of this process.
        """
        name, *rest = arguments
        self.paths = output or scratch / "stdout", scratch / "stderr"
        self.files: list[IO[bytes]] = [path.open("wb") for path in self.paths]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(TOOLS / f"{name}.py"), *rest],
            stdin=subprocess.DEVNULL,
            stdout=self.files[0],
            stderr=self.files[1],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            start_new_session=True,
        )

    def end(self, limit_s: float) -> Ended:
        """Wait until it ends, or kill it after `limit_s`."""
        try:
            code: int | None = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self.process.kill()  # does nothing to a process that has ended
            self.process.wait()
        length_s = time.monotonic() - self.started
        for file in self.files:
            file.close()
        output, errors = (path.read_text(encoding="utf-8", errors="replace") for path in self.paths)
        return Ended(code, output, errors, length_s)

    def left_behind(self) -> list[str]:
        """The processes of its session that still run after SLOW_S, which are killed."""
        deadline = time.monotonic() + SLOW_S
        while (left := _processes_of(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid, _ in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return [name for _, name in left]


def _processes_of(session: int) -> list[tuple[int, str]]:
    """(number, command line) of each process of a session that has not ended."""
    found = []
    for path in PROC.glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, of_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state not in "ZX":
                found.append((int(path.name), (path / "cmdline").read_text().replace("\0", " ")[-100:]))
    return found


def prepare_to_mount() -> None:
    """Exits with one line without the right to mount. From here on, a request to end cleans up too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended by a signal"))
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        sys.exit("error: this campaign mounts disks: run it on Linux as root, or in `unshare --map-root-user --mount`")


def content(folder: Path) -> dict[str, Any]:
    """All that is the same in two folders that the same commands wrote, by file: digests, and TensorBoard's points."""
    found = {
        path.relative_to(folder).as_posix(): _content_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.match(EVENT_FILES) and path.suffix != ".log"
    }
    for parent in sorted({path.parent for path in folder.rglob(EVENT_FILES)}):
        found[f"{parent.relative_to(folder)}/{EVENT_FILES}"] = _points(parent)
    return found


def _content_of(path: Path) -> object:
    special: dict[str, Callable[[Path], object]] = {
        "environment.json": lambda _: None,  # it says when and how often the run was resumed
        ".metadata": lambda _: None,  # of a sharded checkpoint: it has a random name in it
        "state.pt": lambda path: _plain(torch.load(path, weights_only=True)),
        "checkpoint.pt": lambda path: _plain(torch.load(path, weights_only=True)),
        cache.INDEX_FILE: lambda path: {name: asdict(entry) for name, entry in cache.read_index(path.parent).items()},
        LOG_FILE: lambda path: {name: asdict(check) for name, check in read_log(path.parent).items()},
    }
    if path.suffix == ".safetensors":
        return _safetensors(path.read_bytes())
    if path.name.endswith(".answers.npz"):
        return _answers(path)
    read = special.get(path.name, lambda path: _digest(path.read_bytes()))
    return read(path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _safetensors(content: bytes) -> object:
    """The library writes the entries of a header's metadata in any order."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), _digest(content[8 + length :])


def _answers(path: Path) -> object:
    """Without the environment of each run, which has the time of its start and of each resumption."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name].tobytes() for name in file.files if name != ABOUT}
        about = json.loads(file[ABOUT].tobytes())
    runs = [{name: value for name, value in run.items() if name != "environment"} for run in about["runs"]]
    return arrays, {**about, "runs": runs}


def _plain(value: Any) -> Any:
    """Values that can be compared: tensors as what they hold, and without how long a run took."""
    if isinstance(value, torch.Tensor):
        file = io.BytesIO()
        np.save(file, value.numpy())
        return _digest(file.getvalue())
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in TIMES}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _points(folder: Path) -> dict[str, Any]:
    """What TensorBoard shows of a folder, by tag; of timings, only where they lie."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    points: dict[str, Any] = {}
    for tag in events.Tags()["scalars"]:
        points[tag] = [(each.step, None if tag.endswith(TIMING_TAGS) else each.value) for each in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        images = events.Images(tag)
        points[tag] = [(each.step, _digest(each.encoded_image_string)) for each in images]
    return points


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is missing, too much or other in a folder."""
    return [
        f"{name} {'is other' if name in found and name in expected else 'is missing' if name in expected else 'is new'}"
        for name in sorted(found.keys() | expected.keys())
        if name not in found or name not in expected or found[name] != expected[name]
    ]


def error_lines(ended: Ended) -> list[str]:
    """The lines of standard error that are errors, without the progress bar of another process before them."""
    return [line.strip() for line in re.findall(r"error: [^\r\n]*", ended.errors)]
