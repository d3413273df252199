from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.configs import (
    BackboneConfig,
    PretrainClipConfig,
    PretrainConfig,
    PretrainTrainConfig,
    load_config,
    run_folder,
)
from diveparse.engine import distributed
from diveparse.engine.training.pretrain import (
    build_pretraining,
    light_of,
    motion_batches,
    normalise,
    pretrain,
    relight,
    require_finite,
    update,
)
from diveparse.engine.training.update import NonFiniteError
from diveparse.models.build import load_backbone


def tiny(runs_dir: Path, num_epochs: int) -> PretrainConfig:
    """Epochs of two updates."""
    return PretrainConfig(
        name="tiny",
        runs_dir=str(runs_dir),
        clips_per_epoch=4,
        num_easy_clips=4,
        num_workers=0,
        clip=PretrainClipConfig(num_frames=4, image_size=32),
        backbone=BackboneConfig(embed_dim=16, depth=2, num_heads=2),
        train=PretrainTrainConfig(num_epochs=num_epochs, batch_size=2, log_every=1),
    )


def logged_losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of a loss that TensorBoard shows, by tag."""
    events = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "/loss_" in tag]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def test_pretraining_writes_a_backbone_that_loads(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, num_epochs=1)
    path = pretrain(cfg, resume=False)
    backbone = load_backbone(str(path), cfg.backbone, num_frames=4, image_size=32)
    assert torch.isfinite(backbone(torch.randn(1, 4, 3, 32, 32))).all()
    assert any(block.time_proj.weight.abs().max() > 0 for block in backbone.blocks)


def test_resumed_pretraining_goes_on_with_the_clips_that_follow(
    tmp_path: Path, interrupted_in_update: Callable[[int], AbstractContextManager[None]]
) -> None:
    whole = pretrain(tiny(tmp_path / "whole", num_epochs=2), resume=False)
    state = torch.load(whole.parent / "checkpoint.pt", weights_only=True)
    assert state["num_updates"] == 4
    stopped = tiny(tmp_path / "parts", num_epochs=2)
    with interrupted_in_update(3), pytest.raises(KeyboardInterrupt):
        pretrain(stopped, resume=False)
    assert torch.load(run_folder(stopped) / "checkpoint.pt", weights_only=True)["num_updates"] == 2
    resumed = pretrain(stopped, resume=True)
    assert resumed.read_bytes() == whole.read_bytes()
    assert logged_losses(resumed.parent) == logged_losses(whole.parent)


def test_an_epoch_may_have_fewer_updates_than_there_are_between_points(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny(tmp_path, num_epochs=1)
    with caplog.at_level(logging.INFO):
        pretrain(replace(cfg, train=replace(cfg.train, log_every=99)), resume=False)
    assert "update 2 of 2: joints" in caplog.text


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("RANK", "0"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"train.batch_size=2 is the batch of all processes together, and 3 of them"):
        pretrain(tiny(tmp_path, num_epochs=1), resume=False)
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_its_config_and_goes_on_with_no_other(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, num_epochs=1)
    pretrain(cfg, resume=False)
    assert load_config(run_folder(cfg) / "config.yaml", [], PretrainConfig) == cfg
    assert (run_folder(cfg) / "environment.json").is_file()
    before = (run_folder(cfg) / "checkpoint.pt").read_bytes()
    other = replace(cfg, seed=1, train=replace(cfg.train, learning_rate=1.0))
    with pytest.raises(
        ValueError,
        match=r"tiny has other options and .*: seed: 0 before, 1 now; train.learning_rate: 0.0015 before, 1.0",
    ):
        pretrain(other, resume=True)
    with pytest.raises(ValueError, match=r"tiny already holds a run; add --resume to go on with it, or change name$"):
        pretrain(cfg, resume=False)
    assert (run_folder(cfg) / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["cut short", "another model", "no tensor file"])
def test_a_checkpoint_that_cannot_be_used_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    cfg = tiny(tmp_path, num_epochs=1)
    pretrain(cfg, resume=False)
    checkpoint = run_folder(cfg) / "checkpoint.pt"
    if damage == "another model":
        state = torch.load(checkpoint, weights_only=True)
        torch.save(state | {"model": {"other": torch.zeros(1)}}, checkpoint)
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000] if damage == "cut short" else b"words")
    with pytest.raises(ValueError, match=r"checkpoint.pt: not a checkpoint that this run can go on from: .") as caught:
        pretrain(cfg, resume=True)
    assert "\n" not in str(caught.value)


def test_a_pretraining_that_diverges_stops_with_the_clips_names_and_its_last_checkpoint(tmp_path: Path) -> None:
    cfg = tiny(tmp_path, num_epochs=2)
    largest = replace(cfg.train, learning_rate=100, head_learning_rate_factor=1e6)
    cfg = replace(cfg, clips_per_epoch=2, train=largest)
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf), .* in update 2; .* Clips: items 2, 3 of MotionClips"):
        pretrain(cfg, resume=False)
    saved = torch.load(run_folder(cfg) / "checkpoint.pt", weights_only=True)
    assert saved["num_updates"] == 1
    assert all(values.isfinite().all() for values in saved["model"].values())


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_weights_change(tmp_path: Path, broken: str) -> None:
    cfg, device = tiny(tmp_path, num_epochs=1), torch.device("cpu")
    state = build_pretraining(cfg, 2, device)
    clips, truth = next(motion_batches(cfg, range(2), device))
    if broken == "loss":
        clips[1] = torch.nan
    else:
        next(state.head.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    before = {name: values.clone() for name, values in state.model.state_dict().items()}
    what = "loss is nan, .*" if broken == "loss" else "the gradient's norm is nan"
    with pytest.raises(NonFiniteError, match=rf"{what} in update 3; .* Clips: items 4, 5 of MotionClips"):
        update(state, (clips, truth), cfg.train.max_grad_norm, number=2, clips_per_update=2)
    assert all(torch.equal(values, before[name]) for name, values in state.model.state_dict().items())


@pytest.mark.parametrize(("broken", "clips"), [([0], "4, 6"), ([1], "5, 7"), ([0, 1], "4, 5, 6, 7")])
def test_the_clips_of_every_process_with_a_broken_loss_are_named(
    monkeypatch: pytest.MonkeyPatch, broken: list[int], clips: str
) -> None:
    def gather(own: torch.Tensor) -> torch.Tensor:
        rows = own.repeat(2, 1)  # of two processes
        rows[broken, 1] = torch.nan
        return rows

    monkeypatch.setattr(distributed, "gathered", gather)
    terms = {"loss": torch.tensor(1.0), "pose": torch.tensor(2.0)}
    with pytest.raises(NonFiniteError, match=rf"^pose is nan in update 2; .* items {clips} of MotionClips"):
        require_finite(terms, update=1, items=range(4, 8))


def test_relighting_changes_all_frames_of_a_clip_alike() -> None:
    clips = torch.full((2, 3, 3, 4, 4), 128, dtype=torch.uint8)
    light = torch.stack([light_of(0, 0), light_of(0, 1)])
    relit = relight(clips, 0.2, light)
    assert (relit == relit[:, :1, :, :1, :1]).all()
    assert (relit[0] != relit[1]).all()
    for unchanged in (relight(clips, 0.0, light), relight(clips, 0.2, torch.full((2, 2, 3), 0.5))):
        torch.testing.assert_close(unchanged, clips.float() / 255)
        assert normalise(unchanged).abs().max() < 1


def test_the_light_of_a_clip_follows_from_its_number_alone(tmp_path: Path) -> None:
    cfg, device = tiny(tmp_path, num_epochs=1), torch.device("cpu")
    (two, _), (one, _) = next(motion_batches(cfg, range(2), device)), next(motion_batches(cfg, range(1, 2), device))
    assert torch.equal(two[1], one[0])
