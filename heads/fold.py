"""A head as one linear layer, which any classifier of the same features can take over."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from diveparse.datasets.dives import DiveSet
from diveparse.heads.head import Head

NUM_PROBES = 4  # features on which the layer is compared with the head
TOLERANCE = 1e-6  # nats, of two results in double precision


@torch.no_grad()
def folded(head: Head, embed_dim: int, dive_set: DiveSet, temperature: float = 1.0) -> nn.Linear:
    """The layer whose softmax over a set of dives is the head's `log_probs`, tempered.

    Up to what all dives of a clip share, which a softmax drops, every score of the ladder is affine in the features.
    So the scores of the unit vectors less those of zero are the columns of the layer.
    Returns: embed_dim -> num_dives, for one shared feature of width embed_dim, (batch, embed_dim).
    Raises: ValueError naming a dive that the head cannot express, or if the head's scores are not affine.
    """
    exact = deepcopy(head).cpu().double()
    features = torch.cat([torch.zeros(1, embed_dim), torch.eye(embed_dim)]).double()
    scores = exact(features).scores(dive_set) / temperature  # (1 + embed_dim, num_dives)
    scores = scores - scores.mean(dim=1, keepdim=True)  # of all that a softmax cannot tell apart, the smallest
    layer = nn.Linear(embed_dim, len(dive_set), dtype=torch.float64)
    layer.weight.copy_((scores[1:] - scores[0]).T)
    layer.bias.copy_(scores[0])
    probes = torch.randn(NUM_PROBES, embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (exact(probes).scores(dive_set) / temperature).log_softmax(-1)
    if not torch.allclose(layer(probes).log_softmax(-1), expected, rtol=0, atol=TOLERANCE):
        raise ValueError(f"{type(head).__name__} is no linear layer: its scores are not affine in the features")
    return layer.float()
