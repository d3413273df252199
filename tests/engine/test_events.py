import numpy as np
import pytest

from diveparse.datasets.storage.disk import DiskFullError
from diveparse.engine.events import flush, open_events


def fill_with_pictures(writer):
    noise = np.random.default_rng(0)
    for step in range(99):
        writer.add_image("noise", noise.integers(0, 256, (3, 60, 60), dtype=np.uint8), step)
        flush(writer)


def test_a_full_disk_is_one_line_and_no_traceback_of_the_writers_thread(small_disk, capfd):
    full = pytest.raises(DiskFullError, match=rf"^{small_disk}/events\S+: no space left on the disk \(\S+ \S+ free\)")
    with full, open_events(small_disk) as writer:
        fill_with_pictures(writer)
    assert "Traceback" not in capfd.readouterr().err


def test_the_error_of_the_block_is_the_one_that_is_raised(small_disk):
    def fail(writer):
        with pytest.raises(OSError, match="No space"):
            fill_with_pictures(writer)
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"), open_events(small_disk) as writer:
        fail(writer)


def test_foreign_event_files_are_not_taken_for_the_newest(tmp_path):
    (tmp_path / "events.out.tfevents.9999999999.host~").touch()
    with open_events(tmp_path) as writer:
        writer.add_scalar("a", 1.0, 1)
        flush(writer)
