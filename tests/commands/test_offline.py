"""Weights without internet: a name on the hub ends in one line and in time, and a folder asks no network at all."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from diveparse.commands import __main__
from diveparse.commands.cli import main

LIMIT_S = 10  # from asking the hub to the line; what Python needs to import torch is not counted
HUB_ID = "some/hub-id"
LINE = (
    f"error: {HUB_ID}: no such path, and the HuggingFace hub does not give such a model (no such name, or offline; give"
)
PROBE = """\
name: probe
arm: joint
runs_dir: {runs}
data: {{root: {root}, num_workers: 0, val_fraction: 0.2, cache: false}}
backbone: {{kind: transformers, weights: {encoder}, num_frozen_blocks: 3}}
head: {{pooling: queries}}
train: {{num_epochs: 1, batch_size: 4}}
"""


@pytest.fixture
def silent_hub() -> Iterator[socket.socket]:
    """It takes connections and never answers; whoever accepts one here knows when it was asked for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(600)
        yield server


@pytest.fixture
def probe(tiny_root: Path, tmp_path: Path) -> Path:
    """A config that trains a probe; the encoder is given by an option."""
    path = tmp_path / "probe.yaml"
    path.write_text(PROBE.format(runs=tmp_path / "runs", root=tiny_root, encoder="none"))
    return path


def answer_of(arguments: list[str], hub: str, cache: Path) -> tuple[int, str, float]:
    """The exit code of a command in a process of its own, its errors, and when the first line of them was there."""
    own_hub = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    environment = os.environ | own_hub | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __main__.__file__, *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as own:
        assert own.stderr is not None
        line, written = own.stderr.readline(), time.monotonic()
        errors = line + own.stderr.read()
    return own.returncode, errors, written


@pytest.mark.parametrize("command", ["predict", "train"])
def test_a_hub_that_takes_a_connection_and_never_answers_is_given_up_in_one_line_within_ten_seconds(
    command: str, silent_hub: socket.socket, probe: Path, tmp_path: Path
) -> None:
    arguments = {
        "predict": ["predict", HUB_ID, "video.mp4"],
        "train": ["train", str(probe), f"backbone.weights={HUB_ID}"],
    }[command]
    hub = f"http://127.0.0.1:{silent_hub.getsockname()[1]}"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(answer_of, arguments, hub, tmp_path / "cache")
        connection, _ = silent_hub.accept()
        asked = time.monotonic()
        code, errors, written = answer.result()
        connection.close()
    assert (code, errors.count("\n")) == (1, 1), errors
    assert errors.startswith(LINE)
    assert written - asked < LIMIT_S
    assert not (tmp_path / "runs").exists()


def test_a_hub_that_cannot_be_reached_is_one_line_of_every_command_that_takes_its_names(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_the_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for arguments in (
        ["predict", HUB_ID, "video.mp4"],
        ["test", HUB_ID, "data.root=data"],
        ["train", str(probe), f"backbone.weights={HUB_ID}"],
    ):
        begun = time.monotonic()
        assert main(arguments) == 1
        assert time.monotonic() - begun < LIMIT_S
        errors = capsys.readouterr().err
        assert errors.startswith(LINE), arguments
        assert errors.count("\n") == 1, errors


def test_folders_are_trained_tested_and_asked_without_the_network(
    probe: Path,
    tiny_root: Path,
    tiny_published: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_training_figures: None,
) -> None:
    asked = refuse_the_network(monkeypatch)
    published, video = tiny_published["vjepa2"][0], str(next((tiny_root / "rgb").glob("*.mp4")))
    encoder, run = Path(shutil.copytree(published, tmp_path / "encoder")), tmp_path / "runs" / "probe" / "joint"
    assert main(["predict", str(published), video]) == 0
    assert main(["train", str(probe), f"backbone.weights={encoder}"]) == 0
    assert main(["test", str(run / "seed-0")]) == 0
    assert main(["predict", str(run / "seed-0"), video]) == 0
    assert asked == []


def refuse_the_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As where there is no internet. Returns: the addresses that are asked for from now on."""
    asked: list[Any] = []

    def no_address(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    connect = socket.socket.connect

    def connect_on_this_machine(own: socket.socket, address: Any) -> None:
        if own.family in (socket.AF_INET, socket.AF_INET6):
            asked.append(address)
            raise OSError("Network is unreachable")
        connect(own, address)

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(socket.socket, "connect", connect_on_this_machine)
    return asked
