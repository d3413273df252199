"""Files of tensors: our own safetensors, and other people's checkpoints without running what those may have pickled."""

from __future__ import annotations

import re
import struct
import zipfile
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
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


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
            state, metadata = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, TypeError, RuntimeError, OverflowError) as error:  # a shape beyond 64 bits, too
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    _require_plain(path, state)
    return state, metadata


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
    _require_not_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, the unpickler raises almost anything; nothing goes on from here
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it pickles {refused[1]}, which is no plain data" if refused else f"damaged: {type(error).__name__}"
        raise ValueError(f"{path}: refused to read this checkpoint: {reason}") from error
    state = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) and isinstance(n, str) for n, x in state.items()):
        wanted = "a dictionary of tensors" if key is None else f"a dictionary of tensors under {key!r}"
        names = [str(name)[:80] for name in content] if isinstance(content, dict) else []
        found = f"a dictionary of {shortened(names)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path}: expected {wanted}, got {found}")
    _require_plain(path, state)
    return dict(state)


def _require_plain(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in (*FLOATS, *INTEGERS):
            kind = f"{str(tensor.layout).removeprefix('torch.')} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{path}: expected plain tensors; {name} is {kind} on {tensor.device}")
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # one number repeated, which would fill the memory
            raise ValueError(f"{path}: {name} {shape_of(tensor)} holds fewer numbers than its shape claims")


def _require_not_compressed(path: Path) -> None:
    """`torch.save` writes a zip archive without compression; one that expands is no file of it, and has no bound."""
    if not zipfile.is_zipfile(path):  # as before torch 1.6
        return
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise ValueError(f"{path}: refused to read this checkpoint: damaged: {type(error).__name__}") from error
    if num_bytes > path.stat().st_size:
        raise ValueError(f"{path}: refused to read this checkpoint: it expands to {num_bytes / 1e9:.3g} GB")


def require_finite(state: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raises: ValueError naming the weights that are infinite or not a number."""
    broken = [name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all()]
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
