from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diveparse.configs import BackboneConfig, ClipConfig, HeadConfig, HeadKind, OptimConfig, Pooling
from diveparse.datasets.dives import DiveSet
from diveparse.engine.training.optim import layer_scales
from diveparse.heads import build_head
from diveparse.models.backbone import Backbone, ClipFormat
from diveparse.models.classifier import DiveClassifier, ModelConfig

DIVES = DiveSet.from_numbers(["101B", "103B", "203B", "5132D"], "small")


class Pixels(Backbone):
    """The smallest backbone without a class token: a token a frame, from its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.has_class_token, self.num_frozen_blocks = 8, 2, False, 0
        self.clip_format = ClipFormat(num_frames=3, image_size=4)
        self.embed = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)

    def frozen_tokens(self, clips: Tensor) -> Tensor:
        return clips.mean((-2, -1))

    def tokens(self, inputs: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.embed(inputs if inputs.ndim == 3 else self.frozen_tokens(inputs)))
        return tokens

    def layers(self) -> list[list[nn.Parameter]]:
        return [list(self.embed.parameters()), list(self.norm.parameters())]

    def freeze(self, num_blocks: int) -> None:
        self.embed.requires_grad_(num_blocks == 0)


def classifier(kind: HeadKind, pooling: Pooling) -> DiveClassifier:
    torch.manual_seed(0)
    cfg = ModelConfig(BackboneConfig(), ClipConfig(num_frames=3, image_size=4), HeadConfig(kind=kind, pooling=pooling))
    return DiveClassifier(Pixels(), build_head(cfg.head, 8, DIVES), cfg)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.QUERIES])
@pytest.mark.parametrize("kind", HeadKind)
def test_any_backbone_goes_under_any_head(kind: HeadKind, pooling: Pooling) -> None:
    model, clips = classifier(kind, pooling), torch.randn(2, 3, 3, 4, 4)
    scores = model(clips)
    torch.testing.assert_close(scores.log_probs().exp().sum(-1), torch.ones(2))
    torch.testing.assert_close(model(model.backbone.frozen_tokens(clips)).log_probs(), scores.log_probs())
    loss, _ = model.head.loss(scores, torch.tensor([0, 3]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_a_class_token_the_mean_leaves_no_token_out() -> None:
    model, clips = classifier(HeadKind.FLAT, Pooling.MEAN), torch.randn(2, 3, 3, 4, 4)
    torch.testing.assert_close(model.features(clips), model.backbone.tokens(clips).mean(1))


def test_pooling_by_class_token_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"head.pooling=class_token needs a class token, .* has none; set") as error:
        classifier(HeadKind.JOINT, Pooling.CLASS_TOKEN)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Pixels has none"):
        Pixels()(torch.randn(2, 3, 3, 4, 4))


def test_a_backbone_of_other_pixel_statistics_is_refused_instead_of_fed_with_wrong_pixels() -> None:
    backbone = Pixels()
    backbone.clip_format = ClipFormat(3, 4, pixel_mean=(0.5, 0.5, 0.5))
    cfg = ModelConfig(BackboneConfig(), ClipConfig(num_frames=3, image_size=4), HeadConfig(pooling=Pooling.MEAN))
    with pytest.raises(ValueError, match=r"takes clips of ClipFormat\(.*0.5.*but the config makes ClipFormat"):
        DiveClassifier(backbone, build_head(cfg.head, 8, DIVES), cfg)


def test_layer_decay_reads_the_layers_of_the_backbone() -> None:
    backbone = Pixels()
    scales = {id(parameter): scale for parameter, scale in layer_scales(backbone, 0.5)}
    assert [scales[id(p)] for p in backbone.parameters()] == [0.5, 0.5, 1.0, 1.0]
    assert OptimConfig().layer_decay == 1


def test_nothing_outside_the_seam_names_a_backbone_class() -> None:
    root = Path(__file__).resolve().parents[2]
    allowed = {"models/timesformer.py", "models/build.py", "models/__init__.py"}
    for top in ("heads", "engine", "models", "commands"):
        for path in (root / top).rglob("*.py"):
            name = str(path.relative_to(root))
            if name in allowed or name.startswith("engine/benchmark") or name == "engine/training/pretrain.py":
                continue
            assert "models.timesformer" not in path.read_text(encoding="utf-8"), name
