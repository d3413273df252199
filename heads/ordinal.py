"""Scores of ordered values that share what tells neighbours apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diveparse.heads.head import Readout


class CumulativeReadout(Readout):
    """A readout whose layer is the increments from each value to the next; logits are their cumulative sums.

    The first logit is 0, which a softmax cannot tell from any other. An increment is the log odds of two neighbours and
    is learnt from the clips of all values on either side of it. Those around a value without a clip have the same
    gradient, so that it comes to lie between its neighbours. Weight decay pulls neighbours together.
    Source: adjacent-categories logits with slopes of their own, Agresti, "Analysis of ordinal categorical data", 2010,
    section 4.1; a penalty on their differences as in Gertheiss and Tutz, "Penalized regression with ordinal
    predictors", International Statistical Review, 2009.
    """

    def __init__(self, embed_dim: int, num_values: int) -> None:
        super().__init__(embed_dim, num_values - 1)

    def forward(self, features: Tensor) -> Tensor:
        """features: (batch, embed_dim). Returns: (batch, num_values)."""
        return F.pad(super().forward(features).cumsum(-1), (1, 0))
