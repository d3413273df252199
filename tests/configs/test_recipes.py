"""The configs for real Diving48, run dry: at their own tensor shapes, without the data set, a GPU or the network."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from transformers import VJEPA2Config

from diveparse.configs import BackboneKind, Config, HeadKind, differing_options, flat_options, load_config, run_folder
from diveparse.datasets.clip_dataset import ClipDataset
from diveparse.datasets.dives import DIVING48, DIVING48_TRAIN_COUNTS
from diveparse.datasets.records import ClipRecord
from diveparse.datasets.rendered.clip import RenderedClip, Source, Split
from diveparse.datasets.rendered.sets import write_clip
from diveparse.engine.batches import training_batches
from diveparse.engine.training.loop import build_learner, count_updates
from diveparse.engine.training.mixing import build_mixing
from diveparse.engine.training.update import update
from diveparse.heads import build_head
from diveparse.models.build_encoder import build_encoder
from diveparse.models.classifier import DiveClassifier, ModelConfig, build_classifier
from diveparse.models.weights.encoders import SavedEncoder
from diveparse.models.weights.published import OWN_PIXELS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROOT = "data/diving48"
RECIPES = [
    path.stem for path in sorted(CONFIGS.glob("*.yaml")) if OmegaConf.load(path).get("data", {}).get("root") == ROOT
]
ESTIMATE = re.compile(r"one (?:80 GB )?GPU: \d+ GB, ([\d.]+) hours at (\d+) TFLOP/s in (fp32|bf16)")


def recipe(name: str, *overrides: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", list(overrides))


def header(name: str) -> str:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def differing(one: str, other: str) -> set[str]:
    return {line.partition(":")[0] for line in differing_options(recipe(one), recipe(other))}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ClipRecord]:
    """Two rendered clips, each listed as often as an update of any recipe needs."""
    folder = tmp_path_factory.mktemp("rgb")
    listed = []
    for label in (0, 5):
        dive = DIVING48[label]
        sources = (Source.draw(0, Split.TRAIN, number, 1.0) for number in range(200))
        clip = RenderedClip(next(source for source in sources if source.has_board_for(dive)), dive, label)
        path = folder / f"{clip.name}.mp4"
        write_clip(clip, (120, 160), path)
        listed.append(ClipRecord(path, clip.name, clip.source.name, label))
    return listed * 64


def on_meta(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> DiveClassifier:
    """The recipe's model without its numbers: shapes only, so that any size is built and run at once."""
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # its values are looked at
    with torch.device("meta"):
        if cfg.backbone.kind is BackboneKind.TRANSFORMERS:  # the library's default V-JEPA 2 is the ViT-L
            encoder = SavedEncoder("ViT-L", VJEPA2Config(), OWN_PIXELS)
            sizes = {"num_frames": cfg.clip.num_frames, "image_size": cfg.clip.image_size}
            backbone = build_encoder(encoder, cfg.backbone, **sizes)
            head = build_head(cfg.head, backbone.embed_dim, DIVING48)
            return DiveClassifier(backbone, head, ModelConfig(cfg.backbone, cfg.clip, cfg.head))
        return build_classifier(replace(cfg, backbone=replace(cfg.backbone, weights=None)), DIVING48)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_together_at_its_own_shapes_and_takes_as_long_as_in_its_header(name, monkeypatch):
    cfg = recipe(name)
    model = on_meta(cfg, monkeypatch)
    shape = (cfg.train.batch_size, cfg.clip.num_frames, 3, cfg.clip.image_size, cfg.clip.image_size)
    clips, labels = torch.empty(shape, device="meta"), torch.zeros(shape[0], dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        loss, _ = model.head.loss(model(clips), labels)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert loss.shape == ()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    build_learner(model, replace(cfg.train, ema_decay=0), 100)  # an average needs numbers

    # an epoch: three forward passes' worth for a training clip, the backward pass costing two, and one more of blocks
    # that are recomputed; and one for the other clips. Behind a frozen encoder only the head has a backward pass
    if cfg.backbone.kind is BackboneKind.TRANSFORMERS:
        assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
        for_training = 1 + backward.get_total_flops() / counter.get_total_flops()
    else:
        for_training = 3 + cfg.backbone.num_checkpointed_blocks / cfg.backbone.depth
    num_passes = sum(DIVING48_TRAIN_COUNTS) * (for_training * (1 - cfg.data.val_fraction) + cfg.data.val_fraction)
    found = ESTIMATE.search(header(name))
    hours, flops_per_hour = float(found[1]), float(found[2]) * 1e12 * 3600
    flops_per_pass = counter.get_total_flops() / cfg.train.batch_size
    assert hours == pytest.approx(cfg.train.num_epochs * num_passes * flops_per_pass / flops_per_hour, rel=0.03)
    assert found[3] == cfg.train.precision.value


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("flat")])  # which read the same clips
def test_a_recipe_reads_batches_of_its_shape(name, records):
    cfg = recipe(name)
    clips = ClipDataset(records, cfg.clip, training=True, seed=0)
    batch = next(training_batches(clips, cfg.train, 0, first_update=0, num_workers=0))
    size = cfg.clip.image_size
    assert batch["inputs"].shape == (cfg.train.batch_size, cfg.clip.num_frames, 3, size, size)
    assert batch["inputs"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("diving48_original_flat", ("train.batch_size=2",)),
        ("diving48_modern_structured", ("train.batch_size=2",)),
    ],
)
def test_a_recipe_updates_a_network_of_its_width_with_clips_of_its_shape(name, overrides, records):
    # of twelve blocks one, and a small batch: seconds, not minutes
    one_block = ("backbone.weights=null", "backbone.depth=1", "train.accumulation_steps=1")
    cfg = recipe(name, *one_block, *overrides)
    torch.manual_seed(0)
    model = build_classifier(cfg, DIVING48)
    before = {parameter: value.detach().clone() for parameter, value in model.named_parameters()}
    learner = build_learner(model, cfg.train, 2)
    clips = ClipDataset(records, cfg.clip, training=True, seed=0)
    batches = training_batches(clips, cfg.train, 0, first_update=0, num_workers=0)
    state = update(learner, batches, records, cfg.train, build_mixing(cfg.train, len(DIVING48)))
    assert 0 < state["grad_norm"] < float("inf")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    still = {parameter for parameter, value in model.named_parameters() if torch.equal(value, before[parameter])}
    waiting = {name for name in before if name.startswith("backbone.blocks.0.time_") and "time_proj" not in name}
    assert still <= waiting  # for the projection after them, which starts at zero


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_only_what_differs_from_the_defaults(name):
    written = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    sections = {section: values for section, values in written.items() if isinstance(values, dict)}
    flat = {option: value for option, value in written.items() if option not in sections}
    flat |= {f"{section}.{option}": value for section, values in sections.items() for option, value in values.items()}
    defaults = flat_options(Config())
    assert [option for option, value in flat.items() if defaults[option] == value] == []


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_of_a_recipe_gives_its_commands(name):
    assert f"diveparse prepare diving48 {ROOT}" in header(name)
    assert f"diveparse train configs/{name}.yaml" in header(name)
    assert f"diveparse test {run_folder(recipe(name))}" in header(name)


