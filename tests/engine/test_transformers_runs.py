"""An encoder of `transformers` through a whole run: stored features, training, resuming, test, comparison, answers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from diveparse.configs import Config, load_config
from diveparse.datasets.diving48 import read_split
from diveparse.engine.batches import build_clips
from diveparse.engine.evaluation.predict import predict
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.evidence.comparison import compare_runs
from diveparse.engine.evidence.report import report_text
from diveparse.engine.evidence.runs import load_run
from diveparse.engine.feature_cache import fill_feature_cache
from diveparse.engine.training.loop import train
from diveparse.models.build import starting_backbone, with_own_sizes
from diveparse.models.classifier import DiveClassifier

pytestmark = pytest.mark.usefixtures("quick_training_figures", "quick_report_figures")

EXPERIMENT = """\
name: probe
arm: joint
runs_dir: {runs}
data: {{root: {root}, num_workers: 0, val_fraction: 0.2}}
backbone: {{kind: transformers, weights: {encoder}, layers: [1, 2], num_frozen_blocks: 3}}
head: {{pooling: queries}}
train: {{num_epochs: 1, batch_size: 4, learning_rate: 3.0e-3, checkpoint_every: 3, num_cached_views: 2}}
"""


@pytest.fixture
def experiment(tmp_path: Path, tiny_root: Path, tiny_encoders: dict[str, tuple[Path, Any]]) -> Callable[..., Config]:
    """The config of a probe of four layers over a copy of an encoder, with overrides."""
    root, encoder, path = tmp_path / "data", tmp_path / "encoder", tmp_path / "probe.yaml"
    (root / "rgb").mkdir(parents=True)  # the feature cache lies beside the videos
    for file in (*tiny_root.glob("*.json"), *tiny_root.glob("rgb/*")):
        (root / file.relative_to(tiny_root)).symlink_to(file)
    shutil.copytree(tiny_encoders["vjepa2"][0], encoder)
    path.write_text(EXPERIMENT.format(runs=tmp_path / "runs", root=root, encoder=encoder))
    return lambda *overrides: load_config(path, list(overrides))


def test_the_class_token_of_a_frozen_encoder_is_probed(
    experiment: Callable[..., Config], tiny_encoders: dict[str, tuple[Path, Any]]
) -> None:
    encoder = tiny_encoders["timesformer"][0]
    depth = json.loads((encoder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    options = [f"backbone.weights={encoder}", "backbone.layers=[]", f"backbone.num_frozen_blocks={depth}"]
    run = train(experiment(*options, "head.pooling=class_token"))
    assert evaluate_run(run, [], split="test")["num_clips"] == 12


def test_a_frozen_encoder_is_probed_resumed_tested_compared_and_asked(
    experiment: Callable[..., Config],
    interrupted_in_update: Callable[[int], AbstractContextManager[None]],
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    run = train(experiment())
    assert "MB a clip" in caplog.text
    assert load_config(run / "config.yaml", []).clip.num_frames == 4
    resumed = experiment(f"runs_dir={tmp_path / 'resumed'}")
    with pytest.raises(KeyboardInterrupt), interrupted_in_update(5):
        train(resumed)
    assert_same_run(run, train(resumed, resume=True))
    flat = train(experiment("arm=flat", "head.kind=flat"))
    caches = [path for path in (tmp_path / "data").rglob("frozen-*") if path.is_dir()]
    assert len(caches) == 2  # training's and evaluation's, of all three runs

    shutil.rmtree(tmp_path / "encoder")  # the runs hold all of it
    for folder in (run, flat):
        assert evaluate_run(folder, [], split="test")["num_clips"] == 12
    text = report_text(compare_runs([load_run(flat), load_run(run)]))
    assert "flat" in text
    assert "joint" in text
    video = next((tmp_path / "data" / "rgb").glob("*.mp4"))
    answer = predict(DiveClassifier.load(run), video, height_m=10.0)
    assert sum(candidate.probability for candidate in answer.candidates) <= 1 + 1e-6


def test_stored_features_are_the_frozen_encoders_and_every_choice_of_layers_has_its_own(
    experiment: Callable[..., Config], tmp_path: Path
) -> None:
    records, folders = read_split(tmp_path / "data", "test")[:2], set[Path]()
    for layers in ("[2]", "[1,2]"):
        cfg = with_own_sizes(experiment(f"backbone.layers={layers}"))
        backbone, clips = starting_backbone(cfg.backbone, cfg.clip).eval(), build_clips(cfg, records, training=False)
        stored = fill_feature_cache(backbone, clips, tmp_path / "cache", num_views=1, num_workers=0)
        folders.add(stored.folder)
        for index in range(2):
            with torch.no_grad():
                expected = backbone.tokens(clips[index]["clip"])
                tokens = backbone.tokens(stored[index]["tokens"])
            torch.testing.assert_close(tokens, expected, rtol=2**-8, atol=2**-8)  # kept in half precision
    assert len(folders) == 2


def test_a_whole_encoder_is_trained_with_layer_decay_and_an_average(
    experiment: Callable[..., Config], tiny_encoders: dict[str, tuple[Path, Any]]
) -> None:
    options = ["backbone.num_frozen_blocks=1", "backbone.num_checkpointed_blocks=1", "train.num_cached_views=0"]
    more = ["train.layer_decay=0.5", "train.ema_decay=0.9"]
    model = DiveClassifier.load(train(experiment(*options, *more)))
    before, after = tiny_encoders["vjepa2"][1].base_model.state_dict(), model.backbone.state_dict()
    moved = {name: not torch.equal(before[name.removeprefix("model.")], after[name]) for name in after}
    assert {moved[name] for name in moved if ".layer.0." in name or "embeddings" in name} == {False}
    assert {moved[name] for name in moved if ".layer.2." in name and name.endswith("fc1.weight")} == {True}
