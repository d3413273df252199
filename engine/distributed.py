"""Several processes that work on one run, as `torchrun` starts them. In a process by itself nothing here has an effect.

Every process takes its share of each batch, and the gradients are averaged over all. Each holds the whole model, with
DistributedDataParallel around it, or a part of it (engine/training/sharding.py).
The order of clips and their augmentation follow from the seed alone. So the number of processes changes how fast a run
is, and its result no further than rounding does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")

ENDED = "another process of this run has ended, and this one cannot go on without it; see what that one reports"
SECONDS_TO_REPORT = 60.0  # that others leave to the process which reports for all
TIMEOUT = timedelta(minutes=30)  # after which a process takes one that does not answer for dead


def is_launched() -> bool:
    """Whether `torchrun` started this process, be it as one of several or alone."""
    return dist.is_torchelastic_launched()


def rank() -> int:
    """The number of this process among all, from 0."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """The number of processes."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and reports."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ["LOCAL_RANK"]) if is_launched() else 0


def require_own_gpu() -> None:
    """Raises: ValueError if this machine has GPUs, but not one for each of its processes; at once in the first of them,
    whose error `torchrun` ends the others for."""
    num_local, num_gpus = local_world_size(), torch.cuda.device_count()
    if not torch.cuda.is_available() or num_local <= num_gpus:
        return
    if local_rank() > 0:
        time.sleep(SECONDS_TO_REPORT)
    raise ValueError(
        f"torchrun started {num_local} processes on a machine with {num_gpus} GPU(s), and each takes one; "
        "set --nproc-per-node to the number of GPUs"
    )


def local_world_size() -> int:
    """The number of processes of this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else 1


def require_same(value: int, what: str, why: str) -> None:
    """Raises: ValueError, in the first process, if processes have different values; the others end with it."""
    values = gathered(torch.tensor(value)).tolist()
    if len(set(values)) == 1:
        return
    if not is_first():
        raise SystemExit(1)
    raise ValueError(f"{what}: {', '.join(map(str, values))} in the processes of this run; {why}")


def require_even(batch_size: int, option: str) -> int:
    """The share of each process of a batch. Raises: ValueError if the processes cannot share it evenly."""
    if batch_size % world_size():
        raise ValueError(
            f"{option}={batch_size} is the batch of all processes together, and {world_size()} of them cannot share "
            "it evenly; change it or --nproc-per-node"
        )
    return batch_size // world_size()


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the block the processes can talk to each other.

    Rank 0 enters when everything that a user can get wrong has been checked, and all others at once: they wait for it,
    and `torchrun` ends them where rank 0 ends with an error.
    Raises: OtherProcessError where another process ended in the middle of the work.
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    # numbers that processes tell each other are on the CPU, and do not wait for the work of a GPU
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _others_may_end():
        with _sigterm_by_default():  # no handler would run while this waits for the others
            dist.init_process_group(
                backend,
                timeout=TIMEOUT,
                store=_store_of_attempt(),
                rank=rank(),
                world_size=world_size(),
                device_id=device if device.type == "cuda" else None,
            )
        yield
        wait_for_all()  # no process leaves while another still needs it
    dist.destroy_process_group()  # after an error its end may wait for those that are no more; the process exits anyway


@contextmanager
def _sigterm_by_default() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _store_of_attempt() -> dist.Store:
    """Where processes find each other, without what those before a restart by `torchrun` left there.

    One store serves all attempts of a job. Without a prefix of its own an attempt reads the addresses of dead processes
    and waits for them: https://github.com/pytorch/pytorch/issues/135712.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class OtherProcessError(ValueError):
    """Another process of the run ended, and this one cannot go on without it."""


@contextmanager
def _others_may_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise_if_others_ended(error)
        raise


def raise_if_others_ended(error: BaseException) -> None:
    """Raises: OtherProcessError if an error is of the connection to other processes."""
    text = str(error)
    if any(sign in text for sign in ("onnection closed", "onnection reset", "Broken pipe")):
        raise OtherProcessError(ENDED) from error
    if isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text:
        raise OtherProcessError(
            f"the processes of this run cannot talk to each other: {text.splitlines()[0]}"
        ) from error


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Every `world_size`-th item, from the rank-th on: the part of this process."""
    return items[rank() :: world_size()]


def wait_for_all() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # a barrier on a GPU would keep SIGTERM waiting


def is_true_anywhere(value: bool) -> bool:
    """Whether any process gives True; all get the same answer."""
    if world_size() == 1:
        return value
    flag = torch.tensor(int(value))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def gathered(values: Tensor) -> Tensor:
    """What every process gives, (world_size, ...), in the order of ranks. values: of the same shape everywhere."""
    if world_size() == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def gathered_rows(rows: Tensor, places: Tensor, num_rows: int) -> Tensor:
    """The rows of all processes in one tensor, (num_rows, ...), bit for bit; a row that no process gives is zero.

    rows: (own rows, ...), of the same type and width everywhere; places: (own rows,), which no two processes share.
    """
    whole = rows.new_zeros(num_rows, *rows.shape[1:])
    whole[places] = rows
    if world_size() > 1:
        dist.all_reduce(whole)  # a number plus zeros is the number
    return whole


def gathered_bytes(own: bytes) -> list[bytes]:
    """The bytes of every process, in the order of ranks."""
    sizes = gathered(torch.tensor(len(own))).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else padded[:0]
    return [row[:size].numpy().tobytes() for row, size in zip(gathered(padded), sizes, strict=True)]


def gathered_texts(own: Sequence[str]) -> list[str]:
    """The texts of all processes, those of rank 0 first. A text is one line."""
    return [text for part in gathered_bytes("\n".join(own).encode()) if part for text in part.decode().split("\n")]


def data_parallel(module: nn.Module) -> nn.Module:
    """A module whose gradients are averaged over the processes; of a process by itself the module as it is.

    Every process must give as many clips, so that the mean of their gradients is that of all clips.
    """
    if not is_launched():
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)


def without_exchange(module: nn.Module) -> AbstractContextManager[None]:
    """Within the block gradients add up in each process by itself: for all batches of an update but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
