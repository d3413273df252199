from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import TimesformerConfig, TimesformerForVideoClassification, TimesformerModel

from diveparse.configs import BackboneConfig, HeadConfig, HeadKind, StemKind
from diveparse.datasets.dives import DIVING48
from diveparse.heads import FlatHead
from diveparse.models.timesformer import DividedBlock, TimeSformer

NUM_FRAMES, IMAGE_SIZE, PATCH_SIZE = 4, 16, 8


def tiny_backbone(num_frames: int = NUM_FRAMES, image_size: int = IMAGE_SIZE, **sizes: Any) -> TimeSformer:
    cfg = replace(BackboneConfig(patch_size=PATCH_SIZE, embed_dim=16, depth=2, num_heads=2), **sizes)
    return TimeSformer(cfg, num_frames=num_frames, image_size=image_size)


def blocks_of(backbone: TimeSformer) -> list[DividedBlock]:
    return [block for block in backbone.blocks if isinstance(block, DividedBlock)]


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Large enough that no branch is lost in the rounding, the temporal projection's included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            center = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))


def random_clips(backbone: TimeSformer, batch: int = 3, seed: int = 1) -> Tensor:
    size = backbone.image_size
    return torch.randn(batch, backbone.num_frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def backbone() -> TimeSformer:
    backbone = tiny_backbone().eval()
    randomise(backbone)
    return backbone


def in_huggingface_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named for the parameters of a backbone, named for those of a `TimesformerModel`."""
    renames = (
        ("blocks.", "encoder.layer."),
        ("time_norm", "temporal_layernorm"),
        ("time_attn.qkv", "temporal_attention.attention.qkv"),
        ("time_attn.proj", "temporal_attention.output.dense"),
        ("time_proj", "temporal_dense"),
        ("space_norm", "layernorm_before"),
        ("space_attn.qkv", "attention.attention.qkv"),
        ("space_attn.proj", "attention.output.dense"),
        ("mlp_norm", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("class_token", "embeddings.cls_token"),
        ("space_embed", "embeddings.position_embeddings"),
        ("time_embed", "embeddings.time_embeddings"),
    )
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        renamed[name.replace("norm.", "layernorm.") if name.startswith("norm.") else name] = tensor
    return renamed


def copy_into_huggingface(backbone: TimeSformer, peer: TimesformerModel, *, qkv_bias: bool = True) -> None:
    """Give `peer` the weights of `backbone`; strict, so that none is left over on either side."""
    weights = {name: weight for name, weight in backbone.state_dict().items() if qkv_bias or "qkv.bias" not in name}
    state = in_huggingface_names(weights)
    kernel = "embeddings.patch_embeddings.projection.weight"
    state[kernel] = state[kernel].reshape(peer.state_dict()[kernel].shape)
    peer.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("num_frames", "image_size", "patch_size", "embed_dim", "depth", "num_heads"),
    [(4, 16, 8, 16, 2, 2), (1, 16, 8, 12, 1, 3), (6, 24, 8, 24, 3, 4), (3, 32, 16, 32, 2, 1)],
)
def test_features_and_gradients_equal_huggingface_with_the_same_weights(
    num_frames: int, image_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int
) -> None:
    backbone = tiny_backbone(
        num_frames, image_size, patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads
    )
    randomise(backbone)
    peer = TimesformerModel(
        TimesformerConfig(
            image_size=image_size,
            patch_size=patch_size,
            num_frames=num_frames,
            hidden_size=embed_dim,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            intermediate_size=4 * embed_dim,
            attention_type="divided_space_time",
        )
    )
    copy_into_huggingface(backbone, peer)
    clips = random_clips(backbone)
    ours, theirs = clips.clone().requires_grad_(), clips.clone().requires_grad_()

    tokens, peer_tokens = backbone.tokens(ours), peer(theirs).last_hidden_state
    # theirs go patch by patch, ours frame by frame
    peer_patches = peer_tokens[:, 1:].unflatten(1, (-1, num_frames)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(tokens, torch.cat([peer_tokens[:, :1], peer_patches], 1), rtol=1e-5, atol=1e-5)

    features = backbone(ours)
    torch.testing.assert_close(features, peer_tokens[:, 0], rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, embed_dim)
    (features * weights).sum().backward()
    (peer_tokens[:, 0] * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_logits_and_the_gradient_of_every_weight_equal_those_of_huggingfaces_classifier(qkv_bias: bool) -> None:
    backbone = tiny_backbone(num_frames=3, image_size=24, embed_dim=24, depth=3, num_heads=4)
    randomise(backbone)
    if not qkv_bias:
        for block in blocks_of(backbone):
            nn.init.zeros_(block.time_attn.qkv.bias)
            nn.init.zeros_(block.space_attn.qkv.bias)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 24, "intermediate_size": 96}
    sizes["num_labels"] = len(DIVING48)
    config = TimesformerConfig(image_size=24, patch_size=PATCH_SIZE, num_frames=3, **sizes)
    config.qkv_bias = qkv_bias
    peer = TimesformerForVideoClassification(config)
    copy_into_huggingface(backbone, peer.timesformer, qkv_bias=qkv_bias)
    head = FlatHead(24, DIVING48, HeadConfig(kind=HeadKind.FLAT))
    randomise(head)
    peer.classifier.load_state_dict(head.linear.state_dict())
    clips, labels = random_clips(backbone), torch.tensor([4, 17, 40])
    logits, peer_outputs = head(backbone(clips)).scores(), peer(clips, labels=labels)
    torch.testing.assert_close(logits, peer_outputs.logits, rtol=1e-5, atol=1e-5)
    F.cross_entropy(logits, labels).backward()
    peer_outputs.loss.backward()
    gradients = {
        name: parameter.grad for name, parameter in backbone.named_parameters() if qkv_bias or "qkv.bias" not in name
    }
    peer_gradients = {name: parameter.grad for name, parameter in peer.timesformer.named_parameters()}
    assert in_huggingface_names(gradients).keys() == peer_gradients.keys()
    for name, gradient in in_huggingface_names(gradients).items():
        difference = gradient.flatten() - peer_gradients[name].flatten()
        assert difference.norm() <= 1e-5 * gradient.norm(), name


def test_forward_is_the_class_token_of_tokens(backbone: TimeSformer) -> None:
    clips = random_clips(backbone)
    tokens = backbone.tokens(clips)
    assert tokens.shape == (3, 1 + NUM_FRAMES * (IMAGE_SIZE // PATCH_SIZE) ** 2, 16)
    torch.testing.assert_close(backbone(clips), tokens[:, 0])


def test_permuting_the_batch_permutes_the_features(backbone: TimeSformer) -> None:
    clips = random_clips(backbone, batch=4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(backbone(clips[order]), backbone(clips)[order])


@pytest.mark.parametrize("stem", StemKind)
def test_every_parameter_gets_a_gradient(stem: StemKind) -> None:
    backbone = tiny_backbone(stem=stem)
    randomise(backbone)
    backbone(random_clips(backbone)).square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_new_temporal_projection_is_zero_and_learns() -> None:
    backbone = tiny_backbone()
    backbone(random_clips(backbone)).square().sum().backward()
    for block in blocks_of(backbone):
        assert not block.time_proj.weight.any()
        assert block.time_proj.weight.grad is not None
        assert block.time_proj.weight.grad.any()


def zero_time_projection(backbone: TimeSformer) -> None:
    for block in blocks_of(backbone):
        nn.init.zeros_(block.time_proj.weight)
        nn.init.zeros_(block.time_proj.bias)


def test_time_attention_changes_nothing_while_its_projection_is_zero(backbone: TimeSformer) -> None:
    zero_time_projection(backbone)
    clips = random_clips(backbone)
    before = backbone(clips)
    for block in blocks_of(backbone):
        randomise(block.time_attn, seed=5)
    torch.testing.assert_close(backbone(clips), before)


def test_frame_order_is_invisible_without_time_embedding_and_temporal_projection(backbone: TimeSformer) -> None:
    clips = random_clips(backbone)
    shuffled = clips[:, [2, 0, 3, 1]]
    assert not torch.allclose(backbone(shuffled), backbone(clips), atol=1e-3)
    zero_time_projection(backbone)
    nn.init.zeros_(backbone.time_embed)
    torch.testing.assert_close(backbone(shuffled), backbone(clips), rtol=1e-4, atol=1e-5)


def test_frozen_blocks_get_no_gradient_and_keep_no_activations() -> None:
    backbone = tiny_backbone(depth=3, num_frozen_blocks=2).train()
    clips = random_clips(backbone)
    frozen_output = backbone.frozen_tokens(clips)
    assert not frozen_output.requires_grad
    backbone(clips).square().sum().backward()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in backbone.named_parameters() if name.startswith(("blocks.2.", "norm."))}
    assert trained == {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_freezing_changes_no_feature(backbone: TimeSformer) -> None:
    clips = random_clips(backbone)
    before = backbone(clips)
    backbone.freeze(2)
    assert torch.equal(backbone(clips), before)


def saved_bytes(backbone: TimeSformer, clips: Tensor) -> tuple[int, Tensor]:
    """How much a forward pass keeps for the gradient besides the weights, and what it gives."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features = backbone(clips)
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    return sum(size for address, size in kept.items() if address not in weights), features


@pytest.mark.parametrize("read", ["forward", "tokens"])
@pytest.mark.parametrize("num_checkpointed_blocks", [1, 3])
def test_activation_checkpointing_changes_no_bit_of_features_and_gradients(
    read: str, num_checkpointed_blocks: int
) -> None:
    def features_and_gradients(**sizes: Any) -> tuple[Tensor, list[Tensor]]:
        backbone = tiny_backbone(depth=3, drop_path_rate=0.4, **sizes)
        randomise(backbone)
        torch.manual_seed(5)  # which paths are dropped
        features = getattr(backbone, read)(random_clips(backbone))
        features.square().sum().backward()
        return features, [parameter.grad for parameter in backbone.parameters()]

    expected, gradients = features_and_gradients()
    result, same_gradients = features_and_gradients(num_checkpointed_blocks=num_checkpointed_blocks)
    assert torch.equal(result, expected)
    assert all(torch.equal(one, other) for one, other in zip(gradients, same_gradients, strict=True))


def test_each_checkpointed_block_keeps_less_for_the_gradient() -> None:
    kept = []
    for num_checkpointed_blocks in range(4):
        backbone = tiny_backbone(depth=3, num_checkpointed_blocks=num_checkpointed_blocks)
        kept.append(saved_bytes(backbone, random_clips(backbone))[0])
    assert kept == sorted(kept, reverse=True)
    assert kept[3] < 0.4 * kept[0]


def test_an_mlp_is_that_of_timm_with_and_without_gradients(backbone: TimeSformer) -> None:
    block, tokens = blocks_of(backbone)[0], torch.randn(2, 5, 16)
    expected = block.mlp(block.mlp_norm(tokens))
    torch.testing.assert_close(block.feed_forward(tokens), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(block.feed_forward(tokens), expected, rtol=0, atol=1e-5)


def test_the_blocks_after_the_frozen_ones_are_those_that_are_checkpointed() -> None:
    calls = {}
    for num_checkpointed_blocks in (0, 1):
        backbone = tiny_backbone(depth=4, num_frozen_blocks=2, num_checkpointed_blocks=num_checkpointed_blocks)
        counts = [0] * 4

        def count(index: int, counts: list[int] = counts) -> Any:
            def hook(*_: Any) -> None:
                counts[index] += 1

            return hook

        for index, block in enumerate(blocks_of(backbone)):
            block.time_norm.register_forward_hook(count(index))
        backbone(random_clips(backbone)).sum().backward()
        calls[num_checkpointed_blocks] = counts
    assert calls == {0: [1, 1, 1, 1], 1: [1, 1, 2, 1]}  # a checkpointed block runs again for the gradient


def test_projecting_twice_at_once_changes_nothing(backbone: TimeSformer) -> None:
    block = blocks_of(tiny_backbone(drop_path_rate=0.5))[1].train()
    block.load_state_dict(blocks_of(backbone)[1].state_dict())
    x = torch.randn(2, 4 * 3, 16)  # 4 frames of 3 patch sites, which are dropped for all frames or none
    torch.manual_seed(3)
    at_once = rearrange(block.project_twice(x, num_sites=3), "b (t n) d -> (b n) t d", n=3)
    torch.manual_seed(3)
    apart = block.time_attn.proj(rearrange(x, "b (t n) d -> (b n) t d", n=3))
    torch.testing.assert_close(at_once, block.time_proj(block.drop_path(apart)))
    dropped = at_once.std(dim=1).sum(-1) == 0
    assert 0 < dropped.sum() < 6
    assert torch.equal(at_once[dropped][0, 0], block.time_proj.bias)
    block.eval()
    at_once = rearrange(block.project_twice(x, num_sites=3), "b (t n) d -> (b n) t d", n=3)
    torch.testing.assert_close(at_once, block.time_proj(apart))


def test_a_block_equals_the_plain_lines_of_its_docstring_also_where_paths_are_dropped() -> None:
    num_frames, num_sites = 4, 3
    block = blocks_of(tiny_backbone(drop_path_rate=0.5))[1].train()
    randomise(block)
    class_token, patches = torch.randn(2, 1, 16), torch.randn(2, num_frames * num_sites, 16)
    torch.manual_seed(7)
    found = torch.cat(block(class_token, patches, num_frames), dim=1)

    torch.manual_seed(7)
    x = rearrange(patches, "b (t n) d -> (b n) t d", t=num_frames)
    x = block.time_proj(block.drop_path(block.time_attn(block.time_norm(x))))
    patches = patches + rearrange(x, "(b n) t d -> b (t n) d", n=num_sites)
    frames = rearrange(patches, "b (t n) d -> (b t) n d", t=num_frames)
    x = torch.cat([class_token.repeat_interleave(num_frames, dim=0), frames], dim=1)
    x = block.drop_path(block.space_attn(block.space_norm(x)))
    class_token = class_token + x[:, :1].unflatten(0, (2, num_frames)).mean(dim=1)
    patches = patches + rearrange(x[:, 1:], "(b t) n d -> b (t n) d", t=num_frames)
    tokens = torch.cat([class_token, patches], dim=1)
    torch.testing.assert_close(found, tokens + block.drop_path(block.mlp(block.mlp_norm(tokens))))


def test_drop_path_acts_in_training_only(backbone: TimeSformer) -> None:
    dropping = tiny_backbone(drop_path_rate=0.5).eval()
    dropping.load_state_dict(backbone.state_dict())
    clips = random_clips(backbone, batch=1)
    assert torch.equal(dropping(clips), backbone(clips))
    dropping.train()
    torch.manual_seed(0)
    first, second = dropping(clips), dropping(clips)
    assert not torch.allclose(first, second)


def test_every_parameter_is_in_one_layer(backbone: TimeSformer) -> None:
    layers = [id(parameter) for layer in backbone.layers() for parameter in layer]
    assert sorted(layers) == sorted(id(parameter) for parameter in backbone.parameters())


@pytest.mark.parametrize("read", ["forward", "tokens"])
@pytest.mark.parametrize("num_frozen_blocks", [0, 1, 2])
def test_frozen_tokens_take_the_place_of_clips(read: str, num_frozen_blocks: int) -> None:
    backbone = tiny_backbone(num_frozen_blocks=num_frozen_blocks)
    clips = random_clips(backbone)
    torch.testing.assert_close(getattr(backbone, read)(backbone.frozen_tokens(clips)), getattr(backbone, read)(clips))


def test_the_class_token_of_frozen_blocks_takes_the_place_of_clips() -> None:
    backbone = tiny_backbone(num_frozen_blocks=2)
    clips = random_clips(backbone)
    token = backbone.frozen_class_token(clips)
    assert token.shape == (len(clips), 1, 16)
    torch.testing.assert_close(backbone(token), backbone(clips))
    with pytest.raises(ValueError, match="frozen tokens must be"):  # the last block is still trained
        tiny_backbone(num_frozen_blocks=1)(token)


def test_frozen_tokens_of_another_size_are_refused(backbone: TimeSformer) -> None:
    with pytest.raises(ValueError, match=r"frozen tokens must be \(batch, 17, 16\), got \(1, 9, 16\)"):
        backbone(torch.zeros(1, 9, 16))


@pytest.mark.parametrize("shape", [(1, 5, 3, 16, 16), (1, 4, 3, 16, 24), (1, 4, 1, 16, 16), (4, 3, 16, 16)])
def test_clips_of_another_size_are_refused(backbone: TimeSformer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected|must be \(batch, time, channel"):
        backbone(torch.zeros(shape))


def test_a_picture_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of patch_size=8, got 20"):
        tiny_backbone(image_size=20)


def test_a_backbone_larger_than_the_memory_is_refused_before_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"backbone.depth=1024, .* need \d+ GB, this machine has"):
        tiny_backbone(depth=1024, embed_dim=16384, num_heads=128)
