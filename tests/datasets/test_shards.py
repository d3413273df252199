from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from diveparse.commands.cli import main
from diveparse.datasets import archives, shards
from diveparse.datasets.archives import SPARE_BYTES
from diveparse.datasets.dives import DIVING48, DIVING48_TRAIN_COUNTS, DIVING48_V1_TRAIN_COUNTS
from diveparse.datasets.inspection import evidence_of_other_labels
from diveparse.datasets.shards import find_shards, read_labels, splits_of_shards, unpack_shards
from diveparse.datasets.storage.disk import DiskFullError

Rows = Sequence[dict[str, Any]]
TRAIN = {f"train_{source:05d}_{clip:05d}": 10 * source + clip for source in range(2) for clip in range(2)}
TEST = {"test__00000_00000": 3, "test__00000_00001": 47}
CONTENT = {name: name.encode() + os.urandom(2000) for name in (*TRAIN, *TEST)}  # no videos: nothing looks inside
TEXT_ORDER = sorted(map(str, range(48)), key=str)  # as the hub's library makes classes of numbers


class StandIn:
    """What is used of pyarrow, over JSON between the marks of a shard; for machines without that package."""

    ArrowException = type("ArrowException", (Exception,), {})

    class ParquetFile:
        def __init__(self, path: Path) -> None:
            try:
                self.content = json.loads(path.read_bytes()[4:-8])
            except ValueError as error:
                raise StandIn.ArrowException(f"no shard\n{error}") from error
            self.rows, features = self.content["rows"], self.content["features"]
            metadata = features and {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
            self.schema_arrow = SimpleNamespace(names=list(self.rows[0]), metadata=metadata)
            group = SimpleNamespace(total_byte_size=self.content["claims"])
            self.metadata = SimpleNamespace(num_rows=len(self.rows), num_row_groups=1, row_group=lambda index: group)

        def __enter__(self) -> StandIn.ParquetFile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def iter_batches(self, batch_size: int, columns: list[str], use_threads: bool) -> Iterator[Any]:
            assert not use_threads
            for start in range(0, len(self.rows), batch_size):
                batch = [self.chosen(row, columns) for row in self.rows[start : start + batch_size]]
                yield SimpleNamespace(to_pylist=lambda batch=batch: batch)

        def chosen(self, row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
            row = {name: dict(value) if name == "video" else value for name, value in row.items()}
            if row["video"].get("bytes") is not None:
                row["video"]["bytes"] = base64.b64decode(row["video"]["bytes"])
            if "video.path" in columns:
                row["video"] = {"path": row["video"]["path"]}
            names = {column.split(".")[0] for column in columns}
            return {name: value for name, value in row.items() if name in names}

    @staticmethod
    def write(path: Path, rows: Rows, features: dict[str, Any] | None, claims: int) -> None:
        def plain(video: dict[str, Any]) -> dict[str, Any]:
            content = video["bytes"]
            return {**video, "bytes": None if content is None else base64.b64encode(content).decode()}

        text = json.dumps(
            {"rows": [{**row, "video": plain(row["video"])} for row in rows], "features": features, "claims": claims}
        )
        path.write_bytes(b"PAR1" + text.encode() + (10).to_bytes(4, "little") + b"PAR1")


def write_with_pyarrow(path: Path, rows: Rows, features: dict[str, Any] | None, claims: int) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(list(rows))
    if features:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    parquet.write_table(table, path, compression="zstd")


@pytest.fixture(params=["pyarrow", "stand-in"])
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a shard into `data/` of a folder."""
    if request.param == "pyarrow":
        pytest.importorskip("pyarrow", reason="the extra `hub` is not installed")
    else:
        module = ModuleType("pyarrow")
        module.ArrowException = StandIn.ArrowException  # type: ignore[attr-defined]
        module.parquet = StandIn  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyarrow", module)
    write_shard = write_with_pyarrow if request.param == "pyarrow" else StandIn.write

    def write(root: Path, name: str, rows: Rows, features: dict[str, Any] | None = None, claims: int = 0) -> Path:
        (root / "data").mkdir(exist_ok=True)
        write_shard(root / "data" / name, rows, features, claims)
        return root / "data" / name

    return write


def named(clips: dict[str, int], *, labelled: bool = True) -> list[dict[str, Any]]:
    """Rows as of Samoed/diving48, with or without labels."""
    return [
        {"vid_name": name, "video": {"bytes": CONTENT[name], "path": None}} | ({"label": label} if labelled else {})
        for name, label in clips.items()
    ]


def unnamed(clips: dict[str, int]) -> list[dict[str, Any]]:
    """Rows whose clips have their name in the path of the video."""
    return [{"video": {"bytes": CONTENT[name], "path": f"rgb/{name}.mp4"}, "label": k} for name, k in clips.items()]


def labels_on_disk(root: Path, split: str) -> dict[str, int]:
    entries = json.loads((root / f"Diving48_V2_{split}.json").read_text())
    return {entry["vid_name"]: entry["label"] for entry in entries}


@pytest.mark.parametrize("rows", [named, unnamed])
def test_shards_with_labels_become_the_layout_of_diving48(rows: Callable[..., Rows], write, tmp_path: Path) -> None:
    first, second = dict(list(TRAIN.items())[:3]), dict(list(TRAIN.items())[3:])
    write(tmp_path, "train-00000-of-00002.parquet", rows(first))
    write(tmp_path, "train-00001-of-00002.parquet", rows(second))
    write(tmp_path, "test-00000-of-00001.parquet", rows(TEST))
    found = find_shards(tmp_path)
    splits = splits_of_shards(tmp_path, found)
    assert {split: {record.name: record.label for record in records} for split, records in splits.items()} == {
        "train": TRAIN,
        "test": TEST,
    }
    assert json.loads((tmp_path / "Diving48_vocab.json").read_text()) == [list(dive.vocab) for dive in DIVING48]
    progress = list(unpack_shards(found, tmp_path))
    assert (progress[0], progress[-1]) == ((0, 6), (6, 6))
    assert {path.stem: path.read_bytes() for path in (tmp_path / "rgb").iterdir()} == CONTENT
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rgb").iterdir()}
    list(unpack_shards(found, tmp_path))
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rgb").iterdir()}


def test_classes_count_by_their_names_and_not_by_their_order_as_text(write, tmp_path: Path) -> None:
    features = {"label": {"names": TEXT_ORDER, "_type": "ClassLabel"}, "video": {"_type": "Video"}}
    in_text_order = {name: TEXT_ORDER.index(str(label)) for name, label in TRAIN.items()}
    assert in_text_order != TRAIN
    write(tmp_path, "train-00000-of-00001.parquet", named(in_text_order), features)
    assert read_labels(find_shards(tmp_path)) == {"train": TRAIN}


def test_numbers_that_are_no_classes_of_the_library_are_those_of_diving48(write, tmp_path: Path) -> None:
    features = {"label": {"dtype": "int64", "_type": "Value"}}
    write(tmp_path, "train-00000-of-00001.parquet", named(TRAIN), features)
    assert read_labels(find_shards(tmp_path)) == {"train": TRAIN}


def test_annotations_that_are_there_count_and_shards_without_labels_need_them(write, tmp_path: Path) -> None:
    write(tmp_path, "train-00000-of-00001.parquet", named(TRAIN | TEST, labelled=False))
    with pytest.raises(ValueError, match="there are videos") as caught:
        splits_of_shards(tmp_path, find_shards(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: there are videos (data/) and no labels: Diving48_V2_train.json, Diving48_V2_test.json, "
        "Diving48_vocab.json are missing; get the V2 labels of October 2020 from the authors of Diving48 and put them "
        "here"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    write_annotations(tmp_path, {"train": TRAIN, "test": TEST})
    splits = splits_of_shards(tmp_path, find_shards(tmp_path))
    assert [record.name for record in splits["test"]] == list(TEST)
    list(unpack_shards(find_shards(tmp_path), tmp_path))
    assert {path.stem for path in (tmp_path / "rgb").iterdir()} == {*TRAIN, *TEST}


def write_annotations(root: Path, splits: dict[str, dict[str, int]]) -> None:
    (root / "Diving48_vocab.json").write_text(json.dumps([dive.vocab for dive in DIVING48]))
    for split, labels in splits.items():
        entries = [{"vid_name": name, "label": label} for name, label in labels.items()]
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))


def test_labels_of_v1_are_refused_and_leave_nothing_unless_the_annotations_are_there(write, tmp_path: Path) -> None:
    first = TRAIN | {next(iter(TRAIN)): 30}  # a class that has no clip in V2
    write(tmp_path, "train-00000-of-00001.parquet", named(first))
    write(tmp_path, "test-00000-of-00001.parquet", named(TEST))
    with pytest.raises(ValueError, match=r"data: the labels of the shards are the first ones \(V1\), not V2: class 30"):
        splits_of_shards(tmp_path, find_shards(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    write_annotations(tmp_path, {"train": TRAIN, "test": TEST})
    assert [record.label for record in splits_of_shards(tmp_path, find_shards(tmp_path))["train"]] == [*TRAIN.values()]


def test_a_split_without_shards_is_missing(write, tmp_path: Path) -> None:
    write(tmp_path, "train-00000-of-00001.parquet", named(TRAIN))
    with pytest.raises(ValueError, match=r"no labels: Diving48_V2_test\.json is missing; get the V2 labels"):
        splits_of_shards(tmp_path, find_shards(tmp_path))


@pytest.mark.parametrize("known", [DIVING48_TRAIN_COUNTS, DIVING48_V1_TRAIN_COUNTS], ids=["V2", "V1"])
@pytest.mark.parametrize("with_empty", [False, True], ids=["47 classes", "48 classes"])
def test_numbers_in_the_order_of_text_are_recognised(known: tuple[int, ...], with_empty: bool) -> None:
    classes = sorted((label for label in range(48) if known[label] or with_empty), key=str)
    counts = [known[label] for label in classes] + [0] * (48 - len(classes))
    assert "are numbered as text is sorted" in str(evidence_of_other_labels(counts))
    assert "text" not in str(evidence_of_other_labels(known))


def test_v2_is_no_evidence_of_other_labels() -> None:
    assert evidence_of_other_labels(DIVING48_TRAIN_COUNTS) is None
    assert evidence_of_other_labels([0] * 48) is None


CLIP = next(iter(TRAIN))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a label beyond the classes": ({"label": 48}, "expected a class of Diving48, from 0 to 47, got '48'"),
    "no label": ({"label": -1}, "expected a class of Diving48, from 0 to 47, got '-1'"),
    "a dive in words": ({"label": "back dive"}, "expected a class of Diving48, from 0 to 47, got 'back dive'"),
    "a path as a name": ({"vid_name": "../../etc/passwd"}, "expected the name of a clip, such as _8Vy3dlHg2w_00000"),
    "the same clip twice": ({"vid_name": list(TRAIN)[1]}, f"clip {list(TRAIN)[1]} is there twice"),
    "a path alone": (
        {"video": {"bytes": None, "path": "/data/x.mp4"}},
        f"clip {CLIP} has no video in video.bytes, perhaps a path alone",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_that_is_wrong_is_named_with_its_shard(kind: str, write, tmp_path: Path) -> None:
    change, reason = WRONG[kind]
    rows = named(TRAIN)
    if isinstance(change.get("label"), str):  # a column has one type
        rows = [{**row, "label": str(row["label"])} for row in rows]
    path = write(tmp_path, "train-00000-of-00001.parquet", [rows[0] | change, *rows[1:]])
    found = find_shards(tmp_path)
    with pytest.raises(ValueError, match="clip") as caught:  # of the labels, or else of the videos
        list(unpack_shards(found, tmp_path)) if read_labels(found) else None
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_shards_that_are_missing_are_named(write, tmp_path: Path) -> None:
    for index in (0, 2):
        write(tmp_path, f"train-{index:05d}-of-00005.parquet", named(TRAIN))
    with pytest.raises(
        ValueError, match=r"data: 3 of 5 shards are missing: train-00001-of-00005\.parquet, train-00003"
    ):
        find_shards(tmp_path)


def test_a_shard_of_another_name_is_refused(write, tmp_path: Path) -> None:
    write(tmp_path, "0000.parquet", named(TRAIN))
    with pytest.raises(ValueError, match=r"0000\.parquet: expected a name such as train-00000-of-00021\.parquet"):
        find_shards(tmp_path)


def test_a_folder_without_shards_has_none(tmp_path: Path) -> None:
    assert find_shards(tmp_path) == find_shards(tmp_path / "nowhere") == []


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "footer", "pointer"])
def test_a_damaged_shard_is_refused_in_one_line(damage: str, write, tmp_path: Path) -> None:
    path = write(tmp_path, "train-00000-of-00001.parquet", named(TRAIN))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "noise":
        content[8:-8] = os.urandom(len(content) - 16)
    elif damage == "empty":
        content.clear()
    elif damage == "footer":
        content[-8:-4] = (2**31 - 1).to_bytes(4, "little")
    else:
        content[:] = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: (not a whole parquet file: |a pointer of Git LFS)") as caught:
        list(unpack_shards(find_shards(tmp_path), tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rgb").exists()


def test_an_archive_that_git_left_a_pointer_of_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "Diving48_rgb.tar.gz"
    archive.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 10312345678\n")
    with pytest.raises(ValueError, match=r"rgb\.tar\.gz: a pointer of Git LFS .* `git lfs pull` or `hf download`"):
        list(archives.unpack(archive, tmp_path))


def test_a_shard_that_claims_to_expand_far_beyond_its_size_is_refused(write, tmp_path: Path) -> None:
    rows = [row | {"video": {"bytes": bytes(2**20), "path": None}} for row in named(TRAIN)] * 8
    write(tmp_path, "train-00000-of-00001.parquet", rows, None, 2**40)
    with pytest.raises(ValueError, match=r"expands to \S+ GB or more, over 20 times its size"):
        list(unpack_shards(find_shards(tmp_path), tmp_path))


def test_a_shard_is_refused_where_its_videos_are_larger_than_it_claims(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_EXPANSION", 0)
    rows = [row | {"video": {"bytes": bytes(2**19), "path": None}} for row in named(TRAIN)]
    write(tmp_path, "train-00000-of-00001.parquet", rows)
    with pytest.raises(ValueError, match=r"expands to 0\.00\d GB or more"):
        list(unpack_shards(find_shards(tmp_path), tmp_path))
    assert not (tmp_path / "rgb").exists() or len(list((tmp_path / "rgb").iterdir())) == 2


def test_more_rows_than_any_copy_has_are_refused(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_NUM_MEMBERS", 3)
    write(tmp_path, "train-00000-of-00001.parquet", named(TRAIN))
    with pytest.raises(ValueError, match="expected at most 3 rows, got 4"):
        read_labels(find_shards(tmp_path))


def test_a_disk_without_room_is_told_before_a_video_is_written(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "train-00000-of-00001.parquet", named(TRAIN))
    usage = shutil.disk_usage(tmp_path)._replace(free=SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=rf"unpacking {CLIP}\.mp4 needs about 268 MB and 268 MB are free"):
        list(unpack_shards(find_shards(tmp_path), tmp_path))
    assert list((tmp_path / "rgb").iterdir()) == []


def test_without_the_extra_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["prepare", "diving48", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/data/test-00000-of-00001.parquet: reading it needs the package pyarrow: "
        "pip install 'diveparse[hub]'\n"
    )


def test_prepare_reads_a_copy_of_the_hub(
    write, tmp_path: Path, write_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    videos = {
        name: write_video(tmp_path / "video.mp4", num_frames=25 + index).read_bytes()
        for index, name in enumerate((*TRAIN, *TEST))
    }
    for split, clips in {"train": TRAIN, "test": TEST}.items():
        rows = [row | {"video": {"bytes": videos[row["vid_name"]], "path": None}} for row in named(clips)]
        write(tmp_path, f"{split}-00000-of-00001.parquet", rows)
    for _ in range(2):  # again, with the annotations of the first time
        assert main(["prepare", "diving48", str(tmp_path), "--workers", "1", "--cache", "none"]) == 0
        assert f"{tmp_path}: fit to train on" in capsys.readouterr().out
    assert labels_on_disk(tmp_path, "train") == TRAIN
    assert labels_on_disk(tmp_path, "test") == TEST


def test_an_archive_without_labels_is_told_with_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Diving48_rgb.tar.gz").write_bytes(b"not opened")
    assert main(["prepare", "diving48", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {tmp_path}: there are videos (Diving48_rgb.tar.gz) and no labels: Diving48_V2_train"
    )
    assert error.count("\n") == 1
    write_annotations(tmp_path, {"train": TRAIN})
    assert main(["prepare", "diving48", str(tmp_path)]) == 1
    assert "no labels: Diving48_V2_test.json is missing; get the V2 labels of October 2020" in capsys.readouterr().err
