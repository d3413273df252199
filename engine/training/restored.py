"""What a checkpoint put back, checked: `load_state_dict` takes shapes, rates and numbers of any kind without a word."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OPTIONS = ("initial_lr", "betas", "eps", "weight_decay", "amsgrad")  # of a group of parameters, from the config
ROUNDING = 1 + 1e-9


def fixed_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What no update changes, a group of parameters each. To be asked before a checkpoint is loaded."""
    return [{name: group.get(name) for name in OPTIONS} for group in optimizer.param_groups]


def require_sound(
    model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, num_updates: int, options: list[dict[str, Any]]
) -> None:
    """Check what was loaded. num_updates: that it should stand at. options: `fixed_options` before it was loaded.

    Raises: ValueError naming the first part that this run cannot have written.
    """
    if schedule.last_epoch != num_updates or not isinstance(num_updates, int):
        raise ValueError(f"the schedule stands at update {schedule.last_epoch} instead of {num_updates}")
    if fixed_options(optimizer) != options:
        raise ValueError("the optimiser has other options than the config")
    for group, peak in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
        # not the rate of this update: with more epochs, the schedule is another from here on
        if peak != group["initial_lr"] or not 0 <= group["lr"] <= peak * ROUNDING:
            raise ValueError(f"the learning rate is {group['lr']}, and its peak {peak}, of {group['initial_lr']}")
    for name, parameter in model.named_parameters():
        _require_finite(name, parameter)
        for moment, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"{moment} of {name} is {tuple(value.shape)} instead of {tuple(parameter.shape)}")
                _require_finite(f"{moment} of {name}", value)


def _require_finite(name: str, tensor: torch.Tensor) -> None:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()  # of a sharded one each process checks its part
    if not tensor.isfinite().all():
        raise ValueError(f"{name} is infinite or not a number")
