"""Clips made of frames as the processor of a published model makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from transformers import AutoVideoProcessor

from diveparse.datasets.constants import NUM_CHANNELS, PIXEL_MEAN, PIXEL_STD
from diveparse.models.build_encoder import without_their_messages
from diveparse.models.weights.encoders import PROCESSOR_FILE, UNREADABLE, SavedEncoder
from diveparse.models.weights.huggingface import PREPROCESSOR_FILES
from diveparse.models.weights.published import PixelStatistics

TOLERANCE = 1e-3  # of a normalised pixel; one step of 255 is ten times that
MARGIN = (24, 40)  # pixels around a picture, so that a processor that does not cut a square is found out


class FrameProcessor:
    """Resizes and cuts frames as a processor of `transformers` does, and normalises them as every clip here is.

    `pixels` is how the processor itself normalises, measured on black and on white frames: a model that was made with
    it turns the normalisation of this project into that one.
    Raises: ValueError naming the origin if the processor does more than resize, cut and normalise, or makes other clips
    than the model takes.
    """

    def __init__(self, processor: Any, saved: SavedEncoder) -> None:
        self.processor, self.origin = processor, saved.origin
        self.normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(PIXEL_MEAN, PIXEL_STD)])
        size = saved.image_size
        frames = torch.zeros(saved.num_frames, NUM_CHANNELS, size + MARGIN[0], size + MARGIN[1], dtype=torch.uint8)
        black, white = (self._whole(frames + level).mean(dim=(0, 2, 3), dtype=torch.float64) for level in (0, 255))
        if not (white > black).all():
            raise ValueError(f"{self.origin}: its processor makes white frames {white.tolist()}, no lighter than black")
        std = 1 / (white - black)
        self.pixels = PixelStatistics(tuple((-black * std).tolist()), tuple(std.tolist()))
        self._require_usual_steps(torch.randint_like(frames, 256), size)

    def __call__(self, frames: Tensor) -> Tensor:
        """frames: uint8 (time, 3, height, width). Returns: (time, 3, image_size, image_size), normalised."""
        clip: Tensor = self.normalise(self._run(frames, do_rescale=False, do_normalize=False))
        return clip

    def _whole(self, frames: Tensor) -> Tensor:
        """What the processor makes of frames by itself."""
        return self._run(frames).float()

    def _run(self, frames: Tensor, **steps: bool) -> Tensor:
        options = {"do_sample_frames": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        clip: Tensor = self.processor([frames], **options, **steps)[self.processor.model_input_names[0]][0]
        return clip

    def _require_usual_steps(self, frames: Tensor, size: int) -> None:
        theirs, expected = self._whole(frames), (len(frames), NUM_CHANNELS, size, size)
        if tuple(theirs.shape) != expected:
            raise ValueError(
                f"{self.origin}: its processor makes clips of (time, channel, height, width) = {tuple(theirs.shape)}, "
                f"but the model takes {expected}"
            )
        own_mean, own_std, mean, std = (
            torch.tensor(values).view(-1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD, self.pixels.mean, self.pixels.std)
        )
        ours = (self(frames) * own_std + own_mean - mean) / std
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{self.origin}: its processor does more to pixels than to rescale and normalise them: they differ "
                f"by {difference:.2g}"
            )


def load_processor(saved: SavedEncoder, folder: Path) -> FrameProcessor:
    """The processor in the folder of a model.

    Raises: ValueError if there is none, it cannot be read, or as `FrameProcessor` does.
    """
    names = (*PREPROCESSOR_FILES, PROCESSOR_FILE)
    if not any((folder / name).is_file() for name in names):
        raise ValueError(
            f"{saved.origin}: holds no processor, so that nothing says how its clips are resized and cut; expected one "
            f"of {', '.join(names)}"
        )
    with without_their_messages():
        try:
            processor = AutoVideoProcessor.from_pretrained(
                folder, config=saved.config, local_files_only=True, trust_remote_code=False
            )
            return FrameProcessor(processor, saved)
        except (ImportError, OSError, RuntimeError, *UNREADABLE) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                reason if reason.startswith(saved.origin) else f"{saved.origin}: its processor cannot be used: {reason}"
            ) from error
