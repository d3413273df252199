import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from diveparse.datasets.storage.atomic import make_folder, sync, write_json, written_atomically


def test_the_new_content_appears_only_when_the_block_is_done(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written_atomically(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with written_atomically(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_behind_is_written_over(tmp_path):
    (tmp_path / "file.json.partial").write_text("half of an older, much longer file")
    write_json(tmp_path / "file.json", {"a": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


def test_json_without_a_spelling_for_a_number_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "file.json", {"nll": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than `tmp_path`, which no rename can reach from there."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm, a disk in memory")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        with pytest.raises(OSError, match="cross-device"):
            (tmp_path / "file").touch() or (tmp_path / "file").rename(Path(folder) / "file")
        yield Path(folder)


def test_a_file_is_written_through_a_link_to_a_folder_on_another_disk(tmp_path, other_disk):
    (tmp_path / "cache").symlink_to(other_disk)
    write_json(tmp_path / "cache" / "training" / "settings.json", {"a": 1})
    assert json.loads((other_disk / "training" / "settings.json").read_text()) == {"a": 1}


def test_a_link_to_a_file_on_another_disk_is_replaced_by_the_file(tmp_path, other_disk):
    (other_disk / "old.json").write_text("old")
    (tmp_path / "file.json").symlink_to(other_disk / "old.json")
    write_json(tmp_path / "file.json", {"a": 1})
    assert not (tmp_path / "file.json").is_symlink()
    assert (other_disk / "old.json").read_text() == "old"


@pytest.mark.parametrize("below", ["", "training"])
def test_a_link_to_a_folder_that_is_not_there_is_named(tmp_path, below):
    link, target = tmp_path / "cache", tmp_path / "unmounted"
    link.symlink_to(target)
    with pytest.raises(ValueError, match=f"^{link}: a link to the folder {target}, which is not there; is its disk"):
        write_json(link / below / "settings.json", {})


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(FileExistsError, match=f"{tmp_path / 'cache'}"):
        make_folder(tmp_path / "cache")


@pytest.mark.parametrize("answer", [errno.EACCES, errno.EINVAL, errno.EBADF], ids=["EACCES", "EINVAL", "EBADF"])
def test_a_disk_that_cannot_flush_folders_does_without(tmp_path, monkeypatch, answer):
    flush = os.fsync

    def flush_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(answer, os.strerror(answer))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    write_json(tmp_path / "file.json", {"a": 1})
    assert (tmp_path / "file.json").is_file()


@pytest.mark.parametrize(("name", "answer"), [("", errno.EIO), ("file", errno.EINVAL)], ids=["folder", "file"])
def test_a_flush_that_fails_is_an_error(tmp_path, monkeypatch, name, answer):
    (tmp_path / "file").touch()

    def fail(_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(answer)):
        sync(tmp_path / name)
