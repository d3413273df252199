from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from diveparse.datasets.diving48 import read_split
from diveparse.datasets.video import probe

TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare.py"
main = runpy.run_path(str(TOOL))["main"]


def prepare(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True, check=False)


def call(*args: object) -> subprocess.CompletedProcess[str]:
    """As `prepare`, in this process: what imports cost is then paid once."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


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
def test_what_is_wrong_with_an_option_is_said_before_anything_is_rendered(
    command: tuple[str, ...],
    option: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(main.__globals__, "RenderedClip", lambda *_: pytest.fail("rendered"))
    args = (*command, "--out", "{tmp}/file.png", *option)  # the last --out counts
    assert main([arg.format(tmp=tmp_path) for arg in args]) == 1
    assert capsys.readouterr().err == f"error: {message.format(tmp=tmp_path)}\n"
    assert not list(tmp_path.iterdir())


def test_a_sheet_of_no_frames_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sheet", "101B", "--out", str(tmp_path / "sheet.png"), "--frames", "0"]) == 1
    assert capsys.readouterr().err == "error: frames must be at least 1, got 0\n"


def test_a_real_data_set_is_not_rendered_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Diving48_vocab.json").write_text("[]")
    assert main(["synthetic", "--out", str(tmp_path), "--train-clips", "47", "--test-clips", "47"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds files but no rendered.json")
    assert [path.name for path in tmp_path.iterdir()] == ["Diving48_vocab.json"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ("synthetic", "--train-clips", "47", "--test-clips", "47"),
            "stopped: the same command goes on where it was\n",
        ),
        (("dive", "101B"), "stopped\n"),
        (("sheet", "101B"), "stopped\n"),
    ],
    ids=["synthetic", "dive", "sheet"],
)
def test_only_a_stopped_set_says_that_it_goes_on(
    command: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for renderer in ("render_data_set", "clip_of"):
        monkeypatch.setitem(main.__globals__, renderer, stop)
    assert main([*command, "--out", str(tmp_path / "file.png")]) == 130
    assert capsys.readouterr().err == said


def test_a_sheet_is_a_picture_of_rows(tmp_path: Path) -> None:
    done = call("sheet", "101B", "305C", "--out", tmp_path / "sheet.png", "--frames", 4, "--height", 48)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_diving48_says_in_one_screen_and_by_its_exit_code_whether_a_data_set_is_fit(tmp_path: Path) -> None:
    rendered = ("--train-clips", 47, "--test-clips", 47, "--height", 48, "--workers", 2)
    assert prepare("synthetic", "--out", tmp_path, *rendered).returncode == 0
    fit = prepare("diving48", tmp_path, "--workers", 2)
    assert fit.returncode == 0, fit.stdout + fit.stderr
    assert "47 of 47" in fit.stdout
    assert f"{tmp_path}: rendered dives, not Diving48; fit to train on" in fit.stdout
    assert len(fit.stdout.splitlines()) < 25
    assert json.loads((tmp_path / "inspection.json").read_text())["fit"]

    victim = next((tmp_path / "rgb").iterdir())
    victim.write_bytes(victim.read_bytes()[:1000])
    unfit = call("diving48", tmp_path, "--workers", 2)
    assert unfit.returncode == 1
    assert f"error: 1 files cannot be played: {victim.stem}" in unfit.stdout
    assert "NOT fit to train on" in unfit.stdout
    assert str(victim) in json.loads((tmp_path / "inspection.json").read_text())["unplayable"][victim.stem]


def test_diving48_refuses_a_folder_without_annotations(tmp_path: Path) -> None:
    done = call("diving48", tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: {tmp_path}/Diving48_vocab.json: there is no such file; expected a folder in Diving48's layout\n"
    )
