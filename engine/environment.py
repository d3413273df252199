"""What produced a run: the commit, the versions, the seed, the machine and the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torchvision", "timm", "transformers", "av", "numpy", "omegaconf", "safetensors", "einops", "diveparse")


def describe_environment(seed: int) -> dict[str, Any]:
    """Everything that a reader needs to repeat the run, as plain JSON values; None where it cannot be known."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _has_uncommitted_changes(),
        "command": shlex.join(sys.argv),
        "seed": seed,
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, **{package: _version(package) for package in PACKAGES}},
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu_model(),
            "num_cores": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
    }


def _git(*arguments: str) -> str | None:
    """What git answers about the code in use; None for an installed package, or where there is no git."""
    if not (REPOSITORY / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _has_uncommitted_changes() -> bool | None:
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
