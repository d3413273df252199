import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diveparse.datasets.video import probe
from diveparse.engine.benchmark.loading import (
    equals_full_decode,
    frame_times,
    read_all,
    read_with_torchcodec,
    reencode,
)


@pytest.fixture
def video(tiny_root: Path) -> Path:
    return next((tiny_root / "rgb").iterdir())


def test_a_video_is_written_again_at_another_height_in_its_proportions(video, tmp_path):
    reencode(video, tmp_path / "taller.mp4", 96)
    before, after = probe(video), probe(tmp_path / "taller.mp4")
    assert (after.height, after.width) == (96, 96 * before.width // before.height)
    assert after.num_frames == before.num_frames
    assert equals_full_decode(tmp_path / "taller.mp4", frame_times([tmp_path / "taller.mp4"], 4).popitem()[1])


def test_a_reader_that_gives_another_shape_is_refused(video):
    times_s = frame_times([video], 4)
    with pytest.raises(ValueError, match=r"gave \(4, 3, 8, 8\) instead of \(4, 3, 16, 16\)"):
        read_all(lambda *_: torch.zeros(4, 3, 8, 8, dtype=torch.uint8), times_s, (16, 16))


def test_torchcodec_without_its_libraries_is_refused_with_what_to_install(video, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n1. …")

    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.transforms", SimpleNamespace(Resize=lambda size: size))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=refuse))
    with pytest.raises(ValueError, match="torchcodec finds no FFmpeg libraries: install FFmpeg, or uninstall"):
        read_with_torchcodec(video, torch.tensor([0.0]), (32, 32))
