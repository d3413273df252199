"""Turns frames into a grid of tokens, one a square patch."""

from __future__ import annotations

from functools import partial

from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.models.linear import linear


class PatchEmbed(nn.Module):
    """One linear map of each patch's pixels: a convolution whose stride is its kernel, as a single matrix product."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(NUM_CHANNELS * patch_size**2, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """clips: (batch, time, channel, height, width). Returns: (batch, time, patches, embed_dim), row after row."""
        p = self.patch_size
        # channel, row, column: the order of a convolution's weight, so that published weights only need a reshape
        pixels = rearrange(clips, "b t c (h p) (w q) -> b t (h w) (c p q)", p=p, q=p)
        return linear(pixels, self.proj.weight, self.proj.bias)


class ConvStem(nn.Module):
    """Tokens on the same grid from a few strided convolutions: a small network learns to see in far fewer clips.

    Source: Xiao et al., "Early convolutions help transformers see better", NeurIPS 2021; here the first convolution
    already strides by 4, which is cheaper, and group norm replaces batch norm, as the frames of a clip are alike.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        num_halvings = patch_size.bit_length() - 3  # of the grid, after the first stride of 4
        width = embed_dim >> num_halvings
        conv = partial(
            Conv2dNormActivation,
            norm_layer=partial(nn.GroupNorm, 1),
            activation_layer=nn.GELU,
            inplace=None,
            bias=True,
        )
        layers: list[nn.Module] = [*conv(NUM_CHANNELS, width, kernel_size=7, stride=4)]
        for _ in range(num_halvings):
            layers += conv(width, 2 * width, kernel_size=3, stride=2)
            width *= 2
        self.net = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1))

    def forward(self, clips: Tensor) -> Tensor:
        """clips: (batch, time, channel, height, width). Returns: (batch, time, patches, embed_dim), row after row."""
        grid = self.net(rearrange(clips, "b t c h w -> (b t) c h w"))
        return rearrange(grid, "(b t) d h w -> b t (h w) d", b=clips.shape[0])
