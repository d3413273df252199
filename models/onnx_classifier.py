"""A model that `diveparse export --format onnx` wrote, read and run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diveparse.configs import ClipConfig, HeadKind
from diveparse.datasets.constants import PIXEL_MEAN, PIXEL_STD
from diveparse.datasets.dives import ATTRIBUTES, DiveSet
from diveparse.datasets.storage.json_file import parse_json
from diveparse.heads.recombine import slot_table
from diveparse.heads.scores import DiveScores, IndependentScores

SUFFIX = ".onnx"
CLIPS, DIVES = "clips", "dives"  # the input; the first output, before one of each attribute
METADATA = "diveparse.json"  # in a file of torch.export
FORMAT = 1  # of the metadata


class OnnxClassifier:
    """Answers as the model that was exported, with the dives that it was exported with.

    Raises: ValueError naming the file if there is none, it is damaged, or it is not this project's; or if ONNX Runtime
    is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(f"{path}: reading it needs ONNX Runtime: pip install 'diveparse[onnx]'") from error
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected one that `diveparse export --format onnx` wrote")
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # of a damaged file, almost anything; nothing goes on from here
            raise ValueError(f"{path}: not a whole ONNX file: {str(error).splitlines()[0]}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            about = {name: parse_json(metadata[name]) for name in ("format", "dives", "head", "preprocessing")}
            self.dive_set = DiveSet.from_numbers(about["dives"]["numbers"], str(about["dives"]["name"]))
            self.is_independent = HeadKind(about["head"]) is HeadKind.INDEPENDENT
            self.clip_config = _clip_config(about["preprocessing"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: its metadata are not those of `diveparse export` (format, dives, head, preprocessing): "
                f"{error!r}"
            ) from error
        self.slots = slot_table(self.dive_set)
        self.processor = None  # clips are made as here

    def calibrated_scores(self, clips: Tensor) -> DiveScores:
        """The distribution over dives of each clip; the file has the temperature in it. clips: as the model takes."""
        outputs = self.session.run([DIVES, *ATTRIBUTES], {CLIPS: clips.float().numpy()})
        dives, *values = map(torch.from_numpy, outputs)
        if self.is_independent:
            return IndependentScores(self.dive_set, self.slots, dict(zip(ATTRIBUTES, values, strict=True)))
        return DiveScores(self.dive_set, self.slots, dives=dives)


def _clip_config(preprocessing: dict[str, Any]) -> ClipConfig:
    for name, own in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        if tuple(preprocessing[name]) != own:
            raise ValueError(f"{name} must be {own}, got {preprocessing[name]}")
    return ClipConfig(num_frames=preprocessing["num_frames"], image_size=preprocessing["image_size"])
