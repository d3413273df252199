"""Copies of Diving48 on the HuggingFace hub as parquet shards: a row a clip, with its video and perhaps its label.

A shard is `data/<split>-00000-of-00021.parquet`. Its columns are `video`, a struct of `bytes` and `path`; the clip's
name as `vid_name`, or else as the file name of `video.path`; and `label` where there are labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diveparse.datasets.archives import (
    MAX_NUM_MEMBERS,
    SPARE_BYTES,
    ArchiveError,
    require_content,
    require_expansion,
)
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import SPLITS, annotation_file, vocabulary_file
from diveparse.datasets.inspection import evidence_of_other_labels, read_splits, require_annotations
from diveparse.datasets.records import NAME_PATTERN, ClipRecord
from diveparse.datasets.storage.atomic import make_folder, write_json, written_atomically
from diveparse.datasets.storage.disk import require_space
from diveparse.datasets.storage.foreign import own_paths
from diveparse.datasets.storage.json_file import parse_json

FILE_PATTERN = re.compile(rf"({'|'.join(SPLITS)})-([0-9]{{5}})-of-([0-9]{{5}})\.parquet")
NAME, LABEL, VIDEO = "vid_name", "label", "video"  # columns
VIDEO_PATH = f"{VIDEO}.path"
FEATURES = b"huggingface"  # in the metadata of a schema: what the hub's library says of each column, as JSON
MAGIC = b"PAR1"  # at both ends of a shard
MAX_FOOTER_BYTES = 2**26
NUM_ROWS_AT_ONCE = 8
NUM_SHOWN = 3  # of the shards that are missing


@dataclass(frozen=True)
class Shard:
    path: Path
    split: str


def find_shards(root: Path) -> list[Shard]:
    """The shards of a folder or of `data/` in it, in their order; none if there are none.

    Raises: ValueError naming the ones that are missing, or one whose name is of another form.
    """
    paths = [*own_paths(root, "*.parquet"), *own_paths(root / "data", "*.parquet")]
    indices: dict[tuple[Path, str, int], set[int]] = defaultdict(set)
    shards = []
    for path in paths:
        if (match := FILE_PATTERN.fullmatch(path.name)) is None:
            raise ValueError(f"{path}: expected a name such as train-00000-of-00021.parquet, with train or test")
        indices[path.parent, match[1], int(match[3])].add(int(match[2]))
        shards.append(Shard(path, match[1]))
    for (folder, split, total), found in indices.items():
        if missing := sorted(set(range(total)) - found):
            shown = ", ".join(f"{split}-{index:05d}-of-{total:05d}.parquet" for index in missing[:NUM_SHOWN])
            more = ", …" if len(missing) > NUM_SHOWN else ""
            raise ValueError(f"{folder}: {len(missing)} of {total} shards are missing: {shown}{more}")
    return shards


def splits_of_shards(root: Path, shards: Sequence[Shard]) -> dict[str, list[ClipRecord]]:
    """The annotations of both splits, as `read_splits`. Files of annotations that are missing are written first, from
    the labels of the shards; those that are there are left as they are, and count.

    Raises: ValueError as `read_splits`; if the shards have labels of V1; or if they have no labels and the files that
    have them are missing.
    """
    labels = read_labels(shards)
    given = {split: annotation_file(root, split) for split in labels}
    vocabulary = vocabulary_file(root)
    require_annotations(root, [*given.values(), *([vocabulary] if labels else [])])
    if any(not path.is_file() for path in given.values()) and "train" in labels:
        counts = [0] * len(DIVING48)
        for label in labels["train"].values():
            counts[label] += 1
        if evidence := evidence_of_other_labels(counts):
            raise ValueError(f"{shards[0].path.parent}: the labels of the shards {evidence}")
    for split, path in given.items():
        if not path.is_file():
            write_json(path, [{NAME: name, LABEL: label} for name, label in labels[split].items()])
    if not vocabulary.is_file():
        write_json(vocabulary, [dive.vocab for dive in DIVING48])
    return read_splits(root)


def read_labels(shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    """For each split whose shards have labels, the class of each clip; no video is read.

    Raises: ValueError naming the shard if it is damaged, if a clip has no name or no class of Diving48, or is there
    twice.
    """
    labels: dict[str, dict[str, int]] = {}
    for shard in shards:
        columns, names = _about(shard.path)
        if LABEL not in columns:
            continue
        found = labels.setdefault(shard.split, {})
        for row in _rows(shard.path, [NAME if NAME in columns else VIDEO_PATH, LABEL]):
            clip = _clip_name(shard.path, row)
            if clip in found:
                raise ValueError(f"{shard.path}: clip {clip} is there twice")
            found[clip] = _class_of(f"{shard.path}: clip {clip}", row[LABEL], names)
    return labels


def unpack_shards(shards: Sequence[Shard], root: Path) -> Iterator[tuple[int, int]]:
    """Write the videos of shards into `rgb/`; those that are there are skipped. Yields: (clips done, clips in all).

    Raises: ValueError naming the shard if it is damaged, has no video, or expands to far more than videos do;
    DiskFullError if the disk has no space for the next video.
    """
    done, total = 0, sum(_num_rows(shard.path) for shard in shards)
    yield done, total
    for path in (shard.path for shard in shards):
        num_bytes = 0
        for row in _rows(path, [NAME, VIDEO] if NAME in _about(path)[0] else [VIDEO]):
            content = _video_bytes(path, row)
            num_bytes += len(content)
            require_expansion(path, path.stat().st_size, num_bytes)
            _write(root / "rgb" / f"{_clip_name(path, row)}.mp4", content)
            done += 1
            yield done, total


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(content):
        return
    make_folder(path.parent)
    require_space(path.parent, len(content) + SPARE_BYTES, f"unpacking {path.name}")
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)


def _clip_name(path: Path, row: dict[str, Any]) -> str:
    """path: of the shard."""
    if NAME in row:
        name = row[NAME]
    else:
        inside = row[VIDEO].get("path") if isinstance(row[VIDEO], dict) else None
        name = PurePosixPath(inside).stem if isinstance(inside, str) else None
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{path}: expected the name of a clip, such as _8Vy3dlHg2w_00000, in the column {NAME} or as the file name "
            f"in {VIDEO_PATH}, got {str(name)[:60]!r}"
        )
    return name


def _video_bytes(path: Path, row: dict[str, Any]) -> bytes:
    content = row[VIDEO].get("bytes") if isinstance(row[VIDEO], dict) else None
    if not isinstance(content, bytes):
        raise ValueError(f"{path}: clip {_clip_name(path, row)} has no video in {VIDEO}.bytes, perhaps a path alone")
    return content


def _class_of(where: str, label: object, names: list[str] | None) -> int:
    """The class of Diving48. names: of the classes of the column, in its own order, where it has names.

    The hub's library sorts names as text when it makes classes of a column: 0, 1, 10, 11, …, 2. So the column's own
    numbers need not be those of Diving48, and the name is what counts.
    """
    found = label
    if names is not None and type(label) is int and 0 <= label < len(names):
        found = names[label]
    if isinstance(found, str) and re.fullmatch("[0-9]{1,2}", found):
        found = int(found)
    if type(found) is not int or not 0 <= found < len(DIVING48):
        last = len(DIVING48) - 1
        raise ValueError(f"{where}: expected a class of Diving48, from 0 to {last}, got {str(found)[:60]!r}")
    return found


def _about(path: Path) -> tuple[list[str], list[str] | None]:
    """The columns of a shard, and the names of the classes of its labels, where it has names."""
    with _opened(path) as file:
        columns, metadata = list(file.schema_arrow.names), dict(file.schema_arrow.metadata or {})
    if VIDEO not in columns:
        raise ValueError(f"{path}: expected a column {VIDEO}, got {', '.join(columns)[:200]}")
    if LABEL not in columns or FEATURES not in metadata:
        return columns, None
    try:
        feature = parse_json(metadata[FEATURES].decode())["info"]["features"][LABEL]
        return columns, list(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its schema does not tell what the column {LABEL} is: {error!r}") from error


def _num_rows(path: Path) -> int:
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a shard, a few at a time in memory."""
    with _opened(path) as file:  # what goes wrong with a row that was yielded is not raised in this block
        for batch in file.iter_batches(batch_size=NUM_ROWS_AT_ONCE, columns=columns, use_threads=False):
            yield from batch.to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard as a `ParquetFile` of pyarrow, to be read in the block and nothing else.

    Raises: ValueError naming the shard if it is damaged or out of bounds, or if pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package pyarrow: pip install 'diveparse[hub]'") from error
    require_content(path)
    try:
        _require_footer(path)
        with parquet.ParquetFile(path) as file:
            _require_bounds(path, file.metadata)
            yield file
    except ArchiveError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: not a whole parquet file: {reason}; download it again") from error


def _require_footer(path: Path) -> None:
    """Read no more than there is and than a shard needs, whatever the footer claims of itself."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
        file.seek(max(0, num_bytes - 8))
        end = file.read()
    if start != MAGIC or end[4:] != MAGIC:
        raise ValueError("it does not begin and end as one")
    if (claimed := int.from_bytes(end[:4], "little")) > min(num_bytes, MAX_FOOTER_BYTES):
        raise ValueError(f"its footer claims {claimed} bytes")


def _require_bounds(path: Path, metadata: Any) -> None:
    if metadata.num_rows > MAX_NUM_MEMBERS:
        raise ArchiveError(f"{path}: expected at most {MAX_NUM_MEMBERS} rows, got {metadata.num_rows}")
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    require_expansion(path, path.stat().st_size, sum(group.total_byte_size for group in groups))
