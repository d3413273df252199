from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest

from diveparse.datasets.video import probe, writer
from diveparse.datasets.video.writer import Picture, write_h264, x264_options


@pytest.fixture
def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.cumsum(rng.integers(0, 9, (24, 48, 64, 3)), axis=0).astype(np.uint8)


def encode(frames: np.ndarray, path: Path) -> None:
    write_h264(path, map(Picture, frames), rate_hz=Fraction(25), options=x264_options(21))


@pytest.fixture
def encoder_log() -> Iterator[list[tuple[int, str, str]]]:
    before = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture(local=False) as lines:
            yield lines
    finally:
        av.logging.set_level(before)


def test_the_same_pictures_give_the_same_bytes_each_time(frames: np.ndarray, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.mp4" for number in range(12)]
    for file in files:
        encode(frames, file)
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.skipif(not writer.REPEATABLE, reason="for x86 processors")
def test_the_encoder_takes_no_instructions_that_only_some_processors_have(
    frames: np.ndarray, tmp_path: Path, encoder_log: list[tuple[int, str, str]]
) -> None:
    encode(frames, tmp_path / "clip.mp4")
    lines = [line for _, _, line in encoder_log]
    (capabilities,) = [line for line in lines if "cpu capabilities" in line]
    assert "SSE4.2" in capabilities
    assert "AVX" not in capabilities
    assert not [line for line in lines if "rror" in line]


def test_other_processors_encode_with_what_they_have(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_log: list[tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(writer, "REPEATABLE", ())
    assert x264_options(20, "b-adapt=0")["x264-params"] == "b-adapt=0"
    encode(frames, tmp_path / "clip.mp4")
    assert probe(tmp_path / "clip.mp4").num_frames == len(frames)
    assert not [line for _, _, line in encoder_log if "rror" in line]


def test_times_and_durations_are_kept_to_the_tick(frames: np.ndarray, tmp_path: Path) -> None:
    starts = [0, 7, 8, 20, 30]
    pictures = [Picture(pixels, start, 3) for pixels, start in zip(frames[:5], starts, strict=True)]
    path = tmp_path / "clip.mp4"
    tick_s = Fraction(1, 100)
    write_h264(path, pictures, rate_hz=Fraction(10), options={"bf": "0"}, tick_s=tick_s)
    with av.open(str(path)) as file:
        shown = [frame.pts * frame.time_base / tick_s for frame in file.decode(video=0)]
        assert file.streams.video[0].duration * file.streams.video[0].time_base == 33 * tick_s
    assert shown == starts


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip\.mp4: expected one picture or more"):
        write_h264(tmp_path / "clip.mp4", [], rate_hz=Fraction(25), options={})
