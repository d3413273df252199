"""No count may be read from timing alone: what the renderer's truth knows as single numbers must not tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diveparse.datasets.dives import COUNTS, DIVING48, DIVING48_TRAIN_COUNTS, Dive
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.motion import (
    AT_SIDES,
    BODY_HEIGHT_M,
    REACH,
    SHAPES,
    TWIST,
    Array,
    Performance,
    Pose,
    body_joints,
)

NUM_TRAINED, NUM_HELD_OUT = 2000, 1500
TOLERANCE = 0.03  # above what position and the presence of a twist tell
LIVE = [dive for dive, count in zip(DIVING48, DIVING48_TRAIN_COUNTS, strict=True) if count]


def draw_clip(number: int) -> RenderedClip:
    """A clip of a source of its own, and of a dive that the board has, each as likely as the others."""
    rng = np.random.default_rng((7, number))
    source = Source.draw(7, Split.TRAIN, number, 1.0)
    dive = LIVE[rng.integers(len(LIVE))]
    while not source.has_board_for(dive):
        dive = LIVE[rng.integers(len(LIVE))]
    return RenderedClip(source, dive, 0)


def numbers_in(value: object, name: str) -> dict[str, float]:
    """Every number that an object knows as an attribute, however it comes to be called."""
    if isinstance(value, (bool, int, float, np.number)):
        return {name: float(value)}
    if isinstance(value, (tuple, np.ndarray)) and len(value) <= 3:
        return {key: number for i, each in enumerate(value) for key, number in numbers_in(each, f"{name}.{i}").items()}
    return {}


def time_in(poses: Sequence[Pose], own_joints_m: Array) -> tuple[float, float, float]:
    """The share of the moments that the body holds one of the poses, the first and the last (-1, -1 if none)."""
    held = np.any([np.abs(own_joints_m - joints_of(pose)).max((1, 2)) < 0.08 for pose in poses], axis=0)
    moments = np.flatnonzero(held) / len(held)
    return float(held.mean()), *((moments[0], moments[-1]) if held.any() else (-1.0, -1.0))


@cache
def joints_of(pose: Pose) -> Array:
    return body_joints(pose.angles()[None])


def pose_times(performance: Performance) -> dict[str, float]:
    """When, as shares of the flight, the body is in each shape: the dive's own, the twist's, and open for the entry."""
    moments = performance.at(np.linspace(0, performance.flight_s - 1e-6, 100))
    joints_m = (moments.joints_m - moments.joints_m[:, :1]) @ moments.rotations / performance.scale
    shapes = {
        "shape": ([SHAPES[performance.dive.position]], joints_m),
        "twist": ([*TWIST.values()], joints_m),
        "open": ([REACH, AT_SIDES], joints_m[60:]),  # some leave the board so, too
    }
    names = ("share", "first", "last")
    return {
        f"{shape}_{name}": number
        for shape, (poses, joints) in shapes.items()
        for name, number in zip(names, time_in(poses, joints), strict=True)
    }


def scalars(clip: RenderedClip) -> dict[str, float]:
    """Every single number that the truth of a clip knows; which way the diver faces is the takeoff's."""
    known = {name: value for name, value in vars(clip.source).items() if name != "seed_key"}
    known |= {name: value for name, value in vars(clip.performance).items() if name not in ("dive", "facing")}
    known |= {"start_s": clip.start_s, "end_s": clip.end_s, "duration_s": clip.duration_s}
    found = {key: number for name, value in known.items() for key, number in numbers_in(value, name).items()}
    times_s, entry_s = clip.frame_times_s + clip.start_s, clip.performance.flight_s
    found |= {"frames": len(times_s), "frames_before": (times_s < 0).sum(), "frames_after": (times_s > entry_s).sum()}
    found["after_entry_s"] = clip.end_s - entry_s
    found["body_height"] = clip.performance.scale * BODY_HEIGHT_M
    return found | pose_times(clip.performance)


@cache
def performances() -> tuple[list[Dive], list[str], Array]:
    """Dives, names of the scalars, and their values (num_clips, num_scalars)."""
    clips = [draw_clip(number) for number in range(NUM_TRAINED + NUM_HELD_OUT)]
    rows = [scalars(clip) for clip in clips]
    return [clip.dive for clip in clips], list(rows[0]), np.array([list(row.values()) for row in rows])


def implied(dive: Dive) -> str:
    """What a look at one picture's shape may tell: the position, and whether there is any twist."""
    return f"{dive.position.name} {dive.twist_half_turns > 0}"


def prior_accuracy(given: Sequence[str], counts: Sequence[int]) -> float:
    """Held-out accuracy of naming the count that training has most often with what is given."""
    pairs = list(zip(given, counts, strict=True))
    seen: Mapping[str, Counter[int]] = {key: Counter() for key in given}
    for key, count in pairs[:NUM_TRAINED]:
        seen[key][count] += 1
    return float(np.mean([seen[key].most_common(1)[0][0] == count for key, count in pairs[NUM_TRAINED:]]))


def probe_accuracy(given: Sequence[str], counts: Sequence[int], features: Array) -> float:
    """Held-out accuracy of a small network that reads the scalars and what is given."""
    torch.manual_seed(0)
    keys, values = sorted(set(given)), sorted(set(counts))
    ranks = features[:NUM_TRAINED].copy()
    ranks.sort(axis=0)
    order = np.stack([np.searchsorted(r, f) for r, f in zip(ranks.T, features.T, strict=True)], 1) / NUM_TRAINED - 0.5
    one_hot = np.eye(len(keys))[[keys.index(key) for key in given]]
    inputs = torch.from_numpy(np.hstack([order * 3, one_hot])).float()
    targets = torch.tensor([values.index(count) for count in counts])
    model = nn.Sequential(nn.Linear(inputs.shape[1], 48), nn.GELU(), nn.Dropout(0.2), nn.Linear(48, len(values)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(25):
        for batch in torch.randperm(NUM_TRAINED).split(250):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        answers: Tensor = model(inputs[NUM_TRAINED:]).argmax(-1)
    return (answers == targets[NUM_TRAINED:]).float().mean().item()


def probe(attribute: str) -> tuple[float, float]:
    """Held-out accuracy from all scalars, and from what is implied alone."""
    dives, _, features = performances()
    given, counts = [implied(dive) for dive in dives], [int(dive.attribute_values()[attribute]) for dive in dives]
    return probe_accuracy(given, counts, features), prior_accuracy(given, counts)


@pytest.mark.parametrize("attribute", COUNTS)
def test_scalars_of_the_truth_do_not_tell_a_count(attribute: str) -> None:
    accuracy, chance = probe(attribute)
    assert accuracy < chance + TOLERANCE
