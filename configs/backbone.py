"""The options of a backbone."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from diveparse.configs.bounds import check_numbers, non_negative, positive, refuse_unused, require, within

# what describes our own TimeSformer; an encoder of `transformers` has these in its own config.json
TIMESFORMER_OPTIONS = ("stem", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate")


class BackboneKind(Enum):
    TIMESFORMER = "timesformer"  # ours
    TRANSFORMERS = "transformers"  # a video encoder of HuggingFace's library, the one in backbone.weights


class StemKind(Enum):
    PATCH = "patch"  # the paper's: one linear map of each patch
    CONV = "conv"  # strided convolutions, for small networks that start from nothing


@dataclass
class BackboneConfig:
    """Sizes of a TimeSformer, whose frame count and picture size come from `clip`, so that they cannot disagree; or, of
    kind TRANSFORMERS, where another encoder lies, which says its sizes itself."""

    kind: BackboneKind = BackboneKind.TIMESFORMER
    stem: StemKind = StemKind.PATCH
    patch_size: int = positive(16, 1024)
    embed_dim: int = positive(768, 16384)
    depth: int = positive(12, 1024)
    num_heads: int = positive(12, 1024)
    mlp_ratio: float = positive(4.0, 64)
    drop_path_rate: float = within(0.0, "[0, 1)")
    weights: str | None = None  # "kinematics" (ships with the package), or what `read_source` reads; None: from nothing
    # of an encoder of `transformers`: the blocks, from 0, whose tokens a head reads together; none: the last
    layers: list[int] = field(default_factory=list)
    num_frozen_blocks: int = non_negative(
        0, 1024
    )  # the embeddings and this many blocks keep the weights they start from
    num_checkpointed_blocks: int = non_negative(
        0, 1024
    )  # activation checkpointing of this many blocks after those: less memory, more time

    def __post_init__(self) -> None:
        check_numbers(self, "backbone.")
        if self.kind is BackboneKind.TRANSFORMERS:
            self._check_encoder()
        else:
            self._check_timesformer()

    def _check_encoder(self) -> None:
        where = f"backbone.kind={self.kind.value}"
        require(self.weights is not None, "backbone.weights", f"a folder or hub id with {where}", self.weights)
        for name in TIMESFORMER_OPTIONS:
            refuse_unused(self, "backbone", name, False, f"with {where}, whose encoder has a config.json of its own")
        is_ascending = self.layers == sorted(set(self.layers)) and min(self.layers, default=0) >= 0
        require(is_ascending, "backbone.layers", "ascending numbers of blocks, from 0", self.layers)

    def _check_timesformer(self) -> None:
        expected = f"left out with backbone.kind={self.kind.value}, whose heads read the last block"
        require(not self.layers, "backbone.layers", expected, self.layers)
        if self.stem is StemKind.CONV:
            is_power = self.patch_size >= 4 and self.patch_size & (self.patch_size - 1) == 0
            require(is_power, "backbone.patch_size", "4, 8, 16, ... for backbone.stem=conv", self.patch_size)
            divisor = self.patch_size // 4
            expected = f"a multiple of {divisor} for backbone.stem=conv of {self.patch_size}-pixel patches"
            require(self.embed_dim % divisor == 0, "backbone.embed_dim", expected, self.embed_dim)
        least = f"at least 1 / backbone.embed_dim={self.embed_dim}"
        require(int(self.embed_dim * self.mlp_ratio) > 0, "backbone.mlp_ratio", least, self.mlp_ratio)
        require(
            self.embed_dim % self.num_heads == 0,
            "backbone.num_heads",
            f"a divisor of backbone.embed_dim={self.embed_dim}",
            self.num_heads,
        )
        require(
            0 <= self.num_frozen_blocks <= self.depth,
            "backbone.num_frozen_blocks",
            f"between 0 and backbone.depth={self.depth}",
            self.num_frozen_blocks,
        )
        num_trained = self.depth - self.num_frozen_blocks
        require(
            0 <= self.num_checkpointed_blocks <= num_trained,
            "backbone.num_checkpointed_blocks",
            f"between 0 and the {num_trained} blocks that are trained",
            self.num_checkpointed_blocks,
        )

    def require_whole_patches(self, image_size: int) -> None:
        require(
            image_size % self.patch_size == 0,
            "clip.image_size",
            f"a multiple of backbone.patch_size={self.patch_size}",
            image_size,
        )
