from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TimesformerConfig, TimesformerForVideoClassification

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, HeadKind, StemKind
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, DiveSet
from diveparse.models import DiveClassifier, build_classifier, save_huggingface

BACKBONE = BackboneConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
SMALL = DiveSet.from_numbers(["101B", "103B", "203B", "5132D"], "small")


def tiny_config(kind: HeadKind = HeadKind.JOINT, *, weights: str | None = None) -> Config:
    return Config(
        name="test",
        arm=kind.value,
        backbone=replace(BACKBONE, weights=weights),
        clip=ClipConfig(num_frames=3, image_size=16),
        head=HeadConfig(kind=kind),
    )


def tiny_classifier(kind: HeadKind = HeadKind.JOINT, dive_set: DiveSet = DIVING48) -> DiveClassifier:
    torch.manual_seed(0)
    model = build_classifier(tiny_config(kind), dive_set).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(3, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", HeadKind)
def test_every_head_answers_the_same_questions(kind: HeadKind, clips: Tensor) -> None:
    model = tiny_classifier(kind)
    torch.testing.assert_close(model.dive_log_probs(clips).exp().sum(-1), torch.ones(3))
    shapes = {name: tuple(log_probs.shape) for name, log_probs in model.attribute_log_probs(clips).items()}
    assert shapes == {name: (3, len(DIVING48.values[name])) for name in ATTRIBUTES}
    scores = model(clips)
    assert torch.equal(scores.log_probs(), model.dive_log_probs(clips))
    assert all(torch.equal(scores.marginals()[name], model.attribute_log_probs(clips)[name]) for name in ATTRIBUTES)
    torch.testing.assert_close(model.dive_log_probs(clips, SMALL).exp().sum(-1), torch.ones(3))


def test_the_features_of_several_views_of_a_clip_are_averaged(clips: Tensor) -> None:
    model = tiny_classifier().eval()
    views = torch.stack([clips, clips.flip(-1)], dim=1)  # (batch, views, ...)
    expected = model.head((model.features(clips) + model.features(clips.flip(-1))) / 2).log_probs()
    torch.testing.assert_close(model(views.flatten(0, 1), num_views=2).log_probs(), expected)


@pytest.mark.parametrize("kind", HeadKind)
def test_every_parameter_of_the_whole_model_gets_a_gradient(kind: HeadKind, clips: Tensor) -> None:
    model = tiny_classifier(kind).train()
    loss, _ = model.head.loss(model(clips), torch.tensor([0, 20, 47]))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", HeadKind)
@pytest.mark.parametrize("as_run", [False, True])
def test_saving_and_loading_is_bit_equal(kind: HeadKind, as_run: bool, clips: Tensor, tmp_path: Path) -> None:
    model = tiny_classifier(kind, SMALL)
    model.save(tmp_path / "run" / "model")
    loaded = DiveClassifier.load(tmp_path / "run" if as_run else tmp_path / "run" / "model")
    assert loaded.config == model.config
    assert loaded.dive_set == SMALL
    assert loaded.dive_set.name == "small"
    assert not loaded.training
    assert torch.equal(loaded.dive_log_probs(clips), model.dive_log_probs(clips))
    weights, loaded_weights = model.state_dict(), loaded.state_dict()
    assert weights.keys() == loaded_weights.keys()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)
    assert {path.name for path in (tmp_path / "run" / "model").iterdir()} == {"model.safetensors", "config.json"}


def test_a_saved_model_needs_no_weights_but_its_own(tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path / "first")
    fine_tuned = build_classifier(tiny_config(weights=str(tmp_path / "first")), SMALL)
    fine_tuned.save(tmp_path / "second")
    (tmp_path / "first" / "model.safetensors").unlink()
    assert DiveClassifier.load(tmp_path / "second").dive_set == SMALL


def test_a_convolutional_stem_is_saved_with_the_model(clips: Tensor, tmp_path: Path) -> None:
    cfg = tiny_config()
    model = build_classifier(replace(cfg, backbone=replace(cfg.backbone, stem=StemKind.CONV)), SMALL).eval()
    model.save(tmp_path)
    assert torch.equal(DiveClassifier.load(tmp_path).dive_log_probs(clips), model.dive_log_probs(clips))


def test_the_temperature_is_one_until_it_is_fitted_and_saved_with_the_model(clips: Tensor, tmp_path: Path) -> None:
    model = tiny_classifier()
    assert model.temperature == 1
    before = model.dive_log_probs(clips)
    model.temperature = 1 / 3
    model.save(tmp_path)
    loaded = DiveClassifier.load(tmp_path)
    assert loaded.temperature == model.temperature
    assert torch.equal(loaded.dive_log_probs(clips), before)  # which are uncalibrated


