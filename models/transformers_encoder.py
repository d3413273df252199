"""Video encoders of HuggingFace's `transformers` as backbones: TimeSformer, VideoMAE, ViViT, V-JEPA 2 and VideoPrism.

Each runs its own blocks, in its own token order, so that its tokens are those of its own `forward`; what leaves it is
in this project's order, the class token and then the patches frame by frame, `(t n)`. A "frame" is a tubelet of
several frames where the encoder makes one token of those. Several layers follow each other along the tokens, as in
Meta's probe of V-JEPA 2 (its evals/video_classification_frozen/modelcustom/vit_encoder_multiclip_multilevel.py).
Attention is torch's fused one where the encoder's code in `transformers` can use that.

Source: the modelling code of transformers 5.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diveparse.configs import BackboneConfig
from diveparse.configs.bounds import require
from diveparse.datasets.constants import NUM_CHANNELS, PIXEL_MEAN, PIXEL_STD
from diveparse.models.backbone import Backbone, ClipFormat
from diveparse.models.weights.encoders import SavedEncoder

UNUSED = ("pooler", "predictor")  # of a ViViT and a V-JEPA 2: they read the tokens, and do not make them

# b batch, t tokens along time, n patches of one of them, d embed_dim


class TransformersEncoder(Backbone):
    """An encoder of `transformers` under this project's heads."""

    has_class_token = False
    is_patch_by_patch = False  # its own token order is (n t)
    pixel_gain: Tensor
    pixel_offset: Tensor

    def __init__(self, saved: SavedEncoder, cfg: BackboneConfig, model: Any, clip_format: ClipFormat) -> None:
        """model: of `saved.config`, made to take clips of `clip_format`, which differs from that in sizes alone."""
        super().__init__()
        self.saved, self.config, self.model, self.clip_format = saved, cfg, model, clip_format
        for name in UNUSED:
            if hasattr(model, name):
                setattr(model, name, None)
        depth = len(self.blocks)
        self.layers_read = cfg.layers or [depth - 1]
        require(self.layers_read[-1] < depth, "backbone.layers", f"below the {depth} of {saved.origin}", cfg.layers)
        self.embed_dim = int(model.config.hidden_size)
        self.num_heads = int(model.config.num_attention_heads)
        self.num_times = clip_format.num_frames // saved.frames_per_token
        self.num_patches = (clip_format.image_size // saved.patch_size) ** 2
        own_mean, own_std, mean, std = (
            torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
            for values in (PIXEL_MEAN, PIXEL_STD, saved.pixels.mean, saved.pixels.std)
        )
        # theirs = ours * gain + offset, as both are affine in the pixels
        self.register_buffer("pixel_gain", (own_std / std).float(), persistent=False)
        self.register_buffer("pixel_offset", ((own_mean - mean) / std).float(), persistent=False)
        self.freeze(cfg.num_frozen_blocks)
        num_trained = max(self.layers_read[-1] + 1 - self.num_frozen_blocks, 0)
        expected = f"between 0 and the {num_trained} blocks of {saved.origin} that are trained"
        is_trained = cfg.num_checkpointed_blocks <= num_trained
        require(is_trained, "backbone.num_checkpointed_blocks", expected, cfg.num_checkpointed_blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.encoder.layer)

    def block_list(self) -> list[nn.Module]:
        return self.blocks

    @property
    def embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.embeddings
        return embeddings

    @property
    def last_norm(self) -> nn.Module | None:
        norm: nn.Module | None = self.model.layernorm
        return norm

    def embed(self, pixels: Tensor) -> Tensor:
        """The first tokens, with their places. pixels: as the encoder takes them.

        Returns: (batch, tokens, embed_dim), in the encoder's own order.
        """
        tokens: Tensor = self.embeddings(pixels)
        return tokens

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        """tokens, result: (batch, tokens, embed_dim), in the encoder's own order."""
        result = self.blocks[index](tokens)
        made: Tensor = result[0] if isinstance(result, tuple) else result
        return made

    def norm(self, index: int, tokens: Tensor) -> Tensor:
        """The last norm, for what block `index` made."""
        return tokens if self.last_norm is None else self.last_norm(tokens)

    def modules_by_layer(self) -> list[list[nn.Module]]:
        """All modules with parameters: the embeddings, block by block, the last norm."""
        norms = [] if self.last_norm is None else [self.last_norm]
        return [[self.embeddings], *([block] for block in self.blocks), norms]

    def layers(self) -> list[list[nn.Parameter]]:
        return [
            [parameter for module in modules for parameter in module.parameters()]
            for modules in self.modules_by_layer()
        ]

    def freeze(self, num_blocks: int) -> None:
        """Keep the embeddings and the first `num_blocks` blocks as they are; 0 trains everything that is read.

        With all blocks that are read, the last norm is kept too: the features of a clip are then always the same.
        Raises: ValueError if the encoder has not that many blocks.
        """
        expected = f"between 0 and the {len(self.blocks)} blocks of {self.saved.origin}"
        require(0 <= num_blocks <= len(self.blocks), "backbone.num_frozen_blocks", expected, num_blocks)
        self.num_frozen_blocks = num_blocks
        num_read = self.layers_read[-1] + 1
        embeddings, *blocks, norms = self.modules_by_layer()
        is_block_trained = [num_blocks <= index < num_read for index in range(len(blocks))]
        for modules, is_trained in zip(
            (embeddings, *blocks, norms), (num_blocks == 0, *is_block_trained, num_blocks < num_read), strict=True
        ):
            for module in modules:
                module.requires_grad_(is_trained)

    def train(self, mode: bool = True) -> TransformersEncoder:
        """Frozen blocks stay in evaluation mode: what the feature cache holds of them is without their dropout."""
        super().train(mode)
        if self.num_frozen_blocks:
            for modules in self.modules_by_layer()[: self.num_frozen_blocks + 1]:
                for module in modules:
                    module.eval()
        return self

    @property
    def first_block_after_frozen(self) -> int:
        return min(self.num_frozen_blocks, self.layers_read[-1] + 1)

    def frozen_tokens(self, clips: Tensor) -> Tensor:
        """What the embeddings and the frozen blocks make of clips: the tokens of each of `layers_read` that is frozen,
        then of the last frozen block, in the encoder's own order and before the last norm.

        Returns: (batch, number of those blocks * tokens of one, embed_dim).
        """
        self._require_clips(clips)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.num_frozen_blocks == 0):
            tokens, kept = self.embed(clips * self.pixel_gain + self.pixel_offset), []
            for index in range(self.first_block_after_frozen):
                tokens = self.run_block(index, tokens)
                if index in self.layers_read:
                    kept.append(tokens)
            if not kept or kept[-1] is not tokens:
                kept.append(tokens)
            return torch.cat(kept, dim=1)

    def tokens(self, inputs: Tensor) -> Tensor:
        """Every token after the last norm: the last layer's class token, where there is one, then the patches of each
        of `layers_read`, one layer after the other.

        inputs: clips (batch, time, channel, height, width), normalised, or what `frozen_tokens` made of them.
        Returns: (batch, tokens, embed_dim).
        Raises: ValueError if the inputs are not of the size this encoder was built for.
        """
        first = self.first_block_after_frozen
        made = [index for index in self.layers_read if index < first]
        frozen = self.frozen_tokens(inputs) if inputs.ndim != 3 else inputs
        self._require_frozen_tokens(frozen, len(made) + int(first - 1 not in made))
        parts = list(frozen.split(self.tokens_of_layer, dim=1))
        tokens, kept = parts[-1], parts[: len(made)]
        for index in range(first, self.layers_read[-1] + 1):
            if index < first + self.config.num_checkpointed_blocks and torch.is_grad_enabled():
                tokens = checkpoint(self.run_block, index, tokens, use_reentrant=False)
            else:
                tokens = self.run_block(index, tokens)
            if index in self.layers_read:
                kept.append(tokens)
        normed = [self.norm(index, tokens) for index, tokens in zip(self.layers_read, kept, strict=True)]
        patches = [self._patches_in_our_order(tokens) for tokens in normed]
        class_token = [normed[-1][:, :1]] if self.has_class_token else []
        return torch.cat([*class_token, *patches], dim=1)

    def description(self) -> dict[str, Any]:
        return {"encoder": self.saved.description()}

    def origin(self) -> dict[str, Any]:
        return {"model_type": self.saved.config.model_type, "commit": self.saved.commit}

    def about_frozen_tokens(self) -> dict[str, Any]:
        return self.description() | {"layers": self.layers_read}

    @property
    def tokens_of_layer(self) -> int:
        return int(self.has_class_token) + self.num_times * self.num_patches

    def _patches_in_our_order(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, int(self.has_class_token) :]
        return rearrange(patches, "b (n t) d -> b (t n) d", t=self.num_times) if self.is_patch_by_patch else patches

    def _require_clips(self, clips: Tensor) -> None:
        size = self.clip_format.image_size
        expected = (self.clip_format.num_frames, NUM_CHANNELS, size, size)
        if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            raise ValueError(
                f"clips must be (batch, time, channel, height, width) = (batch, *{expected}), got {tuple(clips.shape)}"
            )

    def _require_frozen_tokens(self, tokens: Tensor, num_parts: int) -> None:
        expected = (num_parts * self.tokens_of_layer, self.embed_dim)
        if tuple(tokens.shape[1:]) != expected:
            raise ValueError(f"frozen tokens must be (batch, {expected[0]}, {expected[1]}), got {tuple(tokens.shape)}")


