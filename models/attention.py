"""Multi-head self-attention over one axis of tokens."""

from __future__ import annotations

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from diveparse.models.linear import linear

# b batch, s sequences of one item, n tokens of a sequence, h heads, e head_dim, d embed_dim


class SelfAttention(nn.Module):
    """Every token of a sequence attends to every token of the same sequence."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens, result: (sequences, length, embed_dim)."""
        return linear(self.attend(tokens), self.proj.weight, self.proj.bias)

    def attend(self, tokens: Tensor, *, num_interleaved: int = 1) -> Tensor:
        """The heads' answers side by side, not yet projected.

        tokens, result: (batch, length * num_interleaved, embed_dim). A sequence takes every `num_interleaved`-th token:
        sequences that lie in memory like this need not be moved apart, since each of their heads is a head to torch.
        """
        # three products, whose results need no copy to become heads, nor their gradients one to be put together
        thirds = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        query, key, value = (
            rearrange(linear(tokens, weight, bias), "b (n s) (h e) -> b (s h) n e", s=num_interleaved, h=self.num_heads)
            for weight, bias in thirds
        )
        x = F.scaled_dot_product_attention(query, key, value)
        return rearrange(x, "b (s h) n e -> b (n s) (h e)", s=num_interleaved)

    def first_token(self, tokens: Tensor) -> Tensor:
        """What `forward` gives the first token, without a query, key or value of any other.

        A key is `W x + b`, so that a query meets it as `(q W) x + q b`, of which the softmax drops what is the same for
        all tokens; and as the softmax sums to one, values can be made of the tokens' mean: every head attends to the
        tokens themselves. tokens: (sequences, length, embed_dim). Returns: (sequences, embed_dim).
        """
        query_weight, key_weight, value_weight = rearrange(
            self.qkv.weight, "(three h e) d -> three h e d", three=3, h=self.num_heads
        ).unbind(0)
        query_bias, _, value_bias = rearrange(
            self.qkv.bias, "(three h e) -> three h e", three=3, h=self.num_heads
        ).unbind(0)
        query = einsum(tokens[:, 0], query_weight, "b d, h e d -> b h e") + query_bias
        query = einsum(query, key_weight, "b h e, h e d -> b h d")
        tokens = tokens[:, None]  # one head, whose queries are those of all: four axes are what fast kernels take
        x = F.scaled_dot_product_attention(query[:, None], tokens, tokens, scale=value_weight.shape[1] ** -0.5)
        x = einsum(x[:, 0], value_weight, "b h d, h e d -> b h e") + value_bias
        return self.proj(rearrange(x, "b h e -> b (h e)"))
