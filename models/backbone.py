"""The interface of a backbone.

Input. Clips are float (batch, time, channel, height, width), normalised with the pixel mean and standard deviation of
the backbone's `clip_format`, and of its frame count and picture size. In place of clips a backbone takes what its
`frozen_tokens` made of them, (batch, tokens, dim): the feature cache stores that, and training then starts where it
changing something; what lies in there is the backbone's own affair. Where every block is frozen, `forward` also takes
what `frozen_class_token` made of them.

Output. `tokens` is every token after the last norm, (batch, tokens, embed_dim): the class token first, where there is
one, then the patches frame by frame. `forward` is the class token alone, which may cost less.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.models.weights.huggingface import SavedClassifier


@dataclass(frozen=True)
class ClipFormat:
    """The clips that a backbone takes."""

    num_frames: int
    image_size: int  # height and width, pixels
    pixel_mean: tuple[float, ...] = PIXEL_MEAN  # a channel each, of pixels in [0, 1]
    pixel_std: tuple[float, ...] = PIXEL_STD


class Backbone(nn.Module, ABC):
    """A video encoder under a head."""

    embed_dim: int
    num_heads: int  # of its attention, for pooling by queries
    has_class_token: bool
    clip_format: ClipFormat
    num_frozen_blocks: int  # the embeddings and this many blocks are not trained
    block_methods: tuple[str, ...] = ()  # of a block that the backbone calls beside its `forward`

    @abstractmethod
    def tokens(self, inputs: Tensor) -> Tensor:
        """Every token after the last norm, the class token first. Returns: (batch, tokens, embed_dim)."""

    @abstractmethod
    def frozen_tokens(self, clips: Tensor) -> Tensor:
        """What the embeddings and the frozen blocks make of clips. Returns: (batch, tokens, dim), to go on from."""

    @property
    def has_frozen_class_token(self) -> bool:
        """Whether every block is frozen, and `frozen_class_token` gives all that `forward` goes on from."""
        return False

    def frozen_class_token(self, clips: Tensor) -> Tensor:
        """The class token that the blocks make of clips, before the last norm; for `forward` to go on from.

        Of a backbone that `has_frozen_class_token`. Returns: (batch, 1, embed_dim).
        """
        raise NotImplementedError(f"{type(self).__name__} has no class token by itself")

    @abstractmethod
    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Every parameter once, in groups from the embeddings at the bottom to the last norm at the top."""

    def block_list(self) -> list[nn.Module]:
        """The blocks from the bottom to the top: what full sharding gathers one at a time. Without any it gathers all
        at once."""
        return []

    @abstractmethod
    def freeze(self, num_blocks: int) -> None:
        """Keep the embeddings and the first `num_blocks` blocks as they are; 0 trains everything."""

    def description(self) -> dict[str, Any]:
        """What a saved model keeps beside its config and its weights, so that this backbone can be built again."""
        return {}

    def origin(self) -> dict[str, Any]:
        """What a run records of where the weights came from, beside the option `backbone.weights`."""
        return {}

    def about_frozen_tokens(self) -> dict[str, Any]:
        """What decides `frozen_tokens` beside the weights, the clips and the number of frozen blocks."""
        return self.description()

    def why_not_in_transformers(self) -> str | None:
        """Why `transformers` has no classifier with this backbone and a last layer on its class token.

        None where it has one: a backbone that can be published so also offers `save_in_transformers`.
        """
        return f"its backbone, {type(self).__name__}, has no such format"

    def save_in_transformers(self, folder: Path, classifier: SavedClassifier) -> None:
        """Write the folder of a classifier that `transformers` loads, with this last layer on the class token."""
        raise ValueError(f"{folder}: {self.why_not_in_transformers()}")

    def forward(self, inputs: Tensor) -> Tensor:
        """The class token after the last norm. Returns: (batch, embed_dim).

        Raises: ValueError if the backbone has no class token.
        """
        self.require_class_token()
        return self.tokens(inputs)[:, 0]

    def require_class_token(self) -> None:
        if not self.has_class_token:
            raise ValueError(
                f"head.pooling=class_token needs a class token, and {type(self).__name__} has none; "
                "set head.pooling to mean or queries"
            )
