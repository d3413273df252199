"""The examples of docs/backbones.md, run as they are written: small random encoders stand for the names on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diveparse.commands.cli import main
from diveparse.configs import load_config
from diveparse.models.weights.encoders import FAMILIES

pytestmark = pytest.mark.usefixtures("quick_training_figures")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
PROBE: dict[str, Any] = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
EXAMPLES = dict(re.findall(r"^\*\*([^*]+)\.\*\*.*?^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
FAMILY_OF = {about.name: family for family, about in FAMILIES.items()}
DEPTHS: dict[str, dict[str, int]] = {  # of the models that the page names
    "timesformer": {"num_hidden_layers": 12},
    "videomae": {"num_hidden_layers": 12},
    "vivit": {"num_hidden_layers": 12},
    "vjepa2": {"num_hidden_layers": 24},
    "videoprism_vision_model": {"num_spatial_layers": 12, "num_temporal_layers": 4},
}


def merged(example: dict[str, Any]) -> dict[str, Any]:
    """The config of the page's first section, with an example's backbone as a whole and its other options added."""
    whole = dict(PROBE)
    for section, options in example.items():
        whole[section] = options if section == "backbone" else whole.get(section, {}) | options
    return whole


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """The tiny data set in a folder of this test, beside whose videos its feature cache lies."""
    root = tmp_path / "data"
    (root / "rgb").mkdir(parents=True)
    for file in (*tiny_root.glob("*.json"), *tiny_root.glob("rgb/*")):
        (root / file.relative_to(tiny_root)).symlink_to(file)
    return root


def test_the_page_has_an_example_of_every_encoder() -> None:
    assert {FAMILY_OF[name] for name in EXAMPLES} == FAMILIES.keys()


@pytest.mark.parametrize("name", ["first", *EXAMPLES])
def test_an_example_is_trained_as_it_is_written(
    name: str, root: Path, make_tiny_encoder: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "vjepa2" if name == "first" else FAMILY_OF[name]
    config = PROBE if name == "first" else merged(yaml.safe_load(EXAMPLES[name]))
    make_tiny_encoder(family, tmp_path / "encoder", **DEPTHS[family])
    monkeypatch.chdir(tmp_path)
    Path("probe.yaml").write_text(yaml.safe_dump(config))
    data = [f"data.root={root}", "data.num_workers=0", "data.val_fraction=0.2"]  # which has five sources
    here = ["backbone.weights=encoder", *data, "train.num_epochs=1"]
    more = ["arm=flat", "head.kind=flat"] if name == "first" else []  # the second command of that section
    assert main(["train", "probe.yaml", *here, *more]) == 0
    trained = load_config(Path("runs/probe") / ("flat" if more else "joint") / "seed-0" / "config.yaml", [])
    assert trained.backbone.num_frozen_blocks == config["backbone"].get("num_frozen_blocks", 0)