class TimesformerEncoder(TransformersEncoder):
    has_class_token = True
    is_patch_by_patch = True

    def __init__(self, saved: SavedEncoder, cfg: BackboneConfig, model: Any, clip_format: ClipFormat) -> None:
        super().__init__(saved, cfg, model, clip_format)
        # its blocks read this, and its embeddings of time are stretched where they are of another length
        model.config.num_frames = clip_format.num_frames


class VideoMAEEncoder(TransformersEncoder):
    """Without a last norm, as its own `forward` is, unless its configuration asks for one."""

    def embed(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.embeddings(pixels, None)  # no token is masked
        return tokens


class VivitEncoder(TransformersEncoder):
    has_class_token = True

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)


class VJEPA2Encoder(TransformersEncoder):
    """Its places are rotations of queries and keys, so that it takes any number of frames and any size."""

    @property
    def embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.encoder.embeddings
        return embeddings

    @property
    def last_norm(self) -> nn.Module | None:
        norm: nn.Module = self.model.encoder.layernorm
        return norm


class VideoPrismEncoder(TransformersEncoder):
    """Blocks that look inside a frame, then blocks that look along time, each kind with a last norm of its own."""

    def __init__(self, saved: SavedEncoder, cfg: BackboneConfig, model: Any, clip_format: ClipFormat) -> None:
        super().__init__(saved, cfg, model, clip_format)
        sizes = (clip_format.num_frames, clip_format.image_size)
        self.is_stretched = sizes != (saved.num_frames, saved.image_size)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.model.spatial_layers, *self.model.temporal_layers]

    @property
    def num_spatial(self) -> int:
        return len(self.model.spatial_layers)

    @property
    def embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.spatial_embeddings
        return embeddings

    @property
    def last_norm(self) -> nn.Module | None:
        norm: nn.Module = self.model.layernorm2
        return norm

    def modules_by_layer(self) -> list[list[nn.Module]]:
        modules = super().modules_by_layer()
        modules[1 + self.num_spatial] += [self.model.layernorm1, self.model.temporal_embeddings]
        return modules

    def embed(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.embeddings(pixels, interpolate_pos_encoding=self.is_stretched)
        return rearrange(tokens, "(b t) n d -> b (t n) d", t=self.num_times)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        if index < self.num_spatial:
            frames = rearrange(tokens, "b (t n) d -> (b t) n d", t=self.num_times)
            return rearrange(self.blocks[index](frames), "(b t) n d -> b (t n) d", t=self.num_times)
        if index == self.num_spatial:
            frames = rearrange(self.model.layernorm1(tokens), "b (t n) d -> (b t) n d", t=self.num_times)
            size = self.clip_format.image_size
            shape = (tokens.shape[0], self.clip_format.num_frames, NUM_CHANNELS, size, size)
            sites = self.model.temporal_embeddings(frames, shape, interpolate_pos_encoding=self.is_stretched)
        else:
            sites = rearrange(tokens, "b (t n) d -> (b n) t d", t=self.num_times)
        return rearrange(self.blocks[index](sites), "(b n) t d -> b (t n) d", n=self.num_patches)

    def norm(self, index: int, tokens: Tensor) -> Tensor:
        normed: Tensor = (self.model.layernorm1 if index < self.num_spatial else self.model.layernorm2)(tokens)
        return normed


ENCODERS: dict[str, type[TransformersEncoder]] = {
    "timesformer": TimesformerEncoder,
    "videomae": VideoMAEEncoder,
    "vivit": VivitEncoder,
    "vjepa2": VJEPA2Encoder,
    "videoprism_vision_model": VideoPrismEncoder,
}
