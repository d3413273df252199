from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from diveparse.configs import (
    BackboneConfig,
    BackboneKind,
    Config,
    PretrainConfig,
    flat_options,
    load_config,
    run_folder,
    save_config,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINEMATICS = CONFIGS / "kinematics.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_loads_with_its_schema(path):
    schema: Any = PretrainConfig if path == KINEMATICS else Config
    cfg = load_config(path, [], schema)
    # an experiment with a file for each arm has a name that its files share
    assert cfg.name == path.stem or cfg.name in ("diving48_original", "diving48_modern", "vjepa2")


@pytest.mark.parametrize(
    "option",
    [
        "train.accumulation_steps=2",
        "train.checkpoint_every=5",
        "train.precision=fp16",
        "train.precision=bf16",
        "clip.flip=true",
        "clip.order=shuffled",
        "clip.crop_scale_min=0.5",
        "data.root=somewhere",
        "head.kind=joint",
        "test.batch_size=2",
    ],
)
def test_an_option_that_pretraining_does_not_read_is_refused_by_name(option):
    with pytest.raises(ValueError, match=rf"{option.partition('=')[0]}|'{option.partition('.')[0]}' not in") as caught:
        load_config(KINEMATICS, [option], PretrainConfig)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["name=a/b"], "name must be a plain folder name"),
        (["seed=-1"], "seed must be >= 0, got -1"),
        (["clips_per_epoch=3"], "clips_per_epoch must be at least train.batch_size=8, got 3"),
        (["clips_per_epoch=0"], "clips_per_epoch must be > 0, got 0"),
        (["num_easy_clips=-1"], "num_easy_clips must be >= 0, got -1"),
        (["num_workers=-1"], "num_workers must be >= 0, got -1"),
        (["clip.num_frames=0"], "clip.num_frames must be > 0, got 0"),
        (["clip.image_size=0"], "clip.image_size must be > 0, got 0"),
        (["clip.image_size=72"], "clip.image_size must be a multiple of backbone.patch_size=16, got 72"),
        (["clip.color_jitter=1.5"], r"clip.color_jitter must be in \[0, 1\], got 1.5"),
        (["train.batch_size=0"], "train.batch_size must be > 0, got 0"),
        (["train.log_every=0"], "train.log_every must be > 0, got 0"),
        (["train.learning_rate=0"], "train.learning_rate must be > 0, got 0.0"),
    ],
)
def test_an_impossible_value_is_refused_by_name(overrides, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_config(KINEMATICS, overrides, PretrainConfig)


def test_the_overrides_of_the_published_stages_are_options():
    stages = (
        "train.num_epochs=20",
        "name=kinematics-2 seed=1 num_easy_clips=0 backbone.weights=runs/kinematics/backbone.safetensors "
        "train.num_epochs=13 train.learning_rate=1e-3 train.head_learning_rate_factor=2",
    )
    for stage in stages:
        load_config(KINEMATICS, stage.split(), PretrainConfig)


def test_the_kinematics_config_holds_only_what_differs_from_the_defaults():
    written = OmegaConf.to_container(OmegaConf.load(KINEMATICS))
    sections = {name: values for name, values in written.items() if isinstance(values, dict)}
    flat = {name: value for name, value in written.items() if name not in sections}
    flat |= {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    defaults = flat_options(PretrainConfig())
    assert [name for name, value in flat.items() if defaults[name] == value] == []


def test_a_saved_pretraining_config_loads_as_the_same_config(tmp_path):
    cfg = load_config(KINEMATICS, ["seed=3", "backbone.weights=kinematics"], PretrainConfig)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", [], PretrainConfig) == cfg


def test_a_pretraining_has_no_arm_so_its_folder_is_its_name():
    assert run_folder(PretrainConfig(name="kinematics-3", seed=4)) == Path("runs/kinematics-3")


def test_only_our_own_backbone_is_pretrained():
    encoder = BackboneConfig(kind=BackboneKind.TRANSFORMERS, weights="owner/name")
    with pytest.raises(ValueError, match=r"backbone.kind must be timesformer for pretraining, got 'transformers'"):
        PretrainConfig(name="encoder", backbone=encoder)
