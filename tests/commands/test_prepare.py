from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from diveparse.commands import __main__, prepare
from diveparse.commands.cli import main
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.storage.lock import locked
from diveparse.datasets.video import probe

SMALL = ("--train-clips", 47, "--test-clips", 47, "--test-counts", "balanced", "--height", 48, "--workers", 2)


def call(*args: object) -> subprocess.CompletedProcess[str]:
    """The command, in this process: what imports cost is then paid once."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["prepare", *map(str, args)])
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def test_synthetic_renders_what_is_missing_of_a_set_and_a_second_call_finds_it_done(
    small_set: Path, tmp_path: Path
) -> None:
    whole = {path.name: path.read_bytes() for path in (small_set / "rgb").iterdir()}
    root = Path(shutil.copytree(small_set, tmp_path / "set"))
    for name in sorted(whole)[:6]:
        (root / "rgb" / name).unlink()
    first = call("synthetic", "--out", root, *SMALL)
    assert first.returncode == 0, first.stderr
    assert "rendering" in first.stderr  # the bar
    assert whole == {path.name: path.read_bytes() for path in (root / "rgb").iterdir()}
    assert len(read_split(root, "train")) == 47
    files = {path: path.stat().st_mtime_ns for path in (root / "rgb").iterdir()}
    assert call("synthetic", "--out", root, *SMALL).returncode == 0
    assert files == {path: path.stat().st_mtime_ns for path in (root / "rgb").iterdir()}


@pytest.mark.parametrize("number", ["626C", "6243D", "113B", "1011C"])
def test_dive_renders_any_number(number: str, tmp_path: Path) -> None:
    done = call("dive", number, "--out", tmp_path / "dive.mp4", "--height", 60)
    assert done.returncode == 0, done.stderr
    assert number in done.stdout
    assert probe(tmp_path / "dive.mp4").height == 60


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("dive", "9999Z", "--out", "x.mp4"), "9999Z"),
        (("dive", "101B", "--out", "x.mp4", "--height", "101"), "height must be a multiple of 6"),
        (("synthetic", "--out", "{tmp}", "--train-clips", "3", "--test-clips", "3"), "too few"),
    ],
)
def test_what_a_user_can_get_wrong_ends_in_one_line(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = call(*(arg.format(tmp=tmp_path / "set") for arg in args))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize("command", [("dive", "101B"), ("sheet", "101B", "305C")], ids=["dive", "sheet"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--out", "{tmp}/missing/file.png"), "the folder {tmp}/missing of --out does not exist"),
        (("--difficulty", "nan"), "difficulty must be from 0 to 1, got nan"),
        (("--difficulty", "1.5"), "difficulty must be from 0 to 1, got 1.5"),
        (("--seed", "-1"), "seed must be at least 0, got -1"),
    ],
)
def test_a_wrong_option_is_refused_and_no_file_is_written(
    command: tuple[str, ...],
    option: tuple[str, str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = (*command, "--out", "{tmp}/file.png", *option)  # the last --out counts
    assert main(["prepare", *(arg.format(tmp=tmp_path) for arg in args)]) == 1
    assert capsys.readouterr().err == f"error: {message.format(tmp=tmp_path)}\n"
    assert not list(tmp_path.iterdir())


def test_a_sheet_of_no_frames_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "sheet", "101B", "--out", str(tmp_path / "sheet.png"), "--frames", "0"]) == 1
    assert capsys.readouterr().err == "error: frames must be at least 1, got 0\n"


def test_a_real_data_set_is_not_rendered_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Diving48_vocab.json").write_text("[]")
    assert main(["prepare", "synthetic", "--out", str(tmp_path), "--train-clips", "47", "--test-clips", "47"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds files but no rendered.json")
    assert [path.name for path in tmp_path.iterdir()] == ["Diving48_vocab.json"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            ("synthetic", "--train-clips", "47", "--test-clips", "47"),
            "stopped: the same command goes on where it was\n",
        ),
        (("dive", "101B"), "stopped: the same command starts again from the beginning\n"),
        (("sheet", "101B"), "stopped: the same command starts again from the beginning\n"),
    ],
    ids=["synthetic", "dive", "sheet"],
)
def test_a_stopped_set_goes_on_and_a_stopped_picture_starts_again(
    command: tuple[str, ...],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for renderer in ("render_data_set", "clip_of"):
        monkeypatch.setattr(prepare, renderer, stop)
    assert main(["prepare", *command, "--out", str(tmp_path / "file.png")]) == 130
    assert capsys.readouterr().err == line


def test_a_sheet_is_a_picture_of_rows(tmp_path: Path) -> None:
    done = call("sheet", "101B", "305C", "--out", tmp_path / "sheet.png", "--frames", 4, "--height", 48)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_diving48_shows_in_one_screen_and_by_its_exit_code_whether_a_data_set_is_fit(
    small_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_set, tmp_path, dirs_exist_ok=True)
    fit = call("diving48", tmp_path, "--workers", 2, "--cache", "none")
    assert fit.returncode == 0, fit.stdout + fit.stderr
    assert "47 of 47" in fit.stdout
    assert f"{tmp_path}: rendered dives, not Diving48; fit to train on" in fit.stdout
    assert len(fit.stdout.splitlines()) < 25
    assert json.loads((tmp_path / "inspection.json").read_text())["fit"]

    victim = next((tmp_path / "rgb").iterdir())
    victim.write_bytes(victim.read_bytes()[:1000])
    unfit = call("diving48", tmp_path, "--workers", 2, "--cache", "none")
    assert unfit.returncode == 1
    assert f"error: 1 files cannot be played: {victim.stem}" in unfit.stdout
    assert "NOT fit to train on" in unfit.stdout
    assert str(victim) in json.loads((tmp_path / "inspection.json").read_text())["unplayable"][victim.stem]


def test_diving48_refuses_a_folder_without_annotations(tmp_path: Path) -> None:
    done = call("diving48", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/Diving48_vocab.json: there is no such file; give a folder")
    assert done.stderr.count("\n") == 1


def built(root: Path) -> dict[str, bytes]:
    """Every clip of both caches."""
    files = [path for path in sorted((root / "cache").rglob("*")) if path.suffix in (".mp4", ".safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


SMALL_CACHES = ("--training-frames", 8, "--training-side", 32, "--evaluation-frames", 4, "--evaluation-side", 32)


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_a_killed_preparation_goes_on_and_leaves_what_an_undisturbed_one_leaves(
    tiny_root: Path, tmp_path: Path
) -> None:
    roots = [Path(shutil.copytree(tiny_root, tmp_path / name)) for name in ("undisturbed", "killed")]
    assert call("diving48", roots[0], "--workers", 2, *SMALL_CACHES).returncode == 0
    command = [
        sys.executable,
        __main__.__file__,
        "prepare",
        "diving48",
        str(roots[1]),
        "--workers",
        "2",
        *map(str, SMALL_CACHES),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    index = roots[1] / "cache" / "training" / "index.jsonl"
    while process.poll() is None and (not index.is_file() or index.read_bytes().count(b"\n") < 10):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    num_kept = len(built(roots[1]))
    assert 10 <= num_kept < len(built(roots[0])) == 40 + 52
    done = call("diving48", roots[1], "--workers", 2, *SMALL_CACHES)
    assert done.returncode == 0
    assert "40 of 40 clips" in done.stdout
    assert built(roots[1]) == built(roots[0])
    reports = [json.loads((root / "inspection.json").read_text()) | {"root": ""} for root in roots]
    assert reports[0] == reports[1]


def test_the_estimated_size_of_a_cache_is_shown_and_one_that_does_not_fit_is_refused(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "set"))
    shown = call("diving48", root, "--cache", "training", *SMALL_CACHES)
    assert shown.returncode == 0
    assert "cache/training: estimated " in shown.stderr + shown.stdout
    assert not (root / "cache" / "evaluation").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    full = call("diving48", root, *SMALL_CACHES)
    assert full.returncode == 1
    assert re.search(r"cache/evaluation: caching \d+ more clips .* needs about \S+ kB and 1 kB are free", full.stderr)


def test_clips_checks_a_csv_and_makes_its_cache(tiny_root: Path, tmp_path: Path) -> None:
    video = next((tiny_root / "rgb").iterdir())
    table = tmp_path / "mine.csv"
    table.write_text(f"file,dive_number,start,end,split\n{video},5253B,,,train\n{video},107B,0.1,0.3,test\n")
    done = call("clips", table, "--column", "path=file", *SMALL_CACHES)
    assert done.returncode == 0, done.stderr
    assert "1 train, 1 test clips of 2 dives; every row is well-formed" in done.stdout
    assert {path.parent.name for path in (tmp_path / "mine.cache").rglob("*.*4")} == {"training"}
    table.write_text(f"path,dive_number\n{video},5253B\nnone.mp4,107B\n{video},999Z\n")
    wrong = call("clips", table)
    assert wrong.returncode == 1
    assert "line 3: there is no video" in wrong.stderr
    assert "line 4: " in wrong.stderr
    assert wrong.stderr.count("\n") == 3
    assert "--column must look like" in call("clips", table, "--column", "path").stderr


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (("diving48", "{set}", *SMALL_CACHES), "{set}"),
        (("synthetic", "--out", "{set}", *SMALL), "{set}"),
        (("clips", "{set}.csv", *SMALL_CACHES), "{set}.cache"),
    ],
    ids=["diving48", "synthetic", "clips"],
)
def test_a_folder_that_another_process_prepares_is_left_to_it(
    command: tuple[object, ...], folder: str, tiny_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    shutil.copytree(tiny_root, root, ignore=shutil.ignore_patterns("cache"))
    root.with_suffix(".csv").write_text(f"path,dive_number\n{next((tiny_root / 'rgb').iterdir())},5253B\n")
    folder = folder.format(set=root)
    with locked(Path(folder), "rendering"):
        before = sorted(path for path in tmp_path.rglob("*"))
        done = call(*(str(each).format(set=root) for each in command))
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {folder} is in use: rendering by process {os.getpid()} on ")
        assert done.stderr.count("\n") == 1
        assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("small_disk", ["48k"], indirect=True)
def test_rendering_onto_a_full_disk_is_one_line(small_disk: Path) -> None:
    done = call("synthetic", "--out", small_disk / "set", *SMALL)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.match(rf"error: {small_disk}/set/\S+: no space left on the disk \(.* free\); nothing ", line)
    assert line.endswith("that was there before is lost; free some space (the same command goes on where it was)")
    assert "Traceback" not in done.stderr


def test_dives_of_another_set_need_balanced_test_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = ("--train-clips", "60", "--test-clips", "60")
    assert main(["prepare", "synthetic", "--out", str(tmp_path / "set"), "--dives", "finediving", *clips]) == 1
    refusal = "test_counts must be another than diving48 with dives=finediving, got diving48"
    assert refusal in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
