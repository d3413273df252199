"""Multi-head self-attention over one axis of tokens."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# b sequences, n tokens of one, h heads, e head_dim


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
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens, result: (sequences, length, embed_dim)."""
        return self.proj(self.mix(tokens))

    def mix(self, tokens: Tensor) -> Tensor:
        """The heads' answers side by side, not yet projected. tokens, result: (sequences, length, embed_dim)."""
        qkv = rearrange(self.qkv(tokens), "b n (three h e) -> three b h n e", three=3, h=self.num_heads)
        x = F.scaled_dot_product_attention(*qkv.unbind(0))
        return rearrange(x, "b h n e -> b n (h e)")

    def first_token(self, tokens: Tensor) -> Tensor:
        """What `forward` gives the first token, without the queries of the others.

        tokens: (sequences, length, embed_dim). Returns: (sequences, embed_dim).
        """
        query_weight, key_value_weight = self.qkv.weight.split([self.embed_dim, 2 * self.embed_dim])
        query_bias, key_value_bias = self.qkv.bias.split([self.embed_dim, 2 * self.embed_dim])
        query = F.linear(tokens[:, :1], query_weight, query_bias)
        key_value = F.linear(tokens, key_value_weight, key_value_bias)
        query = rearrange(query, "b 1 (h e) -> b h 1 e", h=self.num_heads)
        key, value = rearrange(key_value, "b n (two h e) -> two b h n e", two=2, h=self.num_heads).unbind(0)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(x, "b h 1 e -> b (h e)"))