def test_a_model_keeps_which_dives_were_trained(tmp_path: Path) -> None:
    model, counts = tiny_classifier(HeadKind.FLAT, SMALL), torch.arange(len(SMALL))
    model.save(tmp_path)
    assert DiveClassifier.load(tmp_path).head.num_train_clips is None
    model.head.set_class_counts(counts)
    model.save(tmp_path)
    head = DiveClassifier.load(tmp_path).head
    assert head.num_train_clips == counts.tolist()
    assert head.trained_labels.tolist() == counts[1:].tolist()  # the first dive has no clip


@pytest.mark.parametrize("counts", [[1], "many", [0, 0, 0], [1, -1, 2], [1.5, 1, 1]], ids=str)
def test_numbers_of_training_clips_that_make_no_sense_are_refused(counts: object, tmp_path: Path) -> None:
    tiny_classifier(HeadKind.FLAT, SMALL).save(tmp_path)
    rewrite_config(tmp_path, dives={"name": "small", "numbers": SMALL.numbers, "num_train_clips": counts})
    with pytest.raises(ValueError, match=r"config\.json: dives\.num_train_clips must be null or \d+ numbers of clips"):
        DiveClassifier.load(tmp_path)


def rewrite_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))


@pytest.mark.parametrize("temperature", [None, 0.0, -1, "1", True, [1.0], {"dive": 1.0}])
def test_a_model_without_a_sound_temperature_is_refused(temperature: object, tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    rewrite_config(tmp_path, temperature=temperature)
    with pytest.raises(ValueError, match=r"config\.json: temperature must be above 0 and finite, got") as error:
        DiveClassifier.load(tmp_path)
    assert str(temperature) in str(error.value)


def test_a_model_of_an_earlier_version_keeps_the_temperature_of_its_dives(tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    earlier = {"dive": 1.7, "takeoff": 0.5, "somersault": 2.0, "twist": 3.0, "position": 1.0}
    rewrite_config(tmp_path, temperature=None, temperatures=earlier)
    assert DiveClassifier.load(tmp_path).temperature == 1.7


@pytest.mark.parametrize(
    ("section", "option", "value", "problem"),
    [
        ("backbone", "depth", 2**31 - 1, "backbone.depth must be <= 1024, got 2147483647"),
        ("clip", "image_size", 20, "image_size must be a multiple of patch_size=8, got 20"),
        ("clip", "num_frames", 10**6, "clip.num_frames must be <= 4096, got 1000000"),
        ("backbone", "embed_dim", 1024, "does not fit"),
    ],
)
def test_sizes_that_cannot_be_those_of_the_weights_are_refused_with_the_file(
    section: str, option: str, value: int, problem: str, tmp_path: Path
) -> None:
    tiny_classifier().save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())[section]
    rewrite_config(tmp_path, **{section: content | {option: value}})
    with pytest.raises(ValueError, match=problem) as error:
        DiveClassifier.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_model_of_an_earlier_version_loads_with_its_options_renamed(tmp_path: Path, clips: Tensor) -> None:
    model = tiny_classifier(HeadKind.FLAT)
    model.save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    head = {k: v for k, v in content["head"].items() if k != "uncertainty_weighting"}
    backbone = {k: v for k, v in content["backbone"].items() if k != "num_checkpointed_blocks"}
    older = {"learned_weights": False, "auxiliary_weight": 1.0}
    rewrite_config(tmp_path, head=head | older, backbone=backbone | {"num_recomputed_blocks": 0})
    assert torch.equal(DiveClassifier.load(tmp_path).dive_log_probs(clips), model.dive_log_probs(clips))


def test_a_head_that_does_not_fit_the_weights_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    tiny_classifier(HeadKind.JOINT, SMALL).save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["head"]["kind"] = "flat"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not fit this DiveClassifier") as error:
        DiveClassifier.load(tmp_path)
    assert "2 missing: head.linear.weight (4, 16), head.linear.bias (4,)" in str(error.value)
    assert "8 unexpected: head.linears.position.bias (2,)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_over_other_dives_is_refused_with_both_shapes(tmp_path: Path) -> None:
    tiny_classifier(HeadKind.FLAT, SMALL).save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["dives"]["numbers"].append("105B")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"of another shape: head.linear.weight \(4, 16\) instead of \(5, 16\)"):
        DiveClassifier.load(tmp_path)


