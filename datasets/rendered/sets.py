"""Rendered data sets on disk: H.264 files and their annotations.

A set of Diving48's dives has Diving48's layout and is read like the real one. Its vocabulary cannot spell the dives of
another set, whose clips are listed in a CSV file, as anybody's own clips are (see datasets/clips.py).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np

from diveparse.configs import Dives
from diveparse.datasets.dives import (
    DIVE_SETS,
    DIVING48,
    DIVING48_TEST_COUNTS,
    DIVING48_TRAIN_COUNTS,
    FINEDIVING_TRAIN_COUNTS,
    Dive,
    DiveSet,
)
from diveparse.datasets.diving48 import annotation_file, vocabulary_file
from diveparse.datasets.records import RENDERED_FILE
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.motion import JOINTS
from diveparse.datasets.rendered.rehearsal import assign, real_sources
from diveparse.datasets.storage.atomic import TEMPORARY_SUFFIX, make_folder, write_json, written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.json_file import read_json_object
from diveparse.datasets.storage.seeding import stream
from diveparse.datasets.storage.workers import worker_pool
from diveparse.datasets.video.writer import Picture, write_h264, x264_options

X264 = x264_options(21)
NUM_SAMPLE_CLIPS = 24  # once so many are rendered, the size of the others can be estimated
Plans: TypeAlias = Mapping[Split, Sequence[tuple[Source, int, int]]]  # what `plan_clips` gives for each split
CLIPS_FILE = "clips.csv"  # of a set of other dives than Diving48's
# what a set may be of: the real training clips of each dive
TRAIN_COUNTS = {Dives.DIVING48: DIVING48_TRAIN_COUNTS, Dives.FINEDIVING: FINEDIVING_TRAIN_COUNTS}


class ClassCounts(Enum):
    """How many test clips each class gets."""

    BALANCED = "balanced"  # the same for every class that has training clips
    DIVING48 = "diving48"  # in proportion to the V2 test split


class Sources(Enum):
    DRAWN = "drawn"  # all of about the same number of clips
    DIVING48 = "diving48"  # with the names, clip counts and frame rates of the real sources


@dataclass(frozen=True)
class RenderSettings:
    """Settings of one rendered data set. `difficulty` scales how much camera, light and crowd vary; 0 is a side view.

    Raises: ValueError naming the first setting that is out of range.
    """

    num_train_clips: int
    num_test_clips: int
    height: int = 480  # pixels; the picture is 4:3
    difficulty: float = 1.0  # 0 to 1
    clips_per_source: int = 12
    test_counts: str = ClassCounts.DIVING48.value
    seed: int = 0
    sources: str = Sources.DRAWN.value
    dives: str = Dives.DIVING48.value  # one of TRAIN_COUNTS

    @property
    def dive_set(self) -> DiveSet:
        return DIVE_SETS[Dives(self.dives)]

    def __post_init__(self) -> None:
        for name, least in (
            ("num_train_clips", 1),
            ("num_test_clips", 1),
            ("height", 32),
            ("clips_per_source", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        own = (ClassCounts.DIVING48.value, Sources.DIVING48.value)
        for name, value in (("test_counts", self.test_counts), ("sources", self.sources)):
            if value in own and self.dive_set != DIVING48:
                raise ValueError(f"{name} must be another than {value} with dives={self.dives}, got {value}")
        if not 0 <= self.difficulty <= 1:  # refuses NaN too
            raise ValueError(f"difficulty must be from 0 to 1, got {self.difficulty}")
        if self.height % 6:
            raise ValueError(f"height must be a multiple of 6, so that a 4:3 picture has even sides, got {self.height}")

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.height * 4 // 3


def write_clip(clip: RenderedClip, size: tuple[int, int], video_path: Path, truth_path: Path | None = None) -> int:
    """Write every frame to an H.264 file and the ground truth to truth_path; each file appears whole or not at all.

    The ground truth is an .npz without pickles: times_s (frames,), joints_px (frames, joints, 2) with `joint_names`,
    rotations (frames, 3, 3) from body axes (front, left, head) to the world, phase (frames,) 0 approach, 1 flight, 2
    water.
    Returns: the number of frames.
    """
    times = clip.frame_times_s
    frames, joints_px, moments = clip.draw(times, size)
    if truth_path is not None:
        with written_atomically(truth_path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                times_s=times.astype(np.float32),
                joints_px=joints_px.astype(np.float32),
                joint_names=np.array(JOINTS),
                rotations=moments.rotations.astype(np.float32),
                phase=moments.phase.astype(np.uint8),
            )
    with written_atomically(video_path) as temporary:
        rate_hz = Fraction(clip.source.frame_rate_hz)
        write_h264(temporary, map(Picture, frames), rate_hz=rate_hz, options=X264)
    return len(frames)


def class_counts(weights: Sequence[int], total: int) -> list[int]:
    """Share `total` clips among classes in proportion (largest remainder), at least one to each class that has any.

    Raises: ValueError if `total` is too small for that.
    """
    num_classes = np.count_nonzero(weights)
    if total < num_classes:
        raise ValueError(f"{total} clips are too few for {num_classes} classes; ask for one clip a class or more")
    share = np.array(weights) * total / sum(weights)
    counts = np.maximum(np.floor(share), np.array(weights) > 0).astype(int)
    for label in np.argsort(-(share - np.floor(share)), kind="stable"):
        if counts.sum() < total and weights[label] > 0:
            counts[label] += 1
    while counts.sum() > total:  # rounding some classes up to one clip takes clips from the largest class
        counts[np.argmax(counts)] -= 1
    return counts.tolist()


def plan_clips(settings: RenderSettings, split: Split) -> list[tuple[Source, int, int]]:
    """(source, label, number of the clip within the source) of each clip, in an order that the seed fixes."""
    total = settings.num_train_clips if split is Split.TRAIN else settings.num_test_clips
    dive_set, train_counts = settings.dive_set, TRAIN_COUNTS[Dives(settings.dives)]
    if split is Split.TRAIN:
        weights = list(train_counts)
    elif ClassCounts(settings.test_counts) is ClassCounts.BALANCED:
        weights = [int(count > 0) for count in train_counts]
    else:
        weights = list(DIVING48_TEST_COUNTS)
    rng = stream(settings.seed, split.value)
    labels = rng.permutation(np.repeat(np.arange(len(dive_set)), class_counts(weights, total)))
    if Sources(settings.sources) is Sources.DIVING48:
        return assign(labels.tolist(), real_sources(settings.seed, split, settings.difficulty))
    num_sources = max(4, -(-len(labels) // settings.clips_per_source))
    able: dict[int, list[int]] = {label: [] for label in sorted(set(labels.tolist()))}
    sources: list[Source] = []
    while len(sources) < num_sources or not all(able.values()):  # add sources until each dive has a suitable board
        source = Source.draw(settings.seed, split, len(sources), settings.difficulty)
        for label in able:
            if source.has_board_for(dive_set[label]):
                able[label].append(len(sources))
        sources.append(source)
    used = [0] * len(sources)
    plan = []
    for label in labels.tolist():
        fewest = min(used[i] for i in able[label])
        chosen = int(rng.choice([i for i in able[label] if used[i] <= fewest + 2]))
        plan.append((sources[chosen], label, used[chosen]))
        used[chosen] += 1
    return plan


def render_data_set(root: Path, settings: RenderSettings, num_workers: int) -> Iterator[tuple[int, int]]:
    """Render the missing clips into `root`, then write the annotations; yields (clips done, clips in all).

    A second call with the same settings continues where the first stopped.
    Raises: ValueError, before anything is created, if `root` holds a data set of other settings or files that were not
    rendered, or if there are too few clips for the classes; DiskFullError, after NUM_SAMPLE_CLIPS, if the set does not
    fit on the disk.
    """
    plans = {split: plan_clips(settings, split) for split in (Split.TRAIN, Split.TEST)}
    claim_folder(root, settings)
    for name in ("rgb", "truth"):
        make_folder(root / name)
    clips = [(source, label, number) for plan in plans.values() for source, label, number in plan]
    jobs = [(source, settings.dive_set[label].number, number, settings, root) for source, label, number in clips]
    num_frames = {}
    with worker_pool(num_workers, __name__) as pool:
        for done, (name, frames) in enumerate(pool.map(_render_job, jobs, chunksize=4), start=1):
            num_frames[name] = frames
            if done == NUM_SAMPLE_CLIPS:
                _require_space_for_rest(root, list(num_frames), clips[done:])
            yield done, len(jobs)
    if settings.dive_set == DIVING48:
        _write_diving48(root, plans, num_frames)
    else:
        _write_clip_table(root / CLIPS_FILE, plans, settings.dive_set)


def _write_diving48(root: Path, plans: Plans, num_frames: Mapping[str, int]) -> None:
    for split, plan in plans.items():
        names = [(source.clip_name(number), label) for source, label, number in plan]
        rows = [
            {"vid_name": name, "label": label, "start_frame": 0, "end_frame": num_frames[name]} for name, label in names
        ]
        write_json(annotation_file(root, split.name.lower()), rows)
    write_json(vocabulary_file(root), [list(dive.vocab) for dive in DIVING48])


def _write_clip_table(path: Path, plans: Plans, dive_set: DiveSet) -> None:
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "dive_number", "split", "source"))
        for split, plan in plans.items():
            for source, label, number in plan:
                video = f"rgb/{source.clip_name(number)}.mp4"
                table.writerow((video, dive_set[label].number, split.name.lower(), source.name))


def _require_space_for_rest(root: Path, done: Sequence[str], rest: Sequence[tuple[Source, int, int]]) -> None:
    """done: the names of clips that are rendered, whose mean size the others will have too. Raises: DiskFullError."""
    missing = [
        name
        for name in (source.clip_name(number) for source, _, number in rest)
        if not all(path.exists() for path in _files(root, name))
    ]
    num_bytes = sum(path.stat().st_size for name in done for path in _files(root, name))
    require_space(root, round(num_bytes / len(done) * len(missing)), f"rendering {len(missing)} more clips")


def _files(root: Path, clip: str) -> tuple[Path, Path]:
    """The video and the ground truth of a clip."""
    return root / "rgb" / f"{clip}.mp4", root / "truth" / f"{clip}.npz"


def _render_job(job: tuple[Source, str, int, RenderSettings, Path]) -> tuple[str, int]:
    source, dive_number, number, settings, root = job
    clip = RenderedClip(source, Dive.from_number(dive_number), number, settings.difficulty)
    video, truth = _files(root, clip.name)
    if not (video.exists() and truth.exists()):
        write_clip(clip, settings.size, video, truth)
    return clip.name, len(clip.frame_times_s)


def claim_folder(root: Path, settings: RenderSettings) -> None:
    """Write the settings into a new or empty folder, or check that the folder was started with the same settings.

    Raises: ValueError if the settings differ, or if the folder holds files but no settings: it may be a real data set.
    """
    path = root / RENDERED_FILE
    if path.exists():
        earlier = read_json_object(path)
        differing = [
            f"{field.name}={earlier.get(field.name, field.default)!r}, now {getattr(settings, field.name)!r}"
            for field in fields(settings)  # a folder of an earlier version lacks the newest ones
            if earlier.get(field.name, field.default) != getattr(settings, field.name)
        ]
        if differing:
            raise ValueError(
                f"{root} holds clips rendered with other settings ({'; '.join(differing)}); choose another folder"
            )
        return
    half_written = path.name + TEMPORARY_SUFFIX  # left by a kill during the last line of this function
    if any(path.name != half_written for path in own_paths(root)):
        raise ValueError(
            f"{root} holds files but no {RENDERED_FILE}, so they were not rendered; choose a new or empty folder, or "
            "one that an earlier rendering started"
        )
    write_json(path, asdict(settings))
