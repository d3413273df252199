import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.configs import Config, HeadKind, Precision, load_config, save_config
from diveparse.datasets.cache import CacheKind, CacheSettings, build_cache
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.splits import split_by_source
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.storage.lock import LOCK_FILE, InUseError
from diveparse.engine.run import RunFolder
from diveparse.engine.training import loop
from diveparse.engine.training.loop import NonFiniteError, train
from diveparse.heads.attributes import JointHeads
from diveparse.heads.scores import DiveScores
from diveparse.models.classifier import DiveClassifier

pytestmark = pytest.mark.usefixtures("quick_training_figures")

CLIP = r"tinysourc\d\d_\d{5}"
NUM_STEPS = 8  # of the tiny experiment: two epochs of four updates


def curves(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = run.glob("checkpoints/update-*/model.safetensors")
    return load_file(file)


def at_update(step: int, act: Callable[[], object]) -> Callable[..., object]:
    """`compute_loss`, but doing something first in update number `step`, counted from 1."""
    compute_loss, calls = loop.compute_loss, 0

    def patched(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if (calls + 1) // 2 == step:  # two batches to an update
            act()
        return compute_loss(*arguments)  # type: ignore[arg-type]

    return patched


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_leaves_its_config_environment_checkpoint_model_and_curves(tiny_experiment):
    cfg = load_config(tiny_experiment, [])
    run = train(cfg)
    assert run == Path(cfg.runs_dir) / "tiny" / "joint" / "seed-0"
    assert load_config(run / "config.yaml", []) == cfg
    assert json.loads((run / "environment.json").read_text())["seed"] == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"update-{NUM_STEPS:08d}"]
    assert DiveClassifier.load(run).config.clip == cfg.clip
    assert json.loads((run / "trained.json").read_text())["num_updates"] == NUM_STEPS
    drawn = curves(run)
    assert set(drawn["train/loss"]) == {3, 6}  # every third update
    assert set(drawn["val/top1"]) == {4, 8}  # every epoch


@pytest.mark.parametrize("kind", list(HeadKind))
def test_every_arm_draws_its_curves_under_the_same_tags(tiny_experiment, kind):
    run = train(load_config(tiny_experiment, [f"head.kind={kind.value}", "train.num_epochs=1"]))
    attributes = ("takeoff", "somersault", "twist", "position")
    tags = {tag for tag in curves(run) if not tag.startswith(("train/loss_", "train_epoch/loss_"))}
    assert tags == {
        *(f"train/{name}" for name in ("loss", "accuracy", "learning_rate", "grad_norm")),
        *(f"{split}/{name}" for split in ("train", "train_epoch") for name in ("clips_per_second", "data_wait_share")),
        *(f"{split}/damaged_clips" for split in ("train", "train_epoch")),
        *(f"train_epoch/{name}" for name in ("loss", "accuracy")),
        *(f"val/{name}" for name in ("top1", "top5", "mean_class_accuracy", "nll", "brier", "ece", "invalid_rate")),
        *(f"val/{name}" for name in ("num_clips", "num_classes_scored")),
        *(f"val/accuracy_{attribute}" for attribute in attributes),
        "val/accuracy_few",  # the group of all dives with so few clips
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
    sizes = ["train.num_epochs=12", "train.batch_size=8", "train.accumulation_steps=1", "train.checkpoint_every=99"]
    chosen = [f"head.kind={kind.value}", f"train.optimizer={optimizer}", "train.learning_rate=0.01"]
    run = train(load_config(tiny_experiment, sizes + chosen))
    drawn = curves(run)
    assert drawn["train_epoch/accuracy"][48] > 0.9
    assert drawn["train_epoch/loss"][48] < 0.5 * drawn["train_epoch/loss"][4]
    assert max(drawn["val/top1"].values()) == 1.0  # the colour tells the dive, whatever the source


AVERAGED_AND_MIXED = ["train.ema_decay=0.9", "train.mixup_alpha=0.8", "train.cutmix_alpha=1.0"]


@pytest.mark.parametrize(  # before any checkpoint, at an epoch's end, after one
    ("step", "options"), [(1, []), (4, []), (6, []), (6, AVERAGED_AND_MIXED)]
)
def test_resuming_after_a_stop_equals_not_stopping(tiny_experiment, monkeypatch, step, options, assert_same_run):
    cfg = load_config(tiny_experiment, options)
    whole = train(replace(cfg, name="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_loss", at_update(step, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    torch.manual_seed(999)  # a new process starts with other random numbers
    assert_same_run(train(cfg, resume=True), whole)


def test_resuming_a_finished_run_changes_nothing(tiny_experiment):
    cfg = load_config(tiny_experiment, [])
    before = contents(train(cfg))
    assert contents(train(cfg, resume=True)) == before


def test_a_run_that_goes_on_for_more_epochs_has_not_ended_until_they_are_done(tiny_experiment, monkeypatch):
    run = train(load_config(tiny_experiment, ["train.num_epochs=1"]))
    longer = load_config(tiny_experiment, ["train.num_epochs=2"])
    save_config(longer, run / "config.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_loss", at_update(1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(longer, resume=True)
    assert not (run / "trained.json").exists()
    train(longer, resume=True)
    assert json.loads((run / "trained.json").read_text())["num_updates"] == NUM_STEPS


def test_a_run_killed_just_before_it_says_that_it_has_ended_says_so_when_resumed(tiny_experiment):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    run = train(cfg)
    (run / "trained.json").unlink()
    train(cfg, resume=True)
    assert json.loads((run / "trained.json").read_text())["num_updates"] == NUM_STEPS // 2


def test_resuming_where_there_is_no_run_begins_one(tiny_experiment, assert_same_run):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    assert_same_run(train(cfg, resume=True), train(replace(cfg, name="whole")))


def test_a_run_is_never_written_over_without_resume(tiny_experiment):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    before = contents(train(cfg))
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train(cfg)
    assert contents(Path(cfg.runs_dir)) == {Path("tiny/joint/seed-0") / name: data for name, data in before.items()}


def test_resuming_with_other_options_is_refused_naming_them(tiny_experiment):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    before = contents(train(cfg))
    other = replace(cfg, train=replace(cfg.train, batch_size=2, num_epochs=3))
    with pytest.raises(ValueError, match=r"train\.num_epochs: 1 before, 3 now; train\.batch_size: 4 before, 2 now"):
        train(other, resume=True)
    assert contents(Path(cfg.runs_dir) / "tiny/joint/seed-0") == before


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(tiny_experiment):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    first, second = weights(train(cfg)), weights(train(replace(cfg, name="again")))
    other = weights(train(replace(cfg, seed=1)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_worker_processes_change_nothing_but_the_time(tiny_experiment, assert_same_run):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    with_workers = replace(cfg, name="workers", data=replace(cfg.data, num_workers=2))
    assert_same_run(train(with_workers), train(cfg))


def test_accumulated_batches_update_as_one_large_batch(tiny_experiment):
    overrides = ["train.num_epochs=1", "backbone.drop_path_rate=0"]
    cfg = load_config(tiny_experiment, overrides)
    large = replace(cfg, name="large", train=replace(cfg.train, batch_size=8, accumulation_steps=1))
    small, one = weights(train(cfg)), weights(train(large))
    for name in small:
        torch.testing.assert_close(small[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_clips_names(tiny_experiment, monkeypatch, step):
    cfg = load_config(tiny_experiment, ["train.checkpoint_every=1"])
    seen: list[DiveClassifier] = []
    honest, calls = JointHeads.loss, 0

    def poisoned(self: JointHeads, scores: DiveScores, labels: torch.Tensor) -> tuple:
        nonlocal calls
        calls += 1
        loss, terms = honest(self, scores, labels)
        return (loss * float("nan") if calls == 2 * step else loss), terms  # the update's second batch

    def spy(*arguments: object) -> DiveClassifier:
        seen.append(build(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    build = loop.build_classifier
    monkeypatch.setattr(loop, "build_classifier", spy)
    monkeypatch.setattr(JointHeads, "loss", poisoned)
    with pytest.raises(
        NonFiniteError, match=rf"loss is nan in update {step}; .*Clips: (tinysourc\d\d_\d{{5}}(, )?){{4}}\."
    ):
        train(cfg)
    if step > 1:
        run = Path(cfg.runs_dir) / "tiny" / "joint" / "seed-0"
        assert [path.name for path in (run / "checkpoints").iterdir()] == [f"update-{step - 1:08d}"]
        kept, now = weights(run), seen[0].state_dict()
        assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_a_gradient_that_is_not_finite_stops_the_run_with_the_clips_names(tiny_experiment, monkeypatch):
    honest = loop.compute_loss

    def explosive(model: DiveClassifier, batch: dict, precision: Precision, mix: None) -> tuple:
        loss, terms, num_correct = honest(model, batch, precision, mix)
        parameter = next(model.head.parameters())
        # sqrt at 0 has the value 0 and an infinite slope
        return loss + (0.0 * parameter.flatten()[0]).abs().sqrt(), terms, num_correct

    monkeypatch.setattr(loop, "compute_loss", explosive)
    with pytest.raises(
        NonFiniteError, match=r"gradient's norm is (nan|inf) in update 1; .*(tinysourc\d\d_\d{5}(, )?){8}"
    ):
        train(load_config(tiny_experiment, []))


def test_the_model_kept_is_the_best_on_validation(tiny_experiment, monkeypatch):
    scores = iter([(0.5, 1.0), (0.75, 3.0), (0.75, 2.0), (0.5, 0.1)])
    kept: list[dict[str, torch.Tensor]] = []
    honest_metrics, honest_save = loop.compute_metrics, loop.save_checkpoint

    def scripted(*arguments: object) -> dict:
        top1, nll = next(scores)
        return {**honest_metrics(*arguments), "top1": top1, "nll": nll}  # type: ignore[arg-type]

    def spy(run: Path, learner: loop.Learner) -> None:
        kept.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})
        honest_save(run, learner)

    monkeypatch.setattr(loop, "compute_metrics", scripted)
    monkeypatch.setattr(loop, "save_checkpoint", spy)
    run = train(load_config(tiny_experiment, ["train.num_epochs=4", "train.checkpoint_every=99"]))
    best = load_file(run / "model" / "model.safetensors")
    assert [all(torch.equal(best[name], epoch[name]) for name in best) for epoch in kept] == [False, False, True, False]
    assert json.loads((run / "model" / "update.json").read_text()) == {"update": 12}


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(tiny_experiment, monkeypatch):
    weights_after: list[dict[str, torch.Tensor]] = []
    evaluated: list[DiveClassifier] = []
    honest_update, honest_evaluate = loop.update, loop.evaluate

    def update(learner: loop.Learner, *rest: object) -> dict[str, float]:
        state = honest_update(learner, *rest)  # type: ignore[arg-type]
        weights_after.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})
        return state

    def evaluate(model: DiveClassifier, *rest: object) -> object:
        evaluated.append(model)
        return honest_evaluate(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "update", update)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    run = train(load_config(tiny_experiment, ["train.num_epochs=1", "train.ema_decay=0.6"]))
    expected = weights_after[0]  # the first update is all that the average knows
    for number, new in enumerate(weights_after[1:], start=1):
        decay = min(0.6, 1 - (1 + number) ** (-3 / 4))
        expected = {name: decay * expected[name] + (1 - decay) * new[name] for name in new}
    kept = DiveClassifier.load(run).state_dict()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, expected[name])
        torch.testing.assert_close(evaluated[0].state_dict()[name], tensor, rtol=0, atol=0)
    assert not all(torch.equal(kept[name], weights_after[-1][name]) for name in kept)


def test_mixed_clips_are_learnt_from_and_counted_by_what_they_show_most_of(tiny_experiment, monkeypatch):
    targets: list[torch.Tensor] = []
    num_right = 0
    honest = JointHeads.loss

    def spy(self: JointHeads, scores: DiveScores, labels: torch.Tensor) -> tuple:
        nonlocal num_right
        targets.append(labels)
        num_right += int((scores.argmax() == labels.argmax(dim=-1)).sum())
        return honest(self, scores, labels)

    monkeypatch.setattr(JointHeads, "loss", spy)
    run = train(load_config(tiny_experiment, ["train.num_epochs=1", "train.mixup_alpha=1"]))
    assert all(shares.shape == (4, 48) for shares in targets)
    assert any(0.1 < float(shares.max(dim=-1).values.min()) < 0.9 for shares in targets)
    assert curves(run)["train_epoch/accuracy"][4] == pytest.approx(num_right / 32)


def test_validation_holds_whole_sources_out(tiny_experiment, tiny_root, monkeypatch):
    seen: dict[bool, set[str]] = {}
    honest = loop.build_clips

    def spy(cfg: Config, records: list, *, training: bool, from_cache: bool | None) -> object:
        seen[training] = {record.source for record in records}
        return honest(cfg, records, training=training, from_cache=from_cache)

    monkeypatch.setattr(loop, "build_clips", spy)
    train(load_config(tiny_experiment, ["train.num_epochs=1"]))
    assert seen[True].isdisjoint(seen[False])
    assert seen[True] | seen[False] == {record.source for record in read_split(tiny_root, "train")}
    train_records, _ = split_by_source(read_split(tiny_root, "train"), 0.2, 0)
    assert seen[True] == {record.source for record in train_records}


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
    tiny_experiment, monkeypatch, precision, assert_same_run
):
    cfg = load_config(tiny_experiment, [f"train.precision={precision.value}"])
    whole = train(replace(cfg, name="whole"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_loss", at_update(4, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    assert_same_run(train(cfg, resume=True), whole)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_run_goes_on_reading_what_it_began_with(tiny_experiment, tiny_root, tmp_path, monkeypatch):
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    options = [f"data.root={root}", "train.num_epochs=1"]
    records = read_split(root, "train")
    settings = CacheSettings(CacheKind.TRAINING, num_frames=8, short_side=32)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(tiny_experiment, [*options, "arm=videos"]))
        list(build_cache(root / "cache", settings, records, num_workers=1))
        with pytest.raises(KeyboardInterrupt):
            train(load_config(tiny_experiment, [*options, "arm=cache"]))
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
@pytest.mark.parametrize("step", [1, 4])
def test_a_run_whose_disk_fills_up_goes_on_to_the_same_bits(
    tiny_experiment, small_disk, monkeypatch, step, assert_same_run
):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])
    full = replace(cfg, runs_dir=str(small_disk))
    line = rf"^{small_disk}/\S+: no space left on the disk \(.* free\); nothing that was there before is lost"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_loss", at_update(step, lambda: fill(small_disk)))
        with pytest.raises(DiskFullError, match=line):
            train(full)
    (small_disk / "filling").unlink()
    assert_same_run(train(full, resume=step > 1), train(cfg))  # without a checkpoint, it need not be resumed


def test_a_run_that_is_being_trained_is_refused_to_others(tiny_experiment, monkeypatch):
    cfg = load_config(tiny_experiment, ["train.num_epochs=1"])

    def train_again() -> None:
        for resume in (False, True):
            with pytest.raises(InUseError, match=rf"seed-0 is in use: training by process {os.getpid()} on "):
                train(cfg, resume=resume)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "log_start", lambda *_: train_again())
        run = train(cfg)
    assert json.loads((run / "trained.json").read_text())["num_updates"] == NUM_STEPS // 2
    assert not (run / LOCK_FILE).exists()
