"""Records of measurements, as ``lmlib.book.records`` reads them: what each begins with, and its file."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lmlib.tokenization.storage import write_text


def machine() -> dict[str, Any]:
    """The device under its own name, its driver, and the versions of torch and triton."""
    gpu = torch.cuda.is_available()
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "driver": _driver() if gpu else None,
        "torch": torch.__version__,
        "triton": triton if gpu else None,
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # a GPU without this program: a small container, or a card of another maker
        return None
    return answer.stdout.split("\n")[0].strip() or None


def origin(program: str, arguments: Sequence[str], commit: str) -> dict[str, Any]:
    """Where a record comes from: the machine, today's date, the source's commit, and the command."""
    return {
        **machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "command": " ".join(["python -m", program, *arguments]),
    }


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")
