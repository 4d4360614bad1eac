"""Whether the compiled code on disk is up to date, and bringing it up to date.

Numba keeps the machine code of each function and drops it when that function's own file changes. A kernel
also holds the code of functions from other files of this folder, so a fingerprint of the whole folder
decides: where it differs from the one noted at the last compilation, all of that machine code is dropped.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).parent
_NOTE = "compiled.fingerprint"


@cache
def _fingerprint() -> str:
    """Changes with these sources, the compiler's version, Python's and the kind of machine."""
    digest = hashlib.sha256()
    for source in sorted(_HERE.glob("*.py")):
        digest.update(source.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        try:
            digest.update(version(package).encode())
        except PackageNotFoundError:
            digest.update(b"none")
    where = (sys.version, sys.platform, platform.machine(), os.environ.get("NUMBA_CACHE_DIR"))
    digest.update(repr(where).encode())
    return digest.hexdigest()


def _places() -> list[Path]:
    """Folders for the note: beside the sources, as Numba does it, or where the user's caches are."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [_HERE / "__pycache__", cache_home / "lmlib"]


def is_compiled() -> bool:
    """Whether `compile_kernels` has been run for these very sources, on this Python and Numba."""
    for place in _places():
        try:
            if (place / _NOTE).read_text() == _fingerprint():
                return True
        except OSError:
            continue
    return False


def compile_kernels() -> None:
    """Compile everything into Numba's cache on disk (some 15 s). Raises ImportError without Numba."""
    from numba import NumbaWarning

    from .counter import count_kernel, count_words
    from .encoder import Encoder, encode_kernel
    from .scan import GPT2
    from .table import WordTable
    from .trainer import merge_kernel, train

    for kernel in (count_kernel, encode_kernel, merge_kernel):
        for stale in Path(kernel.stats.cache_path).glob("*.nb[ic]"):
            if stale.name.split(".")[0] in {source.stem for source in _HERE.glob("*.py")}:
                stale.unlink(missing_ok=True)
    text = "the cat the hat " + "a" * 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)  # where no folder can be written, the code is not kept
        WordTable(1).grow(1)
        words = count_words([text, text], GPT2, n_workers=2)
        train(words, 2)
        Encoder(range(256), [(116, 104, 256)], GPT2).encode(text.encode())
    _note()


def _note() -> None:
    """Write the fingerprint down, at once or not at all."""
    for place in _places():
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=place, delete=False) as file:
                file.write(_fingerprint())
            os.replace(file.name, place / _NOTE)
        except OSError:
            continue
        return
