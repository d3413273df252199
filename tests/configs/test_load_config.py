import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from diveparse import configs
from diveparse.configs import (
    Config,
    CurveConfig,
    ExperimentConfig,
    FrameOrder,
    HeadConfig,
    HeadKind,
    OptimizerKind,
    Pooling,
    Precision,
    PretrainConfig,
    differing_options,
    find_config,
    flat_options,
    load_config,
    run_folder,
    save_config,
)
from diveparse.configs.bounds import BOUNDS

MINIMAL = "name: demo\narm: flat\ndata: {root: some/where}\n"
CACHED = ["backbone.num_frozen_blocks=10", "backbone.weights=kinematics", "train.num_cached_views=4"]
EXPERIMENT = """\
question: Does it help?
config: configs/study.yaml
arms: {flat-5: head.kind=flat data.train_fraction=0.05, joint-5: head.kind=joint, flat-9: ladder/flat, joint-9: ""}
pairs: [[flat-5, joint-5], [flat-9, joint-9]]
curve: {axis: share of the clips, values: [5, 9], series: {flat: [flat-5, flat-9], joint: [joint-5, joint-9]}}
"""


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
    + [("head.pooling", "head", "pooling", pooling) for pooling in Pooling]
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
        ("data.val_fraction=1", r"data.val_fraction must be in \(0, 1\), got 1.0"),
        ("data.train_fraction=0", r"data.train_fraction must be in \(0, 1\], got 0.0"),
        ("data.train_fraction=1.01", r"data.train_fraction must be in \(0, 1\], got 1.01"),
        ("data.num_shots=1", "data.num_shots must be 0 without data.unseen_dives, got 1"),
        ("data={unseen_dives: [205B], num_shots: -1}", "data.num_shots must be >= 0, got -1"),
        ("head.label_smoothing=1", r"head.label_smoothing must be in \[0, 1\), got 1.0"),
        ("head.label_smoothing=-0.1", r"head.label_smoothing must be in \[0, 1\), got -0.1"),
        ("head.auxiliary_weight=-1", "head.auxiliary_weight must be >= 0, got -1.0"),
        ("head.correction_penalty=-1", "head.correction_penalty must be >= 0, got -1.0"),
        ("head.ordinal_weight=-1", "head.ordinal_weight must be >= 0, got -1.0"),
        ("head.logit_adjustment=nan", "head.logit_adjustment must be >= 0, got nan"),
        ("head.pooling=max", r"head.pooling: .*'max'.*QUERIES"),
        ("train.num_cached_views=-1", "train.num_cached_views must be >= 0, got -1"),
        ("train.num_cached_views=4", "train.num_cached_views must be 0 without backbone.num_frozen_blocks, got 4"),
        ("backbone.num_frozen_blocks=13", "backbone.num_frozen_blocks must be between 0 and backbone.depth=12, got 13"),
        ("clip.image_size=100", "clip.image_size must be a multiple of backbone.patch_size=16, got 100"),
        ("backbone={stem: conv, patch_size: 12}", "backbone.patch_size must be 4, 8, 16, ... for .*stem=conv, got 12"),
        ("backbone={stem: conv, embed_dim: 6, num_heads: 1}", "backbone.embed_dim must be a multiple of 4 .*, got 6"),
        ("backbone.kind=transformers", "backbone.weights must be a folder or hub id with .*=transformers, got None"),
        (
            "backbone={kind: transformers, weights: a/b, layers: [3, 1]}",
            r"backbone.layers must be ascending .*, got \[3",
        ),
        ("backbone={kind: transformers, weights: a/b, layers: [-1]}", "backbone.layers must be ascending numbers of"),
        ("backbone.layers=[1]", r"backbone.layers must be left out with backbone.kind=timesformer, .*, got \[1\]"),
        ("test.num_spatial_views=2", "test.num_spatial_views must be 1 or 3, got 2"),
        ("seed=-1", "seed must be >= 0, got -1"),
        ("name=../elsewhere", "name must be a plain folder name"),
        ("arm=a b", "arm must be a plain folder name"),
        ("clip.color_jitter=inf", "clip.color_jitter must be <= 100, got inf"),
        ("backbone.mlp_ratio=nan", "backbone.mlp_ratio must be > 0, got nan"),
        ("backbone.mlp_ratio=-1", "backbone.mlp_ratio must be > 0, got -1.0"),
        ("backbone.embed_dim=-2", "backbone.embed_dim must be > 0, got -2"),
        ("backbone.embed_dim=1000000", "backbone.embed_dim must be <= 16384, got 1000000"),
        ("backbone.depth=1000000000", "backbone.depth must be <= 1024, got 1000000000"),
        ("clip.num_frames=1000000", "clip.num_frames must be <= 4096, got 1000000"),
        ("train.learning_rate=1e38", "train.learning_rate must be <= 100, got 1e\\+38"),
        ("head.auxiliary_weight=inf", "head.auxiliary_weight must be <= 1e\\+06, got inf"),
        ("seed=4294967296", "seed must be <= .*, got 4294967296"),
        ("clip.crop_scale_min=0.001", r"clip.crop_scale_min must be in \[0.01, 1\], got 0.001"),
        ("backbone.mlp_ratio=0.001", "backbone.mlp_ratio must be at least 1 / backbone.embed_dim=768, got 0.001"),
        ("train.ema_decay=-0.1", r"train.ema_decay must be in \[0, 1\), got -0.1"),
        ("seed=[1", "not YAML"),
        ("seed", "an override must look like train.batch_size=2, got 'seed'"),
        ("=3", "an override must look like train.batch_size=2, got '=3'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(tmp_path, override, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        load_config(written(tmp_path), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stem", "conv"),
        ("patch_size", 8),
        ("embed_dim", 384),
        ("depth", 6),
        ("num_heads", 6),
        ("mlp_ratio", 2.0),
        ("drop_path_rate", 0.1),
    ],
)
def test_options_of_the_timesformer_are_refused_with_another_encoder(tmp_path, name, value):
    encoder = ["backbone.kind=transformers", "backbone.weights=owner/name"]
    assert load_config(written(tmp_path), encoder).clip.num_frames == 0  # left to the encoder
    refused = (
        f"backbone.{name}={value!r} has no effect with backbone.kind=transformers, whose encoder has a config.json"
    )
    with pytest.raises(ValueError, match=refused) as caught:
        load_config(written(tmp_path), [*encoder, f"backbone.{name}={value}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["head.kind=flat", "head.auxiliary_weight=1"], "head.auxiliary_weight=1.0 has no effect with head.kind=flat"),
        (
            ["head.kind=constrained", "head.auxiliary_weight=1"],
            "head.auxiliary_weight=1.0 has no effect with head.k",
        ),
        (["head.kind=flat", "head.ordinal_weight=4"], "head.ordinal_weight=4.0 has no effect with head.kind=flat"),
        (["head.kind=flat", "head.uncertainty_weighting=true"], "head.uncertainty_weighting=True has no effect with"),
        (
            ["head.kind=joint", "head.correction_penalty=1"],
            "head.correction_penalty=1.0 has no effect with head.kind=joint",
        ),
        (
            ["head.ordinal_weight=4"],
            "head.ordinal_weight=4.0 has no effect with head.kind=joint and head.auxiliary_weight=0",
        ),
        (["head.uncertainty_weighting=true"], "has no effect with head.kind=joint and head.auxiliary_weight=0"),
        (["train.mixup_alpha=1", *CACHED], "train.mixup_alpha must be 0 with train.num_cached_views, got 1.0"),
        (["train.cutmix_alpha=1", *CACHED], "train.cutmix_alpha must be 0 with train.num_cached_views, got 1.0"),
        (["train.precision=fp16"], "train.precision: .*'fp16'.*BF16"),
    ],
)
def test_an_option_that_does_nothing_is_refused_in_one_line(tmp_path, overrides, refused):
    with pytest.raises(ValueError, match=refused) as caught:
        load_config(written(tmp_path), overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["joint", "pairwise", "residual"])
