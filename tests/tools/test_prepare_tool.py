from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diveparse.datasets.diving48 import read_split
from diveparse.datasets.video import probe

TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare.py"


def prepare(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True, check=False)


def test_synthetic_renders_a_set_and_a_second_call_finds_it_done(tmp_path: Path) -> None:
    command = ("synthetic", "--out", tmp_path, "--train-clips", 47, "--test-clips", 47, "--height", 48, "--workers", 2)
    first = prepare(*command)
    assert first.returncode == 0, first.stderr
    assert "rendering" in first.stderr  # the bar
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "rgb").iterdir()}
    assert len(read_split(tmp_path, "train")) == 47
    assert prepare(*command).returncode == 0
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "rgb").iterdir()}


@pytest.mark.parametrize("number", ["626C", "6243D", "113B", "1011C"])
def test_dive_renders_any_number(number: str, tmp_path: Path) -> None:
    done = prepare("dive", number, "--out", tmp_path / "dive.mp4", "--height", 60)
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
    done = prepare(*(arg.format(tmp=tmp_path / "set") for arg in args))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_sheet_is_a_picture_of_rows(tmp_path: Path) -> None:
    done = prepare("sheet", "101B", "305C", "--out", tmp_path / "sheet.png", "--frames", 4, "--height", 48)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 1000
