from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from diveparse.datasets import archives
from diveparse.datasets.archives import unpack
from diveparse.datasets.storage.disk import DiskFullError

NAMES = [f"source_{source:04d}_{clip:05d}.mp4" for source in range(2) for clip in range(3)]
CONTENT = os.urandom(50_000)  # no video: unpacking does not look inside


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **others: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in others.items():
        setattr(info, field, value)
    return info


def archive_of(path: Path, mode: str = "w", names: list[str] = NAMES) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name in names:
            tar.addfile(member(f"somewhere/rgb/{name}", len(CONTENT)), io.BytesIO(CONTENT))
    return path


def unpacked(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "rgb").iterdir())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_clips_are_unpacked_once_whatever_the_compression(mode: str, tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "videos.tar", mode)
    progress = list(unpack(archive, tmp_path))
    assert progress[-1][1] == archive.stat().st_size
    assert unpacked(tmp_path) == NAMES
    assert all((tmp_path / "rgb" / name).read_bytes() == CONTENT for name in NAMES)
    times = {name: (tmp_path / "rgb" / name).stat().st_mtime_ns for name in NAMES}
    list(unpack(archive, tmp_path))
    assert times == {name: (tmp_path / "rgb" / name).stat().st_mtime_ns for name in NAMES}


def test_only_plain_files_named_as_a_clip_are_unpacked_and_nothing_outside_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive = archive_of(root / "videos.tar", names=NAMES[:1])
    with tarfile.open(archive, "a") as tar:
        for name in ("../../outside.json", "../../evil.mp4", "/tmp/source_0009_00001.txt", "source_0009_1.mp4"):
            tar.addfile(member(name, 3), io.BytesIO(b"abc"))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            tar.addfile(member(f"rgb/linked_0000_{number:05d}.mp4", kind=kind, linkname="/etc/hostname"))
        tar.addfile(member("../../source_0001_00009.mp4", 3), io.BytesIO(b"abc"))
    list(unpack(archive, root))
    assert unpacked(root) == sorted([NAMES[0], "source_0001_00009.mp4"])
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(
    "content",
    [b"", b"no tar at all" * 100, gzip.compress(b"no tar" * 100)],
    ids=["empty", "plain", "gzip"],  # as bytes, the third would hold the time, which differs between test processes
)
def test_what_is_no_tar_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "videos.tar"
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"videos\.tar: (not a whole tar file|holds no video)"):
        list(unpack(archive, tmp_path))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_archive_is_refused_in_one_line(mode: str, damage: str, tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "videos.tar", mode)
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2 : len(content) // 2 + 999] = bytes(999)
    archive.write_bytes(content)
    if (mode, damage) == ("w", "noise"):  # a tar has no checksum of what it holds
        return
    with pytest.raises(ValueError, match=r"videos\.tar: not a whole tar file: .*; download it again$") as caught:
        list(unpack(archive, tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rgb").exists() or unpacked(tmp_path) == []


def test_what_comes_after_the_end_of_a_tar_is_a_bomb_too(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "videos.tar", "w:gz")
    archive.write_bytes(archive.read_bytes() + gzip.compress(bytes(2**24)) * 16)
    with pytest.raises(ValueError, match=r"videos\.tar: expands to .* over 20 times its size"):
        list(unpack(archive, tmp_path))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [2**40, 2**21, -512])
def test_a_name_of_any_claimed_length_is_not_read_into_memory(kind: bytes, size: int, tmp_path: Path) -> None:
    archive = tmp_path / "videos.tar"
    header = member("long", size, kind).tobuf(tarfile.GNU_FORMAT)
    archive.write_bytes(header + bytes(10_240))
    with pytest.raises(ValueError, match=r"not a whole tar file: a name or a header claims -?\d+ bytes"):
        list(unpack(archive, tmp_path))


def test_a_member_of_negative_size_does_not_send_the_reader_back(tmp_path: Path) -> None:
    archive = tmp_path / "videos.tar"
    archive.write_bytes(member(NAMES[0], -1024).tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(ValueError, match="claims -1024 bytes"):
        list(unpack(archive, tmp_path))


@pytest.mark.parametrize("name", [NAMES[0], "README"])
def test_a_bomb_is_refused_before_it_is_unpacked(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "videos.tar"
    header = gzip.compress(member(name, 2**28).tobuf())
    archive.write_bytes(header + gzip.compress(bytes(2**24)) * 16)  # one gzip file after another is one, too
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"videos\.tar: expands to 0\.268 GB or more, over 20 times its size"):
        list(unpack(archive, tmp_path))
    assert time.monotonic() - start < 2
    assert not (tmp_path / "rgb").exists()


def test_a_video_with_holes_is_not_filled_up(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "videos.tar", names=NAMES[:1])
    with tarfile.open(archive, "a", format=tarfile.PAX_FORMAT) as tar:
        info = member(NAMES[1], 8)
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
        tar.addfile(info, io.BytesIO(b"1\n0\n512\n"))
    with pytest.raises(ValueError, match=r"not a whole tar file|expands to"):
        list(unpack(archive, tmp_path))
    assert unpacked(tmp_path) == NAMES[:1]


def test_a_disk_without_room_is_told_before_a_video_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path / "videos.tar")
    usage = shutil.disk_usage(tmp_path)._replace(free=archives.SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"unpacking source_0000_00000\.mp4 needs about 268 MB and 268 MB are free"):
        list(unpack(archive, tmp_path))
    assert list((tmp_path / "rgb").iterdir()) == []


def test_an_archive_of_endless_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_NUM_MEMBERS", 5)
    with pytest.raises(ValueError, match="expected at most 5 files in it, got more"):
        list(unpack(archive_of(tmp_path / "videos.tar"), tmp_path))
