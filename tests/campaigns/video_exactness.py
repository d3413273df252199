"""A campaign against the reader of videos: any frame, asked for in any way, must be the one that a full decode shows.

    python tests/campaigns/video_exactness.py --seed 0 --count 5000 --time-limit 3600

Every encoder of PyAV that works here writes to every container that takes it: with B-frames, hidden frames, open and
closed groups, interlaced and refreshed pictures. The files are then cut, joined, copied between containers and robbed
of packets. Of each file, random sets of times are read, one at a time and together. The oracle is a full decode. Prints
how many files, kinds and requests there were, and every difference. Exit code 1 if there was one.
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
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import av.logging
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from diveparse.datasets.video import VideoError, read_frames

CONTAINERS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".flv", ".wmv", ".ogv", ".gif", ".3gp")
MAX_JUMP_S = 10  # of the rule for jumps in MPEG streams
SIZES = ((48, 64), (144, 176), (576, 720))  # (height, width); a few encoders take only some


@dataclass(frozen=True)
class Kind:
    """How a file is encoded."""

    encoder: str
    options: tuple[tuple[str, str], ...] = ()
    pix_fmt: str | None = None  # None: the encoder's first
    rate_hz: Fraction = Fraction(25)


def kind(encoder: str, options: str = "", pix_fmt: str = "yuv420p", rate_hz: int | Fraction = 25) -> Kind:
    pairs = [option.split("=", 1) for option in options.split()]
    return Kind(encoder, tuple((name, value) for name, value in pairs), pix_fmt, Fraction(rate_hz))


QUIET = "log-level=none:"
SPECIAL = (
    kind("libx264", "g=12 bf=3 x264-params=open-gop=1:b-adapt=0"),
    kind("libx264", "g=100 bf=7 x264-params=b-pyramid=normal:b-adapt=0"),
    kind("libx264", "g=10 x264-params=intra-refresh=1"),
    kind("libx264", "g=10 bf=0"),
    kind("libx264", "g=12 bf=2 x264-params=tff=1:open-gop=1"),
    kind("libx264", "g=9", "yuv420p10le"),
    kind("libx264", "g=1"),
    kind("libx264", "preset=ultrafast g=15 x264-params=slices=4"),
    kind("libx265", f"g=12 x265-params={QUIET}open-gop=1:bframes=3:b-adapt=0"),
    kind("libx265", f"g=12 x265-params={QUIET}open-gop=0:bframes=4:b-adapt=0"),
    kind("libx265", f"g=30 x265-params={QUIET}intra-refresh=1:bframes=0"),
    kind("libx265", f"g=16 x265-params={QUIET}temporal-layers=3:bframes=3:b-adapt=0"),
    kind("libx265", f"g=10 x265-params={QUIET}bframes=0"),
    kind("libx265", f"g=12 x265-params={QUIET}radl=2:bframes=4:b-adapt=0:open-gop=0"),
    kind("libvpx", "g=20 auto-alt-ref=1 lag-in-frames=16 arnr-maxframes=5 b=100k deadline=realtime"),
    kind("libvpx", "g=10 lag-in-frames=0 deadline=realtime"),
    kind("libvpx-vp9", "g=20 auto-alt-ref=1 lag-in-frames=16 b=50k cpu-used=8 deadline=good"),
    kind("libvpx-vp9", "g=10 lag-in-frames=0 error-resilient=1 cpu-used=8 deadline=realtime"),
    kind("libsvtav1", "g=16 preset=12 crf=30"),
    kind("libsvtav1", "g=20 preset=10 crf=20 svtav1-params=irefresh-type=1"),
    kind("libsvtav1", "g=20 preset=10 crf=40 svtav1-params=pred-struct=1"),
    kind("mpeg4", "g=12 bf=2"),
    kind("mpeg4", "g=100 bf=0"),
    kind("mpeg2video", "g=12 bf=2"),
    kind("mpeg2video", "g=9 bf=2 flags=+ildct+ilme"),
    kind("mpeg2video", "g=12 bf=2 flags=+cgop sc_threshold=1000000000"),
    kind("mpeg2video", "g=600 bf=0 intra_vlc=1"),
    kind("mpeg1video", "g=12 bf=2"),
    kind("ffv1", "g=8"),
    kind("mjpeg", "huffman=0", "yuvj420p"),
    kind("libx264", "g=12", rate_hz=Fraction(30_000, 1001)),
    kind("libx264", "g=24 bf=2", rate_hz=60),
)


def every_kind() -> Iterator[Kind]:
    """The special kinds, and each encoder with its defaults, where it takes them."""
    yield from SPECIAL
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "w")
        except ValueError:
            continue
        is_hardware = name.endswith(("_nvenc", "_amf", "_qsv", "_v4l2m2m", "_vaapi", "_vulkan", "_mf", "_videotoolbox"))
        if codec.type == "video" and not is_hardware and name not in {"vnull", "wrapped_avframe"}:
            formats = [each.name for each in codec.video_formats or ()]
            preferred = next((name for name in ("yuv420p", "rgb24", *formats) if name in formats), "yuv420p")
            for options in ({}, {"g": "7"}):
                yield Kind(name, tuple(options.items()), preferred)


def picture(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Moving stripes and a patch of noise: every frame is different, and most of it can be predicted."""
    y, x = np.mgrid[:height, :width]
    stripes = np.stack([(x * 3 + number * 5) % 256, (y * 5 + number * 3) % 256, (x + y + number * 11) % 256], axis=-1)
    stripes[: height // 3, : width // 3] = np.random.default_rng(number).integers(0, 256, (height // 3, width // 3, 3))
    return stripes.astype(np.uint8)


def encode(path: Path, how: Kind, num_frames: int, *, first: int = 0, height: int = 48, width: int = 64) -> None:
    """Raises: av.FFmpegError, ValueError or OSError where the encoder or the container takes no such video."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(how.encoder, rate=how.rate_hz, options=dict(how.options))
        stream.height, stream.width = height, width
        if how.pix_fmt:
            stream.pix_fmt = how.pix_fmt
        for number in range(first, first + num_frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")))
        file.mux(stream.encode(None))


def copy(source: Path, target: Path, change: Callable[[list[av.Packet]], list[av.Packet]]) -> None:
    """Write the packets of a file to another, after a change."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in change([packet for packet in old.demux(video=0) if packet.size]):
            packet.stream = stream
            new.mux(packet)


def made_up_times(packets: list[av.Packet]) -> list[av.Packet]:
    """As a tool writes them that takes the order of decoding for the order of showing."""
    for number, packet in enumerate(packets):
        packet.pts = packet.dts = number * (packet.duration or 1)
    return packets


def from_the_middle(packets: list[av.Packet]) -> list[av.Packet]:
    return packets[len(packets) // 3 :]


def without_the_second_third(packets: list[av.Packet]) -> list[av.Packet]:
    return packets[: len(packets) // 3] + packets[2 * len(packets) // 3 :]


def as_they_are(packets: list[av.Packet]) -> list[av.Packet]:
    return packets


def without_a_few(packets: list[av.Packet]) -> list[av.Packet]:
    return [packet for number, packet in enumerate(packets) if number % 11 != 7]


CHANGES = (as_they_are, made_up_times, from_the_middle, without_the_second_third, without_a_few)


def spoilt(path: Path, how: Kind, rng: random.Random, num_frames: int) -> tuple[str, Path]:
    """(what was done, a file that a cut, a join or a careless copy made of this one)."""
    change = rng.choice([*CHANGES, None, None])
    if change is not None:
        target = path.with_name(f"copy{rng.choice([path.suffix, '.mkv', '.mp4', '.ts', '.avi', '.mpg'])}")
        copy(path, target, change)
        return f"{change.__name__} to {target.suffix}", target
    target = path.with_name(f"other{path.suffix}")
    if rng.random() < 0.5:
        height, width = rng.choice([(48, 64), (64, 80)])
        encode(target, how, num_frames // 2, first=num_frames, height=height, width=width)
        target.write_bytes(path.read_bytes() + target.read_bytes())
        return f"joined to one of {width}x{height}", target
    size = int(path.stat().st_size * rng.uniform(0.3, 1))
    target.write_bytes(path.read_bytes()[:size])
    return f"cut to {size} bytes", target


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
    for frame, expected in zip(plain_frames(path), pixels, strict=False):  # where buffers are used again
        if not np.array_equal(as_rgb(frame, height, width), expected):
            raise ValueError("not decoded to the same pixels twice")
    times_s, end_s = times_of(path, frames)
    return Truth(times_s, torch.from_numpy(pixels), end_s)


def plain_frames(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as file:
        stream = file.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("no video")
        stream.codec_context.thread_count = 1  # with several, FFmpeg does not mark all damaged frames
        packets = [packet for packet in file.demux(stream) if packet.size]
        if packets and packets[-1].is_corrupt:
            packets.pop()
        for packet in [*packets, None]:
            yield from stream.decode(packet)


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
    num_files: int = 0
    num_requests: int = 0
    num_frames: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # (encoder, container)
    not_decoded: int = 0  # a full decode fails, too
    refused: Counter[str] = field(default_factory=Counter)  # though a full decode succeeds
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        encoders = {encoder for encoder, _ in self.kinds}
        lines = [
            f"{self.num_files} files of {len(self.kinds)} encoders x containers ({len(encoders)} encoders)",
            f"{self.num_requests} requests of {self.num_frames} frames, {len(self.differences)} differences",
            f"{self.not_decoded} files that a full decode refuses",
            f"{sum(self.refused.values())} files that only the reader refuses",
            *(f"  refused {count} x: {reason}" for reason, count in self.refused.most_common(20)),
            *(f"  DIFFERENT: {each}" for each in self.differences[:50]),
        ]
        return "\n".join(lines)


def examine(path: Path, name: str, rng: random.Random, num_requests: int, tally: Tally) -> bool:
    """Read a file in random ways. Returns: whether a full decode of it succeeds."""
    tally.num_files += 1
    try:
        truth = full_decode(path)
    except (av.FFmpegError, ValueError, OSError, TypeError, IndexError):
        tally.not_decoded += 1
        return False
    try:
        for _ in range(num_requests):
            # another file, for all that the reader remembers
            os.utime(path, ns=(1, tally.num_requests + 1))
            times_s = random_times(truth, rng)
            expected = truth.pixels[[max(i for i, start in enumerate(truth.times_s) if start <= t) for t in times_s]]
            tally.num_requests += 1
            tally.num_frames += len(times_s)
            if not torch.equal(read_frames(path, times_s), expected):
                tally.differences.append(f"{name} at {times_s}")
                return True
    except VideoError as error:
        tally.refused[f"{name}: {str(error).split(': ', 1)[-1]}"] += 1
    except ValueError as error:
        tally.differences.append(f"{name}: {error}")
    return True


def random_times(truth: Truth, rng: random.Random) -> list[float]:
    """One time or several: anywhere, on the borders of frames, or just before them."""
    borders = [*truth.times_s, *(float(np.nextafter(each, 0)) for each in truth.times_s if each > 0)]
    count = rng.choice([1, 1, 1, 2, 3, 8])
    times_s = [rng.choice([rng.uniform(0, truth.end_s * 0.999), rng.choice(borders)]) for _ in range(count)]
    return times_s if rng.random() < 0.9 else [*truth.times_s]


def run(kinds: list[tuple[Kind, str]], seed: int, count: int, time_limit_s: float, num_requests: int) -> Tally:
    """Examine `count` files, or as many as the time allows: of each kind one as it was encoded and one spoilt."""
    tally, begun, rng = Tally(), time.monotonic(), random.Random(seed)
    turns = deque(kinds)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=count, unit="file", delay=5) as bar:
        while turns and tally.num_files < count and time.monotonic() - begun < time_limit_s:
            how, suffix = turns.popleft()
            path, num_frames = Path(folder) / f"clip{suffix}", rng.randrange(20, 50)
            if not any(is_encoded(path, how, num_frames, size) for size in SIZES):
                continue
            turns.append((how, suffix))
            name = f"{how.encoder} {dict(how.options)} {suffix}, {num_frames} frames"
            if examine(path, name, rng, num_requests, tally):
                tally.kinds[how.encoder, suffix] += 1
            try:
                damage, other = spoilt(path, how, rng, num_frames)
            except (av.FFmpegError, ValueError, OSError, IndexError):  # the container does not take it, or lost it
                continue
            examine(other, f"{name}, {damage}", rng, num_requests, tally)
            bar.update(tally.num_files - bar.n)
    return tally


def is_encoded(path: Path, how: Kind, num_frames: int, size: tuple[int, int]) -> bool:
    try:
        encode(path, how, num_frames if size[0] < 500 else 12, height=size[0], width=size[1])
    except (av.FFmpegError, ValueError, OSError, OverflowError):
        return False
    return path.stat().st_size > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="of files")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds")
    parser.add_argument("--requests", type=int, default=6, help="of each file")
    args = parser.parse_args()
    av.logging.set_level(None)
    kinds = [(how, suffix) for how in every_kind() for suffix in CONTAINERS]
    tally = run(kinds, args.seed, args.count, args.time_limit, args.requests)
    print(tally)
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
