from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diveparse.configs import BackboneConfig, ClipConfig, Config, HeadConfig, HeadKind, Pooling
from diveparse.datasets.dives import ATTRIBUTES, DIVING48, DiveSet
from diveparse.heads import Head, build_head
from diveparse.heads.pooling import MeanOfPatches, Queries, build_pooling
from diveparse.models import DiveClassifier, build_classifier

EMBED_DIM, DEPTH = 16, 3
SMALL = DiveSet.from_numbers(["101B", "103B", "203B", "5132D"], "small")
NUM_QUERIES = {kind: 1 if kind is HeadKind.FLAT else 4 for kind in HeadKind}


def tiny_classifier(kind: HeadKind, pooling: Pooling, num_frozen_blocks: int = 0) -> DiveClassifier:
    backbone = BackboneConfig(patch_size=8, embed_dim=EMBED_DIM, depth=DEPTH, num_heads=2)
    cfg = Config(
        name="test",
        arm=kind.value,
        backbone=replace(backbone, num_frozen_blocks=num_frozen_blocks),
        clip=ClipConfig(num_frames=3, image_size=16),
        head=HeadConfig(kind=kind, pooling=pooling),
    )
    torch.manual_seed(0)
    model = build_classifier(cfg, SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def loss_of(head: Head, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return head.loss(head(features), targets)


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(3, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 1 + 3 * 4, EMBED_DIM, generator=torch.Generator().manual_seed(2))


def test_the_mean_is_over_the_patches_and_not_the_class_token(tokens: Tensor) -> None:
    features = MeanOfPatches(has_class_token=True)(tokens)
    assert features.shape == (2, EMBED_DIM)
    for clip in range(2):
        for place in range(EMBED_DIM):
            expected = sum(tokens[clip, token, place].item() for token in range(1, 13)) / 12
            assert features[clip, place].item() == pytest.approx(expected, abs=1e-6)


def test_without_a_class_token_the_mean_is_over_every_token(tokens: Tensor) -> None:
    torch.testing.assert_close(MeanOfPatches(has_class_token=False)(tokens), tokens.mean(1))


@pytest.mark.parametrize("kind", HeadKind)
def test_there_is_a_query_for_each_question_that_a_head_asks(kind: HeadKind, tokens: Tensor) -> None:
    num_queries = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48).num_queries
    assert num_queries == NUM_QUERIES[kind]
    torch.manual_seed(0)
    pooling = build_pooling(
        Pooling.QUERIES, embed_dim=EMBED_DIM, num_heads=2, num_queries=num_queries, has_class_token=True
    )
    assert isinstance(pooling, Queries)
    features = pooling(tokens)
    assert features.shape == (2, num_queries, EMBED_DIM)
    assert len(features.unique(dim=1).unbind(1)) == num_queries  # no two of them see the same


def test_queries_read_every_token_whatever_its_place(tokens: Tensor) -> None:
    torch.manual_seed(0)
    pooling = Queries(EMBED_DIM, num_heads=2, num_queries=4)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(pooling(tokens[:, order]), pooling(tokens))
    tokens.requires_grad_()
    for feature in pooling(tokens).square().sum((0, 2)):  # of each query
        (gradient,) = torch.autograd.grad(feature, tokens, retain_graph=True)
        assert (gradient != 0).any(-1).all()


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("kind", HeadKind)
def test_a_model_reads_what_its_pooling_makes_of_all_tokens(kind: HeadKind, pooling: Pooling, clips: Tensor) -> None:
    model = tiny_classifier(kind, pooling)
    features, tokens = model.features(clips), model.backbone.tokens(clips)
    if pooling is Pooling.QUERIES:
        assert features.shape == (3, NUM_QUERIES[kind], EMBED_DIM)
        assert torch.equal(features, model.pooling(tokens))
    else:
        expected = tokens[:, 0] if pooling is Pooling.CLASS_TOKEN else tokens[:, 1:].mean(1)
        torch.testing.assert_close(features, expected)
    torch.testing.assert_close(model.dive_log_probs(clips).exp().sum(-1), torch.ones(3))
    assert model(clips).argmax().shape == (3,)


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("num_frozen_blocks", range(DEPTH + 1))
def test_features_go_on_from_frozen_tokens_as_if_they_had_never_stopped(
    num_frozen_blocks: int, pooling: Pooling, clips: Tensor
) -> None:
    model = tiny_classifier(HeadKind.JOINT, pooling, num_frozen_blocks)
    features = model.features(clips)
    torch.testing.assert_close(model.features(model.backbone.frozen_tokens(clips)), features)
    all_trained = tiny_classifier(HeadKind.JOINT, pooling)
    all_trained.load_state_dict(model.state_dict())
    torch.testing.assert_close(all_trained.features(clips), features)


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("kind", HeadKind)
def test_every_parameter_that_the_features_depend_on_gets_a_gradient(
    kind: HeadKind, pooling: Pooling, clips: Tensor
) -> None:
    model = tiny_classifier(kind, pooling).train()
    model.head.loss(model(clips), torch.tensor([0, 1, 3]))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", [kind for kind in HeadKind if kind is not HeadKind.FLAT])
def test_each_attribute_is_read_from_its_own_feature(kind: HeadKind) -> None:
    head = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48)
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(5, 4, EMBED_DIM, generator=generator)
    before = head(features).own_log_probs()
    for k, changed in enumerate(ATTRIBUTES):
        others = features.clone()
        others[:, k] = torch.randn(5, EMBED_DIM, generator=generator)
        now = head(others).own_log_probs()
        for name in ATTRIBUTES:
            assert torch.equal(now[name], before[name]) == (name != changed)
        of_one = head(features[:, k]).own_log_probs()
        torch.testing.assert_close(before[changed], of_one[changed])


@pytest.mark.parametrize("kind", HeadKind)
def test_a_feature_for_each_question_may_be_the_same_one(kind: HeadKind) -> None:
    head = build_head(HeadConfig(kind=kind), EMBED_DIM, DIVING48)
    feature = torch.randn(5, EMBED_DIM, generator=torch.Generator().manual_seed(3))
    repeated = feature.unsqueeze(1).expand(-1, NUM_QUERIES[kind], -1)
    torch.testing.assert_close(head(repeated).log_probs(), head(feature).log_probs())
    labels = torch.arange(5)
    torch.testing.assert_close(loss_of(head, repeated, labels), loss_of(head, feature, labels))


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("kind", [HeadKind.JOINT, HeadKind.FLAT])
def test_a_model_is_saved_with_its_pooling(kind: HeadKind, pooling: Pooling, clips: Tensor, tmp_path: Path) -> None:
    model = tiny_classifier(kind, pooling)
    model.save(tmp_path)
    loaded = DiveClassifier.load(tmp_path)
    assert loaded.config.head.pooling is pooling
    assert torch.equal(loaded.features(clips), model.features(clips))
    assert torch.equal(loaded.dive_log_probs(clips), model.dive_log_probs(clips))