@pytest.mark.parametrize("kind", ["diving48_original", "diving48_modern", "vjepa2"])
def test_the_arms_of_a_recipe_differ_in_nothing_but_the_head(kind):
    flat, structured = f"{kind}_flat", f"{kind}_structured"
    assert differing(flat, structured) == {"arm", "head.kind"}
    assert (recipe(flat).head.kind, recipe(structured).head.kind) == (HeadKind.FLAT, HeadKind.JOINT)


@pytest.mark.parametrize("num_frames", [8, 16, 32])
def test_the_recipes_of_other_frame_counts_differ_from_the_original_in_nothing_else(num_frames):
    name = f"diving48_frames_{num_frames}"
    assert differing("diving48_original_structured", name) == {"arm", "clip.num_frames"}
    assert recipe(name).clip.num_frames == num_frames


@pytest.mark.parametrize(
    ("name", "num_frames", "image_size", "other"),
    [
        ("diving48_hr", 16, 448, {"backbone.weights", "clip.image_size"}),
        ("diving48_long", 96, 224, {"backbone.num_checkpointed_blocks", "train.compile"}),
    ],
)
def test_the_variants_of_the_paper_take_as_many_clips_an_update_as_the_modern_recipe(
    name, num_frames, image_size, other
):
    cfg, modern = recipe(name), recipe("diving48_modern_structured")
    assert (cfg.clip.num_frames, cfg.clip.image_size) == (num_frames, image_size)
    sizes = {"clip.num_frames", "train.batch_size", "train.accumulation_steps", "test.batch_size"}
    assert differing("diving48_modern_structured", name) == {"arm", "data.cache"} | sizes | other
    assert count_updates(1000, cfg.train) == count_updates(1000, modern.train)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("clip.rand_augment_magnitude=31", r"clip.rand_augment_magnitude must be in \[0, 30\], got 31"),
        ("clip.rand_augment_magnitude=-1", r"clip.rand_augment_magnitude must be in \[0, 30\], got -1"),
        ("clip.erasing_probability=1.5", r"clip.erasing_probability must be in \[0, 1\], got 1.5"),
        ("clip.erasing_probability=nan", r"clip.erasing_probability must be in \[0, 1\], got nan"),
        ("train.mixup_alpha=-1", "train.mixup_alpha must be >= 0, got -1.0"),
        ("train.ema_decay=1", r"train.ema_decay must be in \[0, 1\), got 1.0"),
        ("backbone.num_checkpointed_blocks=13", "between 0 and the 12 blocks that are trained, got 13"),
        ("train.layer_decay=0", r"train.layer_decay must be in \(0, 1\], got 0.0"),
        ("train.layer_decay=1.1", r"train.layer_decay must be in \(0, 1\], got 1.1"),
    ],
)
def test_an_impossible_value_of_a_recipes_options_is_refused_by_name(override, complaint):
    with pytest.raises(ValueError, match=complaint):
        recipe("diving48_modern_flat", override)
