"""What a model answers about one video: a dive number, the runners-up and the attributes, each with its probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from diveparse.configs import ClipConfig, Dives
from diveparse.datasets.dives import ATTRIBUTES, DIVE_SETS, DiveSet
from diveparse.datasets.sampling import sample_frame_times
from diveparse.datasets.transforms import decode_size, eval_transform
from diveparse.datasets.video import probe, read_frames
from diveparse.heads.recombine import INVALID
from diveparse.heads.scores import DiveScores
from diveparse.models.classifier import DiveClassifier

NUM_CANDIDATES = 5
WHOLE_VIDEO = (0.0, None)


@dataclass(frozen=True)
class Candidate:
    """A dive, and how probable it is."""

    number: str
    name: str
    difficulty: float | None  # None where the dive is not listed at that height
    probability: float


@dataclass(frozen=True)
class AttributeAnswer:
    """The most probable value of one attribute: a marginal of the distribution over dives."""

    value: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """All that a model answers about one video. Every probability is calibrated."""

    video: str
    height_m: float  # of the board or platform that the difficulties are for
    number: str | None  # None where the answer is no dive of the set, which only independent heads can give
    name: str | None
    difficulty: float | None
    probability: float  # 0 where `number` is None
    candidates: list[Candidate]  # the most probable dives, best first
    attributes: dict[str, AttributeAnswer]


class DiveReader(Protocol):
    """What reads dives off clips: a `DiveClassifier`, or the file that one was exported to."""

    @property
    def dive_set(self) -> DiveSet: ...

    @property
    def clip_config(self) -> ClipConfig: ...

    @property
    def processor(self) -> Callable[[Tensor], Tensor] | None: ...

    def calibrated_scores(self, clips: Tensor) -> DiveScores: ...


@torch.no_grad()
def predict(
    model: DiveReader,
    video: Path,
    height_m: float,
    dive_set: DiveSet | None = None,
    window_s: tuple[float, float | None] = WHOLE_VIDEO,
) -> Answer:
    """Read the dive off one video.

    dive_set: the dives to answer with, by default the model's own; see `dives_to_answer_with` for others.
    window_s: start and end of the dive in the video; None is the end of the video.
    Raises: VideoError naming the video if it cannot be read; ValueError if the window is not in it, or a head cannot
    answer with these dives.
    """
    dive_set = dive_set or model.dive_set
    scores = model.calibrated_scores(
        read_clip(video, model.clip_config, window_s, model.processor)[None]
    )  # a batch of one
    log_probs, label = scores.log_probs(dive_set)[0].cpu(), int(scores.argmax(dive_set))
    probabilities = log_probs.exp()
    best_first = log_probs.argsort(descending=True, stable=True)[:NUM_CANDIDATES].tolist()
    candidates = [_candidate(dive_set, each, probabilities, height_m) for each in best_first]
    named = None if label == INVALID else _candidate(dive_set, label, probabilities, height_m)
    attributes, marginals = {}, scores.marginals(dive_set)
    for name in ATTRIBUTES:
        slot = int(marginals[name][0].argmax())
        attributes[name] = AttributeAnswer(dive_set.value_names[name][slot], float(marginals[name][0, slot].exp()))
    return Answer(
        video=str(video),
        height_m=height_m,
        number=named.number if named else None,
        name=named.name if named else None,
        difficulty=named.difficulty if named else None,
        probability=named.probability if named else 0.0,
        candidates=candidates,
        attributes=attributes,
    )


@torch.no_grad()
def dives_to_answer_with(model: DiveClassifier, dives: Dives) -> DiveSet:
    """Those dives of a list that a model has the attributes for. Raises: ValueError if its head cannot use them."""
    dive_set = DIVE_SETS[dives].expressible(model.dive_set.values)
    blank = torch.zeros(1, model.backbone.embed_dim, device=next(model.parameters()).device)
    model.head(blank).log_probs(dive_set)  # raises now, before any video is read
    return dive_set


def read_clip(
    video: Path,
    clip_cfg: ClipConfig,
    window_s: tuple[float, float | None] = WHOLE_VIDEO,
    processor: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Read a video, or the part between two times, as a test does: frames evenly over it, the square in the middle.

    processor: of a published classifier, makes the clip of the frames at their own size.
    Returns: (time, 3, image_size, image_size), normalised.
    """
    info = probe(video)
    start_s, end_s = window_s[0], info.duration_s if window_s[1] is None else window_s[1]
    if not 0 <= start_s < end_s <= info.duration_s:
        raise ValueError(
            f"{video}: expected start and end in order within its {info.duration_s:.3f} s, got {start_s} and {end_s}"
        )
    times_s = start_s + sample_frame_times(end_s - start_s, clip_cfg.num_frames)
    if processor is not None:
        return processor(read_frames(video, times_s))
    clip: Tensor = eval_transform(clip_cfg)(read_frames(video, times_s, decode_size(info, clip_cfg)))
    return clip


def _candidate(dive_set: DiveSet, label: int, probabilities: Tensor, height_m: float) -> Candidate:
    dive = dive_set[label]
    return Candidate(dive.number, dive.name, dive.difficulty(height_m), float(probabilities[label]))
