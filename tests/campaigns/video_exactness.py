"""A campaign against the reader of videos: any frame, asked for in any way, must be the one that a full decode shows.

    python tests/campaigns/video_exactness.py --seed 0 --count 5000 --time-limit 3600

Every encoder of PyAV that works here writes to every container that takes it: with B-frames, hidden frames, open and
closed groups, interlaced and refreshed pictures. The files are then cut, joined, copied between containers and robbed
of packets. Of each file, random sets of times are read, one at a time and together. The oracle is a full decode. Files
are encoded and read in child processes, since a codec may crash. Prints how many files, kinds and requests there were,
what the full decode refused, and every difference, crash or reading that took over 20 s. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from video_kinds import CONTAINERS, Kind, encoded, every_kind

from diveparse.datasets.video import VideoError, read_frames

MAX_JUMP_S = 10  # of the rule for jumps in MPEG streams
SLOW_S = 20  # for the requests of one file, and for encoding it


@dataclass(frozen=True)
class Truth:
    """What a full decode shows: times_s, ascending; pixels (num_frames, 3, height, width); end_s, of the last frame."""

    times_s: list[float]
    pixels: Tensor
    end_s: float


def full_decode(path: Path) -> Truth:
    """Decode everything, plainly.

    Raises: av.FFmpegError if that fails; ValueError if a frame is damaged, or if FFmpeg decodes the file to other
    pixels a second time, as it does where it leaves damaged parts of a picture unwritten.
    """
    frames = list(plain_frames(path))
    while frames and frames[-1].is_corrupt:  # a cut end is a loss that is named, and not read
        frames.pop()
    if not frames or any(frame.is_corrupt for frame in frames):
        raise ValueError("nothing whole")
    height, width = frames[0].height, frames[0].width
    pixels = np.stack([as_rgb(frame, height, width) for frame in frames])
    for again in (plain_frames(path), frames_in_used_buffers(path)):
        for frame, expected in zip(again, pixels, strict=False):
            if not np.array_equal(as_rgb(frame, height, width), expected):
                raise ValueError("not decoded to the same pixels twice")
    times_s, end_s = times_of(path, frames)
    return Truth(times_s, torch.from_numpy(pixels), end_s)


def plain_frames(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as file:
        stream, packets = opened(file)
        for packet in [*packets, None]:
            yield from stream.decode(packet)


def frames_in_used_buffers(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a file of keyframes alone, in memory that other frames were decoded to before.

    A decoder that leaves part of a damaged picture unwritten is found out here. Other files give no frames.
    """
    with av.open(str(path)) as file:
        stream, packets = opened(file)
        if not all(packet.is_keyframe for packet in packets):
            return
        held = [frame for packet in packets for frame in stream.decode(packet)]
        del held
        stream.codec_context.flush_buffers()
        for packet in packets:
            yield from stream.decode(packet)


def opened(file: InputContainer) -> tuple[VideoStream, list[av.Packet]]:
    stream = file.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise ValueError("no video")
    stream.codec_context.thread_count = 1  # with several, FFmpeg does not mark all damaged frames
    packets = [packet for packet in file.demux(stream) if packet.size]
    if packets and packets[-1].is_corrupt:
        packets.pop()
    return stream, packets


