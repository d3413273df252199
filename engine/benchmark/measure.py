"""Measuring a process: on one core, its memory at the peak, and what a function takes in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

M_MMAP_THRESHOLD = -3  # malloc.h


@contextmanager
def one_core() -> Iterator[None]:
    """Keep to one core and one thread. Raises: ValueError where that cannot be done."""
    if sys.platform != "linux":
        raise ValueError("measuring on one core, and memory, needs Linux")
    cores, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(num_threads)


def in_a_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_kib(field: str) -> int:
    """A field of /proc/self/status: "VmRSS", the memory of this process now, or "VmHWM", at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def reset_peak() -> None:
    """Let the process's peak, VmHWM, count from here on, without memory that is free but not given back (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def give_back_what_is_freed() -> None:
    """From now on a peak is that of tensors alive at once (Linux).

    Otherwise glibc keeps what a process frees to use it again, in holes that make up to a fifth of the peak. How many
    there are differs from run to run by more than the models do.

    Raises: ValueError if the C library does not take the setting.
    """
    if not ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18):  # larger blocks get their own pages, freed with them
        raise ValueError("measuring memory needs a C library whose mallopt takes M_MMAP_THRESHOLD, such as glibc")


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
