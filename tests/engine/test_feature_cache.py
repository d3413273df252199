import os
import shutil
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diveparse.configs import Config, load_config
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.data_set import open_data_set
from diveparse.datasets.dives import DIVING48
from diveparse.datasets.diving48 import read_split
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.splits import evaluation_clips, training_clips
from diveparse.datasets.storage.disk import DiskFullError
from diveparse.datasets.storage.lock import InUseError, locked
from diveparse.datasets.video import VideoError
from diveparse.engine import feature_cache
from diveparse.engine.batches import build_clips, cached_or_read, evaluation_batches, training_batches
from diveparse.engine.evaluation.evaluate import evaluate
from diveparse.engine.evaluation.predictions import load_predictions
from diveparse.engine.evaluation.testing import evaluate_run
from diveparse.engine.feature_cache import CachedFeatures, features_folder, features_path, fill_feature_cache
from diveparse.engine.training.loop import train
from diveparse.engine.training.tensorboard import NUM_SAMPLE_CLIPS
from diveparse.models import TimeSformer, build_classifier, load_backbone, save_backbone
from diveparse.models.build import build_backbone
from diveparse.models.classifier import DiveClassifier

pytestmark = pytest.mark.usefixtures("quick_training_figures")

NUM_VIEWS = 3
FP16 = {"rtol": 2**-10, "atol": 1e-6}  # what rounding to half precision may change


@pytest.fixture
def options(tiny_experiment: Path, tiny_root: Path, tmp_path: Path) -> list[str]:
    """What gives the tiny experiment a frozen block with saved weights, and a data folder with room for its cache."""
    root, weights = tmp_path / "data", tmp_path / "backbone.safetensors"
    (root / "rgb").mkdir(parents=True)
    for path in (*tiny_root.glob("*.json"), *tiny_root.glob("rgb/*")):
        (root / path.relative_to(tiny_root)).symlink_to(path)
    cfg = load_config(tiny_experiment, [])
    torch.manual_seed(0)
    backbone = build_backbone(cfg.backbone, num_frames=cfg.clip.num_frames, image_size=cfg.clip.image_size)
    with torch.no_grad():
        for parameter in backbone.parameters():  # away from a start at which time counts for nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_backbone(weights, backbone)
    frozen = ["backbone.num_frozen_blocks=1", "backbone.drop_path_rate=0", f"backbone.weights={weights}"]
    return [f"data.root={root}", *frozen, f"train.num_cached_views={NUM_VIEWS}"]


@pytest.fixture
def cfg(tiny_experiment: Path, options: list[str]) -> Config:
    return load_config(tiny_experiment, options)


def backbone_of(cfg: Config) -> TimeSformer:
    assert cfg.backbone.weights is not None
    sizes = {"num_frames": cfg.clip.num_frames, "image_size": cfg.clip.image_size}
    return load_backbone(cfg.backbone.weights, cfg.backbone, **sizes)


def some_records(cfg: Config, split: str = "train", num_clips: int = 4) -> list[ClipRecord]:
    return read_split(Path(cfg.data.root), split)[:num_clips]


def fill(
    cfg: Config, records: list[ClipRecord], *, training: bool, num_views: int = NUM_VIEWS, num_workers: int = 0
) -> CachedFeatures:
    clips, root = build_clips(cfg, records, training=training), open_data_set(cfg.data).cache_root
    return fill_feature_cache(backbone_of(cfg), clips, root, num_views=num_views, num_workers=num_workers)


def own_views(cfg: Config, record: ClipRecord) -> list[torch.Tensor]:
    """What the frozen block makes of the first training views of a clip that is drawn from alone, by its name."""
    alone = ClipDataset([record], cfg.clip, training=True, seed=crc32(record.name.encode()))
    with torch.no_grad():
        return [backbone_of(cfg).frozen_tokens(alone[view, 0]["clip"][None])[0] for view in range(NUM_VIEWS)]


def view_taken(tokens: torch.Tensor, views: list[torch.Tensor]) -> int:
    (view,) = (number for number, expected in enumerate(views) if torch.allclose(tokens, expected, **FP16))
    return view


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace_video(record: ClipRecord, content: bytes) -> None:
    record.path.unlink()  # the link: the video itself is shared with other tests
    record.path.write_bytes(content)


