from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from diveparse.datasets.storage import lock
from diveparse.datasets.storage.lock import LOCK_FILE, STALE_S, Holder, InUseError, locked, require_unlocked

HOLD = """
import sys, time
from pathlib import Path
from diveparse.datasets.storage.lock import InUseError, locked
try:
    with locked(Path(sys.argv[1]), "training"):
        print("held", flush=True)
        sys.stdin.readline()
except InUseError as error:
    print(error, flush=True)
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder until a line is written to it."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with start(tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_lock(folder: Path, holder: Holder, *, age_s: float = 0.0) -> None:
    path = folder / LOCK_FILE
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age_s,) * 2)


def take(folder: Path) -> None:
    with locked(folder, "training"):
        assert (folder / LOCK_FILE).exists()
    assert not list(folder.iterdir())


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path: Path, other: subprocess.Popen) -> None:
    line = rf"{tmp_path} is in use: training by process {other.pid} on \S+ since \S+ \S+; wait until that has ended"
    for attempt in (lambda: take(tmp_path), lambda: require_unlocked(tmp_path)):
        with pytest.raises(InUseError, match=line) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    other.communicate("\n")
    require_unlocked(tmp_path)
    take(tmp_path)


@needs_proc
def test_a_lock_whose_process_was_killed_is_taken_over_at_once(tmp_path: Path, other: subprocess.Popen) -> None:
    other.kill()
    other.wait()
    require_unlocked(tmp_path)
    take(tmp_path)


@needs_proc
def test_a_process_that_has_the_same_number_since_does_not_keep_a_lock_alive(tmp_path: Path) -> None:
    mine = Holder.this_process("training")
    write_lock(tmp_path, mine)
    with pytest.raises(InUseError):
        take(tmp_path)
    write_lock(tmp_path, replace(mine, started="1"))
    take(tmp_path)


@pytest.mark.parametrize("elsewhere", [{"machine": "another", "host": "node7"}, {"started": ""}])
def test_a_lock_of_another_machine_counts_as_long_as_its_heart_beats(elsewhere: dict, tmp_path: Path) -> None:
    holder = replace(Holder.this_process("training"), **elsewhere)
    write_lock(tmp_path, holder, age_s=STALE_S - 60)
    with pytest.raises(InUseError, match=rf"on {holder.host} since .* \(after a crash of another machine, wait 3 min"):
        take(tmp_path)
    write_lock(tmp_path, holder, age_s=STALE_S + 60)
    take(tmp_path)


def test_a_lock_that_was_cut_short_counts_until_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text('{"work": "tr')
    with pytest.raises(InUseError, match="in use: an unknown process"):
        take(tmp_path)
    os.utime(path, (0, 0))
    take(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_lock_is_released_after_an_error_and_after_ctrl_c(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), locked(tmp_path, "training"):
        raise error
    take(tmp_path)


def test_a_lock_beats_as_long_as_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    with locked(tmp_path, "training"):
        path = tmp_path / LOCK_FILE
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_lock_that_was_removed_by_hand_and_taken_by_another_is_left_to_it(tmp_path: Path) -> None:
    with locked(tmp_path, "training"):
        (tmp_path / LOCK_FILE).write_text("another's")
    assert (tmp_path / LOCK_FILE).read_text() == "another's"


def test_a_folder_made_for_a_lock_alone_is_removed_with_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new", "training"):
        pass
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new", "training"):
        (tmp_path / "new" / "file").touch()
    assert (tmp_path / "new" / "file").exists()


@needs_proc
def test_of_several_that_find_a_stale_lock_at_the_same_time_one_takes_it(tmp_path: Path) -> None:
    write_lock(tmp_path, replace(Holder.this_process("training"), started="1"))
    with ExitStack() as stack:
        processes = [stack.enter_context(start(tmp_path)) for _ in range(4)]
        lines = [process.stdout.readline() for process in processes]
        for process in processes:
            process.communicate("\n")
    assert lines.count("held\n") == 1
    assert all("is in use" in line for line in lines if line != "held\n")
    assert not list(tmp_path.iterdir())