def test_loading_names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        DiveClassifier.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no model"):
        DiveClassifier.load(tmp_path)
    tiny_classifier().save(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: no such file"):
        DiveClassifier.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "Expecting value"),
        ("[]", "expected names and values, got list"),
        ('{"backbone": {}, "clip": {}}', "'head'"),
        ('{"backbone": {"dept": 2}, "clip": {}, "head": {}}', "'dept' not in 'BackboneConfig'"),
        ('{"backbone": {"depth": "two"}, "clip": {}, "head": {}}', "two"),
        ('{"backbone": {"depth": 0}, "clip": {}, "head": {}}', "backbone.depth must be > 0"),
        ('{"backbone": {}, "clip": {}, "head": {}, "dives": {"name": "x", "numbers": ["999Z"]}}', "999Z"),
    ],
)
def test_a_damaged_config_is_refused_with_its_name(content: str, complaint: str, tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        DiveClassifier.load(tmp_path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_refused_with_their_name(tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:100], whole[:-10]):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
            DiveClassifier.load(tmp_path)


def test_nothing_that_needs_unpickling_is_read(tmp_path: Path) -> None:
    model = tiny_classifier()
    model.save(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        DiveClassifier.load(tmp_path)


def test_a_failed_save_leaves_the_old_model_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classifier(dive_set=SMALL)
    model.save(tmp_path)
    before = load_file(tmp_path / "model.safetensors")

    def fail_halfway(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(dict(list(tensors.items())[:3]), path, metadata)
        raise OSError("no space left on device")

    monkeypatch.setattr("diveparse.models.weights.files.save_file", fail_halfway)
    torch.nn.init.zeros_(model.backbone.class_token)
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path)
    loaded = DiveClassifier.load(tmp_path).state_dict()
    assert all(torch.equal(before[name], loaded[name]) for name in before)


def test_a_classifier_of_transformers_whose_labels_are_dives_is_a_flat_model(tmp_path: Path, clips: Tensor) -> None:
    peer = saved_peer(tmp_path, SMALL.numbers)
    model = DiveClassifier.load(tmp_path)
    assert (model.dive_set, model.temperature, model.training) == (SMALL, 1.0, False)
    with torch.no_grad():
        expected = peer(clips).logits.log_softmax(-1)
        torch.testing.assert_close(model.dive_log_probs(clips), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["101B", "archery"], "id2label: dive number 'archery': expected digits and then one letter"),
        (["101B", "101B"], "id2label: dive 101B is listed twice"),
    ],
    ids=["archery", "twice"],
)
def test_a_classifier_of_something_else_is_refused(labels: list[str], reason: str, tmp_path: Path) -> None:
    saved_peer(tmp_path, labels)
    with pytest.raises(ValueError, match=reason) as caught:
        DiveClassifier.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_classifier_whose_labels_are_not_counted_is_refused(tmp_path: Path) -> None:
    saved_peer(tmp_path, SMALL.numbers)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"0": "101B"}}))
    with pytest.raises(ValueError, match="id2label must name the 4 classes, 0 to 3"):
        DiveClassifier.load(tmp_path)


def test_a_backbone_of_transformers_is_no_classifier(tmp_path: Path) -> None:
    save_huggingface(tmp_path, tiny_classifier().backbone)
    with pytest.raises(ValueError, match=r"holds a backbone but no classifier: classifier.weight or bias is missing"):
        DiveClassifier.load(tmp_path)


def saved_peer(folder: Path, labels: Sequence[str]) -> TimesformerForVideoClassification:
    torch.manual_seed(0)
    config = TimesformerConfig(
        image_size=16,
        patch_size=8,
        num_frames=3,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=dict(enumerate(labels)),
    )
    peer = TimesformerForVideoClassification(config).eval()
    with torch.no_grad():
        peer.classifier.weight.normal_()
    peer.save_pretrained(folder)
    return peer


def test_a_penalty_is_saved_with_the_model_and_takes_from_trained_dives_alone(clips: Tensor, tmp_path: Path) -> None:
    model = tiny_classifier(dive_set=SMALL)
    model.head.set_class_counts(torch.tensor([3, 0, 2, 1]))
    plain = model.calibrated_scores(clips).log_probs()
    torch.testing.assert_close(plain, model.dive_log_probs(clips))
    model.unseen_penalty = 0.7
    model.save(tmp_path)
    loaded = DiveClassifier.load(tmp_path)
    assert loaded.unseen_penalty == 0.7
    with_it = loaded.calibrated_scores(clips).log_probs()
    expected = (plain - 0.7 * torch.tensor([1.0, 0.0, 1.0, 1.0])).log_softmax(-1)
    torch.testing.assert_close(with_it, expected)
    assert torch.equal(loaded.dive_log_probs(clips), model.dive_log_probs(clips))  # which are without it


def test_a_model_of_an_earlier_version_has_no_penalty(tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    rewrite_config(tmp_path, unseen_penalty=None)
    assert DiveClassifier.load(tmp_path).unseen_penalty == 0


@pytest.mark.parametrize("penalty", [-0.1, "much", True, [0.5]], ids=str)
def test_a_penalty_that_makes_no_sense_is_refused(penalty: object, tmp_path: Path) -> None:
    tiny_classifier().save(tmp_path)
    rewrite_config(tmp_path, unseen_penalty=penalty)
    with pytest.raises(ValueError, match=r"config\.json: unseen_penalty must be finite and at least 0, got"):
        DiveClassifier.load(tmp_path)
