import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.video import VideoError, captions, probe, read_frames
from diveparse.datasets.video.captions import draw_band, write_captioned

WriteVideo = Callable[..., Path]

LINES = ["5253B  Back 2½ somersaults 1½ twists pike, probability 0.81", "back 0.98, 2½ somersaults 0.93, pike 0.97"]
LARGE = {"height": 336, "width": 448}  # drawn on without being enlarged
UNEVEN_TIMES_S = [0.0, 0.02, 0.05, 0.3, 0.31, 0.7, 0.71, 0.72, 1.3, 1.4]


def times_shown(path: Path) -> list[float]:
    """Seconds from the first frame shown, as the decoder gives them."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    return [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]


def assert_like(copy: Path, source: Path, scale: int = 1) -> None:
    """Same frames at the same times; same picture above the band, another one in it."""
    shown_s, about, about_copy = times_shown(source), probe(source), probe(copy)
    assert times_shown(copy) == pytest.approx(shown_s, abs=1e-9)
    assert about_copy.duration_s == pytest.approx(about.duration_s, abs=1e-9)
    assert about_copy.codec == "h264"
    few = shown_s[:: max(1, len(shown_s) // 4)]
    expected = read_frames(source, few).float()
    height, width = (side * scale for side in expected.shape[2:])
    assert (about_copy.height, about_copy.width) == (height + height % 2, width + width % 2)
    found = read_frames(copy, few)[:, :, :height:scale, :width:scale].float()
    band_height = math.ceil(len(draw_band(LINES, about_copy.height, about_copy.width)) / scale)
    above = about.height - band_height - 2  # two rows aside, where compression mixes them
    assert (found - expected)[:, :, :above].abs().mean() < 4
    assert (found - expected)[:, :, -band_height:].abs().mean() > 20


@pytest.mark.parametrize(
    "kind",
    [
        {"rate_hz": Fraction(30_000, 1001), "num_frames": 9},
        {"times_s": UNEVEN_TIMES_S},
        {"times_s": [time_s + 3 for time_s in UNEVEN_TIMES_S]},
        {"rotation": 90, "num_frames": 5},
        {"rotation": 180, "num_frames": 5},
        {"rotation": 270, "num_frames": 5},
        {"rotation": 90, "flipped": True, "num_frames": 5},
    ],
    ids=str,
)
def test_the_copy_shows_the_same_frames_at_the_same_times(kind: dict, tmp_path: Path, write_video: WriteVideo) -> None:
    source = write_video(tmp_path / "dive.mp4", **LARGE, **kind)
    write_captioned(source, tmp_path / "copy.mp4", LINES)
    assert_like(tmp_path / "copy.mp4", source)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".ts", ".webm"])
def test_every_container_is_copied_into_mp4(suffix: str, tmp_path: Path, write_video: WriteVideo) -> None:
    codec = {"codec": "libvpx-vp9" if suffix == ".webm" else "mpeg4", "options": {"crf": "10", "qscale": "2"}}
    source = write_video(tmp_path / f"dive{suffix}", num_frames=8, **LARGE, **codec)
    write_captioned(source, tmp_path / "copy.mp4", LINES)
    assert len(times_shown(tmp_path / "copy.mp4")) == 8
    assert times_shown(tmp_path / "copy.mp4") == pytest.approx([k / 25 for k in range(8)], abs=0.0006)


def test_a_small_picture_with_odd_sides_is_enlarged_and_made_even(tmp_path: Path, write_video: WriteVideo) -> None:
    source = write_video(tmp_path / "dive.mkv", num_frames=3, height=65, width=87, codec="ffv1")
    write_captioned(source, tmp_path / "copy.mp4", LINES)
    assert_like(tmp_path / "copy.mp4", source, scale=5)


@pytest.mark.parametrize("name", ["decord_video_rot0.mov", "decord_video_rot180.mov", "decord_video_rot270.mov"])
def test_real_files_keep_their_times_and_stand_upright(name: str, tmp_path: Path, shared_data: Path) -> None:
    write_captioned(shared_data / "videos" / name, tmp_path / "copy.mp4", LINES)
    assert_like(tmp_path / "copy.mp4", shared_data / "videos" / name)


@pytest.mark.parametrize("name", ["mmaction2_test.avi", "moviepy_bbb.webm", "torchcodec_bt709_full.mp4"])
def test_real_files_of_other_kinds_can_be_copied(name: str, tmp_path: Path, shared_data: Path) -> None:
    write_captioned(shared_data / "videos" / name, tmp_path / "copy.mp4", LINES, end_s=0.49)
    source = probe(shared_data / "videos" / name)
    assert probe(tmp_path / "copy.mp4").num_frames == math.ceil(0.49 * source.frame_rate_hz)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_window_holds_what_is_on_screen_in_it(suffix: str, tmp_path: Path, write_video: WriteVideo) -> None:
    source = write_video(tmp_path / f"final{suffix}", num_frames=60, codec="mpeg4", options={"g": "12", "bf": "2"})
    copy = tmp_path / "copy.mp4"
    write_captioned(source, copy, LINES, start_s=1.5 / 25 + 1, end_s=1.5)  # within frame 26 to the end of frame 37
    assert times_shown(copy) == pytest.approx([k / 25 for k in range(12)], abs=0.002)
    assert probe(copy).duration_s == pytest.approx(12 / 25, abs=0.002)
    expected = read_frames(source, [(26.5 + k) / 25 for k in (0, 6, 11)]).float()
    found = read_frames(copy, [(0.5 + k) / 25 for k in (0, 6, 11)])[:, :, ::7, ::7].float()
    assert (found - expected)[:, :, :24].abs().mean() < 5
    assert found.shape == expected.shape


def test_no_frame_is_lost_where_the_times_of_a_file_are_false(tmp_path: Path, write_video: WriteVideo) -> None:
    source, false = write_video(tmp_path / "dive.mp4", **LARGE, options={"bf": "2", "b-adapt": "0"}), tmp_path / "b.mp4"
    with av.open(str(source)) as file, av.open(str(false), "w") as target:
        stream = target.add_stream_from_template(file.streams.video[0])
        for number, packet in enumerate(packet for packet in file.demux(video=0) if packet.size):
            packet.pts = packet.dts = number * packet.duration  # as if frames were shown as they are decoded
            packet.stream = stream
            target.mux(packet)
    write_captioned(false, tmp_path / "copy.mp4", LINES)
    assert times_shown(tmp_path / "copy.mp4") == pytest.approx([k / 25 for k in range(30)])
    times_s = [(k + 0.5) / 25 for k in range(30)]
    assert torch.equal(read_frames(false, times_s), read_frames(source, times_s))


def test_a_picture_too_large_when_enlarged_is_refused(tmp_path: Path, write_video: WriteVideo) -> None:
    strip = write_video(tmp_path / "strip.mkv", num_frames=2, height=2, width=6000, codec="ffv1")
    with pytest.raises(VideoError, match=r"strip\.mkv: a captioned copy would have 960000x320 pixels; at most"):
        write_captioned(strip, tmp_path / "copy.mp4", LINES)


def test_what_an_edit_list_cuts_away_is_not_copied(tmp_path: Path, write_video: WriteVideo) -> None:
    whole, cut = write_video(tmp_path / "whole.mp4", options={"g": "6"}, **LARGE), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:  # the last packet is an empty one
                ticks = int(Fraction(10, 25) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
                target.mux(packet)
    assert probe(cut).num_frames == 20
    write_captioned(cut, tmp_path / "copy.mp4", LINES)
    assert_like(tmp_path / "copy.mp4", cut)


def test_pixels_that_are_not_square_stay_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "pal.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        file.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        file.mux(stream.encode())
    write_captioned(tmp_path / "pal.mp4", tmp_path / "copy.mp4", LINES)
    with av.open(str(tmp_path / "copy.mp4")) as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_a_picture_that_changes_its_size_on_the_way_keeps_the_first(tmp_path: Path, write_video: WriteVideo) -> None:
    parts = [write_video(tmp_path / f"{width}.ts", num_frames=3, height=336, width=width) for width in (448, 400)]
    (tmp_path / "dive.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    write_captioned(tmp_path / "dive.ts", tmp_path / "copy.mp4", LINES)
    assert (probe(tmp_path / "copy.mp4").width, probe(tmp_path / "copy.mp4").height) == (448, 336)


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path, write_video: WriteVideo) -> None:
    source = write_video(tmp_path / "dive.mp4")
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"dive\.mp4 already exists; choose another name"):
        write_captioned(source, source, LINES)
    assert source.read_bytes() == before


def test_a_source_that_breaks_off_leaves_no_copy(tmp_path: Path, write_video: WriteVideo) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(write_video(tmp_path / "dive.mp4").read_bytes()[:2000])
    with pytest.raises(VideoError, match=r"broken\.mp4: cannot be read as a video"):
        write_captioned(broken, tmp_path / "copy.mp4", LINES)
    assert {path.name for path in tmp_path.iterdir()} == {"broken.mp4", "dive.mp4"}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, write_video: WriteVideo) -> None:
    source = write_video(tmp_path / "dive.mp4", num_frames=2)
    (tmp_path / "copy.mp4.partial").mkdir()  # in the way
    with pytest.raises((ValueError, OSError), match=r"copy\.mp4"):
        write_captioned(source, tmp_path / "copy.mp4", LINES)


@pytest.mark.parametrize("size", [(320, 426), (480, 640), (1080, 1920), (1920, 1080), (320, 4000), (4000, 320)])
def test_the_whole_text_fits_into_a_band_on_half_the_picture_at_most(size: tuple[int, int]) -> None:
    height, width = size
    band = draw_band(LINES, height, width)
    assert band.shape[1:] == (width, 4)
    assert len(band) <= height / 2
    assert len(band) > min(size) / 12  # two lines
    letters = band[..., :3].any(axis=-1)
    for edge in (letters[:3], letters[-3:], letters[:, :3], letters[:, -3:]):
        assert not edge.any()  # nothing is cut off
    assert letters.mean() > 0.01


def test_the_font_has_every_sign_of_a_dives_name() -> None:
    font = ImageFont.truetype(str(captions.FONT), 20)

    def drawn(sign: str) -> Image.Image:
        picture = Image.new("L", (40, 40))
        ImageDraw.Draw(picture).text((5, 5), sign, font=font, fill=255)
        return picture

    unknown = drawn("\uffff")
    for sign in {sign for dive in DIVING48 for sign in dive.name if sign != " "}:
        assert ImageChops.difference(drawn(sign), unknown).getbbox() is not None, sign
    assert ImageChops.difference(drawn("\u00a0"), Image.new("L", (40, 40))).getbbox() is None


def test_text_is_broken_between_words_but_not_at_a_no_break_space() -> None:
    font = ImageFont.truetype(str(captions.FONT), 20)
    line = "back\u00a00.98, 2½\u00a0somersaults\u00a00.93, 1½\u00a0twists\u00a00.90, pike\u00a00.97"
    parts = captions._broken(line, font, 300)
    assert " ".join(parts) == line
    assert len(parts) > 1
    assert all(font.getlength(part) <= 300 for part in parts)


def test_a_playlist_is_refused_as_the_reader_refuses_it(tmp_path: Path, write_video: WriteVideo) -> None:
    write_video(tmp_path / "dive.mp4", **LARGE, num_frames=3)
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile dive.mp4\n")
    with pytest.raises(VideoError, match=r"list\.mp4: cannot be read as one of"):
        write_captioned(playlist, tmp_path / "copy.mp4", LINES)