def test_the_default_structured_arm_is_the_joint_likelihood_alone(tmp_path, kind):
    assert load_config(written(tmp_path), []).head.kind is HeadKind.JOINT
    assert load_config(written(tmp_path), [f"head.kind={kind}"]).head.auxiliary_weight == 0
    own = ["head.ordinal_weight=4", "head.uncertainty_weighting=true"]
    assert (
        load_config(written(tmp_path), [f"head.kind={kind}", "head.auxiliary_weight=1", *own]).head.ordinal_weight == 4
    )


@pytest.mark.parametrize("schema", [Config, PretrainConfig])
def test_every_number_of_the_schema_has_bounds(schema):
    sections = [schema, *(each.default_factory for each in fields(schema) if is_dataclass(each.default_factory))]
    numbers = [(section, each) for section in sections for each in fields(section) if each.type in ("int", "float")]
    assert len(numbers) > 15
    without = {f"{section.__name__}.{each.name}" for section, each in numbers if BOUNDS not in each.metadata}
    assert without <= {"TestConfig.num_spatial_views"}  # which is one of two values


def test_a_config_of_an_earlier_version_is_read_under_todays_names(tmp_path, caplog):
    path = written(tmp_path)
    older = "head: {kind: flat, learned_weights: false, auxiliary_weight: 1.0}\ntrain: {num_stored_views: 0}\n"
    path.write_text(path.read_text() + older)
    cfg = load_config(path, [])
    assert (cfg.head.auxiliary_weight, cfg.head.uncertainty_weighting, cfg.train.num_cached_views) == (0, False, 0)
    assert "is of an earlier version: head.learned_weights is now head.uncertainty_weighting" in caplog.text