def test_cached_evaluation_features_are_what_the_frozen_blocks_make_of_them(cfg):
    records = some_records(cfg, "test", 5)
    kept, clips = fill(cfg, records, training=False), build_clips(cfg, records, training=False)
    assert len(kept) == 5
    for index, record in enumerate(records):
        item = kept[index]
        with torch.no_grad():
            expected = backbone_of(cfg).frozen_tokens(clips[index]["clip"])
        torch.testing.assert_close(item["tokens"], expected, **FP16)  # (views, tokens, embed_dim), of one view
        assert {name: item[name] for name in ("label", "index", "problem")} == {
            name: clips[index][name] for name in ("label", "index", "problem")
        }
        assert (item["label"], item["index"]) == (record.label, index)


def test_cached_training_views_are_those_of_the_clips_own_random_stream_and_differ(cfg):
    records = some_records(cfg, num_clips=3)
    kept = fill(cfg, records, training=True)
    for index, record in enumerate(records):
        expected = own_views(cfg, record)
        for one, other in combinations(expected, 2):
            assert not torch.allclose(one, other, rtol=0.01, atol=0.01)
        taken = [view_taken(kept[epoch, index]["tokens"], expected) for epoch in range(NUM_VIEWS)]
        assert sorted(taken) == list(range(NUM_VIEWS))
        assert (kept[0, index]["label"], kept[0, index]["index"]) == (record.label, index)


def test_each_epoch_takes_the_next_view_and_meets_all_before_one_comes_again(cfg):
    records = some_records(cfg, num_clips=2)
    kept = fill(cfg, records, training=True)
    for index, record in enumerate(records):
        expected = own_views(cfg, record)
        taken = [view_taken(kept[epoch, index]["tokens"], expected) for epoch in range(2 * NUM_VIEWS + 1)]
        assert taken == [(taken[0] + epoch) % NUM_VIEWS for epoch in range(2 * NUM_VIEWS + 1)]


def test_clips_begin_with_different_views_and_another_seed_with_others(cfg, tmp_path):
    records = [replace(record, name=f"clip{k}") for k, record in enumerate(some_records(cfg, num_clips=20))]
    for record in records:
        np.save(features_path(tmp_path, record), np.arange(NUM_VIEWS, dtype=np.float16)[:, None, None])

    def first_views(seed: int) -> list[int]:
        kept = CachedFeatures(records, tmp_path, training=True, num_views=NUM_VIEWS, seed=seed)
        return [int(np.asarray(kept[0, index]["tokens"]).item()) for index in range(len(records))]

    assert set(first_views(0)) == set(range(NUM_VIEWS))
    assert first_views(0) == first_views(0)
    assert first_views(0) != first_views(1)


