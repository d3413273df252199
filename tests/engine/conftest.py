import multiprocessing
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMINGS = ("clips_per_second", "data_wait_share")


@pytest.fixture
def assert_same_run() -> Callable[[Path, Path], None]:
    """Two run folders hold the same to the bit, apart from how long things took: checkpoint, model, TensorBoard."""

    def check(run: Path, other: Path) -> None:
        for folder in ("checkpoints", "model"):
            names = [sorted(p.relative_to(r).as_posix() for p in (r / folder).rglob("*")) for r in (run, other)]
            assert names[0] == names[1]
        for path in (run / "model").iterdir():
            assert path.read_bytes() == (other / "model" / path.name).read_bytes(), path
        (checkpoint,) = (run / "checkpoints").iterdir()
        same = other / "checkpoints" / checkpoint.name
        assert (checkpoint / "model.safetensors").read_bytes() == (same / "model.safetensors").read_bytes()
        states = [untimed(torch.load(whole / "state.pt", weights_only=True)) for whole in (checkpoint, same)]
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
        assert logged(run) == logged(other)

    return check


def untimed(state: dict[str, Any]) -> dict[str, Any]:
    for totals in ("window", "epoch"):
        del state["progress"][totals]["wait_s"], state["progress"][totals]["total_s"]
    for of_process in state["random"]:
        name, *numbers = of_process["numpy"]
        assert name == "MT19937"
        of_process["numpy"] = numbers  # without the name, which is no number to compare
    return state


def logged(run: Path) -> dict[str, Any]:
    """Every point that TensorBoard shows, by tag; of timings, only where they lie."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    points: dict[str, Any] = {}
    for tag in tags["scalars"]:
        timing = tag.endswith(TIMINGS)
        points[tag] = [(point.step, None if timing else point.value) for point in events.Scalars(tag)]
    for tag in tags["images"]:
        points[tag] = [(image.step, image.encoded_image_string) for image in events.Images(tag)]
    for tag in tags["tensors"]:
        points[tag] = {point.step for point in events.Tensors(tag)}  # this reader keeps what was taken back
    return points


# Begins the script of each process, as `torchrun` would. What it prints goes to a file.
PROCESS = """
import os, signal
os.environ.update({environment!r})
for stream in (1, 2):
    os.dup2(os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
signal.signal(signal.SIGINT, signal.default_int_handler)
from diveparse.configs import load_config
from pathlib import Path
"""


@dataclass
class Ended:
    """How processes of one run ended, in the order of ranks."""

    exit_codes: list[int | None]  # None: it did not end in time
    outputs: list[str]


@pytest.fixture
def run_together(tmp_path: Path) -> Callable[..., Ended]:
    """Run a script in several processes of one run, which talk to each other by gloo.

    A process that ends with an error does not end the others, as `torchrun` would see to.
    """

    def run(number: int, script: str, *, timeout_s: float = 120, ends_others: bool = False) -> Ended:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        processes, logs = [], [tmp_path / f"process-{rank}.log" for rank in range(number)]
        for rank, log in enumerate(logs):
            log.unlink(missing_ok=True)
            environment = {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)},
                **{"LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
                **{"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"},
            }
            code = PROCESS.format(environment=environment, log=str(log)) + script
            processes.append(context.Process(target=exec, args=(code, {})))
            processes[-1].start()
        end = time.monotonic() + timeout_s
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            time.sleep(0.02)
            if ends_others and any(process.exitcode for process in processes):
                break
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
        return Ended(codes, [log.read_text() if log.exists() else "" for log in logs])

    return run
