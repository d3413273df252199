from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diveparse.configs import (
    BackboneConfig,
    BackboneKind,
    ClipConfig,
    Config,
    DataConfig,
    HeadConfig,
    HeadKind,
    Pooling,
    StemKind,
)
from diveparse.datasets.dives import DIVING48
from diveparse.models.classifier import DiveClassifier, build_classifier


def build_model(
    kind: HeadKind = HeadKind.JOINT, pooling: Pooling = Pooling.CLASS_TOKEN, stem: StemKind = StemKind.PATCH
) -> DiveClassifier:
    """A small model whose answers differ from clip to clip, with a temperature, and a penalty where heads have one."""
    cfg = Config(
        name="tiny",
        arm="x",
        data=DataConfig(root="."),
        clip=ClipConfig(num_frames=4, image_size=16),
        backbone=BackboneConfig(stem=stem, patch_size=8, embed_dim=16, depth=1, num_heads=2),
        head=HeadConfig(kind=kind, pooling=pooling),
    )
    return with_random_weights(build_classifier(cfg, DIVING48).eval())


def with_random_weights(model: DiveClassifier) -> DiveClassifier:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, center, 0.3, generator=generator)
    model.temperature = 0.7
    model.head.set_class_counts(torch.arange(len(DIVING48)) % 4)
    model.unseen_penalty = 0.0 if model.config.head.kind in (HeadKind.FLAT, HeadKind.INDEPENDENT) else 0.9
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., DiveClassifier]:
    return build_model


@pytest.fixture(scope="session")
def make_encoder_model(tiny_encoders: dict[str, tuple[Path, Any]]) -> Callable[..., DiveClassifier]:
    """Makes a small model over an encoder of `transformers`, for 4 frames of 48 x 48."""

    def make(family: str, kind: HeadKind, pooling: Pooling, layers: list[int]) -> DiveClassifier:
        cfg = Config(
            name="tiny",
            arm="x",
            data=DataConfig(root="."),
            clip=ClipConfig(num_frames=4, image_size=48),
            backbone=BackboneConfig(
                kind=BackboneKind.TRANSFORMERS, weights=str(tiny_encoders[family][0]), layers=layers
            ),
            head=HeadConfig(kind=kind, pooling=pooling),
        )
        return with_random_weights(build_classifier(cfg, DIVING48).eval())

    return make


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
