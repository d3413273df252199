from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from diveparse.datasets.storage import journal
from diveparse.datasets.storage.atomic import write_json, write_text, written_atomically
from diveparse.datasets.storage.disk import DiskFullError, in_bytes, naming_full_disk, require_space, space_problem
from diveparse.datasets.storage.workers import worker_pool
from diveparse.datasets.video.writer import Picture, write_h264, x264_options

NUMBERS = torch.rand(100_000)  # 400 kB, more than the small disk holds
SIZES = r"(\S+ \S+ needed, )?\S+ (bytes|kB) free"
LINE = rf"no space left on the disk \({SIZES}\); nothing that was there before is lost; free some space"


@dataclass(frozen=True)
class Done:
    name: str


def write_numbers(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, NUMBERS.numpy())


def write_compressed_numbers(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, NUMBERS.numpy())


def write_picture(path: Path) -> None:
    Image.fromarray(noise(600, 600)).save(path, "PNG")


def write_video(path: Path) -> None:
    pictures = (Picture(noise(240, 320, seed)) for seed in range(12))
    write_h264(path, pictures, rate_hz=Fraction(25), options=x264_options(1))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 400_000),
    "safetensors": lambda path: save_file({"numbers": NUMBERS}, path),
    "torch": lambda path: torch.save({"numbers": NUMBERS}, path),
    "numpy": write_numbers,
    "compressed numpy": write_compressed_numbers,
    "picture": write_picture,
    "video": write_video,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_to_a_full_disk_ends_in_one_line_and_the_old_file_stays(writer: str, small_disk: Path) -> None:
    path = small_disk / "file"
    path.write_text("old")
    with pytest.raises(DiskFullError, match=rf"^{path}: {LINE}$"), written_atomically(path) as temporary:
        WRITERS[writer](temporary)
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


def test_a_small_video_that_only_its_end_cannot_be_written_of_is_noticed(small_disk: Path) -> None:
    """FFmpeg keeps the last 32 kB to itself until it closes the file."""
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filling").write_bytes(bytes(400_000))
    pictures = [Picture(np.zeros((32, 32, 3), np.uint8))]
    with pytest.raises(DiskFullError, match=LINE), written_atomically(small_disk / "file.mp4") as temporary:
        write_h264(temporary, pictures, rate_hz=Fraction(25), options=x264_options(20))


def test_what_a_file_needs_is_named_where_it_is_known(small_disk: Path) -> None:
    full = pytest.raises(DiskFullError, match=r"400 kB needed, 262 kB free")
    with full, written_atomically(small_disk / "file", NUMBERS.nbytes) as temporary:
        save_file({"numbers": NUMBERS}, temporary)


def test_a_journal_on_a_full_disk_keeps_its_entries_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    path, filling = small_disk / "journal.jsonl", small_disk / "filling"
    journal.append(path, Done("a"))
    with pytest.raises(OSError, match="No space"):
        filling.write_bytes(bytes(400_000))
    with pytest.raises(DiskFullError, match=rf"{path}: {LINE}"):
        journal.append(path, Done("b" * 5000))
    filling.unlink()
    journal.append(path, Done("c"))
    assert {"a", "c"} <= journal.read(path, Done).keys()


def test_a_workers_full_disk_is_the_same_one_line_in_the_main_process(small_disk: Path) -> None:
    full = pytest.raises(DiskFullError, match=rf"^{small_disk / 'file'}: {LINE}")
    with full, worker_pool(1, "diveparse.datasets.storage.workers") as pool:
        pool.submit(write_text, small_disk / "file", "x" * 400_000).result()


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "in any language"), "no space left"),
        (OSError(errno.EDQUOT, "in any language"), "the quota"),
        (OSError(errno.EFBIG, "in any language"), "too large for one file"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"), "no space left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "no space left"),
        (OSError("200000 requested and 76768 written"), "no space left"),
        (DiskFullError("runs: training needs about 3 MB and 1 MB are free"), "no space left"),
        (chained(ValueError("cannot be written"), OSError(errno.ENOSPC, "")), "no space left"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_librarys_way_of_failing_for_space_is_recognised(error: Exception, problem: str) -> None:
    assert space_problem(error).startswith(problem)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), PermissionError(13, "denied"), ValueError("28")])
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))) as caught, naming_full_disk(tmp_path):
        raise error
    assert caught.value is error


def test_work_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1000, "a small thing")
    with pytest.raises(DiskFullError, match=r"/not/there: a large thing needs about 1000000 TB and .* are free; free"):
        require_space(tmp_path / "not" / "there", 10**18, "a large thing")
    assert not list(tmp_path.iterdir())


def test_bytes_are_shown_in_a_unit_that_leaves_few_digits() -> None:
    shown = [in_bytes(number) for number in (0, 999, 1000, 1234, 99_960, 999_900, 5_000_000, 2_500_000_000, 10**13)]
    assert shown == ["0 bytes", "999 bytes", "1 kB", "1.2 kB", "100 kB", "1000 kB", "5 MB", "2.5 GB", "10 TB"]


def test_a_file_of_an_impossible_size_is_refused_with_its_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores the signal
    try:
        with pytest.raises(DiskFullError, match=r"file\.json: too large for one file of the disk"):
            write_json(tmp_path / "file.json", ["x" * 5000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
