from collections.abc import Iterator
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest

from diveparse.datasets.rendered.sets import encode_h264
from diveparse.datasets.video import probe
from diveparse.datasets.video import writer as h264
from diveparse.datasets.video.writer import x264_options


@pytest.fixture
def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.cumsum(rng.integers(0, 9, (24, 48, 64, 3)), axis=0).astype(np.uint8)


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
        encode_h264(frames, 25, file)
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.skipif(not h264.ALIKE, reason="for x86 processors")
def test_the_encoder_takes_no_instructions_that_only_some_processors_have(
    frames: np.ndarray, tmp_path: Path, encoder_log: list[tuple[int, str, str]]
) -> None:
    encode_h264(frames, 25, tmp_path / "clip.mp4")
    lines = [line for _, _, line in encoder_log]
    (capabilities,) = [line for line in lines if "cpu capabilities" in line]
    assert "SSE4.2" in capabilities
    assert "AVX" not in capabilities
    assert not [line for line in lines if "rror" in line]


def test_other_processors_encode_with_what_they_have(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_log: list[tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(h264, "ALIKE", ())
    assert x264_options(20, "b-adapt=0")["x264-params"] == "b-adapt=0"
    encode_h264(frames, 25, tmp_path / "clip.mp4")
    assert probe(tmp_path / "clip.mp4").num_frames == len(frames)
    assert not [line for _, _, line in encoder_log if "rror" in line]
