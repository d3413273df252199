"""Files of tensors: our own safetensors, and other people's checkpoints without running what those may have pickled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diveparse.datasets.storage.atomic import written_atomically

MODEL_FILE = "model.safetensors"  # in a model's folder, ours and HuggingFace's alike
NUM_NAMES_SHOWN = 6
MAX_HEADER_BYTES = 8 * 2**20  # of names and shapes; a ViT-g with 40 blocks has 0.1 MB
MAX_TENSORS = 50_000


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, on the CPU, and its metadata.

    Raises: ValueError naming the file if there is none or it is not whole.
    """
    _require_file(path)
    _require_small_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise ValueError(f"{path}: expected at most {MAX_TENSORS} tensors, got {len(names)}")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def _require_small_header(path: Path) -> None:
    """A long header takes minutes to read. Source: the safetensors format, whose first 8 bytes are its length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(
            f"{path}: not a whole safetensors file of weights: expected a header of at most {MAX_HEADER_BYTES} bytes, "
            f"got {length}"
        )


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    with written_atomically(path, sum(tensor.nbytes for tensor in state.values())) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata)


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, on the CPU: the whole content, or what it holds under `key`.

    Raises: ValueError naming the file if there is none, it is damaged, or it pickles anything but plain data.
    """
    _require_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, the unpickler raises almost anything; nothing goes on from here
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it pickles {refused[1]}, which is no plain data" if refused else f"damaged: {type(error).__name__}"
        raise ValueError(f"{path}: refused to read this checkpoint: {reason}") from error
    state = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) and isinstance(n, str) for n, x in state.items()):
        wanted = "a dictionary of tensors" if key is None else f"a dictionary of tensors under {key!r}"
        found = f"a dictionary of {list(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path}: expected {wanted}, got {found}")
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(f"{path}: expected plain tensors; {name} is {tensor.layout} on {tensor.device}")
    return dict(state)


def require_finite(state: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raises: ValueError naming the weights that are infinite or not a number."""
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{origin}: weights are infinite or not a number in {shortened(broken)}")


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def described(state: Mapping[str, Tensor]) -> str:
    """Names and shapes, the first few of them."""
    return shortened([f"{name} {shape_of(tensor)}" for name, tensor in state.items()])


def shortened(names: Sequence[str]) -> str:
    more = len(names) - NUM_NAMES_SHOWN
    return ", ".join(names[:NUM_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
