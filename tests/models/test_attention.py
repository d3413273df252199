from __future__ import annotations

import pytest
import torch
from einops import rearrange

from diveparse.models.attention import SelfAttention


def attention_and_tokens() -> tuple[SelfAttention, torch.Tensor]:
    torch.manual_seed(0)
    attention = SelfAttention(embed_dim=12, num_heads=3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention, torch.randn(5, 7, 12)


def test_attention_is_the_softmax_weighted_mean_of_the_values_head_by_head() -> None:
    attention, tokens = attention_and_tokens()
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    by_head = []
    for q, k, v in zip(query.chunk(3, -1), key.chunk(3, -1), value.chunk(3, -1), strict=True):
        weights = torch.einsum("bqe,bke->bqk", q, k).div(4**0.5).softmax(-1)
        by_head.append(torch.einsum("bqk,bke->bqe", weights, v))
    torch.testing.assert_close(attention(tokens), attention.proj(torch.cat(by_head, -1)))


@pytest.mark.parametrize("num_interleaved", [1, 2, 7])
def test_interleaved_sequences_attend_as_if_they_lay_apart(num_interleaved: int) -> None:
    attention, _ = attention_and_tokens()
    tokens = torch.randn(5, 7 * num_interleaved, 12)
    apart = rearrange(tokens, "b (n s) d -> (b s) n d", s=num_interleaved)
    expected = rearrange(attention.attend(apart), "(b s) n d -> b (n s) d", s=num_interleaved)
    torch.testing.assert_close(attention.attend(tokens, num_interleaved=num_interleaved), expected)


def test_the_first_token_alone_gets_what_it_gets_among_all() -> None:
    attention, tokens = attention_and_tokens()
    torch.testing.assert_close(attention.first_token(tokens), attention(tokens)[:, 0])


def test_sequences_do_not_see_each_other() -> None:
    attention, tokens = attention_and_tokens()
    torch.testing.assert_close(attention(tokens)[2:3], attention(tokens[2:3]))