def test_views_can_be_cached_where_frozen_blocks_begin_with_weights(tmp_path):
    assert load_config(written(tmp_path), CACHED).train.num_cached_views == 4


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("backbone.num_frozen_blocks=0", "0 without backbone.num_frozen_blocks"),
        ("backbone.weights=null", "0 without backbone.weights"),
        ("backbone.drop_path_rate=0.1", "0 with backbone.drop_path_rate"),
        ("data.damaged=skip", "0 with data.damaged=skip"),
        ("test.num_spatial_views=3", r"0 with more than one test view \(the feature cache holds one\)"),
    ],
)
def test_cached_views_are_refused_where_a_frozen_block_would_not_answer_alike(tmp_path, override, complaint):
    with pytest.raises(ValueError, match=f"train.num_cached_views must be {complaint}, got 4") as caught:
        load_config(written(tmp_path), [*CACHED, override])
    assert "\n" not in str(caught.value)
    load_config(written(tmp_path), [*CACHED, override, "train.num_cached_views=0"])


def test_shots_are_of_unseen_dives(tmp_path):
    cfg = load_config(written(tmp_path), ["data.unseen_dives=[205B, 105B]", "data.num_shots=3"])
    assert (cfg.data.unseen_dives, cfg.data.num_shots) == (["205B", "105B"], 3)


def test_an_experiment_is_its_arms_and_what_is_compared(tmp_path):
    cfg = load_config(written(tmp_path, EXPERIMENT), [], ExperimentConfig)
    assert cfg.arms["flat-5"] == "head.kind=flat data.train_fraction=0.05"
    assert (cfg.seeds, cfg.split) == ([0, 1, 2], "test")
    assert cfg.pairs == [["flat-5", "joint-5"], ["flat-9", "joint-9"]]
    series = {"flat": ["flat-5", "flat-9"], "joint": ["joint-5", "joint-9"]}
    assert cfg.curve == CurveConfig("share of the clips", [5.0, 9.0], series)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("pairs=[[flat-5, joint]]", r"pairs must be two names of arms each, got \['flat-5', 'joint'\]"),
        ("pairs=[[flat-5]]", r"pairs must be two names of arms each, got \['flat-5'\]"),
        ("pairs=[[flat-5, joint-5, flat-9]]", "pairs must be two names of arms each"),
        ("curve.series.joint=[joint-5]", r"curve.series.joint must be 2 arms, got \['joint-5'\]"),
        ("curve.values=[5, 9, 20]", r"curve.series.flat must be 3 arms, got \['flat-5', 'flat-9'\]"),
        ("curve.series.joint=[joint-5, flat]", r"curve.series.joint must be names of arms, got \['joint-5', 'flat'\]"),
        ("curve.series=null", "curve.series: "),
        ("split=train", "split must be val or test, got 'train'"),
        ("seeds=[]", r"seeds must be one or more, got \[\]"),
        ("seeds=[-1]", "seeds must be from 0 to 4294967295, got -1"),
        ("curve.values=[5, .nan]", "curve.values must be finite, got nan"),
        ("seeds=[one]", "seeds.*'one'"),
        ("arms={a/b: head.kind=flat}", "arms must be a plain folder name, .*got 'a/b'"),
        ("arm=flat", "'arm' not in 'ExperimentConfig'"),
    ],
)
def test_an_experiment_that_does_not_add_up_is_refused_in_one_line(tmp_path, override, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        load_config(written(tmp_path, EXPERIMENT), [override], ExperimentConfig)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["question", "config", "arms"])
def test_an_experiment_without_what_it_needs_is_refused_by_name(tmp_path, missing):
    lines = [line for line in EXPERIMENT.splitlines() if not line.startswith(missing)]
    lines = [line for line in lines if missing != "arms" or not line.startswith(("pairs", "curve"))]
    with pytest.raises(ValueError, match=rf"experiment\.yaml: .*{missing}.*missing") as caught:
        load_config(written(tmp_path, "\n".join(lines)), [], ExperimentConfig)
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
    flat = flat_options(load_config(written(tmp_path), []))
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


