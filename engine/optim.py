"""The optimiser and its schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from diveparse.configs import OptimConfig, OptimizerKind

WEIGHT_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)


def build_optimizer(model: nn.Module, head: nn.Module, cfg: OptimConfig) -> Optimizer:
    """AdamW or Adam over what is not frozen: the backbone's parameters first, then the head's at their own rate.

    Weight decay touches the weight matrices of linear and convolutional layers only: no norm, bias, embedding or token.
    """
    decaying = {id(module.weight) for module in model.modules() if isinstance(module, WEIGHT_MATRICES)}
    in_head = {id(parameter) for parameter in head.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for is_head, factor in ((False, 1.0), (True, cfg.head_learning_rate_factor)):
        for decays, weight_decay in ((True, cfg.weight_decay), (False, 0.0)):
            members = [p for p in trainable if (id(p) in in_head) == is_head and (id(p) in decaying) == decays]
            if members:
                groups.append({"params": members, "lr": cfg.learning_rate * factor, "weight_decay": weight_decay})
    kind = AdamW if cfg.optimizer is OptimizerKind.ADAMW else Adam
    return kind(groups, lr=cfg.learning_rate)


def build_schedule(optimizer: Optimizer, cfg: OptimConfig, num_steps: int) -> LambdaLR:
    """Scale every group's learning rate by `learning_rate_factor`, one step an update."""
    warmup_steps = round(cfg.warmup_fraction * num_steps)
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps, warmup_steps))


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at update `step`, counted from 0: a linear rise, then half a cosine down.

    Neither the first nor the last update is wasted on a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
