"""The optimiser and its schedule."""

from __future__ import annotations

import math

from timm.models import group_parameters
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from diveparse.configs import OptimConfig, OptimizerKind

WEIGHT_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)
# of a TimeSformer, from the bottom: the embeddings, then block by block; what matches neither is the top layer
LAYERS = {
    "embeddings": r"backbone\.(?:patch_embed|class_token|space_embed|time_embed)",
    "blocks": r"backbone\.blocks\.(\d+)\.",
}


def build_optimizer(model: nn.Module, head: nn.Module, cfg: OptimConfig) -> Optimizer:
    """AdamW or Adam over what is not frozen: the backbone's parameters first, then the head's at their own rate.

    Weight decay touches the weight matrices of linear and convolutional layers only: no norm, bias, embedding or token.
    The backbone's groups run from the highest rate, the one that the config names, to the lowest; see `layer_scales`.
    """
    decaying = {id(module.weight) for module in model.modules() if isinstance(module, WEIGHT_MATRICES)}
    in_head = {id(parameter) for parameter in head.parameters()}
    scales = layer_scales(model, cfg.layer_decay)
    members: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head = id(parameter) in in_head
            factor = cfg.head_learning_rate_factor if is_head else scales[name]
            members.setdefault((is_head, factor, id(parameter) in decaying), []).append(parameter)
    groups = []
    for is_head, factor, decays in sorted(members, key=lambda group: (group[0], -group[1], not group[2])):
        settings = {"lr": cfg.learning_rate * factor, "weight_decay": cfg.weight_decay if decays else 0.0}
        groups.append({"params": members[is_head, factor, decays], **settings})
    kind = AdamW if cfg.optimizer is OptimizerKind.ADAMW else Adam
    # one kernel for all parameters; on the CPU the usual loop, so that what was trained there can be trained again
    fused = next(model.parameters()).device.type == "cuda"
    return kind(groups, lr=cfg.learning_rate, fused=fused)


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The share of the peak rate that each parameter learns at: `layer_decay` to the power of the layers above it.

    The last norm, and the head beside it, are the top layer; below come the blocks, then the embeddings.
    model: what holds a TimeSformer as `backbone`. Returns: {name of the parameter: scale}, frozen ones included.
    Source: Clark et al., "ELECTRA", ICLR 2020, with the layers of Bao et al., "BEiT", ICLR 2022.
    """
    layers = group_parameters(model, LAYERS, reverse=True)  # name -> layer, 0 at the bottom
    top = max(layers.values())
    return {name: layer_decay ** (top - layer) for name, layer in layers.items()}


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