def test_a_config_that_ships_with_the_package_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("demo"), ["seed=3"]).name == "demo"
    assert load_config(Path("ladder"), [], ExperimentConfig).config == "study"
    assert load_config(Path(load_config(Path("ladder"), [], ExperimentConfig).config), []).name == "study"


def test_a_file_comes_before_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text(MINIMAL + "seed: 7\n", encoding="utf-8")
    Path("study").mkdir()
    assert load_config(Path("demo"), []).seed == 7
    assert load_config(Path("study"), []).name == "study"


@pytest.mark.parametrize("path", ["ladder", "demo.yaml", "configs/demo.yaml", "../configs/demo", ""])
def test_what_is_neither_a_file_nor_a_name_is_refused_with_the_names(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"no such config file; expected the path of one, or a name: .*demo, .*study, .*$"
    ):
        load_config(Path(path), [])


def test_files_of_other_programs_beside_the_recipes_are_not_listed(tmp_path, monkeypatch):
    for name in ("mine", "._mine", "~$mine", "#mine", "mine - Copy", "mine (1)"):
        (tmp_path / f"{name}.yaml").touch()
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match=r"expected the path of one, or a name: mine$"):
        find_config(Path("nothing"), Config)


def test_every_recipe_of_the_package_is_listed():
    folder = Path(configs.__file__).parent
    for schema, names in ((Config, folder.glob("*.yaml")), (ExperimentConfig, folder.glob("experiments/*.yaml"))):
        assert all(find_config(Path(path.stem), schema) == path for path in names)


def test_a_size_that_is_left_to_the_encoder_does_not_differ_from_what_it_said(tmp_path):
    encoder = ["backbone.kind=transformers", "backbone.weights=owner/name"]
    said = load_config(written(tmp_path), [*encoder, "clip.num_frames=64", "clip.image_size=256"])
    assert differing_options(said, load_config(written(tmp_path), encoder)) == []
    other = load_config(written(tmp_path), [*encoder, "clip.num_frames=32"])
    assert differing_options(said, other) == ["clip.num_frames: 64 before, 32 now"]


def test_the_only_frame_is_one_of_the_clip_also_where_their_number_is_the_default(tmp_path):
    assert load_config(written(tmp_path), ["clip.only_frame=23"]).clip.only_frame == 23
    for number in (24, -1):
        with pytest.raises(ValueError, match=r"clip\.only_frame must be 0 or more, and below clip\.num_frames"):
            load_config(written(tmp_path), [f"clip.only_frame={number}"])


def test_an_option_that_is_gone_is_left_out_where_it_was_off(tmp_path: Path) -> None:
    older = "name: older\narm: joint\ndata: {root: d}\nhead: {cumulative_counts: false, pair_rank: 0}\n"
    (tmp_path / "config.yaml").write_text(older)
    assert load_config(tmp_path / "config.yaml", []).head == HeadConfig()


def test_an_option_that_is_gone_is_refused_where_it_was_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: older\narm: joint\nhead: {kind: pairwise, pair_rank: 4}\n")
    with pytest.raises(ValueError, match=r"config.yaml: head.pair_rank=4: this version has no such option"):
        load_config(tmp_path / "config.yaml", [])


@pytest.mark.parametrize("option", ["train.num_cached_views=4", "train.compile=true"])
def test_a_sharded_model_is_trained_from_clips_and_not_compiled(tmp_path: Path, option: str) -> None:
    (tmp_path / "config.yaml").write_text(MINIMAL)
    options = [*CACHED[:2], "train.shard=full", option]
    with pytest.raises(ValueError, match=f"{option.split('=')[0]} must be (0|false) with train.shard=full"):
        load_config(tmp_path / "config.yaml", options)
