"""Checking a data set in Diving48's layout before training on it. Every video is played once, to its end.

The result for each file is appended to `inspection.jsonl` in the folder of the data set. So a check that was stopped
continues where it stopped, and a file that has not changed is not played again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diveparse.datasets.archives import find_archives
from diveparse.datasets.dives import (
    DIVING48,
    DIVING48_TEST_COUNTS,
    DIVING48_TRAIN_COUNTS,
    DIVING48_V1_TRAIN_COUNTS,
)
from diveparse.datasets.diving48 import (
    SPLITS,
    annotation_file,
    read_annotations,
    require_distinct_files,
    vocabulary_file,
)
from diveparse.datasets.records import ClipRecord, is_rendered
from diveparse.datasets.storage import journal
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.workers import worker_pool
from diveparse.datasets.video import VideoError, play

LOG_FILE, REPORT_FILE = "inspection.jsonl", "inspection.json"
KNOWN_COUNTS = {"train": DIVING48_TRAIN_COUNTS, "test": DIVING48_TEST_COUNTS}
MIN_FRAMES = 25  # the shortest real clip
TEXT_ORDER_DISTANCE = 0.05  # in total variation, of shares; a permuted long tail is far from any other data set's
V1_EVIDENCE_NATS = 10.0  # log-likelihood ratio of V1 over V2: odds of more than 20,000 to 1


@dataclass(frozen=True)
class FileCheck:
    """The result of playing one file.

    problem: why it cannot be played, None if it can. loss: what a file that can be played lacks at its end, or None.
    """

    name: str
    num_bytes: int
    modified_ns: int
    sha256: str
    problem: str | None
    num_frames: int = 0
    frame_rate_hz: float = 0.0
    duration_s: float = 0.0
    loss: str | None = None


def check_file(path: Path) -> FileCheck:
    """Play one file to its end and digest its content."""
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    try:
        info = play(path)
    except VideoError as error:
        return FileCheck(path.stem, status.st_size, status.st_mtime_ns, digest.hexdigest(), str(error))
    shown = (info.num_frames, info.frame_rate_hz, info.duration_s, info.loss)
    return FileCheck(path.stem, status.st_size, status.st_mtime_ns, digest.hexdigest(), None, *shown)


def check_files(root: Path, records: Sequence[ClipRecord], num_workers: int) -> Iterator[tuple[int, int]]:
    """Play the files that have not been played since they changed. Yields: (files done, files in all)."""
    done = read_log(root)
    present = [record.path for record in records if record.path.is_file()]
    todo = [path for path in present if not _is_current(done.get(path.stem), path)]
    yield len(present) - len(todo), len(present)
    with worker_pool(num_workers, __name__) as pool:
        for number, check in enumerate(pool.map(check_file, todo, chunksize=4), start=len(present) - len(todo) + 1):
            journal.append(root / LOG_FILE, check)
            yield number, len(present)


def read_log(root: Path) -> dict[str, FileCheck]:
    """The newest check of each file, by clip."""
    return journal.read(root / LOG_FILE, FileCheck)


def _is_current(check: FileCheck | None, path: Path) -> bool:
    if check is None or check.problem:  # the problem may be gone, such as a disk that could not be read
        return False
    status = path.stat()
    return (check.num_bytes, check.modified_ns) == (status.st_size, status.st_mtime_ns)


def read_splits(root: Path) -> dict[str, list[ClipRecord]]:
    """The annotations of both splits, whether or not the videos exist.

    Raises: ValueError for annotations that are missing or of V1, or for names that differ between the splits in case
    only.
    """
    require_annotations(root)
    splits = {split: read_annotations(root, split) for split in SPLITS}
    require_distinct_files(root, {record.name for records in splits.values() for record in records})
    return splits


def require_annotations(root: Path, given: Collection[Path] = ()) -> None:
    """given: files that need not be there.

    Raises: ValueError for annotations of V1 in place of V2, or naming all that are missing where there are videos.
    """
    files = [*(annotation_file(root, split) for split in SPLITS), vocabulary_file(root)]
    missing = [path for path in files if not path.is_file() and path not in given]
    for split in SPLITS:
        if annotation_file(root, split) in missing and (root / f"Diving48_{split}.json").is_file():
            raise ValueError(
                f"{root}: Diving48_{split}.json holds the first labels (V1), which are wrong for many clips; get "
                f"{annotation_file(root, split).name}, the labels of October 2020"
            )
    videos = [path.name for path in find_archives(root)]
    videos += [f"{name}/" for name in ("data", "rgb") if (root / name).is_dir()]
    if missing and videos:
        raise ValueError(
            f"{root}: there are videos ({', '.join(videos)}) and no labels: {', '.join(path.name for path in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; get the V2 labels of October 2020 from the authors of "
            "Diving48 and put them here"
        )


def report(root: Path, splits: dict[str, list[ClipRecord]]) -> dict[str, Any]:
    """All findings about the data set, as plain values. "errors" make it unfit for training; "warnings" do not."""
    checks = read_log(root)
    found = {record.name for records in splits.values() for record in records if record.path.is_file()}
    problems = {name: checks[name].problem for name in sorted(found) if name in checks and checks[name].problem}
    losses = {name: checks[name].loss for name in sorted(found) if name in checks and checks[name].loss}
    about = {split: _about_split(split, records, found, checks) for split, records in splits.items()}
    duplicates = _duplicates(checks, found)
    shared = sorted(set.intersection(*({record.source for record in records} for records in splits.values())))
    twice = sorted(set.intersection(*({record.name for record in records} for records in splits.values())))
    split_of = {record.name: split for split, records in splits.items() for record in records}
    across = [names for names in duplicates if len({split_of[name] for name in names}) > 1]
    missing = sorted(name for split in about.values() for name in split["missing"])
    short = sorted(name for name in found if name in checks and 0 < checks[name].num_frames < MIN_FRAMES)
    in_neither_split = sorted({path.stem for path in own_paths(root / "rgb", "*.mp4")} - found)
    other_labels = evidence_of_other_labels(about["train"]["clips_per_class"])

    errors = _counted("clips are missing", missing) + _counted("files cannot be played", list(problems))
    errors += _counted("sources are in both training and test", shared)
    errors += _counted("clips are in both training and test", twice)
    errors += _counted("files are in both training and test under two names", [", ".join(names) for names in across])
    errors += [f"the training labels {other_labels}"] if other_labels else []
    warnings = _counted(f"clips are shorter than {MIN_FRAMES} frames", short)
    warnings += _counted("files lack their end", [f"{name}: {loss}" for name, loss in losses.items()])
    warnings += _counted("files are there under two names", [", ".join(n) for n in duplicates if n not in across])
    warnings += _counted("videos are in neither split", in_neither_split)
    return {
        "root": str(root),
        "rendered": is_rendered(record.path for records in splits.values() for record in records),
        "fit": not errors,
        "errors": errors,
        "warnings": warnings,
        "splits": about,
        "unplayable": problems,
        "losses": losses,
        "short": short,
        "duplicates": duplicates,
        "shared_sources": shared,
        "in_neither_split": in_neither_split,
        "classes_without_clips": _classes_without_clips([split["clips_per_class"] for split in about.values()]),
    }


def _classes_without_clips(clips_per_class: Sequence[Sequence[int]]) -> list[str]:
    """clips_per_class: of each split, (48,)."""
    total = np.sum(clips_per_class, axis=0)  # (48,)
    return [f"{label} ({dive.number})" for label, dive in enumerate(DIVING48) if not total[label]]


def _about_split(
    split: str, records: Sequence[ClipRecord], found: set[str], checks: dict[str, FileCheck]
) -> dict[str, Any]:
    counts = Counter(record.label for record in records)
    rates = Counter(
        round(checks[record.name].frame_rate_hz)
        for record in records
        if record.name in found and record.name in checks and not checks[record.name].problem
    )
    per_class, known = [counts[label] for label in range(len(DIVING48))], list(KNOWN_COUNTS[split])
    return {
        "clips": len(records),
        "found": sum(record.name in found for record in records),
        "missing": sorted(record.name for record in records if record.name not in found),
        "sources": len({record.source for record in records}),
        "frame_rates_hz": {str(rate): count for rate, count in sorted(rates.items())},
        "clips_per_class": per_class,
        "known_clips_per_class": known,
        "classes_off_the_known_counts": sum(n != expected for n, expected in zip(per_class, known, strict=True)),
    }


def _duplicates(checks: dict[str, FileCheck], found: set[str]) -> list[list[str]]:
    """The names of clips whose files have the same content, one list for each content."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in sorted(found & checks.keys()):
        same[checks[name].sha256].append(name)
    return sorted(names for names in same.values() if len(names) > 1)


