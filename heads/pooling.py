"""From the tokens of a clip to the features that a head reads."""

from __future__ import annotations

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from diveparse.configs import Pooling


class MeanOfPatches(nn.Module):
    """The mean over all patches of all frames. The class token, where there is one, comes first and is left out."""

    def __init__(self, *, has_class_token: bool) -> None:
        super().__init__()
        self.first_patch = int(has_class_token)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, tokens, embed_dim). Returns: (batch, embed_dim)."""
        return tokens[:, self.first_patch :].mean(dim=1)


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


def build_pooling(
    pooling: Pooling, *, embed_dim: int, num_heads: int, num_queries: int, has_class_token: bool
) -> nn.Module | None:
    """The module from tokens to features; None for the class token, which the backbone computes with less work."""
    if pooling is Pooling.CLASS_TOKEN:
        return None
    if pooling is Pooling.MEAN:
        return MeanOfPatches(has_class_token=has_class_token)
    return Queries(embed_dim, num_heads, num_queries)
