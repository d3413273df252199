"""The optimiser and its schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from diveparse.configs import OptimConfig, OptimizerKind
from diveparse.models.backbone import Backbone

WEIGHT_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)


def build_optimizer(backbone: Backbone, head: nn.Module, cfg: OptimConfig) -> Optimizer:
    """AdamW or Adam over what is not frozen: the backbone's parameters first, then the head's at their own rate.

    Weight decay touches the weight matrices of linear and convolutional layers only: no norm, bias, embedding or token.
    The backbone's groups run from the highest rate, which is `cfg.learning_rate`, to the lowest; see `layer_scales`.
    """
    modules = (*backbone.modules(), *head.modules())
    decaying = {id(module.weight) for module in modules if isinstance(module, WEIGHT_MATRICES)}
    scaled = [(False, scale, parameter) for parameter, scale in layer_scales(backbone, cfg.layer_decay)]
    scaled += [(True, cfg.head_learning_rate_factor, parameter) for parameter in head.parameters()]
    members: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for is_head, factor, parameter in scaled:
        if parameter.requires_grad:
            members.setdefault((is_head, factor, id(parameter) in decaying), []).append(parameter)
    groups = []
    for is_head, factor, decays in sorted(members, key=lambda group: (group[0], -group[1], not group[2])):
        settings = {"lr": cfg.learning_rate * factor, "weight_decay": cfg.weight_decay if decays else 0.0}
        groups.append({"params": members[is_head, factor, decays], **settings})
    kind = AdamW if cfg.optimizer is OptimizerKind.ADAMW else Adam
    # one kernel for all parameters; on the CPU the usual loop, so that what was trained there can be trained again
    fused = next(backbone.parameters()).device.type == "cuda"
    return kind(groups, lr=cfg.learning_rate, fused=fused)


def clipping_limit(cfg: OptimConfig) -> float:
    """The norm above which a gradient is clipped to it."""
    return math.inf if cfg.max_grad_norm is None else cfg.max_grad_norm


def layer_scales(backbone: Backbone, layer_decay: float) -> list[tuple[nn.Parameter, float]]:
    """Every parameter and its share of the peak rate: `layer_decay` to the power of the number of layers above it.

    The last norm is the top layer, as is the head beside it; below come the blocks, then the embeddings.
    Raises: ValueError naming a parameter that is in no layer of the backbone, or in two.
    Source: Clark et al., "ELECTRA", ICLR 2020, with the layers of Bao et al., "BEiT", ICLR 2022.
    """
    layers = backbone.layers()
    layer_of: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for parameter in layer:
            if layer_of.setdefault(id(parameter), number) != number:
                raise ValueError(
                    f"{type(backbone).__name__}.layers() has a parameter in layers "
                    f"{layer_of[id(parameter)]} and {number}"
                )
    scaled = []
    for name, parameter in backbone.named_parameters():
        if id(parameter) not in layer_of:
            raise ValueError(f"{type(backbone).__name__}.layers() lacks the parameter {name}, so it has no rate")
        scaled.append((parameter, layer_decay ** (len(layers) - 1 - layer_of[id(parameter)])))
    return scaled


def build_schedule(optimizer: Optimizer, cfg: OptimConfig, num_updates: int) -> LambdaLR:
    """Scale every group's learning rate by `learning_rate_factor`."""
    num_warmup_updates = round(cfg.warmup_fraction * num_updates)
    return LambdaLR(optimizer, lambda update: learning_rate_factor(update, num_updates, num_warmup_updates))


def learning_rate_factor(update: int, num_updates: int, num_warmup_updates: int) -> float:
    """The share of the peak learning rate at an update, counted from 0: a linear rise, then half a cosine down.

    Neither the first nor the last update is wasted on a rate of 0.
    """
    if update < num_warmup_updates:
        return (update + 1) / (num_warmup_updates + 1)
    progress = (update - num_warmup_updates) / (num_updates - num_warmup_updates)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
