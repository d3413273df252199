"""Video files of every kind that PyAV's FFmpeg writes, as they are encoded and as cuts, joins and careless copies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CONTAINERS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".flv", ".wmv", ".ogv", ".gif", ".3gp")
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


def encoded(folder: Path, how: Kind, suffix: str, seed: str) -> tuple[str, list[tuple[str, Path]]]:
    """Write one file of a kind and one that is spoilt. Returns: the kind's name, and what was done to each file."""
    rng = random.Random(seed)
    path, num_frames = folder / f"clip{suffix}", rng.randrange(20, 50)
    name = f"{how.encoder} {dict(how.options)} {suffix}, {num_frames} frames"
    if not any(is_encoded(path, how, num_frames, size) for size in SIZES):
        return name, []
    try:
        return name, [("as encoded", path), spoilt(path, how, rng, num_frames)]
    except (av.FFmpegError, ValueError, OSError, IndexError):  # the container does not take it, or lost it
        return name, [("as encoded", path)]


def is_encoded(path: Path, how: Kind, num_frames: int, size: tuple[int, int]) -> bool:
    try:
        encode(path, how, num_frames if size[0] < 500 else 12, height=size[0], width=size[1])
    except (av.FFmpegError, ValueError, OSError, OverflowError):
        return False
    return path.stat().st_size > 0
