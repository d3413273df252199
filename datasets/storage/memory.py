"""What fits in the memory of this machine, asked before anything is built."""

from __future__ import annotations

import os
from pathlib import Path

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"; of a Linux container


def require_memory(num_bytes: int, what: str) -> None:
    """Refuse what can never fit. what: in the plural, with the options that decide the size.

    Raises: ValueError with the estimated size. Where the system does not give its memory, nothing is checked.
    """
    memory = machine_memory()
    if memory is not None and num_bytes > memory:
        raise ValueError(f"{what} need {num_bytes / 1e9:.0f} GB, this machine has {memory / 1e9:.0f} GB; choose less")


def machine_memory() -> int | None:
    """The memory of the machine, or of the container where that is less, in bytes; None where the system has none."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # as on Windows
        return None
    try:
        return min(memory, int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit
        return memory
