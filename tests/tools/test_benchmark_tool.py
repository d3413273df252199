import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"
main = runpy.run_path(str(TOOL))["main"]


def benchmark(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True, check=False)


def test_loading_measures_every_installed_reader_and_names_the_others(tiny_root: Path) -> None:
    videos = sorted((tiny_root / "rgb").iterdir())[:1]
    done = benchmark("loading", *videos, "--frames", 4, "--size", 32, "--repeats", 2, "--height", 96)
    assert done.returncode == 0, done.stderr
    assert "1 videos, 4 frames of 32 x 32, 2 repeats, one core" in done.stdout
    for reader in ("diveparse", "diveparse, training cache", "diveparse, evaluation cache"):
        assert f"| {reader} (av " in done.stdout
    assert "bit for bit, on 1 of 1 videos" in done.stdout
    for peer in ("torchcodec", "decord", "opencv"):
        assert f"| {peer} (" in done.stdout or peer in done.stdout.partition("not installed:")[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere.mp4",), "nowhere.mp4: there is no such file"),
        (("x.mp4", "--repeats", 0), "must be at least 1"),
        (("x.mp4", "--height", 3), "height must be a multiple of 2, got 3"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    args: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loading", *map(str, args)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