def times_of(path: Path, frames: list[av.VideoFrame]) -> tuple[list[float], float]:
    """(when each frame comes on screen, when the last leaves it), by the rule in `datasets/video/timeline.py`."""
    with av.open(str(path)) as file:
        stream = file.streams.best("video")
        tick_s, rate_hz, resets = stream.time_base, stream.average_rate or 25, file.format.name in {"mpegts", "mpeg"}
    usual = max(1, round(1 / rate_hz / tick_s))
    durations = [frame.duration or usual for frame in frames]
    clock, dts = [frame.pts for frame in frames], [frame.dts for frame in frames]
    num_fed = max((number for number, each in enumerate(dts, start=1) if each is not None), default=0)
    if num_fed and num_faults(dts[:num_fed]) < num_faults(clock[:num_fed]):
        clock = dts
    timed = [(number, each) for number, each in enumerate(clock) if each is not None]
    ticks, offset = [0], sum(durations[: timed[0][0]]) - timed[0][1] if timed else 0
    for number in range(1, len(frames)):
        end, now = ticks[-1] + durations[number - 1], clock[number]
        later = clock[number + 1] if number + 1 < len(frames) else None
        if now is None:
            ticks.append(end)
        elif now + offset < ticks[-1] and later is not None and later + offset > ticks[-1]:
            ticks.append((ticks[-1] + later + offset) // 2)
        else:
            if now + offset < ticks[-1] or (resets and now + offset - end > MAX_JUMP_S / tick_s):
                offset = end - now
            ticks.append(now + offset)
    last = frames[-1].duration or (ticks[-1] - ticks[-2] if len(ticks) > 1 else usual)
    return [float(each * tick_s) for each in ticks], float((ticks[-1] + last) * tick_s)


def num_faults(clock: list[int | None]) -> int:
    known = [each for each in clock if each is not None]
    return len(clock) - len(known) + sum(b <= a for a, b in pairwise(known))


def as_rgb(frame: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
    """(3, height, width). A frame of another size is resized as the reader resizes."""
    if (frame.height, frame.width) == (height, width):
        return frame.to_ndarray(format="rgb24").transpose(2, 0, 1).astype(np.uint8, copy=False)
    planes = frame.reformat(width, height, "gbrp", interpolation="BILINEAR").to_ndarray().astype(np.uint8, copy=False)
    return planes if planes.shape[0] == 3 else planes.transpose(2, 0, 1)


@dataclass
class Tally:
    """What a campaign, or the reading of one file, found."""

    num_files: int = 0
    num_frames: int = 0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (encoder, container)
    not_decoded: Counter[str] = field(default_factory=Counter)  # why a full decode fails, too
    refused: Counter[str] = field(default_factory=Counter)  # though a full decode succeeds
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.num_files += other.num_files
        self.num_frames += other.num_frames
        self.requests += other.requests
        self.not_decoded += other.not_decoded
        self.refused += other.refused
        self.failures += other.failures

    def __str__(self) -> str:
        encoders = {encoder for encoder, _ in self.requests}
        fewest = min(self.requests.values(), default=0)
        lines = [
            f"{self.num_files} files of {len(self.requests)} encoders x containers ({len(encoders)} encoders)",
            f"{self.requests.total()} requests of {self.num_frames} frames, {fewest} or more for each of these pairs",
            f"{sum(self.refused.values())} files that only the reader refuses",
            *(f"  {count} x: {reason}" for reason, count in self.refused.most_common(20)),
            f"{sum(self.not_decoded.values())} files that a full decode refuses, too",
            *(f"  {count} x: {reason}" for reason, count in self.not_decoded.most_common(20)),
            f"{len(self.failures)} failures",
            *(f"  {each}" for each in self.failures[:50]),
        ]
        return "\n".join(lines)


def examine(path: Path, name: str, pair: tuple[str, str], seed: str, num_requests: int) -> Tally:
    """Read a file in random ways. pair: its encoder and container."""
    tally, rng = Tally(num_files=1), random.Random(seed)
    try:
        truth = full_decode(path)
    except (av.FFmpegError, ValueError, OSError, TypeError, IndexError) as error:
        tally.not_decoded[str(error).replace(str(path), "the file") or type(error).__name__] += 1
        truth = None
    try:
        if truth is None:  # nothing to compare, but the file must be read or refused
            read_frames(path, [0.0])
            return tally
        for number in range(num_requests):
            os.utime(path, ns=(1, number + 1))  # another file, for all that the reader remembers
            times_s = random_times(truth, rng)
            expected = truth.pixels[[max(i for i, start in enumerate(truth.times_s) if start <= t) for t in times_s]]
            tally.requests[pair] += 1
            tally.num_frames += len(times_s)
            if not torch.equal(read_frames(path, times_s), expected):
                tally.failures.append(f"different: {name} at {times_s}")
                break
    except VideoError as error:
        if truth is not None:
            tally.refused[f"{name}: {str(error).split(': ', 1)[-1]}"] += 1
    except Exception as error:
        tally.failures.append(f"{type(error).__name__}: {name}: {error}")
    return tally


def random_times(truth: Truth, rng: random.Random) -> list[float]:
    """One time or several: anywhere, on the borders of frames, or just before them."""
    borders = [*truth.times_s, *(float(np.nextafter(each, 0)) for each in truth.times_s if each > 0)]
    count = rng.choice([1, 1, 1, 2, 3, 8])
    times_s = [rng.choice([rng.uniform(0, truth.end_s * 0.999), rng.choice(borders)]) for _ in range(count)]
    return times_s if rng.random() < 0.9 else [*truth.times_s]


def in_child(function: Callable[..., Any], *args: object) -> Any:
    """What a function returns in a process of its own. Returns: its result, or what happened to the process."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*args)), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SLOW_S) else f"more than {SLOW_S} s"
    except EOFError:
        return "the process died"
    finally:
        process.kill()
        process.join()
        process.close()


def run(kinds: list[tuple[Kind, str]], seed: int, count: int, time_limit_s: float, num_requests: int) -> Tally:
    """Examine `count` files, or as many as the time allows: of each kind one as it was encoded and one spoilt."""
    tally, begun = Tally(), time.monotonic()
    turns = deque(random.Random(seed).sample(kinds, len(kinds)))
    number = 0
    with tempfile.TemporaryDirectory() as folder, tqdm(total=count, unit="file", delay=5) as bar:
        while turns and tally.num_files < count and time.monotonic() - begun < time_limit_s:
            (how, suffix), number = turns.popleft(), number + 1
            answer = in_child(encoded, Path(folder), how, suffix, f"{seed} {number}")
            if isinstance(answer, str) or not answer[1]:  # the encoder, or PyAV, fails
                continue
            name, files = answer
            for what, path in files:
                case = f"seed {seed}, number {number}: {name}, {what}"
                found = in_child(examine, path, case, (how.encoder, suffix), f"{seed} {number} {what}", num_requests)
                tally.add(Tally(1, failures=[f"{found}: {case}"]) if isinstance(found, str) else found)
                if tally.requests[how.encoder, suffix] == 0:  # the container took the packets, but gives no video back
                    break
            else:
                turns.append((how, suffix))
            bar.update(tally.num_files - bar.n)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="of files")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds")
    parser.add_argument("--requests", type=int, default=6, help="of each file")
    parser.add_argument("--only", default="", help="the encoders whose names begin so, such as huffyuv")
    args = parser.parse_args()
    av.logging.set_level(None)
    torch.set_num_threads(1)  # children are forks of this process, and threads do not survive that
    kinds = [(how, suffix) for how in every_kind() if how.encoder.startswith(args.only) for suffix in CONTAINERS]
    tally = run(kinds, args.seed, args.count, args.time_limit, args.requests)
    print(tally)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
