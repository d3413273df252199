import re
from dataclasses import replace
from pathlib import Path

import pytest

from diveparse.configs import (
    Config,
    FrameOrder,
    HeadKind,
    OptimizerKind,
    Precision,
    differing_options,
    load_config,
    options,
    run_folder,
    save_config,
)

MINIMAL = "name: demo\narm: flat\ndata: {root: some/where}\n"


def written(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_holds_only_what_differs_from_the_defaults(tmp_path):
    cfg = load_config(written(tmp_path, MINIMAL + "train: {batch_size: 7}\n"), [])
    assert (cfg.train.batch_size, cfg.train.num_epochs) == (7, Config().train.num_epochs)


def test_overrides_win_over_the_file(tmp_path):
    cfg = load_config(written(tmp_path, MINIMAL + "train: {batch_size: 7}\n"), ["train.batch_size=9", "seed=3"])
    assert (cfg.train.batch_size, cfg.seed) == (9, 3)


@pytest.mark.parametrize(
    ("override", "section", "option", "value"),
    [("head.kind", "head", "kind", kind) for kind in HeadKind]
    + [("clip.order", "clip", "order", order) for order in FrameOrder]
    + [("train.optimizer", "train", "optimizer", kind) for kind in OptimizerKind]
    + [("train.precision", "train", "precision", precision) for precision in Precision],
)
def test_every_choice_is_written_as_its_own_word(tmp_path, override, section, option, value):
    cfg = load_config(written(tmp_path), [f"{override}={value.value}"])
    assert getattr(getattr(cfg, section), option) is value


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.bach_size=2", "train.bach_size: .*Did you mean: 'batch_size'"),
        ("trane.batch_size=2", "trane"),
        ("train.batch_size=two", "train.batch_size: .*'two'"),
        ("train.batch_size=2.5", "train.batch_size: .*'2.5'"),
        ("train.batch_size=0", r"train.batch_size must be > 0, got 0"),
        ("train.batch_size=null", "train.batch_size: .*None"),
        ("train.learning_rate=nan", "train.learning_rate must be > 0, got nan"),
        ("head.kind=softmax", r"head.kind: .*'softmax'.*FLAT"),
        ("head=3", "HeadConfig"),
        ("data.val_fraction=1", "data.val_fraction must be between 0 and 1, got 1.0"),
        ("clip.image_size=100", "clip.image_size must be a multiple of backbone.patch_size=16, got 100"),
        ("backbone={stem: conv, patch_size: 12}", "backbone.patch_size must be 4, 8, 16, ... for .*stem=conv, got 12"),
        ("backbone={stem: conv, embed_dim: 6, num_heads: 1}", "backbone.embed_dim must be a multiple of 4 .*, got 6"),
        ("test.num_spatial_views=2", "test.num_spatial_views must be 1 or 3, got 2"),
        ("seed=-1", "seed must be >= 0, got -1"),
        ("name=../elsewhere", "name must be a plain folder name"),
        ("arm=a b", "arm must be a plain folder name"),
        ("seed=[1", "not YAML"),
        ("seed", "an override must look like train.batch_size=2, got 'seed'"),
        ("=3", "an override must look like train.batch_size=2, got '=3'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(tmp_path, override, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        load_config(written(tmp_path), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["name: demo\narm: flat\n", "arm: flat\ndata: {root: x}\n", ""])
def test_a_missing_option_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"experiment\.yaml: (name|data\.root): .*missing"):
        load_config(written(tmp_path, text), [])


@pytest.mark.parametrize("text", ["name: [", "- a\n- b\n", "just words", "name: \x00"])
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"experiment\.yaml"):
        load_config(written(tmp_path, text), [])


def test_a_binary_file_is_refused_by_name(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"experiment\.yaml"):
        load_config(path, [])


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/none.yaml: no such config file")):
        load_config(tmp_path / "none.yaml", [])


def test_a_saved_config_loads_as_the_same_config(tmp_path):
    cfg = load_config(
        written(tmp_path), ["head.kind=independent", "backbone.weights=kinematics", "train.learning_rate=3e-5"]
    )
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == cfg
    assert "kind: independent" in (tmp_path / "config.yaml").read_text(encoding="utf-8")


def test_options_are_plain_values_by_dotted_names(tmp_path):
    flat = options(load_config(written(tmp_path), []))
    assert (flat["name"], flat["head.kind"], flat["train.precision"], flat["backbone.weights"]) == (
        "demo",
        "joint",
        "fp32",
        None,
    )


def test_differing_options_names_each_difference_and_nothing_else(tmp_path):
    cfg = load_config(written(tmp_path), [])
    other = replace(cfg, seed=4, train=replace(cfg.train, learning_rate=1.0))
    assert differing_options(cfg, cfg) == []
    assert differing_options(cfg, other) == ["seed: 0 before, 4 now", "train.learning_rate: 0.0001 before, 1.0 now"]


def test_the_run_folder_is_name_arm_seed(tmp_path):
    cfg = load_config(written(tmp_path), ["runs_dir=/there", "seed=2"])
    assert run_folder(cfg) == Path("/there/demo/flat/seed-2")
