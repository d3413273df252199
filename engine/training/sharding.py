"""A model whose weights, gradients and optimiser states lie in parts on several processes (FSDP2), and its checkpoints.

A process gathers the weights of one block at a time, runs it, and drops them again. Source: Zhao et al., "PyTorch FSDP:
experiences on scaling fully sharded data parallel", VLDB 2023, in torch's second form, `fully_shard`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from diveparse.configs import Precision
from diveparse.engine import distributed
from diveparse.models.classifier import DiveClassifier

METADATA = ".metadata"  # of torch.distributed.checkpoint: a pickle, which alone says which file holds what
METADATA_NAMES = {  # all that one of tensors names
    *(
        (module, name)
        for module, names in (
            (
                "torch.distributed.checkpoint.metadata",
                (
                    "Metadata",
                    "MetadataIndex",
                    "TensorStorageMetadata",
                    "ChunkStorageMetadata",
                    "TensorProperties",
                    "StorageMeta",
                    "_MEM_FORMAT_ENCODING",
                ),
            ),
            ("torch.distributed.checkpoint.filesystem", ("_StorageInfo",)),
            ("torch", ("Size", "float32", "float64", "bfloat16", "int64")),
            ("torch.serialization", ("_get_layout",)),
            ("pathlib", ("PosixPath", "WindowsPath")),
        )
        for name in names
    ),
}


def shard(model: DiveClassifier, device: torch.device, precision: Precision) -> None:
    """Leave on this process its part of every weight, on a device. Every block is gathered by itself, and the rest
    together. With bf16 on a GPU blocks are gathered in bf16, and their gradients are summed in fp32.

    What goes from block to block stays as autocast has it.

    To be called in all processes, of models with equal weights, before an optimiser is built over them.
    """
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    halves = precision is Precision.BF16 and device.type == "cuda"
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if halves
        else MixedPrecisionPolicy()
    )
    for block in model.backbone.block_list():
        fully_shard(block, mesh=mesh, mp_policy=policy)
        for method in model.backbone.block_methods:
            register_fsdp_forward_method(block, method)
    fully_shard(model, mesh=mesh)
    model.to(device)  # buffers


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """As `distributed.without_exchange`."""
    return _without_sync(model) if isinstance(model, FSDPModule) else nullcontext()


@contextmanager
def _without_sync(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def full_state(model: nn.Module) -> dict[str, Tensor] | None:
    """Every weight as a whole, on the CPU, in the first process; empty in the others. Of a model that is not sharded,
    None: it has its weights."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def whole(value: Tensor) -> Tensor:
    """A tensor of which processes may have parts."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Every process writes its parts of named tensors into a new folder, for any number of processes to read.

    Raises: OSError for what kept one of them from writing.
    """
    import torch.distributed.checkpoint as dcp  # not before: Windows lacks signals that it takes for granted

    try:
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
        dcp.save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:  # no Exception
        raise next(iter(error.failures.values()))[0] from None


def load_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read into named tensors, as they are divided now, what any number of processes wrote.

    Only tensors are read, and no code of the file that says where they lie is run.
    Raises: ValueError for a folder that is damaged, or holds other tensors.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    class TensorReader(dcp.FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> Metadata:
            metadata = _MetadataUnpickler(io.BytesIO((folder / METADATA).read_bytes())).load()
            if not isinstance(metadata, Metadata):
                raise ValueError(f"{METADATA} is {type(metadata).__name__} instead of the metadata of a checkpoint")
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    try:
        dcp.load(tensors, storage_reader=TensorReader(folder), no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:  # no Exception
        raise ValueError(f"{folder.name}: {next(iter(error.failures.values()))[0]}") from None


def sharded_tensors(model: nn.Module, optimizer: Optimizer, average: nn.Module | None) -> dict[str, Tensor]:
    """What a checkpoint holds, by name: the weights, their average, and the optimiser's states of each weight.

    States are made where the optimiser has none yet, so that they can be read into.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:  # as Adam begins
                state["step"] = torch.zeros((), device=parameter.device if group["fused"] else None)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            tensors |= {f"optimizer.{names[parameter]}.{name}": value for name, value in state.items()}
    return tensors


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group of parameters, such as its rate, without the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def restore_options(optimizer: Optimizer, options: list[dict[str, Any]]) -> None:
    """Raises: ValueError if there are not as many groups."""
    for group, saved in zip(optimizer.param_groups, options, strict=True):
        group.update(saved)


class _MetadataUnpickler(pickle.Unpickler):
    """Source: "Restricting globals" in the documentation of Python's pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in METADATA_NAMES:
            return super().find_class(module, name)
        raise ValueError(f"{METADATA} names {module}.{name}, which no checkpoint does")
