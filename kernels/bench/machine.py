"""Which machine and software this is, in the fields of a record."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

PEERS = ("liger-kernel", "quack-kernels", "flash-attn")
_NOISE = re.compile(r"nvidia|amd|geforce|instinct|graphics|\d+ ?gb|hbm\d?e?|sxm\d?|pcie", re.IGNORECASE)


def _said(*command: str) -> str | None:
    """First word that a command says, or None where it can't."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent, timeout=30
        )
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name() -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def folder_name(device: str) -> str:
    """A device's folder under ``book/results``: "NVIDIA H100 80GB HBM3" gives "h100"."""
    words = re.findall(r"[a-z0-9]+", _NOISE.sub(" ", device).lower())
    return "-".join(words) or "gpu"


def description(command: str, commit: str | None = None) -> dict[str, Any]:
    """The fields of a record other than its samples."""
    cuda = torch.cuda.is_available()
    return {
        "device": device_name(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else None,
        "torch": str(torch.__version__),
        "triton": version("triton"),
        "date": date.today().isoformat(),
        "commit": commit or _said("git", "rev-parse", "--short", "HEAD") or "unknown",
        "command": command,
    }