def evidence_of_other_labels(clips_per_class: Sequence[int]) -> str | None:
    """Why training labels are not those of V2, as the end of a sentence, or None. clips_per_class: (48,)."""
    if _are_in_text_order(clips_per_class):
        return (
            'are numbered as text is sorted ("0", "1", "10", …, "2"), which the hub\'s library does when it makes '
            "classes of numbers, and not as Diving48 numbers its classes"
        )
    v1 = _evidence_of_v1(clips_per_class)
    return f"are the first ones (V1), not V2: {v1}" if v1 else None


def _are_in_text_order(clips_per_class: Sequence[int]) -> bool:
    """Whether the clips per class are those of V2 or V1 with the classes that have clips sorted as text."""
    shares = np.array(clips_per_class) / max(1, sum(clips_per_class))
    for known in (DIVING48_TRAIN_COUNTS, DIVING48_V1_TRAIN_COUNTS):
        live = [label for label, count in enumerate(known) if count]
        for classes in (live, range(len(known))):  # class 30 may be a class without clips, or none
            in_order = np.zeros(len(known))
            in_order[: len(classes)] = [known[label] for label in sorted(classes, key=str)]
            if np.abs(shares - in_order / in_order.sum()).sum() / 2 < TEXT_ORDER_DISTANCE:
                return True
    return False


def _evidence_of_v1(clips_per_class: Sequence[int]) -> str | None:
    """The reason why the labels look like V1, or None. In V2, class 30 (101A) has no clip, and many clips moved."""
    counts = np.array(clips_per_class)
    dead = [label for label, known in enumerate(DIVING48_TRAIN_COUNTS) if known == 0 and counts[label]]
    if dead:
        return f"class {dead[0]} ({DIVING48[dead[0]].number}) has {counts[dead[0]]} clips, and none in V2"
    log_shares = [
        np.log((np.array(known) + 0.5) / (np.array(known) + 0.5).sum())
        for known in (DIVING48_V1_TRAIN_COUNTS, DIVING48_TRAIN_COUNTS)
    ]
    nats = float(counts @ (log_shares[0] - log_shares[1]))
    return f"their clips per class favour V1 by {nats:.0f} nats" if nats > V1_EVIDENCE_NATS else None


def _counted(what: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{len(names)} {what}: {'; '.join(names[:3])}{more}"] if names else []
