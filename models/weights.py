"""Weights in safetensors files: saving them whole, and loading them only where they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diveparse.configs import BackboneConfig
from diveparse.datasets.atomic import written_atomically
from diveparse.models.patch_embed import resize_space_embed, resize_time_embed
from diveparse.models.timesformer import TimeSformer, build_backbone

KINEMATICS = "kinematics"  # weights that ship with the package, pretrained on the joints of rendered divers
PACKAGED_KINEMATICS = Path(__file__).parent / "kinematics.safetensors"
MODEL_FILE = "model.safetensors"
BACKBONE_PREFIX = "backbone."  # of the backbone's names in a classifier's file
NUM_HEADS = "num_heads"  # in a file's metadata: the one size that no tensor's shape shows
NUM_NAMES_SHOWN = 6

logger = logging.getLogger(__name__)


def load_backbone(source: str, cfg: BackboneConfig, *, num_frames: int, image_size: int) -> TimeSformer:
    """Build a backbone and give it saved weights.

    source: "kinematics"; a file of `save_backbone`; or a run or model folder, whose classifier gives its backbone.
    Position and time embeddings are resized, and the log says so, where the picture size or frame count is another.
    Raises: ValueError naming the file if there is none, it is damaged, or other sizes were built into it.
    """
    backbone = build_backbone(cfg, num_frames=num_frames, image_size=image_size)
    path = _backbone_file(source)
    state, metadata = read_weights(path)
    if metadata.get(NUM_HEADS) != str(cfg.num_heads):
        raise ValueError(f"{path}: made with num_heads={metadata.get(NUM_HEADS)}, but the config has {cfg.num_heads}")
    if path.name == MODEL_FILE:
        state = {name.removeprefix(BACKBONE_PREFIX): t for name, t in state.items() if name.startswith(BACKBONE_PREFIX)}
    load_state(backbone, resized(state, backbone, path), path)
    return backbone


def save_backbone(path: Path, backbone: TimeSformer, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a backbone that `load_backbone` reads; in float16 the file is half as large and still loads as float32."""
    state = {name: tensor.to(dtype) for name, tensor in backbone.state_dict().items()}
    write_weights(path, state, {NUM_HEADS: str(backbone.config.num_heads)})


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give `module` exactly the weights in `state`, which came from `path`.

    Raises: ValueError listing every kind of misfit with names and shapes, before anything is changed.
    """
    own = module.state_dict()
    misfits = {
        "missing": [f"{name} {_shape(own[name])}" for name in own if name not in state],
        "unexpected": [f"{name} {_shape(state[name])}" for name in state if name not in own],
        "of another shape": [
            f"{name} {_shape(state[name])} instead of {_shape(own[name])}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(misfits.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_shortened(names)}" for kind, names in misfits.items() if names)
        raise ValueError(f"{path}: does not fit this {type(module).__name__}: {listed}")
    module.load_state_dict(dict(state), strict=True)


def resized(state: dict[str, Tensor], backbone: TimeSformer, path: Path) -> dict[str, Tensor]:
    """`state` with its embeddings stretched to the picture size and frame count of `backbone`, which is logged."""
    state = dict(state)
    for name, resize, length in (
        ("space_embed", resize_space_embed, backbone.num_patches),
        ("time_embed", resize_time_embed, backbone.num_frames),
    ):
        wanted = getattr(backbone, name).shape
        if name in state and state[name].shape != wanted and state[name].shape[::2] == wanted[::2]:
            logger.info("%s: resized %s from %s to %s", path, name, _shape(state[name]), tuple(wanted))
            state[name] = resize(state[name].float(), length)
    return state


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, on the CPU, and its metadata.

    Raises: ValueError naming the file if there is none or it is not whole.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with written_atomically(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata)


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


def _backbone_file(source: str) -> Path:
    if source == KINEMATICS:
        return PACKAGED_KINEMATICS
    path = Path(source)
    if path.suffix == ".safetensors":
        return path
    return model_folder(path) / MODEL_FILE


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _shortened(names: list[str]) -> str:
    more = len(names) - NUM_NAMES_SHOWN
    return ", ".join(names[:NUM_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
