"""Where the arithmetic runs, and in which precision."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from diveparse.configs import Precision, TrainConfig
from diveparse.datasets.storage.seeding import stream_seed
from diveparse.engine import distributed

PROCESS_NOISE = 4  # what a random stream is for, beside those of datasets/splits.py and engine/feature_cache.py


def choose_device() -> torch.device:
    """The GPU where there is one; under `torchrun` each process has its own. On the CPU, give the main process every
    core that it may run on: data workers keep to one thread each, and mostly wait. OMP_NUM_THREADS, where set,
    overrides it, so that two runs can share; `torchrun` sets it to 1.

    Raises: ValueError if there are fewer GPUs than processes on this machine.
    """
    if torch.cuda.is_available():
        distributed.require_own_gpu()
        torch.cuda.set_device(distributed.local_rank())
        return torch.device("cuda", distributed.local_rank())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return torch.device("cpu")


def require_trainable(cfg: TrainConfig, device: torch.device) -> None:
    """Raises: ValueError for what only a GPU does here: compiling, and training in bf16."""
    if cfg.precision is not Precision.FP32 and device.type != "cuda":
        raise ValueError(f"train.precision={cfg.precision.value} needs a GPU, and this machine has none; use fp32")
    if cfg.compile and device.type != "cuda":
        raise ValueError("train.compile=true needs a GPU, and this machine has none; use false")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision for a forward pass on a GPU; nothing on the CPU, so that any run can be evaluated there."""
    if precision is Precision.FP32 or device.type != "cuda":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed every generator that model code may draw from, and ask a GPU for kernels that repeat to the bit."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def seed_own_noise(seed: int) -> None:
    """Let processes other than the first draw numbers of their own from here on: dropped paths, and mixed clips.

    All have drawn the same initial weights until now.
    """
    if not distributed.is_first():
        torch.manual_seed(stream_seed(seed, PROCESS_NOISE, distributed.rank()))
