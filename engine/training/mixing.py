"""Clips of a batch mixed with each other, and the labels with them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Video

from diveparse.configs import TrainConfig

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_mixing(cfg: TrainConfig, num_dives: int) -> Mixing | None:
    """What mixes clips (batch, time, channel, height, width) and labels (batch,); None where the config wants none.

    Each clip is mixed with the one before it, by one share and one box for the whole batch, in all frames alike. It
    gives the mixed clips, and (batch, num_dives) probabilities in place of the labels.
    Sources: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    kinds = [
        kind(alpha=alpha, num_classes=num_dives)
        for kind, alpha in ((v2.MixUp, cfg.mixup_alpha), (v2.CutMix, cfg.cutmix_alpha))
        if alpha
    ]
    if not kinds:
        return None
    either = v2.RandomChoice(kinds)

    def mix(clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed, shares = either(Video(clips), labels)
        return mixed.as_subclass(Tensor), shares

    return mix
