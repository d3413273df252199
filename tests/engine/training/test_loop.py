import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.special import log_softmax
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diveparse.configs import Config, HeadKind, Precision, load_config, run_folder, save_config
from diveparse.datasets.cache import CacheKind, CacheSettings, build_cache
from diveparse.datasets.dives import DiveSet
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.splits import split_by_source, training_clips
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.storage.lock import InUseError, locked
from diveparse.engine.batches import evaluation_batches, training_batches
from diveparse.engine.evaluation.calibration import split_validation
from diveparse.engine.evaluation.predictions import Predictions, load_predictions
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.run import RunFolder
from diveparse.engine.training import loop
from diveparse.engine.training.loop import build_learner, open_training_data, train, validate
from diveparse.engine.training.progress import Progress, Totals
from diveparse.engine.training.tensorboard import open_writer
from diveparse.engine.training.update import NonFiniteError, compute_loss, update
from diveparse.models.classifier import DiveClassifier, build_classifier

pytestmark = pytest.mark.usefixtures("quick_training_figures")

CLIP = r"tinysourc\d\d_\d{5}"
NUM_UPDATES = 8  # of the tiny experiment: two epochs of four updates


def curves(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = run.glob("checkpoints/update-*/model.safetensors")
    return load_file(file)


@pytest.fixture
def ended(tiny_experiment: Path, tiny_run: Path) -> Config:
    """The config of a run that has ended after one epoch of four updates."""
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    shutil.copytree(tiny_run, run_folder(cfg))
    save_config(cfg, run_folder(cfg) / "config.yaml")
    return cfg


def test_a_run_leaves_its_config_environment_checkpoint_model_and_curves(tiny_experiment):
    cfg = load_config(tiny_experiment, [])
    run = train(cfg)
    assert run == Path(cfg.runs_dir) / "tiny" / "joint" / "seed-0"
    assert load_config(run / "config.yaml", []) == cfg
    assert json.loads((run / "environment.json").read_text())["seed"] == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"update-{NUM_UPDATES:08d}"]
    assert DiveClassifier.load(run).config.clip == cfg.clip
    trained = json.loads((run / "trained.json").read_text())
    assert trained["num_updates"] == NUM_UPDATES
    assert [len(trained[name]) for name in ("clipped_share", "median_grad_norm")] == [cfg.train.num_epochs] * 2
    drawn = curves(run)
    assert set(drawn["train/loss"]) == {3, 6}  # every third update
    assert set(drawn["val/top1"]) == {4, 8}  # every epoch


@pytest.mark.parametrize(("limit", "share"), [("1e-3", 1.0), ("null", 0.0)])
def test_the_share_of_clipped_updates_is_recorded_and_drawn(tiny_experiment, limit, share):
    run = train(load_config(tiny_experiment, ["train.num_epochs=1", f"train.max_grad_norm={limit}"]))
    trained = json.loads((run / "trained.json").read_text())
    assert trained["clipped_share"] == [share]
    (norm,) = curves(run)["train_epoch/median_grad_norm"].values()
    assert trained["median_grad_norm"] == [pytest.approx(norm)]
    assert norm > 1e-3
    assert list(curves(run)["train_epoch/clipped_share"].values()) == [share]


def test_the_epoch_is_chosen_by_some_validation_sources_alone(tiny_experiment, monkeypatch):
    chosen_by = []
    monkeypatch.setattr(Progress, "is_best", lambda self, metrics: chosen_by.append(metrics["num_clips"]) or True)
    cfg = load_config(tiny_experiment, ["train.num_epochs=1", "data.val_fraction=0.4"])
    train(cfg)
    _, val_records, _ = training_clips(cfg.data, cfg.seed)
    chooses, fits = split_validation([record.source for record in val_records])
    assert chosen_by == [chooses.sum()]
    assert 0 < fits.sum() < len(val_records)


def test_a_single_validation_source_is_said_to_do_both(tiny_experiment, caplog):
    with caplog.at_level("INFO"):
        train(load_config(tiny_experiment, ["train.num_epochs=1"]))
    assert "its clips both choose the epoch and fit the temperature" in caplog.text


def test_pictures_can_be_left_out_and_curves_stay(tiny_experiment):
    run = train(load_config(tiny_experiment, ["train.num_epochs=1", "pictures=false"]))
    events = EventAccumulator(str(run)).Reload()
    assert events.Tags()["images"] == []
    assert "val/top1" in events.Tags()["scalars"]


