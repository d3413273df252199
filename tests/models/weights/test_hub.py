from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from diveparse.configs import BackboneConfig
from diveparse.models import load_backbone
from diveparse.models.weights import hub
from diveparse.models.weights.hub import fetched


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_hub_that_never_answers_ends_in_one_line_when_the_time_is_over(
    empty_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.LIMIT_S < 10
        monkeypatch.setattr(hub, "LIMIT_S", 0.3)
        begun = time.monotonic()
        with pytest.raises(
            ValueError, match=r"^nobody/nothing: no such path, .* or offline; give a folder .*: .+$"
        ) as error:
            fetched("nobody/nothing", ["config.json"])
        assert time.monotonic() - begun < 3
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_remedy(
    empty_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no address\nand much more")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=fail))
    sizes = {"num_frames": 2, "image_size": 16}
    with pytest.raises(ValueError, match=r"^nobody/nothing: no such path, .* or offline; give a folder .*no address$"):
        load_backbone("nobody/nothing", BackboneConfig(embed_dim=12), **sizes)


def test_without_internet_the_copy_on_this_machine_is_taken(
    empty_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no address")

    copy = tmp_path / "cache" / "models--owner--name"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("0" * 40)
    (copy / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (copy / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=fail))
    assert (fetched("owner/name", ["config.json"]) / "config.json").read_text() == "{}"