def test_the_cache_is_the_same_whichever_seed_and_share_of_the_clips_asks_for_it(cfg, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(cfg.data.root, elsewhere, symlinks=True)
    other = replace(cfg, seed=7, data=replace(cfg.data, root=str(elsewhere)))
    whole = files(fill(cfg, some_records(cfg), training=True).folder)
    part = files(fill(other, some_records(other)[:0:-2], training=True).folder)
    assert len(part) == 2
    assert part == {name: whole[name] for name in part}


def test_worker_processes_compute_the_same(cfg, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(cfg.data.root, elsewhere, symlinks=True)
    other = replace(cfg, data=replace(cfg.data, root=str(elsewhere)))
    alone = fill(cfg, some_records(cfg), training=True)
    assert files(fill(other, some_records(other), training=True, num_workers=1).folder) == files(alone.folder)


@pytest.mark.parametrize("training", [True, False])
def test_cached_features_are_not_computed_again(cfg, training):
    records = some_records(cfg)
    folder = fill(cfg, records[:3], training=training).folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 3
    assert fill(cfg, records, training=training).folder == folder
    assert len(files(folder)) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_video_that_was_replaced_since_is_computed_again(cfg):
    records = some_records(cfg)
    folder = fill(cfg, records, training=False).folder
    before = files(folder)
    replace_video(records[1], records[2].path.read_bytes())
    kept = fill(cfg, records, training=False)
    assert kept.folder == folder
    name = features_path(folder, records[1]).name
    assert {changed for changed, content in files(folder).items() if content != before[changed]} == {name}
    torch.testing.assert_close(kept[1]["tokens"], kept[2]["tokens"])


def change(parameter: torch.nn.Parameter) -> None:
    with torch.no_grad():
        parameter.view(-1)[0] += 0.001


@pytest.mark.parametrize(
    "override",
    [
        "clip.num_frames=2",
        "clip.image_size=48",
        "clip.order=shuffled",
        "clip.color_jitter=0.5",
        "backbone.num_frozen_blocks=2",
        "backbone.num_heads=4",
    ],
)
def test_other_clips_or_frozen_blocks_are_cached_in_another_folder(tiny_experiment, options, cfg, override):
    other, root, folders = load_config(tiny_experiment, [*options, override]), Path(cfg.data.root), set()
    for each in (cfg, other):
        torch.manual_seed(0)  # the same weights, as far as the sizes are
        backbone = build_backbone(each.backbone, num_frames=each.clip.num_frames, image_size=each.clip.image_size)
        folders.add(features_folder(backbone, build_clips(each, some_records(cfg), training=True), root, NUM_VIEWS))
    assert len(folders) == 2


def test_other_frozen_weights_views_and_purposes_have_another_folder(cfg):
    root, records = Path(cfg.data.root), some_records(cfg)
    clips, tested = (build_clips(cfg, records, training=training) for training in (True, False))
    changed = [backbone_of(cfg) for _ in range(3)]
    for backbone, name in zip(changed, ("blocks.0.mlp.fc1.weight", "patch_embed.proj.bias", "time_embed"), strict=True):
        change(backbone.get_parameter(name))
    folders = [
        features_folder(backbone_of(cfg), clips, root, NUM_VIEWS),
        features_folder(backbone_of(cfg), clips, root, NUM_VIEWS + 1),
        features_folder(backbone_of(cfg), tested, root, 1),
        *(features_folder(backbone, clips, root, NUM_VIEWS) for backbone in changed),
    ]
    assert len(set(folders)) == len(folders)


def test_what_is_trained_and_which_clips_there_are_leave_the_folder_as_it_is(tiny_experiment, options, cfg):
    root, records = Path(cfg.data.root), some_records(cfg)
    trained = backbone_of(cfg)
    for name in ("blocks.1.mlp.fc1.weight", "norm.weight"):
        change(trained.get_parameter(name))
    other = load_config(tiny_experiment, [*options, "seed=3", "head.kind=flat", "train.learning_rate=0.1"])
    folders = {
        features_folder(backbone, build_clips(each, kept, training=True), root, NUM_VIEWS)
        for backbone, each, kept in (
            (backbone_of(cfg), cfg, records),
            (trained, cfg, records),
            (backbone_of(other), other, records[:1]),
        )
    }
    assert len(folders) == 1


def test_clips_of_a_csv_are_cached_beside_it_each_window_of_a_video_by_itself(tiny_experiment, tiny_root, options):
    first, second = read_split(tiny_root, "train")[:2]
    table = Path(options[0].partition("=")[2]).with_name("club.csv")
    rows = [f"{first.path},101B,0,0.16", f"{first.path},101B,0.16,0.32", f"{second.path},103B,,"]
    table.write_text("path,dive_number,start,end\n" + "\n".join(rows) + "\n")
    cfg = load_config(tiny_experiment, [*options, f"data.root={table}"])
    train_records, val_records, _ = training_clips(cfg.data, cfg.seed)
    records = [*train_records, *val_records]
    kept = fill(cfg, records, training=False)
    assert kept.folder.parent == table.with_suffix(".cache")
    assert len(files(kept.folder)) == 3
    clips = build_clips(cfg, records, training=False)
    for index in range(3):
        with torch.no_grad():
            expected = backbone_of(cfg).frozen_tokens(clips[index]["clip"])
        torch.testing.assert_close(kept[index]["tokens"], expected, **FP16)


@pytest.mark.parametrize("views", [(2, 1), (1, 3)])
def test_more_than_one_view_of_an_evaluation_is_refused(cfg, views):
    clips = build_clips(cfg, some_records(cfg, "test"), training=False, views=views)
    with pytest.raises(ValueError, match=r"one view of an evaluation clip, got test views \(\d, \d\)"):
        fill_feature_cache(backbone_of(cfg), clips, open_data_set(cfg.data).cache_root, num_views=1, num_workers=0)
    assert not (Path(cfg.data.root) / "cache").exists()


@pytest.mark.parametrize(("training", "num_workers"), [(True, 0), (True, 1), (False, 0)])
def test_a_damaged_video_is_named_and_what_came_before_it_is_kept(cfg, training, num_workers):
    records = some_records(cfg)
    replace_video(records[2], records[2].path.read_bytes()[:700])
    kind = ValueError if num_workers else VideoError  # a worker's complaint comes as what all of them are
    with pytest.raises(kind, match=f"^{records[2].path}: "):
        fill(cfg, records, training=training, num_workers=num_workers)
    folder = features_folder(
        backbone_of(cfg),
        build_clips(cfg, records, training=training),
        open_data_set(cfg.data).cache_root,
        NUM_VIEWS if training else 1,
    )
    assert set(files(folder)) == {features_path(folder, record).name for record in records[:2]}


def test_numbers_that_half_precision_cannot_hold_are_refused_naming_the_video(cfg):
    backbone, records = backbone_of(cfg), some_records(cfg)
    with torch.no_grad():
        backbone.class_token.fill_(1e6)
    clips = build_clips(cfg, records, training=False)
    with pytest.raises(ValueError, match=f"^{records[0].path}: .* too large for fp16"):
        fill_feature_cache(backbone, clips, open_data_set(cfg.data).cache_root, num_views=1, num_workers=0)
    assert not list(Path(cfg.data.root).rglob("*.npy"))


@pytest.mark.parametrize("training", [True, False])
def test_filling_the_cache_leaves_the_backbones_mode_and_the_models_random_numbers_as_they_were(cfg, training):
    backbone = backbone_of(cfg).train(training)
    state = torch.get_rng_state()
    clips = build_clips(cfg, some_records(cfg, num_clips=1), training=True)
    fill_feature_cache(backbone, clips, open_data_set(cfg.data).cache_root, num_views=NUM_VIEWS, num_workers=0)
    assert backbone.training is training
    assert torch.equal(torch.get_rng_state(), state)


def test_without_cached_views_the_clips_are_read_as_they_are(tiny_experiment, options):
    cfg = load_config(tiny_experiment, [*options, "train.num_cached_views=0"])
    clips = build_clips(cfg, some_records(cfg), training=True)
    assert cached_or_read(clips, build_classifier(cfg, DIVING48), cfg) is clips
    assert not (Path(cfg.data.root) / "cache").exists()


@pytest.mark.parametrize("pooling", ["class_token", "mean", "queries"])
def test_a_head_reads_the_same_features_of_cached_clips_as_of_the_clips_themselves(tiny_experiment, options, pooling):
    cfg = load_config(tiny_experiment, [*options, f"head.pooling={pooling}"])
    model = build_classifier(cfg, DIVING48).eval()
    records = some_records(cfg)
    clips = build_clips(cfg, records, training=False)
    inputs = cached_or_read(clips, model, cfg)
    assert isinstance(inputs, CachedFeatures)
    (batch,) = evaluation_batches(inputs, batch_size=4, num_workers=0)
    (uncached,) = evaluation_batches(clips, batch_size=4, num_workers=0)
    with torch.no_grad():
        got, expected = model.features(batch["inputs"][:, 0]), model.features(uncached["inputs"][:, 0])
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)
    assert batch["index"].tolist() == uncached["index"].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_features_kept_in_memory_are_those_of_the_files(cfg, training):
    records = some_records(cfg)
    kept = fill(cfg, records, training=training)
    assert kept.in_memory
    from_files = CachedFeatures(
        records, kept.folder, training=training, num_views=kept.num_views, seed=kept.seed, in_memory=False
    )
    keys = [(3, 2), (4, 0), (3, 2)] if training else [2, 0, 2]
    for name, values in kept.__getitems__(keys).items():
        others = from_files.__getitems__(keys)[name]
        assert torch.equal(values, others) if isinstance(values, torch.Tensor) else values == others
    assert kept.features is not None
    assert kept.features.dtype == np.float16
    assert from_files.features is None


def test_a_cache_that_takes_too_much_of_the_memory_stays_on_the_disk(cfg, monkeypatch):
    monkeypatch.setattr(feature_cache, "machine_memory", lambda: 1000)
    assert not fill(cfg, some_records(cfg), training=True).in_memory


@pytest.mark.parametrize(("pooling", "num_tokens"), [("class_token", 1), ("mean", 17)])
def test_of_frozen_blocks_the_class_token_alone_is_kept_where_a_head_reads_nothing_else(
    tiny_experiment, options, pooling, num_tokens
):
    cfg = load_config(tiny_experiment, [*options, "backbone.num_frozen_blocks=2", f"head.pooling={pooling}"])
    model, records = build_classifier(cfg, DIVING48), some_records(cfg)
    inputs = cached_or_read(build_clips(cfg, records, training=False), model, cfg)
    (batch,) = evaluation_batches(inputs, batch_size=4, num_workers=0)
    assert batch["inputs"].shape == (4, 1, num_tokens, 16)
    (uncached,) = evaluation_batches(build_clips(cfg, records, training=False), batch_size=4, num_workers=0)
    got, expected = (model.features(each["inputs"][:, 0]) for each in (batch, uncached))
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01)
    got.sum().backward()
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.grad is not None}
    assert trained == {"norm.weight", "norm.bias"}


