import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diveparse.datasets.storage.workers import worker_pool

MAIN = """
import os, sys, time
from diveparse.datasets.storage.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2, "diveparse.datasets.storage.workers") as pool:
        worker = pool.submit(os.getpid).result()
        jobs = [pool.submit(time.sleep, 0.1) for _ in range(1000)]
        print(worker, flush=True)  # only now: Python 3.11 may hang when interrupted within `submit`
        jobs[-1].result()
"""


def test_workers_answer_in_order() -> None:
    with worker_pool(2, "diveparse.datasets.storage.workers") as pool:
        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_main_process_that_is_killed_or_interrupted(deadly: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    main = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has them ignore Ctrl-C, and that would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert main.stdout is not None
    worker = int(main.stdout.readline())
    if deadly is signal.SIGKILL:
        main.kill()
    else:
        os.killpg(main.pid, deadly)  # as a terminal's Ctrl-C does, to the workers too
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
    _, errors = main.communicate(timeout=30)
    if deadly is signal.SIGINT:
        assert errors.count("Traceback") == 1  # the main process's own, and no worker's


ERRORS = """
import sys
from multiprocessing.synchronize import Lock
from diveparse.datasets.storage.workers import worker_pool
def print_errors():
    left = "the main process left"
    for error in (ConnectionResetError(left), EOFError(left), ValueError("something else")):
        sys.excepthook(type(error), error, None)
    try:
        Lock.__new__(Lock).__setstate__((0, 1, 1, "/that-the-main-process-removed"))
    except FileNotFoundError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    print("all printed", file=sys.stderr)
if __name__ == "__main__":
    with worker_pool(1, "diveparse.datasets.storage.workers") as pool:
        pool.submit(print_errors).result()
"""


def test_a_worker_prints_every_error_but_those_of_a_main_process_that_has_left(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(ERRORS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "something else" in done.stderr
    assert "the main process left" not in done.stderr
    assert "FileNotFoundError" not in done.stderr
    assert "all printed" in done.stderr


KILLED = """
import os, signal
from diveparse.datasets.storage.workers import worker_pool
if __name__ == "__main__":
    try:
        with worker_pool(1, "diveparse.datasets.storage.workers") as pool:
            pool.submit(os.kill, os.getpid(), 0).result()
            list(pool.map(os._exit, [1]))
    except ValueError as error:
        print(error)
"""


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("a worker process was killed, perhaps because memory ran out; start again with fewer")
