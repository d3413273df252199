import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from diveparse.datasets.video import claims as mp4_claims
from diveparse.datasets.video import probe, read_frames
from diveparse.datasets.video.claims import ExcessiveClaimError, refuse_excessive_claims

WriteVideo = Callable[..., Path]


@pytest.mark.parametrize(
    ("suffix", "container_options"),
    [
        (".mp4", {}),
        (".mp4", {"movflags": "faststart"}),
        (".mp4", {"movflags": "frag_keyframe+empty_moov+dash"}),
        (".mov", {}),
        (".mkv", {}),
        (".avi", {}),
        (".ts", {}),
    ],
)
def test_an_honest_file_passes(
    suffix: str, container_options: dict[str, str], tmp_path: Path, write_video: WriteVideo
) -> None:
    refuse_excessive_claims(write_video(tmp_path / f"clip{suffix}", container_options=container_options))


def write_with_sound(path: Path, write_video: WriteVideo) -> Path:
    """A clip of 30 frames with uncompressed sound, as cameras write it."""
    silent = write_video(path.with_name("silent.mp4"))
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        pictures = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("pcm_s16le", rate=48_000)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = pictures
                target.mux(packet)
        for index in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, index * 1920, Fraction(1, 48_000)
            target.mux(sound.encode(frame))
    return path


def claim(path: Path, num_samples: int, ticks: int = 1) -> None:
    """Let the sound have other samples, each that many ticks long."""
    content = path.read_bytes()
    start = content.index(b"soun")
    durations, sizes = content.index(b"stts", start), content.index(b"stsz", start)
    assert struct.unpack_from(">4x3I", content, durations + 4) == (1, 30 * 1920, 1)
    changed = bytearray(content)
    struct.pack_into(">2I", changed, durations + 12, num_samples, ticks)
    struct.pack_into(">I", changed, sizes + 12, num_samples)
    path.write_bytes(changed)


def test_a_video_with_uncompressed_sound_is_read(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_with_sound(tmp_path / "clip.mov", write_video)
    assert probe(path).num_frames == 30
    times_s = [0.0, 0.5, 1.1]
    assert torch.equal(read_frames(path, times_s), read_frames(tmp_path / "silent.mp4", times_s))


def test_uncompressed_sound_counts_by_its_pieces(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_with_sound(tmp_path / "clip.mov", write_video)
    claim(path, 48_000 * 3600)  # of an hour
    refuse_excessive_claims(path)


@pytest.mark.parametrize("lie", ["longer samples", "pictures", "too many chunks"])
def test_samples_that_only_look_like_sound_count_each(lie: str, tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_with_sound(tmp_path / "clip.mov", write_video)
    claim(path, 48_000 * 3600, ticks=2 if lie == "longer samples" else 1)
    content = bytearray(path.read_bytes())
    if lie == "pictures":
        at = content.index(b"soun")
        content[at : at + 4] = b"vide"
    if lie == "too many chunks":
        at = content.index(b"stco", content.index(b"soun"))
        struct.pack_into(">I", content, at + 8, 10**9)
    path.write_bytes(content)
    with pytest.raises(ExcessiveClaimError, match=r"got a claim of \d{9,} samples in 1 edits"):
        refuse_excessive_claims(path)


def test_a_header_beyond_the_limit_is_refused_unread(
    tmp_path: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(mp4_claims, "MAX_HEADER_BYTES", 500)
    with pytest.raises(ExcessiveClaimError, match="expected an MP4 header of at most 500 bytes in 200000 boxes"):
        refuse_excessive_claims(path)


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_header_cut_short_passes_to_ffmpeg(cut: int, tmp_path: Path) -> None:
    content = struct.pack(">I4s", 100, b"moov") + struct.pack(">I4s", 92, b"trak") + struct.pack(">I4s", 84, b"stsz")
    path = tmp_path / "cut.mp4"
    path.write_bytes((content + bytes(16))[:cut])
    refuse_excessive_claims(path)