def test_training_goes_on_from_cached_class_tokens_of_frozen_blocks(tiny_experiment, options):
    sizes = ["train.num_epochs=2", "backbone.num_frozen_blocks=2"]
    run = train(load_config(tiny_experiment, [*options, *sizes]))
    assert evaluate_run(run, [], split="test")["num_clips"] == 12


def test_batches_of_cached_clips_come_in_the_order_of_those_that_are_not(cfg):
    records = some_records(cfg, num_clips=8)
    clips, inputs = build_clips(cfg, records, training=True), fill(cfg, records, training=True)
    batches, others = (
        list(islice(training_batches(each, cfg.train, cfg.seed, first_update=1, num_workers=0), 4))
        for each in (inputs, clips)
    )
    assert [batch["index"].tolist() for batch in batches] == [batch["index"].tolist() for batch in others]
    assert [batch["label"].tolist() for batch in batches] == [batch["label"].tolist() for batch in others]
    assert all(batch["num_damaged"] == 0 for batch in batches)
    for number, batch in enumerate(batches):  # of epochs 1, 1, 2 and 2
        for row, index in enumerate(batch["index"].tolist()):
            assert torch.equal(batch["inputs"][row], inputs[1 + number // 2, index]["tokens"])


def test_training_on_cached_clips_learns_a_handful_of_them_by_heart(tiny_experiment, options):
    sizes = ["train.num_epochs=12", "train.batch_size=8", "train.accumulation_steps=1", "train.checkpoint_every=99"]
    run = train(load_config(tiny_experiment, [*options, *sizes, "train.learning_rate=0.01"]))
    events = EventAccumulator(str(run)).Reload()
    accuracy, loss = ([point.value for point in events.Scalars(f"train_epoch/{name}")] for name in ("accuracy", "loss"))
    assert accuracy[-1] > 0.9
    assert loss[-1] < 0.5 * loss[0]
    assert max(point.value for point in events.Scalars("val/top1")) == 1.0  # the colour tells the dive


def test_training_reads_no_video_once_its_clips_are_cached(tiny_experiment, options):
    cfg = load_config(tiny_experiment, [*options, "train.num_epochs=1"])
    whole = train(cfg)
    train_records, val_records, _ = training_clips(cfg.data, cfg.seed)
    for record in [*train_records[NUM_SAMPLE_CLIPS:], *val_records]:  # TensorBoard shows the first ones
        before = record.path.stat()
        replace_video(record, b"no video")
        os.utime(record.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = train(replace(cfg, name="again"))
    assert (again / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def test_resuming_on_cached_clips_after_a_stop_equals_not_stopping(cfg, interrupted_in_update, assert_same_run):
    whole = train(replace(cfg, name="whole"))
    for number in (1, 4, 7):  # before any checkpoint, in the first epoch, in the second
        stopped = replace(cfg, name=f"stopped{number}")
        with interrupted_in_update(number), pytest.raises(KeyboardInterrupt):
            train(stopped)
        shutil.rmtree(Path(cfg.data.root) / "cache")  # the cached features may be removed, and come again
        torch.manual_seed(999)  # a new process starts with other random numbers
        assert_same_run(train(stopped, resume=True), whole)


@pytest.fixture
def run(tiny_experiment: Path, options: list[str]) -> Path:
    return train(load_config(tiny_experiment, [*options, "train.num_epochs=1", "train.learning_rate=0.01"]))


@pytest.mark.parametrize(("split", "prefix"), [("val", "validation_"), ("test", "")])
def test_a_test_on_cached_clips_predicts_what_the_model_predicts_of_the_clips_themselves(run, split, prefix):
    metrics = evaluate_run(run, [], split=split)
    got, dive_set = load_predictions(run / f"{prefix}predictions.safetensors")
    model, cfg = DiveClassifier.load(run), load_config(run / "config.yaml", [])
    assert dive_set == model.dive_set
    records = sorted(evaluation_clips(cfg.data, split, cfg.seed, dive_set), key=lambda record: record.name)
    clips = build_clips(cfg, records, training=False)
    assert isinstance(clips, ClipDataset)
    expected = evaluate(model, evaluation_batches(clips, batch_size=5, num_workers=0), records)
    assert got.clips == expected.clips
    assert np.ptp(expected.dive_log_probs, axis=0).max() > 0.1  # the clips do not all look the same to it
    np.testing.assert_allclose(got.dive_log_probs, expected.dive_log_probs, atol=1e-2)
    for name, log_probs in expected.attribute_log_probs.items():
        np.testing.assert_allclose(got.attribute_log_probs[name], log_probs, atol=1e-2)
    rows = np.arange(len(records))
    assert metrics["nll"] == pytest.approx(-expected.dive_log_probs[rows, expected.labels].mean(), abs=1e-2)


def test_a_test_of_more_views_of_a_run_on_cached_clips_is_refused_and_writes_nothing(run):
    before = {path.name for path in run.iterdir()}
    with pytest.raises(ValueError, match=r"train.num_cached_views must be 0 with more than one test view"):
        evaluate_run(run, ["test.num_temporal_views=2"], split="test")
    assert {path.name for path in run.iterdir()} == before


def test_features_that_do_not_fit_on_the_disk_are_refused_before_the_second_clip(cfg, monkeypatch):
    records = some_records(cfg)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    needs = r"frozen-\w+: the feature cache of 4 more clips needs about \S+ kB and 1 kB are free; free some space$"
    with pytest.raises(DiskFullError, match=needs):
        fill(cfg, records, training=False)
    assert not list(open_data_set(cfg.data).cache_root.rglob("*.npy"))


def test_a_feature_cache_that_another_process_fills_is_left_to_it(cfg):
    records = some_records(cfg)
    folder = fill(cfg, records, training=False).folder
    cached = files(folder)
    features_path(folder, records[0]).unlink()
    with (
        locked(folder, "computing features"),
        pytest.raises(InUseError, match=f"{folder} is in use: computing features"),
    ):
        fill(cfg, records, training=False)
    fill(cfg, records, training=False)
    assert files(folder) == cached


def test_features_are_of_the_video_as_it_is_whatever_the_clock_gave(cfg):
    records = some_records(cfg)
    folder = fill(cfg, records, training=False).folder
    path = features_path(folder, records[1])
    before = path.read_bytes()
    content, older = records[2].path.read_bytes(), records[1].path.stat().st_mtime_ns - 10**12
    replace_video(records[1], content)
    os.utime(records[1].path, ns=(older, older))  # copied with its old time, or while the clock was set back
    fill(cfg, records, training=False)
    assert path.read_bytes() != before


def test_features_that_are_damaged_in_mid_run_are_named(cfg):
    records = some_records(cfg, num_clips=1)
    kept = fill(cfg, records, training=False)
    path = features_path(kept.folder, records[0])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{path.name}: damaged or removed in mid-run: .*; delete it and resume"):
        kept[0]
