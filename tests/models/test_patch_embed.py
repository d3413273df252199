from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from diveparse.models.patch_embed import ConvStem, PatchEmbed


def test_the_matrix_product_equals_a_convolution_with_the_same_weights() -> None:
    patch_embed = PatchEmbed(patch_size=4, embed_dim=6)
    clips = torch.randn(2, 3, 3, 8, 12)
    kernel = patch_embed.proj.weight.reshape(6, 3, 4, 4)
    convolved = F.conv2d(clips.flatten(0, 1), kernel, patch_embed.proj.bias, stride=4)
    torch.testing.assert_close(patch_embed(clips), rearrange(convolved, "(b t) d h w -> b t (h w) d", b=2))


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_a_token_of_the_stem_sees_its_own_frame_and_the_corner_of_its_own_patch_most(patch_size: int) -> None:
    torch.manual_seed(0)
    stem = ConvStem(patch_size, embed_dim=16)
    before = torch.randn(1, 2, 3, 3 * patch_size, 4 * patch_size)
    after = before.clone()
    row, column = 1, 2
    after[0, 1, :, row * patch_size, column * patch_size] += 30  # where the strided kernels are centred
    change = (stem(after) - stem(before)).square().sum(-1)  # (batch, time, patches)
    assert change.shape == (1, 2, 12)
    assert change[0, 0].max() == 0
    assert change[0, 1].argmax() == 4 * row + column