@pytest.mark.parametrize("kind", list(HeadKind))
def test_every_arm_draws_its_curves_under_the_same_tags(tiny_experiment, kind):
    run = train(load_config(tiny_experiment, [f"head.kind={kind.value}", "train.num_epochs=1"]))
    attributes = ("takeoff", "somersault", "twist", "position")
    tags = {tag for tag in curves(run) if not tag.startswith(("train/loss_", "train_epoch/loss_"))}
    assert tags == {
        *(f"train/{name}" for name in ("loss", "accuracy", "learning_rate", "grad_norm")),
        *(f"{split}/{name}" for split in ("train", "train_epoch") for name in ("clips_per_second", "data_wait_share")),
        *(f"{split}/{name}" for split in ("train", "train_epoch") for name in ("clipped_share", "median_grad_norm")),
        *(f"{split}/damaged_clips" for split in ("train", "train_epoch")),
        *(f"train_epoch/{name}" for name in ("loss", "accuracy")),
        *(f"val/{name}" for name in ("top1", "top5", "mean_class_accuracy", "nll", "brier", "ece", "invalid_rate")),
        *(f"val/{name}" for name in ("num_clips", "num_classes_scored", "aurc", "difficulty_error")),
        *(f"val/{name}" for name in ("somersault_error", "twist_error")),
        *(f"val/accuracy_{attribute}" for attribute in attributes),
        "val/accuracy_few",  # the group of all dives with so few clips
        "val/accuracy_trained",
    }
    terms = {tag.removeprefix("train/loss_") for tag in curves(run) if tag.startswith("train/loss_")}
    assert (
        terms
        == {
            HeadKind.FLAT: {"flat"},
            HeadKind.INDEPENDENT: set(attributes),
            HeadKind.CONSTRAINED: set(attributes),
            HeadKind.JOINT: {"joint"},
            HeadKind.PAIRWISE: {"joint", "correction"},
            HeadKind.RESIDUAL: {"joint", "correction"},
        }[kind]
    )


@pytest.mark.parametrize(("kind", "optimizer"), [(HeadKind.FLAT, "adam"), (HeadKind.JOINT, "adamw")])
def test_training_learns_a_handful_of_clips_by_heart(tiny_experiment, kind, optimizer):
    sizes = ["train.num_epochs=20", "train.batch_size=8", "train.accumulation_steps=1", "train.checkpoint_every=99"]
    chosen = [f"head.kind={kind.value}", f"train.optimizer={optimizer}", "train.learning_rate=0.01"]
    run = train(load_config(tiny_experiment, sizes + chosen))
    drawn = curves(run)
    # four of 48 dives have clips; the others are offered as answers too, and are outdone last
    assert drawn["train_epoch/accuracy"][80] > 0.9
    assert drawn["train_epoch/loss"][80] < 0.5 * drawn["train_epoch/loss"][4]
    assert max(drawn["val/top1"].values()) == 1.0  # the colour tells the dive, whatever the source


AVERAGED_AND_MIXED = ["train.ema_decay=0.9", "train.mixup_alpha=0.8", "train.cutmix_alpha=1.0"]


@pytest.fixture
def interrupted(interrupted_in_update) -> Callable[..., None]:
    """A function that trains until an interrupt, as by Ctrl-C, in its n-th update."""

    def train_until(number: int, cfg: Config, *, resume: bool = False) -> None:
        with interrupted_in_update(number), pytest.raises(KeyboardInterrupt):
            train(cfg, resume=resume)

    return train_until


@pytest.mark.parametrize(  # before any checkpoint, at an epoch's end, after one
    ("number", "options"), [(1, []), (4, []), (6, []), (6, AVERAGED_AND_MIXED)]
)
def test_resuming_after_a_stop_equals_not_stopping(
    tiny_experiment, whole_tiny_run, interrupted, number, options, assert_same_run
):
    cfg = load_config(tiny_experiment, options)
    whole = train(replace(cfg, name="whole")) if options else whole_tiny_run
    interrupted(number, cfg)
    torch.manual_seed(999)  # a new process starts with other random numbers
    assert_same_run(train(cfg, resume=True), whole)


def test_resuming_a_finished_run_changes_nothing(ended):
    before = contents(run_folder(ended))
    assert contents(train(ended, resume=True)) == before


