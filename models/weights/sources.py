"""Weights of a backbone: written whole, and read from wherever they lie, only where they fit."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diveparse.models.weights.files import (
    MODEL_FILE,
    described,
    read_weights,
    require_finite,
    shape_of,
    shortened,
    write_weights,
)
from diveparse.models.weights.hub import HUB_ID
from diveparse.models.weights.huggingface import is_huggingface, read_hub, read_huggingface
from diveparse.models.weights.inflate import inflate_timm, open_timm
from diveparse.models.weights.published import SavedBackbone, SizedBackbone, read_fair
from diveparse.models.weights.resize import resize_space_embed, resize_time_embed

KINEMATICS = "kinematics"  # weights that ship with the package, pretrained on the joints of rendered divers
PACKAGED_KINEMATICS = Path(__file__).parent / "kinematics.safetensors"
BACKBONE_PREFIX = "backbone."  # of the backbone's names in a classifier's file
NUM_HEADS = "num_heads"  # in a file's metadata: the one size that no tensor's shape shows
TIMM_PREFIX = "timm/"

logger = logging.getLogger(__name__)


def read_source(source: str | Path | nn.Module, num_frames: int | None) -> SavedBackbone:
    """Read the weights that `source` means, the first of these that it is:

    an open timm image model; "kinematics", which ships with the package; a folder, HuggingFace's if its config.json
    has a model_type and else a run or model folder of this project; a file of `save_backbone` (.safetensors) or of
    FAIR's code (.pyth); "timm/NAME" for a timm image model, inflated to `num_frames`; "OWNER/NAME" on the HuggingFace
    hub. A path that exists is a path, whatever else its name could mean.

    Raises: ValueError naming the source if it is none of these, missing or damaged.
    """
    if isinstance(source, nn.Module):
        return inflate_timm(source, num_frames)
    name, path = str(source), Path(source)
    if name == KINEMATICS:
        return read_own(PACKAGED_KINEMATICS)
    if path.is_dir():
        return read_huggingface(path) if is_huggingface(path) else read_own(model_folder(path) / MODEL_FILE)
    if path.suffix == ".safetensors":
        return read_own(path)
    if path.suffix == ".pyth":
        return read_fair(path)
    if path.is_file():
        raise ValueError(f"{path}: not a file of weights that this project reads: expected .safetensors or .pyth")
    if name.startswith(TIMM_PREFIX):
        return inflate_timm(open_timm(name.removeprefix(TIMM_PREFIX)), num_frames, origin=name)
    if HUB_ID.fullmatch(name):
        return read_hub(name)
    raise ValueError(
        f"{name}: no such folder or file; expected one with weights, {KINEMATICS}, {TIMM_PREFIX}NAME or OWNER/NAME"
    )


def read_own(path: Path) -> SavedBackbone:
    """The backbone in a safetensors file of this project, one of `save_backbone` or a whole classifier's.

    Raises: ValueError naming the file if there is none, it is damaged, or it is not this project's.
    """
    state, metadata = read_weights(path)
    if not re.fullmatch(r"[0-9]{1,9}", metadata.get(NUM_HEADS, "")):
        raise ValueError(
            f"{path}: not written by this project: its metadata lack {NUM_HEADS}; "
            "of a HuggingFace model, give the folder with its config.json"
        )
    left_out = {name: tensor for name, tensor in state.items() if not name.startswith(BACKBONE_PREFIX)}
    if len(left_out) < len(state):  # a classifier's
        state = {name.removeprefix(BACKBONE_PREFIX): state[name] for name in state if name not in left_out}
        logger.info("%s: took the backbone, left out the head: %s", path, described(left_out))
    return SavedBackbone(str(path), state, int(metadata[NUM_HEADS]))


def save_backbone(path: Path, backbone: SizedBackbone, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a backbone that `load_backbone` reads; in float16 the file is half as large and still loads as float32."""
    state = {name: tensor.to(dtype) for name, tensor in backbone.state_dict().items()}
    write_weights(path, state, {NUM_HEADS: str(backbone.config.num_heads)})


def load_state(module: nn.Module, state: Mapping[str, Tensor], origin: Path | str) -> None:
    """Give `module` exactly the weights in `state`, which came from `origin`.

    Raises: ValueError listing every kind of misfit with names and shapes, before anything is changed.
    """
    own = module.state_dict()
    misfits = {
        "missing": [f"{name} {shape_of(own[name])}" for name in own if name not in state],
        "unexpected": [f"{name} {shape_of(state[name])}" for name in state if name not in own],
        "of another shape": [
            f"{name} {shape_of(state[name])} instead of {shape_of(own[name])}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} of {state[name].dtype}"
            for name in own
            if name in state and state[name].dtype.is_floating_point != own[name].dtype.is_floating_point
        ],
    }
    if any(misfits.values()):
        listed = "; ".join(f"{len(names)} {kind}: {shortened(names)}" for kind, names in misfits.items() if names)
        raise ValueError(f"{origin}: does not fit this {type(module).__name__}: {listed}")
    require_finite(state, origin)
    module.load_state_dict(dict(state), strict=True)


def resized(state: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: Path | str) -> dict[str, Tensor]:
    """`state` with its embeddings stretched to the picture size and frame count of the state `own`; logged.

    Positions that are not those of a class token and a square of patches are left as they are, to be refused.
    """
    state = dict(state)
    for name, resize, num_extra in (("space_embed", resize_space_embed, 1), ("time_embed", resize_time_embed, 0)):
        wanted = own[name].shape
        if name not in state or state[name].shape == wanted or state[name].shape[::2] != wanted[::2]:
            continue
        num_patches = state[name].shape[1] - 1
        if name == "space_embed" and math.isqrt(num_patches) ** 2 != num_patches:
            continue
        logger.info("%s: resized %s from %s to %s", origin, name, shape_of(state[name]), tuple(wanted))
        state[name] = resize(state[name].float(), wanted[1] - num_extra)
    return state


def model_folder(run_or_folder: Path) -> Path:
    """The folder that holds a classifier: `run_or_folder` itself, or `model` inside it.

    Raises: ValueError naming both if neither does.
    """
    for folder in (run_or_folder, run_or_folder / "model"):
        if (folder / MODEL_FILE).is_file():
            return folder
    if not run_or_folder.is_dir():
        raise ValueError(f"{run_or_folder}: no such folder; expected a run folder or a model folder")
    raise ValueError(f"{run_or_folder}: holds no model: neither {MODEL_FILE} nor model/{MODEL_FILE} is there")
