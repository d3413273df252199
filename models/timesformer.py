"""The backbone: a vision transformer that attends along time, then inside each frame (divided space-time attention).

Source: Bertasius, Wang and Torresani, "Is space-time attention all you need for video understanding?", ICML 2021, and
its authors' code, which decides what the paper leaves open: the class token takes no part in time attention, enters
space attention once for every frame, and keeps the mean of the frames' answers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from einops import rearrange, reduce, repeat
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diveparse.configs import BackboneConfig, StemKind
from diveparse.datasets.constants import NUM_CHANNELS
from diveparse.models.attention import SelfAttention
from diveparse.models.backbone import Backbone, ClipFormat
from diveparse.models.linear import gelu_of_linear, join_rows, linear, linear_of_gelu, row_chunks
from diveparse.models.patch_embed import ConvStem, PatchEmbed
from diveparse.models.weights.huggingface import SavedClassifier, save_huggingface
from diveparse.models.weights.published import LAYER_NORM_EPS, SavedBackbone
from diveparse.models.weights.sizes import read_sizes, require_buildable
from diveparse.models.weights.sources import load_state, read_source, resized

Result = TypeVar("Result")

# b batch, t frames, n patches of one frame, d embed_dim; the tokens of a clip are the class token, then (t n)


class DividedBlock(nn.Module):
    """Time attention, space attention, MLP; each with its own norm and residual connection.

    `forward` equals these eight lines, which tests/models/test_timesformer.py holds it to:

        x = rearrange(patches, "b (t n) d -> (b n) t d", t=num_frames)
        x = self.time_proj(self.drop_path(self.time_attn(self.time_norm(x))))
        patches = patches + rearrange(x, "(b n) t d -> b (t n) d", b=len(patches))
        frames = rearrange(patches, "b (t n) d -> (b t) n d", t=num_frames)
        x = torch.cat([repeat(class_token, "b 1 d -> (b t) 1 d", t=num_frames), frames], dim=1)
        x = rearrange(self.drop_path(self.space_attn(self.space_norm(x))), "(b t) n d -> b t n d", t=num_frames)
        tokens = torch.cat([class_token + x[:, :, 0].mean(1, True), patches + x[:, :, 1:].flatten(1, 2)], dim=1)
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))
    """

    def __init__(self, embed_dim: int, num_heads: int, *, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.time_attn = SelfAttention(embed_dim, num_heads)
        self.time_proj = nn.Linear(embed_dim, embed_dim)
        self.space_norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.space_attn = SelfAttention(embed_dim, num_heads)
        self.mlp_norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.mlp.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)
        # zero, so that a new network starts as an image model of single frames and time fades in
        nn.init.zeros_(self.time_proj.weight)
        nn.init.zeros_(self.time_proj.bias)

    def forward(self, class_token: Tensor, patches: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Class tokens and patches are separate tensors, so that norms read each of them from one piece of memory.

        class_token, first result: (batch, 1, embed_dim). patches, second: (batch, frames * patches, embed_dim).
        """
        patches = self.attend_over_time(patches, num_frames)
        x = self.space_attn(self.space_norm(self.frame_sequences(class_token, patches, num_frames)))
        class_update, patch_update = split_class_token(self.drop_path(x))  # (b t) 1 d, (b t) n d
        class_token = class_token + reduce(class_update, "(b t) 1 d -> b 1 d", "mean", t=num_frames)
        patches = patches + rearrange(patch_update, "(b t) n d -> b (t n) d", t=num_frames)
        x = self.drop_path(self.feed_forward(torch.cat([class_token, patches], dim=1)))
        class_update, patch_update = split_class_token(x)
        return class_token + class_update, patches + patch_update

    def class_token(self, class_token: Tensor, patches: Tensor, num_frames: int) -> Tensor:
        """The class token of `forward` alone: patches are read by it but not updated. Returns: (batch, embed_dim)."""
        patches = self.attend_over_time(patches, num_frames)
        x = self.space_attn.first_token(self.space_norm(self.frame_sequences(class_token, patches, num_frames)))
        x = class_token.squeeze(1) + reduce(self.drop_path(x), "(b t) d -> b d", "mean", t=num_frames)
        return x + self.drop_path(self.feed_forward(x))

    def attend_over_time(self, patches: Tensor, num_frames: int) -> Tensor:
        """Each patch site attends along time. patches, result: (batch, frames * patches, embed_dim)."""
        num_sites = patches.shape[1] // num_frames
        return patches + self.project_twice(
            self.time_attn.attend(self.time_norm(patches), num_interleaved=num_sites), num_sites
        )

    def project_twice(self, x: Tensor, num_sites: int) -> Tensor:
        """The time attention's own projection, drop-path and `time_proj`, with both matrices multiplied beforehand.

        The authors drop paths between the two, a patch site at a time; that scales whole sequences, so it commutes.
        x, result: (batch, frames * patches, embed_dim).
        """
        weight = self.time_proj.weight @ self.time_attn.proj.weight
        bias = self.time_proj.weight @ self.time_attn.proj.bias
        if not self.training or self.drop_path.drop_prob == 0:
            return linear(x, weight, bias + self.time_proj.bias)
        scale = self.drop_path(x.new_ones(len(x) * num_sites, 1))
        sites = rearrange(linear(x, weight, bias), "b (t n) d -> b t n d", n=num_sites)
        sites = sites * rearrange(scale, "(b n) 1 -> b 1 n 1", n=num_sites) + self.time_proj.bias
        return rearrange(sites, "b t n d -> b (t n) d")

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """The MLP, after its norm. tokens, result: (..., embed_dim)."""
        first, second = self.mlp.fc1, self.mlp.fc2
        if torch.is_grad_enabled():
            hidden = linear(self.mlp_norm(tokens), first.weight, first.bias)
            return linear_of_gelu(hidden, second.weight, second.bias)
        hidden_rows = (gelu_of_linear(self.mlp_norm(rows), first.weight, first.bias) for rows in row_chunks(tokens))
        return join_rows([linear(rows, second.weight, second.bias) for rows in hidden_rows]).view_as(tokens)

    def frame_sequences(self, class_token: Tensor, patches: Tensor, num_frames: int) -> Tensor:
        """One sequence a frame: the clip's class token and the frame's patches. Returns: (batch * frames, 1 + n, d)."""
        frames = rearrange(patches, "b (t n) d -> (b t) n d", t=num_frames)
        return torch.cat([repeat(class_token, "b 1 d -> (b t) 1 d", t=num_frames), frames], dim=1)