def test_a_run_that_goes_on_for_more_epochs_has_not_ended_until_they_are_done(tiny_experiment, ended, interrupted):
    run, longer = run_folder(ended), load_config(tiny_experiment, ["train.num_epochs=2"])
    save_config(longer, run / "config.yaml")
    interrupted(1, longer, resume=True)
    assert not (run / "trained.json").exists()
    train(longer, resume=True)
    assert json.loads((run / "trained.json").read_text())["num_updates"] == NUM_UPDATES


def test_a_run_killed_just_before_its_end_is_recorded_ends_when_resumed(ended):
    recorded = run_folder(ended) / "trained.json"
    recorded.unlink()
    train(ended, resume=True)
    assert json.loads(recorded.read_text())["num_updates"] == NUM_UPDATES // 2


def test_resuming_where_there_is_no_run_begins_one(tiny_experiment, tiny_run, assert_same_run):
    assert_same_run(train(load_config(tiny_experiment, ["train.num_epochs=1"]), resume=True), tiny_run)


def test_a_run_is_never_written_over_without_resume(ended):
    before = contents(Path(ended.runs_dir))
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train(ended)
    assert contents(Path(ended.runs_dir)) == before


def test_resuming_with_other_options_is_refused_naming_them(ended):
    before = contents(run_folder(ended))
    other = replace(ended, train=replace(ended.train, batch_size=2, num_epochs=3))
    with pytest.raises(ValueError, match=r"train\.num_epochs: 1 before, 3 now; train\.batch_size: 4 before, 2 now"):
        train(other, resume=True)
    assert contents(run_folder(ended)) == before


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(tiny_experiment, tiny_run, assert_same_run):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    assert_same_run(train(cfg), tiny_run)
    first, other = weights(tiny_run), weights(train(replace(cfg, seed=1)))
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_worker_processes_change_nothing_but_the_time(tiny_experiment, tiny_run, assert_same_run):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1", "data.num_workers=2"])
    assert_same_run(train(cfg), tiny_run)


def test_accumulated_batches_update_as_one_large_batch(tiny_experiment):
    overrides = ["train.num_epochs=1", "backbone.drop_path_rate=0"]
    cfg = load_config(tiny_experiment, overrides)
    large = replace(cfg, name="large", train=replace(cfg.train, batch_size=8, accumulation_steps=1))
    small, one = weights(train(cfg)), weights(train(large))
    for name in small:
        torch.testing.assert_close(small[name], one[name], rtol=1e-3, atol=1e-4)


def test_a_run_that_diverges_stops_with_the_clips_names_and_its_last_checkpoint(tiny_experiment):
    rates = ["train.learning_rate=100", "train.head_learning_rate_factor=1e6"]  # the largest that a config may have
    cfg = load_config(tiny_experiment, ["train.checkpoint_every=1", *rates])
    with pytest.raises(NonFiniteError) as error:
        train(cfg)
    stopped = re.search(rf" is (?:nan|inf) in update (\d+); .*Clips: (?:{CLIP}(?:, )?)+\.", str(error.value))
    assert stopped, error.value
    assert RunFolder.of(cfg).num_updates_done() == int(stopped[1]) - 1 > 0
    assert all(tensor.isfinite().all() for tensor in weights(run_folder(cfg)).values())


@pytest.mark.parametrize(("broken", "num_named"), [("loss", 4), ("gradient's norm", 8)])
def test_what_is_not_finite_stops_before_the_weights_change_and_names_the_clips(tiny_experiment, broken, num_named):
    cfg = load_config(tiny_experiment, [])
    data = open_training_data(cfg, None)
    learner = build_learner(build_classifier(cfg, data.dive_set), cfg.train, NUM_UPDATES)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    good, bad = islice(training_batches(data.clips, cfg.train, cfg.seed, first_update=0, num_workers=0), 2)
    if broken == "loss":
        bad["inputs"][2] = torch.nan
    else:
        next(learner.model.head.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        NonFiniteError, match=rf"{broken} is (nan|inf) in update 1; .*Clips: ({CLIP}(, )?){{{num_named}}}\."
    ):
        update(learner, iter([good, bad]), data.records, cfg.train)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


