"""Terms of the heads' losses, each in nats and averaged over the clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diveparse.datasets.dives import ATTRIBUTES


def class_log_prior(num_clips: Tensor) -> Tensor:
    """log p(dive) from the training clips of each, with one clip more for every dive, so that none is impossible."""
    counts = num_clips.double() + 1
    return (counts / counts.sum()).log().float()


def attribute_targets(labels: Tensor, slots: Tensor) -> dict[str, Tensor]:
    """The targets of a loss on each attribute, from the targets of one on dives.

    labels: (batch,) dives, or (batch, num_dives) probabilities of them; slots: (num_attributes, num_dives).
    Returns: for each attribute (batch,) indices of its values, or (batch, num_values) probabilities of them.
    """
    if labels.ndim == 1:
        return dict(zip(ATTRIBUTES, slots[:, labels], strict=True))
    sizes = (slots.amax(dim=1) + 1).tolist()  # once: on a GPU every read waits for the device
    rows = zip(ATTRIBUTES, slots, sizes, strict=True)
    return {name: labels @ F.one_hot(row, size).to(labels.dtype) for name, row, size in rows}


def earth_mover_distance(log_probs: Tensor, targets: Tensor, values: Sequence[int]) -> Tensor:
    """The squared earth mover's distance of a distribution over ordered values from the true one, averaged.

    An answer near the truth costs less than one far off; a cross-entropy treats both alike.
    log_probs: (batch, num_values); targets: (batch,) indices, or (batch, num_values) probabilities; values: ascending,
    such as half turns. The distance between neighbours is that of their values over the whole range, so that the result
    lies in [0, 1].
    Source: Hou, Yu and Samaras, "Squared earth mover's distance-based loss for training deep neural networks", 2016,
    equation 5, with gaps that differ.
    """
    ordered = torch.tensor(values, device=log_probs.device, dtype=log_probs.dtype)
    gaps = ordered.diff() / (ordered[-1] - ordered[0]).clamp(min=1)  # (num_values - 1,); none where there is one value
    below = log_probs.exp().cumsum(-1)[:, :-1]  # p(value at most this one)
    if targets.ndim == 1:
        truth = (targets[:, None] <= torch.arange(len(gaps), device=targets.device)).to(below.dtype)
    else:
        truth = targets.cumsum(-1)[:, :-1]
    return ((below - truth).square() * gaps).sum(-1).mean()


class UncertaintyWeighting(nn.Module):
    """Weighs losses by their learned uncertainty: the sum of exp(-s) loss + s / 2 over the losses, s learned.

    Source: Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, equation 10,
    with s the logarithm of the squared temperature.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        weighted = [(-s).exp() * losses[name] + s / 2 for name, s in self.log_variances.items()]
        return torch.stack(weighted).sum()
