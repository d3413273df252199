"""From the tokens of a clip to the features that a head reads."""

from __future__ import annotations

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from diveparse.configs import Pooling


class MeanOfPatches(nn.Module):
    """The mean over all patches of all frames. tokens: (batch, 1 + time * patches, embed_dim)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:].mean(dim=1)


class Queries(nn.Module):
    """A learned query for each question, which attends to all tokens. Returns: (batch, num_queries, embed_dim).

    Source: Zhang, Gupta and Zisserman, "Temporal query networks for fine-grained video understanding", CVPR 2021, with
    one layer in place of their decoder.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_queries: int) -> None:
        super().__init__()
        self.attention = AttentionPoolLatent(embed_dim, num_heads=num_heads, latent_len=num_queries, pool_type="")

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.attention(tokens)
        return features


def build_pooling(pooling: Pooling, embed_dim: int, num_heads: int, num_queries: int) -> nn.Module | None:
    """What makes features of tokens; None for the class token, which the backbone gives with less work."""
    if pooling is Pooling.CLASS_TOKEN:
        return None
    return MeanOfPatches() if pooling is Pooling.MEAN else Queries(embed_dim, num_heads, num_queries)