def split_class_token(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """tokens: (batch, 1 + length, embed_dim). Returns: (batch, 1, embed_dim), (batch, length, embed_dim)."""
    class_token, others = tokens.split([1, tokens.shape[1] - 1], dim=1)
    return class_token, others


class TimeSformer(Backbone):
    """A clip in, its features out. Its sizes are fixed; `models/weights` moves weights from one size to another."""

    block_methods = ("class_token",)

    def __init__(self, cfg: BackboneConfig, *, num_frames: int, image_size: int) -> None:
        super().__init__()
        if image_size % cfg.patch_size != 0:
            raise ValueError(f"image_size must be a multiple of patch_size={cfg.patch_size}, got {image_size}")
        require_buildable(cfg, num_frames=num_frames, image_size=image_size)
        self.config = cfg
        self.num_frames = num_frames
        self.image_size = image_size
        self.embed_dim = cfg.embed_dim
        self.num_heads = cfg.num_heads
        self.has_class_token = True
        self.clip_format = ClipFormat(num_frames, image_size)
        self.num_patches = (image_size // cfg.patch_size) ** 2
        stem = ConvStem if cfg.stem is StemKind.CONV else PatchEmbed
        self.patch_embed = stem(cfg.patch_size, cfg.embed_dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, cfg.embed_dim))
        self.space_embed = nn.Parameter(torch.empty(1, 1 + self.num_patches, cfg.embed_dim))
        self.time_embed = nn.Parameter(torch.empty(1, num_frames, cfg.embed_dim))
        self.blocks = nn.ModuleList(
            DividedBlock(cfg.embed_dim, cfg.num_heads, mlp_ratio=cfg.mlp_ratio, drop_path_rate=drop_path_rate)
            for drop_path_rate in torch.linspace(0, cfg.drop_path_rate, cfg.depth).tolist()  # deeper ones drop more
        )
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=LAYER_NORM_EPS)
        self.reset_parameters()
        self.freeze(cfg.num_frozen_blocks)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | nn.Module,
        *,
        num_frames: int | None = None,
        image_size: int | None = None,
        drop_path_rate: float = 0.0,
    ) -> TimeSformer:
        """A backbone with saved weights, of the sizes that they have; in evaluation mode.

        source: a HuggingFace folder or hub id, one of FAIR's .pyth files, "timm/NAME" or an open timm image model, or
        what this project wrote; `read_source` in models/weights/sources.py lists them. Clips are normalised as in
        datasets/constants.py, whatever the source's were.
        num_frames, image_size: others than the source's; its embeddings are then resized, which is logged. A timm image
        model has no frame count, so that it must be given.

        Raises: ValueError naming the source if there is none, it is damaged, or listing what does not fit.
        """
        saved = read_source(source, num_frames)
        cfg, own_num_frames, own_image_size = read_sizes(saved)
        try:
            backbone = cls(
                replace(cfg, drop_path_rate=drop_path_rate),
                num_frames=own_num_frames if num_frames is None else num_frames,
                image_size=own_image_size if image_size is None else image_size,
            )
        except ValueError as error:  # of sizes that do not fit together, or not into the memory
            raise ValueError(f"{saved.origin}: {error}") from error
        return backbone.load_saved(saved).eval()

    def load_saved(self, saved: SavedBackbone) -> TimeSformer:
        """Take over saved weights, with embeddings resized to this backbone's frame count and picture size.

        Raises: ValueError listing every kind of misfit with names and shapes, before anything is changed.
        """
        load_state(self, resized(saved.state, self.state_dict(), saved.origin), saved.origin)
        return self

    def why_not_in_transformers(self) -> str | None:
        stem, only = self.config.stem, StemKind.PATCH
        return None if stem is only else f"backbone.stem={stem.value}, and the format has {only.value} alone"

    def save_in_transformers(self, folder: Path, classifier: SavedClassifier) -> None:
        save_huggingface(folder, self, classifier)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.space_embed, std=0.02)
        # one row for all frames at first: no order is known before training
        nn.init.zeros_(self.time_embed)

    def block_list(self) -> list[nn.Module]:
        return list(self.blocks)

    def freeze(self, num_blocks: int) -> None:
        """Keep the embeddings and the first `num_blocks` blocks as they are; 0 trains everything."""
        self.num_frozen_blocks = num_blocks
        for parameter in (*self.patch_embed.parameters(), self.class_token, self.space_embed, self.time_embed):
            parameter.requires_grad_(num_blocks == 0)
        for index, block in enumerate(self.blocks):
            block.requires_grad_(index >= num_blocks)

    @property
    def has_frozen_class_token(self) -> bool:
        return self.num_frozen_blocks == len(self.blocks)

    def layers(self) -> list[list[nn.Parameter]]:
        """Embeddings, then block by block, then the last norm."""
        embeddings = [*self.patch_embed.parameters(), self.class_token, self.space_embed, self.time_embed]
        return [embeddings, *(list(block.parameters()) for block in self.blocks), list(self.norm.parameters())]

    def forward(self, inputs: Tensor) -> Tensor:
        """The class token after the last norm, what a classifier reads; the last block computes it alone.

        inputs: clips (batch, time, channel, height, width), normalised, or what `frozen_tokens` or, if every block is
        frozen, `frozen_class_token` made of them. Returns: (batch, embed_dim).
        Raises: ValueError if the inputs are not of the size this backbone was built for.
        """
        if self.has_frozen_class_token and tuple(inputs.shape[1:]) == (1, self.embed_dim):
            return self.norm(inputs.squeeze(1))
        return self.norm(self.last_class_token(inputs))

    def last_class_token(self, inputs: Tensor) -> Tensor:
        """The class token after the last block, before the norm. Returns: (batch, embed_dim)."""
        last = len(self.blocks) - 1
        tokens = self.run_blocks(*self.begin(inputs), range(self.first_block_after_frozen, last))
        return self.run(last, cast(DividedBlock, self.blocks[last]).class_token, *tokens)

    def tokens(self, inputs: Tensor) -> Tensor:
        """Every token after the last norm: class token, then the patches frame by frame.

        inputs: as for `forward`. Returns: (batch, 1 + time * patches, embed_dim).
        """
        blocks = range(self.first_block_after_frozen, len(self.blocks))
        return self.norm(torch.cat(self.run_blocks(*self.begin(inputs), blocks), dim=1))

    def frozen_tokens(self, clips: Tensor) -> Tensor:
        """What the embeddings and the frozen blocks make of clips, which training does not change.

        The last block is left out even where it is frozen: `forward` and `tokens` need different parts of it.
        Returns: (batch, 1 + time * patches, embed_dim).
        """
        return torch.cat(self.run_blocks(*self.embed(clips), range(self.first_block_after_frozen)), dim=1)

    def frozen_class_token(self, clips: Tensor) -> Tensor:
        return self.last_class_token(clips).unsqueeze(1)

    def begin(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and patches after the frozen blocks, of clips or of frozen tokens; as `embed` returns them."""
        if inputs.ndim != 3:
            return self.run_blocks(*self.embed(inputs), range(self.first_block_after_frozen))
        expected = (1 + self.num_frames * self.num_patches, self.embed_dim)
        if tuple(inputs.shape[1:]) != expected:
            raise ValueError(f"frozen tokens must be (batch, {expected[0]}, {expected[1]}), got {tuple(inputs.shape)}")
        return split_class_token(inputs)

    @property
    def first_block_after_frozen(self) -> int:
        return min(self.num_frozen_blocks, len(self.blocks) - 1)

    def embed(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and patches, with their places in space and time.

        Returns: (batch, 1, embed_dim), (batch, frames * patches, embed_dim).
        """
        expected = (self.num_frames, NUM_CHANNELS, self.image_size, self.image_size)
        if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            raise ValueError(
                f"clips must be (batch, time, channel, height, width) = (batch, *{expected}), got {tuple(clips.shape)}"
            )
        with self.keep_activations_of(block=0):
            class_embed, patch_embed = self.space_embed.split([1, self.num_patches], dim=1)
            places = rearrange(self.time_embed, "1 t d -> t 1 d") + patch_embed  # (time, patches, embed_dim)
            patches = rearrange(self.patch_embed(clips) + places, "b t n d -> b (t n) d")
            class_token = repeat(self.class_token + class_embed, "1 1 d -> b 1 d", b=clips.shape[0])
            return class_token, patches

    def run_blocks(self, class_token: Tensor, patches: Tensor, blocks: range) -> tuple[Tensor, Tensor]:
        """Some of the blocks. class_token: (batch, 1, embed_dim). patches: (batch, time * patches, embed_dim)."""
        for index in blocks:
            class_token, patches = self.run(index, cast(DividedBlock, self.blocks[index]), class_token, patches)
        return class_token, patches

    def run(
        self, index: int, block: Callable[[Tensor, Tensor, int], Result], class_token: Tensor, patches: Tensor
    ) -> Result:
        """A block, or the part of it that is needed, with activation checkpointing where the config asks for it."""
        with self.keep_activations_of(index):
            is_checkpointed = index < self.num_frozen_blocks + self.config.num_checkpointed_blocks
            if is_checkpointed and torch.is_grad_enabled():
                result: Result = checkpoint(block, class_token, patches, self.num_frames, use_reentrant=False)
                return result
            return block(class_token, patches, self.num_frames)

    def keep_activations_of(self, block: int) -> AbstractContextManager[None]:
        """Frozen blocks need no gradient, so that no activation is kept: less memory, less time."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and block >= self.num_frozen_blocks)
