from collections.abc import Callable
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
    numpy_state = state["random"].pop("numpy")
    assert numpy_state[0] == "MT19937"
    state["random"]["numpy"] = numpy_state[1:]  # without the name, which is no number to compare
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
