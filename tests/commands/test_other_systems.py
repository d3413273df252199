"""Training on a CPU, test, compare and predict run to their ends without what Windows and macOS lack.

This is Linux with parts taken away, see other_system.py; it is neither Windows nor macOS.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = """
import sys
from pathlib import Path
from diveparse.commands.__main__ import main
if __name__ == "__main__":
    flat, joint = "runs/tiny/flat/seed-0", "runs/tiny/joint/seed-0"
    data = ["data.root=clips.csv", "train.num_epochs=1"]
    for command in (
        ["train", "tiny.yaml", *data],
        ["train", "tiny.yaml", *data, "arm=flat", "head.kind=flat"],
        ["test", joint, "data.num_workers=1"],
        ["test", flat],
        ["compare", flat, joint],
        ["predict", joint, *map(str, sorted(Path("videos").iterdir())[:2]), "--csv"],
    ):
        if code := main(command):
            sys.exit(f"{command} ended with {code}")
"""
NUMBERS = ("107B", "405C", "5253B", "626C")
REFUSED_BY_WINDOWS = set('<>:"|?*\\')


def write_clips(folder: Path, root: Path) -> None:
    """A CSV as written on Windows, of clips for training, validation and, of two sources, testing."""
    shutil.copytree(root / "rgb", folder / "videos")
    names = [f"tinysourc0{source}_0000{number}" for source in range(5) for number in range(4)]
    splits = ["train"] * 8 + ["val"] * 4 + ["test"] * 8
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "dive_number", "split", "source"))
        for row, (name, split) in enumerate(zip(names, splits, strict=True)):
            rows.writerow((f"videos\\{name}.mp4", NUMBERS[row % 4], split, name[:11]))


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what only Linux has")
def test_commands_end_well_without_what_other_systems_lack(
    tiny_experiment: Path, tiny_root: Path, tmp_path: Path
) -> None:
    write_clips(tmp_path, tiny_root)
    (tmp_path / "site").mkdir()
    shutil.copy(Path(__file__).with_name("other_system.py"), tmp_path / "site" / "sitecustomize.py")
    (tmp_path / "commands.py").write_text(COMMANDS, encoding="utf-8")
    before = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    search = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *before])}
    done = subprocess.run(
        [sys.executable, "commands.py"],
        cwd=tmp_path,
        env=os.environ | search | {"PYTHONWARNDEFAULTENCODING": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("videos")]) == 2
    runs = tmp_path / "runs"
    metrics = json.loads((runs / "tiny/joint/seed-0/metrics.json").read_text(encoding="utf-8"))
    assert (metrics["num_clips"], metrics["skipped_clips"]) == (8, [])
    assert json.loads((runs / "tiny/joint/seed-0/environment.json").read_text(encoding="utf-8"))["machine"]["num_cores"]
    assert (runs / "tiny/comparison.md").is_file()
    written = list(runs.rglob("*"))
    assert not [path for path in written if REFUSED_BY_WINDOWS & set(path.name) or path.name.endswith((".", " "))]
    assert not [path for path in written if path.suffix in (".csv", ".json", ".md") and b"\r" in path.read_bytes()]


ABSENT = """
import multiprocessing, os, signal
from pathlib import Path
absent = [os.path.exists("/proc"), hasattr(os, "sched_getaffinity"), hasattr(os, "fork"), hasattr(signal, "SIGKILL")]
assert not any(absent), absent
for attempt in (
    lambda: multiprocessing.get_context("forkserver"),
    lambda: os.open(".", os.O_RDONLY),
    lambda: os.fsync(os.open("file", os.O_RDONLY | os.O_CREAT)),
    lambda: os.symlink("a", "b"),
    lambda: open("/proc/cpuinfo"),
):
    try:
        attempt()
    except (OSError, ValueError):
        continue
    raise SystemExit("there is more than there should be")
"""


def test_the_other_system_lacks_what_it_says(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("other_system.py"), tmp_path / "sitecustomize.py")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ABSENT], cwd=tmp_path, env=environment, check=True)