def test_the_model_kept_is_the_best_on_validation(tiny_experiment):
    cfg = load_config(tiny_experiment, ["head.kind=flat"])
    data = open_training_data(cfg, None)
    learner, run = build_learner(build_classifier(cfg, data.dive_set), cfg.train, NUM_UPDATES), RunFolder.of(cfg)
    batches = evaluation_batches(data.val_clips, batch_size=5, num_workers=0)
    linear = learner.model.head.linear
    with open_writer(run.path, 0) as writer:
        for epoch, named in enumerate((1, 0, 2)):  # the one dive that the model names; there are clips of dive 0 alone
            nn.init.zeros_(linear.weight)
            linear.bias.data = 9 * F.one_hot(torch.tensor(named), len(data.dive_set)).float()
            learner.progress.num_updates += 4
            learner.progress.epoch.add_clips(1, 0, 0, {"loss": 0.0})
            learner.progress.epoch.add(Totals(total_s=1.0))
            learner.progress.epoch.add_gradient(1.0, limit=1.0)
            validate(epoch, cfg, run, learner, batches, data, writer)
    assert curves(run.path)["val/top1"] == {4: 0.0, 8: 0.25, 12: 0.0}
    assert json.loads(run.best_update.read_text()) == {"update": 8}
    assert DiveClassifier.load(run.path).head.linear.bias.argmax() == 0


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(tiny_experiment):
    run = train(load_config(tiny_experiment, ["train.num_epochs=1", "train.ema_decay=0.6"]))
    (average,) = run.glob("checkpoints/update-*/average.safetensors")
    kept, last, averaged = DiveClassifier.load(run).state_dict(), weights(run), load_file(average)
    assert all(torch.equal(kept[name], averaged[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    assert evaluate_run(run, [], split="val")["nll"] == pytest.approx(curves(run)["val/nll"][4], rel=1e-5)


def test_the_average_begins_with_the_first_update_and_forgets_more_slowly_with_each(tiny_experiment):
    cfg = load_config(tiny_experiment, ["train.ema_decay=0.6"])
    data = open_training_data(cfg, None)
    learner = build_learner(build_classifier(cfg, data.dive_set), cfg.train, NUM_UPDATES)
    batches = training_batches(data.clips, cfg.train, cfg.seed, first_update=0, num_workers=0)
    expected: dict[str, torch.Tensor] = {}
    for number in range(4):
        update(learner, batches, data.records, cfg.train)
        decay = min(0.6, 1 - (1 + number) ** (-3 / 4))  # 0 for the first
        new = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
        expected = {name: decay * expected.get(name, new[name]) + (1 - decay) * new[name] for name in new}
    for name, tensor in learner.kept_model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_mixed_clips_are_learnt_from_and_counted_by_what_they_show_most_of(tiny_experiment):
    cfg = load_config(tiny_experiment, [])
    data = open_training_data(cfg, None)
    model = build_classifier(cfg, data.dive_set).eval()
    batch = next(training_batches(data.clips, cfg.train, cfg.seed, first_update=0, num_workers=0))
    with torch.no_grad():
        scores = model(batch["inputs"])
    wrong = (scores.argmax() + 1) % len(data.dive_set)
    own_share = torch.tensor([[0.9], [0.6], [0.4], [0.2]])
    shares = own_share * F.one_hot(scores.argmax(), 48) + (1 - own_share) * F.one_hot(wrong, 48)
    loss, terms, num_correct = compute_loss(model, batch, Precision.FP32, lambda inputs, _: (inputs, shares))
    torch.testing.assert_close(loss, model.head.loss(model(batch["inputs"]), shares)[0])
    assert terms["loss"] == loss.item()
    assert num_correct == 2


def test_validation_holds_whole_sources_out(tiny_experiment, tiny_root):
    data = open_training_data(load_config(tiny_experiment, []), None)
    train_records, val_records = split_by_source(read_split(tiny_root, "train"), 0.2, 0)
    assert (data.records, data.val_records) == (train_records, val_records)
    assert data.val_records
    assert {record.source for record in data.records}.isdisjoint(record.source for record in data.val_records)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.precision=bf16", "train.precision=bf16 needs a GPU"),
        ("train.compile=true", "train.compile=true needs a GPU"),
        ("train.batch_size=64", "= 128 clips, but only 32 are left"),
        ("data.root=/nowhere", "/nowhere"),
        ("backbone.weights=/nowhere", "/nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused(tiny_experiment, override, complaint):
    if override in ("train.precision=bf16", "train.compile=true") and torch.cuda.is_available():
        pytest.skip("a GPU does that")
    cfg = load_config(tiny_experiment, [override])
    with pytest.raises(ValueError, match=complaint):
        train(cfg)
    assert not Path(cfg.runs_dir).exists()


def test_a_folder_of_something_else_is_left_alone(tiny_experiment):
    cfg = load_config(tiny_experiment, [])
    folder = Path(cfg.runs_dir) / "tiny/joint/seed-0"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ValueError, match=r"holds files but no config\.yaml.*thesis\.txt"):
        train(cfg, resume=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", list(Precision))
def test_resuming_on_a_gpu_equals_not_stopping_in_any_precision(
    tiny_experiment, interrupted, precision, assert_same_run
):
    cfg = load_config(tiny_experiment, [f"train.precision={precision.value}"])
    whole = train(replace(cfg, name="whole"))
    interrupted(4, cfg)
    assert_same_run(train(cfg, resume=True), whole)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_run_reads_its_clips_from_where_it_began(tiny_experiment, tiny_root, tmp_path, interrupted):
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    options = [f"data.root={root}", "train.num_epochs=1"]
    records = read_split(root, "train")
    settings = CacheSettings(CacheKind.TRAINING, num_frames=8, short_side=32)

    interrupted(3, load_config(tiny_experiment, [*options, "arm=videos"]))
    list(build_cache(root / "cache", settings, records, num_workers=1))
    interrupted(3, load_config(tiny_experiment, [*options, "arm=cache"]))
    runs = {
        arm: train(load_config(tiny_experiment, [*options, f"arm={arm}"]), resume=True) for arm in ("videos", "cache")
    }
    assert {arm: RunFolder(run).splits_from_cache() for arm, run in runs.items()} == {"videos": [], "cache": ["train"]}
    assert not any(torch.equal(a, b) for a, b in zip(*(weights(run).values() for run in runs.values()), strict=True))
    unbroken = train(load_config(tiny_experiment, [*options, "arm=unbroken", "data.cache=false"]))
    assert all(torch.equal(value, weights(unbroken)[name]) for name, value in weights(runs["videos"]).items())

    (runs["cache"] / "trained.json").unlink()
    shutil.rmtree(root / "cache")
    with pytest.raises(ValueError, match="the run began with clips of this cache"):
        train(load_config(tiny_experiment, [*options, "arm=cache"]), resume=True)


def test_a_run_that_a_damaged_clip_stopped_can_go_on_without_it(tiny_experiment, tiny_root, tmp_path):
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    damaged = read_split(root, "train")[0].path
    damaged.write_bytes(damaged.read_bytes()[:700])
    options = [f"data.root={root}", "train.num_epochs=1"]
    with pytest.raises(ValueError, match=damaged.name):
        train(load_config(tiny_experiment, options))
    run = train(load_config(tiny_experiment, [*options, "data.damaged=skip"]), resume=True)
    assert curves(run)["train_epoch/damaged_clips"] == {4: 1}


def fill(disk: Path) -> None:
    """Leave no space on the small disk."""
    with contextlib.suppress(OSError):
        (disk / "filling").write_bytes(bytes(10**7))


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_a_run_that_does_not_fit_is_refused_before_it_begins(tiny_experiment, small_disk):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1", f"runs_dir={small_disk}"])
    fill(small_disk)
    needs = r"seed-0: training \(two checkpoints and the model\) needs about \d+ kB and .* are free; free some space$"
    with pytest.raises(DiskFullError, match=needs):
        train(cfg)
    (small_disk / "filling").unlink()
    train(cfg)


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
@pytest.mark.parametrize("number", [1, 4])
def test_a_run_whose_disk_fills_up_in_an_update_goes_on_to_the_same_bits(
    tiny_experiment, small_disk, number, assert_same_run
):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    full = replace(cfg, runs_dir=str(small_disk))
    line = rf"^{small_disk}/\S+: no space left on the disk \(.* free\); nothing that was there before is lost"
    updates = iter(range(1, NUM_UPDATES))
    hook = register_optimizer_step_pre_hook(lambda *_: fill(small_disk) if next(updates) == number else None)
    try:
        with pytest.raises(DiskFullError, match=line):
            train(full)
    finally:
        hook.remove()
    (small_disk / "filling").unlink()
    assert_same_run(train(full, resume=number > 1), train(cfg))  # without a checkpoint, it need not be resumed


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_another_process_trains_is_left_to_it(ended, resume):
    run = run_folder(ended)
    before = contents(run)
    with locked(run, "training"), pytest.raises(InUseError, match=f"{run} is in use: training by process "):
        train(ended, resume=resume)
    assert contents(run) == before


@pytest.fixture
def penalised_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Predictions, DiveSet, list[str]]]:
    """What a penalty is fitted on, each time that it is; it is 0.25."""
    calls = []

    def record(*arguments: Any) -> float:
        calls.append(arguments)
        return 0.25

    monkeypatch.setattr(loop, "default_penalty", record)
    return calls


@pytest.fixture
def four_dives(tiny_experiment: Path, tiny_root: Path) -> Path:
    """The tiny experiment on a CSV in which each of the four dives is a product of values that others have."""
    numbers = dict(zip((0, 5, 20, 41), ("101B", "103B", "201B", "203B"), strict=True))
    rows = ["path,dive_number,split,source"] + [
        f"{record.path},{numbers[record.label]},{split},{record.source}"
        for split in ("train", "test")
        for record in read_split(tiny_root, split)
    ]
    (path := tiny_experiment.parent / "four.csv").write_text("\n".join(rows) + "\n")
    return path


def test_a_model_has_a_penalty_that_was_fitted_without_it_and_tests_with_it(tiny_experiment, four_dives, penalised_on):
    overrides = [f"data.root={four_dives}", "data.unseen_dives=[203B]", "head.kind=joint", "train.num_epochs=2"]
    run = RunFolder(train(load_config(tiny_experiment, overrides)))
    assert json.loads((run.model / "config.json").read_text())["unseen_penalty"] == 0.25
    predictions, dive_set, unseen = penalised_on[-1]
    assert set(dive_set.numbers) == {"101B", "103B", "201B", "203B"}
    assert unseen == ["203B"]
    assert {dive_set.numbers[label] for label in predictions.labels} == {"101B", "103B", "201B"}
    metrics = evaluate_run(run.path, [], split="val")
    assert metrics["unseen_penalty"] == 0.25
    tested, tested_dives = load_predictions(run.evaluation("val").probabilities)
    assert tested_dives == dive_set
    taken = np.where([number == "203B" for number in dive_set.numbers], 0.0, 0.25)
    rows = [tested.clips.index(clip) for clip in predictions.clips]
    expected = log_softmax(predictions.dive_log_probs - taken, axis=1)
    np.testing.assert_allclose(tested.dive_log_probs[rows], expected, atol=1e-5)


@pytest.mark.parametrize("overrides", [["head.kind=flat"], ["head.kind=independent"]], ids=str)
def test_a_head_that_has_no_use_for_a_penalty_gets_none(tiny_experiment, four_dives, penalised_on, overrides):
    overrides += [f"data.root={four_dives}", "data.unseen_dives=[203B]", "train.num_epochs=1"]
    run = train(load_config(tiny_experiment, overrides))
    assert DiveClassifier.load(run).unseen_penalty == 0
    assert not penalised_on


@pytest.mark.parametrize("shown", ["all", "listed"])
def test_there_is_no_penalty_where_every_dive_that_is_expected_has_clips(
    tiny_experiment, four_dives, tiny_root, penalised_on, shown
):
    root = four_dives if shown == "all" else tiny_root  # whose list of 48 has 44 dives without any clip
    cfg = load_config(tiny_experiment, [f"data.root={root}", "head.kind=joint", "train.num_epochs=1"])
    assert open_training_data(cfg, None).unseen == []
    assert DiveClassifier.load(train(cfg)).unseen_penalty == 0
    assert not penalised_on


def test_sigterm_in_a_validation_leaves_it_to_the_resumption(
    tiny_experiment: Path,
    tiny_run: Path,
    assert_same_run: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    whole = loop.evaluate

    def evaluate_and_get_sigterm(*arguments: Any, **options: Any) -> Predictions:
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate_and_get_sigterm)
        with pytest.raises(SystemExit) as ending:
            train(cfg)
    assert ending.value.code == 128 + signal.SIGTERM
    run = RunFolder.of(cfg)
    assert [path.name for path in run.checkpoints.iterdir()] == ["update-00000004-to-validate"]
    assert not run.trained.is_file()
    train(cfg, resume=True)
    assert_same_run(run.path, tiny_run)


def test_sigterm_before_the_first_update_ends_at_once(tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])

    def get_sigterm(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "open_training_data", get_sigterm)
    with pytest.raises(SystemExit) as ending:
        train(cfg)
    assert ending.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not run_folder(cfg).exists()
