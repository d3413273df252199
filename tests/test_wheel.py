"""The wheel works alone: built, installed into a clean folder, and run outside the repository."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split

ROOT = Path(__file__).resolve().parents[1]
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-index", "--no-deps"]
TINY = ["data.root=clips.csv", "data.val_fraction=0.2", "clip.num_frames=2", "clip.image_size=32", "train.num_epochs=1"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed into. The source is copied, since building leaves files beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for top in {package.split(".")[1] for package in setup["options"]["packages"].split()}:
        shutil.copytree(ROOT / top, source / top, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    build = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*PIP, "install", *OFFLINE, "--target", str(folder / "site"), str(wheel)], check=True, cwd=folder)
    return folder / "site"


def call(installed: Path, folder: Path, *command: object) -> "subprocess.CompletedProcess[str]":
    """Run Python where the wheel comes before any other installation of the package."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.fixture
def script(installed: Path) -> Path:
    return installed / "bin" / "diveparse"


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    packages = call(installed, tmp_path, "-c", "from diveparse import commands, configs; print(commands, configs)")
    assert packages.stdout.count(str(installed)) == 2
    assert str(ROOT) not in packages.stdout


def test_the_wheel_trains_a_config_by_its_name_in_a_clean_folder(
    installed: Path, script: Path, tiny_root: Path, tmp_path: Path
) -> None:
    rows = ["path,dive_number,split,source"]  # with four dives instead of 48, whose figures are drawn quickly
    for split in ("train", "test"):
        for record in read_split(tiny_root, split):
            rows.append(f"{record.path},{DIVING48[record.label].number},{split},{record.source}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    trained = call(installed, tmp_path, script, "train", "demo", *TINY)
    assert trained.returncode == 0, trained.stderr
    run = "runs/demo/structured/seed-0"
    assert f"now test it once: diveparse test {run}" in trained.stdout
    assert (tmp_path / run / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["predict", "train", "experiment"])
def test_the_wheel_shows_help(command: str, installed: Path, script: Path, tmp_path: Path) -> None:
    shown = call(installed, tmp_path, script, command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: diveparse {command} ")


def test_the_wheel_lists_the_configs_that_it_ships(installed: Path, script: Path, tmp_path: Path) -> None:
    refused = call(installed, tmp_path, script, "train", "nothing")
    names = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
    line = f"error: nothing: no such config file; expected the path of one, or a name: {names}\n"
    assert (refused.returncode, refused.stderr) == (1, line)
    assert (installed / "diveparse" / "configs" / "experiments" / "ladder.yaml").is_file()
